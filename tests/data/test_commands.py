"""Data verbs, splits and sources as a user names them on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml

from bustseg.data import duplicates
from bustseg.runs.tracker import tracking_uri
from tests.conftest import CONFIGS, SHORT_TEST, TINY
from tests.data import layouts

Bustseg = Callable[..., tuple[int, str, str]]


def runs(experiment: str) -> list:
    client = mlflow.MlflowClient(tracking_uri())
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []


def tags(run) -> tuple[str, ...]:
    return tuple(run.data.tags[f"images_{subset}"] for subset in ("train", "val", "test"))


def test_check(bustseg: Bustseg, phantoms: Path, tmp_path: Path) -> None:
    report, found = tmp_path / "out" / "report.html", tmp_path / "out" / "found.json"
    code, out, err = bustseg("data", "check", phantoms, "--json", found, "--report", report)
    assert code == 0, err
    assert "30 images" in out
    assert json.loads(found.read_text())["counts"]["images"] == 30
    assert report.read_text().startswith("<!doctype html>")


def test_check_ends_with_1_when_training_would_be_wrong(bustseg: Bustseg, tmp_path: Path) -> None:
    root = layouts.folders(tmp_path / "own")
    (root / "masks" / "scan 3.png").unlink()
    code, out, _ = bustseg("data", "check", root, "--source", "Folders")
    assert code == 1
    assert "scan 3.jpg has no mask" in out
    # one line for what cannot be looked at
    for args in (["nowhere"], [], [root, "--source", "Nothing"], [root], [root, "--threshold", "2"]):
        code, _, err = bustseg("data", "check", *args)
        assert code == 2
        assert len(err.strip().splitlines()) == 1, err


def test_split_writes_what_fit_reads(bustseg: Bustseg, phantoms: Path, tmp_path: Path) -> None:
    csv = tmp_path / "folds.csv"
    args = ("data", "split", phantoms, "--scheme", "kfold", "--folds", 3)
    code, out, err = bustseg(*args, "--kfold_of", "paper", "--seed", 2, "--out", csv)
    assert code == 0, err
    assert "digest" in out
    assert pd.read_csv(csv)["fold"].nunique() == 3
    code, out, err = bustseg(
        "fit",
        *("--config", TINY, "--data.root", phantoms, "--trainer.max_epochs", 1, "--data.split", csv, "--data.fold", 1),
    )
    assert code == 0, err
    written = pd.read_csv(csv).query("fold == 1")["subset"].value_counts()
    assert tags(runs("tiny")[0]) == tuple(str(written[subset]) for subset in ("train", "val", "test"))


def test_check_of_a_split_measures_its_leakage(bustseg: Bustseg, tmp_path: Path) -> None:
    root = layouts.busbra(tmp_path / "bra")
    bustseg("data", "split", root, "--source", "BUSBRA", "--scheme", "grouped", "--out", tmp_path / "split.csv")
    assert bustseg("data", "split", root, "--source", "BUSBRA", "--check", tmp_path / "split.csv")[0] == 0
    table = pd.read_csv(tmp_path / "split.csv")
    first = table["image"] == "bus_0001-l"
    table["subset"] = "train"
    table.loc[first, "subset"] = "test"
    table.to_csv(tmp_path / "leaks.csv", index=False)
    code, out, _ = bustseg("data", "split", root, "--source", "BUSBRA", "--check", tmp_path / "leaks.csv")
    assert code == 1
    assert "bus_0001-l (test) and bus_0001-r (train)" in out


SPLITS = {
    "grouped": ["--data.split", "grouped"],
    "k-fold": ["--data.split", "kfold", "--data.folds", 3, "--data.fold", 2],
    "curated": ["--data.split", "curated", "--data.curated_list", "list.csv"],
}


@pytest.mark.parametrize("name", SPLITS)
def test_fit_makes_its_split_and_searches_duplicates_once(
    name: str, bustseg: Bustseg, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = []
    search = duplicates.duplicate_groups
    monkeypatch.setattr("bustseg.data.cache.duplicate_groups", lambda *args: searches.append(1) or search(*args))
    monkeypatch.setenv("BUSTSEG_CACHE", str(tmp_path / "cache"))
    kept = [f"{label};{n}" for label, most in (("benign", 9), ("malignant", 5), ("normal", 3)) for n in range(1, most)]
    Path("list.csv").write_text("class;id\n" + "\n".join(kept))
    options = ("--config", TINY, "--data.root", phantoms, "--trainer.max_epochs", 1)
    for seed in (0, 1):
        code, _, err = bustseg("fit", *options, *SPLITS[name], "--data.split_seed", seed)
        assert code == 0, err
    assert len(searches) == (0 if name == "curated" else 1)
    one, two = runs("tiny")
    assert sum(map(int, tags(one))) == (14 if name == "curated" else 30)
    assert one.data.tags["split_digest"] != two.data.tags["split_digest"]
    assert one.data.tags["data_digest"] == two.data.tags["data_digest"]


@pytest.mark.slow
def test_three_sources_train_one_model_and_a_fourth_tests_it(bustseg: Bustseg, tmp_path: Path) -> None:
    layouts.busbra(tmp_path / "data" / "BUS-BRA")
    layouts.busuclm(tmp_path / "data" / "BUS-UCLM")
    layouts.breast(tmp_path / "data" / "BrEaST")
    config = yaml.safe_load((CONFIGS / "multi_source.yaml").read_text())
    config["model"] = yaml.safe_load(TINY.read_text())["model"]  # the data part stays as it is published
    Path("multi.yaml").write_text(yaml.safe_dump(config))
    code, _, err = bustseg(
        "fit",
        *("--config", "multi.yaml", "--data.image_size", 32, "--data.batch_size", 4),
        *("--trainer.max_epochs", 2, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
    )
    assert code == 0, err
    (trained,) = runs("multi-source")
    assert trained.data.tags["source"] == "bus-bra+bus-uclm+breast"
    assert sum(map(int, tags(trained))) == 27

    own = layouts.folders(tmp_path / "own")
    for source, root, images in (("Folders", own, 6), ("BUSBRA", tmp_path / "data" / "BUS-BRA", 12)):
        code, out, err = bustseg(
            *("test", "--ckpt_path", trained.info.run_id),
            *("--data.source", source, "--data.root", root, "--data.split", "test_all"),
            *SHORT_TEST,
        )
        assert code == 0, err
        tested = runs("multi-source")[-1]
        assert tags(tested) == ("0", "0", str(images))
        assert tested.data.tags["checkpoint_of_run"] == trained.info.run_id
        assert f"{tested.data.metrics['test/dice_lesion']:.4f}" in out
        assert {"test/dice_paper", "test/dice_pooled", "test/auc_pixel"} <= set(tested.data.metrics)
