"""Receivers of the entries of a run's journals: an MLflow store, or files in the run's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bustseg.errors import disk_is_full
from bustseg.progress import error_console
from bustseg.runs.entries import (
    DATASETS,
    FILE,
    METRICS,
    MODEL,
    MODEL_FILE,
    MODEL_METRICS,
    PARAMS,
    SERVER_ID,
    STATUS,
    TAGS,
)
from bustseg.runs.journal import Entry
from bustseg.runs.record import Record, dataset_inputs
from bustseg.runs.store import Store, one_line
from bustseg.runs.view import prepare_view
from bustseg.whole import replacing

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
"""Tag by which MLflow shows a run under another."""

LOCAL_ID_TAG = "bustseg.begun_as"
"""Tag of a run that began while its store was unreachable: its id on the machine that started it."""

BEGUN = "begun.json"
"""File in the folder of such a run, with the data for creating it."""

Acknowledge = Callable[[int], None]
"""Called with the number of the last entry that has arrived."""

MAX_METRICS, MAX_OTHERS = 1000, 100
"""MLflow's limits per request: for metrics, and for each of parameters and tags."""


class Unreachable(Exception):
    """The sink is unreachable; what was not acknowledged is sent again later."""


class ExperimentDeleted(Exception):
    """An experiment is in MLflow's trash.

    Args:
        number: its id
    """

    def __init__(self, number: str) -> None:
        super().__init__(f"the experiment {number} is in MLflow's trash")
        self.number = number


class RunGone(Exception):
    """The run no longer exists in the sink."""


class Sink(Protocol):
    """Accepts entries of one run, in order. Sending an entry twice changes nothing."""

    def send(self, entries: Sequence[Entry], acknowledge: Acknowledge) -> None:
        """Accept entries.

        Raises:
            Unreachable: try again later
            RunGone: do not try again
        """
        ...


class RecordSink:
    """Keeps the run's record in its folder, for runs that are in no store.

    Args:
        files: the run's folder
        record: its record so far; read from the folder if not given
    """

    def __init__(self, files: Path, record: Record | None = None) -> None:
        self.files = files
        self.record = record or Record.read(files) or Record(files.name)

    def send(self, entries: Sequence[Entry], acknowledge: Acknowledge) -> None:
        """See :class:`Sink`."""
        for entry in entries:
            self.record.apply(entry)
        try:
            self.record.save(self.files)
        except OSError as error:
            raise Unreachable(one_line(error)) from error
        acknowledge(entries[-1].seq)


class MlflowSink:
    """Sends entries to a run of an MLflow store.

    MLflow stores a point with the same metric, step, time and value only once, and everything else by name, so sending
    again after a lost answer changes nothing.

    Args:
        store: the store
        run_id: the run; one that began while the store was unreachable gets another id there with the first entries
        files: the run's folder on this machine
    """

    def __init__(self, store: Store, run_id: str, files: Path) -> None:
        self.store, self.run_id, self.files = store, run_id, files
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """The store's client."""
        if self._client is None:
            self._client = self.store.client()
        return self._client

    def send(self, entries: Sequence[Entry], acknowledge: Acknowledge) -> None:
        """See :class:`Sink`. Entries that the store refuses permanently are reported and skipped.

        Files come last, so that a failing artifact store does not delay metrics.
        """
        self._try(self._make_run, "run")
        files = [entry for entry in entries if entry.kind in _FILES]
        # what follows a file is acknowledged with it; if the file fails, it is sent again
        before = files[0].seq - 1 if files else entries[-1].seq

        def note(seq: int) -> None:
            if seq <= before:
                acknowledge(seq)

        batch: list[Entry] = []
        for entry in entries:
            if entry.kind in (METRICS, PARAMS, TAGS):
                batch.append(entry)
            elif entry.kind not in _FILES:
                self._send_batch(batch, note)
                batch = []
                self._try(partial(self._send_one, entry), entry.kind)
                note(entry.seq)
        self._send_batch(batch, note)
        ends = [*(entry.seq - 1 for entry in files[1:]), entries[-1].seq]
        for entry, end in zip(files, ends, strict=False):
            self._try(partial(self._send_one, entry), _named(entry), optional=entry.kind != FILE)
            acknowledge(end)

    def _make_run(self) -> None:
        """Create the run of a :func:`begin_away`, once; the tag with its local id shows whether it already exists."""
        if self.run_id != self.files.name or not (self.files / BEGUN).is_file():
            return
        made = self.files / SERVER_ID
        if not made.is_file():
            begun = json.loads((self.files / BEGUN).read_text(encoding="utf-8"))
            number = experiment_id(self.client, begun["experiment"], self.store.artifact_location)
            known = self.client.search_runs([number], f"tags.`{LOCAL_ID_TAG}` = '{self.run_id}'", max_results=1)
            if known:
                server_id = known[0].info.run_id
            else:
                tags = {**begun["tags"], LOCAL_ID_TAG: self.run_id}
                if PARENT_TAG in tags:
                    tags[PARENT_TAG] = self._id_there(tags[PARENT_TAG])
                server_id = self.client.create_run(number, begun["start_time"], tags).info.run_id
            with replacing(made) as file:
                file.write(server_id)
        self.run_id = made.read_text(encoding="utf-8").strip()

    def _id_there(self, run_id: str) -> str:
        """The store's id of another run of this machine."""
        other = MlflowSink(self.store, run_id, self.files.parent / run_id)
        other._make_run()
        return other.run_id

    def _send_batch(self, entries: Sequence[Entry], acknowledge: Acknowledge) -> None:
        """Send metrics, parameters and tags in as few requests as MLflow's limits allow."""
        items: list[tuple[str, Any]] = []
        counts = {METRICS: 0, PARAMS: 0, TAGS: 0}
        done = -1
        for entry in entries:
            for item in self._items(entry):
                if counts[entry.kind] >= (MAX_METRICS // 2 if entry.kind == METRICS else MAX_OTHERS):
                    self._send_items(items)
                    if done >= 0:
                        acknowledge(done)
                    items, counts = [], dict.fromkeys(counts, 0)
                items.append((entry.kind, item))
                counts[entry.kind] += 1
            done = entry.seq
        if entries:
            self._send_items(items)
            acknowledge(done)

    @staticmethod
    def _items(entry: Entry) -> list[Any]:
        from mlflow.entities import Metric, Param, RunTag

        if entry.kind == METRICS:
            step = int(entry.data["step"])
            return [Metric(name, float(value), entry.time, step) for name, value in entry.data["values"].items()]
        kind = Param if entry.kind == PARAMS else RunTag
        return [kind(name, str(value)) for name, value in entry.data.items()]

    def _send_items(self, items: Sequence[tuple[str, Any]]) -> None:
        """Send one request; if it is refused, find the part at fault and send the rest without it."""
        if not items:
            return
        what = f"{items[0][0]} {items[0][1].key}"
        if not self._try(lambda: self._log_batch(items), what, say=len(items) == 1) and len(items) > 1:
            middle = len(items) // 2
            self._send_items(items[:middle])
            self._send_items(items[middle:])

    def _log_batch(self, items: Sequence[tuple[str, Any]]) -> None:
        # only the last value of a tag that changed meanwhile counts
        tags = {item.key: item for kind, item in items if kind == TAGS}
        self.client.log_batch(
            self.run_id,
            metrics=[item for kind, item in items if kind == METRICS],
            params=[item for kind, item in items if kind == PARAMS],
            tags=list(tags.values()),
        )

    def _send_one(self, entry: Entry) -> None:
        data = entry.data
        if entry.kind == STATUS:
            if data["status"] == "RUNNING":
                self.client.update_run(self.run_id, status="RUNNING")
            else:
                self.client.set_terminated(self.run_id, data["status"], entry.time)
        elif entry.kind == DATASETS:
            self.client.log_inputs(self.run_id, dataset_inputs(data["datasets"]))
        elif entry.kind == FILE:
            self.client.log_artifact(self.run_id, str(self.files / data["path"]), data["folder"] or None)
        elif entry.kind in (MODEL, MODEL_FILE, MODEL_METRICS):
            self._send_model(entry)

    def _send_model(self, entry: Entry) -> None:
        from bustseg.runs.logged_model import link_metrics, log_model, logged_model_id

        data = entry.data
        if entry.kind == MODEL:
            model_id = log_model(self.client, self.run_id, self.files / data["checkpoint"])
            link_metrics(self.client, self.run_id, model_id, "val/", data["epoch"])
            return
        found = logged_model_id(self.client, self.run_id)
        if found is None:  # a run without a model, or of an earlier version
            return
        if entry.kind == MODEL_FILE:
            self.client.log_model_artifact(found, str(self.files / data["path"]))
        else:
            link_metrics(self.client, self.run_id, found, data["prefix"])

    def _answers(self) -> bool:
        try:
            self.client.get_run(self.run_id)
        except Exception:  # any error means that there is no answer
            return False
        return True

    def _try(self, send: Callable[[], None], what: str, say: bool = True, optional: bool = False) -> bool:
        """Whether the store accepted it; False if it never will.

        Args:
            send: function that sends it
            what: its name
            say: warn if the store does not accept it
            optional: give up on any error, as long as the store answers
        """
        try:
            send()
        except Exception as error:  # drivers and artifact stores raise types of their own
            if is_gone(error):
                raise RunGone(one_line(error)) from error
            if not is_refusal(error) and not (optional and self._answers()):
                raise Unreachable(reason_of(error)) from error
            if say:
                error_console.print(
                    f"[yellow]warning:[/] MLflow does not accept the {what}: {one_line(error)}", highlight=False
                )
            return False
        return True


_FILES = (FILE, MODEL, MODEL_FILE, MODEL_METRICS)
"""Entries that are sent to the artifact store, or that depend on those."""


def _named(entry: Entry) -> str:
    return f"file {entry.data['path']}" if entry.kind == FILE else "model"


_REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
    "ENDPOINT_NOT_FOUND",
    "NOT_IMPLEMENTED",
    "RESOURCE_LIMIT_EXCEEDED",
)
"""MLflow's error codes for permanent refusals. A refused login is not among them: a user may fix it."""


def is_gone(error: BaseException) -> bool:
    """Whether an MLflow error says that the run was deleted."""
    text = str(error)
    return "must be in the 'active' state" in text or (
        getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        and text.lower().startswith(("run ", "resource_does_not_exist: run "))
        and "not found" in text.lower()
    )


def is_refusal(error: BaseException) -> bool:
    """Whether a retry is pointless: the store has understood the request and does not accept it."""
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return True
    if "failed with error code 413" in str(error):
        return True
    code = getattr(error, "error_code", None)
    # a response that is not JSON comes from something in between, such as a proxy whose server is down
    return code in _REFUSALS and not str(error).startswith("API request to")


def reason_of(error: BaseException) -> str:
    """Why a store could not be reached, in a few words."""
    text = one_line(error)
    if disk_is_full(error):
        return "the disk is full"
    if "database is locked" in text:
        return "the database is locked"
    if "timed out" in text or "timeout exception" in text:
        return "no answer in time"
    if "Connection refused" in text:
        return "connection refused"
    if found := re.search(r"error code (\d{3})|too many (\d{3}) error", text):
        return f"it answers {found[1] or found[2]}"
    return text[:200]


def begin_away(record: Record, files: Path) -> None:
    """Start a run whose store is unreachable: it is created there with the first entries that arrive.

    Raises:
        OSError: it cannot be written
    """
    record.save(files)
    with replacing(files / BEGUN) as file:
        json.dump({"experiment": record.experiment, "tags": record.tags, "start_time": record.start_time}, file)


def experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    """Id of an experiment, created if it does not exist, in such a way that the UI shows it as model training.

    Raises:
        ExperimentDeleted: it is in MLflow's trash
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            found = client.get_experiment(client.create_experiment(name, location))
        except MlflowException as error:
            if not is_refusal(error):
                raise
            found = client.get_experiment_by_name(name)  # another process has just created it
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise ExperimentDeleted(found.experiment_id)
    kind = "mlflow.experimentKind"
    if kind not in found.tags:
        client.set_experiment_tag(found.experiment_id, kind, "custom_model_development")
    prepare_view(client, found)
    return str(found.experiment_id)
