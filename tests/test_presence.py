"""Presence: its evidence, its calibration and its scores, by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from bustseg.deploy.confidence import Calibration
from bustseg.deploy.prediction import Prediction
from bustseg.errors import UserError
from bustseg.losses import peak_logit
from bustseg.masks import MaskRule, evidence_of
from bustseg.metrics import QuietPoint, QuietPoints
from bustseg.presence import Presence, calibration_error, detection_auc, fit_presence


def test_evidence_is_what_the_presence_loss_trains() -> None:
    logits = np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32)  # 6 of 3000 pixels
    assert evidence_of(logits) == pytest.approx(float(np.sort(logits, axis=None)[-6:].mean()), abs=1e-6)
    assert evidence_of(logits) == pytest.approx(float(peak_logit(torch.from_numpy(logits)[None, None])), abs=1e-6)
    assert evidence_of(np.array([[np.nan, 2.0]])) == 2.0
    assert evidence_of(np.array([[np.inf, 2.0]])) == 16.0, "finite, whatever the network says"


def test_a_calibration_is_found_again() -> None:
    rng = np.random.default_rng(1)
    evidence = rng.normal(1, 3, 40_000)
    found = fit_presence(evidence, rng.random(40_000) < expit(0.7 * evidence - 1.2))
    assert found is not None
    assert (found.scale, found.offset) == (pytest.approx(0.7, abs=0.02), pytest.approx(-1.2, abs=0.04))
    assert found.lesions + found.normals == 40_000


def test_few_images_that_a_threshold_divides_do_not_make_it_certain() -> None:
    found = fit_presence(np.array([-2.0, -1, 4, 5]), np.array([False, False, True, True]))
    assert found is not None
    # the targets are 1/4 and 3/4, and the best line through them goes near, not beyond
    assert 0.15 < float(found(-2)) < 0.35
    assert 0.65 < float(found(5)) < 0.85
    assert fit_presence(np.array([1.0, 2]), np.array([True, True])) is None
    backwards = fit_presence(np.array([1.0, 2, 3, 4]), np.array([True, True, False, False]))
    assert backwards is not None
    assert backwards.scale == 0, "more evidence never speaks against a lesion"
    assert float(backwards(100)) == pytest.approx(0.5, abs=1e-3)


def test_presence_travels_beside_the_temperature() -> None:
    both = Calibration(1.5, Presence(0.5, -1.0, 20, 10))
    assert both.to_dict() == {
        "temperature": 1.5,
        "presence_scale": 0.5,
        "presence_offset": -1.0,
        "presence_lesions": 20,
        "presence_normals": 10,
    }
    assert Calibration.from_dict(both.to_dict()) == both
    for bad in ({"presence_scale": 1.0}, {"presence_scale": -1.0, "presence_offset": 0.0}, {"presence_of": 1}):
        with pytest.raises(UserError, match="presence"):
            Calibration.from_dict({"temperature": 1.0, **bad})


def test_a_prediction_says_it_and_its_mask_does_not_change() -> None:
    logits = np.full((50, 40), -3, np.float32)
    logits[10:20, 10:20] = 2
    plain = Prediction.of(logits, MaskRule(), Calibration(1.0))
    # evidence 2, and 0.5 * 2 - 3 = -2
    told = Prediction.of(logits, MaskRule(), Calibration(1.0, Presence(0.5, -3.0)))
    assert (plain.presence, told.presence) == (None, pytest.approx(float(expit(-2.0))))
    assert told.area_px == plain.area_px == 100, "never a gate"
    assert told.summary()["presence"] == told.presence


def test_scores_by_hand_and_against_scikit_learn() -> None:
    score, lesion = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert detection_auc(score, lesion)[0] == pytest.approx(3.5 / 4)
    # bins 0.1: -; 0.4: mean 0.4, half of two; 0.8: one of one
    assert calibration_error(score, lesion)[0] == pytest.approx((0.1 + 2 * 0.1 + 0.2) / 4)
    assert np.isnan(detection_auc(score, np.ones(4, bool))[0])
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False]))[0] == 0
    rng = np.random.default_rng(2)
    score, lesion = rng.integers(0, 9, 80).astype(float), rng.random(80) < 0.4
    weights = rng.integers(0, 3, (5, 80))
    expected = [roc_auc_score(np.repeat(lesion, one), np.repeat(score, one)) for one in weights]
    np.testing.assert_allclose(detection_auc(score, lesion, weights), expected)
    repeated = [calibration_error(np.repeat(score / 9, one), np.repeat(lesion, one))[0] for one in weights]
    np.testing.assert_allclose(calibration_error(score / 9, lesion, weights), repeated)


def test_the_operating_point_at_a_stated_rate_of_false_positives() -> None:
    logits, mask = torch.full((6, 1, 40, 40), -6.0), torch.zeros(6, 1, 40, 40)
    mask[:4, 0, 10:20, 10:20] = 1
    logits[:3, 0, 10:20, 10:20] = 6
    logits[3, 0, 10:20, 10:20] = float(np.log(0.82 / 0.18))  # a lesion of which the network is less sure
    logits[4, 0, 0:10, 0:10] = float(np.log(0.87 / 0.13))  # a false alarm of which it is surer
    points = QuietPoints()
    points.update(logits, mask, torch.arange(6))
    assert points.chosen("dice", 0.5) == QuietPoint(0.5, 0.0, 1.0, 0.0, 0.5)
    assert points.chosen("dice", 0.0) == QuietPoint(0.5, 0.9, 0.75, 0.25, 0.0)
    assert points.chosen("detection", 0.0) == points.chosen("dice", 0.0)
    grown = logits.clone()
    grown[:3, 0, 6:24, 6:24] = torch.maximum(grown[:3, 0, 6:24, 6:24], torch.tensor(float(np.log(0.62 / 0.38))))
    grown[3, 0, 10:20, 10:20] = float(np.log(0.52 / 0.48))
    points = QuietPoints()
    points.update(grown, mask, torch.arange(6))
    found = points.chosen("detection", 0.5), points.chosen("dice", 0.5)
    assert (found[0].missed, found[0].threshold) == (0, 0.5)  # type: ignore[union-attr]
    assert found[1].threshold == 0.65, "three masks get sharper, and one lesion is lost"  # type: ignore[union-attr]
    empty = QuietPoints()
    empty.update(logits[:4], mask[:4], torch.arange(4))
    assert empty.chosen("dice", 1.0) is None, "no image without a lesion"
