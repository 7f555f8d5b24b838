"""Readers of public data-set layouts: a folder on disk becomes a list of :class:`Sample`."""

from bustseg.data.sources.base import (
    LABELS,
    Problem,
    Sample,
    Source,
    image_mode,
    image_size,
    natural_key,
    read_grey,
    read_native,
    read_table,
    to_grey,
)
from bustseg.data.sources.busi import BUSI
from bustseg.data.sources.folders import Combined, Folders, Part
from bustseg.data.sources.public import BUSBRA, BUSUCLM, BrEaST

__all__ = [
    "BUSBRA",
    "BUSI",
    "BUSUCLM",
    "LABELS",
    "BrEaST",
    "Combined",
    "Folders",
    "Part",
    "Problem",
    "Sample",
    "Source",
    "image_mode",
    "image_size",
    "natural_key",
    "read_grey",
    "read_native",
    "read_table",
    "to_grey",
]
