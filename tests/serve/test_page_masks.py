"""The page cuts masks by itself: its JavaScript, run in Node, against bustseg's Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bustseg.deploy.predictor import Predictor
from bustseg.masks import PostProcess
from bustseg.serve.shapes import from_run_lengths, run_lengths

NODE = shutil.which("node")
MASKS = Path(__file__).parents[2] / "bustseg" / "serve" / "page" / "masks.js"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed")


def run(script: str, folder: Path, **values: Any) -> Any:
    """What ``script`` prints; it has the module as ``m`` and ``values`` as ``v``."""
    (folder / "masks.mjs").write_text(MASKS.read_text())
    (folder / "values.json").write_text(json.dumps(values))
    head = 'import * as m from "./masks.mjs"; import { readFileSync } from "node:fs";\n'
    head += 'const v = JSON.parse(readFileSync("values.json"));\n'
    (folder / "run.mjs").write_text(head + script)
    assert NODE is not None
    done = subprocess.run([NODE, "run.mjs"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def blobs(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Smooth random logits with several components and holes."""
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return 3 * smooth / smooth.std()


SETTINGS = (
    PostProcess(),
    PostProcess(min_area_px_relative=0.01),
    PostProcess(keep="largest"),
    PostProcess(fill_holes=True),
    PostProcess(max_confidence_gap=0.4),
    PostProcess(min_peak_probability=0.97),
    PostProcess(0.002, "largest", True, 1.0, 0.9),
    PostProcess(min_peak_probability=0.99999),
)


@pytest.mark.parametrize("settings", SETTINGS)
def test_masks_are_pythons(settings: PostProcess, predictor: Predictor, tmp_path: Path) -> None:
    cases = []
    for seed, shape in enumerate([(64, 64), (97, 130), (150, 91), (40, 50)]):
        for threshold in (0.3, 0.5, 0.8):
            cases.append((blobs((64, 64), seed), shape, threshold))
    script = """
        const answers = v.cases.map(([logits, shape, threshold]) => {
            const large = m.enlarge(Float32Array.from(logits), [64, 64], shape);
            const mask = m.maskOf(large, shape, threshold, v.settings);
            return {rle: m.runLengths(mask, shape), area: m.area(mask), trust: m.confidence(mask, large, 1.5)};
        });
        console.log(JSON.stringify(answers));
    """
    sent = [[logits.ravel().tolist(), shape, threshold] for logits, shape, threshold in cases]
    answers = run(script, tmp_path, cases=sent, settings=settings.to_dict())
    own = Predictor(predictor.exported, threads=1)
    own.rule = replace(own.rule, postprocess=settings)
    for (logits, shape, threshold), answer in zip(cases, answers, strict=True):
        expected = own.finish(logits[None], shape, threshold)
        mask = from_run_lengths(**answer["rle"])
        assert mask.shape == shape
        # at the cut itself float32 and float64 may part
        assert (mask != expected.mask).sum() <= 1, (shape, threshold)
        assert answer["area"] == mask.sum()
        assert answer["trust"] == pytest.approx(expected.confidence, abs=2e-3)


def test_run_lengths_travel_both_ways(tmp_path: Path) -> None:
    masks = [np.zeros((3, 4)), np.ones((3, 4)), np.random.default_rng(0).random((31, 17)) > 0.5]
    masks = [mask.astype(np.uint8) for mask in masks]
    script = """
        const back = v.rles.map((rle) => Array.from(m.fromRunLengths(rle)));
        console.log(JSON.stringify({back, again: v.rles.map((rle, i) => m.runLengths(back[i], rle.size))}));
    """
    rles = [run_lengths(mask) for mask in masks]
    answer = run(script, tmp_path, rles=rles)
    assert answer["again"] == rles
    for mask, back in zip(masks, answer["back"], strict=True):
        assert np.array_equal(np.reshape(back, mask.shape), mask)


def test_painting_and_polygons_cover_what_they_enclose(tmp_path: Path) -> None:
    script = """
        const shape = [40, 60], disc = new Uint8Array(2400), line = new Uint8Array(2400), star = new Uint8Array(2400);
        m.paint(disc, shape, [30, 20], [30, 20], 10, 1);
        m.paint(line, shape, [5, 20], [55, 20], 3, 1);
        m.paint(line, shape, [-50, -50], [-40, -40], 3, 1);
        m.fillPolygon(star, shape, [[10, 10], [50, 10], [50, 30], [10, 30]], 1);
        m.fillPolygon(star, shape, [[20, 15], [30, 15], [30, 25]], 0);
        console.log(JSON.stringify([disc, line, star].map((mask) => m.runLengths(mask, shape))));
    """
    disc, line, star = (from_run_lengths(**rle) for rle in run(script, tmp_path))
    rows, columns = np.mgrid[:40, :60] + 0.5
    assert np.array_equal(disc, np.hypot(rows - 20, columns - 30) <= 10)
    assert line[20, 5:55].all()
    assert line.sum() == pytest.approx(50 * 6 + np.pi * 9, rel=0.05)
    assert not line[:15].any()
    assert star.sum() == pytest.approx(40 * 20 - 50, abs=10)


def test_borders_run_along_the_edges_of_pixels(tmp_path: Path) -> None:
    script = "console.log(JSON.stringify(m.borders(Uint8Array.from(v.mask.flat()), [3, 4])));"
    lines = run(script, tmp_path, mask=[[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    assert sorted(lines) == sorted([[1, 0, 3, 0], [1, 2, 3, 2], [1, 0, 1, 2], [3, 0, 3, 2]])
