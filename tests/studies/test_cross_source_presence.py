"""Presence fitted on some sources: within a source nothing is scored by a fit that has seen it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bustseg import box
from bustseg.deploy.predictor import Predictor
from bustseg.errors import UserError
from studies.cross_source.presence import figures, held_out


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    lesion = np.tile([True, True, False], 100)
    # the second source's evidence has the same order and another scale
    source = np.repeat(["busi", "bus-uclm"], 150)
    evidence = np.where(lesion, 2.0, -2.0) + rng.normal(0, 2, 300) + np.where(source == "busi", 0, 5)
    return pd.DataFrame(
        {
            "source": source,
            "image": np.arange(300).astype(str),
            "group": [f"{name}/{number // 2}" for number, name in enumerate(source)],
            "lesion": lesion,
            "evidence": evidence,
        }
    )


def test_no_image_is_scored_by_a_fit_that_has_seen_its_group(table: pd.DataFrame) -> None:
    own = table["source"] == "busi"
    before = held_out(table, "busi", own)
    assert len(before) == 150
    assert np.isfinite(before).all()
    changed = table.copy()
    changed.loc[0, "evidence"] = -60.0
    after = held_out(changed, "busi", own)
    assert after[1] == before[1], "the other image of the group is scored by a fit without both"
    assert not np.isclose(after[2:], before[2:], atol=1e-6).all(), "and other groups by fits with them"
    outside = held_out(table, "busi", ~own)
    assert np.array_equal(outside[1:], held_out(changed, "busi", ~own)[1:]), "other sources' fits never see the source"


def test_a_scale_that_does_not_carry_over_is_seen(table: pd.DataFrame) -> None:
    found = figures(table).set_index("source")
    for source in ("busi", "bus-uclm"):
        within, outside = (
            float(found.loc[source, f"ECE, fitted on {who}"].split()[0]) for who in ("its own", "the other sources")
        )
        assert within < 0.15, "150 images in ten bins: chance alone gives about 0.1"
        assert outside > 0.25
    with pytest.raises(UserError, match="images with a lesion and without"):
        held_out(table, "busi", (table["source"] == "busi") & table["lesion"])


def test_the_model_in_the_box_knows_presence() -> None:
    calibration = Predictor(str(box.FOLDER)).calibration
    assert calibration is not None
    presence = calibration.presence
    assert presence is not None
    assert (presence.lesions, presence.normals) == (220, 38)
    assert float(presence(-4.0)) < 0.2
    assert float(presence(6.0)) > 0.9
