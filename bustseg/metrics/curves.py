"""Pixel ROC, precision-recall, threshold and reliability curves, streamed in bounded memory.

The exact curves need all logits of a data set sorted: 31 million for the training set. A histogram is sufficient if no
bin holds many pixels, but no fixed grid ensures that. Linear bins fail when all logits lie within 1e-4 of each other (a
network that predicts its prior), bins on the probability when they saturate, and bins of fixed relative width (the
upper 16 bits of a float32) in both cases. So the bins follow the data: each batch is counted on the upper 16 bits of
its float32 logits, and every bin that holds more than 1 / 8192 of the batch's pixels is split by further bits, the more
the heavier it is, until it is lighter than that or a single float32 value. That is a radix sort that stops where the
order no longer matters, and it needs only counting. (Logits of bfloat16 have no lower bits: they are counted exactly in
the first pass.)

Error: only pixels of the same bin lose their order, and count as tied. With a_i and b_i the shares of the lesion and of
the background pixels that lie in bin i, the AUC of a batch is off by at most sum(a_i b_i) / 2 <= max(b_i) / 2, that
is 1e-4 when 0.6 or more of the pixels are background, and usually far less. Values that make up more than 1 / 8192 of
a batch are kept exactly, so that ties within and between batches stay ties.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bustseg.metrics.rows import RowMetric, lesion_pixels

SWEEP = torch.arange(1, 100, dtype=torch.float64) / 100
"""Thresholds on the probability at which sweeps are taken: 0.01, 0.02, ..., 0.99."""

_LIGHT = 8192  # a bin with less than 1 / _LIGHT of the pixels is not split further
_CELLS = 2**16  # bins added by one round of splitting: a bin that is too heavy gets at least 8 parts
_MAX_ROWS = 2**20  # 24 MB; more rows than that are thinned
_THIN = 2**16  # bins that remain after thinning, at most three times as many


class Calibration(NamedTuple):
    """Reliability of the predicted probabilities.

    Attributes:
        edges: (bins + 1,) limits of the bins; a bin includes its upper limit
        pixels: (bins,) int64
        probability: (bins,) mean predicted probability; nan for an empty bin
        frequency: (bins,) share of the pixels that are lesion; nan for an empty bin
        ece: expected calibration error, the mean of abs(probability - frequency) over the pixels (Guo et al. 2017,
            eq. 3)
    """

    edges: Tensor
    pixels: Tensor
    probability: Tensor
    frequency: Tensor
    ece: Tensor


def _histogram(logits: Tensor, lesion: Tensor) -> Tensor:
    """Rows (float32 bits, background pixels, lesion pixels) of the bins that hold a pixel, int64 of shape (n, 3).

    Args:
        logits: (N,) any float type
        lesion: (N,) bool
    """
    # NaN predicts nothing, as in SegmentationMetrics
    bits = torch.nan_to_num(logits.float(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).view(torch.int32)
    device, pixels = bits.device, bits.numel()
    lesion = lesion.int()
    cell = (bits >> 16) + 2**15
    start = torch.arange(-(2**15), 2**15, device=device) << 16  # the bits of a bin's first value
    # bits that a bin does not distinguish yet; none if the logits were rounded to bfloat16 before
    left = torch.full((2**16,), 16 if (bits & 0xFFFF).any() else 0, device=device)
    while True:
        counts = torch.bincount(2 * cell + lesion, minlength=2 * len(start)).view(-1, 2)
        total = counts.sum(1)
        heavy = (total * _LIGHT > pixels) & (left > 0)
        if not heavy.any():
            break
        split = (total * (_CELLS / pixels)).log2().long().minimum(left).masked_fill(~heavy, 0)
        width = 1 << split
        first = width.cumsum(0) - width
        left = left - split
        # int32 tables: the look-up for every pixel is the most expensive step
        own_left, own_width, own_first = (table.int().index_select(0, cell) for table in (left, width, first))
        cell = ((bits >> own_left) & (own_width - 1)) + own_first
        parent = torch.repeat_interleave(width)
        start = (start - (first << left)).index_select(0, parent)
        left = left.index_select(0, parent)
        start += torch.arange(len(parent), device=device) << left
    seen = total > 0
    return torch.cat([start[seen, None], counts[seen]], dim=1)


def _values(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def _thin(rows: Tensor) -> Tensor:
    """Fewer bins: neighbours are merged while they hold less than 1 / _THIN of the pixels; heavier bins are kept."""
    values, order = _values(rows[:, 0]).sort()
    rows = rows[order]
    total = rows[:, 1:].sum(1)
    pixels = int(total.sum())
    heavy = total * _THIN > pixels
    light = total.masked_fill(heavy, 0)
    bucket = (light.cumsum(0) - light) * _THIN // pixels
    begins = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    begins[1:] = (bucket[1:] != bucket[:-1]) | heavy[1:] | heavy[:-1]
    begins[1:] &= values[1:] != values[:-1]  # the same value in two batches
    group = begins.cumsum(0) - 1
    thin = rows[begins]
    thin[:, 1:] = 0
    thin[:, 1:].index_add_(0, group, rows[:, 1:])
    return thin


class PixelCurves(RowMetric):
    """Threshold-free metrics over all pixels of a data set, from a histogram whose bins follow the data.

    The method is described in the module. Memory is bounded (24 MB, usually below 10), and processes merge their
    histograms by concatenating the bins. An image that a distributed sampler repeats would be counted twice; the data
    module's sampler repeats none in evaluation.

    Every method below waits for the other processes under DDP: call it on all of them.

    Args:
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=3, **kwargs)

    def update(self, logits: Tensor, mask: Tensor) -> None:
        """Count one batch.

        Args:
            logits: (B, 1, H, W), any float type; NaN counts as minus infinity
            mask: (B, 1, H, W) of 0 and 1, any type

        Raises:
            ValueError: the shapes differ
        """
        if logits.shape != mask.shape:
            raise ValueError(f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} must have the same shape")
        assert isinstance(self.rows, list)
        if not logits.numel():
            return
        self.rows.append(_histogram(logits.detach().flatten(), lesion_pixels(mask).flatten()))
        if sum(map(len, self.rows)) > _MAX_ROWS:
            self.rows = [_thin(torch.cat(self.rows))]

    def _cumulative(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits that occur, falling, and the background and lesion pixels at or above each; all (n,) on the CPU."""
        rows = self.merged_rows()
        values, order = _values(rows[:, 0]).sort(descending=True)
        below = rows[order, 1:].cumsum(0)
        last = torch.ones(len(values), dtype=torch.bool)
        last[:-1] = values[1:] != values[:-1]
        return values[last].double(), below[last, 0], below[last, 1]

    def _require(self, background: Tensor, lesion: Tensor, *, both: bool) -> None:
        if not len(lesion) or lesion[-1] == 0 or (both and background[-1] == 0):
            raise ValueError(f"a curve needs lesion{' and background' if both else ''} pixels")

    def compute(self) -> dict[str, Tensor]:
        """``auc_pixel``, the area under the pixel ROC curve by the trapezoid rule (ties count one half).

        Empty while there are no lesion or no background pixels.
        """
        _, background, lesion = self._cumulative()
        if not len(lesion) or 0 in (background[-1], lesion[-1]):
            return {}
        fpr, tpr = _rate(background), _rate(lesion)
        area = torch.trapezoid(tpr, fpr)
        return {"auc_pixel": (area.float() if self.device.type == "mps" else area).to(self.device)}

    def roc(self) -> tuple[Tensor, Tensor, Tensor]:
        """False-positive rate, true-positive rate and thresholds, float64 of shape (n,) on the CPU.

        A pixel counts as positive at or above a threshold, which is a probability; the first, infinite, predicts
        nothing (as in scikit-learn's ``roc_curve``).

        Raises:
            ValueError: there are no lesion or no background pixels
        """
        values, background, lesion = self._cumulative()
        self._require(background, lesion, both=True)
        thresholds = torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), values.sigmoid()])
        return _rate(background), _rate(lesion), thresholds

    def precision_recall(self) -> tuple[Tensor, Tensor, Tensor]:
        """Precision (n + 1,), recall (n + 1,) and thresholds (n,), float64 on the CPU, in scikit-learn's order.

        The thresholds rise; the last point, precision 1 at recall 0, has none.

        Raises:
            ValueError: there are no lesion pixels
        """
        values, background, lesion = self._cumulative()
        self._require(background, lesion, both=False)
        precision = lesion.double() / (lesion + background)
        end = torch.tensor([1.0, 0.0], dtype=torch.float64)
        return (
            torch.cat([precision.flip(0), end[:1]]),
            torch.cat([(lesion.double() / lesion[-1]).flip(0), end[1:]]),
            values.sigmoid().flip(0),
        )

    def average_precision(self) -> Tensor:
        """Precision averaged over the steps in recall, not interpolated; float64 scalar on the CPU.

        Raises:
            ValueError: there are no lesion pixels
        """
        precision, recall, _ = self.precision_recall()
        return ((recall[:-1] - recall[1:]) * precision[:-1]).sum()

    def dice_by_threshold(self, thresholds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Dice of all pixels together (convention ``pooled``) where ``probability > threshold`` is predicted as lesion.

        Args:
            thresholds: probabilities, shape (n,); None means :data:`SWEEP`

        Returns:
            thresholds and Dice, float64 of shape (n,) on the CPU

        Raises:
            ValueError: there are no lesion pixels
        """
        values, background, lesion = self._cumulative()
        self._require(background, lesion, both=False)
        thresholds = (SWEEP if thresholds is None else thresholds).double().cpu()
        above = torch.searchsorted(-values, -torch.logit(thresholds))  # how many of the values lie above, strictly
        zero = torch.zeros(1, dtype=torch.int64)
        tp, fp = torch.cat([zero, lesion])[above], torch.cat([zero, background])[above]
        return thresholds, 2 * tp.double() / (tp + fp + lesion[-1])

    def calibration(self, bins: int = 15) -> Calibration:
        """Reliability of the probabilities in ``bins`` bins of equal width.

        Raises:
            ValueError: no pixel was seen
        """
        values, background, lesion = self._cumulative()
        if not len(values):
            raise ValueError("a calibration needs pixels")
        background, lesion = background.diff(prepend=background[:1] * 0), lesion.diff(prepend=lesion[:1] * 0)
        probability, total = values.sigmoid(), background + lesion
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        place = (torch.bucketize(probability, edges) - 1).clamp(0, bins - 1)
        pixels, positive = torch.zeros(2, bins, dtype=torch.int64).unbind()
        pixels.index_add_(0, place, total)
        positive.index_add_(0, place, lesion)
        mean = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, probability * total) / pixels
        frequency = positive.double() / pixels
        ece = ((mean - frequency).abs() * pixels).nansum() / pixels.sum()
        return Calibration(edges, pixels, mean, frequency, ece)


def thin(x: np.ndarray, y: np.ndarray, points: int = 500) -> np.ndarray:
    """Positions of at most ``points`` vertices that preserve a curve's shape, in order, including both ends.

    Half as many marks as points are placed at equal distances along the curve, and the two vertices around each are
    kept. So both ends of a long straight piece (a tie) are kept, and straight lines between the points stay on the
    curve.

    Args:
        x, y: vertices in order, shape (n,); both should span about 1
    """
    if len(x) <= points:
        return np.arange(len(x))
    length = np.concatenate([[0.0], np.hypot(np.diff(x), np.diff(y)).cumsum()])
    after = np.searchsorted(length, np.linspace(0, length[-1], points // 2))
    after[0], after[-1] = 0, len(x) - 1
    return np.unique(np.concatenate([after, np.maximum(after[:-1] - 1, 0)]))


def _rate(cumulative: Tensor) -> Tensor:
    """Cumulative counts as fractions of the last, with a leading 0, in float64."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), cumulative.double() / cumulative[-1]])
