"""New MLflow stores by copying an empty one: MLflow makes each by running the whole history of its schema, in seconds.

Commands in processes of their own are left as they are, so that what a user's first command does is tested too.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any


def copy_new_stores(template: Path) -> None:
    """From now on, a new sqlite store in this process is a copy.

    Args:
        template: where the empty store is kept; made when the first store is
    """
    utils: Any = sys.modules.get("mlflow.store.db.utils")
    if utils is None or hasattr(utils._initialize_tables, "copies"):
        return  # where nothing has imported MLflow, no store is made, and its import would take seconds
    initialize = utils._initialize_tables

    def copy_or_initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or engine.url.database in (None, "", ":memory:"):
            initialize(engine)
            return
        pooled = engine.raw_connection()
        try:
            own: sqlite3.Connection = pooled.driver_connection
            if own.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                initialize(engine)  # a database of something else, or of an older MLflow
            elif template.exists():
                with sqlite3.connect(template) as empty:
                    empty.backup(own)
            else:
                initialize(engine)
                with sqlite3.connect(template) as empty:
                    own.backup(empty)
        finally:
            pooled.close()

    copy_or_initialize.copies = True  # type: ignore[attr-defined]
    utils._initialize_tables = copy_or_initialize
