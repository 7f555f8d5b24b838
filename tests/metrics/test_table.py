"""The per-image table: every column by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from bustseg.data.sources import LABELS, Sample
from bustseg.metrics import ImageShapes, SegmentationMetrics, image_table, summarise
from bustseg.metrics.table import columns, size_thirds, summary_metrics

SAMPLES = [
    Sample("benign (1)", Path("a.png"), (), "benign"),
    Sample("malignant (2)", Path("b.png"), (), "malignant", group="patient 7"),
    Sample("normal (3)", Path("c.png"), (), "normal"),
    Sample("normal (4)", Path("d.png"), (), "normal"),
]


def scene() -> tuple[Tensor, Tensor]:
    """Probabilities and masks of 4 images of 8 x 6 (diagonal 10).

    0: two lesions, 2 x 2 and 1 x 1; two pixels of the first are found, and a pixel is invented at (7, 5).
    1: a lesion of 4 pixels that is missed, with nothing predicted. 2: a false alarm of 3 pixels. 3: nothing at all.
    """
    probability, mask = torch.full((2, 4, 1, 8, 6), 0.125)
    mask[:] = 0
    mask[0, 0, :2, :2] = 1
    mask[0, 0, 5, 0] = 1
    probability[0, 0, 0, :2] = torch.tensor([0.75, 0.875])
    probability[0, 0, 7, 5] = 0.625
    mask[1, 0, 4, :4] = 1
    probability[2, 0, 3, 1:4] = torch.tensor([0.625, 0.75, 1.0])
    return probability, mask


def measure(order: list[list[int]]) -> pd.DataFrame:
    probability, mask = scene()
    label = torch.tensor([LABELS.index(sample.label) for sample in SAMPLES])
    overlap, shapes = SegmentationMetrics(), ImageShapes()
    for part in order:
        index = torch.tensor(part)
        overlap.update(torch.logit(probability[index]), mask[index], label[index], index)
        shapes.update(torch.logit(probability[index]), mask[index], index)
    return image_table(overlap.per_image(), shapes.per_image(), SAMPLES, {"benign (1)": "group 1"})


def test_every_column_by_hand() -> None:
    # image 0 comes twice, as from a sampler that fills up its last batch
    table = measure([[2, 0], [1, 3, 0]])
    assert list(table) == list(columns())
    assert table["image"].tolist() == [sample.id for sample in SAMPLES]
    assert table["label"].tolist() == ["benign", "malignant", "normal", "normal"]
    assert table["group"].tolist() == ["group 1", "patient 7", "", ""]
    assert table["size_third"].tolist() == ["large", "small", "", ""]
    assert table["lesion_px"].tolist() == [5, 4, 0, 0]
    assert table["lesion_share"].tolist() == pytest.approx([5 / 48, 4 / 48, 0, 0])
    assert table["predicted_px"].tolist() == [3, 0, 3, 0]
    assert table[["tp", "fp", "fn", "tn"]].to_numpy().tolist() == [
        [2, 1, 3, 42],
        [0, 0, 4, 44],
        [0, 3, 0, 45],
        [0, 0, 0, 48],
    ]
    own = {"precision": 2 / 3, "recall": 2 / 5, "f1": 4 / 8, "iou": 2 / 6, "dice": 4 / 8}
    for metric, score in own.items():
        np.testing.assert_allclose(table[f"{metric}_paper"], [score, 0, 0, 0])
        np.testing.assert_allclose(table[f"{metric}_lesion"], [score, 0, math.nan, math.nan])
        np.testing.assert_allclose(table[f"{metric}_empty_one"], [score, 0, 0, 1])
    # from (1, 0), (1, 1) to the prediction 1 and 1; from (5, 0) 5; from (7, 5) back sqrt(4 + 25); six zeros
    far = math.sqrt(29)
    to_mask, to_prediction = [0, 0, far], [0, 0, 1, 1, 5]
    hd95 = max(np.percentile(to_mask, 95), np.percentile(to_prediction, 95))
    assd = sum(to_mask + to_prediction) / 8
    np.testing.assert_allclose(table["hd95"], [hd95, 10, math.nan, math.nan])
    np.testing.assert_allclose(table["assd"], [assd, 10, math.nan, math.nan])
    np.testing.assert_allclose(table["hd95_relative"], [hd95 / 10, 1, math.nan, math.nan])
    np.testing.assert_allclose(table["assd_relative"], [assd / 10, 1, math.nan, math.nan])
    np.testing.assert_allclose(table["mean_probability"], [2.25 / 3, math.nan, 2.375 / 3, math.nan], rtol=1e-6)
    np.testing.assert_allclose(table["max_probability"], [0.875, 0.125, 1, 0.125], rtol=1e-6)
    assert table["lesions_found"].tolist() == [1, 0, 0, 0]
    assert table["lesions_missed"].tolist() == [1, 1, 0, 0]
    assert table["lesions_spurious"].tolist() == [1, 0, 1, 0]


def test_means_of_the_table_are_the_runs_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(4, 1, 9, 7, generator=generator) < torch.tensor([0.3, 0.2, 0, 0]).view(4, 1, 1, 1)
    logits = torch.randn(4, 1, 9, 7, generator=generator)
    index, label = torch.arange(4), torch.tensor([0, 1, 2, 2])
    overlap, shapes = SegmentationMetrics(), ImageShapes()
    overlap.update(logits, mask, label, index)
    shapes.update(logits, mask, index)
    table = image_table(overlap.per_image(), shapes.per_image(), SAMPLES)
    for name, value in overlap.compute().items():
        if name in table:
            assert table[name].mean() == pytest.approx(value.item(), abs=1e-12), name


def test_summaries_per_class_and_size() -> None:
    summary = summarise(measure([[0, 1, 2, 3]]))
    assert summary["overall"]["images"] == 4
    assert summary["overall"]["lesion_images"] == 2
    assert summary["overall"]["missed"] == 1
    assert summary["overall"]["dice_lesion"] == pytest.approx(0.25)
    assert summary["overall"]["lesion_detection_rate"] == pytest.approx(1 / 3)
    assert summary["overall"]["spurious_per_image"] == pytest.approx(2 / 4)
    assert set(summary["by_class"]) == {"benign", "malignant", "normal"}
    assert summary["by_class"]["malignant"]["hd95"] == 10
    assert "dice_lesion" not in summary["by_class"]["normal"]
    assert {name: part["images"] for name, part in summary["by_size"].items()} == {"small": 1, "large": 1}
    assert summary["size_limits_px"] == pytest.approx([4 + 1 / 3, 4 + 2 / 3])
    metrics = summary_metrics(summary)
    assert metrics["assd_malignant"] == metrics["hd95_small"] == 10
    assert metrics["dice_lesion_large"] == pytest.approx(0.5)
    assert not any(math.isnan(value) for value in metrics.values())


def test_thirds_of_the_lesions_and_not_of_the_normals() -> None:
    thirds, limits = size_thirds(np.array([0, 9, 1, 0, 5, 4, 2, 8, 0]))
    assert thirds.tolist() == ["", "large", "small", "", "medium", "medium", "small", "large", ""]
    assert limits == pytest.approx([2 + 4 / 3, 5 + 1])
    assert size_thirds(np.array([0, 0]))[1] == []
    assert size_thirds(np.array([3, 3, 3]))[0].tolist() == ["small"] * 3


def test_only_normals_and_not_a_number() -> None:
    overlap, shapes = SegmentationMetrics(), ImageShapes()
    logits, mask = torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2, 1, 4, 4)
    overlap.update(logits, mask, torch.tensor([2, 2]), torch.tensor([2, 3]))
    shapes.update(logits, mask, torch.tensor([2, 3]))
    table = image_table(overlap.per_image(), shapes.per_image(), SAMPLES)
    assert table["max_probability"].tolist() == [0, 0]
    summary = summarise(table)
    assert summary_metrics(summary) == {"spurious_per_image": 0}
    assert summary["by_size"] == {}
    with pytest.raises(ValueError, match="different images"):
        image_table(overlap.per_image(), ImageShapes().per_image(), SAMPLES)
    with pytest.raises(ValueError, match="shape"):
        shapes.update(logits, mask[0], torch.tensor([2, 3]))
