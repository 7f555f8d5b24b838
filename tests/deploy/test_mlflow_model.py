"""The model in MLflow: what a run holds, what goes in and out, and a server that answers."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from bustseg.deploy.mlflow_model import SegmentationModel, as_images
from bustseg.deploy.predictor import Predictor
from bustseg.errors import DataError
from bustseg.runs import logged_model
from bustseg.runs.logged_model import log_model, logged_model_id, requirements
from bustseg.runs.tracker import tracking_uri
from tests.conftest import REPOSITORY, TINY, TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]


def scan(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def unpng(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture
def model(trained_run: TrainedRun) -> mlflow.pyfunc.PyFuncModel:
    mlflow.set_tracking_uri(trained_run.uri)
    return mlflow.pyfunc.load_model(f"runs:/{trained_run.run_id}/model")


def test_a_run_holds_a_model_that_predicts_as_its_checkpoint(
    model: mlflow.pyfunc.PyFuncModel, trained_run: TrainedRun
) -> None:
    image = scan()
    expected = Predictor(trained_run.checkpoint)(image)
    (record,) = model.predict(image)
    assert np.array_equal(record["mask"], expected.mask)
    assert np.array_equal(record["probability"], expected.probability)
    assert record["lesion_probability"] == expected.lesion_probability
    assert record["area_px"] == expected.area_px
    assert record["presence"] is expected.presence is None, "a run that is not calibrated has none"
    assert "not a medical device" in record["notice"]


def test_presence_is_the_calibrated_probability(calibrated: Predictor) -> None:
    image = np.full((50, 70), 180, np.uint8)
    image[10:40, 10:60] = 20
    (record,) = SegmentationModel(calibrated).predict(image)
    assert record["presence"] == pytest.approx(1 / (1 + np.exp(1 - 0.5 * 8)))
    assert record["lesion_probability"] == pytest.approx(1 / (1 + np.exp(-8)))


def test_the_store_holds_the_weights_once_and_no_pickled_code(trained_run: TrainedRun) -> None:
    client = mlflow.MlflowClient(trained_run.uri)
    model_id = logged_model_id(client, trained_run.run_id)
    assert model_id is not None
    logged = client.get_logged_model(model_id)
    assert str(logged.status) == "READY"
    assert logged.source_run_id == trained_run.run_id
    folder = Path(logged.artifact_location.removeprefix("file://"))
    assert os.path.samefile(folder / "model.pt", trained_run.checkpoint)
    assert not list(folder.rglob("*.pkl"))
    assert (folder / "code" / "bustseg" / "task.py").is_file()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.name != "model.pt") < 3_000_000
    assert "Not a medical device" in (folder / "model_card.md").read_text()
    # the validation scores of the best epoch are shown beside the model
    run = client.get_run(trained_run.run_id)
    best = int(run.data.tags["best.epoch"])
    by_step = {point.step: point.value for point in client.get_metric_history(trained_run.run_id, "val/loss")}
    assert len(by_step) == 2
    assert len(client.get_metric_history(trained_run.run_id, "val/loss")) == 2, "no point is counted twice"
    assert {m.key: m.value for m in logged.metrics or []}["val/loss"] == by_step[best] == min(by_step.values())


def test_images_come_as_arrays_files_or_text_of_any_size(model: mlflow.pyfunc.PyFuncModel) -> None:
    image = scan()
    colour = np.repeat(image[..., None], 3, axis=2)
    text = base64.b64encode(png(image)).decode()
    expected = model.predict(image)[0]["probability"]
    inputs = {
        "image": (image, 1),
        "stack": (np.stack([image, image]), 2),
        "colour": (colour, 1),
        "colour stack": (np.stack([colour, colour]), 2),
        "16 bits": (image.astype(np.uint16) * 257, 1),
        "floats": (image / 255, 1),
        "named": ({"image": image}, 1),
        "text": (pd.DataFrame({"image": [text, text]}), 2),
        "bytes": (pd.DataFrame({"image": [png(image)]}), 1),
    }
    for name, (value, count) in inputs.items():
        records = model.predict(value)
        assert len(records) == count, name
        for record in records:
            assert np.allclose(record["probability"], expected, atol=1e-6), name
    sizes = pd.DataFrame({"image": [png(scan(20, 30)), png(scan(64, 48))]})
    assert [record["mask"].shape for record in model.predict(sizes)] == [(20, 30), (64, 48)]


def test_parameters_choose_threshold_and_encoding(model: mlflow.pyfunc.PyFuncModel) -> None:
    image = scan()
    (plain,) = model.predict(image, params={"threshold": 0.0})
    assert plain["area_px"] == image.size
    (packed,) = model.predict(image, params={"encoding": "png", "threshold": 0.0})
    assert np.array_equal(unpng(packed["mask"]), np.full(image.shape, 255))
    assert np.allclose(unpng(packed["probability"]) / 65535, plain["probability"], atol=1 / 65535)
    for params, message in (
        ({"threshold": 2.0}, "threshold is 2.0"),
        ({"encoding": "jpeg"}, "unknown encoding 'jpeg'"),
    ):
        with pytest.raises(MlflowException, match=message):
            model.predict(image, params=params)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no base64!", "not base64"),
        (base64.b64encode(b"no image").decode(), "not a readable PNG"),
        (np.zeros((2, 2, 2, 2, 2)), "holds no images"),
        ([], "does not hold an image"),
        (None, "does not hold an image"),
        ({"picture": 1}, "name the images `image`"),
        ([["a", 1], 2], "holds no image"),
    ],
)
def test_input_without_an_image_is_refused_in_one_line(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        as_images(value)
    assert "\n" not in str(error.value)


def test_nested_lists_of_different_sizes_are_images() -> None:
    assert [image.shape for image in as_images([[[1, 2], [3, 4]], [[1, 2, 3], [4, 5, 6]]])] == [(2, 2), (2, 3)]
    assert [image.shape for image in as_images(scan(5, 6).tolist())] == [(5, 6)]
    assert [image.shape for image in as_images(np.array([scan(5, 6), scan(7, 8)], dtype=object))] == [(5, 6), (7, 8)]


def test_the_example_is_served_as_written(trained_run: TrainedRun, model: mlflow.pyfunc.PyFuncModel) -> None:
    from mlflow.pyfunc.scoring_server import invocations

    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{trained_run.run_id}/model"))
    payload = (folder / "serving_input_example.json").read_text()
    answer = invocations(payload, "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200
    (record,) = json.loads(answer.response)["predictions"]
    assert np.array(record["mask"]).shape == np.array(logged_model.input_example()["image"][0]).shape


@pytest.mark.slow
def test_requirements_name_all_that_inference_imports(trained_run: TrainedRun, tmp_path: Path) -> None:
    shutil.copy(trained_run.checkpoint, tmp_path / "model.pt")
    script = (
        "import sys; from bustseg.deploy.mlflow_model import _load_pyfunc; import numpy;"
        "_load_pyfunc('.').predict(numpy.zeros((9, 9), 'uint8'));"
        "print(*(module.__file__ for name, module in sys.modules.items() if name.startswith('bustseg')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ).stdout.split()
    imported = set()
    for file in loaded:
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    pinned = dict(line.split("==") for line in requirements())
    unpinned = {
        module
        for module in imported - sys.stdlib_module_names - {"bustseg"}
        # some modules come with a package that is pinned: yaml, sqlalchemy and alembic with mlflow, safetensors and
        # huggingface_hub with timm; only exported models need a runtime
        if not {name.replace("_", "-") for name in distributions[module]} & set(pinned)
        and module not in ("yaml", "sqlalchemy", "alembic", "safetensors", "huggingface_hub", "onnxruntime", "openvino")
    }
    assert len(loaded) > 15
    assert "torch" in imported
    assert not unpinned, "imported by what inference loads, and not pinned"
    assert pinned["torch"] == version("torch").partition("+")[0]


def fit(bustseg: Bustseg, phantoms: Path, *options: object) -> tuple[int, str, str]:
    return bustseg("fit", "--config", TINY, "--data.root", phantoms, "--trainer.max_epochs", 1, *options)


def test_logging_can_be_switched_off(bustseg: Bustseg, phantoms: Path) -> None:
    assert fit(bustseg, phantoms, "--tracking.log_model", "false")[0] == 0
    (run,) = mlflow.MlflowClient(tracking_uri()).search_runs(["1"])
    assert logged_model_id(mlflow.MlflowClient(tracking_uri()), run.info.run_id) is None
    assert not Path("mlruns/artifacts/models").exists()
    card = (Path("mlruns/artifacts") / run.info.run_id / "artifacts" / "model_card.md").read_text()
    assert f"Predictor('{run.info.run_id}')" in card
    assert "pyfunc" not in card


@pytest.mark.parametrize("error", [MlflowException("the server is gone"), OSError(28, "No space left on device")])
def test_a_store_that_does_not_take_the_model_costs_a_warning(
    error: Exception, bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(logged_model, "save_model", refuse)
    code, out, err = fit(bustseg, phantoms)
    assert code == 0
    (line,) = [line for line in err.splitlines() if "warning" in line]
    assert line.startswith("warning: MLflow does not accept the model: ")
    assert "next: bustseg test" in out
    (run,) = mlflow.MlflowClient(tracking_uri()).search_runs(["1"])
    assert run.info.status == "FINISHED"
    model_id = run.outputs.model_outputs[0].model_id
    assert str(mlflow.MlflowClient(tracking_uri()).get_logged_model(model_id).status) == "FAILED"
    assert (Path("mlruns/artifacts") / run.info.run_id / "artifacts" / "model_card.md").is_file()


def test_a_second_record_replaces_the_first(bustseg: Bustseg, phantoms: Path) -> None:
    assert fit(bustseg, phantoms)[0] == 0
    assert bustseg("fit", "--ckpt_path", "latest", "--trainer.max_epochs", 3)[0] == 0
    client = mlflow.MlflowClient(tracking_uri())
    (run,) = client.search_runs(["1"])
    assert len(run.outputs.model_outputs) == 1
    (weights,) = Path("mlruns/artifacts/models").rglob("model.pt")
    assert os.path.samefile(weights, Path("mlruns/artifacts") / run.info.run_id / "artifacts/checkpoints/best.ckpt")


def test_a_network_of_the_users_own_travels_with_the_model(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_networks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    content = logged_model.read_checkpoint(trained_run.checkpoint)
    content["bustseg"]["config"]["model"]["network"]["class_path"] = "my_networks.Net"
    monkeypatch.setattr(logged_model, "read_checkpoint", lambda path: content)
    assert logged_model.code_paths(trained_run.checkpoint)[1:] == [str(package)]


def test_a_store_elsewhere_gets_a_copy(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    sent: dict[str, list[str]] = {}

    def receive(self: Any, model_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        sent[model_id] = sorted(path.name for path in Path(local_dir).iterdir())

    run = client.create_run(client.create_experiment("elsewhere", artifact_location=str(tmp_path / "artifacts")))
    monkeypatch.setattr(logged_model, "local_path", lambda uri: None)
    monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", receive)
    model_id = log_model(client, run.info.run_id, trained_run.checkpoint)
    assert {"MLmodel", "model.pt", "code", "requirements.txt", "input_example.json"} <= set(sent[model_id])


@pytest.mark.slow
def test_mlflow_models_serve_answers(trained_run: TrainedRun, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # mlflow calls uvicorn by its name, as an activated environment finds it
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"runs:/{trained_run.run_id}/model"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_TRACKING_URI": trained_run.uri, "PATH": path},
            start_new_session=True,
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)

        def ask(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        image = scan(131, 97)
        expected = Predictor(trained_run.checkpoint)(image)
        text = base64.b64encode(png(image)).decode()
        status, answer = ask({"dataframe_records": [{"image": text}], "params": {"encoding": "png"}})
        assert status == 200
        assert np.array_equal(unpng(answer["predictions"][0]["mask"]) == 255, expected.mask == 1)
        status, answer = ask({"inputs": {"image": image.tolist()}})
        assert status == 200
        assert np.array_equal(np.array(answer["predictions"][0]["mask"]), expected.mask)
        status, answer = ask({"inputs": ["no image"]})
        assert status == 400
        assert "not base64" in answer["message"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # the group that this test started: mlflow and its worker
        server.wait(timeout=30)
