"""Several sizes of one image: their tokens as one.

An object fills few patches of a small image and many of a large one, and CLIP recognises it best at the size it was
trained on. The mean of the tokens of several sizes keeps what the sizes agree on. Multi-scale inference is common in
semantic segmentation (e.g. arXiv 1606.00915, section 4.1). Similarity is linear in the tokens, so averaging tokens is
averaging maps, up to the length of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from text2sam.clip.towers.base import TowerTokens, resize_tokens
from text2sam.errors import InputError

MAX_SCALE = 8.0


def check_scales(scales: Sequence[float] | str) -> tuple[float, ...]:
    """Scales as a tuple of floats.

    Raises:
        InputError: there is none, or one is not a number above 0 and at most :data:`MAX_SCALE`.
    """
    try:
        numbers = () if isinstance(scales, str) else tuple(float(scale) for scale in scales)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(0 < scale <= MAX_SCALE for scale in numbers):
        raise InputError(
            f"scales must be numbers above 0 and at most {MAX_SCALE:g}, shares of image_size, such as (0.75, 1), not {scales!r}"
        )
    return numbers


def average_scales(scales: Sequence[TowerTokens], grid: tuple[int, int]) -> TowerTokens:
    """The tokens of one batch of images at several sizes, as tokens on one grid.

    Args:
        scales: S sets of L2-normalised tokens (B, 1 + gh*gw, C) float32, each on a grid of its own.
        grid: (gh, gw) of the result; patch tokens of another grid are resized to it bilinearly (half-pixel centres).

    Returns:
        L2-normalised means over the sizes, the class token's too. Of a single set on ``grid``, that set.
    """
    if len(scales) == 1 and scales[0].grid == grid:
        return scales[0]

    def mean(path: str) -> torch.Tensor:
        tokens = torch.stack([resize_tokens(scale.paths[path], scale.grid, grid) for scale in scales])
        return F.normalize(tokens.mean(dim=0), dim=-1)

    return TowerTokens({path: mean(path) for path in scales[0].paths}, grid)
