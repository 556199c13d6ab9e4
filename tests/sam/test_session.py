from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FakePredictor, count_calls, picture, tiny_predictor
from segment_anything import SamPredictor

from text2sam.errors import InputError, UnsupportedModelError
from text2sam.sam.objectness import Objectness
from text2sam.sam.session import SAM2, SamImage, Session
from text2sam.types import PointPrompts

CLICK = PointPrompts([[5, 6]], [1])


def equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class Sam2Like:
    """SAM 2's names; answers with what it holds."""

    def __init__(self) -> None:
        self.model = torch.nn.Identity()
        self.encodings: list[float] = []
        self.reset_predictor()

    def reset_predictor(self) -> None:
        self._features, self._orig_hw, self._is_image_set = None, None, False

    def set_image(self, image: Any) -> None:
        self.encodings.append(float(image.mean()))
        self._features, self._orig_hw, self._is_image_set = {"mean": float(image.mean())}, [image.shape[:2]], True

    def predict(self, point_coords: Any, point_labels: Any, box: Any = None, mask_input: Any = None, **_: Any) -> Any:
        masks = np.zeros((3, *self._orig_hw[0]), np.float32)  # type: ignore[index]
        return masks, np.ones(3, np.float32), np.full((3, 4, 4), self._features["mean"], np.float32)  # type: ignore[index]


def test_what_is_no_predictor() -> None:
    for thing in (object(), FakePredictor, None):
        with pytest.raises(UnsupportedModelError):
            Session.of(thing)  # type: ignore[arg-type]


def test_there_is_one_session_of_a_predictor() -> None:
    one, other = tiny_predictor(), tiny_predictor()
    assert Session.of(one) is Session.of(one)
    assert Session.of(one) is not Session.of(other)
    held = weakref.ref(Session.of(one))
    gc.collect()
    assert held() is None  # nobody held it


@pytest.mark.parametrize("make", [tiny_predictor, Sam2Like])
def test_images_in_turn_are_encoded_once(make: Any) -> None:
    predictor = make()
    session = Session.of(predictor)
    encodings = count_calls(predictor.model.image_encoder) if make is tiny_predictor else predictor.encodings
    a, b = session.image(picture(1)), session.image(picture(2, 20, 50))
    assert a.state is None
    first = [session.ask(image, CLICK) for image in (a, b)]
    predictor.set_image(picture(3))  # somebody else's
    assert all(equal(session.ask(image, CLICK), wanted) for image, wanted in zip((a, b, a), (*first, first[0]), strict=False))
    assert len(encodings) == 3
    assert not equal(*first)
    assert first[1][0].shape[1:] == (20, 50)
    session.reset()
    assert not (predictor._is_image_set if make is Sam2Like else predictor.is_image_set)
    assert equal(session.ask(a, CLICK), first[0])  # images keep their states
    # a state that was kept elsewhere stands for an encoding
    assert equal(session.ask(session.image(picture(1), dict(a.state or {})), CLICK), first[0])
    assert len(encodings) == 3


def test_a_state_is_not_for_another_model() -> None:
    image = Session.of(tiny_predictor()).image(picture(1))
    with pytest.raises(InputError, match="another model"):
        Session.of(tiny_predictor()).ask(image, CLICK)


def test_a_state_holds_what_relatives_of_sam_keep_besides() -> None:
    class Relative(SamPredictor):
        def set_image(self, image: Any, image_format: str = "RGB") -> None:
            super().set_image(image, image_format)
            self.interm_features = [float(image.mean())]

    predictor = Relative(tiny_predictor().model)
    session = Session.of(predictor)
    a, b = session.image(picture(1)), session.image(picture(2))
    session.encode([a, b])
    session.ask(a, CLICK)
    assert predictor.interm_features == [picture(1).mean()]


def test_predictors_that_keep_state_elsewhere_are_given_the_image_again() -> None:
    fake = FakePredictor()
    session = Session.of(fake)
    assert not session.keeps_state
    a, b = session.image(picture(1)), session.image(picture(2))
    for image in (a, a, b, b, a):
        session.ask(image, CLICK)
    assert [i.mean() for i in fake.images] == [picture(1).mean(), picture(2).mean(), picture(1).mean()]
    fake.set_image(picture(3))
    session.ask(a, CLICK)
    assert fake.images[-1].mean() == picture(1).mean()
    fake.fail = "set_image"
    with pytest.raises(ZeroDivisionError):
        session.ask(b, CLICK)
    fake.fail = ""
    session.ask(a, CLICK)
    assert fake.images[-1].mean() == picture(1).mean()


def test_predictors_with_slots_are_always_given_the_image() -> None:
    class Slotted:
        __slots__ = ("__weakref__", "calls", "image")

        def set_image(self, image: Any) -> None:
            self.image, self.calls = image, getattr(self, "calls", 0) + 1

        def predict(self, point_coords: Any, point_labels: Any, box: Any = None, mask_input: Any = None, **_: Any) -> Any:
            return np.zeros((1, *self.image.shape[:2]), bool), np.ones(1), np.full((1, 2, 2), self.image.mean())

    slotted = Slotted()
    session = Session.of(slotted)
    a = session.image(picture(1))
    session.ask(a, CLICK)
    slotted.image = picture(2)
    assert session.ask(a, CLICK)[2].mean() == pytest.approx(picture(1).mean())


def test_embeddings_are_cut_to_the_image() -> None:
    predictor = tiny_predictor()  # 64 px, 4 x 4 places
    session = Session.of(predictor)
    wide, tall, thin = (session.image(picture(1, *shape)) for shape in ((32, 64), (44, 30), (2, 60)))
    held = session.embedding(wide)
    assert held is not None
    assert np.array_equal(held, predictor.features[0, :, :2].numpy())
    held = session.embedding(tall)
    assert held is not None
    assert held.shape == (16, 4, 3)
    # 30 / 44 of four places: the middles of thirds of the image, between the middles of places
    columns = (np.arange(3) + 0.5) * (44 / 16) / 3 - 0.5
    features = predictor.features[0].numpy()
    left = np.floor(columns).astype(int).clip(0)
    expected = features[..., left] * (1 - (columns - left).clip(0)) + features[..., left + 1] * (columns - left).clip(0)
    np.testing.assert_allclose(held, expected, atol=1e-5)
    held = session.embedding(thin)
    assert held is not None
    assert held.shape == (16, 1, 4)


def test_embeddings_of_other_predictors() -> None:
    assert Session.of(FakePredictor()).embedding(SamImage(picture(1), None)) is None
    predictor = Sam2Like()
    session = Session.of(predictor)
    image = session.image(picture(1))
    assert session.embedding(image) is None  # a relative that keeps something else
    squashed = torch.arange(2.0 * 3 * 3).reshape(1, 2, 3, 3)
    image = session.image(picture(1), {"_features": {"image_embed": squashed}, "_orig_hw": [(30, 44)], "_is_image_set": True})
    held = session.embedding(image)
    assert held is not None
    assert np.array_equal(held, squashed[0].numpy())


def test_a_batch_is_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = tiny_predictor()
    for image_format in ("RGB", "BGR"):
        predictor.model.image_format = image_format
        session = Session(predictor)
        images = [picture(1), picture(2, 15, 44), picture(3, 30, 14)]
        alone = [session.image(image) for image in images]
        for image in alone:
            session.encode([image])
        together = [session.image(image) for image in images]
        with monkeypatch.context() as patch:
            patch.setattr(Session, "batches", True)
            encoder = count_calls(predictor.model.image_encoder)
            session.encode(together)
        assert [shape[0] for shape in encoder] == [3]
        assert not predictor.is_image_set
        for image, expected in zip(together, alone, strict=True):
            assert image.state is not None
            assert expected.state is not None
            assert image.state.keys() == expected.state.keys()
            assert tuple(image.state["original_size"]) == tuple(expected.state["original_size"])
            assert tuple(image.state["input_size"]) == tuple(expected.state["input_size"])
            torch.testing.assert_close(image.state["features"], expected.state["features"], rtol=0, atol=1e-5)
            assert np.array_equal(session.ask(image, CLICK)[0], session.ask(expected, CLICK)[0])


def test_sam_2_keeps_the_callers_autocast() -> None:
    seen = []

    class Watched(Sam2Like):
        def predict(self, *arguments: Any, **options: Any) -> Any:
            seen.append((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
            return super().predict(*arguments, **options)

    session = Session.of(Watched())
    with torch.autocast("cpu", torch.bfloat16):
        session.ask(session.image(picture(1)), CLICK)
    assert seen == [torch.bfloat16]
    assert vars(Watched()).keys() >= SAM2


def test_objectness_is_asked_of_a_predictor_that_tells_it() -> None:
    predictor = tiny_predictor()
    session = Session.of(predictor)
    embedding = session.embedding(session.image(picture(1)))
    assert embedding is not None
    assert session.objectness(embedding) is None
    weight = np.linspace(-1, 1, 16, dtype=np.float32)
    predictor.objectness = head = Objectness(weight, 0.5)
    told = session.objectness(embedding)
    assert told is not None
    expected = [[float(weight @ embedding[:, y, x]) + 0.5 for x in range(told.shape[1])] for y in range(told.shape[0])]
    np.testing.assert_allclose(told, np.clip(expected, 0, 1), atol=1e-6)
    assert 0 < told.mean() < 1
    with pytest.raises(InputError, match=r"of shape \(16, gh, gw\), not \(15, 3, 4\)"):
        head(embedding[1:])
    for wrong in (told[1:], told[None], told + 1, told * np.nan, None, "a cat", [[1], [1, 2]], told.astype(object)):
        predictor.objectness = lambda _, wrong=wrong: wrong
        with pytest.raises(UnsupportedModelError, match=r"SamPredictor.objectness must return .* of shape \(3, 4\)"):
            session.objectness(embedding)
    predictor.objectness = told
    with pytest.raises(UnsupportedModelError, match=r"SamPredictor.objectness must be called .* is a ndarray"):
        session.objectness(embedding)
    before = embedding.copy()
    predictor.objectness = lambda given: torch.from_numpy(np.multiply(given, 0, out=given)[0]).bool()
    np.testing.assert_array_equal(session.objectness(embedding), np.zeros((3, 4)))
    np.testing.assert_array_equal(embedding, before)


def test_an_images_state_is_not_what_tells_things() -> None:
    predictor = tiny_predictor()
    predictor.objectness = None
    session = Session.of(predictor)
    image = session.image(picture(1))
    session.ask(image, CLICK)
    predictor.objectness = head = Objectness(np.zeros(16, np.float32), 0.5)
    session.ask(image, CLICK)
    assert predictor.objectness is head


def test_prompts_of_a_batch_are_as_those_sent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "batches", True)
    monkeypatch.setattr("text2sam.sam.batch.PROMPTS", 2)
    predictor = tiny_predictor()
    session = Session.of(predictor)
    image = session.image(picture(1, 60, 90))
    assert session.ask_all(image, []) == []
    two, box = PointPrompts([[50, 20], [8, 40]], [1, 0]), np.array([10, 5, 70, 50], np.float32)
    other = PointPrompts([[80.5, 3]], [1])
    prompts = [(CLICK, None), (two, box), (other, None), (two, None), (CLICK, box), (PointPrompts.empty(), box), (CLICK, None)]
    runs = count_calls(predictor.model.mask_decoder.transformer)
    before = session.calls
    answers = session.ask_all(image, prompts)
    assert session.calls - before == len(prompts)
    assert sorted(shape[0] for shape in runs) == [1, 1, 1, 1, 1, 2]
    for (points, corners), (masks, scores, logits) in zip(prompts, answers, strict=True):
        expected = session.ask(image, points, box=corners)
        np.testing.assert_allclose(logits, expected[2], atol=1e-5)
        np.testing.assert_allclose(scores, expected[1], atol=1e-5)
        assert masks.shape == (3, 60, 90)
        assert (np.asarray(masks) != expected[0]).mean() < 1e-3
        assert logits.base is None, "a view keeps the whole batch alive"
    assert not equal(answers[0][2:], answers[2][2:])
    [listed, _] = session.ask_all(image, [(CLICK, box.tolist()), (CLICK, None)])  # type: ignore[list-item]
    np.testing.assert_allclose(listed[2], session.ask(image, CLICK, box=box)[2], atol=1e-5)
    for bad in (None, np.zeros((2, 4)), np.full(4, np.nan)):
        with pytest.raises(InputError, match="nothing to ask for" if bad is None else "box must be four finite numbers"):
            session.ask_all(image, [(CLICK, None), (PointPrompts.empty(), bad)])
    predictor.model.mask_decoder.iou_prediction_head.layers[-1].bias.data[:] = float("nan")
    with pytest.raises(UnsupportedModelError, match="scores that are not finite"):
        session.ask_all(image, prompts)


def test_batches_are_for_what_is_known_to_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SamPredictor, "device", torch.device("cuda"))
    predictor = tiny_predictor()
    assert Session.of(predictor).batches
    for name in ("predict", "interm_features"):
        changed = tiny_predictor()
        setattr(changed, name, predictor.predict)
        assert not Session.of(changed).batches
    assert not Session.of(type("Relative", (SamPredictor,), {})(predictor.model)).batches
    assert not Session.of(FakePredictor()).batches
    monkeypatch.setattr(SamPredictor, "device", torch.device("cpu"))
    assert not Session.of(tiny_predictor()).batches
