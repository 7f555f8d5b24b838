"""Outlines of masks, drawn into images pixel by pixel."""

from __future__ import annotations

import cv2
import numpy as np

from bustseg.figures.colours import rgb


def draw_outline(canvas: np.ndarray, mask: np.ndarray, colour: str, width: int = 1) -> None:
    """Draw the edges of a mask, including those of its holes.

    Args:
        canvas: ``uint8`` (H, W, 3) in RGB, contiguous; changed in place
        mask: ``uint8`` of 0 and 1 (H, W)
        colour: ``#rrggbb``
        width: pixels
    """
    edges, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, edges, -1, rgb(colour), width)
