"""`bustseg reproduce` as a user calls it: the plan, rows that fail or are cut off, resuming, and what is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from mlflow.entities import Run

from bustseg.compare.analysis import RunTable
from bustseg.errors import UserError
from bustseg.paper import reproduce
from bustseg.paper.estimate import Cost
from bustseg.paper.report import Outcome, Result, claim_rows, duration, encoder_weights, mean_sd, render, verdict
from bustseg.paper.tables import Claim, PaperTable, Row, find_table, read_table
from bustseg.runs.tracker import tracking_uri
from tests.conftest import CONFIGS, REPOSITORY, TINY, unpadded
from tests.faults import harness

Bustseg = Callable[..., tuple[int, str, str]]
PAPER = {"precision": 0.6, "recall": 0.5, "f1": 0.55, "iou": 0.4, "dice": 0.55}


def runs() -> tuple[list[Run], dict[int, list[Run]]]:
    """Parents, and the rows' runs by row, oldest first."""
    client = mlflow.MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("reproduce")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []
    rows: dict[int, list[Run]] = {}
    for run in found:
        if "reproduce.row" in run.data.tags:
            rows.setdefault(int(run.data.tags["reproduce.row"]), []).append(run)
    return [run for run in found if "reproduce.table_key" in run.data.tags], rows


@pytest.fixture
def table() -> Path:
    """Three rows on the tiny network, of which the second cannot have its weights."""
    config = yaml.safe_load(TINY.read_text())
    network = config["model"]["network"]["init_args"]
    for number, change in (
        (1, {}),
        (2, {"weights": "nowhere.pt"}),
        (3, {"attention": "none", "freeze_encoders": True}),
    ):
        own = {**config, "tracking": {}, "data": {**config["data"], "augmentation": "none"}}
        own["model"] = {
            **config["model"],
            "network": {**config["model"]["network"], "init_args": {**network, **change}},
        }
        Path(f"{number}.yaml").write_text(yaml.safe_dump(own))
    rows = [
        {"row": number, "name": name, "config": f"{number}.yaml", "paper": {**PAPER, "dice": 0.55 - 0.01 * number}}
        for number, name in ((1, "CBAM"), (2, "weightless"), (3, "plain"))
    ]
    claims = [{"claim": "CBAM is better", "pairs": [[1, 3], [1, 2]]}]
    Path("small.yaml").write_text(yaml.safe_dump({"title": "A small table", "rows": rows, "claims": claims}))
    return Path("small.yaml")


# ------------------------------------------------------------------------------------------------------------ tables


def test_the_papers_tables_are_whole() -> None:
    one, offline, five = (read_table(find_table(*which)) for which in (("1",), ("1", "offline"), ("5",)))
    assert [row.row for row in one.rows] == list(range(1, 21))
    counts = pd.read_csv(REPOSITORY / "tests" / "paper_counts.csv").set_index("model")
    for row in one.rows:
        # the paper prints the count of rows 19 and 20 with two digits swapped
        assert row.parameters == (12_350_296 if row.row > 18 else counts["total"][row.row])
        config = yaml.safe_load(row.config.read_text())
        init = config["model"]["network"]["init_args"]
        words = row.name.split(", ")
        names = {"none": "no attention", "cbam": "CBAM", "nonlocal": "Non-Local"}
        assert words[1] == names[init["attention"]]
        assert (words[2] == "frozen") == init.get("freeze_encoders", False)
        assert config["model"]["loss"]["class_path"].endswith(f"{words[3]}Loss")
        assert len(words[0].split(" + ")) == len(init["encoders"])
        assert row.paper["dice"] == pytest.approx(row.paper["f1"], abs=0.0004)
    assert (one.row(1).paper["dice"], one.row(1).auc["val"], one.row(17).auc["train"]) == (0.6140, 0.96, 0.44)
    assert [row.paper for row in offline.rows] == [row.paper for row in one.rows]
    assert {row.config.parent.name for row in offline.rows} == {"offline"}
    assert "Lite0" in offline.legend
    assert len(five.rows) == 6
    assert five.row(6).config.resolve() == one.row(1).config.resolve()
    assert all(row.config.is_file() for row in [*offline.rows, *five.rows])


BAD = {
    "no such table": (["--table", "9"], "no table 9: there are 1, 1_offline, 5"),
    "no such family": (["--table", "5", "--family", "offline"], "no table 5 of the family offline"),
    "no such file": (["--table", "none.yaml"], "no table at none.yaml"),
    "malformed": (["--table", "bad.yaml"], "bad.yaml is not a table"),
    "no such row": (["--only", "1", "4"], "small has no row 4"),
    "no config": (["--table", "lost.yaml"], "no config for row 1"),
    "own config": (["--config", "1.yaml"], "takes no --config"),
    "seed": (["--seed_everything=3"], "takes no --seed_everything"),
    "checkpoint": (["--ckpt_path", "x"], "takes no --ckpt_path"),
    "unknown option": (["--data.batch_sise", "3"], "did you mean"),
    "no tracking": (["--trainer.logger", "false"], "stores its rows in MLflow"),
    "no data": (["--data.root", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line(case: str, bustseg: Bustseg, table: Path, phantoms: Path) -> None:
    Path("bad.yaml").write_text("title: x\nrows: [{row: 1}]\n")
    Path("lost.yaml").write_text("title: x\nrows: [{row: 1, name: y, config: nowhere.yaml}]\n")
    args, message = BAD[case]
    code, _, err = bustseg("reproduce", "--table", table, "--data.root", phantoms, "--only", 1, *args)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert not Path("mlruns").exists(), "nothing was begun"


def test_help_has_an_example(bustseg: Bustseg) -> None:
    code, out, _ = bustseg("reproduce", "--help")
    assert code == 0
    assert "example: bustseg reproduce --table 1" in out


# ----------------------------------------------------------------------------------------------------------- running


def reproduce_small(bustseg: Bustseg, table: Path, phantoms: Path, *options: object) -> tuple[int, str, str]:
    common = ("--max_epochs", 2, "--out", "out", "--tracking.log_model", "false", "--explain.enabled", "false")
    return bustseg("reproduce", "--table", table, "--data.root", phantoms, *common, *options)


def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the steps by which a session estimates how long it takes, once a test has seen them."""
    monkeypatch.setattr(reproduce, "_measure", lambda jobs: None)


def small_options(phantoms: Path) -> tuple[reproduce.Settings, list[str]]:
    """What `reproduce_small` gives, parsed."""
    return reproduce.Settings(only=[1], max_epochs=2), ["--data.root", str(phantoms)]


@pytest.mark.slow
def test_a_row_that_fails_does_not_stop_the_others(
    bustseg: Bustseg, table: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = reproduce_small(bustseg, table, phantoms, "--plan")
    assert (code, runs()) == (0, ([], {})), err
    assert "0 of 3 are done; the rest takes at most about" in out
    assert out.count("<= 2") == 3
    untimed(monkeypatch)

    code, out, err = reproduce_small(bustseg, table, phantoms)
    assert code == 1, err
    assert "row 2, seed 0 (weightless) failed: WeightsError" in out
    ((parent,), rows) = runs()
    assert parent.info.status == "FAILED"
    assert set(rows) == {1, 3}, "weights that are not there leave no run"
    assert {run.info.status for (run,) in rows.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for (run,) in rows.values()} == {parent.info.run_id}
    frame = pd.read_csv("out/small.csv").set_index("row")
    assert frame["state"].tolist()[::2] == ["done", "done"]
    assert "nowhere.pt" in frame["state"][2]
    for number, (run,) in rows.items():
        metrics = run.data.metrics
        assert frame["run_id"][number] == run.info.run_id
        assert frame["dice_paper"][number] == pytest.approx(metrics["test/dice_paper"], rel=1e-5)
        assert frame["dice_pooled"][number] == pytest.approx(metrics["test/dice_pooled"], rel=1e-5)
        assert frame["auc_test"][number] == pytest.approx(metrics["test/auc_pixel"], rel=1e-5)
        assert frame["paper_dice"][number] == pytest.approx(0.55 - 0.01 * number)
        assert frame["epochs"][number] == 2
        assert frame["parameters"][number] == int(run.data.tags["parameters"])
        assert parent.data.metrics["dice_paper/seed_0"] in {
            run.data.metrics["test/dice_paper"] for (run,) in rows.values()
        }
    assert frame["trainable"][3] < frame["parameters"][3]
    page = unpadded(Path("out/small.md").read_text())
    assert "**Not all encoders start from ImageNet weights, as the paper's do: random in rows 1, 3" in page
    assert f"| 1 | CBAM | 0.6000 | {frame['precision_paper'][1]:.4f} | 0.5000 |" in page
    assert "| 2 | weightless | 0.6000 |  | 0.5000 |  | 0.4000 |  | 0.5300 |  | failed: WeightsError" in page
    assert "| 1, 3 | CBAM against plain | +0.0200 |" in page
    assert "| 1, 2 | CBAM against weightless | +0.0100 |  |  |  |  |  | not run |" in page
    assert "(small.png)" in page
    assert Path("out/small.png").stat().st_size > 10_000
    assert str(phantoms) not in page
    artifacts = Path("mlruns/artifacts") / parent.info.run_id / "artifacts"
    assert unpadded((artifacts / "small.md").read_text()) == page
    assert {path.name for path in artifacts.iterdir()} == {"small.md", "small.csv", "small.png", "small.svg"}

    # what failed is tried again, with weights that are there; the rest is known and skipped
    config = yaml.safe_load(Path("1.yaml").read_text())
    config["model"]["loss"] = {"class_path": "bustseg.losses.DiceLoss"}
    Path("2.yaml").write_text(yaml.safe_dump(config))
    code, out, err = reproduce_small(bustseg, table, phantoms, "--resume", "--only", 2)
    assert code == 0, err
    assert "starting a new one" in out, "a row has changed, so the table is another"
    frame = pd.read_csv("out/small.csv").set_index("row")
    assert frame["state"].tolist() == ["done"] * 3
    assert {row: len(own) for row, own in runs()[1].items()} == {1: 1, 2: 1, 3: 1}
    assert frame["run_id"][1] == rows[1][0].info.run_id, "a run of the same row is used again"


@pytest.mark.slow
def test_a_killed_table_goes_on(bustseg: Bustseg, table: Path, phantoms: Path) -> None:
    options = ["--only", "1", "3", "--max_epochs", "4", "--resume", "--early_stopping.patience", "9"]
    options += ["--tracking.log_model", "false", "--explain.enabled", "false", "--report.subsets", "[]"]
    args = ["reproduce", "--table", str(table), "--data.root", str(phantoms), "--out", "out", *options]
    started = harness.start(Path.cwd(), *args)
    deadline = time.time() + 500
    while len(list(Path().glob("mlruns/artifacts/*/artifacts/checkpoints/last.ckpt"))) < 2:  # row 1's, then row 3's
        assert not started.log.with_suffix(".status").exists(), started.wait()
        assert time.time() < deadline
        time.sleep(0.02)
    started.kill()
    assert started.wait().code == -signal.SIGKILL
    ((parent,), rows) = runs()
    ((first,), (second,)) = rows[1], rows[3]
    assert (parent.info.status, first.info.status, second.info.status) == ("RUNNING", "FINISHED", "RUNNING")
    frame = pd.read_csv("out/small.csv").set_index("row")
    assert (frame["state"][1], frame["state"][3]) == ("done", "not run"), "the killed session leaves its table"

    code, out, err = bustseg(*args)
    assert code == 0, err
    assert "1 of 2 are done" in out
    ((parent,), rows) = runs()
    ((again,), (ended,)) = rows[1], rows[3]
    assert {run.info.status for run in (parent, again, ended)} == {"FINISHED"}
    assert again.info.end_time == first.info.end_time, "a finished row is left alone"
    assert ended.info.run_id == second.info.run_id, "the interrupted fit goes on in its run"
    history = mlflow.MlflowClient(tracking_uri()).get_metric_history(ended.info.run_id, "train/loss")
    steps = sorted(metric.step for metric in history)
    # it may have been killed when the checkpoint of an epoch was there and its metrics were not yet
    assert len(set(steps)) == len(steps) >= 3, "no epoch was trained twice"
    assert steps[-1] == 3
    frame = pd.read_csv("out/small.csv").set_index("row")
    assert (frame["state"][1], frame["state"][3]) == ("done", "done")
    assert frame["epochs"][3] == 4


@pytest.mark.slow
def test_the_page_has_what_another_process_finished_meanwhile(
    bustseg: Bustseg, table: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untimed(monkeypatch)
    run_one = reproduce._run_one

    def while_another_runs_row_1(*args: object) -> None:
        monkeypatch.setattr(reproduce, "_run_one", run_one)
        assert reproduce_small(bustseg, table, phantoms, "--only", 1, "--resume")[0] == 0
        run_one(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(reproduce, "_run_one", while_another_runs_row_1)
    code, _, err = reproduce_small(bustseg, table, phantoms, "--only", 3, "--resume")
    assert code == 0, err
    frame = pd.read_csv("out/small.csv").set_index("row")
    assert (frame["state"][1], frame["state"][3]) == ("done", "done")


@pytest.mark.slow
def test_ctrl_c_leaves_no_run_running(
    bustseg: Bustseg, table: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untimed(monkeypatch)

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "_run_one", stop)
    code, out, _ = reproduce_small(bustseg, table, phantoms, "--only", 1, "--seeds", 0, 1)
    assert code == 130
    assert "--resume continues" in out
    assert [run.info.status for run in runs()[0]] == ["KILLED"]

    calls: list[str] = []
    monkeypatch.setattr(reproduce, "_run_one", lambda job, *args: calls.append(job.name))
    code, out, err = reproduce_small(bustseg, table, phantoms, "--only", "3,1", "--seeds", 1, "--resume")
    assert code == 0, err
    assert calls == ["row 3, seed 1", "row 1, seed 1"]
    assert [run.info.status for run in runs()[0]] == ["FINISHED"], "other rows and seeds belong to the same table"

    code, out, err = reproduce_small(bustseg, table, phantoms, "--only", 1)
    assert "--resume would continue run" in out
    assert len(runs()[0]) == 2

    # a row that another process holds is left to it
    calls.clear()
    parent = runs()[0][-1]
    key = next(iter(reproduce.plan_jobs(read_table(table), *small_options(phantoms)))).key
    with FileLock(f"mlruns/locks/{key}.lock"):
        code, out, err = reproduce_small(bustseg, table, phantoms, "--only", 1, 3, "--resume")
    assert code == 0, err
    assert "another process is running it" in out
    assert calls == ["row 3, seed 0"]
    assert len(runs()[0]) == 2
    assert runs()[0][-1].info.run_id == parent.info.run_id


@pytest.mark.slow
def test_the_papers_networks_end_to_end(bustseg: Bustseg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bustseg.data.phantom import write_phantoms

    phantoms = write_phantoms(tmp_path / "few", n=12, seed=3, shape=(96, 128))
    options = ["--encoder_weights", "none", "--max_epochs", 1, "--data.root", phantoms, "--data.image_size", 64]
    options += ["--data.batch_size", 4, "--trainer.precision", "32-true", "--out", "out", "--resume"]
    options += ["--tracking.log_model", "false", "--explain.enabled", "false", "--report.subsets", "[]"]
    run_one = reproduce._run_one

    def fails_at_15(job: reproduce.Job, *args: object) -> None:
        if job.row.row == 15:
            raise KeyboardInterrupt
        run_one(job, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(reproduce, "_run_one", fails_at_15)
    assert bustseg("reproduce", "--table", 1, "--only", 1, 15, *options)[0] == 130
    monkeypatch.setattr(reproduce, "_run_one", run_one)
    untimed(monkeypatch)
    code, out, err = bustseg("reproduce", "--table", 1, "--only", 1, 15, *options)
    assert code == 0, err
    assert "1 of 2 are done" in out
    assert "features of 10 images are computed once" in out
    frame = pd.read_csv("out/table1.csv").set_index("row")
    assert (frame["state"] == "done").sum() == 2
    assert frame["parameters"][1] == frame["paper_parameters"][1] == 23_881_989
    run_id = frame["run_id"][1]
    assert frame["trainable"][15] == frame["paper_trainable"][15] == 1_121_089
    code, out, err = bustseg("reproduce", "--table", 5, "--only", 6, *options)
    assert code == 0, err
    frame = pd.read_csv("out/table5.csv").set_index("row")
    assert frame["state"].tolist() == [*["not run"] * 5, "done"]
    assert frame["run_id"][6] == run_id, "the run of one network is used in both tables"
    assert "random" in Path("out/table5.md").read_text()


# ------------------------------------------------------------------------------------------------------------ report


def test_cost_by_hand() -> None:
    cost = Cost(10, 5, train=0.5, evaluate=0.1, encode=0.2)
    images = {"train": 100, "val": 10, "test": 20}
    assert cost.fit(3, images) == pytest.approx(0.2 * 110 + 3 * (50 + 1))
    assert cost.test(images) == pytest.approx(0.3 * 130 + 0.7 * 20)


def test_growing_images_cost_by_their_area() -> None:
    images = {"train": 100, "val": 10, "test": 10}
    cost = Cost(10, 5, train=0.5, evaluate=0.1, encode=0.0, scale={0: 0.5, 8: 1.0})
    assert cost.fit(10, images) == pytest.approx(0.5 * 100 * (8 / 4 + 2) + 10 * 0.1 * 10)
    assert cost.fit(4, images) == pytest.approx(0.5 * 100 * 4 / 4 + 4 * 0.1 * 10)


def test_numbers_in_words() -> None:
    assert [duration(seconds) for seconds in (40, 600, 12_600)] == ["40 s", "10 min", "3.5 h"]
    assert mean_sd([0.5]) == "0.5000"
    assert mean_sd([1.0, 3.0, None], 2) == "2.00 ± 1.41"
    assert mean_sd([None, float("nan")]) == ""


def test_weights_are_said() -> None:
    def result(row: int, network: dict) -> Result:
        return Result(Row(row, "x", Path()), 0, "done", None, {"model": {"network": network}})

    imagenet, none = ({"class_path": "x", "init_args": {"weights": kind}} for kind in ("imagenet", "none"))
    assert encoder_weights([result(1, imagenet)]) == "Encoders start from ImageNet weights, as in the paper."
    mixed = encoder_weights([result(1, imagenet), result(2, {"init_args": {"encoder_weights": None}}), result(3, none)])
    assert mixed.startswith("**Not all encoders start from ImageNet weights")
    assert "ImageNet in rows 1; random in rows 2, 3" in mixed
    assert "random" not in encoder_weights([result(1, imagenet), result(2, {"init_args": {"depth": 4}})])


def fake_run(name: str, found: np.ndarray) -> RunTable:
    """40 images with a lesion of 100 pixels and 10 normals; ``found`` (40,) of each lesion's pixels are predicted."""
    from bustseg.metrics import overlap_scores

    tp = np.concatenate([found, np.zeros(10, dtype=int)])
    fn = np.concatenate([100 - found, np.zeros(10, dtype=int)])
    counts = {"tp": tp, "fp": np.zeros(50, dtype=int), "fn": fn, "tn": 1000 - tp - fn}
    frame = pd.DataFrame(
        {"image": [f"i{k:02d}" for k in range(50)], "label": ["benign"] * 40 + ["normal"] * 10, **counts}
    )
    scores = overlap_scores(*(torch.tensor(values).numpy() for values in counts.values()))
    return RunTable(name, frame.assign(**{key: value.numpy() for key, value in scores.items()}, lesion_px=tp + fn))


def test_claims_by_hand() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(40, 60, 40)
    rows = [Row(n, f"net {n}", Path(), paper={"dice": dice}) for n, dice in ((1, 0.6), (2, 0.5), (3, 0.7), (4, 0.1))]
    pairs = [(1, 2), (2, 3), (1, 3), (4, 1)]
    table = PaperTable("t", "T", "", rows, [Claim("One is better", pairs[:2]), Claim("Another", [*pairs[2:], (1, 2)])])
    loaded = {
        (1, 0): fake_run("1", base + 20),
        (2, 0): fake_run("2", base),
        (3, 0): fake_run("3", base + rng.permutation(np.repeat([-1, 1], 20))),
    }
    frame = claim_rows(table, loaded)
    found = frame.set_index(["claim", "first", "second"]).loc["One is better", 1, 2]
    dice = [2 * own / (100 + own) for own in (base + 20, base)]  # no false positives
    assert found["paper"] == pytest.approx(0.1)
    assert found["lesion_ours"] == pytest.approx((dice[0] - dice[1]).mean())
    assert found["paper_ours"] == pytest.approx((dice[0] - dice[1]).sum() / 50), "normals count 0 for both"
    assert found["lesion_low"] < found["lesion_ours"] < found["lesion_high"]
    verdicts = [verdict(line) for _, line in frame.iterrows()]
    assert verdicts == ["the same", "not decided", "the opposite", "not run", "the same"]
    same = frame[(frame["first"] == 1) & (frame["second"] == 2)]["p_holm"]
    assert len(set(same)) == 1, "a pair in two claims is one test"
    assert (same.iloc[0]) == pytest.approx(3 * frame["p"].iloc[0]), "Holm: the smallest of three p values, times three"

    outcome = Outcome(
        "r", {"test/dice_paper": 0.5}, {"test": 0.9}, 10, 5, 4, 20.0, None, {"device": "cpu", "precision": "32"}
    )
    config = {"model": {"network": {}}, "trainer": {"max_epochs": 5}, "data": {"image_size": 32, "batch_size": 4}}
    results = [Result(rows[0], seed, "done", outcome, config) for seed in (0, 1)]
    page = unpadded(render(table, [*results, Result(rows[3], 0, "cut off", None, config)], loaded, "bustseg reproduce"))
    assert "2 comparisons: the first row has the higher Dice in 1 of ours and in 1 of the paper's; 1 of ours" in page
    assert "| 1 | net 1 |  |  |  |  |  |  | 0.6000 | 0.5000 ± 0.0000 | done, 2 seeds |" in page
    assert "| cut off |" in page
    assert "| 2 | net 2 |  |  |  |  |  |  | 0.5000 |  | not run |" in page
    assert "2 of 4 runs are finished; seeds, as mean ± standard deviation: 0, 1." in page


def test_no_tables_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bustseg.presets.__file__", str(tmp_path / "site" / "bustseg" / "presets.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run it in a checkout"):
        find_table("1")
    assert (CONFIGS / "tables" / "table1.yaml").is_file()
