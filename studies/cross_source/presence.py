"""The presence of an exported model, fitted on the validation images of all sources, and how far its scale carries.

    python -m studies.cross_source.presence MODEL --split configs/flagship/three_sources_split.csv \\
        --busi DIR --bus_bra DIR --bus_uclm DIR [--write]

Prints a Markdown table with the AUC of presence and its expected calibration error (ECE) on the validation images of
each source that has normal images: with the coefficients fitted on all sources (the figure that flatters), and with
those fitted on the other sources alone. The network itself was trained on other images of all of them. ``--write``
puts the coefficients of all sources into the model's ``bustseg.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from bustseg.data.sources import Sample
from bustseg.deploy.output import write_whole
from bustseg.deploy.predictor import Predictor
from bustseg.presence import Presence, calibration_error, detection_auc, fit_presence
from bustseg.progress import track
from studies.cross_source.data import SOURCES
from studies.cross_source.score import test_samples


def evidence(predictor: Predictor, samples: list[Sample], title: str) -> pd.DataFrame:
    """A row per image: the evidence of a lesion, and whether there is one."""
    rows = []
    for sample in track(samples, title):
        image = sample.read_image()
        rows.append({"evidence": predictor(image).evidence, "lesion": bool(sample.read_mask(image.shape).any())})
    return pd.DataFrame(rows)


def fitted(tables: list[pd.DataFrame]) -> Presence:
    """The presence of some sources' images."""
    table = pd.concat(tables)
    presence = fit_presence(table["evidence"].to_numpy(), table["lesion"].to_numpy())
    if presence is None:
        raise SystemExit("these images all have a lesion, or none has one: name a source with both")
    return presence


def report(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per source with images of both kinds."""
    everywhere = fitted(list(tables.values()))
    rows = []
    for name, table in tables.items():
        lesion, values = table["lesion"].to_numpy(), table["evidence"].to_numpy()
        if lesion.all() or not lesion.any():
            continue
        others = [other for other_name, other in tables.items() if other_name != name]
        row = {"source": name, "images": len(table), "normals": int((~lesion).sum())}
        row["AUC"] = f"{detection_auc(values, lesion)[0]:.3f}"
        row["ECE, fitted on all"] = f"{calibration_error(everywhere(values), lesion)[0]:.3f}"
        if any(not other["lesion"].all() for other in others):
            row["ECE, fitted on the others"] = f"{calibration_error(fitted(others)(values), lesion)[0]:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="put the coefficients into the model's bustseg.json")
    for name in SOURCES:
        parser.add_argument(f"--{name.replace('-', '_')}", type=Path)
    args = parser.parse_args()
    roots = {name: root for name in SOURCES if (root := getattr(args, name.replace("-", "_"))) is not None}
    predictor = Predictor(str(args.model))
    tables = {
        name: evidence(predictor, samples, name) for name, samples in test_samples(args.split, roots, "val").items()
    }
    presence = fitted(list(tables.values()))
    print(
        f"presence = sigmoid({presence.scale:.6g} x evidence + {presence.offset:.6g}), fitted on {presence.lesions} "
        f"images with a lesion and {presence.normals} without"
    )
    for level in (0.5, 0.9):
        marked = [presence(table["evidence"].to_numpy()) >= level for table in tables.values()]
        lesion = np.concatenate([table["lesion"].to_numpy() for table in tables.values()])
        both = np.concatenate(marked)
        print(f"at {level}: {both[lesion].mean():.3f} of the lesions and {both[~lesion].mean():.3f} of the normals")
    print(report(tables).to_markdown(index=False))
    if args.write:
        path = args.model / "bustseg.json"
        about = json.loads(path.read_text())
        about["calibration"] = {**(about.get("calibration") or {}), **presence.to_dict()}
        write_whole(path, (json.dumps(about, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
