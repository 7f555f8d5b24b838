"""A network is not scored on images that it was trained on without a word: a fit goes on with its own split alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.errors import UserError
from bustseg.training.seen import refuse_another_split, warn_of_trained_images
from tests.conftest import SHORT_TEST, TINY

Bustseg = Callable[..., tuple[int, str, str]]


def module(phantoms: Path, verb: str = "fit", **options: object) -> UltrasoundDataModule:
    data = UltrasoundDataModule(root=str(phantoms), image_size=32, **options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup(verb)
    return data


def ids(data: UltrasoundDataModule, subset: str) -> set[str]:
    return {data.samples[index].id for index in data.indices[subset]}


def another_seed(phantoms: Path) -> int:
    """Seed of a split whose test images have trained in the usual one; the phantoms are few."""
    trained = ids(module(phantoms), "train")
    return next(seed for seed in range(1, 50) if trained & ids(module(phantoms, "test", split_seed=seed), "test"))


def test_a_continued_fit_keeps_its_split(bustseg: Bustseg, phantoms: Path, tmp_path: Path) -> None:
    own = shutil.copytree(phantoms, tmp_path / "own")
    tiny = ["--config", TINY, "--data.root", own, "--explain.enabled", "false", "--tracking.log_model", "false"]
    assert bustseg("fit", *tiny, "--trainer.max_epochs", 1)[0] == 0
    (last,) = Path.cwd().glob("mlruns/artifacts/*/artifacts/checkpoints/last.ckpt")
    before = last.read_bytes()
    go_on = ["fit", "--ckpt_path", last, "--trainer.max_epochs", 2]
    seed = another_seed(own)
    code, _, err = bustseg(*go_on, "--data.split_seed", seed)
    assert code == 2
    assert "data.split_seed cannot be changed when a fit goes on" in " ".join(err.split())
    code, _, err = bustseg("test", "--ckpt_path", last, "--data.split_seed", seed, *SHORT_TEST)
    assert code == 0
    seen = ids(module(own), "train") & ids(module(own, "test", split_seed=seed), "test")
    assert f"warning: {len(seen)} of these" in " ".join(err.split())
    # one image more, and all are divided anew
    (added,) = (path for path in own.glob("benign/benign (1).png"))
    shutil.copy(added, added.with_name("benign (999).png"))
    shutil.copy(added.with_name("benign (1)_mask.png"), added.with_name("benign (999)_mask.png"))
    code, _, err = bustseg(*go_on)
    assert code == 2
    assert "are not those that this fit began with" in " ".join(err.split())
    assert last.read_bytes() == before


def test_only_the_same_images_on_the_same_side_go_on(phantoms: Path) -> None:
    data = module(phantoms)
    refuse_another_split({"split_digest": data.split_digest}, data, [])
    refuse_another_split({}, data, ["data.split"])  # of a version that kept no digest
    with pytest.raises(UserError, match=r"^data.fold, data.split cannot be changed"):
        refuse_another_split({"split_digest": "0" * 16}, data, ["data.fold", "model.threshold", "data.split"])


def test_what_cannot_be_known_is_not_said(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, other = module(phantoms), module(phantoms, "test", split_seed=another_seed(phantoms))
    record = {
        "split_digest": trained.split_digest,
        "data_digest": trained.data_digest,
        "config": {"data": {"split": "paper", "split_seed": 0}},
    }
    warn_of_trained_images(record, trained, "val")
    warn_of_trained_images({**record, "data_digest": "another"}, other, "test")
    warn_of_trained_images({**record, "split_digest": "another"}, other, "test")
    warn_of_trained_images({**record, "config": {"data": {"split": "gone.csv"}}}, other, "test")
    assert capsys.readouterr().err == ""
    warn_of_trained_images(record, other, "test")
    assert "have trained this network" in capsys.readouterr().err
