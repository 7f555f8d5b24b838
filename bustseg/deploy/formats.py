"""Formats that a network can be exported to, and what a computed network is to all of them.

``onnx`` and ``openvino`` ship. A package adds its own by :func:`register_format`, or by an entry point of the group
``bustseg.export_formats`` that names a format or a sequence of formats. An exported folder only names its format: what
computes it comes from what is installed here, never from the folder.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bustseg.classes import offered
from bustseg.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from bustseg.deploy.check import CheckImages
    from bustseg.deploy.exported import ExportedModel
    from bustseg.masks import MaskRule

ENTRY_POINTS = "bustseg.export_formats"
"""Group of entry points under which an installed package offers formats."""

_SHIPPED = {"onnx": "bustseg.deploy.onnx_format", "openvino": "bustseg.deploy.openvino_format"}
"""Modules of the formats that ship, imported when they are used; each has its format under the name ``FORMAT``."""

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
class NetworkToWrite:
    """What a format is given to write.

    Attributes:
        network: grey images ``uint8`` (B, 1, h, w) to logits ``float32`` (B, 1, h, w), in evaluation mode
        size: (h, w)
        precision: one of the format's
        folder: where the files go; nothing else is in it
        check: images that the written network will be compared on, and those to calibrate int8 with
        reference: the network's logits of ``check.images``, ``float32`` (N, h, w); of precisions other than int8 they
            may be missing
        rule: makes masks of logits
        max_dice_drop: what the precision may cost on ``check``'s masks
    """

    network: nn.Module
    size: tuple[int, int]
    precision: str
    folder: Path
    check: CheckImages
    reference: np.ndarray
    rule: MaskRule
    max_dice_drop: float


@dataclass(frozen=True)
class ExportFormat:
    """A format that a network can be exported to.

    Attributes:
        name: of small letters, digits and underscores
        write: writes a network into a folder and returns the file that a runtime opens
        open: makes what computes an exported model, with a number of threads for one image
        open_without_mirror: the same without the pass over the mirror image; None where that is a part of the file
        runtime: what `bustseg bench` calls the runtime; the name of the format when empty
        precisions: those that it can be asked for, of ``fp32``, ``bf16`` and ``int8``
        packages: names of the modules that writing and computing a precision need
    """

    name: str
    write: Callable[[NetworkToWrite], Path]
    open: Callable[[ExportedModel, int], Backend]
    open_without_mirror: Callable[[ExportedModel, int], Backend] | None = None
    runtime: str = ""
    precisions: tuple[str, ...] = ("fp32",)
    packages: Callable[[str], Sequence[str]] = lambda precision: ()


_FORMATS: dict[str, ExportFormat] = {}


def register_format(*formats: ExportFormat) -> None:
    """Let every command export to formats, and use what was exported to them.

    Args:
        formats: a name that is known already is replaced

    Raises:
        UserError: a name that cannot be one, or is that of a format that ships
    """
    for format in formats:
        if format.name in _SHIPPED or not NAME.fullmatch(format.name):
            raise UserError(f"a format cannot be called {format.name!r:.60}: take small letters, digits, underscores")
        _FORMATS[format.name] = format


def unregister_format(name: str) -> None:
    """Take a format out again."""
    _FORMATS.pop(name, None)


def find_format(name: str) -> ExportFormat:
    """A format by its name.

    Raises:
        UserError: there is none of that name, or an installed package's entry point cannot be used
    """
    if name in _SHIPPED:
        return importlib.import_module(_SHIPPED[name]).FORMAT
    _register_installed()
    if name not in _FORMATS:
        known = ", ".join((*_SHIPPED, *_FORMATS))
        raise UserError(
            f"no export format {name:.60}: there are {known}; others come with the package that brings them"
        )
    return _FORMATS[name]


def shipped_formats() -> list[ExportFormat]:
    """The formats that ship."""
    return [find_format(name) for name in _SHIPPED]


def not_installed(format: ExportFormat, precision: str) -> list[str]:
    """Modules that a precision of a format needs and that are not installed."""
    return [name for name in format.packages(precision) if importlib.util.find_spec(name) is None]


def missing(packages: Sequence[str], format: str = "onnx") -> UserError:
    """The error for packages that are not installed, with what to do.

    Args:
        packages: names of the modules
        format: that needs them; bustseg's extra ``deploy`` has the packages of those that ship
    """
    if format in _SHIPPED:
        remedy = "pip install 'bustseg[deploy]'"
    else:
        remedy = f"the format {format} needs {'them' if len(packages) > 1 else 'it'}: see the package that brings it"
    return UserError(f"{' and '.join(packages)} {'are' if len(packages) > 1 else 'is'} not installed: {remedy}")


@functools.cache
def _register_installed() -> None:
    register_format(*offered(ENTRY_POINTS, "export formats"))
