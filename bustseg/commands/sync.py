"""`bustseg sync`."""

from __future__ import annotations


def sync(*, uri: str | None = None) -> int:
    """Send what a tracking server missed while it was unreachable, each entry once; every command does so first.

    Example:
        bustseg sync

    Args:
        uri: MLflow store (default: MLFLOW_TRACKING_URI or sqlite:///mlruns/mlflow.db)
    """
    from bustseg.runs.sync import sync_command

    return sync_command(uri)
