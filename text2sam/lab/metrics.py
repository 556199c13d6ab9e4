"""Evaluation metrics and their bootstrap: pure functions of arrays.

A bootstrap over scenes or images counts a unit as often as it is drawn, so the functions take integer weights instead of
copies. scikit-learn computes AUROC, average precision and confusion matrices (but not COCO's interpolated average precision),
and pysodmetrics the S-, E- and weighted F-measure; where one is missing, these raise a MissingDependencyError.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from text2sam.errors import InputError, needed
from text2sam.lab.datasets.sample import IGNORE

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""0.50, 0.55, ..., 0.95, over which AP is averaged."""

MAP_THRESHOLDS = tuple(k / 100 for k in range(101))
"""0, 0.01, ..., 1: candidate thresholds of a similarity map."""

SOFT_SCORES = ("s_measure", "e_measure", "weighted_f", "mae")
"""Names of the values of :func:`soft_mask_scores`, in order."""

NAN = float("nan")


def scikit_learn() -> Any:
    """The module ``sklearn.metrics``."""
    return needed("sklearn.metrics", "scikit-learn", "measuring", "lab")


def sod_metrics() -> Any:
    """The module ``py_sod_metrics``."""
    return needed("py_sod_metrics", "pysodmetrics", "measuring camouflaged objects", "lab")


def match_detections(ious: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.bool_]:
    """Matches the detections of one query one to one with objects, as in COCO's evaluation.

    In order, each detection takes the unmatched object with the highest IoU (the first of equals), if that reaches the
    threshold.

    Args:
        ious: (D, G) in [0, 1], detections in descending order of score, by objects.
        threshold: smallest IoU of a match, in (0, 1].

    Returns:
        (D,) bool, whether each detection has a match.
    """
    hits = np.zeros(len(ious), bool)
    left = np.array(ious, np.float64)
    for d in range(len(left) if left.shape[1] else 0):
        best = int(left[d].argmax())
        if left[d, best] >= threshold:
            hits[d] = True
            left[:, best] = -1.0
    return hits


def average_precision(hits: ArrayLike, positives: float, weights: ArrayLike | None = None) -> float:
    """Average precision interpolated at COCO's 101 recalls 0, 0.01, ..., 1.

    The precision at a recall is the highest precision at this or any higher recall, and 0 if the recall is not reached.

    Args:
        hits: (D,) bool, whether each detection is correct, in descending order of score.
        positives: weighted number of objects.
        weights: (D,) non-negative integers; None counts every detection once.

    Returns:
        A value in [0, 1]; NaN without objects.
    """
    right = np.asarray(hits, bool)
    counts = np.ones(len(right), np.int64) if weights is None else np.asarray(weights, np.int64)
    if positives == 0:
        return NAN
    true, seen = np.cumsum(counts * right), np.cumsum(counts)
    precision = np.divide(true, seen, out=np.zeros(len(seen)), where=seen > 0)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(100 * true, positives * np.arange(101))  # in integers, so that 3 of 10 is a recall of 0.3
    return float(best_from_here[first[first < len(true)]].sum() / 101)


def auroc(
    positive: ArrayLike,
    negative: ArrayLike,
    positive_weights: ArrayLike | None = None,
    negative_weights: ArrayLike | None = None,
) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, with ties counted as one half.

    Args:
        positive, negative: (P,) and (N,) finite scores.
        positive_weights, negative_weights: (P,) and (N,) non-negative integers; None counts every score once.

    Returns:
        A value in [0, 1]; NaN if either side has no weight.
    """
    scores = np.concatenate([np.asarray(side, np.float64) for side in (positive, negative)])
    truth = np.arange(len(scores)) < len(scores) - np.size(negative)
    given = zip((positive, negative), (positive_weights, negative_weights), strict=True)
    weights = np.concatenate([np.ones(np.size(side)) if counts is None else counts for side, counts in given])
    if not weights[truth].sum() or not weights[~truth].sum():
        return NAN
    return float(scikit_learn().roc_auc_score(truth, scores, sample_weight=weights))


def class_average_precisions(scores: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Average precision of every class without interpolation, for multi-label recognition. Equal scores form one step.

    Args:
        scores: (N, T) finite, images by classes.
        truth: (N, T) bool, whether the image shows the class.

    Returns:
        (T,) float64 in [0, 1]; NaN for a class that no image shows.

    Raises:
        InputError: an argument has another shape or type.
    """
    s, t = np.asarray(scores, np.float64), np.asarray(truth)
    if s.ndim != 2 or t.shape != s.shape or t.dtype != np.bool_:
        raise InputError(f"scores and truth must both be (N, T), truth bool, not {s.shape} and {t.dtype} {t.shape}")
    precision = scikit_learn().average_precision_score
    return np.array([precision(*column) if column[0].any() else NAN for column in zip(t.T, s.T, strict=True)], np.float64)


def mean_average_precision(scores: ArrayLike, truth: ArrayLike) -> float:
    """Mean of :func:`class_average_precisions` over the classes that any image shows; NaN without any."""
    return float(row_means(class_average_precisions(scores, truth)[None])[0])


def bootstrap_weights(units: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """Number of times that each resample of a bootstrap draws each unit.

    Returns:
        (resamples, units) int64; every row sums to ``units``.
    """
    rng = np.random.default_rng(seed)
    drawn: NDArray[np.int64] = rng.multinomial(units, np.full(units, 1 / units), size=resamples)
    return drawn


def weighted_ratio(sums: ArrayLike, counts: ArrayLike, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) means over cases for R weightings (R, U) of the units, from each unit's sum and count (U,); NaN without a case."""
    return ratio(weights @ np.asarray(sums, np.float64), weights @ np.asarray(counts, np.float64))


def ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """``part / whole``, elementwise; NaN, without a warning, where ``whole`` is not positive."""
    a, b = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    shares: NDArray[np.float64] = np.divide(a, b, out=np.full(b.shape, np.nan), where=b > 0)
    return shares


def row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, K) -> (R,) means of the finite values; NaN without any."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1))


def interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Lower and upper end of the 95 % percentile interval of bootstrap samples (R,), without NaN; NaN if all are."""
    kept = samples[np.isfinite(samples)]
    if not len(kept):
        return NAN, NAN
    low, high = np.quantile(kept, [0.025, 0.975])
    return float(low), float(high)


def finite(value: float) -> float | None:
    """The number, or None if it is NaN or infinite, which JSON does not have."""
    return float(value) if math.isfinite(value) else None


def estimate(value: float, samples: NDArray[np.float64]) -> dict[str, float | None]:
    """A figure and its :func:`interval` to 4 decimals, JSON-ready: ``value``, ``low``, ``high``; None without a case."""
    numbers = zip(("value", "low", "high"), (float(value), *interval(samples)), strict=True)
    return {key: finite(round(number, 4)) for key, number in numbers}


class ConfusionMatrix:
    """Pixel counts by true and predicted class, from which the figures of semantic segmentation are computed.

    Args:
        classes: K, the number of classes.

    Attributes:
        counts: (K, K + 1) int64; ``counts[t, p]`` is the number of pixels of class t predicted as p. The last column counts
            undecided pixels, which are false negatives of t and false positives of no class.
    """

    def __init__(self, classes: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((classes, classes + 1), np.int64)

    def add(self, prediction: NDArray[Any], truth: NDArray[Any]) -> None:
        """Adds the pixels of one image.

        Args:
            prediction: (H, W) integers in [0, K), or 255 for undecided pixels.
            truth: (H, W) integers in [0, K), or 255 for ignored pixels.

        Raises:
            InputError: shapes differ, or a value is not a class.
        """
        k = len(self.counts)
        if prediction.shape != truth.shape:
            raise InputError(f"prediction and truth must have one shape, not {prediction.shape} and {truth.shape}")
        counted = truth != IGNORE
        t, p = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        for name, labels in (("truth", t), ("prediction", p[p != IGNORE])):
            wrong = labels[(labels < 0) | (labels >= k)]
            if wrong.size:
                raise InputError(f"{name} holds {int(wrong[0])}, which is none of the {k} classes 0 to {k - 1}")
        if len(t):
            matrix = scikit_learn().confusion_matrix(t, np.where(p == IGNORE, k, p), labels=np.arange(k + 1))
            self.counts += matrix[:k]

    def iou(self) -> NDArray[np.float64]:
        """(K,) float64 in [0, 1], IoU of each class; NaN for a class in neither truth nor prediction."""
        hits = np.diag(self.counts)
        return ratio(hits, self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0) - hits)

    def miou(self, background: int | None = None) -> float:
        """Mean of :meth:`iou` over the classes in truth or prediction, in [0, 1]; NaN without any.

        Args:
            background: a class to leave out of the mean; its pixels still count as errors of the classes predicted there.
        """
        return float(row_means(np.delete(self.iou(), [] if background is None else background)[None])[0])

    def mean_accuracy(self) -> float:
        """Mean recall over the classes in the truth."""
        return float(row_means(ratio(np.diag(self.counts), self.counts.sum(axis=1))[None])[0])

    def pixel_accuracy(self) -> float:
        """Share of correct pixels, in [0, 1]; NaN without pixels."""
        return float(ratio(np.diag(self.counts).sum(), self.counts.sum()))


@dataclass(frozen=True, eq=False)
class MapSample:
    """A similarity map compared with a mask."""

    name: str  # the class
    ious: NDArray[np.float64]  # (K,) in [0, 1], IoU of ``map >= threshold`` with the mask for K thresholds
    foreground: float  # mean of the map on the mask, in [0, 1]
    background: float  # the same off the mask; NaN for a full mask

    @property
    def contrast(self) -> float:
        """Mean foreground minus mean background, in [-1, 1]; NaN without background."""
        return self.foreground - self.background


def map_sample(
    name: str, values: NDArray[np.floating[Any]], mask: NDArray[np.bool_], thresholds: Sequence[float] = MAP_THRESHOLDS
) -> MapSample:
    """Compares a similarity map with a mask at every threshold.

    Args:
        name: the class.
        values: (H, W) in [0, 1], the min-max map over the image.
        mask: (H, W) bool, not empty.
        thresholds: K thresholds in [0, 1], ascending.

    Raises:
        InputError: an argument has another shape, type or range.
    """
    v, m = np.asarray(values, np.float64), np.asarray(mask)
    if v.ndim != 2 or m.shape != v.shape or m.dtype != np.bool_:
        raise InputError(f"values must be (H, W) and mask a bool array of that shape, not {v.shape} and {m.dtype} {m.shape}")
    if not m.any():
        raise InputError(f"the mask of {name!r} is empty; only classes that are in an image can be explained")
    if not (v.min() >= 0 and v.max() <= 1):
        raise InputError("values must be in [0, 1]; take the min-max of the map first (SimilarityMap.to_image)")
    reached = np.searchsorted(thresholds, v, "right")  # number of thresholds that each pixel reaches
    on, off = (np.bincount(reached[part], minlength=len(thresholds) + 1) for part in (m, ~m))
    hits, wrong = (np.cumsum(n[::-1])[::-1][1:] for n in (on, off))  # (K,) pixels at or above each threshold
    background = float(v[~m].mean()) if not m.all() else NAN
    return MapSample(name, hits / (on.sum() + wrong), float(v[m].mean()), background)


def soft_mask_scores(values: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compares a map with a mask by the metrics of salient and camouflaged object detection.

    They are the S-measure (Fan et al., ICCV 2017), the mean E-measure over 256 thresholds (Fan et al., IJCAI 2018), the
    weighted F-measure (Margolin et al., CVPR 2014) and the mean absolute error.

    Args:
        values: (H, W) in [0, 1].
        mask: (H, W) bool.

    Returns:
        (4,) float64 in [0, 1], in the order of :data:`SOFT_SCORES`; the S-measure is NaN if the centroid of the mask is in the
        last row or column.
    """
    kinds = sod_metrics()
    measures = (kinds.Smeasure(), kinds.Emeasure(), kinds.WeightedFmeasure(), kinds.MAE())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the S-measure takes means of empty quadrants
        for measure in measures:
            measure.step(np.asarray(values, np.float64), mask, normalize=False)
    s, e, f, error = (measure.get_results() for measure in measures)
    # the E-measure divides by H * W - 1 and can exceed 1
    return np.array([s["sm"], np.minimum(e["em"]["curve"], 1).mean(), f["wfm"], error["mae"]], np.float64)


def explainability(samples: Sequence[MapSample], thresholds: Sequence[float] = MAP_THRESHOLDS) -> dict[str, Any]:
    """mIoU at a searched threshold, and mSC (CLIP Surgery, arXiv 2304.05653, section 4.1).

    A *sample* is the map of one image for one class that it shows. The best threshold is the lowest of those with the highest
    mean IoU: over the data set, over the samples of a class, or for a single sample. mSC is the mean of the map on the mask
    minus its mean off the mask; samples whose mask covers the whole image are left out.

    Args:
        samples: at least one.
        thresholds: the thresholds of the samples.

    Returns:
        JSON-ready: ``samples`` and ``classes``, their numbers; in percent ``miou_dataset`` with its ``threshold``,
        ``miou_class`` with its ``thresholds`` by class, ``miou_image``, and ``msc`` (None if every mask is whole).

    Raises:
        InputError: there is no sample, or the samples have other thresholds.
    """
    if not samples or any(len(sample.ious) != len(thresholds) for sample in samples):
        raise InputError(f"there must be at least one sample, and {len(thresholds)} IoUs in each")
    figures = explainability_samples(samples, np.ones((1, len(samples)), np.int64))
    ious, names = np.stack([sample.ious for sample in samples]), np.array([sample.name for sample in samples])
    best = {str(name): thresholds[_lowest_best(ious[names == name].mean(axis=0))] for name in np.unique(names)}
    return {
        **{name: finite(float(value[0])) for name, value in figures.items()},
        "threshold": thresholds[_lowest_best(ious.mean(axis=0))],
        "thresholds": best,
        "samples": len(samples),
        "classes": len(best),
    }


def explainability_samples(samples: Sequence[MapSample], weights: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """The figures of :func:`explainability` for R weightings (R, S) of the S samples, non-negative integers.

    Returns:
        ``miou_dataset``, ``miou_class``, ``miou_image`` and ``msc``, (R,) each, in percent; NaN without a sample.
    """
    names = np.array([sample.name for sample in samples])
    ious = np.stack([sample.ious for sample in samples])  # (S, K)
    contrast = np.array([sample.contrast for sample in samples])
    counts = weights.astype(np.float64)
    of_class = [names == name for name in np.unique(names)]
    sums = {
        "miou_dataset": (counts @ ious).max(axis=1),
        "miou_class": np.sum([(counts[:, own] @ ious[own]).max(axis=1) for own in of_class], axis=0),
        "miou_image": counts @ ious.max(axis=1),
    }
    figures = {name: 100 * ratio(total, counts.sum(axis=1)) for name, total in sums.items()}
    return figures | {"msc": 100 * ratio(counts @ np.nan_to_num(contrast), counts @ np.isfinite(contrast).astype(np.float64))}


def _lowest_best(curve: NDArray[np.float64]) -> int:
    """Index of the first maximum, up to rounding."""
    return int((curve >= curve.max() - 1e-12).argmax())
