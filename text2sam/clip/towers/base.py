"""What every tower gives, and what adapters share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from text2sam.clip.attention import AttentionKind
from text2sam.types import bilinear


@dataclass(frozen=True, eq=False)
class TowerTokens:
    """Tokens of a batch of images, class token first, after the projection, not normalised.

    Attributes:
        surgery: (B, 1 + gh*gw, C) from the surgery path.
        raw: (B, 1 + gh*gw, C) from the original path; its class token is the model's own image feature.
        grid: (gh, gw), patches run row by row.
        others: kind of attention -> (B, 1 + gh*gw, C), for the further kinds that were asked for; their class token is that of
            ``raw``.
    """

    surgery: torch.Tensor
    raw: torch.Tensor
    grid: tuple[int, int]
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)


Grid: TypeAlias = tuple[int, int]
"""(gh, gw): patches from top to bottom and from left to right."""
Tap: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class LastStep:
    """The last step of a tower, which makes the class token; class-activation maps look at what it mixes.

    Attributes:
        stream: what enters it, in a form of the tower's own.
        grid: (gh, gw).
        finish: (stream, tap) -> (B, C) class token. ``tap`` is given the layer that the step mixes into the class token, and
            returns it.
        layer_map: what ``tap`` is given -> (B, D, gh, gw).
    """

    stream: torch.Tensor
    grid: tuple[int, int]
    finish: Callable[[torch.Tensor, Tap], torch.Tensor]
    layer_map: Callable[[torch.Tensor], torch.Tensor]


class ImageTower(Protocol):
    """An image tower as surgery sees it; one adapter per family of models.

    Attributes:
        module: the tower itself.
        patch: (height, width) in pixels that one patch token stands for.
        size: (height, width) in pixels of the images the model was trained on.
        mean, std: normalisation of pixels that the model was trained with, RGB, for values in [0, 1]; None when unknown.
        blocks: how many blocks may have a second path; None where there is nothing to choose.
        kinds: names in :data:`text2sam.clip.attention.KINDS` of what the tower can compute.
    """

    module: nn.Module
    patch: tuple[int, int]
    size: tuple[int, int]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    blocks: int | None
    kinds: tuple[str, ...]

    def tokens(self, pixels: torch.Tensor, depth: int, kinds: Sequence[AttentionKind]) -> TowerTokens:
        """Tokens of (B, 3, H, W) normalised pixels; the module is in evaluation mode, the arguments are checked."""
        ...

    def last_step(self, pixels: torch.Tensor) -> LastStep:
        """What precedes the last step of the original path."""
        ...


class TextTower(Protocol):
    """A text tower with its tokenizer."""

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """(P, L) int64 token ids on the CPU.

        Raises:
            PromptError: a prompt is longer than the tower's context.
        """
        ...

    def hint(self, text: str) -> str | None:
        """Advice about a text that the tower can encode, but is unlikely to know."""
        ...

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """(P, C) text features of (P, L) token ids, not normalised."""
        ...


_lock = threading.Lock()
_held: dict[nn.Module, int] = {}


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a ``with``; every submodule gets its own mode back after it.

    Threads may overlap: the last one that leaves gives a submodule its mode back.
    """
    with _lock:
        mine = [m for m in module.modules() if m.training or m in _held]
        for m in mine:
            _held[m] = _held.get(m, 0) + 1
            m.training = False
    try:
        yield
    finally:
        with _lock:
            for m in mine:
                _held[m] -= 1
                if not _held[m]:
                    del _held[m]
                    m.training = True


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """No gradients, and the model's own number format, also inside ``torch.autocast``."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def resize_positions(positions: torch.Tensor, native: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Positional embeddings for another grid.

    Args:
        positions: (1 + h*w, D), the class token's first.
        native: (h, w) they were made for.
        grid: (gh, gw) wanted.

    Returns:
        (1 + gh*gw, D), see :func:`resize_tokens`.
    """
    return positions if native == grid else resize_tokens(positions[None], native, grid)[0]


def resize_tokens(tokens: torch.Tensor, native: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Tokens on another grid.

    Args:
        tokens: (B, 1 + h*w, D), class token first.
        native: (h, w) of their patches.
        grid: (gh, gw) wanted.

    Returns:
        (B, 1 + gh*gw, D): the class token as it is, the others resized bilinearly (half-pixel centres).
    """
    if native == grid:
        return tokens
    patches = tokens[:, 1:].transpose(1, 2).unflatten(2, native)  # (B, D, h, w)
    patches = bilinear(patches.float(), grid).to(tokens.dtype)
    return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def with_class(original: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B, 1 + N, C) tokens with the class token of others."""
    return torch.cat([original[:, :1], tokens[:, 1:]], dim=1)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, L, D) -> (B, heads, L, D / heads)."""
    split: torch.Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, heads, L, D / heads) -> (B, L, D)."""
    return x.transpose(1, 2).flatten(2)


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size that may be one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
