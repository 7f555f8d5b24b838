"""Trained networks joined into one checkpoint, which the other commands take as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bustseg.errors import UserError
from bustseg.models import Ensemble
from bustseg.runs.checkpoint import load_task
from bustseg.runs.resolve import resolve_checkpoint
from tests.conftest import SHORT_TEST, TINY


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * 0 + self.value


def test_the_mean_of_logits() -> None:
    net = Ensemble([Constant(1), Constant(2), Constant(6)])
    assert torch.equal(net(torch.rand(2, 3, 5, 7)), torch.full((2, 1, 5, 7), 3.0))
    assert net.cam_layer is None
    with pytest.raises(UserError, match="needs networks"):
        Ensemble([])


@pytest.mark.slow
def test_two_runs_become_one_checkpoint(bustseg, phantoms: Path) -> None:
    runs = []
    for seed in ("0", "1"):
        code, out, err = bustseg(
            "fit", "--config", TINY, "--data.root", phantoms, "--seed_everything", seed, "--trainer.max_epochs", 1
        )
        assert code == 0, err
        runs.append(out.split("run ")[1].split()[0])
    code, out, err = bustseg("ensemble", *runs, "--out", "both.ckpt")
    assert code == 0, err
    assert "2 networks" in out
    assert "different images" not in err
    assert not list(Path().glob(".both*"))

    both, *members = (load_task(path) for path in (Path("both.ckpt"), *map(resolve_checkpoint, runs)))
    images = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = torch.stack([member(images) for member in members]).mean(0)
        torch.testing.assert_close(both(images), expected)
        assert not torch.allclose(expected, members[0](images))

    # the other commands take it; what it scores belongs to neither member's run
    code, out, err = bustseg("test", "--ckpt_path", "both.ckpt", *SHORT_TEST)
    assert code == 0, err
    assert all(run not in out for run in runs)
    code, out, err = bustseg("validate", "--ckpt_path", "both.ckpt")
    assert code == 0, err
    assert "best on these images" in out
    code, out, err = bustseg("export", "both.ckpt", "--out", "exported")
    assert code == 0, err
    code, out, err = bustseg("fit", "--ckpt_path", "both.ckpt")
    assert code == 2
    assert len(err.strip().splitlines()) == 1

    code, out, err = bustseg("ensemble", *runs, "--out", "both.ckpt")
    assert code == 2
    assert "--overwrite" in err
    code, out, err = bustseg("ensemble", runs[0], "--out", "one.ckpt")
    assert code == 2
    assert "at least two" in err


def test_members_that_do_not_fit_together_are_named(bustseg, trained_run, tmp_path: Path) -> None:
    content = torch.load(trained_run.checkpoint, weights_only=True)
    content["bustseg"]["config"]["data"]["image_size"] = 96
    content["bustseg"]["config"]["model"]["flip"] = True
    torch.save(content, "other.ckpt")
    code, _, err = bustseg("ensemble", trained_run.checkpoint, "other.ckpt", "--out", "both.ckpt")
    assert code == 2
    assert "differ in model.flip, data.image_size" in err
    assert not Path("both.ckpt").exists()


@pytest.mark.parametrize("size", ["wide", [], [64], None, {"h": 64}])
def test_a_member_whose_size_means_nothing_is_refused(bustseg, trained_run, size: object) -> None:
    content = torch.load(trained_run.checkpoint, weights_only=True)
    content["bustseg"]["config"]["data"]["image_size"] = size
    torch.save(content, "other.ckpt")
    code, _, err = bustseg("ensemble", trained_run.checkpoint, "other.ckpt", "--out", "both.ckpt")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "data.image_size is" in err


def test_members_of_different_sizes_need_one_named(bustseg, trained_run) -> None:
    content = torch.load(trained_run.checkpoint, weights_only=True)
    content["bustseg"]["config"]["data"]["image_size"] = 96
    torch.save(content, "other.ckpt")
    members = ("ensemble", trained_run.checkpoint, "other.ckpt", "--out", "both.ckpt")
    code, _, err = bustseg(*members)
    assert code == 2
    assert "--image_size" in err
    code, _, err = bustseg(*members, "--image_size", "0")
    assert code == 2
    assert "--image_size is 0 x 0" in err
    code, _, err = bustseg(*members, "--image_size", "80")
    assert code == 0, err
    assert torch.load("both.ckpt", weights_only=True)["bustseg"]["config"]["data"]["image_size"] == 80


def test_members_of_different_splits_are_joined_with_a_warning(bustseg, trained_run) -> None:
    content = torch.load(trained_run.checkpoint, weights_only=True)
    content["bustseg"]["split_digest"] = "another"
    torch.save(content, "other.ckpt")
    code, out, err = bustseg("ensemble", trained_run.checkpoint, "other.ckpt", "--out", "both.ckpt")
    assert code == 0, err
    assert "different images" in out + err
    code, _, err = bustseg("ensemble", trained_run.checkpoint, "other.ckpt", "--out", ".", "--overwrite")
    assert code == 2
    assert "is a folder" in err
    assert "split_digest" not in torch.load("both.ckpt", weights_only=True)["bustseg"]
