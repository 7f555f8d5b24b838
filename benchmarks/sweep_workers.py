"""One worker compared with several on one Optuna storage: speed-up, repeated points, and the overhead of a trial beyond
its fit.

Makespan: from the first trial's start to the last one's end, not counting the start of the processes. Overhead: a
trial's time outside Lightning's fit (parsing, building the network, reading the data, MLflow and Optuna), except for
the first trial of each worker.

    python benchmarks/sweep_workers.py --storage postgresql://USER@127.0.0.1/DATABASE --workers 1 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


def run(folder: Path, storage: str, study: str, workers: int, n_trials: int, options: list[str]) -> None:
    """Run the first ``n_trials`` points of the tiny grid."""
    source = REPOSITORY / "benchmarks" / "sweeps" / "tiny_grid.yaml"
    content = yaml.safe_load(source.read_text())
    content |= {"config": str((source.parent / content["config"]).resolve()), "n_trials": n_trials}
    (folder / "grid.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "bustseg.cli", "sweep", "--config", "grid.yaml", "--workers", str(workers)]
    subprocess.run(
        [*command, "--storage", storage, "--study", study, "--data.root", "phantoms", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        stdout=sys.stderr,
    )


def measure(storage: str, study_name: str) -> dict[str, Any]:
    """Measurements from the study's trials."""
    import optuna

    from bustseg.sweep.study import storage_url

    url = storage_url(storage).render_as_string(hide_password=False)
    trials = optuna.load_study(study_name=study_name, storage=url).trials
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    start, end = min(trial.datetime_start for trial in done), max(trial.datetime_complete for trial in done)
    seen: set[int] = set()
    shares, beyond, fits = [], [], []
    for trial in done:
        pid, seconds = trial.user_attrs["owner"]["pid"], trial.duration.total_seconds()
        if pid in seen:  # not the first of its worker
            fits.append(trial.user_attrs["result"]["fit_seconds"])
            beyond.append(seconds - fits[-1])
            shares.append(beyond[-1] / seconds)
        seen.add(pid)
    return {
        "trials": len(trials),
        "complete": len(done),
        "distinct points": len({json.dumps(trial.params, sort_keys=True) for trial in done}),
        "processes": len(seen),
        "makespan": (end - start).total_seconds(),
        "fit": statistics.median(fits),
        "beyond": statistics.median(beyond),
        "overhead": statistics.median(shares),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--storage", default="sqlite:///mlruns/optuna.db")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 3])
    arguments.add_argument("--trials", type=int, default=12)
    arguments.add_argument("--epochs", type=int, default=1, help="epochs of each trial")
    arguments.add_argument("--long_epochs", type=int, default=0, help="measure the overhead of longer trials as well")
    arguments.add_argument("--long_trials", type=int, default=4)
    args = arguments.parse_args()
    from bustseg.data.phantom import write_phantoms
    from bustseg.sweep.workers import cores, threads_each

    stamp = f"{time.time():.0f}"
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        write_phantoms(folder / "phantoms", n=30, seed=1, shape=(96, 128))
        for workers in args.workers:
            name = f"workers-{workers}-{stamp}"
            run(folder, args.storage, name, workers, args.trials, ["--trainer.max_epochs", str(args.epochs)])
            rows.append((f"{workers} ({threads_each(workers)} threads each)", measure(args.storage, name)))
        if args.long_epochs:
            name = f"long-{stamp}"
            options = ["--trainer.max_epochs", str(args.long_epochs), "--early_stopping.patience", "1000"]
            run(folder, args.storage, name, 1, args.long_trials, options)
            rows.append((f"1, {args.long_epochs} epochs", measure(args.storage, name)))
        os.chdir("/")
    base = rows[0][1]["makespan"]
    print(f"{cores()} cores, {args.trials} trials, storage {args.storage.partition(':')[0]}\n")
    print("| workers | processes | trials | distinct points | makespan, s | speed-up | fit, s | beyond it, s | share |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for label, row in rows:
        speed = f"{base / row['makespan']:.2f}" if row["trials"] == rows[0][1]["trials"] else "-"
        print(
            f"| {label} | {row['processes']} | {row['complete']} | {row['distinct points']} | {row['makespan']:.1f} | "
            f"{speed} | {row['fit']:.2f} | {row['beyond']:.2f} | {row['overhead']:.1%} |"
        )


if __name__ == "__main__":
    main()
