"""`bustseg data split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from bustseg.command_line import Option


def split(
    root: Path | None = None,
    *,
    source: str = "BUSI",
    threshold: float = 0.40,
    scheme: Literal["paper", "lesion", "grouped", "curated", "kfold", "left_out"] = "grouped",
    seed: int = 0,
    out: Annotated[Path | None, Option(metavar="FILE.csv")] = None,
    check: Annotated[Path | None, Option(metavar="FILE.csv")] = None,
    folds: int = 5,
    kfold_of: str = "grouped",
    left_out_by: str = "source",
    curated_list: Annotated[Path | None, Option(metavar="FILE.csv")] = None,
) -> int:
    """Write a split, or measure the leakage of one.

    Example:
        bustseg data split Dataset_BUSI_with_GT --scheme grouped --seed 0 --out split.csv

    Args:
        root: data folder (default: that of the source, such as BUSI_ROOT)
        source: layout: BUSI, BUSBRA, BUSUCLM, BrEaST, Folders, DICOMFolder, or class_path and init_args as JSON
        threshold: score from which a pair counts as a duplicate
        scheme: paper: 624/78/78; lesion: without normals, 8:1:1; grouped: as paper, with duplicates and patients kept
            together (default); curated: only listed images; kfold: cross-validation; left_out: every source or device
            is tested once
        seed: the same seed gives the same split
        out: file to write, for --data.split
        check: split file to measure the leakage of instead; exit code 1 if there is any
        folds: number of folds of kfold
        kfold_of: scheme that kfold divides
        left_out_by: column whose values left_out leaves out: source, or a column of the source's table, such as device
        curated_list: images that curated keeps (class;id, or image)
    """
    from bustseg.reports.data import find_source, split_command

    folder, reader = find_source(root, source)
    return split_command(
        folder,
        reader,
        scheme=scheme,
        seed=seed,
        out=out,
        check=check,
        folds=folds,
        of=kfold_of,
        curated_list=curated_list,
        by=left_out_by,
        threshold=threshold,
    )
