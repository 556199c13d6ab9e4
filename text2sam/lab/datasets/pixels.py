"""Reads images and label files of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from text2sam.decode import open_picture, pillow_errors
from text2sam.errors import ImageError, InputError
from text2sam.image import read_image

Colour = Literal["number", "corner"]
"""Encoding of a number as a colour: red + 256 * green (ImageNet-S), or the sum of 1 for red, 2 for green and 4 for blue."""

_SHOWN = 5
_ORIENTATION = 0x0112
_IMPURE = 8


def read_stored(path: Path) -> NDArray[np.uint8]:
    """Reads an image as :func:`text2sam.image.read_image`, but ignores an EXIF rotation.

    Raises:
        ImageError: the file is missing, broken or not an image.
    """
    if not path.is_file():
        return read_image(path)  # raises
    with pillow_errors(str(path)), open_picture(path) as picture:
        picture.load()
        picture.getexif()[_ORIENTATION] = 1
    try:
        return read_image(picture)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Reads a binary mask, (H, W) bool: values 0 and 1, or 0 to 255 with a threshold of 128; palette indices above 0.

    Raises:
        ImageError: the file is missing, broken, compressed with loss, or of another mode.
    """
    mode, values = _decode(path)
    if mode not in ("L", "P", "1"):
        raise ImageError(f"{path} must be a mask in black and white, 8-bit grey or a palette, not of mode {mode}")
    on: NDArray[np.bool_] = values > 0 if mode != "L" or values.max() <= 1 else values >= 128
    return on


def _decode(path: Path) -> tuple[str, NDArray[Any]]:
    if not path.is_file():
        raise ImageError(f"there is no label file {path}")
    with pillow_errors(str(path)), open_picture(path) as picture:
        mode, kind = picture.mode, picture.format
        values = np.array(picture)
    if kind in ("JPEG", "WEBP", "MPO"):
        raise ImageError(f"{path} is a {kind} file, whose compression changes labels; use PNG")
    return mode, values


def read_semantic(path: Path, table: NDArray[np.int32], *, colour: Colour | None = None) -> NDArray[np.int32]:
    """Reads a label file as a class map, (H, W) int32.

    Args:
        path: a file of 8-bit or 16-bit grey, or a palette, whose indices are the numbers.
        table: number -> index of a class or :data:`~text2sam.lab.datasets.sample.IGNORE`; -1 for unknown numbers.
        colour: encoding of the numbers as colours; None for plain numbers.

    Raises:
        ImageError: the file is missing, broken, compressed with loss, or of another mode.
        InputError: the file has numbers that are not in the table.
    """
    mode, values = _decode(path)
    if colour == "corner":
        if mode != "RGB" or ((values >= _IMPURE) & (values <= 255 - _IMPURE)).any():
            raise ImageError(f"{path} must be RGB with each of red, green and blue fully on or off; it is of mode {mode}")
        values = np.packbits(values > 127, axis=2, bitorder="little")[..., 0].astype(np.int32)
    elif colour:
        if mode != "RGB" or values[..., 2].any():
            raise ImageError(f"{path} must be RGB with the class as red + 256 * green, and no blue; it is of mode {mode}")
        values = values[..., 0] + 256 * values[..., 1].astype(np.int32)
    elif mode not in ("L", "P", "1", "I") and not mode.startswith("I;16"):
        raise ImageError(
            f"{path} must hold the number of a class at each pixel, as grey or as palette; it is of mode {mode}, so it has "
            "colours or was converted"
        )
    values = values.astype(np.int32)
    outside = (values < 0) | (values >= len(table))
    classes = np.where(outside, -1, table[np.where(outside, 0, values)])
    wrong = np.unique(values[classes < 0])
    if wrong.size:
        known = np.flatnonzero(table >= 0)
        shown = ", ".join(map(str, wrong[:_SHOWN].tolist())) + (f" and {wrong.size - _SHOWN} more" * (wrong.size > _SHOWN))
        raise InputError(
            f"{path} holds the numbers {shown}, which are unknown in this data set; it has {known.size} numbers from "
            f"{known[0]} to {known[-1]}"
        )
    return classes
