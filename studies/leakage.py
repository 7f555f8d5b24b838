"""The effect of leakage: a light network, trained and tested with a leaking split and with one that does not leak.

The network, the number of images in each subset and the classes are the same; only the duplicates differ: with `paper`
a third of the test images have a copy among the training images, with `grouped` none has. Every seed gives another
split and another training. The script prints the difference of the mean Dice on test images with a lesion, with a
bootstrap interval that draws seeds, and within them whole groups of duplicates, since copies are not independent; and,
only for the leaking split, the Dice of images with and without a copy in train.

    python -m studies.leakage --root $BUSI_ROOT --out leakage          # continues where it stopped
    python -m studies.leakage --phantoms 60 --epochs 1 --seeds 0 1     # a quick test of the script
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

SCHEMES = ("paper", "grouped")
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def train_and_test(scheme: str, seed: int, source: list[str], epochs: int, image_size: int) -> list[dict[str, Any]]:
    """Train with one split and return ``{"image", "dice", "group", "copy"}`` of every test image with a lesion."""
    from bustseg.data.cache import cache_root, cached_groups
    from bustseg.data.splits import leakage, merge_groups
    from bustseg.experiment import Experiment
    from bustseg.metrics import overlap_scores
    from bustseg.training import run_fit, run_test

    experiment = (
        Experiment.read(CONFIG)
        .with_options(source)
        .but(
            {"data.split": scheme, "tracking.experiment": "leakage", "tracking.run_name": f"{scheme} {seed}"},
            **{"split_seed": seed, "seed_everything": seed, "image_size": image_size, "max_epochs": epochs},
        )
    )
    best = run_fit(experiment).checkpoint
    assert best is not None
    tested = run_test(Experiment.of_checkpoint(best, "test"), best)
    data, counts = tested.data, tested.task.overlap("test").per_image()
    groups = merge_groups(
        data.samples, cached_groups(data.samples, cache_root(data.data_root), digest=data.data_digest)
    )
    copies = {case["image"] for case in leakage(data.split, groups).cases}
    dice = overlap_scores(counts["tp"], counts["fp"], counts["fn"], counts["tn"])["dice_paper"]
    lesion = (counts["tp"] + counts["fn"]) > 0
    rows = []
    for index, value, has_lesion in zip(counts["index"].tolist(), dice.tolist(), lesion.tolist(), strict=True):
        name = data.samples[index].id
        if has_lesion:
            rows.append({"image": name, "dice": value, "group": groups.get(name, name), "copy": name in copies})
    return rows


def resample(results: list[list[dict[str, Any]]], rng: np.random.Generator) -> float:
    """Mean over seeds of the mean Dice, with seeds and duplicate groups drawn with replacement."""
    means = []
    for chosen in rng.integers(len(results), size=len(results)):
        groups = defaultdict(list)
        for row in results[chosen]:
            groups[row["group"]].append(row["dice"])
        units = list(groups.values())
        drawn = [units[index] for index in rng.integers(len(units), size=len(units))]
        means.append(np.mean(np.concatenate(drawn)))
    return float(np.mean(means))


def difference(results: dict[str, list[list[dict[str, Any]]]], draws: int = 10_000) -> tuple[float, float, float]:
    """Dice with the leaking split minus Dice with the other, with its 95 % bootstrap interval."""
    point = {
        scheme: np.mean([np.mean([row["dice"] for row in rows]) for rows in runs]) for scheme, runs in results.items()
    }
    rng = np.random.default_rng(0)
    drawn = [resample(results["paper"], rng) - resample(results["grouped"], rng) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(point["paper"] - point["grouped"]), float(low), float(high)


def report(results: dict[str, list[list[dict[str, Any]]]]) -> None:
    print("test dice_lesion (mean over images with a lesion)")
    for scheme, runs in results.items():
        means = [np.mean([row["dice"] for row in rows]) for rows in runs]
        copies = [np.mean([row["copy"] for row in rows]) for rows in runs]
        seeds = "  ".join(f"{mean:.4f}" for mean in means)
        print(f"  {scheme:8} {np.mean(means):.4f}   seeds {seeds}   with a copy in train {np.mean(copies):.1%}")
    value, low, high = difference(results)
    print(f"difference {value:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
    rows = [row for run in results["paper"] for row in run]
    for word, flag in (("with", True), ("without", False)):
        own = [row["dice"] for row in rows if row["copy"] is flag]
        if own:
            print(f"under the leaking split, {len(own)} images {word} a copy in train: {np.mean(own):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="BUSI (default: BUSI_ROOT)")
    parser.add_argument("--phantoms", type=int, help="use this number of phantoms instead")
    parser.add_argument("--out", type=Path, default=Path("leakage"), help="folder for the finished runs' scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=128)
    options = parser.parse_args()
    if options.phantoms:
        source = ["--data.source.init_args.n", str(options.phantoms)]
    else:
        source = ["--data.source", "BUSI", *(["--data.root", options.root] if options.root else [])]
    setting = {"source": source[:2], "epochs": options.epochs, "image_size": options.image_size}
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[list[dict[str, Any]]]] = {scheme: [] for scheme in SCHEMES}
    for seed in options.seeds:
        for scheme in SCHEMES:
            path = options.out / f"{scheme}-{seed}.json"
            if path.is_file():
                kept = json.loads(path.read_text())
                if kept["setting"] != setting:
                    sys.exit(f"{path} has other settings ({kept['setting']}): name another --out")
                rows = kept["rows"]
            else:
                rows = train_and_test(scheme, seed, source, options.epochs, options.image_size)
                partial = path.with_suffix(".part")
                partial.write_text(json.dumps({"setting": setting, "rows": rows}))
                partial.replace(path)
            results[scheme].append(rows)
    report(results)


if __name__ == "__main__":
    main()
