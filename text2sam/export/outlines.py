"""Outlines of masks along the edges of their pixels, and back without the loss of one.

Coordinates are (x, y) in pixels; the pixel in column 3, row 2 covers x from 3 to 4 and y from 2 to 3. pycocotools counts
how often the outline crosses a column's middle above each pixel, so a polygon whose edges run between pixels gives the very
mask it was made of, and an edge that is walked there and back counts twice and changes nothing. That is how holes are cut
into an outline (a slit) and how the parts of an object are strung together (a bridge).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", bound="np.number[Any]")

INSET = 0.1
"""Pixels; enough for float32 to round coordinates of images up to 500,000 pixels long down to the right pixel, and little
enough for pycocotools, which rounds to fifths of a pixel, to make the same mask of the line as of the one it was."""

_MOST_PAIRS = 20_000_000


@dataclass(frozen=True, eq=False)
class Part:
    """One connected part of a mask; pixels that touch at a corner belong together.

    Attributes:
        line: (K, 2) int64 (x, y), corners of the outline, clockwise on the screen, the first one not repeated; edges are
            horizontal and vertical. The outlines of holes, counter-clockwise, are in it: each hangs on a vertical slit of no
            width that runs up from its topmost corner, through pixels of the part.
        holes: how many holes it has.
    """

    line: NDArray[np.int64]
    holes: int


def outlines(mask: NDArray[np.bool_]) -> tuple[Part, ...]:
    """The outlines of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        One part per group of pixels that touch at an edge or a corner, the topmost first, of these the leftmost; nothing
        for an empty mask. Background pixels that touch only at a corner are separate holes.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return ()
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _trace(crop, np.array([columns[0], rows[0]], np.int64))


def inset(line: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A closed line of :class:`Part` moved into the pixels of its mask by :data:`INSET`.

    Every corner, rounded down, is then a pixel of the mask, and so are the pixels between: readers that paint the outline
    of the rounded polygon, as ultralytics does by OpenCV, get the very mask.

    Args:
        line: (N, 2) int64 (x, y), with the mask on the right hand.
        mask: (H, W) bool.

    Returns:
        (K, 2) float64 (x, y).
    """
    before, after = np.sign(line - np.roll(line, 1, axis=0)), np.sign(np.roll(line, -1, axis=0) - line)
    ahead, along = before[:, ::-1] * (-1, 1), after[:, ::-1] * (-1, 1)  # to the right of either edge
    inward = ahead + along
    x, y = (line + (inward - 1) // 2).clip(0, np.array(mask.shape[::-1]) - 1).T
    # where two pixels touch at a corner only, and where a slit turns, the line goes from one pixel to the other
    whole = ((before * after).sum(1) == 0) & mask[y, x]
    points = np.stack([line + INSET * (ahead - before), line + INSET * (along + after)], axis=1)  # (N, 2, 2)
    points[whole, 0] = (line + INSET * inward)[whole]
    corners: NDArray[np.float64] = points[np.stack([np.ones_like(whole), ~whole], axis=1)]
    return corners


def one_polygon(lines: Sequence[NDArray[_Number]]) -> NDArray[_Number]:
    """Several closed lines strung together into one.

    Each line hangs on an earlier one by a bridge of no width between their nearest corners. Where there are so many corners
    that looking for these would take long, the bridges run from each line's first corner to the next line's.

    Args:
        lines: at least one; each (N, 2) (x, y), no two with a corner in common.

    Returns:
        (K, 2); by the even-odd rule it encloses what the lines enclose.
    """
    total = sum(len(line) for line in lines)
    if len(lines) > 1 and len(lines) * total > _MOST_PAIRS:
        out = [piece for line in lines for piece in (line, line[:1])]
        return np.concatenate([*out, *(line[:1] for line in reversed(lines[1:-1]))])
    points = lines[0]
    for line in lines[1:]:
        here, there = _nearest(points, line)
        turned = np.roll(line, -there, axis=0)
        points = np.concatenate([points[: here + 1], turned, turned[:1], points[here:]])
    return points


def _nearest(a: NDArray[_Number], b: NDArray[_Number]) -> tuple[int, int]:
    """Indices of the nearest pair of points, the first one of several."""
    best, pair = -1.0, (0, 0)
    step = max(1, 1_000_000 // len(a))
    for start in range(0, len(b), step):
        x, y = (a[:, None] - b[None, start : start + step]).transpose(2, 0, 1)  # (A, step) each
        distance = x * x + y * y
        index = int(distance.argmin())
        i, j = divmod(index, distance.shape[1])
        if best < 0 or distance[i, j] < best:
            best, pair = float(distance[i, j]), (i, start + j)
    return pair


def _trace(mask: NDArray[np.bool_], offset: NDArray[np.int64]) -> tuple[Part, ...]:
    """The parts of a mask that is not empty.

    scikit-image finds the rings of pixel edges between mask and background. A hole hangs on the edge that is met first on
    the way up from its topmost, leftmost corner.
    """
    from skimage.measure import find_contours

    padded = np.pad(mask, 1)
    rings = [_ring(line) for line in find_contours(padded, 0.5, fully_connected="high", positive_orientation="low")]
    rings.sort(key=lambda ring: (ring[0, 1], ring[0, 0]))
    tops: dict[tuple[int, int], tuple[int, int]] = {}  # an edge with the mask below it: its ring and place there
    for index, ring in enumerate(rings):
        places = np.flatnonzero(np.roll(ring, -1, axis=0)[:, 0] > ring[:, 0])
        tops.update(zip(map(tuple, ring[places].tolist()), ((index, place) for place in places.tolist()), strict=True))

    outer: list[int] = []  # the outermost ring around each
    parts: dict[int, int] = {}  # the number of holes of each outermost ring
    hung: list[list[tuple[int, int]]] = [[] for _ in rings]  # (place in the ring, hole)
    for index, ring in enumerate(rings):
        x, y = ring[0].tolist()
        if ring[1, 0] > x:  # clockwise: no hole
            outer.append(index)
            parts[index] = 0
            continue
        if padded[y, x]:
            y = int(np.flatnonzero(~padded[: y + 1, x : x + 2].all(axis=1))[-1])
        right = padded[y + 1, x + 1] and not padded[y, x + 1]  # the edge lies over the pixel to the right of the slit
        host, place = tops[(x, y) if right else (x - 1, y)]
        hung[host].append((place + (not right), index))
        outer.append(outer[host])
        parts[outer[host]] += 1

    lines = list(rings)
    for index in reversed(range(len(rings))):  # a hole hangs on a ring that starts above it
        pieces, done = [], 0
        for place, hole in sorted(hung[index]):
            anchor, line = rings[index][place][None], lines[hole]
            slit = (anchor != line[:1]).any()
            pieces += [rings[index][done:place], anchor, *([line, line[:1]] if slit else [line[1:]]), anchor]
            done = place + 1
        lines[index] = np.concatenate([*pieces, rings[index][done:]])
    return tuple(Part(_corners(lines[outer]) + offset, holes) for outer, holes in parts.items())


def _ring(contour: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N, 2) int64 (x, y): the grid points of a closed contour, from the topmost, leftmost one on.

    A contour goes from the middle of one pixel edge to the middle of the next; between them lies a point of the grid.
    """
    points = np.floor((contour[1:] + contour[:-1]) / 2).astype(np.int64)[:, ::-1]
    return np.roll(points, -np.lexsort(points.T)[0], axis=0)


def _corners(line: NDArray[np.int64]) -> NDArray[np.int64]:
    """A closed line without the points where it goes straight on."""
    before, after = np.sign(line - np.roll(line, 1, axis=0)), np.sign(np.roll(line, -1, axis=0) - line)
    corners: NDArray[np.int64] = line[(before != after).any(axis=1)]
    return corners
