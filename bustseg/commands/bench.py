"""`bustseg bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from bustseg.command_line import Option


def bench(
    model: Annotated[list[str], Option(metavar="MODEL")],
    *,
    size: list[int] | None = None,
    batch: list[int] | None = None,
    precisions: list[Literal["fp32", "bf16", "int8"]] | None = None,
    backends: list[Literal["eager", "compiled", "onnxruntime", "openvino"]] | None = None,
    threads: int | None = None,
    rounds: int = 20,
    json: Annotated[Path | None, Option(metavar="FILE")] = None,
    markdown: Annotated[Path | None, Option(metavar="FILE")] = None,
    data_root: Annotated[Path | None, Option(names=("--data.root",), metavar="ROOT")] = None,
    images: Annotated[Path | None, Option(metavar="DIR")] = None,
) -> int:
    """Compare latency, throughput, memory and accuracy of networks in torch, ONNX Runtime and OpenVINO.

    Example:
        bustseg bench latest configs/paper/model_01.yaml --markdown speed.md

    Args:
        model: as for export, or an exported folder, or a config (untrained)
        size: side of the network's input (default: as trained)
        batch: batch sizes (default 1 8)
        precisions: precisions to measure (default: all)
        backends: runtimes to measure (default: all)
        threads: number of threads (default: the machine's cores)
        rounds: number of interleaved rounds of five images
        json: file for all results
        markdown: file for the tables
        data_root: folder of the run's data, if they have moved
        images: folder of images to check with instead (with masks, as in BUSI)
    """
    from bustseg.deploy.bench import bench_command
    from bustseg.deploy.exported import BACKENDS, PRECISIONS

    return bench_command(
        model,
        sizes=size,
        batches=batch or [1, 8],
        precisions=precisions or list(PRECISIONS),
        backends=backends or list(BACKENDS),
        threads=threads,
        rounds=rounds,
        root=data_root,
        images=images,
        json_file=json,
        markdown=markdown,
    )
