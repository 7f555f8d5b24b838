"""The MLflow model of a run, in MLflow's format, with the code that loads it.

:mod:`bustseg.deploy.mlflow_model` loads and runs it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import bustseg
from bustseg import box
from bustseg.runs.checkpoint import read_checkpoint
from bustseg.runs.record import flatten
from bustseg.runs.store import local_path
from bustseg.task import RECORD

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

LOADER = "bustseg.deploy.mlflow_model"
"""The module whose ``_load_pyfunc`` MLflow calls; logged models refer to it."""

NAME = "model"
"""The model's name in its run, so that it is ``runs:/RUN_ID/model``."""

WEIGHTS = "model.pt"
"""The checkpoint inside the model."""

REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "segmentation-models-pytorch",
    "torchmetrics",
    "albumentations",
    "jsonargparse",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pydicom",
    "pandas",
    "scipy",
    "matplotlib",
    "filelock",
    "platformdirs",
    "psutil",
    "rich",
    "pydantic",
)
"""Packages that inference imports; the model requires the versions that were installed when it was saved."""


def signature() -> ModelSignature:
    """Input: images. Output per image: a mask, probabilities, the highest of them, and the lesion's area.

    ``presence`` is the calibrated probability that there is a lesion, missing where the model is not calibrated for it.

    The input's type is the one that MLflow passes on unchanged, since sizes, number types and encodings differ.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array, DataType

    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(object), (-1,), "image")]),
        outputs=Schema(
            [
                ColSpec(Array(Array(DataType.integer)), "mask"),
                ColSpec(Array(Array(DataType.float)), "probability"),
                ColSpec(DataType.double, "presence", required=False),
                ColSpec(DataType.double, "lesion_probability"),
                ColSpec(DataType.long, "area_px"),
                ColSpec(DataType.string, "notice"),
            ]
        ),
        params=ParamSchema(
            [ParamSpec("threshold", DataType.double, None), ParamSpec("encoding", DataType.string, "array")]
        ),
    )


def input_example() -> dict[str, np.ndarray]:
    """One small image: a dark ellipse on grey, like a lesion."""
    y, x = np.mgrid[-1:1:32j, -1:1:40j]
    return {"image": np.where(x**2 / 0.3 + y**2 / 0.15 < 1, 40, 120).astype(np.uint8)[None]}


def requirements() -> list[str]:
    """``package==version`` of the packages that inference needs, as installed here, without local build labels."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            pinned.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pinned


def code_paths(checkpoint: Path) -> list[str]:
    """Code that is not in a package index: bustseg, and the user's own modules of the configuration's classes."""
    found = [Path(bustseg.__file__).parent]
    for name in sorted({path.partition(".")[0] for path in _class_paths(read_checkpoint(checkpoint)[RECORD])}):
        spec = None if name == "bustseg" else importlib.util.find_spec(name)
        if spec is None or spec.origin is None or re.search(r"[/\\](site|dist)-packages[/\\]", spec.origin):
            continue
        path = Path(spec.origin)
        found.append(path.parent if path.name == "__init__.py" else path)
    return [str(path) for path in found]


def _class_paths(record: Mapping[str, Any]) -> Iterator[str]:
    for key, value in flatten(record["config"]["model"]):
        if key.endswith("class_path"):
            yield str(value)


def save_model(checkpoint: Path, path: Path, model: Any = None) -> None:
    """Write the MLflow model of a checkpoint into the folder ``path``, which must not exist.

    The weights are a hard link to the checkpoint if the file system allows it, so they take no space.

    Args:
        checkpoint: a checkpoint from ``bustseg fit``
        path: folder to create
        model: the ``mlflow.models.Model`` to fill in
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    model = model or Model()
    # MLflow logs long messages about validating the example, and about tensors of objects
    loggers = [logging.getLogger(name) for name in ("mlflow.pyfunc", "mlflow.models.model", "mlflow.types.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        mlflow.pyfunc.save_model(
            str(path),
            loader_module=LOADER,
            code_paths=code_paths(checkpoint),
            mlflow_model=model,
            signature=signature(),
            input_example=input_example(),
            pip_requirements=requirements(),
        )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    # the model in the box is not code, and would be copied into every run
    shutil.rmtree(path / "code" / box.FOLDER.relative_to(Path(bustseg.__file__).parents[1]), ignore_errors=True)
    _link(checkpoint, path / WEIGHTS)
    model.model_size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    model.save(str(path / "MLmodel"))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def log_model(client: MlflowClient, run_id: str, checkpoint: Path) -> str:
    """Record a checkpoint as the model of a run and return its MLflow id; a second call replaces the first model.

    A registered model (:mod:`bustseg.runs.registry`) is not replaced, since a version never changes: the run gets
    another model with the same name.

    MLflow's own ``log_model`` would load and run the model to check it, and copy the weights twice.

    Raises:
        MlflowException, OSError: the store does not accept it
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    run = client.get_run(run_id)
    model_id = logged_model_id(client, run_id)
    if model_id is None or _is_registered(client, run_id, model_id):
        model_id = client.create_logged_model(
            run.info.experiment_id, name=NAME, source_run_id=run_id, model_type="segmentation"
        ).model_id
        # `runs:/RUN_ID/model` is the one with the highest step
        earlier = run.outputs.model_outputs if run.outputs else []
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=len(earlier))])
    location = client.get_logged_model(model_id).artifact_location
    content = Model(artifact_path=location, model_uuid=uuid.uuid4().hex, run_id=run_id, model_id=model_id)
    try:
        folder = local_path(location)
        if folder is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            save_model(checkpoint, folder, content)
        else:
            with tempfile.TemporaryDirectory() as temporary:
                save_model(checkpoint, Path(temporary) / NAME, content)
                client.log_model_artifacts(model_id, str(Path(temporary) / NAME))
    except BaseException:
        client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return model_id


def _is_registered(client: MlflowClient, run_id: str, model_id: str) -> bool:
    """Whether a version of a registered model is this model of a run."""
    sources = (f"models:/{model_id}", client.get_logged_model(model_id).artifact_location)
    return any(version.source in sources for version in client.search_model_versions(f"run_id = '{run_id}'"))


def logged_model_id(client: MlflowClient, run_id: str) -> str | None:
    """MLflow's id of the model that :func:`log_model` last recorded for a run, if any."""
    outputs = client.get_run(run_id).outputs
    for output in sorted(outputs.model_outputs if outputs else [], key=lambda output: -output.step):
        if client.get_logged_model(output.model_id).name == NAME:
            return output.model_id
    return None


def link_metrics(client: MlflowClient, run_id: str, model_id: str, prefix: str, step: int | None = None) -> None:
    """Attach a run's metrics that begin with ``prefix`` to its model, those of ``step`` or the latest."""
    from mlflow.entities import Metric

    points = []
    for name in client.get_run(run_id).data.metrics:
        if not name.startswith(prefix):
            continue
        history = client.get_metric_history(run_id, name)
        chosen = [point for point in history if step is None or point.step == step][-1:]
        points += [Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id, run_id=run_id) for p in chosen]
    if points:
        client.log_batch(run_id, metrics=points)
