"""Training throughput of a paper model: bustseg compared with a plain Lightning script, and the effect of each step.

The plain script is what a tutorial would write: PNG files decoded in the Dataset by two workers, NCHW, float32,
unfused Adam. Each step adds one of bustseg's defaults; the last (bustseg itself) adds fast depthwise gradients, memory
that is not returned to the system, fused Adam and batched gathering. Every variant trains the same network on the same
images in its own process; the variants take turns over several rounds, since machines drift, and the median of the
rounds counts.

    python benchmarks/train_throughput.py --root $BUSI_ROOT --rounds 3 --steps 8
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

from torch import nn

VARIANTS = {
    "plain": {},
    "+ cache": {"cache": True},
    "+ channels_last": {"cache": True, "channels_last": True},
    "+ bf16": {"cache": True, "channels_last": True, "bf16": True},
    "bustseg": {"bustseg": True},
    "bustseg, 1 thread": {"bustseg": True, "one_thread": True},
}


def run_variant(
    root: str, config: str, steps: int, warmup: int, batch_size: int, options: dict[str, bool]
) -> dict[str, float]:
    """Train ``warmup + steps`` batches and return images per second over the last ``steps``."""
    warnings.simplefilter("ignore")
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader, Dataset

    from bustseg.data.cache import decode
    from bustseg.data.datamodule import UltrasoundDataModule
    from bustseg.data.sources import BUSI
    from bustseg.data.splits import make_split
    from bustseg.experiment import Experiment, fast_precision
    from bustseg.framing import Framing
    from bustseg.runs.checkpoint import build_task
    from bustseg.task import IMAGENET_MEAN, IMAGENET_STD, SegmentationTask
    from bustseg.training import keep_freed_memory

    class Clock(pl.Callback):
        """Wall time from the end of the warm-up to the last step, the loader's time included."""

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step in (warmup, warmup + steps):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                setattr(self, "start" if trainer.global_step == warmup else "end", time.perf_counter())

    pl.seed_everything(0, verbose=False)
    network = build_task(Experiment.read(config)["model"]).network  # random weights: speed does not depend on them
    clock = Clock()
    common = {
        "max_steps": warmup + steps,
        "max_epochs": 100,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "callbacks": [clock],
    }
    if options.get("one_thread"):
        torch.set_num_threads(1)
    if options.get("bustseg"):
        if not torch.cuda.is_available():
            keep_freed_memory()
        data = UltrasoundDataModule(root=root, batch_size=batch_size, seed=0)
        trainer = pl.Trainer(**common, precision=fast_precision(), use_distributed_sampler=False)
        trainer.fit(SegmentationTask(network), datamodule=data)
    else:
        samples, framing = BUSI().read(Path(root)), Framing((224, 224))
        split = make_split(samples, "paper", 0)
        wanted = set(split.loc[split["subset"] == "train", "image"])
        samples = [sample for sample in samples if sample.id in wanted]
        mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        memory_format = torch.channels_last if options.get("channels_last") else torch.contiguous_format

        class Images(Dataset):
            """One image and mask per item; decoded again each time unless they are kept."""

            def __init__(self) -> None:
                self.kept = [decode(sample, framing) for sample in samples] if options.get("cache") else None

            def __len__(self) -> int:
                return len(samples)

            def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
                image, mask = self.kept[index] if self.kept else decode(samples[index], framing)
                tensor = torch.from_numpy(image).float().div(255).expand(3, -1, -1)
                return (tensor - mean) / std, torch.from_numpy(mask).float().unsqueeze(0)

        class Plain(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = network.to(memory_format=memory_format)
                self.criterion = nn.BCEWithLogitsLoss()

            def training_step(self, batch, batch_idx):
                image, mask = batch
                loss = self.criterion(self.network(image.to(memory_format=memory_format)).float(), mask)
                self.log("train/loss", loss, prog_bar=True)
                return loss

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters(), lr=1e-4)

        workers = 0 if options.get("cache") and not torch.cuda.is_available() else 2
        loader = DataLoader(Images(), batch_size, shuffle=True, num_workers=workers, drop_last=True)
        trainer = pl.Trainer(**common, precision="bf16-mixed" if options.get("bf16") else "32-true")
        trainer.fit(Plain(), loader)
    seconds = clock.end - clock.start
    result = {"images_per_second": steps * batch_size / seconds}
    if torch.cuda.is_available():
        result["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--root", default=os.environ.get("BUSI_ROOT"), help="BUSI's folder")
    arguments.add_argument("--config", default=str(Path(__file__).resolve().parents[1] / "configs/paper/model_01.yaml"))
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=8)
    arguments.add_argument("--warmup", type=int, default=2)
    arguments.add_argument("--batch_size", type=int, default=16)
    arguments.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    arguments.add_argument("--variant", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.variant:
        options = VARIANTS[args.variant]
        print(json.dumps(run_variant(args.root, args.config, args.steps, args.warmup, args.batch_size, options)))
        return
    speeds: dict[str, list[float]] = {name: [] for name in args.only}
    for round_number in range(args.rounds):
        for name in args.only:
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
            output = subprocess.run(command, check=False, capture_output=True, text=True)
            if output.returncode:
                sys.exit(output.stderr[-2000:])
            result = json.loads(output.stdout.strip().splitlines()[-1])
            speeds[name].append(result["images_per_second"])
            print(f"round {round_number + 1}  {name:16s} {result}", file=sys.stderr, flush=True)
    base = args.only[0]
    print("| variant | images/s (median) | rounds | ratio per round, median |")
    print("| --- | --- | --- | --- |")
    for name in args.only:
        ratio = statistics.median(own / other for own, other in zip(speeds[name], speeds[base], strict=True))
        rounds = ", ".join(f"{value:.1f}" for value in speeds[name])
        print(f"| {name} | {statistics.median(speeds[name]):.1f} | {rounds} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
