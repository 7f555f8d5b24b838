"""A view of an experiment's runs that shows the scores immediately.

By default MLflow's table of runs shows no metrics, and each browser remembers its user's choice. But MLflow offers
shared views, which its button *Share* stores in a tag of the experiment and which a link can select. Each experiment
gets such a view when its first run begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

    from bustseg.runs.store import Store

KEY = "bustseg"
"""The view's name in a link."""

TAG = f"mlflow.sharedViewState.{KEY}"
"""Tag of the experiment that holds it."""

COLUMNS = (
    "metrics.`test/dice_lesion`",
    "metrics.`test/dice_paper`",
    "metrics.`test/dice_lesion_mean`",
    "metrics.`sweep/objective`",
    "metrics.`val/dice_lesion`",
    "metrics.`val/loss`",
    "tags.`network`",
    "tags.`loss`",
    "params.`model.optimizer.init_args.lr`",
    "tags.`split`",
    "attributes.`Models`",
)
"""Columns in addition to name, time and duration, which MLflow always shows.

Metrics that no run of an experiment has get no column. The mean over folds is the score of a cross-validation's own
run, and the objective that of a sweep's.
"""

CHARTS = ("val/dice_lesion", "val/loss", "train/loss", "test/dice_lesion", "test/dice_paper", "test/iou_lesion")
"""Charts that come first, in a separate section; the others follow in MLflow's alphabetical order."""

RATES = ("images_per_second", "seconds", "_gib")
"""Suffixes of metrics about the cost of a training, which come last."""

FIRST = "first"


def state() -> dict[str, Any]:
    """The view in the format of MLflow's UI: columns, order of runs, and the first charts."""
    return {
        "selectedColumns": list(COLUMNS),
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "compareRunSections": [{"uuid": FIRST, "name": "overview", "display": True, "isReordered": True}],
        "compareRunCharts": [_chart(name) for name in CHARTS],
        "isAccordionReordered": True,
    }


def telling_first(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics in the order for the page of a run: scores and losses first, costs last.

    MLflow lists a run's metrics in the order in which each was first written.
    """

    def place(name: str) -> int:
        if name in CHARTS:
            return CHARTS.index(name)
        return len(CHARTS) + name.endswith(RATES)

    return {name: metrics[name] for name in sorted(metrics, key=place)}


def _chart(name: str) -> dict[str, Any]:
    kind = "BAR" if name.startswith("test/") else "LINE"
    own = {"type": kind, "uuid": f"{FIRST}-{name}", "metricSectionId": FIRST, "metricKey": name, "displayName": name}
    shape = {"runsCountToCompare": 20, "deleted": False, "isGenerated": False}
    if kind == "BAR":
        return own | shape
    line = {"selectedMetricKeys": [name], "scaleType": "linear", "xAxisKey": "step", "xAxisScaleType": "linear"}
    range_ = {"xMin": None, "xMax": None, "yMin": None, "yMax": None}
    axes = {"selectedXAxisMetricKey": "", "useGlobalXaxisKey": True, "range": range_, "lineSmoothness": 0}
    return own | shape | line | axes | {"useGlobalLineSmoothing": True, "yAxisKey": "metric", "yAxisExpressions": []}


def prepare_view(client: MlflowClient, experiment: Experiment) -> None:
    """Add the view to an experiment, unless it already has one of this version."""
    wanted = json.dumps(state())
    if experiment.tags.get(TAG) != wanted:
        client.set_experiment_tag(experiment.experiment_id, TAG, wanted)


def view_link(base: str, experiment_id: str) -> str:
    """Address of an experiment's runs in that view.

    Args:
        base: address of the MLflow server, such as ``http://127.0.0.1:5000``
        experiment_id: the experiment
    """
    # without the last parameter MLflow opens its view for language models
    return f"{base}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"


def views(store: Store, base: str, most: int = 5) -> list[tuple[str, str]]:
    """Names of the most recently used experiments, and the address of each one's runs; adds the view where missing.

    Args:
        store: an MLflow store
        base: address of the server that shows it
        most: number of experiments
    """
    client = store.client()
    found = []
    for experiment in client.search_experiments(order_by=["last_update_time DESC"], max_results=most):
        if client.search_runs([experiment.experiment_id], max_results=1):
            with suppress(Exception):  # a read-only store shows its runs without the view
                prepare_view(client, experiment)
            found.append((experiment.name, view_link(base, experiment.experiment_id)))
    return found
