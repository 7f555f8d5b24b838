"""`bustseg data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def check(
    root: Path | None = None,
    *,
    source: str = "BUSI",
    threshold: float = 0.40,
    json: Annotated[Path | None, Option(metavar="FILE")] = None,
    report: Annotated[Path | None, Option(metavar="FILE.html")] = None,
) -> int:
    """Find broken files, wrong masks, duplicates and burned-in marks; exit code 1 if the data must not be trained on.

    Example:
        bustseg data check Dataset_BUSI_with_GT --report report.html

    Args:
        root: data folder (default: that of the source, such as BUSI_ROOT)
        source: layout: BUSI, BUSBRA, BUSUCLM, BrEaST, Folders, DICOMFolder, or class_path and init_args as JSON
        threshold: score from which a pair counts as a duplicate
        json: file for all findings
        report: HTML file for a report with the pairs side by side
    """
    from bustseg.reports.data import check_command, find_source

    return check_command(*find_source(root, source), json, report, threshold)
