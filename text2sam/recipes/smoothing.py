"""A similarity map smoothed over SAM's image embedding: places that look alike to SAM share their similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.types import SimilarityMap

SHARPNESS = 7.0
"""Inverse temperature of the softmax, chosen on tuning photos with MobileSAM (:mod:`text2sam.lab`)."""


def smooth(similarity: SimilarityMap, embedding: NDArray[np.float32], sharpness: float = SHARPNESS) -> SimilarityMap:
    """A map on the grid of an embedding, where each place holds a mean over the places that look like it.

    ``softmax(sharpness * e @ e.T) @ values``, where e are the embedding's places, minus their mean and L2-normalised. Without
    the mean subtracted all places of a picture look alike.

    Args:
        similarity: the map, of any grid over the image; it is resampled bicubically.
        embedding: (C, gh, gw) float32 over the image.
        sharpness: at least 0; 0 gives every place the mean of the map.

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
    places = torch.from_numpy(np.ascontiguousarray(embedding, np.float32)).flatten(1).T  # (gh*gw, C)
    places = F.normalize(places - places.mean(0), dim=1)
    weights = torch.softmax(sharpness * places @ places.T, dim=1)
    smoothed = (weights @ values.flatten()).reshape(grid).numpy()
    return SimilarityMap(smoothed, similarity.text, similarity.method)
