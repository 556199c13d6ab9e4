"""Recipes: how points are picked from similarity maps, and masks from what SAM answers."""

from __future__ import annotations

from text2sam.errors import InputError
from text2sam.recipes.objects import Objects
from text2sam.recipes.paper import Paper
from text2sam.recipes.view import Found, Recipe, View
from text2sam.targets import Query

__all__ = ["RECIPES", "Found", "Objects", "Paper", "Query", "Recipe", "View", "get_recipe"]


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
