"""The study of sources left out, on phantoms that play three sources."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bustseg.data.phantom import write_phantoms
from studies.cross_source import data, flags, plan, work
from studies.cross_source.recipe import FACTORS, Recipe, augmentation, leave_one_out


def test_letterboxed_pictures_have_their_proportions() -> None:
    image = np.full((64, 64), 200, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    boxed, boxed_mask = data.letterboxed(image, mask, height=300, width=600)
    rows, columns = np.nonzero(boxed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 47, 0, 63)
    rows, columns = np.nonzero(boxed_mask)
    assert np.ptp(rows) + 1 == 16
    assert np.ptp(columns) + 1 == 32
    assert set(np.unique(boxed_mask)) == {0, 255}


def test_the_design_is_balanced_and_no_source_trains_on_itself() -> None:
    recipes = plan.design()
    assert len(recipes) == 48
    for left_out in data.SOURCES:
        own = [recipe for recipe in recipes if recipe.train == leave_one_out(left_out)]
        assert len(own) == 16
        levels = np.array([[name in recipe.on for name in FACTORS] for recipe in own]) * 2 - 1
        assert (levels.sum(0) == 0).all()  # each factor on in half of the trainings
        assert np.array_equal(levels.T @ levels, 16 * np.eye(len(FACTORS), dtype=int))  # and with no other


def test_effects_are_found_again() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for recipe in plan.design():
        left_out = next(name for name in data.SOURCES if name not in recipe.train)
        value = 0.7 + 0.05 * ("zoom" in recipe.on) - 0.02 * ("deep" in recipe.on) + rng.normal(0, 0.001)
        rows.append({"left_out": left_out, "dice": value} | {name: name in recipe.on for name in FACTORS})
    found = plan.effects(pd.DataFrame(rows), ["dice"]).set_index("factor")
    assert found.loc["zoom", "effect"] == pytest.approx(0.05, abs=0.002)
    assert found.loc["deep", "effect"] == pytest.approx(-0.02, abs=0.002)
    assert found.loc["looks", "effect"] == pytest.approx(0, abs=0.002)
    assert (found["se"] < 0.001).all()


def test_the_preset_is_what_the_study_has_chosen() -> None:
    import albumentations as A

    from bustseg.data.transforms import PRESETS

    def settings(steps: list[A.BasicTransform]) -> list[tuple[str, dict[str, object]]]:
        plain = (bool, int, float, str, tuple, dict)
        return [
            (type(step).__name__, {k: v for k, v in vars(step).items() if isinstance(v, plain) and k[0] != "_"})
            for step in steps
        ]

    named = [
        getattr(A, step["class_path"].rpartition(".")[2])(**step["init_args"])
        for step in augmentation({"zoom", "reference", "looks"})
    ]
    assert settings(named) == settings(PRESETS["ultrasound_scanners"]())


def test_logits_survive_their_picture() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (data.SIDE, data.SIDE)).astype(np.float32)
    step = (work.HIGHEST - work.LOWEST) / work.LEVELS
    kept = np.clip(logits, work.LOWEST, work.HIGHEST)
    assert np.abs(work.decode(work.encode(logits)) - kept).max() <= step / 2 + 1e-5


def test_auc_counts_ties_as_one_half() -> None:
    assert work.auc(np.array([3.0, 2, 2, 1]), np.array([True, True, False, False])) == pytest.approx(3.5 / 4)


@pytest.mark.slow
def test_one_training_from_packed_sources_to_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bustseg.data.sources import BUSI

    monkeypatch.setattr(data, "SIDE", 64)
    monkeypatch.setattr(work, "SIDE", 64)
    for seed, name in enumerate(data.SOURCES):
        root = write_phantoms(tmp_path / name, n=20, seed=seed, shape=(80, 96))
        monkeypatch.setitem(data.SOURCES, name, BUSI)
        data.pack(name, root, tmp_path / "packed" / name)
    data.unpack(tmp_path / "packed", tmp_path / "data")
    on = [name for name in FACTORS if name != "large"]
    recipe = Recipe("small", ["busi", "bus-bra"], on, encoder="lite0", steps=2, batch=8, maps=True)
    monkeypatch.setattr(Recipe, "size", 64)
    plan.write([recipe], tmp_path / "queue", 1)
    folders = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["work", str(tmp_path / "queue"), *folders, "--workers", "0", "--once"])
    work.main()
    assert [path.suffix for path in (tmp_path / "queue").iterdir()] == [".done"]
    table = pd.read_csv(tmp_path / "out" / "small.csv")
    assert len(table) == 60
    assert set(table.loc[table["image"].str.startswith("bus-uclm"), "subset"]) == {"left out"}
    assert table[[f"dice_{threshold:g}" for threshold in work.THRESHOLDS]].apply(lambda c: c.between(0, 1).all()).all()
    maps = np.load(tmp_path / "out" / "small.npz")
    assert set(maps) == set(table.loc[table["subset"] != "train", "image"])
    assert json.loads((tmp_path / "out" / "small.json").read_text())["on"] == on
    assert (tmp_path / "out" / "small.ckpt").is_file()
    shutil.copy(tmp_path / "out" / "small.csv", tmp_path / "out" / "again.csv")
    shutil.copy(tmp_path / "out" / "small.npz", tmp_path / "out" / "again.npz")
    described = json.loads((tmp_path / "out" / "small.json").read_text())
    (tmp_path / "out" / "again.json").write_text(json.dumps({**described, "name": "again"}))
    roots = [part for name in data.SOURCES for part in (f"--{name.replace('-', '_')}", str(tmp_path / name))]
    argv = ["flags", str(tmp_path / "out"), "--data", str(tmp_path / "data"), *roots, "--out", str(tmp_path / "rows")]
    for more in ([], ["--together"]):
        monkeypatch.setattr("sys.argv", [*argv, *more])
        flags.main()
    one, together = (pd.read_csv(tmp_path / "rows" / f"{name}.csv") for name in ("small", "again+small"))
    assert len(one) == 20
    pd.testing.assert_frame_equal(one, together)  # the mean of two that are equal


def test_logits_of_several_trainings_are_averaged(tmp_path: Path) -> None:
    for name, level in (("a", 1.0), ("b", 3.0)):
        np.savez(tmp_path / f"{name}.npz", **{"busi/1": work.encode(np.full((256, 256), level, np.float32))})
    assert np.abs(flags.kept_logits(tmp_path, ["a", "b"])["busi/1"] - 2).max() < 0.1


def test_a_list_names_images_of_busi(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path / "phantoms", n=6, seed=0, shape=(32, 32))
    (tmp_path / "list.csv").write_text("class;id\nbenign;1\nmalignant;1\n")
    assert flags.curated_images(tmp_path / "list.csv", root) == {"busi/benign (1)", "busi/malignant (1)"}
