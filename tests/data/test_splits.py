from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bustseg.data.sources import BUSI, Sample
from bustseg.data.splits import (
    curated_split,
    grouped_split,
    kfold,
    leakage,
    left_out,
    lesion_split,
    make_split,
    merge_groups,
    paper_split,
    read_split,
    split_digest,
    write_split,
)
from bustseg.errors import DataError
from tests.data.speckle import busi_like, speckle_image, write_sample


def counts(split: pd.DataFrame) -> dict[str, dict[str, int]]:
    table = pd.crosstab(split["subset"], split["label"])
    return {str(subset): {str(label): int(n) for label, n in row.items() if n} for subset, row in table.iterrows()}


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_paper_split_has_the_papers_counts(seed):
    split = paper_split(busi_like(), seed)
    assert counts(split) == {
        "train": {"benign": 351, "malignant": 169, "normal": 104},
        "val": {"benign": 44, "malignant": 21, "normal": 13},
        "test": {"benign": 42, "malignant": 20, "normal": 16},
    }
    assert split["image"].is_unique


def test_paper_split_scales_and_keeps_every_class_in_every_subset():
    split = paper_split(busi_like(12, 6, 4), 3)
    assert len(split) == 22
    for subset in ("train", "val", "test"):
        assert set(split.loc[split["subset"] == subset, "label"]) == {"benign", "malignant", "normal"}


def test_a_split_depends_on_the_seed_and_not_on_the_order():
    samples = busi_like()
    assert split_digest(paper_split(samples, 0)) == split_digest(paper_split(samples[::-1], 0))
    assert split_digest(paper_split(samples, 0)) != split_digest(paper_split(samples, 1))


def test_digest_is_of_the_assignment_only():
    split = paper_split(busi_like(20, 10, 5), 0)
    assert split_digest(split) == split_digest(split.sample(frac=1, random_state=1).drop(columns="label"))
    swapped = split.assign(subset=np.roll(split["subset"], 1))
    assert split_digest(split) != split_digest(swapped)
    assert len(split_digest(split)) == 16


def test_lesion_split():
    split = lesion_split(busi_like(), 0)
    assert counts(split) == {
        "train": {"benign": 349, "malignant": 168},
        "val": {"benign": 44, "malignant": 21},
        "test": {"benign": 44, "malignant": 21},
    }


@pytest.fixture
def no_masks(monkeypatch):
    """Lesion sizes by sample number, as there are no files."""
    monkeypatch.setattr("bustseg.data.splits._lesion_share", lambda sample: int(sample.id.split("(")[1][:-1]) / 1000)


def chains(samples: list[Sample], sizes: list[int]) -> dict[str, str]:
    rng = np.random.default_rng(5)
    order = iter(rng.permutation(len(samples)))
    return {samples[next(order)].id: f"g{number}" for number, size in enumerate(sizes) for _ in range(size)}


@pytest.mark.parametrize("seed", range(5))
def test_grouped_split_keeps_groups_together_and_the_counts(no_masks, seed):
    samples = busi_like()
    groups = chains(samples, [9, 7, 5, 5, 4, 3, 3, 3] + [2] * 80)
    split = grouped_split(samples, groups, seed)
    assert split.groupby("group")["subset"].nunique().max() == 1
    assert counts(split)["test"] == {"benign": 42, "malignant": 20, "normal": 16}
    assert counts(split)["val"] == {"benign": 44, "malignant": 21, "normal": 13}
    size = split["image"].str.extract(r"\((\d+)\)")[0].astype(int)
    benign = split["label"] == "benign"
    small = size[benign & (split["subset"] == "test")] <= 437 // 3
    assert 11 <= small.sum() <= 17  # a third of 42, give or take what groups force
    assert leakage(split, groups).leaked == {"val": 0, "test": 0}


def test_grouped_split_spreads_groups_over_all_subsets(no_masks):
    samples = busi_like()
    groups = chains(samples, [2] * 120)
    split = grouped_split(samples, groups, 0)
    grouped = split[split["image"].isin(groups)]
    assert grouped["subset"].value_counts()["test"] == pytest.approx(24, abs=12)


def test_a_group_too_large_for_its_share_still_stays_whole(no_masks):
    samples = busi_like(9, 6, 3)
    groups = {sample.id: "one" for sample in samples if sample.label == "benign"}
    split = grouped_split(samples, groups, 0)
    assert len(set(split.loc[split["label"] == "benign", "subset"])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_few_large_groups_still_reach_every_subset(no_masks, seed):
    samples = [Sample(f"benign ({n})", Path(f"{n}.png"), (), "benign", group=str(n // 4)) for n in range(20)]
    for split in (grouped_split(samples, seed=seed), make_split(samples, "kfold", seed, folds=5, fold=1, groups={})):
        assert set(split["subset"]) == {"train", "val", "test"}
        assert not any(leakage(split, merge_groups(samples)).leaked.values())


def test_merge_groups_joins_patients_and_duplicates():
    samples = [
        Sample(str(n), Path("x.png"), (), "benign", group) for n, group in enumerate(["p", "p", None, "q", None])
    ]
    merged = merge_groups(samples, {"1": "d", "2": "d", "4": "alone"})
    assert merged == {"0": "0", "1": "0", "2": "0"}


@pytest.mark.parametrize("scheme", ["paper", "lesion", "grouped"])
def test_kfold_tests_every_image_once(no_masks, scheme):
    samples = busi_like(60, 30, 20)
    groups = chains(samples, [4, 3] + [2] * 10)
    split = kfold(samples, 0, 5, scheme, groups)
    tested = split[split["subset"] == "test"]
    assert tested["image"].is_unique
    assert len(tested) == (90 if scheme == "lesion" else 110)
    for _, part in split.groupby("fold"):
        assert part["image"].is_unique
        assert set(counts(part)["val"]) == set(part["label"])
        if scheme == "grouped":
            assert part.groupby("group")["subset"].nunique().max() == 1
    assert (tested[tested["label"] == "benign"].groupby("fold").size() == 12).all()


def test_make_split_selects_a_fold(no_masks):
    samples = busi_like(20, 10, 10)
    part = make_split(samples, "kfold", 0, fold=2, groups={})
    assert part["image"].is_unique
    assert (part["fold"] == 2).all()
    with pytest.raises(DataError, match="no fold 5"):
        make_split(samples, "kfold", 0, fold=5, groups={})


def test_each_device_is_tested_by_a_model_that_has_not_seen_it_or_its_patients(no_masks):
    devices = ["AB"[(number // 2 + (number % 10 == 0)) % 2] for number in range(320)]
    samples = [
        replace(sample, columns={"device": device}, group=f"patient {number // 2}")
        for number, (sample, device) in enumerate(zip(busi_like(180, 80, 60), devices, strict=True))
    ]
    known = {sample.id: sample for sample in samples}
    split = left_out(samples, "device", 0, {})
    assert split.groupby("fold")["left_out"].unique().map(list).tolist() == [["A"], ["B"]]
    for _, fold in split.groupby("fold"):
        value = fold["left_out"].iloc[0]
        tested = set(fold.loc[fold["subset"] == "test", "image"])
        assert tested == {sample.id for sample in samples if sample.columns.get("device") == value}
        others = fold[fold["subset"] != "test"]
        assert not {known[name].group for name in tested} & {known[name].group for name in others["image"]}
        by_group = others.assign(patient=[known[name].group for name in others["image"]])
        assert by_group.groupby("patient")["subset"].nunique().max() == 1
        assert set(others["subset"]) == {"train", "val"}
        assert set(fold.loc[fold["subset"] == "val", "label"]) == {"benign", "malignant", "normal"}
    selected = make_split(samples, "left_out", 0, fold=1, by="device", groups={})
    assert split_digest(selected) == split_digest(split[split["fold"] == 1])


def test_an_image_without_a_value_only_trains(no_masks):
    columns = ({"device": "AB"[number % 2]} if number % 5 else {} for number in range(780))
    samples = [replace(sample, columns=own) for sample, own in zip(busi_like(), columns, strict=True)]
    without = {sample.id for sample in samples if not sample.columns}
    split = left_out(samples, "device", 0, {})
    assert without <= set(split.loc[split["fold"] == 0, "image"])
    assert not without & set(split.loc[split["subset"] == "test", "image"])


def test_what_cannot_be_left_out_names_the_columns():
    samples = [replace(sample, columns={"device": "A"}) for sample in busi_like(4, 4, 4)]
    with pytest.raises(DataError, match=r"device is 'A' for all images.*the columns are device, label, source"):
        left_out(samples, "device")
    with pytest.raises(DataError, match="no image has a column 'scanner'"):
        left_out(samples, "scanner")
    with pytest.raises(DataError, match="no fold 3: choose 0 to 2"):
        make_split(samples, "left_out", fold=3, by="label", groups={})


def test_make_split_names_the_schemes_it_knows():
    with pytest.raises(DataError, match="unknown split scheme 'papper': use paper, lesion"):
        make_split(busi_like(), "papper", 0)
    with pytest.raises(DataError, match="at least 3"):
        make_split(busi_like(1, 1, 0), "paper", 0)


def test_a_written_split_reads_back(tmp_path):
    samples = busi_like(20, 10, 5)
    split = paper_split(samples, 0)
    digest = write_split(split, tmp_path / "new" / "split.csv")
    path = tmp_path / "new" / "split.csv"
    for again in (read_split(path, samples), make_split(samples, str(path))):
        assert split_digest(again) == digest
        assert counts(again) == counts(split)


def test_folds_are_written_and_read_back(tmp_path, no_masks):
    samples = busi_like(20, 10, 10)
    split = kfold(samples, 0, 4, "paper")
    digest = write_split(split, tmp_path / "folds.csv")
    assert split_digest(read_split(tmp_path / "folds.csv", samples)) == digest
    third = make_split(samples, str(tmp_path / "folds.csv"), fold=3)
    assert set(third["fold"]) == {3}
    assert third["image"].is_unique
    with pytest.raises(DataError, match="has 4 folds: choose"):
        make_split(samples, str(tmp_path / "folds.csv"))
    with pytest.raises(DataError, match="no fold 4: choose one of 0, 1, 2, 3"):
        read_split(tmp_path / "folds.csv", samples, fold=4)


def test_a_file_of_folds_alone_takes_the_next_fold_for_validation(tmp_path):
    samples = busi_like(3, 3, 3)
    rows = "".join(f"{sample.id},{number % 3}\n" for number, sample in enumerate(samples))
    (tmp_path / "folds.csv").write_text("image,fold\n" + rows)
    split = read_split(tmp_path / "folds.csv", samples, fold=2)
    assert split["subset"].tolist() == ["val", "train", "test"] * 3


@pytest.mark.parametrize(
    "name",
    ["benign (2)", "benign (2).png", "benign/benign (2).png", "./benign/benign (2).png", "benign\\benign (2).png"],
)
def test_images_are_found_by_id_file_name_or_path(tmp_path, name):
    (tmp_path / "s.csv").write_text(f"image,subset\n{name},test\n")
    assert read_split(tmp_path / "s.csv", busi_like())["image"].tolist() == ["benign (2)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,subset\nbenign (500),train\n", r"'benign \(500\)'.*did you mean 'benign \("),
        ("image,subset\nelephant.png,train\n", "split of another data set"),
        ("image,subset\nbenign (1),tain\n", "'tain': did you mean 'train'"),
        ("image,subset\nbenign (1),\n", "subset '': use train, val, test"),
        ("image,subset\nbenign (1),val\nbenign (1).png,train\n", r"names 'benign \(1\)' twice"),
        ("file,part\nbenign (1),val\n", "columns file, part: it needs image and subset"),
        ("image,subset\n", "no rows"),
        ("image,subset,fold\nbenign (1),val,x\n", "not a whole number"),
        ("", "cannot read split"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_split(tmp_path / "bad.csv", busi_like())
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_write_one(tmp_path):
    with pytest.raises(DataError, match="bustseg data split"):
        make_split(busi_like(), str(tmp_path / "none.csv"))


def test_curated_split_keeps_the_listed(tmp_path):
    (tmp_path / "list.csv").write_text("class;id\n" + "".join(f"benign;{n}\n" for n in range(1, 21)) + "normal;3\n")
    split = curated_split(busi_like(), tmp_path / "list.csv", 0)
    assert len(split) == 21
    assert counts(split)["test"]["benign"] == 2
    with pytest.raises(DataError, match="zenodo"):
        make_split(busi_like(), "curated", 0)
    assert len(make_split(busi_like(), "curated", 0, curated_list=tmp_path / "list.csv")) == 21


def test_leakage_counts_what_was_trained_on():
    split = pd.DataFrame({"image": list("abcdef"), "subset": ["train", "train", "val", "test", "test", "test"]})
    found = leakage(split, {"a": "1", "c": "1", "d": "1", "e": "2", "f": "2"})
    assert found.leaked == {"val": 1, "test": 1}
    assert found.share == {"val": 1.0, "test": pytest.approx(1 / 3)}
    assert found.cases[1] == {"image": "d", "subset": "test", "train": ["a"], "fold": None}


def test_lesion_size_is_read_from_the_masks(tmp_path):
    for number in range(1, 31):
        image, mask = speckle_image(number, (48, 64))
        mask[:] = False
        mask[: number + 2, : number + 2] = True
        write_sample(tmp_path, "benign", number, image, mask)
    samples = BUSI().read(tmp_path)
    split = grouped_split(samples, {}, 0)
    tested = sorted(int(name[8:-1]) for name in split.loc[split["subset"] == "test", "image"])
    assert [sum(low < n <= low + 10 for n in tested) for low in (0, 10, 20)] == [1, 1, 1]
