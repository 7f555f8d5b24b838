"""MLflow: where the store is, and a logger that keeps what a run has computed even when the store goes away."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bustseg.progress import error_console
from bustseg.runs.store import RUNS_DIR, local_path, one_line, open_store, tracking_uri

__all__ = [
    "PARENT_TAG",
    "RUNS_DIR",
    "Tracker",
    "child_runs",
    "flatten",
    "local_path",
    "newest_run",
    "one_line",
    "open_store",
    "tracking_uri",
]


class Tracker(MLFlowLogger):
    """MLflow logger of a run.

    Metrics that a store does not take are kept, sent with the next ones, and at the end written to a file if they
    still cannot be sent: losing the server never loses a training.

    Args:
        experiment: MLflow experiment
        run_name: name of the run; MLflow invents one when not given
        uri: store; ``MLFLOW_TRACKING_URI`` or the local sqlite store when not given
        tags: tags of the run
        description: text at the top of the run's page, in Markdown
        run_id: continue this run instead of starting one
        log_model: record the best checkpoint of a fit as an MLflow model, ``runs:/RUN_ID/model``
    """

    def __init__(
        self,
        experiment: str = "bustseg",
        run_name: str | None = None,
        uri: str | None = None,
        tags: dict[str, str] | None = None,
        description: str | None = None,
        run_id: str | None = None,
        log_model: bool = True,
    ) -> None:
        self.log_model = log_model
        self.uri = tracking_uri(uri)
        self.store = open_store(self.uri, write=True)
        all_tags = dict(tags or {})
        if description:
            all_tags["mlflow.note.content"] = description
        super().__init__(
            experiment_name=experiment,
            run_name=run_name,
            tracking_uri=self.uri,
            tags=all_tags,
            run_id=run_id,
            artifact_location=self.store.artifact_location,
        )
        self._unsent: list[tuple[dict[str, float], int]] = []
        self.killed = False
        """Set when the user stopped the run, which MLflow tells apart from a failure."""
        self.final_status: str | None = None
        """Status to leave the run in whatever happens now (a test must not fail the training that it looks at)."""

    @property
    def save_dir(self) -> str:
        """Local folder for what callbacks write; MLFlowLogger has none for a database store (Lightning #19441)."""
        return str(RUNS_DIR)

    @property
    def artifact_dir(self) -> Path | None:
        """The run's artifact folder when it is on this machine, else None."""
        return self.store.artifact_folder(self.experiment.get_run(self.run_id))

    @property
    def run_dir(self) -> Path:
        """Folder of this run's files on this machine: the artifact folder itself when it is local."""
        return self.artifact_dir or RUNS_DIR / "remote" / str(self.run_id)

    def _send(self, send: Callable[[], Any], what: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            send()
        except (MlflowException, OSError) as error:
            error_console.print(f"[yellow]warning:[/] MLflow did not take {what}: {one_line(error)}", highlight=False)
            return False
        return True

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send metrics; keep them for later if the store does not answer."""
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        # curves over epochs compare between batch sizes; Lightning counts optimiser steps
        if epoch is not None and not any(name.endswith("_step") for name in values):
            step = int(epoch)
        within_epoch = any(name.endswith("_step") for name in values)
        waiting = bool(self._unsent)
        if values:
            self._unsent.append((values, step or 0))
        if within_epoch and waiting:
            # the store did not answer last time: the epoch's end asks it again, and no step waits for it
            return

        def send() -> None:
            while self._unsent:
                super(Tracker, self).log_metrics(*self._unsent[0])
                self._unsent.pop(0)

        self._send(send, "metrics (they are kept and sent later)")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: Lightning offers a part of the configuration here, `log_config` records all of it."""

    @rank_zero_only
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the whole configuration as parameters; what differs when a run is continued becomes a tag."""
        from mlflow.entities import Param, RunTag

        self._show_as_training()

        known = self.experiment.get_run(self.run_id).data.params
        flat = {key: str(value)[:5900] for key, value in flatten(config)}
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        changed = [RunTag(f"continued.{key}", value) for key, value in flat.items() if known.get(key, value) != value]
        for start in range(0, len(new), 100):
            self.experiment.log_batch(self.run_id, params=new[start : start + 100])
        self.experiment.log_batch(self.run_id, tags=changed)

    def _show_as_training(self) -> None:
        """Let the UI show the experiment as model training; by itself it may open its view for language models."""
        kind = "mlflow.experimentKind"
        experiment = self.experiment.get_experiment(self.experiment_id)
        if kind not in experiment.tags:
            tag = (self.experiment_id, kind, "custom_model_development")
            self._send(lambda: self.experiment.set_experiment_tag(*tag), "the experiment's kind")

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, skipping those that are None."""
        from mlflow.entities import RunTag

        run_tags = [RunTag(key, str(value)) for key, value in tags.items() if value is not None]
        self._send(lambda: self.experiment.log_batch(self.run_id, tags=run_tags), "tags")

    @rank_zero_only
    def log_datasets(self, datasets: Sequence[tuple[Mapping[str, str], str]]) -> None:
        """Record which data the run used: fields of an MLflow data set, and its context (``training``, ...)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", context)])
            for dataset, context in datasets
        ]
        self._send(lambda: self.experiment.log_inputs(self.run_id, inputs), "the data sets")

    @rank_zero_only
    def log_file(self, path: Path, folder: str = "") -> None:
        """Put a local file into the run's artifact ``folder``; what lies there already stays."""
        artifacts = self.artifact_dir
        if artifacts is not None and path.resolve() == (artifacts / folder / path.name).resolve():
            return
        self._send(lambda: self.experiment.log_artifact(self.run_id, str(path), folder or None), str(path))

    @rank_zero_only
    def log_text(self, text: str, name: str) -> None:
        """Put a text into the run's artifacts as the file ``name``."""
        self._send(lambda: self.experiment.log_text(self.run_id, text, name), name)

    @rank_zero_only
    def log_folder(self, path: Path, folder: str) -> None:
        """Put the files of a local folder into the run's artifact ``folder``."""
        self._send(lambda: self.experiment.log_artifacts(self.run_id, str(path), folder), f"the files of {folder}")

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Close the run with the status that a person would give it: FINISHED, FAILED, or KILLED for Ctrl-C."""
        if not self._initialized:
            return
        if self._unsent and not self._send(lambda: self.log_metrics({}), "the last metrics"):
            pass
        if self._unsent:
            path = self.run_dir / "unsent_metrics.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._unsent, indent=1))
            error_console.print(f"[yellow]warning:[/] metrics that MLflow did not take are in {path}", highlight=False)
        if self.final_status is not None:  # ending it again would count the time until now as the training's
            return
        ended = "KILLED" if self.killed else "FAILED" if status == "failed" else "FINISHED"
        self._send(lambda: self.experiment.set_terminated(self.run_id, ended), f"the run's end ({ended})")

    @property
    def started(self) -> bool:
        """Whether the run exists in the store yet."""
        return self._initialized

    @property
    def status(self) -> str | None:
        """The run's status in the store, on any process; None while there is no run."""
        return None if self._run_id is None else self._mlflow_client.get_run(self._run_id).info.status

    @property
    def closed(self) -> bool:
        """Whether the run has ended in the store: another process of the training may have ended it."""
        from mlflow.exceptions import MlflowException

        try:
            return self.status not in (None, "RUNNING")
        except (MlflowException, OSError):
            return False

    def share(self, broadcast: Callable[[str | None], str | None]) -> None:
        """Tell the other processes of a training the id of the run, which only the first one starts."""
        self._run_id = broadcast(self.run_id)

    def close_as_failed(self, error: str) -> None:
        """End the run as FAILED because of ``error``, unless it has ended already. Any process may do so.

        The first to fail says why: the others lose their connection to it, and have nothing to add.
        """
        from mlflow.exceptions import MlflowException

        if self._run_id is None or self.final_status is not None:
            return
        try:
            if self.status == "RUNNING":
                self._mlflow_client.set_tag(self._run_id, "error", error)
                self._mlflow_client.set_terminated(self._run_id, "FAILED")
        except (MlflowException, OSError) as problem:
            error_console.print(
                f"[yellow]warning:[/] MLflow did not take {error}: {one_line(problem)}", highlight=False
            )

    def reopen(self) -> None:
        """Mark a continued run as running again."""
        self._send(lambda: self.experiment.update_run(self.run_id, status="RUNNING"), "the run's status")


PARENT_TAG = "mlflow.parentRunId"
"""Tag by which MLflow shows a run under another."""


def newest_run(client: Any, experiment: str, tag: str, value: str) -> Any | None:
    """The newest run of an experiment whose ``tag`` is ``value``; None if there is none."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs(
        [found.experiment_id],
        filter_string=f"tags.`{tag}` = '{value}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0] if runs else None


def child_runs(client: Any, parent: Any) -> list[Any]:
    """The runs under ``parent`` (a run), oldest first."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [parent.info.experiment_id],
            filter_string=f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs


def flatten(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as ``(dotted key, value)``; lists of plain values stay values."""
    if isinstance(config, Mapping) and config:
        return [
            pair for key, value in config.items() for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(config, list) and any(isinstance(item, Mapping) for item in config):
        return [pair for index, item in enumerate(config) for pair in flatten(item, f"{prefix}.{index}")]
    return [(prefix, config)]
