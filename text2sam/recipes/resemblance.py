"""What else in an image looks like the things that were found in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from text2sam.recipes.points import patch_shares

EMBEDDED = 0.25
"""How much SAM's embedding counts beside the generator's cutouts; chosen on tuning photos."""


class Looks(NamedTuple):
    """How a thing looks: unit vectors, or 0."""

    embedded: NDArray[np.float32]
    """(C,), the mean of SAM's embedding under its mask, less its mean over the image."""
    cutout: NDArray[np.float32]
    """(D,), what the map generator knows of what its mask cuts out."""


class Resemblance:
    """Tells what in an image looks like other things in it.

    Args:
        embedding: (C, gh, gw) float32 over the image.
        cutout: a mask (H, W) bool -> (D,) float32, the vector of what it cuts out, see ``cutouts`` of
            :class:`~text2sam.clip.protocol.MapGenerator`.
    """

    def __init__(self, embedding: NDArray[np.float32], cutout: Callable[[NDArray[np.bool_]], NDArray[np.float32]]) -> None:
        self._embedding = embedding - embedding.mean((1, 2), keepdims=True)
        self._places = self._embedding / np.maximum(np.linalg.norm(self._embedding, axis=0), 1e-9)
        self._cutout = cutout

    def looks(self, mask: NDArray[np.bool_]) -> Looks:
        """The looks of what a mask (H, W) covers."""
        [share] = patch_shares(mask[None], self._embedding.shape[1:])
        return Looks(_unit(np.tensordot(self._embedding, share, 2)), _unit(self._cutout(mask)))

    def places(self, things: Sequence[Looks]) -> NDArray[np.float32]:
        """(gh, gw) float32 in [-1, 1]: the cosine of each place's embedding with that of the thing it resembles most."""
        places: NDArray[np.float32] = np.max([np.tensordot(each.embedded, self._places, 1) for each in things], axis=0)
        return places


def resemblance(looks: Looks, things: Sequence[Looks]) -> float:
    """The highest cosine with the cutout of one of the things, plus a quarter of the highest with an embedding of theirs."""
    embedded = max(float(looks.embedded @ each.embedded) for each in things)
    return EMBEDDED * embedded + max(float(looks.cutout @ each.cutout) for each in things)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return unit
