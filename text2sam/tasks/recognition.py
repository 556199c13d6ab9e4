"""Multi-label recognition: which of several labels an image shows (CLIP Surgery, arXiv 2304.05653, multi-label experiments)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import ImageError, InputError

if TYPE_CHECKING:
    import torch

    from text2sam.clip.generator import ClipSurgery, ImageFeatures
    from text2sam.image import ImageLike
    from text2sam.pipeline import TextPromptedSAM
    from text2sam.tasks._inputs import Labels

SCORES = ("surgery", "cosine", "softmax", "sigmoid")
"""The scores :func:`recognize` gives; the first one is the papers'."""


@dataclass(frozen=True, eq=False)
class Recognition:
    """How much an image shows each of several labels.

    Attributes:
        labels: T names.
        scores: kind of score (:data:`SCORES`) -> (T,) float32, higher is more; see :func:`recognize`.

    Raises:
        InputError: there is no label, no score, or one that is not a finite float32 array (T,).
    """

    labels: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels must be one or more different names, not {self.labels!r}")
        if not self.scores:
            raise InputError("there must be at least one kind of score")
        for kind, values in self.scores.items():
            ok = isinstance(values, np.ndarray) and values.shape == (len(self.labels),) and values.dtype == np.float32
            if not ok or not np.isfinite(values).all():
                raise InputError(f"the scores {kind!r} must be a finite float32 array of shape ({len(self.labels)},)")

    def ranked(self, kind: str = "surgery", *, top: int | None = None) -> list[tuple[str, float]]:
        """(label, score) from the highest score on, the first of equals first.

        Args:
            kind: which score.
            top: how many; None is all.

        Raises:
            InputError: there is no such score, or ``top`` is negative.
        """
        if kind not in self.scores:
            raise InputError(f"there is no score {kind!r}; there are {', '.join(self.scores)}")
        if top is not None and top < 0:
            raise InputError(f"top must be at least 0, not {top!r}")
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

    With s the cosines in [-1, 1] of the image's class token (the original path's, so plain CLIP's) and the labels:

    - ``"surgery"``: feature surgery over the label set with the model's ``tau`` and weighting
      (:func:`text2sam.clip.similarity.feature_surgery`): in the papers' code ``w*s - mean(w*s)`` with
      ``w = p / mean(p)``, ``p = softmax(tau * s)``. The redundant feature is the mean over the label set: an image that is
      like every label no longer scores high for all of them, which is what average precision over images looks at. Within
      one image the order is that of s where s is positive.
    - ``"cosine"``: s itself.
    - ``"softmax"``: plain CLIP, ``softmax(logit_scale * s)`` over the label set, with the model's own scale (100 for
      OpenAI's). It shares 1 among the labels, so several present ones take from each other.
    - ``"sigmoid"``: each label by itself, ``sigmoid(logit_scale * s + logit_bias)`` for a model trained with a bias
      (SigLIP's). CLIP has none, and without one every score would be 1 in float32; there the empty text's cosine is
      subtracted from s first, which is the softmax of the label against the empty text.

    One label alone has no label set (feature surgery would be 0, its softmax 1): as everywhere in this package the empty text
    takes the place of one, ``s - s_empty`` and the softmax against it.

    Args:
        model: a ClipSurgery, or a pair, whose surgery is taken.
        image: anything :func:`text2sam.image.read_image` accepts, or its features from ``ClipSurgery.encode_image``.
        labels: T names; or a mapping from names to the words for each, ``{"car": ["car", "automobile"]}``. A class's feature
            is the normalised mean of its words' features.
        templates: the prompt ensemble; None is the model's own.

    Returns:
        Scores of the four kinds, (T,) float32 each.

    Raises:
        PromptError: there is no label, one is empty, too long or given twice, or a template is none.
        InputError: ``model`` or ``labels`` is of another kind.
        ImageError: the image cannot be read.
    """
    from text2sam.clip.generator import ImageFeatures
    from text2sam.tasks._inputs import surgery_of

    surgery = surgery_of(model)
    if isinstance(image, ImageFeatures):
        return _recognize_tokens(surgery, [image.raw[0]], labels, templates)[0]
    return recognize_many(surgery, [image], labels, templates=templates)[0]


def recognize_many(
    model: ClipSurgery | TextPromptedSAM,
    images: Iterable[ImageLike],
    labels: Labels,
    *,
    templates: Sequence[str] | None = None,
    batch_size: int = 8,
) -> list[Recognition]:
    """:func:`recognize` for several images, ``batch_size`` of them encoded at once; each scores as it does alone.

    Args:
        model, labels, templates: as for :func:`recognize`.
        images: may be a generator; no more than ``batch_size`` of its images are held at a time.
        batch_size: at least 1.

    Returns:
        One result per image, in order. Errors are those of :func:`recognize`; an image that cannot be read is named by its
        position.
    """
    from text2sam.image import is_single, read_image
    from text2sam.tasks._inputs import check_batch_size, parse_labels, surgery_of

    surgery = surgery_of(model)
    check_batch_size(batch_size)
    if is_single(images):
        raise InputError("images must be a sequence of images; for one image call recognize")
    parse_labels(labels)  # a bad label costs no encoding
    results: list[Recognition] = []
    batch: list[NDArray[np.uint8]] = []

    def flush() -> None:
        tokens = [features.raw[0] for features in surgery.encode_images(batch)]
        results.extend(_recognize_tokens(surgery, tokens, labels, templates) if tokens else [])
        batch.clear()

    for position, image in enumerate(images):
        try:
            batch.append(read_image(image))
        except ImageError as error:
            raise ImageError(f"image {position}: {error}") from error
        if len(batch) == batch_size:
            flush()
    flush()
    return results


def _recognize_tokens(
    surgery: ClipSurgery, tokens: Sequence[torch.Tensor], labels: Labels, templates: Sequence[str] | None
) -> list[Recognition]:
    """Results for class tokens, each (C,) L2-normalised."""
    import torch

    from text2sam.clip.similarity import feature_surgery
    from text2sam.tasks._inputs import class_features, logit_scale_of, parse_labels

    classes = parse_labels(labels)
    with torch.inference_mode():
        texts = class_features(surgery, classes.values(), templates)  # (T, C)
        empty = surgery.prompts.using(templates)([""])  # (1, C)
        image = torch.stack(list(tokens))[:, None]  # (B, 1, C)
        alone = empty if len(classes) == 1 else None
        operated = feature_surgery(image, texts, alone, tau=surgery.tau, weighting=surgery.weighting)[:, 0]  # (B, T)
        cosines, neutral = image[:, 0] @ texts.T, image[:, 0] @ empty.T  # (B, T), (B, 1)
        scale, bias = logit_scale_of(surgery), getattr(surgery.model, "logit_bias", None)
        if len(classes) == 1:
            softmax = (scale * torch.cat([cosines, neutral], dim=1)).softmax(dim=1)[:, :1]
        else:
            softmax = (scale * cosines).softmax(dim=1)
        logits = scale * (cosines - neutral) if bias is None else scale * cosines + bias.detach().float().mean()
        values = [t.float().cpu().numpy() for t in (operated, cosines, softmax, logits.sigmoid())]
    names = tuple(classes)
    return [
        Recognition(names, {kind: np.ascontiguousarray(v[i], np.float32) for kind, v in zip(SCORES, values, strict=True)})
        for i in range(len(tokens))
    ]
