"""Files of strangers: what a stored configuration names is a class of its key's kind from a known package, or refused.

Every gadget here runs a command, fetches, unpickles, writes or deletes when it is built as jsonargparse would build it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import pickle
import resource
import shutil
import sqlite3
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import __version__ as lightning_version

from bustseg import trust
from bustseg.errors import UserError
from bustseg.experiment import Experiment
from bustseg.runs.checkpoint import build_task, load_data, load_task
from bustseg.task import RECORD
from bustseg.trust import TrustError, building, check_config, check_place, own_store
from tests.conftest import CONFIGS, SHORT_TEST, TINY, TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]

RUN = {"cmd": "echo seen > RAN", "encoding": None, "errors": None}
SHELL = {"class_path": "subprocess.Popen", "init_args": {"args": "echo seen > RAN", "shell": True}}
TRACE = {"class_path": "torch.fx.symbolic_trace", "init_args": {"root": "subprocess.getoutput", "concrete_args": RUN}}
UNET = "segmentation_models_pytorch.Unet"
FUSION = "bustseg.models.FusionUNet"


def of(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def fusion(**init_args: Any) -> dict[str, Any]:
    return of(FUSION, encoders=["resnet18"], weights="none", **init_args)


MODEL_GADGETS: dict[str, dict[str, Any]] = {
    "function that returns a module": {"loss": TRACE},
    "function as network": {"network": TRACE},
    "process as network": {"network": SHELL},
    "process as loss": {"loss": SHELL},
    "bare name": {"loss": "subprocess.Popen"},
    "bare function": {"loss": "os.system"},
    "eval": {"network": of("builtins.eval", source="open('RAN', 'w')")},
    "exec as optimizer": {"optimizer": of("builtins.exec", source="open('RAN', 'w')")},
    "bare optimizer": {"optimizer": "os.system"},
    "process as optimizer": {"optimizer": SHELL},
    "bound function as schedule": {
        "lr_scheduler": of("torch.optim.lr_scheduler.LambdaLR", lr_lambda="os.system"),
    },
    "list of functions in a schedule": {
        "lr_scheduler": of("torch.optim.lr_scheduler.LambdaLR", lr_lambda=["os.system"]),
    },
    "process in a schedule": {"lr_scheduler": of("torch.optim.lr_scheduler.LambdaLR", lr_lambda=SHELL)},
    "partial": {"optimizer": of("functools.partial", func="os.system")},
    "torch hub": {"network": of("torch.hub.load", repo_or_dir="evil/repo", model="net")},
    "torch load": {"network": of("torch.load", f="evil.pt", weights_only=False)},
    "jit load": {"network": of("torch.jit.load", f="evil.pt")},
    "script module": {"network": of("torch.jit.ScriptModule")},
    "compiled extension": {"loss": of("torch.utils.cpp_extension.load_inline", name="x", cpp_sources="int x;")},
    "extension builder": {"loss": of("torch.utils.cpp_extension.BuildExtension")},
    "package importer": {"network": of("torch.package.PackageImporter", file_or_buffer="evil.pt")},
    "graph module": {"network": of("torch.fx.GraphModule", root=of("torch.nn.Identity"), graph=of("torch.fx.Graph"))},
    "tracer": {"network": of("torch.fx.Tracer")},
    "data loader": {"network": of("torch.utils.data.DataLoader", dataset=[1], collate_fn="os.system")},
    "process through a module": {"network": of("torch.nn.modules.module.functools.partial", func="os.system")},
    "os through a module": {"loss": "torch.nn.modules.module.os.system"},
    "type in a module": {"network": of("torch.nn.modules.module.OrderedDict")},
    "lightning's command line": {"network": of("lightning.pytorch.cli.LightningCLI", args=["fit"])},
    "our command line": {"network": of("bustseg.cli.main", args=["data", "phantom", "RAN"])},
    "our task": {"network": of("bustseg.task.SegmentationTask", network=of("torch.nn.Identity"))},
    "checkpoint of another": {"network": of("bustseg.runs.checkpoint.load_task", path="evil.ckpt")},
    "source as network": {"network": of("bustseg.data.sources.BUSI")},
    "network as optimizer": {"optimizer": of("torch.nn.Identity")},
    "network as postprocess": {"postprocess": of("torch.nn.Identity")},
    "monai's expressions": {"network": of("monai.bundle.ConfigParser", config={"x": "$__import__('os').system('x')"})},
    "monai's workflow": {"network": of("monai.bundle.ConfigWorkflow", config_file="x.json")},
    "monai fetches code": {
        "loss": of("monai.losses.PerceptualLoss", spatial_dims=3, network_type="medicalnet_resnet10")
    },
    "monai fetches a pickle": {"network": of("monai.networks.nets.CellSamWrapper", checkpoint="file:///x.pt")},
    "monai fetches text models": {"network": of("monai.networks.nets.Transchex", in_channels=3)},
    "monai unpickles": {"network": of("monai.networks.nets.HoVerNet", pretrained_url="file:///x.pt")},
    "timm unpickles": {
        "network": of(
            "segmentation_models_pytorch.encoders.timm_universal.TimmUniversalEncoder",
            name="resnet18",
            pretrained=False,
            dict_kwargs={"checkpoint_path": "evil.pth"},
        ),
    },
    "timm unpickles below smp": {
        "network": of(UNET, encoder_name="tu-resnet18", dict_kwargs={"checkpoint_path": "evil.pth"}),
    },
    "timm's other file": {
        "network": of(UNET, encoder_name="tu-resnet18", dict_kwargs={"pretrained_cfg_overlay": {"file": "evil.pth"}}),
    },
    "hub name": {"network": of(UNET, encoder_name="tu-hf-hub:evil/net", encoder_weights=None)},
    "local folder name": {"network": of(UNET, encoder_name="tu-local-dir:evil", encoder_weights=None)},
    "web address": {"network": of(UNET, encoder_name="https://evil.example/x.pth", encoder_weights=None)},
    "attention by name": {"network": fusion(attention="subprocess.getoutput")},
    "attention is a process": {"network": fusion(attention=SHELL)},
    "attention in a text": {"network": fusion(attention='{"class_path": "subprocess.Popen", "init_args": {}}')},
    "attention in a file": {"network": fusion(attention="evil.yaml")},
    "network in a file": {"network": "evil.yaml"},
    "network in a file elsewhere": {"network": "./evil.yaml"},
    "loss in a text": {"loss": "class_path: subprocess.Popen\ninit_args:\n  args: x"},
    "function in a list": {"network": of("torch.nn.Sequential", dict_kwargs={"args": [SHELL]})},
    "process in a list": {"network": of("bustseg.models.Ensemble", networks=[fusion(), SHELL])},
    "function in a list of networks": {"network": of("bustseg.models.Ensemble", networks=[TRACE, TRACE])},
    "type by name": {"network": of("torchvision.models.ResNet", block="subprocess.Popen", layers=[1, 1, 1, 1])},
    "layer by function": {
        "network": of("torchvision.models.ResNet", block="torch.hub.load", layers=[1, 1, 1, 1]),
    },
    "activation by function": {
        "network": of("torch.nn.TransformerEncoderLayer", d_model=8, nhead=1, activation="os.system"),
    },
    "class path is no text": {"network": {"class_path": ["os.system"]}},
    "class path with spaces": {"network": {"class_path": " os.system "}},
    "class path with code": {"network": {"class_path": "__import__('os').system('x')"}},
    "unknown key": {"hook": SHELL},
    "threshold is a class": {"threshold": SHELL},
    "normalisation is a class": {"mean": [SHELL]},
}
DATA_GADGETS: dict[str, dict[str, Any]] = {
    "process as source": {"source": SHELL},
    "function as source": {"source": "os.system"},
    "network as source": {"source": of("torch.nn.Identity")},
    "source's own module": {"source": of("bustseg.data.fetch.fetch_command", dest="RAN")},
    "function in a transform": {"augmentation": [of("albumentations.Lambda", image="os.system")]},
    "reader of a transform": {
        "augmentation": [of("albumentations.FDA", reference_images=["echo > RAN"], read_fn="os.system")],
    },
    "process as transform": {"augmentation": [SHELL]},
    "transform by name": {"augmentation": ["subprocess.Popen"]},
    "nested transform": {"augmentation": [of("albumentations.OneOf", transforms=[SHELL])]},
    "folder is a class": {"root": SHELL},
    "split is a class": {"split": SHELL},
    "split in a text": {"split": '{"class_path": "subprocess.Popen"}'},
}
FIT_GADGETS: dict[str, dict[str, Any]] = {
    "callback of functions": {"callbacks": [of("lightning.pytorch.callbacks.LambdaCallback", setup="os.system")]},
    "callback is a process": {"callbacks": [SHELL]},
    "callback that writes configs": {"callbacks": [of("lightning.pytorch.cli.SaveConfigCallback")]},
    # what its state names is deleted when a better epoch comes
    "callback that deletes": {"callbacks": [of("lightning.pytorch.callbacks.ModelCheckpoint", dirpath="/home")]},
    "callback one deep": {"callbacks": of("lightning.pytorch.callbacks.OnExceptionCheckpoint", dirpath="/home")},
    "logger elsewhere": {"logger": of("lightning.pytorch.loggers.WandbLogger", project="evil")},
    "logger to a server": {
        "logger": [of("lightning.pytorch.loggers.MLFlowLogger", tracking_uri="http://evil.example")]
    },
    "logger is a process": {"logger": SHELL},
    "strategy is a process": {"strategy": SHELL},
    "strategy's hook": {"strategy": of("lightning.pytorch.strategies.DDPStrategy", ddp_comm_hook="os.system")},
    "profiler is a process": {"profiler": SHELL},
    "plug-in is a process": {"plugins": [SHELL]},
    "plug-in that reads pickles": {"plugins": [of("lightning.pytorch.plugins.io.TorchCheckpointIO")]},
    "folder is a class": {"default_root_dir": SHELL},
}


@pytest.fixture(scope="session")
def plain(phantoms: Path) -> dict[str, Any]:
    """A checkpoint's content of a few kilobytes, as `fit` writes it."""
    config = Experiment.parse(
        ["--config", str(TINY), "--data.root", str(phantoms), "--explain.enabled", "false"]
    ).config
    config["model"]["network"] = of("torch.nn.Conv2d", in_channels=3, out_channels=1, kernel_size=1)
    state = build_task(config["model"]).state_dict()
    return {
        RECORD: {"config": config},
        "state_dict": state,
        "optimizer_states": [],
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning_version,
    }


@pytest.fixture
def lure(plain: dict[str, Any]) -> Iterator[Callable[..., Path]]:
    """Makes a checkpoint whose configuration is changed; at the end nothing may have run."""
    (Path() / "evil.yaml").write_text("class_path: subprocess.Popen\ninit_args: {args: echo > RAN, shell: true}\n")

    class Payload:
        def __reduce__(self) -> Any:
            return os.system, ("echo seen > RAN",)

    for name in ("evil.pth", "evil.pt"):
        Path(name).write_bytes(pickle.dumps(Payload()))

    def make(section: str, change: dict[str, Any], name: str = "evil.ckpt") -> Path:
        content = copy.deepcopy(plain)
        content[RECORD]["config"][section].update(copy.deepcopy(change))
        torch.save(content, name)
        return Path(name)

    yield make
    assert not Path("RAN").exists(), "the command ran"


def test_the_lure_is_a_checkpoint(lure: Callable[..., Path]) -> None:
    """What the others change is refused for the change alone."""
    assert isinstance(load_task(lure("model", {})).network, torch.nn.Conv2d)
    assert load_data(lure("data", {})).image_size == (32, 32)


@pytest.mark.parametrize("change", MODEL_GADGETS.values(), ids=MODEL_GADGETS)
def test_a_checkpoints_model_section_cannot_run_code(lure: Callable[..., Path], change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"evil\.ckpt"):
        load_task(lure("model", change))


@pytest.mark.parametrize("change", DATA_GADGETS.values(), ids=DATA_GADGETS)
def test_a_checkpoints_data_section_cannot_run_code(lure: Callable[..., Path], change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"evil\.ckpt"):
        load_data(lure("data", change))


@pytest.mark.parametrize("change", FIT_GADGETS.values(), ids=FIT_GADGETS)
def test_a_resumed_fit_cannot_run_code(lure: Callable[..., Path], bustseg: Bustseg, change: dict[str, Any]) -> None:
    code, _, err = bustseg("fit", "--ckpt_path", lure("trainer", change))
    assert code == 2
    assert "evil.ckpt" in err
    assert err.strip().count("\n") <= 4  # one line, folded by the console
    assert "Traceback" not in err


WRITERS = {
    "logger": lambda place: {
        "logger": [of("lightning.pytorch.loggers.CSVLogger", save_dir=place, name="", version="")]
    },
    "logger by its name": lambda place: {
        "logger": of("lightning.pytorch.loggers.CSVLogger", save_dir="logs", name=place, version="")
    },
    "profiler": lambda place: {"profiler": of("lightning.pytorch.profilers.SimpleProfiler", dirpath=place)},
    "folder of the trainer": lambda place: {"default_root_dir": place},
}


@pytest.mark.parametrize("change", WRITERS.values(), ids=WRITERS)
def test_a_resumed_fit_writes_over_nothing_elsewhere(
    lure: Callable[..., Path], bustseg: Bustseg, change: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    place = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    place.mkdir()
    (place / "metrics.csv").write_text("ours")
    code, _, err = bustseg("fit", "--ckpt_path", lure("trainer", change(str(place))))
    assert code == 2
    assert "outside the folder that you work in" in " ".join(err.split())
    assert [path.read_text() for path in place.iterdir()] == ["ours"]


def test_places_that_the_user_names_may_be_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten(monkeypatch)
    check_place("logs/version_0", "logs", "x.ckpt")
    for place, base in (("/srv/logs/a", "/srv/logs"), ("logs/../../a", "logs"), ("~/a", "~/a")):
        with pytest.raises(TrustError, match=r"--trainer\.logger"):
            check_place(place, base, "x.ckpt")
    trust.allow_arguments(["--trainer.logger.init_args.save_dir", "/srv/logs"])
    check_place("/srv/logs/a", "/srv/logs", "x.ckpt")
    with pytest.raises(TrustError):
        check_place("/srv/logs/../a", "/srv/logs", "x.ckpt")


@pytest.mark.parametrize("change", (MODEL_GADGETS | DATA_GADGETS).values(), ids=MODEL_GADGETS | DATA_GADGETS)
def test_the_guard_of_imports_and_constructors_alone_runs_nothing(
    lure: Callable[..., Path], change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bustseg.runs.checkpoint.check_config", lambda *args: None)
    section = "model" if change in MODEL_GADGETS.values() else "data"
    load = load_task if section == "model" else load_data
    # a text that stays a text is no harm: the split of that name is missing
    with contextlib.suppress(UserError) if "split" in change else pytest.raises(UserError):
        load(lure(section, change))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("lambda: subprocess.run(['true'])", "subprocess.Popen"),
        ("lambda: os.system('true')", "os.system"),
        ("lambda: pickle.loads(pickle.dumps(os.getcwd))", "pickle.find_class"),
        ("lambda: socket.create_connection(('127.0.0.1', 9))", "socket"),
        ("lambda: urllib.request.urlopen('http://127.0.0.1:9')", "urllib.Request"),
        ("lambda: open('RAN', 'w')", "open"),
        ("lambda: os.open('RAN', os.O_CREAT | os.O_WRONLY)", "open"),
        ("lambda: os.remove('evil.yaml')", "os.remove"),
        ("lambda: os.mkdir('RAN')", "os.mkdir"),
        ("lambda: shutil.rmtree('.')", "shutil.rmtree"),
        ("lambda: os.rename('evil.yaml', 'RAN')", "os.rename"),
        ("lambda: os.fork()", "os.fork"),
    ],
)
def test_a_constructor_cannot_act(lure: Callable[..., Path], call: str, what: str) -> None:
    namespace = {name: importlib.import_module(name) for name in ("os", "pickle", "shutil", "socket", "subprocess")}
    act = eval(call, namespace | {"urllib": urllib})
    with pytest.raises(TrustError, match=what), building("x.ckpt"):
        act()
    assert Path("evil.yaml").is_file()


def test_a_constructor_may_read(lure: Callable[..., Path]) -> None:
    with building("x.ckpt"):
        assert Path("evil.yaml").read_text()
        os.close(os.open("evil.yaml", os.O_RDONLY))


def test_every_command_refuses(lure: Callable[..., Path], bustseg: Bustseg, phantoms: Path) -> None:
    evil = lure("model", {"loss": TRACE})
    image = next((phantoms / "benign").glob("*).png"))
    for command in (
        ("predict", image, "--model", evil, "--out", "out"),
        ("test", "--ckpt_path", evil),
        ("validate", "--ckpt_path", evil),
        ("fit", "--ckpt_path", lure("model", {"loss": TRACE}, "evil-last.ckpt")),
        ("export", evil, "--out", "exported"),
        ("explain", image, "--model", evil, "--out", "explained"),
        ("bench", evil, "--backends", "eager", "--precisions", "fp32", "--rounds", 1, "--batch", 1),
    ):
        code, out, err = bustseg(*command)
        assert code == 2, (command, out, err)
        assert "torch.fx.symbolic_trace" in "".join(err.split("\n")), (command, err)
    lure("model", {"loss": TRACE}, "evil2.ckpt")
    for size in ((), ("--image_size", 64)):
        code, _, err = bustseg("ensemble", evil, "evil2.ckpt", "--out", "evil-both.ckpt", *size)
        assert code == 2
        assert "torch.fx.symbolic_trace" in "".join(err.split("\n"))
    assert not Path("evil-both.ckpt").exists()
    assert not Path("out").exists()


@pytest.mark.slow
def test_an_mlflow_model_refuses(lure: Callable[..., Path], trained_run: TrainedRun) -> None:
    import mlflow

    (folder,) = trained_run.checkpoint.parents[3].glob("models/*/artifacts")
    shutil.copytree(folder, "model")
    os.remove("model/model.pt")  # a link to the checkpoint that all tests share
    evil = lure("model", {"loss": TRACE})
    shutil.copy(evil, "model/model.pt")
    with pytest.raises(TrustError, match=r"symbolic_trace"):
        mlflow.pyfunc.load_model("model")


def test_an_mlflow_model_may_name_what_it_brings(lure: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("model/code").mkdir(parents=True)
    Path("model/code/brought_nets.py").write_text(OWN)
    shutil.copy(lure("model", {"network": of("brought_nets.Net")}), "model/model.pt")
    monkeypatch.syspath_prepend(Path("model/code").resolve())
    from bustseg.deploy.mlflow_model import _load_pyfunc

    with pytest.raises(UserError, match="lacks weights"):  # rebuilt, with others' weights
        _load_pyfunc("model")
    with pytest.raises(TrustError, match="--trust brought_nets"):
        load_task(Path("model/model.pt"))


OWN = """
from pathlib import Path
from torch import nn

Path("IMPORTED").touch()


class Net(nn.Sequential):
    def __init__(self, channels: int = 3) -> None:
        super().__init__(nn.Conv2d(channels, 1, 3, padding=1))


class Other:
    pass


def make(channels: int = 3) -> nn.Module:
    return Net(channels)
"""


@pytest.fixture
def own_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of the user's own; the file IMPORTED tells that it was imported."""
    name = "own_nets_of_tests"
    Path(f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(Path.cwd())
    forgotten(monkeypatch)
    yield name
    sys.modules.pop(name, None)


def test_a_package_of_the_users_own_has_to_be_trusted(
    lure: Callable[..., Path], own_package: str, bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = lure("model", {"network": of(f"{own_package}.Net")})
    with pytest.raises(TrustError, match=f"--trust {own_package} or set BUSTSEG_TRUST={own_package}"):
        load_task(checkpoint)
    assert not Path("IMPORTED").exists(), "an unknown package was imported"
    _, _, err = bustseg("explain", "--model", checkpoint, "--list-layers", "--trust", own_package)
    assert "lacks weights" in err  # rebuilt, with others' weights
    assert Path("IMPORTED").exists()
    assert os.environ.get("BUSTSEG_TRUST") is None
    monkeypatch.setenv("BUSTSEG_TRUST", f"numpy, {own_package}")
    check_config({"model": {"network": of(f"{own_package}.Net")}}, "x")
    with pytest.raises(TrustError, match="not a class"):
        check_config({"model": {"network": of(f"{own_package}.make")}}, "x")
    with pytest.raises(TrustError, match=r"wanted: a torch\.nn\.Module"):
        check_config({"model": {"network": of(f"{own_package}.Other")}}, "x")


def test_a_class_may_be_trusted_alone(own_package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSTSEG_TRUST", f"{own_package}.Net")
    check_config({"model": {"network": of(f"{own_package}.Net")}}, "x")
    with pytest.raises(TrustError):
        check_config({"model": {"network": of(f"{own_package}.Other")}}, "x")


@pytest.mark.slow
def test_what_the_user_names_is_trusted(
    own_package: str, bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--trainer.max_epochs", 1, "--model.optimizer", "torch.optim.SGD", "--explain.enabled", "false"]
    args = ["--config", TINY, "--data.root", phantoms, *options]
    assert bustseg("fit", *args, "--model.network", f"{own_package}.Net")[0] == 0
    # the same process, in which the user has named it
    assert bustseg("test", "--ckpt_path", "latest", *SHORT_TEST)[0] == 0
    for options, wanted in (([], 2), (["--trust", own_package], 0), (["--model.network", f"{own_package}.Net"], 0)):
        forgotten(monkeypatch)
        code, _, err = bustseg("test", "--ckpt_path", "latest", *SHORT_TEST, *options)
        assert code == wanted, err
        assert ("--trust" in err) == (wanted == 2)


def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, in which the user has named nothing yet."""
    monkeypatch.setattr(trust, "_words", [])
    monkeypatch.setattr(trust, "_named", set())


def test_names_of_files_are_no_words_of_the_user(own_package: str) -> None:
    trust.allow_arguments(["--ckpt_path", "os.system", "--data.root=subprocess.getoutput", "--config", "os.popen"])
    assert not trust._named
    trust.allow_arguments(["--model.network", "my.Net", "--model.loss.class_path=my.Loss"])
    assert trust._named == {"my.Net", "my.Loss"}


@pytest.mark.parametrize("args", [["--trust"], ["--trust", "a b"], ["--trust=../x"], ["--trust", ""]])
def test_a_name_that_is_none(bustseg: Bustseg, args: list[str]) -> None:
    code, _, err = bustseg("ui", *args)
    assert code == 2
    assert "name a package, module or class" in err


def test_bounds() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    shared: Any = ["x"]
    for _ in range(60):  # 2^60 values to whoever walks them
        shared = [shared, shared]
    circle: list[Any] = []
    circle.append(circle)
    for value in (deep, shared, circle, ["x"] * 100_000):
        for section in ({"model": {"mean": value}}, {"model": value}, {"data": {"root": {"a": value}}}):
            with pytest.raises(TrustError, match="more than"):
                check_config(section, "x")
    with pytest.raises(TrustError, match="characters"):
        check_config({"data": {"root": "x" * 100_000}}, "x")
    for value in (None, [], "x", 1):
        with pytest.raises(UserError):
            check_config(value, "x")


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_may_be_stored(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    if "model" in content:
        check_config(content, config)


def test_classes_of_every_known_package() -> None:
    for network in (
        of(UNET, encoder_name="resnet18", encoder_weights=None),
        of("monai.networks.nets.UNet", spatial_dims=2),
        of("torchvision.models.segmentation.FCN", backbone=of("torch.nn.Identity")),
        of("timm.models.ResNet", block="timm.models.resnet.BasicBlock"),
        of("torch.nn.Sequential"),
        "torch.nn.Identity",
        fusion(attention=of("bustseg.models.CBAM")),
        of("bustseg.models.Ensemble", networks=[fusion(), of(UNET)]),
    ):
        check_config({"model": {"network": network}}, "x")
    for loss in ("monai.losses.DiceLoss", "segmentation_models_pytorch.losses.DiceLoss", "torch.nn.BCEWithLogitsLoss"):
        check_config({"model": {"loss": of(loss)}}, "x")
    check_config(
        {
            "model": {
                "optimizer": of("torch.optim.AdamW", lr=1e-3),
                "lr_scheduler": of("lightning.pytorch.cli.ReduceLROnPlateau", monitor="val/loss"),
                "postprocess": of("bustseg.postprocess.PostProcess"),
                "train_scale": {0: 0.5},
            },
            "data": {
                "source": of("bustseg.data.sources.Folders"),
                "augmentation": [of("albumentations.OneOf", transforms=[of("albumentations.HorizontalFlip")])],
            },
            "trainer": {
                "callbacks": [of("lightning.pytorch.callbacks.LearningRateMonitor"), "bustseg.callbacks.MovingAverage"],
                "logger": of("lightning.pytorch.loggers.CSVLogger", save_dir="logs"),
                "strategy": "ddp_find_unused_parameters_true",
                "profiler": "simple",
                "precision": "bf16-mixed",
            },
            "seed_everything": 0,
        },
        "x",
    )


def test_a_text_between_class_and_module_is_found_as_the_parser_finds_it() -> None:
    """A module that its package hides behind a function of the same name must not be a way around the check."""
    for path in (
        "torchvision.models.resnet.os.system",
        "timm.models.vision_transformer.partial",
        "timm.models.create_model",
    ):
        with pytest.raises((UserError, ImportError, AttributeError)):
            check_config({"model": {"network": of(path)}}, "x")


def test_pictures_go_to_the_users_own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten(monkeypatch)
    for uri in (None, "sqlite:///mlruns/mlflow.db", "http://127.0.0.1:5000", "https://localhost/mlflow"):
        assert own_store(uri, "x.ckpt") == uri
    for uri in (
        "http://evil.example",
        "https://me:pw@evil.example/x",
        "postgresql://evil.example/db",
        "databricks",
        "databricks://localhost",  # the name of a profile
        # drivers let the query name the host
        "postgresql://localhost/db?host=evil.example",
        "postgresql+psycopg2://me@localhost/db?hostaddr=6.6.6.6",
        "postgresql://localhost/db?service=evil",
        "s3://localhost/x",
    ):
        with pytest.raises(TrustError, match=r"--tracking\.uri sqlite") as refusal:
            own_store(uri, "x.ckpt")
        assert "pw" not in str(refusal.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db.example/runs")
    assert own_store("postgresql://me:***@db.example/runs", "x.ckpt") == "postgresql://me:secret@db.example/runs"
    trust.allow_arguments(["--tracking.uri", "http://ours.example"])
    assert own_store("http://ours.example", "x.ckpt") == "http://ours.example"


@pytest.mark.parametrize("table", ["experiments", "runs"])
def test_a_database_that_sends_files_elsewhere_is_not_the_users_own(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten(monkeypatch)
    path = tmp_path / "came_with_the_checkpoint.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE experiments (artifact_location TEXT)")
        database.execute("CREATE TABLE runs (artifact_uri TEXT)")
        database.execute("INSERT INTO experiments VALUES ('file:///home/me/mlruns/artifacts')")
        database.execute("INSERT INTO runs VALUES (NULL)")
    assert own_store(f"sqlite:///{path}", "x.ckpt") == f"sqlite:///{path}"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f"INSERT INTO {table} VALUES ('ftp://evil.example/x')")
    with pytest.raises(TrustError, match=r"--tracking\.uri sqlite"):
        own_store(f"sqlite:///{path}", "x.ckpt")


GIANTS = {
    "wide": of("torch.nn.Linear", in_features=100_000, out_features=100_000),
    "many channels": of("torch.nn.Conv2d", in_channels=3, out_channels=10**6, kernel_size=100),
    "deep": of(
        "segmentation_models_pytorch.Unet",
        encoder_name="resnet18",
        encoder_weights=None,
        decoder_channels=[30_000, 30_000, 3000, 30, 30],
    ),
    "many copies": of(
        "torch.nn.TransformerEncoder",
        encoder_layer=of("torch.nn.TransformerEncoderLayer", d_model=1024, nhead=1, activation="gelu"),
        num_layers=10**6,
    ),
}


@pytest.mark.parametrize("network", GIANTS.values(), ids=GIANTS)
def test_a_network_far_larger_than_its_weights_is_not_built(lure: Callable[..., Path], network: dict[str, Any]) -> None:
    evil = lure("model", {"network": network})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TrustError, match="far more than its weights do"):
        load_task(evil)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KiB


def test_tensors_and_time_are_bounded_too(lure: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    network = of("torchvision.models.DenseNet", growth_rate=1, block_config=[10**6, 1, 1, 1], num_init_features=1)
    monkeypatch.setattr("bustseg.network_bounds.MAX_TENSORS", 500)
    with pytest.raises(TrustError, match="500 tensors"):
        load_task(lure("model", {"network": network}))
    monkeypatch.setattr("bustseg.network_bounds.MAX_TENSORS", 10**9)
    monkeypatch.setattr("bustseg.network_bounds.MAX_SECONDS", 0.5)
    with pytest.raises(TrustError, match="seconds of computing"):
        load_task(lure("model", {"network": network}))


def test_a_checkpoint_does_not_choose_the_store(lure: Callable[..., Path], bustseg: Bustseg, phantoms: Path) -> None:
    checkpoint = lure("tracking", {"uri": "http://evil.example:5000"})
    code, _, err = bustseg("test", "--ckpt_path", checkpoint)
    assert code == 2
    assert "sends its runs to http://evil.example:5000" in " ".join(err.split())
    assert bustseg("test", "--ckpt_path", checkpoint, *SHORT_TEST, "--tracking.uri", "sqlite:///own.db")[0] == 0
    assert Path("own.db").is_file()
