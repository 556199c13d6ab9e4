"""Image-text explanation: which words of a text an image bears out, and where (CLIP Surgery, arXiv 2304.05653, multimodal
visualisation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.checks import check_number
from text2sam.clip.attention import check_method
from text2sam.clip.generator import ClipSurgery, ImageFeatures, Method
from text2sam.clip.towers.base import evaluating, exact
from text2sam.clip.towers.text import encode_token_features
from text2sam.errors import PromptError, UnsupportedModelError
from text2sam.image import ImageLike
from text2sam.pipeline import TextPromptedSAM
from text2sam.tasks._inputs import surgery_of
from text2sam.types import SimilarityMap

NEAREST = 3
"""Number of words given for each place, as in the paper's reference."""

_APART = 2  # patches between places


@dataclass(frozen=True, eq=False)
class Word:
    """A word of a text and its part in the match.

    Attributes:
        text: the word as the tokenizer has it, in lower case.
        tokens: its pieces, such as ``("sail", "boat")``.
        similarity: its map.
        carries: its part of the match: the cosine of image and text minus the cosine of image and the text without this
            word. Below 0 the text fits the image better without the word.
    """

    text: str
    tokens: tuple[str, ...]
    similarity: SimilarityMap
    carries: float


@dataclass(frozen=True)
class Place:
    """A patch that carries the match.

    Attributes:
        patch: (row, column).
        point: (x, y) of its centre in pixels of the image.
        value: of the whole text's map there.
        words: the nearest words as (index into the words of the text, similarity), most similar first.
    """

    patch: tuple[int, int]
    point: tuple[float, float]
    value: float
    words: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False, repr=False)
class TextExplanation:
    """Which words and which places carry the match of an image and a text; :func:`text2sam.plot.words` draws it.

    Attributes:
        text: the text.
        words: its words in order; a word that occurs twice is there twice.
        similarity: the map of the whole text.
        places: the places with the highest values of that map, the highest first.
        nearest: (gh, gw, k) intp, the k words nearest to each patch as indices into ``words``, the nearest first; k is 3, or
            the number of words where there are fewer.
        score: cosine in [-1, 1] of the image and the text: plain CLIP's, without a prompt template.
        method: of the maps.
        shape: (H, W) of the image in pixels.
    """

    text: str
    words: tuple[Word, ...]
    similarity: SimilarityMap
    places: tuple[Place, ...]
    nearest: NDArray[np.intp]
    score: float
    method: str
    shape: tuple[int, int]

    def __repr__(self) -> str:
        words = ", ".join(f"{word.text} {word.carries:+.3f}" for word in self.words)
        return f"<TextExplanation {self.text!r}: score {self.score:.3f}, carried by {words}>"

    @property
    def shares(self) -> NDArray[np.float32]:
        """(W,) float32 in [0, 1]: each word's part of the sum of all positive ``carries``."""
        carried = np.maximum([word.carries for word in self.words], 0.0)
        total = carried.sum()
        return (carried / total if total > 0 else carried).astype(np.float32)

    def ranked(self) -> list[tuple[str, float]]:
        """(word, its ``carries``), the highest first."""
        order = np.argsort([-word.carries for word in self.words], kind="stable")
        return [(self.words[i].text, self.words[i].carries) for i in order]

    def to_json(self) -> dict[str, Any]:
        """Everything in JSON's types.

        Returns:
            ``text``, ``method``, ``score``, ``shape`` ([H, W]), ``grid`` ([gh, gw]); ``words``: for each ``text``,
            ``tokens``, ``carries``, ``share``, ``peak`` ([x, y] in pixels), ``map`` (gh lists of gw numbers); ``map`` of the
            whole text likewise; ``places``: for each ``patch`` ([row, column]), ``point`` ([x, y]), ``value``, and ``words``
            with ``index``, ``text`` and ``similarity``; ``nearest``: (gh, gw, k) nested lists of indices.
        """
        return {
            "text": self.text,
            "method": self.method,
            "score": self.score,
            "shape": list(self.shape),
            "grid": list(self.similarity.values.shape),
            "words": [
                {
                    "text": word.text,
                    "tokens": list(word.tokens),
                    "carries": word.carries,
                    "share": float(share),
                    "peak": list(word.similarity.peak(self.shape)),
                    "map": word.similarity.values.tolist(),
                }
                for word, share in zip(self.words, self.shares, strict=True)
            ],
            "map": self.similarity.values.tolist(),
            "places": [
                {
                    "patch": list(place.patch),
                    "point": list(place.point),
                    "value": place.value,
                    "words": [{"index": i, "text": self.words[i].text, "similarity": s} for i, s in place.words],
                }
                for place in self.places
            ],
            "nearest": self.nearest.tolist(),
        }


def explain_text(
    model: ClipSurgery | TextPromptedSAM,
    image: ImageLike | ImageFeatures,
    text: str,
    *,
    method: Method = "surgery",
    places: int = 5,
) -> TextExplanation:
    """Which words of a text an image bears out, and where.

    Every token of the text has a feature of its own before the end token is pooled
    (:func:`text2sam.clip.towers.text.encode_token_features`). The feature of a word is the normalised mean of its tokens'
    normalised features. Words are the tokenizer's: every digit, a run of punctuation and endings such as ``'s`` are words. The
    text is taken as it is, without templates.

    The text tower is causal. The start token has seen no word and its feature is the same for every text; the feature of the
    end token is the one that CLIP compares with images. A word knows the words before it, so the map of "and" may show what
    was named before it.

    The map of a word is the similarity of its feature and the patches' tokens. With feature surgery (``method="surgery"``) the
    redundant feature is that of the start token for a word, and that of the empty text for the whole text. (The paper leaves
    open what is redundant for a single token; this is our reading. It subtracts the same from the maps of all words, so their
    order at a place stays.)

    Args:
        model: a ClipSurgery, or a pair, whose generator is taken.
        image: anything :func:`text2sam.image.read_image` accepts, or features from ``ClipSurgery.encode_image``, encoded for
            ``method``.
        text: any text, also one that ``segment`` would take apart (``"cats + dogs"``).
        method: any of :data:`text2sam.clip.attention.METHODS`.
        places: number of places to name, at least two patches apart from each other.

    Raises:
        PromptError: the text has no words or is longer than the text tower's context.
        UnsupportedModelError: the tokenizer does not show where words end (open_clip's ``SimpleTokenizer`` does), or the
            text tower is not pooled at an end token.
        InputError: ``method`` or ``places`` is out of range, or the features lack the method's tokens.
        ImageError: the image cannot be read.
    """
    surgery = surgery_of(model)
    method = check_method(method)
    if not isinstance(text, str):
        raise PromptError(f"text must be a string, not {type(text).__name__}: {text!r}")
    places = int(check_number("places", places, 0, whole=True))
    tokenizer = surgery.prompts.tokenizer
    ids, spans = tokenize_words(tokenizer, text)
    words = [tuple(ids[i] for i in range(*span)) for span in spans]
    rows = [ids, [ids[0], ids[-1]], *([i for k, i in enumerate(ids) if not a <= k < b] for a, b in spans)]
    tokens = torch.zeros(len(rows), tokenizer([text]).shape[1], dtype=torch.long)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    ends = torch.tensor([len(values) - 1 for values in rows])
    with exact(surgery.device), evaluating(surgery.model):
        encoded = encode_token_features(surgery.model, tokens.to(surgery.device)).float()
        encoded = torch.nn.functional.normalize(encoded, dim=-1)  # (2 + W, l, C)
        pooled = encoded[torch.arange(len(rows)), ends]  # (2 + W, C): the text, the empty one, the text less each word
        features = torch.stack([encoded[0, a:b].mean(dim=0) for a, b in spans])
        features = torch.nn.functional.normalize(features, dim=-1)  # (W, C)
        seen = image if isinstance(image, ImageFeatures) else surgery.encode_image(image, methods=[method])
        cosines = (pooled @ seen.raw[0]).cpu().numpy().astype(np.float64)
        maps = _maps(surgery, seen, features, encoded[0, :1], method)  # (W, gh, gw)
        whole = _maps(surgery, seen, pooled[:1], pooled[1:2], method)[0]  # (gh, gw)
    pieces = [tuple(_spell(tokenizer, [i]) for i in word) for word in words]
    named = [_spell(tokenizer, word) for word in words]
    similarity = SimilarityMap(whole, text, method)
    order = np.argsort(-maps, axis=0, kind="stable")[:NEAREST]  # (k, gh, gw)
    nearest = np.ascontiguousarray(order.transpose(1, 2, 0))
    (gh, gw), (h, w) = whole.shape, seen.shape
    return TextExplanation(
        text=text,
        words=tuple(
            Word(name, parts, SimilarityMap(values, name, method), float(cosines[0] - without))
            for name, parts, values, without in zip(named, pieces, maps, cosines[2:], strict=True)
        ),
        similarity=similarity,
        places=tuple(
            Place(
                patch=(row, column),
                point=((column + 0.5) * w / gw, (row + 0.5) * h / gh),
                value=float(whole[row, column]),
                words=tuple((int(i), float(maps[i, row, column])) for i in nearest[row, column]),
            )
            for row, column in _strongest(whole, places)
        ),
        nearest=nearest,
        score=float(cosines[0]),
        method=method,
        shape=seen.shape,
    )


def tokenize_words(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text, and which tokens make up each word.

    Args:
        tokenizer: open_clip's ``SimpleTokenizer``, or a tokenizer with its ``decoder`` (token id -> piece, with ``</w>`` at
            the end of a word), ``byte_decoder`` and ``all_special_ids``.
        text: any text.

    Returns:
        The ids from start to end token, and for each word the range [first, end) of its tokens in them.

    Raises:
        UnsupportedModelError: the tokenizer is of another kind.
        PromptError: the text has no words, or more tokens than the text tower takes.
    """
    if not all(hasattr(tokenizer, name) for name in ("decoder", "byte_decoder", "all_special_ids")):
        raise UnsupportedModelError(
            "explaining words needs a tokenizer that marks where a word ends, as open_clip's SimpleTokenizer does, not a "
            f"{type(tokenizer).__name__}; take a model with CLIP's own tokenizer, such as ViT-B-16"
        )
    row: list[int] = tokenizer([text])[0].tolist()
    end = row.index(max(row))
    if end == len(row) - 1:  # the tokenizer cuts silently and puts the end token last
        raise PromptError(f"the text {text[:60]!r}... has more tokens than the {len(row)} the text tower takes; shorten it")
    ids, spans, first = row[: end + 1], [], 1
    for i in range(1, end):
        if tokenizer.decoder[ids[i]].endswith("</w>"):
            spans.append((first, i + 1))
            first = i + 1
    if not spans:
        raise PromptError(f"the text {text!r} has no words")
    return ids, spans


def _spell(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as text; a piece of a character that takes several tokens is a replacement character."""
    letters = "".join(tokenizer.decoder[i] for i in ids).removesuffix("</w>")
    return bytes(tokenizer.byte_decoder[c] for c in letters).decode("utf-8", errors="replace")


def _maps(
    surgery: ClipSurgery, features: ImageFeatures, texts: torch.Tensor, redundant: torch.Tensor, method: Method
) -> NDArray[np.float32]:
    values = surgery.similarities(features, texts, method, redundant)[1:]  # (gh*gw, T)
    return np.ascontiguousarray(values.T.unflatten(1, features.grid).cpu().numpy())


def _strongest(values: NDArray[np.float32], count: int) -> list[tuple[int, int]]:
    """(row, column) of up to ``count`` patches, the highest first, each at least two patches from the others."""
    left = values.astype(np.float64)
    patches: list[tuple[int, int]] = []
    while len(patches) < count and np.isfinite(left.max()):
        row, column = divmod(int(left.argmax()), left.shape[1])
        patches.append((row, column))
        left[max(0, row - _APART + 1) : row + _APART, max(0, column - _APART + 1) : column + _APART] = -np.inf
    return patches
