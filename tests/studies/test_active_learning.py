"""The study of the order of looking: the right images are chosen, and it goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bustseg.errors import UserError
from studies import active_learning as study

TINY = Path(__file__).parents[1] / "configs" / "tiny.yaml"


def test_the_least_confident_come_first_and_random_is_random() -> None:
    pool = [f"image {k}" for k in range(20)]
    worth = {name: (k * 7 % 20) / 20 for k, name in enumerate(pool)}
    chosen = study.next_images("worth", pool, worth, 3, 0, 0)
    assert [worth[name] for name in chosen] == [0.95, 0.9, 0.85]
    first = study.next_images("random", pool, worth, 5, 0, 0)
    assert len(set(first)) == 5
    assert first == study.next_images("random", pool, worth, 5, 0, 0)
    assert first != study.next_images("random", pool, worth, 5, 0, 1)
    assert len(study.next_images("worth", pool, worth, 50, 0, 0)) == 20


def test_dice() -> None:
    mask, truth = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    assert study.dice(mask, truth) == 1
    mask[0, :2] = 1
    assert study.dice(mask, truth) == 0
    truth[0, 1:4] = 1
    assert study.dice(mask, truth) == pytest.approx(2 * 1 / 5)


def test_intervals_hold_the_means_and_the_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(3):
        easy = rng.normal(0, 0.2, 40)
        for order, gain in (("worth", 0.05), ("random", 0.0)):
            for k in range(40):
                value = 0.6 + easy[k] + gain
                rows.append({"order": order, "seed": seed, "corrected": 10, "image": f"i{k}", "dice": value})
    (row,) = study.summary(pd.DataFrame(rows)).to_dict("records")
    for name in ("worth", "random", "difference"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    # the same images for both, so that how hard they are cancels
    assert row["difference"] == pytest.approx(0.05)
    assert row["difference_high"] - row["difference_low"] < 1e-9
    assert row["worth_high"] - row["worth_low"] > 0.01
    assert "| 10 | 0." in study.markdown(pd.DataFrame([row]))


@pytest.mark.slow
def test_the_study_runs_on_phantoms_and_goes_on_where_it_was(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "active"
    args = ["--config", str(TINY), "--root", str(phantoms), "--out", str(out)]
    args += ["--start", "8", "--step", "6", "--rounds", "1", "--trainer.max_epochs", "1"]
    study.main(args)
    table = pd.read_csv(out / "curve.csv")
    assert table["corrected"].tolist() == [8, 14]
    assert table.loc[0, "worth"] == table.loc[0, "random"], "both orders begin with the same images and seed"
    assert table[["worth", "random"]].to_numpy().min() >= 0
    assert (out / "curve.png").stat().st_size > 5000
    files = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert len(files) == 3
    one = next(path for path in files if path.name == "worth-seed0-round1.json")
    text = one.read_text()
    one.unlink()
    study.main(args)
    assert one.read_text() == text, "the same study gives the same network"
    assert {path for path in files if path.stat().st_mtime_ns != files[path]} == {one}
    with pytest.raises(UserError, match="another study"):
        study.main([*args, "--start", "9"])
