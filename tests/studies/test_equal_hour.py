"""The equal hour with seconds instead of an hour, on phantoms: each contender trains, is stopped, and is scored."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from bustseg.data.phantom import write_phantoms
from studies.equal_hour import common, score
from studies.equal_hour.prepare import prepare
from studies.equal_hour.run import run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms as the contenders get them."""
    folder = tmp_path_factory.mktemp("equal_hour")
    write_phantoms(folder / "phantoms", 30)
    prepare(folder / "phantoms", folder / "data")
    return folder / "data"


def test_every_image_is_in_one_subset_with_its_mask(data: Path) -> None:
    split = pd.read_csv(data / "split.csv")
    for subset, own in split.groupby("subset"):
        read = {name: (image, mask) for name, image, mask in common.images(data, str(subset))}
        assert set(read) == set(own["image"])
        for name, (image, mask) in read.items():
            assert image.shape == mask.shape
            assert mask.any() == (not name.startswith("normal"))


def test_scores_by_hand(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "hour"
    truths = {name: mask for name, _, mask in common.images(data, "test")}
    perfect = iter(truths.values())
    common.Curve(out / "plain").add(0.8, 90.0)
    common.finish(out / "plain", data, lambda image: next(perfect), epochs=3)
    common.Curve(out / "monai")
    common.finish(out / "monai", data, lambda image: np.zeros(image.shape, np.uint8), epochs=1)
    monkeypatch.setattr("sys.argv", ["score", "--data", str(data), "--out", str(out)])
    score.main()
    table = pd.read_csv(out / "table.csv").set_index("contender")
    assert table.loc["plain", "Dice (lesion)"].startswith("1.000")
    assert table.loc["plain", "missed"].startswith("0.000")
    assert table.loc["plain", "validation Dice 0.78"] == "2 min"
    assert table.loc["monai", "missed"].startswith("1.000")
    normals = sum(not mask.any() for mask in truths.values()) / len(truths)
    assert table.loc["monai", "Dice (`empty_one`)"].startswith(f"{normals:.3f}")
    assert table.loc["monai", "validation Dice 0.78"] == "not measured"
    assert (out / "curve.png").is_file()


def test_a_curve_knows_its_best(tmp_path: Path) -> None:
    curve = common.Curve(tmp_path)
    assert [curve.add(dice, second) for second, dice in enumerate((0.2, 0.5, 0.4, 0.6))] == [True, True, False, True]
    assert pd.read_csv(tmp_path / "curve.csv")["dice_lesion"].tolist() == [0.2, 0.5, 0.4, 0.6]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bustseg", "plain", "monai"])
def test_a_contender_is_stopped_in_time(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "monai" and importlib.util.find_spec("monai") is None:
        pytest.skip("needs MONAI (studies/equal_hour/requirements.txt)")
    options = {
        "trainer.max_epochs": 1,
        "data.image_size": 64,
        "model.train_scale": {0: 1.0},
        "model.lr_scheduler.init_args.T_max": 1,
    }
    monkeypatch.setenv("EQUAL_HOUR_OPTIONS", json.dumps(options))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    begun = time.time()
    code = run(name, data, tmp_path, 15.0, sys.executable)
    log = (tmp_path / name / "log.txt").read_text()
    assert code == 0, log[-2000:]
    about = json.loads((tmp_path / name / "about.json").read_text())
    assert about["epochs"] >= 1
    assert about["seconds"] <= time.time() - begun
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (tmp_path / name / "masks").glob("*.png")]
    assert len(masks) == len(list((data / "images" / "test").glob("*.png")))
    curve = pd.read_csv(tmp_path / name / "curve.csv")
    assert len(curve) >= 1
    assert curve["seconds"].between(0, time.time() - begun).all()
