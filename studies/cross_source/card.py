"""The card of the model in the box: its description, training data, and scores by source.

    python -m studies.cross_source.card FOLDER SCORES.md SPLIT.csv

``FOLDER`` is the exported model, ``SCORES.md`` the output of `studies.cross_source.score` for it and other models.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from bustseg.deploy.confidence import CALIBRATION
from bustseg.errors import UserError
from bustseg.presence import Presence

CARD = """# The model in the box

Research software. **Not a medical device**: not validated for diagnosis; no finding in a patient may rest on it.

## What it does
It outlines breast lesions in B-mode ultrasound images: a grey image in, a mask and each pixel's probability of
belonging to a lesion out, at the image's own size. `bustseg predict` uses it when no model is named.

## Data
{data}

* BUSI: Al-Dhabyani et al. 2020, Data in Brief; the article is CC BY 4.0, the archive names no licence of its own.
* BUS-BRA, a part: Gomez-Flores et al. 2023, Medical Physics, doi 10.1002/mp.16812; its own licence: use, copy,
  publish, with citation.
* BUS-UCLM, a part, at half the images' side: Vallez et al. 2025, Scientific Data, doi 10.17632/7fvgj4jsp7; CC BY 4.0.

Split `configs/flagship/three_sources_split.csv`, digest `{split_digest}`: patients (where the source tells them) and
near-duplicate images are kept in one subset. Digest of the data `{data_digest}`.

## Training
`studies/cross_source` (recipe `box`, Lite2, seed 1), which is `configs/flagship/three_sources.yaml`: {network} with
{parameters:,} parameters on one packaged EfficientNet-Lite2, 2,010 steps of 32 images at 192 px on an H100 that other
trainings shared, bf16; sources evened out, lesion-free crops, other images' looks, a loss on the image's peak.
Evaluated at {size} px with mirroring. Threshold {threshold}; components with a gap of more than {gap} in mean logit,
or without a pixel of probability {peak}, are removed: chosen on the validation images, see docs/results/scanners.md.

## Figures
Test images of each source, from file to mask at the images' own size, with 95 % intervals (patients and duplicates
drawn together). `oldbox` is the model that this one replaced, trained on BUSI alone. A lesion that is missed counts 0.

{scores}

`AUC of presence` ranks images by the mean of their most probable 0.2 % of pixels. The flag is `look_at_this`: the share
of images with a Dice below 0.5 that it catches, and of the others that it shows a person all the same.

## Presence
`presence`, the probability that an image shows a lesion, was fitted on the evidence of the {images} validation
images of all three sources ({lesions} with a lesion, {normals} without; BUS-BRA has no normals) by
`python -m studies.cross_source.presence`; no test image was used for the fit. What the evidence is was settled on
networks that had left a source out and on the test images of networks of the same kind, which were so looked at once
more. The masks do not depend on it. Within the sources its calibration error is small, on a scanner that was not among
them it is not: see docs/results/scanners.md.

## Limits
* It outlines what looks like a lesion; it does not tell benign from malignant.
* Test images come from the same scanners as the training's. On a source that a training of this kind had not seen, Dice
  was 0.52 to 0.78 (docs/results/scanners.md): expect less on another scanner than above.
* BUSI has no patient ids and many near-duplicate frames; BUS-UCLM's test part has 16 images with a lesion, so that its
  figures are coarse.
* Burned-in text, calipers and coloured overlays are in the training images and can mislead it.
"""


def card(folder: Path, scores: str, split: pd.DataFrame) -> str:
    """The card's text, with metadata from the exported folder.

    Args:
        folder: the exported model
        scores: a Markdown table and perhaps lines around it
        split: columns ``image`` (``source/id``) and ``subset``
    """
    counts = pd.crosstab(split["image"].str.partition("/")[0].rename("source"), split["subset"])
    about = json.loads((folder / "bustseg.json").read_text())
    presence = Presence.from_dict(about[CALIBRATION])
    if presence is None:
        raise UserError(
            f"{folder} has no calibration of presence: run studies.cross_source.presence with --write first"
        )
    table = "\n".join(line for line in scores.splitlines() if line.startswith("|"))
    return CARD.format(
        split_digest=about["split_digest"],
        data_digest=about["data_digest"],
        network=f"`{about['network']}`",
        parameters=about["parameters"],
        size=about["input"]["image_size"][0],
        threshold=about["threshold"],
        gap=about["postprocess"]["max_confidence_gap"],
        peak=about["postprocess"]["min_peak_probability"],
        scores=table,
        images=presence.lesions + presence.normals,
        lesions=presence.lesions,
        normals=presence.normals,
        data=counts[["train", "val", "test"]].to_markdown(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("split", type=Path)
    args = parser.parse_args()
    text = card(args.folder, args.scores.read_text(), pd.read_csv(args.split, dtype=str))
    (args.folder / "model_card.md").write_text(text)


if __name__ == "__main__":
    main()
