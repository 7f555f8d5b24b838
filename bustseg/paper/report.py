"""The report of `bustseg reproduce`: Markdown, CSV and pictures that compare the paper's numbers with ours."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bustseg import __version__
from bustseg.compare.analysis import RunTable, compare, load_run
from bustseg.compare.pages import LEVEL, p_text
from bustseg.compare.report import draw_sheet
from bustseg.errors import UserError
from bustseg.metrics import CONVENTIONS, overlap_metrics, table_metrics
from bustseg.metrics.registry import score, value_of
from bustseg.paper.tables import Claim, PaperTable, Row
from bustseg.progress import error_console
from bustseg.reports.render import render as render_template
from bustseg.reports.tables import markdown_table
from bustseg.runs.checkpoint import pretrained_parts
from bustseg.runs.lookup import run_file
from bustseg.runs.scores import scores_of_test
from bustseg.statistics import holm

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SUBSETS = ("train", "val", "test")
_AS_PAPER = ("precision", "recall", "iou", "dice")
_BEYOND = (
    "dice_lesion",
    "dice_empty_one",
    "dice_pooled",
    "iou_lesion",
    "hd95",
    "missed_lesion_rate",
    "false_positive_rate_normal",
)
"""Scores in addition to the paper's."""


@dataclass(frozen=True)
class Outcome:
    """The results of a finished run.

    Attributes:
        run_id: MLflow run
        scores: scores of its test, named as in MLflow (``test/dice_paper``)
        auc: pixel AUC by subset, all with the tested weights
        parameters: number of the network's parameters
        trainable: number of trained parameters
        epochs: number of trained epochs
        seconds: measured time of these epochs, validation included
        memory: peak of GPU memory in GiB; None on a CPU
        facts: ``device``, ``precision``, ``data_digest``, ``split_digest``, ``split``, ``git_commit``
    """

    run_id: str
    scores: dict[str, float]
    auc: dict[str, float]
    parameters: int
    trainable: int
    epochs: int
    seconds: float
    memory: float | None
    facts: dict[str, str]


@dataclass(frozen=True)
class Result:
    """One row with one seed, run or not."""

    row: Row
    seed: int
    state: str
    outcome: Outcome | None
    config: dict[str, Any]


def read_outcome(client: MlflowClient, run: Run) -> Outcome:
    """Outcome of a run that was trained and tested."""
    tags = run.data.tags
    seconds = {
        metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/epoch_seconds")
    }
    # if a process is killed between checkpoint and metrics, the time of that epoch is missing
    epochs = max(seconds, default=-1) + 1
    try:
        curves = json.loads(run_file(run.info.run_id, "curves/curves.json").read_text(encoding="utf-8"))["scores"]
    except (UserError, OSError, ValueError, KeyError):  # no subset has both lesion and background
        curves = {}
    names = ("device", "precision", "data_digest", "split_digest", "split", "git_commit")
    return Outcome(
        run_id=run.info.run_id,
        scores=scores_of_test(run),
        auc={subset: float(found["auc_pixel"]) for subset, found in curves.items() if "auc_pixel" in found},
        parameters=int(tags.get("parameters", 0)),
        trainable=int(tags.get("parameters_trainable", 0)),
        epochs=epochs,
        seconds=epochs * statistics.fmean(seconds.values()) if seconds else 0.0,
        memory=run.data.metrics.get("train/peak_memory_gib"),
        facts={name: tags[name] for name in names if name in tags},
    )


def write_report(
    table: PaperTable, results: Sequence[Result], folder: Path, command: str, pictures: bool
) -> list[Path]:
    """Write ``NAME.md``, ``NAME.csv`` and, if requested and possible, ``NAME.png``, with the table's name.

    Args:
        table: the paper's table
        results: every row and seed, run or not
        folder: created if it does not exist
        command: the command line
        pictures: whether to draw the sheet of test images, which loads every network

    Returns:
        the files
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, sheet, picture = (folder / f"{table.name}.{suffix}" for suffix in ("md", "csv", "png"))
    results = sorted(results, key=lambda result: ([row.row for row in table.rows].index(result.row.row), result.seed))
    loaded = _load_tables(results)
    csv_frame(table, results).to_csv(sheet, index=False, float_format="%.6g")
    drawn = pictures and _draw(loaded, picture)
    page.write_text(render(table, results, loaded, command, picture.name if drawn else None), encoding="utf-8")
    return [page, sheet, *([picture, picture.with_suffix(".svg")] if drawn else [])]


def _load_tables(results: Sequence[Result]) -> dict[tuple[int, int], RunTable]:
    """Per-image tables by row and seed."""
    loaded = {}
    for result in results:
        if result.outcome is not None:
            try:
                found = load_run(result.outcome.run_id)
            except UserError as error:
                error_console.print(f"row {result.row.row}: {error}", highlight=False, markup=False)
                continue
            loaded[result.row.row, result.seed] = replace(found, name=f"{result.row.row}: {result.row.name}")
    return loaded


def _draw(loaded: dict[tuple[int, int], RunTable], path: Path) -> bool:
    """Draw the same test images for all rows, with the first of several seeds."""
    first: dict[int, RunTable] = {}
    for (row, _), run in loaded.items():
        if run.checkpoint is not None:
            first.setdefault(row, run)
    try:
        return bool(first) and draw_sheet(list(first.values()), path, runs=len(first))
    except UserError as error:  # the numbers are useful without the pictures
        error_console.print(f"no pictures: {error}", highlight=False, markup=False)
        return False


# -------------------------------------------------------------------------------------------------------------- CSV


def csv_frame(table: PaperTable, results: Sequence[Result]) -> pd.DataFrame:
    """One line per row and seed, including those that were not run."""
    lines = []
    found = {result.row.row for result in results}
    absent = [Result(row, -1, "not run", None, {}) for row in table.rows if row.row not in found]
    for result in [*results, *absent]:
        row, outcome = result.row, result.outcome
        line: dict[str, Any] = {"row": row.row, "name": row.name, "seed": result.seed, "state": result.state}
        line |= {f"paper_{metric.name}": row.paper.get(metric.name) for metric in overlap_metrics()}
        line |= {f"paper_auc_{subset}": row.auc.get(subset) for subset in SUBSETS}
        line |= {"paper_parameters": row.parameters, "paper_trainable": row.trainable}
        names = [f"{metric.name}_{convention}" for convention in CONVENTIONS for metric in overlap_metrics()]
        names += [metric.name for metric in table_metrics() if metric.prominence != "detail"]
        line |= {name: value_of(outcome.scores, f"test/{name}") if outcome else None for name in names}
        for subset in SUBSETS:
            line[f"auc_{subset}"] = outcome.auc.get(subset) if outcome else None
        for name in ("parameters", "trainable", "epochs", "seconds", "memory", "run_id"):
            line[name] = getattr(outcome, name) if outcome else None
        lines.append(line)
    lines.sort(key=lambda line: ([row.row for row in table.rows].index(line["row"]), line["seed"]))
    frame = pd.DataFrame(lines)
    frame["seed"] = frame["seed"].where(frame["seed"] >= 0)
    whole = ("seed", "paper_parameters", "paper_trainable", "parameters", "trainable", "epochs")
    return frame.astype(dict.fromkeys(whole, "Int64"))


# --------------------------------------------------------------------------------------------------------- Markdown


def duration(seconds: float) -> str:
    """Seconds as text: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def mean_sd(values: Iterable[float | None], digits: int = 4) -> str:
    """A number, or the mean and standard deviation of several; empty for none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    text = f"{statistics.fmean(known):.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {statistics.stdev(known):.{digits}f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns except the second are right-aligned."""
    return markdown_table(head, lines, right=[place for place in range(len(head)) if place != 1])


def render(
    table: PaperTable,
    results: Sequence[Result],
    loaded: dict[tuple[int, int], RunTable],
    command: str,
    picture: str | None = None,
) -> str:
    """The report as Markdown."""
    by_row = {row.row: [result for result in results if result.row.row == row.row] for row in table.rows}
    outcomes = {number: [own.outcome for own in found if own.outcome] for number, found in by_row.items()}

    def cells(row: Row, *names: str) -> list[str]:
        return [
            mean_sd(
                (value_of(outcome.scores, f"test/{name}") for outcome in outcomes[row.row]), score(name).metric.digits
            )
            for name in names
        ]

    def of_paper(value: float | None, digits: int = 4) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    paper_lines = []
    for row in table.rows:
        pairs = [(of_paper(row.paper.get(name)), *cells(row, f"{name}_paper")) for name in _AS_PAPER]
        paper_lines.append(
            [str(row.row), row.name, *(cell for pair in pairs for cell in pair), _state(by_row[row.row])]
        )
    titles = [score(name).metric.title for name in _AS_PAPER]
    head = ["row", "model", *(f"{name} {whose}" for name in titles for whose in ("(paper)", "(ours)")), "state"]
    done = [row for row in table.rows if outcomes[row.row]]
    beyond = _table(
        ["row", "model", *(score(name).title for name in _BEYOND)],
        [[str(row.row), row.name, *cells(row, *_BEYOND)] for row in done],
    )
    auc_lines = []
    for row in table.rows:
        if row.auc or outcomes[row.row]:
            ours = [mean_sd((outcome.auc.get(subset) for outcome in outcomes[row.row]), 3) for subset in SUBSETS]
            theirs = [of_paper(row.auc.get(subset), 2) for subset in SUBSETS]
            both = (cell for pair in zip(theirs, ours, strict=True) for cell in pair)
            auc_lines.append([str(row.row), row.name, *both])
    auc_head = ["row", "model", *(f"{subset} {whose}" for subset in SUBSETS for whose in ("(paper)", "(ours)"))]
    return render_template(
        "paper_table.md.j2",
        title=table.title,
        head=_head(table, results, command),
        picture=picture,
        as_paper=_table(head, paper_lines),
        beyond=beyond if done else "",
        auc=_table(auc_head, auc_lines) if auc_lines else "",
        sizes=_sizes(table, outcomes),
        claims=_claims(table, loaded),
        level=f"{LEVEL:g}",
    )


def _state(found: Sequence[Result]) -> str:
    states = [result.state for result in found]
    if not states:
        return "not run"
    if len(set(states)) == 1:
        return states[0] if len(states) == 1 else f"{states[0]}, {len(states)} seeds"
    return "; ".join(f"seed {result.seed}: {result.state}" for result in found)


def _head(table: PaperTable, results: Sequence[Result], command: str) -> list[str]:
    outcomes = [result.outcome for result in results if result.outcome]
    lines = [f"{table.legend}."] if table.legend else []
    lines.append(encoder_weights(results))
    seeds = sorted({result.seed for result in results})
    lines.append(
        f"{len(outcomes)} of {len({result.row.row for result in results}) * len(seeds)} runs are finished; "
        + ("seed" if len(seeds) == 1 else "seeds, as mean ± standard deviation:")
        + f" {', '.join(map(str, seeds))}. Rows that are not finished are marked."
    )
    for name, what in (("split", "Split"), ("data_digest", "Data digest"), ("split_digest", "Split digest")):
        if found := _distinct(outcome.facts.get(name) for outcome in outcomes):
            lines.append(f"{what}: {found}")
    epochs = _distinct(str(result.config["trainer"]["max_epochs"]) for result in results if result.config)
    size = _distinct(str(result.config["data"]["image_size"]) for result in results if result.config)
    batch = _distinct(str(result.config["data"]["batch_size"]) for result in results if result.config)
    lines.append(f"Images of {size} pixels, batch {batch}, at most {epochs} epochs (early stopping as configured).")
    machine = [_distinct(outcome.facts.get(name) for outcome in outcomes) for name in ("device", "precision")]
    if all(machine):
        lines.append(f"Machine: {machine[0]}, {machine[1]}.")
    commit = _distinct(outcome.facts.get("git_commit") for outcome in outcomes)
    lines.append(f"bustseg {__version__}{f', commit {commit}' if commit else ''}: `{command}`")
    return lines


def _distinct(values: Iterable[str | None]) -> str:
    return " / ".join(dict.fromkeys(str(value) for value in values if value is not None))


def encoder_weights(results: Sequence[Result]) -> str:
    """Sentence about the pretrained weights of the rows' encoders; the paper's encoders start from ImageNet weights."""
    kinds: dict[str, list[int]] = {}
    for result in results:
        if not result.config:
            continue
        values = list(pretrained_parts(result.config["model"]["network"]).values())
        flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
        for kind in {_kind(value) for value in flat} or {"no part with pretrained weights"}:
            kinds.setdefault(kind, []).append(result.row.row)
    if set(kinds) == {"ImageNet"}:
        return "Encoders start from ImageNet weights, as in the paper."
    named = "; ".join(
        f"{kind} in all rows" if len(kinds) == 1 else f"{kind} in rows {', '.join(map(str, dict.fromkeys(rows)))}"
        for kind, rows in sorted(kinds.items())
    )
    if "random" not in kinds:
        return f"Encoders: {named}."
    return (
        f"**Not all encoders start from ImageNet weights, as the paper's do: {named}.** Networks that start from "
        "random weights learn less from 624 images, and a frozen encoder with random weights gives only random "
        "features."
    )


def _kind(value: Any) -> str:
    if value in (None, False, "none"):
        return "random"
    return "ImageNet" if value in (True, "imagenet") else "weights from a file"


def _sizes(table: PaperTable, outcomes: dict[int, list[Outcome]]) -> str:
    memory = any(outcome.memory for found in outcomes.values() for outcome in found)
    head = ["row", "model", "parameters (paper)", "(ours)", "trained (paper)", "(ours)", "epochs", "s per epoch", "fit"]
    head += ["GPU memory, GiB"] if memory else []
    lines = []
    for row in table.rows:
        found = outcomes[row.row]
        cost = ["" if value is None else f"{value:,}" for value in (row.parameters, row.trainable)]
        ours = ["", ""] if not found else [f"{found[0].parameters:,}", f"{found[0].trainable:,}"]
        seconds = mean_sd((one.seconds / one.epochs for one in found if one.epochs), 1)
        whole = duration(statistics.fmean(one.seconds for one in found)) if found else ""
        line = [str(row.row), row.name, cost[0], ours[0], cost[1], ours[1]]
        line += [mean_sd((one.epochs for one in found), 0), seconds, whole]
        lines.append(line + ([mean_sd((one.memory for one in found), 2)] if memory else []))
    return _table(head, lines)


# ----------------------------------------------------------------------------------------------------------- claims


def claim_rows(table: PaperTable, loaded: dict[tuple[int, int], RunTable]) -> pd.DataFrame:
    """The paper's conclusions tested on our runs: one line per pair of rows and seed.

    Columns: ``claim``, ``first``, ``second`` (rows), ``seed``, ``paper`` (difference of the paper's Dice, first minus
    second), and where both rows are finished ``paper_ours``, ``paper_low``, ``paper_high``, ``lesion_ours``,
    ``lesion_low``, ``lesion_high`` (ours under both conventions with 95 % intervals, paired over the test images),
    ``p`` and ``p_holm`` (Wilcoxon's, adjusted for all pairs of the table).
    """
    lines: list[dict[str, Any]] = []
    seeds = sorted({seed for _, seed in loaded})
    for claim in table.claims:
        for first, second in claim.pairs:
            base = {"claim": claim.claim, "first": first, "second": second}
            paper = [table.row(number).paper.get("dice") for number in (first, second)]
            base["paper"] = np.nan if None in paper else round(float(paper[0]) - float(paper[1]), 6)  # type: ignore[arg-type]
            both = [seed for seed in seeds if (first, seed) in loaded and (second, seed) in loaded]
            lines += [{**base, "seed": seed, **_difference(loaded[first, seed], loaded[second, seed])} for seed in both]
            if not both:
                lines.append({**base, "seed": None})
    columns = ["claim", "first", "second", "seed", "paper"]
    columns += [f"{name}_{what}" for name in ("paper", "lesion") for what in ("ours", "low", "high")]
    frame = pd.DataFrame(lines, columns=[*columns, "p"])
    known = frame["p"].notna()
    frame["p_holm"] = np.nan
    # a pair that appears in two claims is one test
    pairs = frame[known].drop_duplicates(["first", "second", "seed"])
    adjusted = dict(
        zip(zip(pairs["first"], pairs["second"], pairs["seed"], strict=True), holm(pairs["p"].to_numpy()), strict=True)
    )
    frame.loc[known, "p_holm"] = [
        adjusted[key] for key in zip(frame["first"][known], frame["second"][known], frame["seed"][known], strict=True)
    ]
    return frame


def _difference(first: RunTable, second: RunTable) -> dict[str, float]:
    try:
        rows = compare(
            [replace(second, name="second"), replace(first, name="first")], ["dice"], ["paper", "lesion"]
        ).rows
    except UserError as error:
        error_console.print(f"{first.name} against {second.name}: {error}", highlight=False, markup=False)
        return {}
    own = rows[(rows["part"] == "all") & (rows["run"] == "first")].set_index("measure")
    found = {
        f"{convention}_{name}": float(own.loc[f"dice_{convention}", column])  # type: ignore[arg-type]
        for convention in ("paper", "lesion")
        if f"dice_{convention}" in own.index
        for name, column in (("ours", "difference"), ("low", "difference_low"), ("high", "difference_high"))
    }
    return {**found, "p": float(own["p"].iloc[0])}


def verdict(line: pd.Series) -> str:
    """Whether our runs confirm the sign of the paper's difference at 95 %: the same, the opposite, or not decided."""
    if pd.isna(line["paper_ours"]):
        return "not run"
    if not (line["p_holm"] < LEVEL and line["paper_low"] * line["paper_high"] > 0):
        return "not decided"
    return "the same" if (line["paper_ours"] > 0) == (line["paper"] > 0) else "the opposite"


def _claims(table: PaperTable, loaded: dict[tuple[int, int], RunTable]) -> list[dict[str, str]]:
    """``title``, ``table`` and ``summary`` of each claim."""
    if not table.claims:
        return []
    frame = claim_rows(table, loaded)
    several = len(set(frame["seed"].dropna())) > 1
    found = []
    for claim in table.claims:
        own = frame[frame["claim"] == claim.claim]
        found.append(
            {"title": claim.claim, "table": _claim_table(table, own, several), "summary": _summary(claim, own)}
        )
    return found


def _claim_table(table: PaperTable, own: pd.DataFrame, several: bool) -> str:
    head = ["rows", "first against second", *(["seed"] if several else []), "paper", "ours (`paper`)", "95 % interval"]
    head += ["ours (`lesion`)", "95 % interval", "p", "ours says"]
    show: Callable[[float], str] = lambda value: "" if pd.isna(value) else f"{value:+.4f}"  # noqa: E731

    def interval(line: pd.Series, name: str) -> str:
        return "" if pd.isna(line[f"{name}_low"]) else f"{line[f'{name}_low']:+.3f} to {line[f'{name}_high']:+.3f}"

    lines = []
    for _, line in own.iterrows():
        first, second = int(line["first"]), int(line["second"])
        cells = [f"{first}, {second}", f"{table.row(first).name} against {table.row(second).name}"]
        cells += [("" if pd.isna(line["seed"]) else str(int(line["seed"])))] if several else []
        cells += [show(line["paper"]), show(line["paper_ours"]), interval(line, "paper")]
        cells += [show(line["lesion_ours"]), interval(line, "lesion"), p_text(line["p_holm"]), verdict(line)]
        lines.append(cells)
    return _table(head, lines)


def _summary(claim: Claim, own: pd.DataFrame) -> str:
    run = own[own["paper_ours"].notna()]
    if run.empty:
        return "No pair is finished."
    verdicts = [verdict(line) for _, line in run.iterrows()]
    said = (run["paper"] > 0).sum()
    return (
        f"{len(run)} comparisons: the first row has the higher Dice in {int((run['paper_ours'] > 0).sum())} of ours "
        f"and in {int(said)} of the paper's; {verdicts.count('the same')} of ours agree with the paper significantly, "
        f"{verdicts.count('the opposite')} contradict it significantly, {verdicts.count('not decided')} are undecided."
    )
