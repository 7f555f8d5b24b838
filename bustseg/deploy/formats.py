"""Export formats, and the common interface of the backends that compute exported networks.

``onnx`` and ``openvino`` are built in. A package adds its own with :func:`register_format`, or with an entry point of
the group ``bustseg.export_formats`` that refers to a format or a sequence of formats. An exported folder only names its
format: the code that computes it is always installed here, and never comes from the folder.
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
"""Modules of the built-in formats, imported on use; each has its format under the name ``FORMAT``."""

NAME = re.compile(r"[a-z0-9_]{1,50}")
"""Valid names of a format, which appear in metadata and on command lines."""


class Backend(Protocol):
    """Computes a network. Safe to call from several threads at once.

    Attributes:
        name: ``eager``, ``compiled``, ``onnxruntime``, ``openvino``, or the name of another format's runtime
    """

    name: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits ``float32`` (B, 1, h, w) of prepared grey images, ``uint8`` (B, 1, h, w)."""
        ...


@dataclass(frozen=True)
class NetworkToWrite:
    """The input of a format's writer.

    Attributes:
        network: grey images ``uint8`` (B, 1, h, w) to logits ``float32`` (B, 1, h, w), in evaluation mode
        size: (h, w)
        precision: one that the format supports
        folder: empty folder for the files
        check: images that the written network will be compared on, and those to calibrate int8 with
        reference: the network's logits of ``check.images``, ``float32`` (N, h, w); may be missing for precisions other
            than int8
        rule: turns logits into masks
        max_dice_drop: largest allowed loss of Dice on ``check``'s masks
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
        name: lower-case letters, digits and underscores
        write: writes a network into a folder and returns the file that a runtime opens
        open: creates the backend of an exported model, with a number of threads per image
        open_without_mirror: the same without the pass over the mirror image; None where the file includes that pass
        runtime: name of the runtime in `bustseg bench`; the name of the format when empty
        precisions: the supported ones of ``fp32``, ``bf16`` and ``int8``
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
    """Make formats available for export and use in every command.

    Args:
        formats: the formats; one with a known name replaces it

    Raises:
        UserError: an invalid name, or that of a built-in format
    """
    for format in formats:
        if format.name in _SHIPPED or not NAME.fullmatch(format.name):
            raise UserError(
                f"invalid name of a format, {format.name!r:.60}: use lower-case letters, digits and underscores"
            )
        _FORMATS[format.name] = format


def unregister_format(name: str) -> None:
    """Remove a registered format."""
    _FORMATS.pop(name, None)


def find_format(name: str) -> ExportFormat:
    """A format by its name.

    Raises:
        UserError: there is no format with that name, or an installed package's entry point cannot be used
    """
    if name in _SHIPPED:
        return importlib.import_module(_SHIPPED[name]).FORMAT
    _register_installed()
    if name not in _FORMATS:
        known = ", ".join((*_SHIPPED, *_FORMATS))
        raise UserError(
            f"no export format {name:.60}: there are {known}; for others install the package that provides them"
        )
    return _FORMATS[name]


def shipped_formats() -> list[ExportFormat]:
    """The built-in formats."""
    return [find_format(name) for name in _SHIPPED]


def not_installed(format: ExportFormat, precision: str) -> list[str]:
    """Modules that a precision of a format needs but that are not installed."""
    return [name for name in format.packages(precision) if importlib.util.find_spec(name) is None]


def missing(packages: Sequence[str], format: str = "onnx") -> UserError:
    """The error for packages that are not installed, with the remedy.

    Args:
        packages: names of the modules
        format: the format that needs them; bustseg's extra ``deploy`` has the packages of the built-in ones
    """
    if format in _SHIPPED:
        remedy = "pip install 'bustseg[deploy]'"
    else:
        remedy = f"the format {format} needs {'them' if len(packages) > 1 else 'it'}: see the package that provides it"
    return UserError(f"{' and '.join(packages)} {'are' if len(packages) > 1 else 'is'} not installed: {remedy}")


@functools.cache
def _register_installed() -> None:
    register_format(*offered(ENTRY_POINTS, "export formats"))
