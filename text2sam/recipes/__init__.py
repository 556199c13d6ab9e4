"""Recipes: how points are picked from similarity maps, and masks from what SAM answers."""

from __future__ import annotations

import numpy as np

from text2sam.checks import check_returned
from text2sam.errors import InputError
from text2sam.recipes.objects import Objects
from text2sam.recipes.paper import Paper
from text2sam.recipes.view import Found, Recipe, View
from text2sam.targets import Query
from text2sam.types import Candidates, PointPrompts, SimilarityMap

__all__ = ["RECIPES", "Found", "Objects", "Paper", "Query", "Recipe", "View", "find_objects", "get_recipe"]


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
        raise InputError(f"strategy must be one of {', '.join(RECIPES)} or a Recipe, not {strategy!r}")
    return strategy


def find_objects(recipe: Recipe, view: View, query: Query) -> list[Found]:
    """What a recipe finds.

    Raises:
        InputError: the recipe did not return a list of :class:`Found` with masks of the image's shape.
    """
    part = f"{type(recipe).__name__}.find"
    objects = check_returned(part, recipe.find(view, query), Found, "a list of Found")
    for found in objects:
        mask = found.mask
        if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == view.shape):
            given = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise InputError(f"{part} must return masks of bool {view.shape}, the shape of the image, not {given}")
        for kind, value in ((PointPrompts, found.points), (Candidates, found.candidates), (SimilarityMap, found.similarity)):
            if not isinstance(value, kind):
                raise InputError(f"{part} must return Found with {kind.__name__}, not with {type(value).__name__}")
    return objects
