"""Results as matplotlib figures.

Functions that draw one picture take the image, what is drawn on it and the axes, in this order, and return the axes; without
axes they draw on a new figure that has the image's size in pixels, of a tiny image a multiple. Functions that draw several
pictures return a figure. Nothing goes through ``pyplot`` and no setting of matplotlib is changed. matplotlib comes with the
extra ``text2sam[plot]``, and without it every function raises MissingDependencyError; :mod:`text2sam.paint` draws on arrays.
Images are read as :func:`text2sam.image.read_image` reads them without options; of OpenCV's arrays and the like give what it
returns with theirs.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam.checks import check_number
from text2sam.errors import InputError, needed
from text2sam.image import ImageLike, read_image
from text2sam.paint import OBJECT_COLOURS, Colour
from text2sam.types import PointPrompts, Segmentation, SimilarityMap, box_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from text2sam.tasks.explanation import TextExplanation

HEAT = "plasma"
"""matplotlib's colour map for similarities, perceptually uniform: dark blue is the lowest value, yellow the highest."""

POSITIVE, NEGATIVE = OBJECT_COLOURS[2], OBJECT_COLOURS[4]
"""Colours of points on the object and off it; their shapes differ too."""

_INCHES = 12.0  # width of a figure of several pictures
_LEAST = 400  # longer side in pixels, up to which a tiny image is enlarged
_MOST = 8  # masks or words shown in a figure


def points(image: ImageLike | None, prompts: PointPrompts, ax: Axes | None = None) -> Axes:
    """Draws point prompts, green discs on the object and orange crosses off it.

    Args:
        image: anything :func:`text2sam.image.read_image` accepts; None draws over what the axes show.
        prompts: points in pixels of the image.
        ax: axes to draw on.

    Raises:
        InputError: there is neither an image nor axes.
    """
    ax = _show(image, ax)
    diameter = 8 * _lettering().unit(ax)
    for coords, colour, marker in ((prompts.negative, NEGATIVE, "X"), (prompts.positive, POSITIVE, "o")):
        if len(coords):
            ax.scatter(
                coords[:, 0],
                coords[:, 1],
                s=diameter**2,
                color=_rgb(colour),
                marker=marker,
                edgecolors="white",
                linewidths=diameter / 8,
                zorder=3,
            )
    return ax


def heat(
    image: ImageLike,
    similarity: SimilarityMap,
    ax: Axes | None = None,
    *,
    alpha: float = 0.7,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draws a similarity map over the grey image.

    Args:
        image: anything :func:`text2sam.image.read_image` accepts.
        similarity: the map.
        ax: axes to draw on. ``ax.images[-1]`` is the map, of which ``figure.colorbar`` makes a scale.
        alpha: opacity of the map.
        limits: similarities that get the lowest and the highest colour; None takes the map's own. Maps with the same limits
            can be compared.
    """
    pixels = read_image(image)
    ax = _show(np.asarray(Image.fromarray(pixels).convert("L")), ax)
    low, high = float(similarity.values.min()), float(similarity.values.max())
    shape = pixels[:: (step := _step(ax, pixels.shape)), ::step].shape[:2]
    values = low + (high - low) * similarity.to_image(shape)
    vmin, vmax = limits or (low, high)
    _draw(ax, values, pixels.shape, cmap=HEAT, vmin=vmin, vmax=vmax, alpha=alpha)
    return ax


def overlay(
    image: ImageLike | None,
    result: Segmentation,
    ax: Axes | None = None,
    *,
    colour: Colour = OBJECT_COLOURS[0],
    alpha: float = 0.5,
) -> Axes:
    """Draws the mask of a result, tinted and outlined, and its points.

    Args:
        image: anything :func:`text2sam.image.read_image` accepts, of the mask's size; None draws over what the axes show.
        result: a segmentation of that image.
        ax: axes to draw on.
        colour: RGB of the mask.
        alpha: opacity of the mask.

    Raises:
        InputError: there is neither an image nor axes, or the image has another size than the mask.
    """
    ax = _show(image, ax, result)
    _draw_masks(ax, [result.mask], [colour], alpha)
    return points(None, result.points, ax)


def objects(image: ImageLike | None, result: Segmentation, ax: Axes | None = None, *, alpha: float = 0.5) -> Axes:
    """Draws every object of a result in a colour of its own, with its number and score.

    The colours are those of :data:`text2sam.paint.OBJECT_COLOURS`, in the order of the objects. Labels do not overlap: where
    there is little room they have the number alone, and where there is none the object has no label.

    Args:
        image: as for :func:`overlay`.
        result: a segmentation of that image.
        ax: axes to draw on.
        alpha: opacity of the masks.

    Raises:
        InputError: as for :func:`overlay`.
    """
    ax = _show(image, ax, result)
    instances = result.instances
    colours = [OBJECT_COLOURS[i % len(OBJECT_COLOURS)] for i in range(len(instances))]
    _draw_masks(ax, [each.mask for each in instances], colours, alpha)
    boxes = [each.box - 0.5 for each in instances if each.box is not None]
    _lettering().Labels(
        ax, boxes, [f"{i}: {each.score:.2f}" for i, each in enumerate(instances, 1)], [_rgb(c) for c in colours]
    )
    return ax


def compare(
    image: ImageLike,
    results: Sequence[Segmentation | SimilarityMap],
    titles: Sequence[str] | None = None,
    *,
    columns: int = 4,
) -> Figure:
    """An image beside results of it: masks as by :func:`overlay`, similarity maps as by :func:`heat`.

    Args:
        image: anything :func:`text2sam.image.read_image` accepts.
        results: segmentations and similarity maps of that image.
        titles: one for each result; None tells the text, of a map its range too, and whether a text is not in the image.
        columns: pictures in a row at most; rows are of equal length as far as possible.

    Raises:
        InputError: there is not one title for each result, or a result is of another kind or another image.
    """
    for result in results:
        if not isinstance(result, (Segmentation, SimilarityMap)):
            raise InputError(f"results must be Segmentation or SimilarityMap, not {type(result).__name__}")
    captions = [_title(result) for result in results] if titles is None else list(titles)
    if len(captions) != len(results):
        raise InputError(f"titles must be one for each of {len(results)} results, not {len(captions)}")
    pixels = read_image(image)
    check_number("columns", columns, 1, whole=True)
    count = len(captions) + 1
    figure, (first, *rest) = _grid(count, pixels.shape[:2], _columns(count, columns))
    _lettering().caption(_show(pixels, first), "image")
    for ax, result, title in zip(rest, results, captions, strict=True):
        drawn = heat(pixels, result, ax) if isinstance(result, SimilarityMap) else overlay(pixels, result, ax)
        _lettering().caption(drawn, title)
    return _fitted(figure)


def _title(result: Segmentation | SimilarityMap) -> str:
    if isinstance(result, SimilarityMap):
        return f"map of {result.text}, {result.values.min():.2g} to {result.values.max():.2g}"
    return result.text if result.present else f"{result.text}: not in the image"


def explain(image: ImageLike, result: Segmentation) -> Figure:
    """Why a mask came out.

    Pictures: the similarity map with the points; each mask that SAM offered with its scores, the chosen one framed; the
    objects of the result. Below them stand presence, scores and the reason for the choice. Of several objects the masks
    offered for the first one are shown. :meth:`Segmentation.to_json` holds all of this as numbers.

    Args:
        image: anything :func:`text2sam.image.read_image` accepts, of the mask's size.
        result: a segmentation of that image.

    Raises:
        InputError: the image has another size than the mask.
    """
    pixels = read_image(image)
    best = result.objects[0] if result.objects else result
    offered = best.candidates or result.candidates
    shown = [] if offered is None else list(range(min(len(offered), _MOST)))
    if offered is not None and offered.chosen not in shown:
        shown[-1] = int(offered.chosen)
    room = 0.4 if offered is None else 0.42 + 0.14 * len(offered.figures)
    count = len(shown) + 2
    figure, (first, *rest, last) = _grid(count, pixels.shape[:2], _columns(count, 6), room, below=0.9)

    points(None, result.points, heat(pixels, result.similarity, first))
    _lettering().caption(first, f"map of {result.similarity.text or result.text}, {len(result.points)} points")
    if offered is not None:
        masks, figures = offered.masks, {"score": offered.scores, **offered.figures}
        for index, ax in zip(shown, rest, strict=True):
            _draw_masks(_show(pixels, ax, result), [masks[index]], [OBJECT_COLOURS[0]], 0.5)
            chosen = index == offered.chosen
            _lettering().caption(ax, f"mask {index + 1} of {len(offered)}{', chosen' if chosen else ''}")
            lines = [f"{name} {float(values[index]):.3g}" for name, values in figures.items()]
            ax.set_xlabel("\n".join(lines), fontsize=8)
            if chosen:
                ax.spines[:].set(color=_rgb(POSITIVE), linewidth=3)
    objects(pixels, result, last)
    _lettering().caption(last, "result" if result.present else "result: not in the image")
    figure.supxlabel(f"\n{_facts(result, offered)}", x=0.01, horizontalalignment="left", fontsize=9, parse_math=False)
    return _fitted(figure)


def _facts(result: Segmentation, offered: Any) -> str:
    gh, gw = result.similarity.values.shape
    relation = ">=" if result.presence >= result.threshold else "<"
    lines = [
        f"{'present' if result.present else 'not present'}: "
        f"presence {result.presence:.6g} {relation} threshold {result.threshold:.6g}, text {result.text!r}",
        f"score {result.score:.3f}, objects {len(result.instances)}, area {result.area} of {result.mask.size} pixels",
        f"strategy {result.strategy}, map by {result.similarity.method} on {gw} x {gh} patches",
        "SAM was not asked" if offered is None else f"chosen: {offered.reason.removeprefix('chosen ')}",
    ]
    return "\n".join(_lettering().drawable(line, 400, width=150) for line in lines)


def words(image: ImageLike, explanation: TextExplanation) -> Figure:
    """Which words of a text an image bears out, and where.

    Pictures: the map of the whole text with its places numbered from the strongest; bars of how much of the match each word
    carries; and the maps of up to eight words with the longest bars, each less its median and all on one scale.

    Args:
        image: anything :func:`text2sam.image.read_image` accepts, of the explanation's size.
        explanation: from :func:`text2sam.tasks.explain_text`.

    Raises:
        InputError: the image has another size than the explanation's.
    """
    pixels = read_image(image)
    _check_size(pixels, explanation.shape)
    carriers = explanation.words
    longest = np.argsort([-abs(word.carries) for word in carriers], kind="stable").tolist()
    maps, bars = sorted(longest[:_MOST]), sorted(longest[: 3 * _MOST])
    figure, axes = _grid(len(maps) + 4, pixels.shape[:2], 4)
    grid: Any = axes[0].get_gridspec()
    for ax in axes[:4]:
        ax.remove()
    whole, bar = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2:])

    heat(pixels, explanation.similarity, whole)
    for number, place in enumerate(explanation.places, start=1):
        (x, y), disc = place.point, {"boxstyle": "circle", "facecolor": "white"}
        whole.text(x - 0.5, y - 0.5, str(number), fontsize=8, ha="center", va="center", bbox=disc, clip_on=True)
    _lettering().caption(whole, explanation.text)
    whole.set_xlabel(f"cosine {explanation.score:.3f}, maps by {explanation.method}", fontsize=8)

    carried = [carriers[i].carries for i in bars]
    colours = [_rgb(POSITIVE if value > 0 else NEGATIVE) for value in carried]
    bar.barh(range(len(bars)), carried, color=colours)
    bar.set_yticks(range(len(bars)), [_lettering().drawable(carriers[i].text, 20) for i in bars], fontsize=8, parse_math=False)
    bar.invert_yaxis()
    bar.tick_params(axis="x", labelsize=8)
    bar.axvline(0, color="black", linewidth=0.8)
    _lettering().caption(bar, "part of the match that each word carries")

    centred = [carriers[i].similarity.values - np.median(carriers[i].similarity.values) for i in maps]
    limits = float(min(v.min() for v in centred)), float(max(v.max() for v in centred))
    for i, values, ax in zip(maps, centred, axes[4:], strict=True):
        heat(pixels, SimilarityMap(values.astype(np.float32)), ax, limits=limits)
        _lettering().caption(ax, f"{carriers[i].text}: {carriers[i].carries:+.3f}")
    return _fitted(figure)


def to_png(figure: Figure, width: int | None = None) -> NDArray[np.uint8]:
    """The pixels of a figure, for :func:`text2sam.files.write_png`.

    Args:
        figure: any figure of matplotlib.
        width: in pixels; None takes the figure's own size.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: ``width`` is below 1.
    """
    if width is not None:
        check_number("width", width, 1, whole=True)
    # half a pixel more, because the size in pixels is rounded down
    encoded = _png(figure, None if width is None else (width + 0.5) / figure.get_figwidth())
    return np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _png(figure: Figure, dpi: float | None = None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or figure.dpi, facecolor="white")
    return buffer.getvalue()


def check_installed() -> None:
    """Checks that figures can be drawn, before the work begins.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    needed("matplotlib", "matplotlib", "drawing figures", "plot")


def _figure(**options: Any) -> Figure:
    check_installed()
    from matplotlib.figure import Figure

    figure: Any = Figure(**options)
    figure._repr_png_ = functools.partial(_png, figure)  # notebooks show it, with and without %matplotlib inline
    return figure  # type: ignore[no-any-return]


def _canvas(shape: Sequence[int]) -> Axes:
    """Axes that fill a figure of an image's size in pixels; of a tiny image a multiple, on which letters can be read."""
    times = max(1, _LEAST // max(shape[:2]))
    h, w = times * shape[0], times * shape[1]
    # of a large image marks and letters grow with it; a power of two gives back the image's size without rounding
    dpi = 2.0 ** max(7, round(math.log2(max(h, w) / 8)))
    ax = _figure(figsize=(w / dpi, h / dpi), dpi=dpi).add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    return ax


def _grid(count: int, shape: Sequence[int], columns: int, room: float = 0.4, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` axes for images of a shape, inches of ``room`` for the text at each and ``below`` them all."""
    rows, columns = -(-count // columns), min(columns, count)
    height = _INCHES / columns * min(max(shape[0] / shape[1], 0.25), 2.0) + room
    figure = _figure(figsize=(_INCHES, rows * height + below), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[i // columns, i % columns], anchor="S") for i in range(count)]


def _fitted(figure: Figure) -> Figure:
    """The figure, higher by what captions of several lines need."""
    lines = max(ax.get_title().count("\n") for ax in figure.axes)
    rows = len({ax.get_subplotspec().rowspan.start for ax in figure.axes})  # type: ignore[union-attr]
    figure.set_figheight(figure.get_figheight() + 0.16 * lines * rows)
    return figure


def _columns(count: int, most: int) -> int:
    """How many of ``count`` pictures stand in a row, for rows of equal length as far as possible."""
    return -(-count // -(-count // most))


def _show(image: ImageLike | None, ax: Axes | None, result: Segmentation | None = None) -> Axes:
    """The axes with the image drawn on them."""
    if image is None:
        if ax is None:
            raise InputError("give an image, or axes that show one")
        ax.autoscale(not ax.images)
        return ax
    pixels = read_image(image)
    if result is not None:
        _check_size(pixels, result.mask.shape)
    if ax is None:
        ax = _canvas(pixels.shape)
    elif not hasattr(ax, "imshow"):
        raise InputError(f"ax must be matplotlib axes, not {type(ax).__name__}")
    step = _step(ax, pixels.shape)
    _draw(ax, pixels[::step, ::step], pixels.shape)
    ax.set(xticks=[], yticks=[])
    ax.autoscale(False)  # what is drawn over an image does not move its borders
    return ax


def _step(ax: Axes, shape: Sequence[int]) -> int:
    """Of an image with many more pixels than the axes have, each how many-th is enough."""
    window = ax.get_window_extent()
    return max(1, int(min(shape[0] / window.height, shape[1] / window.width) / 4))


def _draw(ax: Axes, layer: NDArray[Any], shape: Sequence[int], **how: Any) -> None:
    """Draws pixels over the frame of an image of a shape."""
    ax.imshow(layer, extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5), **how)


def _check_size(pixels: NDArray[np.uint8], shape: Sequence[int]) -> None:
    if pixels.shape[:2] != tuple(shape):
        raise InputError(f"the result is of an image {tuple(shape)}, this one is {pixels.shape[:2]} (H, W)")


def _draw_masks(ax: Axes, masks: Sequence[NDArray[np.bool_]], colours: Sequence[Colour], alpha: float) -> None:
    """Tints and outlines masks, the first on top."""
    from matplotlib.patheffects import withStroke

    line = 1.5 * _lettering().unit(ax)
    for mask, colour in reversed(list(zip(masks, colours, strict=True))):
        step = _step(ax, mask.shape)
        thin = mask[::step, ::step]
        layer = np.full((*thin.shape, 4), (*colour, 0), np.uint8)
        layer[thin, 3] = round(255 * alpha)
        _draw(ax, layer, mask.shape)
        ax.autoscale(False)
        box = box_of(thin)
        if box is None:
            continue
        x0, y0, x1, y1 = box.astype(int).tolist()
        inside = np.pad(thin[y0:y1, x0:x1], 1).astype(np.uint8)  # padded, outlines are closed at the border
        across, down = ((np.arange(a - 1, b + 1) + 0.5) * step - 0.5 for a, b in ((x0, x1), (y0, y1)))
        outline = ax.contour(across, down, inside, levels=[0.5], colors=[_rgb(colour)], linewidths=line)
        outline.set_path_effects([withStroke(linewidth=2 * line, foreground="white")])  # stands out from any ground


def _lettering() -> Any:
    """The module, which needs matplotlib."""
    from text2sam import lettering

    return lettering


def _rgb(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (value / 255 for value in colour)
    return red, green, blue
