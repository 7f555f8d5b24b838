"""The paper's tables as data: each row's config, the paper's numbers, and its conclusions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bustseg.bounds import read_yaml
from bustseg.errors import UserError
from bustseg.presets import folders

TABLES = "tables"
"""Folder of the tables among the configs."""


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Attributes:
        row: its number
        name: short description
        config: a fit's configuration
        paper: the paper's ``precision``, ``recall``, ``f1``, ``iou`` and ``dice``
        parameters: the paper's number of parameters, as printed
        trainable: the paper's number of trained parameters
        auc: the paper's pixel AUC by subset, where stated
    """

    row: int
    name: str
    config: Path
    paper: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    trainable: int | None = None
    auc: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper that compares rows.

    Attributes:
        claim: the sentence
        pairs: row numbers; the claim is that the first of a pair has the higher Dice
    """

    claim: str
    pairs: list[tuple[int, int]]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        name: name of its file, without suffix
        title: heading
        legend: meaning of abbreviations in the rows' names
        rows: in the paper's order
        claims: the paper's conclusions from it
    """

    name: str
    title: str
    legend: str
    rows: list[Row]
    claims: list[Claim]

    def row(self, number: int) -> Row:
        """The row with this number."""
        return next(row for row in self.rows if row.row == number)


def find_table(table: str, family: str = "paper") -> Path:
    """File of a table: ``1`` or ``5`` in ``configs/tables`` of the working folder, the checkout or the package.

    Args:
        table: number, or the path of a file
        family: ``paper``, or the suffix of another file with the same rows, such as ``offline``

    Raises:
        UserError: there is no such table
    """
    if table.endswith((".yaml", ".yml")):
        if not Path(table).is_file():
            raise UserError(f"no table at {table}")
        return Path(table)
    places = [folder for base in folders() if (folder := base / TABLES).is_dir()]
    if not places:
        raise UserError(
            f"no folder configs/{TABLES} here: run it in a checkout of bustseg, or name a file with --table"
        )
    name = f"table{table}" if family == "paper" else f"table{table}_{family}"
    for folder in places:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = ", ".join(sorted(path.stem.removeprefix("table") for folder in places for path in folder.glob("*.yaml")))
    of = f" of the family {family}" if family != "paper" else ""
    raise UserError(f"no table {table}{of}: there are {known} (the part after _ is the family)")


def read_table(path: Path) -> PaperTable:
    """Read a table's file.

    Keys: ``title``; ``legend``; ``rows``, each with ``row``, ``name``, ``config`` (relative to the file; else the
    pattern ``configs`` with ``{row}``), ``paper``, ``parameters``, ``trainable``, ``auc``; ``claims``, each with
    ``claim`` and ``pairs``; ``like``, another table that provides the keys that this file lacks.

    Raises:
        UserError: it is missing or malformed
    """
    content = _content(path)
    try:
        rows = [
            Row(
                **{
                    **entry,
                    "config": path.parent / (entry.get("config") or content["configs"].format(row=entry["row"])),
                }
            )
            for entry in content["rows"]
        ]
        claims = [Claim(entry["claim"], [(a, b) for a, b in entry["pairs"]]) for entry in content.get("claims") or []]
        table = PaperTable(path.stem, content["title"], " ".join(content.get("legend", "").split()), rows, claims)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a table ({type(error).__name__}: {error}): see configs/tables/table1.yaml"
        ) from error
    numbers = [row.row for row in table.rows]
    unknown = {number for claim in claims for pair in claim.pairs for number in pair} - set(numbers)
    if unknown or len(set(numbers)) < len(numbers):
        raise UserError(
            f"{path} names a row twice" if not unknown else f"{path} has claims about rows that it lacks: {unknown}"
        )
    return table


def _content(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in above:
        raise UserError(f"{path} refers to itself with `like`: name another table, or none")
    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file")
    _, content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a table: see configs/tables/table1.yaml")
    if "like" not in content:
        return content
    return {**_content(path.parent / str(content["like"]), (*above, path.resolve())), **content}
