"""The flagship over folds of the images that the split `paper` does not test: 702 images, each predicted unseen.

    python benchmarks/folds.py --root $BUSI_ROOT --encoders lite2 lite1 lite0

78 validation images with 13 normals cannot tell settings of post-processing apart, and 62 test lesions say little of a
network. So the training and validation images of the split are divided in three, each third is predicted by networks
trained on the other two (their last weights: the third they are judged by chose no epoch), and the networks on several
encoders answer as one. Printed, as Markdown:

* Dice by threshold and ``model.postprocess.min_peak_probability``, differences with 95 % intervals over images
* the threshold and smallest component that `bustseg validate`'s rule takes from all 702, by peak
* the scores of all 702, each third with the setting that was best on the other two
* what Dice the images that the split tests would have if they were drawn from these, 42 benign and 20 malignant,
  and the share of draws below each Dice given by ``--at``

Trainings that are finished are not done again. The images that the split tests are not looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import torch
from flagship import bustseg, train

FOLDS, SEED = 3, 7
PEAKS = (0.0, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98)
THRESHOLDS = (0.5, 0.4)
GAP = 2.0
TESTED = {"benign": 42, "malignant": 20}


def write_folds(folder: Path, root: list[str]) -> list[Path]:
    """Split files, one per fold: the third is `val`, the rest `train`, what the split `paper` tests stays `test`."""
    folder.mkdir(exist_ok=True)
    whole = folder / "paper.csv"
    if not whole.exists():
        bustseg("data", "split", *root, "--scheme", "paper", "--seed", "0", "--out", str(whole))
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


@torch.inference_mode()
def logits(run_id: str, root: str) -> tuple[torch.Tensor, torch.Tensor, list[str], list[str]]:
    """Mirrored logits and masks (N, 1, H, W) of a run's validation images by its last weights, their ids and labels."""
    from bustseg.checkpoint import load_data, load_task, resolve_checkpoint

    path = resolve_checkpoint(run_id, prefer="last")
    task, data = load_task(path), load_data(path)
    data.root = root
    data.setup("validate")
    batches = [(task.logits(batch).float(), batch["mask"], batch["index"]) for batch in data.val_dataloader()]
    found, masks, index = (torch.cat(column) for column in zip(*batches, strict=True))
    samples = [data.samples[place] for place in index.tolist()]
    return found, masks.view_as(found), [one.id for one in samples], [one.label or "" for one in samples]


def dice(found: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """Dice (``empty_one``) of every image for each of :data:`PEAKS` and :data:`THRESHOLDS`, (N, peaks, thresholds)."""
    from bustseg.metrics import OperatingPoints
    from bustseg.metrics.operating import MIN_AREAS
    from bustseg.metrics.operating import THRESHOLDS as TRIED
    from bustseg.postprocess import PostProcess

    columns = [TRIED.index(threshold) * len(MIN_AREAS) for threshold in THRESHOLDS]
    result = []
    for peak in PEAKS:
        points = OperatingPoints(PostProcess(max_confidence_gap=GAP, min_peak_probability=peak))
        points.update(found, masks, torch.arange(len(found)))
        result.append(points.per_image()[0].numpy()[:, columns])
    return np.stack(result, 1)


def recommended(found: torch.Tensor, masks: torch.Tensor) -> str:
    """What the rule of `bustseg validate` takes from the images (N, 1, H, W), with and without a peak."""
    from bustseg.metrics import OperatingPoints
    from bustseg.postprocess import PostProcess

    lines = []
    for peak in (0.0, 0.8, 0.9):
        points = OperatingPoints(PostProcess(max_confidence_gap=GAP, min_peak_probability=peak))
        points.update(found, masks, torch.arange(len(found)))
        best = points.recommended()
        assert best is not None
        lines.append(
            f"peak {peak:g}: threshold {best.threshold}, smallest component {best.min_area}, "
            f"lesion {best.dice_lesion:.4f}, empty_one {best.dice_empty_one:.4f}, false positives on normals "
            f"{best.false_positive_rate_normal:.3f}"
        )
    return "\n".join(lines)


def interval(values: np.ndarray, draws: np.ndarray) -> str:
    """Mean with its 95 % bootstrap interval; of the images with a value."""
    use = ~np.isnan(values)
    drawn = np.where(use, values, 0)[draws].sum(1) / use[draws].sum(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{values[use].mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def report(scores: np.ndarray, labels: np.ndarray, fold: np.ndarray, at: list[float]) -> str:
    """The tables, from Dice (N, peaks, thresholds), class and fold of every image."""
    lesion = labels != "normal"
    rng = np.random.default_rng(0)
    draws = rng.integers(len(scores), size=(10_000, len(scores)))
    lines = [
        "| threshold | min_peak_probability | lesion | against 0 | empty_one | against 0 | FP on normals | missed |",
        "| --- " * 8 + "|",
    ]
    for column, threshold in enumerate(THRESHOLDS):
        for row, peak in enumerate(PEAKS):
            own, base = scores[:, row, column], scores[:, 0, column]
            cells = [f"{threshold}", f"{peak:g}", f"{own[lesion].mean():.4f}"]
            cells += [interval(np.where(lesion, own - base, np.nan), draws) if row else "", f"{own.mean():.4f}"]
            cells += [interval(own - base, draws) if row else ""]
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
    maps, scores, labels, fold = [], [], [], []
    for number, csv in enumerate(write_folds(Path("folds"), [args.root])):
        options = [*root, "--data.split", str(csv.resolve())]
        runs = [train(client, f"flagship fold {number}, {encoder}", encoder, options) for encoder in args.encoders]
        each = [logits(run, args.root) for run in runs]
        found = torch.stack([one[0] for one in each]).mean(0)
        maps.append((found, each[0][1]))
        scores.append(dice(*maps[-1]))
        labels += each[0][3]
        fold += [number] * len(found)
    print(report(np.concatenate(scores), np.array(labels), np.array(fold), args.at))
    print("\n" + recommended(*(torch.cat(column) for column in zip(*maps, strict=True))))


if __name__ == "__main__":
    main()
