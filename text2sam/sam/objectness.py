"""Objectness: how likely each place of an image is on an object, from SAM's embedding of the image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError


@dataclass(frozen=True, eq=False)
class Objectness:
    """A linear function of SAM's embedding, for the encoder whose embeddings it was learned on.

    A predictor that has one as its attribute ``objectness``, as the one of the ``photo`` pair has, makes recipes look for
    things on things (:meth:`~text2sam.recipes.view.View.smoothed`).

    Attributes:
        weight: (C,) float32.
        bias: a number.
    """

    weight: NDArray[np.float32]
    bias: float

    def __call__(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """The share of a thing in each place.

        Args:
            embedding: (C, gh, gw) float32, as :meth:`~text2sam.sam.session.Session.embedding` gives it.

        Returns:
            (gh, gw) float32 in [0, 1].

        Raises:
            InputError: the embedding has not C channels.
        """
        if embedding.ndim != 3 or len(embedding) != len(self.weight):
            raise InputError(f"embedding must be of shape ({len(self.weight)}, gh, gw), not {embedding.shape}")
        share: NDArray[np.float32] = np.tensordot(self.weight, embedding, axes=1) + np.float32(self.bias)
        return share.clip(0, 1)

    def fingerprint(self) -> str:
        """64 hexadecimal digits that stand for the numbers."""
        return hashlib.sha256(np.append(self.weight, self.bias).astype(np.float32).tobytes()).hexdigest()
