"""The kinds of attention against plain loops written from the papers, and what none of them may do."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from helpers import condition, further, noise, surgery_tokens, tiny_clip
from numpy.typing import NDArray

from text2sam.clip.attention import KINDS, METHODS, attend, gaussian_window, middle_blocks, rotated
from text2sam.clip.towers import tower_of
from text2sam.clip.towers.base import resize_tokens
from text2sam.errors import InputError

FURTHER = ("maskclip", "sclip", "clearclip", "naclip", "gem", "pearl", "resclip")
Array = NDArray[np.float64]


# what is refused


@pytest.mark.parametrize(("blocks", "expected"), [(1, [0]), (2, [0]), (3, [1]), (12, [5, 6, 7, 8]), (24, list(range(10, 18)))])
def test_middle_blocks(blocks: int, expected: list[int]) -> None:
    assert list(middle_blocks(blocks)) == expected


def test_rotations() -> None:
    keys = noise(2, 3, 40, 8)
    turn, _ = torch.linalg.qr(noise(8, 8, seed=1))
    queries = keys @ turn + 5.0  # turned and moved
    torch.testing.assert_close(rotated(keys, queries), keys @ turn, rtol=0, atol=1e-5)
    mine = rotated(keys, noise(2, 3, 40, 8, seed=2))
    torch.testing.assert_close(mine.norm(dim=-1), keys.norm(dim=-1), rtol=0, atol=1e-5)  # a rotation keeps lengths
    assert torch.equal(rotated(torch.ones(1, 4, 8), noise(1, 4, 8)), torch.zeros(1, 4, 8))  # keys that are all alike
    assert rotated(keys.half(), queries.half()).dtype == torch.float16


# the tables


def test_tables_name_their_sources() -> None:
    assert list(METHODS)[:5] == ["surgery", "architecture", "features", "itsm", "rclip"]
    assert list(METHODS)[5:] == list(FURTHER)
    assert {m.tokens for m in METHODS.values()} == {"raw", *KINDS}
    assert all(re.search(r"arXiv \d{4}\.\d{5}", row.source) for row in (*KINDS.values(), *METHODS.values()))


# parity with loops written from the papers


def softmax(logits: Array) -> Array:
    out: Array = scipy.special.softmax(logits, axis=-1)
    return out


def unit(x: Array) -> Array:
    out: Array = x / np.sqrt((x**2).sum(-1, keepdims=True))
    return out


def near(grid: tuple[int, int]) -> Array:
    """NACLIP's addition to the logits, patch by patch."""
    window = np.zeros((1 + grid[0] * grid[1],) * 2)
    for a, (row, column) in enumerate(np.ndindex(grid)):
        for b, (other_row, other_column) in enumerate(np.ndindex(grid)):
            away = math.hypot(row - other_row, column - other_column)
            window[1 + a, 1 + b] = math.exp(-(away**2) / (2 * 5**2))
    return window


def slow_rotation(keys: Array, queries: Array) -> Array:
    """The rotation of PEARL by its definition: from the symmetric root of M^T M, and not from singular vectors."""
    m = (keys - keys.mean(0)).T @ (queries - queries.mean(0))
    values, vectors = np.linalg.eigh(m.T @ m)
    inverse = np.array([0.0 if value < 1e-10 * values.max() else value**-0.5 for value in values])
    out: Array = m @ (vectors * inverse) @ vectors.T
    return out


def slow_head(kind: str, q: Array, k: Array, v: Array, normed: Array, grid: tuple[int, int], middle: list[Array]) -> Array:
    """(L, d) of one head; ``middle`` is its attention in the middle blocks."""
    root = math.sqrt(q.shape[1])
    if kind == "architecture":
        return softmax(v @ v.T / root) @ v
    if kind == "maskclip":
        return v
    if kind == "sclip":
        return (softmax(q @ q.T / root) + softmax(k @ k.T / root)) @ v
    if kind == "clearclip":
        return softmax(q @ q.T / root) @ v
    if kind == "naclip":
        return softmax(k @ k.T / root + near(grid)) @ v
    if kind == "pearl":
        return softmax(q @ (k @ slow_rotation(k, q)).T / root) @ v
    if kind == "resclip":
        return (softmax(k @ k.T / root + near(grid)) / 2 + sum(middle) / len(middle) / 2) @ v
    assert kind == "gem"
    sharpness = np.mean([math.sqrt(sum(token**2)) for token in normed]) / root
    results = []
    for x in (q, k, v):
        once = softmax(unit(x) @ unit(x).T * sharpness) @ unit(x)
        results.append(softmax(unit(once) @ unit(once).T * sharpness) @ v)
    return sum(results) / 3


def slow_kind(visual: Any, image: torch.Tensor, kind: str, depth: int, heads: int, quick: bool) -> tuple[Array, Array]:
    """The path of a kind and the original one of one image, (1 + N, C) each."""
    w = {name: value.double().numpy() for name, value in visual.state_dict().items()}
    pixels, kernel = image.double().numpy(), w["conv1.weight"]
    ph, pw = kernel.shape[2:]
    grid = (pixels.shape[1] // ph, pixels.shape[2] // pw)
    patches = [np.tensordot(kernel, pixels[:, r * ph : (r + 1) * ph, c * pw : (c + 1) * pw], 3) for r, c in np.ndindex(grid)]
    positions = resize_tokens(visual.positional_embedding.detach().double()[None], tuple(visual.grid_size), grid)[0].numpy()

    def norm(x: Array, name: str) -> Array:
        if f"{name}.weight" not in w:
            return x
        centred = x - x.mean(-1, keepdims=True)
        out: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
        return out

    def mlp(x: Array, name: str) -> Array:
        hidden = norm(x, f"{name}.ln_2") @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"]
        half = 1 / (1 + np.exp(-1.702 * hidden)) if quick else 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        out: Array = (hidden * half) @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]
        return x + out * w.get(f"{name}.ls_2.gamma", 1.0)

    x = norm(np.stack([w["class_embedding"], *patches]) + positions, "ln_pre")
    layers = len(visual.transformer.resblocks)
    own, seen = None, {}
    for i in range(layers):
        name = f"transformer.resblocks.{i}"
        normed = norm(x, f"{name}.ln_1")
        q, k, v = np.split(normed @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"], 3, axis=1)
        out, theirs = np.zeros_like(q), np.zeros_like(q)
        for part in np.split(np.arange(q.shape[1]), heads):
            weights = softmax(q[:, part] @ k[:, part].T / math.sqrt(len(part)))
            out[:, part] = weights @ v[:, part]
            seen[i, part[0]] = weights
            middle = [seen[j, part[0]] for j in middle_blocks(layers) if j <= i]
            theirs[:, part] = slow_head(kind, q[:, part], k[:, part], v[:, part], normed, grid, middle or [weights])
        out, theirs = (
            (mixed @ w[f"{name}.attn.out_proj.weight"].T + w[f"{name}.attn.out_proj.bias"]) * w.get(f"{name}.ls_1.gamma", 1.0)
            for mixed in (out, theirs)
        )
        if kind in ("architecture", "gem") and i >= layers - depth:
            own = (x if own is None else own) + theirs
        elif i == layers - 1:
            own = mlp(x + theirs, name) if kind == "sclip" else theirs
        x = mlp(x + out, name)
    path = np.concatenate([x[:1], own[1:]])
    return norm(path, "ln_post") @ w["proj"], norm(x, "ln_post") @ w["proj"]


GRID = [
    ((16, 16), 1, {}),
    ((20, 8), 2, {}),
    ((4, 4), 3, {}),
    ((4, 28), 3, {}),
    ((48, 12), 1, {"head_width": 32}),
    ((12, 24), 2, {"head_width": 4}),
    ((16, 12), 2, {"ls_init_value": 0.5}),
    ((12, 24), 2, {"patch_size": (4, 8), "image_size": (16, 24)}),
    ((12, 12), 1, {"layers": 1}),
    ((8, 12), 5, {"layers": 5}),
    ((12, 20), 2, {"no_ln_pre": True}),
    ((12, 16), 3, {"patch_dropout": 0.5}),
    ((16, 12), 2, {"final_ln_after_pool": True, "output_tokens": True}),
]


@pytest.mark.parametrize(("shape", "depth", "vision"), GRID)
def test_kinds_against_loops(shape: tuple[int, int], depth: int, vision: dict[str, Any]) -> None:
    quick = depth == 2
    visual = tiny_clip(vision=vision, quick_gelu=quick).visual
    pixels = noise(1, 3, *shape)
    heads = 32 // vision.get("head_width", 16)
    tokens = surgery_tokens(visual, pixels, depth=depth, kinds=FURTHER)
    ph, pw = tower_of(visual).patch
    assert tokens.grid == (shape[0] // ph, shape[1] // pw)
    assert tokens.paths.keys() == {"raw", "architecture", *FURTHER}
    for kind in ("architecture", *FURTHER):
        expected, raw = slow_kind(visual, pixels[0], kind, depth, heads, quick)
        np.testing.assert_allclose(tokens.paths[kind][0].detach(), expected, rtol=0, atol=5e-5, err_msg=kind)
        assert np.abs(expected[1:] - raw[1:]).max() > 0.05  # a mix-up would be seen
    np.testing.assert_allclose(tokens.raw[0].detach(), raw, rtol=0, atol=3e-5)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_iterations(iterations: int) -> None:
    q, k, v = (noise(2, 1, 5, 4, seed=seed) for seed in range(3))
    length = torch.tensor([3.0, 7.0])
    kind = dataclasses.replace(KINDS["gem"], iterations=iterations, products=("kk",))
    found = attend(kind, q, k, v, length=length)
    for b in range(2):
        x, values = (t[b, 0].double().numpy() for t in (k, v))
        for _ in range(iterations):
            x = softmax(unit(x) @ unit(x).T * float(length[b]) / 2) @ unit(x)
        expected = softmax(unit(x) @ unit(x).T * float(length[b]) / 2) @ values
        np.testing.assert_allclose(found[b, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "missing"), [("gem", "length"), ("naclip", "bias"), ("resclip", "middle")])
def test_what_a_kind_needs(kind: str, missing: str) -> None:
    given = {"length": torch.ones(2), "bias": torch.zeros(5, 5), "middle": torch.ones(2, 1, 5, 5) / 5}
    with pytest.raises(InputError, match=f"{kind!r} needs.*pass {missing}"):
        attend(KINDS[kind], *(noise(2, 1, 5, 4, seed=seed) for seed in range(3)), **given | {missing: None})


def test_a_path_from_before_the_middle_blocks() -> None:
    early = dataclasses.replace(KINDS["resclip"], blocks=5)
    with pytest.raises(InputError, match="all middle blocks"):
        tower_of(tiny_clip(vision={"layers": 8}).visual).tokens(noise(1, 3, 32, 32), 1, [early])


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 2)])
def test_window(grid: tuple[int, int]) -> None:
    found = gaussian_window(grid, 5.0)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, near(grid), rtol=0, atol=1e-6)
    assert torch.equal(gaussian_window(grid, 1e-3)[1:, 1:], torch.eye(grid[0] * grid[1]))


# what is known


def every(family: str) -> tuple[str, ...]:
    return tuple(name for name, kind in KINDS.items() if family == "vit" or kind.pool)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_kinds_change_nothing_of_the_model_or_of_each_other(family: str) -> None:
    model, pixels = tiny_clip(family, vision={"patch_dropout": 0.5} if family == "vit" else None).train(), noise(2, 3, 64, 32)
    before, random = condition(model), torch.get_rng_state()  # BatchNorm's statistics are among the weights
    surgery_tokens(model.visual, noise(1, 3, 32, 96), depth=3, kinds=every(family))
    together = surgery_tokens(model.visual, pixels, depth=2, kinds=[*every(family), *every(family)])
    assert condition(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    plain = surgery_tokens(tiny_clip(family).visual, pixels, depth=2)
    assert torch.equal(together.surgery, plain.surgery)
    assert torch.equal(together.raw, plain.raw)
    assert further(plain) == {}
    assert further(together).keys() == set(every(family)[1:])
    for name, others in further(together).items():
        assert torch.equal(others, surgery_tokens(model.visual, pixels, depth=2, kinds=[name]).paths[name])
        assert torch.equal(others[:, 0], together.raw[:, 0])
        alone = surgery_tokens(model.visual, pixels[1:], depth=2, kinds=[name]).paths[name]
        torch.testing.assert_close(others[1:], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_half_precision(family: str) -> None:
    pixels = noise(1, 3, 64, 64)
    half = surgery_tokens(tiny_clip(family).bfloat16().visual, pixels.bfloat16(), depth=2, kinds=every(family))
    full = surgery_tokens(tiny_clip(family).visual, pixels, depth=2, kinds=every(family))
    for name, others in further(half).items():
        assert others.dtype == torch.bfloat16
        cosine = torch.nn.functional.cosine_similarity(others.float(), full.paths[name], dim=-1)
        assert cosine.min() > 0.98
