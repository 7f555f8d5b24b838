"""Each kind of part is added from outside, by a module that bustseg knows nothing of, and goes through fit and test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from bustseg import classes
from bustseg.deploy import ExportFormat, formats, register_format, unregister_format
from bustseg.errors import UserError
from bustseg.metrics import unregister
from tests.conftest import SHORT_TEST
from tests.faults import harness

Run = Callable[..., tuple[int, str, str]]

THEIRS = Path(__file__).parent / "fixtures" / "theirs.py"
GUIDE = Path(__file__).parents[1] / "docs" / "how-to" / "extend.md"

CONFIG = {
    "model": {"network": {"class_path": "theirs.SmallNet"}, "loss": {"class_path": "theirs.SquaredError"}},
    "data": {
        "source": {"class_path": "theirs.OneFolder"},
        "root": "images",
        "image_size": 32,
        "augmentation": [{"class_path": "theirs.Inverted", "init_args": {"p": 0.5}}],
    },
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "precision": "32-true",
        "logger": [{"class_path": "theirs.Lines", "init_args": {"path": "lines.txt"}}],
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module, images and a config of somebody's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUSI_ROOT", raising=False)
    (tmp_path / "theirs.py").write_text(THEIRS.read_text())
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        image = rng.integers(80, 200, (48, 64), dtype=np.uint8)
        mask = np.zeros_like(image)
        mask[10 : 20 + number, 15:40] = 255
        cv2.imwrite(f"images/scan{number}.png", np.where(mask, image // 3, image))
        cv2.imwrite(f"images/scan{number}_mask.png", mask)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("theirs", None)
    unregister("width_error")
    unregister_format("program")


def test_every_part_from_outside(project: Path, bustseg: Run) -> None:
    code, _, err = bustseg("fit", "--config", "theirs.yaml", "--tracking.uri", "sqlite:///mlruns/mlflow.db")
    assert code == 0, err
    assert "val/dice_lesion" in Path("lines.txt").read_text(), "their logger has the metrics"
    # in a process of its own, since this one has been given the config, which is the user's word
    refused = harness.run(project, "test", "--ckpt_path", "latest")
    assert refused.code == 2
    assert "--trust" in refused.err
    code, _, err = bustseg("test", "--ckpt_path", "latest", "--trust", "theirs", *SHORT_TEST)
    assert code == 0, err
    (table,) = Path("mlruns").glob("*/*/tables/test.csv")
    assert pd.read_csv(table)["width_error"].notna().any()

    code, _, err = bustseg("export", "latest", "--format", "program", "--out", "exported", "--trust", "theirs")
    assert code == 0, err
    metadata = json.loads(Path("exported/bustseg.json").read_text())
    assert (metadata["format"], metadata["model"], metadata["checks"]["runtime"]) == (
        "program",
        "model.pt2",
        "torch.export",
    )
    assert metadata["checks"]["difference"]["largest"] < 1e-3
    code, _, err = bustseg("predict", "images/scan0.png", "--model", "exported", "--out", "masks")
    assert code == 0, err
    # where nobody has registered the format, its folder is refused, and so is its name
    unregister_format("program")
    for command in (
        ("predict", "images/scan0.png", "--model", "exported", "--out", "other"),
        ("export", "latest", "--format", "program", "--out", "other", "--trust", "theirs"),
    ):
        code, _, err = bustseg(*command)
        assert code == 2, err
        assert "no export format program: there are onnx, openvino" in err.splitlines()[-1]


def test_a_format_of_anothers_name_is_refused() -> None:
    for name in ("onnx", "Torch", "a-b", ""):
        with pytest.raises(UserError, match="invalid name"):
            register_format(ExportFormat(name, write=lambda *args: Path(), open=lambda *args: None))


def test_an_installed_package_brings_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    brought = [ExportFormat("brought", write=lambda *args: Path(), open=lambda *args: None, precisions=("int8",))]
    points = [SimpleNamespace(value="somewhere:FORMATS", load=lambda: brought)]
    monkeypatch.setattr(classes, "entry_points", lambda group: points if group == "bustseg.export_formats" else [])
    formats._register_installed.cache_clear()
    try:
        assert formats.find_format("brought").precisions == ("int8",)
        points.append(SimpleNamespace(value="elsewhere:FORMATS", load=lambda: brought[7]))
        formats._register_installed.cache_clear()
        with pytest.raises(UserError, match="the export formats of elsewhere:FORMATS cannot be loaded"):
            formats.find_format("brought")
    finally:
        unregister_format("brought")
        formats._register_installed.cache_clear()


def test_the_guide_shows_the_module_that_is_tested() -> None:
    assert THEIRS.read_text().partition('"""\n\n')[2].strip() in GUIDE.read_text()
