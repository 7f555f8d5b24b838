"""The LightningModule: network, loss, optimiser and metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from bustseg.data.datamodule import Batch
from bustseg.errors import TrainingError, UserError
from bustseg.losses import BCELoss
from bustseg.masks import MaskRule, PostProcess, with_mirror
from bustseg.metrics import PixelCurves, SegmentationMetrics
from bustseg.models import use_fast_depthwise, use_lean_activations

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RECORD = "bustseg"
"""Section of a checkpoint that makes it self-contained, see `SegmentationTask.record`."""


def _check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse what would make every input of the network the same, or no number.

    Raises:
        UserError: so it would
    """
    if not mean or len(mean) != len(std):
        raise UserError(f"model.mean has {len(mean)} values and model.std {len(std)}: give one of each per channel")
    if not all(math.isfinite(value) for value in mean):
        raise UserError(f"model.mean is {list(mean)}: give finite numbers")
    if not all(0 < value < math.inf for value in std):
        raise UserError(f"model.std is {list(std)}: give finite numbers above 0")


@runtime_checkable
class Supervised(Protocol):
    """A network that is trained on something in addition to the mask."""

    def auxiliary_loss(self, mask: Tensor, label: Tensor) -> Tensor | None:
        """Scalar to add to the loss of the last training step, from masks (B, 1, H, W) and labels (B,); or None."""


class SegmentationTask(LightningModule):
    """A network that is trained to segment lesions, and its scores.

    Args:
        network: images (B, C, H, W) in, logits (B, 1, H, W) out
        loss: logits and mask, both (B, 1, H, W), in, scalar out
        optimizer: from parameters to optimiser; the paper's Adam with learning rate 1e-4 (fused: one kernel per step)
        lr_scheduler: from optimiser to schedule, stepped after each epoch (or step, see ``lr_scheduler_interval``)
        lr_scheduler_interval: ``epoch`` or ``step``
        threshold: probability above which a pixel belongs to a lesion (paper: 0.5)
        mean: mean of each input channel in [0, 1]; its length is the number of channels that the grey image is repeated
            to. ImageNet's by default, as the encoders expect.
        std: standard deviation per channel
        channels_last: keep network and activations in NHWC, the fast format on tensor cores and in oneDNN
        train_scale: image side during training as a fraction of the full side, by the first epoch (from 0) that it
            applies to, such as ``{0: 0.5, 20: 0.75, 30: 1.0}``: training mostly on small images takes a fraction of the
            time (progressive resizing; Tan and Le 2021, EfficientNetV2). Evaluation always uses the full size.
        postprocess: what is done to the masks in ``test``, ``validate`` and prediction (not in the validation during a
            fit, as with ``flip``): small components removed, holes filled; nothing by default
        flip: average the logits of each image and its mirror image in ``test``, ``validate`` and prediction (not in the
            validation during a fit, where it would only cost time)
        teacher: checkpoint whose probabilities are learned in addition to the masks, such as an ensemble's
            (distillation; Hinton et al. 2015). It gets the same augmented images as the network; it is needed only for
            training
        teacher_weight: weight of the teacher in the loss, from 0 to 1; the masks have the rest
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-4, fused=True),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        threshold: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels_last: bool = True,
        train_scale: dict[int, float] | None = None,
        flip: bool = False,
        postprocess: PostProcess | None = None,
        teacher: str | None = None,
        teacher_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= teacher_weight <= 1:
            raise UserError(f"model.teacher_weight is {teacher_weight}: it must lie from 0 to 1")
        _check_normalisation(mean, std)
        self.teacher, self.teacher_weight = teacher, teacher_weight
        self._teacher: list[SegmentationTask] = []  # in a list, so that it is not part of this network's state
        if train_scale is not None and not (0 in train_scale and all(0 < s <= 1 for s in train_scale.values())):
            raise UserError(f"train_scale is {train_scale}: give scales above 0 and up to 1, the first for epoch 0")
        self.train_scale = train_scale or {0: 1.0}
        self.flip = flip
        self.postprocess = postprocess or PostProcess()
        self.network = use_lean_activations(use_fast_depthwise(network))
        self.loss = loss if loss is not None else BCELoss()
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.threshold = threshold
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)
        # (x / 255 - mean) / std as one multiply-add
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float32))
        shift = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)
        self._fitting = False
        self.record: dict[str, Any] | None = None
        """A checkpoint's record of its origin (configuration, run, digests); plain types, set by the recorder."""
        self.metrics = nn.ModuleDict({f"{stage}_overlap": SegmentationMetrics(threshold) for stage in ("val", "test")})
        self.metrics.update({f"{stage}_curves": PixelCurves() for stage in ("val", "test")})
        # a NaN loss must be visible
        self.metrics.update({f"{stage}_loss": MeanMetric(nan_strategy="disable") for stage in ("val", "test")})

    scale: Tensor
    shift: Tensor

    def normalise(self, image: Tensor) -> Tensor:
        """Grey ``uint8`` (B, 1, H, W) to the network's float input (B, C, H, W)."""
        return torch.addcmul(self.shift, image.to(self.scale.dtype), self.scale).contiguous(
            memory_format=self.memory_format
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of grey ``uint8`` images (B, 1, H, W)."""
        x = self.normalise(image)
        if self.flip and not self.training and not self._fitting:
            return with_mirror(self.network, x)
        return self.network(x)

    @property
    def mask_rule(self) -> MaskRule:
        """The rule that turns logits into masks."""
        return MaskRule(self.threshold, self.postprocess)

    def training_sizes(self, size: tuple[int, int]) -> dict[float, tuple[int, int]]:
        """Scales of ``train_scale``, and the (H, W) to which each resizes images of ``size``; at least 32 pixels."""
        height, width = size
        return {
            scale: size if scale == 1 else (max(32, round(height * scale)), max(32, round(width * scale)))
            for scale in self.train_scale.values()
        }

    def _scaled(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image and mask at the size that this epoch trains on."""
        scale = self.train_scale[max(epoch for epoch in self.train_scale if epoch <= self.current_epoch)]
        if scale == 1:
            return image, mask
        size = self.training_sizes((image.shape[-2], image.shape[-1]))[scale]
        image = F.interpolate(image.float(), size, mode="bilinear", antialias=True)
        return image, F.interpolate(mask.float(), size, mode="area") >= 0.5

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, 1, H, W) of a batch; computed from its features where it has them."""
        if "features" in batch:
            return self.network.decode(batch["features"], batch["image"].shape[-2:])  # type: ignore[operator]
        return self(batch["image"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image, mask = self._scaled(batch["image"], batch["mask"])
        logits = self.logits({**batch, "image": image})
        loss = self.loss(logits, mask)
        if isinstance(self.network, Supervised):
            extra = self.network.auxiliary_loss(mask, batch["label"])
            loss = loss if extra is None else loss + extra
        if self._teacher:
            with torch.no_grad():
                taught = self._teacher[0](image).float().sigmoid()
            distance = F.binary_cross_entropy_with_logits(logits.float(), taught)
            loss = torch.lerp(loss, distance, self.teacher_weight)
        # reading the value waits for the GPU, so it is checked only every 20th step there; the epoch's mean is checked
        # anyway
        if self.device.type == "cpu" or batch_idx % 20 == 0:
            self._check_finite(loss)
        size = len(batch["index"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss.detach()):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}: lower the learning rate, clip gradients "
                "(--trainer.gradient_clip_val 1) or train in float32 (--trainer.precision 32-true); "
                "the last finite state is in last.ckpt"
            )

    def setup(self, stage: str) -> None:
        """Record whether this is a fit, whose validation uses neither mirror images nor post-processing."""
        self._fitting = stage == "fit"

    def teardown(self, stage: str) -> None:
        """Record that no fit is running."""
        self._fitting = False

    def learn_from(self, teacher: SegmentationTask) -> None:
        """Let a fit learn a teacher's probabilities in addition to the masks; the teacher is frozen for it."""
        teacher.flip = False
        self._teacher = [teacher.eval().requires_grad_(False)]

    def on_fit_start(self) -> None:
        """Move the teacher to this network's device.

        Raises:
            RuntimeError: ``teacher`` is set but has not been loaded
        """
        if self.teacher is not None and not self._teacher:
            raise RuntimeError("call task.learn_from(load_task(path of the teacher)) before the fit")
        for teacher in self._teacher:
            teacher.to(self.device)

    def on_fit_end(self) -> None:
        self._teacher = []

    def on_train_epoch_start(self) -> None:
        # dropout's random numbers depend only on (seed, epoch, rank), so a resumed run continues the interrupted one
        # exactly
        datamodule = getattr(self.trainer, "datamodule", None)
        seed = getattr(datamodule, "seed", 0)
        torch.manual_seed(hash((seed, self.current_epoch, self.global_rank)) & 0x7FFF_FFFF_FFFF_FFFF)

    def on_train_epoch_end(self) -> None:
        if (loss := self.trainer.callback_metrics.get("train/loss")) is not None:
            self._check_finite(loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits (B, 1, H, W), from which callbacks can choose `threshold` and `postprocess`."""
        return self._evaluate(batch, "val")[0]

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``logits`` (B, 1, H, W), and the ``masks``, bool (B, 1, H, W), that are made from them and scored."""
        logits, masks = self._evaluate(batch, "test")
        return {"logits": logits, "masks": masks}

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Lesion probabilities (B, 1, H, W)."""
        return self(batch["image"]).float().sigmoid()

    @torch.inference_mode()
    def predict_mask(self, image: np.ndarray) -> np.ndarray:
        """Predicted mask, ``uint8`` 0 or 1 (H, W), of one grey ``uint8`` image (H, W) of the network's size."""
        batch = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(self.device)[None, None]
        return self.mask_rule.masks(self(batch))[0, 0].cpu().numpy().astype(np.uint8)

    def _evaluate(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        """Logits, and the masks that are scored: during a fit without post-processing."""
        mask, size = batch["mask"], len(batch["index"])
        if size:
            logits = self.logits(batch).float()
            self._loss(stage).update(self.loss(logits, mask), size)
        else:  # other processes still have images
            logits = torch.zeros(mask.shape, device=mask.device)
        self.curves(stage).update(logits, mask)
        rule = MaskRule(self.threshold) if self._fitting else self.mask_rule
        masks = rule.masks(logits)
        self.overlap(stage).update(logits, mask, batch["label"], batch["index"], masks)
        return logits, masks

    def overlap(self, stage: str) -> SegmentationMetrics:
        """Per-image confusion counts of ``val`` or ``test``."""
        return self.metrics[f"{stage}_overlap"]  # type: ignore[return-value]

    def curves(self, stage: str) -> PixelCurves:
        """Pixel histograms of ``val`` or ``test``."""
        return self.metrics[f"{stage}_curves"]  # type: ignore[return-value]

    def _loss(self, stage: str) -> MeanMetric:
        return self.metrics[f"{stage}_loss"]  # type: ignore[return-value]

    def _log_metrics(self, stage: str) -> None:
        # not in each step with `self.log`: a process without images would be missing from the mean over processes
        self.log(f"{stage}/loss", self._loss(stage).compute(), prog_bar=stage == "val")
        scores = {**self.overlap(stage).compute(), **self.curves(stage).compute()}
        # the metric has reduced over ranks already
        self.log_dict({f"{stage}/{name}": value.float() for name, value in scores.items()}, rank_zero_only=False)

    def on_validation_epoch_start(self) -> None:
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        self._reset("test")

    def _reset(self, stage: str) -> None:
        # at the start and not at the end, so that callbacks can read the finished epoch's counts
        self.overlap(stage).reset()
        self.curves(stage).reset()
        self._loss(stage).reset()

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # here and not in a callback: Lightning leaves callbacks out of weights-only checkpoints
        if self.record is not None:
            checkpoint[RECORD] = self.record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep a changed loss's settings: buffers among them, such as class weights, would otherwise be restored."""
        stored, own = (
            ((record or {}).get("config", {}).get("model") or {}).get("loss")
            for record in (checkpoint.get(RECORD), self.record)
        )
        if self.record is not None and stored != own:
            weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith("loss.")}
            mine = {key: value for key, value in self.state_dict().items() if key.startswith("loss.")}
            checkpoint["state_dict"] = weights | mine

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over what is trained."""
        # frozen parameters are left out: they have no gradient and would only take optimiser memory
        return self.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, in bf16 also those of a fused optimiser.

        Lightning refuses these in every mixed precision, although only float16 scales gradients, which a fused
        optimiser undoes in its step.
        """
        precision = self.trainer.precision_plugin
        if not (isinstance(precision, MixedPrecision) and precision.scaler is None):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip([value for group in optimizer.param_groups for value in group["params"]], gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer()
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if monitor := getattr(scheduler, "monitor", None):
            config["monitor"] = monitor
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]
