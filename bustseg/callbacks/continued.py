"""A fit that goes on with other options than it began with: they take effect, or they are refused by name.

Lightning restores optimiser, schedule and callbacks as they were, settings included, so that an option given beside
``--ckpt_path`` would be recorded and then overwritten. What is restored is brought into line with the options first.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bustseg.errors import UserError
from bustseg.progress import console
from bustseg.redact import redact_nested
from bustseg.runs.checkpoint import pretrained_parts
from bustseg.runs.tracker import run_of
from bustseg.task import RECORD, SegmentationTask

_OF_THE_MACHINE = ("data.root", "data.num_workers")
"""Options that another machine may need, whatever is left to train."""

_ADDED = ("trainer.callbacks",)
"""Where the user's own callbacks have their options."""

_SCHEDULED = {"lr", "betas", "momentum"}
"""Options of an optimiser that schedules start from."""

_PLATEAU_PROGRESS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
"""What a ReduceLROnPlateau has seen, as against its settings."""


def changed_options(before: Any, now: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys whose values differ between two configurations, and the new values.

    A key that only one of them has is no change: versions of bustseg and its libraries add and drop options. A part of
    another class is a change of its ``class_path`` alone.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if before.get("class_path") != now.get("class_path"):
            return {f"{prefix}.class_path": now.get("class_path")}
        pairs = [(f"{prefix}.{key}".lstrip("."), before[key], now[key]) for key in now if key in before]
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        pairs = [(f"{prefix}.{place}", *pair) for place, pair in enumerate(zip(before, now, strict=True))]
    else:
        return {} if before == now else {prefix: now}
    return {key: value for pair in pairs for key, value in changed_options(pair[1], pair[2], pair[0]).items()}


class ContinuedFit(Callback):
    """Lets the options of a continued fit take effect, and ends at once a fit that had come to its end.

    * **Optimiser.** Changed settings take the place of restored ones. With a schedule, the learning rate is the one
      that the schedule would have reached by now had it run with the new settings from the start
      (``ReduceLROnPlateau``: the new learning rate itself). Moments are kept where the new optimiser needs the same.
    * **Callbacks.** Changed settings, such as early stopping's patience, take the place of restored ones.
    * **Run.** Its name and tags are the new ones.

    Args:
        checkpoint: content of the checkpoint that the fit goes on from
        config: the configuration that it goes on with
        task: made of that configuration
        same_run: whether it goes on in the checkpoint's own run

    Attributes:
        record: what the checkpoint says of its origin
        changed: dotted keys and new values of the options that are not the checkpoint's

    Raises:
        UserError: an option that a continued fit cannot change
    """

    def __init__(
        self, checkpoint: Mapping[str, Any], config: Mapping[str, Any], task: SegmentationTask, same_run: bool
    ) -> None:
        stored = checkpoint[RECORD]["config"]
        shared = stored.keys() & config.keys() - {"config", "ckpt_path", "weights_only"}
        # checkpoints of earlier versions hold credentials, later ones do not: neither is a change
        self.changed = changed_options(*(redact_nested({key: one[key] for key in shared}) for one in (stored, config)))
        self.record: Mapping[str, Any] = checkpoint[RECORD]
        self.same_run = same_run
        self._epochs, self._steps = int(checkpoint["epoch"]) + 1, int(checkpoint["global_step"])
        self._states = checkpoint.get("callbacks", {})
        self._end: tuple[str, str] | None = None
        _refuse_weights(stored, config)
        _refuse_network(self.changed, checkpoint, task)
        if same_run and "tracking.experiment" in self.changed:
            raise UserError(
                "tracking.experiment cannot be changed when a fit goes on, since a run stays in its experiment: "
                "leave it out"
            )
        epochs = config["trainer"]["max_epochs"]
        if epochs is not None and -1 < epochs < self._epochs:
            raise UserError(
                f"the fit has {self._epochs} epochs already, and --trainer.max_epochs is {epochs}: "
                f"give {self._epochs + 1} or more to go on"
            )

    def _of(self, *prefixes: str) -> dict[str, Any]:
        """Changed options by their name: the last part of their key that is no place in a list."""
        return {
            next(part for part in reversed(key.split(".")) if not part.isdecimal()): value
            for key, value in self.changed.items()
            if key.startswith(prefixes)
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring what will be restored into line with the options; the file stays as it is."""
        if isinstance(pl_module, SegmentationTask):
            self._adapt_optimizer(pl_module, checkpoint)
        states = checkpoint.get("callbacks", {})
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            sections = ("early_stopping.", *_ADDED) if isinstance(callback, EarlyStopping) else _ADDED
            state = states.get(callback.state_key)
            if isinstance(state, dict):
                names = {name for name in self._of(*sections).keys() & state.keys() if hasattr(callback, name)}
                states[callback.state_key] = {**state, **{name: getattr(callback, name) for name in names}}

    def _adapt_optimizer(self, task: SegmentationTask, checkpoint: dict[str, Any]) -> None:
        options, schedule = self._of("model.optimizer."), self._of("model.lr_scheduler")
        if not (options or schedule):
            return
        saved = checkpoint["optimizer_states"][0]
        fresh, scheduler = _made(task)
        anew = "class_path" in options
        rescheduled = bool(anew or schedule or (checkpoint["lr_schedulers"] and _SCHEDULED & options.keys()))
        if scheduler is not None and rescheduled:
            before = (checkpoint["lr_schedulers"] or [None])[0]
            same = "class_path" not in schedule and "lr_scheduler_interval" not in schedule
            if isinstance(scheduler, ReduceLROnPlateau):
                _go_on_plateau(scheduler, before, keep=same and not {"mode", "monitor"} & schedule.keys())
            else:
                _replay(scheduler, _steps(task, checkpoint, before if same else None))
            checkpoint["lr_schedulers"] = [scheduler.state_dict()]
        elif scheduler is None:
            checkpoint["lr_schedulers"] = []
        plateau = isinstance(scheduler, ReduceLROnPlateau)
        groups = []
        for old, new in zip(saved["param_groups"], fresh.state_dict()["param_groups"], strict=True):
            taken = {name for name in new if name in options or rescheduled or name not in old} - {"params"}
            if plateau and not anew and "lr" not in options:
                taken -= {"lr"}
            # settings of another optimiser, and where a schedule that is gone began
            kept = {name: value for name, value in old.items() if name in new or not (anew or schedule)}
            groups.append({**kept, **{name: new[name] for name in taken}})
        keeps = _keeps_moments(task, saved["state"], anew)
        checkpoint["optimizer_states"] = [{**saved, "state": saved["state"] if keeps else {}, "param_groups": groups}]
        if not keeps:
            console.print("the optimiser's moments begin anew: the new settings need others", highlight=False)

    def look_ahead(self, trainer: Trainer) -> None:
        """Find out whether anything is left to train; to be called before the fit, which touches the run.

        Raises:
            UserError: nothing is left, and options would be recorded that change nothing
        """
        self._end = self._find_end(trainer)
        idle = [key for key in self.changed if key.startswith(("model.", "data.")) and key not in _OF_THE_MACHINE]
        if self._end is not None and idle:
            raise UserError(f"{self._end[0]}: nothing is left to train by a changed {', '.join(idle)}; {self._end[1]}")

    def _find_end(self, trainer: Trainer) -> tuple[str, str] | None:
        """Why nothing is left to train, and what would let the fit go on; None when something is."""
        if trainer.max_epochs is not None and -1 < trainer.max_epochs <= self._epochs:
            return f"the fit has its {self._epochs} epochs already", "to go on, give a higher --trainer.max_epochs"
        if -1 < trainer.max_steps <= self._steps:
            return f"the fit has its {self._steps} steps already", "to go on, give a higher --trainer.max_steps"
        if self._epochs < (trainer.min_epochs or 0) or self._steps < (trainer.min_steps or 0):
            return None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = self._states.get(callback.state_key) if isinstance(callback, EarlyStopping) else None
            if state and (why := self._stopped(callback, state)) is not None:
                patience = max(2 * callback.patience, state["wait_count"] + 1)
                return (
                    f"early stopping ended this fit after epoch {self._epochs} ({why})",
                    f"to go on, change it, such as --early_stopping.patience {patience}",
                )
        return None

    def _stopped(self, callback: EarlyStopping, state: Mapping[str, Any]) -> str | None:
        """Why early stopping had ended the fit, if its present options leave it so."""
        waited = state["wait_count"]
        if waited and waited >= callback.patience:
            return f"{callback.monitor} did not improve in {waited} epochs, and patience is {callback.patience}"
        reason = EarlyStoppingReason(state.get("stopping_reason", EarlyStoppingReason.NOT_STOPPED.value))
        if reason in (EarlyStoppingReason.NOT_STOPPED, EarlyStoppingReason.PATIENCE_EXHAUSTED):
            return None
        if state["stopped_epoch"] + 1 != self._epochs or self._of("early_stopping.", *_ADDED):
            return None
        return f"{callback.monitor}: {reason.name.lower().replace('_', ' ')}"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.same_run and (run := run_of(trainer)) is not None:
            tags = self.changed.get("tracking.tags") or self._of("tracking.tags.")
            run.set_tags({**tags, "mlflow.runName": self.changed.get("tracking.run_name")})
        if self._end is not None and trainer.is_global_zero:
            console.print(f"{self._end[0]}: nothing is left to train; {self._end[1]}", highlight=False, soft_wrap=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._end is not None:  # Lightning restores that early stopping has waited long enough, and trains on
            trainer.should_stop = True


def _refuse_weights(stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    before, now = (pretrained_parts(whole["model"]["network"]) for whole in (stored, config))
    for key, value in now.items():
        if key in before and before[key] != value:
            raise UserError(
                f"model.network.{key} cannot be changed when a fit goes on, since the checkpoint brings the weights: "
                "leave it out, or begin a new fit"
            )


def _refuse_network(changed: Mapping[str, Any], checkpoint: Mapping[str, Any], task: SegmentationTask) -> None:
    """Options of the network that the checkpoint's weights or the optimiser's state do not fit."""
    options = [key for key in changed if key.startswith("model.network")]
    if not options:
        return
    saved, own = checkpoint["state_dict"], task.state_dict()
    shapes = [{key: value.shape for key, value in one.items() if key.startswith("network.")} for one in (saved, own)]
    groups = [state["param_groups"] for state in (checkpoint["optimizer_states"][0], _made(task)[0].state_dict())]
    sizes = [[len(group["params"]) for group in one] for one in groups]
    if shapes[0] != shapes[1] or sizes[0] != sizes[1]:
        what = "weights" if shapes[0] != shapes[1] else "optimiser's state, which is of other parameters,"
        raise UserError(
            f"{', '.join(options)} cannot be changed when a fit goes on: the checkpoint's {what} would not fit; "
            "leave it out, or begin a new fit"
        )


def _made(task: SegmentationTask) -> tuple[Optimizer, Any]:
    """A new optimiser and schedule as the task is configured; the schedule may be None."""
    made: Any = task.configure_optimizers()
    return (made["optimizer"], made["lr_scheduler"]["scheduler"]) if isinstance(made, dict) else (made, None)


def _steps(task: SegmentationTask, checkpoint: Mapping[str, Any], before: Mapping[str, Any] | None) -> int:
    """How often the schedule has been stepped by the time of a checkpoint."""
    if before is not None and "last_epoch" in before:
        return int(before["last_epoch"])
    return int(checkpoint["global_step"]) if task.lr_scheduler_interval == "step" else int(checkpoint["epoch"]) + 1


def _replay(scheduler: Any, steps: int) -> None:
    """Bring a new schedule, and the learning rate of its optimiser, to where it would be by now."""
    with warnings.catch_warnings():
        # that no training step came between
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)`")
        for _ in range(steps):
            scheduler.step()


def _go_on_plateau(scheduler: ReduceLROnPlateau, before: Mapping[str, Any] | None, keep: bool) -> None:
    """Give a new ReduceLROnPlateau what its forerunner has seen, where that means the same to it."""
    if before is not None and keep:
        scheduler.load_state_dict({key: before[key] for key in _PLATEAU_PROGRESS if key in before})


def _keeps_moments(task: SegmentationTask, state: Mapping[Any, Mapping[str, Any]], anew: bool) -> bool:
    """Whether the state of an optimiser's parameters serves the one that is configured now."""
    if not state:
        return True
    probe = nn.Parameter(torch.zeros(2, 2))
    probe.grad = torch.zeros_like(probe)
    try:
        optimizer = task.optimizer([probe])
        optimizer.step()
        needed = {name for name, value in optimizer.state[probe].items() if value is not None}
    except Exception:  # one that needs a closure or other parameters: nothing can be said of it
        return not anew
    known = [{name for name, value in one.items() if value is not None} for one in state.values()]
    return all(needed == one if anew else needed <= one for one in known)
