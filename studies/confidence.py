"""Whether confidence and the flag "look at this" find the masks that are wrong.

The temperature is fitted on the validation images of the checkpoint's own split; then every image of a subset is
predicted at its own size and its Dice (an empty mask counts 1 on an image without a lesion, convention `empty_one`) is
compared with the confidence of its mask.

    python -m studies.confidence --model latest --subset val
    python -m studies.confidence --model exported/ --data_of best.ckpt --subset test --json out.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bustseg.data.sources import Sample
from bustseg.deploy.confidence import Calibration, fit_temperature, image_range
from bustseg.deploy.prediction import Prediction
from bustseg.deploy.predictor import Predictor
from bustseg.presence import detection_auc
from bustseg.progress import track
from bustseg.runs.checkpoint import load_data
from bustseg.runs.resolve import resolve_checkpoint
from studies.scores import dice


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a positive's score is above a negative's, ties counting half; None without both."""
    area = float(detection_auc(score, positive)[0])
    return None if math.isnan(area) else round(area, 4)


def predicted(predictor: Predictor, samples: list[Sample], what: str) -> Iterator[tuple[Prediction, np.ndarray]]:
    """Prediction and true mask (bool) of each sample, at the image's own size."""
    for sample in track(samples, what):
        found = predictor(sample.read_native())
        yield found, sample.read_mask((found.mask.shape[0], found.mask.shape[1]))


def figures(dices: np.ndarray, confidence: np.ndarray, low: float) -> dict[str, Any]:
    """Statistics of the confidence, and how well it predicts Dice."""
    wrong = dices < low
    keep = np.argsort(-confidence)[: max(1, round(0.8 * len(dices)))]
    return {
        "images": len(dices),
        f"Dice below {low:g}": int(wrong.sum()),
        "mean Dice": round(float(dices.mean()), 4),
        "mean confidence": round(float(confidence.mean()), 4),
        "mean |confidence - Dice|": round(float(np.abs(confidence - dices).mean()), 4),
        f"AUROC of low confidence for Dice below {low:g}": auroc(-confidence, wrong),
        "mean Dice of the 80 % most confident": round(float(dices[keep].mean()), 4),
    }


def flag_figures(dices: np.ndarray, flagged: np.ndarray, low: float) -> dict[str, Any]:
    """Statistics of the flag, and how well it finds wrong masks."""
    return {
        "flagged": int(flagged.sum()),
        f"of those with Dice below {low:g}, flagged": int((flagged & (dices < low)).sum()),
        "mean Dice, flagged": round(float(dices[flagged].mean()), 4) if flagged.any() else None,
        "mean Dice, not flagged": round(float(dices[~flagged].mean()), 4) if (~flagged).any() else None,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="latest", help="checkpoint, run, or exported folder")
    arguments.add_argument("--data_of", help="checkpoint or run whose data and split are used (default: the model's)")
    arguments.add_argument("--root", help="data folder (default: as the checkpoint says)")
    arguments.add_argument("--subset", default="val", choices=("val", "test"), help="images to judge (default val)")
    arguments.add_argument("--low", type=float, default=0.5, help="Dice below which a mask is wrong (default 0.5)")
    arguments.add_argument("--json", metavar="FILE", help="file for the results and every image's numbers")
    args = arguments.parse_args()
    predictor = Predictor(args.model)
    data = load_data(resolve_checkpoint(args.data_of or args.model))
    if args.root:
        data.root = args.root
    data.prepare_data()
    data.setup()
    subsets = {name: [data.samples[index] for index in data.indices[name]] for name in ("val", args.subset)}
    pairs = ((found.probability, truth) for found, truth in predicted(predictor, subsets["val"], "fitting"))
    temperature = fit_temperature(pairs)
    images = image_range(data.arrays(int(index))[0] for index in data.indices["train"])
    rows: list[dict[str, Any]] = []
    for (found, truth), sample in zip(
        predicted(predictor, subsets[args.subset], "judging"), subsets[args.subset], strict=True
    ):
        calibrated = replace(
            found,
            calibration=Calibration(temperature),
            unlike=tuple(images.unlike(predictor.prepare(sample.read_native()))),
        )
        rows.append(
            {
                "image": sample.id,
                "lesion": bool(truth.any()),
                "dice": dice(found.mask, truth),
                "confidence": calibrated.confidence,
                "uncalibrated": replace(found, calibration=Calibration(1.0)).confidence,
                "reasons": list(calibrated.look_at_this),
            }
        )
    columns = {name: np.array([row[name] for row in rows]) for name in ("dice", "confidence", "uncalibrated", "lesion")}
    flagged = np.array([bool(row["reasons"]) for row in rows])
    lesion = columns["lesion"]
    reasons = sorted({reason for row in rows for reason in row["reasons"]})
    report: dict[str, Any] = {
        "model": Path(args.model).name,
        "digest": predictor.digest[:12],
        "subset": args.subset,
        "split": data.split_digest,
        "temperature": round(temperature, 4),
        "training_images": images.to_dict(),
        "all": figures(columns["dice"], columns["confidence"], args.low),
        "all, not calibrated": figures(columns["dice"], columns["uncalibrated"], args.low),
        "flag": flag_figures(columns["dice"], flagged, args.low),
        "reasons": {
            reason: {
                "images": sum(reason in row["reasons"] for row in rows),
                "mean Dice": round(float(np.mean([row["dice"] for row in rows if reason in row["reasons"]])), 4),
            }
            for reason in reasons
        },
    }
    if lesion.any():
        report["with a lesion"] = figures(columns["dice"][lesion], columns["confidence"][lesion], args.low)
        report["flag, with a lesion"] = flag_figures(columns["dice"][lesion], flagged[lesion], args.low)
    print(json.dumps(report, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps({**report, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
