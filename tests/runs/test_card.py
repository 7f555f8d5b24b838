"""The model card says what the run's record says, and no more."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunTag,
)

from bustseg.metrics import CONVENTIONS
from bustseg.runs.card import MARK, may_describe, model_card, read_run, short_note
from bustseg.runs.tracker import tracking_uri
from tests.conftest import SHORT_TEST, TINY, TrainedRun, unpadded

Bustseg = Callable[..., tuple[int, str, str]]

METRIC_NAMES = ("precision", "recall", "f1", "iou", "dice")


def make_run(tags: dict[str, str], metrics: dict[str, float] | None = None, counts: dict | None = None) -> Run:
    info = RunInfo("e" * 32, "1", "user", "FINISHED", 0, 1, "active")
    params = [Param("model.network.class_path", "some.Net"), Param("model.loss", "None")]
    data = RunData(
        [Metric(key, value, 0, 0) for key, value in (metrics or {}).items()],
        params,
        [RunTag(key, value) for key, value in tags.items()],
    )
    datasets = [
        DatasetInput(Dataset(f"busi-{subset}", "0", "local", "{}", profile=json.dumps(profile)), [])
        for subset, profile in (counts or {}).items()
    ]
    return Run(info, data, RunInputs(datasets))


def scores(prefix: str, start: float) -> dict[str, float]:
    names = [f"{metric}_{convention}" for metric in METRIC_NAMES for convention in CONVENTIONS]
    return {f"{prefix}{name}": start + 0.001 * number for number, name in enumerate(names)}


def section(card: str, title: str) -> str:
    return re.split(rf"^#+ {re.escape(title)}.*$", unpadded(card), flags=re.MULTILINE)[1].partition("\n#")[0]


def test_every_score_stands_in_its_conventions_row() -> None:
    test = scores("test/", 0.1)
    card = model_card(make_run({"best.epoch": "4"}, test), scores("val/", 0.5))
    table = section(card, "Test")
    for convention in CONVENTIONS:
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{convention}`")]
        assert [float(cell) for cell in row.strip("|").split("|")[1:]] == [
            pytest.approx(test[f"test/{metric}_{convention}"], abs=5e-5) for metric in METRIC_NAMES
        ]
    assert "### Validation, epoch 5" in card
    assert "0.5000" in section(card, "Validation")
    assert "Not tested yet" not in card


def test_an_untested_model_says_so() -> None:
    card = model_card(make_run({}), scores("val/", 0.5))
    assert "Not tested yet: `bustseg test --ckpt_path " + "e" * 32 in card
    assert "### Test" not in card


@pytest.mark.parametrize(
    ("split", "leaks"), [("paper", True), ("lesion", True), ("grouped", False), ("kfold", False), ("curated", False)]
)
def test_a_split_that_may_leak_is_named_so(split: str, leaks: bool) -> None:
    card = model_card(make_run({"split": split}), {})
    assert ("This split may leak" in card) == leaks


def test_of_a_split_from_a_file_the_card_claims_nothing() -> None:
    card = model_card(make_run({"split": "mine.csv"}), {})
    assert "not known here" in card
    assert "This split may leak" not in card


@pytest.mark.parametrize(("source", "named"), [("busi", True), ("busbra", False), ("phantom", False)])
def test_busis_problems_are_told_of_busi_only(source: str, named: bool) -> None:
    assert ("BUSI has no patient ids" in model_card(make_run({"source": source}), {})) == named


def test_counts_per_class_are_shown_where_recorded() -> None:
    counts = {"train": {"images": 9, "benign": 6, "normal": 3}, "test": {"images": 2, "benign": 1, "normal": 1}}
    tags = {"images_train": "9", "images_val": "1", "images_test": "2"}
    table = section(model_card(make_run(tags, counts=counts), {}), "Data")
    assert "| subset | images | benign | normal |" in table
    assert "| training | 9 | 6 | 3 |" in table
    assert "| test | 2 | 1 | 1 |" in table


def test_a_persons_description_is_left_alone() -> None:
    mine = short_note(make_run({}), scores("val/", 0.5))
    assert "validation (not tested yet)" in mine
    assert may_describe(make_run({}))
    assert may_describe(make_run({"mlflow.note.content": mine}))
    assert not may_describe(make_run({"mlflow.note.content": "my words"}))
    assert not may_describe(make_run({"mlflow.note.content": f"{MARK} mine, after yours"}))


def test_the_figures_are_those_of_the_best_epoch(trained_run: TrainedRun) -> None:
    client = mlflow.MlflowClient(trained_run.uri)
    client_run, validation = read_run(client, trained_run.run_id)
    best = int(client_run.data.tags["best.epoch"])
    history = client.get_metric_history(trained_run.run_id, "val/loss")
    assert validation["val/loss"] == {point.step: point.value for point in history}[best]
    client.set_tag(trained_run.run_id, "best.epoch", "0")
    try:
        assert read_run(client, trained_run.run_id)[1]["val/loss"] == history[0].value != history[1].value
    finally:
        client.set_tag(trained_run.run_id, "best.epoch", str(best))


@pytest.mark.slow
def test_fit_writes_the_card_and_test_renews_it(bustseg: Bustseg, phantoms: Path) -> None:
    options = ("--config", TINY, "--data.root", phantoms, "--trainer.max_epochs", 1)
    assert bustseg("fit", *options)[0] == 0
    assert bustseg("fit", *options, "--tracking.description", "mine")[0] == 0
    client = mlflow.MlflowClient(tracking_uri())
    described, plain = client.search_runs(["1"], order_by=["attributes.start_time DESC"])
    path = Path("mlruns/artifacts") / plain.info.run_id / "artifacts" / "model_card.md"
    assert "Not tested yet" in path.read_text()
    assert plain.data.tags["mlflow.note.content"].endswith(MARK)
    assert described.data.tags["mlflow.note.content"] == "mine"
    for run in (plain, described):
        assert bustseg("test", "--ckpt_path", run.info.run_id, *SHORT_TEST)[0] == 0
    ended = plain.info.end_time
    plain, described = (client.get_run(run.info.run_id) for run in (plain, described))
    assert plain.info.end_time == ended, "a test does not add to the training's duration"
    assert plain.info.status == "FINISHED"
    score = f"{plain.data.metrics['test/dice_pooled']:.4f}"
    assert score in section(path.read_text(), "Test")
    assert f"test: Dice `paper` {plain.data.metrics['test/dice_paper']:.4f}" in plain.data.tags["mlflow.note.content"]
    assert described.data.tags["mlflow.note.content"] == "mine"
    model_id = plain.outputs.model_outputs[0].model_id
    shown = {metric.key: metric.value for metric in client.get_logged_model(model_id).metrics}
    assert shown["test/dice_pooled"] == plain.data.metrics["test/dice_pooled"]
    # a test on other data is another run, and says nothing of this model's card
    assert bustseg("test", "--ckpt_path", plain.info.run_id, "--data.split_seed", 5, *SHORT_TEST)[0] == 0
    assert score in section(path.read_text(), "Test")
    (other,) = [run for run in client.search_runs(["1"]) if "checkpoint_of_run" in run.data.tags]
    assert not (Path("mlruns/artifacts") / other.info.run_id / "artifacts" / "model_card.md").exists()
    # the experiment opens as model training in the UI
    assert client.get_experiment("1").tags["mlflow.experimentKind"] == "custom_model_development"
