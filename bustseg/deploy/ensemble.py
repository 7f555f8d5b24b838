"""`bustseg ensemble`: combine several checkpoints into one, which all other commands accept like its members."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import __version__ as lightning_version

from bustseg.errors import UserError
from bustseg.progress import console, error_console
from bustseg.runs.checkpoint import read_checkpoint, rebuilt, stored_framing
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.task import RECORD
from bustseg.training.preflight import try_size
from bustseg.whole import write_whole

SAME = ("mean", "std", "flip", "threshold", "postprocess")
"""Settings of the task that all members must share."""


def ensemble_command(models: Sequence[str], out: Path, overwrite: bool = False, image_size: int | None = None) -> int:
    """Write an ensemble of trained checkpoints to ``out``; returns the exit code.

    ``image_size`` is the side in pixels of the ensemble's input images; None takes that of its members.

    Raises:
        UserError: fewer than two checkpoints, members that do not fit together, or ``out`` exists
    """
    if len(models) < 2:
        raise UserError("an ensemble needs at least two checkpoints")
    if out.is_dir():
        raise UserError(f"{out} is a folder: name the checkpoint to write, such as {out / 'ensemble.ckpt'}")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists: choose another name or give --overwrite")
    paths = [resolve_checkpoint(model) for model in models]
    contents = [read_checkpoint(path) for path in paths]
    if image_size is not None:
        for content in contents:
            content[RECORD]["config"]["data"]["image_size"] = image_size
    for path, content in zip(paths[1:], contents[1:], strict=True):
        _check(paths[0], contents[0], path, content)
    if len({content[RECORD].get("split_digest") for content in contents}) > 1:
        error_console.print(
            "the members were trained on different images: one member's test images may be another's training images; "
            "score the ensemble on data that none of them was trained on",
            style="yellow",
            soft_wrap=True,
        )
    for path, member in zip(paths, contents, strict=True):
        task = rebuilt(member, path)
        if image_size is not None:
            try_size(task, (image_size, image_size), "--image_size")
    content = combined(contents)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(out, buffer.getvalue())
    console.print(
        f"{out}: {len(paths)} networks\nnext: bustseg validate --ckpt_path {out}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def combined(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Content of the ensemble's checkpoint; where the members' settings may differ, the first member's are used."""
    records = [content[RECORD] for content in contents]
    model = dict(records[0]["config"]["model"])
    networks = [record["config"]["model"]["network"] for record in records]
    model["network"] = {"class_path": "bustseg.models.Ensemble", "init_args": {"networks": networks}}
    tracking = dict(records[0]["config"].get("tracking") or {}, run_name=None)
    record = {key: value for key, value in records[0].items() if key in ("versions", "git_commit")}
    record["config"] = {**records[0]["config"], "model": model, "tracking": tracking}
    # it has no run yet: a test creates one
    record["members"] = [member.get("run_id") for member in records]
    for key in ("data_digest", "split_digest"):
        if key in records[0] and all(member.get(key) == records[0][key] for member in records):
            record[key] = records[0][key]
    state = {
        key.replace("network.", f"network.networks.{index}.", 1): value
        for index, content in enumerate(contents)
        for key, value in content["state_dict"].items()
        if key.startswith("network.")
    }
    rest = {key: value for key, value in contents[0]["state_dict"].items() if not key.startswith("network.")}
    return {
        RECORD: record,
        "state_dict": state | rest,
        "epoch": max(int(content.get("epoch", 0)) for content in contents),
        "pytorch-lightning_version": lightning_version,
    }


def _check(first: Path, one: Mapping[str, Any], path: Path, other: Mapping[str, Any]) -> None:
    configs = [content[RECORD]["config"] for content in (one, other)]
    differ = [f"model.{key}" for key in SAME if configs[0]["model"].get(key) != configs[1]["model"].get(key)]
    framings = [stored_framing(config["data"]) for config in configs]
    if framings[0].resize != framings[1].resize:
        differ.append("data.resize")
    if framings[0].size != framings[1].size:
        differ.append("data.image_size")
    if differ:
        hint = "; name one with --image_size" if differ == ["data.image_size"] else ""
        raise UserError(
            f"{path} and {first} differ in {', '.join(differ)}, which all members of an ensemble must share{hint}"
        )
