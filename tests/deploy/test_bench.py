"""Bench: every contestant gets a row, with figures that fit together or with the reason why there are none."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bustseg.deploy import bench
from bustseg.deploy.export import export_model
from tests.conftest import TINY, TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]

pytest.importorskip("onnx")
pytest.importorskip("openvino")


@pytest.mark.slow
def test_contestants_side_by_side(
    bustseg: Bustseg, trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model("latest", "openvino", "bf16", tmp_path / "exported")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    code, out, error = bustseg(
        *("bench", trained_run.checkpoint, tmp_path / "exported", TINY, "--rounds", 2, "--batch", 1, 3),
        *("--backends", "eager", "onnxruntime", "openvino", "--precisions", "fp32"),
        *("--threads", 1, "--json", "bench.json", "--markdown", "bench.md"),
    )
    assert code == 0, error
    content = json.loads(Path("bench.json").read_text())
    assert content["machine"]["threads"] == 1
    assert content["machine"]["cpu"]
    assert set(content["machine"]["versions"]) >= {"torch", "openvino"}
    rows = {(Path(row["model"]).name, row["backend"], row["precision"]): row for row in content["results"]}
    trained = [("best.ckpt", backend, "fp32") for backend in ("eager", "onnxruntime", "openvino")]
    untrained = [("tiny.yaml", backend, "fp32") for backend in ("eager", "onnxruntime", "openvino")]
    assert list(rows) == [*trained, ("exported", "openvino", "bf16"), *untrained]
    for key, row in rows.items():
        if key[1] == "onnxruntime":
            assert row["problem"] == "onnxruntime is not installed: pip install 'bustseg[deploy]'"
            assert "network" not in row
            continue
        assert row["problem"] is None
        assert row["size"] == [32, 32]
        assert 0 < row["end_to_end"]["median_ms"] <= row["end_to_end"]["p95_ms"]
        assert set(row["network"]) == {"1", "3"}
        for batch, figures in row["network"].items():
            assert 0 < figures["median_ms"] <= figures["p95_ms"]
            assert figures["images_per_s"] == pytest.approx(1000 * int(batch) / figures["median_ms"])
        # the network is a part of the whole, but the two are measured one after the other on a machine that is shared
        assert row["end_to_end"]["median_ms"] > 0.3 * row["network"]["1"]["median_ms"]
        assert row["start_up_s"] > 0
        assert ("dice" in row) == (key[0] == "best.ckpt")
    # a process without torch holds far less
    eager, openvino = rows[trained[0]], rows[trained[2]]
    assert 50 < openvino["peak_memory_mb"] < eager["peak_memory_mb"]
    assert openvino["dice"] == pytest.approx(eager["dice"], abs=0.02)
    assert set(eager["dice"]) == {"paper", "lesion", "empty_one", "pooled"}
    assert "4 validation images" in eager["dice_images"]
    markdown = Path("bench.md").read_text()
    assert markdown.count("### ") == 3
    assert "pip install 'bustseg[deploy]'" in markdown
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    assert "times" in out
    assert "onnxruntime fp32: onnxruntime is not installed" in out


def answer(*values: float) -> dict[str, Any]:
    return {"end_to_end": [2 * value for value in values], "network": {"4": list(values)}}


def test_medians_and_percentiles_of_all_rounds() -> None:
    found = bench._times([answer(0.01, 0.02), answer(0.03, 0.04), answer(0.05)], [4])
    assert found["network"]["4"]["median_ms"] == pytest.approx(30)
    assert found["network"]["4"]["p95_ms"] == pytest.approx(48)  # a fifth of the way from 0.04 to 0.05 is left
    assert found["network"]["4"]["images_per_s"] == pytest.approx(4 / 0.03)
    assert found["end_to_end"]["median_ms"] == pytest.approx(60)
    assert found["end_to_end"]["images_per_s"] == pytest.approx(1 / 0.06)


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "bustseg.json").write_text("{")
    job = {"backend": "openvino", "model": str(tmp_path), "size": [32, 32], "threads": 1, "files": []}
    with pytest.raises(bench.UserError, match=r"bustseg\.json cannot be read"):
        bench._Process(job)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nowhere",), "no checkpoint at nowhere"),
        (("nowhere.yaml",), "no config file at nowhere.yaml"),
        (("latest", "--rounds", 0), "at least 1"),
        (("latest", "--batch", 65), "from 1 to 64"),
        (("latest", "--json", "nowhere/bench.json"), "no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(options: tuple[Any, ...], message: str, bustseg: Bustseg) -> None:
    code, _, error = bustseg("bench", *options)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
