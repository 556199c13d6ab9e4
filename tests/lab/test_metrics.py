"""Metrics against plain definitions, brute force, and copies instead of weights."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from text2sam.errors import InputError, MissingDependencyError
from text2sam.lab.metrics import (
    MAP_THRESHOLDS,
    ConfusionMatrix,
    auroc,
    average_precision,
    bootstrap_weights,
    class_average_precisions,
    explainability,
    interval,
    map_sample,
    match_detections,
    mean_average_precision,
    row_means,
    soft_mask_scores,
    weighted_ratio,
)


def test_nothing_to_measure_is_nan_without_a_warning() -> None:
    assert np.isnan(average_precision([], 0))
    assert average_precision([], 3) == 0.0
    assert average_precision([False, False], 2) == 0.0
    assert np.isnan(auroc([], [1.0]))
    assert np.isnan(auroc([1.0], []))
    assert np.isnan(auroc([1.0, 2.0], [3.0], [0, 0], [1]))
    assert np.isnan(mean_average_precision(np.zeros((2, 2)), np.zeros((2, 2), bool)))
    assert all(np.isnan(end) for end in interval(np.array([np.nan])))
    assert np.isnan(weighted_ratio([0.0], [0], np.ones((1, 1), np.int64)))
    assert match_detections(np.zeros((0, 3)), 0.5).tolist() == []
    assert match_detections(np.zeros((2, 0)), 0.5).tolist() == [False, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_average_precisions([[1.0]], [[1]]), "bool"),
        (lambda: map_sample("cat", np.full((2, 2), 2.0), np.ones((2, 2), bool)), r"in \[0, 1\]"),
        (lambda: explainability([]), "at least one sample"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("sklearn.metrics", lambda: auroc([1.0], [0.0])),
        ("py_sod_metrics", lambda: soft_mask_scores(np.ones((2, 2)), np.ones((2, 2), bool))),
    ],
)
def test_the_error_for_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str, call: Any) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "text2sam\[lab\]"'):
        call()


def test_scores_of_soft_masks() -> None:
    pytest.importorskip("py_sod_metrics")
    whole = np.ones((4, 4), bool)
    # the mask is full: S is the mean, and 0.25 reaches a quarter of the 256 thresholds
    s, e, _, mae = soft_mask_scores(np.full((4, 4), 0.25), whole)
    assert (s, e, mae) == pytest.approx((0.25, 64 / 256, 0.75))
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:8] = True
    s, e, f, mae = soft_mask_scores(mask.astype(np.float32), mask)
    assert (s, e, f, mae) == pytest.approx((1, 1, 1, 0), abs=0.01)
    s, e, f, mae = soft_mask_scores(1.0 - mask, mask)
    assert (s, f, mae) == pytest.approx((0, 0, 1), abs=0.01)
    assert e < 0.02
    assert soft_mask_scores(np.ones((1, 1)), np.ones((1, 1), bool)).tolist() == pytest.approx([1, 1, 1, 0])
    mask[:] = False
    mask[-1, 4] = True  # one quadrant of the S-measure is empty
    assert np.isfinite(soft_mask_scores(mask.astype(float), mask)).tolist() == [False, True, True, True]


def test_matching_is_one_to_one_and_includes_the_threshold() -> None:
    ious = np.array([[0.6, 0.7], [0.6, 0.9], [0.5, 0.0]])
    assert match_detections(ious, 0.6).tolist() == [True, True, False]
    assert match_detections(ious, 0.65).tolist() == [True, False, False]
    assert match_detections(np.array([[0.9], [0.9]]), 0.5).tolist() == [True, False]


def brute_force(hits: list[bool], positives: int) -> float:
    """COCO's interpolated precision, by a loop over recalls."""
    true = np.cumsum(hits)
    precisions = [true[i] / (i + 1) for i in range(len(hits))]
    best = [
        max((p for p, t in zip(precisions, true, strict=True) if 100 * t >= r * positives), default=0.0) for r in range(101)
    ]
    return float(np.mean(best))


def test_cocos_average_precision_agrees_with_brute_force_and_with_copies() -> None:
    rng = np.random.default_rng(0)
    assert average_precision([True] * 3, 10) == pytest.approx(31 / 101)  # 3 of 10 reach a recall of 0.3
    for _ in range(60):
        hits = (rng.random(int(rng.integers(1, 12))) > 0.5).tolist()
        positives = sum(hits) + int(rng.integers(0, 4))
        if positives:
            assert average_precision(hits, positives) == pytest.approx(brute_force(hits, positives))
        counts = rng.integers(0, 3, len(hits))
        copies = np.repeat(hits, counts)
        assert average_precision(hits, 9, counts) == pytest.approx(average_precision(copies, 9), nan_ok=True)


def test_auroc_is_the_share_of_pairs_with_ties_one_half() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        p, n = (rng.integers(0, 6, int(rng.integers(1, 9))) / 3 for _ in range(2))
        wins = (p[:, None] > n[None]) + 0.5 * (p[:, None] == n[None])
        assert auroc(p, n) == pytest.approx(wins.mean())
        wp, wn = (rng.integers(0, 3, len(side)) for side in (p, n))
        copies = np.repeat(p, wp), np.repeat(n, wn)
        assert auroc(p, n, wp, wn) == pytest.approx(auroc(*copies), nan_ok=True)


def test_average_precision_is_precision_by_gain_in_recall() -> None:
    rng = np.random.default_rng(2)
    scores, truth = rng.integers(0, 5, (11, 40)) / 4, rng.random((11, 40)) > 0.8
    for values, shown, found in zip(scores.T, truth.T, class_average_precisions(scores, truth), strict=True):
        expected, before = 0.0, 0.0
        for step in sorted(set(values.tolist()), reverse=True):
            chosen = values >= step
            recall = shown[chosen].sum() / max(1, shown.sum())
            expected += (recall - before) * shown[chosen].mean()
            before = recall
        assert found == pytest.approx(expected if shown.any() else np.nan, nan_ok=True)


def test_classes_that_no_image_shows_are_left_out_of_map() -> None:
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.3]])
    truth = np.array([[True, True, False], [False, False, False]])
    each = class_average_precisions(scores, truth)
    assert each[:2].tolist() == [1.0, 0.5]
    assert np.isnan(each[2])
    assert mean_average_precision(scores, truth) == 0.75


def test_bootstrap_weights_sum_to_the_number_of_units_and_are_reproducible() -> None:
    weights = bootstrap_weights(7, 50, 3)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert np.array_equal(weights, bootstrap_weights(7, 50, 3))
    assert not np.array_equal(weights, bootstrap_weights(7, 50, 4))
    sums, counts = np.array([3.0, 1.0, 0.0]), np.array([3, 2, 0])
    ratios = weighted_ratio(sums, counts, np.array([[2, 1, 5], [0, 0, 1]]))
    assert ratios[0] == pytest.approx(7 / 8)
    assert np.isnan(ratios[1])
    assert interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert row_means(np.array([[1.0, np.nan, 3.0]])).tolist() == [2.0]


def test_confusion_matrix_by_hand_and_by_plain_loops() -> None:
    matrix = ConfusionMatrix(3)
    assert np.isnan(matrix.miou())
    assert np.isnan(matrix.pixel_accuracy())
    rng = np.random.default_rng(3)
    expected = np.zeros((3, 4), np.int64)
    for _ in range(4):
        truth, prediction = (rng.choice([0, 1, 2, 255], (6, 7)) for _ in range(2))
        matrix.add(prediction, truth)
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
            if t != 255:
                expected[t, 3 if p == 255 else p] += 1
    assert np.array_equal(matrix.counts, expected)
    ious = [expected[c, c] / (expected[c].sum() + expected[:, c].sum() - expected[c, c]) for c in range(3)]
    np.testing.assert_allclose(matrix.iou(), ious)
    assert matrix.miou() == pytest.approx(np.mean(ious))
    assert matrix.miou(0) == pytest.approx(np.mean(ious[1:]))
    assert matrix.mean_accuracy() == pytest.approx(np.mean([expected[c, c] / expected[c].sum() for c in range(3)]))
    assert matrix.pixel_accuracy() == pytest.approx(np.trace(expected) / expected.sum())


def test_a_class_in_neither_truth_nor_prediction_is_left_out() -> None:
    matrix = ConfusionMatrix(3)
    matrix.add(np.array([[0, 2]]), np.array([[0, 0]]))
    assert matrix.iou()[[0, 2]].tolist() == [0.5, 0.0]
    assert np.isnan(matrix.iou()[1])
    assert matrix.miou() == 0.25
    matrix.add(np.full((2, 2), 255), np.full((2, 2), 255))  # all pixels are ignored


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [([[0]], [[0, 1]], "one shape"), ([[3]], [[0]], "prediction holds 3"), ([[0]], [[-1]], "truth holds -1")],
)
def test_a_bad_image_is_not_counted(prediction: Any, truth: Any, message: str) -> None:
    matrix = ConfusionMatrix(2)
    with pytest.raises(InputError, match=message):
        matrix.add(np.array(prediction), np.array(truth))
    assert not matrix.counts.any()


def maps_and_masks(count: int = 6) -> list[tuple[str, NDArray[np.float32], NDArray[np.bool_]]]:
    rng = np.random.default_rng(4)
    return [
        (f"class {i % 3}", np.round(rng.random((9, 8)), 2).astype(np.float32), rng.random((9, 8)) > 0.2 + 0.1 * i)
        for i in range(count)
    ]


@pytest.mark.parametrize("thresholds", [MAP_THRESHOLDS, tuple(np.linspace(0.05, 0.95, 19)), (0.5,), (0.0, 0.3, 1.0)], ids=len)
def test_the_curve_of_a_map_equals_plain_loops(thresholds: tuple[float, ...]) -> None:
    for name, values, mask in maps_and_masks():
        sample = map_sample(name, values, mask, thresholds)
        wide = values.astype(np.float64)
        expected = [((wide >= t) & mask).sum() / ((wide >= t) | mask).sum() for t in thresholds]
        np.testing.assert_allclose(sample.ious, expected)
        assert sample.contrast == pytest.approx(wide[mask].mean() - wide[~mask].mean())
    whole = map_sample("all", np.array([[0.5]]), np.array([[True]]), thresholds)
    assert np.isnan(whole.background)


def test_explainability_equals_plain_loops() -> None:
    samples = [map_sample(*each) for each in maps_and_masks(7)]
    samples.append(map_sample("class 0", np.array([[0.25, 1.0]]), np.array([[True, True]])))
    figures = explainability(samples)
    groups = {name: [s for s in samples if s.name == name] for name in sorted({s.name for s in samples})}
    curve = np.mean([s.ious for s in samples], axis=0)
    best = {name: int(np.mean([s.ious for s in group], axis=0).argmax()) for name, group in groups.items()}
    assert figures["miou_dataset"] == pytest.approx(100 * curve.max())
    assert figures["threshold"] == MAP_THRESHOLDS[int(curve.argmax())]
    assert figures["thresholds"] == {name: MAP_THRESHOLDS[k] for name, k in best.items()}
    assert figures["miou_class"] == pytest.approx(100 * np.mean([s.ious[best[s.name]] for s in samples]))
    assert figures["miou_image"] == pytest.approx(100 * np.mean([s.ious.max() for s in samples]))
    assert figures["msc"] == pytest.approx(100 * np.mean([s.contrast for s in samples if np.isfinite(s.contrast)]))
    assert (figures["samples"], figures["classes"]) == (8, 3)
