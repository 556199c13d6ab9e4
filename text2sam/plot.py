"""Pictures of results: masks with points, similarity maps in colour, strips of panels.

Pure functions from arrays to arrays; nothing is shown or written here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from text2sam.errors import InputError
from text2sam.types import PointPrompts, Segmentation, SimilarityMap

Colour = tuple[int, int, int]

MASK_COLOUR: Colour = (30, 120, 255)
POSITIVE_COLOUR: Colour = (20, 190, 60)
NEGATIVE_COLOUR: Colour = (225, 30, 40)

_WHITE: Colour = (255, 255, 255)


def overlay(
    image: NDArray[np.uint8],
    result: Segmentation,
    *,
    colour: Colour = MASK_COLOUR,
    alpha: float = 0.5,
    draw_points: bool = True,
    draw_box: bool = False,
) -> NDArray[np.uint8]:
    """An image with a result drawn on it.

    The mask is tinted and outlined, in white and within that in its colour, so that it shows on any ground.
    Positive points are green discs, negative ones red diamonds, both with a white edge and of a size relative
    to the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        result: a segmentation of that image.
        colour: RGB of the mask and the box, each in 0..255.
        alpha: share of the colour in the tint, in [0, 1].
        draw_points: draw the point prompts.
        draw_box: draw the bounding box.

    Returns:
        (H, W, 3) uint8 RGB, a new array.

    Raises:
        InputError: the image is no such array or of another size than the mask, the colour is no RGB
            triple, or ``alpha`` is not in [0, 1].
    """
    pixels = _check_image(image)
    paint = _check_colour(colour)
    _check_alpha(alpha)
    if result.mask.shape != pixels.shape[:2]:
        raise InputError(f"the mask is {result.mask.shape}, the image {pixels.shape[:2]} (H, W): they do not belong together")
    out = pixels.astype(np.float32)
    out[result.mask] += alpha * (paint - out[result.mask])
    line = _line_width(pixels.shape[:2])
    out[_outline(result.mask, 2 * line)] = paint
    out[_outline(result.mask, line)] = _WHITE
    if draw_box and result.box is not None:
        _draw_box(out, result.box, paint, line)
    if draw_points:
        _draw_points(out, result.points)
    return np.rint(out).astype(np.uint8)


def heat(image: NDArray[np.uint8], similarity: SimilarityMap, *, alpha: float = 0.7) -> NDArray[np.uint8]:
    """A similarity map in colour over an image.

    The map is min-maxed and resized as by :meth:`SimilarityMap.to_image`, coloured by :func:`heat_colours`,
    and laid over the grey image, so that every hue in the picture is the map's.

    Args:
        image: (H, W, 3) uint8 RGB.
        similarity: the map.
        alpha: share of the map in the mixture, in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB, a new array.

    Raises:
        InputError: the image is no such array, or ``alpha`` is not in [0, 1].
    """
    pixels = _check_image(image)
    _check_alpha(alpha)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)  # (H, W), Rec. 601 luma
    coloured = heat_colours(similarity.to_image(pixels.shape[:2]))
    mixed = (1 - alpha) * grey[..., None] + alpha * coloured
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def heat_colours(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Values in [0, 1] in colour: dark blue is 0, purple, red and orange lie between, light yellow is 1.

    A table of 256 colours along a path through Oklab (Ottosson 2020, https://bottosson.github.io/posts/oklab/):
    lightness grows linearly from 0.22 to 0.95, so that equal steps of value look like equal steps of light,
    while the hue turns from blue over red to yellow.

    Args:
        values: (...) floats; what lies outside [0, 1] takes the end colours.

    Returns:
        (..., 3) uint8 sRGB.

    Raises:
        InputError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise InputError("values must be finite")
    index = np.rint(np.clip(values, 0, 1) * 255).astype(np.intp)
    colours: NDArray[np.uint8] = _heat_table()[index]
    return colours


def side_by_side(
    panels: Sequence[NDArray[Any]], captions: Sequence[str] | None = None, *, gap: int = 8, background: Colour = _WHITE
) -> NDArray[np.uint8]:
    """A strip of pictures with captions under them.

    Pixels are not resampled: lower panels stand at the top of the strip. A caption wider than its panel is
    cut with three dots.

    Args:
        panels: each (H, W, 3) uint8 RGB, (H, W) uint8 grey, or (H, W) bool (drawn black and white).
        captions: one text per panel.
        gap: pixels between panels and around them.
        background: RGB, each in 0..255.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        InputError: there is no panel, one is of another kind, or there is not one caption per panel.
    """
    if not len(panels):
        raise InputError("there must be at least one panel")
    if gap < 0:
        raise InputError(f"gap must be at least 0 pixels, not {gap!r}")
    pictures = [_check_image(_as_rgb(panel)) for panel in panels]
    if captions is not None and (isinstance(captions, str) or len(captions) != len(pictures)):
        raise InputError(f"there must be one caption per panel, not {captions!r} for {len(pictures)}")
    tallest = max(p.shape[0] for p in pictures)
    font = ImageFont.load_default()
    line = 0
    if captions is not None:
        top, bottom = font.getbbox("Ägjy|")[1::2]
        line = int(bottom - min(0, top)) + gap
    width = sum(p.shape[1] for p in pictures) + gap * (len(pictures) + 1)
    fill = _check_colour(background).astype(np.uint8)
    canvas = np.empty((tallest + line + 2 * gap, width, 3), np.uint8)
    canvas[:] = fill
    starts = []
    x = gap
    for picture in pictures:
        h, w = picture.shape[:2]
        canvas[gap : gap + h, x : x + w] = picture
        starts.append(x)
        x += w + gap
    if captions is None:
        return canvas
    strip = Image.fromarray(canvas)
    draw = ImageDraw.Draw(strip)
    ink = (0, 0, 0) if fill.mean() > 127 else (255, 255, 255)
    for caption, start, picture in zip(captions, starts, pictures, strict=True):
        text = _shorten(caption, font, picture.shape[1])
        draw.text((start, 2 * gap + tallest), text, fill=ink, font=font)
    return np.asarray(strip)


def _shorten(text: str, font: Any, width: int) -> str:
    """One line of ``text`` that fits ``width`` pixels."""
    line = " ".join(text.split())
    try:
        font.getlength(line)
    except UnicodeEncodeError:  # Pillow without FreeType has a Latin-1 font
        line = line.encode("latin-1", "replace").decode("latin-1")
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..." if line else ""


def _check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    ok = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size
    if not ok:
        what = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(
            f"an image to draw on is a non-empty uint8 array (H, W, 3), not a {what}; text2sam.image.read_image makes one"
        )
    return image


def _as_rgb(panel: NDArray[Any]) -> NDArray[Any]:
    if not isinstance(panel, np.ndarray) or panel.ndim != 2:
        return panel
    grey = panel.astype(np.uint8) * np.uint8(255) if panel.dtype == np.bool_ else panel
    return np.repeat(grey[..., None], 3, axis=2)


def _check_colour(colour: Colour) -> NDArray[np.float32]:
    ok = isinstance(colour, (tuple, list)) and len(colour) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in colour)
    if not ok:
        raise InputError(f"a colour is three integers in 0..255, RGB, not {colour!r}")
    return np.array(colour, np.float32)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be in [0, 1], not {alpha!r}")


def _line_width(shape: tuple[int, ...]) -> int:
    return max(1, round(min(shape[:2]) / 200))


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """(H, W) bool: pixels of the mask at most ``width`` steps (4 neighbours) from one outside it."""
    inner = np.pad(mask, 1)  # the image's border counts as outside: outlines are closed
    for _ in range(width):
        core = inner.copy()
        core[1:] &= inner[:-1]
        core[:-1] &= inner[1:]
        core[:, 1:] &= inner[:, :-1]
        core[:, :-1] &= inner[:, 1:]
        inner = core
    line: NDArray[np.bool_] = mask & ~inner[1:-1, 1:-1]
    return line


def _draw_box(out: NDArray[np.float32], box: NDArray[np.float32], colour: NDArray[np.float32], width: int) -> None:
    x0, y0, x1, y1 = (int(v) for v in np.rint(box))
    frame = np.zeros(out.shape[:2], bool)
    frame[y0:y1, x0:x1] = True
    frame[y0 + width : max(y0 + width, y1 - width), x0 + width : max(x0 + width, x1 - width)] = False
    out[frame] = colour


def _draw_points(out: NDArray[np.float32], points: PointPrompts) -> None:
    """Draws into (H, W, 3) float32; the positive points last, so that they lie on top."""
    radius = max(2.0, min(out.shape[:2]) / 70)
    edge = max(1.5, radius / 3)
    for coords, colour, diamond in ((points.negative, NEGATIVE_COLOUR, True), (points.positive, POSITIVE_COLOUR, False)):
        for x, y in coords:
            _draw_marker(out, float(x), float(y), radius, edge, colour, diamond)


def _draw_marker(
    out: NDArray[np.float32], x: float, y: float, radius: float, edge: float, colour: Colour, diamond: bool
) -> None:
    """A disc or diamond whose middle is the centre of pixel (x, y), its rim smoothed by coverage."""
    reach = radius + edge + 1
    y0, y1 = max(0, int(np.floor(y - reach))), min(out.shape[0], int(np.ceil(y + reach)) + 1)
    x0, x1 = max(0, int(np.floor(x - reach))), min(out.shape[1], int(np.ceil(x + reach)) + 1)
    if y0 >= y1 or x0 >= x1:
        return
    dy, dx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    dy -= y
    dx -= x
    distance = (np.abs(dx) + np.abs(dy)) / np.sqrt(np.float32(2)) + 0.2 * radius if diamond else np.hypot(dx, dy)
    patch = out[y0:y1, x0:x1]
    for size, paint in ((radius + edge, _WHITE), (radius, colour)):
        cover = np.clip(size + 0.5 - distance, 0, 1)[..., None]  # (h, w, 1)
        patch += cover * (np.array(paint, np.float32) - patch)


@functools.cache
def _heat_table() -> NDArray[np.uint8]:
    """(256, 3) uint8 sRGB; the path is described at :func:`heat_colours`."""
    t = np.linspace(0, 1, 256)
    lightness = 0.22 + 0.73 * t
    hue = np.deg2rad(np.interp(t, [0, 0.3, 0.6, 1], [280, 325, 400, 468]))
    chroma = np.interp(t, [0, 0.3, 0.6, 0.85, 1], [0.09, 0.15, 0.17, 0.15, 0.11])
    return _oklab_to_srgb(np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1))


def _oklab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 3) Oklab to (N, 3) uint8 sRGB; colours outside sRGB are clipped."""
    to_lms = np.array(
        [[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(((lab @ to_lms.T) ** 3) @ to_rgb.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: NDArray[np.uint8] = np.rint(255 * encoded).astype(np.uint8)
    return colours
