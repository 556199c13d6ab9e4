"""What CLIP knows of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from text2sam.clip.attention import METHODS, Method
from text2sam.errors import InputError


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What CLIP knows of one image; further texts cost no further encoding.

    Attributes:
        surgery: (1 + gh*gw, C) float32 L2-normalised tokens of the surgery path, class token first.
        raw: (1 + gh*gw, C) float32 L2-normalised tokens of the original path.
        grid: (gh, gw).
        shape: (H, W) of the image in pixels.
        others: kind of attention (:data:`text2sam.clip.attention.KINDS`) -> its tokens likewise, for the kinds that were asked
            for; their class token is that of ``raw``.
    """

    surgery: torch.Tensor
    raw: torch.Tensor
    grid: tuple[int, int]
    shape: tuple[int, int]
    others: Mapping[str, torch.Tensor] = field(default_factory=dict, kw_only=True)


def pack(features: ImageFeatures) -> dict[str, torch.Tensor]:
    """Features as named tensors, for files."""
    tensors = {"grid": torch.tensor(features.grid), "surgery": features.surgery, "raw": features.raw}
    return tensors | {f"other.{name}": tokens for name, tokens in features.others.items()}


def unpack(tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> ImageFeatures:
    """The features that :func:`pack` made of an image of (H, W) pixels.

    Raises:
        KeyError, ValueError: the tensors are not those of features.
    """
    rows, columns = (int(number) for number in tensors["grid"])
    surgery, raw = tensors["surgery"], tensors["raw"]
    others = {name.removeprefix("other."): tokens for name, tokens in tensors.items() if name.startswith("other.")}
    fits = surgery.ndim == 2 and min(rows, columns) > 0 and len(surgery) == 1 + rows * columns
    if not fits or any(t.shape != surgery.shape or t.dtype != torch.float32 for t in (surgery, raw, *others.values())):
        raise ValueError(f"these are no tokens of a grid of {rows} x {columns} patches")
    return ImageFeatures(surgery, raw, (rows, columns), shape, others=others)


def tokens_for(features: ImageFeatures, method: Method) -> torch.Tensor:
    """(1 + gh*gw, C) tokens, class token first, that a method's maps are made of.

    Raises:
        InputError: the image was not encoded for the method.
    """
    name = METHODS[method].tokens
    tokens = {"architecture": features.surgery, "raw": features.raw}.get(name, features.others.get(name))
    if tokens is None:
        raise InputError(
            f"these features are of an image that was not encoded for method={method!r}; encode it with "
            f"encode([image], methods=[{method!r}])"
        )
    return tokens
