"""Recipes: how points are chosen from maps, and a mask from candidates. Both parts can be exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.points import points_from_similarity
from text2sam.sam.select import Choice, choose_by_score
from text2sam.types import PointPrompts, SimilarityMap

PointRule = Callable[[Sequence[SimilarityMap], tuple[int, int]], PointPrompts]
"""Maps of the texts joined in one target (mostly one), and (H, W) of the image -> points."""

MaskRule = Callable[[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32], PointPrompts], Choice]
"""Masks (M, H, W), scores (M,), the map over the image (H, W) in [0, 1], points -> which mask."""


@dataclass(frozen=True)
class Strategy:
    """A recipe from similarity maps to a mask.

    Attributes:
        name: told in ``Segmentation.strategy``.
        points: chooses the points.
        choose: chooses among SAM's candidates.
    """

    name: str
    points: PointRule
    choose: MaskRule


def paper_points(maps: Sequence[SimilarityMap], shape: tuple[int, int]) -> PointPrompts:
    """The papers' points: :func:`points_from_similarity` with its defaults.

    Texts joined in one target each give their positive points; the negative ones come from the mean of
    the min-max maps, as in the papers' code for several texts.
    """
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


STRATEGIES: dict[str, Strategy] = {"paper": Strategy("paper", paper_points, choose_by_score)}
"""Recipes by name. ``"paper"``: the papers' point rule, and SAM's own score among its three masks."""


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
