"""Mask overlap, the choices among candidates, and which masks are different objects."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from helpers import blobs
from helpers import patch_disc as disc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from segment_anything.utils.amg import calculate_stability_score
from skimage.measure import label

from text2sam.errors import InputError
from text2sam.masks import LogitMasks
from text2sam.recipes import choose as select
from text2sam.recipes.choose import (
    Choice,
    Offer,
    agreement,
    choose_by_agreement,
    choose_by_score,
    distinct,
    mask_iou,
    stability,
)
from text2sam.recipes.points import heat_of, patch_of, patch_shares
from text2sam.types import PointPrompts, SimilarityMap

fast = settings(max_examples=30, deadline=None, derandomize=True, database=None)

GRID = 20
FLAT = SimilarityMap(np.full((4, 4), 0.2, np.float32))


def prompt(*coords: tuple[float, float], labels: list[int] | None = None) -> PointPrompts:
    return PointPrompts(np.array(coords, np.float32).reshape(-1, 2), np.array(labels or [1] * len(coords), np.uint8))


def logits_of(count: int) -> NDArray[np.float32]:
    """The same for every mask."""
    return np.full((count, 4, 4), 9, np.float32)


def choose(masks: list[NDArray[np.bool_]], scores: list[float], similarity: SimilarityMap, points: PointPrompts) -> Choice:
    return choose_by_agreement(Offer(np.stack(masks), np.array(scores, np.float32), similarity, points, logits_of(len(masks))))


# overlap


def test_iou_of_known_masks() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_iou(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(1 / 3)
    assert mask_iou(a, ~a) == 0.0
    with pytest.raises(InputError, match="one shape"):
        mask_iou(a, b[:2])


# the papers' choice


def test_the_highest_score_wins_and_the_first_of_equals() -> None:
    masks = np.zeros((3, 2, 2), bool)
    choice = choose_by_score(Offer(masks, np.array([0.2, 0.9, 0.9], np.float32), FLAT, PointPrompts.empty(), logits_of(3)))
    assert choice.index == 1
    assert "0.900" in choice.reason
    assert choice.figures == {}


@pytest.mark.parametrize(("masks", "scores"), [(0, (0,)), (2, (3,)), (2, (1,)), (1, (0,)), (2, (2, 1)), (1, ())])
def test_scores_must_fit_the_masks(masks: int, scores: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one score per mask"):
        Offer(np.zeros((masks, 2, 2), bool), np.zeros(scores, np.float32), FLAT, PointPrompts.empty(), logits_of(masks))


# agreement, degenerate


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (30, 44)])
def test_nothing_and_everything(shape: tuple[int, int]) -> None:
    masks, scores = np.stack([np.zeros(shape, bool), np.ones(shape, bool)]), np.array([1, 0.5], np.float32)
    prompts = (PointPrompts.empty(), prompt((0, 0)), prompt((0, 0), labels=[0]))
    for grid, flat, points in itertools.product([(1, 1), (1, 6), (6, 1), (4, 4)], [True, False], prompts):
        values = np.full(grid, 0.5, np.float32) if flat else np.arange(grid[0] * grid[1], dtype=np.float32).reshape(grid)
        figures = agreement(Offer(masks, scores, SimilarityMap(values), points, logits_of(2)))
        assert set(figures) == {"correlation", "contrast", "stability", "points", "total"}
        for figure in figures.values():
            assert figure.dtype == np.float32
            assert figure.shape == (2,)
            assert np.isfinite(figure).all()
        assert figures["correlation"].tolist() == figures["contrast"].tolist() == [0, 0]
        assert figures["total"][0] == 0
        assert 0 < figures["total"][1] <= 1


def test_a_flat_map_leaves_the_choice_to_sam() -> None:
    masks = [disc(9, 9, 1), disc(9, 9, 3), disc(9, 9, 6)]
    choice = choose(masks, [0.3, 0.5, 0.8], SimilarityMap(np.ones((GRID, GRID), np.float32)), prompt((95, 95)))
    assert choice.index == 2


# agreement, parity


def some_masks(seed: int, shape: tuple[int, int] = (40, 60), count: int = 4) -> NDArray[np.bool_]:
    """Rectangles of any size, anywhere."""
    random = np.random.default_rng(seed)
    masks = np.zeros((count, *shape), bool)
    for mask in masks:
        (top, bottom), (left, right) = (np.sort(random.choice(n + 1, 2, replace=False)) for n in shape)
        mask[top:bottom, left:right] = True
    return masks


def some_map(seed: int, grid: tuple[int, int] = (7, 9)) -> SimilarityMap:
    return SimilarityMap(np.random.default_rng(seed + 100).random(grid, np.float32))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pointed", [False, True])
def test_correlation_against_numpy(seed: int, pointed: bool) -> None:
    masks, similarity = some_masks(seed), some_map(seed)
    points = prompt((7, 33), (50, 8), (0, 0), labels=[1, 1, 0]) if pointed else PointPrompts.empty()
    heat = heat_of(similarity)
    expected = heat.astype(float)
    if pointed:  # the hot regions apart from that of the hotter point are set to the median
        first, second = (patch_of(p, (40, 60), (7, 9)) for p in points.positive)
        at = first if heat[first] > heat[second] else second
        regions = label(heat >= 0.5 * heat[at], connectivity=2)
        expected[(regions > 0) & (regions != regions[at])] = np.median(heat)
    found = agreement(Offer(masks, np.ones(4, np.float32), similarity, points, logits_of(4)))["correlation"]
    for value, share in zip(found, patch_shares(masks, (7, 9)), strict=True):
        assert value == pytest.approx(np.corrcoef(share.ravel(), expected.ravel())[0, 1], abs=1e-5)


def slow_contrast(share: NDArray[np.float32], heat: NDArray[np.float32]) -> float:
    """From the docstring, for masks that cover all or half of each of their patches."""
    gh, gw = heat.shape
    under = ring = covered = around = 0.0
    for r, c in np.ndindex(gh, gw):
        near = [(i, j) for i in range(r - 1, r + 2) for j in range(c - 1, c + 2) if 0 <= i < gh and 0 <= j < gw]
        g = float(share[r, c])
        under, covered = under + g * heat[r, c], covered + g
        if any(share[place] > 0 for place in near):
            ring, around = ring + (1 - g) * heat[r, c], around + 1 - g
    return under / covered - ring / around if covered and around else 0.0


@pytest.mark.parametrize("grid", [(1, 6), (6, 1), (5, 7)])
@pytest.mark.parametrize("seed", range(4))
def test_contrast_against_a_loop(grid: tuple[int, int], seed: int) -> None:
    shares = np.random.default_rng(seed).choice([0, 0, 0, 0.5, 1], (4, *grid))
    masks = (shares > 0).repeat(4, 1).repeat(4, 2)
    masks[:, ::2] &= (shares == 1).repeat(2, 1).repeat(4, 2)  # every other row of pixels, for the halves
    heat = heat_of(some_map(seed, grid))
    found = agreement(Offer(masks, np.ones(4, np.float32), some_map(seed, grid), PointPrompts.empty(), logits_of(4)))[
        "contrast"
    ]
    np.testing.assert_allclose(patch_shares(masks, grid), shares)
    np.testing.assert_allclose(found, [slow_contrast(share, heat) for share in shares.astype(np.float32)], atol=1e-6)


def test_stability_is_sams() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (5, 16, 16)).astype(np.float32)
    logits[0] += 20
    logits[1] = np.where(logits[1] > 0, 0, -9)
    found = stability(logits)
    expected = calculate_stability_score(torch.from_numpy(logits), 0.0, 1.0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert found.dtype == np.float32
    assert found[0] == 1
    assert found[1] == 0


@pytest.mark.parametrize(
    ("points", "share"),
    [
        (PointPrompts.empty(), 1),
        (prompt((2, 1)), 1),
        (prompt((5, 1)), 0),
        (prompt((5, 1), labels=[0]), 1),
        (prompt((2, 1), labels=[0]), 0),
        (prompt((2, 1), (3.9, 2.9), (4, 0), (0, 3), labels=[1, 1, 1, 0]), 0.75),
        (prompt((-3, -1e38), (3e38, 2)), 0.5),
    ],
)
def test_points_on_their_right_side(points: PointPrompts, share: float) -> None:
    mask = np.zeros((1, 6, 8), bool)
    mask[0, :3, :4] = True
    assert agreement(Offer(mask, np.ones(1, np.float32), FLAT, points, logits_of(1)))["points"].tolist() == [share]


@pytest.mark.parametrize("seed", range(3))
def test_the_total_is_the_weighted_mean(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, scores = random.normal(0, 2, (4, 8, 8)).astype(np.float32), random.random(4, np.float32)
    looked = random.random(4, np.float32)
    for look, told in ((None, ()), (lambda masks: looked, ("likeness",))):
        offer = Offer(some_masks(seed), scores, some_map(seed), prompt((7, 33), (1, 1), labels=[1, 0]), logits, look)
        figures = agreement(offer)
        weights = {name: weight for name, weight in select._WEIGHTS.items() if name != "likeness" or told}
        assert set(figures) == {"total", "contrast", *weights}
        total = scores + sum(weight * figures[name] for name, weight in weights.items())
        np.testing.assert_allclose(figures["total"], np.maximum(total / (1 + sum(weights.values())), 0), atol=1e-6)


def discs(shape: tuple[int, int]) -> LogitMasks:
    """Three discs around the middle of an image, as SAM's logits."""
    filled = (round(256 * shape[0] / max(shape)), round(256 * shape[1] / max(shape)))
    y, x = np.mgrid[:64, :64] + 0.5
    away = np.hypot(y - filled[0] / 8, x - filled[1] / 8)
    return LogitMasks(np.stack([radius - away for radius in (3, 9, 20)]).astype(np.float32), 256, filled, shape)


@pytest.mark.parametrize(("shape", "within"), [((480, 640), 0), ((3000, 4000), 0.01), ((2000, 700), 0.01)])
def test_masks_need_not_be_made_for_the_choice(shape: tuple[int, int], within: float) -> None:
    masks, scores, similarity = discs(shape), np.full(3, 0.8, np.float32), blobs((9.5, 9.5, 1))
    random = np.random.default_rng(0)
    points = prompt(*(random.random((50, 2)) * shape[::-1]), labels=random.integers(0, 2, 50).tolist())
    later, now = (Offer(kept, scores, similarity, points, masks.logits) for kept in (masks, np.asarray(masks)))
    choice, expected = choose_by_agreement(later), choose_by_agreement(now)
    assert choice.index == expected.index
    for name, values in expected.figures.items():
        np.testing.assert_allclose(choice.figures[name], values, rtol=0, atol=0 if name == "points" else within)
    assert np.array_equal(later.mask(1), now.masks[1])
    assert ("masks" in vars(later)) == (not within)
    assert np.array_equal(later.taken(choice).masks, now.taken(choice).masks)
    assert np.array_equal(later.masks, now.masks)


# agreement, behaviour


def test_the_whole_wins_over_its_part_and_a_group() -> None:
    part, whole = disc(9, 9, 1), disc(9, 9, 3)
    group = disc(9, 12, 6.5)
    assert (group & whole).sum() > 0.9 * whole.sum()
    for scores in ([0.95, 0.88, 0.9], [0.85, 0.8, 0.95]):
        choice = choose([part, whole, group], scores, blobs((9, 9, 1)), prompt((95, 95)))
        assert choice.index == 1
        by_score = int(np.argmax(scores))
        assert f"SAM's score alone would take the one of {scores[by_score]:.3f}" in choice.reason
        assert f"score {scores[1]:.3f}" in choice.reason
        for name in ("total", "correlation", "contrast"):
            assert f"{name} {choice.figures[name][1]:.3f}" in choice.reason
            assert int(choice.figures[name].argmax()) == 1


def test_a_second_object_of_the_name_does_not_matter() -> None:
    masks = [disc(9, 4, 1), disc(9, 4, 3), disc(9, 9.5, 8.5), disc(9, 15, 3)]
    assert (masks[2] & masks[1]).sum() > 0.9 * masks[1].sum()  # both, and what lies between
    for height in (0.7, 1.0, 1.3):
        similarity = blobs((9, 4, 1), (9, 15, height))
        choice = choose(masks, [0.9, 0.88, 0.9, 0.9], similarity, prompt((45, 95)))
        assert choice.index == 1
        raw = agreement(Offer(np.stack(masks), np.ones(4, np.float32), similarity, PointPrompts.empty(), logits_of(4)))
        assert choice.figures["correlation"][1] > raw["correlation"][1] + 0.05
        assert choice.figures["correlation"][3] < raw["correlation"][3] - 0.05


def test_the_hottest_positive_point_says_which_object_it_is() -> None:
    similarity = blobs((9, 4, 1), (9, 15, 0.9))
    for points in (prompt((45, 95), (10, 10)), prompt((10, 10), (45, 95))):
        assert choose([disc(9, 4, 3), disc(9, 15, 3)], [0.8, 0.8], similarity, points).index == 0


@st.composite
def questions(draw: st.DrawFn) -> tuple[Any, ...]:
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    count = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 1000))
    random = np.random.default_rng(seed)
    masks = random.random((count, 1, 1)) > random.random((count, *shape)) * draw(st.sampled_from([0.3, 1, 5]))
    scores = draw(arrays(np.float32, count, elements=st.floats(-0.25, 1.25, width=32)))
    values = draw(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(-4, 4).map(float)))
    number = draw(st.integers(0, 3))
    points = PointPrompts(
        (random.random((number, 2)) * shape[::-1]).astype(np.float32), random.integers(0, 2, number).astype(np.uint8)
    )
    return masks, scores, values, points, random.normal(0, 2, (count, 5, 5)).astype(np.float32)


@fast
@given(questions(), st.sampled_from([-60, -3, 4, 60]))
def test_figures_stay_in_range(question: tuple[Any, ...], power: int) -> None:
    masks, scores, values, points, logits = question
    choice = choose_by_agreement(Offer(masks, scores, SimilarityMap(values), points, logits))
    figures = choice.figures
    assert choice.index == int(np.argmax(figures["total"]))
    for name, low in (("total", 0), ("points", 0), ("stability", 0), ("correlation", -1), ("contrast", -1)):
        assert (figures[name] >= low - 1e-5).all()
        assert (figures[name] <= 1 + 1e-5).all()
    assert (figures["total"][~masks.any((1, 2))] == 0).all()
    assert ((figures["total"] >= 0) & (figures["total"] <= 1)).all()
    scaled = agreement(Offer(masks, scores, SimilarityMap(values * np.float32(2.0**power)), points, logits))
    assert all(np.array_equal(scaled[name], figures[name]) for name in figures)
    backwards = agreement(Offer(masks[::-1], scores[::-1], SimilarityMap(values), points, logits[::-1]))
    assert all(np.allclose(backwards[name][::-1], figures[name], atol=1e-6) for name in figures)


@pytest.mark.parametrize("seed", range(3))
def test_a_constant_on_the_map_changes_nothing(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2048, (7, 9)).astype(np.float32)
    rest = (prompt((7, 33)), logits_of(4))
    one, other = (
        agreement(Offer(some_masks(seed), np.ones(4, np.float32), SimilarityMap(v), *rest))
        for v in (values, values + np.float32(4096))
    )
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)


# different objects


def box(top: int, left: int, bottom: int, right: int, side: int = 30) -> NDArray[np.bool_]:
    out = np.zeros((side, side), bool)
    out[top:bottom, left:right] = True
    return out


def test_no_masks_are_no_objects() -> None:
    assert distinct([], []) == []
    assert distinct([box(0, 0, 0, 0)], [1.0]) == []
    assert distinct([box(0, 0, 0, 0), box(3, 3, 9, 9), box(0, 0, 0, 0)], [1.0, 0.1, 0.9]) == [1]


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, 0.5, 0.5]])
def test_objects_want_a_score_each(scores: list[float]) -> None:
    with pytest.raises(InputError, match="one score per mask"):
        distinct([box(0, 0, 5, 5), box(5, 5, 9, 9)], scores)


def test_objects_are_of_one_image() -> None:
    with pytest.raises(InputError, match="one shape"):
        distinct([box(0, 0, 5, 5), box(0, 0, 5, 5)[1:]], [0.5, 0.5])


def test_objects_that_touch_stay_apart_and_duplicates_become_one() -> None:
    left = box(5, 2, 20, 12)
    assert distinct([left, box(5, 10, 20, 20)], [0.8, 0.7]) == [0, 1]  # a fifth in common
    assert distinct([box(0, 0, 15, 16), box(0, 5, 15, 21)], [0.9, 0.8]) == [0]  # 11 columns of 21
    assert distinct([box(0, 0, 15, 16), box(0, 6, 15, 22)], [0.9, 0.8]) == [0, 1]  # 10 of 22
    assert distinct([box(0, 0, 20, 20), box(0, 18, 20, 28)], [0.9, 0.8]) == [0, 1]  # a fifth of the second
    assert distinct([box(0, 0, 20, 30), box(2, 12, 22, 14)], [0.9, 0.8]) == [0]  # nine tenths of it
    assert distinct([box(0, 0, 20, 30), box(4, 12, 24, 14)], [0.9, 0.8]) == [0, 1]  # four fifths


def reading(masks: list[NDArray[np.bool_]], scores: list[float], iou: Fraction, containment: Fraction) -> list[int]:
    """The docstring, word by word, on sets of pixels."""
    pixels = [frozenset(map(tuple, np.argwhere(m).tolist())) for m in masks]

    def beats(a: int, b: int) -> bool:
        return (scores[a], -a) > (scores[b], -b)

    def one_object(a: int, b: int) -> bool:
        both = len(pixels[a] & pixels[b])
        return Fraction(both, len(pixels[a] | pixels[b])) > iou or any(
            Fraction(both, len(pixels[k])) > containment for k in (a, b)
        )

    def stays(k: int, among: set[int]) -> bool:
        return not any(one_object(k, j) and stays(j, among) for j in among if beats(j, k))

    objects = {k for k in range(len(masks)) if pixels[k]}
    kept = [k for k in objects if stays(k, objects)]
    return sorted(kept, key=lambda k: (-scores[k], k))


RECTANGLES = st.tuples(*[st.integers(0, 8)] * 4)


@settings(fast, max_examples=100)
@given(
    st.lists(st.tuples(RECTANGLES, st.sampled_from([0.25, 0.5, 0.625, 0.75, 1])), max_size=6),
    st.sampled_from([0.25, 0.5]),
    st.sampled_from([0.5, 0.75, 1.0]),
)
def test_distinct_against_its_docstring(
    drawn: list[tuple[tuple[int, int, int, int], float]], iou: float, containment: float
) -> None:
    masks = [box(*corners, side=8) for corners, _ in drawn]
    scores = [score for _, score in drawn]
    expected = reading(masks, scores, Fraction(iou), Fraction(containment))
    assert distinct(masks, scores, iou=iou, containment=containment) == expected


def test_likeness_decides_among_masks_that_fit_alike() -> None:
    masks, scores = np.stack([disc(10, 10, 3), disc(10, 10, 5)]), np.array([0.8, 0.7], np.float32)
    prompted = blobs((10, 10, 1.0)), prompt((100, 100)), logits_of(2)
    assert choose_by_agreement(Offer(masks, scores, *prompted)).index == 0
    choice = choose_by_agreement(Offer(masks, scores, *prompted, lambda masks: np.array([0.1, 0.9], np.float32)))
    assert choice.index == 1
    assert "likeness 0.900" in choice.reason
