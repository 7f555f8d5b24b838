"""The audit of `bustseg data check` as one self-contained HTML file without scripts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bustseg.data.artefacts import find_artefacts
from bustseg.data.audit import AuditReport
from bustseg.data.duplicates import Pair
from bustseg.data.sources import Problem, Sample
from bustseg.errors import DataError
from bustseg.figures.histogram import class_histogram
from bustseg.figures.style import CLASSES
from bustseg.reports.render import data_uri
from bustseg.reports.render import render as render_template

_WIDTH = 190  # pixels of a picture
_PAIRS = 400  # most pairs with pictures, which keeps the file below 10 MB
_SUSPECTS = 60  # most pairs below the threshold
_STRIP = 30  # most pictures of calipers, text and outliers each


def write_report(report: AuditReport, path: Path) -> None:
    """Write the audit as a self-contained HTML file.

    Args:
        report: result of :func:`bustseg.data.audit.audit`, with its samples
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(report), encoding="utf-8")


def render(report: AuditReport) -> str:
    """The audit as HTML text."""
    pictures = _Pictures(report.samples)
    sections, hidden = _duplicates(report, pictures)
    return render_template(
        "audit.html.j2",
        title=f"Audit of {report.source}",
        report=report,
        counts=report.counts(),
        classes=", ".join(f"{number} {label}" for label, number in report.classes().items()),
        cards=_cards(report),
        problems=_problems(report),
        groups=len(set(report.groups.values())),
        duplicates=sections,
        hidden_pairs=hidden,
        suspects=_pairs(report.suspects[:_SUSPECTS], pictures),
        artefacts=_artefacts(report, pictures),
        statistics=_statistics(report),
        plots=_plots(report),
        outliers=[
            {
                "picture": pictures.picture(outlier["image"]),
                "note": f"{outlier['what']} {outlier['value']:.3g}",
            }
            for outlier in report.outliers[:_STRIP]
        ],
    )


class _Pictures:
    """Small JPEG pictures of the samples with outlined lesions, each encoded once."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = {sample.id: sample for sample in samples}
        self._done: dict[tuple[str, bool], dict[str, Any]] = {}

    def picture(self, image: str, marked: bool = False) -> dict[str, Any]:
        """The page's data of an image: ``image``, ``colour``, ``uri``, ``width`` and ``height``.

        There is no ``uri`` if it cannot be read.
        """
        key = (image, marked)
        if key not in self._done:
            sample = self._samples[image]
            colour = CLASSES.get(sample.label, CLASSES["unknown"])
            self._done[key] = {"image": image, "colour": colour, "uri": "", **self._encode(sample, marked)}
        return self._done[key]

    def _encode(self, sample: Sample, marked: bool) -> dict[str, Any]:
        try:
            image = sample.read_native()
        except DataError:
            return {}
        canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        scale = _WIDTH / canvas.shape[1]
        boxes = []
        if marked:
            found = find_artefacts(image)
            boxes = found.calipers + found.text
        small = cv2.resize(canvas, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if not marked:
            _draw_outline(small, sample, (image.shape[0], image.shape[1]))
        for x, y, width, height in boxes:
            corners = [int(v * scale) for v in (x - 4, y - 4, x + width + 4, y + height + 4)]
            cv2.rectangle(small, (corners[0], corners[1]), (corners[2], corners[3]), (60, 200, 255), 1)
        done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 72])
        if not done:
            return {}
        return {
            "uri": data_uri(data.tobytes(), "image/jpeg"),
            "width": small.shape[1],
            "height": small.shape[0],
        }


def _draw_outline(small: np.ndarray, sample: Sample, shape: tuple[int, int]) -> None:
    try:
        mask = sample.read_mask(shape)
    except DataError:
        return
    size = (small.shape[1], small.shape[0])
    shrunk = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    outlines, _ = cv2.findContours((shrunk > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(small, outlines, -1, (210, 220, 60), 1, cv2.LINE_AA)


def _cards(report: AuditReport) -> list[tuple[int, str]]:
    counts = report.counts()
    return [
        (counts["images"], "images"),
        (counts["images_with_several_masks"], "with several masks"),
        (counts["duplicate_groups"], "groups of duplicates"),
        (counts["images_in_groups"], "images in such a group"),
        (counts["cross_class_pairs"], "duplicates across classes"),
        (counts["contradicting_pairs"], "duplicates whose masks disagree"),
        (counts["coloured_overlays"], "with coloured overlays"),
        (counts["images_with_calipers"], "with calipers"),
        (counts["images_with_text"], "with burned-in text"),
    ]


def _problems(report: AuditReport) -> list[dict[str, str]]:
    rows = [{"tag": "wrong", "kind": problem.kind, "message": problem.message} for problem in report.wrong]
    notes: dict[str, list[Problem]] = defaultdict(list)
    for problem in report.problems:
        if not problem.wrong:
            notes[problem.kind].append(problem)
    for kind, own in notes.items():  # there may be dozens of notes: one row per kind
        others = ", ".join(problem.image or problem.path.name for problem in own[1:])
        message = own[0].message + (f"; the same with {others}" if others else "")
        rows.append({"tag": "note", "kind": kind, "message": message})
    return rows


def _duplicates(report: AuditReport, pictures: _Pictures) -> tuple[list[dict[str, Any]], int]:
    """Sections of pairs, the worst kind first, and the number of pairs without pictures."""
    shown = 0
    contradicting = {(pair.first, pair.second) for pair in report.contradictions}
    kinds: list[tuple[str, Callable[[Pair], bool]]] = [
        ("Across classes", lambda pair: pair.cross_class),
        ("Masks disagree", lambda pair: (pair.first, pair.second) in contradicting),
        ("Mirrored", lambda pair: pair.kind == "mirrored"),
        ("Further pairs", lambda pair: True),
    ]
    left = list(report.pairs)
    sections = []
    for heading, belongs in kinds:
        own, left = [pair for pair in left if belongs(pair)], [pair for pair in left if not belongs(pair)]
        if own:
            pictured = own[: _PAIRS - shown]
            sections.append({"heading": heading, "count": len(own), "pairs": _pairs(pictured, pictures)})
            shown += len(pictured)
    return sections, len(report.pairs) - shown


def _pairs(pairs: Sequence[Pair], pictures: _Pictures) -> list[dict[str, Any]]:
    return [
        {
            "score": pair.score,
            "kind": pair.kind,
            "cross_class": pair.cross_class,
            "ssim": pair.ssim,
            "dice": "" if pair.mask_dice is None else f"{pair.mask_dice:.2f}",
            "first": pictures.picture(pair.first),
            "second": pictures.picture(pair.second),
        }
        for pair in pairs
    ]


def _artefacts(report: AuditReport, pictures: _Pictures) -> list[dict[str, Any]]:
    sections = []
    for heading, images in (
        ("Coloured overlays", [record.image for record in report.records if record.overlay]),
        ("Calipers", [record.image for record in report.records if record.calipers]),
        ("Burned-in text", [record.image for record in report.records if record.text]),
    ):
        shown = images[:: max(1, -(-len(images) // _STRIP))]
        sections.append(
            {
                "heading": heading,
                "count": len(images),
                "sampled": len(shown) < len(images),
                "pictures": [pictures.picture(image, marked=True) for image in shown],
                "images": images,
            }
        )
    return sections


def _statistics(report: AuditReport) -> list[dict[str, Any]]:
    names = {
        "width": "width (pixels)",
        "height": "height (pixels)",
        "mean": "mean grey level",
        "deviation": "deviation of grey levels",
        "lesion": "lesion, share of its image",
    }
    columns = ("least", "p5", "median", "p95", "most")
    return [{"name": names[name], "values": [row[key] for key in columns]} for name, row in report.statistics().items()]


def _plots(report: AuditReport) -> list[dict[str, str]]:
    lesions = {
        label: [100 * record.lesion for record in report.records if record.label == label and record.lesion]
        for label in report.classes()
    }
    means = {
        label: [record.mean for record in report.records if record.label == label and record.mean is not None]
        for label in report.classes()
    }
    series: Mapping[str, Mapping[str, Sequence[float]]] = {"lesion, % of its image": lesions, "mean grey level": means}
    drawn = {title: class_histogram(values, title) for title, values in series.items()}
    return [{"title": title, "uri": data_uri(content, "image/svg+xml")} for title, content in drawn.items() if content]
