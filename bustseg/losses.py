"""Losses on logits: shapes (B, 1, H, W) in, one scalar out.

Any module with ``forward(logits, mask)`` can be used instead by its ``class_path``, for example
``monai.losses.DiceLoss`` (with ``sigmoid: true``) and ``segmentation_models_pytorch.losses.DiceLoss`` (with
``mode: binary``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bustseg.errors import UserError
from bustseg.masks import PRESENCE_SHARE


def _as_float32(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32: bfloat16 has 8 bits of precision, and a sum over 50,000 pixels needs more.

    Raises:
        ValueError: the shapes differ (broadcasting (B, H, W) against (B, 1, H, W) would compare every image with every
            mask)
    """
    if logits.shape != mask.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} must have the same shape (B, 1, H, W)"
        )
    return logits.float(), mask.float()


_CERTAIN = 30.0  # a logit whose cross-entropy and Dice loss are 0 in float32


class BCELoss(nn.Module):
    """Binary cross-entropy, the mean over all pixels of the batch.

    Args:
        pos_weight: weight of a lesion pixel relative to a background pixel; None means 1

    Shapes: ``logits`` (B, 1, H, W) of any float type, ``mask`` (B, 1, H, W) of 0 and 1 in any type -> scalar float32.
    """

    pos_weight: Tensor | None

    def __init__(self, pos_weight: float | None = None) -> None:
        super().__init__()
        if pos_weight is not None and pos_weight <= 0:
            raise UserError(f"pos_weight must be positive, not {pos_weight}")
        # not persistent: it is a setting, and a checkpoint's keys must not depend on the loss
        weight = None if pos_weight is None else torch.tensor(float(pos_weight))
        self.register_buffer("pos_weight", weight, persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        logits, mask = _as_float32(logits, mask)
        return F.binary_cross_entropy_with_logits(logits, mask, pos_weight=self.pos_weight)


class DiceLoss(nn.Module):
    r"""Soft Dice loss per image, then the mean over the images of the batch.

    With probabilities p = sigmoid(logits) and mask g, both summed over the pixels of one image,

    .. math:: L = 1 - \frac{2 \sum p g + s}{\sum p + \sum g + s}, \qquad
              s = \begin{cases} 0 & \text{the image has a lesion} \\ \varepsilon H W & \text{it has none} \end{cases}

    A lesion image needs no smoothing: its denominator is at least 1 pixel. An image without a lesion gives
    :math:`\sum p / (\sum p + \varepsilon H W)`, which is 0 for an empty prediction and falls steadily with the
    predicted area. With the usual s = 1 *pixel* that loss would stay at 1 until almost nothing is predicted, with a
    gradient near 0 (and a Dice pooled over the batch is constant for a batch of normals): the network would learn
    nothing from such images.

    Args:
        empty_smooth: :math:`\varepsilon`, the share of an image without a lesion that, when predicted as lesion, gives
            a loss of one half

    Shapes: ``logits`` (B, 1, H, W) of any float type, ``mask`` (B, 1, H, W) of 0 and 1 in any type -> scalar float32.
    """

    def __init__(self, empty_smooth: float = 0.05) -> None:
        super().__init__()
        if empty_smooth <= 0:
            raise UserError(
                f"empty_smooth must be positive, not {empty_smooth}: at 0 nothing is learned from normal images"
            )
        self.empty_smooth = empty_smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        logits, mask = _as_float32(logits, mask)
        pixels = logits.shape[1:].numel()
        probability = logits.sigmoid()
        dims = (1, 2, 3)
        area = mask.sum(dims)
        smooth = self.empty_smooth * pixels * (area == 0)
        dice = (2 * (probability * mask).sum(dims) + smooth) / (probability.sum(dims) + area + smooth)
        return (1 - dice).mean()


class HybridLoss(nn.Module):
    """Weighted sum of :class:`BCELoss` and :class:`DiceLoss`, which the paper names as future work.

    Args:
        bce_weight: factor of the cross-entropy
        dice_weight: factor of the Dice loss
        pos_weight: see :class:`BCELoss`
        empty_smooth: see :class:`DiceLoss`

    Shapes: as in :class:`DiceLoss`.
    """

    def __init__(
        self,
        bce_weight: float = 0.5,
        dice_weight: float = 0.5,
        pos_weight: float | None = None,
        empty_smooth: float = 0.05,
    ) -> None:
        super().__init__()
        if min(bce_weight, dice_weight) < 0 or bce_weight + dice_weight == 0:
            raise UserError(f"bce_weight {bce_weight} and dice_weight {dice_weight} must not be negative, nor both 0")
        self.bce_weight = bce_weight
        self.dice_weight = dice_weight
        self.bce = BCELoss(pos_weight)
        self.dice = DiceLoss(empty_smooth)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        return self.bce_weight * self.bce(logits, mask) + self.dice_weight * self.dice(logits, mask)


class PresenceLoss(nn.Module):
    r"""A pixel loss plus the cross-entropy of whether the image shows a lesion at all, derived from the pixels' logits.

    The image's evidence is the mean of its most probable pixels' logits: of the ``share`` of all pixels with the
    highest logits. It is trained to be the logit of "there is a lesion", so that every false component is penalised
    however small it is, and the height of the peak is comparable between images.

    Args:
        pixels: loss of logits and mask; :class:`HybridLoss` when not given
        weight: factor of the presence term
        share: of the image's pixels that count as its peak

    Shapes: as in :class:`DiceLoss`.
    """

    def __init__(self, pixels: nn.Module | None = None, weight: float = 0.1, share: float = PRESENCE_SHARE) -> None:
        super().__init__()
        if not weight >= 0 or not 0 < share <= 1:
            raise UserError(f"presence weight {weight} and share {share}: give 0 or more, and above 0 up to 1")
        self.pixels = pixels if pixels is not None else HybridLoss()
        self.weight, self.share = weight, share

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        evidence = peak_logit(logits, self.share)
        present = mask.flatten(1).amax(1).float()
        return self.pixels(logits, mask) + self.weight * F.binary_cross_entropy_with_logits(evidence, present)


class LesionLoss(nn.Module):
    """A pixel loss that is learned from images with a lesion only; one without counts as predicted perfectly.

    For a network that learns from something else whether there is a lesion, such as the ``detection`` of
    :class:`bustseg.models.FusionUNet`: a normal image has nothing to teach about a lesion's extent.

    Args:
        pixels: loss of logits and mask; :class:`HybridLoss` when not given

    Shapes: as in :class:`DiceLoss`.
    """

    def __init__(self, pixels: nn.Module | None = None) -> None:
        super().__init__()
        self.pixels = pixels if pixels is not None else HybridLoss()

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        present = mask.flatten(1).amax(1)[:, None, None, None] > 0
        # replaced and not left out: the number of images with a lesion would have to come from the GPU
        return self.pixels(torch.where(present, logits.float(), -_CERTAIN), mask)


def peak_logit(logits: Tensor, share: float = PRESENCE_SHARE) -> Tensor:
    """Mean of each image's highest logits, float32 (B,): over a ``share`` of its pixels, at least one.

    Args:
        logits: (B, 1, H, W), any float type
    """
    flat = logits.float().flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.mean(1)
