"""COCO's run lengths against pycocotools, which packs them, and against text from outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from text2sam.errors import InputError
from text2sam.rle import check_runs, pack_counts, parse_counts, roll, unroll

SHAPES = [(1, 1), (1, 9), (9, 1), (5, 7), (300, 400)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_what_pycocotools_packs(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    runs = parse_counts(coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode(), shape)
    assert unroll(runs, shape).tolist() == mask.tolist()
    assert check_runs(runs.tolist(), shape).tolist() == runs.tolist()
    assert roll(mask).tolist() == runs.tolist()
    assert pack_counts(roll(mask)) == coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=9))
def test_any_runs_go_through_pycocotools_and_back(runs: list[int]) -> None:
    size = (max(sum(runs), 1), 1)
    runs[0] += size[0] - sum(runs)
    packed = coco.frPyObjects({"size": size, "counts": runs}, *size)
    assert parse_counts(packed["counts"].decode(), size).tolist() == runs
    assert pack_counts(np.array(runs)) == packed["counts"].decode()
    assert (unroll(runs, size) == coco.decode(packed).astype(bool)).all()


@settings(max_examples=200, deadline=None)
@given(st.text("0123456OPQo`nz", max_size=20))
def test_any_text_fills_the_size_or_is_refused(counts: str) -> None:
    try:
        runs = parse_counts(counts, (3, 4))
    except InputError:
        return
    assert runs.min() >= 0
    assert unroll(runs, (3, 4)).shape == (3, 4)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ("", "compressed"),
        ("P", "compressed"),  # ends within a number
        ("PPPPPPP0", "compressed"),
        ("6\x00", "compressed"),
        ("é", "ASCII"),
        (b"6", "ASCII"),
        ("5", "cover 5 pixels"),
        ("7", "cover 7 pixels"),
        ("O7", "negative"),
        ("1O", "negative"),
        ("f", "compressed"),
        ("6p", "compressed"),
        ("6P", "compressed"),
    ],
)
def test_text_that_is_refused(counts: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_counts(counts, (2, 3))


@pytest.mark.parametrize("runs", [None, (6,), [], [6.0], [True, 5], [-1, 7], [7], [2, 3], ["6"]])
def test_numbers_that_are_refused(runs: Any) -> None:
    with pytest.raises(InputError, match="counts"):
        check_runs(runs, (2, 3))
