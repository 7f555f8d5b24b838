"""`bustseg validate`."""

from __future__ import annotations

from bustseg.command_line import ShownExperimentOptions


def validate(*, ckpt_path: str | None = None, options: ShownExperimentOptions) -> int:
    """Score a checkpoint on the validation images, and recommend a threshold and a smallest component.

    Example:
        bustseg validate --ckpt_path latest

    Args:
        ckpt_path: checkpoint file, run id, runs:/RUN_ID or latest; it needs no config
        options: of the experiment, which change what the checkpoint was trained with
    """
    from bustseg.experiment import scored_experiment
    from bustseg.training import run_validate

    run_validate(*scored_experiment("validate", ckpt_path, options))
    return 0
