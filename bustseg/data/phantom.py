"""Synthetic B-mode phantoms in BUSI's layout: data that need no download, for tests, the quickstart and CI.

The image chain is that of a scanner, in the order of Wagner et al. 1983 (IEEE Trans. Sonics Ultrason. 30:156) and of
Field II's classic phantoms: random scatterers weighted with the tissue's echogenicity, a point-spread function that
widens with depth, envelope detection, attenuation along the beam, log compression. Phantoms test a pipeline; a score on
them says nothing about patients.

The same seed gives the same pixels on different processors. Libraries choose their instructions by the processor, and
each choice rounds differently. Therefore everything is computed in float64, and images are resized and warped here,
since OpenCV has only float32 weights for that. What two processors compute then differs by about 1e-13 grey levels,
before the levels are cut to integers. In float32 it would differ by 1e-5, enough to put some pixels of every set into
the neighbouring level.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image
from platformdirs import user_cache_path

from bustseg.data.files import images_in, list_folder
from bustseg.data.sources import BUSI
from bustseg.errors import DataError

VERSION = 2
"""Version of the generator: increased whenever the same seed would draw other pixels."""

SHARES = {"benign": 437 / 780, "malignant": 210 / 780, "normal": 133 / 780}
"""Class shares of BUSI."""

Shape = tuple[int | tuple[int, int], int | tuple[int, int]]

MOST = 100_000
"""Phantoms that are written at once; they take some ten gigabytes."""

_MANIFEST = "phantom.json"
_MIN_SIDE = 32


# -- resizing ----------------------------------------------------------------------------------------------------------


def _cubic(size: int, into: int) -> np.ndarray:
    """Weights (into, size) of cubic interpolation with a = -0.75, as OpenCV's, with the edges continued."""
    place = (np.arange(into) + 0.5) * (size / into) - 0.5
    first = np.floor(place)
    rows = np.arange(into)
    weights = np.zeros((into, size))
    for tap in range(-1, 3):
        distance = np.abs(place - first - tap)
        near = (1.25 * distance - 2.25) * distance * distance + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        columns = np.clip(first + tap, 0, size - 1).astype(int)
        weights[rows, columns] += np.where(distance <= 1, near, far)
    return weights


def _area(size: int, into: int) -> np.ndarray:
    """Weights (into, size) of the mean over what each new pixel covers."""
    edges = np.arange(into + 1)[:, None] * (size / into)
    cells = np.arange(size)[None]
    covered = np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)
    return np.maximum(covered, 0) * (into / size)


def _resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Image (h, w) in another shape: each axis by cubic interpolation where it grows, by the mean where it shrinks."""
    down, across = (
        (_cubic if into >= size else _area)(size, into) for size, into in zip(image.shape, shape, strict=True)
    )
    return down @ image @ across.T


def _shift_rows(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Images (h, w, n) read at ``rows`` (h, w), linearly interpolated and mirrored at the edges."""
    height, width, _ = images.shape
    above = np.floor(rows)
    columns = np.arange(width)[None]

    def read(row: np.ndarray) -> np.ndarray:
        row = row.astype(int) % (2 * height)
        return images[np.where(row < height, row, 2 * height - 1 - row), columns]

    upper = read(above)
    return upper + (rows - above)[..., None] * (read(above + 1) - upper)


# -- random fields -----------------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float]) -> np.ndarray:
    """Smooth Gaussian noise of ``shape`` with about ``cells`` (down, across) independent values and unit variance."""
    coarse = rng.standard_normal((max(2, round(cells[0])), max(2, round(cells[1]))), dtype=np.float32)
    return 1.2 * _resize(coarse.astype(float), shape)


def _curve(rng: np.random.Generator, width: int, level: float, swing: float) -> np.ndarray:
    """Smooth depth profile of a tissue boundary, shape (width,), as a fraction of the image's height."""
    return level + swing * _noise(rng, (2, width), (2, int(rng.integers(3, 6))))[0]


def _step(value: np.ndarray, width: float) -> np.ndarray:
    """Ramp from 0 to 1 of ``width`` around zero."""
    return np.clip(value / width + 0.5, 0, 1)


def _sheets(field: np.ndarray, thickness: float, floor: float = 0.15) -> np.ndarray:
    """Connective-tissue sheets along the zero contours of ``field``, in 0..1: bright where they face the beam.

    Contours of a random field close around its blobs as septa do around fat lobules; a specular sheet returns more the
    closer its normal is to the beam, which runs downwards.
    """
    down = cv2.Sobel(field, cv2.CV_64F, 0, 1, scale=1 / 8)
    across = cv2.Sobel(field, cv2.CV_64F, 1, 0, scale=1 / 8)
    steepness = down * down + across * across + 1e-8
    distance = field * field / (steepness * thickness * thickness)
    return np.exp(-np.minimum(distance, 20)) * (floor + (1 - floor) * (down * down / steepness))


# -- what is in the image ----------------------------------------------------------------------------------------------


@dataclass
class _Tissue:
    """Maps on the working grid, all float64 of shape (h, w).

    Attributes:
        echo: diffuse echogenicity in dB
        sheet: specular echo amplitude of septa, fasciae and bone, 0 where there is none
        loss: attenuation that each pixel adds to everything below it, in dB
    """

    echo: np.ndarray
    sheet: np.ndarray
    loss: np.ndarray


def _bent_noise(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """Coarse, medium, long and fine noise (h, w), oriented like tissue.

    Args:
        rng: source of everything random
        y, x: depth (h, 1) and place across (1, w) of each point, from 0 to 1
    """
    h, _ = grid = y.shape[0], x.shape[1]
    # one warp bends everything, so that sheets of all scales have the same direction: mostly along the layers, tilted
    # and wavy
    bend = rng.uniform(0.01, 0.045) * h * _noise(rng, grid, (3, 4)) + rng.normal(0, 0.07) * h * (x - 0.5)
    bend += rng.uniform(0.002, 0.007) * h * _noise(rng, grid, (9, 9))
    flat = np.stack(
        [
            _noise(rng, grid, (rng.uniform(6, 11), rng.uniform(3, 6))),
            _noise(rng, grid, (rng.uniform(22, 40), rng.uniform(6, 13))),
            _noise(rng, grid, (rng.uniform(26, 44), rng.uniform(2, 4))),
            _noise(rng, grid, (rng.uniform(45, 75), rng.uniform(9, 18))),
        ],
        axis=-1,
    )
    warped = _shift_rows(flat, y * (h - 1) + bend)
    return [np.ascontiguousarray(warped[..., i]) for i in range(4)]


def _septa(
    rng: np.random.Generator,
    y: np.ndarray,
    noise: tuple[np.ndarray, ...],
    broken: np.ndarray,
    within: tuple[np.ndarray, ...],
    boundaries: tuple[np.ndarray, ...],
) -> np.ndarray:
    """Amplitude of septa and fasciae: long and few in fat, a dense mesh in the gland, parallel fibres in muscle.

    Args:
        rng: source of everything random
        y: depth (h, 1) of each point, from 0 to 1
        noise: from :func:`_bent_noise`
        broken: how continuous the sheets are, from 0 to 1: they are patchy everywhere
        within: share of each point below the skin, below the fat and below the gland
        boundaries: depths (1, w) of the skin's, the gland's and the muscle's lower edge
    """
    coarse, medium, long, fine = noise
    in_fat, in_gland, in_muscle = within
    skin, gland, muscle = boundaries
    in_fat_only, in_gland_only = in_fat * (1 - in_gland), in_gland * (1 - in_muscle)
    thick = len(y) / 280
    fibres = long + 0.5 * fine
    septa = np.maximum.reduce(
        [
            _sheets(coarse, rng.uniform(1.0, 1.8) * thick) * (0.4 + 0.6 * broken) * (in_fat - 0.4 * in_gland_only),
            rng.uniform(0.7, 1.0) * _sheets(medium, rng.uniform(1.0, 1.8) * thick) * broken * in_gland_only,
            rng.uniform(0.5, 1.0) * _sheets(fine + 0.6, thick) * (1 - broken) * (in_gland_only + 0.3 * in_fat_only),
            rng.uniform(0.35, 0.8) * _sheets(fibres, rng.uniform(1.2, 2.2) * thick) * (0.1 + 0.9 * broken) * in_muscle,
            rng.uniform(0.4, 0.8) * _sheets(medium, thick) * broken * in_fat_only,
        ]
    )
    for boundary, strength, width in ((skin, 0.8, 0.004), (gland, rng.uniform(0.3, 1), 0.005), (muscle, 0.7, 0.006)):
        line = np.exp(-(((y - boundary) / width) ** 2)) * (0.35 + 0.65 * broken)
        septa = np.maximum(septa, strength * line)
    septa = np.maximum(septa, np.exp(-((y / 0.006) ** 2)))
    return rng.uniform(3.5, 7) * np.clip(septa, 0, 1) ** 1.6 * (0.55 + 0.45 * np.tanh(fine + medium))


def _tissue(rng: np.random.Generator, grid: tuple[int, int]) -> _Tissue:
    """Skin, subcutaneous fat, fibroglandular tissue, pectoral muscle and chest wall, with lobules, shadows and ribs."""
    h, w = grid
    y = np.linspace(0, 1, h)[:, None]
    x = np.linspace(0, 1, w)[None]

    # boundaries between the layers, as fractions of the depth
    skin = _curve(rng, w, rng.uniform(0.015, 0.06), 0.004)
    fat = skin + np.abs(_curve(rng, w, rng.uniform(0.06, 0.3), 0.025))
    gland = fat + np.abs(_curve(rng, w, rng.uniform(0.22, 0.5), 0.035))
    muscle = gland + np.abs(_curve(rng, w, rng.uniform(0.1, 0.3), 0.02))

    coarse, medium, long, fine = _bent_noise(rng, y, x)
    patches = _noise(rng, grid, (5, 5))

    in_fat = _step(y - skin, 0.012)
    in_gland = _step(y - fat, 0.03)
    in_muscle = _step(y - gland, 0.015)
    in_chest = _step(y - muscle, 0.03)

    depths = {"fat": rng.uniform(-15, -9), "gland": rng.uniform(-5, 0), "muscle": rng.uniform(-13, -6)}
    fibrous = rng.uniform(2.5, 5.0)
    layers = [
        (in_fat, depths["fat"] + 2.2 * fine + 1.5 * medium + 2.0 * patches),
        (
            in_gland,
            depths["gland"]
            + fibrous * (0.8 * medium + 0.9 * fine)
            + rng.uniform(2, 4.5) * patches
            - 2.5 * np.maximum(coarse, 0),
        ),
        (in_muscle, depths["muscle"] + 3.0 * long + 3.0 * fine + 3 * patches),
        (in_chest, depths["muscle"] - rng.uniform(2, 8) + 2.0 * long + 2.0 * fine),
    ]
    echo = np.full(grid, rng.uniform(-7, 0))
    for weight, layer in layers:
        echo += weight * (layer - echo)

    patchy = _noise(rng, grid, (16, 14))
    broken = _step(patchy + 0.6 * patches, 2.0) ** 1.5
    noise = (coarse, medium, long, fine)
    sheet = _septa(rng, y, noise, broken, (in_fat, in_gland, in_muscle), (skin, gland, muscle))

    tissue = _Tissue(echo, sheet, np.zeros(grid))
    _add_lobules(rng, tissue, y, x, float(np.mean(fat)), depths["fat"], patchy, broken)
    _add_losses(rng, tissue, y, x, float(np.mean(muscle)), patchy, broken)
    return tissue


def _add_lobules(
    rng: np.random.Generator,
    tissue: _Tissue,
    y: np.ndarray,
    x: np.ndarray,
    fat: float,
    level: float,
    patchy: np.ndarray,
    broken: np.ndarray,
) -> None:
    """Add fat lobules inside the gland: dark, oval and wider than tall, the usual false positive.

    Args:
        rng: source of everything random
        tissue: the tissue that they are added to
        y, x: as in :func:`_bent_noise`
        fat: depth at which the gland begins
        level: echo of fat
        patchy, broken: noise that makes outlines and capsules uneven
    """
    for _ in range(int(rng.integers(0, 4))):
        cx, cy = rng.uniform(0.05, 0.95), fat + rng.uniform(-0.05, 0.3)
        a = rng.uniform(0.04, 0.13)
        b = a * rng.uniform(0.2, 0.45)
        tilt = rng.normal(0, 0.25)
        u, v = (x - cx) + tilt * (y - cy), (y - cy) - tilt * (x - cx)
        r = np.sqrt((u / a) ** 2 + (v / b) ** 2) + 0.15 * patchy
        inside = _step(1 - r, rng.uniform(0.4, 1.0))
        tissue.echo += inside * (level + rng.uniform(-4, 2) - tissue.echo)
        tissue.sheet *= 1 - 0.8 * inside
        tissue.sheet = np.maximum(tissue.sheet, rng.uniform(0, 0.8) * broken * np.exp(-(((r - 1) / 0.1) ** 2)))


def _add_losses(
    rng: np.random.Generator,
    tissue: _Tissue,
    y: np.ndarray,
    x: np.ndarray,
    muscle: float,
    patchy: np.ndarray,
    broken: np.ndarray,
) -> None:
    """Attenuate the beam: Cooper's ligaments and poor contact cast shadows, and bone ends the image.

    Args:
        rng: source of everything random
        tissue: the tissue that is changed
        y, x, patchy, broken: as in :func:`_add_lobules`
        muscle: depth at which the chest wall begins
    """
    h = y.shape[0]
    for _ in range(int(rng.integers(0, 4))):
        cx, width, top = rng.uniform(0, 1), rng.uniform(0.01, 0.06), rng.uniform(0, 0.35)
        reach = rng.uniform(0.1, 0.4)
        strength = rng.uniform(3, 11) / (reach * h)
        tissue.loss += strength * np.exp(-(((x - cx) / width) ** 2)) * ((y > top) & (y < top + reach))
    if rng.random() < 0.25:
        side = float(rng.choice([-0.02, 1.02]))
        tissue.loss += (
            np.exp(-(((x - side) / rng.uniform(0.04, 0.12)) ** 2)) * (y < 0.3) * (rng.uniform(8, 25) / (0.3 * h))
        )
    if rng.random() < 0.2:
        cx, a = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.25)
        arc = muscle + rng.uniform(-0.02, 0.1) + 0.35 * a * ((x - cx) / a) ** 2 + 0.004 * patchy[:1]
        bone = np.exp(-(((y - arc) / 0.012) ** 2)) * _step(0.7 * a - np.abs(x - cx), 0.6 * a)
        tissue.sheet = np.maximum(tissue.sheet, 2.5 * bone * (0.4 + 0.6 * broken))
        tissue.loss += bone * (rng.uniform(10, 22) / (0.02 * h))


@dataclass
class _Lesion:
    """Outline and acoustic nature of one lesion; lengths are pixels of the full-resolution view.

    Attributes:
        outline: closed polygon, float64 of shape (K, 2) as (x, y)
        contrast: echogenicity against the tissue around it, in dB
        loss: attenuation of a beam through its middle in dB; negative is posterior enhancement
        fuzz: softness of its margin
        texture: spread of its inner echogenicity in dB
        capsule: brightness of a thin capsule, 0 for none
        halo: echogenic rim in dB
        spicules: number of strands that radiate from it
        calcifications: number of bright specks inside
    """

    outline: np.ndarray
    contrast: float
    loss: float
    fuzz: float
    texture: float
    capsule: float = 0.0
    halo: float = 0.0
    spicules: int = 0
    calcifications: int = 0


def _lesion(rng: np.random.Generator, label: str, view: tuple[int, int], scale: float) -> _Lesion:
    """Draw a lesion of ``label`` with the size, place and shape statistics of BUSI's masks; ``scale`` shrinks it."""
    h, w = view
    benign = label == "benign"
    # log-normal fits to the area shares and box aspects of BUSI's masks (benign 4 % and 1.7, malignant 12 % and 1.3)
    area = np.clip(np.exp(rng.normal(np.log(0.04 if benign else 0.115), 0.95 if benign else 0.6)), 0.006, 0.32) * scale
    aspect = np.clip(np.exp(rng.normal(np.log(1.7 if benign else 1.3), 0.3 if benign else 0.35)), 0.6, 3.2)
    radius = np.sqrt(area * h * w / np.pi)
    a, b = min(radius * np.sqrt(aspect), 0.42 * w), min(radius / np.sqrt(aspect), 0.38 * h)

    angle = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    if benign:
        orders, amplitude = np.arange(2, 5), rng.uniform(0.01, 0.06)
    else:
        orders, amplitude = np.arange(2, 12), rng.uniform(0.12, 0.28)
    waves = rng.normal(0, 1, orders.size)[:, None] * orders[:, None] ** -1.0
    ripple = amplitude * (
        waves * np.cos(orders[:, None] * angle + rng.uniform(0, 2 * np.pi, orders.size)[:, None])
    ).sum(0)
    if not benign and rng.random() < 0.6:  # a few angular extensions
        for _ in range(int(rng.integers(1, 6))):
            gap = np.abs(np.angle(np.exp(1j * (angle - rng.uniform(0, 2 * np.pi)))))
            ripple += rng.uniform(0.15, 0.5) * np.maximum(0, 1 - gap / rng.uniform(0.15, 0.45))
    radial = np.clip(1 + ripple, 0.45, 1.6)
    radial /= np.sqrt(np.mean(radial**2))
    tilt = rng.normal(0, 0.2)
    px, py = a * radial * np.cos(angle), b * radial * np.sin(angle)
    px, py = px * np.cos(tilt) - py * np.sin(tilt), px * np.sin(tilt) + py * np.cos(tilt)
    cx = np.clip(rng.normal(0.49, 0.15) * w, 0.9 * a, w - 0.9 * a)
    cy = np.clip((0.10 if benign else 0.14) * h + b + np.abs(rng.normal(0, 0.16)) * h, 1.15 * b, 0.92 * h - b)
    outline = np.stack([px + cx, py + cy], axis=1)

    if benign:
        if rng.random() < 0.2:  # a cyst: no scatterers, clear walls, strong enhancement
            return _Lesion(outline, -rng.uniform(24, 40), -rng.uniform(5, 12), 1.0, 1.0, rng.uniform(0.3, 0.8))
        capsule = rng.uniform(0.3, 0.8) if rng.random() < 0.5 else 0.0
        return _Lesion(
            outline, -rng.uniform(5, 15), -rng.uniform(-1, 9), rng.uniform(1, 3), rng.uniform(1, 2.5), capsule
        )
    return _Lesion(
        outline,
        contrast=-rng.uniform(4, 12),
        loss=rng.uniform(-3, 12),
        fuzz=rng.uniform(2.5, 7),
        texture=rng.uniform(2, 4),
        halo=rng.uniform(0, 6),
        spicules=int(rng.integers(4, 14)) if rng.random() < 0.6 else 0,
        calcifications=int(rng.integers(3, 14)) if rng.random() < 0.3 else 0,
    )


def _fill(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Polygon ``outline`` (K, 2) in pixels of ``shape`` as a mask of 0 and 255."""
    mask = np.zeros(shape, dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, shift=4)
    return mask


def _insert(rng: np.random.Generator, tissue: _Tissue, lesion: _Lesion, view: tuple[int, int]) -> None:
    """Put ``lesion`` into ``tissue``, in place."""
    grid = tissue.echo.shape
    zoom = np.array([grid[1] / view[1], grid[0] / view[0]])
    outline = lesion.outline * zoom
    mask = _fill(outline, grid) / 255
    extent = np.sqrt(mask.sum())
    fuzz = np.clip(lesion.fuzz * zoom[1], 0.6, 0.06 * extent + 0.6)

    # the margin varies around the outline by its softness
    soft = cv2.GaussianBlur(mask, (0, 0), fuzz)
    ragged = 0.10 * _noise(rng, grid, (grid[0] / (2 + 2 * fuzz), grid[1] / (2 + 2 * fuzz))) * (lesion.fuzz > 2)
    soft = np.clip((soft + ragged * 4 * soft * (1 - soft) - 0.5) * 1.6 + 0.5, 0, 1)

    wide = cv2.GaussianBlur(mask, (0, 0), max(2.0, 0.12 * extent))
    ring = wide * (1 - mask)
    around = float((tissue.echo * ring).sum() / max(ring.sum(), 1e-3))
    texture = lesion.texture * (_noise(rng, grid, (14, 10)) * 0.7 + 0.6 * _noise(rng, grid, (40, 25)))
    tissue.echo += lesion.halo * np.clip(2 * ring, 0, 1)
    tissue.echo += soft * (min(around, -3.0) + lesion.contrast + texture - tissue.echo)
    tissue.sheet *= 1 - soft

    if lesion.capsule:
        rim = _sheets(cv2.GaussianBlur(mask, (0, 0), 1.6) - 0.5, 1.0 * grid[0] / 280, floor=0.05)
        tissue.sheet = np.maximum(tissue.sheet, 2 * lesion.capsule * rim**2)
    centre = outline.mean(axis=0)
    if lesion.spicules:
        strands = np.zeros(grid, dtype=np.uint8)
        for index in rng.integers(0, len(outline), lesion.spicules):
            end = centre + (outline[index] - centre) * rng.uniform(1.2, 1.7) + rng.normal(0, 0.05 * extent, 2)
            start = centre + (outline[index] - centre) * 0.9
            points = np.round(np.stack([start, end]) * 16).astype(int)
            cv2.line(strands, tuple(points[0].tolist()), tuple(points[1].tolist()), 255, 2, cv2.LINE_AA, 4)
        strength = cv2.GaussianBlur(strands / 255, (0, 0), 0.9)
        tissue.echo += strength * float(rng.choice([-9.0, 6.0]))
        tissue.sheet *= 1 - 0.75 * strength
    for _ in range(lesion.calcifications):
        point = centre + rng.normal(0, 0.17 * extent, 2)
        column, row = np.clip(np.round(point).astype(int), 1, np.array(grid[::-1]) - 2)
        tissue.sheet[row, column : column + 2] = rng.uniform(1.2, 2.5)

    thickness = max(float(soft.sum(axis=0).max()), 1.0)
    tissue.loss *= 1 - 0.8 * soft
    tissue.loss += lesion.loss / thickness * soft


# -- the scanner -------------------------------------------------------------------------------------------------------


def speckle(
    rng: np.random.Generator, amplitude: np.ndarray, axial: float = 1.0, lateral: tuple[float, float] = (1.2, 2.4)
) -> np.ndarray:
    """Envelope of fully developed speckle: Rayleigh with mean square ``amplitude ** 2`` where that is smooth.

    Complex Gaussian scatterers, weighted with ``amplitude``, are filtered with a Gaussian point-spread function that is
    short along the beam and widens across it with depth (Wagner et al. 1983; the mean of a homogeneous region is 1.91
    times its standard deviation).

    Args:
        rng: source of the scatterers
        amplitude: echo amplitude, float64 of shape (h, w), beam running down the rows
        axial: standard deviation of the point-spread function along the beam, in pixels
        lateral: its standard deviation across the beam at the top and at the bottom, in pixels

    Returns:
        envelope before log compression, float64 of shape (h, w)
    """
    scatterers = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32) * amplitude[..., None]
    size = 2 * int(np.ceil(3 * max(lateral))) + 1
    depth_size = 2 * int(np.ceil(3 * axial)) + 1
    along = cv2.getGaussianKernel(depth_size, axial)
    across = [cv2.getGaussianKernel(size, sigma) for sigma in lateral]
    near, far = (cv2.sepFilter2D(scatterers, -1, kernel, along) for kernel in across)
    # a sum of Gaussian fields is Gaussian: blending the two before detection keeps the speckle Rayleigh
    share = np.linspace(0, 1, amplitude.shape[0])[:, None]
    energy = (1 - share) ** 2 * np.sum(across[0] ** 2) + share**2 * np.sum(across[1] ** 2)
    energy += 2 * share * (1 - share) * np.sum(across[0] * across[1])
    scale = 1 / np.sqrt(2 * energy * np.sum(along**2))
    field = (near + share[..., None] * (far - near)) * scale[..., None]
    return np.sqrt(field[..., 0] ** 2 + field[..., 1] ** 2)


def _scan(rng: np.random.Generator, tissue: _Tissue, view: tuple[int, int]) -> np.ndarray:
    """B-mode image of ``tissue`` as uint8 of shape ``view``: speckle, attenuation, gain, log compression."""
    h, w = tissue.echo.shape
    amplitude = np.exp(np.clip(tissue.echo, -60, 20) * (np.log(10) / 20))
    grain = rng.uniform(0.85, 1.15) * float(np.clip(h / 280, 0.75, 1.1))
    psf = (0.85 * grain, (0.95 * grain, 1.9 * grain))
    envelope = 0.5 * (speckle(rng, amplitude, *psf) + speckle(rng, amplitude, *psf))  # two compounded looks
    # sheets are rough: half of their echo is speckled
    glint = tissue.sheet * (0.45 + 0.45 * np.minimum(envelope / (amplitude + 1e-3), 2.5))
    glint = cv2.GaussianBlur(glint, (0, 0), 1.2, sigmaY=0.7)
    level = 10 * np.log10(envelope**2 + glint**2 + 1e-5)

    beam = cv2.GaussianBlur(np.cumsum(tissue.loss, axis=0), (0, 0), 2.0, sigmaY=1.0)
    y = np.linspace(0, 1, h)[:, None]
    knee = rng.uniform(0.15, 0.6)
    # what TGC does not correct
    gain = -rng.uniform(6, 30) * np.clip((y - knee) / (1 - knee), 0, 1) ** rng.uniform(1, 1.6)
    gain = gain + rng.uniform(-3, 2) * np.clip(1 - y / 0.15, 0, 1)
    level += gain - beam
    electronic = rng.uniform(-42, -32)
    level = np.maximum(level, electronic + 4 * rng.standard_normal((h, w), dtype=np.float32))

    span = rng.uniform(48, 58)
    grey = (level + rng.uniform(31, 38)) / span
    grey = cv2.GaussianBlur(grey, (0, 0), 0.6, sigmaY=0.45)  # the scanner's own smoothing after compression
    grey = _resize(grey, view)
    return np.clip(255 * grey, 0, 255).astype(np.uint8)


def _annotate(rng: np.random.Generator, image: np.ndarray, lesion: _Lesion | None) -> None:
    """Burn a body-side label or calipers into ``image``, in place, as sonographers do."""
    h, w = image.shape
    font, size = cv2.FONT_HERSHEY_SIMPLEX, max(0.25, h / 700)
    if rng.random() < 0.12:
        text = str(rng.choice(["RT BREAST", "LT BREAST", "RT AXILLA", "LT UOQ", "RT 10", "LT3", "RT2"]))
        place = (int(rng.uniform(0.03, 0.7) * w), int(rng.uniform(0.7, 0.95) * h))
        cv2.putText(image, text, place, font, size, 235, 1, cv2.LINE_AA)
    if lesion is not None and rng.random() < 0.09:
        outline = lesion.outline
        low, high = outline[outline[:, 0].argmin()], outline[outline[:, 0].argmax()]
        for number, (x, y) in enumerate((low, high)):
            centre = (round(float(x)), round(float(y)))
            cv2.drawMarker(image, centre, 235, cv2.MARKER_CROSS, max(5, h // 40), 1)
            if number == 0:
                cv2.putText(
                    image, "1", (centre[0] - h // 35, centre[1] + h // 35), font, 0.7 * size, 235, 1, cv2.LINE_AA
                )
        steps = max(2, int(np.hypot(*(high - low)) / max(3, h / 90)))
        for x, y in np.linspace(low, high, steps):
            image[int(np.clip(y, 0, h - 1)), int(np.clip(x, 0, w - 1))] = 220


def _lesions(
    rng: np.random.Generator, label: str, shape: tuple[int, int], view: tuple[int, int]
) -> tuple[list[_Lesion], list[np.ndarray]]:
    """One lesion, rarely two or three separate ones, and the mask (H, W) of each."""
    lesions: list[_Lesion] = []
    masks: list[np.ndarray] = []
    wanted = int(rng.choice([1, 2, 3], p=[0.93, 0.06, 0.01]))
    taken = np.zeros(shape, dtype=np.uint8)
    for _ in range(8 * wanted):
        lesion = _lesion(rng, label, view, scale=1.0 if wanted == 1 else 0.4)
        mask = _fill(lesion.outline, shape)
        mask[view[0] :], mask[:, view[1] :] = 0, 0
        if lesions and cv2.bitwise_and(cv2.dilate(mask, np.ones((9, 9), np.uint8)), taken).any():
            continue
        lesions.append(lesion)
        masks.append(mask)
        taken |= mask
        if len(lesions) == wanted:
            break
    return lesions, masks


def draw_phantom(
    rng: np.random.Generator, label: str, shape: tuple[int, int] = (474, 564)
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw one breast phantom and the masks of its lesions.

    Benign lesions are smooth, wider than tall, sometimes encapsulated or cystic, and enhance what lies behind them;
    malignant ones are irregular or spiculated with a fuzzy margin and mostly cast a shadow. Every class has the same
    distractors: fat lobules, shadows of ligaments and ribs, poor contact, a dark depth.

    Args:
        rng: source of everything random: equal states draw equal phantoms
        label: ``benign``, ``malignant`` or ``normal``
        shape: (H, W) of the image, at least 32 x 32

    Returns:
        image: grey, uint8 of shape (H, W)
        masks: uint8 of shape (H, W) with 0 and 255, one per lesion (one, rarely two or three); one empty mask if normal

    Raises:
        DataError: unknown label or too small a shape
    """
    if label not in SHARES:
        raise DataError(f"no phantom of class {label!r}: choose one of {', '.join(SHARES)}")
    if min(shape) < _MIN_SIDE:
        raise DataError(f"a phantom of {shape[1]}x{shape[0]} is too small: each side needs at least {_MIN_SIDE} pixels")
    height, width = shape
    # exported frames often keep a black strip beside or below the image
    view = (
        round(height * rng.uniform(0.78, 0.97)) if rng.random() < 0.12 else height,
        round(width * rng.uniform(0.75, 0.97)) if rng.random() < 0.15 else width,
    )
    # a coarser grid is enough, since the point-spread function is wider than a pixel; small images are drawn larger
    grid = (max(160, round(0.6 * view[0])), max(160, round(0.5 * view[1])))
    tissue = _tissue(rng, grid)

    lesions, masks = ([], []) if label == "normal" else _lesions(rng, label, shape, view)
    for lesion in lesions:
        _insert(rng, tissue, lesion, view)

    image = np.zeros(shape, dtype=np.uint8)
    image[: view[0], : view[1]] = _scan(rng, tissue, view)
    if rng.random() < 0.06:  # a trapezoid field of view
        inset, depth = int(rng.uniform(0.06, 0.14) * view[1]), int(rng.uniform(0.25, 0.5) * view[0])
        outside = np.zeros(shape, dtype=np.uint8)
        for corner in ([(0, 0), (inset, 0), (0, depth)], [(view[1], 0), (view[1] - inset, 0), (view[1], depth)]):
            cv2.fillPoly(outside, [np.array(corner, dtype=np.int32)], 255)
        if not any((mask & outside).any() for mask in masks):
            image[outside > 0] = 0
    _annotate(rng, image[: view[0], : view[1]], lesions[0] if lesions else None)
    return image, masks or [np.zeros(shape, dtype=np.uint8)]


# -- the data set ------------------------------------------------------------------------------------------------------


def phantom_labels(n: int) -> list[str]:
    """Classes of the first ``n`` phantoms, in BUSI's shares: the sequence for a smaller ``n`` is a prefix."""
    counts = dict.fromkeys(SHARES, 0)
    labels = []
    for index in range(n):
        label = max(SHARES, key=lambda name: SHARES[name] * (index + 1) - counts[name])
        counts[label] += 1
        labels.append(label)
    return labels


def _pick_shape(rng: np.random.Generator, shape: Shape | None) -> tuple[int, int]:
    if shape is None:  # heights and aspects of BUSI
        height = int(np.clip(rng.normal(465, 75), 250, 600))
        return height, int(np.clip(height * rng.uniform(0.95, 1.5), 300, 750))
    low, high = (tuple(side if isinstance(side, int) else side[end] for side in shape) for end in (0, 1))
    return int(rng.integers(low[0], high[0] + 1)), int(rng.integers(low[1], high[1] + 1))


def _write_png(path: Path, grey: np.ndarray, mode: str) -> None:
    """Write ``grey`` (H, W) as a PNG of ``mode`` 1, L, RGB or RGBA."""
    if mode == "1":
        Image.fromarray(grey).convert("1").save(path, compress_level=1)
        return
    channels = {"L": None, "RGB": cv2.COLOR_GRAY2BGR, "RGBA": cv2.COLOR_GRAY2BGRA}[mode]
    data = cv2.imencode(".png", grey if channels is None else cv2.cvtColor(grey, channels))[1]  # twice as fast as PIL
    path.write_bytes(data.tobytes())


def _write_one(folder: Path, label: str, number: int, seed: int, index: int, shape: Shape | None) -> int:
    """Write phantom ``index`` of ``seed``; returns the number of files."""
    rng = np.random.default_rng([seed, index])
    image, masks = draw_phantom(rng, label, _pick_shape(rng, shape))
    mode = str(rng.choice(["L", "RGB", "RGBA"], p=[0.93, 0.05, 0.02]))  # BUSI mixes them too
    stem = f"{label} ({number})"
    _write_png(folder / f"{stem}.png", image, mode)
    for k, mask in enumerate(masks):
        # BUSI's lesion masks have 1 bit, its empty ones RGB
        as_mode = "RGB" if label == "normal" else str(rng.choice(["1", "L"], p=[0.8, 0.2]))
        name = f"{stem}_mask.png" if k == 0 else f"{stem}_mask_{k}.png"
        _write_png(folder / name, mask, as_mode)
    return 1 + len(masks)


def _holds(dest: Path, wanted: dict[str, object]) -> bool:
    """Whether ``dest`` already holds the phantom set ``wanted``.

    Raises:
        DataError: ``dest`` holds something else
    """
    if not dest.exists():
        return False
    if not dest.is_dir():
        raise DataError(f"{dest} is a file: name a folder for the phantoms")
    manifest = dest / _MANIFEST
    if not manifest.is_file():
        if any(dest.iterdir()):
            raise DataError(f"{dest} is not empty and does not hold phantoms: name another folder")
        return False
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        files = found.pop("files")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{manifest} is damaged: delete {dest} or name another folder") from error
    if found != wanted:
        asked = ", ".join(
            f"{key} {found.get(key)} instead of {value}" for key, value in wanted.items() if found.get(key) != value
        )
        raise DataError(f"{dest} holds another phantom set ({asked}): delete it or name another folder")
    if sum(len(images_in(folder)) for folder in list_folder(dest).folders) != files:
        raise DataError(
            f"{dest} has lost or gained files since its phantoms were written: delete it to write them again"
        )
    return True


def write_phantoms(
    dest: Path,
    n: int = 160,
    seed: int = 0,
    shape: Shape | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a phantom data set in BUSI's layout, or return the one that is already there.

    ``dest/{benign,malignant,normal}/<class> (<k>).png`` with ``_mask.png``, ``_mask_1.png``, ... and ``phantom.json``
    (n, seed, version of the generator). Phantom ``i`` depends only on ``seed`` and ``i``, so that a larger set starts
    with the images of a smaller one. Classes come in BUSI's shares (56, 27, 17 %). The set appears under ``dest`` only
    when it is complete, even if another process writes the same one.

    Args:
        dest: folder that does not exist, is empty, or already holds the same set
        n: number of images
        seed: equal seeds give byte-equal images
        shape: (H, W) in pixels, each a number or a range (low, high); None draws sizes like BUSI's
        progress: called with (images written, n) after each image

    Returns:
        ``dest``

    Raises:
        DataError: ``dest`` holds something else or cannot be written, or n, seed or shape are invalid
    """
    dest = Path(dest)
    if not 1 <= n <= MOST or seed < 0:
        raise DataError(
            f"cannot write {n} phantoms with seed {seed}: n must lie from 1 to {MOST:,}, the seed not be negative"
        )
    if shape is not None:
        for side in shape:
            low, high = (side, side) if isinstance(side, int) else side
            if not _MIN_SIDE <= low <= high:
                raise DataError(
                    f"phantom shape {shape} is invalid: give sides of {_MIN_SIDE} or more, ranges low to high"
                )
    # through JSON, so that it compares equal to what is read back
    wanted = json.loads(
        json.dumps({"generator": "bustseg phantom", "version": VERSION, "n": n, "seed": seed, "shape": shape})
    )
    if _holds(dest, wanted):
        return dest
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        lock = dest.parent / f".{dest.name}.lock"
        lock.touch()  # where no file can be made, the lock would be waited for without end
        with FileLock(lock):
            if not _holds(dest, wanted):  # another process may have finished while this one waited
                _write_set(dest, wanted, n, seed, shape, progress)
    except OSError as error:
        raise DataError(f"cannot write phantoms to {dest}: {error.strerror or error}") from error
    return dest


def _write_set(
    dest: Path,
    manifest: dict[str, object],
    n: int,
    seed: int,
    shape: Shape | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the set into a folder next to ``dest`` and rename it; the caller holds the lock."""
    partial = dest.parent / f".{dest.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        for label in SHARES:
            (partial / label).mkdir(parents=True)
        counts = dict.fromkeys(SHARES, 0)
        files = 0
        for index, label in enumerate(phantom_labels(n)):
            counts[label] += 1
            files += _write_one(partial / label, label, counts[label], seed, index, shape)
            if progress is not None:
                progress(index + 1, n)
        text = json.dumps({**manifest, "files": files}, indent=2) + "\n"
        (partial / _MANIFEST).write_text(text, encoding="utf-8")
        if dest.exists():
            dest.rmdir()  # known to be empty
        partial.rename(dest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class Phantom(BUSI):
    """Built-in data: phantoms in BUSI's layout, written on first use.

    Args:
        n: number of images
        seed: equal seeds give equal images

    Examples:
        >>> source = Phantom(n=24)
        >>> source.prepare(source.default_root())
        >>> len(source.read(source.default_root()))
        24
    """

    name = "phantom"

    def __init__(self, n: int = 160, seed: int = 0) -> None:
        self.n = n
        self.seed = seed

    def default_root(self) -> Path:
        """Default folder of this set: in ``BUSTSEG_CACHE`` or the user's cache."""
        cache = os.environ.get("BUSTSEG_CACHE")
        base = Path(cache) if cache else user_cache_path("bustseg", appauthor=False)
        return base / f"phantom-v{VERSION}-n{self.n}-seed{self.seed}"

    def prepare(self, root: Path) -> None:
        """Write the set to ``root`` unless it is there; safe for several processes at once.

        Raises:
            DataError: ``root`` holds something else, or cannot be written
        """
        write_phantoms(root, self.n, self.seed)
