"""Image files and PIL images to arrays that hold the file's own values."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, features

from text2sam.errors import ImageError, warn
from text2sam.tiff import ForPillow, count_pages, is_tiff, read_tiff

_URL = re.compile(r"(?:[a-z][a-z0-9+.\-]+://|data:)", re.IGNORECASE)
_HEIC_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_PAGED = ("TIFF", "GIF", "PNG", "WEBP", "AVIF")  # the further pictures of MPO, ICO or PSD files are no pages
_ORIENTATION = 0x0112
_NOT_DECODED = ("EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF")  # formats that Pillow opens but cannot decode by itself
_OPTIONAL = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}  # formats that some builds of Pillow lack

_Turn: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
_UPRIGHT: dict[object, _Turn] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}

# warnings.catch_warnings and Pillow's limit are process-wide; held while a file's head is read, never while pixels are decoded
_head_lock = threading.Lock()


class Pixels(NamedTuple):
    """A decoded picture, upright.

    Attributes:
        colour: (H, W, 1) or (H, W, 3) of any number type.
        alpha: (H, W) of any number type, over that type's full range; None for an opaque picture.
    """

    colour: NDArray[Any]
    alpha: NDArray[Any] | None = None


def readable_suffixes() -> frozenset[str]:
    """The suffixes of image files, in lower case, with the dot: of all formats that Pillow can decode here, and HEIC's.

    HEIC is always among them, as reading it without pillow-heif fails with an error that names the package.
    """
    Image.init()
    supported = features.get_supported()
    left_out = {*_NOT_DECODED, *(kind for kind, feature in _OPTIONAL.items() if feature not in supported)}
    kinds = {*Image.OPEN, "MPO"} - left_out  # the JPEG plugin opens MPO
    return frozenset(s.lower() for s, kind in Image.registered_extensions().items() if kind in kinds).union(_HEIC_SUFFIXES)


@contextlib.contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Inside, whatever Pillow raises leaves as an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to decode safely: {error} {_ADVICE}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image in any format Pillow can read; convert it to PNG or JPEG") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, zlib.error, ...
        raise ImageError(f"{name} is broken, truncated or unsupported: {type(error).__name__}: {error}") from error


_ADVICE = "If you trust it, say max_pixels (--max-pixels on the command line), or make it smaller first"


@contextlib.contextmanager
def _head(max_pixels: int | None = None) -> Iterator[None]:
    """Inside, Pillow warns of nothing and its limit is ``max_pixels`` where that is higher."""
    with _head_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit = Image.MAX_IMAGE_PIXELS
        if max_pixels is not None and limit is not None:
            Image.MAX_IMAGE_PIXELS = max(limit, max_pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def open_picture(file: str | os.PathLike[str] | IO[bytes], max_pixels: int | None = None) -> ImageFile.ImageFile:
    """``PIL.Image.open`` without its warnings.

    Raises:
        ImageError: the picture has more than ``max_pixels``, by default Pillow's limit.
        Exception: whatever Pillow raises; see :func:`pillow_errors`.
    """
    with _head(max_pixels):
        image = Image.open(file)
    try:
        check_pixels(image.width * image.height, max_pixels)
    except BaseException:
        image.close()
        raise
    return image


def check_pixels(count: int, max_pixels: int | None) -> None:
    """Refuse a picture with more than ``max_pixels``, by default Pillow's limit, with DecompressionBombError."""
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    if limit is not None and count > limit:
        raise Image.DecompressionBombError(f"it has {count} pixels, more than {limit}.")


def decode_file(path: str | os.PathLike[str], page: int, max_pixels: int | None) -> Pixels:
    """The pixels of a file; arguments and errors are those of :func:`text2sam.image.read_image`."""
    path = os.fsdecode(path)
    name = short(path)
    if not path:
        raise ImageError("an empty path names no image; pass the path of a file")
    if _URL.match(path):
        raise ImageError(f"{name} is a URL; download it first and pass the path of the file")
    if os.path.isdir(path):
        raise ImageError(f"{name} is a folder; pass the path of one image")
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait forever
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
        head = file.read(16)
        file.seek(0)
        if is_tiff(head):
            pages, full = count_pages(file)
            _check_page(name, page, pages, full)
            with contextlib.suppress(ForPillow):
                return _decode_tiff(file, page, max_pixels)
            file.seek(0)
        try:
            image: Image.Image = open_picture(file, max_pixels)
        except UnidentifiedImageError:
            if is_tiff(head):
                try:
                    return _decode_tiff(file, page, max_pixels, also_bytes=True)
                except ForPillow as error:
                    raise ImageError(f"{name} is a TIFF that cannot be decoded ({error}); convert it to PNG") from error
            if head[4:8] != b"ftyp" or head[8:12] not in _HEIC_BRANDS:
                raise
            file.seek(0)
            image = _open_heic(file, name, max_pixels)
        with image:
            if image.format == "EPS":  # Pillow would run it with Ghostscript
                raise ImageError(f"{name} is PostScript, a program that would have to be run; convert it to PNG or JPEG")
            _turn_to_page(image, name, page)
            check_pixels(image.width * image.height, max_pixels)
            if max_pixels is not None and isinstance(image, TiffImagePlugin.TiffImageFile):
                with _head(max_pixels):
                    image.load_prepare()  # the plugin checks the limit there once more
            return decode_picture(image, name)


def _decode_tiff(file: IO[bytes], page: int, max_pixels: int | None, *, also_bytes: bool = False) -> Pixels:
    return _upright(*read_tiff(file, page, lambda pixels: check_pixels(pixels, max_pixels), also_bytes=also_bytes))


def _turn_to_page(image: Image.Image, name: str, page: int) -> None:
    if image.format == "TIFF":  # its pages are counted already
        image.seek(page)
        return
    pages = getattr(image, "n_frames", 1)
    _check_page(name, page, pages, pages if image.format in _PAGED else 1)
    if page:
        image.seek(page)


def _check_page(name: str, page: int, pages: int, full: int) -> None:
    """``full`` of the pages are worth a warning."""
    if page >= pages:
        raise ImageError(f"there is no page {page} in {name}: it has {pages}, counted from 0")
    if page == 0 and full > 1:
        warn(f"{name} has {full} pages or frames; the first is read, {full - 1} left out (page=1 reads the second)")


def _open_heic(file: IO[bytes], name: str, max_pixels: int | None) -> Image.Image:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            f"{name} is a HEIC picture, which needs the package 'pillow-heif'; install it with: pip install pillow-heif"
        ) from error
    heif = pillow_heif.open_heif(file)
    check_pixels(heif.size[0] * heif.size[1], max_pixels)
    image: Image.Image = heif.to_pillow()
    return image


def decode_picture(image: Image.Image, name: str) -> Pixels:
    """The pixels of a PIL image's current frame."""
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: {image.width} x {image.height}")
    # of 16-bit colours Pillow keeps the upper bytes
    wide = image.format == "PNG" and any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    try:
        image.load()
    except Exception as error:
        file = getattr(image, "fp", None)
        closed = isinstance(image, ImageFile.ImageFile) and (file is None or getattr(file, "closed", False))
        if closed or "closed image" in str(error):
            raise ImageError(
                f"{name} is closed, and its pixels were not loaded before; read it inside its with block, or pass the path"
            ) from error
        raise
    orientation = 1
    if image.format != "TIFF":  # these Pillow turns itself, and 10.0 leaves the tag in place
        with contextlib.suppress(Exception), _head():  # viewers ignore a broken EXIF block
            orientation = image.getexif().get(_ORIENTATION, 1)
    return _upright(*_values(image, wide), orientation)


def _upright(colour: NDArray[Any], alpha: NDArray[Any] | None, orientation: object) -> Pixels:
    turn = _UPRIGHT.get(orientation, _UPRIGHT[1])
    return Pixels(turn(colour), None if alpha is None else turn(alpha))


def _values(image: Image.Image, wide: bool) -> Pixels:
    mode, key = image.mode, image.info.get("transparency")
    if mode in ("I", "F") or mode.startswith("I;16"):
        values = np.asarray(image)
        if mode == "I" and values.min() >= 0 and values.max() <= 65535:  # so Pillow opens some 16-bit files
            values = values.astype(np.uint16)
        alpha = np.where(values == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
        return Pixels(values[..., None], alpha)
    if mode == "CMYK":
        return Pixels(np.asarray(_cmyk_to_rgb(image)))
    if mode == "P":  # converting changes the palette's alpha in place
        image = image.copy()
    if mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    if mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(v >> 8 for v in key)
    if mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or (mode in ("1", "L", "RGB") and key is not None):
        rgba = np.asarray(image.convert("RGBA"))
        colour, alpha = rgba[..., :3], rgba[..., 3]
    else:
        colour, alpha = np.asarray(image.convert("RGB") if mode not in ("L", "RGB") else image), None
        colour = colour if colour.ndim == 3 else colour[..., None]
    return Pixels(colour.astype(np.uint16) * np.uint16(257) if wide else colour, alpha)


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


def short(value: object) -> str:
    """``repr``, at most 200 characters of it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-40:]}"
