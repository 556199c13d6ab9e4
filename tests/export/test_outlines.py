"""Outlines of masks: parts, holes, and back without the loss of a pixel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage

from text2sam.export import outlines as module
from text2sam.export.outlines import inset, one_polygon, outlines

# pycocotools decodes through an __array__ of before NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def filled(lines: list[NDArray[Any]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """What pycocotools makes of polygons."""
    rles = coco.frPyObjects([line.ravel().astype(float).tolist() for line in lines], *shape)
    mask: NDArray[np.bool_] = coco.decode(coco.merge(rles)).astype(bool)
    return mask


def shoelace(line: NDArray[Any]) -> float:
    x, y = line.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def random_masks(count: int, seed: int = 0) -> list[NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return [rng.random(tuple(rng.integers(1, 13, 2))) < rng.random() for _ in range(count)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (0, 4), (3, 4)])
def test_nothing(shape: tuple[int, int]) -> None:
    assert outlines(np.zeros(shape, np.bool_)) == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (3, 4)])
def test_everything(shape: tuple[int, int]) -> None:
    (part,) = outlines(np.ones(shape, np.bool_))
    h, w = shape
    assert part.line.tolist() == [[0, 0], [w, 0], [w, h], [0, h]]
    assert (part.holes, part.line.dtype) == (0, np.int64)


def test_a_hole_by_hand() -> None:
    mask = np.ones((3, 3), np.bool_)
    mask[1, 1] = False
    (part,) = outlines(mask)
    assert part.holes == 1
    assert part.line.tolist() == [[0, 0], [1, 0], [1, 2], [2, 2], [2, 1], [1, 1], [1, 0], [3, 0], [3, 3], [0, 3]]


def test_pixels_that_touch_at_a_corner_are_one_part() -> None:
    (part,) = outlines(np.eye(3, dtype=np.bool_))
    assert (part.holes, len(part.line)) == (0, 12)
    diamond = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.bool_)
    (part,) = outlines(diamond)
    assert part.holes == 1
    assert (filled([part.line], (3, 3)) == diamond).all()


@pytest.mark.parametrize("chained", [False, True])
def test_pycocotools_gives_the_same_mask(chained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if chained:  # as many parts are joined
        monkeypatch.setattr(module, "_MOST_PAIRS", 0)
    for mask in random_masks(200, seed=chained):
        lines = [part.line for part in outlines(mask)]
        if not lines:
            continue
        assert (filled(lines, mask.shape) == mask).all()
        assert (filled([one_polygon(lines)], mask.shape) == mask).all()
        for line in (*lines, one_polygon(lines)):  # pycocotools divides by the length of an edge
            assert (line != np.roll(line, 1, axis=0)).any(1).all()


def test_painted_outlines_of_inset_lines_give_the_same_mask() -> None:
    # as ultralytics reads: float32, cut to int32, filled with the outline painted
    cv2 = pytest.importorskip("cv2")
    for mask in random_masks(250, seed=1):
        h, w = mask.shape
        read = np.zeros((h, w), np.uint8)
        for part in outlines(mask):
            line = inset(part.line, mask)
            assert (line > 0).all()
            assert (line < (w, h)).all()
            corners = (line / (w, h)).astype(np.float32) * np.array([w, h], np.float32)
            cv2.fillPoly(read, [corners.astype(np.int32)], 1)
        assert (read.astype(bool) == mask).all()
        lines = [inset(part.line, mask) for part in outlines(mask)]
        if lines:
            assert (filled([one_polygon(lines)], mask.shape) == mask).all()


def test_scikit_image_alone_is_not_exact() -> None:
    # its contours cut the corners of pixels, which is why the lines here run along the pixels' edges
    from skimage.measure import find_contours

    mask = np.zeros((6, 6), np.bool_)
    mask[2:4, 2:4] = True
    (contour,) = find_contours(mask, 0.5)
    assert shoelace(contour[:-1, ::-1]) != mask.sum() == shoelace(outlines(mask)[0].line)


def test_parts_holes_and_areas() -> None:
    for mask in random_masks(150, seed=2):
        parts = outlines(mask)
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        assert len(parts) == count
        outside = ndimage.label(np.pad(~mask, 1, constant_values=True))[1]
        assert sum(part.holes for part in parts) == outside - 1
        for number, part in enumerate(parts, 1):
            assert shoelace(part.line) == (labelled == number).sum()


def test_slits_run_through_the_part_itself() -> None:
    for mask in random_masks(60, seed=4):
        padded = np.pad(mask, 1)
        for part in outlines(mask):
            walked = Counter(_steps(part.line))
            for (x, y), count in walked.items():
                left, right = padded[y + 1, x : x + 2]  # of the pixels on both sides
                assert count == 1 if left != right else (left and count == 2)


def _steps(line: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The vertical edges of a line, pixel by pixel, by their upper ends."""
    out = []
    for (x0, y0), (x1, y1) in zip(line.tolist(), np.roll(line, -1, 0).tolist(), strict=True):
        if x0 == x1:
            out += [(x0, y) for y in range(min(y0, y1), max(y0, y1))]
    return out


def test_bridges_join_nearest_corners() -> None:
    a, b, c = (np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + shift for shift in ([0, 0], [9, 9], [3, 0]))
    line = one_polygon([a, b, c])
    assert len(line) == 4 + 2 * (4 + 2)
    jumps = {tuple(sorted([tuple(p), tuple(q)])) for p, q in zip(line.tolist(), np.roll(line, -1, 0).tolist(), strict=True)}
    assert ((1, 1), (9, 9)) in jumps
    assert ((1, 0), (3, 0)) in jumps
