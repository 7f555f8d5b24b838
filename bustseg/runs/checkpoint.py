"""Checkpoints as self-contained files, which can be used without the config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.transforms import without_own_readers
from bustseg.errors import UserError
from bustseg.framing import Framing
from bustseg.runs.store import one_line
from bustseg.task import RECORD, SegmentationTask
from bustseg.trust import building, check_config, stored_config

_WEIGHT_ARGUMENTS = {"weights": "none", "encoder_weights": None, "pretrained": False, "weights_backbone": None}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint's content on the CPU, only plain types and tensors (``weights_only=True``).

    Raises:
        UserError: no such file, or not a bustseg checkpoint
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except Exception as error:  # torch's reader assumes a complete stream, and may raise any error otherwise
        raise UserError(f"{path} is not a readable checkpoint: {one_line(error)}") from error
    record = content.get(RECORD) if isinstance(content, dict) else None
    if not isinstance(record, Mapping) or "config" not in record:
        raise UserError(f"{path} is not a checkpoint from `bustseg fit`")
    kinds = {"state_dict": (Mapping, "weights"), "epoch": (int, "epoch"), "pytorch-lightning_version": (str, "version")}
    for key, (kind, what) in kinds.items():
        # untrained networks have no epoch
        if (key in content or key == "state_dict") and not isinstance(content.get(key), kind):
            raise UserError(f"{path} is a damaged checkpoint, whose {what} cannot be read: use another copy of it")
    return content


def check_weights(task: SegmentationTask, weights: Mapping[str, Any], path: Path) -> None:
    """Refuse weights that do not belong to a task's network, before they are used.

    Args:
        task: built from the checkpoint's configuration
        weights: the checkpoint's weights
        path: the checkpoint, for messages

    Raises:
        UserError: weights that are missing, unknown, of another shape, or not numbers
    """
    # weights of the loss may differ, see SegmentationTask.on_load_checkpoint
    own = {name: value.shape for name, value in task.state_dict().items() if not name.startswith("loss.")}
    given = {str(name): value for name, value in weights.items() if not str(name).startswith("loss.")}
    what = ""
    if odd := sorted(own.keys() ^ given.keys()):
        what = f"{'lacks' if odd[0] in own else 'has the unknown'} weights {odd[0]:.80}"
    for name, value in given.items() if not what else ():
        if not isinstance(value, torch.Tensor) or value.shape != own[name]:
            what = f"has weights {name:.80} with another shape than its network"
            break
        if value.is_floating_point() and not torch.isfinite(value).all():
            what = f"has weights {name:.80} that are not numbers"
            break
    if what:
        raise UserError(f"{path} {what}: use another copy of it, or train again")


def without_pretrained(config: Any) -> Any:
    """Copy of a network's config without pretrained weights, since a checkpoint has its own.

    Covers the names that bustseg, smp, timm and torchvision use: `weights`, `encoder_weights`, `pretrained`.
    """
    if isinstance(config, Mapping):
        return {
            key: _WEIGHT_ARGUMENTS[key] if key in _WEIGHT_ARGUMENTS else without_pretrained(value)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [without_pretrained(item) for item in config]
    return copy.copy(config)


def pretrained_parts(network: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of pretrained weights in a network's config: dotted key (``init_args.weights``) to value."""
    found: dict[str, Any] = {}
    for key, value in network.items() if isinstance(network, Mapping) else ():
        name = f"{prefix}{key}"
        found |= {name: value} if key in _WEIGHT_ARGUMENTS else pretrained_parts(value, f"{name}.")
    return found


def pretrained_value(key: str, weights: str) -> Any:
    """The value of the argument ``key`` for ``weights``, which are ``imagenet`` or ``none``."""
    argument = key.rpartition(".")[2]
    if weights == "none":
        return _WEIGHT_ARGUMENTS[argument]
    return True if argument == "pretrained" else weights


def build_task(model: Mapping[str, Any]) -> SegmentationTask:
    """The task of a configuration's `model` section, with random weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SegmentationTask, "model", fail_untyped=False)
    section = {**model, "network": without_pretrained(model["network"])}
    return parser.instantiate(parser.parse_object({"model": section})).model


def rebuilt(content: Mapping[str, Any], path: Path) -> SegmentationTask:
    """The trained task of a checkpoint's content.

    Args:
        content: from :func:`read_checkpoint`
        path: where it was read, for messages

    Raises:
        TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
        UserError: its network's class cannot be imported, or its weights are not that network's
    """
    check_config(content[RECORD]["config"], path)
    try:
        with stored_config(path), building(path):
            task = build_task(content[RECORD]["config"]["model"])
        check_weights(task, content["state_dict"], path)
        task.load_state_dict(content["state_dict"])
        task.record = content[RECORD]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot rebuild the network of {path}: {one_line(error)}") from error
    return task


def load_task(path: Path, device: str | torch.device = "cpu") -> SegmentationTask:
    """The trained task of a checkpoint, in evaluation mode, from the file only.

    Raises:
        TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
        UserError: the file is not a bustseg checkpoint, or its network's class cannot be imported
    """
    task = rebuilt(read_checkpoint(path), path)
    return task.to(device).eval()


def build_data(data: Mapping[str, Any]) -> UltrasoundDataModule:
    """The data module of a configuration's `data` section; not set up yet."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(UltrasoundDataModule, "data", fail_untyped=False)
    return parser.instantiate(parser.parse_object({"data": without_own_readers(dict(data))})).data


def load_data(path: Path) -> UltrasoundDataModule:
    """The data module that a checkpoint was trained with; not set up yet.

    Raises:
        TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
        UserError: the file is not a bustseg checkpoint, or its data source cannot be created
    """
    config = read_checkpoint(path)[RECORD]["config"]
    check_config(config, path)
    try:
        with stored_config(path), building(path):
            return build_data(config.get("data", {}))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot rebuild the data of {path}: {one_line(error)}") from error


def trained_framing(task: SegmentationTask, size: tuple[int, int] | None = None) -> Framing:
    """How the images that a task was trained on became its input.

    Args:
        task: the task
        size: (h, w) to use instead of the size of the training

    Raises:
        UserError: the task was not trained and no size is given, or its configuration has none that can be used
    """
    if task.record is not None:
        framing = stored_framing(task.record["config"].get("data", {}))
        return framing if size is None else replace(framing, size=size)
    if size is None:
        raise UserError("this task was not trained, so its image size is unknown: give image_size")
    return Framing(size)


def stored_framing(data: Mapping[str, Any]) -> Framing:
    """The same from the section ``data`` of a configuration, which may be older than one of its keys.

    Raises:
        UserError: the section has a value that cannot be used
    """
    size = data.get("image_size", 224)
    try:
        height, width = (size, size) if isinstance(size, int) else map(int, size)
    except (TypeError, ValueError) as error:
        raise UserError(f"the checkpoint's data.image_size is {size!r:.60}: it must be one number or two") from error
    return Framing((height, width), data.get("resize", "stretch"))
