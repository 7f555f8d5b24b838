"""Find what a scanner or reader drew into an image: coloured overlays, calipers, text.

The detectors are simple rules, not trained. Drawn strokes differ from tissue in their edges: a stroke is bright, thin
and has an edge one pixel wide, while speckle is blurred by the beam. ``tests/data/artefact_labels.csv`` holds 180
images of BUSI labelled by eye, on which precision and recall are measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_STROKE = 9  # pixels; a stroke is thinner than this
_BRIGHT = 130  # grey level of the faintest strokes
_STEP = 45  # grey levels across a stroke's edge
_HARD = 0.6  # share of a stroke's edge that must be that steep
_ARMS = range(4, 10)  # length in pixels of a caliper cross's arms
_CROSS = 0.70  # correlation with the drawn cross; letters stay below or lack an arm
_SATURATION = 60  # least spread of a coloured pixel's channels
_COLOURED = 100  # least number of coloured pixels in an overlay

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Artefacts:
    """What was found in one image; boxes are (left, top, width, height) in pixels.

    Attributes:
        overlay: coloured pixels of Doppler flow or coloured markers
        calipers: crosses that mark the ends of a measurement
        text: lines of burned-in letters; a caliper's number and the scanner's mark in the upper corners do not count
    """

    overlay: bool
    calipers: list[Box]
    text: list[Box]


def find_artefacts(image: np.ndarray) -> Artefacts:
    """Look for artefacts in an image from :func:`bustseg.data.sources.read_native`, (H, W) or (H, W, 3)."""
    overlay = False
    if image.ndim == 3:
        high, low = image.max(2), image.min(2)
        overlay = int(np.count_nonzero(high - low > _SATURATION)) >= _COLOURED
        image = high  # a yellow stroke is as bright as a white one
    strokes = _Strokes(image)
    calipers = _find_crosses(strokes)
    return Artefacts(overlay, calipers, _find_text(strokes, calipers))


class _Strokes:
    """Connected bright strokes of an image and the sharpness of their edges."""

    def __init__(self, image: np.ndarray) -> None:
        self.shape = image.shape
        top_hat = cv2.morphologyEx(image, cv2.MORPH_TOPHAT, np.ones((_STROKE, _STROKE), np.uint8))
        drawn = (top_hat > 50) & (image >= _BRIGHT)
        count, self.labels, stats, _ = cv2.connectedComponentsWithStats(drawn.astype(np.uint8), connectivity=8)
        # the darkest of a pixel's four neighbours outside the stroke
        outside = np.where(drawn, np.uint8(255), image)
        cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        bounded = drawn & (cv2.erode(drawn.astype(np.uint8), cross) == 0)
        at = np.flatnonzero(bounded)
        step = image.ravel()[at].astype(np.int16) - cv2.erode(outside, cross).ravel()[at]
        label = self.labels.ravel()[at]
        edge = np.bincount(label, minlength=count)
        hard = np.bincount(label[step >= _STEP], minlength=count)
        at = np.flatnonzero(drawn)
        total = np.bincount(self.labels.ravel()[at], weights=image.ravel()[at], minlength=count)
        self.boxes = stats[:, :4]
        self.area = stats[:, 4]
        self.hardness = hard / np.maximum(edge, 1)
        self.level = total / np.maximum(self.area, 1)
        self.hardness[0] = 0  # the background


def _find_crosses(strokes: _Strokes) -> list[Box]:
    width, height = strokes.boxes[:, 2], strokes.boxes[:, 3]
    hard = (strokes.hardness >= _HARD) & (strokes.area >= 5) & (np.maximum(width, height) <= 80)
    # the dotted line that starts at a cross may break it, so look around every piece of some size
    seeds = np.flatnonzero(hard & (np.maximum(width, height) >= 6) & (strokes.area >= 10))
    if not len(seeds):
        return []
    margin = max(_ARMS) + 4
    mask = cv2.copyMakeBorder(
        hard[strokes.labels].astype(np.float32), margin, margin, margin, margin, cv2.BORDER_CONSTANT
    )
    found: list[tuple[float, Box]] = []
    for seed in seeds:
        x, y, w, h = (int(value) for value in strokes.boxes[seed])
        window = mask[y : y + h + 2 * margin, x : x + w + 2 * margin]
        best: tuple[float, Box] | None = None
        for template, arms in _CROSSES:
            side = template.shape[0]
            match = cv2.matchTemplate(window, template, cv2.TM_CCOEFF_NORMED)
            row, column = np.unravel_index(int(np.argmax(np.nan_to_num(match))), match.shape)
            score = float(match[row, column])
            part = window[row : row + side, column : column + side]
            # a T is similar but lacks the fourth arm
            if score >= _CROSS and (best is None or score > best[0]) and all(part[arm].mean() >= 0.6 for arm in arms):
                best = (score, (x - margin + int(column) + 2, y - margin + int(row) + 2, side - 4, side - 4))
        if best is not None:
            found.append(best)
    kept: list[Box] = []
    for _, box in sorted(found, reverse=True):
        if all(abs(box[0] - other[0]) > 5 or abs(box[1] - other[1]) > 5 for other in kept):
            kept.append(box)
    return kept


def _draw_crosses() -> list[tuple[np.ndarray, list[tuple[slice, slice]]]]:
    crosses = []
    for arm in _ARMS:
        for thick in (1, 2, 3):
            side = 2 * arm + thick
            template = np.zeros((side + 4, side + 4), np.float32)
            middle, first, last = slice(arm + 2, arm + 2 + thick), slice(2, arm + 2), slice(arm + 2 + thick, side + 2)
            template[middle, 2:-2] = template[2:-2, middle] = 1
            crosses.append((template, [(first, middle), (last, middle), (middle, first), (middle, last)]))
    return crosses


_CROSSES = _draw_crosses()


def _find_text(strokes: _Strokes, calipers: list[Box]) -> list[Box]:
    letters = []
    for index in np.flatnonzero((strokes.hardness >= 0.7) & (strokes.level >= 160) & (strokes.area >= 8)):
        x, y, w, h = (int(value) for value in strokes.boxes[index])
        mark = y < 0.04 * strokes.shape[0] and (x < 0.15 * strokes.shape[1] or x + w > 0.85 * strokes.shape[1])
        near = any(
            x < cx + 2 * cw and cx - cw < x + w and y < cy + 2 * ch and cy - ch < y + h for cx, cy, cw, ch in calipers
        )
        if 7 <= h <= 26 and w <= 26 and not mark and not near:
            letters.append((x, y, w, h, float(strokes.level[index])))
    lines: list[list[tuple[int, int, int, int, float]]] = []
    for letter in sorted(letters):
        for line in lines:
            if _continues(line[-1], letter):
                line.append(letter)
                break
        else:
            lines.append([letter])
    boxes = []
    for line in lines:
        if len(line) > 1:
            left, top = line[0][0], min(letter[1] for letter in line)
            right, bottom = line[-1][0] + line[-1][2], max(letter[1] + letter[3] for letter in line)
            boxes.append((left, top, right - left, bottom - top))
    return boxes


def _continues(last: tuple[int, int, int, int, float], letter: tuple[int, int, int, int, float]) -> bool:
    """Whether a letter continues a line: beside the last one or a space apart, of equal height, base line and level."""
    x, y, w, h, level = last
    gap = letter[0] - (x + w)
    foot = abs((letter[1] + letter[3]) - (y + h))
    return (
        -2 <= gap <= 1.2 * max(h, letter[3])
        and abs(letter[1] - y) <= 0.25 * h + 1
        and foot <= 2 + 0.1 * h
        and 0.75 <= letter[3] / h <= 1.34
        and abs(letter[4] - level) < 25
    )
