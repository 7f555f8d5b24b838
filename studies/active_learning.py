"""The benefit of correcting images in the order of their expected gain, compared with a random order.

    python -m studies.active_learning --config configs/baselines/unet_lite0.yaml --out active --seeds 0 1 2
    python -m studies.active_learning ... --data.image_size 128 --trainer.max_epochs 10     # any option of fit

Simulates an annotator whose corrections are the data set's own masks. Initially `--start` of the training images are
corrected, drawn with the seed and equal for both orders. In each round a network is trained from scratch on the
corrected images, its temperature is fitted on the validation images, and `--step` further images are corrected: those
with the lowest confidence (`bustseg.deploy.output.worth_of_a_look`), or random ones. Every network is scored on the
same test images at their own size, at the network's own threshold.

`--out` gets a file for each training, so that an interrupted study continues where it stopped; `curve.csv`, `curve.md`
with intervals over seeds and test images together, and `curve.png`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bustseg.data.sources import BUSI, Sample
from bustseg.data.splits import make_split
from bustseg.deploy.confidence import Calibration, fit_temperature, mask_confidence
from bustseg.deploy.output import worth_of_a_look
from bustseg.deploy.predictor import Predictor
from bustseg.errors import UserError
from bustseg.whole import write_whole
from studies.scores import dice

ORDERS = ("worth", "random")


def next_images(
    order: str, pool: Sequence[str], worth: dict[str, float], step: int, seed: int, number: int
) -> list[str]:
    """The images to correct next.

    Args:
        order: one of :data:`ORDERS`
        pool: ids that are not corrected yet
        worth: expected gain from correcting each of them
        step: number of images
        seed, number: of the study and of the round, which decide a random order
    """
    if order == "random":
        drawn = np.random.default_rng((seed, number, 1)).permutation(len(pool))
        return [pool[k] for k in drawn[:step]]
    return sorted(pool, key=lambda name: -worth[name])[:step]


class Study:
    """One study: data, split, and its folder.

    Args:
        config: of `bustseg fit`
        root: BUSI's folder, or phantoms in its layout
        out: folder of the results
        options: further options of fit
        split_seed: of the split `paper`
    """

    def __init__(self, config: Path, root: Path, out: Path, options: Sequence[str], split_seed: int = 0) -> None:
        self.config, self.root, self.out, self.options = config, root, out, list(options)
        self.samples = {sample.id: sample for sample in BUSI().read(root)}
        split = make_split(list(self.samples.values()), "paper", split_seed)
        self.subsets = {name: list(split.loc[split["subset"] == name, "image"]) for name in ("train", "val", "test")}
        out.mkdir(parents=True, exist_ok=True)

    def first(self, start: int, seed: int) -> list[str]:
        """The images that are corrected initially; some must have a lesion, or there would be nothing to learn."""
        train = self.subsets["train"]
        if not 4 <= start < len(train):
            raise UserError(f"--start is {start}: give 4 to {len(train) - 1}, fewer than the training images")
        drawn = np.random.default_rng((seed, 0)).permutation(len(train))[:start]
        return [train[k] for k in sorted(drawn)]

    def round(self, order: str, seed: int, number: int, corrected: list[str]) -> dict[str, Any]:
        """Train on the corrected images, and score the test images and all others."""
        # both orders begin with the same training
        path = self.out / f"{order if number else 'start'}-seed{seed}-round{number}.json"
        if path.is_file():
            done = json.loads(path.read_text())
            if done["corrected"] != corrected:
                raise UserError(f"{path} belongs to another study: name another --out")
            return done
        predictor = Predictor(self._train(order, seed, number, corrected))
        temperature = fit_temperature(
            (predictor(sample.read_image()).probability, self._truth(sample)) for sample in self._all("val")
        )
        calibration = Calibration(temperature)
        scores = {
            sample.id: dice(predictor(sample.read_image()).mask, self._truth(sample)) for sample in self._all("test")
        }
        pool = [name for name in self.subsets["train"] if name not in set(corrected)]
        worth = {}
        for name in pool:
            found = predictor(self.samples[name].read_image())
            worth[name] = worth_of_a_look(mask_confidence(found.mask, calibration(found.probability)))
        made = {"corrected": corrected, "temperature": temperature, "dice": scores, "worth": worth}
        write_whole(path, json.dumps(made, indent=1).encode())
        return made

    def _all(self, subset: str) -> Iterator[Sample]:
        return (self.samples[name] for name in self.subsets[subset])

    @staticmethod
    def _truth(sample: Sample) -> np.ndarray:
        image = sample.read_image()
        return sample.read_mask((image.shape[0], image.shape[1])).astype(np.uint8)

    def _train(self, order: str, seed: int, number: int, corrected: list[str]) -> str:
        from bustseg.cli import main

        split = dict.fromkeys(corrected, "train")
        split |= {name: subset for subset in ("val", "test") for name in self.subsets[subset]}
        file = self.out / "split.csv"
        pd.DataFrame({"image": split.keys(), "subset": split.values()}).to_csv(file, index=False)
        named = ["--tracking.run_name", f"{order}, seed {seed}, {len(corrected)} corrected"]
        data = ["--data.root", str(self.root), "--data.split", str(file.resolve())]
        with store(self.out):
            code = main(
                ["fit", "--config", str(self.config), *data, "--seed_everything", str(seed), *named, *self.options]
            )
            if code:
                raise UserError("a training of the study failed; see its message above")
            from bustseg.runs.resolve import resolve_checkpoint

            return str(resolve_checkpoint("latest"))


@contextmanager
def store(folder: Path) -> Iterator[None]:
    """Use a separate store for the study, so that the newest run is always its own."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def run(study: Study, start: int, step: int, rounds: int, seeds: Sequence[int]) -> pd.DataFrame:
    """All trainings: a row for each test image of each of them.

    Returns:
        columns ``order, seed, corrected, image, dice``
    """
    rows = []
    for seed in seeds:
        for order in ORDERS:
            corrected = study.first(start, seed)
            for number in range(rounds + 1):
                made = study.round(order, seed, number, corrected)
                rows += [
                    {"order": order, "seed": seed, "corrected": len(corrected), "image": name, "dice": score}
                    for name, score in made["dice"].items()
                ]
                pool = [name for name in study.subsets["train"] if name not in set(corrected)]
                corrected = corrected + next_images(order, pool, made["worth"], step, seed, number)
                if len(corrected) == len(study.subsets["train"]):
                    break
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Mean Dice by order and number of corrected images, and the difference of the orders, with 95 % intervals.

    Seeds and test images are drawn together, with replacement; both orders get the same draws.
    """
    rng = np.random.default_rng(0)
    found = []
    for corrected, part in rows.groupby("corrected"):
        tables = {
            order: own.pivot_table(index="seed", columns="image", values="dice").to_numpy()
            for order, own in part.groupby("order")
        }
        seeds, images = tables["worth"].shape
        drawn_seeds = rng.integers(0, seeds, (resamples, seeds))
        drawn_images = rng.integers(0, images, (resamples, images))
        draws = list(zip(drawn_seeds, drawn_images, strict=True))
        means = {order: np.array([table[np.ix_(*draw)].mean() for draw in draws]) for order, table in tables.items()}
        row: dict[str, Any] = {"corrected": corrected, "seeds": seeds}
        values = {**means, "difference": means["worth"] - means["random"]}
        estimates = {order: float(table.mean()) for order, table in tables.items()}
        estimates["difference"] = estimates["worth"] - estimates["random"]
        for name, drawn in values.items():
            low, high = np.percentile(drawn, [2.5, 97.5])
            row |= {name: estimates[name], f"{name}_low": float(low), f"{name}_high": float(high)}
        found.append(row)
    return pd.DataFrame(found)


def markdown(table: pd.DataFrame) -> str:
    """The summary as a table."""
    lines = ["| corrected images | in order of worth | in random order | difference |", "| --- | --- | --- | --- |"]
    for row in table.to_dict("records"):
        cells = [f"{row[n]:.4f} [{row[f'{n}_low']:.4f}, {row[f'{n}_high']:.4f}]" for n in ORDERS]
        gap = f"{row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
        lines.append(f"| {row['corrected']} | {cells[0]} | {cells[1]} | {gap} |")
    return "\n".join(lines) + "\n"


def plot(table: pd.DataFrame, path: Path) -> None:
    """Dice against the number of corrected images, with bands."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    for order, colour, words in (
        ("worth", "#0b5fa5", "in order of expected worth"),
        ("random", "#b5651d", "in random order"),
    ):
        axes.plot(table["corrected"], table[order], marker="o", color=colour, label=words)
        axes.fill_between(table["corrected"], table[f"{order}_low"], table[f"{order}_high"], color=colour, alpha=0.15)
    axes.set(xlabel="corrected images", ylabel="Dice of the test images (empty_one)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point; ``args`` as in ``sys.argv[1:]``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, required=True, help="of bustseg fit")
    parser.add_argument("--root", type=Path, help="BUSI (default: BUSI_ROOT)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--start", type=int, default=60, help="images that are corrected initially (default 60)")
    parser.add_argument("--step", type=int, default=60, help="images that each round adds (default 60)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the first training (default 5)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one study per seed (default 0)")
    known, options = parser.parse_known_args(args)
    root = known.root or BUSI().default_root()
    if root is None:
        raise SystemExit("no data: name --root, or set BUSI_ROOT")
    study = Study(known.config, Path(root), known.out, options)
    rows = run(study, known.start, known.step, known.rounds, known.seeds)
    table = summary(rows)
    table.to_csv(known.out / "curve.csv", index=False)
    (known.out / "curve.md").write_text(markdown(table))
    plot(table, known.out / "curve.png")
    print(markdown(table), end="")


if __name__ == "__main__":
    main()
