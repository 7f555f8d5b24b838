"""Images that a network has been trained on are not to be scored as if it had never seen them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.errors import UserError
from bustseg.progress import warn

_SPLITTING = (
    *("split", "split_seed", "fold", "folds", "kfold_of", "left_out_by", "curated_list", "duplicate_threshold"),
    "source",
)
"""Options of the data that decide which images train."""


def refuse_another_split(record: Mapping[str, Any], data: UltrasoundDataModule, changed: Iterable[str]) -> None:
    """Refuse to go on with a fit where its images are divided in another way than when it began.

    Args:
        record: what the checkpoint says of its origin
        data: what it would go on with, set up
        changed: dotted keys of the options that are not the checkpoint's

    Raises:
        UserError: the split is another one
    """
    before = record.get("split_digest")
    if before is None or before == data.split_digest:  # of a version that kept none
        return
    options = [key for key in changed if key.startswith(tuple(f"data.{name}" for name in _SPLITTING))]
    what = (
        f"{', '.join(options)} cannot be changed when a fit goes on"
        if options
        else f"the images in {data.data_root}, and so their split, are not those that this fit began with"
    )
    raise UserError(
        f"{what}, since images that were trained on would be validated and tested: "
        f"{'leave it out' if options else 'restore them'}, or begin a new fit"
    )


def warn_of_trained_images(record: Mapping[str, Any], data: UltrasoundDataModule, subset: str) -> None:
    """Say how many of the images that are about to be scored have trained the network, where that can be known.

    Args:
        record: what the scored checkpoint says of its origin
        data: set up for it; its split may be another than that of the training
        subset: ``val`` or ``test``
    """
    if record.get("split_digest") in (None, data.split_digest) or record.get("data_digest") != data.data_digest:
        return
    stored = record["config"].get("data", {})
    options = {name: stored[name] for name in _SPLITTING if name in stored and name != "source"}
    trained = UltrasoundDataModule(
        root=data.root, source=data.source, image_size=data.image_size, resize=data.resize, **options
    )
    try:
        trained.prepare_data()
        trained.setup("fit")
    except UserError:  # such as a split file that is no longer there
        return
    if trained.split_digest != record["split_digest"]:
        return
    seen = {trained.samples[index].id for index in trained.indices["train"]}
    scored = [data.samples[index].id for index in data.indices[subset]]
    if count := sum(image in seen for image in scored):
        warn(
            f"warning: {count} of these {len(scored)} images have trained this network, so that its scores are too "
            "good: score it on the split that it was trained with"
        )
