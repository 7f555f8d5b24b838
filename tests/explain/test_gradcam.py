"""Heat maps against cases solved by hand, on every method and kind of network, and the scores beside them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn

from bustseg.errors import UserError
from bustseg.explain.gradcam import (
    attention_maps,
    cam_energy,
    default_layer,
    encoder_stages,
    find_method,
    heat_maps,
    list_layers,
    methods,
    pointing_hit,
)
from bustseg.models import CBAM, FusionUNet
from bustseg.task import SegmentationTask
from tests.conftest import TINY
from tests.data import dicoms

Bustseg = Callable[..., tuple[int, str, str]]


class OneConvolution(nn.Module):
    """1 x 1 convolution to two channels, ReLU, 1 x 1 head: ``logit = 3 relu(x) - 1 relu(0.5 x) - 4``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(2, 1, 1)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([1.0, 0.5]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([3.0, -1.0]).view(1, 2, 1, 1))
            self.head.bias.fill_(-4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.features(x)))


IMAGE = torch.tensor([[0.0, 1.0, 2.0], [4.0, -2.0, 0.5], [1.0, 0.0, -1.0]])[None, None]


def test_grad_cam_of_one_convolution_is_the_closed_form() -> None:
    # logits 2.5 relu(x) - 4 are positive at x = 2 and 4: the lesion has two of nine pixels. The target's gradient is
    # w_k / 2 there and 0 elsewhere, its mean over the map w_k / 9, so the map is relu(3 a - b) / 9 with a = relu(x),
    # b = relu(x / 2), that is 2.5 relu(x) / 9, and divided by its maximum relu(x) / 4.
    found = heat_maps(OneConvolution(), IMAGE, ["act"])
    np.testing.assert_allclose(found.heat["act"][0], IMAGE[0, 0].clamp(min=0) / 4, atol=1e-6)
    expected = torch.sigmoid(2.5 * IMAGE.clamp(min=0) - 4)[:, 0]
    np.testing.assert_allclose(found.probability, expected, atol=1e-6)


def test_a_layer_before_an_inplace_activation_is_explained_by_its_own_output() -> None:
    # The convolution's output is x and x / 2 (negative too); its gradients are those after the ReLU where x > 0, which
    # holds in the whole lesion: the weights are again w_k / 9 and the map relu(3 x - x / 2) / 9, here the same.
    found = heat_maps(OneConvolution(), IMAGE, ["features"])
    np.testing.assert_allclose(found.heat["features"][0], IMAGE[0, 0].clamp(min=0) / 4, atol=1e-6)
    # FEM takes activations alone: had the ReLU changed what is kept, both layers would look the same
    both = heat_maps(OneConvolution(), IMAGE, ["features", "act"], "EigenCAM").heat
    assert not np.allclose(both["features"], both["act"])


def test_the_target_is_the_predicted_lesion_or_else_the_whole_image() -> None:
    class TwoHalves(nn.Module):
        """Channel 0 carries the left half to the logits, channel 1 the right half."""

        def __init__(self, bias: float) -> None:
            super().__init__()
            self.features = nn.Conv2d(1, 2, 1, bias=False)
            self.bias = bias
            nn.init.ones_(self.features.weight)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.features(x)
            return torch.cat([maps[:, :1, :, :2], 0.5 * maps[:, 1:, :, 2:]], 3) + self.bias

    image = torch.tensor([[1.0, 1.0, 1.0, 1.0]] * 2)[None, None]
    # bias -0.7: logits 0.3 left, -0.2 right: the lesion is the left half, and only channel 0 has a gradient
    assert heat_maps(TwoHalves(-0.7), image, ["features"]).heat["features"].min() == 1
    # bias -2: nothing is predicted, so both count: the same map, but from the mean over all pixels
    net = TwoHalves(-2.0)
    assert heat_maps(net, image, ["features"], "LayerCAM").heat["features"][0, 0].tolist() == [1, 1, 0.5, 0.5]
    assert heat_maps(TwoHalves(-0.7), image, ["features"], "LayerCAM").heat["features"][0, 0].tolist() == [1, 1, 0, 0]
    # every logit above the threshold: the whole image again
    raised = heat_maps(net, image, ["features"], "LayerCAM", threshold=0.01).heat["features"]
    assert raised[0, 0].tolist() == [1, 1, 0.5, 0.5]


def test_heat_is_not_stretched_from_its_minimum_and_no_evidence_is_no_heat() -> None:
    image = torch.tensor([[3.0, 4.0], [4.0, 4.0]])[None, None]
    assert heat_maps(OneConvolution(), image, ["act"]).heat["act"][0].tolist() == [[0.75, 1], [1, 1]]
    net = OneConvolution()
    nn.init.constant_(net.head.weight, -1.0)
    assert not heat_maps(net, image, ["act"]).heat["act"].any()


def tiny(attention: str = "cbam", **options: object) -> SegmentationTask:
    torch.manual_seed(0)
    channels = (16, 16, 8, 8)
    return SegmentationTask(
        FusionUNet(["resnet18"], attention=attention, weights="none", decoder_channels=channels, **options)  # type: ignore[arg-type]
    )


def tiny_smp() -> SegmentationTask:
    torch.manual_seed(0)
    net = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8))
    return SegmentationTask(net)


NETWORKS = {
    "cbam": tiny,
    "nonlocal": lambda: tiny("nonlocal"),
    "frozen": lambda: tiny("none", freeze_encoders=True, skips=True),
    "smp": tiny_smp,
}
SLOW_METHODS = {"ScoreCAM"}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 1, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_explains_every_network(name: str, images: Tensor) -> None:
    task = NETWORKS[name]()
    decoder = default_layer(task, images)
    stages = encoder_stages(task, images)
    assert len(stages) == 1
    with torch.no_grad():
        probability = task.eval()(images).sigmoid()[:, 0]
    assert {"GradCAM", "GradCAMPlusPlus", "LayerCAM", "XGradCAM", "EigenCAM", "ScoreCAM", "HiResCAM"} <= set(methods())
    for method in methods():
        # one forward pass for each channel: the wide encoder stage would take a minute
        layers = [decoder] if method in SLOW_METHODS else [*stages, decoder]
        found = heat_maps(task, images, layers, method)
        np.testing.assert_allclose(found.probability, probability, atol=1e-5)
        assert list(found.heat) == layers
        for heat in found.heat.values():
            assert heat.shape == (2, 64, 96)
            assert heat.min() >= 0
            assert all(own.max() == pytest.approx(1) or not own.any() for own in heat)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_explained_together_are_those_explained_alone(name: str, images: Tensor) -> None:
    task = NETWORKS[name]()
    layers = [default_layer(task, images), *encoder_stages(task, images)]
    together = heat_maps(task, images, layers, "LayerCAM").heat
    assert any(heat.any() for heat in together.values())
    for layer in layers:
        alone = heat_maps(task, images, [layer], "LayerCAM").heat[layer]
        np.testing.assert_allclose(together[layer], alone, atol=1e-5)


def test_a_frozen_encoder_is_explained_as_if_it_were_not(images: Tensor) -> None:
    frozen, free = tiny("none", freeze_encoders=True), tiny("none")
    free.load_state_dict(frozen.state_dict())
    for layer in ("encoders.0.layer4", "encoders.0.layer2.1.conv2"):
        ours, expected = (heat_maps(task, images, [layer], "LayerCAM").heat[layer] for task in (frozen, free))
        assert ours.any()
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["GradCAM", "EigenCAM"])
def test_explaining_leaves_no_trace(method: str, images: Tensor) -> None:
    task = tiny("nonlocal", freeze_encoders=True)
    task.train()
    task(images).mean().backward()
    state = {name: (p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in task.named_parameters()}
    modes = {name: module.training for name, module in task.named_modules()}
    values = {name: value.clone() for name, value in task.state_dict().items()}
    heat_maps(task, images, method=method)
    attention_maps(task, images)
    list_layers(task, images)
    with pytest.raises(UserError):
        heat_maps(task, images, ["dropout", "encoders.0"], method)
    with torch.inference_mode():  # as in Lightning's test loop
        heat_maps(task, images, method=method)
    assert {name: module.training for name, module in task.named_modules()} == modes
    assert task.network.freeze_encoders is True
    for name, parameter in task.named_parameters():
        requires_grad, grad = state[name]
        assert parameter.requires_grad == requires_grad
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert all(torch.equal(values[name], value) for name, value in task.state_dict().items())
    for module in task.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_a_layer_that_nothing_flows_through_is_told_in_one_line(images: Tensor) -> None:
    class Cut(OneConvolution):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.act(self.features(x))
                x = x * 2
            return self.head(x)

    with pytest.raises(UserError, match=r"no gradient reaches act: .* without autograd"):
        heat_maps(Cut(), IMAGE, ["act"])
    assert heat_maps(Cut(), IMAGE, ["act"], "EigenCAM").heat["act"].any()

    class Unused(OneConvolution):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Conv2d(2, 2, 1)
            self.idle = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.act(self.features(x))
            self.spare(maps)
            return self.head(maps)

    for layers in (["spare"], ["idle"], ["idle", "act"], ["spare", "act"]):
        with pytest.raises(UserError, match="no gradient reaches"):
            heat_maps(Unused(), IMAGE, layers)


def test_wrong_names_get_close_matches(images: Tensor) -> None:
    task = tiny()
    with pytest.raises(UserError, match=r"did you mean decoder\.blocks\.3"):
        heat_maps(task, images, ["decoder.block.3"])
    with pytest.raises(UserError, match="did you mean GradCAM"):
        find_method("gradcam")
    with pytest.raises(UserError, match="FullGrad explains biases of all layers"):
        find_method("FullGrad")
    with pytest.raises(UserError, match=r"layer encoders\.0 is not a map"):
        heat_maps(task, images, ["encoders.0"])


def test_default_layers_and_encoder_stages(images: Tensor) -> None:
    assert default_layer(tiny(), images) == "decoder.blocks.3"
    assert encoder_stages(tiny(), images) == ["encoders.0.layer4"]
    both = FusionUNet(["densenet121", "timm/tf_efficientnet_lite0"], weights="none", decoder_channels=(8, 8, 8, 8))
    x = torch.zeros(1, 3, 64, 64)
    # DenseNet's last map is the one after its closing ReLU
    assert encoder_stages(both, x) == ["encoders.0.relu5", "encoders.1.net.blocks.6"]
    task = tiny_smp()
    layer = default_layer(task, images)
    shape = next(found.shape for found in list_layers(task, images) if found.name == layer)
    assert shape == (8, 64, 96)
    # the same map as the last block's
    maps = heat_maps(task, images, [layer, "decoder.blocks.4"]).heat
    np.testing.assert_array_equal(maps[layer], maps["decoder.blocks.4"])
    pspnet = smp.PSPNet("tu-tf_efficientnet_lite0", encoder_weights=None)
    assert default_layer(pspnet, torch.zeros(1, 3, 64, 64)) == "decoder"
    with pytest.raises(UserError, match="name one"):
        default_layer(nn.Sequential(nn.Conv2d(1, 1, 1)), IMAGE)


def test_attention_maps_are_the_modules_own(images: Tensor) -> None:
    task = tiny("cbam").eval()
    seen: dict[str, Tensor] = {}
    for name, module in task.network.named_modules():
        if isinstance(module, CBAM):

            def keep(module: CBAM, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                # the map is what the output is of the channel-weighted input, at its strongest channel
                weighted = inputs[0] * module.channel_map(inputs[0])
                best = weighted.abs().argmax(1, keepdim=True)
                seen[name] = (output.gather(1, best) / weighted.gather(1, best))[:, 0]

            module.register_forward_hook(keep)
    maps = attention_maps(task, images)
    assert [own.shape for own in maps.values()] == [(2, 2, 3), (2, 4, 6), (2, 8, 12), (2, 16, 24)]
    with torch.no_grad():
        task(images)
    for name, own in maps.items():
        known = torch.isfinite(seen[name])
        assert known.any()
        np.testing.assert_allclose(own[known], seen[name][known], rtol=1e-4)
    for own in attention_maps(tiny("nonlocal"), images).values():
        np.testing.assert_allclose(own.mean((1, 2)), 1, rtol=1e-4)
    assert attention_maps(tiny("none"), images) == {}


def test_heat_changes_when_the_weights_are_randomised(trained: Path, phantoms: Path) -> None:
    """Sanity check of Adebayo et al. 2018: a map that outlives its weights explains the image, not the network."""
    from bustseg.data.datamodule import UltrasoundDataModule
    from bustseg.runs.checkpoint import load_task

    data = UltrasoundDataModule(root=str(phantoms), image_size=64)
    data.setup()
    x = np.stack([data.arrays(int(index))[0] for index in data.indices["test"]])[:, None]
    task = load_task(trained)

    def correlation(first: np.ndarray, second: np.ndarray) -> float:
        pairs = [
            spearmanr(a, b).statistic
            for a, b in zip(first.reshape(len(x), -1), second.reshape(len(x), -1), strict=True)
            if np.ptp(a) > 0  # a map without any heat has no order to compare
        ]
        assert pairs
        return float(np.mean(np.nan_to_num(pairs)))

    layers = ["decoder.blocks.3", "encoders.0.net.blocks.6"]
    before, again = (
        heat_maps(task, x, layers, "LayerCAM").heat,
        heat_maps(load_task(trained), x, layers, "LayerCAM").heat,
    )
    for layer in layers:
        assert correlation(before[layer], again[layer]) > 0.99
    torch.manual_seed(1)
    for module in task.network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    after = heat_maps(task, x, layers, "LayerCAM").heat
    for layer in layers:
        assert correlation(before[layer], after[layer]) < 0.6


def test_energy_and_pointing_game_on_maps_made_by_hand() -> None:
    heat = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    lesion = np.array([[0, 1, 0], [0, 1, 0]])
    assert cam_energy(heat, lesion) == pytest.approx(0.75)
    assert pointing_hit(heat, lesion) == 1
    beside = np.array([[0, 0, 0], [0, 1, 0]])
    assert cam_energy(heat, beside) == pytest.approx(0.25)
    assert pointing_hit(heat, beside) == 0
    assert pointing_hit(heat, beside, tolerance=1) == 1
    diagonal = np.array([[0, 0, 0], [1, 0, 0]])
    assert pointing_hit(heat, diagonal, tolerance=1) == 0, "the distance is Euclidean"
    assert pointing_hit(heat, diagonal, tolerance=1.5) == 1
    # the same everywhere: the lesion's share of the image, in both
    flat = np.full((2, 3), 0.3)
    assert cam_energy(flat, lesion) == pytest.approx(1 / 3)
    assert pointing_hit(flat, lesion) == pytest.approx(1 / 3)
    # nothing to point with, nothing to point at
    assert (cam_energy(np.zeros((2, 3)), lesion), pointing_hit(np.zeros((2, 3)), lesion)) == (0, 0)
    assert np.isnan(cam_energy(heat, np.zeros((2, 3))))
    assert np.isnan(pointing_hit(heat, np.zeros((2, 3))))
    with pytest.raises(ValueError, match="same shape"):
        cam_energy(heat, lesion.T)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, cache_folder: Path) -> Path:
    """Checkpoint of a small network that has learnt a little about phantoms."""
    from bustseg.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BUSTSEG_CACHE", str(cache_folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow leaves the last store's name there
        options = ["--data.root", phantoms, "--data.image_size", 64, "--trainer.max_epochs", 4]
        assert main(["fit", "--config", str(TINY), *map(str, options)]) == 0
    return next(folder.rglob("best.ckpt"))


@pytest.mark.slow
def test_one_bad_image_costs_no_other(trained: Path, phantoms: Path, bustseg: Bustseg) -> None:
    folder = Path("malignant")
    shutil.copytree(phantoms / "malignant", folder)
    names = sorted(path.stem for path in folder.glob("*.png") if "_mask" not in path.name)
    truncated, unmasked = names[0], names[1]
    content = (folder / f"{truncated}.png").read_bytes()
    (folder / f"{truncated}.png").write_bytes(content[: len(content) // 2])
    cv2.imwrite(str(folder / f"{unmasked}_mask.png"), np.zeros((5, 5), np.uint8))
    # names that meet, one of them as the other would be numbered
    for copy in ("again/" + names[2], names[2] + "-2"):
        Path(folder / f"{copy}.png").parent.mkdir(exist_ok=True)
        shutil.copy(folder / f"{names[2]}.png", folder / f"{copy}.png")
    code, out, err = bustseg("explain", folder, "--model", trained, "--out", "out")
    assert code == 1
    assert "not a medical device" in out
    rows = {row["name"]: row for row in csv.DictReader(Path("out/explain.csv").read_text().splitlines())}
    assert set(rows) == {*names, f"{names[2]}-2", f"{names[2]}-3"}
    assert len({row["image"] for row in rows.values()}) == len(rows)
    assert "is not a readable image" in rows[truncated]["error"]
    assert rows[truncated]["height"] == ""
    assert not Path(f"out/{truncated}_panel.png").exists()
    # without its mask an image is explained all the same
    assert "5x5 but its image is 128x96" in rows[unmasked]["error"]
    assert int(rows[unmasked]["height"]) == 96
    assert rows[unmasked]["dice"] == rows[unmasked]["lesion_px"] == ""
    for name in set(rows) - {truncated}:
        assert Path(f"out/{name}_panel.png").stat().st_size > 5_000
        assert cv2.imread(f"out/{name}_heat.png", cv2.IMREAD_UNCHANGED).shape == (96, 128)
    assert "2 images with an error in explain.csv" in err
    assert all("not a medical device" in row["notice"] for row in rows.values())
    assert f"means over {len(rows) - 4} images" in out, "of those without a mask or an error"
    # the same folder again: what was written is no input
    code, out, err = bustseg("explain", Path.cwd(), "--model", trained, "--out", "again")
    assert len(Path("again/explain.csv").read_text().splitlines()) == len(rows) + 1

    lonely = Path("lonely")
    lonely.mkdir()
    shutil.copy(folder / f"{truncated}.png", lonely)
    assert bustseg("explain", lonely, "--model", trained, "--out", "none")[0] == 2
    assert len(Path("none/explain.csv").read_text().splitlines()) == 2


def test_pages_and_dicom_are_explained_without_a_patients_name(
    trained: Path, phantoms: Path, bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSTSEG_SALT", "of this test")
    pictures = [Image.open(path) for path in sorted((phantoms / "malignant").glob("malignant (?).png"))[:2]]
    Path("in").mkdir()
    pictures[0].save("in/pages.tif", save_all=True, append_images=pictures[1:])
    grey = np.asarray(pictures[0].convert("L"))
    shown = dicoms.dataset(grey)
    shown.BurnedInAnnotation = "NO"
    dicoms.write(shown, Path("in") / f"{dicoms.ID}_shown.dcm")
    dicoms.write(dicoms.dataset(255 - grey), Path("in") / f"{dicoms.ID}_unsure.dcm")
    code, out, err = bustseg("explain", "in", "--model", trained, "--out", "out")
    assert code == 0, err
    rows = list(csv.DictReader(Path("out/explain.csv").read_text().splitlines()))
    assert [row["name"] for row in rows[:2]] == ["pages_frame0", "pages_frame1"]
    assert all(row["name"] == row["image"] and row["name"].startswith("dicom ") for row in rows[2:])
    assert "1 panels are left out" in out
    assert len(list(Path("out").glob("*_panel.png"))) == len(list(Path("out").glob("*_panel.svg"))) == 3
    written = "".join(path.name for path in Path("out").iterdir()) + Path("out/explain.csv").read_text() + out + err
    assert not [secret for secret in dicoms.SECRETS if secret in written]


def test_explain_writes_maps_panels_and_numbers(trained: Path, phantoms: Path, bustseg: Bustseg) -> None:
    single = next((phantoms / "malignant").glob("malignant (1).png"))
    loose = Path("loose.jpg")
    image = cv2.imread(str(single), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(loose), image[:50, :70])
    code, out, err = bustseg(
        "explain", single, phantoms / "normal", loose, "--model", trained, "--out", "out", "--method", "LayerCAM"
    )
    assert code == 0, err
    rows = {row["name"]: row for row in csv.DictReader(Path("out/explain.csv").read_text().splitlines())}
    normals = [name for name in rows if name.startswith("normal")]
    assert set(rows) == {"malignant (1)", "loose", *normals}
    assert not any("_mask" in name for name in rows)
    assert len(normals) == len([p for p in (phantoms / "normal").glob("*.png") if "_mask" not in p.name])
    row = rows["malignant (1)"]
    heat = cv2.imread("out/malignant (1)_heat.png", cv2.IMREAD_UNCHANGED)
    mask = cv2.imread(str(phantoms / "malignant" / "malignant (1)_mask.png"), cv2.IMREAD_GRAYSCALE) > 127
    assert heat.dtype == np.uint16
    assert heat.shape == image.shape == mask.shape
    assert int(row["lesion_px"]) == mask.sum()
    assert float(row["energy_baseline"]) == pytest.approx(mask.mean())
    assert float(row["energy decoder.blocks.3"]) == pytest.approx(
        heat[mask].sum(dtype=float) / heat.sum(dtype=float), abs=1e-3
    )
    assert row["label"] == "malignant"
    assert 0 <= float(row["dice"]) <= 1
    assert rows["loose"]["label"] == "unknown"
    assert rows["loose"]["lesion_px"] == rows["loose"]["dice"] == rows["loose"]["energy decoder.blocks.3"] == ""
    assert rows[normals[0]]["lesion_px"] == "0"
    assert cv2.imread("out/loose_heat.png", cv2.IMREAD_UNCHANGED).shape == (50, 70)
    for name in rows:
        assert Path(f"out/{name}_panel.png").stat().st_size > 5_000
    assert "means over 1 images with a known lesion" in out


def test_explain_lists_layers_and_tells_bad_input_in_one_line(trained: Path, phantoms: Path, bustseg: Bustseg) -> None:
    code, out, _ = bustseg("explain", "--model", trained, "--list-layers")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("decoder.blocks.3 "))
    assert "8 x 16 x 16" in line
    assert line.endswith("(default)")
    assert "encoder's last stage" in out
    bad = {
        ("nowhere.png", "--out", "o"): "no image or folder at nowhere.png",
        (phantoms, "--out", "o", "--layer", "decoder.blocks.9"): "did you mean decoder.blocks",
        (phantoms, "--out", "o", "--method", "GradCam"): "did you mean GradCAM",
        (phantoms, "--out", "o", "--size", "3"): "size 3 cannot be used",
        (phantoms,): "--out",
        ("--out", "o"): "name images or folders",
        (Path.cwd(), "--out", "o"): "holds or matches no image",
    }
    for args, expected in bad.items():
        code, _, err = bustseg("explain", *args, "--model", trained)
        assert code == 2, args
        assert expected in err
        assert len(err.strip().splitlines()) == 1
