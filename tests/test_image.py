from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps, features

from text2sam.decode import readable_suffixes
from text2sam.errors import ImageError, InputError, Text2SamWarning
from text2sam.image import read_image

SHAPES = [(1, 1), (1, 5), (5, 1), (4, 7)]


def noise(*shape: int, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


def noise8(*shape: int, seed: int = 0) -> np.ndarray:
    return noise(*shape, seed=seed).astype(np.uint8)


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    a = alpha.astype(np.float64)[..., None] / 255
    return colour * a + 255 * (1 - a)


def narrow(wide: np.ndarray) -> np.ndarray:
    return np.array([round(int(v) / 257) for v in wide.ravel()], np.uint8).reshape(wide.shape)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow turns it."""
    places = Image.fromarray(np.arange(array.shape[0] * array.shape[1], dtype=np.int32).reshape(array.shape[:2]))
    places.getexif()[0x0112] = orientation
    return array.reshape(-1, *array.shape[2:])[np.asarray(ImageOps.exif_transpose(places))]


def check(result: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    assert result.dtype == np.uint8
    assert result.shape == expected.shape
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert np.abs(result.astype(np.float64) - expected).max() <= tolerance


def png(height: int, width: int, colour_type: int, bits: int, raw: bytes, trns: bytes = b"") -> bytes:
    """A PNG by the specification, independent of Pillow's writer."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    stride = len(raw) // height
    rows = b"".join(b"\0" + raw[i * stride : (i + 1) * stride] for i in range(height))
    key = chunk(b"tRNS", trns) if trns else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# what cannot be read


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "NoneType"),
        ([[0, 1], [2, 3]], "list of length 2"),
        ((i for i in range(3)), "generator"),
        (b"\x89PNG", "io.BytesIO"),
        (np.uint8(3), "uint8"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_other_objects(value: Any, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        read_image(value)
    assert "accepted are: a path; a PIL image; a NumPy array" in str(caught.value)


@pytest.mark.parametrize("url", ["http://a.b/c.png", "HTTPS://a.b/c.png", "s3://a/c.png", "data:image/png;base64,AAAA"])
def test_urls(url: str) -> None:
    with pytest.raises(ImageError, match="download it first"):
        read_image(url)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("not an image at all, only letters")
    buffer = io.BytesIO()
    Image.fromarray(noise8(64, 64, 3)).save(buffer, "PNG")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[:2000])
    cases = {
        "missing.png": "there is no file",
        "zero.png": "0 bytes",
        "text.png": "not an image in any format",
        "half.png": "truncated",
        ".": "is a folder",
        "n\0l.png": "null",
    }
    for name, says in cases.items():
        path = f"{tmp_path}/{name}"
        with pytest.raises(ImageError, match=says) as caught:
            read_image(path)
        assert repr(path) in str(caught.value)
    with pytest.raises(ImageError, match="empty path"):
        read_image("")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # the tests may run as root, who may read anything
    with pytest.raises(ImageError, match=r"a\.png.*Permission denied"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("limit", [10, 30])  # an error of Pillow's at more than twice the limit, else a warning
def test_bombs_and_trusted_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, kind: str) -> None:
    image, path = Image.new("L", (10, 5), 7), tmp_path / "a"
    image.save(path, kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for options in ({}, {"max_pixels": 49}):
        with pytest.raises(ImageError, match=r"a' is too large.*max_pixels"):
            read_image(path, **options)
    check(read_image(path, max_pixels=50), np.full((5, 10, 3), 7))
    check(read_image(image), np.full((5, 10, 3), 7))  # it is in memory already
    assert limit == Image.MAX_IMAGE_PIXELS


def test_closed_and_empty_pil_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no pixels"):
        read_image(Image.new("RGB", (0, 3)))
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as left, Image.open(tmp_path / "a.png") as loaded:
        loaded.load()
    closed, made = Image.open(tmp_path / "a.png"), Image.new("L", (2, 2))
    with open(tmp_path / "a.png", "rb") as file:
        lost = Image.open(file)
    closed.close()
    made.close()
    for image in (left, closed, made, lost):
        with pytest.raises(ImageError, match=r"PIL image .* is closed"):
            read_image(image)
    check(read_image(loaded), np.zeros((2, 2, 3)))


def test_threads_decode_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)

    class Slow(Image.Image):
        def load(self) -> Any:
            both.wait()
            return super().load()

    def read() -> None:
        image = Image.new("L", (1, 1))
        image.__class__ = Slow
        read_image(image)

    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(read) for _ in range(2)]:
            future.result()
    assert list(warnings.filters) == before


HEADS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP", b"P6 "]


def damaged(kind: str, place: float, value: int) -> bytes:
    """A picture of which one byte is another."""
    buffer = io.BytesIO()
    Image.fromarray(noise8(9, 7, 3)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    data[int(place * (len(data) - 1))] = value
    return bytes(data)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(bytes.__add__, st.sampled_from(HEADS), st.binary(max_size=200))
    | st.builds(damaged, st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), st.floats(0, 1), st.integers(0, 255))
)
def test_broken_files_only_raise_image_errors(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    try:
        result = read_image(tmp_path / "a")
    except ImageError:
        return
    check(result, result)


# modes


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_modes(shape: tuple[int, int]) -> None:
    grey, rgb = noise8(*shape), noise8(*shape, 3)
    bits = grey > 127
    check(read_image(Image.fromarray(grey)), grey3(grey))
    check(read_image(Image.fromarray(rgb)), rgb)
    check(read_image(Image.fromarray(rgb).convert("RGBX")), rgb)
    check(read_image(Image.fromarray(bits)), grey3(bits * 255))


@pytest.mark.parametrize("shape", SHAPES)
def test_alpha_is_over_white(shape: tuple[int, int]) -> None:
    rgba, la = noise8(*shape, 4), noise8(*shape, 2)
    check(read_image(Image.fromarray(rgba)), over_white(rgba[..., :3], rgba[..., 3]), 0.5)
    check(read_image(Image.fromarray(la)), over_white(grey3(la[..., 0]), la[..., 1]), 0.5)


def test_premultiplied_alpha() -> None:
    # 40 of 100 premultiplied is 102 straight; over white 40 + 155
    rgba = Image.frombytes("RGBa", (1, 1), bytes([40, 20, 0, 100]))
    la = Image.frombytes("La", (1, 1), bytes([40, 100]))
    check(read_image(rgba), np.array([[[195, 175, 155]]]), 1)
    check(read_image(la), np.array([[[195, 195, 195]]]), 1)


def test_palette(tmp_path: Path) -> None:
    index, colours = noise8(5, 3) % 4, noise8(4, 3, seed=1)
    image = Image.fromarray(index)
    image.putpalette(colours.ravel().tolist())
    assert image.mode == "P"
    check(read_image(image), colours[index])

    alphas = np.array([0, 80, 255, 255], np.uint8)
    expected = over_white(colours[index], alphas[index])
    image.info["transparency"] = bytes(alphas)
    check(read_image(image), expected, 0.5)
    image.save(tmp_path / "a.png", transparency=bytes(alphas))
    check(read_image(tmp_path / "a.png"), expected, 0.5)
    image.info["transparency"] = 2
    check(read_image(image), np.where(index[..., None] == 2, 255, colours[index]))

    pa = Image.frombytes("PA", (3, 5), np.dstack([index, alphas[index]]).tobytes())
    pa.putpalette(colours.ravel().tolist())
    check(read_image(pa), expected, 0.5)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_pages(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("L", (3, 2), v) for v in (10, 200, 90)]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.warns(Text2SamWarning, match=r"a' has 3 pages or frames; .*2 left out") as caught:
        check(read_image(tmp_path / "a"), np.full((2, 3, 3), 10))
    assert len(caught) == 1
    for page, value in ((1, 200), (2, 90)):
        check(read_image(tmp_path / "a", page=page), np.full((2, 3, 3), value))
    with pytest.raises(ImageError, match=r"no page 3 in .* has 3, counted from 0"):
        read_image(tmp_path / "a", page=3)
    with Image.open(tmp_path / "a") as image:
        image.seek(1)
        check(read_image(image), np.full((2, 3, 3), 200))
        with pytest.raises(ImageError, match=r"image\.seek\(1\)"):
            read_image(image, page=1)
    for wrong in (-1, 0.5, "1", None):
        with pytest.raises(InputError, match="page"):
            read_image(tmp_path / "a", page=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_smaller_copies_are_no_pages(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    pixels = np.linspace(0, 1 if dtype == "float32" else 255, 80).reshape(8, 10).astype(dtype)
    with tifffile.TiffWriter(tmp_path / "a.tif", **options) as tiff:
        tiff.write(pixels, metadata=None)
        tiff.write(pixels[::2, ::2], subfiletype=1, metadata=None)
    check(read_image(tmp_path / "a.tif"), read_image(pixels))
    check(read_image(tmp_path / "a.tif", page=1), read_image(pixels[::2, ::2]))
    tifffile.imwrite(tmp_path / "b.tif", np.stack([pixels, pixels]), photometric="minisblack", metadata=None, **options)
    with pytest.warns(Text2SamWarning, match="2 pages"):
        check(read_image(tmp_path / "b.tif"), read_image(pixels))


def test_a_chain_of_pages_in_a_circle(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0.0, 1.0]], np.float32), metadata=None)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (tags,) = struct.unpack_from("<H", data, first)
    for place in (first, 2**31, 3):  # to itself, out of the file, into its head
        struct.pack_into("<I", data, first + 2 + 12 * tags, place)
        (tmp_path / "a.tif").write_bytes(data)
        check(read_image(tmp_path / "a.tif"), np.array([[[0] * 3, [255] * 3]]))


def test_colour_keys() -> None:
    grey, rgb = Image.fromarray(np.array([[5, 6]], np.uint8)), Image.fromarray(np.array([[[5, 6, 7], [5, 6, 8]]], np.uint8))
    grey.info["transparency"], rgb.info["transparency"] = 5, (5, 6, 7)
    check(read_image(grey), np.array([[[255] * 3, [6] * 3]]))
    check(read_image(rgb), np.array([[[255] * 3, [5, 6, 8]]]))
    assert rgb.info["transparency"] == (5, 6, 7)


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "<i4")])
def test_sixteen_bits_are_the_full_range(mode: str, dtype: str) -> None:
    wide = np.concatenate([[0, 1, 128, 129, 255, 256, 257, 65534, 65535], noise(991, high=65536)]).reshape(40, 25)
    image = Image.frombytes(mode, (25, 40), wide.astype(dtype).tobytes())
    check(read_image(image), grey3(narrow(wide)))


def test_sixteen_bit_files(tmp_path: Path) -> None:
    for shape in SHAPES:
        wide = noise(*shape, high=65536).astype(np.uint16)
        (tmp_path / "a.png").write_bytes(png(*shape, 0, 16, wide.astype(">u2").tobytes()))
        check(read_image(tmp_path / "a.png"), grey3(narrow(wide)))
        Image.fromarray(wide).save(tmp_path / "a.tiff")
        check(read_image(tmp_path / "a.tiff"), grey3(narrow(wide)))
    rgba = noise(4, 5, 4, high=65536).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(4, 5, 6, 16, rgba.astype(">u2").tobytes()))
    # Pillow keeps the upper byte of colour, up to one below the rounded value
    check(read_image(tmp_path / "a.png"), over_white(rgba[..., :3] / 257, rgba[..., 3] / 257), 2)


def test_sixteen_bit_colour_keys(tmp_path: Path) -> None:
    grey = np.array([[1000, 64000]], np.uint16)
    (tmp_path / "g.png").write_bytes(png(1, 2, 0, 16, grey.astype(">u2").tobytes(), struct.pack(">H", 1000)))
    check(read_image(tmp_path / "g.png"), np.array([[[255] * 3, [249] * 3]]))
    rgb = np.array([[[0x0A22, 0x1422, 0x1E22], [0xE2E2, 0xE2E2, 0xE2E2]]], np.uint16)
    (tmp_path / "c.png").write_bytes(png(1, 2, 2, 16, rgb.astype(">u2").tobytes(), struct.pack(">HHH", *rgb[0, 0].tolist())))
    check(read_image(tmp_path / "c.png"), np.array([[[255] * 3, [0xE2] * 3]]))


@pytest.mark.parametrize("values", [[[-1, 5]], [[0, 65536]]])
def test_thirty_two_bits_out_of_range(values: list[list[int]]) -> None:
    with pytest.raises(ImageError, match=r"integers must lie in.*value_range"):
        read_image(Image.fromarray(np.array(values, np.int32)))


# number types and ranges


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint16", "int16", "int32", "uint32", "int8"])
@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiffs_of_any_number_type(tmp_path: Path, dtype: str, shape: tuple[int, ...], compression: str | None) -> None:
    unit = np.random.default_rng(0).random(shape)
    low, high = (0.0, 1.0) if "f" in dtype else (-100, 100) if dtype == "int8" else (0, 30000)
    values = (low + unit * (high - low)).astype(dtype)
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, compression=compression)
    expected = np.rint((values.astype(np.float64) - low) / (high - low) * 255)
    check(read_image(tmp_path / "a.tif", value_range=(low, high)), expected if len(shape) == 3 else grey3(expected), 1)
    check(read_image(values, value_range=(low, high)), read_image(tmp_path / "a.tif", value_range=(low, high)))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_wide_tiffs_are_turned_and_laid_over_white(tmp_path: Path, orientation: int) -> None:
    rgba = np.random.default_rng(0).integers(0, 65536, (3, 5, 4)).astype(np.uint16)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], extratags=tag)
    check(read_image(tmp_path / "a.tif"), upright(over_white(rgba[..., :3] / 257, rgba[..., 3] / 257), orientation), 1.1)
    tifffile.imwrite(tmp_path / "b.tif", rgba[..., :3].transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    check(read_image(tmp_path / "b.tif"), narrow(rgba[..., :3]))
    tifffile.imwrite(tmp_path / "c.tif", rgba[..., 0], photometric="miniswhite")
    check(read_image(tmp_path / "c.tif"), grey3(narrow(65535 - rgba[..., 0])))


def test_tiffs_that_are_refused(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ImageError, match="4 bands of float32"):
        read_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", bands[..., :3] * 3000, photometric="rgb")
    with pytest.raises(ImageError, match=r"b\.tif.*floats must lie in \[0, 1\].*value_range"):
        read_image(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", np.where(bands[..., 0] > 0.9, np.nan, bands[..., 0]))
    with pytest.raises(ImageError, match="NaN"):
        read_image(tmp_path / "c.tif", value_range=(0, 1))
    tifffile.imwrite(tmp_path / "d.tif", bands[..., 0], metadata=None)
    data = bytearray((tmp_path / "d.tif").read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    for tag in range(*struct.unpack_from("<H", data, first)):
        if struct.unpack_from("<H", data, first + 2 + 12 * tag) == (257,):  # the image's length
            struct.pack_into("<I", data, first + 2 + 12 * tag + 8, 0)
    (tmp_path / "d.tif").write_bytes(data)
    with pytest.raises(ImageError, match="5 x 0 pixels of 1 bands; it is damaged"):
        read_image(tmp_path / "d.tif")


TWELVE = (noise(9, 8, high=4096)).astype(np.uint16)


@pytest.mark.parametrize(
    "source", ["array", "pil", "grey.tif", "rgb.tif", "grey.png", "rgb.png", "int16.tif", "float", "bfloat16", "float.tif"]
)
def test_a_narrow_range_is_told_once_and_can_be_said(tmp_path: Path, source: str) -> None:
    rgb = np.stack([TWELVE] * 3, -1)
    image: Any = tmp_path / source
    black, white, tolerance = 0.0, 4095.0, 0
    if source == "array":
        image = TWELVE
    elif source == "pil":
        image = Image.fromarray(TWELVE)
    elif source == "rgb.png":
        image.write_bytes(png(9, 8, 2, 16, rgb.astype(">u2").tobytes()))
        tolerance = 17  # Pillow keeps four of the twelve bits
    elif source == "grey.png":
        Image.fromarray(TWELVE).save(image)
    elif source == "bfloat16":
        image, white, tolerance = torch.from_numpy(TWELVE / 65535).bfloat16(), 4095 / 65535, 1
    elif source == "float":
        image, white = TWELVE / 65535, 4095 / 65535
    elif source == "float.tif":
        tifffile.imwrite(image, rgb.astype(np.float32) / 65535, photometric="rgb")
        white, tolerance = 4095 / 65535, 1
    else:
        values = rgb if source == "rgb.tif" else TWELVE.astype(np.int16) if source == "int16.tif" else TWELVE
        tifffile.imwrite(image, values, photometric="rgb" if source == "rgb.tif" else "minisblack")
    with pytest.warns(Text2SamWarning, match=r"hardly any contrast; value_range=") as caught:
        dark = read_image(image)
    assert len(caught) == 1
    assert dark.max() <= 16
    bright = read_image(image, value_range=(black, white))
    check(bright, grey3(np.rint(TWELVE / 4095 * 255)), tolerance)
    check(read_image(image, value_range=(white, black)), 255.0 - bright, 1)


def test_ranges_of_eight_bits_and_alpha() -> None:
    grey, rgba = noise8(5, 6), noise8(5, 6, 4)
    expected = np.clip((grey - 50.0) / 100, 0, 1) * 255
    for image in (grey, Image.fromarray(grey), torch.from_numpy(grey)):
        check(read_image(image, value_range=(50, 150)), grey3(expected), 0.5)
    colour = np.rint(np.clip((rgba[..., :3] - 50.0) / 100, 0, 1) * 255)
    for image in (rgba, Image.fromarray(rgba)):
        check(read_image(image, value_range=(50, 150)), over_white(colour, rgba[..., 3]), 0.6)
    bgra = rgba[..., [2, 1, 0, 3]]
    check(read_image(bgra, channel_order="BGR", value_range=(50, 150)), read_image(rgba, value_range=(50, 150)))
    check(read_image(grey > 99, value_range=(50, 150)), grey3((grey > 99) * 255))


def test_nothing_is_told_of_other_pictures() -> None:  # a warning would be an error
    for image in (noise8(5, 6) // 9, np.full((5, 6), 700, np.uint16), np.full((5, 6), 0.5), np.zeros((5, 6), np.float32)):
        read_image(image)
    read_image(np.array([[100, 100 + 16384]], np.uint16))
    read_image(np.dstack([noise(5, 6, high=65536), np.full((5, 6), 9)]).astype(np.uint16))  # alpha may be narrow


@pytest.mark.parametrize("value_range", [(0,), (0, 1, 2), 5, "ab", ("a", "b"), (3, 3), (0, float("nan")), (0, float("inf"))])
def test_ranges_that_are_refused(value_range: Any) -> None:
    with pytest.raises(InputError, match=r"value_range|black|white"):
        read_image(noise8(2, 2), value_range=value_range)


@pytest.mark.parametrize("max_pixels", [0, -1, 2.5, "9", True])
def test_limits_that_are_refused(max_pixels: Any) -> None:
    with pytest.raises(InputError, match="max_pixels"):
        read_image("a.png", max_pixels=max_pixels)


# suffixes and HEIC

FTYP = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(FTYP)
    with pytest.raises(ImageError, match=r"HEIC.*pip install pillow-heif"):
        read_image(tmp_path / "a.heic")


def test_heic(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.kron(noise8(2, 3, 3), np.ones((32, 32, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", quality=-1, exif=exif.tobytes())
    check(read_image(tmp_path / "a.heic"), np.rot90(pixels, -1), 6)
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "a.heic", max_pixels=100)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_readable_suffixes(tmp_path: Path) -> None:
    """An image saved under any of the endings that Pillow can write is read again."""
    suffixes = readable_suffixes()
    assert (".avif" in suffixes) == ("avif" in features.get_supported())
    assert {".jp2", ".webp", ".heic", ".jpg", ".jpeg", ".png", ".tif", ".bmp", ".gif", ".tga", ".mpo"} <= suffixes
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf", ".txt"} & suffixes
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in suffixes)
    seen = 0
    for suffix in suffixes - {".ico", ".icns"}:
        kind, mode = Image.registered_extensions().get(suffix), "RGB"
        if kind in Image.SAVE and kind != "PFM":  # whose floats are of any range
            mode = "1" if kind in ("MSP", "XBM") else mode
            image = Image.new("RGB", (16, 16), (200, 10, 10)).convert(mode)
            with contextlib.suppress(OSError, ValueError, KeyError):
                image.save(tmp_path / f"a{suffix}")
                check(read_image(tmp_path / f"a{suffix}"), np.asarray(image.convert("RGB")), 9)
                seen += 1
    assert seen > 25


def test_other_colour_spaces() -> None:
    rgb = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    for mode in ("YCbCr", "HSV"):
        check(read_image(Image.fromarray(rgb).convert(mode)), rgb, 3)
    # L* = 50 without colour is (119, 119, 119) in sRGB
    lab = Image.frombytes("LAB", (1, 1), bytes([128, 0, 0]))  # a and b are signed, as in TIFF
    check(read_image(lab), np.full((1, 1, 3), 119), 1)


def cmyk_profile() -> bytes:
    """An ICC version 2 printer profile, one table of two grid points an ink: cyan prints mid grey, key black."""
    ramp = bytes(range(256))
    # cyan varies slowest, key fastest; L* of 0 to 100 is 0 to 255, no colour is 128
    clut = b"".join(bytes([0 if i & 1 else 128 if i & 8 else 255, 128, 128]) for i in range(16))
    unit = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + ramp * 4 + clut + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = [(b"A2B0", table), (b"wtpt", white)]
    offset, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags:
        padded = data + b"\0" * (-len(data) % 4)
        entries += name + struct.pack(">II", offset + len(body), len(data))
        body += padded
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body


CYAN = np.array([[[0, 255, 255]]])


def test_cmyk(tmp_path: Path) -> None:
    for ink, expected in (((255, 0, 0, 0), CYAN), ((0, 0, 0, 255), CYAN * 0), ((0, 0, 0, 0), CYAN * 0 + 255)):
        image = Image.new("CMYK", (8, 8), ink)
        check(read_image(image), np.broadcast_to(expected, (8, 8, 3)))
        image.save(tmp_path / "a.jpg", quality=100)
        # Adobe's marker: the inks are stored inverted
        assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
        check(read_image(tmp_path / "a.jpg"), np.broadcast_to(expected, (8, 8, 3)), 3)


def test_cmyk_profile_is_used(tmp_path: Path) -> None:
    pytest.importorskip("PIL._imagingcms")
    # L* = 50 is sRGB's (119, 119, 119), which no formula makes of pure cyan
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100, icc_profile=cmyk_profile())
    check(read_image(tmp_path / "a.jpg"), np.full((8, 8, 3), 119), 3)


def test_broken_or_wrong_profile_is_ignored() -> None:
    image = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    profiles = [b"nonsense", cmyk_profile()[:150]]
    try:
        from PIL import ImageCms

        profiles.append(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    except ImportError:
        pass
    for profile in profiles:
        image.info["icc_profile"] = profile
        check(read_image(image), CYAN)


# EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
def test_orientations(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.kron(noise8(2, 3, 3), np.ones((16, 16, 1), np.uint8))  # blocks survive JPEG
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    Image.fromarray(pixels).save(path, exif=exif, **options)
    expected = upright(pixels, orientation)
    check(read_image(path), expected, 4 if suffix == "jpg" else 0)
    with Image.open(path) as image:
        for _ in range(2):  # a second reading of the same object must not turn it again
            check(read_image(image), expected, 4 if suffix == "jpg" else 0)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "CMYK", "LA", "1"])
def test_orientation_of_other_modes(mode: str) -> None:
    image = Image.fromarray(noise(2, 3, high=65536).astype(np.uint16)) if mode == "I;16" else None
    image = image or Image.fromarray(noise8(2, 3)).convert(mode)
    plain = read_image(image)
    image.getexif()[0x0112] = 6
    check(read_image(image), np.rot90(plain, -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"", b"Exif\0\0"])
def test_broken_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "a.jpg", exif=exif)
    check(read_image(tmp_path / "a.jpg"), np.full((2, 3, 3), 7), 1)


# paths


def test_kinds_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise8(2, 3, 3)
    path = tmp_path / "höhe 1.PNG"
    Image.fromarray(pixels).save(path)
    Image.fromarray(pixels).save(tmp_path / "wrong-suffix.jpg", "PNG")
    monkeypatch.chdir(tmp_path)

    class Entry(os.PathLike):  # type: ignore[type-arg]
        def __fspath__(self) -> str:
            return str(path)

    for given_path in (path, str(path), path.name, Entry(), "wrong-suffix.jpg"):
        check(read_image(given_path), pixels)


# arrays


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "int16", "uint32", "uint16", ">u2", ">f4", "bool", "float16", "float64"])
def test_array_dtypes(shape: tuple[int, int], dtype: str) -> None:
    base = noise8(*shape, 3)
    if dtype in ("uint16", ">u2"):
        array, expected = noise(*shape, 3, high=65536).astype(dtype), None
        expected = narrow(array)
    elif dtype == "bool":
        array = base > 127
        expected = array * 255
    elif "f" in dtype:
        array = (base / 255).astype(dtype)
        expected = base
    else:
        array, expected = base.astype(dtype), base
    check(read_image(array), expected)


def test_every_float16() -> None:
    values = np.arange(0x3C01, dtype=np.uint16).view(np.float16)  # 0x3c00 is 1.0
    check(read_image(values[None]), grey3(np.rint(values.astype(np.float64) * 255))[None])


@pytest.mark.parametrize("shape", SHAPES)
def test_array_channels(shape: tuple[int, int]) -> None:
    grey, la, rgb, rgba = (noise8(*shape, *c) for c in ((), (2,), (3,), (4,)))
    check(read_image(grey), grey3(grey))
    check(read_image(grey[..., None]), grey3(grey))
    check(read_image(la), over_white(grey3(la[..., 0]), la[..., 1]), 0.5)
    check(read_image(rgb), rgb)
    check(read_image(rgba), over_white(rgba[..., :3], rgba[..., 3]), 0.5)
    check(read_image(rgb[:, ::-1][::-1]), np.rot90(rgb, 2))


def test_bgr() -> None:
    rgb, rgba, la = noise8(3, 4, 3), noise8(3, 4, 4), noise8(3, 4, 2)
    check(read_image(rgb[..., ::-1], channel_order="BGR"), rgb)
    bgra = rgba[..., [2, 1, 0, 3]]
    check(read_image(bgra, channel_order="BGR"), over_white(rgba[..., :3], rgba[..., 3]), 0.5)
    check(read_image(la, channel_order="BGR"), read_image(la))
    check(read_image(la[..., 0], channel_order="BGR"), grey3(la[..., 0]))
    tensor = torch.from_numpy(rgb[..., ::-1].transpose(2, 0, 1).copy())
    check(read_image(tensor, channel_order="BGR"), rgb)


def test_bgr_is_not_for_files(tmp_path: Path) -> None:
    for image in (Image.new("RGB", (2, 2)), tmp_path / "a.png", "a.png"):
        with pytest.raises(ImageError, match="files and PIL images know their own order"):
            read_image(image, channel_order="BGR")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not 'GBR'"):
        read_image(np.zeros((2, 2), np.uint8), channel_order="GBR")  # type: ignore[arg-type]


def test_result_shares_no_memory() -> None:
    for array in (noise8(3, 4, 3), noise8(3, 4), noise8(3, 4, 1), np.broadcast_to(np.uint8(3), (3, 4, 3))):
        result = read_image(array)
        assert not np.shares_memory(result, array)
        others = result[..., 1:].copy()
        result[..., 0] = 255 - result[..., 0]  # grey channels are not one memory either
        assert np.array_equal(result[..., 1:], others)
    tensor = torch.zeros(3, 4, 5, dtype=torch.uint8)
    read_image(tensor)[:] = 7
    assert not tensor.any()
    frozen = noise8(2, 2, 3)
    frozen.flags.writeable = False
    check(read_image(frozen), frozen)


def test_rounding_overshoot() -> None:
    check(read_image(np.array([[-0.0009, 1.0009]])), np.array([[[0] * 3, [255] * 3]]))
    for value, says in ((-0.0011, "normalised"), (1.0011, "divide by 255")):
        with pytest.raises(ImageError, match=says):
            read_image(np.array([[0.5, value]]))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"channels first.*transpose\(1, 2, 0\)"),
        (np.zeros((1, 3, 20, 30), np.uint8), r"image\[0\]\.transpose\(1, 2, 0\)"),
        (np.zeros((2, 20, 30, 3), np.uint8), r"batch.*segment_batch"),
        (np.zeros((20, 30, 5), np.uint8), "5 channels"),
        (np.zeros(5, np.uint8), "not an image"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 5, 0), np.uint8), "no pixels"),
        (np.full((2, 2), np.inf), "NaN or infinite"),
        (np.full((2, 2), 256), "from 256 to 256.*0..255"),
        (np.full((2, 2), 200.0), "divide by 255"),
        (np.full((2, 2), -2.0), "normalised"),
        (np.zeros((2, 2), object), "object"),
        (np.zeros((2, 2), [("r", np.uint8)]), "values, not pixels"),
    ],
    ids=lambda v: f"{v.dtype.kind}{v.shape}" if isinstance(v, np.ndarray) else "",
)
def test_array_refusals(array: np.ndarray, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        read_image(array)
    if array.size:
        assert str(array.shape) in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*hardly any contrast")
@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes(max_len=3), st.just(np.dtype(object))),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    )
)
def test_random_arrays(array: np.ndarray) -> None:
    try:
        result = read_image(array)
    except ImageError:
        return
    check(result, result)
    assert result.shape == (*array.shape[:2], 3)


# tensors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.int64])
def test_tensor_equals_array(shape: tuple[int, int], channels: int, dtype: torch.dtype) -> None:
    array = noise8(*shape, channels)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    tensor = (tensor / 255).to(dtype) if dtype.is_floating_point else tensor.to(dtype)
    expected = read_image(array)
    check(read_image(tensor), expected)
    check(read_image(tensor[None]), expected)
    if channels == 1:
        check(read_image(tensor[0]), expected)


def test_tensor_that_needs_a_gradient_and_bfloat16() -> None:
    tensor = torch.full((3, 2, 5), 0.5, requires_grad=True)
    check(read_image(tensor), np.full((2, 5, 3), 128))
    check(read_image(tensor.to(torch.bfloat16)), np.full((2, 5, 3), 128))
    check(read_image(torch.nn.Parameter(torch.ones(3, 2, 5))), np.full((2, 5, 3), 255))
    check(read_image(torch.ones(2, 5, dtype=torch.bool)), np.full((2, 5, 3), 255))


@pytest.mark.gpu
def test_tensor_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    array = noise8(4, 5, 3)
    check(read_image(torch.from_numpy(array).permute(2, 0, 1).cuda()), array)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(20, 30, 3), r"channels last.*permute\(2, 0, 1\)"),
        (torch.zeros(4, 3, 20, 30), "batch of 4; use segment_batch"),
        (torch.zeros(20, 30, 20), "20 channels"),
        (torch.zeros(5), "not an image"),
        (torch.zeros(3, 0, 5), "no pixels"),
        (torch.full((3, 2, 5), 3.0), "divide by 255"),
        (torch.full((3, 2, 5), 300), "from 300 to 300"),
        (torch.zeros(3, 2, 5, device="meta"), "cannot be turned into an array"),
    ],
    ids=lambda v: f"{v.dtype}{tuple(v.shape)}" if isinstance(v, torch.Tensor) else "",
)
def test_tensor_refusals(tensor: torch.Tensor, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        read_image(tensor)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/null")):
        with pytest.raises(ImageError, match="is a pipe or device"):
            read_image(path)


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript was asked for")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="is PostScript"):
        read_image(tmp_path / "a.png")
