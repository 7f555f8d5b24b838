"""``gallery.html`` of `bustseg predict`: every image with its outline, those that a person should look at first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from bustseg.reports.render import data_uri, render

EMBEDDED = 300
"""Most pictures that are embedded in the page, so that it can be sent as one file; further ones are linked."""

_SIDE = 360
"""Longest side of an embedded picture, in pixels."""


@dataclass(frozen=True)
class _Shown:
    """One image on the page.

    Attributes:
        name: name of its files
        picture: address of its picture; empty when it has none
        link: address of the overlay in full size; empty when it has none
        confidence, area, reason: as text; empty when there is none
        flagged: whether a person should look at it
    """

    name: str
    picture: str
    link: str
    confidence: str
    area: str
    reason: str
    flagged: bool


def gallery_page(rows: Iterable[Mapping[str, str]], folder: Path, head: Mapping[str, Any]) -> str:
    """The page, which works from disk and loads nothing from elsewhere.

    Args:
        rows: rows of ``predictions.csv``; those with an error are left out
        folder: folder of the predictions, which contains the overlays
        head: content of ``predictions.json``: model, threshold, notice
    """
    done = [row for row in rows if not row["error"]]
    # flagged images first, each part from the least confident; without confidences in the order of the input
    done.sort(key=lambda row: (row["look_at_this"] != "1", float(row["confidence"] or 1)))
    shown = [_shown(row, folder, embedded=place < EMBEDDED) for place, row in enumerate(done)]
    return render(
        "gallery.html.j2",
        title="Predictions",
        images=shown,
        flagged=sum(image.flagged for image in shown),
        model=head.get("called", head["model"]["name"]),
        digest=head["model"]["digest"][:12],
        threshold=head["threshold"],
        notice=head["notice"],
    )


def _shown(row: Mapping[str, str], folder: Path, embedded: bool) -> _Shown:
    name = row["mask"].removeprefix("masks/").removesuffix(".png")
    overlay = folder / "overlays" / f"{name}.png"
    link = quote(os.fsencode(f"overlays/{name}.png")) if overlay.is_file() else ""
    area = f"{float(row['area_mm2']):.0f} mm²" if row["area_mm2"] else f"{int(row['area_px']):,} px"
    return _Shown(
        name=name,
        picture=(_thumbnail(overlay) if embedded else link) if link else "",
        link=link,
        confidence=f"{float(row['confidence']):.2f}" if row["confidence"] else "",
        area=area if int(row["area_px"]) else "nothing found",
        reason=row["reason"],
        flagged=row["look_at_this"] == "1",
    )


def _thumbnail(path: Path) -> str:
    """A reduced picture as a data URI; empty when the file is damaged."""
    # not OpenCV's imread, which crashes on names that are not UTF-8
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        return ""
    scale = min(_SIDE / max(picture.shape[:2]), 1)
    size = (max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 82])
    return data_uri(content.tobytes(), "image/jpeg")
