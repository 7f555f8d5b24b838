"""Checks, before a run exists, for errors that would end it in its first steps."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.errors import UserError
from bustseg.metrics import PixelCurves, SegmentationMetrics
from bustseg.task import SegmentationTask


@contextmanager
def chosen_in(section: str) -> Iterator[None]:
    """Add the section of the configuration to errors that occur while its objects are created.

    Raises:
        UserError: for any exception, in one line that begins with the section
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's class may raise anything
        raise UserError(f"{section}: {' '.join(str(error).split()) or type(error).__name__}") from error


def try_optimizer(task: SegmentationTask) -> object | None:
    """Create the optimizer and its scheduler once, since a fit would do so only after its run has begun.

    Returns:
        the scheduler, if there is one

    Raises:
        UserError: they refuse their options, or a learning rate is not a number
    """
    with chosen_in("model.optimizer"):
        optimizer = task.make_optimizer()
    for group in optimizer.param_groups:
        if not math.isfinite(group["lr"]):
            raise UserError(f"model.optimizer: the learning rate is {group['lr']}: give a number such as 1e-4")
    if task.lr_scheduler is None:
        return None
    with chosen_in("model.lr_scheduler"):
        return task.lr_scheduler(optimizer)


def try_options(trainer: Trainer) -> None:
    """Refuse options that Lightning takes and that end the first step, or let it train nothing.

    Raises:
        UserError: so it is
    """
    clip = trainer.gradient_clip_val
    if clip is not None and not 0 <= clip < math.inf:
        raise UserError(f"trainer.gradient_clip_val is {clip}: give a number from 0, or leave it out to clip nothing")
    if trainer.accumulate_grad_batches < 1:
        raise UserError(f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}: give 1 or more")
    if trainer.check_val_every_n_epoch is not None and trainer.check_val_every_n_epoch < 1:
        raise UserError(f"trainer.check_val_every_n_epoch is {trainer.check_val_every_n_epoch}: give 1 or more")
    if not trainer.val_check_interval > 0:
        raise UserError(f"trainer.val_check_interval is {trainer.val_check_interval}: give a number above 0")
    for name in ("limit_train_batches", "max_steps"):
        if getattr(trainer, name) == 0:
            raise UserError(f"trainer.{name} is 0: nothing would be trained")


def try_batches(trainer: Trainer, verb: str, data: UltrasoundDataModule) -> None:
    """Refuse shares and intervals of batches that come to none of those that there are, as Lightning does in a run.

    Args:
        verb: ``fit``, ``validate`` or ``test``
        data: set up for it

    Raises:
        UserError: so it is
    """
    loaders = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}
    for subset in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[verb]:
        batches = -(-len(loaders[subset]()) // trainer.world_size)
        limit = getattr(trainer, f"limit_{subset}_batches")
        if verb != "fit" and limit == 0:
            raise UserError(f"trainer.limit_{subset}_batches is 0: nothing would be scored")
        if isinstance(limit, float) and limit > 0 and int(batches * limit) < 1 <= batches:
            raise UserError(
                f"trainer.limit_{subset}_batches is {limit:g}, which is none of {batches} batches: give a larger "
                "share, or a whole number"
            )
        if subset == "train" and trainer.limit_val_batches and trainer.check_val_every_n_epoch is not None:
            used = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            interval = trainer.val_check_interval
            if isinstance(interval, int) and interval > used:
                raise UserError(
                    f"trainer.val_check_interval is {interval} and an epoch has {used} batches: give at most as many, "
                    "or leave it out to validate after each epoch"
                )


def known_metrics() -> list[str]:
    """The metrics that every fit logs per epoch, determined on three tiny images."""
    metrics, curves = SegmentationMetrics(), PixelCurves()
    logits, mask = torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    mask[:2, :, :4] = 1
    metrics.update(logits, mask, torch.arange(3), torch.arange(3))
    curves.update(logits, mask)
    names = [f"val/{name}" for name in (*metrics.compute(), *curves.compute())]
    return [*names, "val/loss", "train/loss", "train/images_per_second", "train/epoch_seconds"]


def unknown_metric(what: str, metric: str, known: Sequence[str]) -> str:
    """The message for a metric that no fit logs, with those that may have been meant, else with all.

    Args:
        what: the key that names it, such as ``checkpoint.monitor``
    """
    close = difflib.get_close_matches(metric, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"no fit logs {what}: {hint}there are {', '.join(sorted(known))}"


def try_monitors(trainer: Trainer, task: SegmentationTask, scheduler: object | None) -> None:
    """Refuse monitored metrics that the fit never logs; Lightning would do so only after the first epoch.

    If there are user callbacks, which may log anything, every name is accepted.

    Args:
        trainer: its callbacks monitor metrics for checkpoints and early stopping
        task: determines how often its schedule steps
        scheduler: from :func:`try_optimizer`; it may monitor a metric

    Raises:
        UserError: there is such a metric
    """
    watched = []
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None:
            section = "early_stopping" if isinstance(callback, EarlyStopping) else "checkpoint"
            watched.append((f"{section}.monitor", callback.monitor))
    monitor = getattr(scheduler, "monitor", None)
    if monitor is not None:
        watched.append(("model.lr_scheduler.init_args.monitor", monitor))
        if task.lr_scheduler_interval != "epoch":
            raise UserError(
                f"model.lr_scheduler_interval is {task.lr_scheduler_interval}, but the schedule monitors {monitor}, "
                "which is computed once per epoch: set it to epoch"
            )
    known = known_metrics()
    own = any(type(callback).__module__.partition(".")[0] not in ("bustseg", "lightning") for callback in callbacks)
    for place, metric in watched:
        if metric.startswith("val/") and not trainer.limit_val_batches:
            raise UserError(
                f"{place} is {metric}, but trainer.limit_val_batches is 0, so there is no validation: "
                "use a training metric such as train/loss, or validate"
            )
        if metric not in known and not own:
            raise UserError(unknown_metric(f"{place} {metric}", metric, known))


def try_network(task: SegmentationTask, data: UltrasoundDataModule, training: bool, processes: int = 1) -> None:
    """Pass zeros with each image size and the smallest batch of a run through the network.

    Some networks accept only sides that are multiples of 32, some need two images to train on, and logits of another
    size than the images might be broadcast and scored wrongly. The network is not changed.

    Args:
        training: whether the run trains; otherwise it only evaluates
        processes: processes that share the training's images

    Raises:
        UserError: a size or batch that the network does not accept, in one line that names it
    """
    if training:
        images = min(2, data.smallest_batch(processes))
        for scale, size in task.training_sizes(data.image_size).items():
            name = "data.image_size" if scale == 1 else f"model.train_scale {scale:g} of data.image_size"
            try_size(task, size, name, images, train=True)
    try_size(task, data.image_size, "data.image_size")


def try_size(task: SegmentationTask, size: Sequence[int], name: str, images: int = 1, train: bool = False) -> None:
    """Pass zeros of size (H, W) through a network without changing it.

    Args:
        name: key that sets the size, for messages
        images: batch size
        train: as in training, otherwise as in evaluation

    Raises:
        UserError: the network does not accept them, or its logits have another size
    """
    height, width = size
    shape = (images, 1, height, width)
    network = type(task.network).__name__
    if min(size) < 1:
        raise UserError(f"{name} is {height} x {width}: give sides of at least 1")
    with _left_as_it_was(task, train), torch.no_grad():
        try:
            logits = task(torch.zeros(shape, dtype=torch.uint8, device=task.device))
        except UserError:
            raise
        except Exception as error:  # a user's network may raise anything
            words = " ".join(str(error).split())[:300]
            what = f"{network} does not accept {images} image{'s' * (images > 1)} of {height} x {width} ({name})"
            if "more than 1 value per channel" in words:
                what += ": it needs two images to train on, so set data.batch_size to 2 or more"
                raise UserError(what) from error
            raise UserError(f"{what}; most networks accept sides that are multiples of 32: {words}") from error
    if logits.shape != shape:
        raise UserError(
            f"{network} gives logits of {tuple(logits.shape)} for images of {shape} ({name}): a network must give one "
            "logit for each pixel, (B, 1, H, W)"
        )


@contextmanager
def _left_as_it_was(task: SegmentationTask, train: bool) -> Iterator[None]:
    """Context that restores modes, attributes, BatchNorm statistics and the random state at its end."""
    attributes = {module: dict(vars(module)) for module in task.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in task.buffers()]
    devices = [task.device] if task.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            task.train(train)
            yield
    finally:
        for module, values in attributes.items():
            vars(module).update(values)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
