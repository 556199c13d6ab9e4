"""Multi-label recognition: which of several labels an image shows (CLIP Surgery, arXiv 2304.05653, multi-label experiments)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.checks import check_number
from text2sam.clip.generator import ClipSurgery, ImageFeatures
from text2sam.errors import InputError
from text2sam.image import ImageLike, check_several, numbered, read_image
from text2sam.pipeline import TextPromptedSAM
from text2sam.tasks._inputs import Labels, class_features, parse_labels, surgery_of

SCORES = ("surgery", "cosine", "softmax", "sigmoid")
"""The scores of :func:`recognize`; the first is the paper's."""


@dataclass(frozen=True, eq=False, repr=False)
class Recognition:
    """How much an image shows each of several labels.

    Attributes:
        labels: T names.
        scores: kind of score (:data:`SCORES`) -> (T,) float32, higher is more; see :func:`recognize`.

    Raises:
        InputError: a score is not finite.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        for kind, values in self.scores.items():
            if not np.isfinite(values).all():
                raise InputError(f"the scores {kind!r} are not finite; the model's weights may be damaged")

    def __repr__(self) -> str:
        kind = next(iter(self.scores), "")
        best = [f"{label} {score:.3f}" for label, score in (self.ranked(kind, top=3) if kind else [])]
        return f"<Recognition: {len(self.labels)} labels; best by {kind!r}: {', '.join(best)}>"

    def ranked(self, kind: str = "surgery", *, top: int | None = None) -> list[tuple[str, float]]:
        """(label, score) pairs, the highest score first.

        Args:
            kind: of score.
            top: number of pairs; None is all.

        Raises:
            InputError: there is no such score, or ``top`` is no whole number of at least 0.
        """
        if kind not in self.scores:
            raise InputError(f"there is no score {kind!r}; there are {', '.join(self.scores)}")
        if top is not None:
            check_number("top", top, 0, whole=True)
        values = self.scores[kind]
        order = np.argsort(-values, kind="stable")[:top]
        return [(self.labels[i], float(values[i])) for i in order]

    def to_json(self) -> dict[str, Any]:
        """``labels``, and ``scores`` by kind as lists, in JSON's types."""
        return {"labels": list(self.labels), "scores": {kind: values.tolist() for kind, values in self.scores.items()}}


def recognize(
    model: ClipSurgery | TextPromptedSAM,
    image: ImageLike | ImageFeatures,
    labels: Labels,
    *,
    templates: Sequence[str] | None = None,
) -> Recognition:
    """Scores of an image for a label set.

    With s the cosines of the labels and the image's class token, which is plain CLIP's:

    - ``"surgery"``: feature surgery over the label set (:func:`text2sam.clip.similarity.feature_surgery`), by the papers' code
      ``w*s - mean(w*s)`` with ``w = p / mean(p)`` and ``p = softmax(tau * s)``. The mean over the label set is redundant: an
      image that is like every label no longer scores high for all labels, which matters for average precision over images.
    - ``"cosine"``: s.
    - ``"softmax"``: ``softmax(logit_scale * s)`` over the label set, with the model's own scale (100 for OpenAI's). Labels that
      are present share the sum of 1.
    - ``"sigmoid"``: each label by itself, ``sigmoid(logit_scale * s + logit_bias)`` for a model with a bias (SigLIP's). For a
      model without a bias the cosine of the empty text is subtracted from s, because every score would be 1 in float32
      otherwise.

    A single label has no label set; the empty text takes its place: ``s - s_empty``, and the softmax of the two.

    Args:
        model: a ClipSurgery, or a pair, whose generator is taken.
        image: anything :func:`text2sam.image.read_image` accepts, or its features from ``ClipSurgery.encode_image``.
        labels: T names; or a mapping from names to the words for each, ``{"car": ["car", "automobile"]}``. The feature of a
            class is the normalised mean of its words' features.
        templates: the prompt ensemble; None is the model's own.

    Raises:
        PromptError: there is no label, a label is empty, too long or given twice, or a template has no place for the text.
        InputError: ``model`` or ``labels`` is of another kind.
        ImageError: the image cannot be read.
    """
    surgery = surgery_of(model)
    classes = parse_labels(labels)
    features = image if isinstance(image, ImageFeatures) else surgery.encode_image(image)
    return _recognize(surgery, [features], classes, templates)[0]


def recognize_many(
    model: ClipSurgery | TextPromptedSAM,
    images: Iterable[ImageLike],
    labels: Labels,
    *,
    templates: Sequence[str] | None = None,
    batch_size: int = 8,
) -> list[Recognition]:
    """:func:`recognize` for several images, encoded in batches; each image scores as it does alone.

    Args:
        model, labels, templates: as for :func:`recognize`.
        images: may be a generator; no more than ``batch_size`` images are held at a time.
        batch_size: at least 1.

    Returns:
        One result per image, in order. Errors are those of :func:`recognize`; an image that cannot be read is named by its
        position.
    """
    surgery = surgery_of(model)
    check_number("batch_size", batch_size, 1, whole=True)
    check_several(images)
    classes = parse_labels(labels)
    results: list[Recognition] = []
    pending = enumerate(images)
    while batch := list(itertools.islice(pending, batch_size)):
        pixels = []
        for position, image in batch:
            with numbered(position):
                pixels.append(read_image(image))
        results += _recognize(surgery, surgery.encode(pixels), classes, templates)
    return results


def _recognize(
    surgery: ClipSurgery,
    images: Sequence[ImageFeatures],
    classes: Mapping[str, Sequence[str]],
    templates: Sequence[str] | None,
) -> list[Recognition]:
    with torch.inference_mode():
        texts = class_features(surgery, classes.values(), templates)  # (T, C)
        empty = surgery.prompts([""], templates)  # (1, C)
        tokens = torch.stack([features.raw[0] for features in images])  # (B, C)
        cosines, neutral = tokens @ texts.T, tokens @ empty.T  # (B, T), (B, 1)
        single = len(classes) == 1
        redundant = empty if single else None
        reduced = torch.stack([surgery.similarities(each, texts, "features", redundant)[0] for each in images])  # (B, T)
        scale, bias = float(surgery.logit_scale()), getattr(surgery.model, "logit_bias", None)
        compared = torch.cat([cosines, neutral], dim=1) if single else cosines
        softmax = (scale * compared).softmax(dim=1)[:, : len(classes)]
        logits = scale * (cosines - neutral) if bias is None else scale * cosines + bias.detach().float().mean()
        scores = torch.stack([reduced, cosines, softmax, logits.sigmoid()]).float().cpu().numpy()  # (4, B, T)
    names = tuple(classes)
    return [Recognition(names, dict(zip(SCORES, scores[:, i], strict=True))) for i in range(len(images))]
