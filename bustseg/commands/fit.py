"""`bustseg fit`."""

from __future__ import annotations

from bustseg.command_line import ShownExperimentOptions


def fit(*, ckpt_path: str | None = None, options: ShownExperimentOptions) -> int:
    """Train a network from a config.

    Example:
        bustseg fit --config configs/paper/model_01.yaml --data.batch_size 8

    Args:
        ckpt_path: checkpoint file, run id, runs:/RUN_ID, models:/NAME@ALIAS or latest: an interrupted run to continue
        options: of the experiment
    """
    from bustseg.experiment import Experiment
    from bustseg.runs.resolve import resolve_checkpoint
    from bustseg.training import run_fit

    if ckpt_path is None:
        experiment = Experiment.parse(options)
        ckpt_path = experiment.ckpt_path
        run_fit(experiment, None if ckpt_path is None else resolve_checkpoint(ckpt_path, prefer="last"))
        return 0
    # the checkpoint's configuration comes first, so that it is sufficient alone and any other option overrides it
    checkpoint = resolve_checkpoint(ckpt_path, prefer="last")
    run_fit(Experiment.of_checkpoint(checkpoint, options=options), checkpoint)
    return 0
