"""Kill a sweep with SIGKILL at random moments, resume it each time, and check the state in Optuna and MLflow.

Half of the moments are during the start of the command, the others in or between its trials. At the end every
point of the grid must be COMPLETE exactly once, and nothing may be RUNNING.

    python benchmarks/sweep_kill.py --kills 10 --seed 0
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


class Sweep:
    """One start of the command, with the time of every finished trial."""

    def __init__(self, options: list[str], folder: Path) -> None:
        command = [sys.executable, "-m", "bustseg.cli", "sweep", *options]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        self.start = time.perf_counter()
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.begun: float | None = None
        self.finished = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("study "):
                self.begun = time.perf_counter() - self.start
            self.finished += line.startswith("trial ")

    def kill_after(self, trials: int, seconds: float) -> bool:
        """Kill it ``seconds`` after its ``trials``-th finished trial; False if it ended before."""
        while self.finished < trials and self.process.poll() is None:
            time.sleep(0.02)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return True
        return False


def check(folder: Path, study_name: str, points: int) -> dict[str, object]:
    """The state in Optuna and MLflow, after checking that it is right.

    Raises:
        AssertionError: a point is missing or was finished twice, or something is left RUNNING
    """
    import mlflow
    import optuna

    study = optuna.load_study(study_name=study_name, storage=f"sqlite:///{folder}/mlruns/optuna.db")
    states = collections.Counter(trial.state.name for trial in study.trials)
    complete = [json.dumps(trial.params, sort_keys=True) for trial in study.trials if trial.state.name == "COMPLETE"]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    status = collections.Counter(
        f"{'trial' if 'mlflow.parentRunId' in run.data.tags else 'parent'} {run.info.status}" for run in runs
    )
    values = {run.data.tags.get("sweep.trial"): run.data.metrics.get("sweep/objective") for run in runs}
    found = {"optuna": dict(states), "distinct points": len(set(complete)), "mlflow": dict(status)}
    assert len(complete) == len(set(complete)) == points, found
    assert set(states) <= {"COMPLETE", "FAIL"}, found
    assert status["parent FINISHED"] == 1 and status["trial FINISHED"] == points, found  # noqa: PT018
    assert set(status) <= {"parent FINISHED", "trial FINISHED", "trial KILLED"}, found
    for trial in study.trials:
        assert trial.state.name != "COMPLETE" or values[str(trial.number)] == trial.value, trial
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", default=str(REPOSITORY / "benchmarks" / "sweeps" / "tiny_grid.yaml"))
    arguments.add_argument("--points", type=int, default=36, help="points of the config's grid")
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--workers", type=int, default=1)
    arguments.add_argument("--folder", help="working folder (default: a temporary folder)")
    args = arguments.parse_args()
    from bustseg.data.phantom import write_phantoms

    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        data = write_phantoms(folder / "phantoms", n=30, seed=1, shape=(96, 128))
        options = ["--config", args.config, "--data.root", str(data), "--workers", str(args.workers), "--resume"]
        begin, trial = 20.0, 5.0  # seconds, updated with measured values
        killed = 0
        while killed < args.kills:
            sweep = Sweep(options, folder)
            trials = draw.choice([0, 0, 1, 2, 3, 4])
            span = begin if trials == 0 else trial
            if not sweep.kill_after(trials, draw.uniform(0, 1.5 * span)):
                print("the sweep ended before the last kill", flush=True)
                break
            killed += 1
            lived = time.perf_counter() - sweep.start
            if sweep.begun is not None:
                begin = sweep.begun
            if sweep.finished and sweep.begun is not None:
                trial = (lived - sweep.begun) / (sweep.finished + 0.5)
            print(f"kill {killed}: after {lived:.1f} s and {sweep.finished} trials", flush=True)
        last = Sweep(options, folder)
        code = last.process.wait()
        print(f"last resume ended with {code} after {last.finished} trials", flush=True)
        print(json.dumps(check(folder, Path(args.config).stem, args.points), indent=1))


if __name__ == "__main__":
    main()
