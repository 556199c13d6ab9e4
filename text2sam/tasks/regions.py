"""Regions of an image: what SAM sees in it everywhere, without a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.recipes.choose import mask_iou, stability
from text2sam.sam.session import SamImage, Session
from text2sam.types import PointPrompts

SIDE, SCORE, STABLE = 8, 0.4, 0.4
"""Points along each side, so SAM is asked ``SIDE * SIDE`` times, and the least score and stability of a mask: as CorrCLIP's
authors have it for speed (arXiv 2411.10086, their code); 32 points along a side gain 0.6 mIoU there."""

SAME = 0.7
"""IoU from which two masks are one region, as in SAM's automatic mask generation."""


def find_regions(session: Session, image: SamImage) -> NDArray[np.uint16]:
    """The image cut into what SAM sees at the points of a grid: a small form of SAM's automatic mask generation.

    SAM is asked for one mask at each point (arXiv 2304.02643, section 5, has three). A mask stays where its score and its
    stability are high enough, and no mask of a higher score is nearly the same; then :func:`paint_regions`.

    Args:
        session: of the predictor.
        image: from ``session.image``.

    Returns:
        (H, W) uint16: the region of each pixel, from 1; 0 where there is none.

    Raises:
        UnsupportedModelError: the predictor's answer is not usable.
    """
    h, w = image.pixels.shape[:2]
    step = -(-max(h, w) // 256)  # masks are compared on a few pixels, and packed, lest large images fill the memory
    found: list[tuple[float, NDArray[np.bool_], NDArray[np.uint8]]] = []
    for row, column in np.ndindex(SIDE, SIDE):
        at = np.array([[(2 * column + 1) * w // (2 * SIDE), (2 * row + 1) * h // (2 * SIDE)]], np.float32)
        point = PointPrompts(at, np.ones(1, np.uint8))
        masks, scores, logits = session.ask(image, point, multimask_output=False)
        if scores[0] >= SCORE and stability(logits)[0] >= STABLE and (mask := masks[0]).any():
            found.append((float(scores[0]), mask[::step, ::step].copy(), np.packbits(mask)))
    kept: list[tuple[NDArray[np.bool_], NDArray[np.uint8]]] = []
    for _, small, packed in sorted(found, key=lambda each: -each[0]):
        if all(mask_iou(small, other) <= SAME for other, _ in kept):
            kept.append((small, packed))
    return paint_regions([np.unpackbits(packed, count=h * w).reshape(h, w).view(np.bool_) for _, packed in kept], (h, w))


def paint_regions(masks: Sequence[NDArray[np.bool_]], shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Masks as regions without overlap: a pixel belongs to the smallest mask over it, which may lie in a larger one.

    Args:
        masks: (H, W) bool each.
        shape: (H, W).

    Returns:
        (H, W) uint16: 1 for the largest mask's pixels, and so on; 0 under none.
    """
    regions = np.zeros(shape, np.uint16)
    for number, mask in enumerate(sorted(masks, key=lambda mask: -int(mask.sum())), 1):
        regions[mask] = number
    return regions


def majority(classes: NDArray[np.uint16], regions: NDArray[np.integer]) -> NDArray[np.uint16]:
    """The regions' vote: each takes the class that most of its pixels have, the lowest of equals; other pixels keep theirs.

    CorrCLIP's map correction (arXiv 2411.10086).

    Args:
        classes: (H, W) uint16.
        regions: (H, W), the region of each pixel, from 1; 0 where there is none.

    Returns:
        (H, W) uint16.
    """
    count = int(classes.max()) + 1
    names, inverse = np.unique(regions, return_inverse=True)
    votes = np.bincount(inverse.ravel() * count + classes.ravel(), minlength=len(names) * count).reshape(-1, count)
    winners = votes.argmax(axis=1).astype(np.uint16)[inverse].reshape(classes.shape)
    voted: NDArray[np.uint16] = np.where(regions > 0, winners, classes)
    return voted


def check_regions(regions: object, shape: tuple[int, int]) -> NDArray[np.integer]:
    """Regions as a caller gives them: whole numbers of 0 and more for each pixel, or bool masks.

    Args:
        regions: (H, W) of whole numbers, or (M, H, W) bool, see :func:`paint_regions`.
        shape: (H, W) of the image.

    Raises:
        InputError: they are anything else.
    """
    given = np.asarray(regions)
    if given.dtype == np.bool_ and given.ndim == 3 and given.shape[1:] == shape:
        return paint_regions(list(given), shape)
    if not (np.issubdtype(given.dtype, np.integer) and given.shape == shape) or given.min() < 0:
        raise InputError(
            f"regions must be whole numbers of at least 0 of shape {shape}, that of the image, or bool masks of shape "
            f"(M, {shape[0]}, {shape[1]}), not {given.dtype} of shape {given.shape}"
        )
    return given
