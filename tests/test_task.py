"""The task: what training sees when it grows its images, and mirrored evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import nn

from bustseg.errors import UserError
from bustseg.task import SegmentationTask


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
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay", "0.5"),
    ]
    code, out, err = bustseg("fit", *options)
    assert code == 0, err
    run = out.split("run ")[1].split()[0]
    code, out, err = bustseg("fit", "--ckpt_path", run, "--trainer.max_epochs", "3")
    assert code == 0, err
    assert "epoch 3/3" in out + err
    code, out, err = bustseg("test", "--ckpt_path", run, "--report.subsets", "[]", "--explain.enabled", "false")
    assert code == 0, err
    assert "dice" in out
