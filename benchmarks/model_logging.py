"""Cost of recording the MLflow model and the card in a fit: seconds, and bytes in a local store.

python benchmarks/model_logging.py --config configs/paper/model_01.yaml
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import torch

from bustseg.experiment import Experiment
from bustseg.runs import card
from bustseg.runs.checkpoint import build_task
from bustseg.runs.logged_model import link_metrics, log_model
from bustseg.runs.tracker import Tracker
from bustseg.task import RECORD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/paper/model_01.yaml")
    parser.add_argument("--epochs", type=int, default=50, help="number of epochs with metrics in the store")
    args = parser.parse_args()
    experiment = Experiment.read(args.config)
    config = {"model": experiment["model"], "data": experiment["data"]}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        checkpoint = Path(folder) / "best.ckpt"
        state = build_task(config["model"]).state_dict()
        torch.save({"state_dict": state, "epoch": args.epochs - 1, RECORD: {"config": config}}, checkpoint)
        tracker = Tracker(uri=f"sqlite:///{folder}/mlflow.db")
        for epoch in range(args.epochs):
            tracker.log_metrics({f"val/metric_{number}": 0.5 for number in range(30)} | {"epoch": epoch})
        tracker.set_tags({"best.epoch": args.epochs - 1})
        for attempt in ("first", "again"):
            begin = time.perf_counter()
            model_id = log_model(tracker.experiment, str(tracker.run_id), checkpoint)
            logged = time.perf_counter()
            link_metrics(tracker.experiment, str(tracker.run_id), model_id, "val/", args.epochs - 1)
            card.model_card(*card.read_run(tracker.experiment, str(tracker.run_id)))
            end = time.perf_counter()
            print(f"{attempt}: model {logged - begin:.2f} s, metrics beside it and card {end - logged:.2f} s")
        location = Path(tracker.experiment.get_logged_model(model_id).artifact_location.removeprefix("file://"))
        extra = sum(path.stat().st_size for path in location.rglob("*") if path.is_file() and path.name != "model.pt")
        shared = (location / "model.pt").samefile(checkpoint)
        print(f"checkpoint {checkpoint.stat().st_size:,} bytes; beside it {extra:,}; weights shared: {shared}")


if __name__ == "__main__":
    main()
