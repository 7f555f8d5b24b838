"""Where a tested network looks: Grad-CAM panels of telling cases, and how much of the heat lies in the lesions."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.axes
import matplotlib.figure
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bustseg.callbacks.panels import draw_panel, select_cases
from bustseg.colours import OUTLINES
from bustseg.data.datamodule import BUSIDataModule
from bustseg.data.sources import LABELS
from bustseg.explain import (
    attention_maps,
    cam_energy,
    default_layer,
    encoder_stages,
    find_layer,
    find_method,
    heat_maps,
    pointing_hit,
)
from bustseg.metrics import overlap_scores
from bustseg.task import SegmentationTask
from bustseg.tracking import Tracker

HEAT = "inferno"
"""Colour map of heat: perceptually uniform, dark where there is none."""

BATCH = 8
"""Images explained at once, at most: their graph takes several times the memory of a prediction."""


@dataclass
class Case:
    """One image with everything that is drawn of it.

    Attributes:
        image: grey ``uint8`` (H, W)
        truth, prediction: (H, W) of 0 and 1
        title: line or two above the image
        heat: layer -> (H, W) in 0..1
        attention: attention module -> (h, w), any range
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    title: str
    heat: Mapping[str, np.ndarray]
    attention: Mapping[str, np.ndarray] = field(default_factory=dict)


def draw_heat(axes: matplotlib.axes.Axes, case: Case, heat: np.ndarray, title: str) -> None:
    """Draw a case with its outlines and a heat map (H, W) in 0..1 over the image, opaque where it is hot.

    The prediction is white here: its own colour would drown in the heat.
    """
    draw_panel(axes, case.image, case.truth, np.zeros_like(case.truth), title)
    if case.prediction.any():
        axes.contour(case.prediction, levels=[0.5], colors="white", linewidths=0.7, linestyles="dotted")
    axes.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.75 * np.sqrt(np.clip(heat, 0, 1)))


def _heat_title(layer: str, case: Case) -> str:
    heat = case.heat[layer]
    if not heat.any():
        return f"{layer}\nno evidence here"
    # then the whole image is explained, and the hottest spot may be a speck
    words = "" if case.prediction.any() else "nothing predicted"
    if case.truth.any():
        share = f"{100 * cam_energy(heat, case.truth):.0f} % of the heat in the lesion"
        words = f"{words}; {share.replace(' of the heat', '')}" if words else share
    return f"{layer}\n{words}"


def cases_figure(rows: Mapping[str, Sequence[Case]], layer: str, method: str) -> matplotlib.figure.Figure:
    """Rows of cases (best, median, ...), each case as image and heat map side by side."""
    columns = max(len(cases) for cases in rows.values())
    figure = matplotlib.figure.Figure(figsize=(3.9 * columns, 2.4 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes_row, (name, cases) in zip(grid, rows.items(), strict=True):
        for k, case in enumerate(cases):
            draw_panel(axes_row[2 * k], case.image, case.truth, case.prediction, f"{name}: {case.title}")
            title = _heat_title(layer, case).split("\n")[1]
            draw_heat(axes_row[2 * k + 1], case, case.heat[layer], f"{title}\n" if title else "")
    figure.suptitle(f"{method} of {layer}; {OUTLINES} (dotted white over heat)", fontsize=9)
    return figure


def details_figure(cases: Sequence[Case], method: str) -> matplotlib.figure.Figure:
    """One row per case: the image, a heat map for each layer, and each attention module's own map."""
    layers, attentions = list(cases[0].heat), list(cases[0].attention)
    columns = 1 + len(layers) + len(attentions)
    height, width = cases[0].image.shape
    figure = matplotlib.figure.Figure(
        figsize=(2.3 * columns, (2.3 * min(height / width, 1.6) + 0.45) * len(cases) + 0.4), layout="constrained"
    )
    grid = figure.subplots(len(cases), columns, squeeze=False)
    for axes_row, case in zip(grid, cases, strict=True):
        draw_panel(axes_row[0], case.image, case.truth, case.prediction, case.title)
        for axes, layer in zip(axes_row[1:], layers, strict=False):
            draw_heat(axes, case, case.heat[layer], _heat_title(layer, case))
        for axes, name in zip(axes_row[1 + len(layers) :], attentions, strict=True):
            own = case.attention[name]
            # over the image's extent, but in its own pixels: what the module sees is that coarse
            axes.imshow(own, cmap=HEAT, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
            if case.truth.any():
                axes.contour(case.truth, levels=[0.5], colors="white", linewidths=0.8)
            axes.set_title(f"{name}\nattention {own.min():.2g} to {own.max():.2g}", fontsize=8)
            axes.set_axis_off()
    title = f"{method}; {OUTLINES} (dotted white over heat)"
    figure.suptitle(title + "; on attention maps truth white" * bool(attentions), fontsize=9)
    return figure


class ExplainCallback(Callback):
    """After a test, draws what the network looked at into ``explain/`` and logs how much of it lies in the lesions.

    ``explain/cases.png`` has the best, median and worst cases, missed lesions and false positives on normals;
    ``explain/layers.png`` the maps of each encoder's last stage and of the attention modules for some of them;
    ``explain/cam.csv`` the numbers of each image. Logged, as means over the images with a lesion:

    * ``test/cam_energy``: share of the heat that lies in the lesion
    * ``test/cam_pointing_hit``: whether the hottest pixel lies in it
    * ``test/cam_energy_baseline``: the lesion's share of the image, which heat that is the same everywhere would get
    * ``test/cam_energy_encoder0``, ``test/cam_pointing_hit_encoder0``, ...: the same of each encoder's last stage

    Args:
        enabled: whether to explain at all
        method: of the ``grad-cam`` library, see :func:`bustseg.explain.methods`
        layer: dotted name in the network; the last decoder block when not given
        encoders: explain each encoder's last stage too, on all images (a backward pass through the decoder)
        cases: images per row of ``cases.png``
        details: images in ``layers.png``
        tolerance: pixels by which the hottest pixel may miss the lesion and still hit
    """

    def __init__(
        self,
        enabled: bool = True,
        method: str = "GradCAM",
        layer: str | None = None,
        encoders: bool = True,
        cases: int = 3,
        details: int = 4,
        tolerance: float = 0,
    ) -> None:
        self.enabled = enabled
        self.method = method
        self.layer = layer
        self.encoders = encoders
        self.cases = cases
        self.details = details
        self.tolerance = tolerance

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find bad names before the test, not after it."""
        if self.enabled and stage == "test":
            find_method(self.method)
            if self.layer is not None:
                find_layer(pl_module, self.layer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker, datamodule = trainer.logger, trainer.datamodule  # type: ignore[attr-defined]
        if not (
            self.enabled
            and isinstance(pl_module, SegmentationTask)
            and isinstance(tracker, Tracker)
            and isinstance(datamodule, BUSIDataModule)
        ):
            return
        counts = pl_module.overlap("test").per_image()
        if not trainer.is_global_zero:
            return
        rows = select_cases(counts, self.cases, missed_apart=True)
        if not rows:
            return
        probe = torch.from_numpy(datamodule.arrays(int(counts["index"][0]))[0].copy())[None, None]
        layers = [self.layer or default_layer(pl_module, probe)]
        stages = encoder_stages(pl_module, probe) if self.encoders else []
        shown = torch.cat(list(rows.values()))
        lesion = torch.nonzero(counts["tp"] + counts["fn"]).flatten()
        with trainer.precision_plugin.forward_context():  # as in the test itself
            table, cases = self._explain(
                pl_module, datamodule, counts, torch.cat([lesion, shown]).unique(), set(shown.tolist()), layers + stages
            )
            chosen = [int(positions[k]) for k in range(self.cases) for positions in rows.values() if k < len(positions)]
            detailed = [cases[position] for position in chosen[: self.details]]
            attention = attention_maps(pl_module, np.stack([case.image for case in detailed])[:, None])
        for k, case in enumerate(detailed):
            case.attention = {name: maps[k] for name, maps in attention.items()}
        pl_module.log_dict(self._means(table, layers[0], stages), rank_zero_only=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with (folder / "cam.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(table[0]))
                writer.writeheader()
                writer.writerows(table)
            named = {name: [cases[position] for position in positions.tolist()] for name, positions in rows.items()}
            cases_figure(named, layers[0], self.method).savefig(folder / "cases.png", dpi=110)
            if detailed and (stages or attention):
                details_figure(detailed, self.method).savefig(folder / "layers.png", dpi=110)
            for path in sorted(folder.iterdir()):
                tracker.log_file(path, "explain")

    def _explain(
        self,
        task: SegmentationTask,
        datamodule: BUSIDataModule,
        counts: Mapping[str, Tensor],
        positions: Tensor,
        shown: set[int],
        layers: Sequence[str],
    ) -> tuple[list[dict[str, Any]], dict[int, Case]]:
        """Table rows of ``positions``, and what is drawn of those ``shown``; a batch of maps at a time in memory."""
        dice = overlap_scores(counts["tp"], counts["fp"], counts["fn"], counts["tn"])["dice_paper"]
        table: list[dict[str, Any]] = []
        cases: dict[int, Case] = {}
        for part in positions.split(min(datamodule.eval_batch_size, BATCH)):
            arrays = [datamodule.arrays(int(counts["index"][position])) for position in part]
            images = np.stack([image for image, _ in arrays])[:, None]
            found = heat_maps(task, images, layers, self.method)
            for k, position in enumerate(part.tolist()):
                image, truth = arrays[k]
                heat = {layer: found.heat[layer][k] for layer in layers}
                sample = datamodule.samples[int(counts["index"][position])]
                label = LABELS[int(counts["label"][position])]
                table.append(
                    {"id": sample.id, "label": label, "dice": f"{float(dice[position]):.4f}"}
                    | heat_scores(heat, truth, self.tolerance)
                )
                if position in shown:
                    prediction = found.mask[k]
                    score = f"Dice {float(dice[position]):.2f}" if truth.any() else f"{int(prediction.sum())} px found"
                    cases[position] = Case(image, truth, prediction, f"{sample.id}\n{label}, {score}", heat)
        return table, cases

    @staticmethod
    def _means(table: Sequence[Mapping[str, Any]], layer: str, stages: Sequence[str]) -> dict[str, float]:
        names = {layer: ""} | {stage: f"_encoder{k}" for k, stage in enumerate(stages) if stage != layer}
        columns = {"test/cam_energy_baseline": "energy_baseline"}
        for name, suffix in names.items():
            columns |= {f"test/cam_energy{suffix}": f"energy {name}", f"test/cam_pointing_hit{suffix}": f"hit {name}"}
        lesions = [row for row in table if row["energy_baseline"] > 0]
        if not lesions:
            return {}
        return {metric: float(np.mean([row[column] for row in lesions])) for metric, column in columns.items()}


def heat_scores(heat: Mapping[str, np.ndarray], truth: np.ndarray, tolerance: float) -> dict[str, float]:
    """Columns of a table: the lesion's share of the image, then energy and hit of each layer; nan without a lesion."""
    scores = {"energy_baseline": float(truth.astype(bool).mean())}
    for layer, own in heat.items():
        scores |= {f"energy {layer}": cam_energy(own, truth), f"hit {layer}": pointing_hit(own, truth, tolerance)}
    return scores
