"""The four conventions, by hand and against scikit-learn and MONAI."""

import monai
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score
from torch import Tensor

from bustseg.data.sources import LABELS
from bustseg.errors import UserError
from bustseg.metrics import CONVENTIONS, SegmentationMetrics, aggregate, overlap_scores

METRIC_NAMES = ("precision", "recall", "f1", "iou", "dice")
BENIGN, MALIGNANT, NORMAL, UNKNOWN = range(4)

# One image of 2 x 3 pixels per case, as rows of (mask, prediction).
PARTLY = ([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0])  # tp 2, fp 2, fn 1, tn 1
MISSED = ([0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0])  # tp 0, fp 0, fn 2, tn 4
QUIET = ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0])  # nothing there, nothing predicted
ALARM = ([0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0])  # nothing there, fp 3


def images(*cases: tuple[list[int], list[int]]) -> tuple[Tensor, Tensor]:
    """Logits (n, 1, 2, 3) of -1 and 1, and uint8 masks of that shape."""
    mask, prediction = torch.tensor(cases).unbind(1)
    return (2.0 * prediction - 1).view(-1, 1, 2, 3), mask.to(torch.uint8).view(-1, 1, 2, 3)


def scores(*cases: tuple[list[int], list[int]], label: list[int] | None = None) -> dict[str, float]:
    logits, mask = images(*cases)
    metric = SegmentationMetrics()
    metric.update(logits, mask, torch.tensor(label or [UNKNOWN] * len(cases)), torch.arange(len(cases)))
    return {name: value.item() for name, value in metric.compute().items()}


def test_label_codes() -> None:
    assert LABELS == ("benign", "malignant", "normal", "unknown")


def test_every_convention_by_hand() -> None:
    """PARTLY alone: precision 2/4, recall 2/3, Dice 4/7, IoU 2/5. Pooled: tp 2, fp 5, fn 3."""
    result = scores(PARTLY, MISSED, QUIET, ALARM, label=[BENIGN, MALIGNANT, NORMAL, NORMAL])
    assert result == pytest.approx(
        {
            "precision_paper": 0.125,
            "recall_paper": 0.16666666666666666,
            "f1_paper": 0.14285714285714285,
            "iou_paper": 0.1,
            "dice_paper": 0.14285714285714285,
            "precision_lesion": 0.25,
            "recall_lesion": 0.3333333333333333,
            "f1_lesion": 0.2857142857142857,
            "iou_lesion": 0.2,
            "dice_lesion": 0.2857142857142857,
            "precision_empty_one": 0.375,
            "recall_empty_one": 0.4166666666666667,
            "f1_empty_one": 0.39285714285714285,
            "iou_empty_one": 0.35,
            "dice_empty_one": 0.39285714285714285,
            "precision_pooled": 0.2857142857142857,
            "recall_pooled": 0.4,
            "f1_pooled": 0.3333333333333333,
            "iou_pooled": 0.2,
            "dice_pooled": 0.3333333333333333,
            "dice_lesion_benign": 0.5714285714285714,
            "iou_lesion_benign": 0.4,
            "dice_lesion_malignant": 0.0,
            "iou_lesion_malignant": 0.0,
            "missed_lesion_rate": 0.5,
            "false_positive_rate_normal": 0.5,
            "false_positive_pixels_normal": 0.25,
        },
        abs=1e-12,
    )


def test_a_perfect_model_under_every_convention() -> None:
    """62 lesions found exactly and 16 normals left alone: 62 / 78 is the ceiling of the paper's convention."""
    found = ([1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0])
    result = scores(*[found] * 62, *[QUIET] * 16)
    for name in METRIC_NAMES:
        assert result[f"{name}_paper"] == pytest.approx(0.7948717948717948)
        assert [result[f"{name}_{convention}"] for convention in CONVENTIONS[1:]] == [1, 1, 1]
    assert (result["missed_lesion_rate"], result["false_positive_rate_normal"]) == (0, 0)


def test_the_paper_s_all_positive_models() -> None:
    """Models 17, 18 and 20 of the paper: precision 0.0757, recall 0.7948, F1 0.1261, IoU 0.0757, Dice 0.1261.

    They predict a lesion everywhere. On 78 test images of which 62 have a lesion, with a the lesion's share of an
    image, precision and IoU are then a, recall 1 and Dice 2a / (1 + a), and all of them 0 on the 16 normals. The two
    published means fix the mean of a and, Dice being concave, its spread. On images of 100 x 100 pixels, 41 lesions of
    216 and 21 of 2390 pixels meet both: (41 * 216 + 21 * 2390) / 10000 / 78 = 0.0757.
    """
    mask = torch.zeros(78, 10_000, dtype=torch.uint8)
    for image, area in enumerate([216] * 41 + [2390] * 21):
        mask[image, :area] = 1
    mask = mask.view(78, 1, 100, 100)
    metric = SegmentationMetrics()
    for part in torch.arange(78).split(16):
        everywhere = torch.full((len(part), 1, 100, 100), 0.01)
        metric.update(everywhere, mask[part], torch.full_like(part, UNKNOWN), part)
    result = {name: round(value.item(), 4) for name, value in metric.compute().items()}
    published = {"precision": 0.0757, "recall": 0.7949, "f1": 0.1261, "iou": 0.0757, "dice": 0.1261}
    assert {name: result[f"{name}_paper"] for name in METRIC_NAMES} == published
    assert int(metric.compute()["recall_paper"] * 10_000) == 7948  # the paper cuts 62 / 78 = 0.79487 off
    assert result["recall_lesion"] == 1
    assert result["dice_lesion"] == 0.1586  # 0.1261 * 78 / 62
    assert result["dice_empty_one"] == result["dice_paper"]
    assert result["false_positive_rate_normal"] == result["false_positive_pixels_normal"] == 1


def test_undefined_scores_have_no_key() -> None:
    lesions, normals = scores(PARTLY, MISSED, label=[BENIGN, BENIGN]), scores(QUIET, ALARM, label=[NORMAL, NORMAL])
    assert not [name for name in lesions if "normal" in name or "malignant" in name]
    assert {"dice_lesion", "dice_pooled", "dice_lesion_benign", "missed_lesion_rate"} <= set(lesions)
    assert set(normals) == {
        f"{name}_{convention}" for name in METRIC_NAMES for convention in ("paper", "empty_one")
    } | {
        "false_positive_rate_normal",
        "false_positive_pixels_normal",
    }
    assert normals["dice_paper"] == 0
    assert normals["dice_empty_one"] == 0.5
    assert SegmentationMetrics().per_image()["tp"].shape == (0,)


def test_keys_do_not_depend_on_the_predictions() -> None:
    masks = [PARTLY[0], MISSED[0], QUIET[0]]
    label = [BENIGN, MALIGNANT, NORMAL]
    keys = {tuple(scores(*[(mask, [value] * 6) for mask in masks], label=label)) for value in (0, 1)}
    assert len(keys) == 1


def test_per_image_scores() -> None:
    result = overlap_scores(
        np.array([2, 0, 0, 0]), np.array([2, 0, 0, 3]), np.array([1, 2, 0, 0]), np.array([1, 4, 6, 3])
    )
    assert result["precision_paper"].tolist() == [0.5, 0, 0, 0]
    assert result["iou_paper"].tolist() == pytest.approx([0.4, 0, 0, 0])
    assert result["dice_empty_one"].tolist() == pytest.approx([4 / 7, 0, 1, 0])
    assert result["recall_lesion"].tolist() == pytest.approx([2 / 3, 0, np.nan, np.nan], nan_ok=True)
    assert len(result) == 15


def test_class_scores_need_a_lesion() -> None:
    """An image labelled benign whose mask is empty (lost in resizing, say) has no Dice under this convention."""
    counts = [torch.tensor(column) for column in ([4, 0], [0, 0], [0, 0], [2, 6])]
    assert aggregate(*counts, label=np.array([BENIGN, BENIGN]))["dice_lesion_benign"] == 1
    assert "dice_lesion_benign" not in aggregate(*counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threshold_is_strict(dtype: torch.dtype) -> None:
    """sigmoid(x) > t: the dead network that gives 0 everywhere predicts nothing at 0.5."""
    logits = torch.tensor([-0.01, 0.0, 0.01, torch.nan, torch.inf, -torch.inf], dtype=dtype).view(1, 1, 2, 3)
    mask = torch.zeros(1, 1, 2, 3, dtype=torch.uint8)
    one = torch.zeros(1, dtype=torch.int64)
    metric = SegmentationMetrics()
    metric.update(logits, mask, one, one)
    assert metric.per_image()["fp"].tolist() == [2]


@pytest.mark.parametrize(("threshold", "predicted"), [(0.0, 4), (0.3, 3), (0.5, 2), (0.9, 1), (1.0, 0)])
def test_threshold_is_a_probability(threshold: float, predicted: int) -> None:
    logits = torch.tensor([0.2, 0.4, 0.8, 0.95]).logit().view(1, 1, 2, 2)
    one = torch.zeros(1, dtype=torch.int64)
    metric = SegmentationMetrics(threshold)
    metric.update(logits, torch.zeros(1, 1, 2, 2), one, one)
    assert metric.per_image()["fp"].tolist() == [predicted]


def test_threshold_is_not_rounded_to_the_logits_type() -> None:
    """logit(0.3) = -0.8473; the bfloat16 next to it, -0.84766, is below, its neighbour -0.84375 above."""
    logits = torch.tensor([-0.84765625, -0.84375], dtype=torch.bfloat16).view(1, 1, 1, 2)
    one = torch.zeros(1, dtype=torch.int64)
    for threshold, predicted in ((0.3, 1), (0.2999, 2)):  # logit(0.2999) = -0.84777 rounds to -0.84766 too
        metric = SegmentationMetrics(threshold)
        metric.update(logits, torch.zeros(1, 1, 1, 2), one, one)
        assert metric.per_image()["fp"].tolist() == [predicted]


def test_bad_arguments_are_refused() -> None:
    logits, mask = images(PARTLY, MISSED)
    two = torch.arange(2)
    metric = SegmentationMetrics()
    for wrong in ((logits, mask[:, 0], two, two), (logits, mask, two[:1], two), (logits, mask, two, two[:1])):
        with pytest.raises(ValueError, match="shape"):
            metric.update(*wrong)
    with pytest.raises(UserError):
        SegmentationMetrics(1.5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_mask_types_and_memory_formats(dtype: torch.dtype) -> None:
    logits, mask = images(PARTLY, MISSED, QUIET, ALARM)
    four = torch.arange(4)
    metric = SegmentationMetrics()
    metric.update(logits.to(memory_format=torch.channels_last), mask.to(dtype), four, four)
    counts = metric.per_image()
    assert [counts[name].tolist() for name in ("tp", "fp", "fn", "tn")] == [
        [2, 0, 0, 0],
        [2, 0, 0, 3],
        [1, 2, 0, 0],
        [1, 4, 6, 3],
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_masks_of_other_values(dtype: torch.dtype) -> None:
    """255 for lesion, as in an image file; and a resampled float mask is cut at one half."""
    mask = torch.tensor([255, 0] if dtype == torch.uint8 else [0.6, 0.4], dtype=dtype).view(1, 1, 1, 2)
    one = torch.zeros(1, dtype=torch.int64)
    metric = SegmentationMetrics()
    metric.update(torch.ones(1, 1, 1, 2), mask, one, one)
    assert (metric.per_image()["tp"].item(), metric.per_image()["fp"].item()) == (1, 1)


def random_set(seed: int, n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 1, 9, 7, generator=generator)
    mask = (torch.rand(n, 1, 9, 7, generator=generator) < 0.3) & (torch.rand(n, 1, 1, 1, generator=generator) < 0.8)
    return logits, mask, torch.randint(0, 4, (n,), generator=generator)


def test_repeated_images_count_once() -> None:
    logits, mask, label = random_set(0)
    index = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    once, padded = SegmentationMetrics(), SegmentationMetrics()
    once.update(logits, mask, label, index)
    for part in ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [0, 3, 3, 11]):
        padded.update(logits[part], mask[part], label[part], index[part])
    assert once.compute() == padded.compute()
    counts = padded.per_image()
    assert counts["index"].tolist() == list(range(12))
    assert counts["label"].tolist() == label[index.argsort()].tolist()


def test_merged_processes_equal_one() -> None:
    """What a distributed sampler does to 12 images on two processes of 7: two images come twice."""
    logits, mask, label = random_set(2)
    whole, first, second = SegmentationMetrics(), SegmentationMetrics(), SegmentationMetrics()
    whole.update(logits, mask, label, torch.arange(12))
    for metric, part in ((first, [0, 2, 4, 6]), (first, [8, 10, 0]), (second, [1, 3, 5, 7]), (second, [9, 11, 1])):
        metric.update(logits[part], mask[part], label[part], torch.tensor(part))
    assert first.compute() != whole.compute()
    first.merge_state(second)
    assert first.compute() == whole.compute()


def test_reset_and_batch_value() -> None:
    logits, mask, label = random_set(3)
    metric = SegmentationMetrics()
    metric.update(logits, mask, label, torch.arange(12))
    metric.reset()
    half = torch.arange(6)
    batch = metric(logits[:6], mask[:6], label[:6], half)
    assert batch == metric.compute()
    assert metric.per_image()["index"].tolist() == half.tolist()


@st.composite
def masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and mask, bool of shape (n, 4, 5), full, empty or random each."""
    n = draw(st.integers(1, 5))
    kinds = draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=2 * n, max_size=2 * n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    drawn = rng.random((2 * n, 4, 5)) < np.array(kinds)[:, None, None]
    return drawn[:n], drawn[n:]


@settings(deadline=None, max_examples=60)
@given(masks())
def test_agrees_with_scikit_learn_and_monai(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, mask = pair
    n = len(mask)
    metric = SegmentationMetrics()
    metric.update(
        torch.from_numpy(prediction)[:, None].float() - 0.5,
        torch.from_numpy(mask)[:, None],
        torch.full((n,), UNKNOWN),
        torch.arange(n),
    )
    result = metric.compute()
    theirs = {
        "precision": precision_score,
        "recall": recall_score,
        "f1": f1_score,
        "dice": f1_score,
        "iou": jaccard_score,
    }
    lesion = mask.any((1, 2))
    for name, score in theirs.items():
        per_image = np.array(
            [score(truth.ravel(), ours.ravel(), zero_division=0) for truth, ours in zip(mask, prediction, strict=True)]
        )
        assert result[f"{name}_paper"] == pytest.approx(per_image.mean(), abs=1e-6)
        if lesion.any():
            assert result[f"{name}_lesion"] == pytest.approx(per_image[lesion].mean(), abs=1e-6)
            pooled = score(mask.ravel(), prediction.ravel(), zero_division=0)
            assert result[f"{name}_pooled"] == pytest.approx(pooled, abs=1e-6)
        else:
            assert f"{name}_lesion" not in result
    dice = monai.metrics.compute_dice(
        torch.from_numpy(prediction)[:, None], torch.from_numpy(mask)[:, None], ignore_empty=False
    )
    assert result["dice_empty_one"] == pytest.approx(dice.mean().item(), abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_update_does_not_wait_for_the_gpu() -> None:
    logits, mask, label = (part.cuda() for part in random_set(5))
    index = torch.arange(12, device="cuda")
    metric = SegmentationMetrics().cuda()
    metric.update(logits, mask, label, index)
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(logits, mask, label, index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric.compute()["dice_paper"].device.type == "cuda"
