"""Text on matplotlib figures: captions that fit, and labels of boxes that do not overlap. For :mod:`text2sam.plot`."""

from __future__ import annotations

import functools
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray

_PAD = 1.5  # points around the letters of a label
_CAPTION, _LABEL = 9.0, 8.0  # font sizes in points


def unit(ax: Axes) -> float:
    """In (0, 1]: what marks, lines and letters shrink by on small axes."""
    return float(np.clip(min(_size(ax)) / 150, 0.4, 1))


def drawable(text: str, longest: int, width: int | None = None) -> str:
    """A text for a figure.

    Args:
        text: any text.
        longest: letters, from where on it is cut.
        width: letters in a line; None keeps one line.

    Returns:
        The text with ``?`` for each letter that matplotlib's font lacks.
    """
    known = _letters(findfont(FontProperties()))
    line = " ".join("".join(c if c.isspace() or ord(c) in known else "?" for c in text).split())
    line = line if len(line) <= longest else line[: longest - 3].rstrip() + "..."
    return textwrap.fill(line, width) if width else line


def caption(ax: Axes, text: str) -> None:
    """Titles axes in lines as wide as they are, three at most."""
    letters = max(8, int(_size(ax)[0] / (0.5 * _CAPTION)))
    lines = textwrap.fill(drawable(text, 3 * letters), letters, max_lines=3, placeholder="...")
    ax.set_title(lines, fontsize=_CAPTION, parse_math=False)


class Labels(Artist):
    """Labels at boxes that overlap neither each other nor the border of the axes.

    They are placed each time the figure is drawn, the first label first: above its box, else within or around it; else only
    the part before the colon; else the label is left out.

    Args:
        ax: axes to draw on.
        boxes: (4,) xyxy in the data of ``ax``, one for each label.
        texts: the labels.
        colours: RGB in [0, 1] of their background.
    """

    def __init__(
        self,
        ax: Axes,
        boxes: Sequence[NDArray[np.floating[Any]]],
        texts: Sequence[str],
        colours: Sequence[tuple[float, float, float]],
    ) -> None:
        super().__init__()
        self.set_in_layout(False)
        self._boxes, self._strings = list(boxes), list(texts)
        self._texts = []
        for text, colour in zip(texts, colours, strict=True):
            light = np.dot(colour, (0.2126, 0.7152, 0.0722)) > 0.4
            frame = {"facecolor": colour, "edgecolor": "none", "pad": _PAD}
            drawn = ax.text(0, 0, text, ha="center", va="center", color="black" if light else "white", bbox=frame, clip_on=True)
            drawn.set_in_layout(False)
            self._texts.append(drawn)
        if self._texts:
            self.set_zorder(self._texts[0].get_zorder() - 0.1)  # placed, then drawn
            ax.add_artist(self)

    def draw(self, renderer: Any) -> None:
        """Places the labels."""
        ax: Any = self.axes
        size, pad = max(5.0, _LABEL * unit(ax)), renderer.points_to_pixels(_PAD)
        frame = ax.get_window_extent(renderer).get_points()
        taken: NDArray[np.float64] = np.zeros((0, 2, 2))  # lower left and upper right corner of each label, in pixels
        for text, string, box in zip(self._texts, self._strings, self._boxes, strict=True):
            text.set(visible=True, fontsize=size)
            corners = np.sort(ax.transData.transform(np.reshape(box, (2, 2))), axis=0)
            for each in dict.fromkeys((string, string.partition(":")[0])):
                text.set_text(each)
                extent = text.get_window_extent(renderer)
                place = _room(corners, np.array([extent.width, extent.height]) + 2 * pad, frame, taken)
                if place is not None:
                    taken = np.append(taken, place[None], axis=0)
                    text.set_position(ax.transData.inverted().transform(place.mean(0)))
                    break
            else:
                text.set_visible(False)


def _room(
    box: NDArray[np.float64], size: NDArray[np.float64], frame: NDArray[np.float64], taken: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """The first free place at a box for a label of a size, within a frame; all but ``size`` as two corners, y upwards."""
    (x0, y0), (x1, y1) = box
    w, h = size
    if (size > frame[1] - frame[0]).any():
        return None
    for y, x in itertools.product((y1, y1 - h, y0 - h, y0, (y0 + y1 - h) / 2), (x0, x1 - w, (x0 + x1 - w) / 2, x0 - w, x1)):
        low = np.clip((x, y), frame[0], frame[1] - size)
        if not ((low < taken[:, 1]) & (low + size > taken[:, 0])).all(1).any():
            return np.stack([low, low + size])
    return None


def _size(ax: Axes) -> tuple[float, float]:
    """Width and height of axes in points."""
    window, points = ax.get_window_extent(), 72 / ax.figure.dpi
    return window.width * points, window.height * points


@functools.lru_cache(maxsize=8)
def _letters(font: str) -> frozenset[int]:
    return frozenset(get_font(font).get_charmap())
