"""open_clip's VisionTransformer, with any of its ways of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.towers.base import Grid, join_heads, resize_tokens, split_heads
from text2sam.clip.towers.blocks import AFTER_MEAN, Block, TransformerTower
from text2sam.errors import UnsupportedModelError


class ViT(TransformerTower):
    """Adapter of a ``VisionTransformer``; see :class:`text2sam.clip.towers.base.ImageTower`.

    With a class token the image feature is that token, else the mean of the patches (CLIPA) or what an attention pool makes of
    all tokens (CoCa). A patch then goes through that pool alone, where a softmax over one token is 1: its value path.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__(visual, visual.patch_size, visual.image_size)
        self.blocks = len(visual.transformer.resblocks)
        if visual.attn_pool is None and visual.pool_type == "avg" and visual.final_ln_after_pool:
            self.note = AFTER_MEAN

    def stream(self, pixels: torch.Tensor) -> tuple[torch.Tensor, Grid, Sequence[Block]]:
        """See :func:`vit_stream`."""
        return *vit_stream(self.module, pixels), [ResidualBlock(block) for block in self.module.transformer.resblocks]

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The image feature, as ``VisionTransformer.forward`` makes it."""
        if self.module.attn_pool is None and self.module.pool_type == "tok":
            return self.project(x)[:, 0]  # all tokens: the last bits of a product of few rows depend on the size of the batch
        pooled: torch.Tensor = self.module._pool(x)[0]
        return pooled if self.module.proj is None else pooled @ self.module.proj

    def project(self, patches: torch.Tensor) -> torch.Tensor:
        """Each patch through the norm and the projection that are meant for the image feature."""
        visual = self.module
        x = patches if visual.attn_pool is None else _value_path(visual.attn_pool, patches)
        x = visual.ln_post(x)
        projected: torch.Tensor = x if visual.proj is None else x @ visual.proj
        return projected


class ResidualBlock:
    """open_clip's ``ResidualAttentionBlock`` as a :class:`~text2sam.clip.towers.blocks.Block`."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """The first norm."""
        entered: torch.Tensor = self.block.ln_1(x)
        return entered

    def queries_keys_values(self, entered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From the one matrix of ``nn.MultiheadAttention``."""
        attn = self.block.attn
        qkv = F.linear(entered, attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = (split_heads(part, attn.num_heads) for part in qkv.chunk(3, dim=-1))
        return q, k, v

    def update(self, mixed: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """The output projection and layer scale."""
        update: torch.Tensor = self.block.ls_1(self.block.attn.out_proj(join_heads(mixed)))
        return update

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """The second half of the block."""
        after: torch.Tensor = x + self.block.ls_2(self.block.mlp(self.block.ln_2(x)))
        return after


def adapt(visual: nn.Module) -> ViT | None:
    """The adapter of a ``VisionTransformer``; None for a tower of another family.

    Raises:
        UnsupportedModelError: it pools in a way that open_clip's own models do not, or its attention is of another kind.
    """
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        return None
    name = type(visual).__name__
    if visual.attn_pool is not None and (visual.attn_pool_contrastive is not None or visual.pool_type != "tok"):
        pool = visual.attn_pool_type or f"pool_type {visual.pool_type!r}"
        raise UnsupportedModelError(f"a {name} whose attentional pooling is of the kind {pool}")
    if visual.pool_type not in ("tok", "avg"):
        raise UnsupportedModelError(f"a {name} with pool_type {visual.pool_type!r}")
    for block in visual.transformer.resblocks:
        attention, kind = block.attn, f"{type(block.attn).__module__}.{type(block.attn).__qualname__}"
        if hasattr(attention, "base_layer") or kind.startswith("peft."):
            raise UnsupportedModelError(
                f"a {name} with an adapter on its attention ({kind}): call the model's merge_and_unload() first, which adds "
                "the adapter to the weights"
            )
        if not isinstance(attention, nn.MultiheadAttention):
            raise UnsupportedModelError(
                f"a {name} whose blocks use {type(attention).__name__} attention ({type(block).__name__})"
            )
    return ViT(visual)


def vit_stream(visual: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, Grid]:
    """What enters the first block of a ``VisionTransformer``: (B, 1 + gh*gw, D), class token first, and (gh, gw)."""
    x = visual.conv1(pixels)  # (B, D, gh, gw)
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    native = (int(visual.grid_size[0]), int(visual.grid_size[1]))
    return visual.ln_pre(x + resize_tokens(visual.positional_embedding[None], native, grid).to(x.dtype)), grid


def _value_path(pool: Any, patches: torch.Tensor) -> torch.Tensor:
    """What open_clip's ``AttentionalPooler`` makes of each patch alone: (B, N, D) -> (B, N, E); any query gives the same."""
    attn, normed = pool.attn, pool.ln_k(patches)
    weight = attn.in_proj_weight[-attn.embed_dim :] if attn.v_proj_weight is None else attn.v_proj_weight
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias[-attn.embed_dim :]
    values: torch.Tensor = attn.out_proj(F.linear(normed, weight, bias))
    return values
