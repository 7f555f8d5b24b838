"""Readers of data-set layouts: each turns a folder into a list of :class:`Sample`."""

from bustseg.data.files import natural_key
from bustseg.data.images import image_mode, image_size, read_grey, read_native, to_grey
from bustseg.data.sources.base import LABELS, Problem, Sample, Source, read_table
from bustseg.data.sources.busi import BUSI
from bustseg.data.sources.dicom import DICOMFolder
from bustseg.data.sources.folders import Combined, Folders, Part
from bustseg.data.sources.public import BUSBRA, BUSUCLM, BrEaST

__all__ = [
    "BUSBRA",
    "BUSI",
    "BUSUCLM",
    "LABELS",
    "BrEaST",
    "Combined",
    "DICOMFolder",
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
