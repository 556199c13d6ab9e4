"""What every tower gives, and what adapters share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from text2sam.clip.attention import AttentionKind
from text2sam.types import bilinear


@dataclass(frozen=True, eq=False)
class TowerTokens:
    """Tokens of a batch of images, class token first, after the projection, not normalised.

    Attributes:
        paths: (B, 1 + gh*gw, C) by path: ``"raw"`` is the original one, whose class token is the model's own image feature;
            the others are kinds of attention (:data:`text2sam.clip.attention.KINDS`), ``"architecture"`` always among them.
        grid: (gh, gw), patches run row by row.
    """

    paths: Mapping[str, torch.Tensor]
    grid: tuple[int, int]

    @property
    def surgery(self) -> torch.Tensor:
        """The path of architecture surgery."""
        return self.paths["architecture"]

    @property
    def raw(self) -> torch.Tensor:
        """The original path."""
        return self.paths["raw"]


Grid: TypeAlias = tuple[int, int]
"""(gh, gw): patches from top to bottom and from left to right."""


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
        """Tokens of (B, 3, H, W) normalised pixels; the module is in evaluation mode, the arguments are checked.

        Args:
            pixels: whole patches, at least one.
            depth: how many of the last blocks have the second path.
            kinds: of attention, besides ``"architecture"``.
        """
        ...


class Adapter:
    """What the adapters of this package share: the attributes of :class:`ImageTower`, and :attr:`note`.

    Args:
        visual: the tower.
        patch, size: in pixels, one number or (height, width).
    """

    blocks: int | None = None
    kinds: tuple[str, ...] = ("architecture",)
    note: str = ""
    """What is an approximation in the patches' features; may be empty."""

    def __init__(self, visual: Any, patch: Any, size: Any) -> None:
        self.module: Any = visual
        self.patch, self.size = _pair(patch), _pair(size)
        self.mean: Sequence[float] | None = getattr(visual, "image_mean", None)
        self.std: Sequence[float] | None = getattr(visual, "image_std", None)


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


def resize_tokens(tokens: torch.Tensor, native: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Tokens on another grid.

    Args:
        tokens: (B, 1 + h*w, D), class token first; or positional embeddings likewise.
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


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, L, D) -> (B, heads, L, D / heads)."""
    split: torch.Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, heads, L, D / heads) -> (B, L, D)."""
    return x.transpose(1, 2).flatten(2)


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size that may be one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
