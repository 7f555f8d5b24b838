"""Pictures of fixed validation images over epochs, and the machine's load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from bustseg.callbacks.pictures import KEY, outlined, side_by_side
from bustseg.figures.colours import PREDICTION, TRUTH, rgb
from bustseg.runs.store import tracking_uri
from tests.conftest import TINY

Bustseg = Callable[..., tuple[int, str, str]]


def test_outlines_are_where_the_masks_are() -> None:
    image, truth, prediction = (np.zeros((20, 30), np.uint8) for _ in range(3))
    truth[2:8, 2:8] = 1
    prediction[10:15, 20:28] = 1
    drawn = outlined(image, truth, prediction)
    assert drawn.shape == (20, 30, 3)
    assert tuple(drawn[2, 2]) == rgb(TRUTH)
    assert tuple(drawn[14, 27]) == rgb(PREDICTION)
    assert not drawn[4:6, 4:6].any(), "an outline and no area"
    assert (drawn.any(axis=2)).sum() == 2 * (6 + 6) - 4 + 2 * (5 + 8) - 4
    assert side_by_side([drawn, drawn]).shape == (20, 64, 3)
    assert max(outlined(*(np.zeros((600, 800), np.uint8),) * 3).shape) == 256


@pytest.mark.parametrize("wanted", [True, False])
def test_an_epoch_leaves_one_picture_of_four_images(wanted: bool, bustseg: Bustseg, phantoms: Path) -> None:
    options = ("--data.root", phantoms, "--trainer.max_epochs", 2, "--tracking.pictures", wanted)
    code, _, err = bustseg("fit", "--config", TINY, *options)
    assert code == 0, err
    client = mlflow.MlflowClient(tracking_uri())
    (run,) = client.search_runs(["1"])
    names = sorted(item.path for item in client.list_artifacts(run.info.run_id, "images"))
    assert run.data.tags.get("mlflow.loggedImages") == ("True" if wanted else None)
    if not wanted:
        assert names == []
        return
    # the names by which MLflow's UI finds what `log_image` has written
    stem = KEY.replace("/", "~")
    assert [name.split("+timestamp")[0] for name in names] == [f"images/{stem}+step+{step}" for step in (0, 0, 1, 1)]
    assert sorted(name.rpartition(".")[2] for name in names) == ["png", "png", "webp", "webp"]
    (folder,) = Path("mlruns/artifacts").glob("*/artifacts/images")
    shown = min(4, int(run.data.tags["images_val"]))
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert image.size == (shown * (32 + 4) - 4, 32)
    # an epoch that is trained again has one picture
    code, _, err = bustseg("fit", "--ckpt_path", "latest", "--trainer.max_epochs", 3)
    assert code == 0, err
    assert len(list(folder.glob("*.png"))) == 3


def test_the_machines_load_is_recorded_where_it_is_asked_for(
    bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    for wanted in (False, True):
        options = ("--data.root", phantoms, "--trainer.max_epochs", 1, "--tracking.system_metrics", wanted)
        code, _, err = bustseg("fit", "--config", TINY, *options)
        assert code == 0, err
    on, off = mlflow.MlflowClient(tracking_uri()).search_runs(["1"])
    assert "system/cpu_utilization_percentage" in on.data.metrics
    assert not any(name.startswith("system/") for name in off.data.metrics)
    assert on.info.status == "FINISHED"
