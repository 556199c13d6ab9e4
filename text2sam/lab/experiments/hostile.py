"""Image files in many encodings, and hostile files with names of images, for the annotation trial and for tests."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam.files import write_bytes
from text2sam.lab.sticker.world import background

CANARY = "text2sam-canary"
"""The file that the payload of a hostile file would create in the working directory."""

_TURNS: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> the transposition that it undoes."""

_ORIENTATION = 0x0112


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _head(width: int, height: int, depth: int, colour: int) -> bytes:
    """Signature and header of a PNG; ``colour`` 0 is grey, 2 RGB."""
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", sides + bytes([depth, colour, 0, 0, 0]))


def _png16(values: NDArray[np.uint8]) -> bytes:
    """A 16-bit PNG from (H, W) or (H, W, 3), which Pillow cannot write in colour."""
    height, width = values.shape[:2]
    rows = (values.astype(">u2") * np.uint16(257)).astype(">u2").reshape(height, -1)  # 255 is 65535
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)
    head = _head(width, height, 16, 2 if values.ndim == 3 else 0)
    return head + _chunk(b"IDAT", zlib.compress(filtered)) + _chunk(b"IEND", b"")


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    return saved(image, "JPEG", quality=95, subsampling=0, **options)


def _turned(pixels: NDArray[np.uint8], rng: np.random.Generator) -> bytes:
    orientation = int(rng.integers(2, 9))
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return _jpeg(Image.fromarray(pixels).transpose(_TURNS[orientation]), exif=exif)


def _transparent(pixels: NDArray[np.uint8]) -> bytes:
    """The most transparent PNG that looks like ``pixels`` on white."""
    alpha = 255 - pixels.min(axis=2).astype(np.float64)  # (H, W)
    share = np.maximum(alpha, 1)[..., None] / 255
    colour = 255 - (255 - pixels.astype(np.float64)) / share
    return saved(Image.fromarray(np.dstack([np.clip(colour, 0, 255), alpha]).round().astype(np.uint8), "RGBA"), "PNG")


def _grey(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).convert("L")


ENCODINGS: Mapping[str, tuple[str, Callable[[NDArray[np.uint8], np.random.Generator], bytes]]] = {
    "png": (".png", lambda p, _: _png(Image.fromarray(p))),
    "jpeg": (".jpg", lambda p, _: _jpeg(Image.fromarray(p))),
    "turned jpeg": (".jpeg", _turned),
    "palette png": (".png", lambda p, _: saved(Image.fromarray(p).quantize(256, dither=Image.Dither.NONE), "PNG")),
    "grey jpeg": (".JPG", lambda p, _: _jpeg(_grey(p))),
    "alpha png": (".png", lambda p, _: _transparent(p)),
    "cmyk jpeg": (".jpg", lambda p, _: saved(Image.fromarray(p).convert("CMYK"), "JPEG", quality=95)),
    "16-bit png": (".png", lambda p, _: _png16(p)),
    "16-bit grey png": (".PNG", lambda p, _: _png16(np.asarray(_grey(p)))),
    "progressive jpeg": (".jpe", lambda p, _: _jpeg(Image.fromarray(p), progressive=True)),
}
"""Encoding -> suffix, and function from (H, W, 3) uint8 RGB to the bytes of the file."""


_PICKLE = b"cposix\nsystem\n(S'touch %s'\ntR." % CANARY.encode()
_SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script><rect width="9" height="9"/></svg>'
)
_XML_BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a0 "ha">'
    + b"".join(b'<!ENTITY a%d "%s">' % (k + 1, b"&a%d;" % k * 10) for k in range(9))
    + b"]><svg>&a9;</svg>"
)
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n0 0 64 64 rectfill\nshowpage\n%%EOF\n"
_PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
_BMP = b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0\xff\xff\xff\x7f\x01\0\0\0\x01\0\x18\0" + bytes(24)
_TEXT_BOMB_BYTES = 80 << 20
_HUGE = 1 << 30


def _sample(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(background(rng, (96, 128)))


def _png(image: Image.Image) -> bytes:
    return saved(image, "PNG")


def _cut(encode: Callable[[Image.Image], bytes], share: float) -> Callable[[np.random.Generator], bytes]:
    """The first ``share`` of an image file."""

    def make(rng: np.random.Generator) -> bytes:
        data = encode(_sample(rng))
        return data[: max(2, int(share * len(data)))]

    return make


def _text_bomb(rng: np.random.Generator) -> bytes:
    data = _png(_sample(rng))
    packed = zlib.compress(bytes(_TEXT_BOMB_BYTES), 1)
    head = len(_head(1, 1, 8, 2))
    return data[:head] + _chunk(b"zTXt", b"Comment\0\0" + packed) + data[head:]


def _wide_bomb(rng: np.random.Generator) -> bytes:
    """A valid PNG of 10,000 x 10,000 one-bit pixels: 12 kB that decode to 300 MB of RGB."""
    return _head(10_000, 10_000, 1, 0) + _chunk(b"IDAT", zlib.compress(bytes(1251 * 10_000), 9)) + _chunk(b"IEND", b"")


def _tiff(rng: np.random.Generator) -> bytes:
    data = bytearray(saved(_sample(rng), "TIFF"))
    start = int.from_bytes(data[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == 273:  # where the pixels are
            data[entry + 8 : entry + 12] = b"\xf0\xff\xff\x7f"
    return bytes(data)


def _webp(rng: np.random.Generator) -> bytes:
    return b"RIFF\xff\xff\xff\x7fWEBPVP8 " + b"\xff\xff\xff\x7f" + rng.bytes(40)


def _file(make: Callable[[np.random.Generator], bytes], mode: int | None = None) -> Callable[[Path, np.random.Generator], None]:
    def write(path: Path, rng: np.random.Generator) -> None:
        write_bytes(path, make(rng))
        if mode is not None:
            path.chmod(mode)

    return write


def _bytes(data: bytes) -> Callable[[Path, np.random.Generator], None]:
    return _file(lambda rng: data)


def _link(target: str) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: path.symlink_to(target)


def _sparse(path: Path, rng: np.random.Generator) -> None:
    with open(path, "wb") as file:
        file.truncate(_HUGE)


HOSTILE: Mapping[str, tuple[str, Callable[[Path, np.random.Generator], None]]] = {
    "zero bytes": ("empty.png", _bytes(b"")),
    "a pipe": ("pipe.png", lambda path, rng: os.mkfifo(path)),
    "PNG cut in half": ("half.png", _file(_cut(_png, 0.5))),
    "PNG that announces 50,000 x 50,000 pixels": (
        "bomb.png",
        _bytes(_head(50_000, 50_000, 8, 2) + _chunk(b"IDAT", zlib.compress(bytes(9999))) + _chunk(b"IEND", b"")),
    ),
    "pickle that runs a command": ("pickle.png", _bytes(_PICKLE)),
    "JPEG cut in half": ("half.jpg", _file(_cut(_jpeg, 0.5))),
    "link to nothing": ("dangling.png", _link("nowhere/at all.png")),
    "link to itself": ("loop.png", _link("loop.png")),
    "link to its own folder": ("up.png", _link(".")),
    "folder called .png": ("folder.png/inner.jpg", _bytes(b"not a picture")),
    "PNG of 10,000 x 10,000 pixels in 12 kB": ("wide.png", _file(_wide_bomb)),
    "1 GB of zeros": ("huge.png", _sparse),
    "PostScript": ("script.png", _bytes(_EPS)),
    "text": ("notes.jpg", _bytes("Größe: drei\n".encode() * 50)),
    "HTML": ("page.jpeg", _bytes(b"<!doctype html><title>404</title><script>alert(1)</script>")),
    "random bytes": ("noise.png", _file(lambda rng: rng.bytes(5000))),
    "PNG header alone": ("header.png", _bytes(_head(640, 480, 8, 2))),
    "PNG with a damaged signature": ("magic.png", _file(lambda rng: b"\x88" + _png(_sample(rng))[1:])),
    "JPEG cut near its end": ("late.jpeg", _file(_cut(_jpeg, 0.9))),
    "GIF without a frame": ("none.gif", _bytes(b"GIF89a\x40\0\x40\0\0\0\0;")),
    "TIFF with offsets beyond its end": ("offsets.tif", _file(_tiff)),
    "SVG": ("drawing.png", _bytes(_SVG)),
    "XML bomb": ("laughs.png", _bytes(_XML_BOMB)),
    "name with a line break": ("line\nbreak.png", _bytes(b"x")),
    "name with quotes": ("\"it's\" `id` $(id).jpg", _bytes(b"x")),
    "name with emoji": ("\U0001f600\U0001f468\u200d\U0001f469.png", _bytes(b"x")),
    "name with a leading dash": ("--overwrite.png", _bytes(b"x")),
    "name of 255 bytes": (f"{'n' * 251}.png", _bytes(b"x")),
    "name that is not Unicode": (os.fsdecode(b"\xff\xfe\xe9.png"), _bytes(b"x")),
    "name with a backslash": ("x\\..\\..\\up.png", _bytes(b"x")),
    "PNG signature alone": ("signature.png", _bytes(_head(1, 1, 8, 2)[:8])),
    "JPEG cut at its start": ("early.jpg", _file(_cut(_jpeg, 0.0))),
    "PNG cut near its end": ("late.png", _file(_cut(_png, 0.95))),
    "PDF": ("document.jpg", _bytes(_PDF)),
    "PNG with 80 MB of text in 80 kB": ("text.png", _file(_text_bomb)),
    "BMP of 2 billion columns": ("wide.bmp", _bytes(_BMP)),
    "WebP that is cut": ("cut.webp", _file(_webp)),
    "PPM without pixels": ("none.ppm", _bytes(b"P6\n64 64\n255\n")),
    "no permission": ("locked.png", _file(lambda rng: b"x", 0)),
    "ZIP": ("archive.png", _bytes(b"PK\x05\x06" + bytes(18))),
    "shell script": ("run.jpg", _bytes(b"#!/bin/sh\ntouch %s\n" % CANARY.encode())),
}  # fmt: skip
"""Kind of hostile file -> its file name, and the function that writes it."""
