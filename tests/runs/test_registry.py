"""The Model Registry: a run's model gets a name, and the name does wherever a model is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from bustseg.errors import UserError
from bustseg.runs import registry
from bustseg.runs.logged_model import log_model, logged_model_id
from bustseg.runs.opening import open_store
from bustseg.runs.registry import register, registered_version
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.runs.store import tracking_uri
from bustseg.trust import TrustError
from tests.conftest import TINY, TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_id(trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shared run in a copy of its store, so that a test may write into it."""
    shutil.copytree(Path(trained_run.uri.removeprefix("sqlite:///")).parent, tmp_path / "mlruns")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    open_store(tracking_uri(), write=True)  # which says that the store has moved
    return trained_run.run_id


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri())


def test_a_registered_model_predicts_tests_and_validates(bustseg: Bustseg, run_id: str) -> None:
    code, out, _ = bustseg("register", "latest", "--alias", "champion")
    assert code == 0
    assert f"run {run_id} is models:/bustseg/1, alias champion" in out
    assert "next: bustseg predict scans/ --model models:/bustseg@champion" in out
    weights = resolve_checkpoint("models:/bustseg@champion")
    assert weights.is_file()
    assert weights == resolve_checkpoint("models:/bustseg/1") == resolve_checkpoint("models:/bustseg/latest")
    assert weights.read_bytes() == resolve_checkpoint(run_id).read_bytes()
    Image.fromarray(np.full((40, 50), 90, np.uint8)).save("scan.png")
    assert bustseg("predict", "scan.png", "--model", "models:/bustseg@champion", "--out", "out")[0] == 0
    assert Path("out/predictions.csv").is_file()
    assert bustseg("test", "--ckpt_path", "models:/bustseg@champion", "--explain.enabled", "false")[0] == 0
    assert "test/dice_lesion" in client().get_run(run_id).data.metrics, "the scores go to the run of the model"
    assert bustseg("validate", "--ckpt_path", "models:/bustseg/1")[0] == 0


def test_versions_and_aliases(run_id: str) -> None:
    model = logged_model_id(client(), run_id)
    first = register(run_id, alias="champion")
    assert int(register(f"runs:/{run_id}/model", alias="tried").version) == int(first.version) == 1, (
        "the same model, no new version"
    )
    assert int(registered_version("models:/bustseg@tried").version) == 1
    other = register(run_id, "another", "champion")
    assert (other.name, int(other.version)) == ("another", 1)
    # what a run is continued with becomes another model: a version stays as it was registered
    old = resolve_checkpoint("models:/bustseg/1")
    before = old.read_bytes()
    weights = Path("newer.ckpt")
    weights.write_bytes(resolve_checkpoint(run_id).read_bytes() + b"\0")
    newer = log_model(client(), run_id, weights)
    assert newer != model
    assert newer == logged_model_id(client(), run_id) == log_model(client(), run_id, weights), "replaced as before"
    assert old.read_bytes() == before
    second = register(run_id, alias="champion")
    assert int(second.version) == 2
    assert resolve_checkpoint("models:/bustseg@champion").read_bytes() == weights.read_bytes()
    assert resolve_checkpoint("models:/bustseg@tried").read_bytes() == before
    described = client().get_model_version("bustseg", "1").description
    assert "Not a medical device" in described


def test_a_run_without_a_model_gets_one(bustseg: Bustseg, phantoms: Path) -> None:
    options = ("--data.root", phantoms, "--trainer.max_epochs", 1, "--tracking.log_model", "false")
    assert bustseg("fit", "--config", TINY, *options)[0] == 0
    version = register("latest")
    assert logged_model_id(client(), version.run_id) is not None
    assert resolve_checkpoint("models:/bustseg/1").read_bytes() == resolve_checkpoint(version.run_id).read_bytes()


@pytest.mark.parametrize(
    "address", ["models:/bustseg@loser", "models:/bustseg/7", "models:/nobody@champion", "models:/nobody/latest"]
)
def test_what_is_not_registered_is_one_line(bustseg: Bustseg, run_id: str, address: str) -> None:
    register(run_id, alias="champion")
    code, _, err = bustseg("test", "--ckpt_path", address)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert f"no model {address} in " in err
    assert "there is models:/bustseg@champion" in err


@pytest.mark.parametrize("address", ["models:/", "models:/bustseg", "models:/@champion", "models:/a/b/c", "models:/b@"])
def test_what_is_no_address_is_one_line(address: str, run_id: str) -> None:
    with pytest.raises(UserError, match="give models:/NAME@ALIAS or models:/NAME/VERSION"):
        resolve_checkpoint(address)


def test_nothing_is_registered(run_id: str) -> None:
    with pytest.raises(UserError, match="create one with `bustseg register RUN --alias champion`"):
        resolve_checkpoint("models:/bustseg@champion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("0" * 32,), "no run 000"),
        (("here",), "no run at here (give an MLflow run id, runs:/RUN_ID or latest)"),
        (("latest", "--alias", "v1"), "cannot be registered as bustseg@v1"),
        (("latest", "--name", "a/b"), "cannot be registered as a/b"),
    ],
)
def test_what_cannot_be_registered_is_one_line(
    bustseg: Bustseg, run_id: str, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = bustseg("register", *arguments)
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert message in err.replace("\n", " ")


def test_a_run_in_a_folder_has_no_registry(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "local_run", lambda run_id: object())
    with pytest.raises(UserError, match="only an MLflow store has a registry"):
        register(run_id)


def test_the_rules_of_trust_hold(run_id: str) -> None:
    """A registered model's configuration may name no more than a checkpoint's."""
    import torch

    from bustseg.runs.checkpoint import load_task

    register(run_id, alias="champion")
    weights = resolve_checkpoint("models:/bustseg@champion")
    content = torch.load(weights, weights_only=True)
    content["bustseg"]["config"]["model"]["network"] = {"class_path": "os.system", "init_args": {"command": "true"}}
    weights.unlink()
    torch.save(content, weights)
    with pytest.raises(TrustError):
        load_task(resolve_checkpoint("models:/bustseg@champion"))


def test_a_model_that_is_not_bustsegs_is_refused(run_id: str, tmp_path: Path) -> None:
    client().create_registered_model("foreign")
    (tmp_path / "foreign").mkdir()
    client().create_model_version("foreign", (tmp_path / "foreign").as_uri())
    with pytest.raises(UserError, match="models:/foreign/1 is not a bustseg model"):
        resolve_checkpoint("models:/foreign/1")


def test_a_tested_model_is_compared_by_its_name(bustseg: Bustseg, run_id: str) -> None:
    register(run_id, alias="champion")
    assert bustseg("test", "--ckpt_path", run_id, "--explain.enabled", "false")[0] == 0
    from bustseg.compare import load_run

    assert load_run("models:/bustseg@champion").run_id == run_id
