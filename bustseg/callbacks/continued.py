"""Continue a fit with changed options: each takes effect, or is refused by name.

Lightning restores optimiser, schedule and callbacks including their settings, so an option given with ``--ckpt_path``
would be recorded but overwritten. The restored state is therefore adapted to the options first.
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
"""Options that another machine may need, even if nothing is left to train."""

_ADDED = ("trainer.callbacks",)
"""Key under which the user's own callbacks have their options."""

_SCHEDULED = {"lr", "betas", "momentum"}
"""Options of an optimiser that schedules start from."""

_PLATEAU_PROGRESS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
"""The state of a ReduceLROnPlateau, as opposed to its settings."""


def changed_options(before: Any, now: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys whose values differ between two configurations, and the new values.

    A key that only one of them has does not count: versions of bustseg and its libraries add and drop options. Where
    the class differs, only ``class_path`` counts as changed.
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
    """Makes the options of a continued fit take effect, and stops at once a fit that was already finished.

    * **Optimiser.** Changed settings replace restored ones. With a schedule, the learning rate is the one
      that the schedule would have reached by now had it run with the new settings from the start
      (``ReduceLROnPlateau``: the new learning rate itself). Moments are kept where the new optimiser needs the same.
    * **Callbacks.** Changed settings, such as early stopping's patience, replace restored ones.
    * **Run.** It gets the new name and tags.

    Args:
        checkpoint: content of the checkpoint that the fit continues from
        config: the configuration that it continues with
        task: made of that configuration
        same_run: whether it continues in the checkpoint's own run

    Attributes:
        changed: dotted keys and new values of the options that are not the checkpoint's

    Raises:
        UserError: an option that a continued fit cannot change
    """

    def __init__(
        self, checkpoint: Mapping[str, Any], config: Mapping[str, Any], task: SegmentationTask, same_run: bool
    ) -> None:
        stored = checkpoint[RECORD]["config"]
        shared = stored.keys() & config.keys() - {"config", "ckpt_path", "weights_only"}
        # checkpoints of earlier versions hold credentials, later ones do not: this does not count as a change
        self.changed = changed_options(*(redact_nested({key: one[key] for key in shared}) for one in (stored, config)))
        self.same_run = same_run
        self._epochs, self._steps = int(checkpoint["epoch"]) + 1, int(checkpoint["global_step"])
        self._states = checkpoint.get("callbacks", {})
        self._end: tuple[str, str] | None = None
        _refuse_weights(stored, config)
        _refuse_network(self.changed, checkpoint, task)
        if same_run and "tracking.experiment" in self.changed:
            raise UserError(
                "tracking.experiment cannot be changed when a fit is continued, since a run stays in its experiment: "
                "leave it out"
            )
        epochs = config["trainer"]["max_epochs"]
        if epochs is not None and -1 < epochs < self._epochs:
            raise UserError(
                f"the fit has {self._epochs} epochs already, and --trainer.max_epochs is {epochs}: "
                f"give {self._epochs + 1} or more to continue"
            )

    def _of(self, *prefixes: str) -> dict[str, Any]:
        """Changed options by name: the last part of their key that is not an index in a list."""
        return {
            next(part for part in reversed(key.split(".")) if not part.isdecimal()): value
            for key, value in self.changed.items()
            if key.startswith(prefixes)
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adapt the state that will be restored to the options; the file is not changed."""
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
            # leave out settings of another optimiser, and the initial values of a schedule that has been removed
            kept = {name: value for name, value in old.items() if name in new or not (anew or schedule)}
            groups.append({**kept, **{name: new[name] for name in taken}})
        keeps = _keeps_moments(task, saved["state"], anew)
        checkpoint["optimizer_states"] = [{**saved, "state": saved["state"] if keeps else {}, "param_groups": groups}]
        if not keeps:
            console.print(
                "the optimiser's moments are reset, since the new settings need different ones", highlight=False
            )

    def look_ahead(self, trainer: Trainer) -> None:
        """Find out whether anything is left to train; call it before the fit, which changes the run.

        Raises:
            UserError: nothing is left, so that changed options would be recorded without taking effect
        """
        self._end = self._find_end(trainer)
        idle = [key for key in self.changed if key.startswith(("model.", "data.")) and key not in _OF_THE_MACHINE]
        if self._end is not None and idle:
            raise UserError(
                f"{self._end[0]}: nothing is left to train, so {', '.join(idle)} would have no effect; {self._end[1]}"
            )

    def _find_end(self, trainer: Trainer) -> tuple[str, str] | None:
        """Why nothing is left to train, and how the fit could continue; None when something is left."""
        if trainer.max_epochs is not None and -1 < trainer.max_epochs <= self._epochs:
            return f"the fit has its {self._epochs} epochs already", "to continue, give a higher --trainer.max_epochs"
        if -1 < trainer.max_steps <= self._steps:
            return f"the fit has its {self._steps} steps already", "to continue, give a higher --trainer.max_steps"
        if self._epochs < (trainer.min_epochs or 0) or self._steps < (trainer.min_steps or 0):
            return None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = self._states.get(callback.state_key) if isinstance(callback, EarlyStopping) else None
            if state and (why := self._stopped(callback, state)) is not None:
                patience = max(2 * callback.patience, state["wait_count"] + 1)
                return (
                    f"early stopping ended this fit after epoch {self._epochs} ({why})",
                    f"to continue, change its settings, such as --early_stopping.patience {patience}",
                )
        return None

    def _stopped(self, callback: EarlyStopping, state: Mapping[str, Any]) -> str | None:
        """Why early stopping ended the fit, if it would still do so with the present options."""
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
        if self._end is not None:  # Lightning restores early stopping's counter but would train on
            trainer.should_stop = True


def _refuse_weights(stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    before, now = (pretrained_parts(whole["model"]["network"]) for whole in (stored, config))
    for key, value in now.items():
        if key in before and before[key] != value:
            raise UserError(
                f"model.network.{key} cannot be changed when a fit is continued, since the weights come from the "
                "checkpoint: leave it out, or start a new fit"
            )


def _refuse_network(changed: Mapping[str, Any], checkpoint: Mapping[str, Any], task: SegmentationTask) -> None:
    """Refuse options of the network that the checkpoint's weights or the optimiser's state do not fit."""
    options = [key for key in changed if key.startswith("model.network")]
    if not options:
        return
    saved, own = checkpoint["state_dict"], task.state_dict()
    shapes = [{key: value.shape for key, value in one.items() if key.startswith("network.")} for one in (saved, own)]
    groups = [state["param_groups"] for state in (checkpoint["optimizer_states"][0], _made(task)[0].state_dict())]
    sizes = [[len(group["params"]) for group in one] for one in groups]
    if shapes[0] != shapes[1] or sizes[0] != sizes[1]:
        what = "weights" if shapes[0] != shapes[1] else "optimiser's state, which belongs to other parameters,"
        raise UserError(
            f"{', '.join(options)} cannot be changed when a fit is continued: the checkpoint's {what} would not fit; "
            "leave it out, or start a new fit"
        )


def _made(task: SegmentationTask) -> tuple[Optimizer, Any]:
    """A new optimiser and schedule from the task's configuration; the schedule may be None."""
    made: Any = task.configure_optimizers()
    return (made["optimizer"], made["lr_scheduler"]["scheduler"]) if isinstance(made, dict) else (made, None)


def _steps(task: SegmentationTask, checkpoint: Mapping[str, Any], before: Mapping[str, Any] | None) -> int:
    """Number of steps that the schedule has made by the time of a checkpoint."""
    if before is not None and "last_epoch" in before:
        return int(before["last_epoch"])
    return int(checkpoint["global_step"]) if task.lr_scheduler_interval == "step" else int(checkpoint["epoch"]) + 1


def _replay(scheduler: Any, steps: int) -> None:
    """Advance a new schedule, and its optimiser's learning rate, to where they would be by now."""
    with warnings.catch_warnings():
        # the warning that no optimiser step came in between
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)`")
        for _ in range(steps):
            scheduler.step()


def _go_on_plateau(scheduler: ReduceLROnPlateau, before: Mapping[str, Any] | None, keep: bool) -> None:
    """Give a new ReduceLROnPlateau the state of the previous one, where it still applies."""
    if before is not None and keep:
        scheduler.load_state_dict({key: before[key] for key in _PLATEAU_PROGRESS if key in before})


def _keeps_moments(task: SegmentationTask, state: Mapping[Any, Mapping[str, Any]], anew: bool) -> bool:
    """Whether an optimiser's stored state fits the optimiser that is configured now."""
    if not state:
        return True
    probe = nn.Parameter(torch.zeros(2, 2))
    probe.grad = torch.zeros_like(probe)
    try:
        optimizer = task.optimizer([probe])
        optimizer.step()
        needed = {name for name, value in optimizer.state[probe].items() if value is not None}
    except Exception:  # an optimiser that needs a closure or other parameters cannot be tried
        return not anew
    known = [{name for name, value in one.items() if value is not None} for one in state.values()]
    return all(needed == one if anew else needed <= one for one in known)
