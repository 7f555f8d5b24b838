"""Score the contenders' masks of the test images, and report when each reached a given Dice on the validation images.

    python -m studies.equal_hour.score --data hour/data --out hour [--goal 0.78]

Writes ``table.md``, ``table.csv`` and ``curve.png``. Intervals: 95 %, patients and near-duplicates drawn together.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from bustseg.data.images import read_native, to_grey
from bustseg.figures.style import chart, save
from bustseg.statistics import Bootstrap
from studies.equal_hour.common import images
from studies.equal_hour.run import CONTENDERS
from studies.scores import dice, mean_with_interval

RESAMPLES = 2000


def scores(data: Path, masks: Path) -> pd.DataFrame:
    """A row per test image: name, whether it shows a lesion, Dice, and whether anything is outlined."""
    rows = []
    for name, _, truth in images(data, "test"):
        found = to_grey(read_native(masks / f"{name}.png")) > 127
        rows.append((name, bool(truth.any()), dice(found, truth), bool(found.any())))
    return pd.DataFrame(rows, columns=["image", "lesion", "dice", "found"])


def row(table: pd.DataFrame, groups: list[str]) -> dict[str, str]:
    """The scores of one contender, each mean with its interval."""
    draws = Bootstrap(groups, resamples=RESAMPLES, seed=0)
    lesion = table["lesion"].to_numpy()
    over = partial(mean_with_interval, draws)
    found = table["found"].to_numpy()
    every = np.ones(len(table), bool)
    return {
        "Dice (lesion)": over(table["dice"].to_numpy(), lesion),
        "Dice (`empty_one`)": over(table["dice"].to_numpy(), every),
        "missed": over(~found, lesion),
        "false positives on normals": over(found, ~lesion),
    }


def reached(curve: pd.DataFrame, goal: float) -> str:
    """Minutes until the validation Dice first reached the goal."""
    there = curve[curve["dice_lesion"] >= goal]
    if curve.empty:
        return "not measured"
    return (
        f"{there['seconds'].iloc[0] / 60:.0f} min" if len(there) else f"not reached ({curve['dice_lesion'].max():.3f})"
    )


def draw(curves: dict[str, pd.DataFrame], goal: float, path: Path) -> None:
    """Dice of the validation images over the minutes of the hour."""
    with chart("One core, one hour: Dice of the validation images", (6.0, 3.6)) as (figure, [axes]):
        for name, curve in curves.items():
            axes.plot(curve["seconds"] / 60, curve["dice_lesion"], label=name, linewidth=1.5)
        axes.axhline(goal, color="grey", linewidth=0.8, linestyle=":")
        axes.set(xlabel="minutes on one core", ylabel="Dice (lesion), validation images", ylim=(0, 1))
        axes.legend(loc="lower right")
        save(figure, path)


def main() -> None:
    """Write table and curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--goal", type=float, default=0.78)
    args = parser.parse_args()
    split = pd.read_csv(args.data / "split.csv", dtype=str)
    group = dict(zip(split["image"], split.get("group", split["image"]), strict=True))
    rows, curves = [], {}
    for name in CONTENDERS:
        folder = args.out / name
        if not (folder / "about.json").is_file():
            continue
        about = json.loads((folder / "about.json").read_text())
        table = scores(args.data, folder / "masks")
        table.to_csv(folder / "test.csv", index=False)
        curve = pd.read_csv(folder / "curve.csv")
        if len(curve):
            curves[name] = curve
        found = row(table, [group[image] for image in table["image"]])
        spent = {"minutes": f"{about['seconds'] / 60:.0f}", "epochs": str(about["epochs"])}
        rows.append({"contender": name, **spent, **found, f"validation Dice {args.goal}": reached(curve, args.goal)})
    frame = pd.DataFrame(rows)
    frame.to_csv(args.out / "table.csv", index=False)
    (args.out / "table.md").write_text(frame.to_markdown(index=False) + "\n")
    draw(curves, args.goal, args.out / "curve.png")
    print(frame.to_markdown(index=False))


if __name__ == "__main__":
    main()
