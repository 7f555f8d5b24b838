"""What is done to a mask after the threshold: small or doubtful components removed, holes filled.

The settings belong to a model: they were chosen on its validation images (``bustseg validate`` recommends some), and
travel with it, as ``model.postprocess`` of its configuration or ``postprocess`` of an exported model's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np

from bustseg.errors import UserError

POSTPROCESS = "postprocess"
"""Where an exported model's metadata keep its settings."""

KEEP = ("all", "largest")


@dataclass(frozen=True)
class PostProcess:
    """A pure function from mask (and probabilities) to mask; the default changes nothing.

    Components are 8-connected, as the metrics count them.

    Args:
        min_area_px_relative: components smaller than this share of the image's pixels are removed
        keep: ``all`` components, or only the ``largest`` (of several largest the uppermost)
        fill_holes: pixels that a component encloses become part of it
        max_confidence_gap: components whose mean logit lies further than this below that of the image's most confident
            component are removed (2: its odds are more than 7.4 times worse); None removes none. An image that shows
            one lesion clearly seldom shows another one that is doubtful.
        min_peak_probability: components none of whose pixels is at least this probable are removed (thresholding with
            hysteresis, Canny 1986: the threshold says how far a lesion reaches, its peak whether it is one)

    Raises:
        UserError: settings that cannot be used
    """

    min_area_px_relative: float = 0.0
    keep: str = "all"
    fill_holes: bool = False
    max_confidence_gap: float | None = None
    min_peak_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in ("min_area_px_relative", "min_peak_probability"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{POSTPROCESS}.{name} is {getattr(self, name)}: it must lie from 0 to below 1")
        if self.keep not in KEEP:
            raise UserError(f"{POSTPROCESS}.keep is {self.keep!r}: use {' or '.join(KEEP)}")
        if self.max_confidence_gap is not None and not self.max_confidence_gap >= 0:
            raise UserError(
                f"{POSTPROCESS}.max_confidence_gap is {self.max_confidence_gap}: give 0 or more, or null for none"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> PostProcess:
        """Settings as :meth:`to_dict` wrote them; None is the default.

        Raises:
            UserError: a setting that this version does not know would be ignored silently
        """
        settings = dict(settings or {})
        if unknown := settings.keys() - {field.name for field in fields(cls)}:
            raise UserError(
                f"the model asks for {POSTPROCESS} {', '.join(sorted(unknown))}, which this version does not know"
            )
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain types."""
        return asdict(self)

    def __call__(self, mask: np.ndarray, probability: np.ndarray | None = None) -> np.ndarray:
        """The mask, ``uint8`` of 0 and 1 (H, W), after the steps.

        These are, in this order: doubtful components removed, holes filled, small components removed, largest kept.

        Args:
            mask: ``uint8`` of 0 and 1 (H, W)
            probability: that the mask was cut from, (H, W); only ``max_confidence_gap`` and ``min_peak_probability``
                ask for it

        Raises:
            ValueError: one of these is set and there is no probability
        """
        if self == PostProcess() or not mask.any():
            return mask
        if self.max_confidence_gap is not None or self.min_peak_probability > 0:
            if probability is None:
                raise ValueError(
                    "max_confidence_gap and min_peak_probability compare probabilities, and none were given"
                )
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
        """Which components of :func:`labelled` have a peak and are not far behind the surest of those, bool (n,).

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
        # means of equal pixels differ in their last bits
        return kept & (means >= means[kept].max() - self.max_confidence_gap - 1e-9)


def logit_of(probability: np.ndarray) -> np.ndarray:
    """Logits, ``float32``, of probabilities of any shape; finite for 0 and 1, too."""
    inside = np.clip(np.asarray(probability, np.float32), 1e-7, 1 - 1e-7)
    return np.log(inside) - np.log1p(-inside)


def selected(kept: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mask, ``uint8`` of 0 and 1 (H, W), of the components of :func:`labelled` that are ``kept``, bool (n,)."""
    return np.concatenate([[False], kept])[labels].astype(np.uint8)


def labelled(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas of a mask's 8-connected components in pixels, and the map (H, W) of their numbers, from 1 on; 0 is none."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask, np.uint8), connectivity=8)
    return statistics[1:, cv2.CC_STAT_AREA], labels


def _filled(mask: np.ndarray) -> np.ndarray:
    # the complement of 8-connected components is 4-connected; its part that reaches the border is no hole
    outside = np.pad(1 - mask, 1, constant_values=1).astype(np.uint8)
    _, labels = cv2.connectedComponents(outside, connectivity=4)
    return (labels != labels[0, 0])[1:-1, 1:-1].astype(np.uint8)
