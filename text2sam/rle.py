"""COCO's run lengths. They are checked here, as pycocotools hands them to C code that trusts them.

Runs alternate between background and object, background first, down one column after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError

_LONGEST_RUN = 6


def parse_counts(counts: str, size: tuple[int, int]) -> NDArray[np.int64]:
    """Run lengths from COCO's compressed form.

    Each is written in characters of five bits, the lowest first, sign-extended, a sixth bit telling that more follow; from
    the fourth run on the difference to the run before the last is written.

    Args:
        counts: the compressed run lengths.
        size: (H, W) of the mask in pixels.

    Returns:
        (R,) int64, R at least 1; runs of no length may be among them.

    Raises:
        InputError: they are malformed, or do not fill the size exactly.
    """
    if not isinstance(counts, str) or not counts.isascii():
        raise InputError(
            f"counts must be an ASCII string of compressed run lengths, not {type(counts).__name__} {counts!r:.40}"
        )
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 0x20 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    ok = len(ends) > 0 and ends[-1] == len(codes) - 1 and bool(((codes >= 0) & (codes < 64)).all())
    if not ok or (ends - starts).max() >= _LONGEST_RUN:
        raise InputError("counts are not COCO's compressed run lengths")
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    runs = np.add.reduceat((codes & 0x1F) << shift, starts)
    runs -= np.where(codes[ends] & 0x10, 1 << (shift[ends] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return _checked(runs, size)


def pack_counts(runs: NDArray[np.integer[Any]]) -> str:
    """COCO's compressed form of run lengths; :func:`parse_counts` reads it."""
    values = np.asarray(runs, np.int64)
    values = np.concatenate([values[:3], values[3:] - values[1:-2]])
    magnitude = np.where(values < 0, ~values, values)
    length = np.searchsorted(1 << (5 * np.arange(1, _LONGEST_RUN + 1) - 1), magnitude, side="right") + 1  # characters
    place = np.arange(int(length.max()))
    codes = (values[:, None] >> 5 * place & 0x1F) + np.where(place < length[:, None] - 1, 0x20, 0) + 48
    return bytes(codes[place < length[:, None]].astype(np.uint8)).decode("ascii")


def check_runs(runs: object, size: tuple[int, int]) -> NDArray[np.int64]:
    """Run lengths from COCO's uncompressed form, a list of numbers; returns and errors are those of :func:`parse_counts`."""
    pixels = size[0] * size[1]
    if not isinstance(runs, list) or not runs or not all(type(run) is int and 0 <= run <= pixels for run in runs):
        raise InputError(f"counts must be whole numbers from 0 to {pixels}, or a text of them")
    return _checked(np.array(runs, np.int64), size)


def roll(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The run lengths of a mask.

    Args:
        mask: (H, W) bool, of at least 1 and fewer than 2**31 pixels.

    Returns:
        (R,) int32, R at least 1; only the first run may be 0.
    """
    height, width = mask.shape
    row, column = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    across = np.flatnonzero(mask[-1, :-1] != mask[0, 1:]) + 1  # from the bottom of a column to the top of the next
    edges = np.sort(np.concatenate([column * height + row + 1, across * height]))
    first = [0] if mask[0, 0] else []
    return np.diff(np.concatenate([[0], first, edges, [mask.size]])).astype(np.int32)


def unroll(runs: NDArray[np.integer[Any]] | Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) bool of run lengths that fill ``size``."""
    height, width = size
    edges = np.cumsum(runs, dtype=np.int64)[:-1]
    column, row = np.divmod(edges, height)
    mask = np.zeros((height, width), np.bool_)
    # the first row from the number of edges up to it, each further row from the one above and the edges between them
    mask[0] = np.searchsorted(edges, np.arange(width) * height, side="right") % 2 == 1
    below = row > 0
    np.logical_xor.at(mask, (row[below], column[below]), True)
    for upper, lower in pairwise(mask):
        np.logical_xor(upper, lower, out=lower)
    return mask


def _checked(runs: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    if runs.min() < 0:
        raise InputError(f"counts hold a negative run length, {runs.min()}")
    if runs.sum() != size[0] * size[1]:
        raise InputError(f"counts cover {runs.sum()} pixels, the image has {size[0]} x {size[1]}")
    return runs
