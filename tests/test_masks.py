"""Masks without specks, by hand, and as logits against the masks that are made of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from text2sam.masks import LogitMasks, without_specks


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


@pytest.mark.parametrize("logits", [False, True])
def test_specks_within_specks(logits: bool) -> None:
    body = np.zeros((60, 60), bool)
    body[:40] = True
    mask = body.copy()
    mask[9:14, 9:14] = False
    mask[11, 11] = True  # an island in a hole
    mask[49:52, 49:52] = True
    mask[50, 50] = False  # a hole in an island
    if logits:
        lazy = LogitMasks(np.where(mask, 4, -4).astype(np.float32), 60, (60, 60), (60, 60))
        assert np.array_equal(np.asarray(without_specks(lazy, 0.02)), body)
    assert np.array_equal(without_specks(mask, 0.02), body)


def test_the_largest_island_stays_however_small() -> None:
    mask = np.zeros((9, 9), bool)
    mask[::4, ::4] = True
    mask[0, 1] = True
    assert without_specks(mask, 0.5).sum() == 2


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (123, 457)])
def test_logits_lose_the_specks_of_their_masks(shape: tuple[int, int]) -> None:
    filled = tuple(round(length * 256 / max(shape)) for length in shape)
    y, x = np.mgrid[:64, :64]
    logits = np.full((64, 64), -4.0, np.float32)
    height, width = (length // 4 for length in filled)
    body = (np.abs(y - height / 2) < height / 3) & (np.abs(x - width / 2) < width / 3)
    logits[body] = 4
    clean = LogitMasks(logits, 256, (filled[0], filled[1]), shape)
    dirty = logits.copy()
    dirty[height // 2, width // 2] = -3
    dirty[1, 1] = 3
    dirty[height + 2 :, :] = dirty[:, width + 2 :] = 5  # in the padding
    spotted = LogitMasks(dirty, 256, (filled[0], filled[1]), shape)
    expected, result = np.asarray(clean), np.asarray(without_specks(spotted, 0.02))
    assert np.asarray(spotted)[0:12, 0:12].any()
    inner = (slice(0, shape[0] - 20), slice(0, shape[1] - 20))
    assert np.array_equal(result[inner], expected[inner])
    assert without_specks(clean, 0.02) is clean


def test_specks_at_the_edge_of_the_padding() -> None:
    logits = np.full((64, 64), -4.0, np.float32)
    logits[4:12, 10:30] = 4
    clean = LogitMasks(logits, 256, (69, 256), (123, 457))
    dirty = logits.copy()
    dirty[17, 40] = 30  # a quarter of this row is in the image
    spotted = LogitMasks(dirty, 256, (69, 256), (123, 457))
    assert (np.asarray(spotted) != np.asarray(clean)).any()
    assert np.array_equal(np.asarray(without_specks(spotted, 0.02)), np.asarray(clean))
