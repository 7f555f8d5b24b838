"""Public breast-ultrasound data sets other than BUSI, each in the layout of its archive."""

from __future__ import annotations

import re
from pathlib import Path

from bustseg.data.files import IMAGE_SUFFIXES, PassedOver, images_in, list_folder, natural_key
from bustseg.data.images import image_size
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


def _inner(root: Path, marks: tuple[str, ...], what: str) -> Path:
    """``root``, or the only folder in it that contains all of ``marks``."""
    for folder in (root, *list_folder(root).folders):
        if all((folder / mark).exists() for mark in marks):
            return folder
    raise DataError(f"{root} does not hold {', '.join(marks)}: is it the unpacked {what}?")


def _orphans(masks: dict[str, Path]) -> list[Problem]:
    return [
        Problem("mask without image", path, f"mask {path} has no image: add the image or remove the mask")
        for _, path in sorted(masks.items(), key=lambda item: natural_key(item[0]))
    ]


def _without_mask(path: Path, expected: str) -> Problem:
    message = f"image {path} has no mask ({expected}): add the mask or remove the image"
    return Problem("image without mask", path, message, path.stem)


class BUSBRA(Source):
    """BUS-BRA (Gomez-Flores et al. 2024, doi:10.5281/zenodo.7730709): 1875 images of 1064 patients.

    ``root/bus_data.csv``, ``root/Images/bus_0001-l.png``, ``root/Masks/mask_0001-l.png``. The column ``Case`` is the
    patient, ``Pathology`` the class.
    """

    name = "bus-bra"

    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        root = _inner(root, ("bus_data.csv", "Images", "Masks"), "BUS-BRA")
        table = read_table(root / "bus_data.csv", "the table of BUS-BRA")
        if not {"id", "case", "pathology"} <= set(table.columns):
            raise DataError(f"{root / 'bus_data.csv'} lacks one of the columns ID, Case, Pathology")
        passed = PassedOver()
        images = {path.stem: path for path in images_in(root / "Images", passed)}
        masks = {path.stem: path for path in images_in(root / "Masks", passed)}
        patients = values_by_name(table["id"], table["case"], root / "bus_data.csv")
        pathologies = values_by_name(table["id"], table["pathology"], root / "bus_data.csv")
        further = further_columns(table, table["id"], ("id", "case", "pathology", "width", "height", "bbox"))
        samples, problems = [], []
        for name, patient in patients.items():
            image = images.pop(name, None)
            mask = masks.pop(name.replace("bus_", "mask_", 1), None)
            if image is None:
                path = root / "Images" / f"{name}.png"
                problems.append(
                    Problem("entry without image", path, f"{path} is in bus_data.csv but not on disk: unpack it again")
                )
                continue
            if mask is None:
                problems.append(_without_mask(image, f"Masks/{name.replace('bus_', 'mask_', 1)}.png"))
            label = pathologies[name].strip().lower()
            samples.append(
                Sample(
                    name,
                    image,
                    (mask,) if mask else (),
                    label if label in LABELS else "unknown",
                    group=f"patient {patient.strip()}",
                    source=self.name,
                    columns=further[name],
                )
            )
        for path in sorted(images.values()):
            message = f"image {path} is not in bus_data.csv: add its line or remove it"
            problems.append(Problem("image without entry", path, message, path.stem))
        problems += [*_orphans(masks), *passed_over(passed, root)]
        return sorted(samples, key=lambda sample: natural_key(sample.id)), problems


class BUSUCLM(Source):
    """BUS-UCLM (Vallez et al. 2025, doi:10.1038/s41597-025-04562-3): 683 images of 38 patients.

    ``root/INFO.csv``, ``root/images/ALWI_000.png``, ``root/masks/ALWI_000.png``. The first part of the name is the
    patient. Masks are coloured: green is benign, red malignant, black background; both colours are lesion. An image
    whose mask differs in size is left out and reported.
    """

    name = "bus-uclm"

    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        root = _inner(root, ("INFO.csv", "images", "masks"), "BUS-UCLM")
        table = read_table(root / "INFO.csv", "the table of BUS-UCLM")
        if not {"image", "label"} <= set(table.columns):
            raise DataError(f"{root / 'INFO.csv'} lacks one of the columns Image, Label")
        names = [Path(name.strip()).stem for name in table["image"]]
        labels = values_by_name(names, (label.strip().lower() for label in table["label"]), root / "INFO.csv")
        further = further_columns(table, names, ("image", "label", "resolution"))
        passed = PassedOver()
        masks = {path.stem: path for path in images_in(root / "masks", passed)}
        samples, problems = [], []
        for image in images_in(root / "images", passed):
            mask = masks.pop(image.stem, None)
            label = labels.get(image.stem)
            if label is None:
                message = f"image {image} is not in INFO.csv: add its line or remove it"
                problems.append(Problem("image without entry", image, message, image.stem))
                continue
            if mask is None:
                problems.append(_without_mask(image, f"masks/{image.name}"))
                continue
            if problem := _unequal(image, mask):
                problems.append(problem)
                continue
            samples.append(
                Sample(
                    image.stem,
                    image,
                    (mask,),
                    label if label in LABELS else "unknown",
                    group=image.stem.partition("_")[0],
                    source=self.name,
                    columns=further[image.stem],
                )
            )
        return samples, [*problems, *_orphans(masks), *passed_over(passed, root)]


def _unequal(image: Path, mask: Path) -> Problem | None:
    try:
        (height, width), (mask_height, mask_width) = image_size(image), image_size(mask)
    except DataError:
        return None  # reading it will report the error
    if (height, width) == (mask_height, mask_width):
        return None
    message = f"image {image.name} is left out: it is {width}x{height} but its mask is {mask_width}x{mask_height}"
    return Problem("left out: mask of another size", image, message, image.stem, wrong=False)


class BrEaST(Source):
    """BrEaST-Lesions-USG (Pawlowska et al. 2024, doi:10.7937/9wkk-q141): 256 images, one per patient.

    ``root/case001.png`` (RGBA) and ``root/case001_tumor.png``. Masks named ``_other`` show other findings, not tumours;
    a case without a tumour mask is normal. The class comes from the annotation table (.xlsx, .csv; columns
    ``Image_filename`` and ``Classification``) if it is next to the images, else it is ``unknown``.
    """

    name = "breast"
    _IMAGE = re.compile(r"^case\d+$")
    _MASK = re.compile(r"^(?P<case>case\d+)_tumou?r\d*$")

    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        passed = PassedOver()
        folders = [root, *list_folder(root).folders]
        folder = next((path for path in folders if any(map(self._is_case, list_folder(path).files))), None)
        if folder is None:
            raise DataError(f"{root} holds no case001.png, ...: is it the unpacked BrEaST-Lesions-USG?")
        labels = self._labels(root, folder)
        masks: dict[str, list[Path]] = {}
        images = []
        for path in images_in(folder, passed):
            if match := self._MASK.match(path.stem):
                masks.setdefault(match["case"], []).append(path)
            elif self._IMAGE.match(path.stem):
                images.append(path)
        samples, problems = [], []
        for path in images:
            own = tuple(masks.pop(path.stem, ()))
            label = labels.get(path.stem, "unknown" if own else "normal")
            if not own and label in ("benign", "malignant"):
                problems.append(_without_mask(path, f"{path.stem}_tumor.png"))
            samples.append(Sample(path.stem, path, own, label, group=path.stem, source=self.name))
        problems += _orphans({mask.stem: mask for left in masks.values() for mask in left})
        return samples, problems + passed_over(passed, folder)

    @classmethod
    def _is_case(cls, path: Path) -> bool:
        return path.suffix.lower() in IMAGE_SUFFIXES and cls._IMAGE.match(path.stem) is not None

    @staticmethod
    def _labels(*folders: Path) -> dict[str, str]:
        files = [path for folder in dict.fromkeys(folders) for path in list_folder(folder).files]
        for path in (path for suffix in (".csv", ".xlsx") for path in files if path.suffix.lower() == suffix):
            table = read_table(path, "the annotation table of BrEaST")
            if {"image_filename", "classification"} <= set(table.columns):
                stems = [Path(str(image).strip()).stem for image in table["image_filename"]]
                classes = [str(label).strip().lower() for label in table["classification"]]
                labels = values_by_name(stems, classes, path)
                return {stem: label if label in LABELS else "unknown" for stem, label in labels.items()}
        return {}
