"""open_clip's ModifiedResNet: a convolutional trunk with one attention pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.attention import KINDS, AttentionKind, attend
from text2sam.clip.towers.base import Adapter, TowerTokens, join_heads, resize_tokens, split_heads


class ResNet(Adapter):
    """Adapter of a ``ModifiedResNet``; see :class:`text2sam.clip.towers.base.ImageTower`."""

    kinds: tuple[str, ...] = tuple(name for name, kind in KINDS.items() if kind.pool)

    def __init__(self, visual: Any) -> None:
        super().__init__(visual, patch=32, size=visual.image_size)  # the trunk halves its input five times

    def tokens(self, pixels: torch.Tensor, depth: int, kinds: Sequence[AttentionKind]) -> TowerTokens:
        """The trunk, and the attention pool once for each path; ``depth`` has no effect."""
        return pool_tokens(self.module, resnet_features(self.module, pixels), kinds)


def adapt(visual: nn.Module) -> ResNet | None:
    """The adapter of a ``ModifiedResNet``; None for a tower of another family."""
    from open_clip.modified_resnet import ModifiedResNet

    return ResNet(visual) if isinstance(visual, ModifiedResNet) else None


def resnet_features(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What enters the attention pool of a ``ModifiedResNet``: (B, D, gh, gw)."""
    x: torch.Tensor = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    return x


def pool_tokens(visual: Any, x: torch.Tensor, kinds: Sequence[AttentionKind] = ()) -> TowerTokens:
    """The attention pool of a ``ModifiedResNet`` from (B, D, gh, gw); architecture surgery has a class token of its own."""
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    pool = visual.attnpool
    side = round((len(pool.positional_embedding) - 1) ** 0.5)
    x = x + resize_tokens(pool.positional_embedding[None], (side, side), grid).to(x.dtype)
    q, k, v = (split_heads(linear(x), pool.num_heads) for linear in (pool.q_proj, pool.k_proj, pool.v_proj))
    raw = pool.c_proj(join_heads(F.scaled_dot_product_attention(q, k, v)))
    surgery = {kind.name: pool.c_proj(join_heads(attend(kind, q, k, v))) for kind in (KINDS["architecture"], *kinds)}
    for kind in kinds:
        surgery[kind.name] = torch.cat([raw[:, :1], surgery[kind.name][:, 1:]], dim=1)
    return TowerTokens({"raw": raw, **surgery}, grid)
