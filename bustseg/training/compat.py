"""Temporary: the old ways in, for what does not take experiments yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from bustseg.checkpoint import resolve_checkpoint
from bustseg.experiment import Experiment, scored_experiment
from bustseg.training.run import Run, prepare, run_fit, run_test, run_validate


def one_value(args: list[str], option: str) -> tuple[str | None, list[str]]:
    """Value of ``option`` in ``args`` (both ``--x v`` and ``--x=v``) and the arguments without it."""
    rest, value = [], None
    items = iter(args)
    for item in items:
        if item == option:
            value = next(items, None)
        elif item.startswith(option + "="):
            value = item.partition("=")[2]
        else:
            rest.append(item)
    return value, rest


def resolve_config(args: list[str]) -> dict[str, Any]:
    """Whole configuration of a fit as plain types."""
    return Experiment.parse(args).config


def run_verb(
    verb: str, args: list[str], tags: Mapping[str, str] | None = None, callbacks: Sequence[pl.Callback] = ()
) -> Run:
    """Run `fit`, `validate` or `test`."""
    named, rest = one_value(args, "--ckpt_path")
    if verb == "fit":
        if named is None:
            return run_fit(Experiment.parse(rest), tags=tags, callbacks=callbacks)
        path = resolve_checkpoint(named, prefer="last")
        return run_fit(Experiment.parse(rest, Experiment.of_checkpoint(path)), path, tags=tags, callbacks=callbacks)
    run = run_test if verb == "test" else run_validate
    return run(*scored_experiment(verb, named, rest), tags=tags)


def build_cli(verb: str, args: list[str]) -> Run:
    """Make what a fit needs."""
    return prepare(Experiment.parse(args), "fit")
