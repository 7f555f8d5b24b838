"""From logits to masks: by hand, against scipy, and the same wherever one is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.deploy.backends import TorchBackend
from bustseg.deploy.check import check_images, logits_of, overlap
from bustseg.deploy.mlflow_model import _load_pyfunc
from bustseg.deploy.predictor import Predictor
from bustseg.errors import UserError
from bustseg.explain.gradcam import heat_maps
from bustseg.framing import Framing
from bustseg.masks import MaskRule, PostProcess, labelled, probability_of, selected, with_mirror
from bustseg.runs.checkpoint import load_task
from bustseg.task import SegmentationTask
from tests.conftest import TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]

EIGHT = np.ones((3, 3))


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows], dtype=np.uint8)


MASK = mask_of(
    "####......",
    "#..#....#.",
    "#..#...#..",
    "####......",
    ".........#",
)  # a ring of 12 around 4, two pixels that touch at a corner, one alone; 50 pixels
RING, RING_AND_PAIR = MASK.copy(), MASK.copy()
RING[:, 4:] = 0
RING_AND_PAIR[4, 9] = 0


def test_the_default_changes_nothing() -> None:
    assert PostProcess()(MASK) is MASK


def test_small_components_go() -> None:
    # 2 of 50 pixels are 0.04: exactly that share stays
    assert np.array_equal(PostProcess(min_area_px_relative=0.04)(MASK), RING_AND_PAIR)
    assert np.array_equal(PostProcess(min_area_px_relative=0.041)(MASK), RING)
    assert not PostProcess(min_area_px_relative=0.25)(MASK).any()
    # with its hole filled the ring has 16 pixels, a share of 0.32
    assert PostProcess(min_area_px_relative=0.25, fill_holes=True)(MASK).sum() == 16


def test_the_largest_is_kept() -> None:
    assert np.array_equal(PostProcess(keep="largest")(MASK), RING)
    equal = mask_of("##..##", "......")
    assert np.array_equal(PostProcess(keep="largest")(equal), mask_of("##....", "......"))
    assert not PostProcess(keep="largest", min_area_px_relative=0.5)(MASK).any()
    empty = np.zeros((3, 4), np.uint8)
    assert np.array_equal(PostProcess(keep="largest", fill_holes=True)(empty), empty)


def test_components_far_less_confident_than_the_best_go() -> None:
    # logits of the ring 3, of the pair 2 and 0.5 (mean 1.25), of the single pixel 1.1
    logits = np.where(MASK, 3.0, -4.0)
    logits[1, 8], logits[2, 7], logits[4, 9] = 2, 0.5, 1.1
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    assert np.array_equal(PostProcess(max_confidence_gap=2)(MASK, probability), MASK)
    assert np.array_equal(PostProcess(max_confidence_gap=1.8)(MASK, probability), RING_AND_PAIR)
    assert np.array_equal(PostProcess(max_confidence_gap=1)(MASK, probability), RING)
    # the most confident one stays whatever its size, and is not compared with what another step removes later
    logits[4, 9] = 9
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    assert PostProcess(max_confidence_gap=0)(MASK, probability).sum() == 1
    assert not PostProcess(max_confidence_gap=0, min_area_px_relative=0.1)(MASK, probability).any()
    # certain to the last bit is no division by zero
    assert PostProcess(max_confidence_gap=0)(MASK, MASK.astype(np.float32)).sum() == MASK.sum()
    with pytest.raises(ValueError, match="none were given"):
        PostProcess(max_confidence_gap=2)(MASK)


def test_components_without_a_probable_pixel_go() -> None:
    probability = np.where(MASK, 0.6, 0.1).astype(np.float32)
    probability[0, 0], probability[2, 7] = 0.95, 0.8  # peaks: of the ring, of the pair; the single pixel has 0.6
    assert np.array_equal(PostProcess(min_peak_probability=0.5)(MASK, probability), MASK)
    assert np.array_equal(PostProcess(min_peak_probability=0.8)(MASK, probability), RING_AND_PAIR)
    assert np.array_equal(PostProcess(min_peak_probability=0.9)(MASK, probability), RING)
    assert not PostProcess(min_peak_probability=0.96)(MASK, probability).any()
    assert not PostProcess(min_peak_probability=0.96, max_confidence_gap=2)(MASK, probability).any()
    with pytest.raises(ValueError, match="none were given"):
        PostProcess(min_peak_probability=0.8)(MASK)


def test_what_has_no_peak_is_not_what_others_are_compared_with() -> None:
    probability = np.full((4, 8), 0.01, np.float32)
    probability[0, 0:2], probability[3, 2:6], probability[3, 7] = 0.8, 0.55, 0.9
    probability[3, 2] = 0.92
    mask = (probability > 0.5).astype(np.uint8)
    # mean logits 1.39, 0.76 and 2.2; without the last, whose peak is too low, the second is within the gap of nothing
    found = PostProcess(max_confidence_gap=1, min_peak_probability=0.91)(mask, probability)
    assert found.sum() == 4
    assert found[3, 2:6].all()
    assert PostProcess(max_confidence_gap=1)(mask, probability).sum() == 3


@pytest.mark.parametrize("seed", range(6))
def test_random_masks_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((40, 57)) < rng.uniform(0.2, 0.6)).astype(np.uint8)
    original = mask.copy()
    filled = ndimage.binary_fill_holes(mask)
    assert np.array_equal(PostProcess(fill_holes=True)(mask), filled.astype(np.uint8))
    labels, n = ndimage.label(filled, EIGHT)
    areas = ndimage.sum_labels(filled, labels, range(1, n + 1))
    expected = np.isin(labels, 1 + np.flatnonzero(areas >= 0.01 * mask.size))
    found = PostProcess(fill_holes=True, min_area_px_relative=0.01)(mask)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected.astype(np.uint8))
    assert np.array_equal(mask, original), "the input is not changed"


def test_settings_travel_as_plain_types_and_unknown_ones_are_refused() -> None:
    settings = PostProcess(0.01, "largest", True, 2.0, 0.9)
    assert PostProcess.from_dict(settings.to_dict()) == settings
    assert PostProcess.from_dict(None) == PostProcess()
    with pytest.raises(UserError, match="needs postprocess dilate, which this version does not know"):
        PostProcess.from_dict({"dilate": 3})
    for bad in (
        {"min_area_px_relative": 1},
        {"min_area_px_relative": -0.1},
        {"keep": "smallest"},
        {"max_confidence_gap": -1},
        {"min_peak_probability": 1},
        {"min_peak_probability": -0.1},
        {"min_peak_probability": "0.8"},
        {"min_area_px_relative": None},
        {"max_confidence_gap": "2"},
        {"fill_holes": "no"},
        {"keep": ["all"]},
        ["all"],
        {1: 2},
        "largest",
    ):
        with pytest.raises(UserError, match="postprocess"):
            PostProcess.from_dict(bad)  # type: ignore[arg-type]


def test_the_threshold_is_compared_as_a_logit() -> None:
    rule = MaskRule(0.3)
    assert rule.cut == pytest.approx(np.log(3 / 7))
    logits = np.array([[rule.cut - 0.01, rule.cut + 0.01, np.nan, np.inf]], np.float32)
    assert rule.mask(logits).tolist() == [[0, 1, 0, 1]]
    # its probability rounds to 0.5, which is not above 0.5; the metrics count it all the same
    barely = np.full((1, 1), 1e-9, np.float32)
    assert probability_of(barely)[0, 0] == np.float32(0.5)
    assert MaskRule().mask(barely)[0, 0] == 1
    assert MaskRule().masks(torch.from_numpy(barely)[None, None]).all()
    assert MaskRule(0.0).mask(np.full((1, 1), -200, np.float32))[0, 0] == 1
    assert MaskRule(1.0).mask(np.full((1, 1), 200, np.float32))[0, 0] == 0
    with pytest.raises(UserError, match="between 0 and 1"):
        MaskRule(1.5)


@pytest.mark.parametrize(
    "settings", [{}, {"keep": "largest"}, {"min_peak_probability": 0.9, "max_confidence_gap": 1.0}]
)
def test_a_batch_gives_the_masks_of_its_images(settings: dict[str, Any]) -> None:
    logits = torch.nn.functional.interpolate(torch.randn(5, 1, 6, 8), (30, 40), mode="bilinear")
    rule = MaskRule(0.4, PostProcess(**settings))
    masks = rule.masks(logits)
    assert (masks.dtype, masks.shape) == (torch.bool, logits.shape)
    assert all(
        np.array_equal(rule.mask(plane[0].numpy()), one[0].numpy()) for plane, one in zip(logits, masks, strict=True)
    )
    assert rule.masks(logits[:0]).shape == (0, 1, 30, 40)
    half = rule.masks(logits.bfloat16())
    assert torch.equal(half, rule.masks(logits.bfloat16().float())), "the threshold is not rounded to 8 bits"


def test_both_ways_to_mirror_give_the_mean_of_image_and_mirror_image() -> None:
    images = torch.randn(2, 1, 5, 8)

    def network(x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(8.0)

    expected = images * (torch.arange(8.0) + torch.arange(8.0).flip(-1)) / 2
    assert torch.allclose(with_mirror(network, images), expected)
    assert torch.allclose(with_mirror(network, images, one_batch=True), expected)


def test_older_checkpoints_find_post_processing_where_it_was() -> None:
    from bustseg import postprocess

    assert postprocess.PostProcess is PostProcess


@dataclass(frozen=True)
class Drawn:
    """What the pictures of a test and of `bustseg explain` show: mask by image id."""

    cases: dict[str, np.ndarray]
    panels: dict[str, np.ndarray]
    explained: dict[str, np.ndarray]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Listens to what is drawn."""
    from bustseg.callbacks import explain as explain_callback
    from bustseg.callbacks import panels
    from bustseg.deploy import explain as explain_images
    from bustseg.figures.panels import Picture

    found = Drawn({}, {}, {})

    def cases_figure(rows: Mapping[str, Sequence[Any]], *rest: Any) -> Any:
        shown = [case for cases in rows.values() for case in cases]
        found.cases.update({case.title.split("\n")[0]: case.picture.prediction for case in shown})
        return kept_cases(rows, *rest)

    def details_figure(cases: Sequence[Any], method: str) -> Any:
        found.explained.update({case.title.split("\n")[0]: case.picture.prediction for case in cases})
        return kept_details(cases, method)

    def sheet(rows: Sequence[Sequence[tuple[Picture, str]]], *rest: Any) -> Any:
        shown = ((title.split("\n")[0].partition(": ")[2], picture) for row in rows for picture, title in row)
        found.panels.update({name: picture.prediction for name, picture in shown if name})
        return kept_sheet(rows, *rest)

    kept_cases, kept_details = explain_callback.cases_figure, explain_images.details_figure
    kept_sheet = panels.sheet
    monkeypatch.setattr(explain_callback, "cases_figure", cases_figure)
    monkeypatch.setattr(explain_images, "details_figure", details_figure)
    monkeypatch.setattr(panels, "sheet", sheet)
    return found


def make_lively(task: SegmentationTask, images: torch.Tensor) -> None:
    """Let a hardly trained network tell images and pixels apart: BatchNorm of these images, and steep logits."""
    for module in task.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    task.network.train()
    with torch.no_grad():
        task.network(task.normalise(images))
        task.eval()
        head = task.network.decoder.head
        head.weight /= task(images).std() / 2


def between(logits: np.ndarray, share: float) -> float:
    """A probability that this share of the logits lies below, and that no rounding brings to the other side of one."""
    values = np.sort(logits, axis=None)
    middle = values[int((share - 0.1) * len(values)) : int((share + 0.1) * len(values)) + 2]
    widest = int(np.diff(middle).argmax())
    return float(1 / (1 + np.exp(-np.float64(middle[widest : widest + 2].mean()))))


def test_one_model_and_image_give_one_mask_everywhere(
    trained_run: TrainedRun, phantoms: Path, bustseg: Bustseg, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test, its table and pictures, predictor, command, export and its check, explanation, and MLflow model agree."""
    pytest.importorskip("onnxruntime")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # a test writes, and the run's store is shared
    data = UltrasoundDataModule(str(phantoms), image_size=32)
    data.prepare_data()
    data.setup("test")
    content = torch.load(trained_run.checkpoint, weights_only=True)
    model = content["bustseg"]["config"]["model"]
    task = load_task(trained_run.checkpoint)
    task.flip = model["flip"] = True
    arrays = {data.samples[int(index)].id: data.arrays(int(index)) for index in data.indices["test"]}
    make_lively(task, torch.from_numpy(np.stack([image for image, _ in arrays.values()])[:, None]))
    content["state_dict"] = task.state_dict()
    planes = [Predictor(task).logits([image])[0, 0] for image, _ in arrays.values()]
    model["threshold"] = between(np.concatenate(planes), 0.5)
    peak = between(np.array([plane.max() for plane in planes]), 0.5)
    settings = {"min_area_px_relative": 0.02, "fill_holes": True, "min_peak_probability": peak}
    # as a checkpoint of an earlier version says it
    model["postprocess"] = {"class_path": "bustseg.postprocess.PostProcess", "init_args": settings}
    Path("package").mkdir()
    checkpoint = Path("package/model.pt")
    torch.save(content, checkpoint)

    code, _, err = bustseg("test", "--ckpt_path", checkpoint, "--explain.cases", 9, "--report.subsets", "[val]")
    assert code == 0, err
    (tables,) = Path("mlruns").glob("artifacts/*/artifacts/tables")
    table = pd.read_csv(tables / "test.csv").set_index("image")
    code, _, err = bustseg("export", checkpoint, "--format", "onnx", "--precision", "fp32", "--out", "exported")
    assert code == 0, err
    for name, (image, _) in arrays.items():
        Image.fromarray(image).save(f"{name}.png")
    images = sorted(Path.cwd().glob("*.png"))
    for command in ("explain", "predict"):
        code, _, err = bustseg(command, *images, "--model", checkpoint, "--out", command)
        assert code == 0, err
    predicted = pd.read_csv("predict/predictions.csv")
    areas = dict(zip((Path(name).stem for name in predicted["image"]), predicted["area_px"], strict=True))
    explained = pd.read_csv("explain/explain.csv").set_index("name")

    task, predictor, exported = load_task(checkpoint), Predictor(str(checkpoint)), Predictor("exported")
    changed = emptied = 0
    for name, (image, truth) in arrays.items():
        mask = predictor(image).mask
        above = predictor.rule.above(predictor.logits([image])[0, 0])
        changed += not np.array_equal(mask, above)
        emptied += bool(above.any() and not mask.any())
        assert np.array_equal(task.predict_mask(image), mask)
        assert np.array_equal(exported(image).mask, mask)
        assert np.array_equal(_load_pyfunc("package").predict(image)[0]["mask"], mask)
        assert np.array_equal(heat_maps(task, image[None, None]).mask[0], mask)
        counted = (table.loc[name, "predicted_px"], areas[name], explained.loc[name, "lesion_predicted_px"])
        assert counted == (mask.sum(),) * 3
        assert table.loc[name, "tp"] == (mask & truth).sum()
        for place in (drawn.cases, drawn.panels, drawn.explained):
            assert name not in place or np.array_equal(place[name], mask), name
    assert changed
    assert emptied
    assert set(drawn.explained) == set(table.index)
    assert len(drawn.cases) >= 3
    assert len(drawn.panels) >= 3
    # the check of the export scores the same masks, and so does the table of the other images
    check = check_images(checkpoint, Framing((32, 32)))
    logits = logits_of(TorchBackend(task), check.images)
    before = json.loads(Path("exported/bustseg.json").read_text())["checks"]["dice"]["float32"]
    assert before["empty_one"] == pytest.approx(overlap(logits, check.masks, task.mask_rule)["dice_empty_one"])
    assert before["empty_one"] == pytest.approx(pd.read_csv(tables / "val.csv")["dice_empty_one"].mean())


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_the_whole_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((61, 83), np.uint8)
    mask[7:40, 11:70] = cv2.GaussianBlur(rng.normal(size=(33, 59)).astype(np.float32), (0, 0), 1.5) > 0.1
    number, whole, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas, labels = labelled(mask)
    assert len(areas) == number - 1 > 2
    assert sorted(areas) == sorted(statistics[1:, cv2.CC_STAT_AREA])
    for label, area in enumerate(areas, 1):
        place = labels == label
        assert place.sum() == area
        assert len(np.unique(whole[place])) == 1, "each is one component of the whole image's"
    assert np.array_equal(labels > 0, mask > 0)
    assert np.array_equal(selected(np.ones(len(areas), bool), labels), mask)
    first = selected(np.arange(len(areas)) == 0, labels)
    assert first.dtype == np.uint8
    assert np.array_equal(first > 0, labels == 1)


def test_an_empty_mask_has_no_components() -> None:
    areas, labels = labelled(np.zeros((5, 7), np.uint8))
    assert areas.tolist() == []
    assert not labels.any()
    assert labels.shape == (5, 7)
