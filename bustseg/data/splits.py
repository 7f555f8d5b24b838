"""Splits: which images train, which select the model, and which test it.

A split is a :class:`pandas.DataFrame` with the columns ``image`` (sample id), ``subset`` (``train``, ``val`` or
``test``) and ``label``, and optionally ``group`` (the images of a group are in one subset) and ``fold`` (a k-fold split
has every image once per fold, with its subset in that fold).
"""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bustseg.data.duplicates import duplicate_groups, join
from bustseg.data.sources import LABELS, Sample, natural_key, read_table
from bustseg.errors import DataError
from bustseg.whole import whole

SUBSETS = ("train", "val", "test")
SCHEMES = ("paper", "lesion", "grouped", "curated", "kfold", "left_out", "test_all")

# The paper's 624/78/78 on BUSI. Its degenerate models show that the test set has 62 lesions and 16 normals (recall
# 62/78 when everything is called a lesion); how the 62 divide into benign and malignant is unknown, so BUSI's
# proportions are used. Other data are divided in the same proportions.
_PAPER_COUNTS = {"benign": (437, 44, 42), "malignant": (210, 21, 20), "normal": (133, 13, 16)}
_SIZE_BINS = 3


def paper_split(samples: Sequence[Sample], seed: int = 0) -> pd.DataFrame:
    """Random split in the paper's proportions: 624/78/78 on BUSI, testing 42 benign, 20 malignant and 16 normal images.

    Near-duplicates are ignored, as in the paper: see :func:`grouped_split` for a split that does not leak.

    Raises:
        DataError: there are fewer than three samples
    """
    return _split(samples, _paper_targets(samples), seed)


def lesion_split(samples: Sequence[Sample], seed: int = 0) -> pd.DataFrame:
    """Random 8:1:1 split of the images that show a lesion (BUSI: 647), stratified by class; normals are left out.

    Raises:
        DataError: fewer than three samples show a lesion
    """
    lesions = [sample for sample in samples if sample.label != "normal"]
    return _split(lesions, {label: _shares(count, 0.1, 0.1) for label, count in _label_counts(lesions).items()}, seed)


def grouped_split(samples: Sequence[Sample], groups: Mapping[str, str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Split in the paper's proportions that keeps every group in one subset, stratified by class and lesion size.

    Args:
        groups: group name by sample id, such as :attr:`bustseg.data.audit.AuditReport.groups`; samples that share a
            ``Sample.group`` (a patient) are kept together as well. Samples without either stand alone.

    Raises:
        DataError: there are fewer than three samples
    """
    return _split(samples, _paper_targets(samples), seed, merge_groups(samples, groups), by_size=True)


def curated_split(samples: Sequence[Sample], list_csv: Path, seed: int = 0) -> pd.DataFrame:
    """Split the images of a published list in the paper's proportions; the others are left out.

    Args:
        list_csv: a file with the columns ``class;id`` (Curated BUSI: ``benign;20`` is ``benign (20)``) or ``image``,
            separated by commas or semicolons

    Raises:
        DataError: the list cannot be read or names an image that is not among the samples
    """
    kept = curated_samples(samples, list_csv)
    return _split(kept, _paper_targets(kept), seed)


def kfold(
    samples: Sequence[Sample],
    seed: int = 0,
    folds: int = 5,
    scheme: str = "grouped",
    groups: Mapping[str, str] | None = None,
    curated_list: Path | None = None,
) -> pd.DataFrame:
    """K-fold version of a scheme: one row per fold and image.

    In fold k the k-th part is for testing and a tenth of all images, drawn from the rest, for validation. Every fold is
    stratified by class (``grouped``: by lesion size too, with no group across subsets).

    Raises:
        DataError: fewer than two folds, more folds than samples, or a scheme that has no k-fold version
    """
    samples = _select(samples, scheme, curated_list)
    if not 2 <= folds <= len(samples):
        raise DataError(f"cannot make {folds} folds of {len(samples)} images: choose 2 to {len(samples)}")
    grouping = merge_groups(samples, groups) if scheme == "grouped" else {}
    layout = _Layout(samples, grouping, by_size=scheme == "grouped")
    totals = _label_counts(layout.samples)
    equal = {label: _portion(count, np.full(folds, 1 / folds)) for label, count in totals.items()}
    tested = layout.assign(equal, np.random.default_rng(seed))

    def validating(label: str, count: int) -> int:
        return min(max(round(0.1 * totals[label]), 1 if count > 1 else 0), count)

    frames = []
    for fold in range(folds):
        own = tested == fold
        frames.append(_tested(layout, own, ~own, validating, np.random.default_rng([seed, fold])).assign(fold=fold))
    return pd.concat(frames, ignore_index=True)


def left_out_values(samples: Sequence[Sample], by: str) -> list[str]:
    """Values of a column that :func:`left_out` leaves out in turn, in canonical order.

    Args:
        by: ``source`` (name of the data set), ``label``, or a column of the source's table

    Raises:
        DataError: no image has that column, or all have the same value
    """
    values = sorted({value for sample in samples if (value := _value(sample, by))}, key=natural_key)
    if len(values) < 2:
        known = sorted({"source", "label", *(column for sample in samples for column in sample.columns)})
        found = f"{by} is {values[0]!r} for all images" if values else f"no image has a column {by!r}"
        raise DataError(f"{found}, so it cannot be used to leave images out: the columns are {', '.join(known)}")
    return values


def left_out(
    samples: Sequence[Sample], by: str, seed: int = 0, groups: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """One fold for each value of a column: its images are for testing, the others for training and validation.

    A tenth of the others is for validation, stratified by class and lesion size. Other images of tested patients, and
    duplicates of tested images, are left out of the fold, so that nothing of a tested value is trained on. Images
    without a value are always for training.

    Args:
        by: see :func:`left_out_values`
        groups: group name by sample id, as in :func:`grouped_split`

    Returns:
        one row per fold and image, with the column ``left_out`` after ``fold``

    Raises:
        DataError: see :func:`left_out_values`; or too few images are left for validation
    """
    in_turn = left_out_values(samples, by)
    layout = _Layout(samples, merge_groups(samples, groups), by_size=True)
    values = [_value(sample, by) for sample in layout.samples]
    unit = [layout.groups.get(sample.id, sample.id) for sample in layout.samples]
    frames = []
    for fold, value in enumerate(in_turn):
        tested = np.array([own == value for own in values])
        held = {name for name, test in zip(unit, tested, strict=True) if test}
        rest = np.array([name not in held for name in unit])
        if rest.sum() < 2:
            raise DataError(
                f"without {by} {value!r} and its patients {rest.sum()} images are left: at least 2 are needed"
            )
        frame = _tested(layout, tested, rest, _tenth, np.random.default_rng([seed, fold]))
        frames.append(frame.assign(fold=fold, left_out=value))
    return pd.concat(frames, ignore_index=True)


def _tested(
    layout: _Layout,
    tested: np.ndarray,
    rest: np.ndarray,
    validating: Callable[[str, int], int],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """One fold: tested images, and the rest divided into validation and training; all others are left out.

    Args:
        layout: the images (N)
        tested, rest: which images these are, bool (N,)
        validating: number of validation images of a class, from its name and its number in the rest
        rng: source of the random choice
    """
    inner = layout.subset(np.flatnonzero(rest))
    targets = {}
    for label, count in _label_counts(inner.samples).items():
        val = validating(label, count)
        targets[label] = np.array([count - val, val])
    subset = np.full(len(tested), "", dtype=object)
    subset[tested] = "test"
    subset[rest] = np.array(SUBSETS, dtype=object)[inner.assign(targets, rng)]
    return layout.frame(subset)[subset != ""]


def _tenth(label: str, count: int) -> int:
    """A tenth of a class, but at least one image if it has three."""
    return int(_shares(count, 0.1, 0.0)[1])


def _value(sample: Sample, by: str) -> str:
    """A sample's value of a column; empty when it has none."""
    own = {"source": sample.source, "label": sample.label}
    return own[by] if by in own else sample.columns.get(by.lower(), "")


def make_split(
    samples: Sequence[Sample],
    scheme: str = "paper",
    seed: int = 0,
    *,
    fold: int | None = None,
    folds: int = 5,
    of: str = "grouped",
    groups: Mapping[str, str] | None = None,
    curated_list: Path | None = None,
    by: str = "source",
    all_folds: bool = False,
) -> pd.DataFrame:
    """Split by the name of a scheme or from a CSV file, one row per image.

    Args:
        scheme: one of :data:`SCHEMES`, or the path of a CSV file (see :func:`read_split`); ``test_all`` uses every
            image for testing, for a data set that the model was not trained on
        fold: the fold to use, for a file with folds, ``kfold`` and ``left_out`` (by default its first)
        folds: number of folds for ``kfold``
        of: scheme that ``kfold`` divides
        groups: group name by sample id for ``grouped`` and ``left_out``; None searches for near-duplicates among the
            images (a few seconds on BUSI)
        curated_list: list of the images that ``curated`` keeps
        by: column whose values ``left_out`` leaves out in turn
        all_folds: return every fold, one row per fold and image

    Raises:
        DataError: unknown scheme, a missing list, a fold out of range, or a file that does not fit the samples
    """
    seed = int(seed)
    if scheme.endswith(".csv"):
        split = read_split(Path(scheme), samples, fold=fold)
        if fold is None and "fold" in split and not all_folds:
            raise DataError(f"split {scheme} has {split['fold'].nunique()} folds: choose one with data.fold")
        return split
    if scheme not in SCHEMES:
        raise DataError(f"unknown split scheme {scheme!r}: use {', '.join(SCHEMES)} or a CSV file")
    if scheme == "test_all":
        return _Layout(samples, merge_groups(samples), by_size=False).frame(np.full(len(samples), "test", dtype=object))
    if groups is None and needs_groups(scheme, of):
        groups = duplicate_groups(samples)
    if scheme in ("kfold", "left_out"):
        fold = fold or 0
        number = folds if scheme == "kfold" else len(left_out_values(samples, by))
        if not 0 <= fold < number:
            raise DataError(f"there is no fold {fold}: choose 0 to {number - 1}")
        if scheme == "kfold":
            split = kfold(samples, seed, folds, of, groups, curated_list)
        else:
            split = left_out(samples, by, seed, groups)
        return split if all_folds else split[split["fold"] == fold].reset_index(drop=True)
    if scheme == "grouped":
        return grouped_split(samples, groups, seed)
    if scheme == "curated":
        return _split(kept := _select(samples, scheme, curated_list), _paper_targets(kept), seed)
    return paper_split(samples, seed) if scheme == "paper" else lesion_split(samples, seed)


def needs_groups(scheme: str, of: str = "grouped") -> bool:
    """Whether :func:`make_split` needs the duplicates for a scheme."""
    return scheme in ("grouped", "left_out") or (scheme == "kfold" and of == "grouped")


def read_split(csv: Path, samples: Sequence[Sample], fold: int | None = None) -> pd.DataFrame:
    """Read a split from a CSV file and match it to the samples; samples that the file does not name are left out.

    The file has the columns ``image`` (id, file name or path relative to the data folder) and ``subset``; with an
    additional column ``fold`` it has one row per fold and image. With ``fold`` instead of ``subset``, the images of
    fold k are tested in fold k, and those of the next fold are used for validation.

    Args:
        fold: fold to select; None keeps all

    Raises:
        DataError: missing file or columns, an unknown image, subset or fold, or an image named twice
    """
    if not csv.is_file():
        raise DataError(f"there is no split file {csv}: write one with `bustseg data split`")
    frame = read_table(csv, "split")
    if "image" not in frame or not {"subset", "fold"} & set(frame.columns):
        raise DataError(
            f"split {csv} has the columns {', '.join(frame.columns)}: it needs image and subset (or image and fold)"
        )
    if frame.empty:
        raise DataError(f"split {csv} has no rows")
    found = _match([str(name) for name in frame["image"]], samples, csv)
    result = pd.DataFrame({"image": [sample.id for sample in found]})
    folds = _read_folds(frame, csv) if "fold" in frame else None
    if "subset" in frame:
        result["subset"] = _read_subsets(frame, csv)
        if folds is not None:
            result["fold"] = folds
    repeated = result[result.duplicated([column for column in ("image", "fold") if column in result])]
    if not repeated.empty:
        raise DataError(f"split {csv} names {repeated['image'].iloc[0]!r} twice: keep one of the rows")
    result["label"] = [sample.label for sample in found]
    if any(frame.get("group", "")):
        result["group"] = frame["group"].to_numpy()
    if "subset" not in frame and folds is not None:
        result = _expand_folds(result, folds)
    if fold is not None and "fold" in result:
        available = sorted(result["fold"].unique())
        if fold not in available:
            raise DataError(f"split {csv} has no fold {fold}: choose one of {', '.join(map(str, available))}")
        result = result[result["fold"] == fold]
    return _ordered(result)


def write_split(split: pd.DataFrame, csv: Path) -> str:
    """Write a split as CSV in canonical order, whole or not at all; returns its digest.

    Raises:
        DataError: a device or pipe of that name, whose place a file would take
    """
    csv.parent.mkdir(parents=True, exist_ok=True)
    with whole(csv) as temporary:
        _ordered(split).to_csv(temporary, index=False, lineterminator="\n")
    return split_digest(split)


def split_digest(split: pd.DataFrame) -> str:
    """First 16 hex digits of the SHA-256 of (fold, image, subset) in canonical order: equal for equal splits."""
    folds = split["fold"] if "fold" in split else [""] * len(split)
    rows = sorted(zip(map(str, folds), split["image"], split["subset"], strict=True))
    text = "".join(f"{fold}\t{image}\t{subset}\n" for fold, image, subset in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Leakage:
    """How many of a split's validation and test images have a copy among its training images.

    Attributes:
        images: number of images by subset (over all folds)
        leaked: number of images of ``val`` and ``test`` that have a duplicate in ``train``
        share: ``leaked`` as a fraction of ``images``
        cases: one ``{"image", "subset", "train", "fold"}`` per leaked image; ``train`` lists its duplicates there
    """

    images: dict[str, int] = field(default_factory=dict)
    leaked: dict[str, int] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return asdict(self)


def leakage(split: pd.DataFrame, groups: Mapping[str, str]) -> Leakage:
    """Find the images of ``val`` and ``test`` that share a group with an image of ``train``.

    Args:
        groups: group name by sample id; images without one have no duplicate
    """
    result = Leakage(leaked={"val": 0, "test": 0})
    result.images = {subset: int((split["subset"] == subset).sum()) for subset in SUBSETS}
    for fold, part in split.groupby("fold") if "fold" in split else [(None, split)]:
        trained = defaultdict(list)
        for image in part.loc[part["subset"] == "train", "image"]:
            if image in groups:
                trained[groups[image]].append(image)
        for image, subset in zip(part["image"], part["subset"], strict=True):
            copies = trained.get(groups.get(image, ""), []) if subset != "train" else []
            if copies:
                result.leaked[subset] += 1
                result.cases.append(
                    {
                        "image": image,
                        "subset": subset,
                        "train": copies,
                        "fold": None if fold is None else int(str(fold)),
                    }
                )
    result.share = {name: count / max(result.images[name], 1) for name, count in result.leaked.items()}
    return result


def merge_groups(samples: Sequence[Sample], groups: Mapping[str, str] | None = None) -> dict[str, str]:
    """Join duplicate groups and patients: samples that share either, directly or through others, get one group name.

    Returns:
        group name (the first member's id) by sample id, for the samples that belong to a group
    """
    first: dict[tuple[str, str], str] = {}
    links = []
    for sample in samples:
        for kind, name in (("patient", sample.group), ("duplicate", (groups or {}).get(sample.id))):
            if name:
                links.append((first.setdefault((kind, name), sample.id), sample.id))
    return join(links)


def curated_samples(samples: Sequence[Sample], list_csv: Path) -> list[Sample]:
    """Samples that a list of the form ``class;id`` (or ``image``) names; errors as in :func:`curated_split`."""
    listed = read_table(list_csv, "curated list")
    if {"class", "id"} <= set(listed.columns):
        names = [f"{label} ({number})" for label, number in zip(listed["class"], listed["id"], strict=True)]
    elif "image" in listed:
        names = [str(name) for name in listed["image"]]
    else:
        raise DataError(f"the curated list {list_csv} needs the columns class and id, or image")
    return list({sample.id: sample for sample in _match(names, samples, list_csv)}.values())


class _Layout:
    """Samples in canonical order, the units that must stay together, and the strata to spread evenly."""

    def __init__(self, samples: Sequence[Sample], groups: Mapping[str, str], by_size: bool) -> None:
        self.samples = sorted(samples, key=lambda sample: natural_key(sample.id))
        self.groups = dict(groups)
        self.bins = _size_bins(self.samples) if by_size else np.zeros(len(self.samples), dtype=int)

    def subset(self, indices: np.ndarray) -> _Layout:
        part = _Layout([self.samples[index] for index in indices], self.groups, by_size=False)
        part.bins = self.bins[indices]
        return part

    def assign(self, targets: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Part (int) of every sample; parts get ``targets[label]`` samples of each class as closely as groups allow.

        Units are assigned one after another, the largest first so that they still fit, each to a random part in
        proportion to the places left in its strata. For units of one image this is exactly a stratified random split.
        """
        cells = [(sample.label, int(size)) for sample, size in zip(self.samples, self.bins, strict=True)]
        left = _cell_targets(cells, targets)
        units = defaultdict(list)
        for index, sample in enumerate(self.samples):
            units[self.groups.get(sample.id, f"\0{index}")].append(index)
        order = list(units.values())
        order = [order[index] for index in rng.permutation(len(order))]
        part = np.empty(len(self.samples), dtype=int)
        for unit in sorted(order, key=len, reverse=True):
            own = [cells[index] for index in unit]
            labels = {label: sum(1 for cell in own if cell[0] == label) for label, _ in own}
            room = {
                label: np.sum([places for (name, _), places in left.items() if name == label], axis=0)
                for label in labels
            }
            fits = np.all(np.array([room[label] >= count for label, count in labels.items()]), axis=0)
            weight = fits * np.sum([np.maximum(left[cell], 0) for cell in own], axis=0)
            if not weight.any():  # the size strata are full: decide by class only
                weight = fits * np.sum([np.maximum(room[label], 0) for label in labels], axis=0)
            if weight.any():
                choice = int(rng.choice(len(weight), p=weight / weight.sum()))
            else:
                choice = int(np.argmax(np.sum(list(room.values()), axis=0)))
            for index, cell in zip(unit, own, strict=True):
                part[index] = choice
                left[cell][choice] -= 1
        _fill_empty(part, order, np.sum(list(targets.values()), axis=0))
        return part

    def frame(self, subset: np.ndarray) -> pd.DataFrame:
        frame = pd.DataFrame({"image": [sample.id for sample in self.samples], "subset": subset})
        frame["label"] = [sample.label for sample in self.samples]
        if self.groups:
            frame["group"] = [self.groups.get(sample.id, sample.id) for sample in self.samples]
        return frame


def _split(
    samples: Sequence[Sample],
    targets: Mapping[str, np.ndarray],
    seed: int,
    groups: Mapping[str, str] | None = None,
    by_size: bool = False,
) -> pd.DataFrame:
    if len(samples) < len(SUBSETS):
        raise DataError(f"cannot split {len(samples)} images into train, val and test: at least 3 are needed")
    layout = _Layout(samples, groups or {}, by_size)
    parts = layout.assign(targets, np.random.default_rng(seed))
    return layout.frame(np.array(SUBSETS, dtype=object)[parts])


def _fill_empty(part: np.ndarray, units: list[list[int]], places: np.ndarray) -> None:
    """Give each part that should have samples but got none the smallest group of the largest part."""
    for empty in np.flatnonzero((places > 0) & ~np.isin(np.arange(len(places)), part)):
        fullest = int(np.argmax(np.bincount(part, minlength=len(places))))
        own = [unit for unit in units if part[unit[0]] == fullest]
        if len(own) > 1:
            part[min(own, key=len)] = empty


def _select(samples: Sequence[Sample], scheme: str, curated_list: Path | None) -> list[Sample]:
    if scheme == "lesion":
        return [sample for sample in samples if sample.label != "normal"]
    if scheme == "curated":
        if curated_list is None:
            raise DataError(
                "the scheme curated needs a list of the images to keep (columns class;id), "
                "such as Curated BUSI: https://doi.org/10.5281/zenodo.19047974"
            )
        return curated_samples(samples, curated_list)
    if scheme not in ("paper", "grouped"):
        raise DataError(f"there is no k-fold version of {scheme!r}: use paper, lesion, grouped or curated")
    return list(samples)


def _label_counts(samples: Sequence[Sample]) -> dict[str, int]:
    counts = {label: sum(sample.label == label for sample in samples) for label in LABELS}
    return {label: count for label, count in counts.items() if count}


def _paper_targets(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    targets = {}
    for label, count in _label_counts(samples).items():
        total, val, test = _PAPER_COUNTS.get(label, (10, 1, 1))
        targets[label] = _shares(count, val / total, test / total)
    return targets


def _shares(count: int, val: float, test: float) -> np.ndarray:
    """Places in train, val and test; a class of at least three images has one in each."""
    least = 1 if count >= len(SUBSETS) else 0
    held = [max(round(count * share), least) for share in (val, test)]
    return np.array([count - sum(held), *held])


def _portion(count: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to ``shares`` that sum to ``count`` (largest remainders)."""
    exact = count * shares / shares.sum()
    whole = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: count - whole.sum()]] += 1
    return whole


def _cell_targets(cells: list[tuple[str, int]], targets: Mapping[str, np.ndarray]) -> dict[tuple[str, int], np.ndarray]:
    """Divide each class's places among its size strata; rows sum to a stratum's size, columns to the class's places."""
    result = {}
    for label, places in targets.items():
        sizes = sorted({cell for cell in cells if cell[0] == label})
        rest = places.copy()
        unplaced = int(rest.sum())
        for cell in sizes:
            count = cells.count(cell)
            # the rest of the class is divided among its remaining strata, so that the sums come out right
            row = _portion(count, rest) if unplaced > count else rest.copy()
            result[cell] = row
            rest = rest - row
            unplaced -= count
    return result


def _size_bins(samples: Sequence[Sample]) -> np.ndarray:
    """Tertile (0, 1, 2) of each sample's lesion area as a share of its image, within its class; 0 for normals."""
    with ThreadPoolExecutor(2) as pool:
        shares = pool.map(lambda sample: _lesion_share(sample) if sample.label != "normal" else 0.0, samples)
        area = np.array(list(shares))
    bins = np.zeros(len(samples), dtype=int)
    for label in {sample.label for sample in samples}:
        own = np.flatnonzero([sample.label == label for sample in samples])
        if area[own].any():
            edges = np.quantile(area[own], np.arange(1, _SIZE_BINS) / _SIZE_BINS)
            bins[own] = np.searchsorted(edges, area[own])
    return bins


def _lesion_share(sample: Sample) -> float:
    return float(sample.read_mask().mean())


def _match(names: Sequence[str], samples: Sequence[Sample], csv: Path) -> list[Sample]:
    """Samples by id, file name or the end of their path."""
    known: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        parts = sample.image.parts
        paths = {"/".join(parts[-depth:]) for depth in range(1, min(len(parts), 3) + 1)}
        # the name of a private file must not appear in the suggestions below
        for key in {sample.id} if sample.private else {sample.id, sample.image.stem, *paths}:
            known[key].append(sample)
    by_id = {sample.id: sample for sample in samples}
    found = []
    for name in names:
        key = name.strip().replace("\\", "/").removeprefix("./")
        matches = [by_id[key]] if key in by_id else known.get(key, [])
        if len(matches) > 1:
            raise DataError(
                f"{csv} names {name!r}, which matches {len(matches)} images: give the path relative to the data folder"
            )
        if not matches:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"did you mean {', '.join(map(repr, close))}?" if close else "is it the split of another data set?"
            raise DataError(f"{csv} names {name!r}, which is not among the {len(samples)} images: {hint}")
        found.append(matches[0])
    return found


def _read_subsets(frame: pd.DataFrame, csv: Path) -> list[str]:
    subsets = [str(value).strip().lower() for value in frame["subset"]]
    for value in subsets:
        if value not in SUBSETS:
            close = difflib.get_close_matches(value, SUBSETS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use {', '.join(SUBSETS)}"
            raise DataError(f"split {csv} has the subset {value!r}: {hint}")
    return subsets


def _read_folds(frame: pd.DataFrame, csv: Path) -> list[int]:
    try:
        return [int(value) for value in frame["fold"]]
    except ValueError as error:
        raise DataError(f"split {csv} has a fold that is not a whole number: {error}") from error


def _expand_folds(images: pd.DataFrame, tested: list[int]) -> pd.DataFrame:
    folds = sorted(set(tested))
    if len(folds) < 3:
        raise DataError(
            f"a split by fold alone needs at least 3 folds (train, val, test), not {len(folds)}: add a column subset"
        )
    frames = []
    for position, fold in enumerate(folds):
        names = {fold: "test", folds[(position + 1) % len(folds)]: "val"}
        frames.append(images.assign(subset=[names.get(own, "train") for own in tested], fold=fold))
    return pd.concat(frames, ignore_index=True)


def _ordered(split: pd.DataFrame) -> pd.DataFrame:
    columns = [name for name in ("image", "subset", "fold", "label", "group") if name in split]
    columns += [name for name in split.columns if name not in columns]
    folds = split["fold"].tolist() if "fold" in split else [0] * len(split)
    order = sorted(range(len(split)), key=lambda row: (folds[row], natural_key(split["image"].iloc[row])))
    return split[columns].iloc[order].reset_index(drop=True)
