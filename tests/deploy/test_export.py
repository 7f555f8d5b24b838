"""Export: what is written answers as the checkpoint does, is found out when it does not, and needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from bustseg.box import boxed_model
from bustseg.deploy import (
    ExportFormat,
    backends,
    check,
    export,
    onnx_format,
    register_format,
    unregister_format,
)
from bustseg.deploy.backends import TorchBackend, exported_backend
from bustseg.deploy.check import check_images, largest_difference, logits_of
from bustseg.deploy.export import DeployedNetwork, export_model
from bustseg.deploy.exported import ExportedModel
from bustseg.deploy.onnx_format import OnnxRuntimeBackend, write_onnx
from bustseg.deploy.openvino_format import OpenVINOBackend
from bustseg.deploy.predictor import Predictor
from bustseg.errors import UserError
from bustseg.framing import Framing
from bustseg.models import FusionUNet
from bustseg.runs.checkpoint import load_task
from bustseg.task import SegmentationTask
from tests.conftest import REPOSITORY, TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


def scan(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(_trained_run: TrainedRun, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of exports, ``FORMAT-PRECISION``; read only."""
    out = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUSTSEG_CACHE", str(cache_folder))
        patch.setenv("MLFLOW_TRACKING_URI", _trained_run.uri)
        for format, precision in (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
            export_model(str(_trained_run.checkpoint), format, precision, out / f"{format}-{precision}")
    return out


@pytest.mark.parametrize("name", ["onnx-fp32", "openvino-fp32", "openvino-bf16"])
def test_an_exported_folder_predicts_as_its_checkpoint(name: str, exported: Path, trained_run: TrainedRun) -> None:
    expected, predictor = Predictor(trained_run.checkpoint), Predictor(exported / name)
    assert predictor.task is None
    assert (predictor.threshold, predictor.image_size) == (0.5, (32, 32))
    assert predictor.backend.name == ("onnxruntime" if name.startswith("onnx") else "openvino")
    images = [scan(40 + 9 * n, 70, n) for n in range(5)]
    for image, one in zip(images, predictor.predict_many(images, batch_size=3), strict=True):
        wanted = expected(image)
        assert one.mask.shape == image.shape
        assert np.abs(one.probability - wanted.probability).max() < (0.05 if name.endswith("bf16") else 1e-4)
        assert np.abs(predictor(image).probability - one.probability).max() < 1e-5, "a batch changes nothing"
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(predictor, images * 3))
    for image, one in zip(images * 3, together, strict=True):
        assert np.abs(one.probability - predictor(image).probability).max() < 1e-5


def test_the_folder_says_all_that_must_be_known(exported: Path, trained_run: TrainedRun) -> None:
    folder = exported / "openvino-fp32"
    metadata = json.loads((folder / "bustseg.json").read_text())
    record = load_task(trained_run.checkpoint).record
    assert record is not None
    assert metadata["run_id"] == trained_run.run_id
    assert metadata["split_digest"] == record["split_digest"] == metadata["checks"]["split_digest"]
    assert metadata["data_digest"] == record["data_digest"] == metadata["checks"]["data_digest"]
    assert (metadata["threshold"], metadata["flip"], metadata["input"]["image_size"]) == (0.5, False, [32, 32])
    assert set(metadata["conventions"]) == {"paper", "lesion", "empty_one", "pooled"}
    assert set(metadata["checks"]["dice"]["drop"]) == {"paper", "lesion", "empty_one", "pooled"}
    assert metadata["checks"]["difference"]["largest"] < 1e-3 == metadata["checks"]["difference"]["limit"]
    assert "4 validation images" in metadata["checks"]["images"]
    assert 0 <= metadata["figures"]["val/dice_empty_one"] <= 1
    assert metadata["versions"]["exported"]["torch"] == torch.__version__.partition("+")[0]
    assert "not a medical device" in metadata["notice"]
    assert "Not a medical device" in (folder / "model_card.md").read_text()
    for name, file in metadata["files"].items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    assert set(metadata["files"]) == {"model.xml", "model.bin"}
    assert str(Path.home()) not in json.dumps(metadata)
    halved = sum(path.stat().st_size for path in (exported / "openvino-bf16").glob("*.bin"))
    assert halved < 0.55 * (folder / "model.bin").stat().st_size


@pytest.mark.slow
def test_without_its_mirror_image_a_network_gives_the_half_of_the_mean_that_is_its_own() -> None:
    model = ExportedModel.read(boxed_model())
    assert model.metadata["flip"]
    whole, half = (exported_backend(model, threads=1, mirrored=mirrored) for mirrored in (True, False))
    images = np.random.default_rng(0).integers(0, 255, (2, 1, *model.image_size), np.uint8)
    own, mirrors = half(images), half(np.ascontiguousarray(images[..., ::-1]))[..., ::-1]
    assert np.abs(own - mirrors).max() > 0.1, "the two differ"
    assert np.abs((own + mirrors) / 2 - whole(images)).max() < 0.1


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.slow
def test_int8_is_smaller_and_agrees(
    format: str, bustseg: Bustseg, exported: Path, trained_run: TrainedRun, tmp_path: Path
) -> None:
    if format == "openvino":
        pytest.importorskip("nncf")
    out = tmp_path / "int8"
    code, text, error = bustseg(
        "export", trained_run.checkpoint, "--format", format, "--precision", "int8", "--out", out
    )
    assert code == 0, error
    assert "largest difference of probabilities" in text
    assert "Dice (lesion)" in text
    size = sum(path.stat().st_size for path in out.glob("model.*"))
    assert size < 0.5 * sum(path.stat().st_size for path in (exported / f"{format}-fp32").glob("model.*"))
    expected, predictor = Predictor(trained_run.checkpoint), Predictor(out)
    differences = [
        np.abs(predictor(scan(seed=n)).probability - expected(scan(seed=n)).probability).max() for n in range(4)
    ]
    assert 0 < max(differences) < 0.1


def test_nothing_is_written_when_the_answers_differ(
    bustseg: Bustseg, trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupted(network: nn.Module, size: tuple[int, int], path: Path) -> None:
        with torch.no_grad():
            network.network.decoder.head.bias += 3  # type: ignore[union-attr, operator]
        write_onnx(network, size, path)

    monkeypatch.setattr(onnx_format, "write_onnx", corrupted)
    out = tmp_path / "place" / "exported"
    command = ("export", trained_run.checkpoint, "--format", "onnx", "--out", out)
    code, _, error = bustseg(*command)
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert "probabilities differ by" in error
    assert "--max_difference" in error
    code, _, error = bustseg(*command, "--max_difference", 1)
    assert code == 2
    assert "points of Dice" in error
    assert list((tmp_path / "place").iterdir()) == []
    assert bustseg(*command, "--max_difference", 1, "--max_dice_drop", 100)[0] == 0
    assert (out / "bustseg.json").is_file()


def test_what_costs_dice_is_refused(
    bustseg: Bustseg, trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known masks and logits: the reference is right everywhere, the exported model is not."""
    found = check_images(trained_run.checkpoint, Framing((32, 32)))
    logits = logits_of(TorchBackend(load_task(trained_run.checkpoint)), found.images)
    masks = (logits > np.median(logits)).astype(np.uint8)
    monkeypatch.setattr(check, "_of_run", lambda *args: check.CheckImages(found.images, masks, found.images, "mine"))
    task = load_task(trained_run.checkpoint)
    task.threshold = 1 / (1 + np.exp(-float(np.median(logits))))
    monkeypatch.setattr(export, "load_task", lambda path: task)
    exported = export_model("latest", "onnx", "fp32", tmp_path / "good")
    assert exported.metadata["checks"]["dice"]["float32"]["lesion"] == 1
    assert exported.metadata["checks"]["dice"]["drop"]["lesion"] < 0.005
    monkeypatch.setattr(export, "exported_backend", lambda model: lambda images: -TorchBackend(task)(images))
    with pytest.raises(UserError, match=r"costs \d+\.\d+ points of Dice \(lesion, mine\)"):
        export_model("latest", "onnx", "fp32", tmp_path / "bad", limits=export.Limits(difference=2))


def test_without_data_parity_is_checked_on_phantoms(
    bustseg: Bustseg, trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_of_run", lambda *args: None)
    out = tmp_path / "exported"
    code, told, _ = bustseg("export", "latest", "--format", "onnx", "--out", out)
    assert (code, "not a medical device" in told) == (0, True)
    checks = json.loads((out / "bustseg.json").read_text())["checks"]
    assert checks["images"] == "8 synthetic phantoms"
    assert checks["dice"]["drop"] == {}
    assert checks["data_digest"] is None
    code, _, error = bustseg("export", "latest", "--precision", "int8", "--out", tmp_path / "int8")
    assert code == 2
    assert "int8 needs images" in error


def test_the_model_learns_its_temperature_and_its_images(exported: Path, trained_run: TrainedRun) -> None:
    metadata = ExportedModel.read(exported / "openvino-fp32").metadata
    found = check_images(trained_run.checkpoint, Framing((32, 32)))
    probability = torch.from_numpy(logits_of(TorchBackend(load_task(trained_run.checkpoint)), found.images)).sigmoid()
    assert found.masks is not None
    scaled = probability.double().logit() / metadata["calibration"]["temperature"]
    calibrated, plain = (
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(found.masks).double())
        for logits in (scaled, probability.double().logit())
    )
    assert calibrated < plain
    low, high = metadata["training_images"]["mean"]
    assert found.calibration is not None
    means = found.calibration.mean((1, 2))
    assert low == pytest.approx(means.min(), abs=0.02)  # few images: all of them calibrate
    assert high == pytest.approx(means.max(), abs=0.02)
    predictor = Predictor(exported / "openvino-fp32")
    assert predictor(found.images[0]).confidence is not None


def test_images_of_a_folder_check_with_their_masks(trained_run: TrainedRun, phantoms: Path) -> None:
    found = check_images(trained_run.checkpoint, Framing((32, 32)), folder=phantoms)
    assert found.images.shape == (30, 32, 32)
    assert found.masks is not None
    assert 0 < found.masks.sum(axis=(1, 2)).astype(bool).sum() < 30, "normals have no lesion"
    with pytest.raises(UserError, match="no image or folder"):
        check_images(trained_run.checkpoint, Framing((32, 32)), folder=phantoms / "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        check_images(trained_run.checkpoint, Framing((32, 32)), root=phantoms / "nowhere")


def test_a_place_that_is_taken_is_kept(
    bustseg: Bustseg, exported: Path, trained_run: TrainedRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    command = ("export", "latest", "--format", "onnx", "--out", out)
    assert bustseg(*command, "--overwrite")[0] == 2
    assert (out / "thesis.tex").read_text() == "years of work"
    shutil.rmtree(out)
    shutil.copytree(exported / "openvino-fp32", out)
    code, _, error = bustseg(*command)
    assert code == 2
    assert "--overwrite" in error
    assert bustseg(*command, "--overwrite")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["bustseg.json", "model.onnx", "model_card.md"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "onnx", "--precision", "bf16"), "it supports fp32, int8, and bf16 is supported by openvino"),
        (("--images", "nowhere"), "no image or folder at nowhere"),
        (("--data.root", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], message: str, bustseg: Bustseg, trained_run: TrainedRun
) -> None:
    code, _, error = bustseg("export", "latest", "--out", "out", *options)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "openvino", "nncf"])
def test_a_missing_package_is_named(
    package: str, bustseg: Bustseg, exported: Path, trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    format = "onnx" if package == "onnxruntime" else "openvino"
    code, _, error = bustseg("export", "latest", "--format", format, "--precision", "int8", "--out", "out")
    assert code == 2
    assert f"{package} is not installed: pip install 'bustseg[deploy]'" in error
    if package in ("onnxruntime", "openvino"):
        with pytest.raises(UserError, match=f"{package} is not installed"):
            Predictor(exported / f"{format}-fp32")


def test_what_a_format_from_outside_lacks_is_not_sought_in_our_extras(
    bustseg: Bustseg, trained_run: TrainedRun
) -> None:
    packages = ("no_such", "nor_this")
    register_format(
        ExportFormat("theirs", lambda *args: Path(), lambda *args: None, packages=lambda precision: packages)
    )
    try:
        code, _, error = bustseg("export", "latest", "--format", "theirs", "--out", "out")
    finally:
        unregister_format("theirs")
    assert code == 2
    assert "no_such and nor_this are not installed: the format theirs needs them: see the package" in error
    assert "bustseg[" not in error


def test_a_folder_that_was_changed_is_found_out(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"

    def fresh() -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exported / "openvino-fp32", folder)
        return json.loads((folder / "bustseg.json").read_text())

    fresh()
    assert Predictor(folder / "bustseg.json").image_size == (32, 32)
    content = bytearray((folder / "model.bin").read_bytes())
    content[1000] ^= 1
    (folder / "model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.bin is not the file that was exported"):
        Predictor(folder)
    fresh()
    (folder / "model.bin").unlink()
    with pytest.raises(UserError, match=r"lacks model\.bin"):
        Predictor(folder)
    metadata = fresh()
    (folder / "bustseg.json").write_text(json.dumps({**metadata, "format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        Predictor(folder)
    (folder / "bustseg.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Predictor(folder)
    with pytest.raises(UserError, match=r"has no bustseg\.json"):
        ExportedModel.read(tmp_path)


def test_an_exported_model_does_only_what_it_can(exported: Path, bustseg: Bustseg) -> None:
    folder = exported / "openvino-fp32"
    with pytest.raises(UserError, match="takes only images of"):
        Predictor(folder, image_size=(64, 64))
    with pytest.raises(UserError, match="exported for the CPU"):
        Predictor(folder, device="cuda")
    assert Predictor(folder, threshold=0.3).threshold == 0.3
    code, _, error = bustseg("export", folder, "--out", "again")
    assert code == 2
    assert "is a folder, not a checkpoint" in error


@pytest.mark.parametrize("name", ["onnx-fp32", "openvino-fp32"])
def test_predicting_imports_no_torch(name: str, exported: Path) -> None:
    script = (
        "import sys, numpy; from bustseg.deploy.predictor import Predictor;"
        f"print(Predictor({str(exported / name)!r})(numpy.zeros((9, 11), 'uint8')).mask.shape);"
        "print(sorted({'torch', 'lightning', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    ).stdout.splitlines()
    assert answer == ["(9, 11)", "[]"]


def trained_statistics(network: nn.Module) -> nn.Module:
    """The network after a pass in training mode, so that BatchNorm does something."""
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    return network.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "fusion with CBAM, skips and presence gate": lambda: FusionUNet(
        ["timm/tf_efficientnet_lite0", "resnet18"], attention="cbam", skips=True, presence=True, weights="none"
    ),
    "fusion with Non-Local": lambda: FusionUNet(["resnet18"], attention="nonlocal", weights="none"),
    "smp": lambda: smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None),
}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_parity_of_network_families(name: str, flip: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = SegmentationTask(trained_statistics(NETWORKS[name]()), flip=flip).eval()
    images = np.stack([scan(64, 64, n) for n in range(3)])
    with torch.inference_mode():
        batch = torch.from_numpy(images)[:, None]
        expected = task(batch)[:, 0].numpy()
        assert np.allclose(DeployedNetwork(task)(batch)[:, 0], expected, atol=1e-4)
        assert np.allclose(task(batch.flip(-1)).flip(-1)[:, 0], expected, atol=1e-4) == flip, "mirrored as asked"
    assert expected.std() > 1e-4
    path = tmp_path / "model.onnx"
    write_onnx(DeployedNetwork(task).eval(), (64, 64), path)
    for backend in (OnnxRuntimeBackend(path), OpenVINOBackend(path, "f32")):
        logits = logits_of(backend, images)  # another batch than the one that was traced
        assert np.abs(logits - expected).max() < 0.1 * min(0.01, expected.std()), backend.name
        assert largest_difference(logits, expected) < 1e-3


class NeedsTheNewerExporter(nn.Module):
    """``.mT`` is an operator that torch's older exporter does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image).mT.mT


def test_operators_that_the_older_exporter_lacks(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    task = SegmentationTask(NeedsTheNewerExporter()).eval()
    images = np.stack([scan(32, 32, n) for n in range(3)])
    write_onnx(DeployedNetwork(task).eval(), (32, 32), tmp_path / "model.onnx")
    expected = logits_of(TorchBackend(task), images)
    assert np.allclose(logits_of(OnnxRuntimeBackend(tmp_path / "model.onnx"), images), expected, atol=1e-4)


class CannotBeExported(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not this one")


def test_a_network_that_cannot_be_exported(tmp_path: Path) -> None:
    task = SegmentationTask(CannotBeExported())
    with pytest.raises(UserError, match="torch cannot export CannotBeExported to ONNX"):
        write_onnx(DeployedNetwork(task).eval(), (32, 32), tmp_path / "model.onnx")


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no network")
    for backend in (OnnxRuntimeBackend, OpenVINOBackend):
        with pytest.raises(UserError, match="cannot load") as error:
            backend(tmp_path / "model.onnx")
        assert "\n" not in str(error.value)


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert backends.cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "10000")
    assert backends.cores() <= (os.cpu_count() or 1)


def test_several_images_go_through_streams(tmp_path: Path) -> None:
    task = SegmentationTask(nn.Conv2d(3, 1, 3, padding=1)).eval()
    write_onnx(DeployedNetwork(task).eval(), (16, 16), tmp_path / "model.onnx")
    images = np.stack([scan(16, 16, n) for n in range(7)])[:, None]
    expected = TorchBackend(task)(images)
    backend = OpenVINOBackend(tmp_path / "model.onnx", threads=2)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(backend, [images] * 6):
            assert np.allclose(found, expected, atol=1e-5), "in order, whoever else asks"


def test_filters_that_cancel_on_grey_images_survive_16_bits() -> None:
    """A first layer trained on colours, its weights for red, green and blue opposite, and magnified what is left."""
    torch.manual_seed(0)
    task = SegmentationTask(FusionUNet(["resnet18"], weights="none", skips=True)).eval()
    stem = next(layer for layer in task.network.modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        opposite = 60 * torch.randn_like(stem.weight[:, :1])
        stem.weight[:] += torch.cat([opposite, -2 * opposite, opposite], 1)
    image = torch.randint(0, 256, (2, 1, 64, 96), dtype=torch.uint8)
    folded = export.fold_input(task)
    assert folded is not None
    with torch.no_grad():
        grey = image.double()
        x, pair = task.double().normalise(image), torch.cat([grey, torch.ones_like(grey)], 1)
        assert torch.allclose(folded.double()(pair), task.network(x), atol=1e-4)

        def rounding(network: torch.nn.Module, given: torch.Tensor) -> float:
            layer = next(one for one in network.modules() if isinstance(one, torch.nn.Conv2d))
            exact = layer(given)
            layer.weight.copy_(layer.weight.to(torch.bfloat16))
            return float((layer(given.to(torch.bfloat16).double()) - exact).norm() / exact.norm())

        assert rounding(folded, pair) < 0.2 * rounding(task.network, x)


def test_networks_of_other_libraries_are_exported_as_they_are() -> None:
    assert export.fold_input(SegmentationTask(torch.nn.Conv2d(3, 1, 1))) is None
