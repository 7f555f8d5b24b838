"""Which files of a folder are images, and their order."""

from __future__ import annotations

import re

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Suffixes of pictures in lower case; DICOM files are known by :func:`bustseg.data.dicom.is_dicom`."""

MASK_STEM = re.compile(r"^(?P<image>.+)_mask(_\d+)?$")
"""Name of a mask file without its suffix; ``image`` is that of its image, which lies beside it."""


def natural_key(text: str) -> list[object]:
    """Sort key that puts ``benign (2)`` before ``benign (10)``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", text)]
