"""`bustseg data phantom`."""

from __future__ import annotations

from pathlib import Path


def phantom(dest: Path, *, n: int = 160, seed: int = 0) -> int:
    """Write synthetic phantoms in BUSI's layout.

    Example:
        bustseg data phantom phantoms --n 160

    Args:
        dest: folder to create
        n: number of images
        seed: the same seed gives the same images
    """
    from bustseg.data.phantom import write_phantoms
    from bustseg.progress import console

    folder = write_phantoms(dest, n=n, seed=seed)
    console.print(f"{n} phantoms in {folder}; train on them with --data.root {folder}")
    return 0
