"""`bustseg explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def explain(
    input: Annotated[list[Path] | None, Option(metavar="INPUT")] = None,
    *,
    model: str,
    out: Path | None = None,
    method: str = "GradCAM",
    layer: str | None = None,
    list_layers: Annotated[bool, Option(names=("--list-layers",))] = False,
    size: list[int] | None = None,
    tolerance: float = 0,
) -> int:
    """Show where a trained network looks: Grad-CAM of any images.

    Example:
        bustseg explain images/ --model latest --out explained

    Args:
        input: image files, or folders of them
        model: checkpoint, MLflow run id, runs:/RUN_ID, models:/NAME@ALIAS or latest
        out: folder for panels, heat maps and explain.csv
        method: GradCAM, GradCAMPlusPlus, LayerCAM, ...
        layer: layer of the network (default: its last decoder block)
        list_layers: print the layers that can be explained, and stop
        size: input size of the network (default: as trained)
        tolerance: pixels by which a hit may miss
    """
    from bustseg.deploy.explain import explain_images

    return explain_images(input or [], model, out, method, layer, size, tolerance, only_list=list_layers)
