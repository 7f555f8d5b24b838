"""Predictions of checkpoints, together or alone and at several sizes, for images that were not used for training the
box.

    python -m studies.cross_source.look OUT CHECKPOINT [CHECKPOINT ...] --data DATA [--sizes 192 224]

Writes ``OUT-SIZE.npz``: logits (the mean over the checkpoints, and over each image and its mirror image) of the
validation and test images of every source, as PNG, by ``subset/id``; and prints the scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from bustseg.framing import resize_image
from bustseg.runs.checkpoint import load_task
from studies.cross_source.data import SOURCES
from studies.cross_source.work import auc, decode, encode


def unseen(data: Path) -> pd.DataFrame:
    """Validation and test images of every source: image, subset, label, and paths of image and mask."""
    frames = []
    for name in SOURCES:
        root = data / "stretch" / name
        table = pd.read_csv(root / "table.csv", dtype=str, keep_default_na=False)
        table["path"] = [root / "images" / f"{image}.png" for image in table["image"]]
        table["mask"] = [root / "masks" / f"{image}.png" for image in table["image"]]
        frames.append(table.assign(image=name + "/" + table["image"], source=name))
    table = pd.concat(frames, ignore_index=True)
    return table[table["subset"] != "train"].reset_index(drop=True)


@torch.inference_mode()
def logits_of(checkpoints: list[Path], table: pd.DataFrame, size: int) -> list[np.ndarray]:
    """Mean logits (size, size) of each image."""
    tasks = [load_task(path).eval() for path in checkpoints]
    found = []
    for start in range(0, len(table), 16):
        images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in table["path"].iloc[start : start + 16]]
        batch = torch.from_numpy(np.stack([resize_image(image, (size, size)) for image in images]))[:, None]
        total = torch.zeros(len(batch), 1, size, size)
        for task in tasks:
            x = task.normalise(batch)
            total += (task.network(x) + task.network(x.flip(-1)).flip(-1)).float() / 2
        found += list((total[:, 0] / len(tasks)).numpy())
    return found


def figures(table: pd.DataFrame, maps: list[np.ndarray], threshold: float = 0.5) -> pd.DataFrame:
    """Dice (lesion), missed, false positives and AUC of the peak, by source and subset."""
    cut = np.log(threshold / (1 - threshold))
    rows = []
    for logits, path in zip(maps, table["mask"], strict=True):
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127
        predicted = logits > cut
        both = predicted.sum() + mask.sum()
        dice = 2 * (predicted & mask).sum() / both if both else 1.0
        peak = np.sort(logits, axis=None)[-131:].mean()
        rows.append((bool(mask.any()), dice, bool(predicted.any()), peak))
    scored = pd.DataFrame(rows, columns=["lesion", "dice", "found", "peak"])
    scored[["source", "subset"]] = table[["source", "subset"]].to_numpy()
    out = []
    for (source, subset), own in scored.groupby(["source", "subset"]):
        lesion = own["lesion"]
        out.append(
            {
                "source": source,
                "subset": subset,
                "dice_lesion": own.loc[lesion, "dice"].mean(),
                "empty_one": own["dice"].where(lesion, 1.0 - own["found"]).mean(),
                "missed": 1 - own.loc[lesion, "found"].mean(),
                "false_positives": own.loc[~lesion, "found"].mean(),
                "auc": auc(own["peak"].to_numpy(), lesion.to_numpy()) if 0 < lesion.sum() < len(own) else np.nan,
            }
        )
    return pd.DataFrame(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[192])
    args = parser.parse_args()
    table = unseen(args.data)
    for size in args.sizes:
        maps = logits_of(args.checkpoints, table, size)
        packed = {f"{s}/{i}": encode(m) for s, i, m in zip(table["subset"], table["image"], maps, strict=True)}
        np.savez(args.out.with_name(f"{args.out.name}-{size}.npz"), **packed)
        print(size, "px")
        print(figures(table, [decode(png) for png in packed.values()]).round(4).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
