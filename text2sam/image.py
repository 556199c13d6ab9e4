"""One contract for every input image: whatever comes in, RGB pixels as a person sees them go out."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam.checks import check_number
from text2sam.decode import Pixels, decode_file, decode_picture, pillow_errors, short
from text2sam.errors import ImageError, InputError, warn

if TYPE_CHECKING:
    import torch

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any] | torch.Tensor"
"""What :func:`read_image` accepts."""

ChannelOrder: TypeAlias = Literal["RGB", "BGR"]


class ReadOptions(TypedDict, total=False):
    """The keyword arguments of :func:`read_image`."""

    channel_order: ChannelOrder
    value_range: tuple[float, float] | None
    page: int
    max_pixels: int | None


_ACCEPTED = (
    "accepted are: a path; a PIL image; a NumPy array (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) "
    "of uint8, uint16, bool, or float in [0, 1]; a torch tensor (C, H, W) or (H, W) of uint8 or float in [0, 1]"
)
_CHANNELS = (1, 2, 3, 4)
_OVERSHOOT = 1e-3
_NARROW = 0.25


def read_image(
    image: ImageLike,
    *,
    channel_order: ChannelOrder = "RGB",
    value_range: tuple[float, float] | None = None,
    page: int = 0,
    max_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Read any image as a person sees it.

    Files and PIL images (of a PIL image the current frame):
        * The EXIF orientation is applied, unless the picture was transposed already (then the tag is gone).
        * Transparency, from an alpha channel, a palette or a colour key, is composited over white.
        * CMYK goes to sRGB through the embedded ICC profile where there is one that works, else by
          Pillow's formula. Profiles of RGB and grey pictures are not applied.
        * TIFFs of 16-bit colours, floats and other numbers are decoded by tifffile, HEIC by pillow-heif.

    NumPy arrays, channels last: grey, grey and alpha, RGB, or RGB and alpha. Tensors, channels first as
    torchvision has them, on any device; a leading batch axis of one is dropped.

    Without ``value_range``, whatever the image is:
        * uint8 is taken as it is; bool is 0 and 255.
        * 16 bits are the full range 0..65535, not stretched to the picture's own extremes; other integers
          must lie in 0..255.
        * floats must lie in [0, 1]; 0.001 beyond is clipped.
        * alpha is not premultiplied and is composited over white, in 8 bits.

    Args:
        image: a path, a PIL image, an array or a tensor.
        channel_order: ``"BGR"`` for arrays and tensors with colours in OpenCV's order (BGR, BGRA); grey
            ones are the same either way.
        value_range: (black, white), for pictures that use another range than their number type, such as
            ``(0, 4095)`` for 12 bits in a 16-bit file; values beyond are clipped. Alpha is left as it is.
        page: of a TIFF, GIF or other file with several, counted from 0.
        max_pixels: the most pixels that a file may have; by default Pillow's limit against decompression
            bombs, ``PIL.Image.MAX_IMAGE_PIXELS``.

    Returns:
        (H, W, 3) uint8, RGB, C-contiguous, writable, sharing no memory with ``image``.

    Raises:
        ImageError: the file is missing, broken, no image or too large, or the object is not one of those
            above; the message says what was given and what is accepted. Also ``"BGR"`` with a file or PIL
            image, whose order is known, and ``page`` with anything but a file.
        InputError: another argument is not usable.

    Warns:
        Text2SamWarning: a file has further pages, or without ``value_range`` the values of 16 bits or floats
            span less than a quarter of their range.
    """
    limits = check_reading(channel_order=channel_order, value_range=value_range, page=page, max_pixels=max_pixels)
    file, pil = isinstance(image, (str, os.PathLike)), isinstance(image, Image.Image)
    bgr = channel_order == "BGR"
    if bgr and (file or pil):
        raise ImageError(
            'channel_order="BGR" is for arrays and tensors; files and PIL images know their own order '
            "and are always decoded to RGB, so leave it out"
        )
    if page and not file:
        raise ImageError(f"page={page} is for files; turn to a page of a PIL image with image.seek({page})")
    torch = sys.modules.get("torch")  # nobody can hold a tensor before torch is imported
    if isinstance(image, (str, os.PathLike)):
        given = short(os.fsdecode(image))
        pixels = decode_file(image, page, max_pixels)
    elif isinstance(image, Image.Image):
        given = f"the PIL image (mode {image.mode}, {image.width} x {image.height} pixels)"
        with pillow_errors(given):
            pixels = decode_picture(image, given)
    elif isinstance(image, np.ndarray):
        given = f"a {image.dtype} array of shape {image.shape}"
        pixels = _from_array(image, given)
    elif torch is not None and isinstance(image, torch.Tensor):
        given = f"a {image.dtype} tensor of shape {tuple(image.shape)}"
        pixels = _from_tensor(image, given)
    else:
        raise ImageError(f"cannot read an image from {_describe(image)}; {_ACCEPTED}")
    colour = _to_uint8(pixels.colour, given, limits)
    alpha = None if pixels.alpha is None else _to_uint8(pixels.alpha, f"the alpha channel of {given}", None, alpha=True)
    return _over_white(colour[..., ::-1] if bgr else colour, alpha)


def check_reading(
    *, channel_order: str, value_range: tuple[float, float] | None, page: int, max_pixels: int | None
) -> tuple[float, float] | None:
    """Checks the keyword arguments of :func:`read_image`; returns the range as floats.

    Raises:
        InputError: an argument is not usable.
    """
    if channel_order not in ("RGB", "BGR"):
        raise InputError(f'channel_order must be "RGB" or "BGR", not {short(channel_order)}')
    check_number("page", page, 0, whole=True)
    if max_pixels is not None:
        check_number("max_pixels", max_pixels, 1, whole=True)
    return None if value_range is None else _check_range(value_range)


def check_several(images: Any) -> None:
    """Checks that several images are given.

    Raises:
        InputError: it is one: a path, a PIL image, or an array of up to three axes.
    """
    if isinstance(images, (str, os.PathLike)) or not isinstance(images, Iterable) or getattr(images, "ndim", 4) < 4:
        raise InputError("images must be a sequence of images; for one image pass [image]")


@contextlib.contextmanager
def numbered(position: int, count: int | None = None) -> Iterator[None]:
    """Names an image that cannot be used by its position among several."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"image {position}{'' if count is None else f' of {count}'}: {error}") from error


def _check_range(value_range: object) -> tuple[float, float]:
    if isinstance(value_range, (tuple, list)) and len(value_range) == 2:
        black, white = check_number("black", value_range[0]), check_number("white", value_range[1])
        if math.isfinite(black) and math.isfinite(white) and black != white:
            return black, white
    raise InputError(f"value_range must be (black, white), two different finite numbers, not {short(value_range)}")


def _describe(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{name}; for an encoded image pass PIL.Image.open(io.BytesIO(data))"
    if isinstance(value, io.IOBase):
        return f"the open file {name}; pass PIL.Image.open(file)"
    if isinstance(value, (list, tuple)):
        return f"a {name} of length {len(value)}; pass one image at a time, and pixels as np.asarray(pixels, np.uint8)"
    return name if value is None else f"{name} {short(value)}"


def _from_array(array: NDArray[Any], given: str) -> Pixels:
    if array.ndim == 4:
        hint = "image[0]" if array.shape[-1] in _CHANNELS else "image[0].transpose(1, 2, 0)"
        raise ImageError(f"{given} is a batch; pass one image of it, such as {hint}, or use segment_batch")
    return _split(np.asarray(array), given)


def _from_tensor(tensor: torch.Tensor, given: str) -> Pixels:
    if tensor.ndim == 4 and len(tensor) > 1:
        raise ImageError(f"{given} is a batch of {len(tensor)}; use segment_batch, or pass one image of it, such as image[0]")
    tensor = tensor.detach()
    try:
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # NumPy has no bfloat16
        values: NDArray[Any] = tensor.cpu().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, meta, ...
        raise ImageError(f"{given} cannot be turned into an array: {error}") from error
    return _split(values[0] if values.ndim == 4 and len(values) else values, given, first=True)


def _split(values: NDArray[Any], given: str, *, first: bool = False) -> Pixels:
    """(H, W), or with 1 to 4 channels, alpha last, on the last axis or on the first one."""
    if not values.size:
        raise ImageError(f"{given} has no pixels; height, width and channels must be at least 1")
    if values.ndim not in (2, 3):
        raise ImageError(f"{given} is not an image; {_ACCEPTED}")
    if values.ndim == 2:
        return Pixels(values[..., None])
    channels, other = values.shape[0 if first else 2], values.shape[2 if first else 0]
    if channels not in _CHANNELS and other in _CHANNELS:
        looks, turned = ("last", "permute(2, 0, 1)") if first else ("first", "transpose(1, 2, 0)")
        raise ImageError(
            f"{given} looks like channels {looks}, and {'tensors' if first else 'arrays'} are taken as "
            f"{'(C, H, W)' if first else '(H, W, C)'}; pass image.{turned}"
        )
    if channels not in _CHANNELS:
        raise ImageError(f"{given} has {channels} channels{', counted on the first axis' if first else ''}; {_ACCEPTED}")
    values = values.transpose(1, 2, 0) if first else values
    return Pixels(values[..., :-1], values[..., -1]) if channels in (2, 4) else Pixels(values)


def _to_uint8(
    values: NDArray[Any], given: str, value_range: tuple[float, float] | None, *, alpha: bool = False
) -> NDArray[np.uint8]:
    """Values of any number type as 0..255; may share memory with ``values``."""
    dtype = values.dtype.newbyteorder("=")
    if dtype.kind not in "buif":
        raise ImageError(f"{given} holds {dtype} values, not pixels; {_ACCEPTED}")
    if dtype == np.bool_:
        return np.where(values, 255, 0).astype(np.uint8)
    if dtype == np.uint8 and value_range is None:
        return values
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # min and max carry a NaN on
        raise ImageError(f"{given} holds NaN or infinite values; replace them, for instance by np.nan_to_num")
    if value_range is None:
        value_range = _own_range(dtype, low, high, given)
        if dtype.itemsize > 1 and value_range[1] != 255 and not alpha and 0 < high - low < _NARROW * value_range[1]:
            warn(
                f"the values of {given} span {low:g} to {high:g} of 0 to {value_range[1]:g}, so the picture has hardly any "
                "contrast; value_range=(black, white) (--range on the command line) says what black and white are"
            )
    if dtype in (np.uint8, np.uint16):
        return np.take(_table(dtype.itemsize, *value_range), values)
    return _scaled(values, *value_range)


def _own_range(dtype: np.dtype[Any], low: Any, high: Any, given: str) -> tuple[float, float]:
    """What black and white are by the number type alone."""
    if dtype == np.uint16:
        return 0, 65535
    if dtype.kind != "f":
        if low < 0 or high > 255:
            raise ImageError(
                f"{given} holds values from {low} to {high}; integers must lie in 0..255, or be uint16, whose range is "
                "0..65535, or value_range=(black, white) must say what black and white are"
            )
        return 0, 255
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        if low < -_OVERSHOOT:
            hint = "if it is normalised (mean subtracted), pass the pixels as they were before that"
        else:
            hint = "if they are 0..255, convert to uint8 or divide by 255"
        raise ImageError(
            f"{given} holds values from {low:g} to {high:g}; floats must lie in [0, 1]: {hint}, "
            "or say by value_range=(black, white) what black and white are"
        )
    return 0, 1


def _scaled(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    # float16 is too coarse for 255 times itself, float32 for large integers
    exact = values.astype(
        np.float64 if values.dtype.itemsize > 2 and values.dtype.kind != "f" else np.promote_types(values.dtype, np.float32)
    )
    result: NDArray[np.uint8] = np.rint(np.clip((exact - black) / (white - black), 0, 1) * 255).astype(np.uint8)
    return result


@functools.lru_cache(maxsize=8)
def _table(size: int, black: float, white: float) -> NDArray[np.uint8]:
    """What each value of an unsigned integer of ``size`` bytes becomes."""
    return _scaled(np.arange(256**size, dtype=np.float64), black, white)


def _over_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """(H, W, 1) or (H, W, 3) to a new (H, W, 3) RGB over white."""
    if alpha is not None:
        wide = alpha.astype(np.uint16)[..., None]
        # at most 255 * 255 + 127, which uint16 still holds
        colour = ((colour * wide + 255 * (255 - wide) + 127) // 255).astype(np.uint8)
    return np.array(np.broadcast_to(colour, (*colour.shape[:2], 3)), order="C")
