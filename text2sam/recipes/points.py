"""Similarity map -> point prompts: pure functions that never see a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import check_number, check_shape
from text2sam.errors import InputError
from text2sam.types import NOISE, PointPrompts, SimilarityMap, bilinear, min_max

PointRule: TypeAlias = Callable[[SimilarityMap, tuple[int, int], Sequence[NDArray[np.bool_]]], PointPrompts]
"""A map, (H, W) of the image, and (H, W) bool masks of the objects found or tried so far -> points of the next object; no
points end the search."""

SMOOTHING = 0.7
"""Standard deviation, in patches, of the Gaussian that smooths a map before its peaks are looked for."""


def joint_map(maps: Sequence[SimilarityMap]) -> SimilarityMap:
    """One map for texts joined in one target: the mean of their min-max maps; a single map stays as it is."""
    if len(maps) == 1:
        return maps[0]
    values = np.mean([m.normalized() for m in maps], axis=0).astype(np.float32)
    return SimilarityMap(values, "+".join(m.text for m in maps), maps[0].method)


def mean_map(maps: Sequence[SimilarityMap], text: str) -> SimilarityMap:
    """One map for synonyms: the mean of their similarities, which is the similarity to the mean of their embeddings."""
    values = np.stack([m.values for m in maps]).mean(axis=0).astype(np.float32)
    return SimilarityMap(values, text, maps[0].method)


def points_from_similarity(
    values: NDArray[np.float32] | SimilarityMap,
    shape: Sequence[int],
    threshold: float = 0.8,
    downsample: int = 2,
) -> PointPrompts:
    """The papers' rule: hot cells become positive points, as many cold cells negative ones.

    The map is shrunk bilinearly by ``downsample`` to smooth it, brought to [0, 1] by min-max, and the
    ``n`` hottest cells become positive, the ``n`` coldest negative points, where ``n`` is the number of
    cells of at least ``threshold``, at most half of all cells. (CLIP Surgery, section 3.4 and its code.)

    Args:
        values: (gh, gw) similarity of the patches, any scale.
        shape: (H, W) of the image in pixels.
        threshold: in [0, 1], on the min-max map.
        downsample: whole factor of at least 1; the small grid is ``gh // downsample`` by
            ``gw // downsample``, at least 1 by 1.

    Returns:
        Positive points first, hottest last; then the negative ones, coldest first. Coordinates are
        (x, y), whole pixels inside the image: the cell centres, rounded down. A flat map, and a map of
        one cell, gives no points.

    Raises:
        InputError: an argument is not of the kind above.
    """
    import torch

    h, w = check_shape(shape)
    try:
        grid = values.values if isinstance(values, SimilarityMap) else np.asarray(values, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"values must be a finite, non-empty array of shape (gh, gw), not {type(values).__name__}") from error
    if grid.ndim != 2 or not grid.size or not np.isfinite(grid).all():
        raise InputError(f"values must be a finite, non-empty array of shape (gh, gw), not of shape {grid.shape}")
    check_number("threshold", threshold, 0, 1)
    check_number("downsample", downsample, 1, whole=True)
    rows, columns = (max(1, n // downsample) for n in grid.shape)
    small = bilinear(torch.from_numpy(np.ascontiguousarray(grid))[None, None], (rows, columns))
    flat = min_max(small.flatten(), magnitude=float(np.abs(grid).max())).numpy()
    if not flat.any() or grid.max() - grid.min() <= NOISE * np.abs(grid).max():
        return PointPrompts.empty()
    count = min(int((flat >= threshold).sum()), flat.size // 2)
    rank = np.argsort(flat, kind="stable")
    chosen = np.concatenate([rank[flat.size - count :], rank[:count]])
    x = np.minimum((chosen % columns + 0.5) * (w / columns), w - 1)
    y = np.minimum((chosen // columns + 0.5) * (h / rows), h - 1)
    coords = np.stack([np.floor(x), np.floor(y)], axis=1).astype(np.float32)
    labels = np.repeat(np.array([1, 0], np.uint8), count)
    return PointPrompts(coords, labels)


def heat_of(similarity: SimilarityMap) -> NDArray[np.float32]:
    """(gh, gw) float32 in [0, 1]: the map smoothed by :data:`SMOOTHING`, then min-max; all 0 where it is flat.

    A single hot patch among cold ones is mostly noise; what belongs to an object is hot over several.
    """
    import torch
    from skimage.filters import gaussian

    if similarity.flat:
        return np.zeros_like(similarity.values)
    smooth = gaussian(similarity.values.astype(np.float64), SMOOTHING, mode="nearest")
    return min_max(torch.from_numpy(smooth)).float().numpy()


def patch_shares(masks: NDArray[np.bool_], grid: Sequence[int]) -> NDArray[np.float32]:
    """How much of each patch masks cover.

    Args:
        masks: (M, H, W) bool.
        grid: (gh, gw), patches over the image.

    Returns:
        (M, gh, gw) float32 in [0, 1]. Patches that do not fall on whole pixels take in every pixel they touch.
    """
    gh, gw = check_shape(grid)
    h, w = masks.shape[1:]
    (top, bottom), (left, right) = (
        (np.arange(n) * length // n, -(-(np.arange(n) + 1) * length // n)) for n, length in ((gh, h), (gw, w))
    )
    areas = (bottom - top)[:, None] * (right - left)
    shares = np.zeros((len(masks), gh, gw), np.float32)
    for share, mask in zip(shares, masks, strict=True):
        pixels = (mask.view(np.uint8) != 0).view(np.uint8)  # Pillow's True is 255
        rows = [pixels[a:b].sum(0, dtype=np.int64) for a, b in zip(top, bottom, strict=True)]
        before = np.pad(np.cumsum(rows, axis=1), ((0, 0), (1, 0)))  # (gh, w + 1), pixels to the left
        share[:] = (before[:, right] - before[:, left]) / areas
    return shares


def hot_component(heat: NDArray[np.float32], at: tuple[int, int], threshold: float) -> NDArray[np.bool_]:
    """(gh, gw) bool: the patches of at least ``threshold`` that hang together (8 neighbours) with the patch ``at``.

    Args:
        heat: (gh, gw) float32.
        at: (row, column) of a patch; where its own heat is below the threshold, the result is that patch alone.
        threshold: in the units of ``heat``.
    """
    from skimage.segmentation import flood

    component: NDArray[np.bool_] = np.zeros(heat.shape, np.bool_)
    if heat[at] >= threshold:
        component |= flood(heat >= threshold, at, connectivity=2)
    component[at] = True
    return component


@dataclass(frozen=True)
class RegionRule:
    """Prompts of the hot region around a peak.

    Attributes:
        level: the region hangs together with the peak and is at least this hot, with 0 for the map's median and 1 for the
            peak; in [0, 1].
        box: whether its box is given.
        spread: how many points at most lie in it besides the peak, each as far as can be from those before.
    """

    level: float
    box: bool = False
    spread: int = 3

    def __call__(
        self, similarity: SimilarityMap, shape: Sequence[int], peak: tuple[int, int]
    ) -> tuple[PointPrompts, NDArray[np.float32] | None]:
        """The prompt for the object at a peak.

        Args:
            similarity: the map.
            shape: (H, W) of the image in pixels.
            peak: (row, column) of a patch.

        Returns:
            Positive points, in whole pixels at the middles of patches, the peak's first; and the region's box, (4,) float32
            xyxy in pixels, or None.
        """
        h, w = check_shape(shape)
        heat = heat_of(similarity)
        low = float(np.median(heat))
        region = hot_component(heat, peak, low + self.level * (float(heat[peak]) - low))
        patches = [peak, *_spread(region, peak, self.spread)]
        points = PointPrompts(
            np.array([pixel_of(patch, (h, w), heat.shape) for patch in patches], np.float32), np.ones(len(patches), np.uint8)
        )
        if not self.box:
            return points, None
        rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
        gh, gw = heat.shape
        x0, x1, y0, y1 = columns[0] * w / gw, (columns[-1] + 1) * w / gw, rows[0] * h / gh, (rows[-1] + 1) * h / gh
        return points, np.array([x0, y0, x1, y1], np.float32)


@dataclass(frozen=True)
class PeakRule:
    """Points of one object at a time: a positive one at the map's highest free peak, negative ones in the valleys by it.

    Call it with the masks found so far, and it gives the next object's points; no points when nothing hot is left.

    Attributes:
        hot: a peak counts from this share of the highest one on, in (0, 1].
        free: a patch is free when the masks so far cover at most this share of it.
        negatives: how many negative points at most.
        cold: negative points lie where the map is at most this, in [0, 1).
        reach: and at most this many patches from the peak's hot region.
        regions: further prompts for the same object.
    """

    hot: float = 0.6
    free: float = 0.3
    negatives: int = 0
    cold: float = 0.15
    reach: int = 3
    regions: tuple[RegionRule, ...] = ()

    def __call__(
        self, similarity: SimilarityMap, shape: Sequence[int], taken: Sequence[NDArray[np.bool_]] = ()
    ) -> PointPrompts:
        """Points of the next object.

        Args:
            similarity: the map.
            shape: (H, W) of the image in pixels.
            taken: (H, W) bool masks already found or tried.

        Returns:
            One positive point, (x, y) in whole pixels, in the hottest patch that is free and a local maximum of the smoothed
            map; then the negative points. No points when the map is flat or its free peaks are below ``hot``.
        """
        h, w = check_shape(shape)
        heat = heat_of(similarity)
        peak = self._peak(heat, taken)
        if peak is None:
            return PointPrompts.empty()
        coords = np.array(
            [
                pixel_of(peak, (h, w), heat.shape, _centroid(heat, peak)),
                *(pixel_of(patch, (h, w), heat.shape) for patch in self._valleys(heat, peak)),
            ],
            np.float32,
        )
        labels = np.zeros(len(coords), np.uint8)
        labels[0] = 1
        return PointPrompts(coords, labels)

    def around(
        self, similarity: SimilarityMap, shape: Sequence[int], points: PointPrompts
    ) -> list[tuple[PointPrompts, NDArray[np.float32] | None]]:
        """Further prompts, points and box, for the object whose first positive point is given."""
        peak = patch_of(points.positive[0], shape, similarity.values.shape)
        return [region(similarity, shape, peak) for region in self.regions]

    def _peak(self, heat: NDArray[np.float32], taken: Sequence[NDArray[np.bool_]]) -> tuple[int, int] | None:
        from scipy.ndimage import maximum_filter

        allowed = (heat >= self.hot) & (heat > 0)
        if len(taken):
            # a patch beside a found object is warm by that object's own heat; only a maximum of its own counts
            allowed &= heat >= maximum_filter(heat, 3)
            allowed &= patch_shares(np.logical_or.reduce(list(taken))[None], heat.shape)[0] <= self.free
        if not allowed.any():
            return None
        row, column = np.unravel_index(int(np.where(allowed, heat, -1).argmax()), heat.shape)
        return int(row), int(column)

    def _valleys(self, heat: NDArray[np.float32], peak: tuple[int, int]) -> list[tuple[int, int]]:
        from scipy.ndimage import distance_transform_cdt, distance_transform_edt

        if not self.negatives:
            return []
        region = hot_component(heat, peak, 0.5 * float(heat[peak]))
        steps = distance_transform_cdt(~region, metric="chessboard")
        valley = (steps > 1) & (steps <= self.reach) & (heat <= self.cold)
        chosen: list[tuple[int, int]] = []
        away = np.where(valley, 1.0 - heat, -1.0)  # the coldest first, then each far from those before
        while len(chosen) < self.negatives and away.max() > 0:
            row, column = (int(v) for v in np.unravel_index(int(away.argmax()), heat.shape))
            chosen.append((row, column))
            marks = np.ones(heat.shape)
            for patch in chosen:
                marks[patch] = 0
            away = np.where(valley, distance_transform_edt(marks), -1.0)
        return chosen


def _spread(region: NDArray[np.bool_], peak: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Patches of a region, of its inside where that is enough, each farthest from the peak and those before."""
    from scipy.ndimage import binary_erosion

    inside = binary_erosion(region, border_value=1)
    rows, columns = np.nonzero(inside if inside.sum() >= count else region)
    away = (rows - peak[0]) ** 2 + (columns - peak[1]) ** 2
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count and away.max() > 1:  # a neighbour tells nothing new
        chosen.append((int(rows[away.argmax()]), int(columns[away.argmax()])))
        away = np.minimum(away, (rows - chosen[-1][0]) ** 2 + (columns - chosen[-1][1]) ** 2)
    return chosen


def _centroid(heat: NDArray[np.float32], peak: tuple[int, int]) -> tuple[float, float]:
    """(row, column) of a peak in patches, whole at their centres, drawn off its own centre by the heat of its 8 neighbours."""
    r0, c0 = max(0, peak[0] - 1), max(0, peak[1] - 1)
    near = heat[r0 : peak[0] + 2, c0 : peak[1] + 2].astype(np.float64)
    weights = (near - near.min()) + 1e-6
    rows, columns = np.mgrid[r0 : r0 + near.shape[0], c0 : c0 + near.shape[1]]
    return float((rows * weights).sum() / weights.sum()), float((columns * weights).sum() / weights.sum())


def pixel_of(
    patch: tuple[int, int], shape: tuple[int, int], grid: tuple[int, ...], place: tuple[float, float] | None = None
) -> tuple[int, int]:
    """(x, y): the pixel at a place (row, column), in patches, or in the middle of a patch, that :func:`patch_of` counts to it.

    In a patch in which no pixel begins, it is the pixel that holds the patch.
    """
    row, column = (
        # a centroid can leave its patch, and so can rounding down; float32, lest an even peak lands just below its middle
        min(
            max(int(np.float32((at + 0.5) * length / patches)), -(-index * length // patches)),
            -(-(index + 1) * length // patches) - 1,
        )
        for at, index, length, patches in zip(place or patch, patch, shape, grid, strict=True)
    )
    return column, row


def pixels_under(points: NDArray[np.float32], shape: Sequence[int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The pixels that points lie in, as an index into an array over the image.

    Args:
        points: (N, 2), (x, y) in pixels; one outside the image counts to the nearest pixel.
        shape: (H, W) of the image.

    Returns:
        rows (N,) and columns (N,).
    """
    h, w = shape
    # clipped first: a far coordinate would overflow as an int
    columns, rows = (points[:, k].clip(0, n - 1).astype(np.intp) for k, n in ((0, w), (1, h)))
    return rows, columns


def patch_of(point: NDArray[np.float32], shape: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
    """(row, column) of the patch a pixel lies in; a point outside the image counts to the nearest patch.

    Args:
        point: (2,), (x, y) in pixels.
        shape: (H, W) of the image.
        grid: (gh, gw).
    """
    (h, w), (gh, gw) = shape, grid
    row, column = int(float(point[1]) * gh / h), int(float(point[0]) * gw / w)
    return min(max(row, 0), gh - 1), min(max(column, 0), gw - 1)
