from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture, tiny_predictor
from segment_anything import SamPredictor

from text2sam.errors import InputError, StateError, UnsupportedModelError
from text2sam.sam import MaskPredictor, check_predictor, predict_points
from text2sam.types import PointPrompts

H, W = 40, 56


def click(*xy: tuple[float, float]) -> PointPrompts:
    return PointPrompts(np.array(xy, np.float32).reshape(-1, 2), np.ones(len(xy), np.uint8))


class Fake:
    """A foreign predictor: answers what it is told and remembers what it was asked."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.images: list[np.ndarray] = []
        self.asked: dict[str, Any] = {}

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def predict(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Any:
        self.asked = {"coords": point_coords, "labels": point_labels, "box": box, "mask": mask_input, "multi": multimask_output}
        return self.answer


def an_answer(m: int = 3, **changed: Any) -> tuple[Any, Any, Any]:
    parts = {
        "masks": np.arange(m * H * W).reshape(m, H, W) % 2 == 0,
        "scores": np.linspace(0.1, 0.9, m, dtype=np.float32),
        "logits": np.zeros((m, 8, 8), np.float32),
    }
    parts.update(changed)
    return parts["masks"], parts["scores"], parts["logits"]


# the protocol


def test_predictors_that_fit() -> None:
    for predictor in (tiny_predictor(), Fake()):
        assert check_predictor(predictor) is predictor
        assert isinstance(predictor, MaskPredictor)

    class Starred:
        def set_image(self, *args: Any) -> None: ...

        def predict(self, **kwargs: Any) -> None: ...

    assert check_predictor(Starred())


def test_predictors_that_do_not_fit() -> None:
    class NoKeywords(Fake):
        def predict(self, point_coords: Any, point_labels: Any, box: Any = None, multimask_output: bool = True) -> None: ...

    class NoArgument(Fake):
        def set_image(self) -> None: ...

    cases = [
        (None, "NoneType.*set_image.*predict"),
        (SimpleNamespace(set_image=print), "no method predict$"),
        (SimpleNamespace(predict=print, set_image=3), "no method set_image$"),
        (tiny_predictor().model, r"SamPredictor\(sam\)"),
        (SamPredictor, "class SamPredictor"),
        (NoKeywords(), "keyword arguments mask_input, return_logits of"),
        (NoArgument(), r"NoArgument.set_image"),
    ]
    for predictor, message in cases:
        with pytest.raises(UnsupportedModelError, match=message):
            check_predictor(predictor)


# predict_points


def test_nothing_to_ask_for() -> None:
    with pytest.raises(InputError, match="at least one point"):
        predict_points(Fake(an_answer()), PointPrompts.empty())


def test_no_image_set() -> None:
    with pytest.raises(StateError, match="set_image"):
        predict_points(tiny_predictor(), click((1, 1)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "NoneType"),
        (an_answer()[:2], "tuple of 2"),
        (an_answer(masks=np.zeros((1, 3, H, W), bool)), r"\(1, 3, 40, 56\)"),
        (an_answer(masks=np.zeros((2, H, W), bool)), r"\(2, 40, 56\), \(3,\)"),
        (an_answer(scores=np.float32(1)), r"\(\)"),
        (an_answer(logits=np.zeros((8, 8))), r"\(8, 8\)"),
        (an_answer(0), r"\(0, 40, 56\)"),
        (an_answer(masks=np.zeros((3, W, H), bool)), r"\(56, 40\) for an image of \(40, 56\)"),
        (an_answer(scores=np.array([0.1, np.nan, 0.2])), "not finite"),
        (an_answer(scores=np.array(["a", "b", "c"])), "numbers"),
    ],
)
def test_answers_that_do_not_fit(answer: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        predict_points(Fake(answer), click((1, 1)), shape=(H, W))
    assert "Fake.predict" in str(caught.value)


def test_prompts_that_do_not_fit() -> None:
    fake = Fake(an_answer())
    for box in ([1, 2, 3], [[1, 2, 3, 4]], [1, 2, 3, np.inf]):
        with pytest.raises(InputError, match="box"):
            predict_points(fake, click((1, 1)), box=np.array(box))
    for shape in ((8, 8), (3, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(InputError, match="mask_input"):
            predict_points(fake, click((1, 1)), mask_input=np.zeros(shape, np.float32))


def test_points_are_passed_on_unshifted_and_unshared() -> None:
    fake, points = Fake(an_answer()), PointPrompts(np.array([[3, 4], [0, 39]], np.float32), np.array([1, 0], np.uint8))
    predict_points(fake, points, multimask_output=False, box=np.array([1, 2, 3, 4]), mask_input=np.ones((1, 8, 8)))
    np.testing.assert_array_equal(fake.asked["coords"], points.coords)
    np.testing.assert_array_equal(fake.asked["labels"], [1, 0])
    np.testing.assert_array_equal(fake.asked["box"], [1, 2, 3, 4])
    assert fake.asked["mask"].shape == (1, 8, 8)
    assert fake.asked["multi"] is False
    fake.asked["coords"] += 1
    np.testing.assert_array_equal(points.coords, [[3, 4], [0, 39]])
    predict_points(fake, PointPrompts.empty(), box=np.array([1, 2, 3, 4], np.float32))
    assert fake.asked["coords"] is fake.asked["labels"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_become_arrays(dtype: torch.dtype) -> None:
    masks, _, logits = an_answer()
    # SAM 2 answers its masks as 0.0 and 1.0, and a regression may leave [0, 1].
    answer = [
        torch.from_numpy(masks).to(dtype),
        torch.tensor([-0.25, 0.5, 1.25], dtype=dtype),
        torch.from_numpy(logits).to(dtype),
    ]
    answer[1].requires_grad_()
    got = predict_points(Fake(answer), click((1, 1)))
    np.testing.assert_array_equal(got[0], masks)
    np.testing.assert_array_equal(got[1], [0, 0.5, 1])
    assert [a.dtype for a in got] == [np.bool_, np.float32, np.float32]


def test_masks_as_logits_are_cut_at_zero() -> None:
    masks = np.resize(np.array([-3.0, 0.0, 0.25, 3.0], np.float32), (3, H, W))
    got = predict_points(Fake(an_answer(masks=masks)), click((1, 1)))[0]
    assert got[0, 0, :4].tolist() == [False, False, True, True]


@pytest.mark.parametrize("multimask", [True, False])
def test_a_real_predictor(multimask: bool) -> None:
    predictor = tiny_predictor()
    predictor.set_image(picture(0, H, W))
    points = click((10, 20), (30, 5))
    expected = predictor.predict(points.coords, points.labels, multimask_output=multimask)
    masks, scores, logits = predict_points(predictor, points, multimask_output=multimask, shape=(H, W))
    assert masks.shape == (3 if multimask else 1, H, W)
    np.testing.assert_array_equal(masks, expected[0])
    np.testing.assert_array_equal(scores, expected[1].clip(0, 1))
    np.testing.assert_array_equal(logits, expected[2])
    refined = predict_points(predictor, points, mask_input=logits[:1])
    assert not np.array_equal(refined[2][0], logits[0])
