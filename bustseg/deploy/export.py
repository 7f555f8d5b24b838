"""``bustseg export``: convert a checkpoint into a folder for ONNX Runtime or OpenVINO, and check that results agree.

The graph takes grey ``uint8`` images of the trained size and gives logits: repeating the channel, normalisation and
test-time flips are inside. Resizing to and from the image's own size, the sigmoid and the threshold are done by
:class:`~bustseg.deploy.predictor.Predictor`, which reads its settings from ``bustseg.json``: neither format has
OpenCV's area averaging, with which the network was trained.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bustseg.deploy.backends import TorchBackend, exported_backend
from bustseg.deploy.check import (
    CheckImages,
    check_images,
    decisive,
    dice_of,
    largest_difference,
    largest_drop,
    logits_of,
)
from bustseg.deploy.confidence import CALIBRATION, TRAINING_IMAGES, Calibration, fit_temperature
from bustseg.deploy.exported import FORMAT_VERSIONS, METADATA, ExportedModel, sha256
from bustseg.deploy.formats import Backend, NetworkToWrite, find_format, missing, not_installed, shipped_formats
from bustseg.disclaimer import PATIENTS
from bustseg.errors import UserError
from bustseg.framing import Framing
from bustseg.masks import (
    POSTPROCESS,
    PostProcess,
    evidence_of,
    logit_threshold,
    probability_of,
    with_mirror,
)
from bustseg.metrics import EMPTY_MASK
from bustseg.models import FusionUNet
from bustseg.presence import fit_presence
from bustseg.progress import console, error_console
from bustseg.runs.card import model_card, read_run
from bustseg.runs.checkpoint import load_task, trained_framing
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.runs.scores import scores_of_test
from bustseg.runs.tracker import tracking_uri
from bustseg.task import SegmentationTask

MAX_DIFFERENCE = {"fp32": 1e-3, "bf16": 0.05, "int8": None}
"""Largest allowed difference of probabilities by precision; None where only Dice decides.

The half-precision weights of ``bf16`` are compared in float32 arithmetic, so that the result does not depend on the
CPU.
"""

MAX_DICE_DROP = 0.005
"""Largest allowed loss of Dice on validation images: half a point."""


class DeployedNetwork(nn.Module):
    """The exported network: grey ``uint8`` (B, 1, h, w) -> logits (B, 1, h, w), as the task in evaluation mode.

    An image and its mirror image go through one copy of the network, as a batch.

    Args:
        task: the task
    """

    def __init__(self, task: SegmentationTask) -> None:
        super().__init__()
        folded = fold_input(task)
        self.folded = folded is not None
        self.network = task.network if folded is None else folded
        self.flip = task.flip
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", task.scale.clone())
        self.register_buffer("shift", task.shift.clone())

    def forward(self, image: Tensor) -> Tensor:
        grey = image.float()
        x = torch.cat([grey, torch.ones_like(grey)], 1) if self.folded else self.shift + grey * self.scale
        return with_mirror(self.network, x, one_batch=True) if self.flip else self.network(x).float()


def fold_input(task: SegmentationTask) -> nn.Module | None:
    r"""A copy of a FusionUNet whose first convolutions take a grey channel and ones; None for other networks.

    From channels :math:`x_c = a_c g + b_c` a convolution computes :math:`\sum_c w_c x_c = (\sum_c w_c a_c) g + (\sum_c
    w_c b_c) 1`, zero padding included. Filters that were trained on colours have weights of opposite sign for red,
    green and blue. On grey images they cancel, and BatchNorm magnifies the remainder, which with 8 or 16 bits would be
    mostly rounding error. Here the sums are computed in float64, and the input consists of integers that bf16 and int8
    represent exactly.
    """
    if not isinstance(task.network, FusionUNet):
        return None
    network = copy.deepcopy(task.network)
    for encoder in network.encoders:
        stem = next(layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d))
        if stem.in_channels != task.scale.numel() or stem.groups != 1:
            return None
        weight = stem.weight.detach().double()
        parts = [(weight * part.to(weight)).sum(1, keepdim=True) for part in (task.scale, task.shift)]
        stem.weight = nn.Parameter(torch.cat(parts, 1).to(stem.weight.dtype))
        stem.in_channels = 2
    return network


@dataclass(frozen=True)
class Limits:
    """Limits on the loss of accuracy by an export.

    Attributes:
        difference: largest difference of probabilities; None for the precision's default in :data:`MAX_DIFFERENCE`
        dice_drop: largest loss of Dice, by the conventions ``lesion`` and ``empty_one``, on validation images
    """

    difference: float | None = None
    dice_drop: float = MAX_DICE_DROP


def export_command(model: str, format: str, precision: str, out: Path, **options: Any) -> int:
    """`bustseg export`: calls :func:`export_model` with the options and prints the results of its checks."""
    exported = export_model(model, format, precision, out, **options)
    checks = exported.metadata["checks"]
    size = sum(file["bytes"] for file in exported.metadata["files"].values()) / 1e6
    console.print(f"{exported.folder}: {format}, {precision}, {size:.1f} MB", highlight=False)
    console.print(
        f"largest difference of probabilities {checks['difference']['largest']:.2g} on {checks['images']}",
        highlight=False,
    )
    for name, drop in checks["dice"]["drop"].items():
        before = checks["dice"]["float32"][name]
        console.print(f"Dice ({name}) {before:.4f} -> {before - drop:.4f}", highlight=False)
    if not checks["dice"]["drop"] and precision != "fp32":
        error_console.print(
            "[yellow]note:[/] no images with masks are available, so the loss of Dice was not measured: "
            "name the data with --data.root",
            highlight=False,
        )
    console.print(PATIENTS, highlight=False)
    console.print(f"next: bustseg predict IMAGE --model {exported.folder} --out masks", highlight=False)
    return 0


def export_model(
    model: str,
    format: str,
    precision: str,
    out: Path,
    root: Path | None = None,
    images: Path | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
    threshold: float | None = None,
    min_area: float | None = None,
) -> ExportedModel:
    """Export a trained network into the folder ``out``, which is created only if all checks pass.

    Args:
        model: a checkpoint, as in :func:`bustseg.runs.resolve.resolve_checkpoint`
        format: ``onnx``, ``openvino``, or one from another package
        precision: one that the format supports
        out: folder to create
        root: folder of the run's data, if they have moved since the training
        images: folder of images to check and calibrate on instead
        limits: limits on the loss of accuracy
        overwrite: replace an existing exported model
        threshold: probability above which a pixel belongs to a lesion; the checkpoint's when not given
        min_area: share of the image below which a component is removed; the checkpoint's when not given

    Raises:
        UserError: bad input, a package that is not installed, or a check that fails
    """
    limits = limits or Limits()
    _check_asked(format, precision)
    _check_place(out, overwrite)
    checkpoint = resolve_checkpoint(model)
    task = load_task(checkpoint)
    if threshold is not None:
        logit_threshold(threshold)  # raises an error for an invalid threshold
        task.threshold = threshold
    if min_area is not None:
        task.postprocess = replace(task.postprocess, min_area_px_relative=min_area)
    framing = trained_framing(task)
    size = framing.size
    check = check_images(checkpoint, framing, root, images)
    if precision == "int8" and check.calibration is None:
        raise UserError(
            "int8 needs images to calibrate with, and the run's data are not available: "
            "name them with --data.root, or any ultrasound images with --images"
        )
    reference = logits_of(TorchBackend(task), check.images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        file = write_network(task, size, format, precision, folder, check, reference, limits)
        metadata = {**learned(check, reference), **describe(task, framing, format, precision, file, folder)}
        write_metadata(folder, metadata)
        metadata["checks"] = _check(ExportedModel.read(folder), reference, check, limits)
        write_metadata(folder, metadata)
        folder.chmod(0o755)
        if out.exists():
            os.replace(out, Path(temporary) / "old")
        os.replace(folder, out)
    return ExportedModel.read(out)


def _check_asked(format: str, precision: str) -> None:
    precisions = find_format(format).precisions
    if precision not in precisions:
        others = [other.name for other in shipped_formats() if precision in other.precisions]
        raise UserError(
            f"format {format} does not support precision {precision}: it supports {', '.join(precisions)}, and "
            f"{precision} is supported by {', '.join(others)}"
        )
    if absent := not_installed(find_format(format), precision):
        raise missing(absent, format)


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / METADATA).is_file():
        raise UserError(f"{out} exists and is not an exported model: name another folder with --out")
    if not overwrite:
        raise UserError(f"{out} holds an exported model: give --overwrite to replace it, or name another folder")


def write_network(
    task: SegmentationTask,
    size: tuple[int, int],
    format: str,
    precision: str,
    folder: Path,
    check: CheckImages,
    reference: np.ndarray,
    limits: Limits,
) -> Path:
    """Write the network's file or files into ``folder`` and return the file that a runtime opens.

    Args:
        task: the task
        size: (h, w) of its images
        format, precision: what to write
        folder: where
        check: images to calibrate int8 with
        reference: the task's logits of ``check.images``, to limit int8's loss of accuracy
        limits: limits on int8's loss of accuracy
    """
    network = DeployedNetwork(task).eval()
    what = NetworkToWrite(network, size, precision, folder, check, reference, task.mask_rule, limits.dice_drop)
    with torch.no_grad():
        return find_format(format).write(what)


def _check(exported: ExportedModel, reference: np.ndarray, check: CheckImages, limits: Limits) -> dict[str, Any]:
    """Compare the results of the written files with the task; fails where the loss exceeds the limits.

    Dice is computed from the masks that the exported model will produce, including post-processing.

    Raises:
        UserError: the probabilities or the Dice differ too much
    """
    precision, rule = exported.metadata["precision"], exported.mask_rule
    backend = exported_backend(exported)
    logits = _runtime_logits(backend, check.images)
    # whether bf16 arithmetic is used depends on the CPU; the file's content is compared in float32
    stored = logits if precision != "bf16" else _runtime_logits(_in_float32(exported), check.images)
    if not np.isfinite(logits).all():
        raise UserError(f"the exported model gives values that are not numbers ({check.origin}): nothing was written")
    difference = largest_difference(stored, reference)
    limit = MAX_DIFFERENCE[precision] if limits.difference is None else limits.difference
    if limit is not None and difference > limit:
        raise UserError(
            f"the exported model's probabilities differ by {difference:.3g} from the network's, and at most {limit:g} "
            f"is allowed ({check.origin}): nothing was written; --max_difference allows more"
        )
    before: dict[str, float] = {}
    drop: dict[str, float] = {}
    if check.masks is not None:
        before, after = (dice_of(values, check.masks, rule) for values in (reference, logits))
        drop = {name: before[name] - after[name] for name in before}
        if largest_drop(before, after) > limits.dice_drop:
            name = max(decisive(before), key=lambda one: drop[one])
            raise UserError(
                f"the export costs {100 * drop[name]:.2f} points of Dice ({name}, {check.origin}), and at most "
                f"{100 * limits.dice_drop:g} are allowed: nothing was written; --max_dice_drop allows more"
            )
    agreement = dice_of(logits, np.stack([rule.mask(plane) for plane in reference]), rule)
    return {
        "images": check.origin,
        "data_digest": check.data_digest,
        "split_digest": check.split_digest,
        "runtime": backend.name,
        "difference": {"largest": difference, "limit": limit},
        "dice": {
            "float32": before,
            "drop": drop,
            "limit": limits.dice_drop,
            "agreement_empty_one": agreement["empty_one"],
        },
    }


def _in_float32(exported: ExportedModel) -> Backend:
    """A backend that computes the files of a bf16 model in float32."""
    return exported_backend(replace(exported, metadata={**exported.metadata, "precision": "fp32"}))


def _runtime_logits(backend: Backend, images: np.ndarray) -> np.ndarray:
    """Logits of all images; also checks that the first gives the same alone and in a batch of three."""
    logits = logits_of(backend, images)
    alone, three = backend(images[:1, None])[:, 0], backend(images[[0, 0, 0], None])[:, 0]
    if not (np.allclose(alone[0], logits[0], atol=1e-3) and np.allclose(three[2], logits[0], atol=1e-3)):
        raise UserError("the exported model's result depends on the other images of a batch: nothing was written")
    return logits


def write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Write ``bustseg.json``."""
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def describe(
    task: SegmentationTask, framing: Framing, format: str, precision: str, file: Path, folder: Path
) -> dict[str, Any]:
    """Content of ``bustseg.json`` without the checks; writes ``model_card.md`` if the run is known."""
    record = task.record or {}
    network = record["config"]["model"]["network"]
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSIONS[framing.resize],
        "notice": PATIENTS,
        "format": format,
        "precision": precision,
        "model": file.name,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())
        },
        "input": {
            "name": "image",
            "type": "uint8",
            "layout": "NCHW",
            "channels": 1,
            "image_size": list(framing.size),
            "resize": framing.resize,
            "resampling": "averaged over areas where it shrinks, else bilinear (OpenCV)",
        },
        "output": {"name": "logits", "type": "float32", "resize": "without padding, bilinear, before the sigmoid"},
        "threshold": task.threshold,
        "flip": task.flip,
        # post-processing of the masks, and calibration of the probabilities if the checkpoint's record has it
        **({} if task.postprocess == PostProcess() else {POSTPROCESS: task.postprocess.to_dict()}),
        **{key: record[key] for key in (CALIBRATION, TRAINING_IMAGES) if key in record},
        "classes": ["background", "lesion"],
        "network": network.get("class_path") if isinstance(network, Mapping) else type(task.network).__name__,
        "parameters": sum(parameter.numel() for parameter in task.network.parameters()),
        "run_id": record.get("run_id"),
        "git_commit": record.get("git_commit"),
        "split": record["config"].get("data", {}).get("split"),
        "split_digest": record.get("split_digest"),
        "data_digest": record.get("data_digest"),
        "conventions": EMPTY_MASK,
        "figures": {},
        "versions": {"trained": record.get("versions"), "exported": package_versions()},
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if Path(str(metadata["split"])).is_absolute():  # do not disclose a user's folders
        metadata["split"] = Path(metadata["split"]).name
    known = _read_run(record.get("run_id"))
    if known is not None:
        run, validation = known
        test = scores_of_test(run)
        metadata["figures"] = {
            name: value for name, value in sorted({**validation, **test}.items()) if np.isfinite(value)
        }
        (folder / "model_card.md").write_text(model_card(run, validation, test), encoding="utf-8")
    return metadata


def learned(check: CheckImages, reference: np.ndarray) -> dict[str, Any]:
    """What is fitted on validation and training images: a model's temperature, presence, and range of training images.

    Args:
        check: images; nothing is fitted unless they are from the model's own training
        reference: the task's logits of ``check.images``
    """
    if check.training is None or check.masks is None:
        return {}
    found: dict[str, Any] = {TRAINING_IMAGES: check.training.to_dict()}
    if 0 < check.masks.mean() < 1:
        temperature = fit_temperature(zip(map(probability_of, reference), check.masks, strict=True))
        presence = fit_presence(
            np.array([evidence_of(plane) for plane in reference]), np.asarray(check.masks.any((1, 2)))
        )
        found[CALIBRATION] = Calibration(temperature, presence).to_dict()
    return found


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that write and run exported networks."""
    found = {}
    for name in ("bustseg", "torch", "onnx", "onnxruntime", "openvino", "nncf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _read_run(run_id: str | None) -> tuple[Any, dict[str, float]] | None:
    """The run of a checkpoint, and its validation metrics; None where the store in use has no such run."""
    uri = tracking_uri()
    if run_id is None or (uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file()):
        return None
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return read_run(MlflowClient(uri), run_id)
    except (MlflowException, OSError):
        return None
