"""`bustseg compare`: the scores of several runs on the same test images, with intervals and paired tests."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bustseg.bounds import MAX_CONFIG_BYTES, check_size, check_table
from bustseg.data.sources import LABELS, natural_key
from bustseg.data.sources.base import values_by_name
from bustseg.errors import UserError
from bustseg.metrics import CONVENTIONS, overlap_scores, table_metrics
from bustseg.metrics.measures import Measure, drawn_together, measures
from bustseg.metrics.registry import COUNTS, SIZES
from bustseg.metrics.table import size_thirds
from bustseg.progress import error_console
from bustseg.runs.lookup import find_run, is_run_id, latest_run, local_run, run_file, split_run
from bustseg.runs.opening import open_store
from bustseg.runs.registry import is_registered, registered_version
from bustseg.runs.store import tracking_uri
from bustseg.statistics import Bootstrap, holm, wilcoxon

if TYPE_CHECKING:
    from mlflow.entities import Run

MOST_PIXELS = 2**40
"""Most pixels in a table's count; no image has as many."""

TABLE = "tables/test.csv"
"""Artifact with one row per test image; a ``.json`` file with it describes how the table was made."""

COMPARED = "compared_runs"
"""Tag of a comparison's run: the runs compared."""

_FACTS = {
    "data_digest": "data digests",
    "image_size": "image sizes",
    "resize": "ways of resizing",
    "threshold": "thresholds",
}
"""Facts that must be equal for scores to be comparable, and their names in messages."""


@dataclass(frozen=True)
class RunTable:
    """The per-image results of one run.

    Attributes:
        name: the run's name in the comparison
        frame: one row per image, sorted by ``image``: ``label``, counts, ``lesion_px``, scores, and if the table has
            them ``group`` and distances
        facts: ``data_digest``, ``image_size``, ``resize``, ``threshold``, ``split_digest`` as text, where known
        run_id: id of the MLflow run, if it is one
        experiment: its experiment
        checkpoint: best checkpoint, if it is available
    """

    name: str
    frame: pd.DataFrame
    facts: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None
    experiment: str | None = None
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """Result of :func:`compare`.

    Attributes:
        tables: the runs, the baseline first
        rows: one row per part, measure and run: ``part``, ``images``, ``groups``, ``measure``, ``metric``,
            ``convention``, ``run``, ``run_id``, ``estimate``, ``low``, ``high`` (95 % interval), and for every run but
            the baseline ``difference``, ``difference_low``, ``difference_high``, ``p``, ``p_holm``
        notes: facts that a reader must know, one sentence each
    """

    tables: list[RunTable]
    rows: pd.DataFrame
    notes: list[str]


# ---------------------------------------------------------------------------------------------------------- reading


def load_runs(runs: Sequence[str], experiment: str | None = None) -> list[RunTable]:
    """Per-image tables of the named runs, and of all tested runs of an experiment, with unique names.

    Args:
        runs: MLflow run ids, ``runs:/RUN_ID``, registered models, folders of artifacts, or CSV files
        experiment: name of an MLflow experiment

    Raises:
        UserError: a run, experiment or table that is missing or cannot be read
    """
    tables = [load_run(run) for run in runs]
    if experiment is not None:
        tables += _experiment_tables(experiment, {table.run_id for table in tables})
    if len(tables) < 2:
        found = f"{len(tables)}" + f" in the experiment {experiment}" * (experiment is not None)
        raise UserError(
            f"a comparison needs at least two runs, not {found}: only tested runs count, test one with "
            "`bustseg test --ckpt_path RUN`"
        )
    for run_id in {table.run_id for table in tables if table.run_id}:
        if sum(table.run_id == run_id for table in tables) > 1:
            raise UserError(f"run {run_id} is named twice")
    names = [table.name for table in tables]
    unique = [
        name if names.count(name) == 1 else f"{name} ({(table.run_id or str(position + 1))[:6]})"
        for position, (name, table) in enumerate(zip(names, tables, strict=True))
    ]
    return [RunTable(**{**vars(table), "name": name}) for table, name in zip(tables, unique, strict=True)]


def load_run(run: str) -> RunTable:
    """Per-image table of one run, see :func:`load_runs`."""
    path = Path(run)
    if path.is_dir():
        found = [path / place for place in (TABLE, Path(TABLE).name, f"artifacts/{TABLE}") if (path / place).is_file()]
        if not found:
            raise UserError(f"{path} has no {TABLE}: `bustseg test --ckpt_path RUN` writes it")
        return _from_file(found[0], path.resolve().name)
    if path.is_file():
        return _from_file(path, path.stem)
    run_id, _ = split_run(run)
    if run == "latest":
        run_id = latest_run()
    elif is_registered(run):
        run_id = registered_version(run).run_id or ""
    if not is_run_id(run_id):
        raise UserError(
            f"no run at {run} (give an MLflow run id, runs:/RUN_ID, latest, a folder with {TABLE}, or a CSV file)"
        )
    return _from_run(find_run(run_id))


def _from_file(path: Path, name: str) -> RunTable:
    folder = path.resolve().parent
    checkpoint = (folder.parent if folder.name == Path(TABLE).parent.name else folder) / "checkpoints" / "best.ckpt"
    return RunTable(name, _read_table(path), _facts(path), checkpoint=checkpoint if checkpoint.is_file() else None)


def _from_run(run: Run) -> RunTable:
    run_id = run.info.run_id
    try:
        path = run_file(run_id, TABLE)
    except UserError as error:
        raise UserError(f"run {run_id} has no {TABLE}: `bustseg test --ckpt_path {run_id}` writes it") from error
    if not path.with_suffix(".json").is_file():  # a store on a server downloads each file separately
        try:
            facts_path = run_file(run_id, str(Path(TABLE).with_suffix(".json")))
        except UserError:
            facts_path = path
    else:
        facts_path = path
    tags, params = run.data.tags, run.data.params
    known = {
        "data_digest": tags.get("data_digest"),
        "split_digest": tags.get("split_digest"),
        "image_size": params.get("data.image_size"),
        "resize": params.get("data.resize"),
        "threshold": params.get("model.threshold"),
    }
    facts = _normal({key: value for key, value in known.items() if value is not None}) | _facts(facts_path)
    try:
        # a separate run for scores on other data names the run that was trained
        checkpoint = run_file(tags.get("checkpoint_of_run", run_id), "checkpoints/best.ckpt")
    except UserError:
        checkpoint = None
    experiment = None
    if local_run(run_id) is None:
        experiment = open_store(tracking_uri()).client().get_experiment(run.info.experiment_id).name
    return RunTable(run.info.run_name or run_id[:8], _read_table(path), facts, run_id, experiment, checkpoint)


def _experiment_tables(name: str, known: set[str | None]) -> list[RunTable]:
    store = open_store(tracking_uri())
    client = store.client()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = ", ".join(found.name for found in client.search_experiments())
        raise UserError(f"no experiment {name} in {store.shown}: there are {names or 'none'}")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    tables, untested = [], 0
    for run in runs:
        if COMPARED in run.data.tags or run.info.run_id in known:
            continue
        if any(file.path == TABLE for file in client.list_artifacts(run.info.run_id, str(Path(TABLE).parent))):
            tables.append(_from_run(run))
        else:
            untested += 1
    if untested:
        error_console.print(f"{untested} runs of {name} have no {TABLE} and are left out", highlight=False)
    return tables


def _read_table(path: Path) -> pd.DataFrame:
    check_table(path)
    try:
        frame = pd.read_csv(path, dtype={"image": str, "label": str, "group": str})
    except (OSError, ValueError) as error:  # pandas' own parser errors are ValueErrors
        raise UserError(f"cannot read {path} as CSV: {' '.join(str(error).split())}") from error
    missing = [name for name in ("image", "label", *COUNTS) if name not in frame]
    if missing:
        raise UserError(f"{path} is not a per-image table of a test: it lacks the columns {', '.join(missing)}")
    if frame.empty:
        raise UserError(f"{path} has no images")
    twice = frame["image"][frame["image"].duplicated()]
    if len(twice):
        raise UserError(f"{path} names {twice.iloc[0]!r} twice")
    unknown = sorted(set(frame["label"].fillna("")) - set(LABELS))
    if unknown:
        raise UserError(f"{path} has the class {unknown[0]!r}: the classes are {', '.join(LABELS)}")
    measured = {column for metric in table_metrics() for column in metric.columns} - set(COUNTS)
    for name in (*COUNTS, *(name for name in frame if name in measured)):
        if not pd.api.types.is_numeric_dtype(frame[name]) or (name in COUNTS and frame[name].isna().any()):
            raise UserError(f"{path} has entries in the column {name} that are not numbers")
    for name in COUNTS:
        pixels = frame[name]
        if not ((pixels >= 0) & (pixels < MOST_PIXELS) & (pixels % 1 == 0)).all():
            raise UserError(f"{path} has entries in the column {name} that are not pixel counts: test the run again")
    counts = (frame[name].to_numpy(np.int64, copy=True) for name in COUNTS)
    # computed from the counts, not read from the file: one definition of every score, and no rounding
    frame = frame.assign(**{name: score.numpy() for name, score in overlap_scores(*counts).items()})
    frame["lesion_px"] = frame["tp"] + frame["fn"]
    order = sorted(range(len(frame)), key=lambda row: natural_key(frame["image"].iloc[row]))
    return frame.iloc[order].reset_index(drop=True)


def _facts(table: Path) -> dict[str, str]:
    path = table.with_suffix(".json")
    if not path.is_file():
        return {}
    check_size(path, MAX_CONFIG_BYTES, "a table's facts")
    names = (*_FACTS, "split_digest")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _normal({name: content[name] for name in names if content.get(name) is not None})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} does not describe how the table was made: test the run again ({error})") from error


def _normal(facts: dict[str, Any]) -> dict[str, str]:
    """Facts as text in a normal form: 224, [224, 224] and "(224, 224)" are the same size."""
    facts = dict(facts)
    if "image_size" in facts:
        facts.setdefault("resize", "stretch")  # the only way before there was a choice
        numbers = re.findall(r"\d+", str(facts["image_size"]))
        facts["image_size"] = " x ".join(numbers * 2 if len(numbers) == 1 else numbers)
    if "threshold" in facts:
        facts["threshold"] = f"{float(facts['threshold']):g}"
    return {name: str(value) for name, value in facts.items()}


def read_groups(path: Path) -> dict[str, str]:
    """Group by image id, from a CSV with the columns ``image`` and ``group``, such as a grouped split.

    Raises:
        UserError: no such file or columns
    """
    check_table(path)
    try:
        frame = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as CSV: {' '.join(str(error).split())}") from error
    if not {"image", "group"} <= set(frame):
        raise UserError(f"{path} needs the columns image and group (`bustseg data split --scheme grouped` writes them)")
    known = frame.dropna(subset=["image", "group"])
    return values_by_name(known["image"], known["group"], path)


# --------------------------------------------------------------------------------------------------------- checking


def check_comparable(tables: Sequence[RunTable]) -> list[str]:
    """Check that all runs were tested on the same images in the same way.

    Returns:
        notes on differences that do not prevent a comparison

    Raises:
        UserError: the tests differ in images, classes, masks, data, image size or threshold
    """
    first = tables[0]
    for other in tables[1:]:
        pair = f"{other.name} cannot be compared with {first.name}"
        ours, theirs = set(first.frame["image"]), set(other.frame["image"])
        if ours != theirs:
            odd = sorted(ours ^ theirs, key=natural_key)
            raise UserError(
                f"{pair}: they were tested on different images ({len(theirs)} and {len(ours)}, {len(ours & theirs)} in "
                f"common; {odd[0]!r} is in only one of them): test both on the same data and split (`bustseg test "
                "--ckpt_path RUN --config FILE` tests a trained model on the data of a configuration)"
            )
        for name, what in _FACTS.items():
            if name in first.facts and name in other.facts and first.facts[name] != other.facts[name]:
                raise UserError(f"{pair}: their {what} differ ({other.facts[name]} and {first.facts[name]})")
        for column, what in (("label", "class"), ("lesion_px", "mask")):
            differs = (first.frame[column] != other.frame[column]).to_numpy()
            if differs.any():
                image = first.frame["image"].iloc[int(differs.argmax())]
                raise UserError(f"{pair}: {int(differs.sum())} images differ in their {what}, such as {image!r}")
    notes = []
    if len({table.facts["split_digest"] for table in tables if "split_digest" in table.facts}) > 1:
        notes.append(
            "The test images are the same, but the splits differ otherwise, so the training images may differ too."
        )
    for name, what in _FACTS.items():
        unknown = [table.name for table in tables if name not in table.facts]
        if unknown and len(unknown) < len(tables):
            notes.append(f"The {what} of {', '.join(unknown)} are not known and could not be checked.")
    return notes


def _groups(tables: Sequence[RunTable], groups: dict[str, str] | None) -> tuple[np.ndarray | None, str]:
    """Group of each image or None, and a sentence that describes the groups."""
    ids = tables[0].frame["image"]
    if groups is None:
        known = (
            table.frame["group"] for table in tables if "group" in table.frame and table.frame["group"].notna().any()
        )
        column = next(known, pd.Series(np.nan, ids.index))
        groups = dict(zip(ids[column.notna()], column.dropna().astype(str), strict=True))
    names = drawn_together(ids, groups)
    count = len(set(names))
    if count == len(names):
        known_text = "no two of them are known to be copies or from one patient" if groups else "no groups are known"
        return None, f"Images are resampled one by one within their class: {known_text}."
    return names, (
        f"The {len(names)} images form {count} groups (copies, or one patient); groups are resampled, within classes."
    )


# -------------------------------------------------------------------------------------------------------- computing


def parts(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """The parts of the images as bool (n,): all, each class, and each third of the lesions by area."""
    found = {"all": np.ones(len(frame), dtype=bool)}
    found |= {label: (frame["label"] == label).to_numpy() for label in LABELS}
    third, _ = size_thirds(frame["lesion_px"].to_numpy())
    found |= {f"{name} lesions": third == name for name in SIZES}
    return {name: own for name, own in found.items() if own.any()}


def _is_informative(part: str, own: np.ndarray, lesion: np.ndarray, measure: Measure) -> bool:
    """Whether a measure on a part adds information to the others."""
    if part == "all":
        return True
    if measure.convention == "":
        return bool(measure.terms[1][own].any())
    # where all images have a lesion, the three means over images are equal
    return bool(lesion[own].any()) and (measure.convention in ("lesion", "pooled") or not lesion[own].all())


def compare(
    tables: Sequence[RunTable],
    metrics: Sequence[str] | None = None,
    conventions: Sequence[str] = CONVENTIONS,
    groups: dict[str, str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare runs on their common test images; the first is the baseline.

    Intervals are 95 % BCa bootstrap intervals over groups of images within classes, differences are paired (run minus
    baseline, the same resamples), p values come from Wilcoxon's signed-rank test. ``p_holm`` is adjusted for all runs
    and measures on all images, and separately for all runs, measures and parts; measures with the same differences
    (Dice under ``paper`` and ``lesion``) count as one test.

    Args:
        tables: from :func:`load_runs`
        metrics: of :func:`bustseg.metrics.measures.known_metrics`; the usual ones when not given
        conventions: of :data:`bustseg.metrics.CONVENTIONS`
        groups: group by image id; the tables' own when not given

    Raises:
        UserError: the runs were not tested in the same way, or have none of the scores in common
    """
    notes = check_comparable(tables)
    names, sentence = _groups(tables, groups)
    notes.append(sentence)
    frame = tables[0].frame
    label = frame["label"].to_numpy()
    lesion = (frame["lesion_px"] > 0).to_numpy()
    scores = _common(tables, metrics, conventions)
    rows: list[dict[str, Any]] = []
    for part, own in parts(frame).items():
        chosen = [position for position, score in enumerate(scores[0]) if _is_informative(part, own, lesion, score)]
        if chosen:
            units = int(own.sum()) if names is None else names[own]
            boot = Bootstrap(units, strata=label[own], resamples=resamples, seed=seed)
            rows += _rows_of_part(part, own, tables, [[run[i] for i in chosen] for run in scores], boot, names)
    result = pd.DataFrame(rows)
    result["p_holm"] = _adjusted(result.pop("test"), result["p"] if "p" in result else pd.Series(np.nan, result.index))
    # equal values in all images say nothing about the spread: better no interval than one of width 0
    certain = result["low"] == result["high"]
    result.loc[certain, ["low", "high"]] = np.nan
    order = {measure.name: position for position, measure in enumerate(scores[0])}
    part_order = {part: position for position, part in enumerate(parts(frame))}
    result = result.assign(
        _part=result["part"].map(part_order), _measure=result["measure"].map(order), _run=range(len(result))
    )
    result = result.sort_values(["_part", "_measure", "_run"]).drop(columns=["_part", "_measure", "_run"])
    return Comparison(list(tables), result.dropna(subset=["estimate"]).reset_index(drop=True), notes)


def _rows_of_part(
    part: str,
    own: np.ndarray,
    tables: Sequence[RunTable],
    scores: Sequence[Sequence[Measure]],
    boot: Bootstrap,
    names: np.ndarray | None,
) -> list[dict[str, Any]]:
    """The rows of one part of the images: for each run and measure the estimate and the difference from the baseline.

    Args:
        part: name of the part
        own: which images (N,) belong to it
        tables: the runs
        scores: the measures of each run
        boot: draws the part's images
        names: group of each image (N,); None where each image is its own group

    Returns:
        columns of the comparison, and ``test``: family and identity of the row's test, None for a row without one
    """
    rows: list[dict[str, Any]] = []
    drawn = [boot.ratio(*(np.stack([one.terms[k][own] for one in run], axis=1) for k in (0, 1))) for run in scores]
    for number, (table, distribution) in enumerate(zip(tables, drawn, strict=True)):
        interval = distribution.interval()
        difference = (distribution - drawn[0]).interval() if number else None
        for place, measure in enumerate(scores[number]):
            # a pooled score counts every image, even one that contributes no pixels
            counted = own[own] if measure.scores is None else measure.terms[1][own] > 0
            row = {
                "part": part,
                "images": int(counted.sum()),
                "groups": len(np.unique(boot.unit[counted])),
                "measure": measure.name,
                "metric": measure.metric,
                "convention": measure.convention,
                "run": table.name,
                "run_id": table.run_id or "",
                "estimate": interval.estimate[place],
                "low": interval.low[place],
                "high": interval.high[place],
                "test": None,
            }
            if difference is not None:
                row |= {
                    "difference": difference.estimate[place],
                    "difference_low": difference.low[place],
                    "difference_high": difference.high[place],
                }
                baseline = scores[0][place].scores
                if measure.scores is not None and baseline is not None:
                    gap = (measure.scores - baseline)[own]
                    row["p"] = wilcoxon(gap, None if names is None else names[own])
                    moved = np.round(np.nan_to_num(gap), 12) + 0.0  # no -0
                    row["test"] = ("all" if part == "all" else "part", f"{part} {number} ".encode() + moved.tobytes())
            rows.append(row)
    return rows


def _adjusted(tests: pd.Series, p: pd.Series) -> list[float]:
    """Holm's adjusted p values of rows, for each family of tests; rows of the same test count once.

    Args:
        tests: family and identity of each row's test, None for a row without one
        p: of each row
    """
    families: dict[str, dict[bytes, float]] = {"all": {}, "part": {}}
    for test, value in zip(tests, p, strict=True):
        if test is not None:
            families[test[0]][test[1]] = value
    adjusted = {family: dict(zip(found, holm(list(found.values())), strict=True)) for family, found in families.items()}
    return [np.nan if test is None else adjusted[test[0]][test[1]] for test in tests]


def _common(
    tables: Sequence[RunTable], metrics: Sequence[str] | None, conventions: Sequence[str]
) -> list[list[Measure]]:
    """The measures that all runs have, in the same order."""
    scores = [
        [
            measure
            for measure in measures(table.frame, metrics)
            if not measure.convention or measure.convention in conventions
        ]
        for table in tables
    ]
    shared = set.intersection(*({measure.name for measure in found} for found in scores))
    if not shared:
        has = "; ".join(
            f"{table.name} has {', '.join(measure.name for measure in measures(table.frame)) or 'none'}"
            for table in tables
        )
        raise UserError(f"the runs have no score in common under the requested conventions ({has})")
    return [[measure for measure in found if measure.name in shared] for found in scores]
