"""All scores of a run's test, only some of which are metrics of the run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bustseg.errors import UserError
from bustseg.metrics.registry import find, score
from bustseg.runs.lookup import run_file

if TYPE_CHECKING:
    from mlflow.entities import Run

SCORES = "tables/test_scores.csv"
"""File of a run with every score of its test; runs of earlier versions have all of them as metrics instead."""

_HEAD = ("score", "value", "title", "description")


def write_scores(scores: Mapping[str, float], path: Path) -> None:
    """Write scores as a table, known ones first.

    Args:
        scores: value by name (``test/dice_lesion``)
        path: the CSV file
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_HEAD)
        for name in sorted(scores, key=lambda name: (find(name) is None, name)):
            parts = score(name)
            writer.writerow((name, repr(float(scores[name])), parts.title, parts.description))


def read_scores(path: Path) -> dict[str, float]:
    """The scores of such a table by name.

    Raises:
        OSError, ValueError, KeyError: there is no such table
    """
    with path.open(newline="", encoding="utf-8") as file:
        return {row["score"]: float(row["value"]) for row in csv.DictReader(file)}


def scores_of_test(run: Run) -> dict[str, float]:
    """Every score of a run's test, by name; empty when it was not tested.

    Args:
        run: a run of an MLflow store or a folder
    """
    return all_scores(run.data.metrics, lambda: run_file(run.info.run_id, SCORES))


def all_scores(metrics: Mapping[str, float], table: Callable[[], Path]) -> dict[str, float]:
    """The scores of a test among a run's metrics, and those of its table.

    Args:
        metrics: the run's metrics; a run of an earlier version has all scores there, and no table
        table: finds the table; called only when the run was tested
    """
    found = {name: value for name, value in metrics.items() if name.startswith("test/")}
    if found:
        with suppress(UserError, OSError, ValueError, KeyError):
            found |= read_scores(table())
    return found
