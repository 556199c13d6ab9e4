"""How much regions of an image look alike, by SAM's embedding and the map generator's cutouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from text2sam.recipes.points import patch_shares

EMBEDDED = 0.25
"""Weight of SAM's embedding; the generator's cutouts have 1. Chosen on tuning photos."""


class Appearance(NamedTuple):
    """The appearance of a masked region: unit vectors, or 0."""

    embedded: NDArray[np.float32]
    """(C,), the mean of SAM's embedding under its mask, less its mean over the image."""
    cutout: NDArray[np.float32]
    """(D,), the map generator's vector of what its mask cuts out."""


class Resemblance:
    """Compares the appearance of regions of an image.

    Args:
        embedding: (C, gh, gw) float32 over the image.
        cutout: a mask (H, W) bool -> (D,) float32, the vector of what it cuts out, see ``cutouts`` of
            :class:`~text2sam.clip.protocol.MapGenerator`.
    """

    def __init__(self, embedding: NDArray[np.float32], cutout: Callable[[NDArray[np.bool_]], NDArray[np.float32]]) -> None:
        self._embedding = embedding - embedding.mean((1, 2), keepdims=True)
        self._places = self._embedding / np.maximum(np.linalg.norm(self._embedding, axis=0), 1e-9)
        self._cutout = cutout

    def appearance(self, mask: NDArray[np.bool_]) -> Appearance:
        """The appearance of the region that a mask (H, W) covers."""
        [share] = patch_shares(mask[None], self._embedding.shape[1:])
        return Appearance(_unit(np.tensordot(self._embedding, share, 2)), _unit(self._cutout(mask)))

    def cosines(self, examples: Sequence[Appearance]) -> NDArray[np.float32]:
        """(gh, gw) float32 in [-1, 1]: the cosine of each place's embedding with that of the example it is most like."""
        cosines: NDArray[np.float32] = np.max([np.tensordot(each.embedded, self._places, 1) for each in examples], axis=0)
        return cosines


def resemblance(appearance: Appearance, examples: Sequence[Appearance]) -> float:
    """The highest cosine with the cutout of an example, plus a quarter of the highest with the embedding of one."""
    embedded = max(float(appearance.embedded @ each.embedded) for each in examples)
    return EMBEDDED * embedded + max(float(appearance.cutout @ each.cutout) for each in examples)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return unit
