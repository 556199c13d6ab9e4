"""What CLIP knows of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from text2sam.clip.attention import METHODS, Method
from text2sam.clip.towers.base import TowerTokens
from text2sam.errors import InputError


@dataclass(frozen=True, eq=False)
class ImageFeatures(TowerTokens):
    """What CLIP knows of one image; further texts cost no further encoding.

    Attributes:
        paths: (1 + gh*gw, C) float32 L2-normalised tokens by path, as in :class:`~text2sam.clip.towers.base.TowerTokens`;
            kinds of attention that were asked for have the class token of ``"raw"``.
        grid: (gh, gw).
        shape: (H, W) of the image in pixels.
    """

    shape: tuple[int, int]

    def tokens(self, method: Method) -> torch.Tensor:
        """(1 + gh*gw, C) tokens, class token first, that a method's maps are made of.

        Raises:
            InputError: the image was not encoded for the method.
        """
        tokens = self.paths.get(METHODS[method].tokens)
        if tokens is None:
            raise InputError(
                f"these features are of an image that was not encoded for method={method!r}; encode it with "
                f"encode([image], methods=[{method!r}]), or set_image(image, methods=[{method!r}])"
            )
        return tokens

    def pack(self) -> dict[str, torch.Tensor]:
        """The features as named tensors, for files."""
        return {"grid": torch.tensor(self.grid), **self.paths}

    @classmethod
    def unpack(cls, tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> ImageFeatures:
        """The features that :meth:`pack` made of an image of (H, W) pixels.

        Raises:
            KeyError, ValueError: the tensors are not those of features.
        """
        paths = {name: tokens for name, tokens in tensors.items() if name != "grid"}
        rows, columns = (int(number) for number in tensors["grid"])
        surgery, raw = paths["architecture"], paths["raw"]
        fits = surgery.ndim == 2 and min(rows, columns) > 0 and len(surgery) == 1 + rows * columns
        if not fits or any(tokens.shape != raw.shape or tokens.dtype != torch.float32 for tokens in paths.values()):
            raise ValueError(f"these are no tokens of a grid of {rows} x {columns} patches")
        return cls(paths, (rows, columns), shape)
