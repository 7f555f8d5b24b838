"""studies/folds.py: its division, and what its tables say of scores that are known."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from studies import folds

    return folds


def test_every_image_is_judged_once_and_the_tested_ones_never(
    folds: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split(*args: str) -> None:
        labels = ["benign"] * 12 + ["malignant"] * 8 + ["normal"] * 4
        frame = pd.DataFrame({"image": [f"case {n}" for n in range(24)], "label": labels, "subset": "train"})
        frame.loc[[0, 5, 13, 20], "subset"] = "test"
        frame.loc[[1, 14], "subset"] = "val"
        frame.to_csv(args[-1], index=False)

    monkeypatch.setattr(folds, "bustseg", split)
    divisions = [pd.read_csv(csv) for csv in folds.write_folds(tmp_path / "folds", "busi")]

    assert len(divisions) == 3
    judged = pd.concat([one.loc[one["subset"] == "val", "image"] for one in divisions])
    assert sorted(judged) == sorted({f"case {n}" for n in range(24)} - {"case 0", "case 5", "case 13", "case 20"})
    for number, one in enumerate(divisions):
        assert set(one.loc[one["subset"] == "test", "image"]) == {"case 0", "case 5", "case 13", "case 20"}
        counts = one.loc[one["subset"] == "val", "label"].value_counts().to_dict()
        assert counts == {"benign": 3 + (number == 0), "malignant": 2 + (number == 0), "normal": 1}


def test_each_third_is_scored_with_what_was_best_on_the_others(folds: ModuleType) -> None:
    labels, fold = np.array(["benign", "benign", "malignant", "normal"] * 3), np.repeat([0, 1, 2], 4)
    scores = np.full((12, len(folds.PEAKS), len(folds.THRESHOLDS)), 0.5)
    scores[labels == "normal"] = 0
    # third 0 alone would take the peak of place 2; the others, and so third 0's choice, the one of place 1
    scores[fold == 0, 2, 0] = 1.0
    scores[fold != 0, 1, 0] = 0.9
    text = folds.report(scores, labels, fold, at=[0.4, 0.9])

    first, second = f"{folds.PEAKS[1]:g} at {folds.THRESHOLDS[0]}", f"{folds.PEAKS[2]:g} at {folds.THRESHOLDS[0]}"
    assert f"({first}, {second}, {second})" in text
    # third 0 scores 0.5 there but for its normal, the others 0.5 as well
    assert "lesion by third 0.5000, 0.5000, 0.5000" in text
    assert "below 0.4000: 0.0% of the draws\nbelow 0.9000: 100.0% of the draws" in text
    assert f"| 0.5 | {folds.PEAKS[2]:g} | 0.6667 | +0.1667" in text


def test_masks_are_scored_by_peak(folds: ModuleType) -> None:
    import torch

    masks = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    masks[0, 0, 8:16, 8:16] = 1
    logits = torch.full((2, 1, 32, 32), -6.0)
    logits[0, 0, 8:16, 8:16] = 6.0  # 0.9975, sure
    logits[1, 0, 8:16, 8:16] = 1.0  # 0.731, a false alarm
    found = folds.dice(folds.judged([(logits, masks)]))[..., 0]

    assert found[0].tolist() == [1.0] * len(folds.PEAKS)
    assert found[1].tolist() == [float(peak > 0.731) for peak in folds.PEAKS]


def test_the_rule_is_asked_for_each_peak(folds: ModuleType) -> None:
    import torch

    masks = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    masks[:4, 0, 8:16, 8:16] = 1
    logits = torch.full((8, 1, 32, 32), -6.0)
    logits[:4, 0, 8:16, 8:16] = 6.0
    logits[4:, 0, 8:16, 8:16] = 1.3  # 0.786: false alarms on every normal, as large as the lesions
    without, with_peak, _ = folds.recommended(folds.judged([(logits, masks)])).splitlines()

    assert without.startswith("peak 0: threshold 0.8, smallest component 0.0, lesion 1.0000, empty_one 1.0000")
    assert with_peak.startswith("peak 0.8: threshold 0.5, smallest component 0.0, lesion 1.0000, empty_one 1.0000")
