"""`bustseg compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def compare(
    run: Annotated[list[str] | None, Option(metavar="RUN")] = None,
    *,
    experiment: str | None = None,
    baseline: Annotated[str | None, Option(metavar="RUN")] = None,
    metric: Annotated[list[str] | None, Option(repeated=True)] = None,
    convention: Annotated[list[str] | None, Option(repeated=True)] = None,
    groups: Annotated[Path | None, Option(metavar="CSV")] = None,
    out: Annotated[Path | None, Option(metavar="DIR")] = None,
) -> int:
    """Compare runs on the same test images: intervals, paired tests, classes and lesion sizes, pictures.

    Example:
        bustseg compare --experiment baselines --out comparison

    Args:
        run: MLflow run id, runs:/RUN_ID, models:/NAME@ALIAS, latest, a folder with tables/test.csv, or a CSV
        experiment: compare all tested runs of this MLflow experiment
        baseline: the run to compare the others with (default: the first)
        metric: dice, iou, hd95 ...; may be repeated
        convention: paper, lesion, empty_one or pooled; may be repeated
        groups: CSV with the columns image and group; the images of a group are resampled together
        out: folder for compare.html, compare.csv, compare.tex (LaTeX) and comparison.png
    """
    from bustseg.compare.report import report

    report(run or [], experiment, metric or [], convention or [], baseline, groups, out)
    return 0
