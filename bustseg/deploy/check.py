"""Images to check an exported model on, and measures of its difference from the original network."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bustseg.data.cache import decode
from bustseg.data.inputs import Inputs, LooseSamples
from bustseg.deploy.confidence import ImageRange, image_range
from bustseg.deploy.formats import Backend
from bustseg.errors import DataError, UserError
from bustseg.framing import Framing
from bustseg.masks import MaskRule, probability_of
from bustseg.progress import tell_once

CALIBRATION_IMAGES = 300
"""Most images that calibrate the activation ranges of an int8 model (NNCF's default)."""


@dataclass(frozen=True)
class CheckImages:
    """Images at the network's size.

    Attributes:
        images: grey ``uint8`` (N, h, w)
        masks: ``uint8`` 0 or 1 (N, h, w); None where they are not known
        calibration: grey ``uint8`` (M, h, w), different from ``images`` where possible; None for images that are not
            real
        origin: description of the images
        data_digest: digest of the data set; None without one
        split_digest: digest of its split; None without one
        training: range of the training images, in which case ``images`` and ``masks`` are the validation images; None
            when unknown
    """

    images: np.ndarray
    masks: np.ndarray | None
    calibration: np.ndarray | None
    origin: str
    data_digest: str | None = None
    split_digest: str | None = None
    training: ImageRange | None = None


def check_images(
    checkpoint: Path | None, framing: Framing, root: Path | None = None, folder: Path | None = None
) -> CheckImages:
    """The validation images of a checkpoint's training, if they are available.

    Args:
        checkpoint: a run's checkpoint; None for an untrained network
        framing: how images become the network's input
        root: where the run's data are now
        folder: images to use instead, with masks in the same folder as in BUSI

    Returns:
        images of ``folder``, else of ``root``, else of the run's own root if it is still there, else phantoms

    Raises:
        UserError: ``root`` or ``folder`` cannot be used
    """
    if folder is not None:
        return _of_folder(folder, framing)
    found = None if checkpoint is None else _of_run(checkpoint, framing, root)
    return found if found is not None else _phantoms(framing)


def _of_run(checkpoint: Path, framing: Framing, root: Path | None) -> CheckImages | None:
    from bustseg.runs.checkpoint import load_data

    data = load_data(checkpoint)
    data.framing = framing
    if root is not None:
        data.root = str(root)
    try:
        data.prepare_data()
        data.setup("validate")
    except (UserError, OSError):
        if root is not None:
            raise
        return None
    assert data.cache is not None
    val, train = data.indices["val"], data.indices["train"]
    # they are ordered by class, so the first ones would all be benign
    spread = train[np.linspace(0, max(len(train) - 1, 0), min(len(train), CALIBRATION_IMAGES)).astype(np.int64)]
    if not len(val):
        return None
    return CheckImages(
        np.asarray(data.cache.images[val]),
        np.asarray(data.cache.masks[val]),
        np.asarray(data.cache.images[spread if len(train) else val]),
        f"{len(val)} validation images of {data.source.name}, split {Path(data.split_scheme).name}",
        data.data_digest,
        data.split_digest,
        image_range(data.cache.images[index] for index in train) if len(train) else None,
    )


def _of_folder(folder: Path, framing: Framing) -> CheckImages:
    samples, pairs, failed = [], [], 0
    as_sample = LooseSamples()
    for item in Inputs([str(folder)]):
        try:
            item.check()
            sample = as_sample(item)
            pairs.append(decode(sample, framing))
            samples.append(sample)
        except DataError as error:
            failed += 1
            tell_once(f"left out: {error}")
    if not pairs:
        raise UserError(f"none of the {failed} images in {folder} can be read")
    images = np.stack([image for image, _ in pairs])
    # an image without a mask file may still show a lesion, unless its folder says that it does not
    known = all(sample.masks or sample.label == "normal" for sample in samples)
    masks = np.stack([mask for _, mask in pairs]) if known else None
    return CheckImages(images, masks, images[:CALIBRATION_IMAGES], f"{len(images)} images of a folder")


def _phantoms(framing: Framing, n: int = 8) -> CheckImages:
    from bustseg.data.phantom import write_phantoms
    from bustseg.data.sources import BUSI

    with tempfile.TemporaryDirectory() as folder:
        root = write_phantoms(Path(folder) / "phantoms", n=n, seed=0)
        images = np.stack([decode(sample, framing)[0] for sample in BUSI().read(root)])
    return CheckImages(images, None, None, f"{n} synthetic phantoms")


def logits_of(backend: Backend, images: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """Logits ``float32`` (N, h, w) of grey images ``uint8`` (N, h, w)."""
    parts = [backend(images[start : start + batch_size, None]) for start in range(0, len(images), batch_size)]
    return np.concatenate(parts)[:, 0]


def largest_difference(logits: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of a pixel's probability, from two sets of logits (N, h, w)."""
    pairs = zip(logits, reference, strict=True)
    return max(float(np.abs(probability_of(one) - probability_of(other)).max()) for one, other in pairs)


def overlap(logits: np.ndarray, masks: np.ndarray, rule: MaskRule) -> dict[str, float]:
    """Mean scores, as from :func:`bustseg.metrics.aggregate`, of the masks that a rule makes from logits.

    Args:
        logits: ``float32`` (N, h, w)
        masks: the true masks, 0 or 1 (N, h, w)
        rule: makes the masks that are scored
    """
    import torch

    from bustseg.metrics import SegmentationMetrics

    metric = SegmentationMetrics(rule.threshold)
    index, found = torch.arange(len(logits)), torch.from_numpy(logits)[:, None]
    metric.update(found, torch.from_numpy(masks)[:, None], torch.full_like(index, 3), index, rule.masks(found))
    return {name: float(value) for name, value in metric.compute().items()}


def dice_by_convention(scores: dict[str, float], conventions: Sequence[str]) -> dict[str, float]:
    """The Dice scores among what :func:`overlap` returns, by convention."""
    return {name: scores[f"dice_{name}"] for name in conventions if f"dice_{name}" in scores}


def dice_of(logits: np.ndarray, masks: np.ndarray, rule: MaskRule) -> dict[str, float]:
    """Dice of the masks that a rule makes from logits (N, h, w), by convention; undefined ones are left out."""
    from bustseg.metrics import CONVENTIONS

    return dice_by_convention(overlap(logits, masks, rule), CONVENTIONS)


def decisive(dice: Mapping[str, float]) -> list[str]:
    """The conventions by which a drop is judged, as far as the masks define them."""
    return [name for name in ("lesion", "empty_one") if name in dice]


def largest_drop(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The largest loss of Dice among the conventions by which a drop is judged."""
    return max(before[name] - after[name] for name in decisive(before))
