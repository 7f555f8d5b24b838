"""The Python API: train and score networks; :class:`bustseg.Predictor` outlines images.

Examples:
    >>> run = bustseg.fit("configs/quickstart.yaml", max_epochs=2)  # doctest: +SKIP
    >>> bustseg.test(run).metrics["test/dice_lesion"]  # doctest: +SKIP
    >>> bustseg.Predictor(run.checkpoint)(image).mask  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bustseg.errors import UserError
from bustseg.experiment import Experiment
from bustseg.notices import one_line_each
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.training import Run, run_fit, run_test, run_validate
from bustseg.trust import allow_text


@one_line_each()
def fit(
    config: str | Path | Mapping[str, Any] | Experiment, changes: Mapping[str, Any] | None = None, /, **short: Any
) -> Run:
    """Train a network, as `bustseg fit` does.

    Args:
        config: a config file, a configuration as a mapping, or an experiment
        changes: new values by dotted key (``model.optimizer.init_args.lr``)
        short: the same by the last part of a key (``lr=1e-3``), where only one key ends with it

    Returns:
        a run with ``metrics``, ``run_id``, ``checkpoint`` (of the best epoch), ``task`` (the network) and ``data``

    Raises:
        UserError: an experiment or data that cannot be used
    """
    if isinstance(config, Mapping):
        config = Experiment.of_config(config)
    elif not isinstance(config, Experiment):
        config = Experiment.read(config)
    return run_fit(_changed(config, changes, short))


@one_line_each()
def resume(model: str | Path | Run, changes: Mapping[str, Any] | None = None, /, **short: Any) -> Run:
    """Continue an interrupted training in the same run, as `bustseg fit --ckpt_path MODEL` does.

    Args:
        model: a ``last.ckpt``, an MLflow run id, ``latest``, or what :func:`fit` has returned
        changes, short: as in :func:`fit`; ``max_epochs=20`` trains longer
    """
    path = resolve_checkpoint(_name(model, "run_id"), prefer="last")
    return run_fit(_changed(Experiment.of_checkpoint(path), changes, short), path)


@one_line_each()
def test(model: str | Path | Run, changes: Mapping[str, Any] | None = None, /, **short: Any) -> Run:  # noqa: PT028
    """Score a trained network on the test images, as `bustseg test` does.

    Args:
        model: a checkpoint, an MLflow run id, ``latest``, or what :func:`fit` has returned
        changes, short: as in :func:`fit`, applied to the configuration that the network was trained with

    Returns:
        a run with its ``metrics``, and with what was scored

    Raises:
        UserError: a checkpoint, change or data that cannot be used
    """
    return run_test(*_scored("test", model, changes, short))


test.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name


@one_line_each()
def validate(model: str | Path | Run, changes: Mapping[str, Any] | None = None, /, **short: Any) -> Run:
    """Score a trained network on the validation images, and recommend a threshold. Arguments as in :func:`test`."""
    return run_validate(*_scored("validate", model, changes, short))


def _scored(
    verb: str, model: str | Path | Run, changes: Mapping[str, Any] | None, short: Mapping[str, Any]
) -> tuple[Experiment, Path]:
    """The experiment that scores a network, and its checkpoint's file."""
    path = resolve_checkpoint(_name(model, "checkpoint"))
    return _changed(Experiment.of_checkpoint(path, verb), changes, short), path


def _changed(experiment: Experiment, changes: Mapping[str, Any] | None, short: Mapping[str, Any]) -> Experiment:
    if not changes and not short:
        return experiment
    allow_text(yaml.safe_dump({**(changes or {}), **short}))  # written by the caller, see bustseg.trust
    return experiment.but(changes, **short)


def _name(model: str | Path | Run, attribute: str) -> str:
    """The name by which a checkpoint is found."""
    name = getattr(model, attribute) if isinstance(model, Run) else model
    if name is None:
        raise UserError(
            "this training left no checkpoint: it was stopped in its first epoch, or it was set to keep none"
        )
    return str(name)
