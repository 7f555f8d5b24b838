"""The built-in metrics, in the order in which they are shown."""

from __future__ import annotations

import numpy as np

from bustseg.metrics.registry import (
    Column,
    Columns,
    ImageMetric,
    Metric,
    OverlapMetric,
    RateMetric,
    register,
    register_columns,
)


def _has_lesion(columns: Columns) -> np.ndarray:
    return (columns["tp"] + columns["fn"]) > 0


def _squared_error(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    presence = np.asarray(columns["presence"], dtype=np.float64)
    known = ~np.isnan(presence)
    return np.where(known, (presence - _has_lesion(columns)) ** 2, 0), known.astype(np.float64)


def _missed(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    lesion = _has_lesion(columns)
    return lesion & (columns["tp"] == 0), lesion


def _false_alarms(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    normal = ~_has_lesion(columns)
    return normal & (columns["fp"] > 0), normal


def _false_pixels(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    normal, fp, tn = ~_has_lesion(columns), columns["fp"], columns["tn"]
    return np.where(normal, fp / np.maximum(fp + tn, 1), 0), normal


def _found(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    found = columns["lesions_found"]
    return found, found + columns["lesions_missed"]


def _spurious(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    spurious = columns["lesions_spurious"]
    return spurious, np.ones(len(spurious))


register(
    OverlapMetric(
        "precision",
        "precision",
        "share of the predicted pixels that are lesion",
        "TP / (TP + FP)",
        charted_in=("paper", "lesion"),
        terms=lambda tp, fp, fn, tn: (tp, tp + fp),
    ),
    OverlapMetric(
        "recall",
        "recall",
        "share of the lesion's pixels that are predicted",
        "TP / (TP + FN)",
        charted_in=("paper", "lesion"),
        terms=lambda tp, fp, fn, tn: (tp, tp + fn),
    ),
    OverlapMetric(
        "f1",
        "F1",
        "harmonic mean of precision and recall, which for two classes is Dice",
        "2 TP / (2 TP + FP + FN)",
        alias_of="dice",
        prominence="detail",
        terms=lambda tp, fp, fn, tn: (2 * tp, 2 * tp + fp + fn),
    ),
    OverlapMetric(
        "iou",
        "IoU",
        "intersection over union of prediction and lesion",
        "TP / (TP + FP + FN)",
        prominence="headline",
        by_class="detail",
        charted_in=("paper", "lesion"),
        terms=lambda tp, fp, fn, tn: (tp, tp + fp + fn),
    ),
    OverlapMetric(
        "dice",
        "Dice",
        "overlap of prediction and lesion, as a share of their mean area",
        "2 TP / (2 TP + FP + FN)",
        prominence="headline",
        by_class="usual",
        by_size="detail",
        terms=lambda tp, fp, fn, tn: (2 * tp, 2 * tp + fp + fn),
    ),
    ImageMetric(
        "hd95",
        "HD95",
        "95th percentile Hausdorff distance of the outlines in pixels of the evaluated image; a missed lesion counts "
        "the diagonal",
        "max of the two directed 95th percentiles of the distances between the outlines",
        higher_is_better=False,
        digits=2,
        unit="px",
        prominence="headline",
        by_class="detail",
        by_size="detail",
        measure=lambda image: image.distances["hd95"],
    ),
    ImageMetric(
        "assd",
        "ASSD",
        "average symmetric surface distance of the outlines in pixels of the evaluated image; a missed lesion counts "
        "the diagonal",
        "mean of the distances between the outlines, in both directions",
        higher_is_better=False,
        digits=2,
        unit="px",
        by_class="detail",
        by_size="detail",
        measure=lambda image: image.distances["assd"],
    ),
    ImageMetric(
        "hd95_relative",
        "HD95 / diagonal",
        "hd95 as a share of the image diagonal",
        "HD95 / diagonal",
        higher_is_better=False,
        prominence="detail",
        measure=lambda image: image.distances["hd95_relative"],
    ),
    ImageMetric(
        "assd_relative",
        "ASSD / diagonal",
        "assd as a share of the image diagonal",
        "ASSD / diagonal",
        higher_is_better=False,
        prominence="detail",
        measure=lambda image: image.distances["assd_relative"],
    ),
    RateMetric(
        "missed_lesion_rate",
        "missed lesions",
        "share of the lesion images on which no lesion pixel was predicted",
        "lesion images with TP = 0 / lesion images",
        higher_is_better=False,
        prominence="headline",
        images="lesion",
        terms=_missed,
    ),
    RateMetric(
        "false_positive_rate_normal",
        "false positives",
        "share of the images without a lesion on which anything was predicted",
        "normals with FP > 0 / normals",
        higher_is_better=False,
        prominence="headline",
        images="normal",
        terms=_false_alarms,
    ),
    RateMetric(
        "false_positive_pixels_normal",
        "false positive pixels",
        "mean share of the image that was predicted on images without a lesion",
        "mean of FP / (FP + TN) over normals",
        higher_is_better=False,
        prominence="detail",
        images="normal",
        terms=_false_pixels,
    ),
    RateMetric(
        "lesion_detection_rate",
        "lesions found",
        "share of the lesions (connected components, 8 neighbours) with at least one predicted pixel",
        "lesions found / lesions",
        images="lesion",
        columns=("lesions_found", "lesions_missed"),
        is_mean=False,
        terms=_found,
    ),
    RateMetric(
        "spurious_per_image",
        "spurious per image",
        "predicted components that touch no lesion, per image, images without a lesion included",
        "spurious components / images",
        higher_is_better=False,
        prominence="detail",
        columns=("lesions_spurious",),
        terms=_spurious,
    ),
    # for the whole image, see bustseg.presence
    Metric(
        "presence_auc",
        "AUC of presence",
        "how often the evidence of an image with a lesion is higher than that of one without",
        "area under the ROC curve of images by presence_evidence",
    ),
    Metric(
        "presence_ece",
        "ECE of presence",
        "expected calibration error of presence, which was fitted on the validation images",
        "mean of |presence - share of images with a lesion| over 10 bins, weighted by their images",
        higher_is_better=False,
    ),
    RateMetric(
        "presence_brier",
        "Brier score of presence",
        "mean squared error of presence, which was fitted on the validation images",
        "mean of (presence - 1 with a lesion, 0 without)^2",
        higher_is_better=False,
        columns=("presence", "tp", "fn"),
        terms=_squared_error,
    ),
    # from curves over thresholds, see bustseg.metrics.curves
    Metric("auc_pixel", "pixel AUC", "area under the ROC curve of all pixels of the subset", prominence="headline"),
    Metric("average_precision", "average precision", "precision of the pixels averaged over the steps in recall"),
    Metric(
        "ece",
        "ECE",
        "expected calibration error of the pixel probabilities",
        "mean of |probability - share of lesion pixels| over 15 bins, weighted by their pixels",
        higher_is_better=False,
    ),
    Metric(
        "best_threshold",
        "best threshold",
        "threshold with the highest mean Dice on lesion images; on a test set this is hindsight",
        higher_is_better=None,
        digits=2,
        prominence="detail",
    ),
    Metric(
        "dice_lesion_best_threshold",
        "Dice at the best threshold",
        "mean Dice on lesion images at best_threshold; on a test set this is hindsight",
        prominence="detail",
    ),
    Metric(
        "dice_lesion_val_threshold",
        "Dice at validation's threshold",
        "mean Dice on lesion images at the threshold that was best on validation",
        prominence="detail",
    ),
    # from heat maps, see bustseg.explain.gradcam
    Metric("cam_energy", "heat in the lesion", "share of the Grad-CAM heat that lies in the lesion"),
    Metric(
        "cam_energy_baseline",
        "heat in the lesion, constant map",
        "the lesion's share of the image, which is what uniform heat would score",
        higher_is_better=None,
        prominence="detail",
    ),
    Metric("cam_pointing_hit", "hottest pixel in the lesion", "share of the lesion images whose hottest pixel hits"),
    # of training and test
    Metric("loss", "loss", "the loss that is trained, mean over images", higher_is_better=False, prominence="headline"),
    Metric("images_per_second", "images per second", "throughput of a training epoch", digits=1),
    Metric("epoch_seconds", "seconds per epoch", "with its validation", higher_is_better=False, digits=1, unit="s"),
    Metric(
        "peak_memory_gib",
        "GPU memory",
        "peak memory of tensors on the GPU since the fit began",
        higher_is_better=False,
        digits=2,
        unit="GiB",
    ),
    *(
        Metric(name, title, description, higher_is_better=False, digits=1, unit="s", prominence="detail")
        for name, title, description in (
            ("seconds", "time of the test", "the whole test"),
            ("seconds_forward", "time of the scoring", "scoring the test images"),
            ("seconds_other_subsets", "time of other subsets", "the pass over train and val"),
            ("seconds_report", "time of the report", "tables, curves and pictures"),
        )
    ),
)

register_columns(
    Column(
        "mean_probability",
        "mean predicted probability over the predicted pixels; empty if there are none",
        lambda image: (
            float(image.probability[image.prediction].mean(dtype=np.float64)) if image.prediction.any() else np.nan
        ),
    ),
    Column(
        "max_probability", "highest predicted probability in the image", lambda image: float(image.probability.max())
    ),
    Column(
        "presence_evidence",
        "evidence of a lesion: mean of the highest logits, of 0.2 % of the image's pixels",
        lambda image: image.evidence,
    ),
    Column(
        "lesions_found",
        "connected components (8 neighbours) of the mask with at least one predicted pixel",
        lambda image: image.components.found,
        whole=True,
    ),
    Column(
        "lesions_missed",
        "components of the mask without any predicted pixel",
        lambda image: image.components.missed,
        whole=True,
    ),
    Column(
        "lesions_spurious",
        "components of the prediction that touch no lesion",
        lambda image: image.components.spurious,
        whole=True,
    ),
)
