"""Checkpoints as self-contained files: everything that a process without the config needs is inside."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from bustseg.data.datamodule import BUSIDataModule
from bustseg.data.transforms import without_own_readers
from bustseg.errors import UserError
from bustseg.runs.lookup import is_run_id, latest_run, run_file
from bustseg.runs.registry import is_registered, registered_file
from bustseg.runs.store import one_line
from bustseg.task import RECORD, SegmentationTask
from bustseg.trust import building, check_config, stored_config

_WEIGHT_ARGUMENTS = {"weights": "none", "encoder_weights": None, "pretrained": False, "weights_backbone": None}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint's content on the CPU, plain types and tensors only (``weights_only=True``).

    Raises:
        UserError: no such file, or not a checkpoint of bustseg
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable checkpoint: {one_line(error)}") from error
    if not isinstance(content, dict) or "config" not in content.get(RECORD, {}):
        raise UserError(f"{path} is not a checkpoint that `bustseg fit` wrote")
    return content


def without_pretrained(config: Any) -> Any:
    """Copy of a network's config that asks for no pretrained weights, since a checkpoint brings its own.

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
    """Where a network's config says which pretrained weights it takes: dotted key (``init_args.weights``) to value."""
    found: dict[str, Any] = {}
    for key, value in network.items() if isinstance(network, Mapping) else ():
        name = f"{prefix}{key}"
        found |= {name: value} if key in _WEIGHT_ARGUMENTS else pretrained_parts(value, f"{name}.")
    return found


def pretrained_value(key: str, weights: str) -> Any:
    """What the argument ``key`` takes for ``weights``, which are ``imagenet`` or ``none``."""
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


def load_task(path: Path, device: str | torch.device = "cpu") -> SegmentationTask:
    """The trained task of a checkpoint, in evaluation mode, from the file alone.

    Raises:
        TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
        UserError: the file is no checkpoint of bustseg, or its network's class cannot be imported
    """
    content = read_checkpoint(path)
    check_config(content[RECORD]["config"], path)
    try:
        with stored_config(path), building(path):
            task = build_task(content[RECORD]["config"]["model"])
        task.load_state_dict(content["state_dict"])
        task.record = content[RECORD]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot rebuild the network of {path}: {one_line(error)}") from error
    return task.to(device).eval()


def build_data(data: Mapping[str, Any]) -> BUSIDataModule:
    """The data module of a configuration's `data` section; not set up yet."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(BUSIDataModule, "data", fail_untyped=False)
    return parser.instantiate(parser.parse_object({"data": without_own_readers(dict(data))})).data


def load_data(path: Path) -> BUSIDataModule:
    """The data module that a checkpoint was trained with; not set up yet.

    Raises:
        TrustError: its configuration names what only the user may allow, see :mod:`bustseg.trust`
        UserError: the file is no checkpoint of bustseg, or its data source cannot be made
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


def trained_image_size(task: SegmentationTask) -> tuple[int, int]:
    """(H, W) of the images that a task was trained on.

    Raises:
        UserError: the task was not trained, so that it knows none
    """
    if task.record is None:
        raise UserError("this task was not trained, so that its image size is not known: give image_size")
    size = task.record["config"]["data"]["image_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def resolve_checkpoint(model: str, prefer: str = "best") -> Path:
    """Path of a checkpoint named by file, MLflow run id, ``runs:/RUN_ID[/path]``, ``latest``, or a registered model.

    A registered model is ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, see :mod:`bustseg.runs.registry`;
    ``latest`` is the store's newest run that was trained and did not fail.

    Args:
        model: the name
        prefer: ``best`` or ``last``, the file to take when only a run is named

    Raises:
        UserError: nothing is there
    """
    if Path(model).is_dir():
        raise UserError(f"{model} is a folder and no checkpoint (an exported model predicts, and does nothing else)")
    if Path(model).is_file():
        return Path(model)
    if is_registered(model):
        return registered_file(model)
    if model == "latest":
        model = f"runs:/{latest_run()}"
    run_id, _, inner = model.removeprefix("runs:/").partition("/")
    if not model.startswith("runs:/") and not is_run_id(model):
        raise UserError(
            f"no checkpoint at {model} (give a file, an MLflow run id, runs:/RUN_ID, models:/NAME@ALIAS or latest)"
        )
    return run_file(run_id, inner or f"checkpoints/{prefer}.ckpt")
