"""``bustseg explain``: heat maps, panels and numbers for any images."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.table import Table

from bustseg.callbacks.explain import heat_scores, make_case
from bustseg.data.cache import resize_image
from bustseg.data.inputs import EXPLAINED, Inputs, LooseSamples, Names
from bustseg.data.sources import Sample
from bustseg.deploy.output import is_full, png, write_whole
from bustseg.disclaimer import NOTICE
from bustseg.errors import DataError, UserError
from bustseg.explain.gradcam import (
    attention_maps,
    default_layer,
    encoder_stages,
    find_layer,
    find_method,
    heat_maps,
    list_layers,
)
from bustseg.figures.heat import Case, details_figure
from bustseg.figures.panels import Picture
from bustseg.figures.style import save
from bustseg.masks import resampled
from bustseg.metrics import overlap_scores
from bustseg.progress import console, error_console, track
from bustseg.runs.checkpoint import load_task, read_checkpoint
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.task import RECORD, SegmentationTask
from bustseg.training.preflight import try_size

_SHOWN_ERRORS = 5


def explain_images(
    inputs: Sequence[Path],
    model: str,
    out: Path | None,
    method: str = "GradCAM",
    layer: str | None = None,
    size: Sequence[int] | None = None,
    tolerance: float = 0,
    only_list: bool = False,
) -> int:
    """Explain a trained network's predictions of image files, found as ``bustseg predict`` finds them.

    Writes for each image ``NAME_heat.png`` (16 bit grey, the layer's heat at the image's own size, 65535 its maximum)
    and ``NAME_panel.png`` (also as SVG), and for all of them ``explain.csv``.

    Args:
        inputs: image files, folders and globs
        model: a checkpoint, an MLflow run id, ``runs:/RUN_ID``, ``models:/NAME@ALIAS`` or ``latest``
        out: folder to write to
        method: of :func:`bustseg.explain.gradcam.methods`
        layer: dotted name in the network; the last decoder block when not given
        size: (H, W) of the network's input, or one number for a square; as trained when not given
        tolerance: pixels by which the hottest pixel may miss the lesion and still hit
        only_list: print the layers that can be explained and stop

    Returns:
        exit code: 0, 1 when an image or its mask could not be read, 2 when no image could

    Raises:
        UserError: an input, the model, the method, the layer or the size cannot be used
    """
    path = resolve_checkpoint(model)
    task = load_task(path)
    stored = read_checkpoint(path)[RECORD]["config"].get("data", {}).get("image_size", 224)
    shape = _shape(size or stored)
    try_size(task, shape, "--size" if size else "data.image_size")
    probe = torch.zeros(1, 1, *shape, dtype=torch.uint8)
    if only_list:
        _print_layers(task, probe)
        return 0
    if not inputs or out is None:
        raise UserError("name images or folders, and with --out a folder to write to")
    find_method(method)
    if layer is not None:
        find_layer(task, layer)
    found = Inputs([str(given) for given in inputs], out)
    layers = list(dict.fromkeys([layer or default_layer(task, probe), *encoder_stages(task, probe)]))
    out.mkdir(parents=True, exist_ok=True)
    items = list({item.key: item for item in track(found, "looking for images")}.values())
    names, as_sample, rows, hidden = Names(), LooseSamples(), [], 0
    with (out / EXPLAINED).open("w", newline="") as file:
        # row by row, so that what is done stays, whatever becomes of the rest
        writer = csv.DictWriter(file, _columns(layers))
        writer.writeheader()
        for item in track(items, "explaining", total=len(items)):
            sample = as_sample(item)
            name = names.take(sample.id, item.key)
            row: dict[str, Any] = {"name": name, "image": item.image, "label": sample.label}
            try:
                item.check()
                case, scores = _explain_one(task, sample, shape, layers, method, tolerance)
                row |= scores
                heat = np.round(case.heat[layers[0]] * 65535).astype(np.uint16)
                write_whole(out / f"{name}_heat.png", png(heat))
                if item.may_be_shown:
                    save(details_figure([case], method), out / f"{name}_panel.png")
                else:
                    hidden += 1
            except DataError as error:
                row["error"] = str(error)
            except OSError as error:  # such as a name that the file system does not take
                if is_full(error):
                    raise
                row["error"] = f"its files cannot be written: {error.strerror}"
            rows.append(row)
            writer.writerow(row)
            file.flush()
    _print_means(rows, layers)
    return _tell(rows, out, hidden, found.told())


def _columns(layers: Sequence[str]) -> list[str]:
    nothing = np.zeros((1, 1))
    sizes = ("height", "width", "lesion_predicted_px", "lesion_px", "dice")
    return ["name", "image", "label", *sizes, *heat_scores(dict.fromkeys(layers, nothing), nothing, 0), "error"]


def _tell(rows: Sequence[dict[str, Any]], out: Path, hidden: int, passed_over: str) -> int:
    """Say what was done; returns the exit code."""
    failed = [row for row in rows if row.get("error")]
    done = sum("height" in row for row in rows)
    lines = [f"panels, heat maps (16 bit PNG) and {EXPLAINED} of {done} images in {out}"]
    if hidden:
        lines.append(f"{hidden} panels are left out: text in the picture may name the patient")
    if passed_over:
        lines.append(passed_over)
    for line in lines:
        console.print(line, highlight=False, markup=False)
    console.print(NOTICE, highlight=False)
    if not failed:
        return 0
    for row in failed[:_SHOWN_ERRORS]:
        error_console.print(f"{row['name']}: {row['error']}", highlight=False, markup=False)
    more = f" ({_SHOWN_ERRORS} shown)" if len(failed) > _SHOWN_ERRORS else ""
    error_console.print(f"[bold red]error:[/] {len(failed)} images have an error in {EXPLAINED}{more}", highlight=False)
    return 1 if done else 2


def _shape(size: Any) -> tuple[int, int]:
    values = [int(value) for value in (size if isinstance(size, Sequence) else [size])]
    if len(values) > 2 or min(values) < 16:
        raise UserError(
            f"size {' '.join(map(str, values))} cannot be used: give one number or height and width, from 16"
        )
    return values[0], values[-1]


def _explain_one(
    task: SegmentationTask,
    sample: Sample,
    shape: tuple[int, int],
    layers: Sequence[str],
    method: str,
    tolerance: float,
) -> tuple[Case, dict[str, Any]]:
    """Everything at the image's own size, the mask as prediction makes it; the network's maps are interpolated."""
    image = sample.read_image()
    error, drawn = "", bool(sample.masks)
    try:
        truth = sample.read_mask((image.shape[0], image.shape[1])).astype(np.uint8)
    except DataError as fault:  # the network's view needs no mask
        truth, error, drawn = np.zeros_like(image), str(fault), False
    batch = resize_image(image, shape)[None, None]
    found = heat_maps(task, batch, layers, method)

    def enlarge(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)

    prediction = task.mask_rule.mask(resampled(found.logits[0], (image.shape[0], image.shape[1])))
    heat = {name: np.clip(enlarge(maps[0]), 0, 1) for name, maps in found.heat.items()}
    attention = {name: maps[0] for name, maps in attention_maps(task, batch).items()}
    row: dict[str, Any] = {
        "height": image.shape[0],
        "width": image.shape[1],
        "lesion_predicted_px": int(prediction.sum()),
        "lesion_px": "",
        "dice": "",
        "error": error,
    }
    known = heat_scores(heat, truth, tolerance)
    scores: dict[str, Any] = known
    words = f"{int(prediction.sum())} px found"
    if truth.any():
        tp, fp, fn = ((a & b).sum() for a, b in ((truth, prediction), (1 - truth, prediction), (truth, 1 - prediction)))
        tp, fp, fn = (torch.tensor([int(count)]) for count in (tp, fp, fn))
        dice = float(overlap_scores(tp, fp, fn, torch.zeros_like(tp))["dice_lesion"])
        row |= {"lesion_px": int(truth.sum()), "dice": round(dice, 4)}
        words = f"Dice {dice:.2f}"
    else:
        row["lesion_px"] = 0 if drawn else ""
        scores = dict.fromkeys(scores, "")
    title = f"{sample.id}\n{sample.label + ', ' if sample.label != 'unknown' else ''}{words}"
    case = make_case(Picture(image, truth, prediction, sample.spacing), title, heat, known)
    case.attention = attention
    return case, row | scores


def _print_layers(task: SegmentationTask, probe: torch.Tensor) -> None:
    chosen, stages = default_layer(task, probe), encoder_stages(task, probe)
    layers = list_layers(task, probe)
    name_width, kind_width = (max(len(getattr(layer, part)) for layer in layers) for part in ("name", "kind"))
    for layer in layers:
        note = "  (default)" if layer.name == chosen else "  (encoder's last stage)" if layer.name in stages else ""
        size = " x ".join(map(str, layer.shape))
        # no table: it would fold names that are meant to be copied
        line = f"{layer.name:{name_width}}  {layer.kind:{kind_width}}  {size}{note}"
        console.print(line, highlight=False, markup=False)


def _print_means(rows: Sequence[dict[str, Any]], layers: Sequence[str]) -> None:
    known = [row for row in rows if row.get("lesion_px")]
    if not known:
        return
    table = Table(title=f"means over {len(known)} images with a known lesion", title_justify="left", box=None)
    for column in ("layer", "heat in the lesion", "hottest pixel in it"):
        table.add_column(column, overflow="fold")
    for layer in layers:
        cells = (np.mean([row[f"{score} {layer}"] for row in known]) for score in ("energy", "hit"))
        table.add_row(layer, *(f"{100 * cell:.1f} %" for cell in cells))
    console.print(table)
    baseline = 100 * np.mean([row["energy_baseline"] for row in known])
    console.print(f"heat that is the same everywhere would have {baseline:.1f} % in the lesion", highlight=False)
