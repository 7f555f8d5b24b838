"""`bustseg reproduce`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from bustseg.command_line import ExperimentOptions, Option
from bustseg.errors import UserError

REFUSED = {
    "config": "the table names the configs",
    "ckpt_path": "use --resume to continue",
    "seed_everything": "use --seeds",
    "run_name": "each row has its own name",
}
"""Options of fit that this command does not accept, and why."""


def integers(text: str) -> list[int]:
    """``1,7`` as numbers."""
    return [int(item) for item in text.split(",") if item]


def reproduce(
    *,
    table: str = "1",
    family: str = "paper",
    only: Annotated[list[list[int]] | None, Option(convert=integers, metavar="ROW")] = None,
    seeds: Annotated[list[list[int]] | None, Option(convert=integers, metavar="SEED")] = None,
    max_epochs: int | None = None,
    devices: str | None = None,
    encoder_weights: Literal["imagenet", "none"] | None = None,
    resume: bool = False,
    plan: bool = False,
    out: Annotated[Path | None, Option(metavar="DIR")] = None,
    uri: Annotated[str | None, Option(names=("--tracking.uri",), hidden=True)] = None,
    config: Annotated[str | None, Option(names=("--config", "-c"), hidden=True)] = None,
    ckpt_path: Annotated[str | None, Option(hidden=True)] = None,
    seed_everything: Annotated[str | None, Option(hidden=True)] = None,
    run_name: Annotated[str | None, Option(names=("--tracking.run_name",), hidden=True)] = None,
    options: ExperimentOptions,
) -> int:
    """Fit and test the rows of the paper's tables, and compare with its numbers; also accepts every option of fit.

    Example:
        bustseg reproduce --table 1 --family offline --only 1 7 --resume

    Args:
        table: 1, 5, or a file like configs/tables/table1.yaml
        family: paper, or offline: the rows with encoders whose weights install with pip
        only: rows to run, in this order (1 7 3)
        seeds: one run per row and seed (default 0)
        max_epochs: most epochs (default: as in the configs, 50)
        devices: as trainer.devices
        encoder_weights: pretrained weights of all networks (default: as in the configs)
        resume: skip finished rows and continue the interrupted one
        plan: print what would run and how long it may take, and stop
        out: folder for TABLE.md, TABLE.csv and TABLE.png
        uri: MLflow store
        config, ckpt_path, seed_everything, run_name: not accepted
        options: every other option of fit, for all rows: --data.root DIR, --trainer.accelerator cpu
    """
    from bustseg.paper.reproduce import Settings
    from bustseg.paper.reproduce import reproduce as reproduce_table

    refused = {"config": config, "ckpt_path": ckpt_path, "seed_everything": seed_everything, "run_name": run_name}
    for name, value in refused.items():
        if value is not None:
            option = "tracking.run_name" if name == "run_name" else name
            raise UserError(f"reproduce takes no --{option}: {REFUSED[name]}")
    if uri is not None:  # everything that reads runs uses this variable
        os.environ["MLFLOW_TRACKING_URI"] = uri
    rows, runs = (None if given is None else [one for part in given for one in part] for given in (only, seeds))
    settings = Settings(table, family, rows, runs or [0], max_epochs, devices, encoder_weights, resume, plan, out)
    return reproduce_table(settings, options)
