"""Figures of merit and their bootstrap: pure functions of arrays, none of which sees a model.

A bootstrap that draws whole scenes needs every figure under whole-number weights: a scene drawn twice counts
twice. So each function here takes weights instead of copies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from text2sam.errors import InputError

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""0.50, 0.55, ..., 0.95: AP is the mean over these."""


def match_detections(ious: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.bool_]:
    """Which detections of one query are right, matched one to one as in COCO's evaluation.

    From the first row on, each detection takes the object with the highest IoU among those not yet taken; the first
    of equals. It is right when that IoU reaches the threshold.

    Args:
        ious: (D, G) in [0, 1], detections by objects, detections of the highest score first.
        threshold: IoU from which on a match counts, in (0, 1].

    Returns:
        (D,) bool.

    Raises:
        InputError: ``ious`` has not two axes, or the threshold is not in (0, 1].
    """
    if ious.ndim != 2:
        raise InputError(f"ious must have two axes, detections and objects, not shape {ious.shape}")
    if not 0 < threshold <= 1:
        raise InputError(f"threshold must be in (0, 1], not {threshold!r}")
    hits = np.zeros(len(ious), bool)
    left = np.array(ious, np.float64)
    if not left.shape[1]:
        return hits
    for d in range(len(left)):
        best = int(left[d].argmax())
        if left[d, best] >= threshold:
            hits[d] = True
            left[:, best] = -1.0
    return hits


def average_precision(hits: ArrayLike, positives: float, weights: ArrayLike | None = None) -> float:
    """Average precision by COCO's interpolation at 101 recalls.

    At each recall 0, 0.01, ..., 1 the precision is the best one reached at that recall or a higher one, 0 where the
    recall is never reached; the result is the mean of the 101. Recalls are compared in whole numbers, so that
    3 of 10 objects do reach a recall of 0.3.

    Args:
        hits: (D,) bool, whether each detection is right, the highest score first.
        positives: number of objects, counted with their weights.
        weights: (D,) whole numbers of at least 0, how often each detection counts; None is once each.

    Returns:
        In [0, 1]; NaN where there are no objects.

    Raises:
        InputError: an argument is not of the kind above.
    """
    right = np.asarray(hits, bool)
    if right.ndim != 1:
        raise InputError(f"hits must have one axis, not shape {right.shape}")
    if positives < 0:
        raise InputError(f"positives must be at least 0, not {positives!r}")
    counts = _weights("weights", weights, right)
    if positives == 0:
        return float("nan")
    true = np.cumsum(counts * right)
    seen = np.cumsum(counts)
    precision = np.divide(true, seen, out=np.zeros(len(seen)), where=seen > 0)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(100 * true, positives * np.arange(101))
    return float(best_from_here[first[first < len(true)]].sum() / 101)


def auroc(
    positive: ArrayLike,
    negative: ArrayLike,
    positive_weights: ArrayLike | None = None,
    negative_weights: ArrayLike | None = None,
) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half.

    Args:
        positive, negative: (P,) and (N,) scores.
        positive_weights, negative_weights: (P,) and (N,), how often each counts; None is once each.

    Returns:
        In [0, 1]; NaN where either side is empty or weighs nothing.

    Raises:
        InputError: scores have not one axis or are not finite, or weights do not belong to them.
    """
    p, n = (np.asarray(scores, np.float64) for scores in (positive, negative))
    if p.ndim != 1 or n.ndim != 1 or not np.isfinite(p).all() or not np.isfinite(n).all():
        raise InputError("positive and negative must each be finite scores along one axis")
    wp, wn = _weights("positive_weights", positive_weights, p), _weights("negative_weights", negative_weights, n)
    if not wp.sum() or not wn.sum():
        return float("nan")
    values, place = np.unique(np.concatenate([p, n]), return_inverse=True)
    place = place.reshape(-1)
    below = np.bincount(place[: len(p)], wp, len(values)), np.bincount(place[len(p) :], wn, len(values))
    wins = (below[0] * (np.cumsum(below[1]) - 0.5 * below[1])).sum()
    return float(wins / (wp.sum() * wn.sum()))


def bootstrap_weights(units: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """How often each unit is drawn in each resample of a bootstrap: ``units`` draws with replacement.

    Returns:
        (resamples, units) int64, every row adds up to ``units``.

    Raises:
        InputError: a number is below 1.
    """
    if units < 1 or resamples < 1:
        raise InputError(f"units and resamples must be at least 1, not {units!r} and {resamples!r}")
    rng = np.random.default_rng(seed)
    drawn: NDArray[np.int64] = rng.multinomial(units, np.full(units, 1 / units), size=resamples)
    return drawn


def weighted_ratio(sums: ArrayLike, counts: ArrayLike, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """A mean over cases from each unit's sum and number of cases, under many weightings of the units at once.

    Args:
        sums: (U,) sum of the figure over the cases of each unit.
        counts: (U,) number of cases of each unit.
        weights: (R, U).

    Returns:
        (R,) means; NaN where no case is left.
    """
    total, number = (weights @ np.asarray(x, np.float64) for x in (sums, counts))
    means: NDArray[np.float64] = np.divide(total, number, out=np.full(len(weights), np.nan), where=number > 0)
    return means


def interval(samples: NDArray[np.float64], share: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a bootstrap's samples; NaN ones, which had no case, are left out.

    Args:
        samples: (R,).
        share: how much of them the interval holds, in (0, 1).

    Returns:
        Lower and upper end; both NaN where no sample is left.

    Raises:
        InputError: ``share`` is not in (0, 1).
    """
    if not 0 < share < 1:
        raise InputError(f"share must be in (0, 1), not {share!r}")
    kept = samples[np.isfinite(samples)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _weights(name: str, weights: ArrayLike | None, like: NDArray[Any]) -> NDArray[np.int64]:
    if weights is None:
        return np.ones(len(like), np.int64)
    w = np.asarray(weights)
    if w.shape != like.shape or not (np.issubdtype(w.dtype, np.integer) or not w.size) or (w < 0).any():
        raise InputError(f"{name} must be whole numbers of at least 0 of shape {like.shape}, not {w.dtype} {w.shape}")
    return w.astype(np.int64)
