"""Pictures of results: masks with points, similarity maps in colour, strips of panels.

Pure functions from arrays to arrays; nothing is shown or written here.
"""

from __future__ import annotations

import bisect
import functools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from text2sam.errors import InputError
from text2sam.paint import OBJECT_COLOURS, Colour
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of, check_shape

if TYPE_CHECKING:
    from text2sam.tasks.explanation import TextExplanation

MASK_COLOUR: Colour = (30, 120, 255)
POSITIVE_COLOUR: Colour = (20, 190, 60)
NEGATIVE_COLOUR: Colour = (225, 30, 40)

_WHITE: Colour = (255, 255, 255)
_INK: Colour = (20, 20, 20)
_PALE_INK: Colour = (110, 110, 110)
_GROUND: Colour = (150, 150, 150)
_CROP_COLOUR: Colour = (255, 140, 0)
_CHOSEN_INK: Colour = (10, 120, 40)
_MOST_CANDIDATES = 8
_TINT = 0.5
_NARROWEST = 150  # pixels of a panel, so that its figures stay readable
_LONGEST_TEXT = 1000  # characters; more are cut before they are measured


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
    _draw_mask(out, result.mask, paint, alpha, _line_width(pixels.shape))
    if draw_box and result.box is not None:
        _draw_box(out, result.box, paint, _line_width(pixels.shape))
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
    line = 0 if captions is None else _line_height(font) + gap
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


def explain(result: Segmentation, image: NDArray[np.uint8] | None = None, *, width: int = 1200) -> NDArray[np.uint8]:
    """Why a mask came out, in one figure.

    Panels: the image, with the crop that was looked at more closely as an orange frame; the similarity map with the points,
    as :func:`heat` and :func:`overlay` draw them; each mask SAM offered with its figures, the one taken framed in green; and
    the result. Of a union of several objects the candidates are the best object's, and the result shows every object in a
    colour of its own with its number and, of up to eight, its score. Below stand what was asked, whether presence reached
    its threshold, and why.

    Small images are enlarged, large ones reduced. Of more than eight candidates the first eight are shown, or seven and the
    one taken. Texts too long are wrapped and cut; letters that Pillow's font lacks become "?". ``result.explain()`` has
    everything in full.

    Args:
        result: a segmentation.
        image: (H, W, 3) uint8 RGB, the image it is of; without one everything is drawn on grey.
        width: of the figure in pixels, 320 to 8192.

    Returns:
        (H', width, 3) uint8 RGB.

    Raises:
        InputError: the image is no such array or of another size than the mask, the mask has no pixels, or ``width`` is out
            of range.
    """
    if not isinstance(result, Segmentation):
        raise InputError(f"result must be a Segmentation, not {type(result).__name__}")
    if isinstance(width, bool) or not isinstance(width, (int, np.integer)) or not 320 <= width <= 8192:
        raise InputError(f"width must be an int in 320..8192, not {width!r}")
    h, w = check_shape(result.mask.shape)
    if image is not None and _check_image(image).shape[:2] != (h, w):
        raise InputError(f"the mask is {(h, w)}, the image {image.shape[:2]} (H, W): they do not belong together")
    font = _font(max(11, round(width / 85)))
    line, gap = _line_height(font) + 3, max(8, width // 80)
    panels = _panels(result, image is not None)
    rows = max(len(panel.figures) for panel in panels)
    columns, size = _grid(len(panels), (h, w), width, gap, (rows + 2) * line)
    cell = (width - gap) // columns - gap
    texts = [(name, _wrap(text, font, width - 2 * gap - 6 * line, 4)) for name, text in _sentences(result)]

    heights = [max(len(p.figures) for p in panels[i : i + columns]) + 1 for i in range(0, len(panels), columns)]
    bottom = gap + sum(size[0] + gap // 2 + count * line + gap for count in heights)
    height = bottom + gap + sum(len(lines) for _, lines in texts) * line + len(texts) * (line // 4) + gap
    canvas = Image.new("RGB", (int(width), height), _WHITE)
    draw = ImageDraw.Draw(canvas)
    ground = _ground(image, size)
    y = gap
    for row, count in enumerate(heights):
        for column, panel in enumerate(panels[row * columns : (row + 1) * columns]):
            x = gap + column * (cell + gap)
            canvas.paste(Image.fromarray(panel.paint(ground)), (x, y))
            if panel.chosen:
                edge = max(3, gap // 3)
                draw.rectangle(
                    (x - edge, y - edge, x + size[1] - 1 + edge, y + size[0] - 1 + edge), outline=POSITIVE_COLOUR, width=edge
                )
            _draw_caption(draw, panel, (x, y + size[0] + gap // 2), cell, line, font)
        y += size[0] + gap // 2 + count * line + gap
    draw.line((gap, bottom, width - gap, bottom), fill=(210, 210, 210))
    y = bottom + gap
    for name, lines in texts:
        draw.text((gap, y), name, fill=_PALE_INK, font=font)
        for text in lines:
            draw.text((gap + 6 * line, y), text, fill=_INK, font=font)
            y += line
        y += line // 4
    return np.asarray(canvas)


@dataclass(frozen=True)
class _Panel:
    """A picture of :func:`explain`: its title, the figures under it, and how it is painted on the (reduced) image."""

    title: str
    figures: list[tuple[str, str]]
    paint: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    chosen: bool = False


def _panels(result: Segmentation, with_image: bool) -> list[_Panel]:
    h, w = result.mask.shape
    similarity, points = result.similarity, result.points
    best = result.objects[0] if result.objects else result
    offered = result.candidates if best.candidates is None else best.candidates
    crops = _crops(result)

    def paint_image(ground: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = ground.astype(np.float32)
        for crop in crops:
            _draw_box(out, _scaled_box(crop, (h, w), out.shape), np.array(_CROP_COLOUR, np.float32), _explain_line(out.shape))
        return out.astype(np.uint8)

    def paint_map(ground: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = heat(ground, similarity, alpha=0.7 if with_image else 1.0).astype(np.float32)
        scale = np.array([out.shape[1] / w, out.shape[0] / h])
        coords = ((points.coords + 0.5) * scale - 0.5).astype(np.float32)
        _draw_points(out, PointPrompts(coords, points.labels))
        return np.rint(out).astype(np.uint8)

    low, high = similarity.values.min(), similarity.values.max()
    on, off = len(points.positive), len(points.negative)
    about = [("size", f"{w} x {h}"), *(("crop", _box_text(crop)) for crop in crops[:1])]
    panels = [
        _Panel("image" if with_image else "image (not given)", about, paint_image),
        _Panel(
            f"map ({similarity.method})",
            [("values", f"{_figure(low)} to {_figure(high)}"), ("points", f"{on} on it, {off} off it")],
            paint_map,
        ),
    ]
    if offered is not None:
        panels += [_candidate_panel(offered, index) for index in _shown(offered)]
    return [*panels, _result_panel(result)]


def _candidate_panel(offered: Candidates, index: int) -> _Panel:
    mask, chosen = offered.masks[index], index == offered.chosen
    colour = np.array(MASK_COLOUR, np.float32)

    def paint(ground: NDArray[np.uint8]) -> NDArray[np.uint8]:
        small = _small(mask, ground.shape)
        out = _faded(ground, ~small)
        _draw_mask(out, small, colour, _TINT, _explain_line(out.shape))
        return np.rint(out).astype(np.uint8)

    figures = [("score", _figure(offered.scores[index]))]
    figures += [(name, _figure(values[index])) for name, values in offered.figures.items()]
    return _Panel(f"mask {index + 1} of {len(offered)}{', taken' if chosen else ''}", figures, paint, chosen)


def _result_panel(result: Segmentation) -> _Panel:
    objects = result.objects

    def paint(ground: NDArray[np.uint8]) -> NDArray[np.uint8]:
        masks = [_small(one.mask, ground.shape) for one in objects or (result,)]
        out = _faded(ground, ~np.logical_or.reduce(masks))
        line = _explain_line(out.shape)
        if not objects:
            colour = np.array(MASK_COLOUR, np.float32)
            _draw_box(out, _box_there(masks[0]), colour, line)
            _draw_mask(out, masks[0], colour, _TINT, line)
            return np.rint(out).astype(np.uint8)
        for index in reversed(range(len(masks))):  # the best on top
            _draw_mask(out, masks[index], np.array(_object_colour(index), np.float32), _TINT, line)
        few = len(objects) <= _MOST_CANDIDATES  # many labels would hide the masks
        labels = [f"{index + 1}: {one.score:.2f}" if few else f"{index + 1}" for index, one in enumerate(objects)]
        return _labelled(np.rint(out).astype(np.uint8), masks, labels)

    kind = "result" if result.present else "result: not here" if not result.mask.any() else "not here; proposed"
    share = result.area / result.mask.size
    figures = [("score", _figure(result.score)), ("area", f"{result.area} px ({100 * share:.1f} %)")]
    if objects:
        figures.insert(0, ("objects", str(len(objects))))
    return _Panel(kind, figures, paint)


def _sentences(result: Segmentation) -> list[tuple[str, str]]:
    """What stands below the panels, by name."""
    best = result.objects[0] if result.objects else result
    offered = result.candidates if best.candidates is None else best.candidates
    asked = f'"{result.text}"'
    if result.looked_for:
        asked += "; looked for " + ", ".join(f'"{text}"' for text in result.looked_for)
    if result.excluded:
        asked += "; excluded " + ", ".join(f'"{text}"' for text in result.excluded)
    presence, threshold = _apart(float(result.presence), float(result.threshold))
    if result.present:
        verdict = f"present: presence {presence} >= threshold {threshold}"
    elif result.presence < result.threshold:
        verdict = f"not here: presence {presence} < threshold {threshold}"
    else:
        kept = "set aside" if result.mask.any() else "no mask"
        verdict = f"not here: {kept}, although presence {presence} >= threshold {threshold}"
    found = "nothing"
    if result.box is not None:
        found = f"score {_figure(result.score)}, box {_box_text(result.box)} (x0, y0, x1, y1)"
        found = found if result.present else f"proposed, but not here: {found}"
    if result.objects:
        found += f"; {len(result.objects)} object{'s' if len(result.objects) > 1 else ''}: "
        found += ", ".join(f"{i + 1}: {one.score:.2f}" for i, one in enumerate(result.objects))
    if offered is None:
        why = "SAM was not asked" if len(result.points.positive) == 0 else "no candidates were kept"
    else:
        why = offered.reason
        if best is not result:
            why = f"object 1: {why}"
        if len(offered) > _MOST_CANDIDATES:
            why += f" ({len(offered) - _MOST_CANDIDATES} more masks are not shown)"
    gh, gw = result.similarity.values.shape
    made = f'strategy "{result.strategy}", map by {result.similarity.method} on {gw} x {gh} patches'
    if _crops(result):
        made += "; looked closer at " + " and ".join(_box_text(crop) for crop in _crops(result)[:4])
    return [("asked for", asked), ("presence", verdict), ("found", found), ("why", why), ("how", made)]


def _crops(result: Segmentation) -> list[NDArray[np.float32]]:
    """The crops behind a result and its objects, each once."""
    crops = {tuple(one.zoomed.tolist()): one.zoomed for one in (result, *result.objects) if one.zoomed is not None}
    return list(crops.values())


def _shown(offered: Candidates) -> list[int]:
    """Which candidates get a panel: the first ones, and always the one taken."""
    first = list(range(min(len(offered), _MOST_CANDIDATES)))
    return first if offered.chosen in first else [*first[:-1], int(offered.chosen)]


def _grid(count: int, shape: tuple[int, int], width: int, gap: int, below: int) -> tuple[int, tuple[int, int]]:
    """Columns, and (h, w) of the panels: as few columns as keep the panels about as high together as the figure is wide."""
    h, w = shape
    for columns in range(1, count + 1):
        cell = (width - gap) // columns - gap
        if columns > 1 and cell < _NARROWEST:
            break
        if (columns, count) == (2, 3):  # a hole as large as a panel
            continue
        scale = min(cell / w, 0.6 * width / h)
        # at least a few pixels, else a very long image would vanish
        found = columns, (max(8, round(h * scale)), min(cell, max(8, round(w * scale))))
        if -(-count // columns) * (found[1][0] + below) <= 1.1 * width:
            break
    return found


def _ground(image: NDArray[np.uint8] | None, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8: the image at the size of a panel, or plain grey."""
    if image is None:
        return np.full((*size, 3), _GROUND, np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(image))
    # pixels of a tiny image stay squares
    how = Image.Resampling.BOX if size[0] >= 4 * image.shape[0] else Image.Resampling.LANCZOS
    return np.asarray(picture.resize((size[1], size[0]), how))


def _small(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask at the size of a panel: where it covers half a pixel, and somewhere if it has pixels at all."""
    h, w = shape[:2]
    how = Image.Resampling.BOX if h >= 4 * mask.shape[0] else Image.Resampling.BILINEAR
    cover = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((w, h), how))
    small: NDArray[np.bool_] = cover >= min(0.5, cover.max()) if mask.any() else np.zeros((h, w), bool)
    return small


def _faded(picture: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(h, w, 3) float32: the picture, paler where (h, w) says so."""
    out = picture.astype(np.float32)
    out[where] += 0.45 * (255 - out[where])
    return out


def _explain_line(shape: tuple[int, ...]) -> int:
    return max(2, _line_width(shape))


def _box_there(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    box = box_of(mask)
    return np.zeros(4, np.float32) if box is None else box


def _scaled_box(box: NDArray[np.float32], old: tuple[int, ...], new: tuple[int, ...]) -> NDArray[np.float32]:
    """A box xyxy of an image (H, W) in one of another size, within its borders."""
    scale = np.array([new[1] / old[1], new[0] / old[0]] * 2)
    scaled: NDArray[np.float32] = np.clip(box * scale, 0, [new[1], new[0]] * 2).astype(np.float32)
    return scaled


def _labelled(picture: NDArray[np.uint8], masks: list[NDArray[np.bool_]], labels: list[str]) -> NDArray[np.uint8]:
    """Writes a label in its object's colour above each mask, or at its top; where one lies already, the next moves down."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    h, w = picture.shape[:2]
    font = _font(max(10, min(22, h // 18)))
    high, pad = _line_height(font), 3
    taken: list[tuple[int, int, int, int]] = []
    for index, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        left, top = (int(v) for v in _box_there(mask)[:2])
        wide = int(np.ceil(font.getlength(label))) + 2 * pad
        left, tall = max(0, min(left, w - wide)), high + 2 * pad
        top = top - tall if top >= tall else top
        lowest = max(0, h - tall)
        places = [*range(top, lowest + 1, tall), *range(min(top, lowest), -1, -tall)]  # down, then up
        spots = [(left, place, left + wide, place + tall) for place in places]
        spot = next((spot for spot in spots if not any(_meet(spot, other) for other in taken)), spots[0])
        taken.append(spot)
        colour = _object_colour(index)
        draw.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=colour)
        light = float(np.dot(colour, (0.299, 0.587, 0.114)))
        draw.text((spot[0] + pad, spot[1] + pad), label, fill=_INK if light > 140 else _WHITE, font=font)
    return np.asarray(canvas)


def _meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _object_colour(index: int) -> Colour:
    return OBJECT_COLOURS[index % len(OBJECT_COLOURS)]


def _draw_caption(draw: Any, panel: _Panel, at: tuple[int, int], cell: int, line: int, font: Any) -> None:
    """The title, and under it a line per figure: its name, and its value at the right end of a narrow column."""
    x, y = at
    draw.text((x, y), _shorten(panel.title, font, cell), fill=_CHOSEN_INK if panel.chosen else _INK, font=font)
    right = x + min(cell, 15 * line)
    for row, (name, value) in enumerate(panel.figures, start=1):
        value = _shorten(value, font, cell)
        start = right - font.getlength(value)
        draw.text((x, y + row * line), _shorten(name, font, start - x - line // 2), fill=_PALE_INK, font=font)
        draw.text((start, y + row * line), value, fill=_INK, font=font)


def _figure(value: Any) -> str:
    number = float(value)
    if number == 0 or 0.001 <= abs(number) < 1000:
        return f"{number:.3f}"
    return f"{number:.3g}"


def _apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with as many digits, at least two, as it takes to see that they differ."""
    for digits in range(2, 10):
        texts = f"{a:.{digits}f}", f"{b:.{digits}f}"
        if a == b or texts[0] != texts[1]:
            return texts
    return repr(a), repr(b)


def _box_text(box: NDArray[np.float32]) -> str:
    return ", ".join(f"{v:.0f}" for v in box)


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow 10.0, or one without FreeType, has one size only
        return ImageFont.load_default()


def _line_height(font: Any) -> int:
    top, bottom = font.getbbox("Ägjy|")[1::2]
    return int(bottom - min(0, top))


def _shorten(text: str, font: Any, width: float) -> str:
    """One line of ``text`` that fits ``width`` pixels."""
    line = _drawable(text[:_LONGEST_TEXT], font)
    if len(text) <= _LONGEST_TEXT and font.getlength(line) <= width:
        return line
    line = line[: _fitting(line, font, width - font.getlength("..."))]
    return line + "..." if line else ""


def _fitting(line: str, font: Any, width: float) -> int:
    """How many letters of ``line`` fit ``width`` pixels."""
    return max(0, bisect.bisect_right(range(len(line) + 1), width, key=lambda count: font.getlength(line[:count])) - 1)


def _wrap(text: str, font: Any, width: float, most: int) -> list[str]:
    """At most ``most`` lines of ``text``, each of at most ``width`` pixels; the last ends in dots where more would follow."""
    rest = _drawable(text[:_LONGEST_TEXT], font) + ("..." if len(text) > _LONGEST_TEXT else "")
    lines: list[str] = []
    while len(lines) < most - 1 and font.getlength(rest) > width:
        end = max(1, _fitting(rest, font, width))
        cut = rest.rfind(" ", 0, end + 1)
        cut = end if cut <= 0 else cut  # a word wider than the line is broken
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*lines, _shorten(rest, font, width)] if rest else lines


def _drawable(text: str, font: Any) -> str:
    """``text`` on one line; characters that ``font`` lacks become their base letter, or a question mark."""
    line = " ".join(text.split())
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType has a Latin-1 font
        return line.encode("latin-1", "replace").decode("latin-1")
    return "".join(_drawn_as(letter) for letter in line)


@functools.lru_cache(maxsize=4096)
def _drawn_as(letter: str) -> str:
    """The letter, its base, or "?": whichever Pillow's own font has a shape for."""
    if " " <= letter <= "~":
        return letter
    font = ImageFont.load_default()
    unknown = bytes(font.getmask("\U0010ffff"))
    for one in (letter, unicodedata.normalize("NFKD", letter)[0]):
        if one.isprintable() and (one.isascii() or bytes(font.getmask(one)) != unknown):
            return one
    return "?"


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


def _draw_mask(out: NDArray[np.float32], mask: NDArray[np.bool_], colour: NDArray[np.float32], alpha: float, line: int) -> None:
    out[mask] += alpha * (colour - out[mask])
    out[_outline(mask, 2 * line)] = colour
    out[_outline(mask, line)] = _WHITE


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


CARRIES_COLOUR: Colour = (255, 150, 30)
"""Of the word that carries most of a match; words that carry less are paler."""
AGAINST_COLOUR: Colour = (150, 190, 255)
"""Of words without which the text would fit better."""


def explain_text(
    explanation: TextExplanation, image: NDArray[np.uint8] | None = None, *, width: int = 1200
) -> NDArray[np.uint8]:
    """Which words of a text an image bears out, and where, in one figure.

    On the left the whole text's map over the image, with the places that carry the match numbered from the strongest on. Beside
    it the text, every word on a ground that is the more orange the more of the match it carries (the share of the word that
    carries most is full orange; blue words speak against the match), and under it each place with the words nearest to it.
    Below, the maps of up to eight words, those that carry most or speak most against it, in the text's order. Each is drawn
    less its own median and all on one scale, so that a map of one colour is a word that points nowhere.

    Args:
        explanation: from :func:`text2sam.tasks.explain_text`.
        image: (H, W, 3) uint8 RGB, the image it is of; without one the maps are drawn alone.
        width: of the figure in pixels, 320 to 8192.

    Returns:
        (H', width, 3) uint8 RGB.

    Raises:
        InputError: the image is no such array or of another size than the explanation's, or ``width`` is out of range.
    """
    from text2sam.tasks.explanation import TextExplanation

    if not isinstance(explanation, TextExplanation):
        raise InputError(f"explanation must be a TextExplanation, not {type(explanation).__name__}")
    if isinstance(width, bool) or not isinstance(width, (int, np.integer)) or not 320 <= width <= 8192:
        raise InputError(f"width must be an int in 320..8192, not {width!r}")
    width = int(width)
    if image is not None and _check_image(image).shape[:2] != explanation.shape:
        raise InputError(
            f"the explanation is of an image {explanation.shape}, this is {image.shape[:2]} (H, W): they do not belong together"
        )
    h, w = explanation.shape
    font = _font(max(11, round(width / 75)))
    line, gap = _line_height(font) + 4, max(8, width // 80)
    left = round(0.44 * width)
    scale = min((left - gap) / w, 0.5 * width / h)
    size = max(8, round(h * scale)), max(8, round(w * scale))
    start = gap + size[1] + 2 * gap  # of the words
    chips, chip_rows = _chips(explanation, font, width - gap - start, line)
    notes = _notes(explanation, font, width - gap - start)
    beside = (chip_rows + 1 + len(notes)) * line + chip_rows * (line // 3) + gap

    shown = sorted(np.argsort([-abs(word.carries) for word in explanation.words], kind="stable")[:_MOST_CANDIDATES].tolist())
    columns = max(1, min(len(shown), (width - gap) // (_NARROWEST + gap), 4))
    cell = min((width - gap) // columns - gap, left - gap)
    small_scale = min(cell / w, 0.35 * width / h)
    small = max(8, round(h * small_scale)), max(8, round(w * small_scale))
    rows = -(-len(shown) // columns)
    top = gap + max(size[0], beside) + gap
    height = top + gap + rows * (small[0] + 2 * line + gap)
    canvas = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(canvas)

    values = np.stack([word.similarity.values - np.median(word.similarity.values) for word in explanation.words])
    whole = _over(_ground(image, size), explanation.similarity, None, image is not None)
    canvas.paste(Image.fromarray(_numbered(whole, explanation)), (gap, gap))
    for text, fill, x, row in chips:
        y = gap + row * (line + line // 3)
        draw.rectangle((start + x, y, start + x + font.getlength(text) + line // 2, y + line), fill=fill)
        draw.text((start + x + line // 4, y + 1), text, fill=_INK, font=font)
    y = gap + chip_rows * (line + line // 3) + line // 2
    for text, pale in notes:
        draw.text((start, y), text, fill=_PALE_INK if pale else _INK, font=font)
        y += line
    draw.line((gap, top, width - gap, top), fill=(210, 210, 210))
    ground, bounds = _ground(image, small), (float(values.min()), float(values.max()))
    fills = _word_colours(explanation)
    for place, index in enumerate(shown):
        x, y = gap + (place % columns) * (cell + gap), top + gap + (place // columns) * (small[0] + 2 * line + gap)
        word = explanation.words[index]
        canvas.paste(Image.fromarray(_over(ground, word.similarity, bounds, image is not None)), (x, y))
        name = _shorten(word.text, font, cell - line)
        below = y + small[0] + line // 4
        draw.rectangle((x, below, x + font.getlength(name) + line // 2, below + line), fill=fills[index])
        draw.text((x + line // 4, below + 1), name, fill=_INK, font=font)
        note = f"carries {word.carries:+.3f}"
        draw.text((x + cell - font.getlength(note), below + 1), note, fill=_PALE_INK, font=font)
    return np.asarray(canvas)


def _word_colours(explanation: TextExplanation) -> list[Colour]:
    """The ground of each word."""
    carried = np.array([word.carries for word in explanation.words])
    strength = np.abs(carried) / max(float(np.abs(carried).max()), 1e-12)
    ends = [CARRIES_COLOUR if value > 0 else AGAINST_COLOUR for value in carried]
    mixed = [[round(255 + float(s) * (c - 255)) for c in end] for s, end in zip(strength, ends, strict=True)]
    return [(r, g, b) for r, g, b in mixed]


def _chips(
    explanation: TextExplanation, font: Any, width: float, line: int
) -> tuple[list[tuple[str, Colour, float, int]], int]:
    """Every word with its ground, where it begins, and its row; and how many rows there are, at most twelve."""
    chips: list[tuple[str, Colour, float, int]] = []
    x, row = 0.0, 0
    for word, fill in zip(explanation.words, _word_colours(explanation), strict=True):
        text = _shorten(word.text, font, width - line // 2)
        wide = font.getlength(text) + line // 2
        if x and x + wide > width:
            x, row = 0.0, row + 1
        if row == 12:
            chips[-1] = ("...", _WHITE, chips[-1][2], 11)
            break
        chips.append((text, fill, x, row))
        x += wide + line // 4
    return chips, min(row, 11) + 1


def _notes(explanation: TextExplanation, font: Any, width: float) -> list[tuple[str, bool]]:
    """Lines under the words, and whether they are pale."""
    gh, gw = explanation.similarity.values.shape
    about = "orange: carries the match; blue: speaks against it"
    made = f"cosine {_figure(explanation.score)}, maps by {explanation.method} on {gw} x {gh} patches"
    notes = [(text, True) for sentence in (about, made) for text in _wrap(sentence, font, width, 2)]
    for number, place in enumerate(explanation.places[:9], start=1):
        words = ", ".join(f"{explanation.words[i].text} {_figure(value)}" for i, value in place.words)
        x, y = place.point
        notes.append((_shorten(f"{number} at {x:.0f}, {y:.0f}: {words}", font, width), False))
    return notes


def _over(
    ground: NDArray[np.uint8], similarity: SimilarityMap, bounds: tuple[float, float] | None, with_image: bool
) -> NDArray[np.uint8]:
    """As :func:`heat`; with ``bounds`` (lowest, highest), of the map less its median on that scale."""
    alpha = 0.7 if with_image else 1.0
    if bounds is None:
        return heat(ground, similarity, alpha=alpha)
    low, high = float(similarity.values.min()), float(similarity.values.max())
    span = bounds[1] - bounds[0]
    values = low + similarity.to_image(ground.shape[:2]) * (high - low) - np.median(similarity.values)
    values = (values - bounds[0]) / span if span > 0 else np.zeros_like(values)
    grey = ground @ np.array([0.299, 0.587, 0.114], np.float32)
    mixed = (1 - alpha) * grey[..., None] + alpha * heat_colours(values)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def _numbered(picture: NDArray[np.uint8], explanation: TextExplanation) -> NDArray[np.uint8]:
    """The places of an explanation as numbered discs; the strongest on top."""
    (h, w), (height, width) = picture.shape[:2], explanation.shape
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    radius = max(6, min(14, min(h, w) // 24))
    font = _font(max(9, round(1.2 * radius)))
    for number, place in reversed(list(enumerate(explanation.places[:9], start=1))):
        at = (place.point[0] * w / width, w), (place.point[1] * h / height, h)
        x, y = (min(max(value, radius + 1), max(radius + 1, side - radius - 2)) for value, side in at)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_WHITE, outline=_INK, width=max(1, radius // 6))
        text = str(number)
        box = font.getbbox(text)
        draw.text((x - (box[0] + box[2]) / 2, y - (box[1] + box[3]) / 2), text, fill=_INK, font=font)
    return np.asarray(canvas)
