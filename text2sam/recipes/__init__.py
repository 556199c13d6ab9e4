"""Recipes: how points are chosen from maps, and a mask from candidates. Both parts can be exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.recipes.choose import Choice, choose_by_agreement, choose_by_score
from text2sam.recipes.points import PeakRule, points_from_similarity
from text2sam.types import PointPrompts, SimilarityMap

PointRule = Callable[[Sequence[SimilarityMap], tuple[int, int], Sequence[NDArray[np.bool_]]], PointPrompts]
"""Maps of one target (one, or one for each text joined in it), (H, W) of the image, (H, W) bool masks of the objects found
or tried so far -> points of the next object; no points end the search."""

MaskRule = Callable[
    [NDArray[np.bool_], NDArray[np.float32], SimilarityMap, PointPrompts, NDArray[np.float32]],
    Choice,
]
"""Masks (M, H, W), scores (M,), the map, points, low-resolution logits (M, h, w) -> which mask. A figure ``"total"`` of each
mask, where there is one, is what an object's score and the comparison of rounds go by; else SAM's score is."""


@dataclass(frozen=True)
class Strategy:
    """A recipe from similarity maps to a mask.

    Attributes:
        name: told in ``Segmentation.strategy``.
        points: chooses the points of one object after the other.
        choose: chooses among SAM's candidates.
        objects: how many objects of a text are looked for at most. 1 sends all points in one call and takes one mask.
        rounds: how often a chosen mask goes back to SAM with corrected points, where that improves its total.
        support: with several objects, one stays when the map's mean contrast at it reaches this share of the best one's,
            in [0, 1] (the figure ``"contrast"``; a rule that gives none keeps them all).
        margin: with several objects, one stays when its log-odds against the model's vocabulary (``ClipSurgery.region_odds``)
            are at most this far below the best one's; only where ``vocabulary`` is set and the model has one.
        answers_absent: whether a text that is not there by its presence score gets a mask all the same, as in the papers.
        vocabulary: whether a text is set against the model's vocabulary, where it has one and no label set is given.

    Raises:
        InputError: a number is out of range.
    """

    name: str
    points: PointRule
    choose: MaskRule
    objects: int = 1
    rounds: int = 0
    support: float = 0.0
    margin: float = float("inf")
    answers_absent: bool = True
    vocabulary: bool = False

    def __post_init__(self) -> None:
        if self.objects < 1 or self.rounds < 0 or not 0.0 <= self.support <= 1.0 or not self.margin >= 0.0:
            raise InputError(
                "a Strategy needs objects of at least 1, rounds and margin of at least 0 and support in [0, 1], "
                f"not {self.objects}, {self.rounds}, {self.margin} and {self.support}"
            )


def paper_points(
    maps: Sequence[SimilarityMap], shape: tuple[int, int], taken: Sequence[NDArray[np.bool_]] = ()
) -> PointPrompts:
    """The papers' points: :func:`points_from_similarity` with its defaults, all in one prompt; none once a mask is taken.

    Texts joined in one target each give their positive points; the negative ones come from the mean of
    the min-max maps, as in the papers' code for several texts.
    """
    if len(taken):
        return PointPrompts.empty()
    if len(maps) == 1:
        return points_from_similarity(maps[0], shape)
    each = [points_from_similarity(m, shape).positive for m in maps]
    cold = points_from_similarity(joint_map(maps), shape).negative
    coords = np.concatenate([*each, cold])
    labels = np.zeros(len(coords), np.uint8)
    labels[: len(coords) - len(cold)] = 1
    return PointPrompts(coords, labels)


def joint_map(maps: Sequence[SimilarityMap]) -> SimilarityMap:
    """One map for texts joined in one target: the mean of their min-max maps; a single map stays as it is."""
    if len(maps) == 1:
        return maps[0]
    values = np.mean([m.normalized() for m in maps], axis=0).astype(np.float32)
    return SimilarityMap(values, "+".join(m.text for m in maps), maps[0].method)


def mean_map(maps: Sequence[SimilarityMap], text: str) -> SimilarityMap:
    """One map for synonyms: the mean of their similarities, which is the similarity to the mean of their embeddings."""
    values = np.stack([m.values for m in maps]).mean(axis=0).astype(np.float32)
    return SimilarityMap(values, text, maps[0].method)


# chosen on tuning scenes: lower peaks are mostly other things, one negative point parts touching objects, and rounds of
# refinement rather join neighbours than better a mask
_peaks = PeakRule(hot=0.7, negatives=1)


def peak_points(maps: Sequence[SimilarityMap], shape: tuple[int, int], taken: Sequence[NDArray[np.bool_]] = ()) -> PointPrompts:
    """The points of the next object by :class:`text2sam.recipes.points.PeakRule`, on the joint map."""
    return _peaks(joint_map(maps), shape, taken)


STRATEGIES: dict[str, Strategy] = {
    "objects": Strategy(
        "objects",
        peak_points,
        choose_by_agreement,
        objects=8,
        support=0.5,
        margin=5.0,
        answers_absent=False,
        vocabulary=True,
    ),
    "paper": Strategy("paper", paper_points, choose_by_score),
}
"""Recipes by name. ``"objects"``, the default: one prompt per peak of the map, the mask that agrees best with the map,
every object of a text, and nothing for a text that is not there. ``"paper"``: the papers' point rule, all points in one
prompt, and SAM's own score among its three masks."""

DEFAULT = "objects"


def get_strategy(strategy: str | Strategy) -> Strategy:
    """A recipe by name, or the one given.

    Raises:
        InputError: there is none of that name.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise InputError(f"strategy must be a Strategy or one of {', '.join(STRATEGIES)}, not {strategy!r}")
    return STRATEGIES[strategy]
