"""Write BUSI's images as plain PNG files by subset, for contenders that do not know its layout.

python -m studies.equal_hour.prepare --root $BUSI_ROOT --out hour/data
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from bustseg.data.cache import cache_root, cached_groups
from bustseg.data.sources import BUSI
from bustseg.data.splits import make_split, merge_groups, write_split


def prepare(root: Path, out: Path) -> pd.DataFrame:
    """Write images, masks, and ``split.csv`` with the group of each image; returns the split."""
    samples = {sample.id: sample for sample in BUSI().read(root)}
    groups = merge_groups(list(samples.values()), cached_groups(list(samples.values()), cache_root(root)))
    split = make_split(list(samples.values()), "grouped", 0, groups=groups)
    for name, subset in zip(split["image"], split["subset"], strict=True):
        image = samples[name].read_image()
        mask = samples[name].read_mask((image.shape[0], image.shape[1])).astype(np.uint8)
        for kind, pixels in (("images", image), ("masks", mask * np.uint8(255))):
            path = out / kind / subset / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    write_split(split, out / "split.csv")
    return split


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(prepare(args.root, args.out)["subset"].value_counts().to_string())


if __name__ == "__main__":
    main()
