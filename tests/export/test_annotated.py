"""The model every format is written from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from text2sam import Text2SamError
from text2sam.errors import InputError
from text2sam.export.annotated import MOST_PIXELS, AnnotatedImage, AnnotatedObject, check_relative

# pycocotools decodes through an __array__ of before NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASK = np.array([[0, 1, 1], [0, 1, 0]], np.bool_)


def test_a_mask_by_hand() -> None:
    thing = AnnotatedObject.from_mask("cat", MASK, np.float32(0.5))
    assert thing.size == (2, 3)
    assert thing.area == 3
    assert thing.bbox == (1, 0, 2, 2)
    assert type(thing.score) is float
    assert thing.rle == {"size": [2, 3], "counts": thing.counts}
    assert (coco.decode({"size": [2, 3], "counts": thing.counts.encode()}) == MASK).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
def test_masks_come_back(h: int, w: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((h, w)) < share
    thing = AnnotatedObject.from_mask("cat", mask)
    assert (thing.mask == mask).all()
    assert thing.mask.dtype == np.bool_
    assert thing.area == mask.sum()
    assert thing.score == 1.0
    if mask.any():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert thing.bbox == (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
    else:
        assert thing.bbox == (0, 0, 0, 0)


@pytest.mark.parametrize("mask", [MASK.astype(np.uint8), np.zeros((0, 3), bool), np.zeros((1, 2, 3), bool), [[True]], None])
def test_no_masks(mask: Any) -> None:
    with pytest.raises(InputError, match="mask"):
        AnnotatedObject.from_mask("cat", mask)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", ""),
        ("size", (2, 0)),
        ("size", (2, True)),
        ("size", (1, MOST_PIXELS + 1)),
        ("counts", ""),
        ("counts", "6" * 1000),
        ("counts", "60"),  # runs of no pixels mislead compiled code
        ("counts", "0060"),
        ("score", 1.1),
        ("score", float("nan")),
    ],
)
def test_wrong_fields(field: str, value: Any) -> None:
    with pytest.raises(InputError, match="counts" if field == "counts" else field):
        AnnotatedObject(**{"label": "cat", "size": (2, 3), "counts": "6", "score": 1.0, field: value})


def test_images_check_their_objects() -> None:
    thing = AnnotatedObject.from_mask("cat", MASK)
    with pytest.raises(InputError, match="size"):
        AnnotatedImage("a.jpg", 3, 2, (thing,))
    with pytest.raises(InputError, match="tuple"):
        AnnotatedImage("a.jpg", 2, 3, [thing])  # type: ignore[arg-type]
    assert AnnotatedImage("a.jpg", 2, 3, (thing,)).objects == (thing,)


@pytest.mark.parametrize("path", ["a.jpg", "a/b c/ü.png", "...", "a..b/c", "a:b"])
def test_relative_paths(path: str) -> None:
    assert check_relative(path) == path


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/a", "a/", "a//b", "./a", "a/./b", "../a", "a/../b", "a\\b", "a\0b", "C:/a", b"a", None, 3]
)
def test_paths_that_leave(path: Any) -> None:
    with pytest.raises(InputError, match="path"):
        check_relative(path)


def test_json_there_and_back() -> None:
    image = AnnotatedImage("a/ü.jpg", 2, 3, (AnnotatedObject.from_mask('c"at\n', MASK, 0.1 + 0.2),))
    text = json.dumps(image.to_json())
    assert AnnotatedImage.from_json(json.loads(text)) == image
    assert json.dumps(AnnotatedImage.from_json(json.loads(text)).to_json()) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {
        "path": st.just("a.jpg") | JSON,
        "height": st.integers(-1, 3) | JSON,
        "width": st.integers(-1, 3) | JSON,
        "objects": JSON
        | st.lists(
            st.fixed_dictionaries(
                {"label": st.just("cat") | JSON, "score": st.just(1) | JSON, "counts": st.text("0136P") | JSON}
            ),
            max_size=2,
        ),
    }
)


@settings(max_examples=120, deadline=None)
@given(JSON | FIELDS)
def test_any_json(value: Any) -> None:
    try:
        image = AnnotatedImage.from_json(value)
    except Text2SamError:
        return
    assert AnnotatedImage.from_json(image.to_json()) == image
    assert all(thing.mask.shape == (image.height, image.width) for thing in image.objects)


def test_mixed_keys_are_refused() -> None:
    with pytest.raises(InputError, match="fields"):
        AnnotatedImage.from_json({1: 2, "path": 3})


def test_a_score_of_numpy_is_a_float_for_json() -> None:
    item = AnnotatedObject.from_mask("cat", np.ones((2, 3), np.bool_))
    assert json.dumps(AnnotatedObject("cat", item.size, item.counts, np.float32(0.5)).score) == "0.5"  # type: ignore[arg-type]
