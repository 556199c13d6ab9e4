"""Architecture surgery: a second path through the last blocks of a CLIP image tower.

CLIP Surgery, section 3.2: the new path starts from the stream that enters the first operated block;
each block adds its value-value attention ``softmax(v v^T / sqrt(d)) v`` and skips its MLP. Queries,
keys and values are those of the original path, which runs on unchanged beside it, and the class
token is the original one. ResNets have a single attention pool, which gets value-value attention.

The tower's own weights are read, never copied or changed; nothing is hooked or patched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from text2sam.errors import InputError, UnsupportedModelError

_WORKS = (
    "Surgery works on open_clip's VisionTransformer with a class token (pool_type 'tok', no attentional pooling, default "
    "blocks) and on its ModifiedResNet: for example ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336, ViT-H-14, RN50, RN101."
)


@dataclass(frozen=True, eq=False)
class TowerTokens:
    """Tokens of a batch of images, class token first, after the projection, not normalised.

    Attributes:
        operated: (B, 1 + gh*gw, C) from the new path.
        raw: (B, 1 + gh*gw, C) from the original path; its class token is plain CLIP's image feature.
        grid: (gh, gw), patches run row by row.
    """

    operated: torch.Tensor
    raw: torch.Tensor
    grid: tuple[int, int]


def check_tower(visual: nn.Module, depth: int) -> None:
    """Raises when surgery cannot be applied.

    Args:
        visual: the image tower, ``model.visual`` of an open_clip model.
        depth: how many of the last blocks get the second path (transformers only).

    Raises:
        UnsupportedModelError: the tower is of another family, or pools in another way.
        InputError: ``depth`` is not between 1 and the number of blocks.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    name = type(visual).__name__
    if isinstance(visual, ModifiedResNet):
        return
    if not isinstance(visual, VisionTransformer):
        trunk = getattr(visual, "trunk", None)
        what = f"{name} around timm's {type(trunk).__name__}" if trunk is not None else name
        raise UnsupportedModelError(f"surgery cannot be applied to the image tower {what}. {_WORKS}")
    if visual.attn_pool is not None:
        raise UnsupportedModelError(f"surgery cannot be applied to a {name} with attentional pooling. {_WORKS}")
    if visual.pool_type != "tok":
        raise UnsupportedModelError(f"surgery cannot be applied to a {name} with pool_type {visual.pool_type!r}. {_WORKS}")
    blocks = visual.transformer.resblocks
    for block in blocks:
        if not isinstance(block.attn, nn.MultiheadAttention):
            raise UnsupportedModelError(
                f"surgery cannot be applied to a {name} whose blocks use {type(block.attn).__name__} attention "
                f"({type(block).__name__}). {_WORKS}"
            )
    if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= len(blocks):
        raise InputError(f"depth must be an int from 1 to {len(blocks)}, the number of blocks of this tower, not {depth!r}")


def patch_size(visual: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels that one patch token stands for."""
    size = getattr(visual, "patch_size", None)
    if size is None:
        return 32, 32  # ModifiedResNet halves its input five times
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def resize_positions(positions: torch.Tensor, native: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Positional embeddings for another grid.

    Args:
        positions: (1 + h*w, D), the class token's first.
        native: (h, w) they were made for.
        grid: (gh, gw) wanted.

    Returns:
        (1 + gh*gw, D): the class token's as it is, the others resized bilinearly (half-pixel centres).
    """
    if native == grid:
        return positions
    patches = positions[1:].T.reshape(1, -1, *native)  # (1, D, h, w)
    patches = F.interpolate(patches.float(), grid, mode="bilinear", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:1], patches[0].flatten(1).T])


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a ``with``; every submodule gets its own mode back after it."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def operate(visual: nn.Module, pixels: torch.Tensor, *, depth: int = 6) -> TowerTokens:
    """Runs an image tower with its second path.

    Args:
        visual: open_clip ``VisionTransformer`` or ``ModifiedResNet``.
        pixels: (B, 3, H, W) normalised pixels in the tower's dtype, at least one patch high and wide; a
            remainder smaller than a patch at the right or lower edge is not seen, as in CLIP itself.
        depth: how many of the last blocks get the second path; of no effect on a ResNet.

    Raises:
        UnsupportedModelError: the tower cannot be operated on.
        InputError: ``pixels`` has another shape or is too small, or ``depth`` is out of range.
    """
    check_tower(visual, depth)
    height, width = patch_size(visual)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] < height or pixels.shape[3] < width or not len(pixels):
        raise InputError(
            f"pixels must be (B, 3, H, W) with B at least 1 and H, W at least {height} and {width}, not {tuple(pixels.shape)}"
        )
    with evaluating(visual):
        if hasattr(visual, "attnpool"):
            return _operate_resnet(visual, pixels)
        return _operate_vit(visual, pixels, depth)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    split: torch.Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)  # (B, L, D) -> (B, heads, L, D / heads)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    attended: torch.Tensor = F.scaled_dot_product_attention(q, k, v)
    return attended.transpose(1, 2).flatten(2)  # -> (B, L, D)


def _operate_vit(visual: Any, pixels: torch.Tensor, depth: int) -> TowerTokens:
    x = visual.conv1(pixels)  # (B, D, gh, gw)
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    native = (int(visual.grid_size[0]), int(visual.grid_size[1]))
    x = visual.ln_pre(x + resize_positions(visual.positional_embedding, native, grid).to(x.dtype))
    blocks = visual.transformer.resblocks
    operated = x
    for i, block in enumerate(blocks):
        if i == len(blocks) - depth:
            operated = x
        attn = block.attn
        qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = (_heads(part, attn.num_heads) for part in qkv.chunk(3, dim=-1))
        if i >= len(blocks) - depth:
            operated = operated + block.ls_1(attn.out_proj(_attend(v, v, v)))
        x = x + block.ls_1(attn.out_proj(_attend(q, k, v)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    operated = torch.cat([x[:, :1], operated[:, 1:]], dim=1)
    tokens = [visual.ln_post(t) for t in (operated, x)]
    if visual.proj is not None:
        tokens = [t @ visual.proj for t in tokens]
    return TowerTokens(tokens[0], tokens[1], grid)


def _operate_resnet(visual: Any, pixels: torch.Tensor) -> TowerTokens:
    x = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)  # (B, D, gh, gw) in the end
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    pool = visual.attnpool
    side = round((len(pool.positional_embedding) - 1) ** 0.5)
    x = x + resize_positions(pool.positional_embedding, (side, side), grid).to(x.dtype)
    q, k, v = (_heads(linear(x), pool.num_heads) for linear in (pool.q_proj, pool.k_proj, pool.v_proj))
    return TowerTokens(pool.c_proj(_attend(v, v, v)), pool.c_proj(_attend(q, k, v)), grid)
