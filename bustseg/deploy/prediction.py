"""The result for one image: mask, probabilities, and everything derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bustseg.deploy.confidence import LOW_CONFIDENCE, NEAR_THRESHOLD, TINY, Calibration, ImageRange, mask_confidence
from bustseg.masks import MaskRule, evidence_of, highest_probability, labelled, probability_of


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for one image of H x W pixels.

    Attributes:
        mask: ``uint8`` (H, W), 1 where a lesion is predicted
        probability: ``float32`` (H, W), each pixel's probability of belonging to a lesion, as the network gives it
        threshold: probability above which a pixel is in the mask
        calibration: converts the probabilities into frequencies; None where the model has none
        unlike: how the image differs from the training images
        evidence: evidence of a lesion, see :func:`bustseg.masks.evidence_of`
    """

    mask: np.ndarray
    probability: np.ndarray
    threshold: float
    calibration: Calibration | None = None
    unlike: tuple[str, ...] = ()
    evidence: float | None = None

    @classmethod
    def of(
        cls,
        logits: np.ndarray,
        rule: MaskRule,
        calibration: Calibration | None = None,
        prepared: np.ndarray | None = None,
        images: ImageRange | None = None,
        evidence: float | None = None,
    ) -> Prediction:
        """The prediction from logits (H, W) at the image's own size.

        Args:
            logits: ``float32`` (H, W)
            rule: turns the logits into the mask
            calibration: the model's calibration, if it has one
            prepared: the image as the network saw it, to compare with ``images``
            images: range of the training images
            evidence: evidence of a lesion from the logits at the network's own size; computed from ``logits`` when not
                given
        """
        probability = probability_of(logits)
        mask = rule.mask(logits, probability)
        unlike = () if prepared is None else tuple((images or ImageRange()).unlike(prepared))
        evidence = evidence_of(logits) if evidence is None else evidence
        return cls(mask, probability, rule.threshold, calibration, unlike, evidence)

    @cached_property
    def lesion_probability(self) -> float:
        """The highest probability of a pixel, see :func:`bustseg.masks.highest_probability`."""
        return highest_probability(self.probability)

    @cached_property
    def presence(self) -> float | None:
        """The probability that the image shows a lesion, see :mod:`bustseg.presence`; it changes no mask.

        None when the model is not calibrated for it; there is no substitute.
        """
        if self.calibration is None or self.calibration.presence is None or self.evidence is None:
            return None
        return float(self.calibration.presence(self.evidence))

    @cached_property
    def area_px(self) -> int:
        """Pixels of the predicted lesion."""
        return int(self.mask.sum())

    @cached_property
    def components(self) -> tuple[int, ...]:
        """Areas in pixels of the mask's 8-connected components, the largest first."""
        areas, _ = labelled(self.mask)
        return tuple(sorted((int(area) for area in areas), reverse=True))

    @cached_property
    def confidence(self) -> float | None:
        """How reliable the mask is (0 to 1), see :func:`bustseg.deploy.confidence.mask_confidence`.

        None when the model is not calibrated; there is no substitute.
        """
        if self.calibration is None:
            return None
        return mask_confidence(self.mask, self.calibration(self.probability))

    @cached_property
    def look_at_this(self) -> tuple[str, ...]:
        """Reasons why a person should look at this image; empty when there are none."""
        reasons = []
        if self.confidence is not None and self.confidence < LOW_CONFIDENCE:
            reasons.append("low confidence")
        if abs(self.lesion_probability - self.threshold) <= NEAR_THRESHOLD:
            reasons.append("probability near the threshold")
        if not self.area_px and self.lesion_probability > self.threshold:
            reasons.append("only small or doubtful components, removed")
        if len(self.components) > 1:
            reasons.append("several lesions")
        if self.components and self.components[0] < TINY * self.mask.size:
            reasons.append("tiny lesion")
        edges = (self.mask[0], self.mask[-1], self.mask[:, 0], self.mask[:, -1])
        if any(edge.any() for edge in edges):
            reasons.append("touches the border")
        return (*reasons, *self.unlike)

    def summary(self, spacing: tuple[float, float] | None = None) -> dict[str, Any]:
        """Everything that a table or a response reports about the mask, as plain types.

        Args:
            spacing: size of a pixel in mm as (row, column); without it ``area_mm2`` is None
        """
        return {
            "area_px": self.area_px,
            "area_mm2": None if spacing is None else self.area_px * spacing[0] * spacing[1],
            "components": len(self.components),
            "largest_component_px": self.components[0] if self.components else 0,
            "presence": self.presence,
            "lesion_probability": self.lesion_probability,
            "confidence": self.confidence,
            "threshold": self.threshold,
            "reasons": list(self.look_at_this),
        }
