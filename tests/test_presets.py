"""Configs that ship are found by name from any folder; the short help and its hints fit the parser."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from bustseg.errors import UserError
from bustseg.experiment import Experiment, with_shipped_configs
from bustseg.presets import about, find_config, presets
from bustseg.usual_keys import KEYS, LOSSES, MEANT, NETWORKS, meant
from tests.conftest import CONFIGS, TINY

Bustseg = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "name", ["baselines/unet_lite0", "baselines/unet_lite0.yaml", "configs/baselines/unet_lite0.yaml"]
)
def test_a_shipped_config_is_found_from_any_folder(name: str) -> None:
    assert find_config(name).resolve() == CONFIGS / "baselines" / "unet_lite0.yaml"
    options = with_shipped_configs(["--config", name, f"--config={name}", "--data.split", "quickstart"])
    assert options == [
        "--config",
        str(find_config(name)),
        "--config",
        str(find_config(name)),
        "--data.split",
        "quickstart",
    ]
    assert Experiment.read(name).name == "unet_lite0"


def test_a_file_of_ones_own_comes_first() -> None:
    Path("quickstart").write_text("data: {batch_size: 3}\n")
    assert find_config("quickstart") == Path("quickstart")
    Path("configs").mkdir()
    Path("configs/quickstart.yaml").write_text("# mine\n")
    assert about(presets()["quickstart"]) == "mine"


def test_an_unknown_name_is_one_line(bustseg: Bustseg) -> None:
    with pytest.raises(UserError, match=r"no config file at baselines/unet_lite: did you mean baselines/unet_lite0"):
        find_config("baselines/unet_lite")
    code, _, err = bustseg("fit", "--config", "nowhere")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "no config file at nowhere (`bustseg configs` lists those that ship)" in err


def test_configs_are_listed_with_what_they_are_and_printed(bustseg: Bustseg) -> None:
    code, out, _ = bustseg("configs")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("quickstart "))
    assert "A first run in minutes" in line
    assert {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")} == {
        line.split()[0] for line in out.splitlines()
    }
    assert all(len(line.split()) > 3 for line in out.splitlines()), "every config begins with what it is"
    assert bustseg("configs", "quickstart")[1] == (CONFIGS / "quickstart.yaml").read_text()


@pytest.mark.parametrize("columns", [80, 120])
def test_short_help_is_a_screen_and_a_half(bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = bustseg("fit", "--help")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) <= 80
    assert max(map(len, lines)) <= columns
    for word in ("FusionUNet", "HybridLoss", "quickstart", "paper/model_01 to model_20", "--ckpt_path", "--help-all"):
        assert word in out
    assert "example: bustseg fit --config" in out


def test_the_short_help_names_what_there_is() -> None:
    experiment = Experiment.read(TINY)
    for key, default, _ in (row for rows in KEYS.values() for row in rows):
        value = experiment.of_config({"model": {"network": experiment["model.network"]}})[
            key.replace("optimizer.lr", "optimizer.init_args.lr")
        ]
        if isinstance(value, str | int | float) and " " not in default:
            assert type(value)(default) == value, key
    for module, names in (("bustseg.models", NETWORKS), ("bustseg.losses", LOSSES)):
        assert all(isinstance(getattr(import_module(module), name), type) for name in names)
    assert set(MEANT.values()) <= {key for rows in KEYS.values() for key, _, _ in rows} | {"ckpt_path"}


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--epochs", "trainer.max_epochs"),
        ("--lr", "model.optimizer.lr"),
        ("--batch-size", "data.batch_size"),
        ("--batch_size", "data.batch_size"),
        ("--max_epochs", "trainer.max_epochs"),
    ],
)
def test_options_of_other_tools_get_a_hint(option: str, key: str, bustseg: Bustseg) -> None:
    code, _, err = bustseg("fit", "--config", TINY, option, "3")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert f"did you mean --{key}?" in err
    assert meant("anything") is None
    assert Experiment.parse(["--config", str(TINY), f"--{key}", "3"]), "the hint works"
