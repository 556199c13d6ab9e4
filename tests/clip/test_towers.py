from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import after, condition, noise, raising, surgery_tokens, tiny_clip
from numpy.typing import NDArray
from open_clip.timm_model import TimmModel
from torch import nn
from torch.nn import functional as F

from text2sam.clip.towers import check_depth, tower_of
from text2sam.clip.towers.base import resize_tokens
from text2sam.errors import InputError, UnsupportedModelError

FAMILIES = ("vit", "resnet")
Array = NDArray[np.float64]


# what cannot be operated on


@pytest.mark.parametrize("depth", [0, -1, 4, 1.0, "2", None, True])
def test_depths_out_of_range(depth: Any) -> None:
    visual = tiny_clip().visual
    with pytest.raises(InputError, match="from 1 to 3"):
        check_depth(tower_of(visual), depth)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 3, 64), (1, 3, 64, 3), (0, 3, 64, 64), (1, 3, 9, 9, 1)])
def test_pixels_of_another_shape(family: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"pixels must be \(B, 3, H, W\)"):
        surgery_tokens(tiny_clip(family).visual, torch.zeros(shape), depth=1)


@pytest.mark.parametrize(
    ("vision", "name"),
    [
        ({"attentional_pool": "cascade", "attn_pooler_heads": 2}, "VisionTransformer whose attentional pooling .*cascade"),
        ({"attentional_pool": True, "attn_pooler_heads": 2, "pool_type": "avg"}, "attentional pooling .*'avg'"),
        ({"pool_type": "none"}, "VisionTransformer with pool_type 'none'"),
        ({"block_type": "custom"}, "CustomResidualAttentionBlock"),
        ({"qk_norm": True}, "Attention attention"),
    ],
)
def test_other_vision_transformers(vision: dict[str, Any], name: str) -> None:
    visual = tiny_clip(vision=vision).visual
    with pytest.raises(UnsupportedModelError, match=name + ".*RN50.*ViT-B-16"):
        tower_of(visual)


def test_other_towers() -> None:
    tower = TimmModel("test_efficientnet", embed_dim=8, image_size=32)
    with pytest.raises(UnsupportedModelError, match=r"TimmModel around timm's EfficientNet.*works on.*RN50"):
        tower_of(tower)
    with pytest.raises(UnsupportedModelError, match=r"image tower Sequential.*works on.*RN50"):
        tower_of(nn.Sequential(nn.Linear(2, 2)))


# parity with loops written from the paper; VisionTransformer's are in test_attention.py


def resize_matrix(old: int, new: int) -> Array:
    """(new, old): linear interpolation along one axis, half-pixel centres, edges held."""
    matrix = np.zeros((new, old))
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        low = int(place)
        matrix[i, low] += 1 - (place - low)
        matrix[i, min(low + 1, old - 1)] += place - low
    return matrix


def slow_positions(positions: Array, native: tuple[int, int], grid: tuple[int, int]) -> Array:
    patches = positions[1:].reshape(*native, -1)
    patches = np.einsum("ah,bw,hwd->abd", resize_matrix(native[0], grid[0]), resize_matrix(native[1], grid[1]), patches)
    return np.concatenate([positions[:1], patches.reshape(grid[0] * grid[1], -1)])


def slow_attention(q: Array, k: Array, v: Array, heads: int) -> Array:
    size = q.shape[1] // heads
    out = np.zeros_like(v)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(q)):
            logits = np.array([q[i, part] @ k[j, part] for j in range(len(k))]) / math.sqrt(size)
            weights = np.exp(logits - logits.max())
            out[i, part] = sum(w * v[j, part] for j, w in enumerate(weights / weights.sum()))
    return out


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (128, 64), (32, 32)])
def test_resnet_against_loops(shape: tuple[int, int]) -> None:
    visual = tiny_clip("resnet").visual
    pixels = noise(1, 3, *shape)
    with torch.no_grad():
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))[0]
    grid = (int(x.shape[1]), int(x.shape[2]))
    w = {k: v.double().numpy() for k, v in visual.attnpool.state_dict().items()}
    patches = x.double().numpy().reshape(len(x), -1).T
    tokens = np.concatenate([patches.mean(0, keepdims=True), patches]) + slow_positions(w["positional_embedding"], (2, 2), grid)
    q, k, v = (tokens @ w[f"{n}_proj.weight"].T + w[f"{n}_proj.bias"] for n in "qkv")
    found = surgery_tokens(visual, pixels, kinds=["maskclip"])
    assert found.grid == grid == (shape[0] // 32, shape[1] // 32)
    heads, original = visual.attnpool.num_heads, slow_attention(q, k, v, visual.attnpool.num_heads)
    paths = {
        "raw": original,
        "architecture": slow_attention(v, v, v, heads),
        "maskclip": np.concatenate([original[:1], v[1:]]),
    }
    assert found.paths.keys() == paths.keys()
    for kind, mixed in paths.items():
        expected = mixed @ w["c_proj.weight"].T + w["c_proj.bias"]
        np.testing.assert_allclose(found.paths[kind][0].detach(), expected, rtol=0, atol=3e-5, err_msg=kind)


@pytest.mark.parametrize("grid", [(3, 3), (1, 1), (2, 5), (7, 3)])
def test_positions_resize(grid: tuple[int, int]) -> None:
    positions = noise(1 + 3 * 2, 5)
    expected = slow_positions(positions.double().numpy(), (3, 2), grid)
    np.testing.assert_allclose(resize_tokens(positions[None], (3, 2), grid)[0], expected, rtol=0, atol=1e-6)
    assert resize_tokens(positions[None], (3, 2), (3, 2)).equal(positions[None])


# what is known


def half_in_training(family: str) -> Any:
    """A model in train mode, with patch dropout where there is such a thing, one submodule in eval mode."""
    model = tiny_clip(family, vision={"patch_dropout": 0.5} if family == "vit" else None).train()
    (model.visual.ln_post if family == "vit" else model.visual.layer2).eval()
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("calls", [0, 1])
def test_nothing_changes_when_something_raises(family: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = half_in_training(family)
    before = condition(model)
    monkeypatch.setattr(F, "scaled_dot_product_attention", after(calls, F.scaled_dot_product_attention))
    with pytest.raises(ZeroDivisionError):
        surgery_tokens(model.visual, noise(1, 3, 64, 64), depth=2)
    assert condition(model) == before


def test_condition_sees_what_it_should() -> None:
    model = tiny_clip()
    before = condition(model)
    for change in (
        lambda: model.visual.ln_post.train(),
        lambda: model.visual.ln_pre.register_forward_hook(raising),
        lambda: setattr(model.visual.transformer, "forward", raising),
        lambda: model.visual.class_embedding.data.add_(1e-6),
        lambda: setattr(model.visual, "positional_embedding", nn.Parameter(model.visual.positional_embedding.data.clone())),
    ):
        change()
        assert condition(model) != before
        before = condition(model)


def test_remainder_of_a_patch_is_not_seen() -> None:
    visual, pixels = tiny_clip().visual, noise(1, 3, 18, 23)
    whole, cut = surgery_tokens(visual, pixels, depth=2), surgery_tokens(visual, pixels[..., :16, :20], depth=2)
    assert whole.grid == cut.grid == (4, 5)
    torch.testing.assert_close(whole.surgery, cut.surgery, rtol=0, atol=1e-6)


# other ways of pooling


COCA = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5, "output_tokens": True}
CLIPA = {"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True}


@pytest.mark.parametrize("vision", [COCA, CLIPA, {"pool_type": "avg"}])
@torch.no_grad()
def test_pooled_features_stand_in_the_class_tokens_place(vision: dict[str, Any]) -> None:
    visual, pixels = tiny_clip(vision=vision).visual, noise(2, 3, 16, 16)
    pooled = visual(pixels)[0] if vision is COCA else visual(pixels)
    tokens = surgery_tokens(visual, pixels, depth=2, kinds=("gem", "sclip"))
    for each in tokens.paths.values():
        torch.testing.assert_close(each[:, 0], pooled, rtol=0, atol=1e-5)
    tower = tower_of(visual)
    equal = noise(2, 1, 32).expand(-1, 7, -1)
    torch.testing.assert_close(tower.project(equal[:, 1:])[:, 4], tower.pool(equal), rtol=0, atol=1e-5)
    assert bool(tower.note) == (vision is CLIPA)
    if vision == {"pool_type": "avg"}:
        torch.testing.assert_close(tokens.raw[:, 1:].mean(1), pooled, rtol=0, atol=1e-5)
