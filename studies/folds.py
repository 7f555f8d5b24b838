"""Cross-validation of the flagship on the 702 images that the split `paper` does not use for testing.

    python -m studies.folds --root $BUSI_ROOT --encoders lite2 lite1 lite0

78 validation images with 13 normals are too few to distinguish settings of post-processing, and 62 test lesions say
little about a network. So the training and validation images of the split are divided into thirds, each third is
predicted by networks trained on the other two (with their last weights, so that no epoch is chosen on the third), and
the networks with several encoders form an ensemble. Printed, as Markdown:

* Dice by threshold and ``model.postprocess.min_peak_probability``, differences with 95 % intervals over images
* the threshold and smallest component that `bustseg validate`'s rule chooses on all 702, by peak
* the scores of all 702, each third with the setting that was best on the other two
* the distribution of Dice over test sets drawn from these images, each with 42 benign and 20 malignant,
  and the share of draws below each Dice given by ``--at``

Finished trainings are not repeated. The split's test images are not used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
import torch

from bustseg.statistics import Bootstrap
from studies.components import validation_logits
from studies.flagship import bustseg, train
from studies.recipe import with_interval

if TYPE_CHECKING:
    from bustseg.metrics import OperatingPoints

FOLDS, SEED = 3, 7
PEAKS = (0.0, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98)
THRESHOLDS = (0.5, 0.4)
GAP = 2.0
TESTED = {"benign": 42, "malignant": 20}


def write_folds(folder: Path, root: str) -> list[Path]:
    """Split files, one per fold: the third is `val`, the rest `train`, and the test images of `paper` stay `test`."""
    folder.mkdir(exist_ok=True)
    whole = folder / "paper.csv"
    if not whole.exists():
        bustseg("data", "split", root, "--scheme", "paper", "--seed", "0", "--out", str(whole))
    images = pd.read_csv(whole)
    seen = images[images["subset"] != "test"]
    fold = pd.Series(0, index=seen.index)
    rng = np.random.default_rng(SEED)
    for _, same in seen.groupby("label"):
        order = rng.permutation(same.index.to_numpy())
        fold[order] = np.arange(len(order)) % FOLDS
    files = []
    for number in range(FOLDS):
        division = images.copy()
        division.loc[seen.index, "subset"] = np.where(fold == number, "val", "train")
        files.append(folder / f"fold{number}.csv")
        division.to_csv(files[-1], index=False)
    return files


def logits(run_id: str, root: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Mirrored logits and masks (N, 1, H, W) of a run's validation images by its last weights, and their classes."""
    from bustseg.data.sources import LABELS
    from bustseg.runs.resolve import resolve_checkpoint

    batches = [
        (found, batch["mask"], batch["label"])
        for found, batch in validation_logits(resolve_checkpoint(run_id, prefer="last"), root)
    ]
    found, masks, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    return found.float(), masks.view_as(found), [LABELS[code] for code in labels.tolist()]


def judged(maps: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[float, OperatingPoints]:
    """Scores of all logits and masks, each (N, 1, H, W), for each of :data:`PEAKS`."""
    from bustseg.masks import PostProcess
    from bustseg.metrics import OperatingPoints

    points = {peak: OperatingPoints(PostProcess(max_confidence_gap=GAP, min_peak_probability=peak)) for peak in PEAKS}
    count = 0
    for found, masks in maps:
        for one in points.values():
            one.update(found, masks, torch.arange(count, count + len(found)))
        count += len(found)
    return points


def dice(points: dict[float, OperatingPoints]) -> np.ndarray:
    """Dice (``empty_one``) of every image for each of :data:`PEAKS` and :data:`THRESHOLDS`, (N, peaks, thresholds)."""
    from bustseg.metrics.operating import MIN_AREAS
    from bustseg.metrics.operating import THRESHOLDS as TRIED

    columns = [TRIED.index(threshold) * len(MIN_AREAS) for threshold in THRESHOLDS]
    return np.stack([one.per_image()[0].numpy()[:, columns] for one in points.values()], 1)


def recommended(points: dict[float, OperatingPoints]) -> str:
    """The choice of `bustseg validate`'s rule on the images, with and without a peak."""
    lines = []
    for peak in (0.0, 0.8, 0.9):
        best = points[peak].recommended()
        assert best is not None
        lines.append(
            f"peak {peak:g}: threshold {best.threshold}, smallest component {best.min_area}, "
            f"lesion {best.dice_lesion:.4f}, empty_one {best.dice_empty_one:.4f}, false positives on normals "
            f"{best.false_positive_rate_normal:.3f}"
        )
    return "\n".join(lines)


def report(scores: np.ndarray, labels: np.ndarray, fold: np.ndarray, at: list[float]) -> str:
    """The tables, from Dice (N, peaks, thresholds), class and fold of every image."""
    lesion = labels != "normal"
    resamples = Bootstrap(len(scores))
    lines = [
        "| threshold | min_peak_probability | lesion | against 0 | empty_one | against 0 | FP on normals | missed |",
        "| --- " * 8 + "|",
    ]
    for column, threshold in enumerate(THRESHOLDS):
        for row, peak in enumerate(PEAKS):
            own, base = scores[:, row, column], scores[:, 0, column]
            cells = [f"{threshold}", f"{peak:g}", f"{own[lesion].mean():.4f}"]
            cells += [
                with_interval(np.where(lesion, own - base, np.nan), resamples) if row else "",
                f"{own.mean():.4f}",
            ]
            cells += [with_interval(own - base, resamples) if row else ""]
            cells += [f"{1 - own[~lesion].mean():.3f}", f"{(own[lesion] == 0).mean():.3f}"]
            lines.append("| " + " | ".join(cells) + " |")
    unseen = np.empty(len(scores))
    chosen = []
    for number in range(FOLDS):
        others = scores[fold != number].mean(0)
        place = np.unravel_index(int(others.argmax()), others.shape)
        chosen.append(f"{PEAKS[place[0]]:g} at {THRESHOLDS[place[1]]}")
        unseen[fold == number] = scores[(fold == number, *place)]
    share = lesion.mean()
    lines += [
        "",
        f"{len(scores)} images, {lesion.sum()} with a lesion, each third with what was best on the others "
        f"({', '.join(chosen)}): lesion {unseen[lesion].mean():.4f}, empty_one {unseen.mean():.4f}, paper "
        f"{unseen[lesion].mean() * share:.4f}, false positives on normals {1 - unseen[~lesion].mean():.3f}; lesion by "
        "third " + ", ".join(f"{unseen[lesion & (fold == number)].mean():.4f}" for number in range(FOLDS)),
    ]
    rng = np.random.default_rng(0)
    picks = [rng.choice(unseen[labels == label], (100_000, count)) for label, count in TESTED.items()]
    drawn = np.concatenate(picks, 1).mean(1)
    quantiles = " ".join(f"{value:.4f}" for value in np.percentile(drawn, [1, 5, 50, 95, 99]))
    lines.append(f"drawn test sets of {sum(TESTED.values())} lesions: 1, 5, 50, 95, 99 % quantiles {quantiles}")
    lines += [f"below {value:.4f}: {(drawn < value).mean():.1%} of the draws" for value in at]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="BUSI")
    parser.add_argument("--encoders", nargs="+", choices=["lite0", "lite1", "lite2"], default=["lite1"])
    parser.add_argument("--at", nargs="+", type=float, default=[], help="Dice to place among the draws")
    args = parser.parse_args()
    client = mlflow.MlflowClient("sqlite:///mlruns/mlflow.db")
    root = ["--data.root", args.root]
    maps, labels, fold = [], [], []
    for number, csv in enumerate(write_folds(Path("folds"), args.root)):
        options = [*root, "--data.split", str(csv.resolve())]
        runs = [train(client, f"flagship fold {number}, {encoder}", encoder, options) for encoder in args.encoders]
        each = [logits(run, args.root) for run in runs]
        found = torch.stack([one[0] for one in each]).mean(0)
        maps.append((found, each[0][1]))
        labels += each[0][2]
        fold += [number] * len(found)
    points = judged(maps)
    print(report(dice(points), np.array(labels), np.array(fold), args.at))
    print("\n" + recommended(points))


if __name__ == "__main__":
    main()
