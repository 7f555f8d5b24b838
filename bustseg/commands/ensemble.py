"""`bustseg ensemble`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def ensemble(
    model: Annotated[list[str], Option(metavar="MODEL")],
    *,
    out: Annotated[Path, Option(metavar="FILE")],
    overwrite: bool = False,
    image_size: Annotated[int | None, Option(metavar="PX")] = None,
) -> int:
    """Combine trained networks into one checkpoint that predicts the mean of their logits.

    Example:
        bustseg ensemble RUN_ID RUN_ID --out ensemble.ckpt

    Args:
        model: checkpoint, MLflow run id, runs:/RUN_ID or models:/NAME@ALIAS
        out: checkpoint to write
        overwrite: replace an existing file
        image_size: side of the input images (default: that of the members)
    """
    from bustseg.deploy.ensemble import ensemble_command

    return ensemble_command(model, out, overwrite=overwrite, image_size=image_size)
