"""Images as an image tower wants them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

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
    means, stds = (torch.from_numpy(np.asarray(v, np.float32)).reshape(1, 3, 1, 1) for v in (mean, std))
    return (pixels - means) / stds


def cutout(image: NDArray[np.uint8], mask: NDArray[np.bool_], side: int) -> NDArray[np.uint8]:
    """What a mask covers, on a blur of its surroundings, in a square that is a third wider than its box.

    Beyond the border of the image its last pixels go on.

    Args:
        image: (H, W, 3) uint8.
        mask: (h, w) bool over the image, at any size; not empty.
        side: of the result in pixels.

    Returns:
        (side, side, 3) uint8.
    """
    spans = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    length = max(2, round(1.3 * max(int(span[-1] - span[0]) + 1 for span in spans)))
    corner = [(int(span[0] + span[-1]) + 1 - length) // 2 for span in spans]  # in the mask's pixels
    square = _square(image, mask.shape, corner, length, 4 * side)
    shape = _square(mask.astype(np.uint8) * 255, mask.shape, corner, length, 4 * side, mode="constant")
    size = (side, side)
    blur = square.resize((7, 7), Image.Resampling.BOX).resize(size, Image.Resampling.BILINEAR)
    return np.array(Image.composite(square.resize(size, Image.Resampling.BICUBIC), blur, shape.resize(size)))


def _square(
    array: NDArray[np.uint8], shape: tuple[int, ...], corner: Sequence[int], length: int, most: int, mode: Any = "edge"
) -> Image.Image:
    """A square of an array, padded where it leaves it; corner and length are in pixels of (h, w) over the array.

    One of twice ``most`` pixels and more is shrunk by a whole number: that of a long strip would fill the memory.
    """
    spans = []
    for size, places, first in zip(array.shape, shape, corner, strict=False):
        start = min(round(first * size / places), size - 1)
        spans.append((start, max(round((first + length) * size / places), start + 1, 1)))
    few = max(1, max(stop - start for start, stop in spans) // most)
    inside = Image.fromarray(array[tuple(slice(max(0, start), stop) for start, stop in spans)]).reduce(few)
    beyond = [
        (max(0, -start) // few, max(0, stop - size) // few) for (start, stop), size in zip(spans, array.shape, strict=False)
    ]
    return Image.fromarray(np.pad(np.asarray(inside), [*beyond, (0, 0)][: array.ndim], mode=mode))
