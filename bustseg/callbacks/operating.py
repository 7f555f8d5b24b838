"""What `bustseg validate` recommends: threshold and smallest component."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.data.datamodule import Batch
from bustseg.metrics import OperatingPoints, best_point
from bustseg.progress import console
from bustseg.task import SegmentationTask
from bustseg.tracking import Tracker


class OperatingPointSearch(Callback):
    """After a validation, says which threshold and smallest component serve its images best.

    They are chosen by mean Dice, convention ``empty_one``, which weighs false alarms on images without a lesion, too.
    The choice is printed as options of ``bustseg test``, and left with its scores as tags ``chosen...``.
    """

    def __init__(self) -> None:
        self.points = OperatingPoints()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.points = OperatingPoints().to(pl_module.device)

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
        points = self.points.points()
        if not points or not isinstance(pl_module, SegmentationTask):
            return
        best = best_point(points)
        if trainer.is_global_zero and isinstance(trainer.logger, Tracker):
            names = ("threshold", "min_area", "dice_empty_one", "dice_lesion", "false_positive_rate_normal")
            trainer.logger.set_tags({f"chosen.{name}": f"{getattr(best, name):.6g}" for name in names})
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
