"""Encodes each image once for several methods."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from text2sam.clip.generator import ClipSurgery, ImageFeatures, Method
from text2sam.clip.tiles import Tiles
from text2sam.image import ImageLike, read_image


class OnePass(ClipSurgery):
    """A ClipSurgery that encodes for several methods at once and caches the encodings until :meth:`forget`.

    So each method can be measured by a call of its own, while the encoder runs once. It shares model, texts and settings with
    ``surgery``.

    Attributes:
        seconds: by part of the work, see :meth:`part`; encoding is a part of its own, ``"encode"``.

    Raises:
        UnsupportedModelError: the image tower does not support one of the methods.
    """

    def __init__(self, surgery: ClipSurgery, methods: Sequence[Method]) -> None:
        vars(self).update(vars(surgery))
        self._methods = tuple(methods)
        self._kinds(self._methods)
        self.forget()

    def encode_image(
        self, image: ImageLike, *, methods: Sequence[Method] | None = None, tiles: Tiles = False, batch_size: int = 8
    ) -> ImageFeatures:
        """As :meth:`ClipSurgery.encode_image`, for all methods and once for each image and ``tiles``."""
        return self.encode([image], tiles=tiles)[0]

    def encode(
        self, images: Sequence[ImageLike], *, methods: Sequence[Method] | None = None, tiles: Tiles = False
    ) -> list[ImageFeatures]:
        """As :meth:`ClipSurgery.encode`, for all methods and once for each batch and ``tiles``."""
        pixels = [np.ascontiguousarray(read_image(image)) for image in images]
        digest = hashlib.blake2b(f"{[image.shape for image in pixels]}{tiles}".encode(), digest_size=16)
        for image in pixels:
            digest.update(image.data)
        key = digest.digest()
        if key not in self._kept:
            started = time.perf_counter()
            if tiles is False:
                self._kept[key] = super().encode(pixels, methods=self._methods)
            else:
                tiled = super().encode_image
                self._kept[key] = [tiled(image, methods=self._methods, tiles=tiles) for image in pixels]
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds["encode"] += time.perf_counter() - started
        return self._kept[key]

    def forget(self) -> None:
        """Clears the cache and the seconds."""
        self._kept: dict[bytes, list[ImageFeatures]] = {}
        self.seconds = {"read": 0.0, "encode": 0.0}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds of a ``with`` block, without those of encoding, to those of a part."""
        started, before = time.perf_counter(), self.seconds["encode"]
        try:
            yield
        finally:
            encoding = self.seconds["encode"] - before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started - encoding
