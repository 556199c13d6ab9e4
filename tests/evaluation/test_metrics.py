"""Figures of merit against answers worked out by hand, against brute force, and against copies in place of weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.evaluation.metrics import (
    IOU_THRESHOLDS,
    auroc,
    average_precision,
    bootstrap_weights,
    interval,
    match_detections,
    weighted_ratio,
)

# nothing there


def test_no_detections_and_no_objects() -> None:
    assert match_detections(np.zeros((0, 0)), 0.5).shape == (0,)
    assert match_detections(np.zeros((0, 3)), 0.5).shape == (0,)
    assert match_detections(np.zeros((2, 0)), 0.5).tolist() == [False, False]
    assert average_precision([], 3) == 0
    assert average_precision([False], 3) == 0
    assert math.isnan(average_precision([], 0))
    assert math.isnan(average_precision([False], 0))
    assert math.isnan(auroc([], [0.5]))
    assert math.isnan(auroc([0.5], []))
    assert math.isnan(auroc([0.5], [0.5], [0], [1]))
    low, high = interval(np.array([np.nan]))
    assert math.isnan(low)
    assert math.isnan(high)
    assert np.isnan(weighted_ratio([0, 0], [0, 0], np.ones((2, 2), np.int64))).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: match_detections(np.zeros(3), 0.5), r"two axes.*\(3,\)"),
        (lambda: match_detections(np.zeros((1, 1)), 0.0), r"threshold.*0\.0"),
        (lambda: match_detections(np.zeros((1, 1)), 1.5), r"threshold.*1\.5"),
        (lambda: average_precision([[True]], 1), "one axis"),
        (lambda: average_precision([True], -1), "positives.*-1"),
        (lambda: average_precision([True], 1, [1, 2]), r"weights.*\(1,\)"),
        (lambda: average_precision([True], 1, [0.5]), "whole numbers"),
        (lambda: average_precision([True], 1, [-1]), "whole numbers"),
        (lambda: auroc([math.nan], [0.5]), "finite"),
        (lambda: auroc([[0.5]], [0.5]), "one axis"),
        (lambda: auroc([0.5], [0.5], [1, 1]), "positive_weights"),
        (lambda: bootstrap_weights(0, 5), "units"),
        (lambda: bootstrap_weights(5, 0), "resamples"),
        (lambda: interval(np.zeros(3), 1.0), r"share.*1\.0"),
    ],
)
def test_bad_arguments(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


# matching


def test_matching_by_hand() -> None:
    # the second detection fits object 0 better, but the first, scored higher, has taken it; the third is a double
    ious = np.array([[0.6, 0.2], [0.9, 0.55], [0.58, 0.1]])
    assert match_detections(ious, 0.5).tolist() == [True, True, False]
    assert match_detections(ious, 0.6).tolist() == [True, False, False]
    assert match_detections(ious, 0.61).tolist() == [False, True, False]
    # greedy, not optimal: the first takes the only object the second could have had
    assert match_detections(np.array([[0.9, 0.8], [0.7, 0.1]]), 0.5).tolist() == [True, False]


def test_an_iou_of_exactly_the_threshold_counts() -> None:
    for numerator, threshold in zip(range(10, 20), IOU_THRESHOLDS, strict=True):
        assert match_detections(np.array([[numerator / 20]]), threshold).tolist() == [True], threshold


def test_one_detection_takes_one_object() -> None:
    assert match_detections(np.ones((3, 2)), 1.0).tolist() == [True, True, False]


# average precision


def test_average_precision_by_hand() -> None:
    assert average_precision([True, True], 2) == 1
    assert average_precision([False, True], 1) == 0.5
    assert average_precision([True, False], 1) == 1  # what comes after everything is found costs nothing
    # precision 1 up to recall 1/2 (0 to 0.50: 51 recalls), then 2/3 (50 recalls)
    assert average_precision([True, False, True], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    # recall ends at 1/4: 26 recalls, 0 to 0.25
    assert average_precision([True], 4) == pytest.approx(26 / 101)
    # the later precision of 3/4 stands for the earlier 1/2, too
    assert average_precision([False, True, True, True], 3) == pytest.approx(3 / 4)


def test_recall_is_compared_in_whole_numbers() -> None:
    for found, objects in itertools.product(range(1, 51), (10, 50, 100)):
        if found <= objects:
            expected = (100 * found // objects + 1) / 101
            assert average_precision([True] * found, objects) == pytest.approx(expected), (found, objects)


def brute_force(hits: list[bool], positives: int) -> float:
    total = 0.0
    for k in range(101):
        best = 0.0
        for n in range(1, len(hits) + 1):
            true = sum(hits[:n])
            if 100 * true >= k * positives:
                best = max(best, true / n)
        total += best
    return total / 101


def test_average_precision_agrees_with_brute_force_and_with_copies() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        hits = rng.random(int(rng.integers(0, 25))) < 0.6
        weights = rng.integers(0, 4, len(hits))
        extra = int(rng.integers(0, 6))
        assert average_precision(hits, hits.sum() + extra + 1) == pytest.approx(
            brute_force(hits.tolist(), int(hits.sum()) + extra + 1)
        )
        copies = np.repeat(hits, weights)
        positives = int(copies.sum()) + extra + 1
        assert average_precision(hits, positives, weights) == pytest.approx(brute_force(copies.tolist(), positives))


# AUROC


def test_auroc_by_hand() -> None:
    assert auroc([0.9, 0.8], [0.1]) == 1
    assert auroc([0.1], [0.9, 0.8]) == 0
    assert auroc([0.5], [0.5]) == 0.5
    assert auroc([0.5, 0.3], [0.4, 0.5]) == pytest.approx(1.5 / 4)
    assert auroc([0.5, 0.3], [0.4, 0.5], [2, 1], [1, 3]) == pytest.approx((2 * 1 + 2 * 3 * 0.5) / 12)


def test_auroc_agrees_with_pairs_and_with_copies() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        p, n = (np.round(rng.random(int(rng.integers(1, 30))), 1) for _ in range(2))  # many ties
        wp, wn = (rng.integers(0, 3, len(x)) + (np.arange(len(x)) == 0) for x in (p, n))
        pairs = [(a > b) + 0.5 * (a == b) for a in np.repeat(p, wp) for b in np.repeat(n, wn)]
        assert auroc(p, n, wp, wn) == pytest.approx(np.mean(pairs))


# bootstrap


def test_bootstrap_draws_as_many_as_there_are_and_always_the_same() -> None:
    weights = bootstrap_weights(20, 50, seed=3)
    assert weights.shape == (50, 20)
    assert (weights.sum(axis=1) == 20).all()
    assert len(np.unique(weights, axis=0)) == 50
    np.testing.assert_array_equal(weights, bootstrap_weights(20, 50, seed=3))
    assert not np.array_equal(weights, bootstrap_weights(20, 50, seed=4))
    assert abs(bootstrap_weights(20, 4000).mean(axis=0) - 1).max() < 0.1


def test_weighted_ratio_is_the_mean_over_copies() -> None:
    cases: list[NDArray[np.float64]] = [np.array([0.2, 0.4]), np.array([]), np.array([1.0])]
    weights = np.array([[1, 1, 1], [2, 5, 0], [0, 3, 0]])
    sums, counts = [c.sum() for c in cases], [len(c) for c in cases]
    np.testing.assert_allclose(weighted_ratio(sums, counts, weights), [1.6 / 3, 0.3, np.nan])


def test_interval_leaves_the_tails_out() -> None:
    samples = np.concatenate([np.arange(1001) / 1000, [np.nan]])
    assert interval(samples) == pytest.approx((0.025, 0.975))
    assert interval(samples, 0.5) == pytest.approx((0.25, 0.75))


def test_bootstrap_interval_of_a_mean_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(2).normal(size=400)
    low, high = interval(weighted_ratio(values, np.ones(400), bootstrap_weights(400, 2000)))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
