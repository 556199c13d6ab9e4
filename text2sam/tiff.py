"""TIFFs that Pillow reads in part or not at all: 16-bit colours, floats and other number types, through tifffile."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import ImageError

_SUBFILE_TYPE, _ORIENTATION = 254, 274
_SMALLER_OR_MASK = 0b101
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_PREMULTIPLIED, _STRAIGHT = 1, 2
_MOST_TAGS = 4096


class ForPillow(Exception):
    """A TIFF that Pillow reads as well or better, or that tifffile cannot read."""


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins like this is a TIFF or a BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def count_pages(file: IO[bytes]) -> tuple[int, int]:
    """The pages of a TIFF, at least 1, and how many of them are no smaller copies or masks of others.

    tifffile would follow a chain of pages that runs in a circle for hours.
    """
    file.seek(0)
    head = file.read(16)
    big = head[2:4] in (b"+\0", b"\0+")
    order = "<" if head[:2] == b"II" else ">"
    count, tag, offset = ("Q", "HHQI4x", "Q") if big else ("H", "HHII", "I")
    seen: set[int] = set()
    full = 0
    with contextlib.suppress(struct.error, OverflowError, OSError):  # a chain that breaks off ends there
        (place,) = struct.unpack_from(order + offset, head, 8 if big else 4)
        while place and place not in seen:
            file.seek(place)
            (tags,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
            data = file.read(min(tags, _MOST_TAGS) * struct.calcsize(order + tag))
            values = {number: value for number, _, _, value in struct.iter_unpack(order + tag, data)}
            full += not values.get(_SUBFILE_TYPE, 0) & _SMALLER_OR_MASK
            seen.add(place)
            (place,) = struct.unpack(order + offset, file.read(struct.calcsize(order + offset)))
    return max(1, len(seen)), full


def read_tiff(
    file: IO[bytes], page: int, check_pixels: Callable[[int], None], *, also_bytes: bool = False
) -> tuple[NDArray[Any], NDArray[Any] | None, int]:
    """A page of other values than unsigned bytes.

    Args:
        file: open for reading.
        page: counted from 0; it is there.
        check_pixels: called with the number of pixels before they are decoded.
        also_bytes: unsigned bytes too, which are Pillow's otherwise.

    Returns:
        (H, W, 1) or (H, W, 3) of the file's number type; its alpha channel (H, W) or None; the EXIF orientation.

    Raises:
        ForPillow: it is left to Pillow.
        ImageError: it is no picture.
    """
    import tifffile  # comes with scikit-image

    try:
        file.seek(0)
        tiff: Any = tifffile.TiffFile(file)
        chosen = tiff.pages[page]
        dtype, photometric, bands = np.dtype(chosen.dtype or np.uint8), int(chosen.photometric), int(chosen.samplesperpixel)
        extra = [int(value) for value in chosen.extrasamples][-1:]
        size = int(chosen.imagelength), int(chosen.imagewidth)
        tag = chosen.tags.get(_ORIENTATION)
        orientation = 1 if tag is None else int(tag.value)
    except Exception as error:
        raise ForPillow(f"{type(error).__name__}: {error}") from error
    if dtype in (np.uint8, np.bool_) and not also_bytes:
        raise ForPillow("unsigned bytes")
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or extra == [_PREMULTIPLIED]:
        raise ForPillow(f"photometric interpretation {photometric}, extra samples {extra}")
    if bands > 4 or (bands == 2 and not extra) or (bands == 4 and photometric != _RGB):
        raise ImageError(f"the TIFF has {bands} bands of {dtype}; pass the one or three that make a picture as an array")
    if min(size) < 1 or bands < 1:
        raise ImageError(f"the TIFF says that it has {size[1]} x {size[0]} pixels of {bands} bands; it is damaged")
    check_pixels(max(size[0] * size[1], int(chosen.tilelength) * int(chosen.tilewidth)))
    try:
        values = np.asarray(chosen.asarray())
        if chosen.axes.startswith("S"):
            values = np.moveaxis(values, 0, -1)
        values = values.reshape(*size, bands)
    except Exception as error:  # most compressions need the package imagecodecs; Pillow knows some
        raise ForPillow(f"{type(error).__name__}: {error}") from error
    if photometric == _WHITE_IS_ZERO and dtype.kind == "u":
        values = np.iinfo(dtype).max - values
    if dtype.kind in "iu" and dtype.itemsize > 1 and values.min() >= 0 and values.max() <= 65535:
        values = values.astype(np.uint16)
    alpha = values[..., -1] if bands in (2, 4) and extra == [_STRAIGHT] else None
    return values[..., : 3 if bands >= 3 else 1], alpha, orientation
