"""`bustseg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from bustseg.command_line import Option


def export(
    model: Annotated[str, Option(metavar="MODEL")],
    *,
    format: str = "openvino",
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    out: Annotated[Path, Option(metavar="DIR")],
    overwrite: bool = False,
    max_difference: float | None = None,
    max_dice_drop: float = 0.5,
    threshold: float | None = None,
    min_area: float | None = None,
    data_root: Annotated[Path | None, Option(names=("--data.root",), metavar="ROOT")] = None,
    images: Annotated[Path | None, Option(metavar="DIR")] = None,
) -> int:
    """Export a trained network for ONNX Runtime or OpenVINO, and check that its results agree.

    Example:
        bustseg export latest --format openvino --precision int8 --out exported

    Args:
        model: checkpoint, MLflow run id, runs:/RUN_ID, models:/NAME@ALIAS or latest
        format: onnx, openvino, or one from an installed package
        precision: precision of the arithmetic; bf16 only for openvino
        out: folder to create
        overwrite: replace an existing exported model
        max_difference: largest allowed difference of a probability (default: fp32 0.001, bf16 0.05)
        max_dice_drop: largest allowed loss of Dice on validation images, in points
        threshold: probability above which a pixel is lesion (default: as trained; see bustseg validate)
        min_area: components below this share of the image are removed (default: as trained)
        data_root: folder of the run's data, if they have moved
        images: folder of images to check with instead (with masks, as in BUSI)
    """
    from bustseg.deploy.export import Limits, export_command

    return export_command(
        model,
        format,
        precision,
        out,
        root=data_root,
        images=images,
        limits=Limits(max_difference, max_dice_drop / 100),
        overwrite=overwrite,
        threshold=threshold,
        min_area=min_area,
    )
