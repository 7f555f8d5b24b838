"""The per-image table of a test, and its summaries per class and lesion size."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from bustseg.callbacks.subsets import SubsetCallback, log_subset
from bustseg.data.datamodule import Batch, UltrasoundDataModule
from bustseg.metrics import ImageShapes, SegmentationMetrics, image_table, summarise
from bustseg.metrics.table import columns, summary_metrics
from bustseg.presence import fit_presence
from bustseg.runs.tracker import run_of
from bustseg.task import SegmentationTask

_SUBSETS = ("val", "test")


class ImageTables(SubsetCallback):
    """After a test, writes ``tables/test.csv`` (and ``val.csv``), one row per image.

    A JSON file with each describes what was tested (digests, size, threshold), the columns, and the summaries. Memory
    is a few hundred bytes per image; outlines are measured as predictions arrive.
    """

    def __init__(self) -> None:
        self._overlap: dict[str, SegmentationMetrics] = {}
        self._shapes: dict[str, ImageShapes] = {}
        self.tested: pd.DataFrame | None = None
        """The table of the test images; None before the first test."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, SegmentationTask):
            return
        threshold, device = pl_module.threshold, pl_module.device
        # every process needs all of them, even if it gets no batch of a subset; otherwise the others would wait for it
        self._overlap = {"val": SegmentationMetrics(threshold).to(device), "test": pl_module.overlap("test")}
        self._shapes = {subset: ImageShapes(threshold).to(device) for subset in _SUBSETS}

    def on_subset_batch(self, task: SegmentationTask, subset: str, logits: Tensor, masks: Tensor, batch: Batch) -> None:
        if subset not in self._shapes:
            return
        self._shapes[subset].update(logits, batch["mask"], batch["index"], masks)
        if subset != "test":  # the task has already counted the test images
            self._overlap[subset].update(logits, batch["mask"], batch["label"], batch["index"], masks)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if not (isinstance(pl_module, SegmentationTask) and isinstance(datamodule, UltrasoundDataModule)):
            return
        groups = known_groups(datamodule)
        presence = None
        with tempfile.TemporaryDirectory() as folder:
            for subset in _SUBSETS:  # the validation images first, since they calibrate the evidence
                counts, shapes = self._overlap[subset].per_image(), self._shapes[subset].per_image()
                if not len(counts["index"]):
                    continue
                table = image_table(counts, shapes, datamodule.samples, groups, presence)
                if subset == "val":
                    presence = fit_presence(shapes["presence_evidence"], (table["lesion_px"] > 0).to_numpy())
                if subset == "test":
                    self.tested = table
                summary = summarise(table)
                log_subset(trainer, subset, summary_metrics(summary))
                table.to_csv(Path(folder) / f"{subset}.csv", index=False, float_format="%.9g")
                about = {**describe(datamodule, pl_module, subset), "summary": summary, "columns": columns()}
                (Path(folder) / f"{subset}.json").write_text(json.dumps(about, indent=1))
            self._overlap, self._shapes = {}, {}
            if (run := run_of(trainer)) is not None:
                run.add_files(Path(folder), "tables")


def describe(datamodule: UltrasoundDataModule, task: SegmentationTask, subset: str) -> dict[str, Any]:
    """The facts that two tables must share to be compared row by row, as plain types."""
    return {
        "subset": subset,
        "subset_digest": datamodule.subset_digest(subset),
        "data_digest": datamodule.data_digest,
        "split_digest": datamodule.split_digest,
        "split": datamodule.split_scheme,
        "source": datamodule.source.name,
        "image_size": list(datamodule.image_size),
        "resize": datamodule.resize,
        "threshold": task.threshold,
    }


def known_groups(datamodule: UltrasoundDataModule) -> dict[str, str]:
    """Group (duplicates, patient) by image id, where the split gives one."""
    split = datamodule.split
    if split is None or "group" not in split:
        return {}
    return {str(image): str(group) for image, group in zip(split["image"], split["group"], strict=True)}
