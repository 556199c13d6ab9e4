"""open_clip's ModifiedResNet: a convolutional trunk with one attention pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.attention import KINDS, AttentionKind, attend
from text2sam.clip.towers.base import LastStep, Tap, TowerTokens, join_heads, resize_positions, split_heads, with_class


class ResNet:
    """Adapter of a ``ModifiedResNet``; see :class:`text2sam.clip.towers.base.ImageTower`."""

    patch: tuple[int, int] = (32, 32)  # the trunk halves its input five times
    blocks: int | None = None
    kinds: tuple[str, ...] = tuple(name for name, kind in KINDS.items() if kind.pool)

    def __init__(self, visual: Any) -> None:
        self.module: Any = visual
        side = visual.image_size
        self.size: tuple[int, int] = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
        self.mean: Sequence[float] | None = getattr(visual, "image_mean", None)
        self.std: Sequence[float] | None = getattr(visual, "image_std", None)

    def tokens(self, pixels: torch.Tensor, depth: int, kinds: Sequence[AttentionKind]) -> TowerTokens:
        """The trunk, and the attention pool once for each path; ``depth`` has no effect."""
        return pool_tokens(self.module, resnet_features(self.module, pixels), kinds)

    def last_step(self, pixels: torch.Tensor) -> LastStep:
        """The attention pool mixes what the trunk gives."""
        x = resnet_features(self.module, pixels)

        def finish(stream: torch.Tensor, tap: Tap) -> torch.Tensor:
            return pool_tokens(self.module, tap(stream)).raw[:, 0]

        return LastStep(x, (int(x.shape[2]), int(x.shape[3])), finish, lambda layer: layer)


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
    """The attention pool of a ``ModifiedResNet`` from (B, D, gh, gw); the class token of ``surgery`` is value-value too."""
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    pool = visual.attnpool
    side = round((len(pool.positional_embedding) - 1) ** 0.5)
    x = x + resize_positions(pool.positional_embedding, (side, side), grid).to(x.dtype)
    q, k, v = (split_heads(linear(x), pool.num_heads) for linear in (pool.q_proj, pool.k_proj, pool.v_proj))
    surgery = pool.c_proj(join_heads(attend(KINDS["architecture"], q, k, v)))
    raw = pool.c_proj(join_heads(F.scaled_dot_product_attention(q, k, v)))
    others = {kind.name: with_class(raw, pool.c_proj(join_heads(attend(kind, q, k, v)))) for kind in kinds}
    return TowerTokens(surgery, raw, grid, others)
