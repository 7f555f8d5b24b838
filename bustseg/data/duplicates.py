"""Near-duplicate images: frames of one scene, also mirrored, cropped, rescaled, relit or compressed again.

Two passes. The first compares all pairs: small, locally contrast-normalised pictures of each image against forty crops
of every other, plain and mirrored, as one matrix product per crop. The second takes the pairs that look alike at all,
aligns them (affine, by maximising the enhanced correlation coefficient, Evangelidis and Psarakis 2008) and scores the
correlation of the contrast-normalised pictures where they overlap. Local normalisation removes what images of one
scanner share (depth attenuation, gain) and keeps what only frames of one scene share: the course of the tissue layers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from bustseg.data.sources import Sample, natural_key
from bustseg.progress import track

THRESHOLD = 0.40
"""Score from which a pair counts as duplicate. On BUSI every pair with 0.40 or more shows the same lesion or scene on
inspection; unrelated pairs reach 0.35 (two round cysts)."""
SUSPECT = 0.30
"""Score from which a pair is listed as suspect: mostly other frames of the same lesion, some unrelated."""

_SIDE = 128  # pixels of the square in which pairs are aligned and scored
_SMALL = 32  # the same for the first pass, in which all pairs are compared
_LOOKS_ALIKE = 0.42  # first-pass correlation; duplicates of BUSI start at 0.48
_ENOUGH = 30  # least number of images whose mean shows what they share and little of any single one
_TURN = 0.15  # sine of the largest turn or shear; frames of one scene in BUSI differ by 0.04
_STRETCH = 1.5  # of width against height at most; 1.41 in BUSI, where one frame was cropped at its sides
_CANDIDATES = 10  # most second-pass pairs per image, so that data that look alike do not take forever


@dataclass(frozen=True)
class Pair:
    """Two images of one scene.

    Attributes:
        first, second: sample ids in natural order
        score: correlation of the contrast-normalised images after alignment, -1 to 1
        ssim: structural similarity after alignment, at 128 x 128 (Wang et al. 2004)
        kind: ``exact`` (same pixels), ``near`` or ``mirrored``
        cross_class: whether their labels differ
        mask_dice: Dice of the two masks after alignment; None when both are empty or not known
    """

    first: str
    second: str
    score: float
    ssim: float
    kind: str
    cross_class: bool = False
    mask_dice: float | None = None


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Square ``float32`` picture (128, 128) of a grey image (H, W), used to search for duplicates."""
    return cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def pixel_digest(image: np.ndarray) -> str:
    """Digest that is equal only for images of equal size and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def find_pairs(
    samples: Sequence[Sample],
    thumbnails: Sequence[np.ndarray],
    digests: Sequence[str] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
    threshold: float = THRESHOLD,
    workers: int = 2,
) -> list[Pair]:
    """Pairs of images that score at least ``threshold``, best first.

    Args:
        thumbnails: :func:`thumbnail` of each sample's image
        digests: :func:`pixel_digest` of each, to recognise exact copies
        masks: :func:`thumbnail` of each mask, to compare the masks of a pair
    """
    pictures = [_Picture(picture) for picture in thumbnails]
    if len(pictures) >= _ENOUGH:
        _take_away_shared(pictures)
    candidates = _look_alikes(pictures)

    def confirm(candidate: tuple[int, int, bool, np.ndarray]) -> Pair | None:
        first, second, mirrored, warp = candidate
        exact = digests is not None and digests[first] == digests[second]
        aligned = (1.0, np.eye(2, 3, dtype=np.float32)) if exact else _align(pictures, first, second, mirrored, warp)
        if aligned is None or aligned[0] < threshold:
            return None
        score, warp = aligned
        kind = "exact" if exact else "mirrored" if mirrored else "near"
        turned = mirrored and not exact
        ssim = _ssim(_flip(thumbnails[first], turned), thumbnails[second], warp)
        dice = None
        one, two = (masks[first], masks[second]) if masks is not None else (None, None)
        if one is not None and two is not None:
            dice = _dice(_flip(one, turned), two, warp)
        ids = sorted((samples[first].id, samples[second].id), key=natural_key)
        other = samples[first].label != samples[second].label
        return Pair(ids[0], ids[1], round(score, 4), round(ssim, 4), kind, other, dice)

    with ThreadPoolExecutor(workers) as pool:
        confirmed = track(pool.map(confirm, candidates), "comparing look-alikes", len(candidates))
        found = [pair for pair in confirmed if pair is not None]
    best: dict[tuple[str, str], Pair] = {}
    for pair in sorted(found, key=lambda pair: (pair.kind != "exact", -pair.score)):
        best.setdefault((pair.first, pair.second), pair)
    return list(best.values())


def group_pairs(pairs: Iterable[Pair]) -> dict[str, str]:
    """Group name (its first member's id) by sample id: the connected components of the pairs."""
    return join((pair.first, pair.second) for pair in pairs)


def join(links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Connected components of linked names: first member's name by name, for components of two and more."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other in links:
        parent[find(other)] = find(one)
    members = defaultdict(list)
    for name in sorted(parent, key=natural_key):
        members[find(name)].append(name)
    return {name: names[0] for names in members.values() if len(names) > 1 for name in names}


def duplicate_groups(samples: Sequence[Sample], threshold: float = THRESHOLD, workers: int = 2) -> Mapping[str, str]:
    """Group name by sample id of the images that have a duplicate among the samples.

    Raises:
        DataError: an image cannot be read
    """

    def read(sample: Sample) -> tuple[np.ndarray, str]:
        image = sample.read_image()
        return thumbnail(image), pixel_digest(image)

    with ThreadPoolExecutor(workers) as pool:
        read_all = list(track(pool.map(read, samples), "reading images", len(samples)))
    pairs = find_pairs(samples, [one for one, _ in read_all], [two for _, two in read_all], None, threshold, workers)
    return group_pairs(pairs)


class _Picture:
    """The data of one image for the two passes: contrast-normalised pictures, coarse to fine."""

    def __init__(self, picture: np.ndarray) -> None:
        self.fine = _normalise(picture, 6)
        blurred = cv2.GaussianBlur(_normalise(picture, 10), (0, 0), 1.5)
        self.smooth = blurred
        self.coarse = cv2.resize(blurred, (_SIDE // 2, _SIDE // 2), interpolation=cv2.INTER_AREA)


def _take_away_shared(pictures: Sequence[_Picture]) -> None:
    """Subtract the mean picture: a border, ruler or skin line that all images share does not distinguish them."""
    for name in ("fine", "smooth", "coarse"):
        mean = np.mean([getattr(picture, name) for picture in pictures], axis=0, dtype=np.float32)
        for picture in pictures:
            setattr(picture, name, getattr(picture, name) - mean)


def _normalise(image: np.ndarray, sigma: float) -> np.ndarray:
    """Subtract the local mean and divide by the local deviation; flat, dark regions stay near zero."""
    centred = image - cv2.GaussianBlur(image, (0, 0), sigma)
    return centred / np.sqrt(cv2.GaussianBlur(centred * centred, (0, 0), sigma) + 25)


def _crops() -> list[tuple[float, float, float, float]]:
    """Left, top, width, height as fractions of the image: the whole, and tighter crops."""
    crops = [(0.0, 0.0, 1.0, 1.0)]
    for side in (0.95, 0.88, 0.80):
        crops += [(x * (1 - side), y * (1 - side), side, side) for x in (0, 0.5, 1) for y in (0, 0.5, 1)]
    for side in (0.93, 0.85):
        crops += [(x * (1 - side), 0, side, 1) for x in (0, 0.5, 1)]
        crops += [(0, y * (1 - side), 1, side) for y in (0, 0.5, 1)]
    return crops


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.reshape(len(rows), -1)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _look_alikes(pictures: Sequence[_Picture]) -> list[tuple[int, int, bool, np.ndarray]]:
    """First pass: pairs worth aligning as (first, second, mirrored, warp that maps first's square into second's)."""
    number = len(pictures)
    if number < 2:
        return []
    half = [picture.coarse for picture in pictures]
    whole = np.stack([cv2.resize(image, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA) for image in half])
    plain = _unit(whole)
    queries = (plain, _unit(whole[:, :, ::-1]))
    best = np.full((2, number, number), -1, np.float32)
    chosen = np.zeros((2, number, number), np.uint8)
    crops = _crops()
    scale = (_SIDE // 2) / _SMALL
    for index, (x, y, width, height) in enumerate(crops):
        # pixel centres of the small square to those of the crop in the half-size one
        warp = np.array(
            [
                [scale * width, 0, x * _SIDE / 2 + scale * width / 2 - 0.5],
                [0, scale * height, y * _SIDE / 2 + scale * height / 2 - 0.5],
            ],
            np.float32,
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (_SMALL, _SMALL)
        cropped = [cv2.warpAffine(image, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE) for image in half]
        keys = np.ascontiguousarray(_unit(np.stack(cropped)).T)
        for mirrored, query in enumerate(queries):
            score = query @ keys
            better = score > best[mirrored]
            np.copyto(best[mirrored], score, where=better)
            np.copyto(chosen[mirrored], index, where=better)
    found = []
    for mirrored in (0, 1):
        both = np.triu(np.maximum(best[mirrored], best[mirrored].T), 1)
        for first, second in zip(*np.nonzero(both >= _LOOKS_ALIKE), strict=True):
            one, two = int(first), int(second)
            if best[mirrored, two, one] > best[mirrored, one, two]:
                one, two = two, one
            x, y, width, height = crops[chosen[mirrored, one, two]]
            warp = np.array([[width, 0, x * _SIDE], [0, height, y * _SIDE]], np.float32)
            found.append((float(both[first, second]), one, two, bool(mirrored), warp))
    found.sort(key=lambda candidate: -candidate[0])
    return [candidate[1:] for candidate in found[: _CANDIDATES * number]]


def _align(
    pictures: Sequence[_Picture], first: int, second: int, mirrored: bool, warp: np.ndarray
) -> tuple[float, np.ndarray] | None:
    """Second pass: align ``second`` to ``first``; score and warp, or None where nothing fits."""
    one, two = pictures[first], pictures[second]
    half = warp.copy()
    half[:, 2] /= 2
    try:
        half = _ecc(_flip(one.coarse, mirrored), two.coarse, half)
    except cv2.error:  # no convergence: the pictures have nothing in common
        return None
    warp = half.copy()
    warp[:, 2] *= 2
    # most candidates are rejected here: alignment at half size is cheap, and every duplicate in BUSI scores at least
    # 0.2
    rough = _overlap_correlation(_flip(one.fine, mirrored), two.fine, warp)
    if rough < 0.12:
        return None
    try:
        warp = _ecc(_flip(one.smooth, mirrored), two.smooth, warp)
    except cv2.error:
        return None
    return _overlap_correlation(_flip(one.fine, mirrored), two.fine, warp), warp


def _ecc(first: np.ndarray, second: np.ndarray, warp: np.ndarray) -> np.ndarray:
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    everywhere = np.ones(second.shape, np.uint8)
    return np.asarray(cv2.findTransformECC(first, second, warp, cv2.MOTION_AFFINE, stop, everywhere, 1)[1])


def _flip(image: np.ndarray, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1]) if mirrored else image


def _warped(image: np.ndarray, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``image`` (128, 128) warped onto the other one, and where it has pixels there."""
    size = (_SIDE, _SIDE)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(image, warp, size, flags=flags)
    inside = cv2.warpAffine(np.ones(size, np.float32), warp, size, flags=flags) > 0.99
    return moved, inside


def _overlap_correlation(first: np.ndarray, second: np.ndarray, warp: np.ndarray) -> float:
    stretch = np.linalg.svd(warp[:, :2], compute_uv=False)
    moved, inside = _warped(second, warp)
    turned = abs(float(warp[0, 1])) > _TURN or abs(float(warp[1, 0])) > _TURN
    # a warp that turns, stretches or hardly overlaps fits any round cyst to any other
    fits = 0.5 <= stretch[1] <= stretch[0] <= min(2, _STRETCH * stretch[1])
    if turned or not fits or inside.mean() < 0.4:
        return 0.0
    one, two = first[inside], moved[inside]
    one, two = one - one.mean(), two - two.mean()
    return float(one @ two / max(float(np.linalg.norm(one) * np.linalg.norm(two)), 1e-6))


def _ssim(first: np.ndarray, second: np.ndarray, warp: np.ndarray) -> float:
    moved, inside = _warped(second, warp)

    def mean(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), 1.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    one, two = mean(first), mean(moved)
    covariance = mean(first * moved) - one * two
    variances = mean(first * first) - one * one + mean(moved * moved) - two * two
    ssim = (2 * one * two + c1) * (2 * covariance + c2) / ((one * one + two * two + c1) * (variances + c2))
    return float(ssim[inside].mean()) if inside.any() else 0.0


def _dice(first: np.ndarray, second: np.ndarray, warp: np.ndarray) -> float | None:
    moved, inside = _warped(second, warp)
    one, two = (first > 127) & inside, (moved > 127) & inside
    total = int(one.sum() + two.sum())
    return round(2 * int((one & two).sum()) / total, 4) if total else None
