"""A JSON schema of the configs, for editors: made from the parser, so that it describes what `bustseg fit` accepts.

Editors use it to complete keys and classes, to describe them, and to mark a misspelt key or a value of the wrong type.
The parser has the last word: here a user's own class is valid with any arguments.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import types
import typing
from collections import abc
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ReduceLROnPlateau

from bustseg import losses, models
from bustseg.classes import subclasses
from bustseg.experiment import make_parser
from bustseg.usual_keys import LOSSES, NETWORKS

DRAFT = "https://json-schema.org/draft/2020-12/schema"

OF_THE_MACHINE = ("trainer.precision",)
"""Keys whose default depends on the machine, so that the schema states none."""

_PLAIN: dict[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    Path: "string",
    types.NoneType: "null",
}

_MADE = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, ReduceLROnPlateau)
"""What the callables of some keys make (optimisers and schedules); other result types are too vague to list classes."""

_ROOTS = (
    *("bustseg.models", "bustseg.losses", "bustseg.callbacks", "bustseg.data.sources", "bustseg.data.phantom"),
    *(
        "lightning.pytorch.loggers",
        "lightning.pytorch.profilers",
        "lightning.pytorch.callbacks",
        "lightning.pytorch.cli",
    ),
    *("torch.optim", "torch.optim.lr_scheduler"),
    *("segmentation_models_pytorch", "segmentation_models_pytorch.losses", "albumentations"),
)
"""Modules that the classes in the schema are imported from, spelt as in documentation and configs."""


def schema() -> dict[str, Any]:
    """The schema of a config for `bustseg fit`, made of plain JSON types."""
    return _Schema().whole()


def public_path(cls: type) -> str | None:
    """A class's dotted path as a config writes it (``torch.optim.Adam``); None for one from elsewhere."""
    name, package = cls.__name__, cls.__module__.partition(".")[0]
    roots = [root for root in _ROOTS if root.partition(".")[0] == package and not name.startswith("_")]
    return next((f"{root}.{name}" for root in roots if vars(import_module(root)).get(name) is cls), None)


class _Schema:
    """Collects the definitions that several keys share, while the schema is made."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        for root in _ROOTS:  # only imported classes are found among the subclasses of a base
            import_module(root)
        properties: dict[str, Any] = {}
        for action in _keys(make_parser()):
            section, _, key = action.dest.partition(".")
            described = self._key(action, action.dest)
            if not key:
                properties[section] = described
                continue
            # a section may also be the path of a separate file
            group = properties.setdefault(
                section, {"type": ["object", "string"], "properties": {}, "additionalProperties": False}
            )
            group["properties"][key] = described
        return {
            "$schema": DRAFT,
            "title": "A config of `bustseg fit`",
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "$defs": dict(sorted(self.definitions.items())),
        }

    def _key(self, action: Any, name: str) -> dict[str, Any]:
        """The schema of one key: its type, default and description."""
        described = self._network_or_loss(name) or self._type(action._typehint)  # noqa: SLF001 (listed in tests/test_private_parts.py)
        text = " ".join((action.help or "").replace("%%", "%").split())
        found = {"description": text} if text and text != "==SUPPRESS==" else {}
        if name not in OF_THE_MACHINE and (default := _plain(action.default)) is not None:
            found["default"] = default
        return {**described, **found}

    def _network_or_loss(self, name: str) -> dict[str, Any] | None:
        """The schema of these two keys: their type, any ``torch.nn.Module``, would list no classes."""
        import segmentation_models_pytorch as smp

        others: list[type]

        if name == "model.network":
            others = [cls for cls in vars(smp).values() if inspect.isclass(cls) and issubclass(cls, torch.nn.Module)]
            return self._class(torch.nn.Module, "network", [*(getattr(models, one) for one in NETWORKS), *others])
        if name == "model.loss":
            others = [cls for cls in vars(smp.losses).values() if inspect.isclass(cls)]
            found = self._class(torch.nn.Module, "loss", [*(getattr(losses, one) for one in LOSSES), *others])
            return {"anyOf": [found, {"type": "null"}]}
        return None

    def _type(self, hint: Any) -> dict[str, Any]:
        """The schema of a type; a type that JSON cannot express accepts anything."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint in _PLAIN:
            return {"type": _PLAIN[hint]}
        if origin is Literal:
            return {"enum": list(args)}
        if origin in (typing.Union, types.UnionType):
            return self._any_of(args)
        if origin is tuple and Ellipsis not in args:
            return {"type": "array", "prefixItems": [self._type(arg) for arg in args], "minItems": len(args)}
        if inspect.isclass(origin) and issubclass(origin, abc.Mapping):
            return {"type": "object", **({"additionalProperties": self._type(args[1])} if len(args) == 2 else {})}
        if origin is abc.Callable:
            made = args[1] if len(args) == 2 else Any
            parts = typing.get_args(made) if typing.get_origin(made) in (typing.Union, types.UnionType) else (made,)
            skip = len(args[0]) if len(args) == 2 and isinstance(args[0], list) else 0
            return self._any_of([_Made(part, skip) for part in parts])
        if isinstance(hint, _Made):
            return self._class(hint.cls, hint.cls.__name__, skip=hint.skip) if hint.cls in _MADE else {}
        if inspect.isclass(origin) and issubclass(origin, Iterable):
            return {"type": "array", **({"items": self._type(args[0])} if args else {})}
        if inspect.isclass(hint) and issubclass(hint, enum.Enum):
            return {"enum": [member.name for member in hint]}
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._fields(hint)
        if inspect.isclass(hint) and hint.__module__.partition(".")[0] in ("bustseg", "lightning", "albumentations"):
            return self._class(hint, hint.__name__)
        return {}

    def _any_of(self, hints: Iterable[Any]) -> dict[str, Any]:
        """The schema of a union; plain types are merged into one list."""
        hints = [hint for hint in hints if hint is not torch.Tensor]  # no file can hold one
        described = [self._type(hint) for hint in hints]
        if {} in described:
            return {}
        simple = [one["type"] for one in described if set(one) == {"type"}]
        others = [one for one in described if set(one) != {"type"}]
        names: Any = list(dict.fromkeys(simple))
        if names:
            others.append({"type": names[0] if len(names) == 1 else names})
        return others[0] if len(others) == 1 else {"anyOf": others}

    def _fields(self, cls: type) -> dict[str, Any]:
        """The schema of a dataclass of settings, whose fields are given directly or as ``init_args``."""
        name = cls.__name__
        if name not in self.definitions:
            self.definitions[name] = {}  # it may refer to itself
            own = self._arguments(cls)
            own["properties"] |= {"class_path": {"type": "string"}, "init_args": self._arguments(cls)}
            self.definitions[name] = own
        return {"$ref": f"#/$defs/{name}"}

    def _class(self, base: type, name: str, known: list[type] | None = None, skip: int = 0) -> dict[str, Any]:
        """The schema of a class: its path, or a mapping with ``class_path`` and the ``init_args`` of that class."""
        if name not in self.definitions:
            self.definitions[name] = {}  # a class may take others of its kind
            choices: dict[str, type] = {}
            for cls in known if known is not None else subclasses(base) or [base]:
                if (where := public_path(cls)) is not None:
                    choices |= dict.fromkeys([where] if known is not None else [where, cls.__name__], cls)
            conditions = []
            for cls in dict.fromkeys(choices.values()):
                paths = [path for path, one in choices.items() if one is cls]
                arguments = self._arguments(cls, skip)
                conditions.append(
                    {
                        "if": {"properties": {"class_path": {"enum": paths}}, "required": ["class_path"]},
                        "then": {"properties": {"init_args": arguments}},
                    }
                )
            path: dict[str, Any] = (
                {"anyOf": [{"enum": sorted(choices)}, {"type": "string"}]} if choices else {"type": "string"}
            )
            keys = {"class_path": path, "init_args": {"type": "object"}, "dict_kwargs": {"type": "object"}}
            mapping = {"type": "object", "properties": keys, "additionalProperties": False}
            self.definitions[name] = {"anyOf": [{**mapping, **({"allOf": conditions} if conditions else {})}, path]}
        return {"$ref": f"#/$defs/{name}"}

    def _arguments(self, cls: type, skip: int = 0) -> dict[str, Any]:
        """The arguments of a class, except the first ``skip``, which the training passes itself."""
        parser = ArgumentParser(exit_on_error=False)
        try:
            parser.add_class_arguments(cls, fail_untyped=False, skip={skip} if skip else None)
        except Exception:  # a class of another library whose signature cannot be read
            return {"type": "object"}
        found = {action.dest: self._key(action, f"{cls.__name__}.{action.dest}") for action in _keys(parser)}
        return {"type": "object", "properties": found, "additionalProperties": False}


@dataclasses.dataclass(frozen=True)
class _Made:
    """What a callable makes: the class, and how many of its first arguments the training passes itself."""

    cls: Any
    skip: int


def _keys(parser: ArgumentParser) -> list[Any]:
    """The options of a parser that have a type: the keys of its config files."""
    return [action for action in parser._actions if type(action).__name__ == "ActionTypeHint"]  # noqa: SLF001 (listed in tests/test_private_parts.py)


def _plain(value: Any) -> Any:
    """A default in JSON's types; None where there is none or JSON cannot express it."""
    if value == "==SUPPRESS==":
        return None
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, Mapping):
        value = dict(value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None
