"""What `bustseg compare` leaves: a table in the terminal, CSV, HTML, a sheet of pictures, and a run in MLflow."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from rich.markup import escape as plain
from rich.table import Table

from bustseg.colours import OUTLINES
from bustseg.compare import COMPARED, Comparison, RunTable, compare, known_metrics, load_runs, read_groups
from bustseg.errors import UserError
from bustseg.figures.panels import Picture, sheet
from bustseg.figures.style import save
from bustseg.metrics import CONVENTIONS, overlap_scores
from bustseg.metrics.registry import metric as known
from bustseg.progress import console, error_console, print_wide, track

LEVEL = 0.05
"""Adjusted p below which a difference is marked."""

_PICTURED_RUNS = 8


def report(
    runs: Sequence[str],
    experiment: str | None = None,
    metrics: Sequence[str] = (),
    conventions: Sequence[str] = (),
    baseline: str | None = None,
    groups: Path | None = None,
    out: Path | None = None,
) -> Comparison:
    """Compare runs, print the table, and keep it in ``out`` and in a run `compare` of their MLflow experiment.

    Args:
        runs: as :func:`bustseg.compare.load_runs` takes them
        experiment: compare all tested runs of this experiment
        metrics: metrics to compare; the usual ones when empty
        conventions: conventions to show; all when empty
        baseline: id or name of the run that the others are compared with; the first when not given
        groups: CSV with the columns ``image`` and ``group``
        out: folder for ``compare.csv``, ``compare.html`` and ``comparison.png``

    Raises:
        UserError: runs that cannot be compared, or an unknown metric, convention or baseline
    """
    for given, names, what in ((metrics, known_metrics(), "metric"), (conventions, CONVENTIONS, "convention")):
        for name in given:
            if name not in names:
                raise UserError(f"no {what} {name!r}: there are {', '.join(names)}")
    tables = _baseline_first(load_runs(runs, experiment), baseline)
    result = compare(
        tables, metrics or None, conventions or CONVENTIONS, None if groups is None else read_groups(groups)
    )
    print_comparison(result, detailed=bool(metrics))
    home = experiment or next((table.experiment for table in tables if table.experiment), None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        files = write_files(result, folder)
        if out is not None:
            console.print(f"written: {', '.join(str(path) for path in files)}", highlight=False)
        if home is not None:
            _log(result, home, files)
        elif out is None:
            console.print("nothing is kept: give --out DIR for CSV, HTML and pictures", highlight=False)
    return result


def _baseline_first(tables: list[RunTable], baseline: str | None) -> list[RunTable]:
    if baseline is None:
        return tables
    wanted = baseline.removeprefix("runs:/")
    first = [table for table in tables if wanted in (table.run_id, table.name)]
    if len(first) != 1:
        names = ", ".join(table.name for table in tables)
        raise UserError(f"the baseline {baseline} is none of the runs compared: {names}")
    return first + [table for table in tables if table is not first[0]]


def write_files(result: Comparison, folder: Path) -> list[Path]:
    """Write CSV, HTML and, where the checkpoints and data are at hand, the sheet of pictures; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, page, picture = (folder / name for name in ("compare.csv", "compare.html", "comparison.png"))
    result.rows.to_csv(table, index=False, float_format="%.6g")
    drawn = False
    try:
        drawn = draw_sheet(result.tables, picture)
    except UserError as error:  # the figures stand without the pictures
        error_console.print(f"no pictures: {error}", highlight=False, markup=False)
    page.write_text(render(result, picture if drawn else None), encoding="utf-8")
    return [table, page, *([picture, picture.with_suffix(".svg")] if drawn else [])]


# --------------------------------------------------------------------------------------------------------- terminal


def number(value: float, metric: str, sign: bool = False) -> str:
    """A score beside its interval, with the digits of its metric; nothing for nan."""
    return known(metric).text(value, sign, interval=True)


def p_text(value: float) -> str:
    """A p value as it is printed: two significant digits, never 0."""
    return "" if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _verdict(row: pd.Series) -> str:
    """``better``, ``worse`` or nothing: the direction of a difference that both interval and adjusted p confirm."""
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
    return f"{text}\n[{_COLOURS[_verdict(row)]}]{plain(gap)}{p}[/]"


def print_comparison(result: Comparison, detailed: bool = False) -> None:
    """Print the comparison as one table.

    Args:
        detailed: every metric for every class and lesion size, not only the usual ones
    """
    rows = result.rows
    first = rows["metric"].iloc[0]
    conventions = [name for name in CONVENTIONS if (rows["convention"] == name).any()]
    # the rate on normals has no convention, but empty_one is the one that asks the same question
    anywhere = "empty_one" if "empty_one" in conventions else conventions[0]
    table = Table(
        title="score [95 % interval]; below it, the difference from the first run [95 % interval] and Holm's p",
        caption="↓ lower is better; in brackets the number of images; more in the CSV and HTML",
    )
    for column in ("run", *conventions):
        table.add_column(column, overflow="fold")
    for (part, name), section in rows.groupby(["part", "metric"], sort=False):
        metric = str(name)
        # the files hold all of them
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


# ------------------------------------------------------------------------------------------------------------- HTML

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2329; background: #f4f5f6; margin: 0; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 25px; margin: 0 0 6px; } h2 { font-size: 18px; margin: 32px 0 8px; } p, ul { max-width: 90ch; }
table { border-collapse: collapse; background: #fff; width: 100%; font-size: 14px; }
th, td { padding: 5px 8px; border-bottom: 1px solid #e3e6e8; text-align: left; vertical-align: middle; }
#scores th { cursor: pointer; position: sticky; top: 0; background: #fff; user-select: none; white-space: nowrap; }
#scores th::after { content: " \\2195"; color: #b6bec4; }
#scores th[data-up]::after { content: " \\2191"; color: #1c2329; }
#scores th[data-up="0"]::after { content: " \\2193"; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.quiet { color: #5c6770; } .better { color: #1d6f3c; font-weight: 600; } .worse { color: #b3261e; font-weight: 600; }
select { font: inherit; margin: 0 14px 10px 4px; } svg { display: block; } img { max-width: 100%; }
code { font-size: 13px; }
"""

_SCRIPT = """
const table = document.getElementById('scores'), body = table.tBodies[0], pick = document.querySelectorAll('select');
const show = () => { for (const row of body.rows)
  row.hidden = [...pick].some(s => s.value && row.dataset[s.name] !== s.value); };
pick.forEach(s => s.addEventListener('change', show));
table.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
  const up = head.dataset.up === '1' ? 0 : 1;
  table.querySelectorAll('th').forEach(other => delete other.dataset.up);
  head.dataset.up = up;
  const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const order = (a, b) => { const x = key(a), y = key(b);
    if (x === '' || y === '') return (x === '') - (y === '');
    const gap = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y; return up ? gap : -gap; };
  [...body.rows].sort(order).forEach(row => body.append(row)); }));
show();
"""


def _range(row: pd.Series, low: str, high: str, sign: bool = False) -> str:
    if pd.isna(row[low]):
        return ""
    return f"{number(row[low], row['metric'], sign)} to {number(row[high], row['metric'], sign)}"


def _interval_bar(row: pd.Series) -> str:
    """The interval as a line with a dot between 0 and 1; nothing for values that may lie elsewhere."""
    if pd.isna(row["low"]) or row["low"] < 0 or row["high"] > 1 or known(row["metric"]).unit:
        return ""
    low, dot, high = (4 + 152 * float(row[name]) for name in ("low", "estimate", "high"))
    return (
        '<svg width="160" height="12" role="img"><line x1="4" x2="156" y1="6" y2="6" stroke="#e3e6e8"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="6" y2="6" stroke="#2a7f9e" stroke-width="3"/>'
        f'<circle cx="{dot:.1f}" cy="6" r="4" fill="#14485c"/></svg>'
    )


def _html_row(row: pd.Series) -> str:
    def value(name: str, text: str, extra: str = "") -> str:
        key = "" if pd.isna(row[name]) else f"{float(row[name]):.9g}"
        return f'<td class="n {extra}" data-v="{key}">{text}</td>'

    metric = row["metric"]
    data = " ".join(f'data-{name}="{escape(str(row[name]))}"' for name in ("part", "metric", "convention"))
    return (
        f"<tr {data}><td>{escape(row['part'])}</td><td>{escape(row['measure'])}</td><td>{escape(row['run'])}</td>"
        + value("images", str(row["images"]))
        + value("estimate", number(row["estimate"], metric))
        + value("low", _range(row, "low", "high"))
        + f'<td data-v="{float(row["estimate"]):.9g}">{_interval_bar(row)}</td>'
        + value("difference", number(row["difference"], metric, sign=True), _verdict(row))
        + value("difference_low", _range(row, "difference_low", "difference_high", sign=True))
        + value("p", p_text(row["p"]))
        + value("p_holm", p_text(row["p_holm"]), _verdict(row))
        + "</tr>"
    )


def _choice(name: str, values: Sequence[str], chosen: str = "") -> str:
    options = "".join(
        f'<option value="{escape(value)}"{" selected" * (value == chosen)}>{escape(value)}</option>' for value in values
    )
    return f'<label>{name} <select name="{name}"><option value="">every {name}</option>{options}</select></label>'


def render(result: Comparison, sheet: Path | None = None) -> str:
    """The comparison as one HTML file that needs nothing else: sortable by a click on a column's head."""
    rows = result.rows
    heads = ["part", "score", "run", "images", "value", "95 % interval", "from 0 to 1", "difference"]
    heads += ["95 % interval", "p", "p (Holm)"]
    runs = "".join(
        f"<tr><td>{escape(table.name)}{' (baseline)' * (position == 0)}</td><td><code>{escape(table.run_id or '')}"
        f"</code></td><td>{escape(table.experiment or '')}</td>"
        + "".join(f"<td>{escape(table.facts.get(name, ''))}</td>" for name in ("image_size", "threshold"))
        + "".join(
            f"<td><code>{escape(table.facts.get(name, ''))}</code></td>" for name in ("data_digest", "split_digest")
        )
        + "</tr>"
        for position, table in enumerate(result.tables)
    )
    filters = [
        _choice(name, [value for value in rows[name].unique() if value], chosen)
        for name, chosen in (("part", "all"), ("metric", ""), ("convention", ""))
    ]
    picture = ""
    if sheet is not None:
        encoded = base64.b64encode(sheet.read_bytes()).decode()
        picture = (
            f"<h2>The same images under every run</h2><p>Outlines: {OUTLINES}.</p>"
            f'<img alt="test images with the outlines of truth and predictions" src="data:image/png;base64,{encoded}">'
        )
    title = f"{len(result.tables)} runs on {len(result.tables[0].frame)} test images"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">
<style>{_STYLE}</style></head><body><main>
<h1>{title}</h1>
<table><thead><tr><th>run</th><th>id</th><th>experiment</th><th>image size</th><th>threshold</th><th>data</th>
<th>split</th></tr></thead><tbody>{runs}</tbody></table>
<h2>Scores</h2>
<ul>{"".join(f"<li>{escape(note)}</li>" for note in result.notes)}
<li>Intervals: BCa bootstrap. Differences: run minus {escape(result.tables[0].name)}, paired. p: Wilcoxon signed-rank;
p (Holm) is adjusted for all tests on all images, and apart from those for all tests on classes and lesion sizes.
Coloured: adjusted p below {LEVEL}, and an interval of the difference without 0.</li>
<li>Distances are in pixels of the evaluated image; lower is better for them and for the two rates. A score without an
interval has the same value in every image.</li></ul>
<div>{"".join(filters)}</div>
<table id="scores"><thead><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead>
<tbody>
{chr(10).join(_html_row(row) for _, row in rows.iterrows())}
</tbody></table>
{picture}
</main><script>{_SCRIPT}</script></body></html>
"""


# --------------------------------------------------------------------------------------------------------- pictures


def choose_images(dice: np.ndarray, lesion: np.ndarray, false: np.ndarray, each: int = 2) -> list[tuple[str, int]]:
    """Images that show how runs differ: typical, hard, disputed, and normals with false positives.

    Args:
        dice: Dice of every image and run, (n, runs)
        lesion: (n,) bool, whether the image has a lesion
        false: (n, runs) pixels predicted wrongly
        each: images per reason, at most

    Returns:
        reason and position, no position twice
    """
    best = int(np.argmax(dice[lesion].mean(0))) if lesion.any() else 0
    positions = np.flatnonzero(lesion)
    rising = positions[np.argsort(dice[lesion, best], kind="stable")]
    middle = max(len(rising) // 2 - each // 2, 0)
    apart = np.ptp(dice[lesion], axis=1)
    spread = positions[np.argsort(-apart, kind="stable")][: np.count_nonzero(apart)]
    normals = np.flatnonzero(~lesion & (false > 0).any(1))
    normals = normals[np.argsort(-false[normals].sum(1), kind="stable")]
    chosen: dict[int, str] = {}
    for reason, candidates in (
        ("typical", rising[middle : middle + each]),
        ("hardest for the best run", rising),
        ("runs disagree", spread),
        ("false positive", normals),
    ):
        for position in [position for position in candidates.tolist() if position not in chosen][:each]:
            chosen[position] = reason
    return [(reason, position) for position, reason in chosen.items()]


def draw_sheet(tables: Sequence[RunTable], path: Path, runs: int = _PICTURED_RUNS) -> bool:
    """Draw chosen test images with the outlines of every run's prediction, as in the paper's table 3.

    Args:
        tables: the runs
        path: PNG file to write
        runs: how many runs are drawn at most

    Returns:
        False, and nothing is drawn, when a checkpoint is not at hand

    Raises:
        UserError: a checkpoint or its data cannot be loaded
    """
    tables = tables[:runs]
    missing = [table.name for table in tables if table.checkpoint is None]
    if missing:
        error_console.print(f"no pictures: no checkpoint of {', '.join(missing)}", highlight=False, markup=False)
        return False
    frame = tables[0].frame
    from bustseg.checkpoint import load_data, load_task

    checkpoints = [table.checkpoint for table in tables if table.checkpoint is not None]
    data = load_data(checkpoints[0])
    data.prepare_data()
    data.setup("test")
    expected = tables[0].facts.get("data_digest", data.data_digest)
    if data.data_digest != expected:
        raise UserError(f"the data in {data.data_root} are not those that were tested (digest {data.data_digest})")
    lesion = (frame["lesion_px"] > 0).to_numpy()
    dice = np.stack([table.frame["dice_paper"] for table in tables], axis=1)
    false = np.stack([table.frame["fp"] for table in tables], axis=1)
    chosen = choose_images(dice, lesion, false)
    where = {sample.id: index for index, sample in enumerate(data.samples)}
    samples = [data.samples[where[frame["image"].iloc[position]]] for _, position in chosen]
    arrays = [data.arrays(where[sample.id]) for sample in samples]
    nothing = np.zeros((1, 1), dtype=np.uint8)
    rows: list[list[tuple[Picture, str]]] = []
    for sample, (reason, _) in zip(samples, chosen, strict=True):
        picture = Picture.of(sample, nothing)
        words = "truth" if picture.truth.any() else "truth: no lesion"
        rows.append([(replace(picture, truth=nothing), f"{reason}\n{sample.id}"), (picture, words)])
    differs = 0.0
    for column, checkpoint in track(list(enumerate(checkpoints)), "drawing"):
        task = load_task(checkpoint)  # one network in memory at a time
        for row, (image, truth), (_, position) in zip(rows, arrays, chosen, strict=True):
            prediction = task.predict_mask(image)
            score = _dice(prediction, truth)
            text = f"Dice {score:.2f}" if truth.any() else f"{int(prediction.sum())} px found"
            row.append((replace(row[1][0], prediction=prediction), f"{tables[column].name}\n{text}"))
            differs = max(differs, abs(score - dice[position, column]))
    if differs > 0.02:
        error_console.print(
            f"the pictures' Dice differs from the table's by up to {differs:.2f}: another checkpoint or precision",
            highlight=False,
        )
    save(sheet(rows, OUTLINES), path)
    return True


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    tp, fp, fn, tn = (
        np.array([(a & b).sum()])
        for a, b in (
            (prediction == 1, truth == 1),
            (prediction == 1, truth == 0),
            (prediction == 0, truth == 1),
            (prediction == 0, truth == 0),
        )
    )
    return float(overlap_scores(tp, fp, fn, tn)["dice_paper"][0])


# ----------------------------------------------------------------------------------------------------------- MLflow


def _log(result: Comparison, experiment: str, files: Sequence[Path]) -> None:
    from bustseg.tracking import Tracker

    ids = [table.run_id or table.name for table in result.tables]
    tracker = Tracker(
        experiment=experiment,
        run_name="compare",
        tags={COMPARED: ", ".join(ids), "baseline": ids[0]},
        description=describe(result),
    )
    for path in files:
        tracker.log_file(path)
    tracker.finalize()
    console.print(f"kept in run {tracker.run_id} of experiment {experiment}: bustseg ui", highlight=False)


def describe(result: Comparison) -> str:
    """The first metric on all images as a Markdown table, one row per run."""
    rows = result.rows[result.rows["part"] == "all"]
    metric = rows["metric"].iloc[0]
    rows = rows[rows["metric"] == metric]
    scores = list(rows["measure"].unique())
    lines = ["| run | " + " | ".join(scores) + " |", "| --- " * (1 + len(scores)) + "|"]
    for run, own in rows.groupby("run", sort=False):
        cells = {
            row["measure"]: f"{number(row['estimate'], metric)} ({_range(row, 'low', 'high')})"
            for _, row in own.iterrows()
        }
        lines.append(
            "| " + " | ".join([str(run).replace("|", "\\|"), *(cells.get(name, "") for name in scores)]) + " |"
        )
    return "\n".join([*lines, "", "95 % BCa bootstrap intervals. " + " ".join(result.notes)])
