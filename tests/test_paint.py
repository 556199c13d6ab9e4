"""Results drawn on images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from text2sam.errors import InputError
from text2sam.paint import NEGATIVE_COLOUR, OBJECT_COLOURS, POSITIVE_COLOUR, overlay, voc_palette


def blank(height: int = 40, width: int = 60) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((height, width, 3), 100, np.uint8)


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((40, 60), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def test_masks_are_tinted_inside_two_outlines() -> None:
    image = blank()
    out = overlay(image, [box(5, 25, 10, 40)], colours=[(200, 0, 50)], alpha=0.25)
    assert (image == 100).all()
    assert (out[~box(5, 25, 10, 40)] == 100).all()
    assert out[5, 20].tolist() == out[24, 39].tolist() == [255, 255, 255]
    assert out[6, 20].tolist() == out[23, 38].tolist() == [200, 0, 50]
    assert out[15, 25].tolist() == [125, 75, 88]


def test_the_first_mask_lies_on_top_and_the_border_is_outlined() -> None:
    out = overlay(blank(), [box(0, 40, 0, 30), box(0, 40, 20, 60)], alpha=1)
    assert out[20, 25].tolist() == list(OBJECT_COLOURS[0])
    assert out[20, 40].tolist() == list(OBJECT_COLOURS[1])
    assert out[0, 5].tolist() == out[20, 0].tolist() == out[39, 50].tolist() == [255, 255, 255]


def test_points_are_discs_and_diamonds_also_over_the_border() -> None:
    coords = np.array([[10, 20], [30.0, 20], [0, 0], [1e4, -1e4]])
    out = overlay(blank(), [], points=coords, labels=np.array([1, 0, 1, 0], np.uint8))
    assert out[20, 10].tolist() == out[0, 0].tolist() == list(POSITIVE_COLOUR)
    assert out[20, 30].tolist() == list(NEGATIVE_COLOUR)
    assert (out[:, 40:] == 100).all()
    assert (overlay(blank(), [], points=coords[:1]) == overlay(blank(), [], points=coords[:1], labels=np.ones(1, int))).all()


def test_nothing_to_draw() -> None:
    assert (overlay(blank(), [box(0, 0, 0, 0)], points=np.zeros((0, 2))) == 100).all()
    assert overlay(blank(1, 1), [np.ones((1, 1), np.bool_)]).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.zeros((40, 60, 3), np.float32)},
        {"masks": [np.zeros((60, 40), np.bool_)]},
        {"alpha": 1.5},
        {"colours": []},
        {"colours": [(0, 0, 256)]},
        {"points": np.zeros((2, 3))},
        {"points": np.zeros((2, 2)), "labels": np.ones(3)},
    ],
)
def test_arguments_that_are_refused(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"image": blank(), "masks": [], **change}
    with pytest.raises(InputError):
        overlay(arguments.pop("image"), arguments.pop("masks"), **arguments)


def test_the_colours_of_objects_differ() -> None:
    colours = np.array(OBJECT_COLOURS, float)
    away = np.linalg.norm(colours[:, None] - colours, axis=-1)
    assert away[~np.eye(len(colours), dtype=bool)].min() > 45


def test_the_palette_of_pascal_voc() -> None:
    known = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128]]
    assert voc_palette(9).tolist() == [*known, [64, 0, 0]]
    assert len(np.unique(voc_palette(256), axis=0)) == 256
