"""What of a configuration becomes parameters, how a run is called, and the view of the runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml

from bustseg.experiment import Experiment, defaults
from bustseg.metrics.registry import charted
from bustseg.runs.opening import open_store
from bustseg.runs.params import COMPARED, parameters
from bustseg.runs.scores import read_scores, write_scores
from bustseg.runs.store import tracking_uri
from bustseg.runs.tracker import Tracker
from bustseg.runs.view import COLUMNS, TAG, state, view_link, views
from bustseg.training.setup import named
from tests.conftest import CONFIGS, TINY, TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]


def test_parameters_are_what_differs_and_what_is_compared() -> None:
    config = Experiment.read(CONFIGS / "quickstart.yaml").but({"trainer.gradient_clip_val": 1.0}).config
    found = parameters(config, defaults())
    assert len(found) <= 42
    assert set(COMPARED) - {"data.source.class_path"} <= set(found)
    assert found["trainer.gradient_clip_val"] == 1.0
    assert found["model.optimizer.init_args.lr"] == 1e-3
    assert found["model.network.init_args.encoder_name"] == "tu-tf_efficientnet_lite0"
    assert found["data.source.init_args.n"] == 240
    # as they are by default: of the trainer, of a section, of torch's AdamW
    for name in ("trainer.num_nodes", "explain.enabled", "model.optimizer.init_args.amsgrad", "tracking.run_name"):
        assert name not in found


def test_a_value_that_comes_back_to_its_default_is_told_in_a_continued_run() -> None:
    first = Tracker(experiment="again")
    first.log_config({"trainer": {"max_epochs": 2, "min_epochs": 1}, "data": {"balance": 0.0}}, defaults())
    again = Tracker(experiment="again", run_id=first.run_id)
    again.log_config({"trainer": {"max_epochs": 2, "min_epochs": None}, "data": {"balance": 0.5}}, defaults())
    run = mlflow.MlflowClient(first.uri).get_run(first.run_id)
    assert run.data.params == {"trainer.max_epochs": "2", "trainer.min_epochs": "1"}
    continued = {name: value for name, value in run.data.tags.items() if name.startswith("continued.")}
    assert continued == {"continued.trainer.min_epochs": "None", "continued.data.balance": "0.5"}


def test_the_whole_configuration_stays_as_a_file(trained_run: TrainedRun) -> None:
    run = mlflow.MlflowClient(trained_run.uri).get_run(trained_run.run_id)
    whole = yaml.safe_load((trained_run.checkpoint.parents[1] / "config.yaml").read_text())
    assert whole["trainer"]["num_nodes"] == 1
    assert "trainer.num_nodes" not in run.data.params
    assert run.data.params["data.batch_size"] == str(whole["data"]["batch_size"])
    assert len(run.data.params) < 45


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "unet"),
        (["--data.batch_size", "4", "--trainer.accelerator", "cpu", "--data.root", "/data"], "unet (batch_size 4)"),
        (
            ["--model.optimizer.init_args.lr=0.01", "--model.loss", "bustseg.losses.DiceLoss"],
            "unet (lr 0.01, loss DiceLoss)",
        ),
        (["--data.split", "folds/mine.csv"], "unet (split mine.csv)"),
        (["--tracking.run_name", "mine", "--data.batch_size", "4"], "unet"),
    ],
)
def test_a_run_is_named_by_what_was_overridden(options: list[str], name: str) -> None:
    assert named(Experiment.parse(["--config", str(TINY), *options]), "unet") == name


def test_long_names_are_cut() -> None:
    experiment = Experiment.parse(
        ["--config", str(TINY), *(f"--trainer.limit_{kind}_batches=10" for kind in ("train", "val", "test", "predict"))]
    )
    assert len(named(experiment, "unet")) == len("unet ()") + 80


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("test/dice_lesion", True),
        ("test/dice_pooled", True),
        ("val/loss", True),
        ("test/precision_lesion", True),
        ("test/dice_lesion_benign", True),
        ("test/my_own_figure", True),
        ("sweep/objective", True),
        ("dice_paper/seed_0", True),
        ("test/f1_lesion", False),
        ("val/f1_paper", False),
        ("test/precision_pooled", False),
        ("test/dice_lesion_small", False),
        ("test/seconds_report", False),
        ("test/cam_energy_encoder1", False),
    ],
)
def test_what_is_worth_a_chart(name: str, wanted: bool) -> None:
    assert charted(name) is wanted


def test_scores_are_written_with_what_they_say(tmp_path: Path) -> None:
    scores = {"test/dice_lesion": 1 / 3, "test/hd95": 4.25, "test/own": 2.0}
    write_scores(scores, tmp_path / "scores.csv")
    assert read_scores(tmp_path / "scores.csv") == scores
    assert "Dice (lesion)" in (tmp_path / "scores.csv").read_text()


def test_an_experiment_gets_a_view_with_scores(trained_run: TrainedRun) -> None:
    store = open_store(tracking_uri())
    client = store.client()
    run = client.get_run(trained_run.run_id)
    experiment = client.get_experiment(run.info.experiment_id)
    assert json.loads(experiment.tags[TAG]) == state()
    assert COLUMNS[0] == "metrics.`test/dice_lesion`"
    assert views(store, "http://here") == [(experiment.name, view_link("http://here", experiment.experiment_id))]
    assert view_link("http://here", "3") == (
        "http://here/#/experiments/3/runs?viewStateShareKey=bustseg&workflowType=machine_learning"
    )
