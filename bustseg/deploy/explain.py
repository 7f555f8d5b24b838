"""``bustseg explain``: heat maps, panels and numbers for any images."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from rich.table import Table

from bustseg.box import boxed_model
from bustseg.callbacks.explain import heat_scores, make_case
from bustseg.data.inputs import EXPLAINED, Inputs, Item, LooseSamples, Names
from bustseg.data.sources import Sample
from bustseg.deploy.exported import is_exported
from bustseg.deploy.output import png
from bustseg.deploy.predictor import Predictor
from bustseg.disclaimer import NOTICE, WORDS
from bustseg.errors import DataError, UserError, disk_is_full
from bustseg.explain.gradcam import (
    attention_maps,
    default_layer,
    encoder_stages,
    find_layer,
    find_method,
    heat_maps,
    list_layers,
)
from bustseg.explain.occlusion import METHOD as OCCLUSION
from bustseg.explain.occlusion import occlusion_map
from bustseg.figures.heat import Case, details_figure
from bustseg.figures.panels import Picture
from bustseg.figures.style import save
from bustseg.framing import Framing
from bustseg.masks import MaskRule
from bustseg.metrics import overlap_scores
from bustseg.progress import console, error_console, print_error, several, track
from bustseg.runs.checkpoint import load_task, trained_framing
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.task import SegmentationTask
from bustseg.training.preflight import try_size
from bustseg.whole import write_whole

_SHOWN_ERRORS = 5


class _Explainer(Protocol):
    """Explains prepared images of one model by one method.

    Attributes:
        method: its name
        maps: names of its heat maps; the first is the one that is written to a file
        shape: (H, W) of a prepared image
        rule: turns the model's logits into masks
    """

    method: str
    maps: list[str]
    framing: Framing
    rule: MaskRule

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Logits (h, w) of a prepared image, ``uint8`` (h, w), the heat (h, w) of each map, and attention by module."""
        ...


class _ByLayers:
    """Grad-CAM and related methods, of a chosen layer and of each encoder's last stage."""

    def __init__(self, task: SegmentationTask, framing: Framing, method: str, layer: str | None) -> None:
        find_method(method, [OCCLUSION])
        if layer is not None:
            find_layer(task, layer)
        probe = _probe(framing.size)
        self.task, self.method, self.framing, self.rule = task, method, framing, task.mask_rule
        self.maps = list(dict.fromkeys([layer or default_layer(task, probe), *encoder_stages(task, probe)]))

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        batch = image[None, None]
        found = heat_maps(self.task, batch, self.maps, self.method)
        attention = {name: maps[0] for name, maps in attention_maps(self.task, batch).items()}
        return found.logits[0], {name: maps[0] for name, maps in found.heat.items()}, attention


class _ByOcclusion:
    """Occlusion, which needs neither gradients nor layers."""

    method = OCCLUSION

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.framing, self.rule = predictor, predictor.framing, predictor.rule
        self.maps = [OCCLUSION.lower()]

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        heat, logits = occlusion_map(self.predictor.logits, image, self.rule)
        return logits, {self.maps[0]: heat}, {}


def explain_images(
    inputs: Sequence[Path],
    model: str | None,
    out: Path | None,
    method: str | None = None,
    layer: str | None = None,
    size: Sequence[int] | None = None,
    tolerance: float = 0,
    only_list: bool = False,
) -> int:
    """Explain a trained network's predictions of image files, found as ``bustseg predict`` finds them.

    Writes ``NAME_heat.png`` (16 bit grey, the layer's heat at the image's own size, 65535 its maximum) and
    ``NAME_panel.png`` (also as SVG) for each image, and one ``explain.csv``.

    Args:
        inputs: image files, folders and globs
        model: a checkpoint, an MLflow run id, ``runs:/RUN_ID``, ``models:/NAME@ALIAS``, ``latest`` or an exported
            folder; the model in the box when not given
        out: folder to write to
        method: of :func:`bustseg.explain.gradcam.methods`, or ``Occlusion``; when not given ``GradCAM``, and
            ``Occlusion`` for an exported model, which has neither gradients nor layers
        layer: dotted name in the network; the last decoder block when not given
        size: (H, W) of the network's input, or one number for a square; as trained when not given
        tolerance: pixels by which the hottest pixel may miss the lesion and still hit
        only_list: print the layers that can be explained and stop

    Returns:
        exit code: 0, 1 when an image or its mask could not be read, 2 when no image could

    Raises:
        UserError: an input, the model, the method, the layer or the size cannot be used
    """
    explainer = _explainer(model, method, layer, size, only_list)
    if explainer is None:
        return 0
    if not inputs or out is None:
        raise UserError("name images or folders, and a folder to write to with --out")
    found = Inputs([str(given) for given in inputs], out)
    out.mkdir(parents=True, exist_ok=True)
    items = list({item.key: item for item in track(found, "looking for images")}.values())
    names, as_sample, rows, hidden = Names(), LooseSamples(), [], 0
    with (out / EXPLAINED).open("w", newline="") as file:
        # row by row, so that finished rows are kept if a later image fails
        writer = csv.DictWriter(file, _columns(explainer.maps))
        writer.writeheader()
        for item in track(items, "explaining", total=len(items)):
            sample = as_sample(item)
            name = names.take(sample.id, item.key)
            row: dict[str, Any] = {"name": name, "image": item.image, "label": sample.label, "method": explainer.method}
            row["notice"] = WORDS
            hidden += not _write_one(explainer, item, sample, tolerance, out / name, row)
            rows.append(row)
            writer.writerow(row)
            file.flush()
    _print_means(rows, explainer.maps, explainer.method)
    return _tell(rows, out, hidden, found.told())


def _explainer(
    model: str | None, method: str | None, layer: str | None, size: Sequence[int] | None, only_list: bool
) -> _Explainer | None:
    """The explainer of a model; None after its layers were listed, if only that was requested.

    Raises:
        UserError: the model, the method, the layer or the size cannot be used
    """
    name = model if model is not None else str(boxed_model())
    if is_exported(name):
        _check_for_exported(model, method, layer, size, only_list)
        return _ByOcclusion(Predictor(name))
    path = resolve_checkpoint(name)
    task = load_task(path)
    framing = trained_framing(task, _shape(size or trained_framing(task).size))
    try_size(task, framing.size, "--size" if size else "data.image_size")
    if only_list:
        _print_layers(task, _probe(framing.size))
        return None
    if method != OCCLUSION:
        return _ByLayers(task, framing, method or "GradCAM", layer)
    if layer is not None:
        raise UserError(f"{OCCLUSION} covers parts of the image and does not use layers: leave --layer out")
    return _ByOcclusion(Predictor(task, image_size=framing.size))


def _probe(shape: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(1, 1, *shape, dtype=torch.uint8)


def _check_for_exported(
    model: str | None, method: str | None, layer: str | None, size: Sequence[int] | None, only_list: bool
) -> None:
    """Refuse options that an exported model does not support.

    Raises:
        UserError: there are such options
    """
    who = "the model in the box" if model is None else f"the exported model {model}"
    if method not in (None, OCCLUSION):
        find_method(method, [OCCLUSION])
        raise UserError(
            f"{who} has no layers and no gradients, which {method} needs: use --method {OCCLUSION}, or name a "
            "checkpoint or a run with --model"
        )
    given = {"--list-layers": only_list, "--layer": layer is not None, "--size": bool(size)}
    if refused := [option for option, is_given in given.items() if is_given]:
        raise UserError(
            f"{who} has a fixed input size and no layers to choose from: leave {' and '.join(refused)} out, or "
            "name a checkpoint or a run with --model"
        )


def _columns(layers: Sequence[str]) -> list[str]:
    nothing = np.zeros((1, 1))
    sizes = ("height", "width", "lesion_predicted_px", "lesion_px", "dice")
    return [
        "name",
        "image",
        "label",
        "method",
        *sizes,
        *heat_scores(dict.fromkeys(layers, nothing), nothing, 0),
        "error",
        "notice",
    ]


def _tell(rows: Sequence[dict[str, Any]], out: Path, hidden: int, passed_over: str) -> int:
    """Print a summary; returns the exit code."""
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
    print_error(f"{several(len(failed), 'image')} with an error in {EXPLAINED}{more}")
    return 1 if done else 2


def _shape(size: Any) -> tuple[int, int]:
    values = [int(value) for value in (size if isinstance(size, Sequence) else [size])]
    if len(values) > 2 or min(values) < 16:
        raise UserError(
            f"size {' '.join(map(str, values))} cannot be used: give one number or height and width, from 16"
        )
    return values[0], values[-1]


def _write_one(
    explainer: _Explainer, item: Item, sample: Sample, tolerance: float, path: Path, row: dict[str, Any]
) -> bool:
    """Explain an image, complete its ``row``, and write its heat map and its panel to files that begin with ``path``.

    Returns:
        False where the panel was left out, because the image may show who the patient is
    """
    try:
        item.check()
        case, scores = _explain_one(explainer, sample, tolerance)
        row |= scores
        heat = np.round(case.heat[explainer.maps[0]] * 65535).astype(np.uint16)
        write_whole(path.with_name(f"{path.name}_heat.png"), png(heat))
        if not item.may_be_shown:
            return False
        save(details_figure([case], explainer.method), path.with_name(f"{path.name}_panel.png"))
    except DataError as error:
        row["error"] = str(error)
    except OSError as error:  # such as a name that the file system does not accept
        if disk_is_full(error):
            raise
        row["error"] = f"its files cannot be written: {error.strerror}"
    return True


def _explain_one(explainer: _Explainer, sample: Sample, tolerance: float) -> tuple[Case, dict[str, Any]]:
    """Explain one image at its own size, with the mask of a prediction; the network's maps are interpolated."""
    image = sample.read_image()
    shape = image.shape[0], image.shape[1]
    error, drawn = "", bool(sample.masks)
    try:
        truth = sample.read_mask(shape).astype(np.uint8)
    except DataError as fault:  # an explanation needs no mask
        truth, error, drawn = np.zeros_like(image), str(fault), False
    framing = explainer.framing
    logits, maps, attention = explainer(framing.fit(image))

    prediction = explainer.rule.mask(framing.restore(logits, shape))
    heat = {name: np.clip(framing.restore(own, shape), 0, 1) for name, own in maps.items()}
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
    # at its own resolution, without the padding
    window = framing.window(shape)
    case.attention = {
        name: cv2.resize(values, framing.size[::-1], interpolation=cv2.INTER_NEAREST)[window]
        for name, values in attention.items()
    }
    return case, row | scores


def _print_layers(task: SegmentationTask, probe: torch.Tensor) -> None:
    chosen, stages = default_layer(task, probe), encoder_stages(task, probe)
    layers = list_layers(task, probe)
    name_width, kind_width = (max(len(getattr(layer, part)) for layer in layers) for part in ("name", "kind"))
    for layer in layers:
        note = "  (default)" if layer.name == chosen else "  (encoder's last stage)" if layer.name in stages else ""
        size = " x ".join(map(str, layer.shape))
        # not a table, which would wrap names that are meant to be copied
        line = f"{layer.name:{name_width}}  {layer.kind:{kind_width}}  {size}{note}"
        console.print(line, highlight=False, markup=False)


def _print_means(rows: Sequence[dict[str, Any]], layers: Sequence[str], method: str) -> None:
    known = [row for row in rows if row.get("lesion_px")]
    if not known:
        return
    table = Table(title=f"{method}: means over {len(known)} images with a known lesion", title_justify="left", box=None)
    for column in ("map", "heat in the lesion", "hottest pixel in it"):
        table.add_column(column, overflow="fold")
    for layer in layers:
        cells = (np.mean([row[f"{score} {layer}"] for row in known]) for score in ("energy", "hit"))
        table.add_row(layer, *(f"{100 * cell:.1f} %" for cell in cells))
    console.print(table)
    baseline = 100 * np.mean([row["energy_baseline"] for row in known])
    console.print(f"uniform heat would have {baseline:.1f} % in the lesion", highlight=False)
