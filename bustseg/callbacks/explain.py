"""Where a tested network looks: Grad-CAM panels of informative cases, and how much of the heat lies in the lesions."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bustseg.callbacks.panels import select_cases
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.sources import LABELS
from bustseg.explain.gradcam import (
    attention_maps,
    cam_energy,
    default_layer,
    encoder_stages,
    find_layer,
    find_method,
    heat_maps,
    pointing_hit,
)
from bustseg.figures.heat import Case, cases_figure, details_figure
from bustseg.figures.panels import Picture
from bustseg.figures.style import save
from bustseg.metrics import overlap_scores
from bustseg.runs.tracker import run_of
from bustseg.task import SegmentationTask

BATCH = 8
"""Images explained at once, at most: their graph takes several times the memory of a prediction."""


class ExplainCallback(Callback):
    """After a test, draws heat maps into ``explain/`` and logs how much of the heat lies in the lesions.

    ``explain/cases.png`` has the best, median and worst cases, missed lesions and false positives on normals, with the
    maps of the chosen layer and of the first encoder's last stage, each with the score of a constant map;
    ``explain/layers.png`` the maps of each encoder's last stage and of the attention modules for some of them (both
    also as SVG);
    ``explain/cam.csv`` the numbers of each image. Logged, as means over the images with a lesion:

    * ``test/cam_energy``: share of the heat that lies in the lesion
    * ``test/cam_pointing_hit``: whether the hottest pixel lies in it
    * ``test/cam_energy_baseline``: the lesion's share of the image, which is what uniform heat would score
    * ``test/cam_energy_encoder0``, ``test/cam_pointing_hit_encoder0``, ...: the same of each encoder's last stage

    Args:
        enabled: whether to explain at all
        method: of the ``grad-cam`` library, see :func:`bustseg.explain.gradcam.methods`
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
        """Refuse wrong names before the test, not after it."""
        if self.enabled and stage == "test":
            find_method(self.method)
            if self.layer is not None:
                find_layer(pl_module, self.layer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if not (
            self.enabled and isinstance(pl_module, SegmentationTask) and isinstance(datamodule, UltrasoundDataModule)
        ):
            return
        counts = pl_module.overlap("test").per_image()
        run = run_of(trainer)
        if run is None:
            return
        rows = select_cases(counts, self.cases, missed_apart=True)
        if not rows:
            return
        probe = torch.from_numpy(datamodule.arrays(int(counts["index"][0]))[0].copy())[None, None]
        layers = [self.layer or default_layer(pl_module, probe)]
        stages = encoder_stages(pl_module, probe) if self.encoders else []
        shown = torch.cat(list(rows.values()))
        lesion = torch.nonzero(counts["tp"] + counts["fn"]).flatten()
        with trainer.precision_plugin.forward_context():  # as in the test
            table, cases = self._explain(
                pl_module, datamodule, counts, torch.cat([lesion, shown]).unique(), set(shown.tolist()), layers + stages
            )
            chosen = [int(positions[k]) for k in range(self.cases) for positions in rows.values() if k < len(positions)]
            detailed = [cases[position] for position in chosen[: self.details]]
            inputs = [datamodule.arrays(int(counts["index"][position]))[0] for position in chosen[: self.details]]
            attention = attention_maps(pl_module, np.stack(inputs)[:, None])
        for k, case in enumerate(detailed):
            case.attention = {name: maps[k] for name, maps in attention.items()}
        means = self._means(table, layers[0], stages)
        pl_module.log_dict(means, rank_zero_only=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with (folder / "cam.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(table[0]))
                writer.writeheader()
                writer.writerows(table)
            named = {name: [cases[position] for position in positions.tolist()] for name, positions in rows.items()}
            compared = list(dict.fromkeys([layers[0], *stages[:1]]))
            title = _title(self.method, means, compared, stages)
            save(cases_figure(named, compared, title), folder / "cases.png")
            if detailed and (stages or attention):
                save(details_figure(detailed, self.method), folder / "layers.png")
            run.add_files(folder, "explain")

    def _explain(
        self,
        task: SegmentationTask,
        datamodule: UltrasoundDataModule,
        counts: Mapping[str, Tensor],
        positions: Tensor,
        shown: set[int],
        layers: Sequence[str],
    ) -> tuple[list[dict[str, Any]], dict[int, Case]]:
        """Table rows of ``positions``, and the drawn cases of those ``shown``; holds one batch of maps in memory."""
        dice = overlap_scores(counts["tp"], counts["fp"], counts["fn"], counts["tn"])["dice_paper"]
        table: list[dict[str, Any]] = []
        cases: dict[int, Case] = {}
        for part in positions.split(min(datamodule.eval_batch_size, BATCH)):
            arrays = [datamodule.arrays(int(counts["index"][position])) for position in part]
            images = np.stack([image for image, _ in arrays])[:, None]
            found = heat_maps(task, images, layers, self.method)
            for k, position in enumerate(part.tolist()):
                truth = arrays[k][1]
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
                    cases[position] = make_case(
                        Picture.of(sample, prediction), f"{sample.id}\n{label}, {score}", heat, table[-1]
                    )
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


def make_case(picture: Picture, title: str, heat: Mapping[str, np.ndarray], scores: Mapping[str, Any]) -> Case:
    """A case with its scores from :func:`heat_scores`."""
    energy = {layer: scores[f"energy {layer}"] for layer in heat}
    return Case(picture, title, heat, energy, scores["energy_baseline"])


def _title(method: str, means: Mapping[str, float], layers: Sequence[str], stages: Sequence[str]) -> str:
    """The title above the cases: the method and the means over all lesion images, with that of a constant map."""
    if not means:
        return method
    suffix = {layer: f"_encoder{stages.index(layer)}" if layer in stages else "" for layer in layers}
    suffix[layers[0]] = ""
    shares = [f"{100 * means[f'test/cam_energy{suffix[layer]}']:.0f} % in {layer}" for layer in layers]
    constant = f"{100 * means['test/cam_energy_baseline']:.0f} % in a constant map"
    return f"{method}; heat in the lesion, mean over the lesion images: {', '.join([*shares, constant])}"


def heat_scores(heat: Mapping[str, np.ndarray], truth: np.ndarray, tolerance: float) -> dict[str, float]:
    """Columns of the table: the lesion's share of the image, then each layer's energy and hit; nan without a lesion."""
    scores = {"energy_baseline": float(truth.astype(bool).mean())}
    for layer, own in heat.items():
        scores |= {f"energy {layer}": cam_energy(own, truth), f"hit {layer}": pointing_hit(own, truth, tolerance)}
    return scores
