"""`bustseg test`."""

from __future__ import annotations

from bustseg.command_line import ShownExperimentOptions


def test(*, ckpt_path: str | None = None, options: ShownExperimentOptions) -> int:  # noqa: PT028 (no pytest test)
    """Score a checkpoint on the test images: tables, curves, pictures.

    Example:
        bustseg test --ckpt_path latest

    Args:
        ckpt_path: checkpoint file, run id, runs:/RUN_ID, models:/NAME@ALIAS or latest; it needs no config
        options: of the experiment, which override those of the checkpoint
    """
    from bustseg.experiment import scored_experiment
    from bustseg.training import run_test

    run_test(*scored_experiment("test", ckpt_path, options))
    return 0
