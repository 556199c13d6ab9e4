"""EncodedImage: an image and what the models know of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.clip.protocol import MapGenerator, encode_images
from text2sam.clip.tiles import Tiles
from text2sam.sam.session import SamImage, Session

THUMBNAIL = 512
"""Longer side, in pixels, of the copy of an image that results carry for notebooks."""


@dataclass(frozen=True, eq=False, repr=False)
class EncodedImage:
    """An image and what the models know of it, made by :meth:`TextPromptedSAM.encode`.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        features: what the map generator knows.
        sam: what SAM knows; it is encoded when the first text needs it.
    """

    image: NDArray[np.uint8]
    features: Any
    sam: SamImage

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def __repr__(self) -> str:
        height, width = self.shape
        return f"<EncodedImage: {width} x {height} pixels>"

    @functools.cached_property
    def thumbnail(self) -> NDArray[np.uint8]:
        """(h, w, 3) uint8, the image with a longer side of at most :data:`THUMBNAIL` pixels."""
        from PIL import Image

        small = Image.fromarray(self.image)
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        return np.asarray(small)


def encode(
    generator: MapGenerator,
    session: Session,
    images: Sequence[NDArray[np.uint8]],
    *,
    methods: Sequence[str] | None = None,
    tiles: Tiles = False,
    sam: bool = False,
) -> list[EncodedImage]:
    """Encodes images.

    Args:
        generator: encodes them as one batch.
        session: of the SAM predictor.
        images: (H, W, 3) uint8 RGB.
        methods, tiles: options of the generator.
        sam: also run SAM's image encoder.

    Raises:
        UnsupportedModelError: the generator takes no such options, or its answer is not usable.
    """
    # a generator of the user's own need not know options that are not used
    options: dict[str, Any] = {} if methods is None or set(methods) <= {"surgery"} else {"methods": methods}
    if tiles is not False:
        options["tiles"] = tiles
    features = encode_images(generator, images, **options) if images else []
    encoded = [EncodedImage(*pair, session.image(pair[0])) for pair in zip(images, features, strict=True)]
    if sam:
        session.encode([each.sam for each in encoded])
    return encoded
