"""Mask overlap, and the papers' choice among candidates."""

from __future__ import annotations

import numpy as np
import pytest

from text2sam.errors import InputError
from text2sam.sam.select import choose_by_score, mask_iou
from text2sam.types import PointPrompts


def test_iou_of_known_masks() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_iou(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(1 / 3)
    assert mask_iou(a, ~a) == 0.0
    with pytest.raises(InputError, match="one shape"):
        mask_iou(a, b[:2])


def test_the_highest_score_wins_and_the_first_of_equals() -> None:
    masks, heat = np.zeros((3, 2, 2), bool), np.zeros((2, 2), np.float32)
    choice = choose_by_score(masks, np.array([0.2, 0.9, 0.9], np.float32), heat, PointPrompts.empty())
    assert choice.index == 1
    assert "0.900" in choice.reason


def test_scores_must_fit_the_masks() -> None:
    heat = np.zeros((2, 2), np.float32)
    for masks, scores in ((np.zeros((0, 2, 2), bool), np.zeros(0)), (np.zeros((2, 2, 2), bool), np.zeros(3))):
        with pytest.raises(InputError, match="one score per mask"):
            choose_by_score(masks, scores.astype(np.float32), heat, PointPrompts.empty())
