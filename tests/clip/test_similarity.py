from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from text2sam.clip.similarity import feature_surgery, level_noise, similarity_map
from text2sam.errors import InputError
from text2sam.presence import presence_logit
from text2sam.types import min_max


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    return torch.nn.functional.normalize(values, dim=-1)


# degenerate


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1e-30])
def test_flat_is_zero_and_not_nan(value: float) -> None:
    flat = torch.full((2, 6, 3), value)
    assert torch.equal(min_max(flat, 1), torch.zeros(2, 6, 3))
    assert torch.equal(similarity_map(flat, (2, 3), (5, 7)), torch.zeros(2, 5, 7, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weighting", ["code", "paper"])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_rounding_noise_is_flat(dtype: torch.dtype, weighting: Any, count: int) -> None:
    image, text = unit(2, 50, 64).to(dtype), unit(1, 64, seed=1)
    texts = (text + 1e-8 * unit(count, 64, seed=2)).to(dtype)  # synonyms
    found = feature_surgery(image, texts, weighting=weighting)[:, 1:]
    magnitude = (image[:, 1:] @ texts.T).abs().amax(dim=1, keepdim=True)
    flat = level_noise(found, magnitude)
    assert torch.equal(flat, flat[:, :1].expand_as(flat))
    assert not min_max(flat, 1).any()
    others = feature_surgery(image, torch.cat([texts, unit(2, 64, seed=3).to(dtype)]), weighting=weighting)[:, 1:]
    assert torch.equal(level_noise(others, magnitude[..., :1]), others)  # a true map stays as it is


def test_noise_around_another_value_is_flat() -> None:
    values = torch.tensor([[[0.5, 0.5], [0.5 + 1e-6, 0.6]]])  # (1, 2, 2): two patches, two texts
    assert torch.equal(min_max(values, 1), torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))
    assert torch.equal(level_noise(values, 0.6)[..., 1], values[..., 1])


def test_what_counts_as_noise() -> None:
    small = torch.tensor([0.0, 1e-6])
    assert min_max(small).tolist() == [0, 1]
    assert not min_max(small, magnitude=1.0).any()
    half = torch.tensor([1, 1 + 2**-7], dtype=torch.bfloat16)  # neighbours
    assert not min_max(half).any()
    assert min_max(half.float()).tolist() == [0, 1]


def test_presence_is_a_softmax_with_terms() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0])
    torch.testing.assert_close(presence_logit(logits).sigmoid(), logits.softmax(0)[0])
    others = float(np.log(np.exp(1) + np.exp(-1)))
    found = presence_logit(logits, offset=0.3, rivals=0.5, odds=4.0, peak=0.1)
    assert float(found) == pytest.approx(2 + 0.3 - 0.5 * others + 0.4)


def test_flat_beside_others() -> None:
    both = torch.stack([torch.full((1, 4), 0.5), torch.tensor([[1.0, 2.0, 3.0, 5.0]])], dim=-1)
    expected = torch.tensor([[[0, 0.0], [0, 0.25], [0, 0.5], [0, 1.0]]])
    torch.testing.assert_close(min_max(both, 1), expected)


@pytest.mark.parametrize("shape", [(3, 5), (1, 9)])
def test_one_label_leaves_nothing(shape: tuple[int, int]) -> None:
    image, text = unit(2, shape[0], 8), unit(1, 8)
    assert torch.equal(feature_surgery(image, text), torch.zeros(2, shape[0], 1))
    # the paper's form weights the subtracted term alone, whose weight is 1 for one label
    torch.testing.assert_close(feature_surgery(image, text, weighting="paper"), torch.zeros(2, shape[0], 1))


@pytest.mark.parametrize(
    ("image", "text", "redundant", "told"),
    [
        ((4, 8), (2, 8), None, "(4, 8)"),
        ((1, 4, 8), (8,), None, "(8,)"),
        ((1, 4, 8), (2, 7), None, "(2, 7)"),
        ((1, 4, 8), (0, 8), None, "at least one text"),
        ((1, 4, 8), (2, 8), (3, 8), "(3, 8)"),
        ((1, 4, 8), (2, 8), (1, 7), "(1, 7)"),
        ((1, 4, 8), (2, 8), (8,), "(8,)"),
        ((1, 4, 8), (2, 8), (1, 1, 8), "(1, 1, 8)"),
    ],
)
def test_shapes_that_do_not_fit(image: tuple[int, ...], text: tuple[int, ...], redundant: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        feature_surgery(torch.ones(image), torch.ones(text), None if redundant is None else torch.ones(redundant))
    assert told in str(caught.value)


def test_unknown_weighting() -> None:
    with pytest.raises(InputError, match="'code' or 'paper', not 'both'"):
        feature_surgery(unit(1, 4, 8), unit(2, 8), weighting="both")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("similarity", "grid", "shape"),
    [
        ((6, 2), (2, 3), (4, 4)),
        ((1, 6, 2), (2, 2), (4, 4)),
        ((1, 6, 2), (2, 3, 1), (4, 4)),
        ((1, 6, 2), (2, 3), (4,)),
        ((1, 6, 2), (2, 3), (0, 4)),
        ((1, 6, 2), (-2, -3), (4, 4)),
    ],
)
def test_maps_that_do_not_fit(similarity: tuple[int, ...], grid: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        similarity_map(torch.ones(similarity), grid, shape)


def test_class_token_left_in() -> None:
    with pytest.raises(InputError, match="7 patches, a 2 x 3 grid has 6; drop the class token first"):
        similarity_map(torch.ones(1, 7, 2), (2, 3), (4, 4))
    with pytest.raises(InputError, match=r"8 patches, a 2 x 3 grid has 6$"):
        similarity_map(torch.ones(1, 8, 2), (2, 3), (4, 4))


# parity with the (N, T, C) form of the papers


def by_features(image: torch.Tensor, text: torch.Tensor, tau: float, weighting: str) -> np.ndarray:
    f, t = image.double().numpy(), text.double().numpy()
    products = f[:, :, None, :] * t[None, None]  # (B, N, T, C)
    p = np.exp(tau * products[:, 0].sum(-1))
    p /= p.sum(-1, keepdims=True)
    weighted = products * (p / p.mean(-1, keepdims=True))[:, None, :, None]
    redundant = weighted.mean(2, keepdims=True)
    return ((weighted if weighting == "code" else products) - redundant).sum(-1)


@pytest.mark.parametrize("weighting", ["code", "paper"])
@pytest.mark.parametrize("tau", [2.0, 0.0, 50.0])
@pytest.mark.parametrize(("b", "n", "t", "c"), [(1, 1, 1, 1), (1, 5, 2, 3), (3, 17, 4, 16), (2, 50, 9, 32)])
def test_against_features(b: int, n: int, t: int, c: int, tau: float, weighting: Any) -> None:
    image, text = unit(b, n, c, seed=n), unit(t, c, seed=t + 1)
    expected = by_features(image, text, tau, weighting)
    exact = feature_surgery(image.double(), text.double(), tau=tau, weighting=weighting)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-12)
    fast = feature_surgery(image, text, tau=tau, weighting=weighting)
    # a softmax as sharp as tau = 50 weighs up to nine times, and so do float32's last digits, processor by processor
    sharp = max(1.0, np.abs(expected).max()) if tau == 50.0 else 1.0
    np.testing.assert_allclose(fast, expected, rtol=0, atol=1e-6 * sharp)


@pytest.mark.parametrize("count", [1, 4])
def test_redundant_features(count: int) -> None:
    image, text, redundant = unit(2, 9, 16), unit(4, 16, seed=1), unit(count, 16, seed=2)
    features = image.double().numpy()[:, :, None] * (text.double().numpy() - redundant.double().numpy())
    np.testing.assert_allclose(feature_surgery(image, text, redundant), features.sum(-1), rtol=0, atol=1e-6)
    one = feature_surgery(image, text[:1], redundant[:1])
    np.testing.assert_allclose(one[..., 0], features.sum(-1)[..., 0], rtol=0, atol=1e-6)


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_flatten(out)[0] if isinstance(leaf, torch.Tensor))])
        return out


@pytest.mark.parametrize("redundant", [None, unit(1, 256, seed=2), unit(20, 256, seed=2)])
@pytest.mark.parametrize("weighting", ["code", "paper"])
def test_no_tensor_over_texts_and_channels(redundant: torch.Tensor | None, weighting: Any) -> None:
    n, t, c = 50, 20, 256
    image, text = unit(1, n, c), unit(t, c, seed=1)
    with Largest() as largest:
        feature_surgery(image, text, redundant, weighting=weighting)
    assert n * t <= largest.numel <= max(n * c, t * c)  # the largest ones are views of what came in


# behaviour


def test_what_texts_share_goes_away() -> None:
    # worked out by hand: one patch looks like text 0, one like what both texts share
    texts = torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.0, 0.8]])
    image = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 0.0], [0.4, -0.4], [0.0, 0.0]]])
    torch.testing.assert_close(feature_surgery(image, texts), expected)


@pytest.mark.parametrize(("grid", "shape"), [((2, 3), (7, 5)), ((3, 2), (30, 41)), ((4, 4), (2, 3)), ((1, 5), (9, 9))])
def test_maps_against_loops(grid: tuple[int, int], shape: tuple[int, int]) -> None:
    values = np.random.default_rng(3).standard_normal((2, grid[0] * grid[1], 2)).astype(np.float32)
    found = similarity_map(torch.from_numpy(values), grid, shape).numpy()
    assert found.shape == (2, *shape, 2)
    for b in range(2):
        for t in range(2):
            v = values[b, :, t].astype(float)
            v = ((v - v.min()) / (v.max() - v.min())).reshape(grid)
            for y in range(shape[0]):
                for x in range(shape[1]):
                    py = min(max((y + 0.5) * grid[0] / shape[0] - 0.5, 0), grid[0] - 1)
                    px = min(max((x + 0.5) * grid[1] / shape[1] - 0.5, 0), grid[1] - 1)
                    r, c = int(py), int(px)
                    below, right = min(r + 1, grid[0] - 1), min(c + 1, grid[1] - 1)
                    upper = v[r, c] * (1 - px + c) + v[r, right] * (px - c)
                    lower = v[below, c] * (1 - px + c) + v[below, right] * (px - c)
                    assert abs(found[b, y, x, t] - (upper * (1 - py + r) + lower * (py - r))) < 1e-5
