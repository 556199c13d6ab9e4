"""TextPromptedSAM: text + image -> similarity map -> point prompts -> SAM -> Segmentation."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.clip.generator import ClipSurgery, ImageFeatures, Method
from text2sam.clip.prompts import check_text
from text2sam.errors import ImageError, InputError, PromptError, StateError
from text2sam.image import ChannelOrder, ImageLike, read_image
from text2sam.sam.predictor import ImageState, MaskPredictor, check_predictor, predict_points
from text2sam.strategy import Strategy, get_strategy, joint_map
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of

Target = str | Sequence[str]
"""A text; ``"person+bench"`` and ``["person", "bench"]`` are one target of two joined texts."""


@dataclass(eq=False)
class _Encoded:
    """An image and what the models know of it; SAM's part is made when the first text needs it."""

    image: NDArray[np.uint8]
    features: ImageFeatures
    sam: ImageState | None = None


def split_target(text: Target) -> tuple[str, ...]:
    """The texts joined in one target.

    ``"person+bench"`` gives two; a sequence gives its texts as they are, so ``["c++ book"]`` keeps its signs.

    Raises:
        PromptError: a text is empty or not a string, or a text is joined twice.
    """
    if isinstance(text, str):
        parts = text.split("+")
        if len(parts) > 1 and not all(part.strip() for part in parts):
            raise PromptError(f"{text!r} joins an empty text; to look for a literal '+' pass a list: [{text!r}]")
    elif isinstance(text, Sequence) and text:
        parts = list(text)
    else:
        raise PromptError(f"a target is a text or a non-empty sequence of joined texts, not {text!r}")
    texts = tuple(check_text(part) for part in parts)
    if len(set(texts)) < len(texts):
        raise PromptError(f"a text is joined twice in {text!r}")
    return texts


class TextPromptedSAM:
    """Segments what a text names.

    Args:
        predictor: anything with ``set_image`` and ``predict`` as segment-anything's ``SamPredictor`` has them.
        surgery: makes the similarity maps.
        presence_threshold: a text counts as present from this presence score on, in [0, 1].

    One object holds the state of one image at a time and is not safe to use from several threads.

    Raises:
        UnsupportedModelError: the predictor lacks one of these methods.
        InputError: the threshold is not in [0, 1].
    """

    def __init__(self, predictor: MaskPredictor, surgery: ClipSurgery, *, presence_threshold: float = 0.5) -> None:
        self.predictor = check_predictor(predictor)
        if not isinstance(surgery, ClipSurgery):
            raise InputError(f"surgery must be a ClipSurgery, not {type(surgery).__name__}")
        if not 0.0 <= presence_threshold <= 1.0:
            raise InputError(f"presence_threshold must be in [0, 1], not {presence_threshold!r}")
        self.surgery = surgery
        self.presence_threshold = presence_threshold
        self._set: _Encoded | None = None
        self._in_predictor: _Encoded | None = None

    @classmethod
    def from_pretrained(cls, preset: str = "mobile", **options: Any) -> TextPromptedSAM:
        """A named pair of models: ``"sticker"`` ships with the package, the others are downloaded once.

        Args:
            preset: ``"sticker"``, ``"mobile"``, ``"base"`` or ``"huge"``; see :data:`text2sam.presets.PRESETS`.
            **options: see :func:`text2sam.presets.build`: ``device``, ``dtype``, ``clip_checkpoint``,
                ``clip_model``, ``sam_checkpoint``, ``templates``, ``depth``, ``image_size``, ``text_cache``,
                ``progress``.

        Raises:
            InputError: the preset or an option is unknown.
            WeightsError: a checkpoint is missing, cannot be downloaded, or does not fit.
        """
        from text2sam.presets import build

        known = [name for name in inspect.signature(build).parameters if name != "preset"]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise InputError(f"there is no option {unknown[0]!r}; the options are {', '.join(known)}")
        return cls(*build(preset, **options))

    def set_image(self, image: ImageLike, *, channel_order: ChannelOrder = "RGB") -> None:
        """Encodes an image and keeps it, so that ``segment(text=...)`` costs no encoding.

        Args:
            image: path, PIL image, (H, W[, C]) array or (C, H, W) tensor; see :func:`text2sam.image.read_image`.
            channel_order: ``"BGR"`` for arrays in OpenCV's order.

        Raises:
            ImageError: the image cannot be read; the image set before stays.
        """
        encoded = self._encode(read_image(image, channel_order=channel_order))
        self._sam_state(encoded)
        self._set = encoded

    def reset_image(self) -> None:
        """Forgets the image and all that was computed from it."""
        self._set = None
        self._in_predictor = None
        reset = getattr(self.predictor, "reset_image", None)
        if callable(reset):
            reset()

    @property
    def is_image_set(self) -> bool:
        """Whether :meth:`set_image` was called."""
        return self._set is not None

    def segment(
        self,
        image: ImageLike | None = None,
        text: Target = "",
        *,
        against: Sequence[str] | None = None,
        strategy: str | Strategy = "paper",
        method: Method = "surgery",
        channel_order: ChannelOrder = "RGB",
    ) -> Segmentation:
        """Segments one text in an image.

        Args:
            image: as for :meth:`set_image`; None takes the image set there. An image given here does not
                replace the one set.
            text: what to look for; ``"person+bench"`` or ``["person", "bench"]`` is one target.
            against: the label set for feature surgery: what else may be in the image. None subtracts the
                empty text instead, as the papers do for a single text.
            strategy: the recipe for points and mask, by name or your own; ``"paper"`` is the papers'. It always
                proposes a mask, also for an absent text: read ``present``.
            method: how the map is made, see :meth:`ClipSurgery.maps`.
            channel_order: ``"BGR"`` for arrays in OpenCV's order.

        Raises:
            ImageError, PromptError, InputError: an argument is not usable.
            StateError: no image was given and none is set.
        """
        return self.segment_many(image, [text], against=against, strategy=strategy, method=method, channel_order=channel_order)[
            0
        ]

    def segment_many(
        self,
        image: ImageLike | None,
        texts: Sequence[Target],
        *,
        against: Sequence[str] | None = None,
        strategy: str | Strategy = "paper",
        method: Method = "surgery",
        channel_order: ChannelOrder = "RGB",
    ) -> list[Segmentation]:
        """Segments several texts in one image, which is encoded once.

        Each text is taken by itself: what else is asked for in the same call changes nothing, unless it is
        named in ``against``.

        Returns:
            One result per text, in order. Arguments and errors are those of :meth:`segment`.
        """
        if isinstance(texts, str):
            raise InputError(f"texts must be a sequence of texts; for one text call segment(image, {texts!r})")
        targets = [split_target(text) for text in texts]
        recipe = get_strategy(strategy)
        if image is None:
            if self._set is None:
                raise StateError("no image is set: pass one, or call set_image first")
            self._prepare(targets, against, method)
            encoded = self._set
        else:
            pixels = read_image(image, channel_order=channel_order)
            self._prepare(targets, against, method)  # a bad text costs no encoding
            encoded = self._encode(pixels)
        return [self._segment(encoded, target, against, recipe, method) for target in targets]

    def segment_batch(
        self,
        images: Sequence[ImageLike],
        texts: Sequence[Target],
        *,
        against: Sequence[str] | None = None,
        strategy: str | Strategy = "paper",
        method: Method = "surgery",
        channel_order: ChannelOrder = "RGB",
        batch_size: int = 8,
    ) -> list[list[Segmentation]]:
        """Segments every text in every image; CLIP encodes ``batch_size`` images at once.

        Returns:
            For each image the results of all texts, in order. Arguments and errors are those of
            :meth:`segment`; an image that cannot be read is named by its position, before anything is computed.
        """
        single = isinstance(images, (str, os.PathLike)) or not isinstance(images, Iterable) or getattr(images, "ndim", 4) < 4
        if isinstance(texts, str) or single:
            raise InputError("images and texts must be sequences; for one image and text call segment")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size!r}")
        targets = [split_target(text) for text in texts]
        recipe = get_strategy(strategy)
        read = []
        images = list(images)
        for position, image in enumerate(images):
            try:
                read.append(read_image(image, channel_order=channel_order))
            except ImageError as error:
                raise ImageError(f"image {position} of {len(images)}: {error}") from error
        self._prepare(targets, against, method)
        results = []
        for start in range(0, len(read), batch_size):
            batch = read[start : start + batch_size]
            for image, features in zip(batch, self.surgery.encode_images(batch), strict=True):
                encoded = _Encoded(image, features)
                results.append([self._segment(encoded, target, against, recipe, method) for target in targets])
        return results

    def _encode(self, pixels: NDArray[np.uint8]) -> _Encoded:
        return _Encoded(pixels, self.surgery.encode_image(pixels))

    def _prepare(self, targets: Sequence[tuple[str, ...]], against: Sequence[str] | None, method: Method) -> None:
        self.surgery.prepare([text for target in targets for text in target], against=against, method=method)

    def _sam_state(self, encoded: _Encoded) -> None:
        """Makes ``encoded`` the predictor's image: by encoding it the first time, from memory after that."""
        # another owner of the predictor may have set its own image since; SamPredictor's state is put back for nothing
        if self._in_predictor is encoded and encoded.sam is not None and encoded.sam.image is not None:
            return
        self._in_predictor = None
        if encoded.sam is None:
            encoded.sam = ImageState.encode(self.predictor, encoded.image)
        else:
            encoded.sam.restore(self.predictor)
        self._in_predictor = encoded

    def _segment(
        self, encoded: _Encoded, target: tuple[str, ...], against: Sequence[str] | None, recipe: Strategy, method: Method
    ) -> Segmentation:
        shape = (encoded.image.shape[0], encoded.image.shape[1])
        maps = self.surgery.maps(encoded.features, target, against=against, method=method)
        similarity = joint_map(maps)
        presence = min(self.surgery.presence(encoded.features, text, against=against) for text in target)
        points = recipe.points(maps, shape)
        candidates, mask, score = self._masks(encoded, points, similarity, recipe)
        return Segmentation(
            mask=mask,
            score=score,
            box=box_of(mask),
            points=points,
            similarity=similarity,
            candidates=candidates,
            text="+".join(target),
            present=presence >= self.presence_threshold and bool(mask.any()),
            presence=presence,
            strategy=recipe.name,
        )

    def _masks(
        self, encoded: _Encoded, points: PointPrompts, similarity: SimilarityMap, recipe: Strategy
    ) -> tuple[Candidates | None, NDArray[np.bool_], float]:
        shape = (encoded.image.shape[0], encoded.image.shape[1])
        if not len(points.positive):  # a flat map points nowhere
            return None, np.zeros(shape, bool), 0.0
        self._sam_state(encoded)
        masks, scores, logits = predict_points(self.predictor, points, shape=shape)
        choice = recipe.choose(masks, scores, similarity.to_image(shape), points)
        candidates = Candidates(masks, scores, logits, choice.index, choice.reason, choice.figures)
        return candidates, masks[choice.index], float(scores[choice.index])
