"""Figures of merit and their bootstrap: pure functions of arrays, none of which sees a model.

A bootstrap that draws whole scenes needs every figure under whole-number weights: a scene drawn twice counts
twice. So each function here takes weights instead of copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from text2sam.errors import InputError

Average = Literal["samples", "classes"]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""0.50, 0.55, ..., 0.95: AP is the mean over these."""

MAP_THRESHOLDS = tuple(k / 100 for k in range(101))
"""0, 0.01, ..., 1: among these the threshold of a similarity map is searched."""


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


def ranked_average_precision(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Average precision without interpolation: the sum over distinct scores of precision times the gain in recall.

    The measure of multi-label recognition, and scikit-learn's ``average_precision_score``; COCO's, which interpolates, is
    :func:`average_precision`. Equal scores are one step: what stands first among them changes nothing.

    Args:
        scores: (N,) finite, the higher the surer.
        truth: (N,) bool, whether the class is there.
        weights: (N,) whole numbers of at least 0, how often each counts; None is once each.

    Returns:
        In [0, 1]; NaN where nothing is true.

    Raises:
        InputError: an argument is not of the kind above.
    """
    s, t = np.asarray(scores, np.float64), np.asarray(truth)
    if s.ndim != 1 or not np.isfinite(s).all():
        raise InputError(f"scores must be finite numbers along one axis, not of shape {s.shape}")
    if t.shape != s.shape or (t.dtype != np.bool_ and t.size):
        raise InputError(f"truth must be bool of shape {s.shape}, not {t.dtype} {t.shape}")
    counts = _weights("weights", weights, s)
    order = np.argsort(-s, kind="stable")
    s, right, counts = s[order], (t.astype(np.int64) * counts)[order], counts[order]
    steps = np.append(np.flatnonzero(np.diff(s)), len(s) - 1) if len(s) else np.zeros(0, np.int64)
    true, seen = np.cumsum(right)[steps], np.cumsum(counts)[steps]
    if not len(true) or not true[-1]:
        return float("nan")
    gain = np.diff(true, prepend=0)
    precision = np.divide(true, seen, out=np.zeros(len(seen)), where=seen > 0)
    return float((gain * precision).sum() / true[-1])


def class_average_precisions(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> NDArray[np.float64]:
    """:func:`ranked_average_precision` of every class.

    Args:
        scores: (N, T) finite, images by classes.
        truth: (N, T) bool.
        weights: (N,) how often each image counts; None is once each.

    Returns:
        (T,) float64 in [0, 1]; NaN for a class that no image shows.

    Raises:
        InputError: an argument is not of the kind above.
    """
    s, t = np.asarray(scores, np.float64), np.asarray(truth)
    if s.ndim != 2 or t.shape != s.shape:
        raise InputError(f"scores and truth must both be (N, T), images by classes, not {s.shape} and {t.shape}")
    return np.array([ranked_average_precision(*column, weights) for column in zip(s.T, t.T, strict=True)], np.float64)


def mean_average_precision(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean over classes of :func:`class_average_precisions`; classes that no image shows are left out.

    Returns:
        In [0, 1]; NaN where no class is left.

    Raises:
        InputError: an argument is not of the kind of :func:`class_average_precisions`.
    """
    return _mean(class_average_precisions(scores, truth, weights))


class ConfusionMatrix:
    """Pixels by true and by predicted class: all figures of semantic segmentation come from these counts alone.

    Args:
        classes: K, or the K names, in the order of their indices.
        counts: (K, K + 1) int64 to go on from; None is none yet.

    Attributes:
        names: the K names; their indices as strings where only K was given.
        counts: (K, K + 1) int64, ``counts[t, p]`` pixels of class t predicted as p. The last column is what a prediction
            left undecided: missed for t, wrong for nobody.

    Raises:
        InputError: there is no class, a name comes twice, or ``counts`` is of another kind.
    """

    def __init__(self, classes: int | Sequence[str], counts: NDArray[np.int64] | None = None) -> None:
        numbered = isinstance(classes, (int, np.integer)) and not isinstance(classes, bool)
        names = tuple(map(str, range(int(classes)))) if numbered else tuple(classes)  # type: ignore[arg-type]
        if not names or isinstance(classes, str) or len(set(names)) < len(names):
            raise InputError(f"classes must be a number of at least 1, or as many different names, not {classes!r}")
        self.names: tuple[str, ...] = names
        shape = (len(names), len(names) + 1)
        given = np.zeros(shape, np.int64) if counts is None else np.asarray(counts)
        if given.shape != shape or not np.issubdtype(given.dtype, np.integer) or (given < 0).any():
            raise InputError(f"counts must be whole numbers of at least 0 of shape {shape}, not {given.dtype} {given.shape}")
        self.counts: NDArray[np.int64] = given.astype(np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, prediction: NDArray[Any], truth: NDArray[Any], ignore: int | None = 255) -> None:
        """Counts the pixels of one image.

        Args:
            prediction: (H, W) integers in [0, K), or ``ignore`` where it is undecided.
            truth: (H, W) integers in [0, K), or ``ignore`` for pixels that do not count.
            ignore: a label outside [0, K); None where there is none.

        Raises:
            InputError: shapes differ, or a value that counts is no class.
        """
        k = len(self)
        if ignore is not None and 0 <= ignore < k:
            raise InputError(f"ignore must not be one of the {k} classes, but is {ignore!r}")
        for name, labels in (("prediction", prediction), ("truth", truth)):
            array = isinstance(labels, np.ndarray) and labels.ndim == 2
            if not array or not np.issubdtype(labels.dtype, np.integer):
                what = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
                raise InputError(f"{name} must be an array (H, W) of integers, not {what}")
        if prediction.shape != truth.shape:
            raise InputError(f"prediction and truth must have one shape, not {prediction.shape} and {truth.shape}")
        t: NDArray[np.int64] = truth.ravel().astype(np.int64)
        p: NDArray[np.int64] = prediction.ravel().astype(np.int64)
        if ignore is not None:
            counted = t != ignore
            t, p = t[counted], p[counted]
        undecided = np.zeros(p.shape, bool) if ignore is None else p == ignore
        for name, labels in (("truth", t), ("prediction", p[~undecided])):
            bad = labels[(labels < 0) | (labels >= k)]
            if bad.size:
                raise InputError(f"{name} holds {int(bad[0])}, which is none of the {k} classes 0 to {k - 1}")
        p = np.where(undecided, k, p)
        self.counts += np.bincount(t * (k + 1) + p, minlength=k * (k + 1)).reshape(k, k + 1)

    def merge(self, other: ConfusionMatrix) -> None:
        """Adds the counts of another matrix of the same classes.

        Raises:
            InputError: its classes are others.
        """
        if other.names != self.names:
            raise InputError(f"only matrices of the same classes can be merged, not {self.names} and {other.names}")
        self.counts += other.counts

    def iou(self) -> NDArray[np.float64]:
        """(K,) float64 in [0, 1], true positives over the union of true and predicted pixels; NaN where both are none.

        A class that is predicted and never true has 0, and counts in :meth:`miou`.
        """
        hits = np.diag(self.counts)
        union = self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0) - hits
        return _share(hits, union)

    def recall(self) -> NDArray[np.float64]:
        """(K,) float64 in [0, 1], share of each class's pixels that are predicted as it; NaN where it is never true."""
        return _share(np.diag(self.counts), self.counts.sum(axis=1))

    def miou(self, background: int | str | None = None) -> float:
        """Mean of :meth:`iou` over classes; those in neither truth nor prediction are left out.

        Args:
            background: index or name of a class to leave out of the mean. Its pixels still count: predicting another class
                there is that class's error. None counts every class. (To leave the *pixels* out, make them ``ignore``
                in the truth.)

        Returns:
            In [0, 1]; NaN where no class is left.

        Raises:
            InputError: there is no such class.
        """
        return _mean(np.delete(self.iou(), self._index(background)))

    def mean_accuracy(self, background: int | str | None = None) -> float:
        """Mean of :meth:`recall` over classes that are true anywhere; ``background`` as in :meth:`miou`."""
        return _mean(np.delete(self.recall(), self._index(background)))

    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are predicted right, in [0, 1]; NaN where none is counted."""
        return float(_share(np.diag(self.counts).sum(), self.counts.sum()))

    def _index(self, background: int | str | None) -> list[int]:
        if background is None:
            return []
        if isinstance(background, str) and background in self.names:
            return [self.names.index(background)]
        # a bool is an int in Python, and True would leave out class 1
        if isinstance(background, (int, np.integer)) and not isinstance(background, bool) and 0 <= background < len(self):
            return [int(background)]
        raise InputError(f"background must be an index below {len(self)}, one of the names, or None, not {background!r}")


@dataclass(frozen=True, eq=False)
class MapSample:
    """What is kept of one similarity map held against one mask: a curve and two means, not the map.

    Attributes:
        name: the class.
        ious: (K,) float64 in [0, 1], IoU of ``map >= threshold`` with the mask, per threshold of the grid.
        foreground, background: mean of the map on the mask and off it, in [0, 1]; NaN for the background of a mask that
            covers everything.

    Raises:
        InputError: a value is not of that kind.
    """

    name: str
    ious: NDArray[np.float64]
    foreground: float
    background: float

    def __post_init__(self) -> None:
        v = self.ious
        if not isinstance(v, np.ndarray) or v.ndim != 1 or not v.size or not ((v >= 0) & (v <= 1)).all():
            raise InputError("ious must be a non-empty array (K,) in [0, 1]")
        if not 0 <= self.foreground <= 1 or self.background < 0 or self.background > 1:
            raise InputError(f"foreground and background must be in [0, 1], not {self.foreground!r} and {self.background!r}")

    @property
    def contrast(self) -> float:
        """Mean foreground minus mean background, in [-1, 1]; NaN where there is no background."""
        return self.foreground - self.background


def map_sample(
    name: str, values: NDArray[np.floating[Any]], mask: NDArray[np.bool_], thresholds: Sequence[float] = MAP_THRESHOLDS
) -> MapSample:
    """Holds a similarity map against a mask at every threshold in one pass.

    Each pixel falls into the bin of how many thresholds it reaches; cumulative counts of the bins on the mask and off
    it are the intersections and unions at all thresholds, exactly, not approximately.

    Args:
        name: the class.
        values: (H, W) in [0, 1], the min-max map over the image (the grid brought up to the mask's shape).
        mask: (H, W) bool, at least one pixel True: only classes that are there are explained.
        thresholds: K in ascending order.

    Raises:
        InputError: an argument is not of the kind above.
    """
    v, m = np.asarray(values), np.asarray(mask)
    if v.ndim != 2 or m.shape != v.shape or m.dtype != np.bool_:
        raise InputError(f"values must be (H, W) and mask a bool array of that shape, not {v.shape} and {m.dtype} {m.shape}")
    if not m.any():
        raise InputError(f"the mask of {name!r} is empty; only classes that are in an image can be explained")
    v = v.astype(np.float64)
    if not (v.min() >= 0 and v.max() <= 1):
        raise InputError("values must be in [0, 1]; take the min-max of the map first (SimilarityMap.to_image)")
    grid = check_thresholds(thresholds)
    reached = _reached(v, grid)
    on, off = (np.bincount(reached[part], minlength=len(grid) + 1) for part in (m, ~m))
    hits, wrong = (np.cumsum(n[::-1])[::-1][1:] for n in (on, off))  # (K,) pixels at or above each threshold
    ious = hits / (on.sum() + wrong)
    background = float(v[~m].mean()) if not m.all() else float("nan")
    return MapSample(name, ious, float(v[m].mean()), background)


def check_thresholds(thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Thresholds as an array (K,) float64.

    Raises:
        InputError: there are none, or they are not strictly ascending within [0, 1].
    """
    grid = np.asarray(thresholds, np.float64)
    if grid.ndim != 1 or not grid.size or not (np.diff(grid) > 0).all() or not (grid[0] >= 0 and grid[-1] <= 1):
        raise InputError(f"thresholds must ascend within [0, 1], not {thresholds!r}")
    return grid


@dataclass(frozen=True)
class Explainability:
    """Figures of similarity maps, see :meth:`ExplainabilityScore.figures`; all but thresholds are in percent.

    Attributes:
        samples, classes: how many maps, of how many classes.
        miou, threshold: mean IoU at one threshold for the whole data set, the best one: the rule that is reported.
        miou_per_class, class_thresholds: mean IoU with the best threshold of each class.
        miou_per_image: mean IoU with the best threshold of every single map.
        msc: mean of foreground minus background.
        average: over what the means are taken.
    """

    samples: int
    classes: int
    miou: float
    threshold: float
    miou_per_class: float
    class_thresholds: dict[str, float] = field(repr=False)
    miou_per_image: float
    msc: float
    average: Average


class ExplainabilityScore:
    """Explainability of similarity maps, one map at a time: mIoU with a searched threshold, and mSC.

    CLIP Surgery (arXiv 2304.05653), section 4.1; what the paper leaves open is decided here. A *sample* is one map of one
    image for one class that is in it. With ``average="samples"`` every sample counts once; with ``"classes"`` first the
    samples of a class are averaged, then the classes.

    - One threshold per data set: that of the grid with the highest average of IoUs (of equals the lowest).
    - Per class: each class's own best threshold for the mean over its samples.
    - Per image: every sample's own best threshold.
    - mSC: average of (mean of the min-max map on the mask - mean off it), in percent; samples whose mask covers everything
      have no background and are left out of it.

    A sample keeps K + 2 numbers (about 1 kB), whatever the size of the image.

    Args:
        thresholds: K in ascending order within [0, 1]; 0, 0.01, ..., 1 by default.

    Raises:
        InputError: thresholds are not of that kind.
    """

    def __init__(self, thresholds: Sequence[float] = MAP_THRESHOLDS) -> None:
        self.thresholds = check_thresholds(thresholds)
        self.samples: list[MapSample] = []

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, name: str, values: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> MapSample:
        """Adds a map; see :func:`map_sample`. What it returns can be stored, and be added again by :meth:`append`."""
        sample = map_sample(name, values, mask, self.thresholds.tolist())
        self.samples.append(sample)
        return sample

    def append(self, sample: MapSample) -> None:
        """Adds a sample made earlier.

        Raises:
            InputError: it was made on another number of thresholds.
        """
        if sample.ious.shape != self.thresholds.shape:
            raise InputError(f"the sample has {len(sample.ious)} thresholds, this score {len(self.thresholds)}")
        self.samples.append(sample)

    def merge(self, other: ExplainabilityScore) -> None:
        """Adds the samples of another score on the same thresholds.

        Raises:
            InputError: its thresholds are others.
        """
        if not np.array_equal(other.thresholds, self.thresholds):
            raise InputError("only scores on the same thresholds can be merged")
        self.samples.extend(other.samples)

    def figures(self, *, average: Average = "samples", weights: ArrayLike | None = None) -> Explainability:
        """All figures of the samples so far.

        Args:
            average: ``"samples"`` or ``"classes"``.
            weights: (S,) whole numbers of at least 0, how often each sample counts; None is once each. Thresholds are
                searched under them, too.

        Raises:
            InputError: no sample is left, weights do not belong to the samples, or ``average`` is unknown.
        """
        if average not in get_args(Average):
            raise InputError(f"average must be one of {', '.join(get_args(Average))}, not {average!r}")
        counts = _weights("weights", weights, np.empty(len(self.samples)))
        kept = [(s, int(n)) for s, n in zip(self.samples, counts, strict=True) if n]
        if not kept:
            raise InputError("there is no sample to take figures of; add some first")
        names, which = np.unique([s.name for s, _ in kept], return_inverse=True)
        share = np.array([n for _, n in kept], np.float64)
        if average == "classes":
            share /= np.bincount(which, share)[which]
        ious = np.stack([s.ious for s, _ in kept])  # (S, K)
        curve = share @ ious / share.sum()  # (K,)
        best = _lowest_best(curve)
        # which of a class's thresholds is best does not depend on how the classes are averaged
        own = [_lowest_best(share[which == c] @ ious[which == c] / share[which == c].sum()) for c in range(len(names))]
        per_class = share @ ious[np.arange(len(kept)), np.array(own)[which]] / share.sum()
        return Explainability(
            samples=int(counts.sum()),
            classes=len(names),
            miou=100 * float(curve[best]),
            threshold=float(self.thresholds[best]),
            miou_per_class=100 * float(per_class),
            class_thresholds={str(n): float(self.thresholds[k]) for n, k in zip(names, own, strict=True)},
            miou_per_image=100 * float(share @ ious.max(axis=1) / share.sum()),
            msc=100 * _contrast([s.contrast for s, _ in kept], np.array([n for _, n in kept]), which, average),
            average=average,
        )


def _contrast(contrasts: Sequence[float], counts: NDArray[np.int64], which: NDArray[np.intp], average: Average) -> float:
    values = np.array(contrasts)
    there = np.isfinite(values)
    if not there.any():
        return float("nan")
    share, which = counts[there].astype(np.float64), which[there]
    if average == "classes":
        share /= np.bincount(which, share)[which]
    return float(share @ values[there] / share.sum())


def _lowest_best(curve: NDArray[np.float64]) -> int:
    """Index of the first of the highest values; those that differ by rounding are equal."""
    return int((curve >= curve.max() - 1e-12).argmax())


def _reached(values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.intp]:
    """How many thresholds of an ascending grid each value reaches: ``searchsorted(grid, values, "right")``."""
    step = (grid[-1] - grid[0]) / max(1, len(grid) - 1)
    if not step or not np.allclose(np.diff(grid), step, rtol=0, atol=1e-9):
        return np.searchsorted(grid, values, "right")
    # on an even grid the place is known up to rounding, several times faster than a search
    reached: NDArray[np.intp] = np.clip(np.floor((values - grid[0]) * (1 / step)) + 1, 0, len(grid)).astype(np.intp)
    edges = np.concatenate([[-np.inf], grid, [np.inf]])
    reached -= values < edges[reached]
    reached += values >= edges[reached + 1]
    return reached


def _share(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    a, b = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    share: NDArray[np.float64] = np.divide(a, b, out=np.full(b.shape, np.nan), where=b > 0)
    return share


def _mean(values: NDArray[np.float64]) -> float:
    """Mean without NaN; NaN, and no warning, where nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _weights(name: str, weights: ArrayLike | None, like: NDArray[Any]) -> NDArray[np.int64]:
    if weights is None:
        return np.ones(len(like), np.int64)
    w = np.asarray(weights)
    if w.shape != like.shape or not (np.issubdtype(w.dtype, np.integer) or not w.size) or (w < 0).any():
        raise InputError(f"{name} must be whole numbers of at least 0 of shape {like.shape}, not {w.dtype} {w.shape}")
    return w.astype(np.int64)
