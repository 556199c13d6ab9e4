"""Similarity map -> point prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.types import PointPrompts, SimilarityMap, check_shape


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
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"threshold must be in [0, 1], not {threshold!r}")
    if not isinstance(downsample, int) or downsample < 1:
        raise InputError(f"downsample must be a whole number of at least 1, not {downsample!r}")
    rows, columns = (max(1, n // downsample) for n in grid.shape)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(grid))[None, None], (rows, columns), mode="bilinear", align_corners=False
    )
    flat = small.flatten().numpy()
    low, high = flat.min(), flat.max()
    # the interpolation of equal values can differ in the last bit, which min-max would blow up
    if low == high or grid.min() == grid.max():
        return PointPrompts.empty()
    flat = (flat - low) / (high - low)
    count = min(int((flat >= threshold).sum()), flat.size // 2)
    rank = np.argsort(flat, kind="stable")
    chosen = np.concatenate([rank[flat.size - count :], rank[:count]])
    x = np.minimum((chosen % columns + 0.5) * (w / columns), w - 1)
    y = np.minimum((chosen // columns + 0.5) * (h / rows), h - 1)
    coords = np.stack([np.floor(x), np.floor(y)], axis=1).astype(np.float32)
    labels = np.repeat(np.array([1, 0], np.uint8), count)
    return PointPrompts(coords, labels)
