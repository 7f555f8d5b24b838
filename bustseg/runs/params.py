"""The parameters of a run: values that differ from the defaults, and values that people compare."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from bustseg.redact import redact_nested
from bustseg.runs.record import flatten

COMPARED = (
    *("model.network.class_path", "model.loss.class_path", "model.optimizer.class_path"),
    *("model.optimizer.init_args.lr", "model.optimizer.init_args.weight_decay"),
    *("model.threshold", "model.flip", "model.mean", "model.std"),
    *("data.source.class_path", "data.split", "data.split_seed", "data.image_size", "data.resize"),
    *("data.batch_size", "data.augmentation", "seed_everything", "trainer.max_epochs", "trainer.precision"),
    *("early_stopping.patience", "checkpoint.monitor"),
)
"""Keys that are always parameters: people sort, filter and compare runs by them."""

NOT_COMPARED = ("tracking.run_name", "tracking.description", "tracking.experiment")
"""Keys that a run shows elsewhere."""


def parameters(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run by dotted key; its artifact ``config.yaml`` has the complete configuration.

    Arguments with the default of their class are left out, except those of the network and the loss, which describe
    what was trained.

    Args:
        config: the resolved configuration
        defaults: the default configuration of an experiment
    """
    whole = dict(flatten(redact_nested(config)))
    same = dict(flatten(defaults))
    for prefix, arguments in _classes(config):
        same |= {f"{prefix}.init_args.{name}": value for name, value in arguments.items()}
    return {
        key: value
        for key, value in whole.items()
        if key in COMPARED or not (key in NOT_COMPARED or (key in same and _equal(value, same[key])))
    }


def _classes(config: Any, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Key of every class in a configuration, and the defaults of its arguments if it is imported."""
    if isinstance(config, list):
        return [found for place, item in enumerate(config) for found in _classes(item, f"{prefix}.{place}")]
    if not isinstance(config, Mapping):
        return []
    found = []
    if isinstance(config.get("class_path"), str) and prefix not in ("model.network", "model.loss"):
        found.append((prefix, _arguments(config["class_path"])))
    for key, value in config.items():
        found += _classes(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _arguments(path: str) -> dict[str, Any]:
    module, _, name = path.rpartition(".")
    # the classes of the training are imported by now, and nothing should be imported only to describe it
    cls = getattr(sys.modules.get(module), name, None)
    try:
        arguments = inspect.signature(cls).parameters.values() if inspect.isclass(cls) else ()
    except (TypeError, ValueError):
        return {}
    return {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal in a file, where a tuple is a list."""
    return bool(str(_as_list(one)) == str(_as_list(other)))


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, list | tuple) else value
