"""The results of `bustseg compare`: a table in the terminal, files, a sheet of pictures, and a run in MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bustseg.compare.analysis import COMPARED, Comparison, RunTable, compare, load_runs, read_groups
from bustseg.compare.pages import describe, html_page, latex, print_comparison
from bustseg.errors import UserError
from bustseg.figures.colours import OUTLINES
from bustseg.figures.panels import Picture, sheet
from bustseg.figures.style import save
from bustseg.metrics import CONVENTIONS, overlap_scores
from bustseg.metrics.measures import known_metrics
from bustseg.progress import console, error_console, track

PAGE = "compare.html"
"""File with the whole comparison, in the folder of the results."""

_PICTURED_RUNS = 8

COMPARISONS = "comparisons"
"""MLflow experiment of the comparisons' runs, which keeps them apart from trainings."""


def report(
    runs: Sequence[str],
    experiment: str | None = None,
    metrics: Sequence[str] = (),
    conventions: Sequence[str] = (),
    baseline: str | None = None,
    groups: Path | None = None,
    out: Path | None = None,
) -> Comparison:
    """Compare runs, print the table, and keep it in ``out`` and in a run of the MLflow experiment `comparisons`.

    Args:
        runs: as in :func:`bustseg.compare.analysis.load_runs`
        experiment: compare all tested runs of this experiment
        metrics: metrics to compare; the usual ones when empty
        conventions: conventions to show; all when empty
        baseline: id or name of the run that the others are compared with; the first when not given
        groups: CSV with the columns ``image`` and ``group``
        out: folder for ``compare.csv``, ``compare.tex``, ``compare.html`` and ``comparison.png``

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
            console.print(f"written to {folder}: {', '.join(path.name for path in files)}", highlight=False)
            console.print(f"next: open {folder / PAGE} in a browser", highlight=False, markup=False)
        if home is not None:
            _log(result, home, files)
        elif out is None:
            console.print("nothing is saved: give --out DIR for CSV, HTML and pictures", highlight=False)
    return result


def _baseline_first(tables: list[RunTable], baseline: str | None) -> list[RunTable]:
    if baseline is None:
        return tables
    wanted = baseline.removeprefix("runs:/")
    first = [table for table in tables if wanted in (table.run_id, table.name)]
    if len(first) != 1:
        names = ", ".join(table.name for table in tables)
        raise UserError(f"the baseline {baseline} is not among the runs compared: {names}")
    return first + [table for table in tables if table is not first[0]]


def write_files(result: Comparison, folder: Path) -> list[Path]:
    """Write CSV, LaTeX, HTML, and the sheet of pictures if checkpoints and data are available; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, latex_file, page, picture = (
        folder / name for name in ("compare.csv", "compare.tex", PAGE, "comparison.png")
    )
    result.rows.to_csv(table, index=False, float_format="%.6g")
    drawn = False
    try:
        drawn = draw_sheet(result.tables, picture)
    except UserError as error:  # the numbers are useful without the pictures
        error_console.print(f"no pictures: {error}", highlight=False, markup=False)
    latex_file.write_text(latex(result), encoding="utf-8")
    page.write_text(html_page(result, picture if drawn else None), encoding="utf-8")
    return [table, latex_file, page, *([picture, picture.with_suffix(".svg")] if drawn else [])]


# --------------------------------------------------------------------------------------------------------- pictures


def choose_images(dice: np.ndarray, lesion: np.ndarray, false: np.ndarray, each: int = 2) -> list[tuple[str, int]]:
    """Images that show how runs differ: typical, hard, disputed, and normals with false positives.

    Args:
        dice: Dice of every image and run, (n, runs)
        lesion: (n,) bool, whether the image has a lesion
        false: (n, runs) pixels predicted wrongly
        each: most images per reason

    Returns:
        reason and position of each image, no position twice
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
        runs: most runs that are drawn

    Returns:
        False, and nothing is drawn, when a checkpoint is not available

    Raises:
        UserError: a checkpoint or its data cannot be loaded
    """
    tables = tables[:runs]
    missing = [table.name for table in tables if table.checkpoint is None]
    if missing:
        error_console.print(f"no pictures: no checkpoint of {', '.join(missing)}", highlight=False, markup=False)
        return False
    frame = tables[0].frame
    from bustseg.runs.checkpoint import load_data, load_task

    checkpoints = [table.checkpoint for table in tables if table.checkpoint is not None]
    data = load_data(checkpoints[0])
    data.prepare_data()
    data.setup("test")
    expected = tables[0].facts.get("data_digest", data.data_digest)
    if data.data_digest != expected:
        raise UserError(f"the data in {data.data_root} are not the data that were tested (digest {data.data_digest})")
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
            f"the pictures' Dice differs from the table's by up to {differs:.2f}: pictures are computed in float32 "
            "from the best checkpoint, scores as they were tested",
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
    from bustseg.runs.tracker import Tracker

    ids = [table.run_id or table.name for table in result.tables]
    names = [table.name for table in result.tables]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    tracker = Tracker(
        experiment=COMPARISONS,
        run_name=f"{experiment}: {', '.join(names[:3])}{more}",
        tags={COMPARED: ", ".join(ids), "baseline": ids[0], "compared_in": experiment},
        description=describe(result),
    )
    for path in files:
        tracker.log_file(path)
    tracker.finalize()
    console.print(f"kept in run {tracker.run_id} of experiment {COMPARISONS}: bustseg ui", highlight=False)
