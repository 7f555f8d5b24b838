"""Runs under one MLflow parent: find them again, continue interrupted ones, and run fit and test as one child."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bustseg.errors import UserError
from bustseg.experiment import Experiment
from bustseg.progress import console
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.runs.scores import scores_of_test
from bustseg.runs.tracker import Tracker, child_runs, newest_run, open_store, tracking_uri
from bustseg.training import run_fit, run_test

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

MACHINE = ("trainer.accelerator", "trainer.devices", "tracking.uri")
"""Keys about where to run, which a test does not take from a checkpoint."""

_DECIDING = ("seed_everything", "model", "data", "trainer", "early_stopping", "checkpoint")

Scores = dict[str, float]


def config_digest(config: Mapping[str, Any], without: Sequence[str] = (), **facts: str) -> str:
    """Digest, 16 hex digits, of everything that affects a fit's results, which identifies its run.

    Args:
        config: a fit's complete configuration
        without: dotted keys, such as ``data.fold``, that are left out
        facts: other facts that affect the results, such as a digest of the data
    """
    kept = json.loads(json.dumps({name: config.get(name) for name in _DECIDING}, default=str))
    for key in without:
        *path, last = key.split(".")
        section = kept
        for name in path:
            section = section.get(name) or {}
        section.pop(last, None)
    return hashlib.sha256(json.dumps([kept, facts], sort_keys=True).encode()).hexdigest()[:16]


def store_client(uri: str | None = None) -> MlflowClient:
    """Client of the store in use, which must exist."""
    from mlflow.tracking import MlflowClient

    store = tracking_uri(uri)
    open_store(store)
    return MlflowClient(store)


def reopen_parent(options: Mapping[str, Any], tag: str, key: str) -> tuple[Tracker | None, list[Run]]:
    """Reopen the newest parent run whose ``tag`` is ``key``; returns it, or None, and its children, oldest first.

    Args:
        options: the `tracking` section of a configuration
        tag: tag of parents of this kind
        key: digest that identifies it
    """
    client = store_client(options.get("uri"))
    found = newest_run(client, options["experiment"], tag, key)
    if found is None:
        return None, []
    parent = Tracker(**{**options, "run_name": found.info.run_name, "tags": None}, run_id=found.info.run_id)
    parent.reopen()
    return parent, child_runs(client, found)


def fit_and_test(experiment: Experiment, tags: Mapping[str, str], known: Run | None = None) -> tuple[str, Scores]:
    """Train and test one child: skip what its run has finished, and continue an interrupted fit.

    Args:
        experiment: the child's experiment
        tags: tags of the child, including :data:`~bustseg.runs.tracker.PARENT_TAG`
        known: the child's run from an earlier attempt

    Returns:
        the child's run id and the scores of its test
    """
    run_id = None
    if known is not None:
        if scores := tested(known):
            console.print(f"already done (run {known.info.run_id})", highlight=False)
            return known.info.run_id, scores
        run_id = known.info.run_id if known.info.status == "FINISHED" else _go_on(known, experiment)
    if run_id is None:
        run_id = str(run_fit(experiment, tags=tags).run_id)
    best = resolve_checkpoint(run_id)
    test = run_test(_here(Experiment.of_checkpoint(best, "test"), experiment), best)
    return run_id, {name: value for name, value in test.metrics.items() if name.startswith("test/")}


def tested(run: Run) -> Scores:
    """Scores of a run's test; empty when the run is not finished or not tested."""
    return scores_of_test(run) if run.info.status == "FINISHED" else {}


def _go_on(run: Run, experiment: Experiment) -> str | None:
    """Continue an interrupted fit after its last finished epoch; None if no epoch was finished."""
    try:
        last = resolve_checkpoint(run.info.run_id, prefer="last")
    except UserError:
        if run.info.status == "RUNNING":  # its process is gone, so nothing else will end it
            store_client(experiment["tracking.uri"]).set_terminated(run.info.run_id, "KILLED")
        return None
    run_fit(_here(Experiment.of_checkpoint(last), experiment), last)
    return run.info.run_id


def _here(stored: Experiment, experiment: Experiment) -> Experiment:
    """A checkpoint's stored experiment, with the devices and the store of another experiment."""
    return stored.but({key: experiment[key] for key in MACHINE})
