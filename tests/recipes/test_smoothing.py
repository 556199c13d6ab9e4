"""Maps smoothed over SAM's embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from text2sam.errors import InputError
from text2sam.recipes.smoothing import affinity, on_things, smooth
from text2sam.types import SimilarityMap


def a_map(shape: tuple[int, int], seed: int = 0) -> SimilarityMap:
    return SimilarityMap(np.random.default_rng(seed).normal(size=shape).astype(np.float32), "cat", "itsm")


def an_embedding(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (3, 0, 4), (1, 3, 4, 4)])
def test_what_is_no_embedding(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\(C, gh, gw\)"):
        affinity(np.zeros(shape, np.float32))


@pytest.mark.parametrize("numbers", [{"reach": 0}, {"reach": -1.0}, {"reach": float("nan")}, {"sharpness": -1.0}])
def test_numbers_out_of_range(numbers: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(numbers))} must be a number"):
        affinity(an_embedding((3, 4, 4)), **numbers)


def test_an_embedding_that_tells_nothing_leaves_a_gaussian() -> None:
    flat = SimilarityMap(np.full((5, 6), 0.3, np.float32), "cat")
    np.testing.assert_allclose(smooth(flat, affinity(an_embedding((8, 5, 6)))).values, 0.3, atol=1e-6)
    one = smooth(a_map((1, 1)), affinity(an_embedding((8, 1, 1))))
    np.testing.assert_allclose(one.values, a_map((1, 1)).values, atol=1e-6)
    spot = np.zeros((9, 9), np.float32)
    spot[4, 4] = 1
    seen = smooth(SimilarityMap(spot), affinity(np.ones((8, 9, 9), np.float32))).values
    np.testing.assert_allclose(seen, seen.T, atol=1e-7)
    assert seen.argmax() == 40
    assert (np.diff(seen[4, 4:]) < 0).all()


@pytest.mark.parametrize(("grid", "map_grid"), [((5, 7), (5, 7)), ((6, 4), (3, 2)), ((3, 4), (9, 12))])
def test_parity_with_loops(grid: tuple[int, int], map_grid: tuple[int, int]) -> None:
    similarity, embedding = a_map(map_grid), an_embedding((8, *grid))
    seen = smooth(similarity, affinity(embedding, sharpness=3.0, reach=0.4))
    assert (seen.text, seen.method, seen.values.dtype) == ("cat", "itsm", np.float32)
    values = torch.nn.functional.interpolate(torch.from_numpy(similarity.values)[None, None], grid, mode="bicubic")[
        0, 0
    ].numpy()
    centred = embedding - embedding.mean((1, 2), keepdims=True)
    expected = np.zeros(grid)
    for place in np.ndindex(grid):
        weights = np.zeros(grid)
        for other in np.ndindex(grid):
            a, b = centred[(slice(None), *place)], centred[(slice(None), *other)]
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            apart = np.hypot(place[0] - other[0], place[1] - other[1]) / max(grid)
            weights[other] = np.exp(3.0 * cosine - (apart / 0.4) ** 2 / 2)
        expected[place] = (weights * values).sum() / weights.sum()
    np.testing.assert_allclose(seen.values, expected, atol=1e-5)


def test_the_edge_of_an_object_is_where_sam_sees_it() -> None:
    embedding = an_embedding((8, 16, 16)) * 0.1
    embedding[0, :, :8] += 1
    embedding[1, :, 8:] += 1
    values = np.zeros((16, 16), np.float32)
    values[4:12, 2:10] = 1  # two columns too far
    seen = smooth(SimilarityMap(values), affinity(embedding)).values
    assert (np.diff(seen[4:12], axis=1).argmin(1) == 7).all()


def test_heat_counts_for_more_on_things() -> None:
    similarity = a_map((5, 7))
    similarity.values.setflags(write=False)
    objectness = np.random.default_rng(2).random((5, 7)).astype(np.float32)
    seen = on_things(similarity, objectness)
    assert (seen.text, seen.method, seen.values.dtype) == ("cat", "itsm", np.float32)
    middle = np.median(similarity.values)
    for place in np.ndindex(5, 7):
        value = similarity.values[place]
        share = 0.2 + 0.8 * objectness[place] if value > middle else 1
        assert seen.values[place] == pytest.approx(middle + (value - middle) * share, abs=1e-6)
    np.testing.assert_allclose(on_things(similarity, np.ones((5, 7), np.float32)).values, similarity.values, atol=1e-6)
    flat = SimilarityMap(np.full((5, 7), 0.3, np.float32), "cat")
    np.testing.assert_array_equal(on_things(flat, objectness).values, flat.values)
