"""Sizes and batches that a network cannot take are told before there is a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.errors import UserError
from bustseg.runs.tracker import tracking_uri
from bustseg.task import SegmentationTask
from bustseg.training.preflight import try_network, try_size
from tests.conftest import TINY, TrainedRun
from tests.networks_for_tests import PlainNet

Bustseg = Callable[..., tuple[int, str, str]]


class Strided(nn.Module):
    """Halves its input ``times`` times, and gives it back at its size where that divides; needs statistics."""

    def __init__(self, times: int = 3, pooled: bool = False, scale: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv2d(4, 1, 1)
        self.times, self.pooled, self.scale = times, pooled, scale

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(x)
        small = nn.functional.avg_pool2d(maps, 2**self.times)
        maps = maps + nn.functional.interpolate(small, scale_factor=2**self.times)
        if self.pooled:
            maps = maps + self.norm(maps.mean((2, 3), keepdim=True))
        return self.head(self.dropout(maps))[..., :: self.scale, :: self.scale]


def module(phantoms: Path, size: int, batch_size: int = 8, **options: object) -> UltrasoundDataModule:
    data = UltrasoundDataModule(root=str(phantoms), image_size=size, batch_size=batch_size, **options)  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_every_size_of_a_training_is_tried(phantoms: Path) -> None:
    task = SegmentationTask(Strided(), train_scale={0: 0.5, 1: 0.7, 2: 1.0})
    with pytest.raises(UserError, match=r"Strided does not accept 2 images of 45 x 45 \(model.train_scale 0.7 of"):
        try_network(task, module(phantoms, 64), training=True)
    try_network(task, module(phantoms, 64), training=False)
    try_network(SegmentationTask(Strided(), train_scale={0: 0.5, 2: 1.0}), module(phantoms, 64), training=True)
    for training in (True, False):
        with pytest.raises(
            UserError, match=r"of 60 x 60 \(data.image_size\); most networks accept sides that"
        ) as caught:
            try_network(SegmentationTask(Strided()), module(phantoms, 60), training)
        assert "\n" not in str(caught.value)


def test_the_smallest_batch_of_a_training_is_tried(phantoms: Path) -> None:
    pooled = SegmentationTask(Strided(pooled=True))
    for batch_size, smallest in ((1, 1), (2, 2), (7, 7), (8, 6), (21, 21), (22, 22), (40, 22)):
        data = module(phantoms, 32, batch_size)
        assert len(data.indices["train"]) == 22
        assert data.smallest_batch() == smallest
        assert smallest == min(len(batch["index"]) for batch in data.train_dataloader())
        if smallest > 1:
            try_network(pooled, data, training=True)
    # a single image of a process is no last batch that could be dropped
    assert module(phantoms, 32, 2).smallest_batch(processes=22) == 1
    alone = module(phantoms, 32, 1)
    with pytest.raises(UserError, match=r"does not accept 1 image .*set data.batch_size to 2 or more"):
        try_network(pooled, alone, training=True)
    try_network(pooled, alone, training=False)
    try_network(SegmentationTask(Strided()), alone, training=True)


def test_logits_of_another_size_are_refused() -> None:
    task = SegmentationTask(Strided(scale=2))
    with pytest.raises(UserError, match=r"logits of \(1, 1, 16, 16\) for images of \(1, 1, 32, 32\) \(data"):
        try_size(task, (32, 32), "data.image_size")
    with pytest.raises(UserError, match="0 x 32: give sides of at least 1"):
        try_size(task, (0, 32), "data.image_size")


def test_trying_leaves_no_trace() -> None:
    torch.manual_seed(0)
    task = SegmentationTask(smp.Unet("resnet18", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8)))
    task.network.encoder.eval()
    counting = SegmentationTask(PlainNet())
    try_size(counting, (32, 32), "data.image_size", images=2, train=True)
    assert counting.network.steps == 0
    state = {name: value.clone() for name, value in task.state_dict().items()}
    modes = [part.training for part in task.modules()]
    random = torch.get_rng_state()
    try_size(task, (64, 64), "data.image_size", images=2, train=True)
    assert all(torch.equal(state[name], value) for name, value in task.state_dict().items())
    assert [part.training for part in task.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in task.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.image_size", 100], "MAnet?.* 100 x 100 (data.image_size)"),
        (["--data.image_size", 64, "--model.train_scale", "{0: 0.75, 1: 1.0}"], "48 x 48 (model.train_scale 0.75"),
        (["--data.augmentation", '[{"class_path": "albumentations.ToFloat"}]'], "by ToFloat"),
        (["--model.teacher", "nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_a_fit_that_could_not_step_leaves_no_run(
    options: list[object], message: str, bustseg: Bustseg, phantoms: Path
) -> None:
    network = '{"class_path": "segmentation_models_pytorch.MAnet", "init_args": {"encoder_name": "resnet18", '
    network += '"encoder_weights": null, "decoder_channels": [16, 8, 8, 8, 8]}}'
    common = ["--config", TINY, "--data.root", phantoms, "--model.network", network, "--data.image_size", 64]
    code, _, err = bustseg("fit", *common, *options)
    assert code == 2
    assert message.removeprefix("MAnet?.*") in err
    assert len(err.strip().splitlines()) == 1
    client = mlflow.MlflowClient(tracking_uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert not client.search_runs(experiments)


def test_other_commands_try_their_size_too(
    trained_run: TrainedRun, bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch, phantoms: Path
) -> None:
    def choosy(self: nn.Module, x: Tensor) -> Tensor:
        if x.shape[-1] % 32:
            raise RuntimeError(f"{x.shape[-1]} is no multiple of 32")
        return forward(self, x)

    from bustseg.runs.checkpoint import load_task

    network = type(load_task(trained_run.checkpoint).network)
    forward = network.forward
    monkeypatch.setattr(network, "forward", choosy)
    checkpoint = trained_run.checkpoint
    for command in (
        ("summary", "--config", TINY, "--data.image_size", 50),
        ("explain", phantoms / "benign", "--model", checkpoint, "--out", "out", "--size", 50),
        ("bench", checkpoint, "--size", 50, "--data.root", phantoms),
        ("ensemble", checkpoint, checkpoint, "--out", "ensemble.ckpt", "--image_size", 50),
        ("test", "--ckpt_path", checkpoint, "--data.image_size", 50),
    ):
        code, _, err = bustseg(*command)
        assert code == 2, command
        assert "does not accept 1 image of 50 x 50" in err
        assert "50 is no multiple of 32" in err
        assert len(err.strip().splitlines()) == 1
    assert not Path("ensemble.ckpt").exists()
