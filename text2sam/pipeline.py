"""TextPromptedSAM: text + image -> similarity map -> point prompts -> SAM -> Segmentation.

The maps are a generator's (:mod:`text2sam.clip`), presence is judged in :mod:`text2sam.presence`, a recipe
(:mod:`text2sam.recipes`) picks points and masks, and a session (:mod:`text2sam.sam.session`) knows which image the SAM
predictor holds. This module puts them together: an image is encoded once (:mod:`text2sam.encoded`), and texts are looked for in
what came of it (:mod:`text2sam.search`).
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from text2sam.checks import as_array, check_known, check_number
from text2sam.clip.protocol import MapGenerator, check_generator, encode_images
from text2sam.clip.tiles import Tiles
from text2sam.encoded import EncodedImage, encode
from text2sam.errors import ImageError, InputError, PromptError, StateError, Text2SamError, warn
from text2sam.image import ImageLike, ReadOptions, check_several, numbered, read_image
from text2sam.options import Options, SegmentOptions, named_options
from text2sam.presence import Calibration, fit_threshold, presence_scores
from text2sam.refine import corrected
from text2sam.request import Request, prepare
from text2sam.sam.predictor import MaskPredictor, check_predictor
from text2sam.sam.session import Session
from text2sam.search import search
from text2sam.targets import Target, Texts, parse_target
from text2sam.types import PointPrompts, Segmentation

if TYPE_CHECKING:
    import torch

__all__ = ["EncodedImage", "TextPromptedSAM"]


class TextPromptedSAM:
    """Segments what a text names.

    Calls from several threads wait for one another. Pipelines may share a predictor.

    Args:
        predictor: anything with ``set_image`` and ``predict`` as segment-anything's ``SamPredictor`` has them.
        generator: makes the similarity maps: a :class:`~text2sam.clip.generator.ClipSurgery`, or anything that follows
            :class:`~text2sam.clip.protocol.MapGenerator`.
        presence_threshold: the presence score from which a text counts as present, in [0, 1]; :meth:`calibrate` fits it to
            your own pictures.

    Raises:
        UnsupportedModelError: the predictor or the generator lacks a method.
        InputError: the threshold is not in [0, 1].
    """

    def __init__(self, predictor: MaskPredictor, generator: MapGenerator, *, presence_threshold: float = 0.5) -> None:
        self.predictor = check_predictor(predictor)
        self.generator: Any = check_generator(generator)
        self.presence_threshold = check_number("presence_threshold", presence_threshold, 0, 1)
        self.session = Session.of(predictor)
        self._set: EncodedImage | None = None
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), presence_threshold=self.presence_threshold), (self.predictor, self.generator)

    @classmethod
    def from_pretrained(
        cls,
        preset: str = "mobile",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        clip_checkpoint: str | os.PathLike[str] | None = None,
        clip_model: str | None = None,
        sam_checkpoint: str | os.PathLike[str] | None = None,
        templates: Sequence[str] | None = None,
        depth: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        scales: Sequence[float] | None = None,
        text_cache: bool = True,
        progress: bool = True,
    ) -> TextPromptedSAM:
        """A named pair of models: ``"photo"`` and ``"sticker"`` ship with the package, the others are downloaded once.
        ``"siglip2"`` needs ``clip_checkpoint``, a folder that you have.

        Args:
            preset: ``"photo"``, ``"mobile"``, ``"base"``, ``"huge"``, ``"siglip2"`` or ``"sticker"``; see
                :data:`text2sam.zoo.presets.PRESETS`.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None takes the first there is of cuda, mps, cpu.
            dtype: number format of the weights: float32, bfloat16 (faster on GPUs and on CPUs with AMX) or float16 (GPUs).
            clip_checkpoint, sam_checkpoint: a local file, or a name from ``text2sam models list``, in place of the preset's.
            clip_model: open_clip's name of the architecture of ``clip_checkpoint``.
            templates: prompt templates in place of the papers' 85.
            depth: how many of CLIP's last blocks get the second path.
            image_size: side in pixels, or (height, width), of what CLIP sees.
            scales: shares of ``image_size`` at which CLIP sees an image.
            text_cache: keep text features in the cache folder.
            progress: show download bars.

        Raises:
            InputError: the preset or an option is not usable.
            WeightsError: a checkpoint is missing, cannot be downloaded, or does not fit.
        """
        from text2sam.zoo.presets import build

        return cls(
            *build(
                preset,
                device=device,
                dtype=dtype,
                clip_checkpoint=clip_checkpoint,
                clip_model=clip_model,
                sam_checkpoint=sam_checkpoint,
                templates=templates,
                depth=depth,
                image_size=image_size,
                scales=scales,
                text_cache=text_cache,
                progress=progress,
            )
        )

    def set_image(
        self,
        image: ImageLike,
        *,
        methods: Sequence[str] | None = None,
        tiles: Tiles = False,
        **reading: Unpack[ReadOptions],
    ) -> None:
        """Encodes an image and keeps it, so that ``segment(text=...)`` costs no encoding.

        Args:
            image: path, PIL image, (H, W[, C]) array or (C, H, W) tensor; see :func:`text2sam.image.read_image`.
            methods: what ``method`` will be, see :meth:`ClipSurgery.encode`.
            tiles: for pictures far larger than CLIP's input, see :meth:`ClipSurgery.encode`.
            **reading: how images are read: ``channel_order``, ``value_range``, ``page``, ``max_pixels``; see
                :func:`text2sam.image.read_image`.

        Raises:
            ImageError: the image cannot be read; the image set before stays.
            InputError: ``methods`` or ``tiles`` is not usable.
        """
        [self._set] = self._encode([_read(image, reading)], methods=methods, tiles=tiles, sam=True)

    def encode(
        self,
        images: Sequence[ImageLike],
        *,
        sam: bool = False,
        methods: Sequence[str] | None = None,
        tiles: Tiles = False,
        **reading: Unpack[ReadOptions],
    ) -> list[EncodedImage]:
        """Encodes images, which :meth:`segment` and :meth:`segment_many` then take in their place, any number of times.

        Args:
            images: as for :meth:`set_image`; CLIP encodes them as one batch.
            sam: also run SAM's image encoder now, not when the first text needs it.
            methods, tiles, reading: as for :meth:`set_image`.

        Raises:
            ImageError: an image cannot be read; it is named by its position, before anything is computed.
            InputError: ``methods`` or ``tiles`` is not usable, or ``images`` is a single image.
        """
        check_several(images)
        images = list(images)
        pixels = []
        for position, image in enumerate(images):
            with numbered(position, len(images)):
                pixels.append(_read(image, reading))
        return self._encode(pixels, methods=methods, tiles=tiles, sam=sam)

    def reset_image(self) -> None:
        """Forgets the image and all that was computed from it."""
        with self._lock:
            self._set = None
            self.session.reset()

    @property
    def is_image_set(self) -> bool:
        """Whether :meth:`set_image` was called."""
        return self._set is not None

    @named_options
    def segment(
        self, image: ImageLike | EncodedImage | None = None, text: Target = "", **options: Unpack[SegmentOptions]
    ) -> Segmentation:
        """Segments everything in an image that a text names.

        Args:
            image: as for :meth:`set_image`, or what :meth:`encode` made of it; None takes the image set there. An image
                given here does not replace the one set.
            text: what to look for; ``"person+bench"`` or ``["person", "bench"]`` is one target, any of two things;
                ``{"car": ["car", "automobile"]}`` one thing with two words for it, called by its key.
            **options: ``against``, ``exclude``, ``threshold``, ``strategy``, ``method``, ``max_objects``, ``tiles``,
                and how an image is read; see :class:`text2sam.options.Options`.

        Returns:
            The union of all objects, with a result for each in ``objects``.

        Raises:
            ImageError, PromptError, InputError: an argument is not usable, or contradicts another.
            StateError: no image was given and none is set.
        """
        if isinstance(text, str) and not text:
            raise PromptError("no text is given; call segment(image, 'cat'), or segment(text='cat') for the image that is set")
        return self.segment_many(image, [text], **options)[0]

    @named_options
    def segment_instances(
        self, image: ImageLike | EncodedImage | None = None, text: Target = "", **options: Unpack[SegmentOptions]
    ) -> list[Segmentation]:
        """One result per object that a text names in an image, highest score first; none when the text is not there.

        Arguments and errors are those of :meth:`segment`. ``strategy="paper"`` makes one mask of all objects, which is then
        the only result.
        """
        return list(self.segment(image, text, **options).instances)

    @named_options
    def segment_many(
        self, image: ImageLike | EncodedImage | None = None, texts: Texts | None = None, **options: Unpack[SegmentOptions]
    ) -> list[Segmentation]:
        """Segments several texts in one image, which is encoded once.

        Each text is taken by itself: what else is asked for in the same call changes nothing, unless it is named in
        ``against`` or ``exclude``.

        Args:
            image: as for :meth:`segment`.
            texts: targets; or a mapping from names to synonyms, one target per name.
            **options: as for :meth:`segment`; ``threshold`` may be a mapping from texts (names) to theirs.

        Returns:
            One result per text, in order. Errors are those of :meth:`segment`.
        """
        if texts is None:
            raise PromptError(
                "no texts are given; call segment_many(image, ['cat', 'dog']), or segment_many(texts=['cat', 'dog']) for the "
                "image that is set"
            )
        request = Request.of(texts, Options.of(options), self.presence_threshold)
        with self._lock:
            given = self._given(image, request.options.reading, tiles=request.options.tiles)
            prepare(self.generator, request)  # a bad text costs no encoding
            [encoded] = [given] if isinstance(given, EncodedImage) else self._encode([given], **request.options.encoding)
            return search(self.generator, self.session, encoded, request)

    @named_options
    def check_texts(self, texts: Texts, **options: Unpack[SegmentOptions]) -> None:
        """Warns of texts, and raises for them, as :meth:`segment_many` does; takes its arguments but the image."""
        request = Request.of(texts, Options.of(options), self.presence_threshold)
        with self._lock:
            prepare(self.generator, request)

    @named_options
    def segment_batch(
        self, images: Iterable[ImageLike], texts: Texts, *, batch_size: int = 8, **options: Unpack[SegmentOptions]
    ) -> list[list[Segmentation]]:
        """Segments every text in every image; ``batch_size`` images are read and encoded at once.

        Args:
            images: as for :meth:`set_image`; an iterator is read as its images are needed.
            texts, options: as for :meth:`segment_many`.
            batch_size: more is faster on a GPU, and needs more memory.

        Returns:
            For each image the results of all texts, in order.

        Raises:
            Text2SamError: as :meth:`segment_many`. An image that cannot be used is named by its position, counted from 0, and
                the results of the images before it are the error's ``results``.
        """
        check_several(images)
        batch_size = int(check_number("batch_size", batch_size, 1, whole=True))
        request = Request.of(texts, Options.of(options), self.presence_threshold)
        with self._lock:
            prepare(self.generator, request)
        results: list[list[Segmentation]] = []
        count = len(images) if isinstance(images, Sized) else None
        waiting = iter(images)
        try:
            while batch := list(itertools.islice(waiting, batch_size)):
                pixels: list[NDArray[np.uint8]] = []
                bad: ImageError | None = None
                for image in batch:
                    try:
                        with numbered(len(results) + len(pixels), count):
                            pixels.append(read_image(image, **request.options.reading))
                    except ImageError as error:  # the images before it are answered first
                        bad = error
                        break
                with self._lock:
                    for encoded in self._encode(pixels, **request.options.encoding):
                        with numbered(len(results), count):
                            results.append(search(self.generator, self.session, encoded, request))
                if bad is not None:
                    raise bad
        except Text2SamError as error:
            error.results = results
            raise
        return results

    def refine(
        self,
        image: ImageLike | EncodedImage | None,
        result: Segmentation,
        points: PointPrompts,
        *,
        number: int = 0,
        **reading: Unpack[ReadOptions],
    ) -> Segmentation:
        """Corrects an object of a result by a person's points.

        SAM is asked again with the object's own points, the new ones and the mask before. The first time the best of its three
        masks is taken (:func:`text2sam.refine.choose_by_clicks`), then its single mask. See :mod:`text2sam.refine` for other
        corrections.

        Args:
            image: the image of the result, as for :meth:`segment`.
            result: what :meth:`segment` or this method returned.
            points: on the object (1) or off it (0), in pixels of the image and within it.
            number: of the object in ``result.instances``, from 0; their count adds an object, which needs a positive point.
            **reading: as for :meth:`set_image`.

        Returns:
            The result with that object changed, and with ``present`` True where there is a mask.

        Raises:
            ImageError, InputError: an argument is not usable, or the image is of another size than the result.
            StateError: no image was given and none is set.
        """
        with self._lock:
            given = self._given(image, reading)
            sam = given.sam if isinstance(given, EncodedImage) else self.session.image(given)
            return corrected(self.session, sam, result, number, points)

    def calibrate(
        self,
        images: Sequence[ImageLike],
        texts: Sequence[Target],
        present: Sequence[bool],
        *,
        against: Sequence[str] | None = None,
        false_cost: float = 1.0,
        **reading: Unpack[ReadOptions],
    ) -> Calibration:
        """Fits the presence threshold to examples, and takes it over as ``presence_threshold``.

        Args:
            images: one image per example; one that follows itself is encoded once.
            texts: one text per example.
            present: whether the text is in the image; there must be examples of both.
            against: as later for :meth:`segment`.
            false_cost: what an absent text called present costs, in units of a present text missed.
            **reading: as for :meth:`set_image`.

        Returns:
            The threshold and its errors on the examples; ``save`` it, and :meth:`use` it later.

        Raises:
            InputError: there is not one text and one answer per image, or one of the two answers is missing.
            ImageError, PromptError: an example is not usable; it is named by its position, and the threshold stays.
        """
        check_several(images)
        if isinstance(texts, str) or not (isinstance(texts, Iterable) and isinstance(present, Iterable)):
            raise InputError(f"texts and present must be sequences, a text and a bool per example, not {texts!r}, {present!r}")
        images, texts, present = list(images), list(texts), list(present)
        for given, answer in zip(present, map(as_array, present), strict=True):
            if answer.dtype.kind not in "biuf" or answer.shape != () or answer not in (0, 1):
                raise InputError(f"present must hold a bool per example, True where the text is in the image, not {given!r}")
        if not len(images) == len(texts) == len(present):
            raise InputError(
                "calibrate takes one image, one text and one answer per example, "
                f"not {len(images)}, {len(texts)} and {len(present)}"
            )
        scores: list[float] = []
        features: Any = None
        for position, (image, text) in enumerate(zip(images, texts, strict=True)):
            try:
                query = parse_target(text)
                if features is None or image is not images[position - 1]:
                    [features] = encode_images(self.generator, [_read(image, reading)])
                scores.append(max(presence_scores(self.generator, features, query.texts, against)))
            except Text2SamError as error:
                raise type(error)(f"example {position} of {len(images)}: {error}") from error
        fitted = fit_threshold(np.array(scores), np.array(present, bool), false_cost=false_cost)
        if fitted.auroc <= 0.5:
            warn(
                f"presence scores do not tell the present examples from the absent ones (AUROC {fitted.auroc:.2f}), so the "
                "threshold is no better than any other; are the answers the right way round?"
            )
        self.presence_threshold = fitted.threshold
        return replace(fitted, model=self._fingerprint())

    def use(self, calibration: Calibration | str | Path) -> None:
        """Takes over the threshold of a calibration, or of a file that holds one.

        Raises:
            InputError: the file is no calibration, or the calibration belongs to another CLIP or other settings of it.
        """
        if not isinstance(calibration, Calibration):
            calibration = Calibration.load(calibration)
        if calibration.model and calibration.model != self._fingerprint():
            raise InputError(
                f"the calibration was made with another CLIP or other settings of it (model {calibration.model}, "
                f"here {self._fingerprint()}); calibrate this one, or set presence_threshold yourself"
            )
        self.presence_threshold = calibration.threshold

    def _given(
        self, image: ImageLike | EncodedImage | None, reading: ReadOptions, **encoding: Any
    ) -> NDArray[np.uint8] | EncodedImage:
        """An image's pixels, or an image that is encoded, for which options of reading and encoding come too late."""
        check_known("option", reading, list(ReadOptions.__annotations__))
        held = self._set if image is None else image
        if held is None:
            raise StateError("no image is set: pass one, or call set_image first")
        if not isinstance(held, EncodedImage):
            return read_image(held, **reading)
        for name, value in {**encoding, **reading}.items():
            if name != "max_pixels" and str(value) != str(getattr(Options(), name)):  # that bounds files alone
                raise InputError(f"{name}= is for images that are encoded by this call; give it to set_image or encode")
        return held

    def _encode(self, images: Sequence[NDArray[np.uint8]], **options: Any) -> list[EncodedImage]:
        with self._lock:
            return encode(self.generator, self.session, images, **options)

    def _fingerprint(self) -> str:
        made = getattr(self.generator, "fingerprint", None)
        return str(made()) if callable(made) else ""


def _read(image: ImageLike, reading: ReadOptions) -> NDArray[np.uint8]:
    check_known("option", reading, list(ReadOptions.__annotations__))
    return read_image(image, **reading)
