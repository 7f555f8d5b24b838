"""What every network promises, asked of each config that ships: the paper's 20, the offline 20, baselines, flagship.

Configs that differ in their loss or in frozen encoders share a network, so the checks that cannot tell them apart run
once. No weights are at hand.
"""

from __future__ import annotations

import copy
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from bustseg.deploy.backends import TorchBackend
from bustseg.deploy.export import DeployedNetwork
from bustseg.deploy.onnx_format import OnnxRuntimeBackend, write_onnx
from bustseg.deploy.openvino_format import OpenVINOBackend
from bustseg.runs.checkpoint import without_pretrained
from bustseg.task import SegmentationTask
from tests.conftest import CONFIGS

FILES = [
    path
    for family in ("paper", "offline", "baselines", "flagship")
    for path in sorted((CONFIGS / family).glob("*.yaml"))
]
LIBRARY = "segmentation_models_pytorch"


def model_section(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["model"]


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def shared(freeze: bool) -> dict[str, list[Path]]:
    """Configs by network, the first one's name before them; frozen encoders make another network if ``freeze``."""
    groups: dict[str, list[Path]] = {}
    for path in FILES:
        network = copy.deepcopy(model_section(path)["network"])
        if not freeze:
            network.get("init_args", {}).pop("freeze_encoders", None)
        groups.setdefault(json.dumps(network, sort_keys=True), []).append(path)
    return {name_of(paths[0]): paths for paths in groups.values()}


NETWORKS = shared(freeze=False)
TRAINED = shared(freeze=True)


def build(path: Path, seed: int = 0) -> SegmentationTask:
    """The task of a config as `fit` makes it, less the pretrained weights."""
    torch.manual_seed(seed)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SegmentationTask, "model", fail_untyped=False)
    resolved = parser.parse_object({"model": model_section(path)}).as_dict()
    resolved["model"]["network"] = without_pretrained(resolved["model"]["network"])
    return parser.instantiate(parser.parse_object(resolved)).model


def batch(size: int = 64) -> dict[str, Any]:
    """Two images with a bright square each, which is the lesion."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 100, (2, 1, size, size), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(2, 1, size, size)
    mask[0, :, 10:30, 10:40] = 1
    mask[1, :, 30:50, 20:30] = 1
    return {
        "image": image + (100 * mask).to(torch.uint8),
        "mask": mask,
        "label": torch.ones(2, dtype=torch.long),
        "index": torch.arange(2),
    }


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_every_family_is_there():
    families = [path.parent.name for path in FILES]
    assert families.count("paper") == families.count("offline") == 20
    assert {"swin_unet", "adu_net", "ddra_net", "dpnet", "mrfe_cnn"} <= {path.stem for path in FILES}
    others = len(families) - 40 - 1  # both of the flagship's train one network
    assert (len(NETWORKS), len(TRAINED)) == (6 + 6 + others, 10 + 10 + others)


@pytest.fixture(scope="module", params=NETWORKS)
def config(request) -> Path:
    return NETWORKS[request.param][0]


@pytest.fixture(scope="module")
def task(config) -> SegmentationTask:
    """The task after one training pass of its network, so that BatchNorm has statistics; in evaluation mode."""
    task = build(config).train()
    with torch.no_grad():
        task.network(torch.randn(4, 3, 64, 64))
    return task.eval()


@pytest.fixture(scope="module")
def network(task) -> nn.Module:
    return task.network


@pytest.mark.slow
class TestNetwork:
    """Each test runs for every network."""

    def test_logits_of_any_size(self, config, network):
        odd = (64, 96) if LIBRARY in str(model_section(config)["network"]) else (65, 97)  # smp refuses odd sizes
        with torch.no_grad():
            for size in ((64, 64), odd):
                logits = network(torch.randn(1, 3, *size))
                assert logits.shape == (1, 1, *size)
                assert logits.isfinite().all()
                assert logits.std() > 0

    def test_images_do_not_see_each_other(self, network):
        x = torch.randn(3, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-3, atol=1e-4)

    def test_save_and_load(self, config, network):
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        other = build(config, seed=1).network.eval()
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = network(x)
            assert not torch.equal(other(x), expected)
            other.load_state_dict(torch.load(file, weights_only=True))
            assert torch.equal(other(x), expected)

    def test_exported_it_answers_as_in_torch(self, task, tmp_path):
        """As `bustseg export --precision fp32` asks: no probability moves by 1e-3, on either runtime."""
        pytest.importorskip("onnxruntime")
        path = tmp_path / "model.onnx"
        write_onnx(DeployedNetwork(task).eval(), (64, 64), path)
        images = batch()["image"].numpy()[[0, 1, 0]]
        expected = TorchBackend(task)(images)
        assert expected.std() > 0
        backends = [OnnxRuntimeBackend(path, threads=1)]
        if find_spec("openvino"):
            backends.append(OpenVINOBackend(path, threads=1))
        for backend in backends:
            logits = backend(images)
            assert np.abs(sigmoid(logits) - sigmoid(expected)).max() < 1e-3, backend.name
            # probabilities of an untrained network hardly differ, so the logits are compared as well
            assert np.abs(logits - expected).max() < 2e-3 * max(1, np.abs(expected).max()), backend.name


@pytest.mark.slow
@pytest.mark.parametrize("configs", TRAINED.values(), ids=TRAINED)
def test_one_training_step(configs):
    """Through each loss that the configs name: gradients of all that is trained, none of what is frozen."""
    first = build(configs[0])
    for path in configs:
        task = copy.deepcopy(first)
        loss = model_section(path)["loss"]["class_path"].rpartition(".")[2]
        if type(task.loss).__name__ != loss:
            task.loss = build_loss(path)
        assert type(task.loss).__name__ == loss
        before = {name: value.clone() for name, value in task.network.state_dict().items()}
        optimizer = task.train().configure_optimizers()
        optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
        task.training_step(batch(), 0).backward()
        frozen = [name for name, value in task.network.named_parameters() if not value.requires_grad]
        assert bool(frozen) == bool(model_section(path)["network"].get("init_args", {}).get("freeze_encoders"))
        for name, parameter in task.network.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
            else:
                assert parameter.grad is None, name
        optimizer.step()
        moved = {name for name, value in task.network.named_parameters() if not torch.equal(value, before[name])}
        # Adam's first step is the learning rate wherever a gradient is well above its epsilon of 1e-8
        pushed = {
            name
            for name, value in task.network.named_parameters()
            if value.grad is not None and value.grad.abs().max() > 1e-6
        }
        assert pushed
        assert pushed <= moved
        assert not moved & set(frozen)
        if frozen:  # nor do its BatchNorms record
            after = task.network.encoders.state_dict()
            assert all(torch.equal(after[key], before[f"encoders.{key}"]) for key in after)


def build_loss(path: Path) -> nn.Module:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=nn.Module)
    return parser.instantiate(parser.parse_object({"loss": model_section(path)["loss"]})).loss


@pytest.mark.parametrize("row", range(1, 21))
def test_offline_row_is_the_papers_on_other_encoders(row):
    encoders = {
        "resnet18": "tf_efficientnet_lite0",
        "densenet121": "tf_efficientnet_lite1",
        "efficientnet_b0": "tf_efficientnet_lite2",
    }
    paper, offline = (model_section(CONFIGS / family / f"model_{row:02d}.yaml") for family in ("paper", "offline"))
    arguments = paper["network"]["init_args"]
    arguments["encoders"] = [encoders[name] for name in arguments["encoders"]]
    assert offline == paper
