"""open_clip's VisionTransformer with a class token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.attention import KINDS, AttentionKind, attend, gaussian_window
from text2sam.clip.towers.base import LastStep, Tap, TowerTokens, join_heads, resize_positions, split_heads, with_class
from text2sam.errors import UnsupportedModelError


class ViT:
    """Adapter of a ``VisionTransformer``; see :class:`text2sam.clip.towers.base.ImageTower`."""

    kinds: tuple[str, ...] = tuple(KINDS)

    def __init__(self, visual: Any) -> None:
        self.module: Any = visual
        self.patch = _pair(visual.patch_size)
        self.size = _pair(visual.image_size)
        self.mean: Sequence[float] | None = getattr(visual, "image_mean", None)
        self.std: Sequence[float] | None = getattr(visual, "image_std", None)
        self.blocks: int | None = len(visual.transformer.resblocks)

    def tokens(self, pixels: torch.Tensor, depth: int, kinds: Sequence[AttentionKind]) -> TowerTokens:
        """Every path in one pass over the blocks."""
        x, grid = vit_stream(self.module, pixels)
        every, blocks = (KINDS["architecture"], *kinds), self.module.transformer.resblocks
        streams: dict[str, torch.Tensor] = {}
        for i, block in enumerate(blocks):
            normed = block.ln_1(x)
            q, k, v = queries_keys_values(block, normed)
            for kind in every:
                if i >= len(blocks) - (kind.blocks or depth):
                    streams[kind.name] = _beside(block, kind, streams.get(kind.name, x), q, k, v, normed, grid)
            x = step(block, x, q, k, v)
        surgery, *others = [project(self.module, with_class(x, streams[kind.name])) for kind in every]
        return TowerTokens(surgery, project(self.module, x), grid, {k.name: o for k, o in zip(kinds, others, strict=True)})

    def last_step(self, pixels: torch.Tensor) -> LastStep:
        """The last block mixes the tokens after its first norm."""
        x, grid = vit_stream(self.module, pixels)
        *blocks, last = self.module.transformer.resblocks
        for block in blocks:
            x = step(block, x, *queries_keys_values(block, block.ln_1(x)))

        def finish(stream: torch.Tensor, tap: Tap) -> torch.Tensor:
            mixed = step(last, stream, *queries_keys_values(last, tap(last.ln_1(stream))))
            return project(self.module, mixed)[:, 0]

        return LastStep(x, grid, finish, lambda layer: layer[:, 1:].transpose(1, 2).unflatten(2, grid))


def adapt(visual: nn.Module) -> ViT | None:
    """The adapter of a ``VisionTransformer``; None for a tower of another family.

    Raises:
        UnsupportedModelError: it pools in another way, or its attention is of another kind.
    """
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        return None
    name = type(visual).__name__
    if visual.attn_pool is not None:
        raise UnsupportedModelError(f"surgery cannot be applied to a {name} with attentional pooling")
    if visual.pool_type != "tok":
        raise UnsupportedModelError(f"surgery cannot be applied to a {name} with pool_type {visual.pool_type!r}")
    for block in visual.transformer.resblocks:
        attention, kind = block.attn, f"{type(block.attn).__module__}.{type(block.attn).__qualname__}"
        if hasattr(attention, "base_layer") or kind.startswith("peft."):
            raise UnsupportedModelError(
                f"surgery cannot be applied to a {name} with an adapter on its attention ({kind}): call the model's "
                "merge_and_unload() first, which adds the adapter to the weights"
            )
        if not isinstance(attention, nn.MultiheadAttention):
            raise UnsupportedModelError(
                f"surgery cannot be applied to a {name} whose blocks use {type(attention).__name__} attention "
                f"({type(block).__name__})"
            )
    return ViT(visual)


def vit_stream(visual: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """What enters the first block of a ``VisionTransformer``: (B, 1 + gh*gw, D), class token first, and (gh, gw)."""
    x = visual.conv1(pixels)  # (B, D, gh, gw)
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    native = (int(visual.grid_size[0]), int(visual.grid_size[1]))
    return visual.ln_pre(x + resize_positions(visual.positional_embedding, native, grid).to(x.dtype)), grid


def queries_keys_values(block: Any, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, heads, L, D / heads) each, of a transformer block, from (B, L, D) after its first norm."""
    attn = block.attn
    qkv = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = (split_heads(part, attn.num_heads) for part in qkv.chunk(3, dim=-1))
    return q, k, v


def step(block: Any, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A transformer block as trained: what leaves it, (B, L, D), from what enters it and its queries, keys and values."""
    x = x + block.ls_1(block.attn.out_proj(join_heads(F.scaled_dot_product_attention(q, k, v))))
    return _with_mlp(block, x)


def project(visual: Any, x: torch.Tensor) -> torch.Tensor:
    """Tokens of a ``VisionTransformer``'s last block, (B, L, D), in the space of the texts: (B, L, C)."""
    x = visual.ln_post(x)
    return x if visual.proj is None else x @ visual.proj


def _beside(
    block: Any,
    kind: AttentionKind,
    stream: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    normed: torch.Tensor,
    grid: tuple[int, int],
) -> torch.Tensor:
    """What leaves a block on the path of a kind, (B, L, D), from what enters it there and what the original path made."""
    bias = None if kind.window is None else gaussian_window(grid, kind.window).to(v)
    length = None if kind.iterations is None else normed.norm(dim=-1).mean(dim=-1)  # (B,)
    update = block.ls_1(block.attn.out_proj(join_heads(attend(kind, q, k, v, bias=bias, length=length))))
    stream = stream + update if kind.residual else update
    return _with_mlp(block, stream) if kind.mlp else stream


def _with_mlp(block: Any, x: torch.Tensor) -> torch.Tensor:
    after: torch.Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return after


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
