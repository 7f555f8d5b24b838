"""`bustseg explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def explain(
    input: Annotated[list[Path] | None, Option(metavar="INPUT")] = None,
    *,
    model: str | None = None,
    out: Path | None = None,
    method: str | None = None,
    layer: str | None = None,
    list_layers: Annotated[bool, Option(names=("--list-layers",))] = False,
    size: list[int] | None = None,
    tolerance: float = 0,
) -> int:
    """Show where a network looks in images: Grad-CAM, or occlusion for an exported model.

    Example:
        bustseg explain images/ --model latest --out explained

    Args:
        input: image files, or folders of them
        model: checkpoint, MLflow run id, runs:/RUN_ID, models:/NAME@ALIAS, latest, or an exported
            folder (default: the model in the box)
        out: folder for panels, heat maps and explain.csv
        method: GradCAM (default), GradCAMPlusPlus, ..., or Occlusion (the only one for an exported model)
        layer: layer of the network (default: its last decoder block)
        list_layers: print the layers that can be explained, and stop
        size: input size of the network (default: as trained)
        tolerance: pixels by which the hottest pixel may miss the lesion
    """
    from bustseg.deploy.explain import explain_images

    return explain_images(input or [], model, out, method, layer, size, tolerance, only_list=list_layers)
