"""BUSI at the tables' sizes, pixel for pixel as in the cache of the originals, in BUSI's own layout.

python benchmarks/gpu/small_busi.py BUSI DEST      # DEST/busi224 and DEST/busi112: WebP (lossless), masks as PNG
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

from bustseg.data.cache import decode
from bustseg.data.sources import BUSI
from bustseg.framing import Framing


def main(root: Path, dest: Path) -> None:
    for size in (224, 112):
        for sample in BUSI().read(root):
            image, mask = decode(sample, Framing((size, size)))
            folder = dest / f"busi{size}" / sample.label
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{sample.id}.webp"), image, [cv2.IMWRITE_WEBP_QUALITY, 101])
            cv2.imwrite(str(folder / f"{sample.id}_mask.png"), mask * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
