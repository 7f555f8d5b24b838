"""Sheets of a model's worst lesions and of its false alarms, per source, for visual inspection.

    python -m studies.cross_source.sheets MODEL --split configs/flagship/three_sources_split.csv --subset val \\
        --busi DIR --bus_bra DIR --bus_uclm DIR --out FOLDER

Writes, for each source, ``SOURCE-lesions.png`` (the images with a lesion with the lowest Dice), ``SOURCE-normals.png``
(the normal images with an outline, those of the highest presence first) and ``SOURCE.csv`` with a row per image. Truth
and prediction are outlined; a title says image, class, Dice, presence and the lesion's share of the image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from bustseg.data.sources import Sample
from bustseg.deploy.predictor import Predictor
from bustseg.figures.panels import Picture, sheet
from bustseg.figures.style import save
from bustseg.progress import track
from studies.cross_source.data import add_roots, roots_of
from studies.cross_source.score import test_samples
from studies.scores import dice

COLUMNS = 5


def looked_at(predictor: Predictor, samples: list[Sample], title: str) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A row per image, and the predicted masks by image."""
    rows, masks = [], {}
    for sample in track(samples, title):
        image = sample.read_image()
        truth = sample.read_mask((image.shape[0], image.shape[1]))
        prediction = predictor(image)
        masks[sample.id] = prediction.mask
        rows.append(
            {
                "image": sample.id,
                "label": sample.label,
                "lesion": bool(truth.any()),
                "dice": dice(prediction.mask, truth),
                "presence": prediction.presence,
                "flagged": bool(prediction.look_at_this),
                "outlined": bool(prediction.mask.any()),
                "share": float(truth.mean()),
                "mean_grey": float(image.mean()),
            }
        )
    return pd.DataFrame(rows), masks


def worst(table: pd.DataFrame, most: int) -> dict[str, pd.DataFrame]:
    """The rows of each sheet, the worst first: lesions by their Dice, false alarms by presence."""
    return {
        "lesions": table[table["lesion"]].sort_values("dice", kind="stable").head(most),
        "normals": table[~table["lesion"] & table["outlined"]].sort_values("presence", ascending=False).head(most),
    }


def heading(row: pd.Series) -> str:
    """Two lines above an image."""
    presence = "" if row["presence"] is None else f", presence {row['presence']:.2f}"
    return f"{row['image']} ({row['label']})\nDice {row['dice']:.2f}{presence}, lesion {row['share']:.1%}"


def main() -> None:
    """Write the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--subset", default="val")
    parser.add_argument("--most", type=int, default=25, help="images on a sheet")
    parser.add_argument("--out", type=Path, required=True)
    add_roots(parser)
    args = parser.parse_args()
    roots = roots_of(args)
    predictor = Predictor(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    for source, samples in test_samples(args.split, roots, args.subset).items():
        known = {sample.id: sample for sample in samples}
        table, masks = looked_at(predictor, samples, source)
        table.to_csv(args.out / f"{source}.csv", index=False)
        for kind, chosen in worst(table, args.most).items():
            places = [
                (Picture.of(known[row["image"]], masks[row["image"]]), heading(row)) for _, row in chosen.iterrows()
            ]
            if places:
                grid = [places[start : start + COLUMNS] for start in range(0, len(places), COLUMNS)]
                title = f"{source}, {args.subset}: {kind} that {Path(args.model).name} gets most wrong"
                save(sheet(grid, title, COLUMNS), args.out / f"{source}-{kind}.png", vector=False)


if __name__ == "__main__":
    main()
