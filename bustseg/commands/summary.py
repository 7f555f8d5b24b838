"""`bustseg summary`."""

from __future__ import annotations

from bustseg.command_line import ShownExperimentOptions


def summary(*, json: bool = False, options: ShownExperimentOptions) -> int:
    """Print parameters, GFLOPs and layers of a config's network; needs no training, weights or data.

    Example:
        bustseg summary --config configs/paper/model_01.yaml

    Args:
        json: print JSON
        options: of the experiment
    """
    from bustseg.experiment import Experiment
    from bustseg.training.summary import summary_command

    return summary_command(Experiment.parse(options), json)
