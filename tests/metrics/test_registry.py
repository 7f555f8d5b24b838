"""The registry: names in their parts, and metrics that come from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from bustseg.errors import UserError
from bustseg.metrics import ImageMetric, ImageResult, Metric, OverlapMetric, RateMetric, register, unregister
from bustseg.metrics.registry import (
    all_metrics,
    find,
    headline_scores,
    logged_name,
    metric,
    score,
    single_scores,
    value_of,
)
from bustseg.runs.tracker import tracking_uri
from tests.conftest import REPOSITORY, SHORT_TEST, TINY, unpadded

Bustseg = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dice_lesion", ("dice", "lesion", "")),
        ("test/dice_empty_one", ("dice", "empty_one", "")),
        ("val/iou_lesion_malignant", ("iou", "lesion", "malignant")),
        ("hd95", ("hd95", "", "")),
        ("hd95_small", ("hd95", "", "small")),
        ("hd95_relative", ("hd95_relative", "", "")),
        ("false_positive_rate_normal", ("false_positive_rate_normal", "", "")),
        ("cam_energy_encoder1", ("cam_energy", "", "encoder1")),
        ("dice_lesion_best_threshold", ("dice_lesion_best_threshold", "", "")),
    ],
)
def test_a_name_in_its_parts(name: str, parts: tuple[str, str, str]) -> None:
    found = find(name)
    assert found is not None
    assert (found.metric.name, found.convention, found.part) == parts


@pytest.mark.parametrize("name", ["", "hd95_lesion", "dice", "mystery", "dice_lesion_benign_small", "my_normal"])
def test_what_is_no_score_of_the_registry(name: str) -> None:
    found = find(name)
    assert found is None or (name == "dice" and not found.convention)
    assert score(name).metric.name == name
    assert metric("mystery").text(0.25) == "0.2500"


def test_values_are_printed_with_their_own_digits() -> None:
    assert metric("dice").text(0.12345) == "0.1235"
    assert metric("dice").text(0.12345, sign=True, interval=True) == "+0.123"
    assert metric("hd95").text(12.345, interval=True) == "12.3"
    assert metric("hd95").text(float("nan")) == metric("hd95").text(None) == ""
    assert score("dice_lesion").title == "Dice (lesion)"
    assert score("hd95_small").title == "HD95 (px), small"
    assert "is left out" in score("dice_lesion_benign").description
    assert score("dice_lesion_benign").description.endswith("(benign)")


def test_f1_is_dice() -> None:
    assert logged_name("test/f1_pooled") == "test/dice_pooled"
    assert logged_name("test/dice_pooled") == "test/dice_pooled"
    assert value_of({"dice_paper": 0.5}, "f1_paper") == 0.5
    assert value_of({"dice_paper": 0.5, "f1_paper": 0.4}, "f1_paper") == 0.4, "an old run has its own"
    assert value_of({}, "f1_paper") is None


def test_scores_stand_in_the_order_of_the_registry() -> None:
    names = ["hd95", "dice_lesion_benign", "dice_lesion", "precision_lesion", "loss", "auc_pixel", "hd95_relative"]
    names += ["precision_paper", "dice_paper", "f1_lesion", "iou_lesion_benign", "hd95_small", "cam_energy_encoder0"]
    assert single_scores(names) == ["dice_lesion_benign", "hd95", "auc_pixel", "cam_energy_encoder0", "loss"]
    assert single_scores(names, "detail") == ["iou_lesion_benign", "hd95_small", "hd95_relative"]
    assert headline_scores(names) == ["dice_paper", "dice_lesion", "precision_lesion", "hd95", "auc_pixel"]


def test_the_reference_explains_every_metric() -> None:
    text = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    known = set(re.findall(r"`(?:test/|train/|val/)?(\w+)`", text))
    assert {found.name for found in all_metrics()} - known == set()


def test_names_are_taken_once() -> None:
    with pytest.raises(UserError, match="already a metric or column with the name dice"):
        register(Metric("dice"))
    with pytest.raises(UserError, match="with the name lesions_found"):
        register(Metric("lesions_found"), replace=True)
    with pytest.raises(UserError, match="invalid name of a metric, 'my metric'"):
        register(Metric("my metric"))
    with pytest.raises(UserError, match="is not a metric"):
        register("dice")  # type: ignore[arg-type]
    try:
        register(Metric("mine", digits=1))
        register(Metric("mine", digits=2), replace=True)
        assert metric("mine").digits == 2
    finally:
        unregister("mine")


def area_error(image: ImageResult) -> float:
    return abs(int(image.prediction.sum()) - int(image.mask.sum())) / int(image.mask.sum())


MINE = (
    OverlapMetric(
        "tversky",
        "Tversky",
        "overlap that forgives false positives",
        "TP / (TP + 0.3 FP + 0.7 FN)",
        terms=lambda tp, fp, fn, tn: (tp, tp + 0.3 * fp + 0.7 * fn),
    ),
    ImageMetric(
        "area_error",
        "area error",
        "relative error of the lesion's area",
        higher_is_better=False,
        digits=3,
        by_class="usual",
        measure=area_error,
    ),
    RateMetric(
        "half_found",
        "half found",
        "share of the lesion images of which at least half of the lesion was predicted",
        images="lesion",
        prominence="headline",
        terms=lambda c: ((c["tp"] > 0) & (c["tp"] >= c["fn"]), c["tp"] + c["fn"] > 0),
    ),
)


@pytest.fixture
def mine() -> Iterator[None]:
    register(*MINE)
    yield
    for own in MINE:
        unregister(own.name)


@pytest.mark.slow
def test_metrics_from_outside_are_tested_printed_and_compared(mine: None, bustseg: Bustseg, phantoms: Path) -> None:
    runs = []
    for seed in (0, 1):
        options = ("--data.root", phantoms, "--trainer.max_epochs", 1, "--seed_everything", seed)
        code, out, err = bustseg("fit", "--config", TINY, *options, "--data.seed", 0)
        assert code == 0, err
        runs.append(next(line.split()[1] for line in out.splitlines() if line.startswith("run ")))
        code, out, err = bustseg("test", "--ckpt_path", runs[-1], *SHORT_TEST)
        assert code == 0, err
    folder = Path("mlruns/artifacts") / runs[1] / "artifacts"
    table = pd.read_csv(folder / "tables" / "test.csv")
    tp, fp, fn = (table[name] for name in ("tp", "fp", "fn"))
    lesion = tp + fn > 0
    expected = {
        "tversky_lesion": (tp / (tp + 0.3 * fp + 0.7 * fn))[lesion].mean(),
        "tversky_pooled": tp.sum() / (tp + 0.3 * fp + 0.7 * fn).sum(),
        "area_error": ((tp + fp - tp - fn).abs() / (tp + fn))[lesion].mean(),
        "half_found": ((tp > 0) & (tp >= fn))[lesion].mean(),
    }
    assert table["tversky_lesion"].mean() == pytest.approx(expected["tversky_lesion"])
    assert table.loc[~lesion, "area_error"].isna().all()
    logged = mlflow.MlflowClient(tracking_uri()).get_run(runs[1]).data.metrics
    for name, value in expected.items():
        assert logged[f"test/{name}"] == pytest.approx(value, rel=1e-6), name
    assert "val/half_found" in logged
    assert "test/area_error_benign" in logged
    # the terminal of the test, and the model card
    assert "Tversky" in out
    assert f"area_error {expected['area_error']:.3f}" in " ".join(out.split())
    card = unpadded((folder / "model_card.md").read_text())
    assert f"| `half_found` | {MINE[2].description} | {expected['half_found']:.4f} |" in card

    code, out, err = bustseg("compare", *runs, "--out", "out")
    assert code == 0, err
    rows = pd.read_csv("out/compare.csv")
    of_all = rows[(rows["part"] == "all") & (rows["run_id"] == runs[1])].set_index("measure")["estimate"]
    for name, value in expected.items():
        assert of_all[name] == pytest.approx(value, rel=1e-5), name
    assert "half_found, all" in out
    assert "tversky_lesion" in Path("out/compare.html").read_text()
    code, out, err = bustseg("compare", *runs, "--metric", "area_error", "--out", "other")
    assert code == 0, err
    assert "area_error ↓, all" in out
    assert np.unique(pd.read_csv("other/compare.csv")["measure"]).tolist() == ["area_error"]


@pytest.mark.slow
def test_an_installed_package_brings_metrics(tmp_path: Path) -> None:
    (tmp_path / "mypackage.py").write_text(
        "from bustseg.metrics import Metric, ImageMetric\n"
        "BOTH = [Metric('first'), ImageMetric('second', measure=lambda image: 1.0)]\n"
    )
    info = tmp_path / "mypackage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bustseg.metrics]\nmine = mypackage:BOTH\n")
    code = "from bustseg.metrics.table import columns; from bustseg.metrics.measures import known_metrics\n"
    code += "print('second' in columns(), known_metrics()[-1])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (run.stdout.strip(), run.returncode) == ("True second", 0), run.stderr
    (info / "entry_points.txt").write_text("[bustseg.metrics]\nmine = mypackage:MISSING\n")
    run = subprocess.run([sys.executable, "-m", "bustseg.cli", "compare", "a", "b"], capture_output=True, env=env)
    assert run.returncode == 2
    assert b"error: the metrics of mypackage:MISSING cannot be loaded" in run.stderr
    assert len(run.stderr.splitlines()) == 1
