"""The settings that `bustseg validate` recommends: threshold and smallest component."""

from __future__ import annotations

import math
from dataclasses import asdict

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.callbacks.subsets import weights_epoch
from bustseg.data.datamodule import Batch
from bustseg.errors import UserError
from bustseg.metrics import OperatingPoint, OperatingPoints, PresenceEvidence, QuietPoint, QuietPoints
from bustseg.metrics.operating import Wish
from bustseg.progress import console
from bustseg.runs.tracker import run_of
from bustseg.task import SegmentationTask


class OperatingPointSearch(Callback):
    """After a validation, recommends the threshold and the smallest component that suit its images best.

    They are chosen by mean Dice, convention ``empty_one``, which also counts false alarms on images without a lesion
    (:meth:`bustseg.metrics.OperatingPoints.recommended`), from the logits without ``postprocess`` except its
    ``max_confidence_gap`` and ``min_peak_probability``, which are not chosen here. With ``max_false_positives``, the
    threshold and the component's peak are chosen that give the highest Dice, or find the most lesions, among those that
    mark at most that share of the images without a lesion. The choice is printed as options of ``bustseg test``, and
    stored with its scores and the epoch of the weights in tags ``chosen...``. How well each image's evidence predicts
    whether there is a lesion is printed with it.

    Args:
        most: what to maximise, ``dice`` or ``detection``
        max_false_positives: share of the images without a lesion that may be marked

    Raises:
        UserError: the share is not between 0 and 1
    """

    def __init__(self, most: Wish = "dice", max_false_positives: float | None = None) -> None:
        if max_false_positives is not None and not 0 <= max_false_positives <= 1:
            raise UserError(f"--max_false_positives is {max_false_positives}: give a share from 0 to 1, such as 0.1")
        self.most, self.max_false_positives = most, max_false_positives
        self.points: OperatingPoints | QuietPoints = OperatingPoints()
        self.evidence = PresenceEvidence()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.max_false_positives is not None and trainer.world_size > 1:
            # the other processes are started without this option
            raise UserError("--max_false_positives works on one device only: add --trainer.devices 1")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        postprocess = pl_module.postprocess if isinstance(pl_module, SegmentationTask) else None
        points = OperatingPoints(postprocess) if self.max_false_positives is None else QuietPoints(postprocess)
        self.points, self.evidence = points.to(pl_module.device), PresenceEvidence().to(pl_module.device)

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
            for metric in (self.points, self.evidence):
                metric.update(outputs, batch["mask"], batch["index"])  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, SegmentationTask):
            return
        points, auc = self.points, float(self.evidence.compute())
        best: OperatingPoint | QuietPoint | None
        if isinstance(points, QuietPoints):
            best = points.chosen(self.most, self.max_false_positives or 0.0)
            text = _quiet_text(best, self.max_false_positives or 0.0)
        else:
            best = points.recommended()
            text = _text(best)
        if best is None and not text:
            return
        if best is not None and (run := run_of(trainer)) is not None:
            tags = {f"chosen.{name}": f"{value:.6g}" for name, value in asdict(best).items()}
            run.set_tags({**tags, "chosen.epoch": str(weights_epoch(trainer))})
        console.print(text, highlight=False, soft_wrap=True)
        if not math.isnan(auc):
            lesion = self.evidence.per_image()[1]
            counts = f"{int(lesion.sum())} images with a lesion and {int((~lesion).sum())} without"
            console.print(f"presence of a lesion: AUC {auc:.4f} on {counts}", highlight=False, soft_wrap=True)


def _text(best: OperatingPoint | None) -> str:
    if best is None:
        return ""
    alarms = (
        ""
        if math.isnan(best.false_positive_rate_normal)
        else (f", false positives on normals {best.false_positive_rate_normal:.1%}")
    )
    return (
        f"best on these images: --model.threshold {best.threshold} "
        f"--model.postprocess.min_area_px_relative {best.min_area}  (Dice empty_one {best.dice_empty_one:.4f}, "
        f"lesion {best.dice_lesion:.4f}{alarms})"
    )


def _quiet_text(best: QuietPoint | None, limit: float) -> str:
    if best is None:
        return (
            f"no setting tried marks at most {limit:.1%} of the images without a lesion, or there are no such images: "
            "give a higher --max_false_positives"
        )
    return (
        f"best on these images with at most {limit:.1%} false positives on normals: --model.threshold "
        f"{best.threshold} --model.postprocess.min_peak_probability {best.peak}  (Dice lesion {best.dice_lesion:.4f}, "
        f"missed {best.missed:.1%}, false positives on normals {best.false_positive_rate_normal:.1%})"
    )
