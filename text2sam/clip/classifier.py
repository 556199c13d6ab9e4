"""WordClassifier: an image classifier, read as a CLIP that knows words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from text2sam.checks import check_number
from text2sam.clip.attention import check_method
from text2sam.clip.labels import check_request, without
from text2sam.clip.pixels import MAX_SIDE, cutout, normalise, per_channel, resize, whole_patches
from text2sam.clip.scales import check_scales
from text2sam.clip.towers.base import evaluating, exact
from text2sam.clip.towers.cnn import PooledCNN
from text2sam.clip.words import Meaning, WordTable
from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError, UnsupportedModelError
from text2sam.fingerprint import fingerprint
from text2sam.image import ImageLike, check_several, read_image
from text2sam.types import SimilarityMap, bilinear

PLACES = 64
"""Places of a map along the longer side of the image, as many as SAM's embedding has."""

RIVALRY = 0.25
"""Share of the best of ``against`` that is taken off a map, where that is above 0."""

CUTOUT = 224
"""Side in pixels at which what a mask cuts out is classified."""

_VAGUE = 300
"""A word for this many classes or more names no kind of thing."""


@dataclass(frozen=True, eq=False)
class PlaceFeatures:
    """What a :class:`WordClassifier` knows of one image.

    Attributes:
        tokens: for each size, (C, gh, gw) float32: the feature map that the classifier averages.
        shape: (H, W) of the image in pixels.
    """

    tokens: tuple[torch.Tensor, ...]
    shape: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """(gh, gw) of the maps: :data:`PLACES` for the longer side."""
        height, width = (max(1, round(PLACES * side / max(self.shape))) for side in self.shape)
        return height, width


class WordClassifier:
    """Similarity maps from an image classifier and a table of words; a :class:`~text2sam.clip.protocol.MapGenerator`.

    A word stands for the classes that are kinds of it. Each class is a vector: its row of the linear head, the mean row
    subtracted, L2-normalised. A place's similarity to a word is the largest dot product of its token with one of the word's
    vectors. The token's length stays in it, since a classifier's tokens are long where it is sure. Learned vectors
    (:mod:`text2sam.lab.photo`) are added to a word's vectors, or stand for it alone.

    Args:
        model: a classifier of timm with average pooling and a linear head; moved to ``device`` in place.
        words: the words, whose classes are rows of the head.
        learned: (L, C) float32, the vectors of the table's learned entries, or None.
        offsets: (L,) float32, subtracted from the similarity of a word with a learned vector.
        image_size: longer side in pixels of what the classifier sees; the sides keep their ratio.
        scales: shares of ``image_size``; the mean of their maps is taken.
        presence_offset, presence_slope, presence_crowd: presence is ``sigmoid(presence_offset + presence_slope * h)``, with
            ``h = s - presence_crowd * log(V)`` for the similarity s of the hottest place and a word of V vectors, of which
            the best is the better by chance the more there are.
        mean, std: normalisation of pixels, RGB, for values in [0, 1]; the model's own by default.
        device: None takes cuda, then mps, then cpu.
        dtype: floating point type of the model; None is float32.

    Raises:
        UnsupportedModelError: the model is of another kind.
        InputError: an argument is out of range, or the words or the learned vectors do not fit the model.
    """

    def __init__(
        self,
        model: Any,
        words: WordTable,
        *,
        learned: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        image_size: int = 704,
        scales: Sequence[float] = (1.0,),
        presence_offset: float = 0.0,
        presence_slope: float = 1.0,
        presence_crowd: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.tower = PooledCNN(model)
        self.words = words
        self.image_size = int(check_number("image_size", image_size, 1, MAX_SIDE, whole=True))
        self.scales = check_scales(scales)
        self.presence_offset = check_number("presence_offset", presence_offset)
        self.presence_slope = check_number("presence_slope", presence_slope, 0)
        self.presence_crowd = check_number("presence_crowd", presence_crowd, 0)
        self.mean = per_channel("mean", mean if mean is not None else self.tower.mean or ())
        self.std = per_channel("std", std if std is not None else self.tower.std or ())
        self.device = pick_device(device)
        self.model = model.to(self.device, check_dtype(dtype, self.device)).eval()
        head = self.tower.weight.detach().float()
        self._rows = F.normalize(head - head.mean(dim=0), dim=1)  # (K, C)
        self.learned = head.new_zeros((0, head.shape[1])) if learned is None else learned.to(head)
        self.offsets = head.new_zeros(len(self.learned)) if offsets is None else offsets.to(head)
        if self.learned.shape[1:] != head.shape[1:] or self.offsets.shape != self.learned.shape[:1]:
            raise InputError(
                f"learned must be (L, {head.shape[1]}) and offsets (L,), not {tuple(self.learned.shape)} and "
                f"{tuple(self.offsets.shape)}"
            )
        senses = [meaning for word in words for meaning in words.senses(word)]
        classes = {i for meaning in senses for i in meaning.classes}
        vectors = {meaning.learned for meaning in senses if meaning.learned is not None}
        for what, used, there in (("classes", classes, len(head)), ("learned vectors", vectors, len(self.learned))):
            if not used <= set(range(there)):
                raise InputError(f"the words need {what} up to {max(used)} from 0, the model has {there}")

    def encode(
        self, images: Sequence[ImageLike], *, methods: Sequence[str] | None = None, tiles: object = False
    ) -> list[PlaceFeatures]:
        """Features of images, one by one, since each keeps its shape.

        Args:
            images: anything :func:`text2sam.image.read_image` accepts.
            methods: ``"surgery"`` alone, which stands for the one way this model has.
            tiles: False alone; for small things give larger ``scales``.

        Raises:
            ImageError: an image cannot be read.
            InputError: ``images`` is a single image.
            UnsupportedModelError: another method, or tiles, are asked for.
        """
        check_several(images)
        for method in methods or ():
            _check_method(method)
        if tiles is not False:
            raise UnsupportedModelError(
                f"a word classifier makes no tiles (tiles={tiles!r}): give larger scales=, such as (1, 2) (--scales 1,2), at "
                "which it sees the whole image"
            )
        return [self._encoded(read_image(image)) for image in images]

    def maps(
        self, features: PlaceFeatures, texts: Sequence[str], *, against: Sequence[str] | None = None, method: str = "surgery"
    ) -> list[SimilarityMap]:
        """Similarity maps from an image's features.

        Args:
            features: from :meth:`encode`.
            texts: T texts. Each is taken by itself: which others are asked for in the same call changes nothing.
            against: names of what else the image may show; where one of them is similar to a place, :data:`RIVALRY` of that
                is taken off.
            method: ``"surgery"``, which stands for the one way this model has.

        Returns:
            T maps whose ``values`` are (gh, gw) float32 dot products, gh and gw those of :attr:`PlaceFeatures.grid`.

        Raises:
            PromptError: a text is empty, or is no word of the table.
            InputError: ``against`` is empty or names nothing but the text.
            UnsupportedModelError: another method is asked for.
        """
        wanted, labels = self._request(texts, against, method)
        known: dict[Meaning, torch.Tensor] = {}
        for meaning in [*wanted.values(), *labels]:
            if meaning not in known:
                known[meaning] = self._similarity(features, meaning)
        found = []
        for text in texts:
            meaning = wanted[text]
            values, rivals = known[meaning], [known[label] for label in labels if label != meaning]
            if rivals:
                values = values - RIVALRY * torch.stack(rivals).amax(dim=0).clamp(min=0)
            found.append(SimilarityMap(values.cpu().numpy(), text.strip(), method))
        return found

    def prepare(self, texts: Sequence[str], *, against: Sequence[str] | None = None, method: str = "surgery") -> None:
        """Raises what :meth:`maps` would raise for texts, ahead of an image."""
        self._request(texts, against, method)

    def presence(self, features: PlaceFeatures, text: str, *, against: Sequence[str] | None = None) -> float:
        """Whether a text is in the image at all, as a score in [0, 1]: a sigmoid of its map's hottest place.

        Raises:
            PromptError, InputError: as :meth:`maps`.
        """
        logit = self.presence_offset + self.presence_slope * self.hottest(features, text, against=against)
        return float(1 / (1 + np.exp(-logit)))

    def hottest(self, features: PlaceFeatures, text: str, *, against: Sequence[str] | None = None) -> float:
        """The similarity of the hottest place to a text, less what many vectors reach by chance; raises as :meth:`maps`."""
        [found] = self.maps(features, [text], against=against)
        vectors = max(1, len(self.words.meaning(text).classes))
        return float(found.values.max()) - self.presence_crowd * float(np.log(vectors))

    def likeness(
        self, image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]], texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """How much what each mask cuts out (:func:`~text2sam.clip.pixels.cutout`) looks like a text.

        It is ``sigmoid((s - 3) / 2)`` for the similarity s of the whole cutout to the most similar of the texts. The numbers
        were chosen on tuning photos.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: M masks (h, w) bool over the image, at any size.
            texts: words for one thing.

        Returns:
            (M,) float32 in [0, 1]; 0 for an empty mask.

        Raises:
            PromptError: a text is empty, or is no word of the table.
        """
        words = [self._vectors(meaning) for meaning in {self.words.meaning(text) for text in texts}]
        pooled = torch.from_numpy(self.cutouts(image, masks)).to(self.device)
        with exact(self.device):
            similar = torch.stack([(pooled @ vectors.T).amax(dim=1) - offset for vectors, offset in words]).amax(dim=0)
        shares = torch.sigmoid((similar - 3) / 2).cpu().numpy()
        found: NDArray[np.float32] = np.where([mask.any() for mask in masks], shares, np.float32(0))
        return found

    def cutouts(self, image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
        """What each mask cuts out (:func:`~text2sam.clip.pixels.cutout`), as the classifier knows it.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: M masks (h, w) bool over the image, at any size.

        Returns:
            (M, C) float32, the mean token of each cutout; the cosine of two says how alike they look. 0 for an empty mask.
        """
        pooled = np.zeros((len(masks), self._rows.shape[1]), np.float32)
        there = [k for k, mask in enumerate(masks) if mask.any()]
        if there:
            squares = [normalise(cutout(image, masks[k], CUTOUT), self.mean, self.std) for k in there]
            with exact(self.device), evaluating(self.tower.module):
                tokens = self.tower.features(torch.cat(squares).to(self.device, self.tower.weight.dtype))
            pooled[there] = tokens.float().mean((2, 3)).cpu().numpy()
        return pooled

    def hint(self, text: str) -> str | None:
        """Advice about a word that stands for a wider one, or is too general; None for others."""
        meaning = self.words.meaning(text)
        if meaning.wider is not None:
            return f"{text!r} is looked for as {meaning.wider!r}, which this model cannot distinguish from it"
        count = len(meaning.classes)
        if count < _VAGUE:
            return None
        return f"{text!r} stands for {count} kinds of things at once; a word for one kind is found better"

    def sense(self, text: str) -> Meaning:
        """What a text stands for; texts of equal sense have equal results.

        Raises:
            PromptError: the text is empty, or is no word of the table.
        """
        return self.words.meaning(text)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for everything a presence score depends on: weights, words and settings."""
        digest = hashlib.sha256(fingerprint(self.model).encode())
        for tensor in (self.learned, self.offsets):
            digest.update(tensor.cpu().numpy().tobytes())
        meanings = [(word, self.words.senses(word)) for word in self.words]
        settings = (self.presence_offset, self.presence_slope, self.presence_crowd, PLACES, RIVALRY, *self.settings)
        digest.update(repr((meanings, settings)).encode())
        return digest.hexdigest()[:16]

    @property
    def settings(self) -> tuple[Any, ...]:
        """What an image's features depend on, besides the weights."""
        return self.image_size, self.scales, self.mean, self.std

    def pack(self, features: PlaceFeatures) -> dict[str, torch.Tensor]:
        """Features as named tensors, for files."""
        return {str(k): tokens for k, tokens in enumerate(features.tokens)}

    def unpack(self, tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> PlaceFeatures:
        """The features that :meth:`pack` made of an image of (H, W) pixels.

        Raises:
            ValueError: the tensors are not of this model.
        """
        tokens = tuple(tensors[str(k)] for k in range(len(self.scales)))
        if any(t.ndim != 3 or t.dtype != torch.float32 or len(t) != self._rows.shape[1] for t in tokens):
            raise ValueError("these are features of another model")
        return PlaceFeatures(tokens, shape)

    def _request(
        self, texts: Sequence[str], against: Sequence[str] | None, method: str
    ) -> tuple[dict[str, Meaning], list[Meaning]]:
        """The meanings of texts by text, and those of a label set."""
        _check_method(method)
        stripped, labels = check_request(texts, against, "surgery")
        meanings = {text: self.words.meaning(name) for text, name in zip(texts, stripped, strict=True)}
        rivals = [self.words.meaning(label) for label in labels or ()]
        for text, meaning in meanings.items():
            if labels is not None and all(rival == meaning for rival in rivals):
                others = without(text, labels)
                raise InputError(f"against={labels!r} names nothing but {text!r} itself ({others[0]!r} is another word for it)")
        return meanings, list(dict.fromkeys(rivals))

    def _encoded(self, image: np.ndarray[Any, np.dtype[np.uint8]]) -> PlaceFeatures:
        height, width = image.shape[:2]
        maps = []
        for scale in self.scales:
            size = whole_patches((height, width), self.tower.patch, scale * self.image_size / max(height, width))
            pixels = normalise(resize(image, size), self.mean, self.std).to(self.device, self.tower.weight.dtype)
            with exact(self.device), evaluating(self.tower.module):
                maps.append(self.tower.features(pixels)[0].float().contiguous())
        return PlaceFeatures(tuple(maps), (height, width))

    def _similarity(self, features: PlaceFeatures, meaning: Meaning) -> torch.Tensor:
        """(gh, gw) float32 on the grid of the features."""
        vectors, offset = self._vectors(meaning)
        with exact(self.device):
            sizes = []
            for tokens in features.tokens:
                best = (vectors @ tokens.flatten(1)).amax(dim=0).reshape(1, 1, *tokens.shape[1:]) - offset
                sizes.append(bilinear(best, features.grid))
            mean: torch.Tensor = torch.cat(sizes).mean(dim=(0, 1))
        return mean

    def _vectors(self, meaning: Meaning) -> tuple[torch.Tensor, torch.Tensor]:
        """(V, C) vectors of a meaning, and what is subtracted from their dot products."""
        rows = self._rows[list(meaning.classes)] if meaning.classes else self._rows.new_zeros((1, self._rows.shape[1]))
        if meaning.learned is None:
            return rows, rows.new_zeros(())
        return rows + self.learned[meaning.learned], self.offsets[meaning.learned]


def _check_method(method: str) -> None:
    if check_method(method) != "surgery":
        raise UnsupportedModelError(
            f"a word classifier has one way to make maps and no attention; leave the method {method!r} out"
        )
