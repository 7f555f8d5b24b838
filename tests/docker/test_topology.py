"""The compose file's services as plain processes: PostgreSQL, `mlflow server` with the file's own command, trainers."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest
import yaml

from bustseg.runs.tracker import local_path
from tests.conftest import REPOSITORY, TINY, TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]
COMPOSE = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())


def command(service: str) -> list[str]:
    """A service's command with the defaults of its variables."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", item) for item in COMPOSE["services"][service]["command"]]


@dataclass(frozen=True)
class Databases:
    """URLs of the two databases of the compose file's PostgreSQL."""

    mlflow: str
    optuna: str


@pytest.fixture(scope="module")
def databases(new_database: Callable[[], str]) -> Databases:
    return Databases(new_database(), new_database())


@dataclass(frozen=True)
class Server:
    """An MLflow server that was started with the compose file's command."""

    uri: str
    artifacts: Path


@pytest.fixture(scope="module")
def server(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
        "--workers=2": "--workers=1",
        "--backend-store-uri=postgresql+psycopg://postgres:5432/mlflow": f"--backend-store-uri={databases.mlflow}",
        "--artifacts-destination=/artifacts": f"--artifacts-destination={folder / 'artifacts'}",
    }
    given = command("mlflow")
    assert set(here) <= set(given), "the compose file's command has changed"
    uri = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *(here.get(item, item) for item in given)],
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + 240
            while time.monotonic() < end:
                assert process.poll() is None, (folder / "server.log").read_text()
                try:
                    urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield Server(uri, folder / "artifacts")
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def status(uri: str, host: str) -> int:
    connection = http.client.HTTPConnection(uri.removeprefix("http://"), timeout=30)
    connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
    return connection.getresponse().status


def move_local_store(local: TrainedRun, client: mlflow.MlflowClient, databases: Databases, artifacts: Path) -> None:
    """As the documentation says: the database with `move_store.py`, the files by a copy."""
    move = [sys.executable, str(REPOSITORY / "docker" / "move_store.py"), local.uri, databases.mlflow]
    done = subprocess.run(move, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "runs: 1" in done.stdout.splitlines()
    shutil.copytree(Path(local.uri.removeprefix("sqlite:///")).parent / "artifacts", artifacts, dirs_exist_ok=True)
    before, after = mlflow.MlflowClient(local.uri).get_run(local.run_id), client.get_run(local.run_id)
    assert after.data.to_dictionary() == before.data.to_dictionary()
    assert after.info.artifact_uri == f"mlflow-artifacts:/{local.run_id}/artifacts"
    copy = mlflow.artifacts.download_artifacts(
        f"runs:/{local.run_id}/checkpoints/best.ckpt", tracking_uri=client.tracking_uri
    )
    assert Path(copy).read_bytes() == local.checkpoint.read_bytes()
    new = client.create_experiment("numbered after those that were moved")
    assert int(new) > int(before.info.experiment_id)
    assert client.get_experiment(new).artifact_location == f"mlflow-artifacts:/{new}"
    (model,) = client.search_logged_models([before.info.experiment_id])
    assert model.artifact_location == f"mlflow-artifacts:/models/{model.model_id}/artifacts"
    again = subprocess.run(move, capture_output=True, text=True)
    assert again.returncode == 1
    assert "has runs already" in again.stderr


@pytest.fixture
def _containers_settings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)


@pytest.mark.slow
@pytest.mark.usefixtures("_containers_settings")
def test_a_fit_and_a_test_through_the_server(
    trained_run: TrainedRun,
    server: Server,
    databases: Databases,
    bustseg: Bustseg,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)  # not the shared run's store
    assert status(server.uri, "mlflow:5000") == 200, "as the trainer's container calls it"
    assert status(server.uri, "attacker.example") == 403

    client = mlflow.MlflowClient(server.uri)
    move_local_store(trained_run, client, databases, server.artifacts)

    monkeypatch.setenv("BUSTSEG_UI", "http://somebody:secret@localhost:5001/")
    code, out, err = bustseg("fit", "--config", TINY, "--data.root", phantoms)
    assert code == 0, err
    assert "warning" not in err
    experiment = client.get_experiment_by_name("tiny")
    (run,) = (run for run in client.search_runs([experiment.experiment_id]) if run.info.run_id != trained_run.run_id)
    assert run.info.status == "FINISHED"
    page = f"http://somebody:***@localhost:5001/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
    assert f"page      {page}" in out
    assert local_path(run.info.artifact_uri) is None, "artifacts go through the server"

    # as another machine would: nothing of the run is left here
    here = tmp_path / "mlruns" / "remote" / run.info.run_id
    assert (here / "checkpoints" / "last.ckpt").is_file()
    here.rename(tmp_path / "gone")
    code, out, err = bustseg("test", "--ckpt_path", run.info.run_id)
    assert code == 0, err
    assert "warning" not in err
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert {"train/loss", "val/dice_lesion", "test/dice_paper", "test/auc_pixel"} <= set(run.data.metrics)
    assert run.data.params["data.batch_size"] == "8"
    destination = server.artifacts
    stored = {str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file()}
    for name in (
        *("config.yaml", "split.csv", "checkpoints/best.ckpt", "model_card.md"),
        *("tables/test.csv", "panels/test.png", "curves/roc.png", "explain/cases.png"),
    ):
        assert any(path.endswith(f"{run.info.run_id}/artifacts/{name}") for path in stored), name
    config = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/config.yaml", tracking_uri=server.uri)
    assert yaml.safe_load(Path(config).read_text())["data"]["image_size"] == 32
    (model,) = (
        model
        for model in client.search_logged_models([experiment.experiment_id])
        if model.source_run_id == run.info.run_id
    )
    assert any(path.endswith("MLmodel") and model.model_id in path for path in stored)


@pytest.mark.slow
@pytest.mark.usefixtures("_containers_settings")
def test_two_sweep_workers_share_a_study_in_postgresql(
    server: Server, databases: Databases, phantoms: Path, tmp_path: Path
) -> None:
    """As `docker compose --profile sweep up --scale worker=2`."""
    sweep = TINY.parent / "sweep.yaml"
    if find_spec("bustseg.sweep") is None or not sweep.is_file():
        pytest.skip("there is no `bustseg sweep` here")
    here = {
        "${SWEEP_CONFIG:-/configs/sweeps/paper_grid.yaml}": str(sweep),
        "postgresql+psycopg://postgres:5432/optuna": databases.optuna,
        "${SWEEP_WORKERS:-1}": "1",
    }
    given = COMPOSE["services"]["worker"]["command"]
    assert set(here) <= set(given), "the compose file's command has changed"
    arguments = [*(here.get(item, item) for item in given), "--data.root", str(phantoms)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    logs = [tmp_path / f"worker{number}.log" for number in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "bustseg.cli", *arguments],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for log in logs
    ]
    codes = [worker.wait(500) for worker in workers]
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    client = mlflow.MlflowClient(server.uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len({run.data.tags["mlflow.parentRunId"] for run in children}) == 1, "one sweep"
    keys = ("model.optimizer.init_args.lr", "data.batch_size")
    points = [tuple(float(run.data.params[key]) for key in keys) for run in children]
    assert sorted(points) == [(0.001, 4), (0.001, 8), (0.01, 4), (0.01, 8)], "each point once"
    assert {run.info.status for run in children} == {"FINISHED"}
