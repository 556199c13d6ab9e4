"""Masks without specks, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from text2sam.masks import without_specks


def drawn(rows: str) -> NDArray[np.bool_]:
    return np.array([[c == "#" for c in row] for row in rows.split()])


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("value", [False, True])
def test_nothing_and_everything_stay(value: bool, share: float) -> None:
    mask = np.full((5, 7), value)
    assert np.array_equal(without_specks(mask, share), mask)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # a hole of one pixel, a notch, and an island of three pixels
        (0.01, "....#..... ######..## #.##....#. ######.... .#####...."),
        (0.07, "....#..... ######..## ####....#. ######.... .#####...."),
        (0.13, "....#..... ######.... ####...... ######.... .#####...."),
    ],
)
def test_specks_by_hand(share: float, expected: str) -> None:
    mask = drawn("....#..... ######..## #.##....#. ######.... .#####....")
    assert without_specks(mask, share).tolist() == drawn(expected).tolist()


@pytest.mark.parametrize("turns", range(4))
def test_what_is_a_speck_by_its_neighbours_and_by_just_its_size(turns: int) -> None:
    # a part that hangs on by a corner, a notch at the border, an island, and a hole with a corner to the outside
    mask = np.rot90(drawn("....#..... ..##...... #####..... .###...... ####...#.. #.#....... ##........"), turns)
    expected = np.rot90(drawn("....#..... ..##...... #####..... .###...... ####...... ###....... ##........"), turns)
    assert mask.sum() == 20
    assert without_specks(mask, 0.05).tolist() == mask.tolist(), "each has just the share"
    assert without_specks(mask, 0.06).tolist() == expected.tolist()


def test_specks_within_specks() -> None:
    body = np.zeros((60, 60), bool)
    body[:40] = True
    mask = body.copy()
    mask[9:14, 9:14] = False
    mask[11, 11] = True  # an island in a hole
    mask[49:52, 49:52] = True
    mask[50, 50] = False  # a hole in an island
    assert np.array_equal(without_specks(mask, 0.02), body)


def test_the_largest_island_stays_however_small() -> None:
    mask = np.zeros((9, 9), bool)
    mask[::4, ::4] = True
    mask[0, 1] = True
    assert without_specks(mask, 0.5).sum() == 2


def test_a_mask_without_specks_is_not_copied() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    assert without_specks(mask, 0.5) is mask


@pytest.mark.parametrize("seed", range(20))
def test_specks_against_a_search_pixel_by_pixel(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((14, 11)) < random.uniform(0.2, 0.8)
    share = float(random.uniform(0, 0.3))
    expected, least = mask.copy(), share * mask.sum()
    for hole in regions(~mask, [(0, 1), (1, 0), (0, -1), (-1, 0)]):
        if len(hole) < least and not any(i in (0, 13) or j in (0, 10) for i, j in hole):
            expected[tuple(zip(*hole, strict=True))] = True
    islands = regions(expected, [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    for island in islands:
        if len(island) < min(least, max(map(len, islands))):
            expected[tuple(zip(*island, strict=True))] = False
    assert without_specks(mask, share).tolist() == expected.tolist()


def regions(mask: NDArray[np.bool_], steps: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    left, found = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        region = [left.pop()]
        for i, j in region:
            near = {(i + di, j + dj) for di, dj in steps} & left
            left -= near
            region += near
        found.append([(int(i), int(j)) for i, j in region])
    return found
