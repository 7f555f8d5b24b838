"""Occlusion: maps known from the model that makes them, and the command on the model in the box."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from bustseg.explain.gradcam import cam_energy, pointing_hit
from bustseg.explain.occlusion import CELLS, occlusion_map
from bustseg.masks import MaskRule

Bustseg = Callable[..., tuple[int, str, str]]

SIDE = 4 * CELLS
LESION = np.s_[8:24, 8:24]  # whole cells
CONTEXT = np.s_[40:44, 40:44]  # one cell


def image_with_lesion() -> np.ndarray:
    image = np.full((SIDE, SIDE), 100, np.uint8)
    image[LESION] = 20
    image[CONTEXT] = 220
    return image


def sees_darkness(images: list[np.ndarray]) -> np.ndarray:
    """Logits 1 where a pixel is dark, else -1: each pixel's logit depends on that pixel alone."""
    return np.where(np.stack(images) < 50, 1.0, -1.0).astype(np.float32)[:, None]


def sees_context(images: list[np.ndarray]) -> np.ndarray:
    """A lesion at a fixed place, if and only if there is something bright elsewhere."""
    logits = np.full((len(images), 1, SIDE, SIDE), -1, np.float32)
    for k, image in enumerate(images):
        logits[k, 0][LESION] = 1 if image[CONTEXT].max() > 200 else -0.5
    return logits


def test_a_network_that_looks_at_the_lesion_has_its_heat_there() -> None:
    image = image_with_lesion()
    heat, logits = occlusion_map(sees_darkness, image, MaskRule())
    assert np.array_equal(logits, sees_darkness([image])[0, 0])
    assert (heat.dtype, heat.shape, heat.max()) == (np.float32, image.shape, 1)
    lesion = np.zeros_like(image)
    lesion[LESION] = 1
    assert pointing_hit(heat, lesion) == 1
    # a cover hides 4 of the lesion's 16 cells inside of it and fewer at its edge; beyond the covers' reach heat is 0
    assert cam_energy(heat, lesion) > 0.7
    assert not heat[32:].any()


def test_values_are_what_covering_costs() -> None:
    """By hand: one cell decides, four positions hide it, each of which hides other cells too."""
    heat, _ = occlusion_map(sees_context, image_with_lesion(), MaskRule())
    middles = heat[1::4, 1::4]  # next to the middle of each cell
    row = column = 10
    # all four positions that hide the cell hide the bright spot: 4/4; beside it 2/4, diagonally 1/4; farther away none
    fine = cv2.resize(np.pad(np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]), ((9, 2), (9, 2))).astype(np.float32), (SIDE, SIDE))
    assert np.allclose(heat, fine / fine.max(), atol=1e-5)
    assert middles[row, column] == middles.max()
    assert not middles[:9].any()
    assert pointing_hit(heat, (image_with_lesion() == 220).astype(np.uint8)) == 1


def test_without_a_prediction_the_whole_image_is_explained_and_without_evidence_nothing_is_hot() -> None:
    blank = np.full((SIDE, SIDE), 100, np.uint8)
    heat, _ = occlusion_map(sees_darkness, blank, MaskRule())
    assert not heat.any()
    # nothing is above this threshold, but the dark part still raises the mean of all logits
    heat, _ = occlusion_map(sees_darkness, image_with_lesion(), MaskRule(threshold=0.9))
    assert heat[LESION].min() > 0


def test_sides_that_are_no_multiple_of_the_cells() -> None:
    image = np.full((61, 45), 100, np.uint8)
    image[30:40, 20:30] = 20
    heat, _ = occlusion_map(sees_darkness, image, MaskRule())
    assert heat.shape == image.shape
    assert pointing_hit(heat, (image == 20).astype(np.uint8), tolerance=2) == 1


@pytest.mark.slow
def test_the_model_in_the_box_explains_what_it_predicts(phantoms: Path, bustseg: Bustseg) -> None:
    image = next((phantoms / "malignant").glob("malignant (1).png"))
    code, out, err = bustseg("explain", image, "--out", "out")
    assert code == 0, err
    (row,) = csv.DictReader(Path("out/explain.csv").read_text().splitlines())
    assert row["method"] == "Occlusion"
    assert {"energy occlusion", "hit occlusion"} <= row.keys()
    assert "Occlusion: means over 1 images with a known lesion" in out
    assert cv2.imread(f"out/{row['name']}_heat.png", cv2.IMREAD_UNCHANGED).dtype == np.uint16
    assert Path(f"out/{row['name']}_panel.png").stat().st_size > 5_000
    # the same lesion as predict outlines
    code, _, err = bustseg("predict", image, "--out", "predicted")
    assert code == 0, err
    mask = cv2.imread(f"predicted/masks/{image.stem}.png", cv2.IMREAD_GRAYSCALE)
    assert int(row["lesion_predicted_px"]) == (mask > 127).sum()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--method", "GradCAM"], "the model in the box has no layers and no gradients, which GradCAM needs"),
        (["--method", "Oclusion"], "did you mean Occlusion"),
        (["--layer", "decoder"], "leave --layer out"),
        (["--list-layers"], "leave --list-layers out"),
        (["--size", "64"], "leave --size out"),
    ],
)
def test_what_an_exported_model_cannot_do_is_said_in_one_line(
    options: list[str], expected: str, phantoms: Path, bustseg: Bustseg
) -> None:
    code, _, err = bustseg("explain", phantoms, "--out", "out", *options)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("out").exists()
