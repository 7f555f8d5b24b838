"""MLflow's Model Registry: a run's model under a name, with versions and aliases such as ``champion``."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bustseg.errors import UserError
from bustseg.runs.lookup import find_run, is_run_id, latest_run, local_run, run_file, split_run
from bustseg.runs.opening import open_store
from bustseg.runs.record import NOTE_TAG
from bustseg.runs.store import Store, local_path, one_line, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

SCHEME = "models:/"

DEFAULT_NAME = "bustseg"
"""The default name of the registered model."""


def is_registered(text: str) -> bool:
    """Whether a text is a model's address in the registry: ``models:/NAME@ALIAS`` or ``models:/NAME/1``."""
    return text.startswith(SCHEME)


def registered_version(uri: str) -> ModelVersion:
    """The version at an address: ``models:/NAME@ALIAS``, ``models:/NAME/NUMBER`` or ``models:/NAME/latest``.

    Raises:
        UserError: the address is none of these, there is no such model, version or alias, or the store cannot be
            reached
    """
    from mlflow.exceptions import MlflowException

    rest, alias, version = uri.removeprefix(SCHEME), "", ""
    if "@" in rest:
        name, _, alias = rest.rpartition("@")
    else:
        name, _, version = rest.rpartition("/")
    if not is_registered(uri) or not name or "/" in name or not (alias or version):
        raise UserError(f"{uri} is not the address of a model: give models:/NAME@ALIAS or models:/NAME/VERSION")
    store = open_store(tracking_uri())
    client = store.client()
    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        if version == "latest":
            found = client.search_model_versions(f"name = '{name}'")
            version = str(max((int(one.version) for one in found), default=1))
        return client.get_model_version(name, version)
    except MlflowException as error:
        raise UserError(f"no model {uri} in {store.shown}: {one_line(error)}{_known(client)}") from error


def _known(client: MlflowClient) -> str:
    """The end of a message about a missing model: the models that exist."""
    with suppress(Exception):  # the message is clear without it
        found = [
            f"{SCHEME}{model.name}@{alias}"
            for model in client.search_registered_models(max_results=20)
            for alias in model.aliases
        ]
        return (
            f"; there is {', '.join(found)}" if found else "; create one with `bustseg register RUN --alias champion`"
        )
    return ""


def registered_file(uri: str) -> Path:
    """The checkpoint of a registered model: the file itself where the store is on this machine, else a copy.

    Raises:
        UserError: there is no such model, or it is not one of bustseg's
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from bustseg.runs.logged_model import WEIGHTS

    version = registered_version(uri)
    store = Store(tracking_uri())
    try:
        source = store.client().get_model_version_download_uri(version.name, version.version)
        if source.startswith(SCHEME):  # registered by MLflow's own `register_model`
            source = store.client().get_logged_model(source.removeprefix(SCHEME)).artifact_location
        folder = local_path(source)
        if folder is None:
            return Path(mlflow.artifacts.download_artifacts(f"{source}/{WEIGHTS}", tracking_uri=store.uri))
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"nothing at {folder / WEIGHTS}")
        return folder / WEIGHTS
    except (MlflowException, OSError) as error:
        raise UserError(f"{uri} is not a bustseg model: {one_line(error)}") from error


def register(run: str, name: str = DEFAULT_NAME, alias: str | None = None) -> ModelVersion:
    """Register the model of a run, and point an alias to it.

    If the run's model already has a version with this name, no second one is created. If the run has no model, since
    ``tracking.log_model`` was false, a model of its best checkpoint is created.

    Args:
        run: run id, ``runs:/RUN_ID`` or ``latest``
        name: name of the registered model, created if it does not exist
        alias: alias that points to this version from now on

    Raises:
        UserError: no such run, it was not trained, or MLflow does not accept the name or alias
    """
    from mlflow.exceptions import MlflowException

    from bustseg.runs.logged_model import log_model, logged_model_id

    run_id = latest_run() if run == "latest" else split_run(run)[0]
    if not is_run_id(run_id):
        raise UserError(f"no run at {run} (give an MLflow run id, runs:/RUN_ID or latest)")
    if local_run(run_id) is not None:
        raise UserError(
            f"run {run_id} is stored in a folder, but only an MLflow store has a registry: train with MLflow"
        )
    client = open_store(tracking_uri(), write=True).client()
    found = find_run(run_id)
    run_id = found.info.run_id  # the store's id, if the run began while the store was unreachable
    try:
        model_id = logged_model_id(client, run_id)
        if model_id is None:
            model_id = log_model(client, run_id, run_file(run_id, "checkpoints/best.ckpt"))
        source = client.get_logged_model(model_id).artifact_location
        version = _version_of(client, name, source)
        if version is None:
            # the location and not models:/ID, which MLflow would look up in the store that was last set for the process
            version = client.create_model_version(name, source, run_id, description=found.data.tags.get(NOTE_TAG))
            _show_with_run(client, model_id, version)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
        return version
    except (MlflowException, OSError) as error:
        target = f"{name}@{alias}" if alias else name
        raise UserError(f"the model of run {run_id} cannot be registered as {target}: {one_line(error)}") from error


def _version_of(client: MlflowClient, name: str, source: str) -> ModelVersion | None:
    """The existing version of a name with this ``source``; creates the name if it is new."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
        return None
    return next((one for one in client.search_model_versions(f"name = '{name}'") if one.source == source), None)


def _show_with_run(client: MlflowClient, model_id: str, version: ModelVersion) -> None:
    """Set the tag by which the UI shows a version with its run, as `mlflow.register_model` does."""
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    known = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    tag = json.dumps([*known, {"name": version.name, "version": version.version}])
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: tag})
