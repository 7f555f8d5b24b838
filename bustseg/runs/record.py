"""This machine's record of a run: settings, tags, metrics and data sets, without requests to a server."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bustseg.runs.entries import DATASETS, METRICS, MODEL, PARAMS, STATUS, TAGS
from bustseg.runs.journal import Entry
from bustseg.whole import replacing

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run

Point = tuple[int, float, int]
"""Step, value and time in milliseconds of a metric."""

RUN_FILE, METRICS_FILE = "run.json", "metrics.csv"
"""Files of the record of a run that is in no store, in its folder."""

NAME_TAG, NOTE_TAG, CONTEXT_TAG = "mlflow.runName", "mlflow.note.content", "mlflow.data.context"


@dataclass
class Record:
    """The local record of a run.

    Attributes:
        run_id: 32 hexadecimal digits
        experiment: its experiment
        status: as in MLflow: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``
        start_time, end_time: milliseconds since 1970
        params, tags: text by name
        history: points by metric, in the order of arrival
        datasets: fields of an MLflow data set, and its context
        has_model: whether it has a logged model
    """

    run_id: str
    experiment: str = ""
    status: str = "RUNNING"
    start_time: int = 0
    end_time: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: dict[str, list[Point]] = field(default_factory=dict)
    datasets: list[tuple[dict[str, str], str]] = field(default_factory=list)
    has_model: bool = False
    experiment_id: str = "0"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.tags.get(NAME_TAG, self.run_id[:8])

    @property
    def metrics(self) -> dict[str, float]:
        """Each metric as in MLflow's table: the newest value of the latest step."""
        return {name: value for name, (_, value, _) in self.latest.items()}

    @property
    def latest(self) -> dict[str, Point]:
        """The current point of each metric: the newest of the latest step."""
        return {name: max(points, key=lambda point: (point[0], point[2])) for name, points in self.history.items()}

    def at(self, name: str, step: int) -> float | None:
        """The newest value of a metric at a step."""
        return next((value for at, value, _ in reversed(self.history.get(name, [])) if at == step), None)

    def apply(self, entry: Entry) -> None:
        """Apply an entry of a journal; applying it twice changes nothing."""
        data = entry.data
        if entry.kind == METRICS:
            for name, value in data["values"].items():
                point = (int(data["step"]), float(value), entry.time)
                points = self.history.setdefault(name, [])
                if name.endswith("_step"):  # one per batch, which may be very many: only the sinks keep them
                    points[:] = [point]
                elif not (points and point[2] <= points[-1][2] and any(_equal(point, known) for known in points)):
                    points.append(point)
        elif entry.kind == PARAMS:
            self.params |= data
        elif entry.kind == TAGS:
            self.tags |= data
        elif entry.kind == DATASETS:
            known = {json.dumps(dataset, sort_keys=True) for dataset in self.datasets}
            self.datasets += [
                (dict(dataset), context)
                for dataset, context in data["datasets"]
                if json.dumps((dataset, context), sort_keys=True) not in known
            ]
        elif entry.kind == STATUS:
            self.status = data["status"]
            self.end_time = None if self.status == "RUNNING" else entry.time
        elif entry.kind == MODEL:
            self.has_model = True

    def to_run(self, files: Path | None = None) -> Run:
        """The record as MLflow's object, which all readers of runs use.

        Args:
            files: folder of its files
        """
        from mlflow.entities import (
            LifecycleStage,
            LoggedModelOutput,
            Metric,
            Param,
            Run,
            RunData,
            RunInfo,
            RunInputs,
            RunOutputs,
            RunTag,
        )

        info = RunInfo(
            run_id=self.run_id,
            experiment_id=self.experiment_id,
            user_id="",
            status=self.status,
            start_time=self.start_time,
            end_time=self.end_time,
            lifecycle_stage=LifecycleStage.ACTIVE,
            artifact_uri=None if files is None else files.resolve().as_uri(),
            run_name=self.name,
        )
        data = RunData(
            metrics=[Metric(name, value, time, step) for name, (step, value, time) in self.latest.items()],
            params=[Param(name, value) for name, value in self.params.items()],
            tags=[RunTag(name, value) for name, value in self.tags.items()],
        )
        outputs = [LoggedModelOutput("model", 0)] if self.has_model else []
        return Run(info, data, RunInputs(dataset_inputs(self.datasets)), RunOutputs(outputs))

    @classmethod
    def from_run(cls, run: Run) -> Record:
        """The record of a run in a store, with the latest point of each metric."""
        inputs = run.inputs.dataset_inputs if run.inputs else []
        names = ("name", "digest", "source_type", "source", "schema", "profile")
        return cls(
            run_id=run.info.run_id,
            status=run.info.status,
            start_time=run.info.start_time,
            end_time=run.info.end_time,
            params=dict(run.data.params),
            tags=dict(run.data.tags),
            history={
                metric.key: [(metric.step, metric.value, metric.timestamp)] for metric in run.to_proto().data.metrics
            },
            datasets=[
                (
                    {name: text for name in names if (text := getattr(item.dataset, name)) is not None},
                    next((tag.value for tag in item.tags if tag.key == CONTEXT_TAG), ""),
                )
                for item in inputs
            ],
            has_model=bool(run.outputs and run.outputs.model_outputs),
            experiment_id=run.info.experiment_id,
        )

    # -------------------------------------------------------------------------------------------------------- as files

    def save(self, folder: Path) -> None:
        """Write the record into a folder as ``run.json`` and ``metrics.csv``.

        Raises:
            OSError: they cannot be written; existing files are kept
        """
        folder.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "history"}
        with replacing(folder / RUN_FILE) as file:
            json.dump({**values, "metrics": self.metrics}, file, indent=1)
        with replacing(folder / METRICS_FILE) as file:
            writer = csv.writer(file)
            writer.writerow(("metric", "step", "value", "time"))
            writer.writerows((name, step, repr(value), time) for name, step, value, time in self._rows())

    def _rows(self) -> Iterator[tuple[str, int, float, int]]:
        for name, points in self.history.items():
            for step, value, time in points:
                yield name, step, value, time

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder; None when there is no readable one."""
        with suppress(OSError, ValueError, KeyError, TypeError, csv.Error):
            values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            values.pop("metrics", None)
            record = cls(**{**values, "datasets": [(dict(one), str(context)) for one, context in values["datasets"]]})
            with suppress(FileNotFoundError), (folder / METRICS_FILE).open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    point = (int(row["step"]), float(row["value"]), int(row["time"]))
                    record.history.setdefault(row["metric"], []).append(point)
            return record
        return None


def _equal(one: Point, other: Point) -> bool:
    return same_value(one[1], other[1]) and one[0] == other[0] and one[2] == other[2]


def same_value(one: float | None, other: float) -> bool:
    """Whether two values of a metric are equal: nan equals nan, and None is no value."""
    return one is not None and (one == other or (math.isnan(one) and math.isnan(other)))


def dataset_inputs(datasets: Iterable[tuple[Mapping[str, str], str]]) -> list[DatasetInput]:
    """Data sets and their contexts as MLflow's objects."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [DatasetInput(Dataset(**fields), [InputTag(CONTEXT_TAG, context)]) for fields, context in datasets]


def flatten(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as ``(dotted key, value)``; lists of plain values are kept as values."""
    if isinstance(config, Mapping) and config:
        return [
            pair for key, value in config.items() for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(config, list) and any(isinstance(item, Mapping) for item in config):
        return [pair for index, item in enumerate(config) for pair in flatten(item, f"{prefix}.{index}")]
    return [(prefix, config)]
