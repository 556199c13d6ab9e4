"""Which of SAM's candidate masks is taken, and how masks overlap: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.points import heat_of, hot_component, patch_of, patch_shares
from text2sam.types import PointPrompts, SimilarityMap


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


def choose_by_score(
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    similarity: SimilarityMap,
    points: PointPrompts,
    logits: NDArray[np.float32],
) -> Choice:
    """The papers' choice: the mask SAM itself scores highest; the first of equals.

    Args:
        masks: (M, H, W) bool.
        scores: (M,) float32, SAM's estimates of the masks' IoU.
        similarity: the map; not looked at.
        points: the prompts the masks answer; not looked at.
        logits: (M, h, w) float32; not looked at.

    Raises:
        InputError: there is no mask, or not one score per mask.
    """
    _check_scores(masks, scores)
    index = int(np.argmax(scores))
    return Choice(index, f"SAM's own score {scores[index]:.3f} is the highest of {len(scores)}")


def choose_by_agreement(
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    similarity: SimilarityMap,
    points: PointPrompts,
    logits: NDArray[np.float32],
) -> Choice:
    """The mask that agrees best with the similarity map, with the points, and with SAM itself; the first of equals.

    The figures of a mask, with g the share of each patch it covers and heat the smoothed min-max map:

    - ``contrast`` in [-1, 1]: mean heat under the mask minus mean heat in the patches around it,
      ``sum(g*heat)/sum(g) - sum(r*heat)/sum(r)``, where r is 1 - g on the mask's patches and their neighbours. A part of an
      object has heat left around it, a group of objects has cold under it; heat further away, at the next object of the
      same name, does not count.
    - ``overlap`` in [0, 1]: mean over t of the soft IoU of g and the hot region at the positive point, the patches of at
      least t times its heat that hang together with it, t = 0.3, 0.4 ... 0.7.
    - ``stability`` in [0, 1]: SAM's, the IoU of the mask with logits cut at +1 and at -1 (arXiv 2304.02643, section 5).
    - ``points`` in [0, 1]: the share of points on their right side.
    - ``total = (score + contrast + overlap / 2 + points) / 3.5``, at least 0: what is decided by. An empty mask has 0.

    Args:
        masks: (M, H, W) bool.
        scores: (M,) float32, SAM's estimates of the masks' IoU.
        similarity: the map.
        points: the prompts the masks answer.
        logits: (M, h, w) float32, SAM's low-resolution logits.

    Raises:
        InputError: there is no mask, or not one score per mask.
    """
    figures = agreement(masks, scores, similarity, points, logits)
    total = figures["total"]
    index = int(np.argmax(total))
    by_score = int(np.argmax(scores))
    others = "" if len(masks) == 1 else f" of {len(masks)}"
    also = "also has SAM's highest score" if by_score == index else f"SAM's score alone would take mask {by_score}"
    reason = (
        f"its total {total[index]:.3f} is the highest{others}: score {scores[index]:.3f}, contrast "
        f"{figures['contrast'][index]:.3f}, overlap {figures['overlap'][index]:.3f}; {also}"
    )
    return Choice(index, reason, figures)


def agreement(
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    similarity: SimilarityMap,
    points: PointPrompts,
    logits: NDArray[np.float32],
) -> dict[str, NDArray[np.float32]]:
    """The figures of :func:`choose_by_agreement`, each (M,) float32, by name; arguments and errors are the same."""
    _check_scores(masks, scores)
    heat = heat_of(similarity)
    shares = patch_shares(masks, heat.shape)
    contrast = np.array([_contrast(share, heat) for share in shares])
    overlap = _overlap(shares, heat, points, masks.shape[1:])
    right = _right_points(masks, points)
    total = (scores + contrast + 0.5 * overlap + right) / 3.5
    total = np.where(masks.any((1, 2)), np.maximum(total, 0), 0)
    figures = {"contrast": contrast, "overlap": overlap, "stability": stability(logits), "points": right, "total": total}
    return {name: values.astype(np.float32) for name, values in figures.items()}


def stability(logits: NDArray[np.float32], offset: float = 1.0) -> NDArray[np.float32]:
    """SAM's stability score: IoU of a mask with itself, cut at ``+offset`` and at ``-offset``.

    Args:
        logits: (M, h, w) float32.
        offset: in the units of the logits.

    Returns:
        (M,) float32 in [0, 1]; 0 where even the larger mask is empty.
    """
    inner, outer = ((logits > cut).sum((1, 2)) for cut in (offset, -offset))
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


def _overlap(
    shares: NDArray[np.float32], heat: NDArray[np.float32], points: PointPrompts, shape: Sequence[int]
) -> NDArray[np.float64]:
    out = np.zeros(len(shares))
    if not len(points.positive):
        return out
    at = patch_of(points.positive[0], shape, heat.shape)
    levels = (0.3, 0.4, 0.5, 0.6, 0.7)
    for level in levels:
        region = hot_component(heat, at, level * float(heat[at]))
        out += [float(np.minimum(s, region).sum() / np.maximum(s, region).sum()) for s in shares]
    return out / len(levels)


def _right_points(masks: NDArray[np.bool_], points: PointPrompts) -> NDArray[np.float64]:
    if not len(points):
        return np.ones(len(masks))
    h, w = masks.shape[1:]
    columns, rows = (points.coords[:, k].astype(int).clip(0, n - 1) for k, n in ((0, w), (1, h)))
    right: NDArray[np.float64] = (masks[:, rows, columns] == (points.labels == 1)).mean(1)
    return right


def _check_scores(masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> None:
    if not len(masks) or scores.shape != (len(masks),):
        raise InputError(f"there must be one score per mask and at least one mask, not {scores.shape} for {len(masks)}")


def distinct(
    masks: Sequence[NDArray[np.bool_]], scores: Sequence[float], *, iou: float = 0.5, containment: float = 0.8
) -> list[int]:
    """Which of several masks are different objects.

    Two masks are one object when their IoU is above ``iou``, or when one lies in the other by more than ``containment``
    of its area: then the one with the higher score stays. But a mask that holds two or more others, which are distinct
    from each other and together have the better mean score, is a group of objects and goes.

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

    def keep(candidates: Sequence[int]) -> list[int]:
        kept: list[int] = []
        for k in candidates:
            if not any(same(k, other) for other in kept):
                kept.append(k)
        return kept

    groups = set()
    for k in order:
        inside = keep([j for j in order if j != k and areas[j] < areas[k] and shared[k, j] > containment * areas[j]])
        if len(inside) > 1 and float(np.mean([scores[j] for j in inside])) > scores[k]:
            groups.add(k)
    return keep([k for k in order if k not in groups])


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union of two (H, W) bool masks, in [0, 1]; 1 when both are empty.

    Raises:
        InputError: the masks differ in shape.
    """
    if a.shape != b.shape:
        raise InputError(f"masks must have one shape, not {a.shape} and {b.shape}")
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
