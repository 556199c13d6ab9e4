"""Figures of merit against answers worked out by hand, against brute force, and against copies in place of weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.lab.metrics import (
    IOU_THRESHOLDS,
    MAP_THRESHOLDS,
    ConfusionMatrix,
    ExplainabilityScore,
    MapSample,
    auroc,
    average_precision,
    bootstrap_weights,
    class_average_precisions,
    interval,
    map_sample,
    match_detections,
    mean_average_precision,
    ranked_average_precision,
    weighted_ratio,
)
from text2sam.recipes.choose import mask_iou


def grid(value: int) -> NDArray[np.int64]:
    return np.full((2, 3), value)


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
        (lambda: ranked_average_precision([[0.5]], [[True]]), "one axis"),
        (lambda: ranked_average_precision([math.nan], [True]), "finite"),
        (lambda: ranked_average_precision([0.5], [1]), "truth must be bool"),
        (lambda: ranked_average_precision([0.5], [True], [0.5]), "whole numbers"),
        (lambda: mean_average_precision([0.5], [True]), r"\(N, T\)"),
        (lambda: mean_average_precision(np.zeros((2, 3)), np.zeros((3, 2), bool)), r"\(N, T\)"),
        (lambda: ConfusionMatrix(0), "classes.*0"),
        (lambda: ConfusionMatrix("cat"), "classes.*'cat'"),
        (lambda: ConfusionMatrix(["cat", "cat"]), "different names"),
        (lambda: ConfusionMatrix(2, np.zeros((2, 2), np.int64)), r"\(2, 3\)"),
        (lambda: ConfusionMatrix(2).add(grid(0), grid(2)), "truth holds 2.*0 to 1"),
        (lambda: ConfusionMatrix(2).add(grid(2), grid(0)), "prediction holds 2.*0 to 1"),
        (lambda: ConfusionMatrix(2).add(grid(-1), grid(0)), "prediction holds -1"),
        (lambda: ConfusionMatrix(2).add(grid(255), grid(0), None), "prediction holds 255"),
        (lambda: ConfusionMatrix(2).add(grid(0), grid(0), 1), "ignore.*1"),
        (lambda: ConfusionMatrix(2).add(grid(0)[:1], grid(0)), r"one shape.*\(1, 3\)"),
        (lambda: ConfusionMatrix(2).add(grid(0)[0], grid(0)), r"\(H, W\).*\(3,\)"),
        (lambda: ConfusionMatrix(2).add(grid(0).astype(float), grid(0)), "integers, not float64"),
        (lambda: ConfusionMatrix(2).merge(ConfusionMatrix(3)), "same classes"),
        (lambda: ConfusionMatrix(2).miou(background=2), "background.*2"),
        (lambda: ConfusionMatrix(2).miou(background=True), "background.*True"),
        (lambda: ConfusionMatrix(["a"]).miou(background="b"), "background.*'b'"),
        (lambda: map_sample("a", np.zeros((2, 3)), grid(1)), "bool array"),
        (lambda: map_sample("a", np.zeros((2, 3)), grid(0) > 0), "'a' is empty"),
        (lambda: map_sample("a", np.full((2, 3), 1.1), grid(1) > 0), r"\[0, 1\].*min-max"),
        (lambda: map_sample("a", np.full((2, 3), math.nan), grid(1) > 0), "min-max"),
        (lambda: ExplainabilityScore([]), "thresholds"),
        (lambda: ExplainabilityScore([0.5, 0.5]), "ascend"),
        (lambda: ExplainabilityScore([0.5, 1.5]), r"within \[0, 1\]"),
        (lambda: ExplainabilityScore().figures(), "no sample"),
        (lambda: ExplainabilityScore().merge(ExplainabilityScore([0.5])), "same thresholds"),
        (lambda: ExplainabilityScore().append(MapSample("a", np.zeros(2), 0.5, 0.5)), "2 thresholds.*101"),
        (lambda: MapSample("a", np.array([1.5]), 0.5, 0.5), "ious"),
        (lambda: MapSample("a", np.array([0.5]), math.nan, 0.5), "foreground"),
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


# mean average precision


def test_ranked_average_precision_by_hand() -> None:
    assert ranked_average_precision([0.9, 0.8], [True, False]) == 1
    assert ranked_average_precision([0.8, 0.9], [True, False]) == 0.5
    # recall 1/2 at precision 1, recall 1 at precision 2/3
    assert ranked_average_precision([0.9, 0.8, 0.7], [True, False, True]) == pytest.approx((1 + 2 / 3) / 2)
    # equal scores are one step, whatever stands first
    assert ranked_average_precision([0.5, 0.5], [True, False]) == 0.5
    assert ranked_average_precision([0.5, 0.5], [False, True]) == 0.5
    assert math.isnan(ranked_average_precision([0.5], [False]))
    assert math.isnan(ranked_average_precision([], []))
    assert math.isnan(ranked_average_precision([0.5], [True], [0]))
    # it is not COCO's, which takes the best precision from here on
    assert ranked_average_precision([0.9, 0.8, 0.7], [False, True, True]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision([False, True, True], 2) == pytest.approx(2 / 3)


def test_mean_average_precision_is_scikit_learns() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(3)
    for decimals in (1, 2, 17):  # many ties, some, none
        scores = np.round(rng.normal(size=(40, 7)), decimals)
        truth = rng.random((40, 7)) < 0.2
        truth[0] = True
        weights = rng.integers(0, 4, 40)
        weights[0] = 1
        expected = [average_precision_score(truth[:, t], scores[:, t]) for t in range(7)]
        np.testing.assert_allclose(class_average_precisions(scores, truth), expected, rtol=1e-12)
        assert mean_average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), rel=1e-12)
        copies = np.repeat(np.arange(40), weights)
        assert mean_average_precision(scores, truth, weights) == pytest.approx(
            average_precision_score(truth[copies], scores[copies]), rel=1e-12
        )


def test_classes_that_no_image_shows_are_left_out_of_map() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2]])
    truth = np.array([[False, False], [True, False]])
    assert class_average_precisions(scores, truth) == pytest.approx([0.5, math.nan], nan_ok=True)
    assert mean_average_precision(scores, truth) == 0.5
    assert math.isnan(mean_average_precision(scores, np.zeros((2, 2), bool)))
    assert math.isnan(mean_average_precision(np.zeros((0, 3)), np.zeros((0, 3), bool)))
    assert math.isnan(mean_average_precision(np.zeros((3, 0)), np.zeros((3, 0), bool)))


# confusion matrix


def test_an_empty_confusion_matrix_has_no_figures() -> None:
    matrix = ConfusionMatrix(2)
    assert np.isnan(matrix.iou()).all()
    for figure in (matrix.miou(), matrix.pixel_accuracy(), matrix.mean_accuracy(), matrix.miou(background=0)):
        assert math.isnan(figure)
    matrix.add(np.zeros((0, 5), np.uint8), np.zeros((0, 5), np.uint8))
    matrix.add(np.array([[1]]), np.array([[255]]))
    assert matrix.counts.sum() == 0


def test_confusion_matrix_by_hand() -> None:
    matrix = ConfusionMatrix(["background", "cat", "dog", "cow", "pig"])
    truth = np.array([[0, 0, 0, 1, 1, 255]], np.uint8)
    prediction = np.array([[0, 0, 2, 1, 255, 3]], np.uint8)
    matrix.add(prediction, truth)
    # cat: one of two, the other undecided; dog: predicted, never true; cow: predicted only where nothing counts
    assert matrix.iou() == pytest.approx([2 / 3, 1 / 2, 0, math.nan, math.nan], nan_ok=True)
    assert matrix.miou() == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert matrix.miou(background=0) == matrix.miou(background="background") == pytest.approx(1 / 4)
    assert matrix.pixel_accuracy() == pytest.approx(3 / 5)
    assert matrix.mean_accuracy() == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert matrix.counts[1].tolist() == [0, 1, 0, 0, 0, 1]


def test_confusion_matrix_is_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

    rng = np.random.default_rng(4)
    classes = range(5)
    truths = [rng.integers(0, 5, (7, 9)).astype(np.uint8) for _ in range(3)]
    predictions = [np.where(rng.random((7, 9)) < 0.5, t, rng.integers(0, 5, (7, 9))).astype(np.int64) for t in truths]
    for truth in truths:
        truth[rng.random((7, 9)) < 0.2] = 255
    whole, parts = ConfusionMatrix(5), [ConfusionMatrix(5) for _ in truths]
    for truth, prediction, part in zip(truths, predictions, parts, strict=True):
        whole.add(prediction, truth)
        part.add(prediction, truth)
    t, p = np.concatenate([x.ravel() for x in truths]), np.concatenate([x.ravel() for x in predictions])
    t, p = t[t != 255], p[t != 255]
    np.testing.assert_array_equal(whole.counts[:, :-1], confusion_matrix(t, p, labels=classes))
    assert whole.iou() == pytest.approx(jaccard_score(t, p, labels=classes, average=None))
    assert whole.miou() == pytest.approx(jaccard_score(t, p, labels=classes, average="macro"))
    assert whole.miou(background=2) == pytest.approx(jaccard_score(t, p, labels=[0, 1, 3, 4], average="macro"))
    assert whole.pixel_accuracy() == pytest.approx(accuracy_score(t, p))
    merged = ConfusionMatrix(5)
    for part in parts:
        merged.merge(part)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_array_equal(ConfusionMatrix(5, whole.counts).counts, whole.counts)


def test_nothing_is_counted_of_an_image_that_is_wrong() -> None:
    matrix = ConfusionMatrix(2)
    with pytest.raises(InputError):
        matrix.add(np.array([[0, 7]]), np.array([[0, 0]]))
    assert matrix.counts.sum() == 0


# explainability


def maps_and_masks(seed: int, count: int = 6) -> list[tuple[str, NDArray[np.float32], NDArray[np.bool_]]]:
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        mask = np.zeros((11, 8), bool)
        mask[k % 4 : k % 4 + 5, 2:6] = True
        values = np.round(0.3 * mask + 0.7 * rng.random(mask.shape), 2).astype(np.float32)  # many exactly on the grid
        out.append(("abc"[k % 3 if k < 5 else 0], values, mask))
    return out


@pytest.mark.parametrize("thresholds", [MAP_THRESHOLDS, tuple(np.linspace(0.05, 0.95, 19)), (0.5,), (0.0, 0.3, 1.0)], ids=len)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_curve_of_a_map_is_the_loops(thresholds: tuple[float, ...], dtype: Any) -> None:
    hundredths = np.concatenate([np.arange(101) / 100, np.nextafter(np.arange(101) / 100, 2)[:-1], [0.0]])
    rng = np.random.default_rng(5)
    edge = (rng.permutation(hundredths).reshape(2, 101).astype(dtype), rng.random((2, 101)) < 0.3)
    for values, mask in [edge, *((v.astype(dtype), m) for _, v, m in maps_and_masks(0))]:
        sample = map_sample("a", np.minimum(values, 1), mask, thresholds)
        expected = [mask_iou(np.minimum(values, 1).astype(np.float64) >= t, mask) for t in thresholds]
        assert sample.ious.tolist() == expected
        assert sample.contrast == pytest.approx(float(values[mask].mean() - values[~mask].mean()), abs=1e-6)


def test_one_pixel_and_a_mask_that_covers_everything() -> None:
    score = ExplainabilityScore()
    score.add("a", np.ones((1, 1), np.float32), np.ones((1, 1), bool))
    figures = score.figures()
    assert (figures.samples, figures.classes, figures.miou, figures.threshold) == (1, 1, 100, 0)
    assert math.isnan(figures.msc)
    score.add("a", np.array([[1.0, 0.25]]), np.array([[True, False]]))
    assert score.figures().msc == 75  # the sample without a background does not count
    assert score.figures().miou == 100


@pytest.mark.parametrize("average", ["samples", "classes"])
def test_figures_are_those_of_plain_loops(average: Any) -> None:
    cases = maps_and_masks(1)
    score = ExplainabilityScore()
    for case in cases:
        score.add(*case)
    names = sorted({name for name, _, _ in cases})

    def mean(values: list[float]) -> float:
        if average == "samples":
            return float(np.mean(values))
        return float(np.mean([np.mean([v for v, (n, _, _) in zip(values, cases, strict=True) if n == c]) for c in names]))

    ious = {t: [mask_iou(v.astype(np.float64) >= t, m) for _, v, m in cases] for t in MAP_THRESHOLDS}
    means = {t: mean(ious[t]) for t in MAP_THRESHOLDS}
    best = max(means, key=lambda t: (round(means[t], 12), -t))
    own = {}
    for c in names:
        of_class = {t: np.mean([v for v, (n, _, _) in zip(ious[t], cases, strict=True) if n == c]) for t in MAP_THRESHOLDS}
        own[c] = max(of_class, key=lambda t: (round(float(of_class[t]), 12), -t))
    figures = score.figures(average=average)
    assert (figures.samples, figures.classes, figures.average) == (6, 3, average)
    assert figures.miou == pytest.approx(100 * means[best])
    assert figures.threshold == best
    assert figures.class_thresholds == own
    assert figures.miou_per_class == pytest.approx(100 * mean([ious[own[n]][k] for k, (n, _, _) in enumerate(cases)]))
    assert figures.miou_per_image == pytest.approx(100 * mean([max(ious[t][k] for t in MAP_THRESHOLDS) for k in range(6)]))
    assert figures.msc == pytest.approx(100 * mean([float(v[m].mean() - v[~m].mean()) for _, v, m in cases]), abs=1e-4)
    assert figures.miou <= figures.miou_per_class <= figures.miou_per_image
    if average == "classes":
        assert figures.miou != pytest.approx(score.figures().miou)


@pytest.mark.parametrize("average", ["samples", "classes"])
def test_weights_are_copies_and_merging_is_adding(average: Any) -> None:
    cases = maps_and_masks(2)
    weights = [0, 2, 1, 0, 3, 1]
    whole, copies, first, second = (ExplainabilityScore() for _ in range(4))
    for k, (case, n) in enumerate(zip(cases, weights, strict=True)):
        sample = whole.add(*case)
        for _ in range(n):
            copies.append(sample)
        (first if k < 3 else second).add(*case)
    weighted, copied = whole.figures(average=average, weights=weights), copies.figures(average=average)
    assert weighted.samples == copied.samples == 7
    for name in ("miou", "threshold", "miou_per_class", "miou_per_image", "msc"):
        assert getattr(weighted, name) == pytest.approx(getattr(copied, name)), name
    first.merge(second)
    assert first.figures(average=average) == whole.figures(average=average)
    with pytest.raises(InputError, match="no sample"):
        whole.figures(weights=[0] * 6)
    with pytest.raises(InputError, match=r"average.*'pixels'"):
        whole.figures(average="pixels")  # type: ignore[arg-type]


def test_a_map_that_points_at_the_background_has_a_negative_msc() -> None:
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    score = ExplainabilityScore()
    score.add("a", (~mask).astype(np.float64), mask)
    assert score.figures().msc == -100
    assert score.figures().miou == 50  # at threshold 0 everything is taken
    assert score.figures().threshold == 0
