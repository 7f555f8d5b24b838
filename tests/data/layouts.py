"""Tiny versions of the public layouts: one bright ellipse per lesion on speckle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (48, 64)


def picture(seed: int, lesion: bool = True, shape: tuple[int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Image ``uint8`` and mask ``bool`` of ``shape`` (H, W)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    middle = rng.uniform(0.35, 0.65, 2) * shape
    inside = ((rows - middle[0]) / 9) ** 2 + ((columns - middle[1]) / 13) ** 2 < 1
    mask = inside & lesion
    image = np.clip(rng.gamma(4, 25, shape) * np.where(mask, 0.3, 1), 0, 255).astype(np.uint8)
    return image, mask


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def busbra(root: Path, patients: int = 6) -> Path:
    """Two views of each patient; the first half is malignant. Masks are 1-bit as in the original."""
    lines = ["ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX"]
    for patient in range(1, patients + 1):
        pathology = "malignant" if patient <= patients // 2 else "benign"
        for number, side in enumerate("lr"):
            image, mask = picture(10 * patient + number)
            name = f"{patient:04d}-{side}"
            save(root / "Images" / f"bus_{name}.png", image)
            save(root / "Masks" / f"mask_{name}.png", mask)
            lines.append(f'bus_{name},{patient},x,{pathology},4,scanner {patient % 3},64,48,left,"[1,2,3,4]"')
    (root / "bus_data.csv").write_text("\n".join(lines) + "\n")
    return root


def busuclm(root: Path, per_patient: int = 3) -> Path:
    """A benign, a malignant and a normal patient, RGB with coloured masks, semicolons and a byte-order mark."""
    lines = ["\ufeffImage;Resolution;Label;Doppler;Marks;Combined"]
    for patient, label, channel in (("ALWI", "Benign", 1), ("CHSP", "Malignant", 0), ("NORM", "Normal", None)):
        for number in range(per_patient):
            image, mask = picture(100 * len(lines), lesion=channel is not None)
            coloured = np.zeros((*mask.shape, 3), np.uint8)
            if channel is not None:
                coloured[mask, channel] = 255
            name = f"{patient}_{number:03d}.png"
            save(root / "images" / name, np.repeat(image[..., None], 3, 2))
            save(root / "masks" / name, coloured)
            lines.append(f"{name};64x48;{label};No;No;No")
    (root / "INFO.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def breast(root: Path, cases: int = 6) -> Path:
    """RGBA; the last case is normal (no tumour mask), the second has two tumours, the first another finding as well."""

    def rgba(grey: np.ndarray) -> np.ndarray:
        return np.dstack([grey, grey, grey, np.full(grey.shape, 255, np.uint8)])

    for case in range(1, cases + 1):
        image, mask = picture(1000 + case, lesion=case < cases)
        save(root / f"case{case:03d}.png", rgba(image))
        drawn = np.where(mask, 255, 0).astype(np.uint8)
        transparent = np.dstack([drawn] * 4)
        if case == 2:
            left, right = transparent.copy(), transparent.copy()
            left[:, 32:], right[:, :32] = 0, 0
            save(root / "case002_tumor1.png", left)
            save(root / "case002_tumor2.png", right)
        elif case < cases:
            save(root / f"case{case:03d}_tumor.png", transparent)
    save(root / "case001_other1.png", np.full((*SHAPE, 4), 255, np.uint8))
    return root


def folders(root: Path, n: int = 6, suffix: str = "", level: int = 255) -> Path:
    """``images/`` as JPEG and ``masks/`` of the levels 0 and ``level``."""
    for number in range(n):
        image, mask = picture(2000 + number)
        save(root / "images" / f"scan {number}.jpg", image)
        save(root / "masks" / f"scan {number}{suffix}.png", np.where(mask, level, 0).astype(np.uint8))
    return root
