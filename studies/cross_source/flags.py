"""What a user can rely on with a source that was left out: masks, presence, and the flag `look_at_this`.

    python -m studies.cross_source.flags OUT --data DATA --busi DIR --bus_bra DIR --bus_uclm DIR [--peak 0.8] \
        [--together] [--curated_list CSV]

Reads the logits that `studies.cross_source.work` kept of trainings with a source left out (`OUT/NAME.npz`). Temperature
and presence are fitted on the training's own validation images, as `bustseg export` does, and the masks are made with
the rule of the model in the box. Prints a Markdown table with a row per training, or with ``--together`` a row per
source left out, for the mean of its trainings' logits. ``--curated_list`` adds the images of a list (Curated BUSI), and
those that it leaves out, in rows of their own. ``--out`` writes a row per image.

Besides the flag it shows the order of looking: the share of the images with a Dice below 0.5 that are among the 20 and
40 % of all images with the lowest confidence. Patients and near-duplicates are drawn together in the intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from bustseg.data.sources import BUSI
from bustseg.data.splits import curated_samples
from bustseg.deploy.confidence import Calibration, fit_temperature, image_range
from bustseg.deploy.prediction import Prediction
from bustseg.masks import MaskRule, PostProcess, evidence_of, probability_of
from bustseg.presence import calibration_error, detection_auc, fit_presence
from bustseg.statistics import Bootstrap
from studies.cross_source.data import add_roots, roots_of
from studies.cross_source.presence import interval
from studies.cross_source.recipe import Recipe
from studies.cross_source.score import RESAMPLES, groups_of
from studies.cross_source.work import decode
from studies.scores import dice, mean_with_interval

SHARES = (0.2, 0.4)
RATES = (0.05, 0.1)
"""Shares of the normals with a false positive at which presence is compared."""


def kept_logits(out: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Logits (h, w) by image: the mean over trainings that all kept them."""
    parts = []
    for name in names:
        with np.load(out / f"{name}.npz") as maps:
            parts.append({image: decode(maps[image]) for image in maps.files})
    return {image: np.mean([part[image] for part in parts], axis=0) for image in parts[0]}


def predictions(recipes: Sequence[Recipe], out: Path, data: Path, rule: MaskRule) -> pd.DataFrame:
    """A row per image of the source that was left out: its Dice, and everything that a user is told about its mask.

    Args:
        recipes: one training, or several on the same images, whose mean logits are used
        out, data: folders of the trainings and of the study's images
        rule: turns logits into masks
    """
    table = pd.read_csv(out / f"{recipes[0].name}.csv").set_index("image")
    folder = data / recipes[0].shape

    def read(image: str, kind: str) -> np.ndarray:
        source, _, name = image.partition("/")
        return np.asarray(cv2.imread(str(folder / source / kind / f"{name}.png"), cv2.IMREAD_GRAYSCALE))

    logits = kept_logits(out, [recipe.name for recipe in recipes])
    masks = {image: (read(image, "masks") > 127).astype(np.uint8) for image in logits}
    val = [image for image in logits if table.loc[image, "subset"] == "val"]
    evidence = np.array([evidence_of(logits[image]) for image in val])
    presence = fit_presence(evidence, np.array([bool(masks[image].any()) for image in val]))
    calibration = Calibration(fit_temperature((probability_of(logits[i]), masks[i]) for i in val), presence)
    seen = image_range(read(image, "images") for image in table.index[table["subset"] == "train"])
    rows = []
    for image in (image for image in logits if table.loc[image, "subset"] == "left out"):
        found = Prediction.of(logits[image], rule, calibration, read(image, "images"), seen)
        row = {"image": image, "lesion": bool(masks[image].any()), "dice": dice(found.mask, masks[image])}
        row |= {"found": bool(found.mask.any()), "evidence": found.evidence, "presence": found.presence}
        rows.append(row | {"confidence": found.confidence, "reasons": "; ".join(found.look_at_this)})
    return pd.DataFrame(rows)


def figures(table: pd.DataFrame, groups: list[str]) -> dict[str, str]:
    """Scores of one training on the source that was left out, with 95 % intervals."""
    draws = Bootstrap(groups, resamples=RESAMPLES, seed=0)
    weights = draws.weights[:, draws.unit].astype(np.float64)
    lesion, flagged = table["lesion"].to_numpy(), (table["reasons"] != "").to_numpy()
    bad = (table["dice"] < 0.5).to_numpy()
    every = np.ones(len(table), bool)

    mean = partial(mean_with_interval, draws)
    row = {
        "Dice lesion": mean(table["dice"].to_numpy(), lesion),
        "empty_one": mean(table["dice"].to_numpy(), every),
        "missed": mean(~table["found"].to_numpy(), lesion),
        "FP on normals": mean(table["found"].to_numpy(), ~lesion),
        "AUC of presence": "-",
        "ECE of presence": "-",
        **dict.fromkeys((f"found at {share:.0%} FP" for share in RATES), "-"),
    }
    if lesion.any() and not lesion.all():
        score = table["evidence"].to_numpy()
        row["AUC of presence"] = interval(detection_auc(score, lesion), detection_auc(score, lesion, weights))
        if table["presence"].notna().all():
            probability = table["presence"].to_numpy(np.float64)
            drawn = calibration_error(probability, lesion, weights)
            row["ECE of presence"] = interval(calibration_error(probability, lesion), drawn)
        for share in RATES:
            cut = np.quantile(score[~lesion], 1 - share)
            row[f"found at {share:.0%} FP"] = mean(score > cut, lesion)
    row["Dice below 0.5"] = str(int(bad.sum()))
    row["flag: of them"] = mean(flagged, bad)
    row["flag: of the others"] = mean(flagged, ~bad)
    position = table["confidence"].rank(method="first").to_numpy() / len(table)
    for share in SHARES:
        row[f"of them, in the lowest {share:.0%}"] = mean(position <= share, bad)
    return row


def trainings(results: Path, together: bool) -> list[list[Recipe]]:
    """The recipes whose logits were kept, each by itself or those together that were trained on the same sources."""
    recipes = []
    for path in sorted(results.glob("*.npz")):
        described = json.loads(path.with_suffix(".json").read_text())
        recipes.append(Recipe(**{key: value for key, value in described.items() if "seconds" not in key}))
    if not together:
        return [[recipe] for recipe in recipes]
    alike: dict[tuple[str, ...], list[Recipe]] = {}
    for recipe in recipes:
        alike.setdefault((*recipe.train, recipe.shape), []).append(recipe)
    return list(alike.values())


def curated_images(list_csv: Path, root: Path) -> set[str]:
    """Images of BUSI that a list names, as ``busi/NAME``."""
    return {f"busi/{sample.id}" for sample in curated_samples(BUSI().read(root), list_csv)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="output folder of studies.cross_source.work")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.4)
    parser.add_argument("--gap", type=float, default=2.0)
    parser.add_argument("--peak", type=float, default=0.8)
    parser.add_argument("--together", action="store_true", help="average the trainings that left out the same source")
    parser.add_argument("--curated_list", type=Path)
    parser.add_argument("--out", type=Path)
    add_roots(parser)
    args = parser.parse_args()
    rule = MaskRule(args.threshold, PostProcess(max_confidence_gap=args.gap, min_peak_probability=args.peak))
    groups: dict[str, str] = {}
    for source, root in roots_of(args).items():
        groups |= {f"{source}/{image}": group for image, group in groups_of(source, root).items()}
    listed = set() if args.curated_list is None else curated_images(args.curated_list, args.busi)
    rows = []
    for recipes in trainings(args.results, args.together):
        table = predictions(recipes, args.results, args.data, rule)
        if table.empty:
            continue
        names = ", ".join(recipe.name for recipe in recipes)
        parts = {"": table}
        if listed and table["image"].iloc[0].startswith("busi/"):
            on_list = table["image"].isin(listed)
            parts |= {", on the list": table[on_list], ", not on it": table[~on_list]}
        for which, part in parts.items():
            left_out = part["image"].iloc[0].partition("/")[0] + which
            own = [groups[image] for image in part["image"]]
            rows.append({"training": names, "left out": left_out, **figures(part.reset_index(drop=True), own)})
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            table.to_csv(args.out / f"{'+'.join(recipe.name for recipe in recipes)}.csv", index=False)
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
