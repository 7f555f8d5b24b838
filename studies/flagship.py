"""The flagship on each split: fit, choose threshold and smallest component on validation, look at the test once.

    python -m studies.flagship --root $BUSI_ROOT --curated_list curated_busi_v1.csv [--only "lesion 0" grouped ...]

With ``--encoders lite2 lite1 lite0`` every split is trained with each of them, and the networks form an ensemble.
Every step goes through the command line. Finished runs are not trained again, and tested runs are not tested again, so
that the test set is used only once. Prints a Markdown table: the validation images, with the chosen point, and the test
images, with it.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "flagship" / "grouped.yaml"
COLUMNS = {
    "dice_lesion": "Dice lesion",
    "dice_empty_one": "empty_one",
    "dice_paper": "paper",
    "dice_pooled": "pooled",
    "false_positive_rate_normal": "FP on normals",
    "missed_lesion_rate": "missed",
    "auc_pixel": "AUC",
}


def variants(curated_list: str | None) -> dict[str, list[str]]:
    """Options of each training by its name."""
    named = {f"lesion {seed}": ["--data.split", "lesion", "--data.split_seed", seed] for seed in "012"}
    named |= {"paper": ["--data.split", "paper"], "grouped": []}
    if curated_list:
        named["curated"] = ["--data.split", "curated", "--data.curated_list", curated_list]
    return named


def bustseg(*args: str) -> str:
    """Run a command, show its output, and return its standard output."""
    print("$ bustseg", *args, file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "bustseg.cli", *args], stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, file=sys.stderr, flush=True)
    return done.stdout


def find_run(client: mlflow.MlflowClient, experiment: str, name: str) -> Any:
    """The newest finished run with this name; None when there is none."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    wanted = f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'"
    return next(iter(client.search_runs([found.experiment_id], wanted, max_results=1)), None)


def measure(client: mlflow.MlflowClient, name: str, options: list[str], encoders: list[str]) -> list[dict[str, Any]]:
    """Train and test what is missing, and choose the operating point; returns the rows of the table."""
    run_name = f"flagship {name}, {'+'.join(encoders)}"
    runs = [train(client, f"flagship {name}, {encoder}", encoder, options) for encoder in encoders]
    model, named = runs[0], {"validate": run_name, "test": run_name}
    if len(runs) > 1:
        # an ensemble's scores belong to none of its members' runs
        named = {verb: f"{run_name}, {verb}" for verb in named}
        model = f"mlruns/{run_name}.ckpt".replace(", ", "-").replace(" ", "-")
        if not Path(model).exists():
            bustseg("ensemble", *runs, "--out", model)
    run = find_run(client, "flagship", named["validate"])
    if run is None or "chosen.dice_lesion" not in run.data.tags:
        bustseg("validate", "--ckpt_path", model, "--tracking.run_name", named["validate"])
        run = find_run(client, "flagship", named["validate"])
    tags = run.data.tags
    point = [tags["chosen.threshold"], tags["chosen.min_area"]]
    run = find_run(client, "flagship", named["test"])
    if run is None or "test/dice_lesion" not in run.data.metrics:
        chosen = ["--model.threshold", point[0], "--model.postprocess.min_area_px_relative", point[1]]
        subsets = ["--report.subsets", "[]"]
        bustseg("test", "--ckpt_path", model, "--tracking.run_name", named["test"], *chosen, *subsets)
        run = find_run(client, "flagship", named["test"])
    validation = {key: float(tags.get(f"chosen.{key}", "nan")) for key in COLUMNS}
    test = {key: run.data.metrics.get(f"test/{key}", math.nan) for key in COLUMNS}
    return [
        {"training": name, "images": subset, "point": ", ".join(point), **scores}
        for subset, scores in (("val", validation), ("test", test))
    ]


def train(client: mlflow.MlflowClient, run_name: str, encoder: str, options: list[str]) -> str:
    """Run id of a finished training with this name, which is trained now if missing."""
    if find_run(client, "flagship", run_name) is None:
        network = ["--model.network.init_args.encoders", f"[timm/tf_efficientnet_{encoder}]"]
        bustseg("fit", "--config", str(CONFIG), *options, *network, "--tracking.run_name", run_name)
    return find_run(client, "flagship", run_name).info.run_id


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, and the mean and spread over the three seeds of the lesion split."""
    head = ["training", "images", "threshold, smallest component", *COLUMNS.values()]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in rows:
        cells = ["-" if math.isnan(row[key]) else f"{row[key]:.4f}" for key in COLUMNS]
        lines.append("| " + " | ".join([row["training"], row["images"], row["point"], *cells]) + " |")
    seeds = [row["dice_lesion"] for row in rows if row["training"].startswith("lesion") and row["images"] == "test"]
    if len(seeds) > 1:
        mean = sum(seeds) / len(seeds)
        spread = math.sqrt(sum((value - mean) ** 2 for value in seeds) / (len(seeds) - 1))
        lines += ["", f"Test Dice of the lesion split over {len(seeds)} seeds: {mean:.4f} ± {spread:.4f}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="BUSI (default: BUSI_ROOT)")
    parser.add_argument("--curated_list", help="list of the curated split; without it that split is left out")
    parser.add_argument("--only", nargs="+", help="these trainings")
    parser.add_argument(
        "--encoders",
        nargs="+",
        choices=["lite0", "lite1", "lite2"],
        default=["lite2"],
        help="one training per split with each, joined by bustseg ensemble",
    )
    args = parser.parse_args()
    named = variants(args.curated_list)
    client = mlflow.MlflowClient("sqlite:///mlruns/mlflow.db")
    rows: list[dict[str, Any]] = []
    for name in args.only or named:
        root = ["--data.root", args.root] if args.root else []
        rows += measure(client, name, [*named[name], *root], args.encoders)
    print(markdown(rows))


if __name__ == "__main__":
    main()
