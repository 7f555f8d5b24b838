"""Base of the streaming metrics: their state is a table of integers that grows by rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors


def _gather_rows(rows: Tensor, group: Any = None, *, columns: int) -> list[Tensor]:
    """Gather tables from all processes. torchmetrics gives a float vector for a process that saw no batch."""
    return gather_all_tensors(rows.reshape(-1, columns).to(torch.int64), group)


def lesion_pixels(mask: Tensor) -> Tensor:
    """Mask of 0 and 1 in any type as bool of the same shape; fractions are thresholded at one half."""
    if mask.dtype == torch.bool:
        return mask
    return mask > 0.5 if mask.is_floating_point() else mask != 0


class RowMetric(Metric):
    """Metric whose only state is an int64 table (n, columns): integers reduce exactly over any number of processes.

    Args:
        columns: width of the table
        kwargs: torchmetrics' own options
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self, columns: int, **kwargs: Any) -> None:
        if kwargs.get("dist_sync_fn") is None:
            kwargs["dist_sync_fn"] = partial(_gather_rows, columns=columns)
        super().__init__(**kwargs)
        self.columns = columns
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def merged_rows(self) -> Tensor:
        """The table of all processes, (n, columns) int64 on the CPU. Every process must call it."""
        sync = not self._is_synced
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=sync, should_unsync=sync):
            if isinstance(self.rows, list) and not self.rows:
                return torch.zeros(0, self.columns, dtype=torch.int64)
            # to the CPU in one copy: many tiny operations follow, which are slow on a GPU
            return dim_zero_cat(self.rows).cpu()

    def merged_images(self) -> Tensor:
        """The same for a table whose first column is an image's index: one row per image, sorted by it."""
        rows = self.merged_rows()
        rows = rows[rows[:, 0].argsort(stable=True)]
        first = torch.ones(len(rows), dtype=torch.bool)
        first[1:] = rows[1:, 0] != rows[:-1, 0]
        return rows[first]

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add another metric's rows to the own ones."""
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics caches the earlier result


class DiceRows(RowMetric):
    """Table of each image's index, lesion pixels, and Dice under several settings (the bits of float64).

    Args:
        settings: number of settings
        kwargs: torchmetrics' own options
    """

    def __init__(self, settings: int, **kwargs: Any) -> None:
        super().__init__(columns=2 + settings, **kwargs)

    def update(self, logits: Tensor, mask: Tensor, index: Tensor) -> None:
        """Count one batch.

        Args:
            logits: (B, 1, H, W), any float type
            mask: (B, 1, H, W) of 0 and 1, any type
            index: (B,) positions of the images in the data set

        Raises:
            ValueError: the shapes do not fit together
        """
        check_shapes(logits, mask, index)
        if not len(logits):
            return
        planes = logits.detach().float().cpu().numpy()[:, 0]
        lesion = lesion_pixels(mask).cpu().numpy()[:, 0]
        values = np.stack([self.values_of(*pair) for pair in zip(planes, lesion, strict=True)])
        self.append(index, torch.from_numpy(lesion.sum((1, 2))), torch.from_numpy(values), logits.device)

    def values_of(self, logits: np.ndarray, lesion: np.ndarray) -> np.ndarray:
        """Numbers of one image, float64 (settings,), from its logits and true mask (bool), both (H, W)."""
        raise NotImplementedError

    def append(self, index: Tensor, size: Tensor, dice: Tensor, device: torch.device) -> None:
        """Add a batch: index (B,), lesion pixels (B,), Dice (B, settings) float64; the table is kept on ``device``."""
        assert isinstance(self.rows, list)
        rows = torch.cat([index.cpu()[:, None].long(), size.cpu()[:, None].long(), dice.view(torch.int64)], dim=1)
        self.rows.append(rows.to(device))

    def per_image(self) -> tuple[Tensor, Tensor]:
        """Dice (n, settings) float64 and whether there is a lesion (n,), on the CPU. Every process must call it."""
        rows = self.merged_images()
        return rows[:, 2:].contiguous().view(torch.float64), rows[:, 1] > 0


def check_shapes(logits: Tensor, mask: Tensor, index: Tensor) -> None:
    """Check a batch: logits and mask (B, 1, H, W), index (B,).

    Raises:
        ValueError: the shapes do not fit together
    """
    if logits.shape != mask.shape or len(logits) != len(index):
        raise ValueError(
            f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} must have the same shape (B, 1, H, W), "
            f"index {tuple(index.shape)} the shape (B,)"
        )
