"""Draw docs/img/predict.png: outlines by the model in the box for patients of BUS-BRA that it was not trained on.

    python benchmarks/readme_picture.py --bus_bra BUS-BRA

Images are not hand-picked: for each class the test images at two quantiles of Dice are shown. BUS-BRA's licence allows
its images to be published with a citation, which is in the title.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from bustseg import Predictor
from bustseg.box import boxed_model
from bustseg.data.sources import BUSBRA
from bustseg.figures.colours import OUTLINES
from bustseg.figures.panels import Picture, sheet
from bustseg.figures.style import save

SPLIT = Path("configs/flagship/three_sources_split.csv")
QUANTILES = (0.5, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bus_bra", type=Path, required=True, help="folder of BUS-BRA")
    parser.add_argument("--out", type=Path, default=Path("docs/img/predict.png"))
    arguments = parser.parse_args()
    with SPLIT.open() as file:
        test = {row["image"] for row in csv.DictReader(file) if row["subset"] == "test"}
    samples, _ = BUSBRA().scan(arguments.bus_bra)
    predictor = Predictor(boxed_model())
    scored = []
    for sample in samples:
        if f"bus-bra/{sample.id}" in test:
            image = sample.read_image()
            truth = sample.read_mask((image.shape[0], image.shape[1])).astype(bool)
            mask = predictor(image).mask.astype(bool)
            dice = 2 * (truth & mask).sum() / (truth.sum() + mask.sum())
            scored.append((float(dice), sample, mask))
    print(f"{len(scored)} test images, mean Dice {np.mean([dice for dice, _, _ in scored]):.3f}")
    row = []
    for label in ("benign", "malignant"):
        ordered = sorted((entry for entry in scored if entry[1].label == label), key=lambda entry: entry[0])
        for quantile in QUANTILES:
            dice, sample, mask = ordered[round(quantile * (len(ordered) - 1))]
            name = "median" if quantile == 0.5 else f"{quantile:.0%} quantile"
            row.append((Picture.of(sample, mask.astype(np.uint8)), f"{label}, {name}\nDice {dice:.2f}"))
            print(label, name, sample.id, f"{dice:.4f}")
    save(sheet([row], f"Images of BUS-BRA (Gómez-Flores et al. 2024); {OUTLINES}"), arguments.out, vector=False)
    with Image.open(arguments.out) as picture:  # so that the first screen of the README loads quickly
        small = picture.convert("RGB").resize(
            (1000, round(1000 * picture.height / picture.width)), Image.Resampling.LANCZOS
        )
    small.quantize(256).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
