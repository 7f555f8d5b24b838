"""The task: what training sees when it grows its images, and mirrored evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from bustseg.errors import UserError
from bustseg.masks import PostProcess
from bustseg.task import SegmentationTask
from tests.conftest import TINY

Bustseg = Callable[..., tuple[int, str, str]]


class Column(nn.Module):
    """Logit of a pixel: its column's number, whatever the image; not symmetric, so that a mirror shows."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape[-2:]))
        columns = torch.arange(x.shape[-1], dtype=torch.float32)
        return (self.weight * columns).expand(x.shape[0], 1, *x.shape[-2:])


def test_mirrored_evaluation_averages_an_image_and_its_mirror_image() -> None:
    image = torch.zeros(2, 1, 4, 8, dtype=torch.uint8)
    plain, mirrored = SegmentationTask(Column()).eval(), SegmentationTask(Column(), flip=True).eval()
    assert torch.equal(plain(image)[0, 0, 0], torch.arange(8.0))
    assert torch.equal(mirrored(image), torch.full((2, 1, 4, 8), 3.5))
    assert torch.equal(mirrored.train()(image)[0, 0, 0], torch.arange(8.0))  # training does without


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_teacher_is_learnt_beside_the_masks(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SegmentationTask(Column(), flip=True)
    task = SegmentationTask(Column(), teacher="its.ckpt", teacher_weight=weight)
    monkeypatch.setattr(task, "log", lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match="learn_from"):
        task.on_fit_start()
    task.learn_from(teacher)
    task.on_fit_start()
    batch = {"image": torch.zeros(2, 1, 4, 8, dtype=torch.uint8), "mask": torch.zeros(2, 1, 4, 8, dtype=torch.uint8)}
    loss = task.training_step(batch | {"index": torch.arange(2)}, 0)
    columns = torch.arange(8.0)
    of_masks = nn.functional.softplus(columns).mean()  # cross-entropy against zeros
    of_teacher = (nn.functional.softplus(columns) - columns * columns.sigmoid()).mean()  # which does not mirror
    torch.testing.assert_close(loss, of_masks + weight * (of_teacher - of_masks))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any("teacher" in name for name in task.state_dict())


def test_images_grow_with_the_epochs() -> None:
    task = SegmentationTask(Column(), train_scale={0: 0.5, 2: 1.0})
    image = torch.zeros(1, 1, 64, 96, dtype=torch.uint8)
    image[..., :48] = 200
    mask = torch.zeros(1, 1, 64, 96, dtype=torch.uint8)
    mask[..., 16:48, 24:72] = 1
    small, half = task._scaled(image, mask)
    assert small.shape == half.shape == (1, 1, 32, 48)
    assert torch.equal(half[0, 0].nonzero()[[0, -1]], torch.tensor([[8, 12], [23, 35]]))
    # the grey values are averaged, not thinned out: far from the edge they stay, and the mean is kept
    assert small[0, 0, 0, 0] == 200
    assert small.mean() == pytest.approx(100, abs=0.5)
    type(task).current_epoch, kept = property(lambda self: 2), type(task).current_epoch  # type: ignore[assignment]
    try:
        whole, same = task._scaled(image, mask)
    finally:
        type(task).current_epoch = kept  # type: ignore[assignment]
    assert whole is image
    assert same is mask


@pytest.mark.parametrize("scale", [{1: 1.0}, {0: 0.0}, {0: 1.5}])
def test_a_scale_that_cannot_be_is_named(scale: dict[int, float]) -> None:
    with pytest.raises(UserError, match="train_scale"):
        SegmentationTask(Column(), train_scale=scale)


@pytest.mark.slow
def test_the_flagship_recipe_on_a_tiny_network(bustseg, phantoms: Path) -> None:
    """Growing images, weight averaging, presence gate and mirrored test go together, and a fit can be continued."""
    options = [
        *("--config", TINY, "--data.root", phantoms, "--model.network.init_args.presence", "true"),
        *("--model.network.init_args.skips", "true", "--model.train_scale", "{0: 0.5, 1: 1.0}", "--model.flip", "true"),
        *("--trainer.callbacks+", "bustseg.callbacks.MovingAverage", "--trainer.callbacks.decay", "0.5"),
    ]
    code, out, err = bustseg("fit", *options)
    assert code == 0, err
    run = out.split("run ")[1].split()[0]
    code, out, err = bustseg("fit", "--ckpt_path", run, "--trainer.max_epochs", "3")
    assert code == 0, err
    assert "epoch 3/3" in out + err
    code, out, err = bustseg("validate", "--ckpt_path", run)
    assert code == 0, err
    (chosen,) = (line for line in out.splitlines() if line.startswith("best on these images: "))
    options = chosen.removeprefix("best on these images: ").partition("  (")[0].split()
    # a point can be chosen again, whatever removes components now
    code, again, err = bustseg("validate", "--ckpt_path", run, "--model.postprocess.min_area_px_relative", "0.9")
    assert code == 0, err
    assert chosen in again
    code, out, err = bustseg(
        "test", "--ckpt_path", run, "--report.subsets", "[]", "--explain.enabled", "false", *options
    )
    assert code == 0, err
    assert "dice" in out
    client = mlflow.MlflowClient("sqlite:///mlruns/mlflow.db")
    tags = client.get_run(run).data.tags
    assert tags["chosen.threshold"] == options[1]
    assert tags["chosen.epoch"] == "2"
    code, out, err = bustseg("validate", "--ckpt_path", run, "--max_false_positives", "1", "--most", "detection")
    assert code == 0, err
    (chosen,) = (line for line in out.splitlines() if line.startswith("best on these images with at most 100.0%"))
    assert chosen.split()[12:16:2] == ["--model.threshold", "--model.postprocess.min_peak_probability"], chosen
    assert float(client.get_run(run).data.tags["chosen.peak"]) == float(chosen.split()[15])
    assert "presence of a lesion: AUC " in out
    code, out, err = bustseg("validate", "--ckpt_path", run, "--max_false_positives", "1.5")
    assert code == 2
    assert "--max_false_positives is 1.5: give a share from 0 to 1" in err
    code, out, err = bustseg("export", run, "--threshold", options[1], "--min_area", "0.01", "--out", "exported")
    assert code == 0, err
    metadata = json.loads(Path("exported/bustseg.json").read_text())
    assert metadata["threshold"] == float(options[1])
    assert metadata["postprocess"]["min_area_px_relative"] == 0.01


class Given(nn.Module):
    """Gives the logits that it was made with."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1, -1, -1)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_post_processing_changes_the_masks_that_are_scored(threshold: float) -> None:
    logits = torch.full((1, 1, 20, 20), -4.0)
    logits[..., 2:12, 2:12] = 3
    logits[..., 6, 6] = -2  # a hole
    logits[..., 17, 17] = 5  # a speck
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    mask[..., 2:12, 2:12] = 1
    batch = {
        "image": torch.zeros(1, 1, 20, 20, dtype=torch.uint8),
        "mask": mask,
        "label": torch.zeros(1, dtype=torch.int64),
        "index": torch.zeros(1, dtype=torch.int64),
    }

    def dice(**settings: object) -> tuple[float, torch.Tensor]:
        task = SegmentationTask(Given(logits), threshold=threshold, postprocess=PostProcess(**settings)).eval()
        given = task.test_step(batch, 0)
        assert torch.equal(given["logits"], logits), "what the network said stays what it was"
        predicted = torch.from_numpy(task.predict_mask(np.zeros((20, 20), np.uint8)))
        assert torch.equal(predicted, given["masks"][0, 0].byte())
        assert torch.equal(predicted, mask[0, 0]) == bool(settings)
        return float(task.overlap("test").compute()["dice_lesion"]), given["masks"]

    plain, above = dice()
    assert plain == pytest.approx(2 * 99 / (100 + 100))
    assert torch.equal(above, logits > 0)
    logits[..., 17, 17] = 0.1
    clean, _ = dice(max_confidence_gap=2.0, fill_holes=True)
    assert clean == 1
    logits[..., 17, 17] = 5
    clean, _ = dice(min_area_px_relative=0.01, fill_holes=True)
    assert clean == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_of_a_fused_optimizer_are_clipped_in_every_precision(precision: str, algorithm: str) -> None:
    task = SegmentationTask(nn.Conv2d(3, 1, 1))
    task.trainer = Trainer(
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=0.5,
        gradient_clip_algorithm=algorithm,
        logger=False,
        enable_checkpointing=False,
    )
    optimizer = task.make_optimizer()
    assert optimizer.defaults["fused"]
    for parameter in task.network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    task.configure_gradient_clipping(optimizer, 0.5, algorithm)
    gradients = torch.cat([parameter.grad.flatten() for parameter in task.network.parameters()])  # type: ignore[union-attr]
    # four gradients of 3: their norm is 6, and 0.25 each afterwards
    assert gradients.tolist() == pytest.approx([0.25 if algorithm == "norm" else 0.5] * 4, abs=1e-5)


def test_a_fit_clips_in_bf16(bustseg: Bustseg, phantoms: Path) -> None:
    options = ("--trainer.gradient_clip_val", 1, "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", 1)
    code, _, err = bustseg("fit", "--config", TINY, "--data.root", phantoms, *options)
    assert code == 0, err
