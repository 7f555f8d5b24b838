"""The experiments by which the flagship's recipe was chosen: short trainings with one change each, scored on validation
images.

    python -m studies.recipe --root $BUSI_ROOT                       # trains what is missing in the store, then prints
    the table python -m studies.recipe --root $BUSI_ROOT --only base presence-off

Each variant is `configs/flagship/grouped.yaml` with the options below at 128 px for 9 epochs, with every seed (of
weights, order and augmentation; the split is fixed). The table has the Dice of the validation images at the threshold
and smallest component that `bustseg validate` recommends for them, which favours all variants equally, averaged over
seeds; and the difference from `base` with a 95 % bootstrap interval over images, the same images for both.
"""

from __future__ import annotations

import argparse

import mlflow
import numpy as np

from bustseg.statistics import Bootstrap
from studies.flagship import CONFIG, bustseg, find_run

SHORT = [
    *("--data.image_size", "128", "--model.train_scale", "null", "--trainer.max_epochs", "9"),
    *("--model.lr_scheduler.init_args.T_max", "9", "--early_stopping.patience", "30"),
    # the earlier recipe: the last variants and the log in docs/results explain the change
    *("--model.optimizer.init_args.lr", "6e-4", "--checkpoint.monitor", "val/dice_empty_one"),
    *("--checkpoint.mode", "max", "--data.batch_size", "16", "--tracking.experiment", "recipe"),
    *("--trainer.callbacks", "[{class_path: bustseg.callbacks.MovingAverage, init_args: {decay: 0.99}}]"),
]
NETWORK = "--model.network.init_args"
VARIANTS = {
    # with the presence gate, which the recipe had when these were run
    "base": [f"{NETWORK}.presence", "true"],
    "modest-augmentation": [f"{NETWORK}.presence", "true", "--data.augmentation", "ultrasound"],
    "attention-none": [f"{NETWORK}.presence", "true", f"{NETWORK}.attention", "none"],
    "presence-off": [f"{NETWORK}.presence", "false"],
    "presence-off-empty-0.01": [f"{NETWORK}.presence", "false", "--model.loss.init_args.empty_smooth", "0.01"],
    "presence-off-lr-0.0015": [f"{NETWORK}.presence", "false", "--model.optimizer.init_args.lr", "1.5e-3"],
}


def checkpoint(client: mlflow.MlflowClient, name: str, seed: int, root: list[str]) -> str:
    """Run id of a variant with a seed, which is trained now if missing."""
    run_name = f"{name}, seed {seed}"
    if find_run(client, "recipe", run_name) is None:
        bustseg(
            *("fit", "--config", str(CONFIG), *SHORT, *VARIANTS[name], *root),
            *("--seed_everything", str(seed), "--tracking.run_name", run_name),
        )
    return find_run(client, "recipe", run_name).info.run_id


def scores(run_id: str, root: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Dice of each validation image at the best point, and which images have a lesion."""
    from bustseg.callbacks import OperatingPointSearch
    from bustseg.experiment import scored_experiment
    from bustseg.metrics.operating import MIN_AREAS, THRESHOLDS
    from bustseg.training import run_validate

    run = run_validate(*scored_experiment("validate", run_id, root))
    search = next(one for one in run.trainer.callbacks if isinstance(one, OperatingPointSearch))  # type: ignore[attr-defined]
    best = search.points.recommended()
    assert best is not None
    dice, lesion = search.points.per_image()
    place = THRESHOLDS.index(best.threshold) * len(MIN_AREAS) + MIN_AREAS.index(best.min_area)
    return dice[:, place].numpy(), lesion.numpy()


def with_interval(values: np.ndarray, resamples: Bootstrap) -> str:
    """Mean with its 95 % percentile interval over images, ignoring nan."""
    found = resamples.mean(values[:, None]).interval(method="percentile")
    return f"{found.estimate[0]:+.4f} [{found.low[0]:+.4f}, {found.high[0]:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="BUSI (default: BUSI_ROOT)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    root = ["--data.root", args.root] if args.root else []
    client = mlflow.MlflowClient("sqlite:///mlruns/mlflow.db")
    found = {}
    for name in dict.fromkeys(["base", *args.only]):
        each = [scores(checkpoint(client, name, seed, root), root) for seed in args.seeds]
        found[name] = (np.mean([dice for dice, _ in each], axis=0), each[0][1])
    base, lesion = found["base"]
    resamples = Bootstrap(len(base))
    print(f"| variant, seeds {' '.join(map(str, args.seeds))} | empty_one | against base | lesion | against base |")
    print("| --- | --- | --- | --- | --- |")
    for name, (dice, _) in found.items():
        cells = [name]
        for counted in (np.ones(len(base), bool), lesion):
            cells.append(f"{dice[counted].mean():.4f}")
            cells.append("" if name == "base" else with_interval(np.where(counted, dice - base, np.nan), resamples))
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
