"""Time saved by caching the features of frozen encoders, as a ratio of processor time in one process.

python benchmarks/frozen_features.py --config configs/paper/model_05.yaml --size 128 --epochs 3
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.data.phantom import write_phantoms
from bustseg.experiment import Experiment
from bustseg.training import prepare


class EpochTimes(Callback):
    """Processor seconds of each epoch, validation included; other load does not affect them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(time.process_time() - self._started)


def epochs(args: list[str], max_gib: float) -> list[float]:
    times = EpochTimes()
    run = prepare(Experiment.parse([*args, "--frozen_features.max_gib", str(max_gib)]), callbacks=[times])
    run.trainer.fit(run.task, datamodule=run.data)
    return times.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/paper/model_05.yaml")
    parser.add_argument("--size", type=int, default=128, help="of the images")
    parser.add_argument("--images", type=int, default=40, help="phantoms")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BUSTSEG_CACHE"] = folder
        data = write_phantoms(Path(folder) / "phantoms", n=options.images, seed=0)
        args = ["--config", options.config, "--model.network.init_args.weights", "none", "--trainer.logger", "false"]
        args += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", folder]
        args += ["--data.root", str(data), "--data.image_size", str(options.size)]
        args += ["--trainer.max_epochs", str(options.epochs)]
        kept, computed = epochs(args, 2.0), epochs(args, 0.0)
    for name, seconds in (("kept", kept), ("computed anew", computed)):
        print(f"{name:14}", "  ".join(f"{own:.2f}" for own in seconds), "processor seconds per epoch")
    later, again = sum(kept[1:]) / len(kept[1:]), sum(computed[1:]) / len(computed[1:])
    first, other = kept[0], computed[0]
    print(f"first epoch {other / first:.1f} times as fast, each further one {again / later:.1f} times")
    fifty = (other + 49 * again) / (first + 49 * later)
    print(f"a training of 50 epochs {fifty:.1f} times as fast")


if __name__ == "__main__":
    main()
