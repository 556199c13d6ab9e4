"""The papers' other systems: recognition, semantic segmentation, and which words of a text an image bears out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# resolved on first use, so that importing this package does not import torch
_HOMES = {
    "recognize": "text2sam.tasks.recognition",
    "recognize_many": "text2sam.tasks.recognition",
    "Recognition": "text2sam.tasks.recognition",
    "segment_semantic": "text2sam.tasks.semantic",
    "SemanticMap": "text2sam.tasks.semantic",
    "explain_text": "text2sam.tasks.explanation",
    "TextExplanation": "text2sam.tasks.explanation",
    "ICLIP": "text2sam.tasks.iclip",
}

if TYPE_CHECKING:
    from text2sam.tasks.explanation import TextExplanation, explain_text
    from text2sam.tasks.iclip import ICLIP
    from text2sam.tasks.recognition import Recognition, recognize, recognize_many
    from text2sam.tasks.semantic import SemanticMap, segment_semantic

__all__ = [
    "ICLIP",
    "Recognition",
    "SemanticMap",
    "TextExplanation",
    "explain_text",
    "recognize",
    "recognize_many",
    "segment_semantic",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'text2sam.tasks' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
