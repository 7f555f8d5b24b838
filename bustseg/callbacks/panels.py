"""Pictures of predictions: the best, the median and the worst test images with truth and prediction outlined."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bustseg.data.datamodule import BUSIDataModule
from bustseg.data.sources import LABELS
from bustseg.metrics import overlap_scores
from bustseg.task import SegmentationTask
from bustseg.tracking import Tracker

TRUTH, PREDICTION = "#2ecc71", "#e74c3c"


def draw_panel(
    axes: matplotlib.axes.Axes, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, title: str
) -> None:
    """Draw one image (H, W) with the outlines of truth and prediction, both (H, W) of 0 and 1."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    for mask, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        if mask.any():
            axes.contour(mask, levels=[0.5], colors=colour, linewidths=1.2)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def select_cases(counts: Mapping[str, Tensor], n: int, missed_apart: bool = False) -> dict[str, Tensor]:
    """Choose the images of a test that are worth a look.

    Args:
        counts: of :meth:`bustseg.metrics.SegmentationMetrics.per_image`
        n: images per row, at most
        missed_apart: give lesions of which no pixel was found a row of their own instead of a place among the worst,
            and of the normals only those with false positives

    Returns:
        ``best``, ``median``, ``worst`` (by Dice), then ``normal``, or ``missed`` and ``false positive`` -> positions in
        ``counts``; rows without images are left out
    """
    dice = overlap_scores(counts["tp"], counts["fp"], counts["fn"], counts["tn"])["dice_paper"]
    lesion = (counts["tp"] + counts["fn"]) > 0
    missed = lesion & (counts["tp"] == 0)
    ranked = lesion & ~missed if missed_apart else lesion
    order = torch.argsort(torch.where(ranked, dice, torch.inf))[: int(ranked.sum())]
    middle = max(len(order) // 2 - n // 2, 0)
    normals = torch.nonzero(~lesion).flatten()
    # the normals with the most false positive pixels: empty ones teach nothing
    normals = normals[torch.argsort(counts["fp"][normals], descending=True)]
    rows = {"best": order.flip(0)[:n], "median": order[middle : middle + n], "worst": order[:n]}
    if missed_apart:
        lost = torch.nonzero(missed).flatten()
        # the largest first: a missed speck says less
        rows["missed"] = lost[torch.argsort(counts["fn"][lost], descending=True)][:n]
        rows["false positive"] = normals[counts["fp"][normals] > 0][:n]
    else:
        rows["normal"] = normals[:n]
    return {name: positions for name, positions in rows.items() if len(positions)}


class PredictionPanels(Callback):
    """After a test, draws ``panels/test.png``: columns of best, median and worst lesion images, and normals.

    Args:
        columns: images per row
    """

    def __init__(self, columns: int = 4) -> None:
        self.columns = columns

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker, datamodule = trainer.logger, trainer.datamodule  # type: ignore[attr-defined]
        if not (
            isinstance(pl_module, SegmentationTask)
            and isinstance(tracker, Tracker)
            and isinstance(datamodule, BUSIDataModule)
        ):
            return
        counts = pl_module.overlap("test").per_image()
        if not trainer.is_global_zero:
            return
        dice = overlap_scores(counts["tp"], counts["fp"], counts["fn"], counts["tn"])["dice_paper"]
        lesion = (counts["tp"] + counts["fn"]) > 0
        n = self.columns
        rows = select_cases(counts, n)
        figure = matplotlib.figure.Figure(figsize=(2.3 * n, 2.5 * len(rows) + 0.4), layout="constrained")
        grid = figure.subplots(len(rows), n, squeeze=False)
        for axes_row, (name, positions) in zip(grid, rows.items(), strict=True):
            for axes in axes_row:
                axes.set_axis_off()
            for axes, position in zip(axes_row, positions.tolist(), strict=False):
                index = int(counts["index"][position])
                image, truth = datamodule.arrays(index)
                with trainer.precision_plugin.forward_context():  # as in the test itself
                    prediction = pl_module.predict_mask(image)
                label = LABELS[int(counts["label"][position])]
                score = f"Dice {float(dice[position]):.2f}" if lesion[position] else f"{int(prediction.sum())} px found"
                draw_panel(axes, image, truth, prediction, f"{name}: {datamodule.samples[index].id}\n{label}, {score}")
        figure.suptitle("truth green, prediction red", fontsize=9)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "test.png"
            figure.savefig(path, dpi=110)
            tracker.log_file(path, "panels")
