"""A similarity map smoothed over SAM's image embedding: places that look alike to SAM share their similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.types import SimilarityMap

SHARPNESS, REACH = 5.0, 0.25
"""Chosen on tuning photos with MobileSAM, see the lab."""


def smooth(
    similarity: SimilarityMap, embedding: NDArray[np.float32], *, sharpness: float = SHARPNESS, reach: float = REACH
) -> SimilarityMap:
    """A map on the grid of an embedding, in which each place holds a mean over the places near it that look like it.

    A bilateral filter: place i holds ``sum_j softmax_j(sharpness * cos_ij - (d_ij / reach)**2 / 2) * values_j``, where cos is
    the cosine of the places' embeddings, minus the mean over all places (without which all places of a photo look alike), and
    d the distance of the places in units of the longer side.

    Args:
        similarity: the map, on any grid over the image; it is resampled bicubically.
        embedding: (C, gh, gw) float32 over the image.
        sharpness: at least 0; 0 looks at distances only.
        reach: above 0, in units of the longer side.

    Returns:
        A map of (gh, gw) values, within the range of the resampled map.

    Raises:
        InputError: the embedding is not of the shape above.
    """
    import torch
    import torch.nn.functional as F

    if embedding.ndim != 3 or not embedding.size:
        raise InputError(f"embedding must be a non-empty array of shape (C, gh, gw), not {embedding.shape}")
    grid = embedding.shape[1:]
    values = torch.from_numpy(np.ascontiguousarray(similarity.values))[None, None]
    if similarity.values.shape != grid:
        values = F.interpolate(values, grid, mode="bicubic", align_corners=False)
    looks = torch.from_numpy(np.ascontiguousarray(embedding, np.float32)).flatten(1).T  # (gh*gw, C)
    looks = F.normalize(looks - looks.mean(0), dim=1)
    at = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), dim=-1).reshape(-1, 2) / (reach * max(grid))
    weights = torch.softmax(sharpness * looks @ looks.T - torch.cdist(at, at).square() / 2, dim=1)
    smoothed = (weights @ values.flatten()).reshape(grid).numpy()
    return SimilarityMap(smoothed, similarity.text, similarity.method)
