"""What `bustseg test` leaves: curves, tables and pictures, and metrics of all three subsets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import auc

from bustseg.callbacks import ImageTables, TestCurves
from bustseg.data.datamodule import Batch
from bustseg.metrics.sweep import SHARES
from bustseg.metrics.table import columns
from bustseg.runs.scores import scores_of_test
from bustseg.runs.tracker import tracking_uri
from bustseg.task import SegmentationTask
from tests.conftest import TINY

Bustseg = Callable[..., tuple[int, str, str]]
CURVES = ("roc", "precision_recall", "dice_by_threshold", "reliability")


def trained(bustseg: Bustseg, phantoms: Path) -> str:
    code, out, err = bustseg("fit", "--config", TINY, "--data.root", phantoms)
    assert code == 0, err
    return next(line.split()[1] for line in out.splitlines() if line.startswith("run "))


def history(run: str, metric: str) -> list[tuple[int, float]]:
    points = mlflow.MlflowClient(tracking_uri()).get_metric_history(run, metric)
    return [(point.step, point.value) for point in points]


def test_a_test_leaves_curves_tables_and_metrics(bustseg: Bustseg, phantoms: Path) -> None:
    run = trained(bustseg, phantoms)
    artifacts = Path("mlruns/artifacts") / run / "artifacts"
    code, out, err = bustseg("test", "--ckpt_path", run)
    assert code == 0, err
    assert re.search(r"\(scores [\d.]+ s, train and val [\d.]+ s, tables and pictures [\d.]+ s\)", out)

    scores = json.loads((artifacts / "curves" / "curves.json").read_text())["scores"]
    data = {name: pd.read_csv(artifacts / "curves" / f"{name}.csv") for name in CURVES}
    for name, frame in data.items():
        with Image.open(artifacts / "curves" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 10
            assert min(picture.size) > 900
        assert (artifacts / "curves" / f"{name}.svg").read_text().count("<path") > 10
        expected = {"val", "test"} if name == "dice_by_threshold" else {"train", "val", "test"}
        assert set(frame["subset"]) == expected
        assert frame.groupby("subset").size().max() <= 500
    for subset, part in data["roc"].groupby("subset"):
        area = auc(part["false_positive_rate"], part["true_positive_rate"])
        assert area == pytest.approx(scores[subset]["auc_pixel"], abs=1e-3)

    # bands over images for what is chosen and what is tested, around the curves
    for name in CURVES[:3]:
        band = pd.read_csv(artifacts / "curves" / f"{name}_band.csv")
        assert set(band["subset"]) == {"val", "test"}
    band = band[band["subset"] == "test"]
    dice = data["dice_by_threshold"].query("subset == 'test'")["dice_lesion"].to_numpy()
    assert (band["dice_lesion_low"] <= dice + 1e-6).mean() > 0.9
    assert (band["dice_lesion_high"] >= dice - 1e-6).mean() > 0.9
    low, high = scores["test"]["auc_pixel_interval"]
    assert low <= scores["test"]["auc_pixel"] <= high
    assert "auc_pixel_interval" not in scores["train"]

    metrics = mlflow.MlflowClient(tracking_uri()).get_run(run).data.metrics
    assert metrics["test/auc_pixel"] == pytest.approx(scores["test"]["auc_pixel"], abs=1e-6)
    assert {"test/ece", "test/average_precision", "test/hd95", "test/assd", "val/hd95"} <= set(metrics)
    # what is of secondary interest is no chart each, and stands in a table with all the others
    scores_table = scores_of_test(mlflow.MlflowClient(tracking_uri()).get_run(run))
    aside = {"test/best_threshold", "test/dice_lesion_small", "test/hd95_benign", "test/f1_paper", "test/seconds"}
    aside |= {"test/precision_pooled", "test/cam_energy_baseline"}
    assert aside <= set(scores_table)
    assert not aside & set(metrics)
    assert not [name for name in metrics if name.startswith("val/f1")]
    assert scores_table["test/f1_paper"] == scores_table["test/dice_paper"] == pytest.approx(metrics["test/dice_paper"])
    assert scores_table["test/seconds"] >= scores_table["test/seconds_forward"] > 0
    assert len([name for name in metrics if name.startswith("test/")]) <= 32
    # the pass over val repeats what the training found in the epoch of the tested weights, and adds no point
    epoch = torch.load(artifacts / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert [value for step, value in history(run, "val/auc_pixel") if step == epoch] == pytest.approx(
        [scores["val"]["auc_pixel"]], abs=1e-6
    )
    assert history(run, "train/auc_pixel") == [(epoch, pytest.approx(scores["train"]["auc_pixel"]))]

    split = pd.read_csv(artifacts / "split.csv")
    for subset in ("val", "test"):
        table = pd.read_csv(artifacts / "tables" / f"{subset}.csv")
        assert list(table) == list(columns())
        assert set(table["image"]) == set(split.loc[split["subset"] == subset, "image"])
    for name in ("dice_paper", "iou_lesion", "recall_empty_one", "hd95"):
        assert table[name].mean() == pytest.approx(scores_table[f"test/{name}"], rel=1e-6)
    about = json.loads((artifacts / "tables" / "test.json").read_text())
    tags = mlflow.MlflowClient(tracking_uri()).get_run(run).data.tags
    assert (about["data_digest"], about["split_digest"]) == (tags["data_digest"], tags["split_digest"])
    assert (about["image_size"], about["threshold"], about["source"]) == ([32, 32], 0.5, "busi")
    assert about["summary"]["overall"]["images"] == len(table)
    assert set(about["columns"]) == set(table)


def test_the_run_names_its_data_and_other_subsets_can_be_left_alone(bustseg: Bustseg, phantoms: Path) -> None:
    run = trained(bustseg, phantoms)
    for _ in range(2):  # a second test adds nothing
        code, out, err = bustseg("test", "--ckpt_path", run, "--report.subsets", "[]")
        assert code == 0, err
    inputs = mlflow.MlflowClient(tracking_uri()).get_run(run).inputs.dataset_inputs
    found = {item.dataset.name: item for item in inputs}
    assert len(inputs) == 3
    assert {name: item.tags[0].value for name, item in found.items()} == {
        "busi-train": "training",
        "busi-val": "validation",
        "busi-test": "testing",
    }
    assert len({item.dataset.digest for item in inputs}) == 3
    dataset = found["busi-test"].dataset
    assert json.loads(dataset.source) == {"uri": phantoms.name}, "no path, which may name a user"
    artifacts = Path("mlruns/artifacts") / run / "artifacts"
    about = json.loads((artifacts / "tables" / "test.json").read_text())
    assert dataset.digest == about["subset_digest"]
    assert json.loads(dataset.profile)["images"] == about["summary"]["overall"]["images"]

    assert re.search(r"\(scores [\d.]+ s, tables and pictures [\d.]+ s\)", out)
    assert set(pd.read_csv(artifacts / "curves" / "roc.csv")["subset"]) == {"test"}
    assert not (artifacts / "tables" / "val.csv").exists()
    assert history(run, "train/auc_pixel") == []
    code, _, err = bustseg("test", "--ckpt_path", run, "--report.subsets", "[holdout]")
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_failures_get_pictures_of_their_own(bustseg: Bustseg, phantoms: Path) -> None:
    run = trained(bustseg, phantoms)
    panels = Path("mlruns/artifacts") / run / "artifacts" / "panels"
    for threshold, expected in ((1, {"test.png", "missed.png"}), (0, {"test.png", "false_positives.png"})):
        code, _, err = bustseg(*("test", "--ckpt_path", run, "--report.subsets", "[]", "--model.threshold", threshold))
        assert code == 0, err
        assert {path.name for path in panels.glob("*.png")} == expected
        assert {path.with_suffix(".png").name for path in panels.glob("*.svg")} == expected
        for path in panels.iterdir():
            path.unlink()


def test_memory_does_not_grow_with_the_pixels() -> None:
    """600 images: a few kB each, whatever their size, and histograms that stop growing."""
    task = SegmentationTask(torch.nn.Identity())
    curves, tables = TestCurves(), ImageTables()
    for callback in (curves, tables):
        callback.on_test_epoch_start(None, task)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    held = []
    for start in range(0, 600, 20):
        mask = (torch.rand(20, 1, 32, 32, generator=generator) < 0.1).to(torch.uint8)
        logits = torch.randn(20, 1, 32, 32, generator=generator)
        index = torch.arange(start, start + 20)
        batch: Batch = {"image": mask, "mask": mask, "label": 0 * index, "index": index}
        for callback in (curves, tables):
            for subset in ("train", "val", "test"):
                callback.on_subset_batch(task, subset, logits, logits > 0, batch)
        metrics = [*curves._sweeps.values(), *tables._overlap.values(), *tables._shapes.values()]
        held.append(sum(rows.nbytes for metric in metrics for rows in metric.rows))
    assert held[-1] / 600 < 2 * (3 + 2 * (99 + len(SHARES)) + 10 + 6) * 8
    assert held[-1] == pytest.approx(30 * held[0], rel=0.01)
