"""`bustseg cv`."""

from __future__ import annotations

from typing import Annotated

from bustseg.command_line import ExperimentOptions, Option


def cv(
    *,
    folds: int | None = None,
    by: Annotated[str | None, Option(metavar="COLUMN")] = None,
    resume: bool = False,
    ckpt_path: Annotated[str | None, Option(hidden=True)] = None,
    options: ExperimentOptions,
) -> int:
    """Cross-validate: fit and test over folds, with mean and standard deviation; also accepts every option of fit.

    Example:
        bustseg cv --config configs/baselines/unet_lite0.yaml --data.split kfold --folds 5
        bustseg cv --config configs/flagship/three_sources.yaml --by source

    Args:
        folds: number of folds (default: data.folds, 5)
        by: leave out the values of this column in turn: source, or a column of the source's table, such as device; each
            is tested by a model that has seen none of its images
        resume: skip finished folds and continue the interrupted one
        ckpt_path: not accepted
        options: --config FILE, --data.split SPLIT (kfold, a CSV file with folds, grouped, lesion or curated), and
            every other option of fit
    """
    from bustseg.errors import UserError
    from bustseg.experiment import Experiment
    from bustseg.training.cross_validation import cross_validate

    if ckpt_path is not None:
        raise UserError("cv trains a model for each fold, so it takes no --ckpt_path; use --resume to continue")
    return cross_validate(Experiment.parse(options), folds, resume, by)
