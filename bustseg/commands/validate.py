"""`bustseg validate`."""

from __future__ import annotations

from typing import Literal

from bustseg.command_line import ShownExperimentOptions


def validate(
    *,
    ckpt_path: str | None = None,
    most: Literal["dice", "detection"] = "dice",
    max_false_positives: float | None = None,
    options: ShownExperimentOptions,
) -> int:
    """Score a checkpoint on the validation images, and recommend a threshold and a smallest component.

    Example:
        bustseg validate --ckpt_path latest --max_false_positives 0.1

    Args:
        ckpt_path: checkpoint file, run id, runs:/RUN_ID, models:/NAME@ALIAS or latest; it needs no config
        most: with --max_false_positives: maximise Dice on lesions, or the share of lesions found
        max_false_positives: largest share of normal images that may be marked, such as 0.1; recommends a threshold and
            a smallest peak probability of components
        options: of the experiment, which override those of the checkpoint
    """
    from bustseg.callbacks import OperatingPointSearch
    from bustseg.experiment import scored_experiment
    from bustseg.training import run_validate

    search = OperatingPointSearch(most, max_false_positives)
    run_validate(*scored_experiment("validate", ckpt_path, options), callbacks=[search])
    return 0
