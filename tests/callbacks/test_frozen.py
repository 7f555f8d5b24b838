"""Features of frozen encoders: computed once, and a training that is the same with and without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bustseg.callbacks.frozen import usable
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.models import FusionUNet
from bustseg.task import SegmentationTask
from tests.conftest import TINY

Fit = Callable[..., tuple[dict[str, torch.Tensor], int, str]]


@pytest.fixture
def fit(bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Weights after two epochs on phantoms, how many images were encoded, and what was printed."""
    encoded: list[int] = []
    encode = FusionUNet.encode
    monkeypatch.setattr("bustseg.training.run.try_network", lambda *_: None)  # which encodes zeros
    monkeypatch.setattr(FusionUNet, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))

    def run(*options: object) -> tuple[dict[str, torch.Tensor], int, str]:
        encoded.clear()
        before = set(Path().glob("mlruns/artifacts/*"))
        args = ["--data.root", phantoms, "--data.augmentation", "none", "--tracking.log_model", "false"]
        frozen = ["--model.network.init_args.freeze_encoders", "true"]
        code, out, err = bustseg("fit", "--config", TINY, *args, *frozen, *options)
        assert code == 0, err
        (folder,) = set(Path().glob("mlruns/artifacts/*")) - before
        state = torch.load(folder / "artifacts" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return state, sum(encoded), out

    return run


@pytest.mark.slow
def test_training_is_the_same_with_and_without_kept_features(fit: Fit) -> None:
    kept, encoded, out = fit()
    again, all_encoded, silent = fit("--frozen_features.max_gib", 0)
    assert "features of 26 images are computed once" in out
    assert "frozen encoders" not in silent
    assert (encoded, all_encoded) == (26, 2 * 26), "22 images train, 4 validate"
    assert kept.keys() == again.keys()
    moved = 0.0
    for name, value in kept.items():
        torch.testing.assert_close(
            value, again[name], rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name} {text}"
        )
    untrained = FusionUNet(["timm/tf_efficientnet_lite0"], "cbam", weights="none", decoder_channels=[16, 16, 8, 8])
    for name, value in untrained.decoder.state_dict().items():
        moved = max(moved, float((kept[f"network.decoder.{name}"] - value).abs().max()))
    assert moved > 1e-3, "the decoder has learned"


@pytest.mark.slow
def test_nothing_is_kept_above_the_limit(fit: Fit) -> None:
    _, encoded, out = fit("--model.network.init_args.skips", "true", "--frozen_features.max_gib", "0.0001")
    assert encoded == 2 * 26 + 8, "and once more the batch whose features said how large all would be"
    assert "are computed again" in out


@pytest.mark.parametrize(
    ("network", "task", "data", "same"),
    [
        ({}, {}, {}, True),
        ({}, {}, {"augmentation": "ultrasound"}, False),
        ({}, {"train_scale": {0: 0.5, 1: 1.0}}, {}, False),
        ({"freeze_encoders": False}, {}, {}, False),
    ],
    ids=["kept", "augmented", "growing images", "trainable"],
)
def test_when_features_are_the_same_in_each_epoch(network: dict, task: dict, data: dict, same: bool) -> None:
    net = FusionUNet(**{"encoders": ["resnet18"], "weights": "none", "freeze_encoders": True, **network})
    assert usable(SegmentationTask(net, **task), UltrasoundDataModule(**data)) is same
    assert not usable(SegmentationTask(torch.nn.Conv2d(3, 1, 1)), UltrasoundDataModule())
