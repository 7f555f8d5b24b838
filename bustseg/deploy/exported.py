"""An exported folder: a network's file beside ``bustseg.json``, which says everything that using it takes.

Read without torch, so that a process that only predicts starts in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bustseg.errors import UserError
from bustseg.masks import POSTPROCESS, MaskRule, PostProcess

METADATA = "bustseg.json"
"""Name of the file that makes a folder an exported model."""

FORMAT_VERSION = 1
"""Raised when a reader of today could not use a folder written tomorrow."""

FORMATS = ("onnx", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")
BACKENDS = ("eager", "compiled", "onnxruntime", "openvino")
"""What can compute a network, see :mod:`bustseg.deploy.backends`."""


def sha256(path: Path) -> str:
    """Checksum of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_exported(model: str | Path) -> bool:
    """Whether a name is that of an exported folder (or of its ``bustseg.json``)."""
    path = Path(model)
    return (path.name == METADATA and path.is_file()) or (path / METADATA).is_file()


@dataclass(frozen=True)
class ExportedModel:
    """A checked exported folder.

    Attributes:
        folder: where it is
        metadata: content of ``bustseg.json``, see docs/reference/exported-model.md
    """

    folder: Path
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> ExportedModel:
        """The model in a folder, once its files are as they were written.

        Raises:
            UserError: not an exported folder, one of a later version, or a file that is missing or was changed
        """
        folder = Path(path).parent if Path(path).name == METADATA else Path(path)
        try:
            metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
            version, files = metadata["format_version"], dict(metadata["files"])
        except FileNotFoundError as error:
            raise UserError(f"{folder} is no exported model: it has no {METADATA}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / METADATA} cannot be read: export the model again") from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"{folder} has format version {version} and this bustseg reads {FORMAT_VERSION}: "
                "update bustseg, or export the model again"
            )
        for name, expected in files.items():
            file = folder / name
            if not file.is_file():
                raise UserError(f"{folder} lacks {name}: copy the whole folder, or export the model again")
            if sha256(file) != expected["sha256"]:
                raise UserError(
                    f"{file} is not the file that was exported (its SHA-256 differs from {METADATA}): "
                    "copy it again, or export the model again"
                )
        return cls(folder, metadata)

    @property
    def path(self) -> Path:
        """File that the runtime opens."""
        return self.folder / self.metadata["model"]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) that the network sees."""
        height, width = self.metadata["input"]["image_size"]
        return int(height), int(width)

    @property
    def threshold(self) -> float:
        """Probability above which a pixel belongs to a lesion."""
        return self.mask_rule.threshold

    @property
    def mask_rule(self) -> MaskRule:
        """What makes masks of the logits.

        Raises:
            UserError: settings that this version does not know
        """
        return MaskRule(float(self.metadata["threshold"]), PostProcess.from_dict(self.metadata.get(POSTPROCESS)))
