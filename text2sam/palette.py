"""Colours that tell things apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
)
"""Okabe and Ito's, told apart by colour-blind eyes too."""


def voc_palette(count: int) -> NDArray[np.uint8]:
    """(count, 3) uint8 RGB: the colours of PASCAL VOC's annotations, black first.

    The bits of an index are dealt to red, green and blue in turn, the lowest ones to the highest bits of a colour.
    """
    index = np.arange(count, dtype=np.int64)
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.astype(np.uint8)
