"""What `bustseg validate` recommends: threshold and smallest component."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.callbacks.subsets import weights_epoch
from bustseg.data.datamodule import Batch
from bustseg.metrics import OperatingPoints
from bustseg.progress import console
from bustseg.task import SegmentationTask
from bustseg.tracking import run_of


class OperatingPointSearch(Callback):
    """After a validation, says which threshold and smallest component serve its images best.

    They are chosen by mean Dice, convention ``empty_one``, which weighs false alarms on images without a lesion, too
    (:meth:`bustseg.metrics.OperatingPoints.recommended`), from the logits as they are before any ``postprocess``
    but for its ``max_confidence_gap`` and ``min_peak_probability``, which are no part of the choice.
    The choice is printed as options of ``bustseg test``, and left with its scores and the epoch of the weights as tags
    ``chosen...``.
    """

    def __init__(self) -> None:
        self.points = OperatingPoints()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        postprocess = pl_module.postprocess if isinstance(pl_module, SegmentationTask) else None
        self.points = OperatingPoints(postprocess).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(pl_module, SegmentationTask):
            self.points.update(outputs, batch["mask"], batch["index"])  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = self.points.recommended()
        if best is None or not isinstance(pl_module, SegmentationTask):
            return
        if (run := run_of(trainer)) is not None:
            names = ("threshold", "min_area", "dice_empty_one", "dice_lesion", "false_positive_rate_normal")
            tags = {f"chosen.{name}": f"{getattr(best, name):.6g}" for name in names}
            run.set_tags({**tags, "chosen.epoch": str(weights_epoch(trainer))})
        alarms = (
            ""
            if math.isnan(best.false_positive_rate_normal)
            else (f", false positives on normals {best.false_positive_rate_normal:.1%}")
        )
        console.print(
            f"best on these images: --model.threshold {best.threshold} "
            f"--model.postprocess.min_area_px_relative {best.min_area}  (Dice empty_one {best.dice_empty_one:.4f}, "
            f"lesion {best.dice_lesion:.4f}{alarms})",
            highlight=False,
            soft_wrap=True,
        )
