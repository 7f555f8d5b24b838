"""Compare exported models on the test images of every source, from file to mask, with intervals.

    python -m studies.cross_source.score MODEL [MODEL ...] --split configs/flagship/three_sources_split.csv \\
        --busi DIR --bus_bra DIR --bus_uclm DIR [--out FOLDER]

Images have their own size; patients and near-duplicates are drawn together in the bootstrap. Prints a Markdown table:
Dice (lesion) and ``empty_one``, share of lesions missed and of normal images with a false positive, AUC of presence
(the mean of the most probable 0.2 % of the logits), and of the flag ``look_at_this``: the shares of images with a Dice
below 0.5 and of other images that it marks. ``--out`` writes a row per image.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from bustseg.data.cache import cache_root, cached_groups
from bustseg.data.sources import Sample
from bustseg.data.splits import merge_groups
from bustseg.deploy.predictor import Predictor
from bustseg.masks import logit_of
from bustseg.progress import track
from bustseg.statistics import Bootstrap
from studies.cross_source.data import SOURCES, add_roots, roots_of
from studies.cross_source.work import auc
from studies.scores import dice, mean_with_interval

RESAMPLES = 2000


def test_samples(split: Path, roots: dict[str, Path], subset: str) -> dict[str, list[Sample]]:
    """The images of a subset, by source."""
    table = pd.read_csv(split, dtype=str)
    wanted = set(table.loc[table["subset"] == subset, "image"])
    return {
        name: [sample for sample in SOURCES[name]().read(root) if f"{name}/{sample.id}" in wanted]
        for name, root in roots.items()
    }


def groups_of(source: str, root: Path) -> dict[str, str]:
    """Group of every image of a source: images of one patient and near-duplicates, or the image alone."""
    samples = SOURCES[source]().read(root)
    merged = merge_groups(samples, cached_groups(samples, cache_root(root)))
    return {sample.id: merged.get(sample.id, sample.id) for sample in samples}


def scores(predictor: Predictor, samples: list[Sample], title: str) -> pd.DataFrame:
    """A row per image."""
    rows = []
    for sample in track(samples, title):
        image = sample.read_image()
        mask = sample.read_mask(image.shape)
        prediction = predictor(image)
        found = prediction.mask.astype(bool)
        highest = np.sort(logit_of(prediction.probability), axis=None)[-max(1, round(0.002 * mask.size)) :]
        rows.append(
            {
                "image": sample.id,
                "lesion": bool(mask.any()),
                "dice": dice(found, mask),
                "found": bool(found.any()),
                "peak": float(highest.mean()),
                "flagged": bool(prediction.look_at_this),
            }
        )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame, groups: list[str]) -> dict[str, str]:
    """The scores of one model on one source; means with their intervals."""
    draws = Bootstrap(groups, resamples=RESAMPLES, seed=0)
    lesion = table["lesion"].to_numpy()
    good = (table["dice"] >= 0.5).to_numpy()
    flagged = table["flagged"].to_numpy()
    over = partial(mean_with_interval, draws)
    both = bool(lesion.any() and not lesion.all())
    return {
        "images": str(len(table)),
        "Dice lesion": over(table["dice"].to_numpy(), lesion),
        "empty_one": over(table["dice"].to_numpy(), np.ones(len(table), bool)),
        "missed": over(~table["found"].to_numpy(), lesion),
        "FP on normals": over(table["found"].to_numpy(), ~lesion),
        "AUC of presence": f"{auc(table['peak'].to_numpy(), lesion):.3f}" if both else "-",
        "flag: of Dice < 0.5": over(flagged, ~good),
        "flag: of the others": over(flagged, good),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--subset", default="test")
    parser.add_argument("--out", type=Path)
    add_roots(parser)
    args = parser.parse_args()
    roots = roots_of(args)
    rows = []
    for name, samples in test_samples(args.split, roots, args.subset).items():
        group = groups_of(name, roots[name])
        groups = [group[sample.id] for sample in samples]
        for model in args.models:
            table = scores(Predictor(str(model)), samples, f"{model.name} on {name}")
            rows.append({"model": model.name, "source": name, **summary(table, groups)})
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                table.to_csv(args.out / f"{model.name}-{name}.csv", index=False)
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
