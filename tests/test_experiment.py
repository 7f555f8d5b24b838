"""Experiments: files and changes to one resolved configuration, and what is made of it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from bustseg.errors import UnknownKeyError, UserError
from bustseg.experiment import Experiment, put
from bustseg.runs.checkpoint import build_data
from tests.conftest import TINY, TrainedRun

LR = "model.optimizer.init_args.lr"


@pytest.fixture(scope="module")
def tiny() -> Experiment:
    return Experiment.read(TINY)


def test_a_file_and_what_it_leaves_out(tiny: Experiment) -> None:
    assert (tiny["data.batch_size"], tiny["data.split"], tiny["early_stopping.patience"]) == (8, "paper", 10)
    assert tiny["model.network.init_args.dropout"] == 0.3, "defaults of the class that the file names"
    assert (tiny.name, tiny.origin, tiny.ckpt_path) == ("tiny", "", None)
    assert list(tiny.config)[:4] == ["seed_everything", "trainer", "model", "data"]
    assert not {"config", "ckpt_path", "verbose"} & set(tiny.config)


def test_later_files_and_options_win(tiny: Experiment) -> None:
    Path("more.yaml").write_text("data: {batch_size: 4}\nmodel: {network: {init_args: {attention: none}}}\n")
    both = Experiment.read(TINY, "more.yaml")
    assert (both["data.batch_size"], both["model.network.init_args.attention"], both.name) == (4, "none", "more")
    assert both["model.network.init_args.weights"] == "none", "what it does not name stays"
    assert tiny.with_options(["--data.batch_size=4", "--model.network.init_args.attention", "none"]) == both
    assert tiny.with_options([]) is tiny


def test_changes_make_another_experiment(tiny: Experiment) -> None:
    other = tiny.but({"data.batch_size": 4}, lr=1, max_epochs=7)
    assert (other["data.batch_size"], other[LR], other["trainer.max_epochs"]) == (4, 1.0, 7)
    assert isinstance(other[LR], float), "the value is read as the option would be"
    assert (tiny["data.batch_size"], tiny[LR], tiny["trainer.max_epochs"]) == (8, 1e-3, 2)
    assert other.but({"data.batch_size": 8, "trainer.max_epochs": 2}, lr=1e-3) == tiny
    loss = tiny.but({"model.loss": {"class_path": "bustseg.losses.DiceLoss", "init_args": {"empty_smooth": 2.0}}})
    again = loss.but({"model.loss": {"class_path": "bustseg.losses.DiceLoss"}})
    assert (loss["model.loss.init_args.empty_smooth"], again["model.loss.init_args.empty_smooth"]) == (2.0, 0.05), (
        "replaced, not merged"
    )
    config = other.config
    config["data"]["batch_size"] = 99
    assert other["data.batch_size"] == 4, "nobody can change it from outside"


BAD = {
    "ambiguous": ({"monitor": "x"}, "several config keys end in `monitor`: name one of early_stopping.monitor, "),
    "unknown ending": ({"batchsize": 3}, "unknown config key `batchsize`"),
    "unknown key": ({"data.bach_size": 3}, "unknown config key `data.bach_size`: did you mean `data.batch_size`"),
    "unknown section": ({"dada.batch_size": 3}, "unknown config key `dada.batch_size`: did you mean `data.batch_size`"),
    "unknown argument of a class": ({"model.network.init_args.dropot": 3}, "Option 'dropot' is not accepted"),
    "wrong type": ({"data.batch_size": "many"}, "`data.batch_size` is many: give a whole number"),
    "unknown class": ({"model.network": {"class_path": "bustseg.models.NoNet"}}, "NoNet"),
}


@pytest.mark.parametrize("case", BAD)
def test_changes_that_cannot_be_made_are_named(case: str, tiny: Experiment) -> None:
    changes, message = BAD[case]
    short = {key: value for key, value in changes.items() if "." not in key}
    with pytest.raises(UserError) as error:
        tiny.but({key: value for key, value in changes.items() if key not in short}, **short)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


CHANGES = {
    "as the file writes it": ("", {"trainer.max_epochs": 3, LR: 1e-5}),
    "a text that looks like a number": ("", {"tracking.run_name": "1e-3", "tracking.tags": {"note": "007"}}),
    "a class in the place of another": ("", {"model.loss": {"class_path": "HybridLoss"}}),
    "an argument of a class that the file leaves out": ("seed_everything: 1", {LR: 0.5}),
    "what the file leaves out": ("", {"early_stopping.patience": 4, "data.split": None}),
    "a class that is a text alone": ("model: {optimizer: torch.optim.SGD}", {LR: 0.5}),
    "keys with dots": ("early_stopping.patience: 3", {"early_stopping.min_delta": 0.5}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_file_read_with_changes_is_the_file_changed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more, changes = CHANGES[case]
    content = yaml.safe_load(TINY.read_text())
    if more:
        del content["model"]["optimizer"]
        model = yaml.safe_load(more)
        content = {**content, **{key: value for key, value in model.items() if key != "model"}}
        content["model"] |= model.get("model", {})
    Path("own.yaml").write_text(yaml.safe_dump(content))
    options = ["--data.batch_size", "2"]
    in_steps = Experiment.read("own.yaml").but(changes).with_options(options)
    at_once = Experiment.read_changed("own.yaml", changes, options)
    assert at_once == in_steps
    assert (at_once.name, at_once.overrides) == ("own", {"data.batch_size": "2"})
    assert Experiment.read("own.yaml")["trainer.max_epochs"] == 2, "the changes are gone from the parser"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"trainer.max_epoch": 3}, "trainer.max_epoch"),
        ({"model.network.init_args.dropot": 0.1}, "model.network.init_args.dropot"),
        ({"model.loss": {"class_path": "HybridLoss", "init_args": {"alpa": 1}}}, "model.loss.init_args.alpa"),
    ],
)
def test_an_unknown_key_is_told_to_who_asks(changes: dict[str, object], key: str, tiny: Experiment) -> None:
    with pytest.raises(UnknownKeyError) as raised:
        tiny.but(changes)
    assert raised.value.key == pickle.loads(pickle.dumps(raised.value)).key == key


def test_it_is_written_and_read_again(tiny: Experiment, tmp_path: Path) -> None:
    growing = tiny.but(
        {"model.train_scale": {0: 0.5, 1: 1.0}, "data.image_size": [32, 48], "tracking.tags": {"a": "b"}}
    )
    growing.save(tmp_path / "growing.yaml")
    assert Experiment.read(tmp_path / "growing.yaml") == growing
    assert Experiment.of_config(growing.config) == growing
    assert growing.instantiate().model.train_scale == {0: 0.5, 1: 1.0}, "numbers as keys are numbers again"


def test_a_run_and_a_checkpoint_give_their_experiment_back(trained_run: TrainedRun, phantoms: Path) -> None:
    expected = Experiment.read(TINY).but({"data.root": str(phantoms)})
    for found in (Experiment.of_run(trained_run.run_id), Experiment.of_checkpoint(trained_run.checkpoint)):
        assert found == expected
    assert Experiment.of_checkpoint(trained_run.checkpoint).origin == str(trained_run.checkpoint)


def test_parts_are_made_once_each(tiny: Experiment) -> None:
    parts = tiny.instantiate()
    assert type(parts.model.network).__name__ == "FusionUNet"
    assert parts.data.batch_size == 8
    assert parts.early_stopping.monitor == "val/loss"
    assert parts.model.optimizer([parts.model.scale.clone().requires_grad_()]).defaults["lr"] == 1e-3


def test_a_checkpoint_brings_the_weights_that_a_network_would_fetch(tiny: Experiment) -> None:
    pretrained = tiny.but(weights="imagenet")
    assert pretrained.untrained()["model.network.init_args.weights"] == "none"
    assert pretrained["model.network.init_args.weights"] == "imagenet"


def test_put() -> None:
    config = {"a": {"b": 1}, "c": None}
    put(config, "a.b", 2)
    put(config, "c.d.e", 3)
    assert config == {"a": {"b": 2}, "c": {"d": {"e": 3}}}


def test_transforms_that_read_other_images_come_back_from_what_was_stored(tmp_path: Path) -> None:
    """albumentations' default of ``read_fn`` is a function, whose name in a dump is none."""
    looks = [
        {"class_path": f"albumentations.{name}", "init_args": {"metadata_key": "reference", "p": 0.5, **own}}
        for name, own in (("HistogramMatching", {"blend_ratio": [0.3, 1.0]}), ("FDA", {"beta_limit": [0.0, 0.05]}))
    ]
    file = tmp_path / "looks.yaml"
    file.write_text(yaml.safe_dump({"data": {"augmentation": looks}}))
    stored = Experiment.read(TINY, file).config
    assert "read_fn" not in str(stored)
    for step in stored["data"]["augmentation"]:
        step["init_args"]["read_fn"] = "albumentations.read_rgb_image"  # as runs have it that were stored before
    again = Experiment.of_config(stored, origin="a run")
    steps = again.instantiate().data.augmentation
    assert [type(step).__name__ for step in steps] == ["HistogramMatching", "FDA"]
    assert [type(step).__name__ for step in build_data(stored["data"]).augmentation] == ["HistogramMatching", "FDA"]
    stored["data"]["augmentation"][0]["init_args"]["read_fn"] = "os.system"
    with pytest.raises(UserError):
        Experiment.of_config(stored, origin="a run").instantiate()
