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
    """Runs side by side on the same test images: intervals, paired tests, per class and lesion size, pictures.

    Example:
        bustseg compare --experiment baselines --out comparison

    Args:
        run: MLflow run id, runs:/RUN_ID, models:/NAME@ALIAS, a folder with tables/test.csv, or a CSV
        experiment: compare all tested runs of this MLflow experiment
        baseline: run that the others are compared with (default: the first)
        metric: dice, iou, hd95 ...; may be repeated
        convention: paper, lesion, empty_one or pooled; may be repeated
        groups: columns image,group: what is resampled together
        out: folder for compare.csv, compare.html and comparison.png
    """
    from bustseg.compare.report import report

    report(run or [], experiment, metric or [], convention or [], baseline, groups, out)
    return 0
