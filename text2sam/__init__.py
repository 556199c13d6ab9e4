"""From a text prompt to a segmentation mask.

CLIP Surgery (arXiv 2304.05653) turns a text and an image into a similarity map, the map's hottest and
coldest places become point prompts, and Segment Anything turns points into a mask::

    from text2sam import TextPromptedSAM

    model = TextPromptedSAM.from_pretrained("sticker")
    result = model.segment("scene.png", "cat")
    result.mask, result.score, result.box
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# resolved on first use, so that importing text2sam does not import torch
_HOMES = {
    "TextPromptedSAM": "text2sam.pipeline",
    "ClipSurgery": "text2sam.clip.generator",
    "Segmentation": "text2sam.types",
    "SimilarityMap": "text2sam.types",
    "PointPrompts": "text2sam.types",
    "Candidates": "text2sam.types",
    "Calibration": "text2sam.presence",
    "Recipe": "text2sam.recipes.view",
    "Text2SamError": "text2sam.errors",
    "feature_surgery": "text2sam.clip.similarity",
    "similarity_map": "text2sam.clip.similarity",
    "points_from_similarity": "text2sam.recipes.points",
}

if TYPE_CHECKING:
    from text2sam.clip.generator import ClipSurgery
    from text2sam.clip.similarity import feature_surgery, similarity_map
    from text2sam.errors import Text2SamError
    from text2sam.pipeline import TextPromptedSAM
    from text2sam.presence import Calibration
    from text2sam.recipes.points import points_from_similarity
    from text2sam.recipes.view import Recipe
    from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap

__all__ = [
    "Calibration",
    "Candidates",
    "ClipSurgery",
    "PointPrompts",
    "Recipe",
    "Segmentation",
    "SimilarityMap",
    "Text2SamError",
    "TextPromptedSAM",
    "feature_surgery",
    "points_from_similarity",
    "similarity_map",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'text2sam' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
