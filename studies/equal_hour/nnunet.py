"""nnU-Net v2 with its defaults: planning and preprocessing, the 2-D default trainer, and its prediction.

Only the number of epochs is chosen: of nnU-Net's trainers with 1, 5, 10, 20, ... epochs the longest one that fits into
the rest of the hour, estimated from a few steps. If not even one epoch of 250 steps fits, as on a laptop's core, one
epoch with as many steps as do fit is trained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from studies.equal_hour import common

DATASET = 501
EPOCHS = (1, 5, 10, 20, 50, 100, 250)
STEPS = {"train": 250, "val": 50}
"""Steps of an epoch by nnU-Net's defaults."""


def case_name(name: str) -> str:
    """An image's name in a form that is valid for nnU-Net's files."""
    return name.replace(" ", "_").replace("(", "").replace(")", "")


def write_raw(data: Path, raw: Path) -> None:
    """The images in nnU-Net's layout; training and validation images together, divided by ``splits_final.json``."""
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {"train": [], "val": []}
    for subset, own in names.items():
        for name, image, mask in common.images(data, subset):
            case = case_name(name)
            cv2.imwrite(str(raw / "imagesTr" / f"{case}_0000.png"), image)
            cv2.imwrite(str(raw / "labelsTr" / f"{case}.png"), mask)
            own.append(case)
    for name, image, _ in common.images(data, "test"):
        cv2.imwrite(str(raw / "imagesTs" / f"{case_name(name)}_0000.png"), image)
    described = {
        "channel_names": {"0": "ultrasound"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": sum(map(len, names.values())),
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(described))
    (raw / "splits.json").write_text(json.dumps([names]))


def command(name: str, *arguments: str) -> None:
    """One of nnU-Net's commands from this environment."""
    subprocess.run([str(Path(sys.executable).with_name(name)), *arguments], check=True)


def main() -> None:
    """Plan, train, predict."""
    args = common.arguments(__doc__)
    work = args.out / "nnunet"
    for kind in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{kind}"] = str(work / kind)
    os.environ |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    raw = work / "raw" / f"Dataset{DATASET}_BUSI"
    write_raw(args.data, raw)
    command("nnUNetv2_plan_and_preprocess", "-d", str(DATASET), "-c", "2d", "-np", "1", "--verify_dataset_integrity")
    (work / "preprocessed" / raw.name / "splits_final.json").write_text((raw / "splits.json").read_text())
    # augmentation in the main process, since there is one core; planning does not accept 0
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    seconds = seconds_of_steps()
    epoch = sum(number * seconds[kind] for kind, number in STEPS.items())
    left = args.seconds - common.elapsed()
    epochs = max([number for number in EPOCHS if number * epoch <= left], default=EPOCHS[0])
    trainer = f"nnUNetTrainer_{epochs}epoch{'s' if epochs > 1 else ''}"
    steps = STEPS["train"]
    if epoch <= left:
        command("nnUNetv2_train", str(DATASET), "2d", "0", "-tr", trainer, "-device", "cpu")
    else:
        steps = max(1, int((left - seconds["val"]) / seconds["train"]))
        in_trainer(SHORTER.format(trainer=trainer, steps=steps))
    trained = round(common.elapsed(), 1)
    common.Curve(args.out)  # without points: nnU-Net scores patches during training, which is not comparable
    predicted = work / "predicted"
    where = ["-i", str(raw / "imagesTs"), "-o", str(predicted), "-d", str(DATASET), "-c", "2d", "-f", "0"]
    command("nnUNetv2_predict", *where, "-tr", trainer, "-device", "cpu", "-npp", "1", "-nps", "1")
    (args.out / "masks").mkdir(exist_ok=True)
    for name, _, _ in common.images(args.data, "test"):
        mask = cv2.imread(str(predicted / f"{case_name(name)}.png"), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(args.out / "masks" / f"{name}.png"), (mask > 0).astype(np.uint8) * np.uint8(255))
    about = {"seconds": trained, "epochs": epochs, "steps": steps * epochs, "nnunetv2": version("nnunetv2")}
    (args.out / "about.json").write_text(json.dumps({**about, "seconds_of_an_epoch": round(epoch, 1)}, indent=2))


TRAINER = (
    "import os, time, torch; from nnunetv2.run.run_training import get_trainer_from_args\n"
    f"trainer = get_trainer_from_args('{DATASET}', '2d', 0, '{{trainer}}', device=torch.device('cpu'))\n"
)

TIMED = TRAINER.format(trainer="nnUNetTrainer") + (
    "trainer.disable_checkpointing = True\n"
    "trainer.on_train_start(); trainer.on_epoch_start(); trainer.on_train_epoch_start()\n"
    "trainer.train_step(next(trainer.dataloader_train)); begun = time.time(); steps = 0\n"
    "while steps < 3 and (steps == 0 or time.time() - begun < 60):\n"
    "    trainer.train_step(next(trainer.dataloader_train)); steps += 1\n"
    "print('SECONDS', (time.time() - begun) / steps, end=' ')\n"
    "torch.set_grad_enabled(False); begun = time.time(); trainer.validation_step(next(trainer.dataloader_val))\n"
    "print(time.time() - begun, flush=True); os._exit(0)\n"
)
"""Times a few steps in the trainer's own loop."""

SHORTER = TRAINER + (
    "trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = {steps}, 1\ntrainer.run_training()\n"
)
"""Trains with fewer steps per epoch."""


def in_trainer(code: str) -> str:
    """Run code that uses nnU-Net's trainer in a process of its own, since it starts others; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nnU-Net's trainer failed: {done.stderr[-2000:]}")
    return done.stdout


def seconds_of_steps() -> dict[str, float]:
    """Estimated seconds of a training step and of a validation step."""
    [found] = [line.split()[1:] for line in in_trainer(TIMED).splitlines() if line.startswith("SECONDS")]
    return dict(zip(STEPS, map(float, found), strict=True))


if __name__ == "__main__":
    main()
