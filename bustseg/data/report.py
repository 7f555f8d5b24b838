"""The audit as one HTML file that needs nothing else: no script, no network, every picture inside it."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from bustseg.data.artefacts import find_artefacts
from bustseg.data.audit import AuditReport
from bustseg.data.duplicates import Pair
from bustseg.data.sources import Problem, Sample
from bustseg.errors import DataError

_WIDTH = 190  # pixels of a picture
_PAIRS = 400  # pairs pictured at most, which keeps the file below 10 MB
_STRIP = 30  # pictures of calipers, text and outliers at most
_COLOURS = {"benign": "#2a7f9e", "malignant": "#b4532a", "normal": "#6b7f3a", "unknown": "#777777"}

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2329; background: #f4f5f6; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 38px 0 8px; } h3 { font-size: 15px; margin: 22px
0 8px; } p { margin: 6px 0 12px; max-width: 80ch; } .quiet { color: #5c6770; max-width: none; } .verdict { padding: 10px
14px; border-left: 5px solid #4b8b3b; background: #fff; font-weight: 600; } .verdict.wrong { border-color: #b3261e; }
.cards {
display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 10px; margin: 16px 0; } .card {
background: #fff; border-radius: 6px; padding: 10px 12px; } .card b { display: block; font-size: 23px; line-height: 1.2;
} table { border-collapse: collapse; background: #fff; width: 100%; font-size: 14px; } th, td { text-align: left;
padding: 5px 10px; border-bottom: 1px solid #e3e6e8; vertical-align: top; overflow-wrap: anywhere; } td.n, th.n {
text-align: right; font-variant-numeric: tabular-nums; } .pairs { display: grid; grid-template-columns:
repeat(auto-fill, minmax(385px, 1fr)); gap: 12px; } .pair { background: #fff; border-radius: 6px; padding: 9px;
break-inside: avoid; } .sides { display: flex; gap: 8px; } figure { margin: 0; width: 190px; } figure img { display:
block; width: 100%; } figcaption { font-size: 13px; } .score { font-size: 13px; margin-bottom: 5px;
font-variant-numeric: tabular-nums; } .tag { border-radius: 3px; padding: 0 6px; color: #fff; background: #5c6770;
font-size: 12px; margin-left: 4px; white-space: nowrap; } .tag.bad { background: #b3261e; } .strip { display: flex;
flex-wrap: wrap; gap: 10px; } .plots { display: flex; flex-wrap: wrap; gap: 18px; } .plots svg { background: #fff;
border-radius: 6px; } @media print { body { background: #fff; font-size: 11px; } main { max-width: none; padding: 0; }
h2 { break-after: avoid; } }
"""


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
    body = "\n".join(
        [
            _summary(report),
            _problems(report),
            _duplicates(report, pictures),
            _artefacts(report, pictures),
            _statistics(report, pictures),
        ]
    )
    title = escape(f"Audit of {report.source}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


class _Pictures:
    """Small JPEG pictures of the samples with the outline of their lesions, each encoded once."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = {sample.id: sample for sample in samples}
        self._done: dict[tuple[str, bool], str] = {}

    def figure(self, image: str, note: str = "", marked: bool = False) -> str:
        key = (image, marked)
        if key not in self._done:
            self._done[key] = self._encode(self._samples[image], marked)
        label = self._samples[image].label
        colour = _COLOURS.get(label, _COLOURS["unknown"])
        caption = f'<span style="color:{colour}">&#9632;</span> {escape(image)}'
        if note:
            caption += f' <span class="quiet">{escape(note)}</span>'
        return f"<figure>{self._done[key]}<figcaption>{caption}</figcaption></figure>"

    def _encode(self, sample: Sample, marked: bool) -> str:
        try:
            image = sample.read_native()
        except DataError:
            return '<div class="quiet">cannot be read</div>'
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
            return ""
        text = base64.b64encode(data.tobytes()).decode()
        size = f'width="{small.shape[1]}" height="{small.shape[0]}"'
        return f'<img alt="{escape(sample.id)}" {size} style="height:auto" src="data:image/jpeg;base64,{text}">'


def _draw_outline(small: np.ndarray, sample: Sample, shape: tuple[int, int]) -> None:
    try:
        mask = sample.read_mask(shape)
    except DataError:
        return
    size = (small.shape[1], small.shape[0])
    shrunk = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    outlines, _ = cv2.findContours((shrunk > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(small, outlines, -1, (210, 220, 60), 1, cv2.LINE_AA)


def _summary(report: AuditReport) -> str:
    counts = report.counts()
    classes = ", ".join(f"{number} {escape(label)}" for label, number in report.classes().items())
    wrong = counts["wrong"]
    verdict = (
        f'<p class="verdict wrong">Training on this data would be wrong: {wrong} problem(s) to mend first.</p>'
        if wrong
        else '<p class="verdict">Every image and mask can be read and fits its class.</p>'
    )
    cards = [
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
    boxes = "".join(f'<div class="card"><b>{number}</b>{label}</div>' for number, label in cards)
    advice = ""
    if counts["duplicate_groups"]:
        advice = (
            "<p>Under a random split, copies of training images stand in the test set. "
            "Use the <code>grouped</code> scheme of <code>bustseg data split</code>.</p>"
        )
    return (
        f"<h1>Audit of {escape(report.source)}</h1>"
        f'<p class="quiet">{escape(report.root)} &middot; {classes} &middot; {report.seconds:.0f} s</p>'
        f'{verdict}<div class="cards">{boxes}</div>{advice}'
    )


def _problems(report: AuditReport) -> str:
    if not report.problems:
        return "<h2>Files and masks</h2><p>No problem found.</p>"
    rows = [("wrong", problem.kind, problem.message) for problem in report.wrong]
    notes: dict[str, list[Problem]] = defaultdict(list)
    for problem in report.problems:
        if not problem.wrong:
            notes[problem.kind].append(problem)
    for kind, own in notes.items():  # notes come in dozens: one row each kind
        others = ", ".join(problem.image or problem.path.name for problem in own[1:])
        rows.append(("note", kind, own[0].message + (f"; the same with {others}" if others else "")))
    cells = "".join(
        f"<tr><td>{_tag(tag, bad=tag == 'wrong')}</td><td>{escape(kind)}</td><td>{escape(message)}</td></tr>"
        for tag, kind, message in rows
    )
    return f"<h2>Files and masks</h2><table><tr><th></th><th>What</th><th>Where</th></tr>{cells}</table>"


def _duplicates(report: AuditReport, pictures: _Pictures) -> str:
    parts = [
        "<h2>Duplicates</h2>",
        f"<p>{len(report.pairs)} pairs score {report.threshold:g} or more; they form "
        f"{len(set(report.groups.values()))} groups. "
        "The score is the correlation of the two images after alignment and removal of local brightness and contrast; "
        "SSIM is taken after alignment at 128 x 128. The line marks the lesion's mask.</p>",
    ]
    if not report.pairs:
        parts.append("<p>No duplicates found.</p>")
    shown = 0
    contradicting = set(map(_key, report.contradictions))
    sections: list[tuple[str, Callable[[Pair], bool]]] = [
        ("Across classes", lambda pair: pair.cross_class),
        ("Masks disagree", lambda pair: _key(pair) in contradicting),
        ("Mirrored", lambda pair: pair.kind == "mirrored"),
        ("Further pairs", lambda pair: True),
    ]
    left = list(report.pairs)
    for heading, belongs in sections:
        own, left = [pair for pair in left if belongs(pair)], [pair for pair in left if not belongs(pair)]
        if own:
            parts.append(f"<h3>{heading} ({len(own)})</h3>")
            parts.append(_pair_grid(own[: _PAIRS - shown], pictures))
            shown += len(own[: _PAIRS - shown])
    if shown < len(report.pairs):
        parts.append(f"<p>{len(report.pairs) - shown} more pairs are in the JSON report only.</p>")
    if report.suspects:
        parts.append(
            f"<h2>Suspects</h2><p>{len(report.suspects)} pairs fall short of the threshold but may be other frames of "
            "one lesion. They do not form groups; lower the threshold to include them.</p>"
        )
        parts.append(_pair_grid(report.suspects[:60], pictures))
    return "\n".join(parts)


def _key(pair: Pair) -> tuple[str, str]:
    return pair.first, pair.second


def _pair_grid(pairs: Sequence[Pair], pictures: _Pictures) -> str:
    cells = []
    for pair in pairs:
        tags = _tag(pair.kind) + (_tag("two classes", bad=True) if pair.cross_class else "")
        dice = "" if pair.mask_dice is None else f" &middot; Dice of masks {pair.mask_dice:.2f}"
        cells.append(
            f'<div class="pair"><div class="score"><b>{pair.score:.3f}</b>{tags}<br>SSIM {pair.ssim:.3f}{dice}</div>'
            f'<div class="sides">{pictures.figure(pair.first)}{pictures.figure(pair.second)}</div></div>'
        )
    return f'<div class="pairs">{"".join(cells)}</div>'


def _artefacts(report: AuditReport, pictures: _Pictures) -> str:
    parts = [
        "<h2>Overlays, calipers and text</h2>",
        "<p>Found by simple detectors of coloured pixels, crosses and lines of letters with hard edges. "
        "A network can learn to look at them instead of the lesion.</p>",
    ]
    for heading, images in (
        ("Coloured overlays", [record.image for record in report.records if record.overlay]),
        ("Calipers", [record.image for record in report.records if record.calipers]),
        ("Burned-in text", [record.image for record in report.records if record.text]),
    ):
        shown = images[:: max(1, -(-len(images) // _STRIP))]
        sample = f", {len(shown)} of them pictured" if len(shown) < len(images) else ""
        parts.append(f"<h3>{heading} ({len(images)}{sample})</h3>")
        parts.append(f'<div class="strip">{"".join(pictures.figure(image, marked=True) for image in shown)}</div>')
        if sample:
            parts.append(f'<p class="quiet">{escape(", ".join(images))}</p>')
    return "\n".join(parts)


def _statistics(report: AuditReport, pictures: _Pictures) -> str:
    units = {
        "width": "width (pixels)",
        "height": "height (pixels)",
        "mean": "mean grey level",
        "deviation": "deviation of grey levels",
        "lesion": "lesion, share of its image",
    }
    rows = "".join(
        f"<tr><td>{units[name]}</td>"
        + "".join(f'<td class="n">{row[key]:.4g}</td>' for key in ("least", "p5", "median", "p95", "most"))
        + "</tr>"
        for name, row in report.statistics().items()
    )
    heads = "".join(f'<th class="n">{name}</th>' for name in ("least", "5 %", "median", "95 %", "most"))
    parts = [f"<h2>Statistics</h2><table><tr><th></th>{heads}</tr>{rows}</table>"]
    lesions = {
        label: [100 * record.lesion for record in report.records if record.label == label and record.lesion]
        for label in report.classes()
    }
    means = {
        label: [record.mean for record in report.records if record.label == label and record.mean is not None]
        for label in report.classes()
    }
    plots = _histogram(lesions, "lesion, % of its image") + _histogram(means, "mean grey level")
    parts.append(f'<div class="plots" style="margin-top:14px">{plots}</div>')
    if report.outliers:
        parts.append("<h3>Outliers</h3><p>More than three interquartile ranges beyond the quartiles.</p>")
        figures = "".join(
            pictures.figure(outlier["image"], f"{outlier['what']} {outlier['value']:.3g}")
            for outlier in report.outliers[:_STRIP]
        )
        parts.append(f'<div class="strip">{figures}</div>')
    return "\n".join(parts)


def _histogram(series: dict[str, list[float]], title: str) -> str:
    """Stacked histogram by class as SVG."""
    series = {label: values for label, values in series.items() if values}
    if not series:
        return ""
    width, height, left, bottom, top = 540, 220, 40, 34, 30
    edges = np.linspace(0, max(max(values) for values in series.values()) * 1.0001 + 1e-9, 29)
    counts = {label: np.histogram(values, edges)[0] for label, values in series.items()}
    most = int(np.sum(list(counts.values()), axis=0).max())
    step = (width - left - 12) / (len(edges) - 1)
    tall = height - bottom - top
    base = np.zeros(len(edges) - 1)
    parts = []
    for label, bars in counts.items():
        colour = _COLOURS.get(label, _COLOURS["unknown"])
        for index, bar in enumerate(bars):
            if bar:
                y = top + tall * (1 - (base[index] + bar) / most)
                place = f'x="{left + index * step:.1f}" y="{y:.1f}"'
                size = f'width="{step - 1:.1f}" height="{tall * bar / most:.1f}"'
                parts.append(f'<rect {place} {size} fill="{colour}"/>')
        base += bars
    for share in (0, 0.5, 1):
        x = left + share * (width - left - 12)
        parts.append(f'<text x="{x:.0f}" y="{height - 18}" text-anchor="middle">{edges[-1] * share:.3g}</text>')
        y = top + tall * (1 - share) + 4
        parts.append(f'<text x="{left - 6}" y="{y:.0f}" text-anchor="end">{most * share:.3g}</text>')
    x = left
    for label in series:
        parts.append(f'<rect x="{x}" y="10" width="10" height="10" fill="{_COLOURS.get(label, "#777")}"/>')
        parts.append(f'<text x="{x + 14}" y="19">{escape(label)}</text>')
        x += 30 + 7 * len(label)
    parts.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(title)}</text>')
    parts.append(f'<line x1="{left}" y1="{top + tall}" x2="{width - 12}" y2="{top + tall}" stroke="#1c2329"/>')
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def _tag(text: str, bad: bool = False) -> str:
    return f'<span class="tag{" bad" if bad else ""}">{escape(text)}</span>'
