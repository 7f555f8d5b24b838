"""Overhead of bustseg: its epochs compared with those of a bare PyTorch loop over the same tensors.

Both train a copy of the same network in the same process, precision and memory format, an epoch in turn: training
steps, then the validation images. The bare loop does nothing else; bustseg's epoch includes Lightning, the loader, all
metrics, MLflow (sqlite) and both checkpoints.

    python benchmarks/bookkeeping.py --config configs/baselines/unet_lite0.yaml --data.augmentation none
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time

import lightning.pytorch as pl
import torch

from bustseg.experiment import Experiment
from bustseg.training import keep_freed_memory, prepare


class BareEpochs(pl.Callback):
    """Runs an epoch of the bare loop after each epoch of bustseg, and times both."""

    def __init__(self) -> None:
        self.bustseg: list[float] = []
        self.bare: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.train, self.val = list(data.loader("train", training=True)), list(data.val_dataloader())
        self.task = copy.deepcopy(task, {id(trainer): None})  # the copy has no trainer
        self.optimizer = self.task.optimizer(list(self.task.parameters()))
        self.context = trainer.precision_plugin.forward_context
        self.bare_epoch()  # both have a first epoch, in which memory is allocated
        self.bare.clear()
        self.start = time.perf_counter()

    def bare_epoch(self) -> None:
        start = time.perf_counter()
        task = self.task
        task.train()
        for batch in self.train:
            with self.context():
                loss = task.loss(task(batch["image"].to(task.device)), batch["mask"].to(task.device))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        task.eval()
        with torch.inference_mode():
            for batch in self.val:
                with self.context():
                    task.loss(task(batch["image"].to(task.device)).float(), batch["mask"].to(task.device))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.bare.append(time.perf_counter() - start)

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.current_epoch > 0:
            # bustseg's epoch ends here, after its checkpoints
            self.bustseg.append(time.perf_counter() - self.start)
            self.bare_epoch()
        self.start = time.perf_counter()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", default="configs/paper/model_01.yaml")
    arguments.add_argument("--root", default=os.environ.get("BUSI_ROOT"))
    arguments.add_argument("--epochs", type=int, default=3, help="measured epochs, after a warm-up epoch")
    args, rest = arguments.parse_known_args()
    keep_freed_memory()
    config = os.path.abspath(args.config)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        options = ["--config", config]
        options += ["--trainer.max_epochs", str(args.epochs + 2)]
        options += ["--data.root", args.root] if args.root else []
        bare = BareEpochs()
        run = prepare(Experiment.parse([*options, *rest]), callbacks=[bare])
        run.trainer.fit(run.task, datamodule=run.data)
        os.chdir("/")
    pairs = list(zip(bare.bustseg, bare.bare, strict=True))[1:]
    print("| epoch | bustseg, s | bare loop, s | overhead |")
    print("| --- | --- | --- | --- |")
    for number, (own, other) in enumerate(pairs, start=2):
        print(f"| {number} | {own:.2f} | {other:.2f} | {own / other - 1:+.1%} |")
    median = statistics.median(own / other - 1 for own, other in pairs)
    print(f"\nmedian overhead {median:+.1%} of an epoch ({run.trainer.strategy.root_device}, {run.trainer.precision})")


if __name__ == "__main__":
    main()
