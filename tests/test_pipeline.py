from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FakePredictor, count_calls, picture, tiny_predictor, tiny_surgery
from numpy.typing import NDArray

from text2sam.clip.generator import ClipSurgery, ImageFeatures
from text2sam.errors import (
    ImageError,
    InputError,
    OutputError,
    PromptError,
    StateError,
    Text2SamError,
    UnsupportedModelError,
)
from text2sam.pipeline import TextPromptedSAM, split_target
from text2sam.sam.select import Choice, choose_by_score
from text2sam.strategy import Strategy, paper_points
from text2sam.types import PointPrompts, Segmentation, SimilarityMap, box_of


class Counted:
    """A pipeline of a tiny CLIP and a fake predictor, with counters."""

    def __init__(self, predictor: Any = None, **options: Any) -> None:
        self.predictor = FakePredictor() if predictor is None else predictor
        self.surgery = tiny_surgery(image_size=(24, 32))
        self.model = TextPromptedSAM(self.predictor, self.surgery, **options)
        self.clip = count_calls(self.surgery.model.visual.conv1)
        self.text = count_calls(self.surgery.model.transformer)

    @property
    def encodings(self) -> tuple[int, int]:
        """Image encodings by CLIP (calls) and by SAM."""
        return len(self.clip), len(self.predictor.images)


def same(one: Segmentation, other: Segmentation) -> bool:
    assert one.text == other.text
    assert one.strategy == other.strategy
    assert one.presence == pytest.approx(other.presence, abs=1e-6)
    assert np.array_equal(one.points.coords, other.points.coords)
    assert (one.candidates is None) == (other.candidates is None)
    if one.candidates is not None and other.candidates is not None:
        assert np.array_equal(one.candidates.masks, other.candidates.masks)
        np.testing.assert_allclose(one.candidates.low_res_logits, other.candidates.low_res_logits, atol=1e-5)
    return np.array_equal(one.mask, other.mask) and one.score == pytest.approx(other.score, abs=1e-6)


def holds(result: Segmentation) -> float:
    """The mean of the image the fake predictor held when it answered."""
    assert result.candidates is not None
    return float(result.candidates.low_res_logits.mean())


# what is refused


@pytest.mark.parametrize(
    ("predictor", "surgery", "options", "error"),
    [
        (object(), None, {}, UnsupportedModelError),
        (FakePredictor, None, {}, UnsupportedModelError),
        (FakePredictor(), object(), {}, InputError),
        (FakePredictor(), None, {"presence_threshold": 1.5}, InputError),
        (FakePredictor(), None, {"presence_threshold": float("nan")}, InputError),
    ],
)
def test_models_that_do_not_fit(predictor: Any, surgery: Any, options: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        TextPromptedSAM(predictor, tiny_surgery() if surgery is None else surgery, **options)


def test_no_image_is_set() -> None:
    c = Counted()
    assert not c.model.is_image_set
    for call in (lambda: c.model.segment(text="cat"), lambda: c.model.segment_many(None, ["cat"])):
        with pytest.raises(StateError, match="call set_image first"):
            call()
    assert c.encodings == (0, 0)
    c.model.reset_image()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"text": ""}, PromptError),
        ({"text": "..."}, PromptError),
        ({"text": None}, PromptError),
        ({"text": 3}, PromptError),
        ({"text": b"cat"}, PromptError),
        ({"text": []}, PromptError),
        ({"text": ["cat", ""]}, PromptError),
        ({"text": "c++"}, PromptError),
        ({"text": "+"}, PromptError),
        ({"text": "cat+"}, PromptError),
        ({"text": "cat+ cat"}, PromptError),
        ({"text": "cat " * 100}, PromptError),
        ({"text": "cat", "against": "dog"}, InputError),
        ({"text": "cat", "against": ["cat"]}, InputError),
        ({"text": "cat", "against": []}, InputError),
        ({"text": "cat", "against": ["dog", ""]}, PromptError),
        ({"text": "cat", "method": "magic"}, InputError),
        ({"text": "cat", "strategy": "magic"}, InputError),
    ],
)
def test_bad_words_cost_no_encoding(options: dict[str, Any], error: Any) -> None:
    c = Counted()
    others = {k: v for k, v in options.items() if k != "text"}
    for call in (
        lambda: c.model.segment(picture(), **options),
        lambda: c.model.segment_many(picture(), ["dog", options["text"]], **others),
        lambda: c.model.segment_batch([picture()], [options["text"]], **others),
    ):
        with pytest.raises(error) as caught:
            call()
        assert isinstance(caught.value, Text2SamError)
    assert c.encodings == (0, 0)


def test_texts_must_be_several() -> None:
    c = Counted()
    with pytest.raises(InputError, match="for one text call segment"):
        c.model.segment_many(picture(), "cat")
    for images in (picture(), "scene.png", Path("scene.png"), torch.zeros(3, 8, 8), None):
        with pytest.raises(InputError, match="call segment"):
            c.model.segment_batch(images, ["cat"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="call segment"):
        c.model.segment_batch([picture()], "cat")
    with pytest.raises(InputError, match="batch_size"):
        c.model.segment_batch([picture()], ["cat"], batch_size=0)
    assert c.encodings == (0, 0)


def test_bad_image_of_a_batch_is_named_first() -> None:
    c = Counted()
    with pytest.raises(ImageError, match=r"image 1 of 3: .*not/there"):
        c.model.segment_batch([picture(), "not/there.png", picture()], ["cat"])
    assert c.encodings == (0, 0)
    assert not c.text


def test_nothing_asked() -> None:
    c = Counted()
    assert c.model.segment_many(picture(), []) == []
    assert c.model.segment_batch([], ["cat"]) == []
    assert c.model.segment_batch([picture()], []) == [[]]
    assert not c.predictor.images


# targets


@pytest.mark.parametrize(
    ("target", "texts"),
    [
        ("cat", ("cat",)),
        (" a cat ", ("a cat",)),
        ("person+bench", ("person", "bench")),
        ("person + bench+tree", ("person", "bench", "tree")),
        (["person", "bench"], ("person", "bench")),
        (("cat",), ("cat",)),
        (["c++ book"], ("c++ book",)),
    ],
)
def test_targets(target: Any, texts: tuple[str, ...]) -> None:
    assert split_target(target) == texts


def test_literal_plus_is_told() -> None:
    with pytest.raises(PromptError, match=r"to look for a literal '\+' pass a list: \['c\+\+'\]"):
        split_target("c++")


def test_joined_texts_are_one_target() -> None:
    c = Counted()
    one, other = c.model.segment_many(picture(), ["person+bench", ["person", "bench"]])
    assert same(one, other)
    assert one.text == "person+bench"
    features = c.surgery.encode_image(picture())
    maps = c.surgery.maps(features, ["person", "bench"])
    assert one.points.coords.tolist() == paper_points(maps, (30, 44)).coords.tolist()
    np.testing.assert_allclose(one.similarity.values, (maps[0].normalized() + maps[1].normalized()) / 2, atol=1e-5)
    each = [c.surgery.presence(features, text) for text in ("person", "bench")]
    assert one.presence == pytest.approx(min(each), abs=1e-6)
    assert each[0] != each[1]


# one encoding, many texts


def test_many_texts_cost_one_encoding() -> None:
    c = Counted()
    results = c.model.segment_many(picture(), ["cat", "dog", "bird+tree"])
    assert [r.text for r in results] == ["cat", "dog", "bird+tree"]
    assert c.encodings == (1, 1)
    assert len(c.text) == 1
    assert len(c.predictor.prompts) == 3
    for result in results:
        assert same(result, Counted().model.segment(picture(), result.text))
    assert np.array_equal(c.predictor.images[0], picture())


def test_prompts_are_the_points() -> None:
    c = Counted()
    result = c.model.segment(picture(), "cat")
    ((coords, labels),) = c.predictor.prompts
    assert coords.tolist() == result.points.coords.tolist()
    assert labels.tolist() == result.points.labels.tolist()
    expected = paper_points(c.surgery.similarity(picture(), ["cat"]), (30, 44))
    assert result.points.coords.tolist() == expected.coords.tolist()


def test_set_image_once() -> None:
    c = Counted()
    c.model.set_image(picture())
    assert c.model.is_image_set
    assert c.encodings == (1, 1)
    results = [c.model.segment(text=text) for text in ("cat", "dog")] + c.model.segment_many(None, ["cat"])
    assert c.encodings == (1, 1)
    assert same(results[0], results[2])
    assert same(results[0], Counted().model.segment(picture(), "cat"))
    c.model.set_image(picture(1))
    assert c.encodings == (2, 2)
    assert holds(c.model.segment(text="cat")) == pytest.approx(picture(1).mean(), abs=1e-3)


def test_set_image_reads_any_image(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture()).save(tmp_path / "scene.png")
    c = Counted()
    c.model.set_image(tmp_path / "scene.png")
    assert np.array_equal(c.predictor.images[0], picture())
    c.model.set_image(np.ascontiguousarray(picture()[..., ::-1]), channel_order="BGR")
    assert np.array_equal(c.predictor.images[1], picture())
    c.model.segment(picture()[..., ::-1], "cat", channel_order="BGR")
    assert np.array_equal(c.predictor.images[2], picture())
    c.model.segment_batch([picture()[..., ::-1]], ["cat"], channel_order="BGR")
    assert np.array_equal(c.predictor.images[3], picture())


def flat_surgery(monkeypatch: pytest.MonkeyPatch, surgery: ClipSurgery, value: float = 0.1) -> None:
    def maps(features: ImageFeatures, texts: Sequence[str], **_: Any) -> list[SimilarityMap]:
        return [SimilarityMap(np.full(features.grid, value, np.float32), text) for text in texts]

    monkeypatch.setattr(surgery, "maps", maps)


def test_flat_map_asks_no_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    c = Counted(presence_threshold=0.0)
    flat_surgery(monkeypatch, c.surgery)
    result = c.model.segment(picture(), "cat")
    assert c.encodings == (1, 0)
    assert result.candidates is None
    assert result.box is None
    assert result.score == 0
    assert not result.present
    assert result.mask.shape == (30, 44)
    assert not result.mask.any()
    assert len(result.points) == 0
    assert same(c.model.segment(picture(), "cat+dog"), c.model.segment(picture(), ["cat", "dog"]))
    assert c.encodings == (3, 0)


# the state


def test_reset_forgets_all() -> None:
    c = Counted(tiny_predictor())
    c.model.set_image(picture())
    c.model.reset_image()
    assert not c.model.is_image_set
    assert not c.predictor.is_image_set
    assert c.predictor.features is None
    assert c.model._set is None
    assert c.model._in_predictor is None
    with pytest.raises(StateError):
        c.model.segment(text="cat")
    fake = Counted()  # has no reset_image
    fake.model.set_image(picture())
    fake.model.reset_image()
    fake.model.segment(picture(), "cat")
    assert fake.encodings == (2, 2)


def test_bad_image_keeps_the_one_set() -> None:
    c = Counted()
    c.model.set_image(picture())
    before = c.model.segment(text="cat")
    for bad in ("not/there.png", None, np.zeros((3,))):
        with pytest.raises(ImageError):
            c.model.set_image(bad)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        c.model.segment("not/there.png", "cat")
    assert same(c.model.segment(text="cat"), before)
    assert c.encodings == (1, 1)


@pytest.mark.parametrize("real", [False, True])
def test_another_image_does_not_disturb_the_one_set(real: bool) -> None:
    c = Counted(tiny_predictor() if real else None)
    c.model.set_image(picture())
    before = c.model.segment_many(None, ["cat", "dog"])
    other = c.model.segment(picture(1, 50, 20), "cat")
    c.model.segment_batch([picture(2), picture(3)], ["cat"])
    after = c.model.segment_many(None, ["cat", "dog"])
    assert all(same(a, b) for a, b in zip(before, after, strict=True))
    assert other.mask.shape == (50, 20)
    if real:
        logits = [[r.candidates.low_res_logits for r in results if r.candidates is not None] for results in (before, after)]
        assert np.array_equal(*logits)
        assert len(logits[0]) == 2
    else:
        assert holds(after[0]) == pytest.approx(picture().mean(), abs=1e-3)


def test_real_predictor_encodes_once() -> None:
    c = Counted(tiny_predictor())
    sam = count_calls(c.predictor.model.image_encoder)
    c.model.set_image(picture())
    c.model.segment_many(None, ["cat", "dog"])
    c.model.segment(picture(1), "cat")
    c.model.segment(text="cat")
    assert len(sam) == 2


def test_two_pipelines_may_share_a_real_predictor() -> None:
    predictor = tiny_predictor()
    one, other = (TextPromptedSAM(predictor, tiny_surgery()) for _ in range(2))
    one.set_image(picture())
    expected = one.segment(text="cat")
    other.set_image(picture(1, 50, 20))
    assert same(one.segment(text="cat"), expected)
    predictor.set_image(picture(2))
    assert same(one.segment(text="cat"), expected)
    predictor.reset_image()
    assert same(one.segment(text="cat"), expected)


@pytest.mark.parametrize("where", ["set_image", "predict"])
def test_failing_predictor_leaves_a_consistent_state(where: str) -> None:
    c = Counted()
    c.model.set_image(picture())
    before = c.model.segment(text="cat")
    c.predictor.fail = where
    with pytest.raises(ZeroDivisionError):
        c.model.segment(picture(1), "cat")
    if where == "set_image":
        with pytest.raises(ZeroDivisionError):
            c.model.set_image(picture(1))
    c.predictor.fail = ""
    after = c.model.segment(text="cat")  # encoded again, by a predictor that holds it no more
    assert same(after, before)
    assert holds(after) == pytest.approx(picture().mean(), abs=1e-3)
    assert holds(c.model.segment(picture(1), "cat")) == pytest.approx(picture(1).mean(), abs=1e-3)


def test_predictor_that_fails_the_first_time() -> None:
    c = Counted()
    c.predictor.fail = "set_image"
    with pytest.raises(ZeroDivisionError):
        c.model.set_image(picture())
    assert not c.model.is_image_set
    c.predictor.fail = ""
    c.model.set_image(picture())
    assert holds(c.model.segment(text="cat")) == pytest.approx(picture().mean(), abs=1e-3)


# batches


def test_batch_is_its_images() -> None:
    images = [picture(i, 20 + 9 * i, 50 - 7 * i) for i in range(5)]
    c = Counted()
    together = c.model.segment_batch(images, ["cat", "dog+tree"], against=["sky"], batch_size=2)
    assert [shape[0] for shape in c.clip] == [2, 2, 1]
    assert len(c.predictor.images) == 5
    for image, results in zip(images, together, strict=True):
        alone = c.model.segment_many(image, ["cat", "dog+tree"], against=["sky"])
        assert all(same(a, b) for a, b in zip(results, alone, strict=True))
    generated = c.model.segment_batch((i for i in images[:2]), ["cat"])  # type: ignore[arg-type]
    assert same(generated[1][0], c.model.segment(images[1], "cat"))
    assert not c.model.is_image_set


# the result


def test_result_is_of_one_piece() -> None:
    c = Counted(presence_threshold=0.0)
    result = c.model.segment(picture(), "cat")
    assert result.candidates is not None
    assert result.candidates.chosen == 1  # the fake predictor scores its second mask highest
    assert np.array_equal(result.mask, result.candidates.masks[1])
    assert result.score == pytest.approx(0.9)
    assert np.array_equal(result.box, box_of(result.mask))
    assert result.strategy == "paper"
    assert result.similarity.method == "surgery"
    assert result.present
    assert type(result.present) is bool
    for field in ("mask", "score", "present"):
        with pytest.raises(AttributeError):
            setattr(result, field, None)


def test_against_and_method_reach_the_map() -> None:
    c = Counted()
    found = [
        c.model.segment(picture(), "cat"),
        c.model.segment(picture(), "cat", against=["dog"]),
        c.model.segment(picture(), "cat", method="itsm"),
        c.model.segment(picture(), "cat", method="architecture"),
    ]
    expected = [
        c.surgery.similarity(picture(), ["cat"]),
        c.surgery.similarity(picture(), ["cat"], against=["dog"]),
        c.surgery.similarity(picture(), ["cat"], method="itsm"),
        c.surgery.similarity(picture(), ["cat"], method="architecture"),
    ]
    for result, (similarity,) in zip(found, expected, strict=True):
        np.testing.assert_allclose(result.similarity.values, similarity.values, atol=1e-6)
        assert result.similarity.method == similarity.method
    features = c.surgery.encode_image(picture())
    assert found[0].presence == pytest.approx(c.surgery.presence(features, "cat"), abs=1e-6)
    assert found[1].presence == pytest.approx(c.surgery.presence(features, "cat", against=["dog"]), abs=1e-6)


def test_present_is_presence_above_the_threshold() -> None:
    c = Counted()
    presence = c.model.segment(picture(), "cat").presence
    for threshold, present in ((presence - 0.01, True), (presence + 0.01, False)):
        c.model.presence_threshold = threshold
        result = c.model.segment(picture(), "cat")
        assert result.present is present
        assert result.mask.any()  # the papers' recipe proposes a mask for what is absent as well


# recipes of one's own


def test_own_rules_are_used() -> None:
    seen: dict[str, Any] = {}

    def points(maps: Sequence[SimilarityMap], shape: tuple[int, int]) -> PointPrompts:
        seen["maps"], seen["shape"] = maps, shape
        return PointPrompts(np.array([[5, 7]], np.float32), np.ones(1, np.uint8))

    def choose(
        masks: NDArray[np.bool_], scores: NDArray[np.float32], heat: NDArray[np.float32], points: PointPrompts
    ) -> Choice:
        seen["masks"], seen["scores"], seen["heat"], seen["points"] = masks, scores, heat, points
        return Choice(2, "the last one", {"area": masks.sum((1, 2)).astype(np.float32)})

    c = Counted()
    result = c.model.segment(picture(), "cat+dog", strategy=Strategy("own", points, choose))
    assert [m.text for m in seen["maps"]] == ["cat", "dog"]
    assert seen["shape"] == (30, 44)
    assert c.predictor.prompts[0][0].tolist() == [[5, 7]]
    assert seen["points"] is result.points
    assert np.array_equal(seen["heat"], result.similarity.to_image((30, 44)))
    assert seen["scores"].tolist() == pytest.approx([0.3, 0.9, 0.5])
    assert result.candidates is not None
    assert (result.candidates.chosen, result.candidates.reason) == (2, "the last one")
    assert result.candidates.figures["area"].tolist() == seen["masks"].sum((1, 2)).tolist()
    assert np.array_equal(result.mask, seen["masks"][2])
    assert result.score == pytest.approx(0.5)
    assert result.strategy == "own"


def test_rules_that_ask_for_nothing_or_too_much() -> None:
    c = Counted()
    cold = Strategy(
        "cold", lambda maps, shape: PointPrompts(np.zeros((1, 2), np.float32), np.zeros(1, np.uint8)), choose_by_score
    )
    assert c.model.segment(picture(), "cat", strategy=cold).candidates is None
    for index in (3, -1):
        beyond = Strategy("beyond", paper_points, lambda m, s, h, p, index=index: Choice(index, ""))
        with pytest.raises(InputError, match="chosen must be"):
            c.model.segment(picture(), "cat", strategy=beyond)
    assert c.model.segment(picture(), "cat").mask.any()


def test_rules_may_raise() -> None:
    def points(maps: Sequence[SimilarityMap], shape: tuple[int, int]) -> PointPrompts:
        raise OutputError("on purpose")

    c = Counted()
    c.model.set_image(picture())
    with pytest.raises(OutputError):
        c.model.segment(picture(1), "cat", strategy=Strategy("own", points, choose_by_score))
    assert holds(c.model.segment(text="cat")) == pytest.approx(picture().mean(), abs=1e-3)
