"""The coefficients of presence of an exported model, and their calibration within a source and on another.

    python -m studies.cross_source.presence MODEL --split configs/flagship/three_sources_split.csv \\
        --busi DIR --bus_bra DIR --bus_uclm DIR [--write]

Fits presence (:func:`bustseg.presence.fit_presence`) on the evidence of the validation images of all sources, from file
to evidence as ``bustseg predict`` does it, and prints the results below as a Markdown table. ``--write`` stores the
coefficients in the model's record for ``predict``.

For each source with images of both kinds the table has the AUC of presence and the calibration error (ECE, 10 bins) of
three fits: on the source's own validation images, leaving out each patient's images from the fit that is applied to
them; on those of all sources, in the same way; and only on those of the other sources. Intervals draw patients and
near-duplicates together; they reflect the choice of images, not the fit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from bustseg.deploy.confidence import CALIBRATION
from bustseg.deploy.exported import METADATA
from bustseg.deploy.predictor import Predictor
from bustseg.errors import UserError
from bustseg.presence import calibration_error, detection_auc, fit_presence
from bustseg.progress import track
from bustseg.statistics import Bootstrap
from studies.cross_source.data import add_roots, roots_of
from studies.cross_source.score import RESAMPLES, groups_of, test_samples

FOLDS = 10


def evidence_table(predictor: Predictor, split: Path, roots: dict[str, Path], subset: str) -> pd.DataFrame:
    """Source, image, group, whether there is a lesion, and evidence; a row per image of the subset."""
    rows = []
    for name, samples in test_samples(split, roots, subset).items():
        groups = groups_of(name, roots[name])
        for sample in track(samples, name):
            image = sample.read_image()
            lesion = bool(sample.read_mask(image.shape).any())
            group = f"{name}/{groups[sample.id]}"
            rows.append((name, sample.id, group, lesion, predictor(image).evidence))
    return pd.DataFrame(rows, columns=["source", "image", "group", "lesion", "evidence"])


def held_out(table: pd.DataFrame, source: str, fitted_on: pd.Series) -> np.ndarray:
    """Presence of a source's images, from fits on the rows in ``fitted_on`` that are not in their fold.

    Groups are assigned to the folds in turn, groups with normals separately from the others.

    Raises:
        UserError: a fit has only images with, or only images without a lesion
    """
    own = table["source"] == source
    kind = table[own].groupby("group")["lesion"].all().sort_values(kind="stable")
    fold = table["group"].map(dict(zip(kind.index, np.arange(len(kind)) % FOLDS, strict=True))).fillna(-1).to_numpy()
    probability = np.full(len(table), np.nan)
    for number in range(FOLDS):
        train = fitted_on.to_numpy() & (fold != number)
        presence = fit_presence(table["evidence"].to_numpy()[train], table["lesion"].to_numpy()[train])
        if presence is None:
            raise UserError(f"{source}: presence needs images with a lesion and without in every fit")
        here = own.to_numpy() & (fold == number)
        probability[here] = presence(table["evidence"].to_numpy()[here])
    return probability[own.to_numpy()]


def figures(table: pd.DataFrame) -> pd.DataFrame:
    """AUC and calibration errors of each source that has images of both kinds, with intervals."""
    rows = []
    for source, own in table.groupby("source"):
        lesion = own["lesion"].to_numpy()
        if lesion.all() or not lesion.any():
            continue
        draws = Bootstrap(own["group"].tolist(), resamples=RESAMPLES, seed=0)
        weights = draws.weights[:, draws.unit].astype(np.float64)
        fits = {
            "its own": table["source"] == source,
            "all sources": pd.Series(True, index=table.index),
            "the other sources": table["source"] != source,
        }
        row = {"source": source, "lesions": int(lesion.sum()), "normals": int((~lesion).sum())}
        evidence = own["evidence"].to_numpy()
        row["AUC"] = interval(detection_auc(evidence, lesion), detection_auc(evidence, lesion, weights))
        for title, chosen in fits.items():
            probability = held_out(table, str(source), chosen)
            drawn = calibration_error(probability, lesion, weights)
            row[f"ECE, fitted on {title}"] = interval(calibration_error(probability, lesion), drawn)
        rows.append(row)
    return pd.DataFrame(rows)


def interval(estimate: np.ndarray, drawn: np.ndarray) -> str:
    """A value with its 95 % percentile interval."""
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{estimate[0]:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="store the coefficients in the model's record")
    add_roots(parser)
    args = parser.parse_args()
    roots = roots_of(args)
    table = evidence_table(Predictor(str(args.model)), args.split, roots, "val")
    presence = fit_presence(table["evidence"].to_numpy(), table["lesion"].to_numpy())
    if presence is None:
        raise UserError("presence needs validation images with a lesion and without: name more sources")
    print(figures(table).to_markdown(index=False))
    print("\n" + json.dumps(presence.to_dict()))
    if args.write:
        path = args.model / METADATA
        record = json.loads(path.read_text())
        record[CALIBRATION] = {**record[CALIBRATION], **presence.to_dict()}
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
