"""Copy a local MLflow store into the server's empty database, keeping every id (see docs/how-to/run-on-a-server.md).

    python move_store.py sqlite:////from/mlflow.db postgresql+psycopg://postgres:5432/mlflow

The server must have started once, so that its tables are there, and must have the MLflow version of the local store.
The files are copied apart from this; here only the addresses change, from the local folder to the server's.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import sqlalchemy as sa

ADDRESSES = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}
"""Columns that say where artifacts lie."""


def move(source: str, target: str, artifacts: str = "mlflow-artifacts:") -> dict[str, int]:
    """Copy all rows; returns their number by table.

    Args:
        source: SQLAlchemy address of the store to copy
        target: SQLAlchemy address of the database to fill
        artifacts: what replaces the local folder in the addresses of artifacts

    Raises:
        SystemExit: the databases differ in version, or the target has runs
    """
    old, new = sa.create_engine(source), sa.create_engine(target)
    tables = sa.MetaData()
    tables.reflect(new)
    with old.connect() as reading, new.begin() as writing:
        version = sa.text("SELECT version_num FROM alembic_version")
        if (found := reading.execute(version).scalar()) != (wanted := writing.execute(version).scalar()):
            sys.exit(f"the stores differ in version ({found}, {wanted}): run `mlflow db upgrade` on the older one")
        if writing.execute(sa.select(sa.func.count()).select_from(tables.tables["runs"])).scalar():
            sys.exit("the target has runs already: only an empty one can be filled")
        folder = reading.execute(
            sa.text("SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%/artifacts'")
        ).scalar()
        filled = [table for table in tables.sorted_tables if table.name != "alembic_version"]
        copied = {}
        for table in filled:
            # what a new store has already, such as its first experiment
            there = {tuple(key) for key in writing.execute(sa.select(*table.primary_key.columns))}
            # by the target's types: sqlite keeps booleans and JSON as it likes
            rows = [dict(row) for row in reading.execute(sa.select(table)).mappings()]
            rows = [row for row in rows if tuple(row[column.name] for column in table.primary_key.columns) not in there]
            for row in rows:
                _readdress(row, ADDRESSES.get(table.name, []), folder, artifacts)
            if rows:
                writing.execute(table.insert(), rows)
                copied[table.name] = len(rows)
            _count_on(writing, table)
    return copied


def _readdress(row: dict[str, Any], columns: list[str], folder: str | None, artifacts: str) -> None:
    for column in columns:
        address = row[column]
        if folder and address and (address == folder or address.startswith(folder + "/")):
            row[column] = artifacts + (address.removeprefix(folder) or "/")


def _count_on(writing: sa.Connection, table: sa.Table) -> None:
    """Let a column that numbers its rows go on after those that were copied."""
    if writing.dialect.name != "postgresql":
        return
    for column in table.primary_key.columns:
        if not isinstance(column.type, sa.Integer):
            continue
        last = writing.execute(sa.select(sa.func.max(column))).scalar()
        sequence = writing.execute(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name))).scalar()
        if sequence is not None and last:
            writing.execute(sa.select(sa.func.setval(sequence, last)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("target")
    for name, rows in move(**vars(parser.parse_args())).items():
        print(f"{name}: {rows}")
