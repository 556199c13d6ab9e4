"""Overlapping tiles of a large picture, and the blending of what is computed on them: pure functions.

All tiles lie on one grid of cells. A cell is the area of one patch token, so a tile has as many cells as the model's input has
patches; the grid is stretched over the picture, and tiles begin on whole cells. The picture is resized once, to one patch of
pixels per cell. Tiles are windows of that: every token of a tile falls exactly on one cell, and nothing is resampled. A grid of
one tile is the picture resized to the model's input, as without tiles.

Tokens are blended, not maps. The similarities of CLIP Surgery are linear in the patch tokens (its weights come from the class
token alone), so a weighted mean of L2-normalised tokens has the weighted mean of the tiles' maps, for every text and label
set, and no text needs a pass over the tiles. Tokens are normalised before blending, or long tokens would outvote others, and
once more afterwards, which divides the mean by its length, the same for all texts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError

if TYPE_CHECKING:
    import torch

Tiles: TypeAlias = Literal["auto"] | int
"""``"auto"``, False, or the side of a tile in pixels of the picture."""

AUTO_FACTOR = 3
"""``"auto"`` makes tiles where a side of the picture is more than this many times the model's input."""

MAX_GRID = 16
"""The grid of a picture has at most this many times the cells of one tile: 4 times per side of a square picture."""

OVERLAP = 0.25
"""Neighbouring tiles share at least this much of their side."""


@dataclass(frozen=True)
class TileLayout:
    """Where the tiles of a picture lie, in cells of the picture's grid.

    Attributes:
        grid: (gh, gw) cells of the whole picture, stretched over it exactly (half-pixel centres).
        tile: (th, tw) cells of every tile.
        rows: first row of each row of tiles, ascending from 0; the last one ends at ``gh``.
        columns: likewise for columns.
    """

    grid: tuple[int, int]
    tile: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(row, column) of the first cell of each tile, row by row."""
        return [(row, column) for row in self.rows for column in self.columns]


def tile_layout(shape: tuple[int, int], image_size: tuple[int, int], tile: tuple[int, int], tiles: Tiles) -> TileLayout:
    """Lays tiles over a picture; sizes are positive, ``tiles`` is checked by :func:`check_tiles`.

    A tile has the aspect of ``image_size``, within half a cell over the picture, so that its content is not distorted;
    where the picture is shorter than that, tiles are as high (or wide) as the picture and squeezed, as the picture itself
    is without tiles. Sides that would give more cells than ``MAX_GRID`` times a tile's are enlarged until they do not.

    Args:
        shape: (H, W) of the picture in pixels.
        image_size: (height, width) in pixels that the model sees of a tile.
        tile: (th, tw) patches of the model's input.
        tiles: side of a tile (the longer one where ``image_size`` is not square) in pixels of the picture. ``"auto"``:
            one tile, unless a side of the picture is more than ``AUTO_FACTOR`` times the model's input; then the model's
            own resolution, or tiles as high as the picture where that is less. False: one tile.
    """
    (height, width), (h, w), (th, tw) = shape, image_size, tile
    small, large = sorted((height / h, width / w))  # the picture's sides, measured in inputs of the model
    if tiles is False or (tiles == "auto" and large <= AUTO_FACTOR):
        return TileLayout((th, tw), (th, tw), (0,), (0,))
    scale = min(1.0, small) if tiles == "auto" else tiles / max(h, w)  # pixels of the picture per pixel of the input
    root = math.sqrt(MAX_GRID)
    scale = max(scale, math.sqrt(small * large) / root, large / MAX_GRID)
    cells = (th * max(1.0, height / (scale * h)), tw * max(1.0, width / (scale * w)))
    gh, gw = (round(n) for n in cells)
    if gh * gw > MAX_GRID * th * tw:
        gh, gw = (int(n) for n in cells)
    return TileLayout((gh, gw), (th, tw), _starts(gh, th), _starts(gw, tw))


def check_tiles(tiles: Tiles) -> Tiles:
    """``tiles`` as ``"auto"``, False or a positive int.

    Raises:
        InputError: it is anything else.
    """
    if tiles is False or (isinstance(tiles, str) and tiles == "auto"):
        return tiles
    try:
        side = 0 if isinstance(tiles, (bool, np.bool_)) else operator.index(tiles)
    except TypeError:
        side = 0
    if side < 1:
        raise InputError(f"tiles must be 'auto', False or the side of a tile in pixels, at least 1, not {tiles!r}")
    return side


def tile_weights(starts: Sequence[int], tile: int, grid: int) -> NDArray[np.float32]:
    """How much each tile counts in each of its cells, along one axis.

    A squared sine, small at the edges of a tile, where the model knows what is on one side only, divided by the sum of
    all tiles' there. The weight of a tile in a cell is the product of its two axes' weights.

    Args:
        starts: first cell of each of n tiles, which together cover the axis.
        tile: cells of a tile.
        grid: cells of the axis.

    Returns:
        (n, tile) float32 above 0; over each cell of the axis they add up to 1.
    """
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    total = np.zeros(grid)
    for start in starts:
        total[start : start + tile] += window
    return np.stack([window / total[start : start + tile] for start in starts]).astype(np.float32)


def blend_tiles(batches: Iterable[torch.Tensor], layout: TileLayout) -> torch.Tensor:
    """What was computed on tiles, blended into one grid.

    Batches are taken one after the other and not kept, so memory is that of one batch and of the grid.

    Args:
        batches: at least one; (B, th, tw, ...) float32 each, B tiles at a time in the order of ``layout.corners``.
        layout: from :func:`tile_layout`.

    Returns:
        (gh, gw, ...) float32, in each cell the mean over its tiles by :func:`tile_weights`.
    """
    (th, tw), corners = layout.tile, layout.corners
    rows = tile_weights(layout.rows, th, layout.grid[0])
    columns = tile_weights(layout.columns, tw, layout.grid[1])
    import torch

    total, done = torch.zeros(()), 0
    for batch in batches:
        if not done:
            total = batch.new_zeros((*layout.grid, *batch.shape[3:]))
        for values in batch:  # (th, tw, ...)
            i, j = divmod(done, len(layout.columns))
            row, column = corners[done]
            weight = torch.from_numpy(np.outer(rows[i], columns[j])).to(values).reshape(th, tw, *[1] * (values.ndim - 2))
            total[row : row + th, column : column + tw] += weight * values
            done += 1
    return total


def _starts(grid: int, tile: int) -> tuple[int, ...]:
    stride = max(1, tile - math.ceil(OVERLAP * tile))
    steps = math.ceil((grid - tile) / stride)
    # spread evenly: neighbours are at most one stride apart, since that is a whole number
    return tuple(round(i * (grid - tile) / steps) for i in range(steps + 1)) if steps else (0,)
