"""Formats that a network can be exported to beside those that ship, and what a computed network is to all of them.

A package adds its own by :func:`register_format`, or by an entry point of the group ``bustseg.export_formats`` that
names a format or a sequence of formats. An exported folder only names its format: what computes it comes from what is
installed here, never from the folder.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bustseg.classes import offered
from bustseg.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

ENTRY_POINTS = "bustseg.export_formats"
"""Group of entry points under which an installed package offers formats."""

FORMATS = ("onnx", "openvino")
"""Formats that ship."""

NAME = re.compile(r"[a-z0-9_]{1,50}")
"""What a format may be called: it stands in metadata and on command lines."""


class Backend(Protocol):
    """Computes a network. Safe to call from several threads at once.

    Attributes:
        name: ``eager``, ``compiled``, ``onnxruntime``, ``openvino``, or that of another format's runtime
    """

    name: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits ``float32`` (B, 1, h, w) of prepared grey images, ``uint8`` (B, 1, h, w)."""
        ...


@dataclass(frozen=True)
class ExportFormat:
    """A format of somebody else's.

    Attributes:
        name: of small letters, digits and underscores
        write: writes a network into a folder and returns the file that a runtime opens; takes the network (grey images
            ``uint8`` (B, 1, h, w) to logits ``float32`` (B, 1, h, w), in evaluation mode), (h, w), the precision and
            the folder
        open: makes what computes such a file, of the file and the number of threads for one image
        precisions: those that it can be asked for, of ``fp32``, ``bf16`` and ``int8``
    """

    name: str
    write: Callable[[nn.Module, tuple[int, int], str, Path], Path]
    open: Callable[[Path, int], Backend]
    precisions: tuple[str, ...] = ("fp32",)


_FORMATS: dict[str, ExportFormat] = {}


def register_format(*formats: ExportFormat) -> None:
    """Let every command export to formats, and use what was exported to them.

    Args:
        formats: a name that is known already is replaced

    Raises:
        UserError: a name that cannot be one, or is that of a format that ships
    """
    for format in formats:
        if format.name in FORMATS or not NAME.fullmatch(format.name):
            raise UserError(f"a format cannot be called {format.name!r:.60}: take small letters, digits, underscores")
        _FORMATS[format.name] = format


def unregister_format(name: str) -> None:
    """Take a format out again."""
    _FORMATS.pop(name, None)


def find_format(name: str) -> ExportFormat:
    """A format that does not ship, by its name.

    Raises:
        UserError: there is none of that name, or an installed package's entry point cannot be used
    """
    _register_installed()
    if name not in _FORMATS:
        known = ", ".join((*FORMATS, *_FORMATS))
        raise UserError(
            f"no export format {name:.60}: there are {known}; others come with the package that brings them"
        )
    return _FORMATS[name]


@functools.cache
def _register_installed() -> None:
    register_format(*offered(ENTRY_POINTS, "export formats"))
