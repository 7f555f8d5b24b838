"""A comparison of runs as a table in the terminal, HTML, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape as plain
from rich.table import Table

from bustseg.compare.analysis import Comparison
from bustseg.figures.colours import OUTLINES
from bustseg.metrics import CONVENTIONS
from bustseg.metrics.registry import metric as known
from bustseg.metrics.registry import score
from bustseg.progress import console, print_wide
from bustseg.reports.render import picture_uri, render
from bustseg.reports.tables import latex_table, markdown_table

_RUNS_AS_COLUMNS = 4  # most runs as columns of a LaTeX table: more do not fit a page

LEVEL = 0.05
"""Differences with an adjusted p below this are marked."""


def number(value: float, metric: str, sign: bool = False) -> str:
    """A score with the number of digits of its metric; empty for nan."""
    return known(metric).text(value, sign, interval=True)


def p_text(value: float) -> str:
    """A p value as text: two significant digits, never 0."""
    return "" if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def verdict(row: pd.Series) -> str:
    """``better``, ``worse`` or empty: the direction of a difference that both interval and adjusted p confirm."""
    if not (row["p_holm"] < LEVEL and row["difference_low"] * row["difference_high"] > 0):
        return ""
    if known(row["metric"]).higher_is_better is None:
        return ""
    return "better" if (row["difference"] > 0) != known(row["metric"]).lower_is_better else "worse"


_COLOURS = {"better": "green", "worse": "red", "": "dim"}


def _cell(row: pd.Series) -> str:
    def limits(low: str, high: str, sign: bool = False) -> str:
        if pd.isna(row[low]):
            return ""
        return f" [{number(row[low], row['metric'], sign)}, {number(row[high], row['metric'], sign)}]"

    text = plain(number(row["estimate"], row["metric"]) + limits("low", "high"))
    if pd.isna(row["difference"]):
        return text
    gap = number(row["difference"], row["metric"], sign=True) + limits("difference_low", "difference_high", sign=True)
    p = f" p {p_text(row['p_holm'])}" if pd.notna(row["p_holm"]) else ""
    return f"{text}\n[{_COLOURS[verdict(row)]}]{plain(gap)}{p}[/]"


def print_comparison(result: Comparison, detailed: bool = False) -> None:
    """Print the comparison as one table.

    Args:
        detailed: every metric for every class and lesion size, not only the usual ones
    """
    rows = result.rows
    first = rows["metric"].iloc[0]
    conventions = [name for name in CONVENTIONS if (rows["convention"] == name).any()]
    # the rate on normals has no convention; empty_one is the closest
    anywhere = "empty_one" if "empty_one" in conventions else conventions[0]
    table = Table(
        title="score; below it, the difference from the first run and Holm's p; [95 % intervals]",
        caption="↓ lower is better; (number of images); more in the CSV and HTML",
    )
    for column in ("run", *conventions):
        table.add_column(column, overflow="fold")
    for (part, name), section in rows.groupby(["part", "metric"], sort=False):
        metric = str(name)
        # the files have all of them
        if not detailed and (known(metric).prominence != "headline" if part == "all" else metric != first):
            continue
        direction = " ↓" if known(metric).lower_is_better else ""
        title = f"[bold]{metric}[/]{direction}, {part} ({section['images'].max()})"
        table.add_section()
        table.add_row(title)
        for run, own in section.groupby("run", sort=False):
            cells = {row["convention"] or anywhere: _cell(row) for _, row in own.iterrows()}
            table.add_row("  " + plain(str(run)), *(cells.get(name, "") for name in conventions))
    print_wide(table)
    for note in result.notes:
        console.print(f"- {note}", highlight=False, markup=False)


def _range(row: pd.Series, low: str, high: str, sign: bool = False, between: str = " to ") -> str:
    if pd.isna(row[low]):
        return ""
    return f"{number(row[low], row['metric'], sign)}{between}{number(row[high], row['metric'], sign)}"


# ------------------------------------------------------------------------------------------------------------- HTML


def html_page(result: Comparison, picture: Path | None = None) -> str:
    """The comparison as one self-contained HTML file, sortable by a click on a column's heading.

    Args:
        result: the comparison
        picture: PNG of test images under every run, shown below the table
    """
    rows = result.rows
    facts = ("image_size", "resize", "threshold", "data_digest", "split_digest")
    return render(
        "compare.html.j2",
        title=f"{len(result.tables)} runs on {len(result.tables[0].frame)} test images",
        runs=[
            {
                "name": table.name,
                "run_id": table.run_id,
                "experiment": table.experiment,
                "facts": {name: table.facts.get(name, "") for name in facts},
            }
            for table in result.tables
        ],
        notes=result.notes,
        level=LEVEL,
        metrics=[known(name) for name in rows["metric"].unique()],
        filters=[
            {"name": name, "values": [value for value in rows[name].unique() if value], "chosen": chosen}
            for name, chosen in (("part", "all"), ("metric", ""), ("convention", ""))
        ],
        rows=[_html_row(row) for _, row in rows.iterrows()],
        picture=None if picture is None else picture_uri(picture),
        outlines=OUTLINES,
    )


def _html_row(row: pd.Series) -> dict[str, Any]:
    def cell(name: str, text: str) -> dict[str, str]:
        return {"value": "" if pd.isna(row[name]) else f"{float(row[name]):.9g}", "text": text}

    metric = row["metric"]
    return {
        **{name: row[name] for name in ("part", "metric", "convention", "run")},
        "score": row["measure"] + (" ↓" if known(metric).lower_is_better else ""),
        "images": cell("images", str(row["images"])),
        "estimate": cell("estimate", number(row["estimate"], metric)),
        "interval": cell("low", _range(row, "low", "high")),
        "bar": _interval_bar(row),
        "difference": cell("difference", number(row["difference"], metric, sign=True)),
        "difference_interval": cell("difference_low", _range(row, "difference_low", "difference_high", sign=True)),
        "p": cell("p", p_text(row["p"])),
        "p_holm": cell("p_holm", p_text(row["p_holm"])),
        "verdict": verdict(row),
    }


def _interval_bar(row: pd.Series) -> dict[str, float] | None:
    """Positions of an interval on a line from 0 to 1, in pixels; None for values that may lie outside."""
    if pd.isna(row["low"]) or row["low"] < 0 or row["high"] > 1 or known(row["metric"]).unit:
        return None
    return {name: 4 + 152 * float(row[name]) for name in ("low", "estimate", "high")}


# ----------------------------------------------------------------------------------------------------- Markdown, LaTeX


def _of_all(result: Comparison, metrics: Sequence[str]) -> pd.DataFrame:
    rows = result.rows
    return rows[(rows["part"] == "all") & rows["metric"].isin(metrics)]


def describe(result: Comparison) -> str:
    """The first metric on all images as a Markdown table, one row per run."""
    metric = result.rows["metric"].iloc[0]
    rows = _of_all(result, [metric])
    scores = list(rows["measure"].unique())
    lines = []
    for run, own in rows.groupby("run", sort=False):
        cells = {
            row["measure"]: f"{number(row['estimate'], metric)} ({_range(row, 'low', 'high')})"
            for _, row in own.iterrows()
        }
        lines.append([str(run), *(cells.get(name, "") for name in scores)])
    table = markdown_table(["run", *scores], lines, right=range(1, 1 + len(scores)))
    return "\n".join([table, "", "95 % BCa bootstrap intervals. " + " ".join(result.notes)])


def latex(result: Comparison) -> str:
    """The headline metrics on all images as a LaTeX table (package booktabs).

    Up to four runs are columns, more are rows. A star marks a difference from the first run that interval and adjusted
    p both confirm. Without a headline metric among those compared, the table has all of them.
    """
    names = list(result.rows["metric"].unique())
    rows = _of_all(result, [name for name in names if known(name).prominence == "headline"] or names)
    lines = []
    for run, own in rows.groupby("run", sort=False):
        cells = {
            _latex_title(row["measure"]): number(row["estimate"], row["metric"])
            + "*" * bool(verdict(row))
            + (f" ({_range(row, 'low', 'high', between='−')})" if pd.notna(row["low"]) else "")
            for _, row in own.iterrows()
        }
        lines.append({"run": str(run), **cells})
    frame = pd.DataFrame(lines).fillna("")
    if len(frame) <= _RUNS_AS_COLUMNS:
        frame = frame.set_index("run").T.rename_axis("score").reset_index()
    images = len(result.tables[0].frame)
    caption = (
        f"Scores on {images} test images with 95 % intervals (BCa bootstrap"
        + (" over groups of images" if "groups are resampled" in " ".join(result.notes) else "")
        + f"). *: differs from {result.tables[0].name} (paired interval excludes 0, and p of Wilcoxon's signed-rank "
        f"test below {LEVEL:g} after Holm's correction)."
    )
    return latex_table(frame, caption, "tab:comparison")


def _latex_title(name: str) -> str:
    found = score(name)
    return found.title + (" ↓" if found.metric.lower_is_better else "")
