"""A checkpoint and a run's configuration that bustseg 0.1.0 has left: they load, score and go on as they did then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from mlflow.entities import Run

from bustseg.experiment import Experiment
from bustseg.runs.checkpoint import load_data, load_task
from bustseg.runs.tracker import tracking_uri

Bustseg = Callable[..., tuple[int, str, str]]
OLD = Path(__file__).parents[1] / "fixtures" / "v0.1.0"
CHECKPOINT = OLD / "last.ckpt"


def the_run() -> Run:
    client = mlflow.MlflowClient(tracking_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return run


def test_it_loads_from_the_file_alone() -> None:
    task = load_task(CHECKPOINT)
    assert task(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).shape == (1, 1, 32, 32)
    assert load_data(CHECKPOINT).image_size == (32, 32)
    experiment = Experiment.of_checkpoint(CHECKPOINT)
    assert experiment["model.network"]["init_args"]["channels"] == [4, 8]
    assert (experiment["trainer.max_epochs"], experiment["early_stopping.patience"]) == (4, 10)
    scored = Experiment.of_checkpoint(CHECKPOINT, "test")
    assert (scored["trainer.accelerator"], scored["trainer.precision"]) == ("auto", "32-true")
    assert scored["trainer.max_epochs"] == 50, "of the trainer only the precision is the checkpoint's own"


def test_the_configuration_that_its_run_left_can_be_trained_by() -> None:
    experiment = Experiment.read(OLD / "config.yaml")
    assert experiment == Experiment.of_checkpoint(CHECKPOINT)
    for section, values in yaml.safe_load((OLD / "config.yaml").read_text()).items():
        if section not in ("ckpt_path", "weights_only"):
            own = experiment[section]
            assert ({key: own[key] for key in values} if isinstance(values, dict) else own) == values


@pytest.mark.slow
def test_it_scores_and_goes_on_as_it_did(bustseg: Bustseg, phantoms: Path) -> None:
    """The numbers are those that 0.1.0 printed for the same commands."""
    options = ("--data.root", phantoms, "--explain.enabled", "false")
    code, _, err = bustseg("test", "--ckpt_path", CHECKPOINT, *options, "--model.threshold", 0.38)
    assert code == 0, err
    run = the_run()
    assert run.data.tags["checkpoint_of_run"] == "47395a281f674cd39f6be5de4273fc5c"
    expected = {"test/dice_paper": 0.1009, "test/dice_lesion": 0.1345, "test/auc_pixel": 0.3678, "test/hd95": 23.3539}
    assert {name: run.data.metrics[name] for name in expected} == pytest.approx(expected, abs=2e-3)
    mlflow.MlflowClient(tracking_uri()).delete_run(run.info.run_id)

    code, _, err = bustseg("fit", "--ckpt_path", CHECKPOINT, *options, "--trainer.max_epochs", 5)
    assert code == 0, err
    run = the_run()
    client = mlflow.MlflowClient(tracking_uri())
    history = {name: client.get_metric_history(run.info.run_id, name) for name in ("train/loss", "val/loss")}
    assert {name: [point.step for point in points] for name, points in history.items()} == {
        name: [4] for name in history
    }
    assert history["train/loss"][0].value == pytest.approx(0.6689, abs=2e-3)
    assert history["val/loss"][0].value == pytest.approx(0.6447, abs=2e-3)
