"""The studies as commands, on tiny networks: they run, go on where they were, and their tables have their rows."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import TrainedRun


def call(monkeypatch: pytest.MonkeyPatch, name: str, *args: object) -> None:
    """Run ``python -m studies.NAME`` in this process."""
    monkeypatch.setattr("sys.argv", [name, *map(str, args)])
    import_module(f"studies.{name}").main()


def rows(text: str) -> list[list[str]]:
    """Cells of a Markdown table's rows, its head first."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_components(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from studies.components import GAPS, THRESHOLDS

    call(monkeypatch, "components", trained_run.run_id)
    head, *table = rows(capsys.readouterr().out)
    assert head == ["threshold", "gap", "model 1", "lesion", "empty_one"]
    assert len(table) == len(GAPS) * len(THRESHOLDS)
    for row in table:
        assert row[2] == row[3], "the mean of one model is that model"
        assert 0 <= float(row[4]) <= 1


def test_confidence(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "confidence", "--model", trained_run.run_id, "--json", tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["subset"] == "val"
    assert written["temperature"] > 0
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_leakage_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BUSI_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    options = ("--phantoms", 40, "--epochs", 1, "--image_size", 64, "--seeds", 0)
    call(monkeypatch, "leakage", *options)
    first = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "leakage").iterdir()) == ["grouped-0.json", "paper-0.json"]
    call(monkeypatch, "leakage", *options)
    assert capsys.readouterr().out.splitlines()[-1] == first.splitlines()[-1]
    with pytest.raises(SystemExit, match="has other settings"):
        call(monkeypatch, "leakage", "--phantoms", 40, "--epochs", 2, "--image_size", 64, "--seeds", 0)
