"""`bustseg register`."""

from __future__ import annotations

from typing import Annotated

from bustseg.command_line import Option


def register(
    run: Annotated[str, Option(metavar="RUN")],
    *,
    alias: str | None = None,
    name: str = "bustseg",
) -> int:
    """Register a run's model in MLflow's Model Registry, so that every command accepts it as models:/NAME@ALIAS.

    Example:
        bustseg register latest --alias champion

    Args:
        run: MLflow run id, runs:/RUN_ID or latest
        alias: a name that points to this version from now on, such as champion
        name: name of the registered model
    """
    from bustseg.progress import console
    from bustseg.runs.registry import register as register_model

    version = register_model(run, name, alias)
    address = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version.version}"
    pointing = f", alias {alias}" if alias else ""
    console.print(f"run {version.run_id} is models:/{name}/{version.version}{pointing}", highlight=False)
    console.print(f"next: bustseg predict scans/ --model {address} --out predictions", highlight=False)
    return 0
