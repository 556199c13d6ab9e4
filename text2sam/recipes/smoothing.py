"""Similarity maps seen with SAM's image embedding: places that look alike share their similarity, and things count for more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import check_number
from text2sam.errors import InputError
from text2sam.types import SimilarityMap

SHARPNESS, REACH = 5.0, 0.25
"""Chosen on tuning photos with MobileSAM, see the lab."""

OFF_THINGS = 0.2
"""Weight of similarity outside objects; chosen on tuning photos."""


def affinity(embedding: NDArray[np.float32], *, sharpness: float = SHARPNESS, reach: float = REACH) -> NDArray[np.float32]:
    """How much each place of an image counts for each other place, by their appearance and their distance.

    The weights of a bilateral filter: ``softmax_j(sharpness * cos_ij - (d_ij / reach)**2 / 2)``, where cos is the cosine of two
    places' embeddings, minus the mean over all places (without which all places of a photo look alike), and d the distance of
    the places in units of the longer side.

    Args:
        embedding: (C, gh, gw) float32 over the image.
        sharpness: at least 0; 0 looks at distances only.
        reach: above 0, in units of the longer side.

    Returns:
        (gh, gw, gh, gw) float32, the last two axes add up to 1.

    Raises:
        InputError: the embedding is not of the shape above, or a number is out of range.
    """
    import torch

    check_number("sharpness", sharpness, 0)
    check_number("reach", reach, 0, above=True)

    if embedding.ndim != 3 or not embedding.size:
        raise InputError(f"embedding must be a non-empty array of shape (C, gh, gw), not {embedding.shape}")
    grid = embedding.shape[1:]
    looks = torch.from_numpy(np.ascontiguousarray(embedding, np.float32)).flatten(1).T  # (gh*gw, C)
    looks = torch.nn.functional.normalize(looks - looks.mean(0), dim=1)
    steps = (torch.arange(n, dtype=torch.float32, device="cpu") for n in grid)
    at = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1).reshape(-1, 2) / (reach * max(grid))
    at = at - at.mean(0)
    # -|a - b|^2 / 2 is a.b - |a|^2 / 2 - |b|^2 / 2, so one product makes all logits; the part of the row alone, softmax drops
    far, ones = at.square().sum(1, keepdim=True) / -2, at.new_ones(len(at), 1)
    rows, columns = (torch.cat([factor * looks, at, last], dim=1) for factor, last in ((sharpness, ones), (1, far)))
    with torch.autocast("cpu", enabled=False):
        weights = torch.softmax(rows @ columns.T, dim=1)
    return weights.reshape(*grid, *grid).numpy()


def smooth(similarity: SimilarityMap, weights: NDArray[np.float32]) -> SimilarityMap:
    """A map in which each place holds a mean over the places near it that look like it.

    Args:
        similarity: the map, on any grid over the image; it is resampled bicubically.
        weights: (gh, gw, gh, gw) float32, see :func:`affinity`.

    Returns:
        A map of (gh, gw) values, within the range of the resampled map.
    """
    import torch

    values = torch.from_numpy(np.ascontiguousarray(similarity.values))
    grid = weights.shape[2:]
    if similarity.values.shape != grid:
        values = torch.nn.functional.interpolate(values[None, None], grid, mode="bicubic", align_corners=False)[0, 0]
    smoothed = np.tensordot(weights, values.numpy(), axes=2)
    return SimilarityMap(smoothed, similarity.text, similarity.method)


def on_things(similarity: SimilarityMap, objectness: NDArray[np.float32]) -> SimilarityMap:
    """A map whose values above its median are scaled by objectness, with weights from :data:`OFF_THINGS` to 1.

    Args:
        similarity: the map.
        objectness: of its grid (gh, gw), float32 in [0, 1].
    """
    values, middle = similarity.values, np.median(similarity.values)
    weighted = middle + (values - middle) * (OFF_THINGS + (1 - OFF_THINGS) * objectness)
    return SimilarityMap(np.where(values > middle, weighted, values).astype(np.float32), similarity.text, similarity.method)
