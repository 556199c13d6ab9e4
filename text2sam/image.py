"""One contract for every input image: whatever comes in, RGB pixels as a person sees them go out."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from text2sam.errors import ImageError, InputError

if TYPE_CHECKING:
    import torch

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any] | torch.Tensor"
"""What :func:`read_image` accepts."""

ChannelOrder: TypeAlias = Literal["RGB", "BGR"]

_ACCEPTED = (
    "accepted are: a path; a PIL image; a NumPy array (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) "
    "of uint8, uint16, bool, or float in [0, 1]; a torch tensor (C, H, W) or (H, W) of uint8 or float in [0, 1]"
)
_CHANNELS = (1, 2, 3, 4)
_OVERSHOOT = 1e-3
_URL = re.compile(r"(?:[a-z][a-z0-9+.\-]+://|data:)", re.IGNORECASE)

# warnings.catch_warnings swaps process-wide state: two threads inside it at once can leave it swapped
_warnings_lock = threading.Lock()


def read_image(image: ImageLike, *, channel_order: ChannelOrder = "RGB") -> NDArray[np.uint8]:
    """Read any image as a person sees it.

    Files and PIL images (a file's first frame, a PIL image's current one):
        * The EXIF orientation is applied, unless the picture was transposed already (then the tag is gone).
        * Transparency, from an alpha channel, a palette or a colour key, is composited over white.
        * 16-bit grey (``I;16*``, and ``I``, into which Pillow puts some 16-bit files) is the full
          range 0..65535, divided by 257 and rounded: not clipped at 255, not stretched to the picture's
          own extremes. ``I`` with values outside it is an error.
        * ``F`` holds values in [0, 1], as a float array does.
        * CMYK goes to sRGB through the embedded ICC profile where there is one that works, else by
          Pillow's formula. Profiles of RGB and grey pictures are not applied.

    NumPy arrays, channels last: grey, grey and alpha, RGB, or RGB and alpha. Tensors, channels first as
    torchvision has them, on any device; a leading batch axis of one is dropped. For both:
        * uint8 is taken as it is; bool is 0 and 255; uint16 is the full range as above; other integers
          must lie in 0..255.
        * floats must lie in [0, 1] and are multiplied by 255 and rounded; 0.001 beyond is clipped.
        * alpha is not premultiplied and is composited over white, in 8 bits.

    Args:
        image: a path, a PIL image, an array or a tensor.
        channel_order: ``"BGR"`` for arrays and tensors with colours in OpenCV's order (BGR, BGRA); grey
            ones are the same either way.

    Returns:
        (H, W, 3) uint8, RGB, C-contiguous, writable, sharing no memory with ``image``.

    Raises:
        ImageError: the file is missing, broken, no image or too large (Pillow's decompression bomb limit,
            its warning included), or the object is not one of those above; the message says what was
            given and what is accepted. Also ``"BGR"`` with a file or PIL image, whose order is known.
        InputError: ``channel_order`` is neither ``"RGB"`` nor ``"BGR"``.
    """
    if channel_order not in ("RGB", "BGR"):
        raise InputError(f'channel_order must be "RGB" or "BGR", not {_short(channel_order)}')
    bgr = channel_order == "BGR"
    if isinstance(image, np.ndarray):
        return _from_array(image, bgr)
    if isinstance(image, (str, os.PathLike, Image.Image)):
        if bgr:
            raise ImageError(
                'channel_order="BGR" is for arrays and tensors; files and PIL images know their own order '
                "and are always decoded to RGB, so leave it out"
            )
        return _from_pil(image) if isinstance(image, Image.Image) else _from_file(image)
    torch = sys.modules.get("torch")  # nobody can hold a tensor before torch is imported
    if torch is not None and isinstance(image, torch.Tensor):
        return _from_tensor(image, bgr)
    raise ImageError(f"cannot read an image from {_describe(image)}; {_ACCEPTED}")


def is_single(images: Any) -> bool:
    """Whether this is one image (a path, a PIL image, an array of up to three axes) where several were asked for."""
    return isinstance(images, (str, os.PathLike)) or not isinstance(images, Iterable) or getattr(images, "ndim", 4) < 4


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-40:]}"


def _describe(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{name}; for an encoded image pass PIL.Image.open(io.BytesIO(data))"
    if isinstance(value, io.IOBase):
        return f"the open file {name}; pass PIL.Image.open(file)"
    if isinstance(value, (list, tuple)):
        return f"a {name} of length {len(value)}; pass one image at a time, and pixels as np.asarray(pixels, np.uint8)"
    return name if value is None else f"{name} {_short(value)}"


@contextlib.contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Inside, Pillow warns of nothing and bombs are errors; whatever it raises leaves as an ImageError."""
    try:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} is too large to decode safely: {error} If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS, "
            "or make it smaller first"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image in any format Pillow can read; convert it to PNG or JPEG") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, zlib.error, ...
        raise ImageError(f"{name} is broken, truncated or unsupported: {type(error).__name__}: {error}") from error


def _from_file(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    path = os.fsdecode(path)
    name = _short(path)
    if not path:
        raise ImageError(f"an empty path names no image; {_ACCEPTED}")
    if _URL.match(path):
        raise ImageError(f"{name} is a URL; download it first and pass the path of the file")
    if os.path.isdir(path):
        raise ImageError(f"{name} is a folder; pass the path of one image")
    try:
        # opened apart from decoding, whose errors read differently; a pipe nobody writes to must not be waited for
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {name}; check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    with file, pillow_errors(name):
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name} is a pipe or device; save the image to a file and pass its path")
        if not status.st_size:
            raise ImageError(f"{name} is an empty file of 0 bytes; it was probably not written or copied to the end")
        with Image.open(file) as image:
            if image.format == "EPS":  # Pillow would hand it to Ghostscript, which runs what is in it
                raise ImageError(f"{name} is PostScript, a program that would have to be run; convert it to PNG or JPEG")
            return _decode(image, name)


def _from_pil(image: Image.Image) -> NDArray[np.uint8]:
    name = f"the PIL image (mode {image.mode}, {image.width} x {image.height} pixels)"
    with pillow_errors(name):
        return _decode(image, name)


def _decode(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: {image.width} x {image.height}")
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # an unreadable EXIF block is ignored, as viewers do
        image = image.copy()

    mode, key = image.mode, image.info.get("transparency")
    if mode == "I" or mode.startswith("I;16"):
        wide = np.asarray(image)
        if mode == "I" and (wide.min() < 0 or wide.max() > 65535):
            raise ImageError(
                f"{name} holds 32-bit values from {wide.min()} to {wide.max()}, whose white is unknown; "
                "scale them to 0..65535 or to 8 bits first"
            )
        grey = _narrow(wide)[..., None]  # (H, W, 1)
        if isinstance(key, int):
            alpha = np.where(wide == key, 0, 255).astype(np.uint8)
            grey = np.concatenate([grey, alpha[..., None]], axis=2)  # (H, W, 2)
        return _to_rgb(grey)
    if mode == "F":
        return _to_rgb(_to_uint8(np.asarray(image), name)[..., None])
    if mode == "CMYK":
        return np.array(_cmyk_to_rgb(image))
    if mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    if mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # the key of a 16-bit file, of whose pixels Pillow keeps the upper bytes
        image.info["transparency"] = tuple(v >> 8 for v in key)
    if mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or (mode in ("1", "L", "RGB") and key is not None):
        return _to_rgb(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        # littlecms may be missing, the profile broken or for another colour space
        with contextlib.suppress(Exception):
            from PIL import ImageCms

            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
            if converted is not None:
                return converted
    return image.convert("RGB")


def _from_array(array: NDArray[Any], bgr: bool) -> NDArray[np.uint8]:
    given = f"a {array.dtype} array of shape {array.shape}"
    if array.dtype.kind not in "buif":
        raise ImageError(f"{given} does not hold pixels; {_ACCEPTED}")
    if array.ndim == 4:
        hint = "image[0]" if array.shape[-1] in _CHANNELS else "image[0].transpose(1, 2, 0)"
        raise ImageError(f"{given} is a batch; pass one image of it, such as {hint}, or use segment_batch")
    if array.ndim not in (2, 3):
        raise ImageError(f"{given} is not an image; {_ACCEPTED}")
    if not array.size:
        raise ImageError(f"{given} has no pixels; height, width and channels must be at least 1")
    if array.ndim == 3 and array.shape[2] not in _CHANNELS:
        if array.shape[0] in _CHANNELS:
            raise ImageError(f"{given} looks like channels first; pass image.transpose(1, 2, 0), which is (H, W, C)")
        raise ImageError(f"{given} has {array.shape[2]} channels; {_ACCEPTED}")
    pixels = array if array.ndim == 3 else array[..., None]
    return _to_rgb(_to_uint8(np.asarray(pixels), given), bgr)


def _from_tensor(tensor: torch.Tensor, bgr: bool) -> NDArray[np.uint8]:
    shape = tuple(tensor.shape)
    given = f"a {tensor.dtype} tensor of shape {shape}"
    if tensor.is_complex() or tensor.is_quantized:
        raise ImageError(f"{given} does not hold pixels; {_ACCEPTED}")
    if len(shape) == 4 and shape[0] > 1:
        raise ImageError(f"{given} is a batch of {shape[0]}; use segment_batch, or pass one image of it, such as image[0]")
    if 0 in shape:
        raise ImageError(f"{given} has no pixels; channels, height and width must be at least 1")
    if len(shape) == 4:
        tensor, shape = tensor[0], shape[1:]
    if len(shape) not in (2, 3):
        raise ImageError(f"{given} is not an image; {_ACCEPTED}")
    if len(shape) == 3 and shape[0] not in _CHANNELS:
        if shape[2] in _CHANNELS:
            raise ImageError(f"{given} looks like channels last; tensors are (C, H, W): pass image.permute(2, 0, 1)")
        raise ImageError(f"{given} has {shape[0]} channels, counted on the first axis; {_ACCEPTED}")
    tensor = tensor.detach()
    try:
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # NumPy has no bfloat16
        values: NDArray[Any] = tensor.cpu().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, meta, ...
        raise ImageError(f"{given} cannot be turned into an array: {error}") from error
    values = values.transpose(1, 2, 0) if values.ndim == 3 else values[..., None]  # (H, W, C)
    return _to_rgb(_to_uint8(values, given), bgr)


def _narrow(values: NDArray[Any]) -> NDArray[np.uint8]:
    """0..65535 to 0..255, rounded; 257 steps of the one are exactly one of the other."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_uint8(values: NDArray[Any], given: str) -> NDArray[np.uint8]:
    """Values of any accepted dtype as 0..255; may share memory with ``values``."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return np.where(values, 255, 0).astype(np.uint8)
    if values.dtype.newbyteorder("=") == np.uint16:
        return _narrow(values)
    low, high = values.min(), values.max()
    if values.dtype.kind != "f":
        if low < 0 or high > 255:
            raise ImageError(
                f"{given} holds values from {low} to {high}; integers must lie in 0..255, or be uint16, whose range is 0..65535"
            )
        return values.astype(np.uint8)
    if not (np.isfinite(low) and np.isfinite(high)):  # min and max carry a NaN on
        raise ImageError(f"{given} holds NaN or infinite values; replace them, for instance by np.nan_to_num")
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        if low < -_OVERSHOOT:
            hint = "if it is normalised (mean subtracted), pass the pixels as they were before that"
        else:
            hint = "if they are 0..255, convert to uint8 or divide by 255"
        raise ImageError(f"{given} holds values from {low:g} to {high:g}; floats must lie in [0, 1]: {hint}")
    # float16 is too coarse to hold 255 times itself
    exact = values.astype(np.promote_types(values.dtype, np.float32))
    result: NDArray[np.uint8] = np.rint(np.clip(exact, 0, 1) * 255).astype(np.uint8)
    return result


def _to_rgb(pixels: NDArray[np.uint8], bgr: bool = False) -> NDArray[np.uint8]:
    """(H, W, C) with 1 to 4 channels, alpha last, to a new (H, W, 3) RGB over white."""
    channels = pixels.shape[2]
    colour = pixels[..., : channels - 1] if channels in (2, 4) else pixels
    if bgr:
        colour = colour[..., ::-1]
    if channels in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint16)
        # at most 255 * 255 + 127, which uint16 still holds
        colour = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    height, width = pixels.shape[:2]
    return np.array(np.broadcast_to(colour, (height, width, 3)), order="C")
