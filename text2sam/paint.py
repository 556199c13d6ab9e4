"""Colours of objects, and results drawn on images as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

OBJECT_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (136, 34, 85),
    (51, 34, 136),
    (153, 153, 51),
    (170, 68, 153),
    (17, 119, 51),
    (204, 102, 119),
    (120, 120, 120),
)
"""Okabe and Ito's palette, which colour-blind readers can distinguish, then colours of Paul Tol's muted palette and grey."""

POSITIVE_COLOUR: Colour = (20, 190, 60)
NEGATIVE_COLOUR: Colour = (225, 30, 40)

_WHITE: Colour = (255, 255, 255)


def voc_palette(count: int) -> NDArray[np.uint8]:
    """(count, 3) uint8 RGB: the colours of PASCAL VOC's annotations, black first.

    The bits of an index go to red, green and blue in turn, the lowest bits to the highest bits of a colour.
    """
    index = np.arange(count, dtype=np.int64)
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def overlay(
    image: NDArray[np.uint8],
    masks: Sequence[NDArray[np.bool_]],
    *,
    points: NDArray[np.floating[Any]] | None = None,
    labels: NDArray[np.integer[Any]] | None = None,
    colours: Sequence[Colour] | None = None,
    alpha: float = 0.5,
) -> NDArray[np.uint8]:
    """An image with masks and points drawn on it.

    Each mask is tinted and outlined, in white and inside that in its own colour, so that it stands out from any background.
    Positive points are green discs, negative points red diamonds; both have a white edge and a size relative to the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: each (H, W) bool; the first is drawn last, on top.
        points: (N, 2) floats (x, y) in pixels; (0, 0) is the centre of the first pixel.
        labels: (N,) ints, 1 for a positive point and 0 for a negative one; by default all are positive.
        colours: RGB of the masks, used in turn; by default :data:`OBJECT_COLOURS`.
        alpha: share of the colour in the tint, in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB, a new array.

    Raises:
        InputError: an argument has another type or shape, or ``alpha`` is not in [0, 1].
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError("image must be a non-empty uint8 array of shape (H, W, 3)")
    shape = image.shape[:2]
    for mask in masks:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != shape:
            given = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise InputError(f"each mask must be a bool array of the image's shape {shape}, not {given}")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be in [0, 1], not {alpha!r}")
    palette = np.asarray(OBJECT_COLOURS if colours is None else colours, np.float32)
    if palette.ndim != 2 or palette.shape[1] != 3 or not len(palette) or not ((palette >= 0) & (palette <= 255)).all():
        raise InputError(f"colours must be RGB triples in 0..255, not {colours!r}")
    coords = np.zeros((0, 2)) if points is None else np.asarray(points, np.float64)
    positive = np.ones(len(coords), np.bool_) if labels is None else np.asarray(labels) != 0
    if coords.ndim != 2 or coords.shape[1] != 2 or positive.shape != (len(coords),):
        raise InputError(f"points must be (N, 2) with N labels, not {coords.shape} with {positive.shape}")

    out = image.copy()
    line = max(1, round(min(shape) / 200))
    for index in reversed(range(len(masks))):
        _draw_mask(out, masks[index], palette[index % len(palette)], alpha, line)
    radius = max(2.0, min(shape) / 70)
    for index in np.argsort(positive, kind="stable"):  # positive points on top
        _draw_point(out, coords[index], radius, bool(positive[index]))
    return out


def _draw_mask(out: NDArray[np.uint8], mask: NDArray[np.bool_], colour: NDArray[np.float32], alpha: float, line: int) -> None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside, region = mask[box], out[box]
    region[inside] = np.rint((1 - alpha) * region[inside] + alpha * colour)
    region[inside & ~_eroded(inside, 2 * line)] = np.rint(colour)
    region[inside & ~_eroded(inside, line)] = _WHITE


def _eroded(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels with mask only in the square of ``width`` pixels around them; beyond the array is no mask."""
    from scipy.ndimage import minimum_filter

    eroded: NDArray[np.bool_] = minimum_filter(mask, 2 * width + 1, mode="constant", cval=0)
    return eroded


def _draw_point(out: NDArray[np.uint8], point: NDArray[np.float64], radius: float, positive: bool) -> None:
    """A disc or a diamond whose rim is smoothed."""
    x, y = point
    edge = max(1.5, radius / 3)
    reach = radius + edge + 1
    y0, y1 = max(0, int(np.floor(y - reach))), min(out.shape[0], int(np.ceil(y + reach)) + 1)
    x0, x1 = max(0, int(np.floor(x - reach))), min(out.shape[1], int(np.ceil(x + reach)) + 1)
    if y0 >= y1 or x0 >= x1:
        return
    dy, dx = np.mgrid[y0:y1, x0:x1] - np.array([y, x])[:, None, None]
    distance = np.hypot(dx, dy) if positive else (np.abs(dx) + np.abs(dy)) / np.sqrt(2) + 0.2 * radius
    patch = out[y0:y1, x0:x1].astype(np.float64)
    for size, paint in ((radius + edge, _WHITE), (radius, POSITIVE_COLOUR if positive else NEGATIVE_COLOUR)):
        cover = np.clip(size + 0.5 - distance, 0, 1)[..., None]  # (h, w, 1)
        patch += cover * (np.array(paint) - patch)
    out[y0:y1, x0:x1] = np.rint(patch)
