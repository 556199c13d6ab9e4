from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import blobs
from helpers import patch_disc as disc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion
from skimage.measure import label

from text2sam.errors import InputError
from text2sam.recipes.points import (
    SMOOTHING,
    PeakRule,
    RegionRule,
    heat_of,
    hot_component,
    patch_of,
    patch_shares,
    points_from_similarity,
)
from text2sam.types import SimilarityMap

fast = settings(max_examples=60, deadline=None, derandomize=True, database=None)
faster = settings(fast, max_examples=30)


# degenerate


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e30, 1e-40])
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 3), (5, 7), (32, 32), (37, 37)])
def test_flat_maps_give_none(grid: tuple[int, int], value: float) -> None:
    for downsample in (1, 2, 3, 5):
        points = points_from_similarity(np.full(grid, value, np.float32), (100, 130), downsample=downsample)
        assert points.coords.shape == (0, 2)
        assert points.labels.shape == (0,)


def test_rows_and_lines_of_cells() -> None:
    ramp = np.arange(8, dtype=np.float32)
    across = points_from_similarity(ramp[None], (10, 80), downsample=1)
    assert across.coords.tolist() == [[65, 5], [75, 5], [5, 5], [15, 5]]
    down = points_from_similarity(ramp[:, None], (80, 10), downsample=1)
    assert down.coords.tolist() == [[5, 65], [5, 75], [5, 5], [5, 15]]
    assert across.labels.tolist() == down.labels.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "values",
    [
        np.full((3, 3), np.nan, np.float32),
        np.array([[0, np.inf]], np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros(9, np.float32),
        np.zeros((1, 3, 3), np.float32),
        None,
        "map",
        [[1, 2], [3]],
        torch.zeros(2, 2, requires_grad=True),
    ],
)
def test_values_that_are_no_map(values: Any) -> None:
    with pytest.raises(InputError, match="values must be a finite, non-empty array"):
        points_from_similarity(values, (10, 10))


RAMP = np.arange(16, dtype=np.float32).reshape(4, 4)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, math.inf])
def test_thresholds_out_of_range(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold must be a number in"):
        points_from_similarity(RAMP, (10, 10), threshold=threshold)


@pytest.mark.parametrize("downsample", [0, -1, 1.5, "2", None])
def test_downsampling_out_of_range(downsample: Any) -> None:
    with pytest.raises(InputError, match="downsample must be"):
        points_from_similarity(RAMP, (10, 10), downsample=downsample)


# parity with plain Python


def shrunk(values: list[list[float]], factor: int) -> list[list[float]]:
    def axis(old: int) -> list[list[tuple[int, float]]]:
        new, places = max(1, old // factor), []
        for i in range(new):
            place = max((i + 0.5) * old / new - 0.5, 0.0)
            low = int(place)
            places.append([(low, 1 - place + low), (min(low + 1, old - 1), place - low)])
        return places

    across = axis(len(values[0]))
    return [[sum(values[r][c] * p * q for r, p in row for c, q in column) for column in across] for row in axis(len(values))]


def naive(values: np.ndarray, shape: tuple[int, int], threshold: float, factor: int) -> tuple[list[list[int]], list[int]]:
    small = shrunk(values.astype(float).tolist(), factor)
    rows, columns = len(small), len(small[0])
    cells = [(v, r, c) for r, line in enumerate(small) for c, v in enumerate(line)]
    low, high = min(cells)[0], max(cells)[0]
    if low == high:
        return [], []
    hot = sum((v - low) / (high - low) >= threshold for v, _, _ in cells)
    count = min(hot, len(cells) // 2)
    order = sorted(cells, key=lambda cell: cell[0])
    coords = [
        [
            min(int((c + 0.5) * (shape[1] / columns)), shape[1] - 1),
            min(int((r + 0.5) * (shape[0] / rows)), shape[0] - 1),
        ]
        for _, r, c in order[len(order) - count :] + order[:count]
    ]
    return coords, [1] * count + [0] * count


# sizes at which shrinking has weights that float32 holds exactly, so that ties stay ties
EXACT = {1: st.integers(1, 9), 2: st.sampled_from([1, 2, 3, 4, 5, 6, 8, 9, 10]), 4: st.sampled_from([1, 4, 5, 8, 9, 12])}
SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@st.composite
def exact_maps(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    factor = draw(st.sampled_from(sorted(EXACT)))
    grid = draw(st.tuples(EXACT[factor], EXACT[factor]))
    return draw(arrays(np.float32, grid, elements=st.integers(-4, 4).map(float), fill=st.nothing())), factor


# no fraction of small whole numbers comes near these
@fast
@given(exact_maps(), SHAPES, st.sampled_from([0.0, 0.3141592, 0.6543219, 0.7987654, 1.0]))
def test_against_plain_python(drawn: tuple[np.ndarray, int], shape: tuple[int, int], threshold: float) -> None:
    values, factor = drawn
    points = points_from_similarity(values, shape, threshold, factor)
    coords, labels = naive(values, shape, threshold, factor)
    assert points.coords.tolist() == coords
    assert points.labels.tolist() == labels


# properties


@fast
@given(
    arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(-(2.0**90), 2.0**90, width=32)),
    SHAPES,
    st.floats(0, 1),
    st.integers(1, 13),
)
def test_points_lie_in_the_image(values: np.ndarray, shape: tuple[int, int], threshold: float, downsample: int) -> None:
    before = values.copy()
    points = points_from_similarity(values, shape, threshold, downsample)
    assert np.array_equal(values, before)
    count = len(points) // 2
    assert points.labels.tolist() == [1] * count + [0] * count
    assert points.coords.dtype == np.float32
    assert points.labels.dtype == np.uint8
    assert np.array_equal(points.coords, np.floor(points.coords))
    assert ((points.coords >= 0) & (points.coords <= [shape[1] - 1, shape[0] - 1])).all()
    cells = max(1, values.shape[0] // downsample) * max(1, values.shape[1] // downsample)
    assert count <= cells // 2
    again = points_from_similarity(SimilarityMap(values), shape, threshold, downsample)
    assert np.array_equal(points.coords, again.coords)


@fast
@given(exact_maps(), SHAPES)
def test_scale_and_offset_do_not_matter(drawn: tuple[np.ndarray, int], shape: tuple[int, int]) -> None:
    values, factor = drawn
    one, other = (points_from_similarity(v, shape, 0.7987654, factor) for v in (values, values * 8 + 64))
    assert np.array_equal(one.coords, other.coords)


# the smoothed map


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (1, 9), (9, 1), (2, 2), (5, 4)])
def test_heat_against_a_loop(grid: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(grid, np.float32)
    reach = int(4 * SMOOTHING + 0.5)
    weights = [math.exp(-0.5 * (k / SMOOTHING) ** 2) for k in range(-reach, reach + 1)]
    smooth = np.zeros(grid)
    for r, c in np.ndindex(grid):
        for i, p in enumerate(weights):
            for j, q in enumerate(weights):
                row, column = min(max(r + i - reach, 0), grid[0] - 1), min(max(c + j - reach, 0), grid[1] - 1)
                smooth[r, c] += p * q * values[row, column] / sum(weights) ** 2
    expected = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    np.testing.assert_allclose(heat_of(SimilarityMap(values)), expected, atol=1e-6)


INTEGERS = arrays(np.float32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(-4, 4).map(float))


@faster
@given(INTEGERS, st.sampled_from([-90, -40, -3, 5, 90]))
def test_heat_does_not_know_scale_and_offset(values: np.ndarray, power: int) -> None:
    heat = heat_of(SimilarityMap(values))
    assert heat.min() == 0
    assert heat.max() == (0 if values.min() == values.max() else 1)
    assert np.array_equal(heat_of(SimilarityMap(values * np.float32(2.0**power))), heat)
    np.testing.assert_allclose(heat_of(SimilarityMap(values + np.float32(64))), heat, atol=1e-6)


# shares of patches


def touched(index: int, length: int, patches: int) -> list[int]:
    """The pixels k, from k to k + 1, that a patch has in common with more than an edge."""
    return [k for k in range(length) if k * patches < (index + 1) * length and (k + 1) * patches > index * length]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 12), (9, 13), (31, 7)])
def test_shares_against_a_loop(shape: tuple[int, int]) -> None:
    some = np.random.default_rng(1).random((3, *shape)) < 0.4
    masks = np.stack([*some, np.zeros(shape, bool), np.ones(shape, bool)])
    assert patch_shares(masks[:0], (4, 6)).shape == (0, 4, 6)
    for grid in ((1, 1), (1, 6), (4, 6), (7, 5)):
        shares, expected = patch_shares(masks, grid), np.zeros((5, *grid))
        for r, c in np.ndindex(grid):
            rows, columns = touched(r, shape[0], grid[0]), touched(c, shape[1], grid[1])
            expected[:, r, c] = masks[:, rows][:, :, columns].mean((1, 2))
        assert shares.dtype == np.float32
        np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_shares_of_a_mask_whose_true_is_255() -> None:
    """As Pillow makes them of pictures in mode 1."""
    masks = np.array([[[255, 0], [255, 255]]], np.uint8).view(bool)
    assert patch_shares(masks, (1, 2)).tolist() == [[[1, 0.5]]]


# patches and hot regions


@faster
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 12), st.integers(1, 12), st.data())
def test_the_patch_of_a_pixel(h: int, w: int, gh: int, gw: int, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    row, column = patch_of(np.array([x, y], np.float32), (h, w), (gh, gw))
    assert row * h <= y * gh < (row + 1) * h
    assert column * w <= x * gw < (column + 1) * w


@pytest.mark.parametrize(
    ("point", "patch"),
    [((-0.5, -9), (0, 0)), ((30, 20), (3, 4)), ((-1e38, 1e38), (3, 0)), ((3e38, -3e38), (0, 4)), ((29.9, 19.9), (3, 4))],
)
def test_points_outside_count_to_the_nearest_patch(point: tuple[float, float], patch: tuple[int, int]) -> None:
    assert patch_of(np.array(point, np.float32), (20, 30), (4, 5)) == patch


@faster
@given(
    arrays(np.float32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([0, 0.25, 0.5, 1])),
    st.sampled_from([0, 0.25, 0.5, 0.75, 1, 2]),
    st.data(),
)
def test_hot_component_against_skimage(heat: np.ndarray, threshold: float, data: st.DataObject) -> None:
    at = data.draw(st.tuples(*(st.integers(0, n - 1) for n in heat.shape)))
    before = heat.copy()
    found = hot_component(heat, at, threshold)
    assert found.dtype == np.bool_
    assert np.array_equal(heat, before)
    if heat[at] >= threshold:
        regions = label(heat >= threshold, connectivity=2)
        assert np.array_equal(found, regions == regions[at])
    else:
        assert np.argwhere(found).tolist() == [list(at)]


# one point per peak


def window(patch: tuple[int, int], shape: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels a patch touches."""
    out = np.zeros(shape, bool)
    out[np.ix_(*(touched(index, length, n) for index, length, n in zip(patch, shape, grid, strict=True)))] = True
    return out


def patches(points: np.ndarray, shape: tuple[int, int], grid: tuple[int, ...]) -> list[tuple[int, int]]:
    return [patch_of(point, shape, grid) for point in points]


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (4, 4)])
@pytest.mark.parametrize("negatives", [0, 3])
def test_a_flat_map_has_no_peak(grid: tuple[int, int], negatives: int) -> None:
    flat = SimilarityMap(np.full(grid, 0.2, np.float32))
    for taken in ([], [np.zeros((30, 40), bool)], [np.ones((30, 40), bool)]):
        points = PeakRule(negatives=negatives)(flat, (30, 40), taken)
        assert points.coords.shape == (0, 2)
        assert points.labels.shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (3, 5), (13, 9)])
def test_peaks_in_images_smaller_than_the_grid(shape: tuple[int, int]) -> None:
    points = PeakRule(negatives=3)(blobs((4, 15, 1)), shape)
    assert points.labels[0] == 1
    x, y = points.coords[0]
    assert x in touched(15, shape[1], 20)
    assert y in touched(4, shape[0], 20)
    assert ((points.coords >= 0) & (points.coords < [shape[1], shape[0]])).all()


def test_masks_without_pixels_take_nothing() -> None:
    similarity = blobs((5, 6, 1), (14, 12, 0.8))
    first = PeakRule()(similarity, (200, 200))
    assert PeakRule()(similarity, (200, 200), [np.zeros((200, 200), bool)]).coords.tolist() == first.coords.tolist()
    assert first.coords.tolist() == [[65, 55]]
    assert first.labels.tolist() == [1]


@pytest.mark.parametrize("stacked", [False, True])
def test_two_blobs_one_after_the_other(stacked: bool) -> None:
    similarity, rule = blobs((5, 6, 0.8), (14, 12, 1)), PeakRule(hot=0.5)
    taken = [disc(14, 12, 3), disc(5, 6, 3)]
    found = [rule(similarity, (200, 200), np.stack(taken[:k]) if stacked and k else taken[:k]) for k in range(3)]
    assert patches(found[0].coords, (200, 200), (20, 20)) == [(14, 12)]
    assert patches(found[1].coords, (200, 200), (20, 20)) == [(5, 6)]
    assert len(found[2]) == 0


def test_weak_peaks_are_left() -> None:
    similarity, taken = blobs((5, 6, 0.4), (14, 12, 1)), [disc(14, 12, 3)]
    assert len(PeakRule(hot=0.5)(similarity, (200, 200), taken)) == 0
    assert patches(PeakRule(hot=0.3)(similarity, (200, 200), taken).coords, (200, 200), (20, 20)) == [(5, 6)]


def test_the_slope_of_a_found_object_is_no_peak() -> None:
    similarity = blobs((9, 9, 1), width=4)
    core = disc(9, 9, 1.5)
    assert (patch_shares(core[None], (20, 20))[0] < (heat_of(similarity) >= 0.6)).sum() > 20  # hot patches left out
    assert len(PeakRule(hot=0.6)(similarity, (200, 200), [core])) == 0


def test_touching_objects_with_a_peak_each() -> None:
    similarity = blobs((9, 6, 1), (9, 12, 0.9), width=2.2)
    heat = heat_of(similarity)
    assert hot_component(heat, (9, 6), 0.5)[9, 12]
    left = disc(9, 9, 9) & (np.arange(200) < 95)
    points = PeakRule(hot=0.5)(similarity, (200, 200), [left])
    assert patches(points.coords, (200, 200), (20, 20)) == [(9, 12)]
    assert len(PeakRule(hot=0.5)(similarity, (200, 200), [left, disc(9, 9, 9) & ~left])) == 0


def test_how_much_of_a_peak_may_be_covered() -> None:
    similarity = blobs((9, 9, 1))
    quarter = np.zeros((200, 200), bool)
    quarter[90:95, 90:95] = True
    assert len(PeakRule(free=0.25)(similarity, (200, 200), [quarter])) == 1
    assert len(PeakRule(free=0.24)(similarity, (200, 200), [quarter])) == 0
    other = np.roll(quarter, 5, 0)
    assert len(PeakRule(free=0.25)(similarity, (200, 200), [quarter, quarter])) == 1
    assert len(PeakRule(free=0.25)(similarity, (200, 200), [quarter, other])) == 0  # together they cover half of it


@faster
@given(INTEGERS, st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_a_walk_never_comes_back(values: np.ndarray, shape: tuple[int, int]) -> None:
    similarity, rule = SimilarityMap(values), PeakRule(hot=0.01)
    taken: list[np.ndarray] = []
    seen = set()
    while len(points := rule(similarity, shape, taken)):
        pixel = tuple(points.coords[0].tolist())
        assert pixel not in seen
        seen.add(pixel)
        patch = patch_of(points.coords[0], shape, values.shape)
        if all(n <= length for n, length in zip(values.shape, shape, strict=True)):
            assert heat_of(similarity)[patch] >= rule.hot
        taken.append(window(patch, shape, values.shape))


@faster
@given(
    arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-(2.0**90), 2.0**90, width=32)),
    SHAPES,
    st.integers(0, 4),
)
def test_peaks_and_valleys_lie_in_the_image(values: np.ndarray, shape: tuple[int, int], negatives: int) -> None:
    before = values.copy()
    rule = PeakRule(negatives=negatives, cold=0.3)
    points = rule(SimilarityMap(values), shape)
    assert np.array_equal(values, before)
    assert bool(len(points)) == (values.min() < values.max())
    assert len(points) <= 1 + negatives
    assert points.labels.tolist() == [1, 0, 0, 0, 0][: len(points)]
    assert np.array_equal(points.coords, np.floor(points.coords))
    assert ((points.coords >= 0) & (points.coords <= [shape[1] - 1, shape[0] - 1])).all()
    if all(n <= length for n, length in zip(values.shape, shape, strict=True)):
        heat = heat_of(SimilarityMap(values))
        assert all(heat[patch] <= rule.cold for patch in patches(points.negative, shape, values.shape))
        assert all(heat[patch] == 1 for patch in patches(points.positive, shape, values.shape))


@pytest.mark.parametrize("seed", range(4))
def test_peaks_do_not_know_scale_and_offset(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2048, (9, 11)).astype(np.float32)
    rule, taken = PeakRule(negatives=3, cold=0.4), [disc(5, 5, 3, 99, 9)[:90]]
    for masks in ([], taken):
        points = rule(SimilarityMap(values), (90, 99), masks)
        assert len(points)
        for other in (values * np.float32(2**-60), values * np.float32(3), values + np.float32(4096)):
            assert np.array_equal(rule(SimilarityMap(other), (90, 99), masks).coords, points.coords)


# negative points


def chessboard(region: np.ndarray, patch: tuple[int, int]) -> int:
    return int(np.abs(np.argwhere(region) - patch).max(1).min())


@pytest.mark.parametrize("reach", [2, 3, 5])
def test_negative_points_lie_in_the_valleys(reach: int) -> None:
    similarity = blobs((9, 8, 1), (9, 15, 0.7), (3, 3, 0.5))
    rule, heat = PeakRule(negatives=4, cold=0.49, reach=reach), heat_of(similarity)  # as cold as what touches the region
    points = rule(similarity, (200, 200))
    assert points.labels.tolist() == [1, 0, 0, 0, 0]
    region = hot_component(heat, (9, 8), 0.5)
    valley = [p for p in np.ndindex(20, 20) if heat[p] <= rule.cold and 1 < chessboard(region, p) <= reach]
    chosen = patches(points.negative, (200, 200), (20, 20))
    assert set(chosen) <= set(valley)
    assert heat[chosen[0]] == min(heat[p] for p in valley)
    for k in range(1, 4):  # each as far from those before as can be
        apart = {p: min(math.dist(p, q) for q in chosen[:k]) for p in valley}
        assert apart[chosen[k]] == pytest.approx(max(apart.values()))
    every = PeakRule(negatives=400, cold=0.49, reach=reach)(similarity, (200, 200))
    assert sorted(patches(every.negative, (200, 200), (20, 20))) == valley


# regions


def disc_map(*discs: tuple[float, float, float, float], grid: tuple[int, int] = (24, 32)) -> SimilarityMap:
    """(row, column, radius, heat) each; 0 elsewhere."""
    rows, columns = np.indices(grid)
    values = np.zeros(grid, np.float32)
    for row, column, radius, heat in discs:
        values[np.hypot(rows - row, columns - column) <= radius] = heat
    return SimilarityMap(values)


def test_the_region_of_a_flat_map_and_of_one_patch() -> None:
    flat = SimilarityMap(np.zeros((3, 4), np.float32))
    points, box = RegionRule(0.5, box=True, spread=0)(flat, (30, 40), (1, 2))
    assert points.coords.tolist() == [[25, 15]]
    assert box is not None
    assert box.tolist() == [0, 0, 40, 30]  # everything is as hot as the peak
    points, box = RegionRule(0.5, box=True)(SimilarityMap(np.ones((1, 1), np.float32)), (7, 9), (0, 0))
    assert len(points) == 1
    assert box is not None
    assert box.tolist() == [0, 0, 9, 7]


@pytest.mark.parametrize("shape", [(1, 40), (240, 320), (37, 91)])
def test_points_and_box_of_a_region(shape: tuple[int, int]) -> None:
    similarity = disc_map((10, 12, 6, 1.0), (18, 27, 3, 0.9))
    points, box = RegionRule(0.5, box=True)(similarity, shape, (10, 12))
    region = hot_component(heat_of(similarity), (10, 12), 0.5)
    assert points.labels.tolist() == [1] * 4
    patches = [patch_of(point, shape, (24, 32)) for point in points.coords]
    if shape[0] >= 24 and shape[1] >= 32:
        assert patches[0] == (10, 12)
        inside = binary_erosion(region, border_value=1)
        assert region[patches[0]]
        assert all(inside[patch] for patch in patches[1:])
        apart = [np.hypot(a[0] - b[0], a[1] - b[1]) for k, a in enumerate(patches) for b in patches[:k]]
        assert min(apart) >= 4
    rows, columns = np.nonzero(region)
    h, w = shape
    expected = [columns.min() * w / 32, rows.min() * h / 24, (columns.max() + 1) * w / 32, (rows.max() + 1) * h / 24]
    assert box is not None
    np.testing.assert_allclose(box, expected, rtol=1e-6)
    assert box[2] < 24 * w / 32  # the other disc is no part of it


def test_a_region_at_the_border_has_points_there() -> None:
    points, _ = RegionRule(0.5)(disc_map((0, 12, 6, 1.0)), (240, 320), (0, 12))
    assert [patch_of(point, (240, 320), (24, 32))[0] for point in points.coords[:3]] == [0, 0, 0]


def test_levels_count_from_the_median() -> None:
    """Warm ground is no part of an object, however warm it is."""
    similarity = disc_map((10, 12, 4, 10.0))
    raised = SimilarityMap(np.where(similarity.values > 0, similarity.values, np.float32(7.0)))
    raised.values[0, 0] = -90.0
    boxes = [RegionRule(0.5, box=True)(each, (240, 320), (10, 12))[1] for each in (similarity, raised)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[1][2] - boxes[1][0] < 120


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_how_many_points_are_spread(count: int) -> None:
    points, box = RegionRule(0.5, spread=count)(disc_map((10, 12, 6, 1.0)), (240, 320), (10, 12))
    assert (len(points), box) == (count + 1, None)
    points, _ = RegionRule(0.5, spread=count)(disc_map((10, 12, 0.5, 1.0)), (240, 320), (10, 12))
    assert len(points) <= 1 + min(count, 2)  # a region of a few patches holds no more that are apart


@pytest.mark.parametrize(("places", "spread"), [([(10, 11), (9, 12)], []), ([(9, 11)], [(9, 11)]), ([(10, 14)], [(10, 14)])])
def test_a_patch_beside_the_peak_is_no_place_of_its_own(places: list[tuple[int, int]], spread: list[tuple[int, int]]) -> None:
    values = np.zeros((24, 32), np.float32)
    for row, column in [(10, 12), (10, 13), *places]:
        values[row, column] = 1
    points, _ = RegionRule(0.5, spread=5)(SimilarityMap(values), (240, 320), (10, 12))
    assert [patch_of(point, (240, 320), (24, 32)) for point in points.coords] == [(10, 12), *spread]


def test_prompts_around_a_peak_are_those_of_the_rules() -> None:
    similarity, rule = disc_map((10, 12, 6, 1.0)), PeakRule(regions=(RegionRule(0.5), RegionRule(0.6, box=True)))
    first = rule(similarity, (240, 320))
    seen = rule.around(similarity, (240, 320), first)
    assert [box is None for _, box in seen] == [True, False]
    assert PeakRule().around(similarity, (240, 320), first) == []
    at = patch_of(first.positive[0], (240, 320), (24, 32))
    assert seen[0][0].coords.tolist() == RegionRule(0.5)(similarity, (240, 320), at)[0].coords.tolist()
