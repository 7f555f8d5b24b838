"""The effect of ``model.postprocess.max_confidence_gap`` on validation images, by trained model.

    python -m studies.components MODEL... [--root $BUSI_ROOT]

Each model (checkpoint or run id) is scored on the validation images of its own split, from its logits before any
post-processing. Prints a Markdown table: Dice ``lesion`` of each model by threshold and gap, and the means over models.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from bustseg.data.datamodule import Batch
from bustseg.masks import PostProcess
from bustseg.metrics import OperatingPoints
from bustseg.runs.checkpoint import load_data, load_task
from bustseg.runs.resolve import resolve_checkpoint

GAPS = (None, 3.0, 2.5, 2.0, 1.5, 1.0, 0.0)
THRESHOLDS = (0.5, 0.4, 0.3)


@torch.inference_mode()
def validation_logits(path: Path, root: str | None) -> Iterator[tuple[torch.Tensor, Batch]]:
    """Logits (B, 1, H, W) of a checkpoint for the validation images of its own split, before post-processing."""
    task, data = load_task(path), load_data(path)
    if root:
        data.root = root
    data.setup("validate")
    for batch in data.val_dataloader():
        yield task.logits(batch), batch


def measure(model: str, root: str | None) -> dict[tuple[float | None, float], tuple[float, float]]:
    """Dice ``lesion`` and ``empty_one`` by gap and threshold."""
    metrics = {gap: OperatingPoints(PostProcess(max_confidence_gap=gap)) for gap in GAPS}
    for logits, batch in validation_logits(resolve_checkpoint(model), root):
        for metric in metrics.values():
            metric.update(logits, batch["mask"], batch["index"])
    return {
        (gap, point.threshold): (point.dice_lesion, point.dice_empty_one)
        for gap, metric in metrics.items()
        for point in metric.points()
        if point.min_area == 0 and point.threshold in THRESHOLDS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints or run ids")
    parser.add_argument("--root", help="BUSI (default: where each model was trained)")
    args = parser.parse_args()
    found = [measure(model, args.root) for model in args.models]
    names = [f"model {number}" for number in range(1, len(found) + 1)]
    print("| " + " | ".join(["threshold", "gap", *names, "lesion", "empty_one"]) + " |")
    print("| --- " * (len(names) + 4) + "|")
    for threshold in THRESHOLDS:
        for gap in GAPS:
            scores = [scores[gap, threshold] for scores in found]
            means = [sum(column) / len(found) for column in zip(*scores, strict=True)]
            cells = [f"{value:.4f}" for value in [*(lesion for lesion, _ in scores), *means]]
            print("| " + " | ".join([str(threshold), "none" if gap is None else str(gap), *cells]) + " |")


if __name__ == "__main__":
    main()
