"""fit, test and resume as a user calls them, and what they leave behind."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from mlflow.entities import Run

from bustseg.runs.checkpoint import load_task, read_checkpoint
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.runs.tracker import tracking_uri
from tests.conftest import CONFIGS, REPOSITORY, SHORT_TEST, TINY
from tests.faults import harness

Bustseg = Callable[..., tuple[int, str, str]]


def runs(experiment: str = "tiny") -> list[Run]:
    client = mlflow.MlflowClient(tracking_uri())
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []


def history(run: Run, metric: str) -> list[tuple[int, float]]:
    return [
        (point.step, point.value)
        for point in mlflow.MlflowClient(tracking_uri()).get_metric_history(run.info.run_id, metric)
    ]


def fit(bustseg: Bustseg, phantoms: Path, *options: object) -> tuple[int, str, str]:
    return bustseg("fit", "--config", TINY, "--data.root", phantoms, *options)


def test_a_fit_leaves_a_run_that_someone_else_can_read_test_and_continue(bustseg: Bustseg, phantoms: Path) -> None:
    code, out, err = fit(bustseg, phantoms)
    assert code == 0, err
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["model.network.class_path"] == "bustseg.models.FusionUNet"
    assert run.data.params["model.optimizer.init_args.lr"] == "0.001"
    assert run.data.params["data.batch_size"] == "8"
    assert {"split_digest", "data_digest", "versions", "device"} <= set(run.data.tags)
    assert (run.data.tags["images_train"], run.data.tags["source"]) == ("22", "busi")
    assert [step for step, _ in history(run, "val/dice_paper")] == [0, 1]
    assert {"train/loss", "val/auc_pixel", "val/dice_pooled", "train/images_per_second"} <= set(run.data.metrics)
    assert out.count("epoch ") == 2
    assert run.info.run_id in out

    artifacts = Path("mlruns/artifacts") / run.info.run_id / "artifacts"
    config = yaml.safe_load((artifacts / "config.yaml").read_text())
    assert config["model"]["network"]["init_args"]["attention"] == "cbam"
    rows = list(csv.DictReader((artifacts / "split.csv").open()))
    assert {row["subset"] for row in rows} == {"train", "val", "test"}
    assert len(list(Path().rglob("best*.ckpt"))) == 1, "the best checkpoint lies there once"
    assert len(list(Path().rglob("last*.ckpt"))) == 1

    # the test needs the checkpoint alone, and belongs to the same run
    code, out, err = bustseg("test", "--ckpt_path", run.info.run_id)
    assert code == 0, err
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert f"{run.data.metrics['test/dice_lesion']:.4f}" in out
    assert (artifacts / "panels" / "test.png").stat().st_size > 10_000

    # one more epoch of the same run
    code, _, err = bustseg("fit", "--ckpt_path", "latest", "--trainer.max_epochs", 3)
    assert code == 0, err
    (run,) = runs()
    assert [step for step, _ in history(run, "val/loss")] == [0, 1, 2]
    assert run.data.tags["continued.trainer.max_epochs"] == "3"
    assert len(list(Path().rglob("*.ckpt"))) == 2


def test_a_resumed_run_is_the_uninterrupted_one(bustseg: Bustseg, phantoms: Path) -> None:
    assert fit(bustseg, phantoms, "--trainer.max_epochs", 3)[0] == 0
    assert fit(bustseg, phantoms, "--trainer.max_epochs", 2)[0] == 0
    assert bustseg("fit", "--ckpt_path", "latest", "--trainer.max_epochs", 3)[0] == 0
    whole, parts = runs()
    for metric in ("train/loss", "val/loss", "val/auc_pixel"):
        assert history(whole, metric) == history(parts, metric), metric


def test_another_seed_gives_another_run(bustseg: Bustseg, phantoms: Path) -> None:
    for seed in (0, 0, 1):
        assert fit(bustseg, phantoms, "--trainer.max_epochs", 1, "--seed_everything", seed)[0] == 0
    first, again, other = (run.data.metrics["train/loss"] for run in runs())
    assert first == again
    assert first != other


def test_a_checkpoint_holds_plain_data_and_rebuilds_its_task(bustseg: Bustseg, phantoms: Path) -> None:
    assert fit(bustseg, phantoms, "--trainer.max_epochs", 1)[0] == 0
    for name in ("best", "last"):
        path = resolve_checkpoint("latest", prefer=name)
        content = torch.load(path, weights_only=True)
        assert ("optimizer_states" in content) == (name == "last")
        record = read_checkpoint(path)["bustseg"]
        assert record["config"]["data"]["image_size"] == 32
        assert record["run_id"] == runs()[0].info.run_id
    task = load_task(resolve_checkpoint("latest"))
    assert task(torch.zeros(1, 1, 45, 61, dtype=torch.uint8)).shape == (1, 1, 45, 61)
    assert torch.equal(task.network.state_dict()["decoder.head.weight"], _best()["network.decoder.head.weight"])


def _best() -> dict[str, torch.Tensor]:
    return torch.load(resolve_checkpoint("latest"), weights_only=True)["state_dict"]


def test_scores_on_other_data_get_a_run_of_their_own(bustseg: Bustseg, phantoms: Path) -> None:
    assert fit(bustseg, phantoms, "--trainer.max_epochs", 1)[0] == 0
    (trained,) = runs()
    code, _, err = bustseg("test", "--ckpt_path", trained.info.run_id, "--data.split_seed", 5, *SHORT_TEST)
    assert code == 0, err
    other = next(run for run in runs() if run.info.run_id != trained.info.run_id)
    assert other.data.tags["checkpoint_of_run"] == trained.info.run_id
    assert "test/dice_paper" in other.data.metrics
    assert "test/dice_paper" not in mlflow.MlflowClient(tracking_uri()).get_run(trained.info.run_id).data.metrics


def test_a_loss_that_turns_nan_ends_the_run_as_failed_in_one_line(bustseg: Bustseg, phantoms: Path) -> None:
    code, _, err = fit(bustseg, phantoms, "--model.optimizer.init_args.lr", "1e30")
    assert code == 2
    assert err.strip().splitlines()[-1].startswith("error: the loss became nan in epoch")
    assert "Traceback" not in err
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert "the loss became nan" in run.data.tags["error"]


@pytest.mark.slow
def test_ctrl_c_ends_the_run_as_killed_and_keeps_the_finished_epochs(phantoms: Path) -> None:
    options = ("--trainer.max_epochs", 10000, "--early_stopping.patience", 10000)
    fit = harness.start(Path.cwd(), "fit", "--config", TINY, "--data.root", phantoms, *options)
    fit.wait_for("\nepoch 2/")
    time.sleep(0.3)
    fit.kill(signal.SIGINT)
    ended = fit.wait(60)
    assert ended.code == 130
    assert "Traceback" not in ended.err
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert "optimizer_states" in read_checkpoint(resolve_checkpoint(run.info.run_id, prefer="last"))


BAD_INPUT = {
    "no data": (["--config", TINY], "no data folder: set --data.root"),
    "missing folder": (["--config", TINY, "--data.root", "nowhere"], "no data folder at nowhere"),
    "nothing": ([], "no model.network: name a config"),
    "no config": (["--config", "nowhere.yaml"], "no config file at nowhere.yaml"),
    "unknown key": (
        ["--config", TINY, "--data.bach_size", 4],
        "unknown config key `data.bach_size`: did you mean `data.batch_size`",
    ),
    "unknown key beside others that are alike": (
        ["--config", TINY, "--model.treshold", 0.3],
        "unknown config key `model.treshold`: did you mean `model.threshold`?\n",
    ),
    "unknown key in the file": (
        ["--config", "typo.yaml"],
        "unknown config key `trainer.max_epoch`: did you mean `trainer.max_epochs`",
    ),
    "unknown key of a callback": (
        ["--config", TINY, "--early_stopping.patiense", 3],
        "unknown config key `early_stopping.patiense`: did you mean `early_stopping.patience`",
    ),
    "no YAML": (["--config", "broken.yaml"], "broken.yaml"),
    "unknown encoder": (
        ["--config", TINY, "--model.network.init_args.encoders", "[resnet19]"],
        "resnet19",
    ),
    "no weights": (
        ["--config", TINY, "--model.network.init_args.weights", "nowhere.pt"],
        "no weights file at nowhere.pt",
    ),
    "unknown class": (["--config", TINY, "--model.network", "bustseg.models.NoNet"], "NoNet"),
    "wrong type": (["--config", TINY, "--data.batch_size", "many"], "batch_size"),
    "unknown split": (["--config", TINY, "--data.split", "nowhere"], "unknown split scheme 'nowhere'"),
    "no checkpoint": (["--ckpt_path", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    "dead server": (["--config", TINY, "--tracking.uri", "http://127.0.0.1:9"], "no MLflow server answers"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_clear_line(case: str, bustseg: Bustseg, phantoms: Path) -> None:
    args, expected = BAD_INPUT[case]
    Path("typo.yaml").write_text("trainer:\n  max_epoch: 3\n")
    Path("broken.yaml").write_text("model: [1\n")
    if case == "unknown split":
        args = [*args, "--data.root", phantoms]
    code, _, err = bustseg("fit", *args)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert expected in f"{lines[0]}\n"  # an expectation may name the end of the line
    assert runs() == [], "input that cannot be used leaves no run behind"


def test_weights_that_cannot_be_had_stop_the_fit(
    bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bustseg.models import weights

    monkeypatch.setattr(weights, "_resolvable", lambda url: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(phantoms / "empty"))
    code, _, err = bustseg(
        "fit",
        *("--config", TINY, "--data.root", phantoms),
        *("--model.network", "segmentation_models_pytorch.Unet"),
        *("--model.network.init_args.encoder_name", "tu-mobilenetv3_small_050"),
        *("--model.network.init_args.encoder_weights", "imagenet"),
    )
    assert code == 2
    assert "cannot get ImageNet weights" in err
    assert "Traceback" not in err


with (REPOSITORY / "tests" / "paper_counts.csv").open() as _file:
    PAPER = {int(row["model"]): row for row in csv.DictReader(_file)}


@pytest.mark.parametrize("model", PAPER)
def test_summary_gives_the_papers_counts_without_weights(model: int, bustseg: Bustseg) -> None:
    code, out, err = bustseg(
        "summary",
        *("--config", CONFIGS / "paper" / f"model_{model:02d}.yaml", "--json"),
        *("--model.network.init_args.weights", "none"),
    )
    assert code == 0, err
    result = json.loads(out)
    expected = PAPER[model]
    assert result["parameters"] == int(expected["total"])
    assert result["trainable"] == int(expected["trainable"])
    assert result["frozen"] == int(expected["frozen"])
    assert 1 < result["gflops"] < 20
    assert result["image_size"] == [224, 224]
