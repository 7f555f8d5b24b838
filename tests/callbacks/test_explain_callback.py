"""What a test leaves in ``explain/``, and its numbers against those computed image by image."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from bustseg.callbacks.panels import select_cases
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.explain.gradcam import cam_energy, heat_maps, pointing_hit
from bustseg.runs.checkpoint import load_task
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.runs.scores import scores_of_test
from bustseg.runs.tracker import tracking_uri
from tests.conftest import TINY

Bustseg = Callable[..., tuple[int, str, str]]


def latest_run() -> mlflow.entities.Run:
    client = mlflow.MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("tiny")
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]


def test_a_test_measures_and_draws_where_the_network_looks(bustseg: Bustseg, phantoms: Path) -> None:
    fit = ("fit", "--config", TINY, "--data.root", phantoms, "--data.image_size", 64)
    assert bustseg(*fit, "--explain.tolerance", 2)[0] == 0
    code, _, err = bustseg("test", "--ckpt_path", "latest", "--explain.method", "LayerCAM")
    assert code == 0, err
    run = latest_run()
    folder = Path("mlruns/artifacts") / run.info.run_id / "artifacts" / "explain"
    assert (folder / "cases.png").stat().st_size > 20_000
    assert (folder / "layers.png").stat().st_size > 20_000

    task = load_task(resolve_checkpoint("latest"))
    data = UltrasoundDataModule(root=str(phantoms), image_size=64)
    data.setup()
    layers = ["decoder.blocks.3", "encoders.0.net.blocks.6"]
    energy: dict[str, list[float]] = {layer: [] for layer in layers}
    hits: list[float] = []
    share: list[float] = []
    for index in data.indices["test"]:
        image, mask = data.arrays(int(index))
        if not mask.any():
            continue
        heat = heat_maps(task, image[None, None], layers, "LayerCAM").heat
        for layer in layers:
            energy[layer].append(cam_energy(heat[layer][0], mask))
        hits.append(pointing_hit(heat[layers[0]][0], mask, tolerance=2))  # from the fit's own configuration
        share.append(float(mask.mean()))
    metrics = scores_of_test(run)
    assert metrics["test/cam_energy"] == pytest.approx(np.mean(energy[layers[0]]), abs=1e-3)
    assert metrics["test/cam_energy_encoder0"] == pytest.approx(np.mean(energy[layers[1]]), abs=1e-3)
    assert metrics["test/cam_pointing_hit"] == pytest.approx(np.mean(hits), abs=1e-3)
    assert metrics["test/cam_energy_baseline"] == pytest.approx(np.mean(share), abs=1e-6)
    rows = list(csv.DictReader((folder / "cam.csv").open()))
    measured = [float(row[f"energy {layers[0]}"]) for row in rows if row["label"] != "normal"]
    np.testing.assert_allclose(measured, energy[layers[0]], atol=1e-3)


def test_explaining_can_be_switched_off_and_bad_names_stop_the_test_early(bustseg: Bustseg, phantoms: Path) -> None:
    assert bustseg("fit", "--config", TINY, "--data.root", phantoms, "--trainer.max_epochs", 1)[0] == 0
    assert bustseg("test", "--ckpt_path", "latest", "--explain.enabled", "false")[0] == 0
    run = latest_run()
    assert "test/dice_paper" in run.data.metrics
    assert not any("cam" in name for name in run.data.metrics)
    assert not (Path("mlruns/artifacts") / run.info.run_id / "artifacts" / "explain").exists()
    for option, value, expected in (
        ("method", "GradCamPlus", "did you mean GradCAM"),
        ("layer", "decoder.blocks.33", "did you mean decoder.blocks.3"),
        ("methd", "GradCAM", "did you mean `explain.method`"),
    ):
        code, _, err = bustseg("test", "--ckpt_path", "latest", f"--explain.{option}", value)
        assert code == 2
        assert expected in err
        assert len(err.strip().splitlines()) == 1
    assert latest_run().info.status == "FINISHED"


def test_cases_are_chosen_by_dice_and_missed_lesions_can_stand_apart() -> None:
    # Dice 1, 0, 0.8, 2/3, 0.5; then normals with 0, 7 and 3 pixels; the second missed lesion is the larger one
    tp = torch.tensor([5, 0, 4, 4, 3, 0, 0, 0, 0])
    fn = torch.tensor([0, 5, 1, 2, 3, 9, 0, 0, 0])
    fp = torch.tensor([0, 2, 1, 2, 3, 0, 0, 7, 3])
    counts = {"tp": tp, "fn": fn, "fp": fp, "tn": 100 - tp - fn - fp}
    together = {name: positions.tolist() for name, positions in select_cases(counts, 2).items()}
    assert together["best"] == [0, 2]
    assert set(together["worst"]) == {1, 5}
    assert together["normal"] == [7, 8]
    apart = {name: positions.tolist() for name, positions in select_cases(counts, 2, missed_apart=True).items()}
    assert apart == {"best": [0, 2], "median": [3, 2], "worst": [4, 3], "missed": [5, 1], "false positive": [7, 8]}
    perfect = {"tp": tp[:1], "fn": fn[:1], "fp": fp[:1], "tn": tp[:1]}
    assert set(select_cases(perfect, 2, missed_apart=True)) == {"best", "median", "worst"}
