"""A user's own data in plain folders, and several sources combined."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bustseg.data.files import IMAGE_SUFFIXES, PassedOver, images_in, natural_key
from bustseg.data.mask_files import HALF
from bustseg.data.sources.base import (
    LABELS,
    Problem,
    Sample,
    Source,
    further_columns,
    passed_over,
    read_table,
    values_by_name,
)
from bustseg.errors import DataError


class Folders(Source):
    """Images in one folder and masks with the same names in another.

    Args:
        images: folder of the images, in the data folder
        masks: folder of the masks
        mask_suffix: suffix of a mask's name after its image's name, such as ``_mask``
        labels: CSV file in the data folder with the column ``image`` and, where known, ``label`` (benign,
            malignant, normal) and ``patient``; images of a patient stay together in splits. An image labelled normal
            needs no mask. Values of further columns, such as the device, can be left out in turn (``left_out_by``).
        lesion_above: level of a mask's pixels above which they are lesion, in the file's own levels: 0 for masks of 0
            and 1; half of white by default
    """

    name = "folders"

    def __init__(
        self,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        labels: str | None = None,
        lesion_above: int = HALF,
    ) -> None:
        if lesion_above < 0:
            raise DataError(f"lesion_above is {lesion_above}, so the whole mask would be lesion: give 0 or more")
        if images == masks and not mask_suffix:
            raise DataError(f"images and masks are both in {images}: set mask_suffix to the ending of the masks' names")
        self.images, self.masks, self.mask_suffix = images, masks, mask_suffix
        self.labels = labels
        self.lesion_above = lesion_above

    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        for folder in (self.images, self.masks):
            if not (root / folder).is_dir():
                raise DataError(f"{root} holds no folder {folder}: name it in the source's init_args")
        labels, patients, further = self._read_labels(root)
        problems: list[Problem] = []
        passed = PassedOver()
        masks = self._files(root / self.masks, problems, passed)
        images = dict(masks) if self.images == self.masks else self._files(root / self.images, problems, passed)
        suffix = self.mask_suffix
        samples = []
        for stem, image in images.items():
            if self.images == self.masks and suffix and stem.endswith(suffix):
                continue
            mask = masks.pop(stem + suffix, None)
            label = labels.get(stem, "unknown")
            if mask is None and label != "normal":
                message = f"image {image} has no mask ({self.masks}/{stem}{suffix}.png): add it or remove the image"
                problems.append(Problem("image without mask", image, message, stem))
            samples.append(
                Sample(
                    stem,
                    image,
                    (mask,) if mask else (),
                    label,
                    patients.get(stem) or None,
                    self.name,
                    lesion_above=self.lesion_above,
                    columns=further.get(stem, {}),
                )
            )
        if not samples:
            raise DataError(f"{root / self.images} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        # in a shared folder, a file with a mask's name but without an image is an orphan too
        left = masks.items() if self.images != self.masks else [one for one in masks.items() if one[0].endswith(suffix)]
        for _, path in left:
            message = f"mask {path} has no image: add the image or remove the mask"
            problems.append(Problem("mask without image", path, message))
        return samples, [*problems, *self._unused_rows(labels, samples), *passed_over(passed, root)]

    def _unused_rows(self, labels: Mapping[str, str], samples: Sequence[Sample]) -> list[Problem]:
        unknown = sorted(set(labels) - {sample.id for sample in samples}, key=natural_key)
        if not unknown:
            return []
        rows = "row names" if len(unknown) == 1 else "rows name"
        message = f"in {self.labels} {len(unknown)} {rows} no image, such as {unknown[0]!r}: is it spelled the same?"
        return [Problem("label without image", Path(self.labels or ""), message, wrong=False)]

    @staticmethod
    def _files(folder: Path, problems: list[Problem], passed: PassedOver) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in images_in(folder, passed):
            if path.stem in found:
                message = f"{path} and {found[path.stem].name} have the same name: rename one of them"
                problems.append(Problem("two files of one name", path, message, path.stem))
                continue
            found[path.stem] = path
        return found

    def _read_labels(self, root: Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, str]]]:
        """Class, patient and further columns of each image in the table."""
        if self.labels is None:
            return {}, {}, {}
        table = read_table(root / self.labels, "the labels")
        if "image" not in table or not {"label", "patient"} & set(table.columns):
            raise DataError(f"{root / self.labels} needs the column image and one of label, patient")
        names = [Path(name.strip()) for name in table["image"]]
        stems = [path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name for path in names]
        labels: dict[str, str] = {}
        if "label" in table:
            told = [text.strip().lower() or "unknown" for text in table["label"]]
            labels = values_by_name(stems, told, root / self.labels)
            for stem, label in labels.items():
                if label not in LABELS:
                    raise DataError(f"{root / self.labels} gives {stem} the label {label!r}: use {', '.join(LABELS)}")
        patients: dict[str, str] = {}
        if "patient" in table:
            patients = values_by_name(stems, (name.strip() for name in table["patient"]), root / self.labels)
        return labels, patients, further_columns(table, stems, ("image", "label", "patient"))


@dataclass
class Part:
    """One of several combined sources.

    Attributes:
        source: its layout
        root: its folder; the source's own default when not given
        name: prefix of its ids; the source's name when not given
    """

    source: Source
    root: str | None = None
    name: str | None = None


class Combined(Source):
    """Several sources as one. Ids become ``<name>/<id>``; patients of different sources stay different.

    Every part names its own folder, so ``data.root`` is not needed. A split CSV decides how a part is used: images that
    it does not name are left out, so a part may be used only for training or only for testing.

    Args:
        parts: the sources with their folders

    Raises:
        DataError: no parts, or two with the same name
    """

    name = "combined"

    def __init__(self, parts: list[Part]) -> None:
        names = [part.name or part.source.name for part in parts]
        if not parts:
            raise DataError("Combined needs at least one part: a list of source and root")
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"two parts of Combined have the name {name!r}: give each a different name")
        self.parts = dict(zip(names, parts, strict=True))
        self.name = "+".join(names)

    def _folder(self, name: str) -> Path:
        part = self.parts[name]
        root = part.root or part.source.default_root()
        if root is None:
            raise DataError(f"part {name!r} of Combined has no root: name its folder")
        return Path(root).expanduser()

    def default_root(self) -> Path:
        """Folder that contains all parts; the cache is placed next to it."""
        return Path(os.path.commonpath([self._folder(name).resolve() for name in self.parts]))

    def prepare(self, root: Path) -> None:
        for name, part in self.parts.items():
            part.source.prepare(self._folder(name))

    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        samples: list[Sample] = []
        problems: list[Problem] = []
        for name, part in self.parts.items():
            own, wrong = part.source.scan(self._folder(name))
            for sample in own:
                group = f"{name}/{sample.group}" if sample.group else None
                samples.append(replace(sample, id=f"{name}/{sample.id}", group=group, source=name))
            problems += [replace(one, image=f"{name}/{one.image}" if one.image else None) for one in wrong]
        return sorted(samples, key=lambda sample: natural_key(sample.id)), problems
