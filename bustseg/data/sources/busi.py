"""BUSI, the data set of the paper."""

from __future__ import annotations

import os
from pathlib import Path

from bustseg.data.files import FOLDER, MASK_STEM, PassedOver, images_in, list_folder, natural_key
from bustseg.data.sources.base import Problem, Sample, Source, passed_over
from bustseg.errors import DataError


class BUSI(Source):
    """Breast Ultrasound Images data set (Al-Dhabyani et al. 2020) in its official layout.

    ``root/{benign,malignant,normal}/<class> (<n>).png``, with ``<class> (<n>)_mask.png``, ``_mask_1.png``, ...;
    suffixes in upper case and other picture formats are read too. ``root`` may also be the folder that contains
    ``Dataset_BUSI_with_GT``.
    """

    name = "busi"

    def default_root(self) -> Path | None:
        """The folder that the environment variable ``BUSI_ROOT`` names."""
        root = os.environ.get("BUSI_ROOT")
        return Path(root) if root else None

    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        classes = ("benign", "malignant", "normal")
        if (root / "Dataset_BUSI_with_GT").is_dir():
            root = root / "Dataset_BUSI_with_GT"
        passed = PassedOver()
        listing = list_folder(root, passed)
        folders = [folder for name in classes for folder in listing.folders if folder.name.lower() == name]
        if not folders:
            raise DataError(
                f"{root} holds none of the folders benign, malignant, normal: is it BUSI's Dataset_BUSI_with_GT?"
            )
        passed.add(FOLDER, len(listing.folders) - len(folders))
        samples = []
        problems = []
        for folder in folders:
            masks: dict[str, list[Path]] = {}
            images: list[Path] = []
            for path in images_in(folder, passed):
                match = MASK_STEM.match(path.stem)
                if match:
                    masks.setdefault(match["image"], []).append(path)
                else:
                    images.append(path)
            for path in images:
                own = sorted(masks.pop(path.stem, []), key=lambda mask: natural_key(mask.stem))
                if not own:
                    message = f"image {path} has no mask ({path.stem}_mask.png): add the mask or remove the image"
                    problems.append(Problem("image without mask", path, message, path.stem))
                samples.append(Sample(path.stem, path, tuple(own), folder.name.lower(), source=self.name))
            for path in sorted(
                (mask for left in masks.values() for mask in left), key=lambda mask: natural_key(mask.stem)
            ):
                message = f"mask {path} has no image: add the image or remove the mask"
                problems.append(Problem("mask without image", path, message))
        if not samples and not problems:
            raise DataError(f"{root} holds no images in benign, malignant or normal: is the data unpacked?")
        return sorted(samples, key=lambda sample: natural_key(sample.id)), problems + passed_over(passed, root)
