"""Mask predictors: the protocol, and masks for points in one form whatever the predictor.

The protocol is ``SamPredictor``'s (Kirillov et al. 2023, "Segment Anything", arXiv 2304.02643).
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import accepts, as_array
from text2sam.errors import InputError, StateError, UnsupportedModelError
from text2sam.masks import LogitMasks, Masks
from text2sam.types import PointPrompts

Answer: TypeAlias = tuple[Masks, NDArray[np.float32], NDArray[np.float32]]
"""``(masks, scores, low_res_logits)``, as :func:`predict_points` gives them."""

_KEYWORDS = ("point_coords", "point_labels", "box", "mask_input", "multimask_output", "return_logits")


@runtime_checkable
class MaskPredictor(Protocol):
    """What turns points into masks: anything with these two methods, as ``SamPredictor`` has them.

    A predictor may also have ``objectness(embedding)``: how likely each place of its embedding (C, gh, gw) of an image is on a
    thing, (gh, gw) float32 in [0, 1], as :class:`~text2sam.sam.objectness.Objectness` tells it. The default recipe then looks
    for things on things. Folder jobs know it by its method ``fingerprint`` where it has one, networks by their weights.
    """

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Encodes an image; prompts refer to it from then on.

        Args:
            image: (H, W, 3) uint8 RGB.
        """

    def predict(
        self,
        point_coords: NDArray[Any] | None,
        point_labels: NDArray[Any] | None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Any, Any, Any]:
        """Masks for prompts on the current image.

        Args:
            point_coords: (N, 2), (x, y) in pixels of the image given to ``set_image``.
            point_labels: (N,), 1 on the object, 0 off it.
            box: (4,) xyxy in pixels.
            mask_input: (1, h, w) logits, one of an earlier answer's ``low_res_logits``.
            multimask_output: three masks when true, one when false.
            return_logits: masks as logits in place of booleans.

        Returns:
            ``(masks, scores, low_res_logits)``: (M, H, W) bool (or logits), (M,) predicted IoU of each
            mask, (M, h, w) logits.
        """
        ...


def check_predictor(predictor: object) -> MaskPredictor:
    """The predictor itself, once it is seen to have :class:`MaskPredictor`'s methods.

    Raises:
        UnsupportedModelError: a method or one of its arguments is missing; the message says which.
    """
    name = predictor.__name__ if isinstance(predictor, type) else type(predictor).__name__
    if isinstance(predictor, type):
        raise UnsupportedModelError(f"the predictor must be an object, not the class {name}; give {name}(model)")
    missing = [m for m in ("set_image", "predict") if not callable(getattr(predictor, m, None))]
    if missing:
        hint = f"; a Sam model must be wrapped: SamPredictor({name.lower()})" if hasattr(predictor, "image_encoder") else ""
        raise UnsupportedModelError(f"{name} cannot predict masks: it has no method {' and no method '.join(missing)}{hint}")
    candidate = cast(MaskPredictor, predictor)
    if not accepts(candidate.set_image, 1, ()):
        raise UnsupportedModelError(f"{name}.set_image must take one image of shape (H, W, 3)")
    lacking = [k for k in _KEYWORDS if not accepts(candidate.predict, 0, (k,))]
    if lacking:
        raise UnsupportedModelError(
            f"{name}.predict does not take the keyword arguments {', '.join(lacking)} of SamPredictor.predict"
        )
    return candidate


def predict_points(
    predictor: MaskPredictor,
    points: PointPrompts,
    *,
    multimask_output: bool = True,
    mask_input: NDArray[np.float32] | None = None,
    box: NDArray[np.float32] | None = None,
    shape: tuple[int, int] | None = None,
    lazy: bool = False,
) -> Answer:
    """Masks for point prompts, in one form whatever the predictor returns.

    Points go to the predictor as they are: SAM itself shifts them to the middle of the pixel.

    Args:
        predictor: any :class:`MaskPredictor` whose image is set.
        points: (x, y) in pixels of that image.
        multimask_output: three masks when true, one when false.
        mask_input: (1, h, w) float32 logits of an earlier answer.
        box: (4,) float32 xyxy in pixels.
        shape: (H, W) of the image, when known: masks of another size are refused.
        lazy: takes masks that are made when they are asked for, where ``predict`` has an argument of this name.

    Returns:
        ``(masks, scores, low_res_logits)``. Masks are (M, H, W) bool, or, with ``lazy``, :class:`~text2sam.masks.LogitMasks`;
        where the predictor does not answer in bool, above 0 is on. Scores are (M,) float32, the predicted IoUs clipped to
        [0, 1]: SAM's regression may leave that range a little, and ``predictor.predict`` gives it raw. Logits are (M, h, w)
        float32.

    Raises:
        InputError: there is neither a point nor a box nor a mask, or one of them has another shape.
        StateError: no image is set.
        UnsupportedModelError: the answer is not of the shapes above, scores are not finite, or a mask or logit is NaN.
    """
    prompts = prompt_of(points, mask_input, box)
    if getattr(predictor, "is_image_set", True) is False:
        raise StateError("no image is set: call set_image before asking for masks")
    with contextlib.suppress(TypeError, ValueError):  # compiled functions have no signature
        if lazy and "lazy" in inspect.signature(predictor.predict).parameters:  # not accepts: arguments may be passed on
            prompts["lazy"] = True
    return checked_answer(predictor, predictor.predict(**prompts, multimask_output=multimask_output), shape)


def checked_answer(predictor: MaskPredictor, answer: Any, shape: tuple[int, int] | None = None) -> Answer:
    """What a predictor answered, in the form of :func:`predict_points`.

    Raises:
        UnsupportedModelError: as :func:`predict_points`.
    """
    name = type(predictor).__name__
    if not isinstance(answer, (tuple, list)) or len(answer) != 3:
        raise UnsupportedModelError(f"{name}.predict must return (masks, scores, low_res_logits), not {_kind(answer)}")
    try:
        masks, scores, logits = (_to_array(value) for value in answer)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, sparse tensors
        raise UnsupportedModelError(f"{name}.predict must return three arrays: {error}") from error
    count = len(scores) if scores.ndim == 1 else 0
    fits = count > 0 and len(masks.shape) == logits.ndim == 3 and len(masks) == len(logits) == count and 0 not in masks.shape
    if not fits:
        shapes = ", ".join(str(a.shape) for a in (masks, scores, logits))
        raise UnsupportedModelError(
            f"{name}.predict must return shapes (M, H, W), (M,), (M, h, w) with M at least 1, not {shapes}"
        )
    if shape is not None and masks.shape[1:] != tuple(shape):
        raise UnsupportedModelError(f"{name}.predict returned masks of {masks.shape[1:]} for an image of {tuple(shape)}")
    if any(a.dtype.kind not in "biuf" for a in (masks, scores, logits)):
        raise UnsupportedModelError(f"{name}.predict must return numbers, not {masks.dtype}, {scores.dtype}, {logits.dtype}")
    if not np.isfinite(scores).all():
        raise UnsupportedModelError(
            f"{name}.predict returned scores that are not finite ({scores}); in half precision try float32"
        )
    for kind, values in (("masks", masks), ("low_res_logits", logits)):
        if values.dtype.kind == "f" and np.isnan(values).any():  # above 0 nowhere, which would read as "not here"
            raise UnsupportedModelError(f"{name}.predict returned {kind} with NaN in them; in half precision try float32")
    if isinstance(masks, LogitMasks):
        return masks, scores.astype(np.float32).clip(0, 1), masks.logits
    on = masks.copy() if masks.dtype == np.bool_ else masks > 0  # a predictor may use its arrays again
    return on, scores.astype(np.float32).clip(0, 1), logits.astype(np.float32)


def prompt_of(points: PointPrompts, mask_input: NDArray[Any] | None, box: NDArray[Any] | None) -> dict[str, Any]:
    """A prompt as the keyword arguments of ``predict``.

    Raises:
        InputError: as :func:`predict_points`.
    """
    if not len(points) and box is None and mask_input is None:
        raise InputError("there is nothing to ask for: give at least one point, a box or a mask")
    prompts: dict[str, Any] = {"point_coords": None, "point_labels": None}
    if len(points):
        # Copies: a predictor that scales in place must not change the caller's prompts.
        prompts = {"point_coords": points.coords.copy(), "point_labels": points.labels.astype(np.int64)}
    if box is not None:
        corners = np.array(box, np.float32)
        if corners.shape != (4,) or not np.isfinite(corners).all():
            raise InputError(f"box must be four finite numbers xyxy, not {box!r}")
        prompts["box"] = corners
    if mask_input is not None:
        mask = np.array(mask_input, np.float32)
        if mask.ndim != 3 or len(mask) != 1:
            raise InputError(f"mask_input must have the shape (1, h, w), not {mask.shape}")
        prompts["mask_input"] = mask
    return prompts


def _to_array(value: Any) -> Any:
    return value if isinstance(value, LogitMasks) else as_array(value)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
