"""Images as an image tower wants them."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from text2sam.errors import InputError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_SIDE = 8192
"""The largest ``image_size`` in pixels. A size with a digit too many would take all memory."""


def whole_patches(size: int | tuple[int, int], patch: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """(height, width) in pixels, times a scale, rounded to whole patches, at least one.

    Raises:
        InputError: ``size`` is not a positive int or two.
    """
    try:
        height, width = (operator.index(v) for v in (size if isinstance(size, Sequence) else (size, size)))
    except (TypeError, ValueError):
        raise InputError(f"image_size must be a side in pixels or (height, width), not {size!r}") from None
    if min(height, width) < 1:
        raise InputError(f"image_size must be positive, not {size!r}")
    rows, columns = (max(1, round(round(n * scale) / p)) for n, p in zip((height, width), patch, strict=True))
    return rows * patch[0], columns * patch[1]


def per_channel(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    """Three numbers, for red, green and blue.

    Raises:
        InputError: they are not.
    """
    try:
        red, green, blue = (float(v) for v in values)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be three numbers, for red, green and blue, not {values!r}") from None
    return red, green, blue


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 resized to (height, width), bicubic."""
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def normalise(image: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32, scaled to [0, 1] and normalised by channel."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    means, stds = (torch.tensor(v, dtype=torch.float32).reshape(1, 3, 1, 1) for v in (mean, std))
    return (pixels - means) / stds
