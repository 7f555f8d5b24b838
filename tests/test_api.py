"""The Python API, as a notebook uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bustseg
from bustseg.errors import UserError
from tests.conftest import REPOSITORY, TINY


@pytest.mark.slow
def test_three_lines_of_a_notebook(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"data.root": str(phantoms), "explain.enabled": False}

    run = bustseg.fit(TINY, options, max_epochs=1)
    tested = bustseg.test(run, subsets=[])
    scores = tested.metrics
    mask = bustseg.Predictor(run.checkpoint)(np.zeros((96, 128), np.uint8)).mask

    assert set(run.metrics) >= {"train/loss", "val/dice_lesion"}
    assert 0 <= scores["test/dice_lesion"] <= 1
    assert run.table is None
    assert run.intervals == {}
    assert tested.table is not None
    assert list(tested.table["image"]) == [tested.data.samples[i].id for i in sorted(tested.data.indices["test"])]
    lesions = tested.table[tested.table["lesion_px"] > 0]
    assert lesions["dice_lesion"].mean() == pytest.approx(scores["test/dice_lesion"], abs=1e-6)
    for name, (low, high) in tested.intervals.items():
        assert low <= scores[f"test/{name}"] <= high
    assert mask.shape == (96, 128)
    assert run.checkpoint is not None
    assert run.checkpoint.name == "best.ckpt"
    assert (run.verb, run.task.threshold, len(run.data.indices["train"])) == ("fit", 0.5, 22)

    longer = bustseg.resume(run, max_epochs=2)
    assert longer.run_id == run.run_id
    assert longer.trainer.current_epoch == 2
    assert bustseg.validate(run.run_id).metrics.keys() >= {"val/dice_lesion"}
    captured = capsys.readouterr()
    assert "warning" not in (captured.out + captured.err).lower(), "what asks for nothing is not shown"


def test_a_configuration_may_be_a_mapping_or_an_experiment() -> None:
    experiment = bustseg.Experiment.read(TINY)
    for config in (TINY, str(TINY), experiment, experiment.config):
        with pytest.raises(UserError, match="no data folder at nowhere"):
            bustseg.fit(config, root="nowhere")
    with pytest.raises(UserError, match=r"unknown config key `data\.rot`"):
        bustseg.fit(TINY, {"data.rot": "x"})


def test_importing_it_brings_nothing() -> None:
    program = "import sys, bustseg; print(dir(bustseg)); assert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert set(bustseg.__all__) <= set(ast_names(done.stdout))
    with pytest.raises(AttributeError, match="no attribute 'fti'"):
        _ = bustseg.fti  # type: ignore[attr-defined]


def ast_names(text: str) -> list[str]:
    import ast

    return ast.literal_eval(text)
