"""Train recipes one after another in one process: process files ``*.json`` from a folder until there is a file
``stop``.

    python -m studies.cross_source.work QUEUE --data DATA --out OUT [--workers 2]

Several of these can share a folder: a file is claimed by renaming it. A recipe's results are in ``OUT/NAME.csv``, a row
per image of every source: the image's subset in the training (``left out`` if its source was not used), Dice at three
thresholds, and values from which presence can be computed. With ``maps`` also ``OUT/NAME.npz``, the logits of each
image that was not trained on, as a PNG, and the checkpoint ``OUT/NAME.ckpt``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import yaml

from bustseg.callbacks.checkpoints import best_checkpoint
from bustseg.experiment import Experiment
from bustseg.losses import peak_logit
from bustseg.presence import detection_auc
from bustseg.runs.checkpoint import build_data
from bustseg.task import SegmentationTask
from bustseg.training import run_fit
from studies.cross_source.data import SIDE, SOURCES
from studies.cross_source.recipe import Recipe, combined, config

LOWEST, HIGHEST, LEVELS = -4.6, 9.8, 96  # steps of 0.15; finer steps would be noise that does not compress
THRESHOLDS = (0.3, 0.4, 0.5)
SHARES = {"peak_05": 0.0005, "peak_2": 0.002, "peak_10": 0.01}


def train(recipe: Recipe, data: Path, out: Path, workers: int) -> None:
    """Fit a recipe and write its results for every image of every source."""
    started = time.time()
    work = out / "work" / recipe.name
    settings = config(recipe, data, work, workers)
    settings["trainer"] |= {"default_root_dir": str(work), "enable_progress_bar": False}
    settings["trainer"] |= {"logger": False, "benchmark": True}
    (work / "fit.yaml").write_text(yaml.safe_dump(settings))
    run = run_fit(Experiment.read(work / "fit.yaml"))
    fitted = time.time() - started
    task = run.task
    tables, maps = [], {}
    for source in SOURCES:
        table, found = look(task, recipe, source, data)
        tables.append(table)
        maps |= found
    trained = dict(pd.read_csv(work / "split.csv", dtype=str)[["image", "subset"]].itertuples(index=False, name=None))
    table = pd.concat(tables, ignore_index=True)
    table["subset"] = [trained.get(image, "left out") for image in table["image"]]
    table.to_csv(out / f"{recipe.name}.csv", index=False)
    if recipe.maps:
        unseen = table.loc[~table["subset"].isin(["train"]), "image"]
        maps = {image: maps[image] for image in unseen}
        np.savez(out / f"{recipe.name}.npz", **maps)
        checkpoint = best_checkpoint(run.trainer)
        assert checkpoint is not None
        partial = out / f"{recipe.name}.part"
        shutil.copy(checkpoint.best_model_path, partial)
        partial.rename(out / f"{recipe.name}.ckpt")  # complete before a student looks for it
    (out / f"{recipe.name}.json").write_text(
        json.dumps({**recipe.to_dict(), "seconds_fit": round(fitted), "seconds": round(time.time() - started)})
    )
    shutil.rmtree(work, ignore_errors=True)
    print(f"{recipe.name}: {fitted:.0f} s fit, {time.time() - started:.0f} s", summary(table), flush=True)


@torch.inference_mode()
def look(task: SegmentationTask, recipe: Recipe, source: str, data: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A row per image of a source, and if requested its logits as PNG bytes by id."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = task.to(device).eval()
    module = build_data(
        {"source": combined([source], data / recipe.shape), "split": "test_all", "image_size": recipe.size}
    )
    module.prepare_data()
    module.setup("test")
    assert module.cache is not None
    rows, maps = [], {}
    for start in range(0, len(module.samples), 64):
        images = torch.from_numpy(np.array(module.cache.images[start : start + 64]))[:, None].to(device)
        masks = torch.from_numpy(np.array(module.cache.masks[start : start + 64])).to(device).bool()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            straight = task.network(task.normalise(images)).float()
            mirrored = task.network(task.normalise(images.flip(-1))).flip(-1).float()
        logits = (straight + mirrored) / 2
        columns: dict[str, Any] = {"area": masks.float().mean((1, 2))}
        for threshold in THRESHOLDS:
            predicted = logits[:, 0].sigmoid() > threshold
            overlap = (predicted & masks).sum((1, 2))
            total = predicted.sum((1, 2)) + masks.sum((1, 2))
            columns[f"dice_{threshold:g}"] = torch.where(total > 0, 2 * overlap / total.clamp_min(1), 1.0)
            columns[f"area_{threshold:g}"] = predicted.float().mean((1, 2))
        columns["max"] = logits.flatten(1).amax(1)
        for name, share in SHARES.items():
            columns[name] = peak_logit(logits, share)
            columns[f"{name}_lower"] = torch.minimum(peak_logit(straight, share), peak_logit(mirrored, share))
        columns = {name: value.cpu().numpy() for name, value in columns.items()}
        for row, sample in enumerate(module.samples[start : start + 64]):
            rows.append(
                {"image": sample.id, "label": sample.label}
                | {name: round(float(value[row]), 5) for name, value in columns.items()}
            )
            if recipe.maps:
                maps[sample.id] = encode(logits[row, 0].cpu().numpy())
    return pd.DataFrame(rows), maps


def encode(logits: np.ndarray) -> np.ndarray:
    """Logits (H, W) as the bytes of a PNG of ``SIDE`` pixels, ``LEVELS`` steps from ``LOWEST`` to ``HIGHEST``."""
    if logits.shape != (SIDE, SIDE):
        logits = cv2.resize(logits, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    levels = np.round((np.clip(logits, LOWEST, HIGHEST) - LOWEST) / (HIGHEST - LOWEST) * LEVELS).astype(np.uint8)
    return cv2.imencode(".png", levels, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]


def decode(png: np.ndarray) -> np.ndarray:
    """Logits ``float32`` (H, W) from the result of :func:`encode`."""
    levels = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE).astype(np.float32)
    return levels / LEVELS * (HIGHEST - LOWEST) + LOWEST


def summary(table: pd.DataFrame) -> str:
    """Dice (lesion) at 0.5 and AUC of presence of the images that the training did not see, by source."""
    parts = []
    unseen = table[~table["subset"].isin(["train", "val"])]
    for source, own in unseen.groupby(unseen["image"].str.partition("/")[0]):
        lesion = own["area"] > 0
        text = f"{source} {own.loc[lesion, 'dice_0.5'].mean():.3f}"
        if lesion.any() and not lesion.all():
            text += f" auc {auc(own['peak_2'].to_numpy(), lesion.to_numpy()):.3f}"
        parts.append(text)
    return ", ".join(parts)


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting one half."""
    return float(detection_auc(score, positive)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--once", action="store_true", help="stop when the folder is empty, without waiting for `stop`")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    while not (args.queue / "stop").exists():
        waiting = sorted(args.queue.glob("*.json"))
        for path in waiting:
            claimed = path.with_suffix(f".{os.getpid()}")
            try:
                path.rename(claimed)
            except FileNotFoundError:
                continue
            recipe = Recipe(**json.loads(claimed.read_text()))
            if recipe.teacher and not Path(recipe.teacher).is_file():
                claimed.rename(path)  # its teacher is still being trained
                continue
            try:
                train(recipe, args.data, args.out, args.workers)
                claimed.rename(path.with_suffix(".done"))
            except Exception:
                print(f"{recipe.name} failed", traceback.format_exc(), file=sys.stderr, flush=True)
                claimed.rename(path.with_suffix(".failed"))
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            break
        else:
            if args.once:
                return
            time.sleep(0.5)


if __name__ == "__main__":
    main()
