from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from text2sam.errors import InputError
from text2sam.points import points_from_similarity
from text2sam.types import SimilarityMap

fast = settings(max_examples=60, deadline=None, derandomize=True, database=None)


# degenerate


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7, 123.456, 1e30, 1e-40])
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (5, 7), (7, 7), (14, 15), (32, 32), (37, 37)])
def test_flat_maps_give_none(grid: tuple[int, int], value: float) -> None:
    for downsample in (1, 2, 3, 5):
        points = points_from_similarity(np.full(grid, value, np.float32), (100, 130), downsample=downsample)
        assert points.coords.shape == (0, 2)
        assert points.labels.shape == (0,)


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (3, 3), (2, 3)])
def test_maps_that_shrink_to_one_cell_give_none(grid: tuple[int, int]) -> None:
    values = np.arange(grid[0] * grid[1], dtype=np.float32).reshape(grid)
    assert len(points_from_similarity(values, (10, 10), downsample=3)) == 0


def test_smallest_image() -> None:
    points = points_from_similarity(np.arange(36, dtype=np.float32).reshape(6, 6), (1, 1))
    assert points.coords.tolist() == [[0, 0]] * len(points)
    assert len(points) > 0


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (2, 3)])
def test_thin_images(shape: tuple[int, int]) -> None:
    points = points_from_similarity(np.random.default_rng(0).random((8, 8), np.float32), shape, threshold=0.3)
    assert len(points) > 0
    assert (points.coords >= 0).all()
    assert (points.coords < [shape[1], shape[0]]).all()


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


@pytest.mark.parametrize("shape", [(0, 5), (5, -1), (5,), (5, 5, 3), 5, None, "55", (5.5, 5), (math.inf, 5)])
def test_shapes_that_are_none(shape: Any) -> None:
    with pytest.raises(InputError, match="shape must be"):
        points_from_similarity(RAMP, shape)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, math.inf])
def test_thresholds_out_of_range(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold must be in"):
        points_from_similarity(RAMP, (10, 10), threshold=threshold)


@pytest.mark.parametrize("downsample", [0, -1, 1.5, "2", None])
def test_downsampling_out_of_range(downsample: Any) -> None:
    with pytest.raises(InputError, match="downsample must be"):
        points_from_similarity(RAMP, (10, 10), downsample=downsample)


def test_thresholds_at_the_ends() -> None:
    lowest = points_from_similarity(RAMP, (40, 40), threshold=0, downsample=1)
    assert len(lowest.positive) == len(lowest.negative) == 8  # every cell, but at most half of them
    highest = points_from_similarity(RAMP, (40, 40), threshold=1, downsample=1)
    assert highest.coords.tolist() == [[35, 35], [5, 5]]
    two = RAMP.copy()
    two[0, 3] = 15
    assert len(points_from_similarity(two, (40, 40), threshold=1, downsample=1).positive) == 2


def test_ties_go_by_position() -> None:
    values = np.zeros((2, 4), np.float32)
    values[1, 1:3] = 1
    points = points_from_similarity(values, (20, 40), downsample=1)
    assert points.coords.tolist() == [[15, 15], [25, 15], [5, 5], [15, 5]]


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


def test_defaults_are_the_papers() -> None:
    values = np.random.default_rng(0).random((14, 14), np.float32)
    points, same = points_from_similarity(values, (90, 120)), points_from_similarity(values, (90, 120), 0.8, 2)
    assert np.array_equal(points.coords, same.coords)
    assert np.array_equal(points.coords, points_from_similarity(values.astype(np.float64), (90, 120)).coords)
    assert np.array_equal(points.coords, points_from_similarity(values[::-1, ::-1][::-1, ::-1], (90, 120)).coords)
