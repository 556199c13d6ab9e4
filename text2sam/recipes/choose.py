"""Which of SAM's candidate masks is taken, and how masks overlap: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.masks import Masks, shrunk, single, values_at
from text2sam.recipes.points import heat_of, hot_component, patch_of, patch_shares, pixels_under
from text2sam.types import Candidates, PointPrompts, SimilarityMap

_WEIGHTS = {"correlation": 1.0, "stability": 0.5, "points": 0.25, "likeness": 2.5}
"""How much each figure counts in the total; SAM's own score counts 1."""

SMALL = 640
"""Longer side, in pixels, in which masks are compared with maps."""


@dataclass(frozen=True)
class Choice:
    """A chosen candidate.

    Attributes:
        index: of the mask that was taken.
        reason: why, in words.
        figures: further figures of each mask by name, each (M,) float32.
    """

    index: int
    reason: str
    figures: dict[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Offer:
    """SAM's answer to a prompt, of which a mask rule takes one mask.

    Attributes:
        kept: (M, H, W) bool masks, or the :class:`~text2sam.masks.LogitMasks` they are made of.
        scores: (M,) float32, SAM's estimates of the masks' IoU.
        similarity: the map the prompt came from.
        points: the prompt's points.
        logits: (M, h, w) float32, SAM's low-resolution logits.
        look: masks -> their likeness in [0, 1] to the text, where the map comes from a generator that scores it
            (:class:`~text2sam.clip.protocol.MapGenerator`); else None.

    Raises:
        InputError: there is no mask, or not one score per mask.
    """

    kept: Masks
    scores: NDArray[np.float32]
    similarity: SimilarityMap
    points: PointPrompts
    logits: NDArray[np.float32]
    look: Callable[[NDArray[np.bool_]], NDArray[np.float32]] | None = None

    def __post_init__(self) -> None:
        count, scores = len(self.kept), self.scores.shape
        if not count or scores != (count,):
            raise InputError(f"there must be one score per mask and at least one mask, not {scores} for {count}")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the image in pixels."""
        return self.kept.shape[1], self.kept.shape[2]

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """(M, H, W) bool."""
        return np.asarray(self.kept)

    def mask(self, index: int) -> NDArray[np.bool_]:
        """(H, W) bool: one of ``masks``, without the others."""
        return np.asarray(self.only(index))

    def only(self, index: int) -> Any:
        """One of ``masks``, which need not be made yet."""
        return single(self.masks if "masks" in vars(self) else self.kept, index)

    @cached_property
    def small(self) -> NDArray[np.bool_]:
        """(M, h, w) bool: the masks; where they are made of logits, with a longer side of at most :data:`SMALL` pixels."""
        return shrunk(self.kept, SMALL) if max(self.shape) > SMALL else self.masks

    def taken(self, choice: Choice) -> Candidates:
        """The candidates of a result, with the choice that was made; errors are those of :class:`Candidates`."""
        kept: Any = self.kept
        return Candidates(kept, self.scores, self.logits, choice.index, choice.reason, choice.figures)


MaskRule: TypeAlias = Callable[[Offer], Choice]
"""SAM's answer -> which mask. The figure ``"total"`` of a mask, where the rule gives it, is the object's score, else SAM's own
score is. The figures ``"contrast"`` and ``"likeness"`` decide whether an object stays."""


def choose_by_score(offer: Offer) -> Choice:
    """The papers' choice: the mask SAM itself scores highest; the first of equals."""
    index = int(np.argmax(offer.scores))
    return Choice(index, f"SAM's own score {offer.scores[index]:.3f} is the highest of {len(offer.scores)}")


def choose_by_agreement(offer: Offer) -> Choice:
    """The mask that agrees best with the similarity map, with the points, and with SAM itself; the first of equals.

    The figures of a mask, with g the share of each patch it covers and heat the smoothed min-max map
    (:func:`text2sam.recipes.points.heat_of`), in which hot regions that do not hang together with the one the hottest positive
    point lies in (at half its heat) are set to the map's median, since they may be further objects:

    - ``correlation`` in [-1, 1]: Pearson's, over all patches, of g and the heat.
    - ``contrast`` in [-1, 1]: mean heat under the mask minus mean heat in the patches around it,
      ``sum(g*heat)/sum(g) - sum(r*heat)/sum(r)``, where r is 1 - g on the patches of which the mask covers a fifth, and their
      neighbours. A part of an object has heat left around it, a group of objects has cold under it. It is no part of the
      total; the default recipe keeps or drops objects by it.
    - ``stability`` in [0, 1]: SAM's, the IoU of the mask with logits cut at +1 and at -1 (arXiv 2304.02643, section 5).
    - ``points`` in [0, 1]: the share of points on their right side.
    - ``likeness`` in [0, 1], of what the mask cuts out to the text, where :attr:`Offer.look` is given.
    - ``total``, at least 0: what is decided by, the mean of SAM's score and the figures with the weights 1 for score and
      correlation, 1/2 for stability, 1/4 for points and 5/2 for likeness. An empty mask has 0. The weights were chosen on
      tuning photos (COCO, MobileSAM).
    """
    figures, scores = agreement(offer), offer.scores
    total = figures["total"]
    index = int(np.argmax(total))
    by_score = int(np.argmax(scores))
    others = "" if len(scores) == 1 else f" of {len(scores)}"
    also = (
        "also SAM's highest score" if by_score == index else f"SAM's score alone would take the one of {scores[by_score]:.3f}"
    )
    like = f", likeness {figures['likeness'][index]:.3f}" if "likeness" in figures else ""
    reason = (
        f"its total {total[index]:.3f} is the highest{others}: score {scores[index]:.3f}, correlation "
        f"{figures['correlation'][index]:.3f}, contrast {figures['contrast'][index]:.3f}{like}; {also}"
    )
    return Choice(index, reason, figures)


def agreement(offer: Offer) -> dict[str, NDArray[np.float32]]:
    """The figures of :func:`choose_by_agreement`, each (M,) float32, by name."""
    heat = heat_of(offer.similarity)
    shares = patch_shares(offer.small, heat.shape)
    near = _near(heat, offer.points, offer.shape)
    figures = {
        "correlation": _correlation(shares, near),
        "contrast": np.array([_contrast(share, near) for share in shares]),
        "stability": stability(offer.logits),
        "points": _right_points(offer),
    }
    if offer.look is not None:
        figures["likeness"] = offer.look(offer.small)
    weights = {name: weight for name, weight in _WEIGHTS.items() if name in figures}
    total = sum((weight * figures[name] for name, weight in weights.items()), offer.scores) / (1 + sum(weights.values()))
    figures["total"] = np.where(offer.small.any((1, 2)), np.clip(total, 0, 1), 0)
    return {name: values.astype(np.float32) for name, values in figures.items()}


def stability(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """SAM's stability score: IoU of a mask with itself, cut at a logit of +1 and at -1.

    Args:
        logits: (M, h, w) float32.

    Returns:
        (M,) float32 in [0, 1]; 0 where even the larger mask is empty.
    """
    inner, outer = ((logits > cut).sum((1, 2)) for cut in (1, -1))
    ratio: NDArray[np.float32] = (inner / np.maximum(outer, 1)).astype(np.float32)
    return ratio


def _contrast(share: NDArray[np.float32], heat: NDArray[np.float32]) -> float:
    from scipy.ndimage import binary_dilation

    if not share.any():
        return 0.0
    support = share >= min(0.2, float(share.max()))
    ring = binary_dilation(support, np.ones((3, 3))) * (1 - share)
    if ring.sum() < 1e-6:  # the mask is the whole picture
        return 0.0
    return float((share * heat).sum() / share.sum() - (ring * heat).sum() / ring.sum())


def _near(heat: NDArray[np.float32], points: PointPrompts, shape: Sequence[int]) -> NDArray[np.float32]:
    """The heat with the hot regions apart from the hottest positive point's set to the median."""
    places = [patch_of(point, shape, heat.shape) for point in points.positive]
    if not places:
        return heat
    at = max(places, key=lambda place: float(heat[place]))
    level = 0.5 * float(heat[at])
    return np.where((heat >= level) & ~hot_component(heat, at, level), np.median(heat), heat)


def _correlation(shares: NDArray[np.float32], heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """(M,) Pearson correlation of (M, gh, gw) shares and (gh, gw) heat; 0 where either is flat."""
    h = heat - heat.mean(dtype=np.float64)
    g = shares - shares.mean((1, 2), keepdims=True, dtype=np.float64)
    scale = np.sqrt((g * g).sum((1, 2)) * (h * h).sum())
    flat = scale < 1e-9
    correlation: NDArray[np.float64] = np.where(flat, 0, (g * h).sum((1, 2)) / np.where(flat, 1, scale))
    return correlation


def _right_points(offer: Offer) -> NDArray[np.float64]:
    points = offer.points
    if not len(points):
        return np.ones(len(offer.scores))
    on = values_at(offer.kept, *pixels_under(points.coords, offer.shape))  # a pixel of small masks is several of the image's
    right: NDArray[np.float64] = (on == (points.labels == 1)).mean(1)
    return right


def distinct(
    masks: Sequence[NDArray[np.bool_]], scores: Sequence[float], *, iou: float = 0.5, containment: float = 0.8
) -> list[int]:
    """Which of several masks are different objects.

    Two masks are one object when their IoU is above ``iou``, or when one lies in the other by more than ``containment``
    of its area: then the one with the higher score stays.

    Args:
        masks: (H, W) bool each, all of one shape; empty masks are no objects.
        scores: one per mask.
        iou: in [0, 1].
        containment: in [0, 1].

    Returns:
        Indices of the masks that stay, highest score first; the first of equals.

    Raises:
        InputError: there is not one score per mask, or shapes differ.
    """
    if len(masks) != len(scores):
        raise InputError(f"there must be one score per mask, not {len(scores)} for {len(masks)}")
    if len({m.shape for m in masks}) > 1:
        raise InputError(f"masks must have one shape, not {sorted({m.shape for m in masks})}")
    areas = [int(m.sum()) for m in masks]
    order = [k for k in sorted(range(len(masks)), key=lambda k: (-scores[k], k)) if areas[k]]
    shared = {(a, b): int((masks[a] & masks[b]).sum()) for a in order for b in order if a != b}

    def same(a: int, b: int) -> bool:
        both = shared[a, b]
        return both > iou * (areas[a] + areas[b] - both) or both > containment * min(areas[a], areas[b])

    kept: list[int] = []
    for k in order:
        if not any(same(k, other) for other in kept):
            kept.append(k)
    return kept


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union of two (H, W) bool masks, in [0, 1]; 1 when both are empty.

    Raises:
        InputError: the masks differ in shape.
    """
    if a.shape != b.shape:
        raise InputError(f"masks must have one shape, not {a.shape} and {b.shape}")
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
