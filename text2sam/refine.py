"""Results that a person corrects: functions from one result to another, all but :func:`corrected` pure.

Objects are numbered as in :attr:`Segmentation.instances <text2sam.types.Segmentation.instances>`, and keep their order.
:meth:`text2sam.TextPromptedSAM.refine` asks SAM again with a person's points, by :func:`corrected`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import check_number
from text2sam.errors import InputError
from text2sam.masks import SPECKS, Masks, without_specks
from text2sam.recipes.choose import Choice, MaskRule, Offer, agreement, choose_by_agreement, mask_iou
from text2sam.recipes.points import pixels_under
from text2sam.types import PointPrompts, Segmentation, box_of

if TYPE_CHECKING:
    from text2sam.sam.session import SamImage, Session

CLICKS = "clicks"
"""The ``strategy`` of an object that a person's points made."""


def choose_by_clicks(offer: Offer, before: NDArray[np.bool_] | None = None) -> Choice:
    """The mask with the most points on their right side; of equals the one of the highest total, as in
    :func:`~text2sam.recipes.choose.choose_by_agreement`, plus IoU with the mask that the points correct.

    Args:
        offer: SAM's answer.
        before: (H, W) bool, the mask that the points correct; None for a new object.
    """
    choice, points = choose_by_agreement(offer), offer.points
    right = choice.figures["points"]
    near = 0 if before is None else np.array([mask_iou(mask, before) for mask in offer.masks])
    index = int(np.lexsort((choice.figures["total"] + near, right))[-1])
    share = round(float(right[index]) * len(points))
    reason = f"{share} of {len(points)} points are on its right side; its total {choice.figures['total'][index]:.3f}"
    return Choice(index, reason, choice.figures)


def choose_first(offer: Offer) -> Choice:
    """The first mask, with the figures of :func:`~text2sam.recipes.choose.choose_by_agreement`."""
    return Choice(0, "SAM's single mask for several points and the mask before", agreement(offer))


def with_candidate(result: Segmentation, number: int, index: int) -> Segmentation:
    """A result in which an object has another of the masks that SAM offered for it.

    What ``exclude`` took from the mask before stays out of it.

    Args:
        result: any.
        number: of the object, from 0.
        index: of the mask in the object's ``candidates``.

    Raises:
        InputError: there is no such object or mask, or SAM was not asked.
    """
    part = _object(result, number)
    offered = part.candidates
    if offered is None:
        raise InputError(f"SAM was not asked for object {number} of {result.text!r}, so it has no other masks")
    index = int(check_number("index", index, 0, len(offered) - 1, whole=True))
    masks, totals = offered.masks, offered.figures.get("total", offered.scores)
    mask = _clean(masks[index], part.points)
    if result.excluded:
        mask = mask & ~(_clean(masks[offered.chosen], part.points) & ~part.mask)
    total = float(totals[offered.chosen])
    sure = part.score / total if total else 1.0  # a result's score may also count how sure it is that the text is there
    score = min(max(float(totals[index]) * sure, 0.0), 1.0) if mask.any() else 0.0
    chosen = replace(offered, masks=masks, chosen=index, reason="chosen by hand")
    changed = replace(part, mask=mask, box=box_of(mask), score=score, candidates=chosen, present=False)
    return with_objects(result, _exchanged(result, number, changed))


def without_object(result: Segmentation, number: int) -> Segmentation:
    """A result without one of its objects; without its last one it is a result of nothing.

    Raises:
        InputError: there is no such object.
    """
    _object(result, number)
    return with_objects(result, [part for k, part in enumerate(result.instances) if k != number])


def corrected(session: Session, image: SamImage, result: Segmentation, number: int, points: PointPrompts) -> Segmentation:
    """A result in which SAM has answered a person's points for an object.

    SAM gets the object's own points, the new ones and the mask before. The first time the best of its three masks is taken
    (:func:`choose_by_clicks`), then its single mask.

    Args:
        session, image: SAM's, for the image of the result.
        result, number: as for :func:`with_answer`.
        points: on the object (1) or off it (0), in pixels of the image and within it.

    Raises:
        InputError: an argument is not usable, or the image is of another size than the result.
    """
    if not isinstance(result, Segmentation):
        raise InputError(f"result must be the Segmentation of one text, not {type(result).__name__}")
    if not isinstance(points, PointPrompts):
        raise InputError(f"points must be PointPrompts, such as PointPrompts([[x, y]], [1]), not {type(points).__name__}")
    number = int(check_number("number", number, 0, len(result.instances), whole=True))
    h, w = result.mask.shape
    if image.pixels.shape[:2] != (h, w):
        raise InputError(f"the image is {image.pixels.shape[:2]} (H, W), the result {(h, w)}")
    for x, y in points.coords.tolist():
        if not (-0.5 <= x <= w - 0.5 and -0.5 <= y <= h - 0.5):
            raise InputError(f"the point (x, y) = ({x:g}, {y:g}) is outside the image, which is {w} wide and {h} high")
    before = next(iter(result.instances[number : number + 1]), None)
    together = points if before is None else PointPrompts.joined([before.points, points])
    if not len(points) or not len(together.positive):
        raise InputError("there must be at least one new point, and a point on the object among all of its points")
    offered = None if before is None else before.candidates
    mask = None if offered is None else offered.low_res_logits[offered.chosen][None]
    answer = session.ask(image, together, mask_input=mask)
    if mask is None or before is None or before.strategy != CLICKS:
        return with_answer(result, number, together, answer)
    # SAM's single mask is made for several points and a mask before them; the three stay for the person to choose from
    single = session.ask(image, together, mask_input=mask, multimask_output=False)
    both: Any = tuple(np.concatenate(pair) for pair in zip(single, answer, strict=True))
    return with_answer(result, number, together, both, choose_first)


def with_answer(
    result: Segmentation,
    number: int,
    points: PointPrompts,
    answer: tuple[Masks, NDArray[np.float32], NDArray[np.float32]],
    choose: MaskRule | None = None,
) -> Segmentation:
    """A result in which an object is what SAM answered to a person's points.

    Where a person points the text counts as present: a threshold above ``presence`` comes down to it. Specks are removed
    (:func:`~text2sam.masks.without_specks`), unless a point means one.

    Args:
        result: any.
        number: of the object, from 0; the number of objects adds one.
        points: all that were sent to SAM.
        answer: masks (M, H, W), scores (M,) and low-resolution logits (M, h, w), as
            :meth:`text2sam.sam.session.Session.ask` gives them.
        choose: which mask is taken; None takes :func:`choose_by_clicks`.

    Raises:
        InputError: there is no such object, or the masks are of another size.
    """
    new = number == len(result.instances)
    part = result if new else _object(result, number)
    masks, scores, logits = answer
    if masks.shape[1:] != result.mask.shape:
        raise InputError(f"the masks are of {masks.shape[1:]}, the result is of {result.mask.shape}")
    rule = choose or functools.partial(choose_by_clicks, before=None if new else part.mask)
    offer = Offer(masks, scores, part.similarity, points, logits)
    choice = rule(offer)
    mask = _clean(offer.mask(choice.index), points)
    changed = replace(
        part,
        mask=mask,
        box=box_of(mask),
        score=float(choice.figures.get("total", scores)[choice.index]),
        points=points,
        candidates=offer.taken(choice),
        strategy=CLICKS,
        objects=(),
        present=False,
    )
    counted = replace(result, threshold=min(result.threshold, result.presence))
    return with_objects(counted, _exchanged(result, number, changed))


def with_objects(result: Segmentation, objects: Sequence[Segmentation]) -> Segmentation:
    """A result of these objects, in this order.

    Args:
        result: gives text, presence, map and options.
        objects: results without objects of their own. Those with an empty mask are left out.

    Raises:
        InputError: an object is of another image size, or has objects of its own.
    """
    kept = [part for part in objects if part.box is not None]
    if any(part.objects or part.mask.shape != result.mask.shape for part in kept):
        raise InputError(f"objects must be single objects with masks of {result.mask.shape}")
    mask = np.logical_or.reduce([part.mask for part in kept]) if kept else np.zeros(result.mask.shape, bool)
    present = bool(kept) and result.presence >= result.threshold
    parts = tuple(replace(part, threshold=result.threshold, present=present) for part in kept)
    return replace(
        result,
        mask=mask,
        box=box_of(mask),
        score=max((part.score for part in parts), default=0.0),
        points=PointPrompts.joined(part.points for part in parts),
        candidates=parts[0].candidates if parts else None,
        present=present,
        objects=parts,
    )


def _clean(mask: NDArray[np.bool_], points: PointPrompts) -> NDArray[np.bool_]:
    """A mask without specks, unless a positive point is on an island or a negative one in a hole."""
    clean = without_specks(mask, SPECKS)
    at, wanted = pixels_under(points.coords, mask.shape), points.labels == 1
    return mask if ((mask[at] == wanted) & (clean[at] != wanted)).any() else clean


def _exchanged(result: Segmentation, number: int, part: Segmentation) -> list[Segmentation]:
    objects = list(result.instances)
    return [*objects[:number], part, *objects[number + 1 :]]


def _object(result: Segmentation, number: int) -> Segmentation:
    """An object by its number, as a result of its own."""
    objects = result.instances
    if not objects:
        raise InputError(f"there is no object of {result.text!r}")
    return objects[int(check_number("number", number, 0, len(objects) - 1, whole=True))]
