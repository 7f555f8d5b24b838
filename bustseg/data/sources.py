"""Readers of public data-set layouts: a folder on disk becomes a list of :class:`Sample`."""

from __future__ import annotations

import os
import re
import struct
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from bustseg.errors import DataError

_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
LABELS = ("benign", "malignant", "normal", "unknown")
"""Classes in the order of their integer codes in a batch."""


@dataclass(frozen=True)
class Sample:
    """One ultrasound image and what is known of it.

    Attributes:
        id: name that is unique in its source, and by which split files refer to it (BUSI: ``benign (1)``)
        image: path of the image
        masks: paths of its mask files; several are OR-ed, none means an empty mask
        label: one of :data:`LABELS`
        group: samples of one patient (or of one set of duplicates) share it; None when unknown
        source: name of the data set
    """

    id: str
    image: Path
    masks: tuple[Path, ...]
    label: str
    group: str | None = None
    source: str = "busi"

    def read_image(self) -> np.ndarray:
        """Image as grey ``uint8`` of shape (H, W)."""
        return read_grey(self.image)

    def read_mask(self, shape: tuple[int, int]) -> np.ndarray:
        """Union of the masks as ``bool`` of ``shape`` (H, W), thresholded at 127.

        Raises:
            DataError: a mask has another size than the image
        """
        union = np.zeros(shape, dtype=bool)
        for path in self.masks:
            mask = read_grey(path)
            if mask.shape != shape:
                raise DataError(
                    f"mask {path} is {mask.shape[1]}x{mask.shape[0]} but its image is {shape[1]}x{shape[0]}: "
                    "repair or remove this pair"
                )
            union |= mask > 127
        return union


def read_native(path: Path) -> np.ndarray:
    """Read any PNG, JPEG or TIFF mode (1, L, LA, P, RGB, RGBA, 16 bit) as ``uint8``, (H, W) or for colour (H, W, 3).

    Transparency is dropped and 16 bits are scaled to 8. The decoder is Pillow's, because OpenCV's returns what it has
    of a truncated file without a word.

    Raises:
        DataError: the file is missing, truncated or not an image
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):
                return (np.asarray(image) >> 8).astype(np.uint8)
            return np.asarray(image.convert("RGB" if image.mode in _COLOUR_MODES else "L"))
    except FileNotFoundError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except _DECODER_ERRORS as error:
        raise DataError(f"{path} is not a readable image (corrupt or truncated): replace or remove it") from error


def read_grey(path: Path) -> np.ndarray:
    """The same as grey ``uint8`` of shape (H, W); errors as in :func:`read_native`."""
    image = read_native(path)
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file of a data set.

    Attributes:
        kind: short name by which problems are counted, such as ``image without mask``
        path: the file
        message: what is wrong and what to do, in one line
        image: id of the sample that it belongs to, if any
        wrong: training on it would be wrong; otherwise only worth knowing
    """

    kind: str
    path: Path
    message: str
    image: str | None = None
    wrong: bool = True


class Source(ABC):
    """A data-set layout. A subclass reads one folder; its ``init_args`` in YAML are its options."""

    name: str = "source"

    def default_root(self) -> Path | None:
        """Folder to use when none is named, if the source has one."""
        return None

    def prepare(self, root: Path) -> None:
        """Make the data available under ``root`` (once per machine). The default only checks that the folder exists.

        Raises:
            DataError: ``root`` is no folder
        """
        if not root.is_dir():
            raise DataError(
                f"no data folder at {root}: set --data.root or BUSI_ROOT (`bustseg data phantom DEST` makes one)"
            )

    @abstractmethod
    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        """List the samples under ``root``, sorted naturally by id, and the files that do not fit, without decoding any.

        Raises:
            DataError: the folder does not hold this layout at all
        """

    def read(self, root: Path) -> list[Sample]:
        """List the samples under ``root``, sorted naturally by id, without decoding any image.

        Raises:
            DataError: the folder does not hold this layout, or a file in it does not fit
        """
        samples, problems = self.scan(root)
        for problem in problems:
            raise DataError(problem.message)
        return samples


def natural_key(text: str) -> list[object]:
    """Sort key that puts ``benign (2)`` before ``benign (10)``."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", text)]


class BUSI(Source):
    """Breast Ultrasound Images data set (Al-Dhabyani et al. 2020) in its official layout.

    ``root/{benign,malignant,normal}/<class> (<n>).png``, beside it ``<class> (<n>)_mask.png``, ``_mask_1.png``, ...
    ``root`` may also be the folder that contains ``Dataset_BUSI_with_GT``.
    """

    name = "busi"
    _MASK = re.compile(r"^(?P<stem>.+)_mask(_\d+)?$")

    def default_root(self) -> Path | None:
        """The folder that the environment variable ``BUSI_ROOT`` names."""
        root = os.environ.get("BUSI_ROOT")
        return Path(root) if root else None

    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        classes = ("benign", "malignant", "normal")
        if (root / "Dataset_BUSI_with_GT").is_dir():
            root = root / "Dataset_BUSI_with_GT"
        folders = [root / name for name in classes if (root / name).is_dir()]
        if not folders:
            raise DataError(
                f"{root} holds none of the folders benign, malignant, normal: is it BUSI's Dataset_BUSI_with_GT?"
            )
        samples = []
        problems = []
        for folder in folders:
            masks: dict[str, list[Path]] = {}
            images: list[Path] = []
            for path in folder.glob("*.png"):
                match = self._MASK.match(path.stem)
                if match:
                    masks.setdefault(match["stem"], []).append(path)
                else:
                    images.append(path)
            for path in sorted(images, key=lambda image: natural_key(image.stem)):
                own = sorted(masks.pop(path.stem, []), key=lambda mask: natural_key(mask.stem))
                if not own:
                    message = f"image {path} has no mask ({path.stem}_mask.png): add the mask or remove the image"
                    problems.append(Problem("image without mask", path, message, path.stem))
                samples.append(Sample(path.stem, path, tuple(own), folder.name, source=self.name))
            for path in sorted(
                (mask for left in masks.values() for mask in left), key=lambda mask: natural_key(mask.stem)
            ):
                message = f"mask {path} has no image: add the image or remove the mask"
                problems.append(Problem("mask without image", path, message))
        if not samples and not problems:
            raise DataError(f"{root} holds no PNG images in benign, malignant or normal: is the data unpacked?")
        return sorted(samples, key=lambda sample: natural_key(sample.id)), problems
