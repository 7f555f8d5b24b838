"""Downloads that break, checksums that differ, archives in every layout and archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bustseg.data.fetch import FOLDER, download, fetch_command, unpack
from bustseg.data.sources import BUSI
from bustseg.errors import DataError


def pack(phantoms: Path, prefix: str, extra: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(phantoms.rglob("*.png")):
            file.write(path, prefix + path.relative_to(phantoms).as_posix())
        for name, content in (extra or {}).items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archive(phantoms: Path) -> bytes:
    return pack(phantoms, "Dataset_BUSI_with_GT/")


class Server:
    """Serves one file on 127.0.0.1, and breaks the connection after ``breaks_after`` bytes while ``breaks`` last."""

    def __init__(self, content: bytes) -> None:
        self.content, self.etag = content, '"one"'
        self.breaks, self.breaks_after = 0, 2**15
        self.ranges, self.announces, self.status = True, True, 200
        self.requests: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.requests.append(wanted)
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
                if self.headers.get("If-Range", server.etag) != server.etag:
                    start = 0
                if start >= len(server.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(server.content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = server.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    whole = len(server.content)
                    self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
                if server.announces:
                    self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", server.etag)
                self.end_headers()
                if server.breaks > 0:
                    server.breaks -= 1
                    body = body[: server.breaks_after]
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/Dataset_BUSI.zip"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(archive: bytes) -> Iterator[Server]:
    running = Server(archive)
    yield running
    running.http.shutdown()
    running.http.server_close()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def same(one: Path, other: Path) -> bool:
    files = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.png")}
    return files == {path.relative_to(other): path.read_bytes() for path in other.rglob("*.png")}


def test_a_broken_connection_goes_on_where_it_stopped(server: Server, phantoms: Path, tmp_path: Path) -> None:
    server.breaks = 3
    assert fetch_command(tmp_path / "data", server.url, sha256=sha(server.content), pauses=0) == 0
    assert server.requests == [None, "bytes=32768-", "bytes=65536-", "bytes=98304-"]
    assert same(phantoms, tmp_path / "data" / FOLDER)
    left = [path.name for path in (tmp_path / "data").iterdir()]
    assert set(left) - {".fetch.lock"} == {FOLDER}, "neither archive nor parts stay"
    # a second call finds everything there
    assert fetch_command(tmp_path / "data", server.url, pauses=0) == 0
    assert len(server.requests) == 4


def test_a_later_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.breaks, server.breaks_after = 10**6, 0
    (tmp_path / "Dataset_BUSI.zip.part").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot download .* try again to continue where it stopped, or .*--archive"):
        download(server.url, tmp_path, None, pauses=0)
    server.breaks, server.breaks_after = 1, 2**14
    with pytest.raises(DataError):
        server_stops_after_one(server, tmp_path)
    server.breaks = 0
    server.requests.clear()
    assert download(server.url, tmp_path, sha(server.content), pauses=0).read_bytes() == server.content
    assert server.requests == ["bytes=16384-"]


def test_a_failed_download_says_why_in_words(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download .* \(no connection: Connection refused\): try again"):
        download("http://127.0.0.1:9/Dataset_BUSI.zip", tmp_path, None, pauses=0)
    server.status = 404
    with pytest.raises(DataError, match=r"\(the server answers 404 Not Found\)"):
        download(server.url, tmp_path, None, pauses=0)


def server_stops_after_one(server: Server, folder: Path) -> None:
    answers = server.breaks_after
    server.breaks = 10**6

    class Once:
        """Gives ``answers`` bytes, then nothing."""

        def __index__(self) -> int:
            nonlocal answers
            now, answers = answers, 0
            return now

    server.breaks_after = Once()  # type: ignore[assignment]
    download(server.url, folder, None, pauses=0)


def test_a_file_that_changed_meanwhile_starts_anew(server: Server, tmp_path: Path) -> None:
    server.breaks = 1
    original = server.content

    def changed(seconds: float) -> None:
        server.content, server.etag = original[::-1], '"two"'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bustseg.data.fetch.time.sleep", changed)
        assert download(server.url, tmp_path, sha(original[::-1])).read_bytes() == original[::-1]


@pytest.mark.parametrize("options", [{"ranges": False}, {"announces": False}])
def test_simple_servers(server: Server, tmp_path: Path, options: dict[str, bool]) -> None:
    """One that sends everything again, and one that does not say how much comes."""
    vars(server).update(options)
    server.breaks = 1 if not server.ranges else 0
    assert download(server.url, tmp_path, sha(server.content), pauses=0).read_bytes() == server.content


def test_a_complete_part_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Dataset_BUSI.zip.part").write_bytes(server.content)
    (tmp_path / "Dataset_BUSI.zip.part.json").write_text(f'{{"url": "{server.url}", "version": null}}')
    assert download(server.url, tmp_path, sha(server.content), pauses=0).read_bytes() == server.content


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not have the checksum") as caught:
        fetch_command(tmp_path, server.url, pauses=0)  # the authors' checksum holds for every address
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {".fetch.lock"}


def test_a_server_that_refuses_is_asked_once(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match="404"):
        download(server.url, tmp_path, None, pauses=0)
    assert len(server.requests) == 1


LAYOUTS = ["Dataset_BUSI_with_GT/", "", "Dataset_BUSI/Dataset_BUSI_with_GT/", "a/b/c/"]


@pytest.mark.parametrize("prefix", LAYOUTS)
def test_every_layout_unpacks_to_the_same(prefix: str, phantoms: Path, tmp_path: Path) -> None:
    rubbish = dict.fromkeys((f"__MACOSX/{prefix}benign/._benign (1).png", "benign/.DS_Store", "read me.txt"), b"x")
    (tmp_path / "archive.zip").write_bytes(pack(phantoms, prefix, rubbish))
    assert fetch_command(tmp_path / "data", archive=tmp_path / "archive.zip") == 0
    assert same(phantoms, tmp_path / "data" / FOLDER)
    assert len(BUSI().read(tmp_path / "data")) == 30
    assert not list(tmp_path.rglob("read me.txt"))
    assert (tmp_path / "archive.zip").is_file()


def with_entry(name: str, content: bytes = b"x", mode: int = 0) -> Callable[[zipfile.ZipFile], None]:
    def write(file: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        file.writestr(info, content)

    return write


def a_second_set(file: zipfile.ZipFile) -> None:
    file.writestr("copy/benign/benign (1).png", b"x")


HARMFUL = {
    "path that climbs": (with_entry("../../evil.png"), "outside the folder"),
    "path that climbs inside": (with_entry("Dataset_BUSI_with_GT/benign/../../../evil.png"), "outside the folder"),
    "Windows path": (with_entry("benign\\..\\..\\evil.png"), "outside the folder"),
    "absolute path": (with_entry("/tmp/evil.png"), "outside the folder"),
    "drive": (with_entry("C:/evil.png"), "outside the folder"),
    "link": (with_entry("Dataset_BUSI_with_GT/benign/x.png", b"/etc/passwd", stat.S_IFLNK | 0o777), "link or device"),
    "bomb": (with_entry("Dataset_BUSI_with_GT/benign/x.png", bytes(30 * 2**20)), "far more than it holds"),
    "two data sets": (a_second_set, "several data sets"),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_harmful_archives_are_refused_and_write_nothing(kind: str, archive: bytes, tmp_path: Path) -> None:
    add, message = HARMFUL[kind]
    path = tmp_path / "in" / "archive.zip"
    path.parent.mkdir()
    path.write_bytes(archive)
    with zipfile.ZipFile(path, "a") as file:
        add(file)
    with pytest.raises(DataError, match=message):
        unpack(path, tmp_path / "out" / FOLDER)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_too_much_in_all_is_refused(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archive.zip").write_bytes(archive)
    monkeypatch.setattr("bustseg.data.fetch._MOST_BYTES", 10_000)
    with pytest.raises(DataError, match="far more than it holds"):
        unpack(tmp_path / "archive.zip", tmp_path / "out")
    monkeypatch.setattr("bustseg.data.fetch._MOST_FILES", 10)
    with pytest.raises(DataError, match="it is not BUSI"):
        unpack(tmp_path / "archive.zip", tmp_path / "out")


def test_a_directory_that_lies_about_sizes_is_caught(tmp_path: Path, archive: bytes) -> None:
    path = tmp_path / "archive.zip"
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    path.write_bytes(archive)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as file:
        file.writestr("Dataset_BUSI_with_GT/benign/big.png", noise)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 10)
    path.write_bytes(content)
    with pytest.raises(DataError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_archives_leave_nothing(archive: bytes, tmp_path: Path) -> None:
    damaged = bytearray(archive)
    damaged[len(archive) // 3 : len(archive) // 3 + 50] = bytes(50)
    for name, content in (("cut", archive[:-5000]), ("changed", bytes(damaged)), ("other", b"no archive at all")):
        path = tmp_path / f"{name}.zip"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            unpack(path, tmp_path / "data" / FOLDER)
        assert "\n" not in str(caught.value)
    assert not any((tmp_path / "data").glob("*")) if (tmp_path / "data").exists() else True


def test_command_line(archive: bytes, tmp_path: Path, bustseg: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "kaggle.zip").write_bytes(archive)
    code, out, err = bustseg("data", "fetch", tmp_path / "data", "--archive", tmp_path / "kaggle.zip")
    assert (code, err) == (0, "")
    assert "30 images" in out
    assert "bustseg data check" in out
    for args in (
        ["--archive", "nowhere.zip"],
        ["--archive", tmp_path / "kaggle.zip", "--sha256", "0" * 64],
        ["--url", "file:///etc/passwd"],
        ["--url", "http://127.0.0.1:9/x.zip", "--sha256", "abc"],
    ):
        code, _, err = bustseg("data", "fetch", tmp_path / "other", *args)
        assert code == 2
        assert len(err.strip().splitlines()) == 1, err
