"""Find checkpoints by the names that users give."""

from __future__ import annotations

from pathlib import Path

from bustseg.errors import UserError
from bustseg.runs.lookup import is_run_id, latest_run, run_file, split_run
from bustseg.runs.registry import is_registered, registered_file


def resolve_checkpoint(model: str, prefer: str = "best") -> Path:
    """Path of a checkpoint named by file, MLflow run id, ``runs:/RUN_ID[/path]``, ``latest``, or a registered model.

    A registered model is ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, see :mod:`bustseg.runs.registry`;
    ``latest`` is the store's newest run that was trained and did not fail.

    Args:
        model: the name
        prefer: ``best`` or ``last``, the file to use when only a run is named

    Raises:
        UserError: there is no such checkpoint
    """
    if Path(model).is_dir():
        raise UserError(
            f"{model} is a folder, not a checkpoint: give a checkpoint or a run (only predict, explain, bench, serve, "
            "live and node can use an exported model)"
        )
    if Path(model).is_file():
        return Path(model)
    if is_registered(model):
        return registered_file(model)
    if model == "latest":
        model = f"runs:/{latest_run()}"
    run_id, inner = split_run(model)
    if not model.startswith("runs:/") and not is_run_id(model):
        raise UserError(
            f"no checkpoint at {model} (give a file, an MLflow run id, runs:/RUN_ID, models:/NAME@ALIAS or latest)"
        )
    return run_file(run_id, inner or f"checkpoints/{prefer}.ckpt")
