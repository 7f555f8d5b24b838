"""Small stand-ins for ultrasound images: speckle under a shared scanner frame, each with its own anatomy."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from bustseg.data.sources import Sample


def speckle_image(seed: int, shape: tuple[int, int] = (240, 300)) -> tuple[np.ndarray, np.ndarray]:
    """Image as ``uint8`` (H, W) and its lesion as ``bool``: layered tissue with fascia, a dark ellipse, multiplicative
    speckle.

    The frame (fan-free border, depth attenuation, a burned-in ruler at the side) is the same for every seed, as it is
    for all images of one scanner.
    """
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    coarse = cv2.resize(rng.normal(size=(7, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    layers = np.sin((y + 14 * np.sin(x / width * rng.uniform(2, 6) + rng.uniform(0, 6))) / rng.uniform(9, 22))
    fascia = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), sigmaX=9, sigmaY=2.2)
    tissue = 105 + 22 * coarse + 12 * layers + 26 * fascia / fascia.std()
    cx, cy = rng.uniform(0.25, 0.75) * width, rng.uniform(0.25, 0.7) * height
    a, b = rng.uniform(0.08, 0.22) * width, rng.uniform(0.07, 0.18) * height
    lesion = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
    tissue = np.where(cv2.GaussianBlur(lesion.astype(np.float32), (0, 0), 3) > 0.5, 0.35 * tissue, tissue)
    grain = cv2.GaussianBlur(rng.rayleigh(1.0, size=shape).astype(np.float32), (0, 0), 1.6)
    image = tissue * (0.35 + 0.55 * grain) * (1.15 - 0.6 * y / height)
    image[:12] = 8
    image[:, :10] = 8
    image[20:height:20, 4:8] = 200
    return np.clip(image, 0, 255).astype(np.uint8), lesion


def write_sample(
    root: Path, label: str, number: int, image: np.ndarray, mask: np.ndarray, mirror: bool = False
) -> None:
    """Write one image with its mask in BUSI's layout."""
    folder = root / label
    folder.mkdir(parents=True, exist_ok=True)
    if mirror:
        image, mask = image[:, ::-1], mask[:, ::-1]
    cv2.imwrite(str(folder / f"{label} ({number}).png"), image)
    cv2.imwrite(str(folder / f"{label} ({number})_mask.png"), np.ascontiguousarray(mask).astype(np.uint8) * 255)


def busi_like(benign: int = 437, malignant: int = 210, normal: int = 133) -> list[Sample]:
    """Samples with BUSI's names and no files behind them."""
    return [
        Sample(f"{label} ({n})", Path(f"{label}/{label} ({n}).png"), (Path(f"{label}/{label} ({n})_mask.png"),), label)
        for label, count in (("benign", benign), ("malignant", malignant), ("normal", normal))
        for n in range(1, count + 1)
    ]
