"""`bustseg sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import ExperimentOptions, Option


def sweep(
    *,
    config: Annotated[Path | None, Option(metavar="FILE")] = None,
    workers: int = 1,
    resume: bool = False,
    study: Annotated[str | None, Option(metavar="NAME")] = None,
    storage: Annotated[str | None, Option(metavar="URL")] = None,
    ckpt_path: Annotated[str | None, Option(hidden=True)] = None,
    worker_of: Annotated[int | None, Option(hidden=True)] = None,
    options: ExperimentOptions,
) -> int:
    """Search hyper-parameters: a fit per point, by grid or any Optuna sampler; also accepts every option of fit.

    Example:
        bustseg sweep --config configs/sweeps/paper_grid.yaml --workers 2

    Args:
        config: the sweep's file: fit config, space, sampler, objective
        workers: processes on this machine, one GPU each
        resume: continue a study, or join it: finished trials are not repeated
        study: name of the study (default: that in the file, or the file's name)
        storage: Optuna storage (default: OPTUNA_STORAGE or sqlite:///mlruns/optuna.db)
        ckpt_path: not accepted
        worker_of: id of the process that started this one
        options: every option of fit, for all trials: --data.root DIR, --trainer.max_epochs 20
    """
    from bustseg.errors import SweepError
    from bustseg.sweep.command import sweep_command

    if ckpt_path is not None:
        raise SweepError("every trial trains from the start, so a sweep takes no --ckpt_path")
    if config is None:
        raise SweepError("no sweep is given: name its file (--config configs/sweeps/paper_grid.yaml)")
    return sweep_command(config, options, workers, resume, study, storage, worker_of)
