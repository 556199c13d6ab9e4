"""Which of SAM's candidate masks is taken, and how masks overlap: pure functions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.types import PointPrompts


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
    heat: NDArray[np.float32],
    points: PointPrompts,
) -> Choice:
    """The papers' choice: the mask SAM itself scores highest; the first of equals.

    Args:
        masks: (M, H, W) bool.
        scores: (M,) float32, SAM's estimates of the masks' IoU.
        heat: (H, W) float32 in [0, 1], the similarity map over the image; not looked at.
        points: the prompts the masks answer; not looked at.

    Raises:
        InputError: there is no mask, or not one score per mask.
    """
    if not len(masks) or scores.shape != (len(masks),):
        raise InputError(f"there must be one score per mask and at least one mask, not {scores.shape} for {len(masks)}")
    index = int(np.argmax(scores))
    return Choice(index, f"SAM's own score {scores[index]:.3f} is the highest of {len(scores)}")


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union of two (H, W) bool masks, in [0, 1]; 1 when both are empty.

    Raises:
        InputError: the masks differ in shape.
    """
    if a.shape != b.shape:
        raise InputError(f"masks must have one shape, not {a.shape} and {b.shape}")
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
