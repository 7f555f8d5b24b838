"""Corrections: what is saved is what training reads, whatever is interrupted."""

from __future__ import annotations

import csv
import errno
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from bustseg.data.sources import BUSI, Combined, Folders, Part
from bustseg.deploy.predictor import Predictor
from bustseg.errors import DataError, UserError
from bustseg.serve.app import create_app
from bustseg.serve.corrections import Corrections, image_name
from bustseg.serve.settings import Settings
from bustseg.serve.shapes import run_lengths
from bustseg.whole import write_whole
from tests.data import dicoms
from tests.serve.serving import as_png, scene

pytestmark = pytest.mark.usefixtures("sealed")

TINY = Path(__file__).parents[1] / "configs" / "tiny.yaml"
MODEL = {"name": "dark", "digest": "d" * 64}
Bustseg = Callable[..., tuple[int, str, str]]


def mask_of(image: np.ndarray) -> np.ndarray:
    return (image < 100).astype(np.uint8)


def test_folders_reads_what_was_saved_and_the_newest_word_counts(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path)
    image, other = scene(), scene(top=0, left=0)
    before, after = mask_of(image), mask_of(scene(side=40))
    corrections.save(image, before, before, "accepted", MODEL, 0.5, who="first")
    record = corrections.save(image, before, after, "corrected", MODEL, 0.5, "second", "malignant", "patient a")
    corrections.save(other, mask_of(other), np.zeros_like(before), "corrected", MODEL, 0.4)
    assert record["changed_px"] == int((before != after).sum())
    samples = {sample.id: sample for sample in Folders(labels="labels.csv").read(tmp_path)}
    assert set(samples) == {image_name(image), image_name(other)}
    first, second = samples[image_name(image)], samples[image_name(other)]
    assert (first.label, first.group) == ("malignant", "patient a")
    assert np.array_equal(first.read_image(), image)
    assert np.array_equal(first.read_mask(), after.astype(bool))
    assert (second.label, second.read_mask().any()) == ("normal", False)
    # provenance: model, before and after, who, when
    kept = [json.loads(line) for line in (tmp_path / "corrections.jsonl").read_text().splitlines()]
    assert [(one["who"], one["verdict"]) for one in kept] == [
        ("first", "accepted"),
        ("second", "corrected"),
        ("", "corrected"),
    ]
    assert kept[1]["model"] == MODEL
    assert pd.Timestamp(kept[1]["when"]).tz is not None
    assert np.array_equal(corrections.mask({"after": kept[1]["before"]}), before)
    assert np.array_equal(corrections.mask(kept[0]), before), "an earlier word is still there"
    assert np.array_equal(corrections.mask(kept[1]), after)
    table = pd.read_csv(tmp_path / "labels.csv", dtype=str).set_index("image")
    assert table.loc[image_name(image), ["who", "verdict", "model"]].tolist() == ["second", "corrected", "d" * 12]


def test_a_rejected_image_is_not_trained_on_but_remembered(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path)
    image, other = scene(), scene(side=20)
    for one in (image, other):
        corrections.save(one, mask_of(one), mask_of(one), "accepted", MODEL, 0.5)
    corrections.save(image, mask_of(image), mask_of(image), "rejected", MODEL, 0.5, who="me")
    assert [sample.id for sample in Folders(labels="labels.csv").read(tmp_path)] == [image_name(other)]
    last = corrections.last(image_name(image))
    assert last is not None
    assert (last["verdict"], last["who"]) == ("rejected", "me")


def test_another_process_and_a_crash_leave_a_folder_that_can_be_read(tmp_path: Path) -> None:
    first, second = Corrections(tmp_path), Corrections(tmp_path)
    image, other, third = scene(), scene(side=20), scene(side=30)
    first.save(image, mask_of(image), mask_of(image), "accepted", MODEL, 0.5)
    second.save(other, mask_of(other), mask_of(other), "accepted", MODEL, 0.5)
    assert first.last(image_name(other)) is not None
    # killed between mask and image, and in the middle of a line
    (tmp_path / "masks" / "0123456789abcdef.png").write_bytes(as_png(image))
    with (tmp_path / "corrections.jsonl").open("a") as log:
        log.write('{"image": "torn')
    again = Corrections(tmp_path)
    again.save(third, mask_of(third), mask_of(third), "accepted", MODEL, 0.5)
    names = {image_name(one) for one in (image, other, third)}
    assert {sample.id for sample in Folders(labels="labels.csv").read(tmp_path)} == names
    for one in (first, Corrections(tmp_path)):
        assert one.last(image_name(third)) is not None
        assert one.last(image_name(image)) is not None


def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5x5"):
        Corrections(tmp_path).save(scene(), mask_of(scene()), np.zeros((5, 5), np.uint8), "corrected", MODEL, 0.5)
    assert not (tmp_path / "corrections.jsonl").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot save corrections"):
        Corrections(tmp_path / "file" / "inside")


def test_the_servers_answers_to_a_correction(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "corrections"
    image, after = scene(), mask_of(scene(side=40))
    wish = {"verdict": "corrected", "rle": run_lengths(after), "who": "me", "label": "benign"}
    with TestClient(create_app(predictor, Settings(corrections=folder)), base_url="http://localhost") as client:
        id = client.post("/uploads", files={"file": ("a.png", as_png(image))}).json()["id"]
        where = f"/uploads/{id}/0/correction"
        assert client.get(where).json() is None
        saved = client.post(where, json=wish)
        assert saved.status_code == 201, saved.text
        assert saved.json()["changed_px"] == 48 * 48 - 40 * 40
        assert client.get(where).json()["rle"] == run_lengths(after)
        wrong = [
            {**wish, "verdict": "maybe"},
            {**wish, "rle": {"size": [96, 128], "counts": [5]}},
            {**wish, "rle": {"size": [5, 5], "counts": [25]}},
            {**wish, "rle": {"size": [96, 128], "counts": [-1, 96 * 128 + 1]}},
            {**wish, "label": "unclear"},
            {**wish, "unknown": 1},
            {**wish, "who": "x" * 500},
        ]
        for one in wrong:
            assert client.post(where, json=one).status_code == 422, one
        assert client.post(where.replace("/0/", "/3/"), json=wish).status_code == 404
        assert len((folder / "corrections.jsonl").read_text().splitlines()) == 1
    with TestClient(create_app(predictor, Settings()), base_url="http://localhost") as client:
        id = client.post("/uploads", files={"file": ("a.png", as_png(image))}).json()["id"]
        answer = client.post(f"/uploads/{id}/0/correction", json=wish)
        assert (answer.status_code, "--corrections" in answer.json()["error"]) == (422, True)


def test_a_name_is_no_formula_and_has_one_line(tmp_path: Path) -> None:
    record = Corrections(tmp_path).save(
        scene(), mask_of(scene()), mask_of(scene()), "accepted", MODEL, 0.5, who="=HYPERLINK(1)\n\u202eA.\0 Reader"
    )
    assert record["who"] == "=HYPERLINK(1) A. Reader"
    with (tmp_path / "labels.csv").open(newline="") as file:
        assert [row["who"] for row in csv.DictReader(file)] == ["'=HYPERLINK(1) A. Reader"]


def test_a_picture_that_may_name_the_patient_can_be_rejected_unseen(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "corrections"
    content = dicoms.write(dicoms.dataset(dicoms.screen(scene())), tmp_path / "a.dcm").read_bytes()
    with TestClient(create_app(predictor, Settings(corrections=folder)), base_url="http://localhost") as client:
        id = client.post("/uploads", files={"file": ("a.dcm", content)}).json()["id"]
        shape = dicoms.screen(scene()).shape
        wish = {"verdict": "rejected", "rle": run_lengths(np.zeros(shape, np.uint8))}
        assert client.post(f"/uploads/{id}/0/correction", json={**wish, "verdict": "accepted"}).status_code == 422
        assert client.post(f"/uploads/{id}/0/correction", json=wish).status_code == 201
    assert not list((folder / "images").iterdir())


@pytest.mark.parametrize("file", [f"{folder}/{name}" for folder, name in (("history", "after"), ("", "labels"))])
def test_a_full_disk_is_told_and_the_same_correction_can_be_sent_again(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    folder = tmp_path / "corrections"
    wish = {"verdict": "corrected", "rle": run_lengths(mask_of(scene(side=40)))}
    full = True

    def write(path: Path, content: bytes) -> None:
        if full and all(part in str(path) for part in file.split("/")):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_whole(path, content)

    monkeypatch.setattr("bustseg.serve.corrections.write_whole", write)
    with TestClient(create_app(predictor, Settings(corrections=folder)), base_url="http://localhost") as client:
        id = client.post("/uploads", files={"file": ("a.png", as_png(scene()))}).json()["id"]
        answer = client.post(f"/uploads/{id}/0/correction", json=wish)
        assert (answer.status_code, "disk is full" in answer.json()["error"]) == (507, True)
        assert client.get(f"/uploads/{id}/0/correction").json() is None, "it does not count as saved"
        full = False
        assert client.post(f"/uploads/{id}/0/correction", json=wish).status_code == 201
    assert len(Folders(labels="labels.csv").read(folder)) == 1


@pytest.mark.slow
def test_fit_trains_on_corrections_alone_and_beside_other_data(
    phantoms: Path, tmp_path: Path, bustseg: Bustseg
) -> None:
    folder = tmp_path / "corrections"
    corrections = Corrections(folder)
    originals = BUSI().read(phantoms)
    for sample in originals[:14]:
        image = sample.read_image()
        mask = sample.read_mask(image.shape).astype(np.uint8)
        corrections.save(image, np.zeros_like(mask), mask, "corrected", MODEL, 0.5, label=sample.label)
    fit = ["fit", "--config", TINY, "--trainer.max_epochs", 1]
    alone = ["--data.source", "Folders", "--data.source.init_args.labels", "labels.csv", "--data.root", folder]
    code, _, err = bustseg(*fit, *alone)
    assert code == 0, err
    # beside other data a split says what trains and what tests
    source = Combined(
        [Part(BUSI(), str(phantoms), "busi"), Part(Folders(labels="labels.csv"), str(folder), "corrected")]
    )
    ids = [sample.id for sample in source.read(tmp_path)]
    own = [id for id in ids if id.startswith("busi/")]
    subsets = {id: "train" for id in ids if id.startswith("corrected/")}
    subsets |= {id: "test" if k % 2 else "val" for k, id in enumerate(own[14:])}
    pd.DataFrame({"image": subsets.keys(), "subset": subsets.values()}).to_csv(tmp_path / "split.csv", index=False)
    config = tmp_path / "both.yaml"
    config.write_text(
        f"""
data:
  split: {tmp_path / "split.csv"}
  source:
    class_path: Combined
    init_args:
      parts:
        - {{source: BUSI, root: {phantoms}, name: busi}}
        - source: {{class_path: Folders, init_args: {{labels: labels.csv}}}}
          root: {folder}
          name: corrected
"""
    )
    # what the corrections are worth: a model without them, tested on the same data as the one with them
    code, _, err = bustseg(*fit, "--data.root", phantoms)
    assert code == 0, err
    without = bustseg("test", "--ckpt_path", "latest", "--config", config)
    assert bustseg(*fit, "--config", config)[0] == 0
    with_them = bustseg("test", "--ckpt_path", "latest")
    runs = []
    for code, out, err in (without, with_them):
        assert code == 0, err
        runs += re.findall(r"^run (\w+)", out, re.MULTILINE)
    assert len(set(runs)) == 2
    code, out, err = bustseg("compare", *runs)
    assert code == 0, err
    assert "dice" in out
