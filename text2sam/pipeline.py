"""TextPromptedSAM: text + image -> similarity map -> point prompts -> SAM -> Segmentation.

The maps are a generator's (:mod:`text2sam.clip`), presence is judged in :mod:`text2sam.presence`, a recipe
(:mod:`text2sam.recipes`) picks points and masks, and a session (:mod:`text2sam.sam.session`) knows which image the SAM
predictor holds. This module puts them together.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from text2sam.checks import as_array, check_known, check_number
from text2sam.clip.protocol import MapGenerator, check_generator, encode_images
from text2sam.clip.tiles import Tiles
from text2sam.errors import ImageError, InputError, PromptError, StateError, Text2SamError, warn
from text2sam.image import ImageLike, ReadOptions, check_several, numbered, read_image
from text2sam.options import Options, SegmentOptions, named_options
from text2sam.presence import Calibration, fit_threshold, presence_scores
from text2sam.recipes import find_objects
from text2sam.recipes.points import joint_map
from text2sam.recipes.view import Avoid, Found, View
from text2sam.refine import corrected
from text2sam.request import Request, prepare
from text2sam.sam.predictor import MaskPredictor, check_predictor
from text2sam.sam.session import SamImage, Session
from text2sam.targets import Query, Target, Texts, parse_target
from text2sam.types import PointPrompts, Segmentation, box_of

if TYPE_CHECKING:
    import torch

__all__ = ["EncodedImage", "TextPromptedSAM"]

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
        [self._set] = self._encode([_read(image, reading)], methods, tiles, sam=True)

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
        return self._encode(pixels, methods, tiles, sam=sam)

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
            held = self._given(image, {"tiles": request.options.tiles, **request.options.reading})
            if isinstance(held, EncodedImage):
                prepare(self.generator, request)
                encoded = held
            else:
                pixels = read_image(held, **request.options.reading)
                prepare(self.generator, request)  # a bad text costs no encoding
                [encoded] = self._encode([pixels], [request.options.method], request.options.tiles)
            return self._segment_all(encoded, request)

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
                    for encoded in self._encode(pixels, [request.options.method], request.options.tiles):
                        with numbered(len(results), count):
                            results.append(self._segment_all(encoded, request))
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
        check_known("option", reading, list(ReadOptions.__annotations__))
        with self._lock:
            held = self._given(image, reading)
            sam = held.sam if isinstance(held, EncodedImage) else self.session.image(read_image(held, **reading))
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

    def _given(self, image: ImageLike | EncodedImage | None, reading: Mapping[str, Any]) -> ImageLike | EncodedImage:
        """An image, or the one that is set; ``reading`` are the options of reading and encoding, which come too late for one
        that is encoded."""
        held = self._set if image is None else image
        if held is None:
            raise StateError("no image is set: pass one, or call set_image first")
        changes = {name: value for name, value in reading.items() if name != "max_pixels"}  # which bounds files alone
        late = [name for name, value in changes.items() if str(value) != str(getattr(Options(), name))]
        if late and isinstance(held, EncodedImage):
            raise InputError(f"{late[0]}= is for images that are encoded by this call; give it to set_image or encode")
        return held

    def _fingerprint(self) -> str:
        made = getattr(self.generator, "fingerprint", None)
        return str(made()) if callable(made) else ""

    def _encode(
        self, images: Sequence[NDArray[np.uint8]], methods: Sequence[str] | None, tiles: Tiles, *, sam: bool = False
    ) -> list[EncodedImage]:
        # a generator of the user's own need not know options that are not used
        options: dict[str, Any] = {} if methods is None or set(methods) <= {"surgery"} else {"methods": methods}
        if tiles is not False:
            options["tiles"] = tiles
        with self._lock:
            features = encode_images(self.generator, images, **options) if images else []
            encoded = [EncodedImage(*pair, self.session.image(pair[0])) for pair in zip(images, features, strict=True)]
            if sam:
                self.session.encode([each.sam for each in encoded])
        return encoded

    def _segment_all(self, encoded: EncodedImage, request: Request) -> list[Segmentation]:
        view = View(
            encoded.shape,
            self.generator,
            encoded.features,
            self.session,
            encoded.sam,
            against=request.options.against,
            method=request.options.method,
            max_objects=request.options.max_objects,
            vocabulary=request.options.recipe.vocabulary,
            smooth=request.options.recipe.smooth,
        )
        view = replace(view, avoid=self._excluded(view, request))
        looked = [self._looked_for(view, query, limit, request) for query, limit in request.queries]
        found = find_objects(request.options.recipe, view, [query for query, _ in looked if query is not None])
        return [
            _result(encoded, view, query, limit, presence, [] if wanted is None else next(found), request)
            for (query, limit), (wanted, presence) in zip(request.queries, looked, strict=True)
        ]

    def _excluded(self, view: View, request: Request) -> Avoid:
        """Where the excluded texts are, as far as they are there at all."""
        view = replace(view, against=request.against_excluded)
        there = [
            Query(text, (text,))
            for text in (request.exclude if request.queries else ())
            if presence_scores(self.generator, view.features, [text], request.options.against)[0] >= self.presence_threshold
        ]
        found = list(itertools.chain.from_iterable(find_objects(request.options.recipe, view, there)))
        if not found:
            return Avoid()
        return Avoid(np.logical_or.reduce([each.mask for each in found]), np.concatenate([f.points.positive for f in found]))

    def _looked_for(self, view: View, query: Query, threshold: float, request: Request) -> tuple[Query | None, float]:
        """What of a target is looked for, None where it is not there; and its presence score."""
        recipe = request.options.recipe
        scores = presence_scores(self.generator, view.features, query.texts, request.options.against)
        presence = max(scores)
        if recipe.answers_absent:
            return query, presence
        if presence < threshold:
            return None, presence
        # of joined texts those are looked for that are there
        there = tuple(text for text, score in zip(query.texts, scores, strict=True) if score >= threshold)
        return query if query.synonyms else replace(query, texts=there), presence


def _result(
    encoded: EncodedImage,
    view: View,
    query: Query,
    threshold: float,
    presence: float,
    found: Sequence[Found],
    request: Request,
) -> Segmentation:
    """The answer to one target."""
    recipe = request.options.recipe
    if not recipe.single:
        found = sorted((each for each in found if each.mask.any()), key=lambda each: -each.score)
    # an answer that may be "not here" is only as good as the chance that the text is there
    sure = 1.0 if recipe.answers_absent else presence

    def result(parts: Sequence[Found], objects: tuple[Segmentation, ...] = ()) -> Segmentation:
        mask = np.logical_or.reduce([part.mask for part in parts]) if parts else np.zeros(encoded.shape, bool)
        return Segmentation(
            mask=mask,
            score=parts[0].score * sure if mask.any() else 0.0,
            box=box_of(mask),
            points=PointPrompts.joined(part.points for part in parts),
            similarity=parts[0].similarity if len(parts) == 1 else joint_map(view.maps(query)),
            candidates=parts[0].candidates if parts else None,
            text=query.label,
            present=presence >= threshold and bool(mask.any()),
            presence=presence,
            strategy=recipe.name,
            threshold=threshold,
            objects=objects,
            looked_for=() if query.plain else query.texts,
            excluded=request.exclude,
            thumbnail=encoded.thumbnail,
        )

    return result(found, () if recipe.single else tuple(result([each]) for each in found))


def _read(image: ImageLike, reading: ReadOptions) -> NDArray[np.uint8]:
    check_known("option", reading, list(ReadOptions.__annotations__))
    return read_image(image, **reading)
