"""Comparing runs: figures against hand-computed ones, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from mlflow.entities import Run
from PIL import Image
from scipy import stats

from bustseg.compare.analysis import RunTable, check_comparable, compare, load_run, load_runs, parts
from bustseg.compare.pages import describe, html_page, latex, p_text, verdict
from bustseg.compare.report import choose_images, report, write_files
from bustseg.errors import UserError
from bustseg.figures.colours import TRUTH
from bustseg.metrics import aggregate
from bustseg.metrics.measures import known_metrics, measures
from bustseg.runs.scores import scores_of_test
from bustseg.runs.tracker import Tracker, tracking_uri
from bustseg.statistics import Bootstrap, holm
from tests.conftest import SHORT_TEST, TINY, unpadded

Bustseg = Callable[..., tuple[int, str, str]]
FACTS = {"data_digest": "d1", "split_digest": "s1", "image_size": [32, 32], "threshold": 0.5}
PIXELS = 32 * 32


def counts(seed: int, skill: float, n: int = 24) -> pd.DataFrame:
    """Images of all classes with random counts: the masks are the same for every seed, the predictions are not."""
    masks, own = np.random.default_rng(7), np.random.default_rng(seed)
    label = np.resize(["benign", "benign", "malignant", "normal"], n)
    size = np.where(label == "normal", 0, masks.integers(40, 400, n))
    tp = np.round(size * np.clip(skill + 0.2 * own.standard_normal(n), 0, 1)).astype(int)
    tp[1] = 0  # a miss
    fp = own.integers(0, 60, n)
    fp[3] *= seed % 2 == 0  # a normal that runs of an odd seed leave alone
    frame = pd.DataFrame({"image": [f"{name} ({i})" for i, name in enumerate(label)], "label": label})
    frame = frame.assign(group="", tp=tp, fp=fp, fn=size - tp, tn=PIXELS - size - fp)
    return frame.assign(hd95=np.where(size > 0, own.uniform(2, 40, n), np.nan))


def write(folder: Path, frame: pd.DataFrame, **facts: Any) -> Path:
    (folder / "tables").mkdir(parents=True)
    frame.to_csv(folder / "tables" / "test.csv", index=False)
    (folder / "tables" / "test.json").write_text(json.dumps(FACTS | facts))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[RunTable]:
    folders = [write(tmp_path / name, counts(seed, skill)) for name, seed, skill in (("a", 1, 0.5), ("b", 2, 0.9))]
    return load_runs([str(folder) for folder in folders])


def value(rows: pd.DataFrame, part: str, measure: str, run: str) -> pd.Series:
    found = rows[(rows["part"] == part) & (rows["measure"] == measure) & (rows["run"] == run)]
    assert len(found) == 1
    return found.iloc[0]


def test_every_score_is_the_one_that_the_test_logs(pair: list[RunTable]) -> None:
    rows = compare(pair, known_metrics()).rows
    for table in pair:
        frame = counts({"a": 1, "b": 2}[table.name], {"a": 0.5, "b": 0.9}[table.name])
        code = frame["label"].map({"normal": 0, "benign": 1, "malignant": 2}).to_numpy(copy=True)
        logged = aggregate(*(frame[name].to_numpy(copy=True) for name in ("tp", "fp", "fn", "tn")), code)
        own = rows[(rows["part"] == "all") & (rows["run"] == table.name)].set_index("measure")["estimate"]
        shared = set(own.index) & set(logged)
        assert len(shared) == 5 * 4 + 3
        for name in shared:
            assert own[name] == pytest.approx(float(logged[name]), abs=1e-12), name
        assert set(own.index) - shared == {"hd95"}
        assert own["hd95"] == pytest.approx(frame["hd95"].mean())


def test_parts_are_the_classes_and_the_thirds_of_the_lesions() -> None:
    frame = pd.DataFrame(
        {"label": ["benign"] * 4 + ["malignant"] * 2 + ["normal"], "lesion_px": [10, 60, 20, 50, 30, 40, 0]}
    )
    own = {name: np.flatnonzero(chosen).tolist() for name, chosen in parts(frame).items()}
    assert own == {
        "all": [0, 1, 2, 3, 4, 5, 6],
        "normal": [6],
        "benign": [0, 1, 2, 3],
        "malignant": [4, 5],
        "small lesions": [0, 2],
        "medium lesions": [4, 5],
        "large lesions": [1, 3],
    }


def test_differences_intervals_and_p_are_those_of_the_images(pair: list[RunTable]) -> None:
    rows = compare(pair).rows
    first, second = (table.frame for table in pair)
    gap = second["dice_lesion"] - first["dice_lesion"]
    row = value(rows, "all", "dice_lesion", "b")
    assert row["difference"] == pytest.approx(gap.mean())
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["p"] == pytest.approx(stats.wilcoxon(gap[gap.abs() > 0]).pvalue)
    assert (row["images"], row["groups"]) == (18, 18)
    boot = Bootstrap(24, strata=first["label"].to_numpy())
    expected = (boot.mean(second[["dice_lesion"]].to_numpy()) - boot.mean(first[["dice_lesion"]].to_numpy())).interval()
    assert row["difference_low"] == pytest.approx(expected.low[0])
    baseline = value(rows, "all", "dice_lesion", "a")
    assert np.isnan([baseline["difference"], baseline["p"], baseline["p_holm"]]).all()
    pooled = value(rows, "all", "dice_pooled", "b")
    assert np.isnan(pooled["p"]), "a pooled score has no value per image to rank"
    assert pooled["difference_low"] < pooled["difference"] < pooled["difference_high"]
    # under the convention `paper` normals are 0 for every run: the same test, but a smaller difference
    paper = value(rows, "all", "dice_paper", "b")
    assert paper["p"] == row["p"]
    assert paper["difference"] == pytest.approx(row["difference"] * 18 / 24)


def test_holm_counts_equal_tests_once_and_parts_apart(tmp_path: Path) -> None:
    for name, seed, skill in (("a", 1, 0.5), ("b", 2, 0.6), ("c", 4, 0.7)):
        write(tmp_path / name, counts(seed, skill))
    tables = load_runs([str(tmp_path / name) for name in "abc"])
    rows = compare(tables, ["dice", "f1"]).rows
    whole = rows[rows["part"] == "all"]
    # paper and lesion are one test, and so are F1 and Dice: two runs times {lesion, empty_one}
    p = [value(rows, "all", f"dice_{name}", run)["p"] for run in "bc" for name in ("lesion", "empty_one")]
    assert len(set(p)) == 4
    for wanted, adjusted in zip(p, holm(p), strict=True):
        assert whole[whole["p"] == wanted]["p_holm"].tolist() == pytest.approx([adjusted] * sum(whole["p"] == wanted))
    others = rows[(rows["part"] != "all") & (rows["metric"] == "dice") & (rows["convention"] == "lesion")].dropna(
        subset=["p"]
    )
    assert len(others) == 2 * 5
    assert others["p_holm"].tolist() == pytest.approx(holm(others["p"].to_numpy()).tolist())


def test_groups_are_resampled_together(pair: list[RunTable]) -> None:
    images = pair[0].frame["image"]
    groups = {image: f"patient {i // 3}" for i, image in enumerate(images)}
    alone, together = compare(pair), compare(pair, groups=groups)
    assert "no groups are known" in " ".join(alone.notes)
    assert "24 images form 8 groups" in " ".join(together.notes)
    row = value(together.rows, "all", "dice_lesion", "b")
    assert (row["images"], row["groups"]) == (18, 6), "two of the groups are normals"
    assert row["estimate"] == value(alone.rows, "all", "dice_lesion", "b")["estimate"]
    assert row["low"] != value(alone.rows, "all", "dice_lesion", "b")["low"]


def test_groups_come_from_the_table_or_from_a_file(tmp_path: Path, bustseg: Bustseg) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        frame = counts(seed, 0.5)
        write(tmp_path / name, frame.assign(group=["x", "x", *[""] * 22]))
    assert "24 images form 23 groups" in " ".join(compare(load_runs(["a", "b"])).notes)
    pd.DataFrame({"image": counts(1, 0.5)["image"], "group": np.arange(24) // 2}).to_csv("groups.csv", index=False)
    code, out, err = bustseg("compare", "a", "b", "--groups", "groups.csv")
    assert code == 0, err
    assert "24 images form 12 groups" in out
    pd.DataFrame({"name": ["x"]}).to_csv("groups.csv", index=False)
    code, _, err = bustseg("compare", "a", "b", "--groups", "groups.csv")
    assert (code, "needs the columns image and group" in err) == (2, True)


def test_a_part_has_only_scores_that_say_something(pair: list[RunTable]) -> None:
    rows = compare(pair).rows
    assert set(rows[rows["part"] == "normal"]["measure"]) == {"false_positive_rate_normal"}
    assert set(rows[rows["part"] == "benign"]["convention"]) == {"lesion", "pooled"}
    assert value(rows, "normal", "false_positive_rate_normal", "a")["estimate"] == pytest.approx(5 / 6)


def test_a_score_that_is_the_same_in_all_images_gets_no_interval(tmp_path: Path) -> None:
    perfect = counts(1, 0.5)
    size = perfect["tp"] + perfect["fn"]
    perfect = perfect.assign(tp=size, fn=0, tn=PIXELS - size, fp=0)
    write(tmp_path / "a", perfect)
    write(tmp_path / "b", counts(2, 0.5))
    row = value(compare(load_runs(["a", "b"])).rows, "all", "dice_lesion", "a")
    assert row["estimate"] == 1
    assert np.isnan([row["low"], row["high"]]).all()


def test_nothing_predicted_is_a_precision_of_zero(tmp_path: Path) -> None:
    frame = counts(1, 0.5)
    size = frame["tp"] + frame["fn"]
    write(tmp_path / "a", frame.assign(tp=0, fp=0, fn=size, tn=PIXELS - size))
    table = load_runs(["a", str(tmp_path / "a")])[0].frame
    pooled = next(item for item in measures(table, ["precision"]) if item.convention == "pooled")
    assert pooled.terms[0].sum() / pooled.terms[1].sum() == 0


def test_rows_are_matched_by_image_not_by_place(tmp_path: Path) -> None:
    write(tmp_path / "a", counts(1, 0.5))
    write(tmp_path / "b", counts(1, 0.5).sample(frac=1, random_state=0))
    rows = compare(load_runs(["a", "b"])).rows
    assert (rows["difference"].dropna() == 0).all()
    assert (rows["p"].dropna() == 1).all()


def _two(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame, **facts: Any) -> None:
    write(tmp_path / "a", counts(1, 0.5))
    write(tmp_path / "b", change(counts(2, 0.5)), **facts)


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (lambda f: f.iloc[1:], {}, "different images (23 and 24, 23 in common; 'benign (0)' is in only one of them)"),
        (lambda f: f.assign(label=["malignant", *f["label"][1:]]), {}, "1 images differ in their class, such as 'ben"),
        (lambda f: f.assign(fn=f["fn"] + 1), {}, "24 images differ in their mask"),
        (lambda f: f, {"data_digest": "d2"}, "their data digests differ (d2 and d1)"),
        (lambda f: f, {"image_size": [64, 64]}, "their image sizes differ (64 x 64 and 32 x 32)"),
        (lambda f: f, {"resize": "letterbox"}, "their ways of resizing differ (letterbox and stretch)"),
        (lambda f: f, {"threshold": 0.4}, "their thresholds differ (0.4 and 0.5)"),
    ],
)
def test_tests_that_are_not_alike_are_refused(
    tmp_path: Path, bustseg: Bustseg, change: Callable, facts: dict[str, Any], message: str
) -> None:
    _two(tmp_path, change, **facts)
    code, out, err = bustseg("compare", "a", "b")
    assert code == 2
    assert err.startswith("error: b cannot be compared with a: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not out


def test_what_may_differ_is_said(tmp_path: Path) -> None:
    _two(tmp_path, split_digest="s2", image_size=32)
    notes = " ".join(check_comparable(load_runs(["a", "b"])))
    assert "splits differ otherwise" in notes
    (tmp_path / "b" / "tables" / "test.json").unlink()
    notes = " ".join(check_comparable(load_runs(["a", "b"])))
    assert "The thresholds of b are not known" in notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label\nx,benign\n", "lacks the columns tp, fp, fn, tn"),
        ("", "cannot read"),
        ("image,label,tp,fp,fn,tn\n", "has no images"),
        ("image,label,tp,fp,fn,tn\nx,benign,1,1,1,1\nx,benign,1,1,1,1\n", "names 'x' twice"),
        ("image,label,tp,fp,fn,tn\nx,cyst,1,1,1,1\n", "the class 'cyst': the classes are"),
        ("image,label,tp,fp,fn,tn\nx,benign,one,1,1,1\n", "the column tp that are not numbers"),
        ("image,label,tp,fp,fn,tn\nx,benign,,1,1,1\n", "the column tp that are not numbers"),
        *(
            (f"image,label,tp,fp,fn,tn\nx,benign,1,{value},1,1\n", "the column fp that are not pixel counts")
            for value in ("-1", "0.5", "inf", "1e400", "1e13")
        ),
        (f"image,label{',x' * 3000}\n", "has 3,002 columns, and a table at most 2,000"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path: Path, bustseg: Bustseg, content: str, message: str) -> None:
    write(tmp_path / "a", counts(1, 0.5))
    Path("b.csv").write_text(content)
    code, _, err = bustseg("compare", "a", "b.csv")
    assert code == 2
    assert message in err
    assert "b.csv" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("text", ["[1]", "5", '{"threshold": [1]}', '{"threshold": "x"}', "{", "[" * 100_000])
def test_facts_that_are_none_are_refused(tmp_path: Path, bustseg: Bustseg, text: str) -> None:
    _two(tmp_path)
    (tmp_path / "b" / "tables" / "test.json").write_text(text)
    code, _, err = bustseg("compare", "a", "b")
    assert code == 2
    assert "test.json does not describe how the table was made" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "at least two runs, not 1"),
        ([], "at least two runs, not 0"),
        (["a", "nowhere"], "no run at nowhere (give an MLflow run id"),
        (["a", "empty"], "empty has no tables/test.csv: `bustseg test --ckpt_path RUN` writes it"),
        (["a", "b", "--metric", "auc"], "no metric 'auc': there are precision, recall, f1, iou, dice, hd95"),
        (["a", "b", "--convention", "mean"], "no convention 'mean': there are paper, lesion, empty_one, pooled"),
        (["a", "b", "--baseline", "c"], "the baseline c is not among the runs compared: a, b"),
        (["a", "b", "--metric", "assd"], "no score in common"),
    ],
)
def test_bad_arguments_get_one_line(tmp_path: Path, bustseg: Bustseg, arguments: list[str], message: str) -> None:
    _two(tmp_path)
    (tmp_path / "empty").mkdir()
    code, _, err = bustseg("compare", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_command_prints_one_table_and_writes_files(tmp_path: Path, bustseg: Bustseg) -> None:
    _two(tmp_path)
    code, out, err = bustseg("compare", "a", "b", "--out", "out", "--baseline", "b")
    assert code == 0, err
    rows = pd.read_csv("out/compare.csv")
    assert rows["run"].iloc[0] == "b"
    row = value(rows, "all", "dice_lesion", "a")
    assert f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in out
    assert f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]" in out
    for text in ("dice, all (24)", "dice, malignant (6)", "dice, small lesions (6)", "hd95 ↓, all (18)"):
        assert text in out
    assert "no pictures: no checkpoint of b, a" in err
    assert not Path("out/comparison.png").exists()
    assert not Path("mlruns").exists(), "files alone need no store"


def test_metric_and_convention_narrow_the_comparison(tmp_path: Path, bustseg: Bustseg) -> None:
    _two(tmp_path)
    code, out, _ = bustseg("compare", "a", "b", "--out", "out", "--metric", "iou", "--convention", "lesion")
    assert code == 0
    rows = pd.read_csv("out/compare.csv")
    assert set(rows["measure"]) == {"iou_lesion"}
    assert "iou, large lesions" in out
    assert "dice" not in out


def test_a_mark_needs_both_the_interval_and_the_p_value(pair: list[RunTable]) -> None:
    row = pd.Series(
        {"metric": "dice", "difference": 0.1, "difference_low": 0.05, "difference_high": 0.2, "p_holm": 0.01}
    )
    assert verdict(row) == "better"
    assert verdict(pd.Series({**row, "metric": "hd95"})) == "worse"
    assert verdict(pd.Series({**row, "p_holm": 0.2})) == ""
    assert verdict(pd.Series({**row, "difference_low": -0.01})) == ""
    assert verdict(pd.Series({**row, "p_holm": np.nan})) == ""
    assert [p_text(p) for p in (0.0001, 0.0312, 0.5, np.nan)] == ["< 0.001", "0.031", "0.50", ""]


def test_html_stands_alone_and_escapes_names(pair: list[RunTable]) -> None:
    evil = '<script>alert("x")</script>'
    tables = [pair[0], RunTable(**{**vars(pair[1]), "name": evil})]
    page = html_page(compare(tables))
    assert evil not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page
    assert not re.search(r'(?:src|href)="?(?!data:)', page), "nothing comes from elsewhere"
    assert page.count("<script>") == 1
    assert page.count("<tr data-part") == len(compare(tables).rows)
    assert describe(compare(tables)).count("|") == 4 * 6


def test_latex_has_the_headline_scores_and_marks_what_is_decided(tmp_path: Path) -> None:
    size = counts(1, 0.5)["tp"] + counts(1, 0.5)["fn"]
    write(tmp_path / "a_100%", counts(1, 0.3))
    write(tmp_path / "b", counts(2, 0.5).assign(tp=size, fn=0, fp=0, tn=PIXELS - size))
    result = compare(load_runs(["a_100%", "b"]))
    text = latex(result)
    head, *rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrr}"))
    assert head == r"score & a\_100\% & b \\"
    assert r"differs from a\_100\%" in text
    assert {row.count(" & ") for row in rows} == {2}
    (dice,) = [row for row in rows if row.startswith("Dice (lesion)")]
    row = value(result.rows, "all", "dice_lesion", "a_100%")
    # decided; the same in every image, so without an interval
    assert dice == rf"Dice (lesion) & {row['estimate']:.3f} ({row['low']:.3f}--{row['high']:.3f}) & 1.000* \\"
    assert any(row.startswith(r"HD95 (px) $\downarrow$ &") for row in rows)
    only = latex(compare(load_runs(["a_100%", "b"]), ["precision"], ["lesion"]))
    assert "precision (lesion)" in only

    names = ["a_100%", "b", *(f"more_{seed}" for seed in range(3))]
    for seed, name in enumerate(names[2:]):
        write(tmp_path / name, counts(seed + 3, 0.5))
    wide = latex(compare(load_runs(names), ["dice", "hd95"]))
    assert r"run & Dice (paper) & Dice (lesion) & Dice (empty\_one) & Dice (pooled) & HD95 (px) $\downarrow$ \\" in wide


def test_chosen_images_are_typical_hard_and_disputed() -> None:
    dice = np.array([[0.9, 0.8], [0.5, 0.5], [0.1, 0.2], [0.7, 0.0], [0.6, 0.6], [0.0, 0.0], [0.0, 0.0]])
    lesion = np.array([True] * 5 + [False] * 2)
    false = np.array([[9, 9]] * 5 + [[0, 0], [0, 7]])
    chosen = choose_images(dice, lesion, false, each=1)
    assert chosen == [
        ("typical", 4),  # 0.6, the median under the first run, which is the best
        ("hardest for the best run", 2),
        ("runs disagree", 3),
        ("false positive", 6),
    ]
    assert [position for _, position in choose_images(dice[:2], lesion[:2], false[:2])] == [1, 0]
    alone = choose_images(dice[:, :1], lesion, false[:, :1], each=1)
    assert "runs disagree" not in dict(alone), "one run agrees with itself"


def finished(client: mlflow.MlflowClient, experiment: str) -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])


def logged(name: str, frame: pd.DataFrame | None, experiment: str = "models") -> str:
    tracker = Tracker(experiment=experiment, run_name=name)
    run_id = str(tracker.run_id)
    if frame is not None:
        for file in (write(Path(f"files-{run_id}"), frame) / "tables").iterdir():
            tracker.log_file(file, "tables")
    tracker.finalize()
    return run_id


@pytest.mark.slow
def test_an_experiment_is_compared_and_the_comparison_logged(bustseg: Bustseg) -> None:
    first, second = logged("unet", counts(1, 0.5)), logged("unet", counts(2, 0.8))
    logged("untested", None)
    code, out, err = bustseg("compare", "--experiment", "models")
    assert code == 0, err
    assert "1 runs of models have no tables/test.csv" in err
    assert f"unet ({first[:6]})" in out, "runs of one name are told apart"
    client = mlflow.MlflowClient(tracking_uri())
    (kept,) = finished(client, "comparisons")
    assert len(finished(client, "models")) == 3, "it does not stand among the runs that it compares"
    assert (kept.info.run_name, kept.info.status) == (f"models: unet ({first[:6]}), unet ({second[:6]})", "FINISHED")
    assert kept.data.tags["compared_in"] == "models"
    assert kept.data.tags["compared_runs"] == f"{first}, {second}"
    assert kept.data.tags["baseline"] == first
    assert "| dice_paper | dice_lesion |" in unpadded(kept.data.tags["mlflow.note.content"])
    assert {file.path for file in client.list_artifacts(kept.info.run_id)} == {
        "compare.csv",
        "compare.html",
        "compare.tex",
    }

    # the comparison is no run to compare; a run of its own may be named by URI
    code, _, err = bustseg("compare", f"runs:/{second}", first, "--out", "out")
    assert code == 0, err
    assert pd.read_csv("out/compare.csv")["run_id"].iloc[0] == second
    assert len(finished(client, "models")) == 3
    assert bustseg("compare", "--experiment", "models")[0] == 0

    code, _, err = bustseg("compare", first, first)
    assert (code, f"run {first} is named twice" in err) == (2, True)
    for arguments, message in (
        ([first, "0" * 32], f"error: no run {'0' * 32} in sqlite"),
        (["--experiment", "none"], "error: no experiment none in sqlite"),
    ):
        code, _, err = bustseg("compare", *arguments)
        assert (code, err.startswith(message), len(err.splitlines())) == (2, True, 1), err
    untested = finished(client, "models")[2].info.run_id
    code, _, err = bustseg("compare", first, untested)
    assert code == 2
    assert (
        err.strip() == f"error: run {untested} has no tables/test.csv: `bustseg test --ckpt_path {untested}` writes it"
    )


def table_of(checkpoint: Path) -> pd.DataFrame:
    """The per-image table of a checkpoint's own test images."""
    from bustseg.runs.checkpoint import load_data, load_task

    task, data = load_task(checkpoint), load_data(checkpoint)
    data.prepare_data()
    data.setup("test")
    rows = []
    for index in data.indices["test"]:
        image, truth = data.arrays(int(index))
        found, lesion = task.predict_mask(image) == 1, truth == 1
        cells = (found & lesion, found & ~lesion, ~found & lesion, ~found & ~lesion)
        rows.append([data.samples[index].id, data.samples[index].label, *(int(cell.sum()) for cell in cells)])
    return pd.DataFrame(rows, columns=["image", "label", "tp", "fp", "fn", "tn"])


def test_pictures_show_the_runs_side_by_side(phantoms: Path, bustseg: Bustseg) -> None:
    code, _, err = bustseg("fit", "--config", TINY, "--data.root", phantoms, "--trainer.max_epochs", 1)
    assert code == 0, err
    content = torch.load(next(Path("mlruns").rglob("best.ckpt")), weights_only=True)
    for name in ("a", "b"):
        checkpoint = Path(name) / "checkpoints" / "best.ckpt"
        checkpoint.parent.mkdir(parents=True)
        torch.save(content, checkpoint)
        content["state_dict"]["network.decoder.head.bias"] -= 0.1
        write(Path(name), table_of(checkpoint), data_digest=content["bustseg"]["data_digest"])
    files = write_files(compare(load_runs(["a", "b"])), Path("out"))
    assert [file.name for file in files] == [
        "compare.csv",
        "compare.tex",
        "compare.html",
        "comparison.png",
        "comparison.svg",
    ]
    with Image.open(files[3]) as picture:
        assert picture.width > 800
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    outline = (np.abs(colours - (np.array(to_rgb(TRUTH)) * 255)).max(1) < 40).sum()
    assert outline > 100, "the truth is outlined"
    assert "data:image/png;base64," in files[2].read_text()

    # where the data are others by now, the figures stand without pictures
    for name in ("a", "b"):
        (Path(name) / "tables" / "test.json").write_text(json.dumps(FACTS | {"data_digest": "another"}))
    code, _, err = bustseg("compare", "a", "b", "--out", "other")
    assert code == 0
    assert "are not the data that were tested" in err
    assert sorted(path.name for path in Path("other").iterdir()) == ["compare.csv", "compare.html", "compare.tex"]


@pytest.mark.slow
def test_from_training_to_comparison(phantoms: Path, bustseg: Bustseg) -> None:
    for seed in (0, 1):
        options = ("--data.root", phantoms, "--trainer.max_epochs", 1, "--seed_everything", seed)
        assert bustseg("fit", "--config", TINY, *options)[0] == 0
        assert bustseg("test", "--ckpt_path", "latest", *SHORT_TEST)[0] == 0
    code, _, err = bustseg("compare", "--experiment", "tiny", "--out", "out")
    assert code == 0, err
    assert {"compare.csv", "compare.html", "comparison.png"} <= {path.name for path in Path("out").iterdir()}
    rows = pd.read_csv("out/compare.csv")
    for run in finished(mlflow.MlflowClient(tracking_uri()), "tiny")[:2]:
        own = rows[(rows["run_id"] == run.info.run_id) & (rows["part"] == "all")]
        scores = scores_of_test(run)
        for _, row in own.iterrows():
            assert row["estimate"] == pytest.approx(scores[f"test/{row['measure']}"], abs=1e-4)
    assert load_run("latest").run_id == rows["run_id"].iloc[-1], "the run that was trained last"


def test_report_is_a_function_too(tmp_path: Path) -> None:
    _two(tmp_path)
    result = report(["a", "b"], metrics=["dice"], out=tmp_path / "out")
    assert isinstance(result.rows, pd.DataFrame)
    with pytest.raises(UserError, match="no run at c"):
        report(["a", "c"])
