"""What makes similarity maps: the seam between the pipeline and CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import accepts, check_returned
from text2sam.errors import UnsupportedModelError
from text2sam.types import SimilarityMap

_T = TypeVar("_T")


@runtime_checkable
class MapGenerator(Protocol):
    """Encodes images, and makes similarity maps of texts from what it knows of an image.

    Ten lines make one::

        class Corner:
            def encode(self, images):
                return [image.shape[:2] for image in images]

            def maps(self, features, texts, *, against=None):
                values = np.zeros((4, 4), np.float32)
                values[0, 0] = 1
                return [SimilarityMap(values, text) for text in texts]

        TextPromptedSAM(predictor, Corner()).segment(image, "cat")

    What a generator may have besides. :class:`~text2sam.clip.generator.ClipSurgery` has all but ``likeness``,
    ``cutouts`` and ``sense``, which :class:`~text2sam.clip.classifier.WordClassifier` has:

    - ``presence(features, text, *, against=None) -> float``: the presence score in [0, 1]; without it every text is present.
    - ``prepare(texts, *, against=None, method="surgery")``: encodes texts ahead, and raises for texts it cannot take.
    - ``vocabulary`` with ``region_odds(features, text, shares)``, and ``maps(..., vocabulary=True)``: names that texts are set
      against; features then have a ``grid``.
    - ``fine: bool``: True where maps part things that touch. The default recipe takes these as they are and asks SAM at their
      peaks. Others it smooths over SAM's embedding of the image (unless its ``smooth`` decides otherwise), and it also asks for
      the region around the first peak.
    - ``likeness(image, masks, texts)``: (M,) in [0, 1], how much what each of M masks (h, w) bool, at any size, cuts out of the
      image looks like the most similar of the texts. It costs a pass of the model for each mask; the default recipe chooses
      places and masks by it.
    - ``cutouts(image, masks)``: (M, D) numbers, a vector of what each mask cuts out; the cosine of two says how alike they
      look. Where several objects of a text were found, the default recipe looks for more that look like them.
    - ``hint(text) -> str | None``: advice about a text that the model is not made for.
    - ``sense(text)``: what a text stands for, any hashable value; equal for texts that are one thing to the model.
    - ``fingerprint() -> str``: stands for the model in calibrations.
    - ``model``, ``device``, ``settings``, ``pack(features)`` and ``unpack(tensors, shape)``: for embeddings on disk
      (:class:`text2sam.annotate.embeddings.EmbeddingStore`).
    - keyword arguments ``methods`` and ``tiles`` of ``encode``, ``method`` of ``maps``: only passed where the user gives them.
    """

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Sequence[Any]:
        """What the generator knows of each image, (H, W, 3) uint8 RGB: any object."""
        ...

    def maps(self, features: Any, texts: Sequence[str], *, against: Sequence[str] | None = None) -> list[SimilarityMap]:
        """One map per text from what :meth:`encode` gave for an image; ``against`` names what else may be in it."""
        ...


def check_generator(generator: object) -> MapGenerator:
    """The generator itself, once it is seen to have :class:`MapGenerator`'s methods.

    Raises:
        UnsupportedModelError: a method is missing, or a class is given in place of an object.
    """
    if isinstance(generator, type):
        raise UnsupportedModelError(f"the generator must be an object, not the class {generator.__name__}")
    missing = [name for name in ("encode", "maps") if not callable(getattr(generator, name, None))]
    if missing:
        raise UnsupportedModelError(
            f"{type(generator).__name__} cannot make similarity maps: it has no method {' and no method '.join(missing)}; "
            "give a ClipSurgery, or an object with the methods of text2sam.clip.protocol.MapGenerator"
        )
    return generator  # type: ignore[return-value]


def encode_images(generator: MapGenerator, images: Sequence[NDArray[np.uint8]], **options: Any) -> list[Any]:
    """What a generator knows of each image.

    Raises:
        UnsupportedModelError: the generator takes no such options, or did not return one object per image.
    """
    return _answer(generator, "encode", object, "one object per image", len(images), images, **options)


def make_maps(
    generator: MapGenerator, features: Any, texts: Sequence[str], *, against: Sequence[str] | None = None, **options: Any
) -> list[SimilarityMap]:
    """A generator's map of each text.

    Raises:
        UnsupportedModelError: the generator takes no such options, or did not return one :class:`SimilarityMap` per text, all
            of one shape.
    """
    options = {"against": against, **options}
    maps = _answer(generator, "maps", SimilarityMap, "one SimilarityMap per text", len(texts), features, texts, **options)
    shapes = sorted({each.values.shape for each in maps})
    if len(shapes) > 1:
        raise UnsupportedModelError(
            f"{type(generator).__name__}.maps must return maps of one shape, not {', '.join(map(str, shapes))}"
        )
    return maps


def _answer(
    generator: MapGenerator, name: str, kind: type[_T], expected: str, count: int, *arguments: Any, **options: Any
) -> list[_T]:
    method, part = getattr(generator, name), f"{type(generator).__name__}.{name}"
    for option, value in options.items():
        if not accepts(method, 0, (option,)):
            advice = "a MapGenerator takes it" if value is None else "leave that option out"
            raise UnsupportedModelError(f"{part} does not take {option}=; {advice}")
    answer = method(*arguments, **options)
    return check_returned(part, answer, kind, expected, count=count, error=UnsupportedModelError)
