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
