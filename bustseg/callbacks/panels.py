"""Pictures of test images with truth and prediction outlined: a cross-section of the test, and its failures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.sources import LABELS
from bustseg.figures.colours import OUTLINES
from bustseg.figures.panels import Picture, sheet
from bustseg.figures.style import save
from bustseg.metrics import overlap_scores
from bustseg.runs.tracker import run_of
from bustseg.task import SegmentationTask


def failures(counts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Positions of the missed lesion images, and of the normals with false positive pixels.

    The largest come first, since a missed speck is less informative.

    Args:
        counts: of :meth:`bustseg.metrics.SegmentationMetrics.per_image`
    """
    lesion = (counts["tp"] + counts["fn"]) > 0
    missed = torch.nonzero(lesion & (counts["tp"] == 0)).flatten()
    normals = torch.nonzero(~lesion).flatten()
    return (
        missed[torch.argsort(counts["fn"][missed], descending=True)],
        normals[torch.argsort(counts["fp"][normals], descending=True)],
    )


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
    lost, normals = failures(counts)
    rows = {"best": order.flip(0)[:n], "median": order[middle : middle + n], "worst": order[:n]}
    if missed_apart:
        rows["missed"] = lost[:n]
        # an empty prediction on a normal image is not worth showing
        rows["false positive"] = normals[counts["fp"][normals] > 0][:n]
    else:
        rows["normal"] = normals[:n]
    return {name: positions for name, positions in rows.items() if len(positions)}


class PredictionPanels(Callback):
    """After a test, draws ``panels/``: images at their own resolution, each picture as PNG and SVG.

    ``test.png`` has rows of best, median and worst lesion images, and normals; ``missed.png`` the lesion images in
    which no lesion pixel was found, the largest lesions first; ``false_positives.png`` the normals on which something
    was found, the largest areas first. The last two are written only if there is something to show.

    Args:
        columns: images per row
        failures: most images in each of the pictures of failures
    """

    def __init__(self, columns: int = 4, failures: int = 12) -> None:
        self.columns = columns
        self.failures = failures

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if not (isinstance(pl_module, SegmentationTask) and isinstance(datamodule, UltrasoundDataModule)):
            return
        counts = pl_module.overlap("test").per_image()
        run = run_of(trainer)
        if run is None:
            return
        painter = _Painter(trainer, pl_module, datamodule, counts)
        lesion = (counts["tp"] + counts["fn"]) > 0
        n = self.columns
        missed, normals = failures(counts)
        alarms = normals[counts["fp"][normals] > 0]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            painter.draw(select_cases(counts, n), n, folder / "test.png")
            for name, places, title in (
                ("missed", missed, f"{len(missed)} of {int(lesion.sum())} lesion images missed"),
                ("false_positives", alarms, f"false alarms on {len(alarms)} of {len(normals)} normals"),
            ):
                shown = places[: self.failures]
                if len(shown) < len(places):
                    title += f", {len(shown)} shown"
                if len(shown):
                    width = min(n, max(2, len(shown)))  # room for the title
                    grid = {str(start): shown[start : start + width] for start in range(0, len(shown), width)}
                    painter.draw(grid, width, folder / f"{name}.png", title, row_names=False)
            run.add_files(folder, "panels")


class _Painter:
    """Draws test images, and predicts each only once."""

    def __init__(
        self, trainer: Trainer, task: SegmentationTask, datamodule: UltrasoundDataModule, counts: dict[str, Tensor]
    ) -> None:
        self.trainer, self.task, self.datamodule, self.counts = trainer, task, datamodule, counts
        self.dice = overlap_scores(counts["tp"], counts["fp"], counts["fn"], counts["tn"])["dice_paper"]
        self.predictions: dict[int, np.ndarray] = {}

    def _predict(self, index: int) -> np.ndarray:
        if index not in self.predictions:
            with self.trainer.precision_plugin.forward_context():  # as in the test
                self.predictions[index] = self.task.predict_mask(self.datamodule.arrays(index)[0])
        return self.predictions[index]

    def draw(
        self, rows: dict[str, Tensor], columns: int, path: Path, title: str | None = None, row_names: bool = True
    ) -> None:
        """Draw rows of images, given as positions in the counts."""
        pictures = [
            [self._picture(position, f"{name}: " if row_names else "", row_names) for position in positions.tolist()]
            for name, positions in rows.items()
        ]
        save(sheet(pictures, f"{title}; {OUTLINES}" if title else OUTLINES, columns), path)

    def _picture(self, position: int, prefix: str, with_dice: bool) -> tuple[Picture, str]:
        """An image of the test with its truth and prediction, and its title."""
        index = int(self.counts["index"][position])
        sample, label = self.datamodule.samples[index], LABELS[int(self.counts["label"][position])]
        prediction = self._predict(index)
        picture = Picture.of(sample, prediction)
        score = f"{int(prediction.sum())} px predicted"
        if with_dice and picture.truth.any():
            score = f"Dice {float(self.dice[position]):.2f}"
        if label not in sample.id:  # BUSI's ids include the class
            score = f"{label}, {score}"
        return picture, f"{prefix}{sample.id}\n{score}"
