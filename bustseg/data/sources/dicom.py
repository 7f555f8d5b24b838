"""Ultrasound in DICOM files with masks in picture files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bustseg.data import dicom
from bustseg.data.files import DOCUMENTS, IMAGE_SUFFIXES, PassedOver, natural_key, walk
from bustseg.data.sources.base import LABELS, Problem, Sample, Source, passed_over, read_table, values_by_name
from bustseg.errors import DataError


class DICOMFolder(Source):
    """DICOM ultrasound files with masks, in a folder and its sub-folders.

    A file's mask is the PNG file next to it (or under ``masks``) with the name ``<file>_mask.png``, and for a frame of
    a multi-frame file ``<file>_frame<k>_mask.png`` with k from 0; ``<file>`` is the name without ``.dcm``. It is drawn
    on the whole picture or on the cropped region. Frames of a multi-frame file without a mask are left out.

    File names and headers may name patients, so samples are named by a keyed hash of the file and grouped by one of the
    patient. Pictures are cropped to the scanned region. A file that declares burned-in text but no region is left out,
    as are files that are not ultrasound, and copies; files that share an identifier but not their content, as careless
    anonymisers create them, are named by their content too.

    Args:
        masks: folder of the masks in the data folder, with the same layout as the files; next to the files when not
            given
        label: class of every image; when not given, it is taken from a parent folder named benign, malignant or normal
        labels: CSV file in the data folder with the columns ``image`` (path or name without ``.dcm``) and ``label``
        crop: crop pictures to the scanned region
        burned_in: also read files that declare burned-in text but no region
    """

    name = "dicom"

    def __init__(
        self,
        masks: str | None = None,
        label: str | None = None,
        labels: str | None = None,
        crop: bool = True,
        burned_in: bool = False,
    ) -> None:
        if label is not None and label not in LABELS:
            raise DataError(f"DICOMFolder's label is {label!r}: use {', '.join(LABELS)}")
        self.masks, self.label, self.labels = masks, label, labels
        self.crop, self.burned_in = crop, burned_in

    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        passed = PassedOver()
        files = self._files(root, passed)
        if not files:
            raise DataError(f"{root} holds no DICOM files (*.dcm, or files with the DICOM mark)")
        labels = self._read_labels(root, Counter(map(_stem, files)))
        samples: list[Sample] = []
        problems: list[Problem] = []
        headers: dict[int, dicom.Header] = {}
        for number, path in enumerate(files, 1):
            where = f"DICOM file {number} of {len(files)} (by path)"
            try:
                headers[number] = dicom.read_header(path)
            except dicom.NotUltrasound as other:
                message = f"{where} is left out: it is not an ultrasound image ({other.kind})"
                problems.append(Problem("left out: no ultrasound", root, message, wrong=False))
            except DataError as error:
                if "pip install" in str(error):
                    raise
                problems.append(Problem("unreadable image", root, f"{where} cannot be read: replace or remove it"))
        names = _names({files[number - 1]: header.file for number, header in headers.items()})
        known: set[str] = set()
        for number, header in headers.items():
            path, where = files[number - 1], f"DICOM file {number} of {len(files)} (by path)"
            name = names[path]
            if name in known:
                message = f"{name} is there more than once: {where} is left out"
                problems.append(Problem("left out: same file again", root, message, wrong=False))
                continue
            known.add(name)
            if header.burned_in and not self.burned_in and (header.box is None or not self.crop):
                message = f"{name} is left out: it declares burned-in text but no region to crop to ({where})"
                problems.append(Problem("left out: burned-in text", root, message, wrong=False))
                continue
            own = self._frames(path, root, header, name, labels)
            if not own:
                message = f"{name} has no mask (<its name>_mask.png): add it or remove the file ({where})"
                problems.append(Problem("image without mask", root, message, name))
            samples += own
        return sorted(samples, key=lambda sample: natural_key(sample.id)), problems + passed_over(passed, root)

    @staticmethod
    def _files(root: Path, passed: PassedOver) -> list[Path]:
        """DICOM files of the folder and its sub-folders, following links; DICOMDIR and pictures do not count."""
        files: list[Path] = []
        for listing in walk(root, passed):
            if not listing.readable:
                passed.add("folder that may not be listed")
            for path in listing.files:
                if path.name != "DICOMDIR" and dicom.is_dicom(path):
                    files.append(path)
                elif path.suffix.lower() not in (*IMAGE_SUFFIXES, *DOCUMENTS):  # masks and tables are expected here
                    passed.add("no DICOM")
        return sorted(files, key=lambda path: natural_key(str(path)))

    def _frames(self, path: Path, root: Path, header: dicom.Header, name: str, labels: dict[str, str]) -> list[Sample]:
        stem = _stem(path)
        inner = path.parent.relative_to(root)
        folder = (root / self.masks if self.masks else root) / inner
        keys = ((inner / stem).as_posix(), stem)
        label = next((labels[key] for key in keys if key in labels), None) or self._label(inner)
        sample = Sample(
            name,
            path,
            (),
            label,
            group=header.patient,
            source=self.name,
            box=header.box if self.crop else None,
            spacing=header.spacing,
            private=True,
        )
        if header.frames == 1:
            mask = folder / f"{stem}_mask.png"
            if not mask.is_file() and label != "normal":
                return []
            return [replace(sample, masks=(mask,) if mask.is_file() else ())]
        masks = [folder / f"{stem}_frame{frame}_mask.png" for frame in range(header.frames)]
        return [
            replace(sample, id=f"{name} frame {frame}", frame=frame, masks=(mask,))
            for frame, mask in enumerate(masks)
            if mask.is_file()
        ]

    def _label(self, inner: Path) -> str:
        if self.label is not None:
            return self.label
        return next((part.lower() for part in reversed(inner.parts) if part.lower() in LABELS), "unknown")

    def _read_labels(self, root: Path, files: Mapping[str, int]) -> dict[str, str]:
        if self.labels is None:
            return {}
        table = read_table(root / self.labels, "the labels")
        if not {"image", "label"} <= set(table.columns):
            raise DataError(f"{self.labels} needs the columns image and label")
        labels = [label.strip().lower() or "unknown" for label in table["label"]]
        for line, label in enumerate(labels, 2):
            if label not in LABELS:
                raise DataError(f"line {line} of {self.labels} has an unknown class: use {', '.join(LABELS)}")
        names = [image.strip().replace("\\", "/") for image in table["image"]]
        stems = [(Path(name).parent / _stem(Path(name))).as_posix() for name in names]
        for line, stem in enumerate(stems, 2):
            if files.get(stem, 0) > 1:
                raise DataError(
                    f"line {line} of {self.labels} could mean {files[stem]} files: give the path in the folder"
                )
        return values_by_name(stems, labels, root / self.labels, private=True)


def _stem(path: Path) -> str:
    """Name without ``.dcm``; names such as 1.2.840.113619 have no suffix."""
    return path.stem if path.suffix.lower() in dicom.SUFFIXES else path.name


def _names(files: Mapping[Path, str]) -> dict[Path, str]:
    """The name of each file's sample: the pseudonym of its identifier, and of its content where several share one."""
    names = {path: f"dicom {identifier}" for path, identifier in files.items()}
    counts = Counter(names.values())
    contents = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path, name in names.items() if counts[name] > 1}
    differ = Counter(name for name, _ in {(names[path], content) for path, content in contents.items()})
    return names | {
        path: f"{names[path]}-{dicom.pseudonym(content)}"
        for path, content in contents.items()
        if differ[names[path]] > 1
    }
