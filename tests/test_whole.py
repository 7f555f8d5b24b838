"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bustseg.whole import remove_unfinished, replacing, unfinished, whole, write_whole


def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines(["after", None])  # type: ignore[list-item]
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("table.csv", "before")]


def test_what_a_process_has_not_finished_goes_and_nothing_else(tmp_path: Path) -> None:
    inner = tmp_path / "checkpoints"
    inner.mkdir()
    names = [".last.ckpt.12.tmp", ".last.ckpt.13.tmp", ".mine.tmp", ".my.own.tmp", "last.ckpt", "my.12.tmp"]
    for name in names:
        (inner / name).touch()
    remove_unfinished(tmp_path, 12)
    assert {path.name for path in inner.iterdir()} == set(names) - {".last.ckpt.12.tmp"}
    remove_unfinished(tmp_path)
    assert {path.name for path in inner.iterdir()} == {".mine.tmp", ".my.own.tmp", "last.ckpt", "my.12.tmp"}
    remove_unfinished(tmp_path / "nowhere")


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_written_with_its_folder(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "new" / "table.csv"
    write_whole(path, b"one", sync=sync)
    write_whole(path, memoryview(b"two"), sync=sync)
    assert [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [("table.csv", b"two")]


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "\u4e94" * 83 + ".png", "\udcff" * 251 + ".png"])
def test_a_name_may_be_as_long_as_the_disk_takes(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_an_exception_ends_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_whole(path, b"before")

    def interrupted() -> None:
        with whole(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("last.ckpt", b"before")]


@pytest.mark.parametrize("name", ["a [1].csv", "a" * 251 + ".png"])
def test_the_unfinished_files_of_a_name_are_found(tmp_path: Path, name: str) -> None:
    with whole(tmp_path / name) as temporary:
        temporary.write_bytes(b"half")
        (tmp_path / ".other.csv.1.tmp").touch()
        assert unfinished(tmp_path / name) == [temporary]
