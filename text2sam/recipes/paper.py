"""The papers' recipe: all points of a text in one prompt, and the mask that SAM scores highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from text2sam.recipes.choose import choose_by_score
from text2sam.recipes.points import joint_map, points_from_similarity
from text2sam.recipes.view import Prompt, Recipe, Steps, View
from text2sam.targets import Query
from text2sam.types import PointPrompts, SimilarityMap


def paper_points(maps: Sequence[SimilarityMap], shape: tuple[int, int]) -> PointPrompts:
    """The papers' points: :func:`~text2sam.recipes.points.points_from_similarity` with its defaults.

    Texts joined in one target each give their positive points; the negative ones come from the mean of the min-max maps, as
    in the papers' code for several texts.

    Args:
        maps: one map per text.
        shape: (H, W) of the image in pixels.
    """
    if len(maps) == 1:
        return points_from_similarity(maps[0], shape)
    each = [points_from_similarity(m, shape).positive for m in maps]
    cold = points_from_similarity(joint_map(maps), shape).negative
    labels = np.repeat(np.array([1, 0], np.uint8), [sum(map(len, each)), len(cold)])
    return PointPrompts(np.concatenate([*each, cold]), labels)


@dataclass(frozen=True)
class Paper(Recipe):
    """CLIP Surgery's own way from a map to a mask (arXiv 2304.05653, section 3.4): one mask for all objects of a text.

    A text that is not there gets a mask all the same: the hottest place of a map always exists.

    Attributes:
        smooth: see :class:`~text2sam.recipes.view.Recipe`; None is the papers' way, without smoothing.
    """

    name: str = "paper"
    answers_absent: bool = True
    single: bool = True
    vocabulary: bool = False
    smooth: bool | None = None

    def steps(self, view: View, query: Query) -> Steps:
        """One object, or none where the map is flat."""
        maps = view.maps(query)
        points = view.avoid.points(paper_points(maps, view.shape))
        if not len(points.positive):
            return []
        [found] = yield [Prompt(joint_map(maps), points, choose_by_score)]
        return [view.avoid.cut(found)]
