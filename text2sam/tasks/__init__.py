"""The papers' other systems: recognition, semantic segmentation, and which words of a text an image bears out."""

from __future__ import annotations

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
