"""Audit of a data folder: what is wrong with it, and what affects training or reported scores."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bustseg.data import duplicates
from bustseg.data.artefacts import find_artefacts
from bustseg.data.duplicates import SUSPECT, THRESHOLD, Pair
from bustseg.data.facts import Facts, unusable
from bustseg.data.mask_files import HALF
from bustseg.data.sources import Problem, Sample, Source, image_mode, to_grey
from bustseg.errors import DataError
from bustseg.progress import track

_FENCE = 3.0  # interquartile ranges beyond the quartiles where outliers start
_FEWEST = 10  # least number of images for a distribution
_SAME_VIEW = 0.9  # score from which two images show one view, so that their masks should agree
_SPECK = 0.0002  # share of the image; a smaller lesion part (60 pixels in BUSI) is probably not drawn on purpose
_GREY_EDGE = 0.02  # share of mask pixels between black and white that smoothed outlines can explain


@dataclass
class Record:
    """What was found in one image; ``None`` where a file could not be read.

    Attributes:
        image: sample id
        label: its class
        path: image file, relative to the data folder
        width, height: pixels
        mode: colour mode of the file, as Pillow names it
        masks: number of mask files
        mean, deviation: of the grey levels, 0 to 255
        lesion: share of the image that the masks cover
        lesion_mm2: area of the lesion in mm2, where the size of a pixel is known
        parts: connected parts of the lesion
        overlay, calipers, text: see :class:`bustseg.data.artefacts.Artefacts`; calipers and text are counted
    """

    image: str
    label: str
    path: str
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    masks: int = 0
    mean: float | None = None
    deviation: float | None = None
    lesion: float | None = None
    lesion_mm2: float | None = None
    parts: int | None = None
    overlay: bool = False
    calipers: int = 0
    text: int = 0


@dataclass
class AuditReport:
    """Result of :func:`audit`.

    Attributes:
        source: name of the layout
        root: the data folder
        threshold: score from which a pair counts as duplicate
        records: one per image, in natural order
        problems: what is wrong with files and masks; see :attr:`wrong`
        pairs: duplicates, highest score first
        suspects: pairs below the threshold that are worth a look
        groups: group name by image for every image that has a duplicate
        outliers: images whose statistics are far from those of the others
        seconds: how long the audit took
        samples: the samples, for the report's pictures (not in the JSON)
    """

    source: str
    root: str
    threshold: float
    records: list[Record]
    problems: list[Problem]
    pairs: list[Pair]
    suspects: list[Pair]
    groups: dict[str, str]
    outliers: list[dict[str, Any]]
    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list, repr=False)

    @property
    def wrong(self) -> list[Problem]:
        """The problems because of which the data must not be used for training."""
        return [problem for problem in self.problems if problem.wrong]

    @property
    def contradictions(self) -> list[Pair]:
        """Duplicates of one view whose masks disagree (Dice below 0.5), such as a lesion whose copy has none."""
        return [
            pair
            for pair in self.pairs
            if pair.score >= _SAME_VIEW and pair.mask_dice is not None and pair.mask_dice < 0.5
        ]

    def counts(self) -> dict[str, int]:
        """The figures of the summary."""
        return {
            "images": len(self.records),
            "images_with_several_masks": sum(record.masks > 1 for record in self.records),
            "wrong": len(self.wrong),
            "warnings": len(self.problems) - len(self.wrong),
            "duplicate_groups": len(set(self.groups.values())),
            "images_in_groups": len(self.groups),
            "duplicate_pairs": len(self.pairs),
            "exact_pairs": sum(pair.kind == "exact" for pair in self.pairs),
            "mirrored_pairs": sum(pair.kind == "mirrored" for pair in self.pairs),
            "cross_class_pairs": sum(pair.cross_class for pair in self.pairs),
            "contradicting_pairs": len(self.contradictions),
            "suspect_pairs": len(self.suspects),
            "coloured_overlays": sum(record.overlay for record in self.records),
            "images_with_calipers": sum(record.calipers > 0 for record in self.records),
            "images_with_text": sum(record.text > 0 for record in self.records),
            "outliers": len(self.outliers),
        }

    def classes(self) -> dict[str, int]:
        """Number of images by class."""
        return dict(Counter(record.label for record in self.records))

    def statistics(self) -> dict[str, dict[str, float]]:
        """Median, 5th and 95th percentile of size, grey levels and lesion share over the images that could be read."""
        table = {}
        for name in ("width", "height", "mean", "deviation", "lesion"):
            values = [value for record in self.records if (value := getattr(record, name)) is not None]
            if name == "lesion":
                values = [value for value in values if value > 0]
            if values:
                low, middle, high = np.percentile(values, [5, 50, 95])
                table[name] = {
                    "p5": round(float(low), 4),
                    "median": round(float(middle), 4),
                    "p95": round(float(high), 4),
                    "least": round(float(min(values)), 4),
                    "most": round(float(max(values)), 4),
                }
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything as plain dictionaries and lists."""
        problems = [{**asdict(problem), "path": str(problem.path)} for problem in self.problems]
        return {
            "source": self.source,
            "root": self.root,
            "threshold": self.threshold,
            "seconds": round(self.seconds, 1),
            "counts": self.counts(),
            "classes": self.classes(),
            "statistics": self.statistics(),
            "problems": problems,
            "pairs": [asdict(pair) for pair in self.pairs],
            "suspects": [asdict(pair) for pair in self.suspects],
            "groups": self.groups,
            "outliers": self.outliers,
            "images": [asdict(record) for record in self.records],
        }

    def write_json(self, path: Path) -> None:
        """Write :meth:`to_json` to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


def audit(source: Source, root: Path, threshold: float = THRESHOLD, workers: int = 2) -> AuditReport:
    """Check every image and mask under ``root`` and look for duplicates and artefacts.

    Problems are collected, not raised.

    Args:
        threshold: score from which a pair counts as duplicate, see :data:`bustseg.data.duplicates.THRESHOLD`
        workers: threads

    Raises:
        DataError: the folder does not hold the source's layout at all, or the threshold is not in (0, 1]
    """
    if not 0 < threshold <= 1:
        raise DataError(f"the duplicate threshold is {threshold:g}: it must be above 0 and at most 1")
    start = time.perf_counter()
    source.prepare(root)
    samples, problems = source.survey(root)
    with ThreadPoolExecutor(workers) as pool:
        inspected = pool.map(lambda sample: _inspect(sample, root), samples)
        findings = list(track(inspected, "checking images", len(samples)))
    problems = problems + [problem for finding in findings for problem in finding.problems]
    problems += unusable(samples, [finding.facts for finding in findings])
    readable = [finding for finding in findings if finding.thumbnail is not None]
    pairs = duplicates.find_pairs(
        [finding.sample for finding in readable],
        [finding.thumbnail for finding in readable if finding.thumbnail is not None],
        [finding.digest for finding in readable],
        [finding.mask for finding in readable],
        min(threshold, SUSPECT),
        workers,
    )
    found = [pair for pair in pairs if pair.score >= threshold]
    records = [finding.record for finding in findings]
    return AuditReport(
        source=source.name,
        root=str(root),
        threshold=threshold,
        records=records,
        problems=sorted(problems, key=lambda problem: not problem.wrong),
        pairs=found,
        suspects=[pair for pair in pairs if pair.score < threshold],
        groups=duplicates.group_pairs(found),
        outliers=_outliers(records),
        seconds=time.perf_counter() - start,
        samples=samples,
    )


@dataclass
class _Finding:
    sample: Sample
    record: Record
    problems: list[Problem] = field(default_factory=list)
    facts: Facts | None = None
    thumbnail: np.ndarray | None = None
    mask: np.ndarray | None = None
    digest: str = ""

    def add(self, kind: str, path: Path, message: str, wrong: bool = True) -> None:
        self.problems.append(Problem(kind, self.sample.public(path), message, self.sample.id, wrong))


def _inspect(sample: Sample, root: Path) -> _Finding:
    path = sample.image.relative_to(root) if sample.image.is_relative_to(root) else sample.image
    record = Record(sample.id, sample.label, sample.id if sample.private else path.as_posix(), masks=len(sample.masks))
    finding = _Finding(sample, record)
    try:
        native = sample.read_native()
    except DataError as error:
        finding.add("unreadable image", sample.image, str(error))
        return finding
    record.mode = image_mode(sample.image) or ("L" if native.ndim == 2 else "RGB")
    grey = to_grey(native)
    record.height, record.width = grey.shape
    mean, deviation = cv2.meanStdDev(grey)
    record.mean, record.deviation = round(float(mean.item()), 2), round(float(deviation.item()), 2)
    if record.deviation < 1:
        message = f"image {sample.shown(sample.image)} is blank: remove it with its mask"
        finding.add("blank image", sample.image, message)
    artefacts = find_artefacts(native)
    record.overlay, record.calipers, record.text = artefacts.overlay, len(artefacts.calipers), len(artefacts.text)
    finding.thumbnail, finding.digest = duplicates.thumbnail(grey), duplicates.pixel_digest(grey)
    mask = _inspect_masks(finding, (record.height, record.width))
    facts = Facts.of(grey, np.zeros_like(grey) if mask is None else mask.astype(np.uint8))
    if mask is not None or not sample.masks:
        finding.facts = facts
    if record.deviation >= 1 and (facts.nearly_black or facts.nearly_white):
        colour = "black" if facts.nearly_black else "white"
        message = (
            f"image {sample.shown(sample.image)} is nearly {colour} (all but a hundredth of its levels lie between "
            f"{facts.low} and {facts.high} of 255): scale its levels to 0..255, or remove it"
        )
        finding.add(f"nearly {colour} image", sample.image, message)
    if mask is not None:
        finding.mask = duplicates.thumbnail(mask.astype(np.uint8) * 255)
        record.lesion = round(float(mask.mean()), 6)
        _inspect_lesion(finding, mask)
    return finding


def _inspect_masks(finding: _Finding, shape: tuple[int, int]) -> np.ndarray | None:
    """Union of the masks that fit; None when one does not, or when there is none."""
    union = np.zeros(shape, bool)
    whole = bool(finding.sample.masks)
    for path in finding.sample.masks:
        try:
            mask = finding.sample.read_mask_file(path)
        except DataError as error:
            finding.add("unreadable mask", path, str(error))
            whole = False
            continue
        if mask.lesion.shape != shape:
            finding.add("mask of another size", path, finding.sample.wrong_size(path, mask.lesion.shape, shape))
            whole = False
            continue
        if mask.fault:
            finding.add(mask.kind, path, f"mask {finding.sample.shown(path)} {mask.fault}")
            whole = False
        elif finding.sample.lesion_above == HALF:  # otherwise the source defines what the levels mean
            _inspect_levels(finding, path, mask.levels)
        union |= mask.lesion
    return union if whole else None


def _inspect_levels(finding: _Finding, path: Path, mask: np.ndarray) -> None:
    levels = np.bincount(mask.ravel(), minlength=256)
    lit, between = int(levels[1:].sum()), int(levels[1:255].sum())
    if between:
        unclear = between > _GREY_EDGE * lit
        message = (
            f"mask {finding.sample.shown(path)} is not binary: {between} of {lit} lit pixels are grey (read as lesion "
            "above half of white)"
        )
        finding.add("non-binary mask", path, message, wrong=unclear and int(levels[64:192].sum()) > 0.2 * lit)


def _inspect_lesion(finding: _Finding, mask: np.ndarray) -> None:
    sample, first = finding.sample, finding.sample.masks[0]
    shown = sample.shown(first)
    if sample.spacing is not None:
        finding.record.lesion_mm2 = round(float(mask.sum()) * sample.spacing[0] * sample.spacing[1], 2)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    finding.record.parts = count - 1
    if sample.label == "normal" and mask.any():
        message = f"mask {shown} is not empty but {sample.id} is normal: empty the mask or correct the class"
        finding.add("non-empty mask of a normal", first, message)
    specks = int((stats[1:, cv2.CC_STAT_AREA] < _SPECK * mask.size).sum())
    if specks:
        message = f"the masks of {sample.id} have {specks} part(s) of a few pixels only: clean them"
        finding.add("specks in a mask", first, message, wrong=False)


def _outliers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Images beyond Tukey's outer fences: more than three interquartile ranges from the middle half.

    Areas, shapes and lesion sizes (these by class) are compared as logarithms.
    """
    found: list[dict[str, Any]] = []

    def look(what: str, values: dict[str, float], logarithm: bool = False) -> None:
        if len(values) < _FEWEST:
            return
        scale = np.log if logarithm else np.asarray
        scaled = np.asarray(scale(np.array(list(values.values()))), dtype=float)
        low, high = np.quantile(scaled, [0.25, 0.75])
        for (image, value), own in zip(values.items(), scaled, strict=True):
            ranges = float(max(low - own, own - high) / max(high - low, 1e-6))
            if ranges > _FENCE:
                found.append({"image": image, "what": what, "value": round(value, 4), "ranges": round(ranges, 1)})

    look("mean grey level", {record.image: record.mean for record in records if record.mean is not None})
    look("contrast", {record.image: record.deviation for record in records if record.deviation is not None})
    sizes = {record.image: (record.width, record.height) for record in records if record.width and record.height}
    look("area in pixels", {image: float(width * height) for image, (width, height) in sizes.items()}, True)
    look("width to height", {image: width / height for image, (width, height) in sizes.items()}, True)
    for label in sorted({record.label for record in records}):
        own = {record.image: record.lesion for record in records if record.label == label and record.lesion}
        look(f"lesion share among {label}", own, True)
    return sorted(found, key=lambda outlier: -outlier["ranges"])
