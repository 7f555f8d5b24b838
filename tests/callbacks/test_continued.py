"""Options beside ``--ckpt_path``: they take effect or are refused by name, and a fit that has ended says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR, StepLR

from bustseg.callbacks.continued import ContinuedFit, changed_options
from bustseg.errors import UserError
from bustseg.runs.tracker import tracking_uri
from bustseg.task import SegmentationTask
from tests.conftest import TINY

Bustseg = Callable[..., tuple[int, str, str]]


def test_what_has_changed() -> None:
    before = {
        "model": {
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1, "betas": [0.9, 0.99], "old": 1}}
        },
        "early_stopping": {"patience": 3},
        "trainer": {"callbacks": [{"class_path": "A", "init_args": {"decay": 0.9}}]},
    }
    now: Any = copy.deepcopy(before)
    assert changed_options(before, now) == {}
    now["model"]["optimizer"]["init_args"] = {"lr": 0.2, "betas": (0.8, 0.99), "new": 5}
    now["early_stopping"]["patience"] = 4
    now["trainer"]["callbacks"][0]["init_args"]["decay"] = 0.5
    assert changed_options(before, now) == {
        "model.optimizer.init_args.lr": 0.2,
        "model.optimizer.init_args.betas.0": 0.8,
        "early_stopping.patience": 4,
        "trainer.callbacks.0.init_args.decay": 0.5,
    }
    now["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2}}
    now["trainer"]["callbacks"] = None
    del now["early_stopping"]
    assert changed_options(before, now) == {
        "model.optimizer.class_path": "torch.optim.SGD",
        "trainer.callbacks": None,
    }


class Settings:
    """Settings of optimiser and schedule as a configuration has them, and a task that is made of them."""

    def __init__(
        self,
        optimizer: Any,
        options: dict[str, Any],
        schedule: Any = None,
        scheduling: dict[str, Any] | None = None,
        interval: str = "epoch",
    ) -> None:
        self.optimizer, self.options = optimizer, dict(options)
        self.schedule, self.scheduling, self.interval = schedule, scheduling or {}, interval

    @property
    def config(self) -> dict[str, Any]:
        def part(kind: Any, options: dict[str, Any]) -> dict[str, Any] | None:
            return None if kind is None else {"class_path": kind.__name__, "init_args": options}

        return {
            "model": {
                "network": {"class_path": "Net", "init_args": {}},
                "optimizer": part(self.optimizer, self.options),
                "lr_scheduler": part(self.schedule, self.scheduling),
                "lr_scheduler_interval": self.interval,
            },
            "trainer": {"max_epochs": 100},
        }

    def task(self) -> SegmentationTask:
        torch.manual_seed(0)
        schedule = None if self.schedule is None else partial(self.schedule, **self.scheduling)
        optimizer = partial(self.optimizer, **self.options)
        return SegmentationTask(nn.Conv2d(3, 1, 1), None, optimizer, schedule, self.interval)

    def trained(self, epochs: int, batches: int = 3, start: dict[str, Any] | None = None) -> dict[str, Any]:
        """Checkpoint after so many epochs, as Lightning steps and stores; from a checkpoint on if there is one."""
        task = self.task()
        made: Any = task.configure_optimizers()
        optimizer, schedule = (made["optimizer"], made["lr_scheduler"]["scheduler"]) if self.schedule else (made, None)
        done = 0
        if start is not None:
            start = copy.deepcopy(start)
            done = start["epoch"] + 1
            task.load_state_dict(start["state_dict"])
            optimizer.load_state_dict(start["optimizer_states"][0])
            if schedule is not None:
                schedule.load_state_dict(start["lr_schedulers"][0])
        for epoch in range(done, epochs):
            for batch in range(batches):
                for parameter in task.parameters():
                    parameter.grad = torch.full_like(parameter, 0.1 * (1 + epoch + batch))
                optimizer.step()
                if schedule is not None and self.interval == "step":
                    schedule.step()
            if schedule is not None and self.interval == "epoch":
                schedule.step(*([1.0] if isinstance(schedule, ReduceLROnPlateau) else []))
        return copy.deepcopy(
            {
                "epoch": epochs - 1,
                "global_step": epochs * batches,
                "state_dict": task.state_dict(),
                "optimizer_states": [optimizer.state_dict()],
                "lr_schedulers": [] if schedule is None else [schedule.state_dict()],
                "callbacks": {},
                "bustseg": {"config": self.config},
            }
        )

    def adapted(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """What Lightning will restore when a fit goes on from a checkpoint with these settings."""
        task, content = self.task(), copy.deepcopy(checkpoint)
        callback = ContinuedFit(content, self.config, task, same_run=False)
        callback.on_load_checkpoint(Trainer(logger=False, callbacks=[callback], accelerator="cpu"), task, content)
        return content


def plain(value: Any) -> Any:
    """The same with lists in the place of tensors, which do not compare as one."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def rate(checkpoint: dict[str, Any]) -> float:
    return float(checkpoint["optimizer_states"][0]["param_groups"][0]["lr"])


ONCE = {"max_lr": 0.4, "total_steps": 30}
SCHEDULES: dict[str, tuple[Any, str, dict[str, Any], dict[str, Any]]] = {
    "none": (None, "epoch", {}, {}),
    "step": (StepLR, "epoch", {"step_size": 2, "gamma": 0.5}, {"step_size": 3, "gamma": 0.1}),
    "cosine": (CosineAnnealingLR, "epoch", {"T_max": 10}, {"T_max": 20, "eta_min": 1e-3}),
    "cycle": (OneCycleLR, "step", ONCE, {**ONCE, "max_lr": 0.8, "pct_start": 0.5}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_changed_learning_rate_is_used_and_the_schedule_is_where_it_would_be(name: str) -> None:
    schedule, interval, options, changed = SCHEDULES[name]
    old = Settings(Adam, {"lr": 0.1}, schedule, options, interval)
    checkpoint = old.trained(5)
    unchanged = old.adapted(checkpoint)
    assert plain(unchanged["optimizer_states"]) == plain(checkpoint["optimizer_states"])
    assert unchanged["lr_schedulers"] == checkpoint["lr_schedulers"]
    for new in (
        Settings(Adam, {"lr": 0.02}, schedule, options, interval),
        Settings(Adam, {"lr": 0.1}, schedule, changed, interval),
        Settings(Adam, {"lr": 0.02}, schedule, changed, interval),
    ):
        adapted, whole = new.adapted(checkpoint), new.trained(5)
        assert rate(adapted) == pytest.approx(rate(whole), rel=1e-9)
        assert rate(new.trained(8, start=adapted)) == pytest.approx(rate(new.trained(8)), rel=1e-9)
        moments = [plain(content["optimizer_states"][0]["state"]) for content in (adapted, checkpoint)]
        assert moments[0] == moments[1], "moments stay"
        if schedule is not None:
            assert adapted["lr_schedulers"][0].get("base_lrs") == whole["lr_schedulers"][0].get("base_lrs")


def test_a_schedule_may_come_go_or_be_another() -> None:
    plain = Settings(Adam, {"lr": 0.1})
    stepped = Settings(Adam, {"lr": 0.1}, StepLR, {"step_size": 2, "gamma": 0.5})
    cosine = Settings(Adam, {"lr": 0.1}, CosineAnnealingLR, {"T_max": 10})
    cycle = Settings(Adam, {"lr": 0.1}, OneCycleLR, ONCE, "step")

    def warm(optimizer: Any) -> SequentialLR:
        return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=3), StepLR(optimizer, 2)], [3])

    chained = Settings(Adam, {"lr": 0.1}, warm)
    for old in (plain, stepped, cosine, cycle, chained):
        for new in (plain, stepped, cosine, cycle, chained):
            adapted = new.adapted(old.trained(5))
            assert rate(adapted) == pytest.approx(rate(new.trained(5)), rel=1e-9)
            assert rate(new.trained(9, start=adapted)) == pytest.approx(rate(new.trained(9)), rel=1e-9)


def test_a_plateau_goes_on_from_what_it_has_seen() -> None:
    def waits(patience: int, lr: float = 0.1, mode: str = "min") -> Settings:
        options = {"monitor": "val/loss", "patience": patience, "factor": 0.5, "mode": mode}
        return Settings(Adam, {"lr": lr}, ReduceLROnPlateau, options)

    checkpoint = waits(2).trained(5)  # no progress in epochs 2, 3 and 4: halved, then one more
    assert rate(checkpoint) == 0.05
    adapted = waits(1).adapted(checkpoint)
    assert (rate(adapted), adapted["lr_schedulers"][0]["patience"]) == (0.05, 1)
    assert rate(waits(1).trained(6, start=adapted)) == 0.025
    assert rate(waits(2).trained(6, start=waits(2).adapted(checkpoint))) == 0.05
    assert rate(waits(2, lr=0.2).adapted(checkpoint)) == 0.2
    other = waits(2, mode="max").adapted(checkpoint)["lr_schedulers"][0]
    assert other["num_bad_epochs"] == 0, "what was bad is good now"
    assert other["best"] == -torch.inf


def test_other_settings_of_the_optimiser() -> None:
    old = Settings(Adam, {"lr": 0.1})
    checkpoint = old.trained(3)
    state = checkpoint["optimizer_states"][0]["state"]
    heavier = Settings(Adam, {"lr": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.9)})
    old.options |= {"weight_decay": 0.0, "betas": (0.9, 0.999)}  # a configuration has all defaults
    checkpoint["bustseg"]["config"] = old.config
    (group,) = heavier.adapted(checkpoint)["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["betas"], group["lr"]) == (0.3, (0.8, 0.9), 0.1)
    # the same moments serve
    adapted = Settings(AdamW, {"lr": 0.1}).adapted(checkpoint)
    assert plain(adapted["optimizer_states"][0]["state"]) == plain(state)
    # others are needed
    old.options |= {"amsgrad": False}
    checkpoint["bustseg"]["config"] = old.config
    for new in (Settings(Adam, {"amsgrad": True}), Settings(SGD, {"lr": 0.5, "momentum": 0.9})):
        adapted = new.adapted(checkpoint)
        assert adapted["optimizer_states"][0]["state"] == {}
        new.trained(4, start=adapted)
    assert rate(adapted) == 0.5
    assert "betas" not in adapted["optimizer_states"][0]["param_groups"][0]


def test_what_the_checkpoint_decides_is_refused_by_name() -> None:
    settings = Settings(Adam, {"lr": 0.1})
    checkpoint = settings.trained(3)

    def go_on(task: SegmentationTask | None = None, same_run: bool = True, **changes: Any) -> None:
        before, now = copy.deepcopy(settings.config), copy.deepcopy(settings.config)
        for key, values in changes.items():
            section, _, name = key.partition("__")
            before.setdefault(section, {})
            now.setdefault(section, {})
            for config, value in zip((before, now), values, strict=True):
                part = config[section]["network"]["init_args"] if section == "model" else config[section]
                part[name] = value
        content = {**checkpoint, "bustseg": {"config": before}}
        ContinuedFit(content, now, task or settings.task(), same_run)

    with pytest.raises(UserError, match=r"encoder_weights cannot be changed when a fit is continued"):
        go_on(model__encoder_weights=(None, "imagenet"))
    other = SegmentationTask(nn.Conv2d(3, 1, 3), None, partial(Adam, lr=0.1))
    with pytest.raises(UserError, match=r"model.network.init_args.kernel_size cannot be changed .* weights would not"):
        go_on(other, model__kernel_size=(1, 3))
    frozen = settings.task()
    frozen.network.weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"model.network.init_args.freeze cannot be changed .* other parameters"):
        go_on(frozen, model__freeze=(False, True))
    go_on(model__dropout=(0.1, 0.2))  # which the network has in use
    with pytest.raises(UserError, match=r"tracking.experiment cannot be changed"):
        go_on(tracking__experiment=("a", "b"))
    go_on(same_run=False, tracking__experiment=("a", "b"))  # a run of its own, in another store
    with pytest.raises(UserError, match=r"has 3 epochs already, and --trainer.max_epochs is 2: give 4 or more"):
        go_on(trainer__max_epochs=(3, 2))


def test_a_loss_of_other_settings_keeps_them() -> None:
    def task(weight: float) -> SegmentationTask:
        made = SegmentationTask(nn.Conv2d(3, 1, 1), nn.BCEWithLogitsLoss(pos_weight=torch.tensor([weight])))
        made.record = {"config": {"model": {"loss": {"class_path": "BCE", "init_args": {"pos_weight": [weight]}}}}}
        return made

    old = task(2.0)
    for weight, plain in ((3.0, False), (2.0, False), (0.0, True)):
        new = task(weight)
        if plain:  # without any setting to restore
            new.loss = nn.BCEWithLogitsLoss()
        checkpoint = {"bustseg": old.record, "state_dict": copy.deepcopy(old.state_dict())}
        new.on_load_checkpoint(checkpoint)
        new.load_state_dict(checkpoint["state_dict"])
        assert torch.equal(new.network.weight, old.network.weight)
        if not plain:
            assert new.loss.pos_weight == weight


THRESHOLD, NOT_FINITE = (
    reason.value for reason in (EarlyStoppingReason.STOPPING_THRESHOLD, EarlyStoppingReason.NON_FINITE_METRIC)
)
STOPPED = {"wait_count": 3, "stopped_epoch": 2, "best_score": torch.tensor(1.0), "patience": 3}


@pytest.mark.parametrize(
    ("state", "options", "ended"),
    [
        ({}, {}, "did not improve in 3 epochs, and patience is 3"),
        ({}, {"patience": 2}, "did not improve in 3 epochs, and patience is 2"),
        ({}, {"patience": 4}, None),
        ({"wait_count": 2, "stopped_epoch": 0}, {}, None),
        ({"wait_count": 0, "stopping_reason": THRESHOLD}, {}, "stopping threshold"),
        (
            {"wait_count": 0, "stopping_reason": THRESHOLD},
            {"stopping_threshold": 0.1},
            None,
        ),
        (
            {"wait_count": 0, "stopping_reason": THRESHOLD, "stopped_epoch": 1},
            {},
            None,
        ),  # and went on since
        ({"wait_count": 0, "stopping_reason": NOT_FINITE}, {}, "non finite metric"),
    ],
)
def test_early_stopping_stays_what_it_was_unless_it_is_changed(
    state: dict[str, Any], options: dict[str, Any], ended: str | None
) -> None:
    settings = Settings(Adam, {"lr": 0.1})
    checkpoint = settings.trained(3)
    stopping = EarlyStopping("val/loss", **{"patience": 3, **options})
    checkpoint["callbacks"] = {stopping.state_key: {**STOPPED, **state}}
    before = {"patience": 3, "stopping_threshold": None}
    checkpoint["bustseg"]["config"]["early_stopping"] = before
    config = {**settings.config, "early_stopping": {**before, **options}}
    task = settings.task()
    callback = ContinuedFit(checkpoint, config, task, same_run=False)
    trainer = Trainer(logger=False, callbacks=[stopping, callback], accelerator="cpu", max_epochs=9)
    callback.look_ahead(trainer)
    assert (callback._end is None) == (ended is None)
    assert ended is None or ended in callback._end[0]
    callback.on_load_checkpoint(trainer, task, checkpoint)
    stopping.load_state_dict(checkpoint["callbacks"][stopping.state_key])
    assert stopping.patience == {"patience": 3, **options}["patience"]
    assert stopping.wait_count == {**STOPPED, **state}["wait_count"]


def last(run: str) -> dict[str, Any]:
    return torch.load(Path("mlruns/artifacts") / run / "artifacts/checkpoints/last.ckpt", weights_only=True)


def test_options_beside_a_checkpoint_are_used_as_they_are_recorded(bustseg: Bustseg, phantoms: Path) -> None:
    slow = ("--model.optimizer.init_args.lr", "1e-7", "--early_stopping.patience", 1, "--early_stopping.min_delta", 1)
    code, out, err = bustseg("fit", "--config", TINY, "--data.root", phantoms, *slow, "--trainer.max_epochs", 9)
    assert code == 0, err
    run = out.split("run ")[1].split()[0]
    assert last(run)["epoch"] == 1, "the second epoch is no better by 1"
    go_on = ("fit", "--ckpt_path", run)

    # the end that early stopping made stays one, and is told
    code, out, err = bustseg(*go_on)
    assert code == 0, err
    assert "early stopping ended this fit after epoch 2 (val/loss did not improve in 1 epochs" in out
    assert "--early_stopping.patience 2" in out
    assert "epoch 3" not in out
    assert last(run)["epoch"] == 1
    # and what would change nothing is not recorded
    code, out, err = bustseg(*go_on, "--model.optimizer.init_args.lr", "1e-3")
    assert code == 2
    assert "nothing is left to train, so model.optimizer.init_args.lr would have no effect" in err
    assert len(err.strip().splitlines()) == 1
    client = mlflow.MlflowClient(tracking_uri())
    assert client.get_run(run).info.status == "FINISHED"
    assert not [tag for tag in client.get_run(run).data.tags if tag.startswith("continued.model")]

    changed = (
        "--model.optimizer.init_args.lr",
        "1e-3",
        "--early_stopping.patience",
        50,
        "--tracking.run_name",
        "again",
    )
    code, out, err = bustseg(*go_on, *changed, "--trainer.max_epochs", 4)
    assert code == 0, err
    assert "epoch 4/4" in out
    content = last(run)
    assert content["epoch"] == 3
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3
    assert content["bustseg"]["config"]["model"]["optimizer"]["init_args"]["lr"] == 1e-3
    (stopping,) = (state for key, state in content["callbacks"].items() if key.startswith("EarlyStopping"))
    assert (stopping["patience"], stopping["wait_count"]) == (50, 3)
    found = client.get_run(run)
    assert found.data.tags["continued.model.optimizer.init_args.lr"] == "0.001"
    assert found.info.run_name == "again"
    code, out, err = bustseg(*go_on)
    assert code == 0, err
    assert "the fit has its 4 epochs already: nothing is left to train" in out
