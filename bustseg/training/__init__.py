"""Training: from an experiment to a run."""

from bustseg.training.run import Run, keep_freed_memory, prepare, run_fit, run_test, run_validate, try_ahead

__all__ = ["Run", "keep_freed_memory", "prepare", "run_fit", "run_test", "run_validate", "try_ahead"]
