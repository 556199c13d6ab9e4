"""TextPromptedSAM: text + image -> similarity map -> point prompts -> SAM -> Segmentation."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from text2sam.clip.generator import ClipSurgery, ImageFeatures, Method
from text2sam.clip.tiles import Tiles
from text2sam.errors import ImageError, InputError, StateError, Text2SamError
from text2sam.image import ChannelOrder, ImageLike, is_single, read_image
from text2sam.presence import Calibration, fit_threshold
from text2sam.recipes import DEFAULT, Strategy, get_strategy, joint_map, mean_map
from text2sam.recipes.choose import distinct
from text2sam.recipes.points import corrective_points, patch_of, patch_shares, pixels_under
from text2sam.sam.predictor import ImageState, MaskPredictor, check_predictor, encode_states, predict_points
from text2sam.targets import Query, Target, Texts, check_exclude, parse_target, parse_targets, split_target, thresholds_of
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of

__all__ = ["EncodedImage", "Target", "TextPromptedSAM", "Texts", "split_target"]

Zoom = Literal["auto", False]
Thresholds = float | Mapping[str, float] | None

ZOOM_BELOW = 0.2
"""A mask whose longer side is less than this share of the picture's is looked at more closely with ``zoom="auto"``."""
ZOOM_MARGIN = 3.0
"""The crop's side, in sides of the mask."""


@dataclass(eq=False)
class EncodedImage:
    """An image and what the models know of it, see :meth:`TextPromptedSAM.encode`.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        features: what CLIP knows.
        sam: what SAM knows; None until the first text needs it, which fills it in.

    Raises:
        InputError: the image is of another kind, or the features belong to an image of another size.
    """

    image: NDArray[np.uint8]
    features: ImageFeatures
    sam: ImageState | None = None

    def __post_init__(self) -> None:
        image = self.image
        ok = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        if not ok:
            raise InputError(f"image must be a uint8 array of shape (H, W, 3), not {type(image).__name__}")
        if not isinstance(self.features, ImageFeatures) or self.features.shape != self.shape:
            raise InputError(f"features must be those of an image of {self.shape}, not {self.features!r:.80}")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class _How:
    """How one call wants its texts segmented."""

    recipe: Strategy
    against: Sequence[str] | None
    method: Method
    exclude: tuple[str, ...]
    zoom: Zoom


@dataclass(frozen=True, eq=False)
class _Found:
    """One object, as SAM answered for it."""

    points: PointPrompts
    candidates: Candidates
    mask: NDArray[np.bool_]
    score: float
    similarity: SimilarityMap
    zoomed: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class _Avoid:
    """Where the texts to be avoided are: the union of their masks (H, W), and points on them (N, 2)."""

    mask: NDArray[np.bool_] | None = None
    coords: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))


class TextPromptedSAM:
    """Segments what a text names.

    Args:
        predictor: anything with ``set_image`` and ``predict`` as segment-anything's ``SamPredictor`` has them.
        surgery: makes the similarity maps.
        presence_threshold: a text counts as present from this presence score on, in [0, 1]; :meth:`calibrate` fits it to
            your own pictures.

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
        self.generator = surgery
        self.presence_threshold = presence_threshold
        self._set: EncodedImage | None = None
        self._in_predictor: EncodedImage | None = None

    @classmethod
    def from_pretrained(cls, preset: str = "mobile", **options: Any) -> TextPromptedSAM:
        """A named pair of models: ``"sticker"`` ships with the package, the others are downloaded once.

        Args:
            preset: ``"sticker"``, ``"mobile"``, ``"base"`` or ``"huge"``; see :data:`text2sam.zoo.presets.PRESETS`.
            **options: see :func:`text2sam.zoo.presets.build`: ``device``, ``dtype``, ``clip_checkpoint``,
                ``clip_model``, ``sam_checkpoint``, ``templates``, ``depth``, ``image_size``, ``scales``,
                ``text_cache``, ``progress``.

        Raises:
            InputError: the preset or an option is unknown.
            WeightsError: a checkpoint is missing, cannot be downloaded, or does not fit.
        """
        from text2sam.zoo.presets import build

        known = [name for name in inspect.signature(build).parameters if name != "preset"]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise InputError(f"there is no option {unknown[0]!r}; the options are {', '.join(known)}")
        return cls(*build(preset, **options))

    def set_image(
        self,
        image: ImageLike,
        *,
        methods: Sequence[Method] | None = None,
        tiles: Tiles = False,
        channel_order: ChannelOrder = "RGB",
    ) -> None:
        """Encodes an image and keeps it, so that ``segment(text=...)`` costs no encoding.

        Args:
            image: path, PIL image, (H, W[, C]) array or (C, H, W) tensor; see :func:`text2sam.image.read_image`.
            methods: what ``method`` will be asked for, see :meth:`ClipSurgery.encode_image`.
            tiles: for pictures far larger than CLIP's input, see :meth:`ClipSurgery.encode_image`.
            channel_order: ``"BGR"`` for arrays in OpenCV's order.

        Raises:
            ImageError: the image cannot be read; the image set before stays.
            InputError: ``methods`` or ``tiles`` is not usable.
        """
        encoded = self._encode(read_image(image, channel_order=channel_order), tiles, methods)
        self._sam_state(encoded)
        self._set = encoded

    def encode(
        self,
        images: Sequence[ImageLike],
        *,
        sam: bool = False,
        methods: Sequence[Method] | None = None,
        tiles: Tiles = False,
        channel_order: ChannelOrder = "RGB",
    ) -> list[EncodedImage]:
        """Encodes images, to be given to :meth:`segment` and :meth:`segment_many` in their place, any number of times.

        Args:
            images: as for :meth:`set_image`; CLIP encodes them as one batch.
            sam: also run SAM's image encoder now (as one batch on a GPU), not when the first text needs it.
            methods, tiles: as for :meth:`set_image`; tiled images are encoded one by one.
            channel_order: ``"BGR"`` for arrays in OpenCV's order.

        Raises:
            ImageError: an image cannot be read; it is named by its position, before anything is computed.
            InputError: ``methods`` or ``tiles`` is not usable, or ``images`` is a single one.
        """
        if is_single(images):
            raise InputError("images must be a sequence of images; for one image pass [image]")
        read = _read_all(images, channel_order)
        if tiles is False:
            features = self.generator.encode_images(read, methods=methods)
            encoded = [EncodedImage(*pair) for pair in zip(read, features, strict=True)]
        else:
            encoded = [self._encode(pixels, tiles, methods) for pixels in read]
        if sam:
            self._in_predictor = None
            for one, state in zip(encoded, encode_states(self.predictor, read), strict=True):
                one.sam = state
        return encoded

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
        image: ImageLike | EncodedImage | None = None,
        text: Target = "",
        *,
        against: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        threshold: Thresholds = None,
        strategy: str | Strategy = DEFAULT,
        method: Method = "surgery",
        zoom: Zoom = "auto",
        tiles: Tiles = False,
        channel_order: ChannelOrder = "RGB",
    ) -> Segmentation:
        """Segments everything in an image that a text names.

        Args:
            image: as for :meth:`set_image`, or what :meth:`encode` made of it; None takes the image set there. An image
                given here does not replace the one set.
            text: what to look for; ``"person+bench"`` or ``["person", "bench"]`` is one target of two things,
                ``{"car": ["car", "automobile"]}`` one thing with two words for it, called by its key.
            against: the label set for feature surgery: what else may be in the image. None subtracts the
                empty text instead, as the papers do for a single text.
            exclude: texts whose places are to be avoided: no positive point lies on what they find, negative points may,
                and the mask leaves it out.
            threshold: from which presence score on the text counts as present; None takes ``presence_threshold``.
            strategy: the recipe for points and mask, by name or your own. ``"objects"`` finds every object of the text,
                and nothing for a text that is not there; ``"paper"`` is the papers' recipe, which always proposes a mask,
                also for an absent text: read ``present``.
            method: how the map is made, see :meth:`ClipSurgery.maps`.
            zoom: ``"auto"`` looks at a small object again in a crop around it, by CLIP and by SAM, and keeps what comes
                out when it agrees better with the map (only recipes for several objects); False never does.
            tiles: for pictures far larger than CLIP's input, see :meth:`ClipSurgery.encode_image`. The image set
                by :meth:`set_image` stays as it was encoded there.
            channel_order: ``"BGR"`` for arrays in OpenCV's order.

        Returns:
            The union of all objects, in ``objects`` one result for each.

        Raises:
            ImageError, PromptError, InputError: an argument is not usable, or contradicts another.
            StateError: no image was given and none is set.
        """
        return self.segment_many(
            image,
            [text],
            against=against,
            exclude=exclude,
            threshold=threshold,
            strategy=strategy,
            method=method,
            zoom=zoom,
            tiles=tiles,
            channel_order=channel_order,
        )[0]

    def segment_instances(
        self, image: ImageLike | EncodedImage | None = None, text: Target = "", **options: Any
    ) -> list[Segmentation]:
        """One result per object that a text names in an image.

        Args:
            image, text: as for :meth:`segment`.
            **options: the other arguments of :meth:`segment`.

        Returns:
            Results with mask, box, score and area of one object each, highest score first; none when the text is
            not there. ``strategy="paper"`` makes one mask of all, which is then the only result. Errors are those of
            :meth:`segment`.
        """
        return list(self.segment(image, text, **options).instances)

    def segment_many(
        self,
        image: ImageLike | EncodedImage | None,
        texts: Texts,
        *,
        against: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        threshold: Thresholds = None,
        strategy: str | Strategy = DEFAULT,
        method: Method = "surgery",
        zoom: Zoom = "auto",
        tiles: Tiles = False,
        channel_order: ChannelOrder = "RGB",
    ) -> list[Segmentation]:
        """Segments several texts in one image, which is encoded once.

        Each text is taken by itself: what else is asked for in the same call changes nothing, unless it is
        named in ``against`` or ``exclude``.

        Args:
            image: as for :meth:`segment`.
            texts: targets; or a mapping from names to synonyms, one target per name.
            threshold: one presence threshold for all texts, or a mapping from texts (names) to theirs.
            against, exclude, strategy, method, zoom, tiles, channel_order: as for :meth:`segment`.

        Returns:
            One result per text, in order. Errors are those of :meth:`segment`.
        """
        queries = parse_targets(texts)
        how, limits = self._how(queries, against, exclude, threshold, strategy, method, zoom)
        if image is None:
            if self._set is None:
                raise StateError("no image is set: pass one, or call set_image first")
            self._prepare(queries, how)
            encoded = self._set
        elif isinstance(image, EncodedImage):
            self._prepare(queries, how)
            encoded = image
        else:
            pixels = read_image(image, channel_order=channel_order)
            self._prepare(queries, how)  # a bad text costs no encoding
            encoded = self._encode(pixels, tiles, [method])
        return self._segment_all(encoded, queries, how, limits)

    def segment_batch(
        self,
        images: Sequence[ImageLike],
        texts: Texts,
        *,
        against: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        threshold: Thresholds = None,
        strategy: str | Strategy = DEFAULT,
        method: Method = "surgery",
        zoom: Zoom = "auto",
        tiles: Tiles = False,
        channel_order: ChannelOrder = "RGB",
        batch_size: int = 8,
    ) -> list[list[Segmentation]]:
        """Segments every text in every image; CLIP encodes ``batch_size`` images at once.

        Returns:
            For each image the results of all texts, in order. Arguments and errors are those of
            :meth:`segment_many`; an image that cannot be read is named by its position, before anything is computed.
        """
        if isinstance(texts, str) or is_single(images):
            raise InputError("images and texts must be sequences; for one image and text call segment")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size!r}")
        queries = parse_targets(texts)
        how, limits = self._how(queries, against, exclude, threshold, strategy, method, zoom)
        read = _read_all(images, channel_order)
        self._prepare(queries, how)
        results = []
        for start in range(0, len(read), batch_size):
            for encoded in self.encode(read[start : start + batch_size], methods=[method], tiles=tiles):
                results.append(self._segment_all(encoded, queries, how, limits))
        return results

    def calibrate(
        self,
        images: Sequence[ImageLike],
        texts: Sequence[Target],
        present: Sequence[bool],
        *,
        against: Sequence[str] | None = None,
        false_cost: float = 1.0,
        channel_order: ChannelOrder = "RGB",
    ) -> Calibration:
        """Fits the presence threshold to examples, and takes it over as ``presence_threshold``.

        Args:
            images: one image per example; one that follows itself is encoded once.
            texts: one text per example.
            present: whether the text is in the image; there must be examples of both.
            against: as later for :meth:`segment`.
            false_cost: what an absent text called present costs, in units of a present one missed.
            channel_order: ``"BGR"`` for arrays in OpenCV's order.

        Returns:
            The threshold and how it does on the examples; ``save`` it, and :meth:`use` it later.

        Raises:
            InputError: there is not one text and one answer per image, or one of the two answers is missing.
            ImageError, PromptError: an example is not usable; it is named by its position, and the threshold stays.
        """
        images, present = list(images), [bool(p) for p in present]
        if isinstance(texts, str) or not len(images) == len(texts) == len(present):
            raise InputError(
                "calibrate takes one image, one text and one answer per example, "
                f"not {len(images)}, {repr(texts) if isinstance(texts, str) else len(texts)} and {len(present)}"
            )
        scores: list[float] = []
        features: ImageFeatures | None = None
        for position, (image, text) in enumerate(zip(images, texts, strict=True)):
            try:
                query = parse_target(text)
                if features is None or image is not images[position - 1]:
                    features = self.generator.encode_image(read_image(image, channel_order=channel_order))
                scores.append(self._presence(features, query, against))
            except Text2SamError as error:
                raise type(error)(f"example {position} of {len(images)}: {error}") from error
        calibration = replace(
            fit_threshold(np.array(scores), np.array(present, bool), false_cost=false_cost), model=self.generator.fingerprint()
        )
        self.presence_threshold = calibration.threshold
        return calibration

    def use(self, calibration: Calibration | str | Path) -> None:
        """Takes over the threshold of a calibration, or of a file that holds one.

        Raises:
            InputError: the file is no calibration, or the calibration belongs to another CLIP or other settings of it.
        """
        if not isinstance(calibration, Calibration):
            calibration = Calibration.load(calibration)
        if calibration.model and calibration.model != self.generator.fingerprint():
            raise InputError(
                f"the calibration was made with another CLIP or other settings of it (model {calibration.model}, "
                f"here {self.generator.fingerprint()}); calibrate this one, or set presence_threshold yourself"
            )
        self.presence_threshold = calibration.threshold

    def _how(
        self,
        queries: Sequence[Query],
        against: Sequence[str] | None,
        exclude: Sequence[str] | None,
        threshold: Thresholds,
        strategy: str | Strategy,
        method: Method,
        zoom: Zoom,
    ) -> tuple[_How, list[float]]:
        if zoom not in ("auto", False) or (isinstance(zoom, int) and zoom is not False):
            raise InputError(f"zoom must be 'auto' or False, not {zoom!r}")
        limits = thresholds_of(threshold, queries, self.presence_threshold)
        return _How(get_strategy(strategy), against, method, check_exclude(exclude, queries), zoom), limits

    def _encode(self, pixels: NDArray[np.uint8], tiles: Tiles = False, methods: Sequence[Method] | None = None) -> EncodedImage:
        return EncodedImage(pixels, self.generator.encode_image(pixels, methods=methods, tiles=tiles))

    def _prepare(self, queries: Sequence[Query], how: _How) -> None:
        texts = [text for query in queries for text in query.texts]
        self.generator.prepare(texts, against=how.against, method=how.method)
        if how.exclude:
            self.generator.prepare(how.exclude, against=_for_excluded(how, queries).against, method=how.method)

    def _sam_state(self, encoded: EncodedImage) -> None:
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

    def _presence(self, features: ImageFeatures, query: Query, against: Sequence[str] | None) -> float:
        scores = [self.generator.presence(features, text, against=against) for text in query.texts]
        return max(scores) if query.synonyms else min(scores)

    def _maps(self, features: ImageFeatures, query: Query, how: _How) -> list[SimilarityMap]:
        maps = self.generator.maps(
            features, query.texts, against=how.against, method=how.method, vocabulary=how.recipe.vocabulary
        )
        return [mean_map(maps, query.label)] if query.synonyms else maps

    def _segment_all(
        self, encoded: EncodedImage, queries: Sequence[Query], how: _How, limits: Sequence[float]
    ) -> list[Segmentation]:
        avoid = self._avoid(encoded, _for_excluded(how, queries)) if queries else _Avoid()
        return [self._segment(encoded, query, how, avoid, limit) for query, limit in zip(queries, limits, strict=True)]

    def _avoid(self, encoded: EncodedImage, how: _How) -> _Avoid:
        """Where the excluded texts are, as far as they are there at all."""
        masks, coords = [], []
        for text in how.exclude:
            query = Query(text, (text,))
            if self._presence(encoded.features, query, how.against) < self.presence_threshold:
                continue
            for one in self._objects(encoded, query, self._maps(encoded.features, query, how), how, _Avoid()):
                masks.append(one.mask)
                coords.append(one.points.positive)
        return _Avoid(np.logical_or.reduce(masks), np.concatenate(coords)) if masks else _Avoid()

    def _segment(self, encoded: EncodedImage, query: Query, how: _How, avoid: _Avoid, threshold: float) -> Segmentation:
        maps = self._maps(encoded.features, query, how)
        presence = self._presence(encoded.features, query, how.against)
        wanted = presence >= threshold or how.recipe.answers_absent
        found = self._objects(encoded, query, maps, how, avoid) if wanted else []

        # an answer that may be "not here" is only as good as the chance that it is there
        sure = 1.0 if how.recipe.answers_absent else presence

        def result(parts: Sequence[_Found], objects: tuple[Segmentation, ...] = ()) -> Segmentation:
            mask = np.logical_or.reduce([p.mask for p in parts]) if parts else np.zeros(encoded.shape, bool)
            return Segmentation(
                mask=mask,
                score=parts[0].score * sure if parts else 0.0,
                box=box_of(mask),
                points=_all_points([p.points for p in parts]),
                similarity=joint_map(maps) if len(parts) != 1 else parts[0].similarity,
                candidates=parts[0].candidates if parts else None,
                text=query.label,
                present=presence >= threshold and bool(mask.any()),
                presence=presence,
                strategy=how.recipe.name,
                threshold=threshold,
                objects=objects,
                zoomed=parts[0].zoomed if len(parts) == 1 else None,
                looked_for=() if query.plain else query.texts,
                excluded=how.exclude,
            )

        if how.recipe.objects == 1:
            return result(found)
        return result(found, tuple(result([one]) for one in found))

    def _objects(
        self, encoded: EncodedImage, query: Query, maps: Sequence[SimilarityMap], how: _How, avoid: _Avoid
    ) -> list[_Found]:
        """The objects of a target, highest score first."""
        recipe = how.recipe
        if recipe.objects == 1:
            points = _avoiding(recipe.points(maps, encoded.shape, ()), avoid)
            return [_without(self._object(encoded, maps, points, how, avoid), avoid)] if len(points.positive) else []
        everything: list[_Found] = []
        for similarity, text in zip(maps, [query.label] if query.synonyms else query.texts, strict=True):
            words = query.texts if query.synonyms else (text,)
            found = _supported(self._search(encoded, similarity, how, avoid), recipe.support)
            found = self._fitting(encoded.features, found, words, recipe)
            if how.zoom:
                found = [self._zoomed(encoded, one, Query(query.label, words, query.synonyms), how, avoid) for one in found]
            everything += found
        rest = [_without(one, avoid) for one in everything]
        rest = [new for new, old in zip(rest, everything, strict=True) if 2 * new.mask.sum() > old.mask.sum()]
        return [rest[k] for k in distinct([one.mask for one in rest], [one.score for one in rest])]

    def _fitting(self, features: ImageFeatures, found: list[_Found], texts: Sequence[str], recipe: Strategy) -> list[_Found]:
        """The objects that another name of the vocabulary does not fit far better than it fits the best of them."""
        if not (recipe.vocabulary and self.generator.vocabulary and len(found) > 1 and np.isfinite(recipe.margin)):
            return found
        shares = patch_shares(np.stack([one.mask for one in found]), features.grid)
        odds = [
            max(self.generator.region_odds(features, text, share) for text in texts) if share.any() else -np.inf
            for share in shares
        ]
        return [one for one, value in zip(found, odds, strict=True) if value >= max(odds) - recipe.margin]

    def _search(self, encoded: EncodedImage, similarity: SimilarityMap, how: _How, avoid: _Avoid) -> list[_Found]:
        """One object after the other, until the recipe's points end."""
        recipe, shape = how.recipe, encoded.shape
        found: list[_Found] = []
        asked: set[bytes] = set()
        tried = [] if avoid.mask is None else [avoid.mask]
        for _ in range(3 * recipe.objects):  # a rule need not heed what was tried
            points = recipe.points([similarity], shape, tried)
            if len(found) == recipe.objects or not len(points.positive):  # a flat map points nowhere
                break
            # a point comes again where its peak lies in the patch beside it; SAM would answer as before
            again = points.coords.tobytes() in asked
            asked.add(points.coords.tobytes())
            tried.append(_patch_at(points.positive[0], similarity.values.shape, shape, reach=int(again)))
            points = _avoiding(points, avoid)
            if again or not len(points):
                continue
            found.append(self._object(encoded, [similarity], points, how, avoid))
            tried[-1] |= found[-1].mask
        return found

    def _object(
        self, encoded: EncodedImage, maps: Sequence[SimilarityMap], points: PointPrompts, how: _How, avoid: _Avoid
    ) -> _Found:
        """What SAM answers to points, chosen and refined by the recipe."""
        recipe, shape = how.recipe, encoded.shape
        similarity = joint_map(maps)
        self._sam_state(encoded)
        masks, scores, logits = predict_points(self.predictor, points, shape=shape)
        choice = recipe.choose(masks, scores, similarity, points, logits)
        asked, judged = points, points
        for _ in range(recipe.rounds):
            first = Candidates(masks, scores, logits, choice.index, choice.reason, choice.figures).chosen
            more = _avoiding(corrective_points(similarity, masks[first], asked), avoid)
            again = predict_points(self.predictor, more, multimask_output=False, mask_input=logits[first][None], shape=shape)
            masks, scores, logits = (
                np.concatenate([masks, again[0]]),
                np.concatenate([scores, again[1]]),
                np.concatenate([logits, again[2]]),
            )
            # all rounds are judged by the first points: a mask must not win by the points made for it
            choice = recipe.choose(masks, scores, similarity, judged, logits)
            if choice.index == first:
                break
            asked = more
        candidates = Candidates(masks, scores, logits, choice.index, choice.reason, choice.figures)
        return _Found(asked, candidates, masks[choice.index], _score(candidates), similarity)

    def _zoomed(self, encoded: EncodedImage, one: _Found, query: Query, how: _How, avoid: _Avoid) -> _Found:
        """A small object looked at again in a crop around it, where that agrees better with the crop's map; else itself."""
        crop = zoom_box(one.mask, encoded.shape)
        if crop is None:
            return one
        left, top, right, bottom = crop
        closer = self._encode(np.ascontiguousarray(encoded.image[top:bottom, left:right]), methods=[how.method])
        old = one.mask[top:bottom, left:right]
        avoid = _cropped(avoid, crop)
        elsewhere = [~_around(old), *([] if avoid.mask is None else [avoid.mask])]
        maps = [joint_map(self._maps(closer.features, query, how))]
        points = _avoiding(how.recipe.points(maps, closer.shape, elsewhere), avoid)
        if not len(points.positive):
            return one
        # no rounds in the crop: an object may cost two calls more than the papers' one
        new = self._object(closer, maps, points, replace(how, recipe=replace(how.recipe, rounds=0)), avoid)
        kept = one.candidates
        before = how.recipe.choose(old[None], kept.scores[[kept.chosen]], maps[0], points, kept.low_res_logits[[kept.chosen]])
        if not new.score > float(before.figures.get("total", kept.scores[[kept.chosen]])[0]):
            return one

        def placed(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
            out = np.zeros((*masks.shape[:-2], *encoded.shape), bool)
            out[..., top:bottom, left:right] = masks
            return out

        return _Found(
            PointPrompts(new.points.coords + np.array([left, top], np.float32), new.points.labels),
            replace(new.candidates, masks=placed(new.candidates.masks)),
            placed(new.mask),
            new.score,
            one.similarity,
            np.array(crop, np.float32),
        )


def _read_all(images: Iterable[ImageLike], channel_order: ChannelOrder) -> list[NDArray[np.uint8]]:
    """Images as pixels; an error names the position."""
    images, read = list(images), []
    for position, image in enumerate(images):
        try:
            read.append(read_image(image, channel_order=channel_order))
        except ImageError as error:
            raise ImageError(f"image {position} of {len(images)}: {error}") from error
    return read


def zoom_box(mask: NDArray[np.bool_], shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The crop in which a small object is looked at again.

    Args:
        mask: (H, W) bool.
        shape: (H, W) of the image in pixels.

    Returns:
        xyxy in whole pixels, right and lower edge exclusive: a square of :data:`ZOOM_MARGIN` times the mask's longer side
        around the mask, pushed into the image; None where the mask is empty, is not small (:data:`ZOOM_BELOW`), or the
        square does not fit.
    """
    box = box_of(mask)
    if box is None:
        return None
    x0, y0, x1, y1 = (int(v) for v in box)
    side = max(x1 - x0, y1 - y0)
    if side >= ZOOM_BELOW * max(shape):
        return None
    wide = max(round(ZOOM_MARGIN * side), 16)
    h, w = shape
    if wide > min(h, w):
        return None
    left = min(max((x0 + x1 - wide) // 2, 0), w - wide)
    top = min(max((y0 + y1 - wide) // 2, 0), h - wide)
    return left, top, left + wide, top + wide


def _around(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W) bool: the mask's box with half its longer side on every side."""
    box = box_of(mask)
    out = np.zeros(mask.shape, bool)
    if box is not None:
        x0, y0, x1, y1 = (int(v) for v in box)
        edge = max(x1 - x0, y1 - y0) // 2
        out[max(0, y0 - edge) : y1 + edge, max(0, x0 - edge) : x1 + edge] = True
    return out


def _for_excluded(how: _How, queries: Sequence[Query]) -> _How:
    """How excluded texts are found: a label set also holds what is looked for, or an excluded text might stand alone in it."""
    if how.against is None:
        return how
    return replace(how, against=[*how.against, *(text for query in queries for text in query.texts)])


def _score(candidates: Candidates) -> float:
    return float(candidates.figures.get("total", candidates.scores)[candidates.chosen])


def _supported(found: Sequence[_Found], support: float) -> list[_Found]:
    """The objects at which the map stands out enough, compared with the one where it does most."""
    contrasts = [one.candidates.figures.get("contrast") for one in found]
    values = [1.0 if c is None else float(c[one.candidates.chosen]) for c, one in zip(contrasts, found, strict=True)]
    best = max(values, default=0.0)
    least = support * best if best > 0 else best  # where nothing stands out, the one that does least badly stays
    return [one for one, value in zip(found, values, strict=True) if value >= least]


def _without(one: _Found, avoid: _Avoid) -> _Found:
    return one if avoid.mask is None else replace(one, mask=one.mask & ~avoid.mask)


def _cropped(avoid: _Avoid, crop: tuple[int, int, int, int]) -> _Avoid:
    if avoid.mask is None:
        return avoid
    left, top, right, bottom = crop
    inside = ((avoid.coords >= (left, top)) & (avoid.coords < (right, bottom))).all(1)
    return _Avoid(avoid.mask[top:bottom, left:right], avoid.coords[inside] - np.array([left, top], np.float32))


def _avoiding(points: PointPrompts, avoid: _Avoid) -> PointPrompts:
    """Points without positive ones on what is to be avoided, and with negative ones there."""
    if avoid.mask is None or not len(points):
        return points
    keep = (points.labels == 0) | ~avoid.mask[pixels_under(points.coords, avoid.mask.shape)]
    coords, labels = points.coords[keep], points.labels[keep]
    if not (labels == 1).any():
        return PointPrompts.empty()
    new = np.array([c for c in avoid.coords if not (coords == c).all(1).any()], np.float32).reshape(-1, 2)
    return PointPrompts(np.concatenate([coords, new]), np.concatenate([labels, np.zeros(len(new), np.uint8)]))


def _all_points(points: Sequence[PointPrompts]) -> PointPrompts:
    if not points:
        return PointPrompts.empty()
    return PointPrompts(np.concatenate([p.coords for p in points]), np.concatenate([p.labels for p in points]))


def _patch_at(
    point: NDArray[np.float32], grid: tuple[int, ...], shape: tuple[int, int], *, reach: int = 0
) -> NDArray[np.bool_]:
    """(H, W) bool: the patch a point lies in, which SAM's answer need not cover, and ``reach`` patches around it."""
    (gh, gw), (h, w) = grid, shape
    row, column = patch_of(point, shape, (gh, gw))
    top, left = max(row - reach, 0) * h // gh, max(column - reach, 0) * w // gw
    out = np.zeros(shape, bool)
    out[top : -(-(row + 1 + reach) * h // gh), left : -(-(column + 1 + reach) * w // gw)] = True
    return out
