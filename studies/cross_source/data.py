"""The sources of the study as small lossless images with labels, patients and one split each.

    python -m studies.cross_source.data pack DEST --busi DIR --bus_bra DIR --bus_uclm DIR
    python -m studies.cross_source.data unpack DEST OUT

``pack`` reads the data sets in their own layouts and writes one folder per source: images of ``SIDE`` pixels (WebP,
lossless), masks (PNG, one bit) and ``table.csv``. ``unpack`` converts these to the layout ``Folders`` for ``bustseg
fit``, stretched to a square as bustseg does, and letterboxed (with the image's own proportions, padded with black).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from bustseg.data.cache import cache_root, cached_groups, decode
from bustseg.data.sources import BUSBRA, BUSI, BUSUCLM, Sample, Source
from bustseg.data.splits import grouped_split
from bustseg.framing import Framing, resize_image

SIDE = 256
SOURCES: dict[str, Callable[[], Source]] = {"busi": BUSI, "bus-bra": BUSBRA, "bus-uclm": BUSUCLM}
SHAPES = ("stretch", "letterbox")


def table_of(name: str, root: Path) -> tuple[list[Sample], pd.DataFrame]:
    """Samples of a source, and a table with their label, patient, size and subset of an 8:1:1 split.

    The split keeps patients and near-duplicates together (``grouped``, seed 0).
    """
    samples = SOURCES[name]().read(root)
    split = grouped_split(samples, cached_groups(samples, cache_root(root)), seed=0)
    subset = dict(zip(split["image"], split["subset"], strict=True))
    rows = []
    for sample in samples:
        height, width = sample.read_image().shape
        rows.append((sample.id, sample.label, sample.group or "", height, width, subset[sample.id]))
    return samples, pd.DataFrame(rows, columns=["image", "label", "patient", "height", "width", "subset"])


def pack(name: str, root: Path, folder: Path) -> None:
    """Write a source's small images, masks and table to ``folder``."""
    samples, table = table_of(name, root)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    table.to_csv(folder / "table.csv", index=False)

    def write(sample: Sample) -> None:
        image, mask = decode(sample, Framing((SIDE, SIDE)))
        lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]
        cv2.imwrite(str(folder / "images" / f"{sample.id}.webp"), image, lossless)
        cv2.imwrite(str(folder / "masks" / f"{sample.id}.png"), mask * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])

    _each(write, samples)


def unpack(packed: Path, out: Path) -> None:
    """Write ``out/SHAPE/SOURCE`` in the layout ``Folders`` for every source in ``packed`` and every shape."""
    for folder in sorted(path for path in packed.iterdir() if (path / "table.csv").is_file()):
        table = pd.read_csv(folder / "table.csv", dtype={"image": str, "patient": str}, keep_default_na=False)
        for shape in SHAPES:
            target = out / shape / folder.name
            (target / "images").mkdir(parents=True, exist_ok=True)
            (target / "masks").mkdir(exist_ok=True)
            table.to_csv(target / "table.csv", index=False)

        def write(row: tuple[str, int, int], folder: Path = folder) -> None:
            name, height, width = row
            image = cv2.imread(str(folder / "images" / f"{name}.webp"), cv2.IMREAD_GRAYSCALE)
            mask = cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
            for shape in SHAPES:
                target = out / shape / folder.name
                pair = (image, mask) if shape == "stretch" else letterboxed(image, mask, height, width)
                for kind, picture in zip(("images", "masks"), pair, strict=True):
                    cv2.imwrite(str(target / kind / f"{name}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])

        _each(write, table[["image", "height", "width"]].itertuples(index=False, name=None))


def letterboxed(image: np.ndarray, mask: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A stretched square image and mask (S, S), restored to their proportions and padded with black to (S, S).

    Args:
        image: ``uint8`` (S, S)
        mask: 0 or 255 (S, S)
        height: height of the image before it was stretched
        width: its width
    """
    window = Framing((image.shape[0], image.shape[0]), "letterbox").window((height, width))
    boxed, boxed_mask = np.zeros_like(image), np.zeros_like(mask)
    size = boxed[window].shape
    boxed[window] = resize_image(image, size)
    boxed_mask[window] = (resize_image(mask.astype(np.float32), size) >= 127.5) * np.uint8(255)
    return boxed, boxed_mask


def _each(action: Callable[..., None], items: Iterable[object]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(action, items))


def add_roots(parser: argparse.ArgumentParser) -> None:
    """Add an option for each source's folder to a parser: ``--bus_bra DIR``."""
    for name in SOURCES:
        parser.add_argument(f"--{name.replace('-', '_')}", type=Path)


def roots_of(args: argparse.Namespace) -> dict[str, Path]:
    """The folders from the options of :func:`add_roots`, by source."""
    return {name: root for name in SOURCES if (root := getattr(args, name.replace("-", "_"))) is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("dest", type=Path)
    add_roots(packing)
    unpacking = verbs.add_parser("unpack")
    unpacking.add_argument("packed", type=Path)
    unpacking.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.verb == "unpack":
        unpack(args.packed, args.out)
        return
    for name, root in roots_of(args).items():
        pack(name, root, args.dest / name)


if __name__ == "__main__":
    main()
