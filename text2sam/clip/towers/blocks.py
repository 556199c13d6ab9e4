"""What towers made of transformer blocks share: every path of attention in one pass over the blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.nn import functional as F

from text2sam.clip.attention import KINDS, AttentionKind, attend, gaussian_window, middle_blocks
from text2sam.clip.towers.base import Adapter, Grid, TowerTokens, join_heads

AFTER_MEAN = "the image feature is normalised after the mean of the patches, the patches one by one"
"""Note on towers whose patches are an approximation: their mean is not the image feature."""


class Block(Protocol):
    """A transformer block as surgery sees it; streams are (B, L, D), heads (B, heads, L, d)."""

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """What the attention is given of the stream: the stream after its first norm, in blocks that have it there."""
        ...

    def queries_keys_values(self, entered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values as they meet in the attention: after norms of their own and rotary positions."""
        ...

    def update(self, mixed: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """What the attention adds to the stream, from the mixed heads."""
        ...

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """The stream after the block's MLP, residual included."""
        ...


class TransformerTower(Adapter):
    """Adapter of a tower of transformer blocks; a subclass says what enters them and what is made of what leaves.

    Attributes:
        prefix: number of tokens before the patches, such as the class token and registers.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    prefix: int = 1

    def stream(self, pixels: torch.Tensor) -> tuple[torch.Tensor, Grid, Sequence[Block]]:
        """What enters the first block, (B, prefix + gh*gw, D), then (gh, gw), and the blocks."""
        raise NotImplementedError

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C) image feature from what leaves the last block, as the model itself makes it."""
        raise NotImplementedError

    def project(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, N, C) patches in the space of the texts, from (B, N, D)."""
        raise NotImplementedError

    def tokens(self, pixels: torch.Tensor, depth: int, kinds: Sequence[AttentionKind]) -> TowerTokens:
        """Every path in one pass over the blocks."""
        x, grid, blocks = self.stream(pixels)
        every = (KINDS["architecture"], *kinds)
        streams: dict[str, torch.Tensor] = {}
        between = middle_blocks(len(blocks)) if any(kind.middle for kind in every) else range(0)
        middle: torch.Tensor | None = None
        for i, block in enumerate(blocks):
            entered = block.enter(x)
            q, k, v = block.queries_keys_values(entered)
            if i in between:
                weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) / len(between)
                middle = weights if middle is None else middle + weights
            for kind in every:
                if i < len(blocks) - (kind.blocks or depth):
                    continue
                bias = None if kind.window is None else gaussian_window(grid, kind.window, prefix=self.prefix).to(v)
                length = None if kind.iterations is None else entered.norm(dim=-1).mean(dim=-1)  # (B,)
                stream = streams.get(kind.name, x)
                ready = middle if i + 1 >= between.stop else None  # not before all of them are in it
                update = block.update(attend(kind, q, k, v, bias=bias, length=length, middle=ready), entered)
                stream = stream + update if kind.residual else update
                streams[kind.name] = block.mlp(stream) if kind.mlp else stream
            x = block.mlp(x + block.update(F.scaled_dot_product_attention(q, k, v), entered))
        pooled = self.pool(x)[:, None]
        paths = {
            name: torch.cat([pooled, self.project(stream[:, self.prefix :])], dim=1)
            for name, stream in {"raw": x, **streams}.items()
        }
        return TowerTokens(paths, grid)

    def mixed(self, pixels: torch.Tensor, weights: Callable[[Grid, torch.Tensor], torch.Tensor]) -> TowerTokens:
        """Tokens whose patches mix the last block's values by given weights, without the block's residual and MLP.

        Args:
            pixels: (B, 3, H, W) normalised.
            weights: called with (gh, gw) and (B, N, D), queries plus keys of the patches, heads side by side; gives (B, N, N),
                what each patch takes of each, in every head.

        Returns:
            Tokens, the same on both paths; the class token is the model's own.
        """
        x, grid, (*blocks, last) = self.stream(pixels)
        for block in blocks:
            x = step(block, x, block.enter(x))
        entered = last.enter(x)
        q, k, v = last.queries_keys_values(entered)
        shares = weights(grid, join_heads(q + k)[:, self.prefix :]).to(v)
        mixed = torch.cat([v[:, :, : self.prefix], shares[:, None] @ v[:, :, self.prefix :]], dim=2)
        patches = last.update(mixed, entered)[:, self.prefix :]
        pooled = self.pool(step(last, x, entered))
        tokens = torch.cat([pooled[:, None], self.project(patches)], dim=1)
        return TowerTokens({"raw": tokens, "architecture": tokens}, grid)


def step(block: Block, x: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
    """A block as trained: what leaves it, from the stream and what the attention is given of it."""
    return block.mlp(x + block.update(F.scaled_dot_product_attention(*block.queries_keys_values(entered)), entered))
