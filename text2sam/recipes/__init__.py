"""Recipes: how points are picked from similarity maps, and masks from what SAM answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from text2sam.checks import check_returned
from text2sam.errors import InputError
from text2sam.recipes.objects import Objects
from text2sam.recipes.paper import Paper
from text2sam.recipes.view import Found, Prompt, Recipe, View, in_step
from text2sam.targets import Query
from text2sam.types import Candidates, PointPrompts, SimilarityMap

__all__ = ["RECIPES", "Found", "Objects", "Paper", "Prompt", "Query", "Recipe", "View", "find_objects", "get_recipe"]


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (Objects(), Paper())}
"""Recipes by name; ``"objects"`` is the default."""


def get_recipe(strategy: str | Recipe) -> Recipe:
    """A recipe by name, or the recipe given.

    Raises:
        InputError: there is none of that name, or the object is no recipe.
    """
    if isinstance(strategy, str) and strategy in RECIPES:
        return RECIPES[strategy]
    if isinstance(strategy, str) or not isinstance(strategy, Recipe):
        other = "" if isinstance(strategy, str) else ", or a Recipe"
        raise InputError(f"strategy must be one of {', '.join(RECIPES)}{other}, not {strategy!r}")
    return strategy


TEXTS = 16
"""Texts whose prompts a GPU answers together at most; of images above a megapixel fewer, since each holds masks meanwhile."""


def find_objects(recipe: Recipe, view: View, queries: Sequence[Query]) -> Iterator[list[Found]]:
    """What a recipe finds for each target, one after the other.

    Raises:
        InputError: the recipe did not return lists of :class:`Found` with masks of the image's shape.
    """
    steps = getattr(recipe.find, "__func__", None) is Recipe.find
    part = f"{type(recipe).__name__}.{'steps' if steps else 'find'}"
    fitting = int(TEXTS * min(1, 1e6 / (view.shape[0] * view.shape[1])))
    together = max(1, fitting) if steps and view.session.batches else 1
    for first in range(0, len(queries), together):
        some = queries[first : first + together]
        if steps:
            answers: Sequence[object] = in_step(view, [recipe.steps(view, query) for query in some])
        else:
            answers = [recipe.find(view, query) for query in some]
        for answer in answers:
            yield _checked(part, view, answer)


def _checked(part: str, view: View, answer: object) -> list[Found]:
    found = check_returned(part, answer, Found, "a list of Found")
    for each in found:
        mask = each.mask
        if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == view.shape):
            given = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise InputError(f"{part} must return masks of bool {view.shape}, the shape of the image, not {given}")
        for kind, value in ((PointPrompts, each.points), (Candidates, each.candidates), (SimilarityMap, each.similarity)):
            if not isinstance(value, kind):
                raise InputError(f"{part} must return Found with {kind.__name__}, not with {type(value).__name__}")
    return found
