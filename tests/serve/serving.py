"""Images for the server, and how a running one is named."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


def scene(height: int = 96, width: int = 128, top: int = 24, left: int = 32, side: int = 48) -> np.ndarray:
    """Bright grey with a dark square, which by default lies on whole pixels of the network's grid of 64 x 64."""
    image = np.full((height, width), 180, np.uint8)
    image[top : top + side, left : left + side] = 20
    return image


def as_png(image: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class Running:
    """A server that listens.

    Attributes:
        url: where
        port: its port
        app: the application
        stop: ends it
    """

    url: str
    port: int
    app: Any
    stop: Callable[[], None]
