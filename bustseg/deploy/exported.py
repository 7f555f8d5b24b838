"""An exported folder: a network's file with ``bustseg.json``, which contains everything needed to use it.

It is read without torch, so a process that only predicts starts in a fraction of a second. The folder may come from
anyone: its metadata are checked against a schema, and only files that it lists, that lie in the folder itself and that
match their checksums are opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bustseg.deploy.formats import NAME, find_format
from bustseg.errors import UserError
from bustseg.framing import Framing, Resize
from bustseg.masks import POSTPROCESS, MaskRule, PostProcess

METADATA = "bustseg.json"
"""Name of the file that makes a folder an exported model."""

FORMAT_VERSIONS: Mapping[Resize, int] = {"stretch": 1, "letterbox": 2}
"""Version of newly written folders: increased where readers of the version before would use them wrongly."""

MAX_SIDE = 8192
"""Largest side of a network's input in pixels."""

_MAX_METADATA = 4_000_000
"""Most bytes of ``bustseg.json``, which usually has about ten thousand."""

PRECISIONS = ("fp32", "bf16", "int8")
BACKENDS = ("eager", "compiled", "onnxruntime", "openvino")
"""Names of the backends, see :mod:`bustseg.deploy.backends`."""


class _Part(BaseModel):
    """The metadata of one of the folder's files."""

    model_config = ConfigDict(strict=True)

    size: int = Field(alias="bytes", ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Input(BaseModel):
    model_config = ConfigDict(strict=True)

    image_size: tuple[Annotated[int, Field(ge=1, le=MAX_SIDE)], Annotated[int, Field(ge=1, le=MAX_SIDE)]]


_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=255)]


class _Metadata(BaseModel):
    """The fields that a folder must have before anything in it is used; further fields are for people."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    format_version: int
    format: str = Field(pattern=f"^{NAME.pattern}$")
    precision: Literal["fp32", "bf16", "int8"]
    model: _FileName
    files: dict[_FileName, _Part] = Field(min_length=1, max_length=100)
    input: _Input
    threshold: float = Field(ge=0, le=1)
    postprocess: dict[str, bool | float | str | None] | None = None
    calibration: dict[str, float] | None = None
    training_images: dict[str, tuple[float, float]] | None = None

    def needed(self) -> list[str]:
        """Names of the files that the runtime opens."""
        return [self.model, str(Path(self.model).with_suffix(".bin"))] if self.format == "openvino" else [self.model]


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
        """The model in a folder, after checking that its files are unchanged.

        Raises:
            UserError: not an exported folder, one of a later version, or a file that is missing or has been changed
        """
        folder = Path(path).parent if Path(path).name == METADATA else Path(path)
        text = _text(folder)
        try:
            content = json.loads(text)
            version = content["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{folder / METADATA} cannot be read: export the model again") from error
        if version not in FORMAT_VERSIONS.values():
            known = max(FORMAT_VERSIONS.values())
            raise UserError(
                f"{folder} has format version {version!r:.20}, and this bustseg reads 1 to {known}: "
                "update bustseg, or export the model again"
            )
        try:
            metadata = _Metadata.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{folder / METADATA} cannot be used ({place:.100}: {first['msg']:.200}): export the model again"
            ) from error
        model = cls(folder, content)
        try:
            find_format(metadata.format)
            _ = model.mask_rule
        except UserError as error:
            raise UserError(f"{folder} cannot be used here: {error}") from error
        for name in metadata.needed():
            if name not in metadata.files:
                raise UserError(f"{folder / METADATA} gives no checksum of {name}: export the model again")
        for name, expected in metadata.files.items():
            _check_file(folder, name, expected)
        return model

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
    def framing(self) -> Framing:
        """How an image becomes the network's input."""
        # a folder of version 1 describes stretching in words
        letterbox = self.metadata["format_version"] == FORMAT_VERSIONS["letterbox"]
        return Framing(self.image_size, "letterbox" if letterbox else "stretch")

    @property
    def threshold(self) -> float:
        """Probability above which a pixel belongs to a lesion."""
        return self.mask_rule.threshold

    @property
    def mask_rule(self) -> MaskRule:
        """The rule that turns logits into masks.

        Raises:
            UserError: settings that this version does not know
        """
        return MaskRule(float(self.metadata["threshold"]), PostProcess.from_dict(self.metadata.get(POSTPROCESS)))


def _text(folder: Path) -> str:
    file = folder / METADATA
    try:
        if file.stat().st_size > _MAX_METADATA or not file.is_file():
            raise UserError(f"{file} is not a file of at most {_MAX_METADATA} bytes: export the model again")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not an exported model: it has no {METADATA}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: export the model again") from error


def _check_file(folder: Path, name: str, expected: _Part) -> None:
    """Refuse a file that is missing, outside of the folder, or changed.

    Raises:
        UserError: it is refused
    """
    file = folder / name
    if not file.is_file():
        raise UserError(f"{folder} lacks {name}: copy the whole folder, or export the model again")
    if file.resolve().parent != folder.resolve():
        raise UserError(f"{file} leads out of its folder: copy the file itself, or export the model again")
    if file.stat().st_size != expected.size or sha256(file) != expected.sha256:
        raise UserError(
            f"{file} is not the file that was exported (its SHA-256 differs from {METADATA}): "
            "copy it again, or export the model again"
        )
