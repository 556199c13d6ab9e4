from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from text2sam.checks import check_shape
from text2sam.clip.similarity import similarity_map
from text2sam.errors import InputError
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of

fast = settings(max_examples=60, deadline=None, derandomize=True, database=None)

COORDS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
LABELS = np.array([1, 0, 1], np.uint8)
MASK = np.zeros((4, 6), np.bool_)
MASK[1:3, 2:5] = True
BOX = np.array([2, 1, 5, 3], np.float32)


def candidates(**changed: Any) -> Candidates:
    fields: dict[str, Any] = {
        "masks": np.stack([MASK, ~MASK]),
        "scores": np.array([0.5, 0.4], np.float32),
        "low_res_logits": np.zeros((2, 3, 3), np.float32),
        "chosen": 0,
        "reason": "why not",
        "figures": {"overlap": np.zeros(2, np.float32)},
    }
    return Candidates(**fields | changed)


def segmentation(**changed: Any) -> Segmentation:
    fields: dict[str, Any] = {
        "mask": MASK,
        "score": 0.5,
        "box": BOX,
        "points": PointPrompts(COORDS, LABELS),
        "similarity": SimilarityMap(np.eye(2, dtype=np.float32)),
        "candidates": candidates(),
        "text": "cat",
        "present": True,
        "presence": 0.9,
    }
    return Segmentation(**fields | changed)


# degenerate


@pytest.mark.parametrize("value", [0.0, 0.1, -5.0, 1e30])
def test_flat_map(value: float) -> None:
    flat = SimilarityMap(np.full((3, 5), value, np.float32))
    assert flat.flat
    assert not flat.normalized().any()
    assert not flat.to_image((7, 9)).any()
    assert flat.peak((30, 50)) == (5, 5)


# every field


@pytest.mark.parametrize(
    ("coords", "labels", "told"),
    [
        ([[1, 2], [3]], [1, 0], "arrays of numbers"),
        (None, None, "arrays of numbers"),
        (COORDS.astype(np.float64) * 1e300, LABELS, "finite"),
        (COORDS[0], LABELS, r"\(N, 2\)"),
        (COORDS * np.float32("nan"), LABELS, "finite"),
        (COORDS, LABELS + 0.5, r"\[0.5, 1.5\]"),
        (COORDS, LABELS[:, None], r"shape \(3,\)"),
        (COORDS, LABELS + np.uint8(1), r"not \[2\]"),
    ],
)
def test_unusable_points(coords: Any, labels: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        PointPrompts(coords, labels)


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 2)), np.zeros(4, np.float32), np.zeros((1, 2, 2), np.float32), np.zeros((0, 2), np.float32), [[0.0]], None],
)
def test_unusable_maps(values: Any) -> None:
    with pytest.raises(InputError, match="values must be a non-empty float32 array"):
        SimilarityMap(values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_maps_that_are_not_finite(value: float) -> None:
    with pytest.raises(InputError, match="finite"):
        SimilarityMap(np.array([[0, value]], np.float32))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"masks": np.zeros((2, 4, 6), np.uint8)}, "masks must be a bool array"),
        ({"masks": np.zeros((0, 4, 6), np.bool_)}, "masks must be a bool array"),
        ({"scores": np.zeros(3, np.float32)}, r"scores must be a float32 array of shape \(2,\)"),
        ({"scores": [0.5, 0.4]}, "scores must be a float32 array"),
        ({"figures": {"heat": np.zeros(2)}}, "heat must be a float32 array"),
        ({"low_res_logits": np.zeros((2, 9), np.float32)}, "low_res_logits must be a float32 array"),
        ({"chosen": 2}, r"in \[0, 2\)"),
        ({"chosen": None}, "chosen must be an int"),
    ],
)
def test_unusable_candidates(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        candidates(**changed)


NOTHING = {"mask": np.zeros((4, 6), np.bool_), "candidates": None}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mask": MASK.astype(np.uint8)}, "mask must be a bool array"),
        ({"mask": MASK[None]}, "mask must be a bool array"),
        ({"score": 1.5}, "score must be a number in"),
        ({"score": math.nan}, "score must be a number in"),
        ({"presence": "high"}, "presence must be a number in"),
        ({"box": None}, "box is None although"),
        ({**NOTHING}, "box is given although"),
        ({"box": BOX.astype(np.int64)}, "box must be a float32 array"),
        ({"box": BOX + 1}, "is not the mask's"),
        ({"points": COORDS}, "points must be PointPrompts"),
        ({"similarity": np.zeros((2, 2), np.float32)}, "similarity must be a SimilarityMap"),
        ({"candidates": MASK}, "candidates must be Candidates"),
        ({"mask": MASK[:, :5]}, r"masks of shape \(4, 5\)"),
        ({"text": None}, "must be strings"),
        ({"looked_for": ["cat"]}, "looked_for must be a tuple of strings"),
    ],
)
def test_unusable_segmentations(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        segmentation(**changed)


@pytest.mark.parametrize(
    "shape", [(0, 1), (1, 0), (-1, 2), (1,), (1, 2, 3), 4, None, "44", (1.5, 2), (math.nan, 2), (math.inf, 2)]
)
def test_unusable_shapes(shape: Any) -> None:
    with pytest.raises(InputError, match="shape must be"):
        check_shape(shape)
    with pytest.raises(InputError, match="shape must be"):
        SimilarityMap(np.eye(2, dtype=np.float32)).to_image(shape)
    with pytest.raises(InputError, match="shape must be"):
        SimilarityMap(np.eye(2, dtype=np.float32)).peak(shape)


@pytest.mark.parametrize("shape", [(2, 3), [2, 3], np.array([2, 3]), torch.Size([2, 3]), (np.uint8(2), np.int64(3))])
def test_shapes(shape: Any) -> None:
    found = check_shape(shape)
    assert found == (2, 3)
    assert [type(v) for v in found] == [int, int]


# behaviour


@pytest.mark.parametrize("kind", [list, np.float64, np.int64])
def test_points_are_converted(kind: Any) -> None:
    coords, labels = (COORDS.tolist(), LABELS.tolist()) if kind is list else (COORDS.astype(kind), LABELS.astype(np.int64))
    points = PointPrompts(coords, labels)
    assert (points.coords.dtype, points.labels.dtype) == (np.float32, np.uint8)
    assert (points.coords.tolist(), points.labels.tolist()) == (COORDS.tolist(), LABELS.tolist())
    assert len(PointPrompts([], [])) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("base", [1.0, -3.0, 1e-3, 1e4])
def test_rounding_noise_is_flat(base: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1e-7, (5, 6)).astype(np.float32)
    assert SimilarityMap((base * (1 + noise)).astype(np.float32)).flat
    assert not SimilarityMap((base * (1 + 1e4 * noise)).astype(np.float32)).flat
    assert not SimilarityMap(noise).flat  # small numbers are a map as well


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (120, 90)])
def test_masks_come_back_from_run_lengths(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    masks = np.stack([random.random(shape) < share for share in (0, 0.1, 0.5, 1)])
    offered = candidates(
        masks=masks, scores=np.zeros(4, np.float32), low_res_logits=np.zeros((4, 1, 1), np.float32), figures={}
    )
    assert not any(isinstance(v, np.ndarray) and v.dtype == np.bool_ for v in vars(offered).values())
    assert offered.shape == shape
    assert np.array_equal(offered.masks, masks)
    assert np.array_equal(pickle.loads(pickle.dumps(offered)).masks, masks)


def test_segmentation_of_nothing() -> None:
    nothing = segmentation(**NOTHING, box=None, present=False, score=0.0)
    assert nothing.area == 0
    assert segmentation().area == 6
    assert len(candidates()) == 2
    assert segmentation(score=1, presence=np.float32(0)).presence == 0


@fast
@given(arrays(np.bool_, st.tuples(st.integers(0, 7), st.integers(0, 7))))
def test_box_against_loops(mask: np.ndarray) -> None:
    pixels = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    box = box_of(mask)
    if not pixels:
        assert box is None
        return
    assert box is not None
    assert box.dtype == np.float32
    x, y = zip(*pixels, strict=True)
    assert box.tolist() == [min(x), min(y), max(x) + 1, max(y) + 1]


@fast
@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(-1, 1, width=32)),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_to_image_is_similarity_map(values: np.ndarray, height: int, width: int) -> None:
    found = SimilarityMap(values).to_image((height, width))
    assert found.dtype == np.float32
    assert found.shape == (height, width)
    assert found.min() >= 0
    assert found.max() <= 1
    expected = similarity_map(torch.from_numpy(values.reshape(1, -1, 1)), values.shape, (height, width))
    np.testing.assert_allclose(found, expected[0, ..., 0], rtol=0, atol=1e-6)


def test_to_image_stays_in_range() -> None:
    # rounding inside the interpolation carried some of these beyond 1
    random = np.random.default_rng(0)
    for _ in range(100):
        values = (random.random(random.integers(1, 9, 2)) > 0.5).astype(np.float32)
        image = SimilarityMap(values).to_image(random.integers(1, 150, 2))
        assert image.min() >= 0
        assert image.max() <= 1


def test_normalized_keeps_the_values() -> None:
    values = np.array([[1, 3], [2, 5]], np.float32)
    similarity = SimilarityMap(values)
    assert similarity.normalized().tolist() == [[0, 0.5], [0.25, 1]]
    assert similarity.normalized().dtype == np.float32
    similarity.to_image((2, 2))[:] = 7
    assert values.tolist() == [[1, 3], [2, 5]]
    assert not similarity.flat


def test_peak_is_x_then_y() -> None:
    values = np.zeros((2, 4), np.float32)
    values[1, 2] = 1
    assert SimilarityMap(values).peak((20, 80)) == (50, 15)
    assert SimilarityMap(values).peak((1, 1)) == (0.625, 0.75)


# to_json


def test_json_of_nothing() -> None:
    told = segmentation(**NOTHING, box=None, present=False, score=0.0, points=PointPrompts.empty()).to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["candidates"] == told["objects"] == told["looked_for"] == told["excluded"] == []
    assert told["points"] == {"coords": [], "labels": [], "heat": []}
    assert told["box"] is told["reason"] is None
    assert told["present"] is False
    assert told["area"] == 0


def test_json_refuses_a_mask_without_pixels() -> None:
    with pytest.raises(InputError, match="shape"):
        segmentation(mask=np.zeros((0, 5), np.bool_), candidates=None, box=None, present=False).to_json()


def test_json_of_a_flat_map_is_cold_everywhere() -> None:
    told = segmentation(similarity=SimilarityMap(np.full((2, 3), 0.25, np.float32))).to_json()
    assert told["points"]["heat"] == [0, 0, 0]
    assert told["map"]["lowest"] == told["map"]["highest"] == told["map"]["mean"] == 0.25


def test_json_tells_everything() -> None:
    values = np.array([[-1, 0.5, 0], [0.25, 3, 0.25]], np.float32)
    mine = candidates(
        chosen=np.int64(1), figures={"overlap": np.array([0.5, 0.75], np.float32), "score": np.ones(2, np.float32)}
    )
    told = segmentation(
        similarity=SimilarityMap(values, "a cat", "itsm"),
        candidates=mine,
        score=np.float32(0.5),
        presence=np.float64(0.75),
        present=np.bool_(True),
        threshold=0.25,
        strategy="mine",
        looked_for=("cat", "kitten"),
        excluded=("dog",),
    ).to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told  # the same types, too: 1 and 1.0 differ in JSON's text
    heat = told["points"].pop("heat")
    assert told == {
        "text": "cat",
        "looked_for": ["cat", "kitten"],
        "excluded": ["dog"],
        "strategy": "mine",
        "present": True,
        "presence": 0.75,
        "threshold": 0.25,
        "score": 0.5,
        "area": 6,
        "box": [2, 1, 5, 3],
        "shape": [4, 6],
        "points": {"coords": [[1, 2], [3, 4], [5, 6]], "labels": [1, 0, 1]},
        "map": {
            "text": "a cat",
            "method": "itsm",
            "grid": [2, 3],
            "lowest": -1,
            "highest": 3,
            "mean": 0.5,
            "peak": [3, 3],
        },
        "candidates": [
            {
                "score": 0.5,
                "area": 6,
                "box": [2, 1, 5, 3],
                "figures": {"overlap": 0.5, "score": 1},
                "chosen": False,
            },
            {
                "score": float(np.float32(0.4)),
                "area": 18,
                "box": [0, 0, 6, 4],
                "figures": {"overlap": 0.75, "score": 1},
                "chosen": True,
            },
        ],
        "reason": "why not",
        "objects": [],
    }
    assert len(heat) == 3


def test_json_of_objects_is_theirs() -> None:
    other = np.zeros_like(MASK)
    other[0, 0] = True
    objects = (segmentation(score=0.75), segmentation(mask=other, box=box_of(other), candidates=None, score=0.25))
    union = segmentation(mask=MASK | other, box=box_of(MASK | other), candidates=None, objects=objects)
    told = union.to_json()
    assert told["objects"] == [part.to_json() for part in objects]
    assert [part["area"] for part in told["objects"]] == [6, 1]
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_of_figures_that_are_not_finite(value: float) -> None:
    odd = np.array([value, 1], np.float32)
    told = segmentation(candidates=candidates(scores=odd, figures={"heat": odd})).to_json()
    json.dumps(told, allow_nan=False)
    assert [candidate["score"] for candidate in told["candidates"]] == [None, 1]
    assert [candidate["figures"]["heat"] for candidate in told["candidates"]] == [None, 1]


@fast
@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(-1, 1, width=32)),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_heat_under_points_is_the_maps(values: np.ndarray, height: int, width: int) -> None:
    similarity = SimilarityMap(values)
    ys, xs = np.mgrid[:height, :width]
    coords = np.stack([xs.ravel(), ys.ravel()], 1).astype(np.float32)
    points = PointPrompts(coords, np.ones(len(coords), np.uint8))
    mask = np.zeros((height, width), np.bool_)
    found = segmentation(mask=mask, box=None, present=False, candidates=None, points=points, similarity=similarity).to_json()
    np.testing.assert_allclose(found["points"]["heat"], similarity.to_image((height, width)).ravel(), rtol=0, atol=2e-6)


def test_heat_between_and_beyond_pixels() -> None:
    coords = np.array([[1.5, 0.5], [-1e30, 1], [1e30, 1], [1.5, -7]], np.float32)
    points = PointPrompts(coords, np.ones(4, np.uint8))
    values = np.array([[0, 1], [0, 1]], np.float32)
    mask = np.zeros((2, 4), np.bool_)
    told = segmentation(mask=mask, box=None, present=False, candidates=None, points=points, similarity=SimilarityMap(values))
    assert told.to_json()["points"]["heat"] == [0.5, 0, 1, 0.5]


def test_instances_are_the_objects_or_the_result_itself() -> None:
    part = segmentation()
    assert part.instances == (part,)
    assert segmentation(objects=(part,)).instances == (part,)
    nothing = segmentation(mask=np.zeros_like(MASK), box=None, candidates=None, present=False)
    assert nothing.instances == ()
