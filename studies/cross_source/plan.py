"""Write the recipes of the study as files for `studies.cross_source.work`, and evaluate their results.

    python -m studies.cross_source.plan design QUEUE          # 16 recipes for each source that is left out
    python -m studies.cross_source.plan effects OUT           # the effect of each factor
    python -m studies.cross_source.plan trainings OUT         # a row per training and unseen source
    python -m studies.cross_source.plan presence OUT          # how well presence holds on sources left out
    python -m studies.cross_source.plan matrix QUEUE --on zoom looks ...       # every subset of sources, one recipe

The design is a two-level factorial: the columns of a Hadamard matrix of order 16, assigned differently for each
left-out source, so that every effect is the difference of the means of 24 trainings with a factor and 24 without, and
no two factors are confounded in the same way in all three.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import hadamard

from bustseg.data.splits import make_split
from bustseg.presence import calibration_error, fit_presence
from bustseg.statistics import Bootstrap
from studies.cross_source.data import SOURCES, add_roots, table_of
from studies.cross_source.presence import held_out
from studies.cross_source.recipe import FACTORS, Recipe, leave_one_out
from studies.cross_source.work import auc

RUNS = 16
ENCODERS = ("lite2", "lite1", "lite0")


def design(steps: int = 1600) -> list[Recipe]:
    """Recipes of the factorial, for each source that is left out."""
    columns = hadamard(RUNS)[:, 1:] > 0
    recipes = []
    for number, left_out in enumerate(SOURCES):
        rng = np.random.default_rng(number)
        dealt = columns[:, rng.permutation(RUNS - 1)[: len(FACTORS)]] ^ (rng.random(len(FACTORS)) < 0.5)
        for run, levels in enumerate(dealt):
            on = [name for name, level in zip(FACTORS, levels, strict=True) if level]
            recipes.append(Recipe(f"design-{left_out}-{run:02d}", leave_one_out(left_out), on, steps=steps, seed=run))
    # interleaved, so that an interrupted study is balanced
    return [recipes[source * RUNS + run] for run in range(RUNS) for source in range(len(SOURCES))]


def matrix(on: list[str], steps: int) -> list[Recipe]:
    """One recipe on each pair of sources with three encoders, and on each single source with one."""
    pairs = [_final("matrix", leave_one_out(name), on, encoder, steps) for encoder in ENCODERS for name in SOURCES]
    return [*pairs, *(_final("matrix", [name], on, "lite2", steps // 2) for name in SOURCES)]


def box(on: list[str], steps: int, teacher: str | None = None) -> list[Recipe]:
    """Teachers on the training parts of all sources; or, with a teacher, two students of it."""
    sources = list(SOURCES)
    if teacher is None:
        teachers = [("lite2", 1), ("lite1", 2), ("lite0", 3), ("lite2", 4)]
        return [_final("box", sources, on, encoder, steps, seed, all_parts=False) for encoder, seed in teachers]
    return [_final("student", sources, on, "lite2", steps, seed, all_parts=False, teacher=teacher) for seed in (5, 6)]


def busi_alone(on: list[str], steps: int, splits: Path) -> list[Recipe]:
    """BUSI's own splits: ``lesion`` with three seeds, and ``paper`` without and with the further sources."""
    recipes = []
    for encoder in ENCODERS:
        for name in ("lesion0", "lesion1", "lesion2", "paper"):
            split = str(splits / f"{name}.csv")
            recipes.append(_final(name, ["busi"], on, encoder, steps, split=split))
        everything = str(splits / "paper_all.csv")
        recipes.append(_final("paper_all", list(SOURCES), on, encoder, 2 * steps, split=everything))
    return recipes


def _final(name: str, train: list[str], on: list[str], encoder: str, steps: int, seed: int = 0, **more: Any) -> Recipe:
    label = f"{name}-{'+'.join(train)}-{encoder}" + (f"-{seed}" if seed else "")
    return Recipe(label, train, on, encoder=encoder, steps=steps, seed=seed, maps=True, **more)


def write_splits(roots: dict[str, Path], folder: Path) -> None:
    """The splits of :func:`busi_alone`, from the data sets in their own layouts.

    ``paper_all`` adds all of the other sources' training and test images to the training images of ``paper``, and
    their validation images to its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = SOURCES["busi"]().read(roots["busi"])

    def own(scheme: str, seed: int) -> pd.DataFrame:
        split = make_split(samples, scheme, seed)[["image", "subset"]]
        return split.assign(image="busi/" + split["image"])

    for seed in range(3):
        own("lesion", seed).to_csv(folder / f"lesion{seed}.csv", index=False)
    paper = own("paper", 0)
    paper.to_csv(folder / "paper.csv", index=False)
    others = []
    for name in leave_one_out("busi"):
        table = table_of(name, roots[name])[1]
        others.append(pd.DataFrame({"image": name + "/" + table["image"], "subset": table["subset"]}))
    joined = pd.concat(others)
    joined["subset"] = joined["subset"].replace("test", "train")
    pd.concat([paper, joined]).to_csv(folder / "paper_all.csv", index=False)


def write(recipes: list[Recipe], queue: Path, priority: int) -> None:
    """Write one file per recipe; workers process them in the order of their names."""
    queue.mkdir(parents=True, exist_ok=True)
    for number, recipe in enumerate(recipes):
        partial = queue / f"{priority}-{number:03d}-{recipe.name}.part"
        partial.write_text(json.dumps(recipe.to_dict()))
        partial.rename(partial.with_suffix(".json"))


def scores(out: Path, pattern: str = "design-*.csv") -> pd.DataFrame:
    """A row per training: its factors, and its scores on the unseen source."""
    rows = []
    for path in sorted(out.glob(pattern)):
        recipe = json.loads(path.with_suffix(".json").read_text())
        table = pd.read_csv(path)
        table = table[table["subset"] == "left out"]
        lesion = table["area"] > 0
        row = {"name": recipe["name"], "left_out": table["image"].iloc[0].partition("/")[0]}
        row |= {name: name in recipe["on"] for name in FACTORS}
        for threshold in ("0.3", "0.4", "0.5"):
            row[f"dice_{threshold}"] = table.loc[lesion, f"dice_{threshold}"].mean()
        row["missed"] = (table.loc[lesion, "area_0.5"] == 0).mean()
        if not lesion.all():
            row["false_positives"] = (table.loc[~lesion, "area_0.5"] > 0).mean()
            for peak in ("max", "peak_05", "peak_2", "peak_10", "peak_2_lower"):
                row[f"auc_{peak}"] = auc(table[peak].to_numpy(), lesion.to_numpy())
        rows.append(row)
    return pd.DataFrame(rows)


def trainings(out: Path) -> pd.DataFrame:
    """A row per training and unseen source, with 95 % bootstrap intervals over the images."""
    rows = []
    for path in sorted(out.glob("*.csv")):
        recipe = json.loads(path.with_suffix(".json").read_text())
        table = pd.read_csv(path)
        table["source"] = table["image"].str.partition("/")[0]
        for source, own in table[table["subset"].isin(["left out", "test"])].groupby("source"):
            lesion = (own["area"] > 0).to_numpy()
            dice = np.where(lesion, own["dice_0.4"], np.nan)
            found = Bootstrap(len(own), resamples=2000).mean(dice[:, None]).interval()
            row = {
                "trained on": "+".join(recipe["train"]),
                "tested on": source,
                "images": own["subset"].iloc[0] + f", {len(own)}",
                "encoder": recipe["encoder"],
                "steps x batch": f"{recipe['steps']} x {recipe['batch']}",
                "Dice lesion": f"{found.estimate[0]:.3f} [{found.low[0]:.3f}, {found.high[0]:.3f}]",
                "missed": f"{(own.loc[lesion, 'area_0.4'] == 0).mean():.3f}",
                "FP on normals": "-" if lesion.all() else f"{(own.loc[~lesion, 'area_0.4'] > 0).mean():.3f}",
                "AUC of presence": "-" if lesion.all() else f"{auc(own['peak_2'].to_numpy(), lesion):.3f}",
                "recipe": " ".join(recipe["on"]),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def presence(out: Path) -> pd.DataFrame:
    """A row per source left out (images of both kinds): means over trainings of AUC and of calibration error (ECE).

    The AUC is that of the evidence (the highest 0.2 % of the logits), of the highest logit and of the area of the mask.
    Presence is fitted on the training's own validation images, or on the source's images, each fold's left out.
    """
    rows = []
    for path in sorted(out.glob("*.csv")):
        table = pd.read_csv(path).rename(columns={"peak_2": "evidence"})
        table["source"] = table["image"].str.partition("/")[0]
        table["lesion"], table["group"] = table["area"] > 0, table["image"]
        val = table[table["subset"] == "val"]
        for source, own in table[table["subset"] == "left out"].groupby("source"):
            lesion = own["lesion"].to_numpy()
            if lesion.all():
                continue
            row = {"left out": source, "trainings": 1, "calibrated": 0}
            for title, column in {"evidence": "evidence", "highest": "max", "area": "area_0.5"}.items():
                row[f"AUC of {title}"] = auc(own[column].to_numpy(), lesion)
            fitted = fit_presence(val["evidence"].to_numpy(), val["lesion"].to_numpy())
            if fitted is not None:
                row["calibrated"] = 1
                probability = fitted(own["evidence"].to_numpy())
                row["ECE, other sources' fit"] = float(calibration_error(probability, lesion)[0])
            crossed = held_out(own, str(source), pd.Series(True, index=own.index))
            row["ECE, its own fit"] = float(calibration_error(crossed, lesion)[0])
            rows.append(row)
    table = pd.DataFrame(rows)
    counts = ["trainings", "calibrated"]
    grouped = table.groupby("left out")
    means = grouped.mean().drop(columns=counts)
    means.loc["all trainings"] = table.drop(columns=["left out", *counts]).mean()
    totals = grouped[counts].sum()
    totals.loc["all trainings"] = table[counts].sum()
    return totals.join(means.round(3)).rename_axis("left out").reset_index()


def effects(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Effect of each factor on each column: mean with it minus mean without, each source with equal weight, and its
    error.

    The standard error is that of the residuals of the additive model.
    """
    rows = []
    for column in columns:
        own = table.dropna(subset=[column])
        levels = own[list(FACTORS)].to_numpy(float) * 2 - 1
        sources = pd.get_dummies(own["left_out"]).to_numpy(float)
        model = np.hstack([sources, levels])
        coefficients, *_ = np.linalg.lstsq(model, own[column].to_numpy(float), rcond=None)
        residual = own[column].to_numpy(float) - model @ coefficients
        free = max(len(own) - np.linalg.matrix_rank(model), 1)
        error = 2 * np.sqrt((residual**2).sum() / free * np.diag(np.linalg.pinv(model.T @ model)))
        for name, value, spread in zip(
            FACTORS, 2 * coefficients[sources.shape[1] :], error[sources.shape[1] :], strict=True
        ):
            rows.append({"factor": name, "of": column, "effect": value, "se": spread})
    return pd.DataFrame(rows)


def print_effects(out: Path) -> None:
    """Means by source left out, and each factor's effect in points with its standard error."""
    table = scores(out)
    shown = ["dice_0.4", "auc_peak_2", "false_positives", "missed"]
    print(len(table), "trainings; means of", table.groupby("left_out")[shown].mean().round(3).to_string())
    columns = ["dice_0.3", "dice_0.4", "dice_0.5", "missed", "false_positives"]
    columns += ["auc_peak_05", "auc_peak_2", "auc_peak_10"]
    found = effects(table, columns)
    found["text"] = [f"{100 * e:+.1f}±{100 * s:.1f}" for e, s in zip(found["effect"], found["se"], strict=True)]
    wide = found.pivot_table(index="factor", columns="of", values="text", aggfunc="first")
    print(wide[columns].loc[list(FACTORS)].to_string())
    for left_out, own in table.groupby("left_out"):
        each = effects(own, ["dice_0.4"] + ([] if left_out == "bus-bra" else ["auc_peak_2"]))
        print(left_out, " ".join(f"{row.of[:3]} {row.factor} {100 * row.effect:+.1f};" for row in each.itertuples()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "verb", choices=["design", "effects", "trainings", "presence", "matrix", "box", "student", "busi", "splits"]
    )
    parser.add_argument("folder", type=Path, help="of the recipes; for `effects` of what they gave")
    parser.add_argument("--on", nargs="*", default=[], choices=list(FACTORS))
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--priority", type=int, default=2)
    parser.add_argument("--teacher", default="teachers.ckpt")
    parser.add_argument("--splits", type=Path, default=Path("splits"))
    add_roots(parser)
    args = parser.parse_args()
    recipes = {
        "design": lambda: design(args.steps),
        "matrix": lambda: matrix(args.on, args.steps),
        "box": lambda: box(args.on, args.steps),
        "student": lambda: box(args.on, args.steps, args.teacher),
        "busi": lambda: busi_alone(args.on, args.steps, args.splits),
    }
    if args.verb == "effects":
        print_effects(args.folder)
    elif args.verb == "trainings":
        print(trainings(args.folder).to_markdown(index=False))
    elif args.verb == "presence":
        print(presence(args.folder).to_markdown(index=False))
    elif args.verb == "splits":
        write_splits({name: getattr(args, name.replace("-", "_")) for name in SOURCES}, args.folder)
    else:
        write(recipes[args.verb](), args.folder, args.priority)


if __name__ == "__main__":
    main()
