"""The JSON schema of the configs: every config that ships is valid, and what `fit` refuses is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bustseg.config_schema import public_path, schema
from bustseg.data.sources import BUSI
from bustseg.experiment import Experiment
from bustseg.presets import NOT_A_FIT
from tests.conftest import CONFIGS, TINY

Bustseg = Callable[..., tuple[int, str, str]]

FITS = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name not in NOT_A_FIT]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return schema()


@pytest.fixture(scope="module")
def validator(found: dict[str, Any]) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_every_config_that_ships_is_valid(found: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bustseg.schema.json"
    path.write_text(json.dumps(found))
    assert len(FITS) > 50
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(path), *map(str, [*FITS, TINY])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_resolved_configuration_is_valid(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(json.loads(json.dumps(Experiment.read(CONFIGS / "flagship" / "three_sources.yaml").config)))


@pytest.mark.parametrize(
    "wrong",
    [
        "trainer: {max_epoch: 3}",
        "modle: {}",
        "data: {batch_size: many}",
        "data: {augmentation: ultrasonic}",
        "trainer: {precision: 12}",
        "report: {subsets: [test]}",
        "model: {network: {class_path: bustseg.models.FusionUNet, init_args: {atention: cbam}}}",
        "model: {network: {class_path: bustseg.models.FusionUNet, init_arguments: {}}}",
        "model: {network: {class_path: segmentation_models_pytorch.Unet, init_args: {encoder: resnet18}}}",
        "model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: fast}}}",
        "model: {optimizer: {class_path: Adam, init_args: {params: []}}}",
        "data: {source: {class_path: Combined, init_args: {parts: [{sorce: BUSI}]}}}",
    ],
)
def test_what_is_misspelt_is_not_valid(wrong: str, validator: jsonschema.Draft202012Validator) -> None:
    assert not validator.is_valid(yaml.safe_load(wrong))


@pytest.mark.parametrize(
    "right",
    [
        "model: {network: {class_path: my_package.Net, init_args: {width: 3}}}",
        "model: {loss: my_package.Loss, postprocess: {keep: largest}}",
        "model: {optimizer: {init_args: {lr: 0.01}}, lr_scheduler: null}",
        "data: {source: BUSI, image_size: [128, 96]}",
        "trainer: {devices: auto, precision: 16-mixed, callbacks: [{class_path: bustseg.callbacks.MovingAverage}]}",
    ],
)
def test_what_fit_takes_is_valid(right: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(right))


def test_it_says_what_a_key_is(found: dict[str, Any]) -> None:
    data = found["properties"]["data"]["properties"]
    assert data["batch_size"] == {
        "type": "integer",
        "description": "images per training step, on each process of several",
        "default": 16,
    }
    assert "default" not in found["properties"]["trainer"]["properties"]["precision"], "it depends on the machine"
    paths = found["$defs"]["network"]["anyOf"][1]["anyOf"][0]["enum"]
    assert {"bustseg.models.FusionUNet", "segmentation_models_pytorch.Unet"} <= set(paths)
    assert public_path(BUSI) == "bustseg.data.sources.BUSI"
    assert public_path(Path) is None


def test_the_command_prints_it(bustseg: Bustseg, found: dict[str, Any]) -> None:
    code, out, _ = bustseg("configs", "--schema")
    assert (code, json.loads(out)) == (0, found)
    code, _, err = bustseg("configs", "quickstart", "--schema")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "leave out quickstart" in err
