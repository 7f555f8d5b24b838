"""How an image of any size becomes a network's input, and how logits come back to the image's own size.

``stretch`` (the paper's way) makes every image a square whatever its proportions. ``letterbox`` keeps the proportions:
the image is scaled to fit, centred, and padded with black.

Needs only NumPy and OpenCV, since an exported model predicts without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from bustseg.errors import UserError
from bustseg.masks import resampled

Resize = Literal["stretch", "letterbox"]
RESIZES: tuple[Resize, ...] = get_args(Resize)


@dataclass(frozen=True)
class Framing:
    """The network's input size and the way to it.

    Attributes:
        size: (h, w) in pixels
        resize: ``stretch`` or ``letterbox``

    Raises:
        UserError: there is no such way
    """

    size: tuple[int, int]
    resize: Resize = "stretch"

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise UserError(f"images are resized by {' or '.join(RESIZES)}, not by {str(self.resize)[:40]!r}")

    def window(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the input that an image of ``shape`` (H, W) fills."""
        if self.resize == "stretch":
            return slice(0, self.size[0]), slice(0, self.size[1])
        scale = min(self.size[0] / shape[0], self.size[1] / shape[1])
        sides = [min(most, max(1, round(side * scale))) for side, most in zip(shape, self.size, strict=True)]
        top, left = ((most - side) // 2 for side, most in zip(sides, self.size, strict=True))
        return slice(top, top + sides[0]), slice(left, left + sides[1])

    def fit(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W) as an input (h, w) of the same type; padding is 0."""
        rows, columns = self.window((image.shape[0], image.shape[1]))
        resized = resize_image(image, (rows.stop - rows.start, columns.stop - columns.start))
        if resized.shape == self.size:
            return resized
        framed = np.zeros(self.size, image.dtype)
        framed[rows, columns] = resized
        return framed

    def restore(self, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Values (h, w), such as logits, of an image of ``shape`` (H, W) at its own size: bilinear, without padding."""
        return resampled(np.ascontiguousarray(values[self.window(shape)]), shape)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``image`` (H, W) stretched to ``size`` (h, w): averaged over areas where it shrinks, else bilinear."""
    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
