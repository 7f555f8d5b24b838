"""``bustseg data check`` and ``bustseg data split``: their output and exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bustseg.classes import subclasses
from bustseg.data.audit import AuditReport, audit
from bustseg.data.cache import cache_root, cached_groups
from bustseg.data.duplicates import THRESHOLD
from bustseg.data.sources import BUSI, Source
from bustseg.data.splits import SUBSETS, Leakage, leakage, make_split, merge_groups, read_split, write_split
from bustseg.errors import UserError
from bustseg.progress import console


def find_source(root: Path | None, name: str) -> tuple[Path, Source]:
    """Folder and reader of a data set.

    Args:
        root: the folder; that of the source when not given
        name: name of the reader, as ``data.source`` in a config: a class, or class_path and init_args as JSON

    Raises:
        UserError: no such reader, or no folder
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    try:
        source = parser.instantiate(parser.parse_args(["--source", name])).source
    except (ArgumentError, ValueError) as error:
        raise UserError(
            f"unknown source {name}: use {', '.join(sorted(cls.__name__ for cls in subclasses(Source)))}, "
            "or class_path and init_args as in a config"
        ) from error
    folder = root or source.default_root()
    if folder is None:
        raise UserError("no data folder is given: name it, or set BUSI_ROOT")
    return Path(folder).expanduser(), source


def check_command(
    root: Path,
    source: Source | None = None,
    json: Path | None = None,
    report: Path | None = None,
    threshold: float = THRESHOLD,
    console: Console = console,
) -> int:
    """Audit a data folder, print a summary and write the requested reports.

    Args:
        source: layout of the folder; BUSI's when not given
        json: file for everything that was found
        report: file for the HTML report with the pairs side by side
        threshold: score from which a pair counts as duplicate

    Returns:
        0, or 1 when the data must not be trained on

    Raises:
        DataError: the folder does not hold the source's layout at all
    """
    found = audit(source or BUSI(), root, threshold)
    _print_audit(console, found)
    if json is not None:
        found.write_json(json)
        console.print(f"wrote {escape(str(json))}")
    if report is not None:
        from bustseg.reports.audit import write_report

        write_report(found, report)
        console.print(f"wrote {escape(str(report))}")
    return 1 if found.wrong else 0


def split_command(
    root: Path,
    source: Source | None = None,
    scheme: str = "grouped",
    seed: int = 0,
    out: Path | None = None,
    check: Path | None = None,
    folds: int = 5,
    of: str = "grouped",
    curated_list: Path | None = None,
    by: str = "source",
    threshold: float = THRESHOLD,
    console: Console = console,
) -> int:
    """Write a split, or check one, and print its counts and its leakage.

    Args:
        scheme, seed, folds, of, curated_list, by: see :func:`bustseg.data.splits.make_split`; all folds are written
        out: CSV file to write
        check: split file to measure instead of creating one
        threshold: score from which a pair counts as duplicate

    Returns:
        0, or 1 when a checked split leaks

    Raises:
        DataError: unusable data, scheme or split file
    """
    source = source or BUSI()
    source.prepare(root)
    samples = source.read(root)
    if check is not None:  # report a bad file at once, not after the search
        split = read_split(check, samples)
    groups = merge_groups(samples, cached_groups(samples, cache_root(root), threshold))
    if check is None:
        split = make_split(
            samples, scheme, seed, folds=folds, of=of, groups=groups, curated_list=curated_list, by=by, all_folds=True
        )
    _print_split(console, split, check.name if check is not None else f"{scheme}, seed {seed}")
    leak = leakage(split, groups)
    _print_leakage(console, leak, groups)
    if check is not None:
        return 1 if any(leak.leaked.values()) else 0
    if out is not None:
        digest = write_split(split, out)
        console.print(f"wrote {escape(str(out))} (digest {digest})")
    if any(leak.leaked.values()):
        console.print("to keep duplicates in one subset, use --scheme grouped")
    return 0


def _print_audit(console: Console, found: AuditReport) -> None:
    counts = found.counts()
    classes = ", ".join(f"{number} {label}" for label, number in found.classes().items())
    console.print(f"[bold]{escape(found.source)}[/bold]: {counts['images']} images ({classes}), {found.seconds:.0f} s")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    for key, words in (
        ("images_with_several_masks", "images with several masks (their union is used)"),
        (
            "duplicate_groups",
            f"groups of duplicates, {counts['images_in_groups']} images in {counts['duplicate_pairs']} pairs",
        ),
        ("exact_pairs", "pairs with the same pixels"),
        ("mirrored_pairs", "mirrored pairs"),
        ("cross_class_pairs", "pairs across classes"),
        ("contradicting_pairs", "pairs whose masks disagree"),
        ("suspect_pairs", "further pairs to check"),
        ("coloured_overlays", "images with coloured overlays"),
        ("images_with_calipers", "images with calipers"),
        ("images_with_text", "images with burned-in text"),
        ("outliers", "outliers in size, grey levels or lesion size"),
    ):
        table.add_row(str(counts[key]), words)
    console.print(table)
    for pair in [pair for pair in found.pairs if pair.cross_class][:5]:
        console.print(f"  across classes: {pair.first} / {pair.second}, score {pair.score:.3f}")
    kinds = Counter((not problem.wrong, problem.kind) for problem in found.problems)
    for (note, kind), number in sorted(kinds.items()):
        first = next(problem for problem in found.problems if problem.kind == kind and problem.wrong is not note)
        colour = "yellow" if note else "red"
        more = f" (and {number - 1} more)" if number > 1 else ""
        console.print(f"[{colour}]{kind}[/{colour}]: {escape(first.message)}{more}")
    if found.wrong:
        console.print(f"[red]do not train on these data[/red]: fix {len(found.wrong)} problem(s) first")
    else:
        console.print("every image and mask can be read and matches its class")
    if counts["duplicate_groups"]:
        console.print("a random split leaks: use `bustseg data split --scheme grouped`")


def _print_split(console: Console, split: pd.DataFrame, title: str) -> None:
    labels = list(dict.fromkeys(split["label"]))
    folds = split["fold"].nunique() if "fold" in split else 1
    heading = f"{title}: {folds} folds, counts over all of them" if folds > 1 else title
    table = Table(title=escape(heading), title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in [*labels, "all"]:
        table.add_column(name, justify="right")
    for subset in SUBSETS:
        own = split[split["subset"] == subset]
        table.add_row(subset, *(str(int((own["label"] == label).sum())) for label in labels), str(len(own)))
    console.print(table)


def _print_leakage(console: Console, leak: Leakage, groups: Mapping[str, str]) -> None:
    console.print(f"{len(set(groups.values()))} groups of duplicates or patients, {len(groups)} images")
    for subset, number in leak.leaked.items():
        colour = "red" if number else "green"
        share = f"{100 * leak.share[subset]:.1f} %"
        console.print(
            f"{subset}: [{colour}]{number}[/{colour}] of {leak.images[subset]} images ({share}) have a copy in train"
        )
    for case in leak.cases[:5]:
        fold = "" if case["fold"] is None else f" in fold {case['fold']}"
        console.print(f"  {case['image']} ({case['subset']}{fold}) and {', '.join(case['train'])} (train)")
    if len(leak.cases) > 5:
        console.print(f"  and {len(leak.cases) - 5} more")
