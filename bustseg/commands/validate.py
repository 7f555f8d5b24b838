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
        most: with --max_false_positives, whether Dice on lesions or the share of lesions found is to be highest
        max_false_positives: share of the normal images that may be marked, such as 0.1; recommends a threshold and
            the probability that a component's surest pixel needs
        options: of the experiment, which change what the checkpoint was trained with
    """
    from bustseg.callbacks import OperatingPointSearch
    from bustseg.experiment import scored_experiment
    from bustseg.training import run_validate

    search = OperatingPointSearch(most, max_false_positives)
    run_validate(*scored_experiment("validate", ckpt_path, options), callbacks=[search])
    return 0
