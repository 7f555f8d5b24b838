"""From logits to masks: the one implementation that test, prediction, export check, explanations and pictures use.

A network gives logits (a presence gate, where it has one, is part of them). They become a mask in four steps:

1. :func:`with_mirror`, where the model asks for it: the mean over the image and its mirror image
2. :func:`resampled`, where the mask is needed at another size than the network's: before any nonlinear step
3. :meth:`MaskRule.above`: the pixels above the threshold
4. :class:`PostProcess`: small or doubtful components removed, holes filled

Threshold and post-processing belong to a model: they are chosen on its validation images (``bustseg validate``
recommends values), and are stored with it, as ``model.threshold`` and ``model.postprocess`` of its configuration or as
``threshold`` and ``postprocess`` of an exported model's metadata.

Needs only NumPy and OpenCV, since an exported model predicts without torch; tensors are handled by their own methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from bustseg.bounds import as_mapping, is_number
from bustseg.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Logits = TypeVar("Logits", np.ndarray, "Tensor")

POSTPROCESS = "postprocess"
"""Key of the settings in an exported model's metadata."""

KEEP = ("all", "largest")

PRESENCE_SHARE = 0.002
"""Share of an image's pixels whose mean logit is its evidence of a lesion, see :func:`evidence_of`."""

_LARGEST_LOGIT = 16.0  # beyond it float32 probabilities can no longer be told from 0 and 1


@dataclass(frozen=True)
class PostProcess:
    """A pure function from mask (and probabilities) to mask; the default changes nothing.

    Components are 8-connected, as the metrics count them.

    Args:
        min_area_px_relative: components smaller than this share of the image's pixels are removed
        keep: ``all`` components, or only the ``largest`` (the uppermost of several that are equally large)
        fill_holes: pixels that a component encloses become part of it
        max_confidence_gap: components whose mean logit lies further than this below that of the image's most confident
            component are removed (2: its odds are more than 7.4 times worse); None removes none. An image with one
            clear lesion seldom has another, doubtful one.
        min_peak_probability: components none of whose pixels is at least this probable are removed (thresholding with
            hysteresis, Canny 1986: the threshold sets a lesion's extent, its peak decides whether it counts)

    Raises:
        UserError: settings that cannot be used
    """

    min_area_px_relative: float = 0.0
    keep: str = "all"
    fill_holes: bool = False
    max_confidence_gap: float | None = None
    min_peak_probability: float = 0.0

    def __post_init__(self) -> None:
        # the settings may come from a stranger's file, and a wrong type would be noticed only with the first image
        for name in ("min_area_px_relative", "min_peak_probability"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value < 1):
                raise UserError(f"{POSTPROCESS}.{name} is {value!r:.60}: give a value from 0 to below 1")
        if self.keep not in KEEP:
            raise UserError(f"{POSTPROCESS}.keep is {self.keep!r:.60}: use {' or '.join(KEEP)}")
        if not isinstance(self.fill_holes, bool):
            raise UserError(f"{POSTPROCESS}.fill_holes is {self.fill_holes!r:.60}: use true or false")
        gap = self.max_confidence_gap
        if gap is not None and not (is_number(gap) and gap >= 0):
            raise UserError(f"{POSTPROCESS}.max_confidence_gap is {gap!r:.60}: give 0 or more, or null for none")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> PostProcess:
        """Settings as :meth:`to_dict` wrote them; None is the default.

        Raises:
            UserError: there is a setting that this version does not know, and would have to ignore
        """
        settings = as_mapping(settings, POSTPROCESS)
        if unknown := settings.keys() - {field.name for field in fields(cls)}:
            raise UserError(
                f"the model needs {POSTPROCESS} {', '.join(sorted(unknown))}, which this version does not know"
            )
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain types."""
        return asdict(self)

    @property
    def needs_probability(self) -> bool:
        """Whether a step needs the probabilities."""
        return self.max_confidence_gap is not None or self.min_peak_probability > 0

    def __call__(self, mask: np.ndarray, probability: np.ndarray | None = None) -> np.ndarray:
        """The mask, ``uint8`` of 0 and 1 (H, W), after the steps.

        The steps, in this order: remove doubtful components, fill holes, remove small components, keep the largest.

        Args:
            mask: ``uint8`` of 0 and 1 (H, W)
            probability: the map that the mask was made from, (H, W); needed only for ``max_confidence_gap`` and
                ``min_peak_probability``

        Raises:
            ValueError: one of these is set and there is no probability
        """
        if self == PostProcess() or not mask.any():
            return mask
        if self.needs_probability:
            if probability is None:
                raise ValueError("max_confidence_gap and min_peak_probability need probabilities, and none were given")
            areas, labels = labelled(mask)
            mask = selected(self.trusted(areas, labels, probability), labels)
        if self.fill_holes:
            mask = _filled(mask)
        areas, labels = labelled(mask)
        kept = areas >= self.min_area_px_relative * mask.size
        if self.keep == "largest" and kept.any():
            kept &= np.arange(len(areas)) == np.argmax(np.where(kept, areas, 0))
        return selected(kept, labels)

    def trusted(self, areas: np.ndarray, labels: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Which components of :func:`labelled` have a peak and are not far below the most confident one, bool (n,).

        Args:
            areas, labels: the components
            probability: of every pixel, (H, W)
        """
        peaks = labels[probability >= self.min_peak_probability]
        kept = np.bincount(peaks, minlength=len(areas) + 1)[1:] > 0
        if self.max_confidence_gap is None or not kept.any():
            return kept
        inside = labels > 0
        means = np.bincount(labels[inside], logit_of(probability[inside]), minlength=len(areas) + 1)[1:] / areas
        # the means of equal pixels may differ in their last bits
        return kept & (means >= means[kept].max() - self.max_confidence_gap - 1e-9)


@dataclass(frozen=True)
class MaskRule:
    """The rule that turns logits into a mask: a threshold, then post-processing.

    Args:
        threshold: probability above which a pixel belongs to a lesion
        postprocess: what is done to the mask afterwards

    Raises:
        UserError: the threshold is not a probability
    """

    threshold: float = 0.5
    postprocess: PostProcess = PostProcess()

    def __post_init__(self) -> None:
        logit_threshold(self.threshold)

    @cached_property
    def cut(self) -> float:
        """The threshold as a logit."""
        return logit_threshold(self.threshold)

    def above(self, logits: Logits) -> Logits:
        """Pixels above the threshold, bool of the shape of ``logits`` (any); NaN is background.

        Logits are compared, and never their probabilities: those round differently in each library.
        """
        return logits > self.cut

    def mask(self, logits: np.ndarray, probability: np.ndarray | None = None) -> np.ndarray:
        """Mask, ``uint8`` of 0 and 1 (H, W), of one image.

        Args:
            logits: ``float32`` (H, W)
            probability: :func:`probability_of` these logits, where it is known already
        """
        above = self.above(logits).view(np.uint8)
        if self.postprocess.needs_probability and probability is None:
            probability = probability_of(logits)
        return self.postprocess(above, probability)

    def masks(self, logits: Tensor) -> Tensor:
        """Masks, bool (B, 1, H, W) on the logits' device, of a batch of logits (B, 1, H, W).

        Waits for a GPU only where there is post-processing, which is done on the CPU.
        """
        logits = logits.detach().float()
        if self.postprocess == PostProcess():
            return self.above(logits)
        import torch

        found = [self.mask(plane) for plane in logits[:, 0].cpu().numpy()]
        if not found:
            return self.above(logits)
        return torch.from_numpy(np.stack(found)[:, None]).to(logits.device).bool()


def with_mirror(network: Callable[[Tensor], Tensor], images: Tensor, one_batch: bool = False) -> Tensor:
    """Logits (B, 1, H, W), ``float32``, of images (B, C, H, W): their mean over each image and its mirror image.

    Args:
        network: images in, logits out
        images: the images
        one_batch: let both go through the network as one batch of twice the size
    """
    if one_batch:
        import torch

        count = images.shape[0]
        logits = network(torch.cat([images, images.flip(-1)])).float()
        return (logits[:count] + logits[count:].flip(-1)) / 2
    return (network(images).float() + network(images.flip(-1)).float().flip(-1)) / 2


def resampled(logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Logits (h, w) at an image's own size (H, W): bilinear, as torch does without aligned corners."""
    if logits.shape == shape:
        return logits
    return cv2.resize(logits, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def logit_threshold(threshold: float) -> float:
    """Logit above which a pixel is predicted as lesion, for a threshold on the probability.

    Raises:
        UserError: the threshold is not a probability
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold must be a probability between 0 and 1, not {threshold}")
    if threshold in (0, 1):
        return -math.inf if threshold == 0 else math.inf
    return math.log(threshold) - math.log1p(-threshold)


def probability_of(logits: np.ndarray) -> np.ndarray:
    """Probabilities, ``float32`` (H, W), of logits (H, W)."""
    # in place, since passes over memory are what it costs at the size of an image
    probability = np.negative(np.asarray(logits, np.float32))
    cv2.exp(probability, probability)
    probability += 1
    return np.divide(1, probability, out=probability)


def highest_probability(probability: np.ndarray) -> float:
    """The highest probability of a pixel of an image (H, W).

    Not above the threshold, the mask is empty; above it, only post-processing can have emptied it.
    """
    return float(probability.max())


def evidence_of(logits: np.ndarray, share: float = PRESENCE_SHARE) -> float:
    """Evidence that an image shows a lesion: the mean of its highest logits, of ``share`` of its pixels, at least one.

    It ranks images of scanners that were not seen as well as anything that was tried (docs/results/scanners.md).

    Args:
        logits: (H, W) of the network's own size; NaN counts as background
    """
    flat = np.nan_to_num(np.asarray(logits, np.float32).ravel(), nan=-_LARGEST_LOGIT)
    count = max(1, round(share * flat.size))
    highest = np.partition(flat, flat.size - count)[flat.size - count :]
    return float(np.clip(highest, -_LARGEST_LOGIT, _LARGEST_LOGIT).mean(dtype=np.float64))


def logit_of(probability: np.ndarray) -> np.ndarray:
    """Logits, ``float32``, of probabilities of any shape; finite for 0 and 1, too."""
    inside = inside_bounds(probability)
    return np.log(inside) - np.log1p(-inside)


def inside_bounds(probability: np.ndarray) -> np.ndarray:
    """A copy, ``float32``, of probabilities of any shape that is neither 0 nor 1 anywhere, so that it has a logit."""
    return np.clip(np.asarray(probability, np.float32), 1e-7, 1 - 1e-7)


def selected(kept: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mask, ``uint8`` of 0 and 1 (H, W), of the components of :func:`labelled` that are ``kept``, bool (n,)."""
    if kept.all():
        return (labels > 0).view(np.uint8)
    return np.concatenate([[0], kept]).astype(np.uint8)[labels]


def labelled(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas of a mask's 8-connected components in pixels, and the map (H, W) of their numbers, from 1 on; 0 is none."""
    mask = np.ascontiguousarray(mask, np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return np.zeros(0, np.int32), np.zeros(mask.shape, np.int32)
    # a lesion is a small part of an image, and the search takes time for every pixel
    part = slice(top, top + height), slice(left, left + width)
    _, within, statistics, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask[part]), connectivity=8)
    labels = np.zeros(mask.shape, np.int32)
    labels[part] = within
    return statistics[1:, cv2.CC_STAT_AREA], labels


def _filled(mask: np.ndarray) -> np.ndarray:
    # the complement of 8-connected components is 4-connected; its part that reaches the border is no hole
    outside = np.pad(1 - mask, 1, constant_values=1).astype(np.uint8)
    _, labels = cv2.connectedComponents(outside, connectivity=4)
    return (labels != labels[0, 0])[1:-1, 1:-1].astype(np.uint8)
