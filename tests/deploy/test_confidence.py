"""Confidence of masks: by hand, against the Dice that it promises, and the reasons to look at an image."""

from __future__ import annotations

import numpy as np
import pytest

from bustseg.deploy.confidence import Calibration, ImageRange, fit_temperature, image_range, mask_confidence
from bustseg.deploy.prediction import Prediction
from bustseg.errors import UserError
from bustseg.masks import MaskRule, PostProcess, logit_of


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_a_network_that_is_too_sure_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)

    def image() -> tuple[np.ndarray, np.ndarray]:
        truth = rng.normal(-1.5, 2.0, (100, 100))  # logits that are frequencies
        lesion = rng.random(truth.shape) < sigmoid(truth)
        return sigmoid(temperature * truth).astype(np.float32), lesion.astype(np.uint8)

    found = fit_temperature(image() for _ in range(20))
    assert found == pytest.approx(temperature, rel=0.02)
    # the calibrated probabilities are frequencies: of the pixels with p in 0.7..0.8 three quarters are lesion
    probability, lesion = image()
    calibrated = Calibration(found)(probability)
    chosen = (calibrated > 0.7) & (calibrated < 0.8)
    assert lesion[chosen].mean() == pytest.approx(0.75, abs=0.06)


def test_a_temperature_needs_both_kinds_of_pixels() -> None:
    half = np.full((2, 2), 0.5, np.float32)
    for pairs in ([], [(half, np.zeros((2, 2)))], [(half, np.ones((2, 2)))]):
        with pytest.raises(UserError, match="with both lesion and background pixels"):
            fit_temperature(pairs)
    with pytest.raises(ValueError, match="must have the same shape"):
        fit_temperature([(half, np.ones((2, 3)))])


def test_saturated_probabilities_stay_finite() -> None:
    pairs = [(np.array([[0.0, 1.0, 1.0, 0.0]], np.float32), np.array([[0, 1, 0, 0]]))]
    assert 0 < fit_temperature(pairs) < 60
    assert np.isfinite(Calibration(3)(pairs[0][0])).all()


def test_confidence_by_hand() -> None:
    probability = np.array([[0.9, 0.6, 0.2, 0.1]], np.float32)
    # 2 (0.9 + 0.6) / (1.8 + 2)
    assert mask_confidence(np.array([[1, 1, 0, 0]], np.uint8), probability) == pytest.approx(3 / 3.8)
    # an empty mask is right with 1 - 0.9 about the pixel that is most likely to be wrong
    assert mask_confidence(np.zeros((1, 4), np.uint8), probability) == pytest.approx(0.1)
    assert mask_confidence(np.ones((1, 4), np.uint8), np.ones((1, 4), np.float32)) == 1


def test_confidence_is_the_dice_to_expect() -> None:
    rng = np.random.default_rng(1)
    probability = sigmoid(rng.normal(0, 2, (64, 64))).astype(np.float32)
    mask = (probability > 0.5).astype(np.uint8)
    truths = rng.random((400, 64, 64)) < probability
    dice = [2 * (truth & mask.astype(bool)).sum() / (truth.sum() + mask.sum()) for truth in truths]
    assert mask_confidence(mask, probability) == pytest.approx(np.mean(dice), abs=0.002)


def test_without_a_calibration_there_is_no_confidence() -> None:
    probability = np.full((8, 8), 0.9, np.float32)
    logits = logit_of(probability)
    assert Prediction.of(logits, MaskRule()).confidence is None
    found = Prediction.of(logits, MaskRule(), Calibration(2.0))
    # logit(0.9) is ln 9, half of it ln 3: p = 3 / 4 everywhere, so 2 * 0.75 / 1.75
    assert found.confidence == pytest.approx(1.5 / 1.75, abs=1e-6)
    assert np.allclose(found.probability, probability, atol=1e-6), "what the network gave is kept"
    for bad in ({"temperature": 0}, {"temperature": float("nan")}, {"temperature": "1"}, {"isotonic": []}, [1], {1: 2}):
        with pytest.raises(UserError, match="calibration"):
            Calibration.from_dict(bad)  # type: ignore[arg-type]
    assert Calibration.from_dict(None) is None
    assert Calibration.from_dict(Calibration(1.5).to_dict()) == Calibration(1.5)


def square(side: int = 20, at: int = 40, level: float = 0.99) -> np.ndarray:
    """Logits of a square whose pixels have the probability ``level``, all others 0.01."""
    probability = np.full((100, 100), 0.01, np.float32)
    probability[at : at + side, at : at + side] = level
    return logit_of(probability)


def test_a_clear_lesion_needs_no_look() -> None:
    found = Prediction.of(square(), MaskRule(), Calibration(1.0))
    assert found.look_at_this == ()
    assert (found.area_px, found.components) == (400, (400,))
    assert Prediction.of(np.full((9, 9), -4.6, np.float32), MaskRule(), Calibration(1.0)).look_at_this == ()


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (square(level=0.66), "low confidence"),  # 2 * 264 / (264 + 96 + 400) = 0.69
        (square(level=0.64), "probability near the threshold"),
        (square(level=0.36), "probability near the threshold"),
        (np.maximum(square(), square(12, at=70)), "several lesions"),
        (square(side=7), "tiny lesion"),  # 49 of 10000 pixels
        (square(at=0), "touches the border"),
        (square(at=80), "touches the border"),
    ],
)
def test_each_reason_to_look(logits: np.ndarray, reason: str) -> None:
    assert reason in Prediction.of(logits, MaskRule(), Calibration(1.0)).look_at_this


def test_what_post_processing_removed_is_told() -> None:
    rule = MaskRule(postprocess=PostProcess(min_area_px_relative=0.01))
    found = Prediction.of(square(side=7), rule, Calibration(1.0))
    assert found.area_px == 0
    assert found.components == ()
    assert "only small or doubtful components, removed" in found.look_at_this
    assert "low confidence" in found.look_at_this, "the pixel of 0.99 speaks against an empty mask"


def test_an_image_unlike_the_training() -> None:
    rng = np.random.default_rng(2)
    scans = ((80, 18), (100, 20), (120, 22))
    training = [rng.normal(mean, width, (50, 50)).clip(0, 255).astype(np.uint8) for mean, width in scans]
    known = image_range(training)
    assert known.mean == pytest.approx((80, 120), abs=2)
    assert known.contrast == pytest.approx((18, 22), abs=1)
    assert ImageRange.from_dict(known.to_dict()) == known
    for image in training:
        assert known.unlike(image) == []
    checks = [(60, 20, "darker"), (160, 20, "brighter"), (100, 5, "less contrast"), (100, 45, "more contrast")]
    for mean, deviation, word in checks:
        image = rng.normal(mean, deviation, (50, 50)).clip(0, 255).astype(np.uint8)
        assert known.unlike(image) == [f"{word} than the training images"]
    blank = Prediction.of(square(), MaskRule(), prepared=np.full((64, 64), 90, np.uint8))
    assert blank.look_at_this == ("less contrast than the training images",), "a blank image is like none"
    with pytest.raises(UserError, match="needs at least one image"):
        image_range([])
    with pytest.raises(UserError, match="only mean and contrast"):
        ImageRange.from_dict({"entropy": [0, 1]})
    for bad in ({"mean": 3}, {"mean": [1, 2, 3]}, {"contrast": ["low", "high"]}, {"mean": None}, [1], "mean"):
        with pytest.raises(UserError, match="training_images"):
            ImageRange.from_dict(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.5, 1.4, 3.0])
def test_calibrated_probabilities_are_the_sigmoid_of_the_scaled_logit(temperature: float) -> None:
    probability = np.array([[0.0, 1e-4, 0.2], [0.5, 0.97, 1.0]], np.float32)
    before = probability.copy()
    inside = np.clip(probability, 1e-7, 1 - 1e-7).astype(np.float64)  # 1 - 1e-7 rounds to the next float32
    expected = 1 / (1 + np.exp(-(np.log(inside) - np.log1p(-inside)) / temperature))
    found = Calibration(temperature)(probability)
    assert found.dtype == np.float32
    assert found.shape == probability.shape
    assert np.allclose(found, expected, atol=2e-5)
    assert np.array_equal(probability, before), "the caller's own array stays"
