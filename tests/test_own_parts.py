"""Parts of the user's own that answer with what does not fit: an error that names the part and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FakePredictor, picture

from text2sam.errors import ImageError, InputError, Text2SamError, UnsupportedModelError
from text2sam.pipeline import TextPromptedSAM
from text2sam.recipes import Objects, Prompt, Recipe
from text2sam.recipes.choose import Choice, choose_by_score
from text2sam.types import Candidates, PointPrompts, SimilarityMap

H, W = 30, 44
VALUES = np.eye(4, 6, dtype=np.float32)
NAN = float("nan")


class Corner:
    """A generator; ``answers`` replace what its methods return."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.answers = answers
        for name in ("presence", "region_odds"):
            if name in answers:
                setattr(self, name, answers[name])

    def encode(self, images: Any) -> Any:
        return self.answers.get("encode", lambda images: [image.shape[:2] for image in images])(images)

    def maps(self, features: Any, texts: Any, *, against: Any = None) -> Any:
        return self.answers.get("maps", lambda texts: [SimilarityMap(VALUES, text) for text in texts])(texts)


class Answering(FakePredictor):
    """A predictor whose answer is changed before it is given."""

    def __init__(self, change: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.change = change

    def predict(self, *arguments: Any, **options: Any) -> Any:
        return self.change(*super().predict(*arguments, **options))


def segment(generator: Any = None, predictor: Any = None, texts: Any = ("cat",), **options: Any) -> Any:
    model = TextPromptedSAM(predictor or FakePredictor(), generator or Corner())
    return model.segment_many(picture(0, H, W), list(texts), **options)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda images: None, "one object per image, not NoneType"),
        (lambda images: [], "one object per image: 1, not 0"),
        (lambda images: torch.zeros(3, 5), "one object per image: 1, not 3"),
    ],
)
def test_encodings(answer: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"Corner\.encode must return {message}"):
        segment(Corner(encode=answer))
    model = TextPromptedSAM(FakePredictor(), Corner(encode=answer))
    with pytest.raises(UnsupportedModelError, match=rf"Corner\.encode must return {message}"):
        model.calibrate([picture(), picture(1)], ["cat", "dog"], [True, False])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda texts: None, "one SimilarityMap per text, not NoneType"),
        (lambda texts: [VALUES for _ in texts], "one SimilarityMap per text, not list of ndarray"),
        (lambda texts: [SimilarityMap(VALUES)], "one SimilarityMap per text: 2, not 1"),
        (lambda texts: [SimilarityMap(VALUES), SimilarityMap(VALUES.T.copy())], r"maps of one shape, not \(4, 6\), \(6, 4\)"),
    ],
)
@pytest.mark.parametrize("strategy", ["objects", "paper"])
def test_maps(answer: Any, message: str, strategy: str) -> None:
    for text in (["cat", "dog"], {"pet": ["cat", "dog"]}):
        with pytest.raises(UnsupportedModelError, match=rf"Corner\.maps must return {message}"):
            segment(Corner(maps=answer), texts=[text], strategy=strategy)


@pytest.mark.parametrize(
    "values",
    [np.full((4, 6), NAN, np.float32), VALUES.astype(np.float64), VALUES[None], VALUES[:0]],
)
def test_values_of_maps(values: Any) -> None:
    with pytest.raises(InputError, match="SimilarityMap: values must be"):
        segment(Corner(maps=lambda texts: [SimilarityMap(values, text) for text in texts]))


@pytest.mark.parametrize("score", [NAN, 1.5, None, [0.5, 0.5]])
def test_presence(score: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Corner\.presence must return a score in \[0, 1\], not"):
        segment(Corner(presence=lambda *_, **__: score))


@pytest.mark.parametrize("score", [0, True, np.float32(0.25), torch.tensor([0.75])])
def test_presence_of_other_number_types(score: Any) -> None:
    [result] = segment(Corner(presence=lambda *_, **__: score))
    assert result.presence == float(score)


@pytest.mark.parametrize("options", [{"method": "itsm"}, {"tiles": 16}])
def test_options_that_a_generator_does_not_take(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(UnsupportedModelError, match=rf"Corner\.encode does not take {name}s?=; leave that option out"):
        segment(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, s, r: None, "NoneType"),
        (lambda m, s, r: (m[:, :-1], s, r), r"masks of \(29, 44\) for an image of \(30, 44\)"),
        (lambda m, s, r: (m.astype(object), s, r), "numbers, not object"),
        (lambda m, s, r: ([m[0], m[1, :5], m[2]], s, r), "three arrays"),
        (lambda m, s, r: (m, s * NAN, r), "scores that are not finite"),
        (lambda m, s, r: (m, s, r * NAN), "low_res_logits with NaN"),
        (lambda m, s, r: (torch.from_numpy(np.where(m, 3, NAN)).bfloat16(), s, r), "masks with NaN"),
    ],
)
@pytest.mark.parametrize("strategy", ["objects", "paper"])
def test_answers_of_predictors(change: Any, message: str, strategy: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"Answering\.predict .*{message}"):
        segment(predictor=Answering(change), strategy=strategy)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, s, r: [m.tolist(), s.tolist(), r.tolist()],
        lambda m, s, r: (m.astype(np.uint8) * 255, s.astype(np.float64), r.astype(np.float16)),
        lambda m, s, r: (np.where(m, np.inf, -np.inf), s, np.clip(r, -1024, 1024)),
        lambda m, s, r: tuple(torch.from_numpy(a) for a in (m, s, r)),
    ],
)
def test_answers_of_other_number_types(change: Any) -> None:
    [expected], [result] = segment(), segment(predictor=Answering(change))
    assert np.array_equal(result.mask, expected.mask)
    assert result.mask.any()


class Given(Recipe):
    """A recipe that finds one object, changed before it is given."""

    name = "given"

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def find(self, view: Any, query: Any) -> Any:
        [similarity] = view.maps(query)
        return self.change(view.prompt(similarity, PointPrompts([[20, 10]], [1]), choose_by_score))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: None, "a list of Found, not NoneType"),
        (lambda found: found, "a list of Found, not Found"),
        (lambda found: [found.mask], "a list of Found, not list of ndarray"),
        (lambda found: [found, None], "a list of Found, not list of Found, NoneType"),
        (lambda found: [replace(found, mask=found.mask[:-1])], r"masks of bool \(30, 44\).*, not bool \(29, 44\)"),
        (lambda found: [replace(found, mask=found.mask * 1.0)], r"masks of bool \(30, 44\).*, not float64 \(30, 44\)"),
        (lambda found: [replace(found, points=[[20, 10]])], "Found with PointPrompts, not with list"),
        (lambda found: [replace(found, candidates=None)], "Found with Candidates, not with NoneType"),
    ],
)
def test_what_recipes_find(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"Given\.find must return {message}"):
        segment(strategy=Given(change))
    with pytest.raises(InputError, match=rf"Given\.find must return {message}"):
        segment(strategy=Given(change), exclude=["dog"])


def test_what_recipes_may_find() -> None:
    def lazily(found: Any) -> Iterator[Any]:
        yield found

    for change in (lambda found: (found,), lazily):
        [result] = segment(strategy=Given(change))
        assert len(result.objects) == 1
    with pytest.raises(InputError, match="Recipe must define find"):
        segment(strategy=Recipe())
    other = Candidates(np.ones((1, 5, 5), bool), np.ones(1, np.float32), np.zeros((1, 4, 4), np.float32), 0, "")
    with pytest.raises(InputError, match="candidates must be"):
        segment(strategy=Given(lambda found: [replace(found, candidates=other)]))


def test_what_steps_of_a_recipe_may_be() -> None:
    class Steps(Recipe):
        def __init__(self, steps: Any) -> None:
            self.steps = steps

    def mine(view: Any, query: Any) -> Any:
        [similarity] = view.maps(query)
        found = yield (Prompt(similarity, PointPrompts([at], [1]), choose_by_score) for at in ((20, 10), (5, 5)))
        assert (yield []) == []
        return found

    def bare(view: Any, query: Any) -> Any:
        yield [PointPrompts([[20, 10]], [1])]

    def nothing(view: Any, query: Any) -> Any:
        yield []

    results = segment(strategy=Steps(mine), texts=("cat", "dog"))
    assert [len(result.objects) for result in results] == [2, 2]
    for steps, message in (
        (lambda view, query: [], "must be a generator that yields lists of Prompt, not list"),
        (bare, "bare must return lists of Prompt, not list of PointPrompts"),
        (lambda *_: (yield [Prompt(None, [[2, 3]], choose_by_score)]), "points must be PointPrompts, not list"),  # type: ignore[arg-type]
        (lambda *_: (yield [Prompt(None, PointPrompts.empty(), None)]), "rule must be a function, not None"),  # type: ignore[arg-type]
        (nothing, r"Steps\.steps must return a list of Found, not NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            segment(strategy=Steps(steps))


def test_a_recipe_that_changes_what_another_finds() -> None:
    class First(Objects):
        def find(self, view: Any, query: Any) -> Any:
            return super().find(view, query)[:1]

    own = Recipe()
    own.find = lambda view, query: []  # type: ignore[method-assign]
    assert segment(strategy=own)[0].objects == ()
    [every] = segment(strategy=Objects())
    [first] = segment(strategy=First())
    assert len(every.objects) > len(first.objects) == 1


@pytest.mark.parametrize("points", [None, [[20, 10]], np.zeros((1, 2), np.float32), ([[20, 10]], [1])])
def test_points_rules(points: Any) -> None:
    def mine(similarity: Any, shape: Any, taken: Any) -> Any:
        return points

    with pytest.raises(InputError, match=r"the points rule .*mine must return PointPrompts, not"):
        segment(strategy=Objects(points=mine))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (None, "must return a Choice, not NoneType"),
        (Choice(3, ""), r"does not fit: chosen must be an int in \[0, 3\)"),
        (Choice(0, "", {"total": np.ones(2, np.float32)}), r"does not fit: total must be a float32 array of shape \(3,\)"),
        (Choice(0, "", {"total": np.full(3, np.nan, np.float32)}), "'total' figures that are finite, not"),
        (Choice(0, "", {"likeness": np.full(3, np.nan, np.float32)}), "'likeness' figures that are finite, not"),
    ],
)
def test_mask_rules(choice: Any, message: str) -> None:
    def mine(*_: Any) -> Any:
        return choice

    with pytest.raises(InputError, match=rf"the mask rule .*mine .*{message}"):
        segment(strategy=Objects(choose=mine))


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_a_mask_rule_may_have_a_likeness_of_its_own(sign: int) -> None:
    def mine(offer: Any) -> Any:
        return Choice(0, "", {"likeness": np.full(3, sign, np.float32)})

    [result] = segment(strategy=Objects(choose=mine))
    [plain] = segment(strategy=Objects(choose=lambda offer: Choice(0, "")))
    assert np.array_equal(result.mask, plain.mask)
    assert plain.mask.any()


# a batch that ends in the middle


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("at", [0, 1, 3, 4])
@pytest.mark.parametrize("lazily", [False, True])
def test_a_bad_image_leaves_the_results_before_it(batch_size: int, at: int, lazily: bool) -> None:
    model = TextPromptedSAM(FakePredictor(), Corner())
    images: list[Any] = [picture(seed, H, W + seed) for seed in range(5)]
    expected = model.segment_batch(images[:at], ["cat", "dog"])
    images[at] = "missing.png"
    name = f"image {at}: .*missing" if lazily else f"image {at} of 5: .*missing"
    with pytest.raises(ImageError, match=name) as caught:
        model.segment_batch(iter(images) if lazily else images, ["cat", "dog"], batch_size=batch_size)
    assert [[r.mask.tolist() for r in each] for each in caught.value.results] == [
        [r.mask.tolist() for r in each] for each in expected
    ]


def test_an_iterator_is_read_as_its_images_are_needed() -> None:
    taken = []

    def frames() -> Iterator[Any]:
        for seed in range(5):
            taken.append(len(predictor.images))
            yield picture(seed)

    predictor = FakePredictor()
    assert len(TextPromptedSAM(predictor, Corner()).segment_batch(frames(), ["cat"], batch_size=2)) == 5
    assert taken == [0, 0, 2, 2, 4]


def test_models_that_fail_in_the_middle_leave_the_results_before() -> None:
    calls = iter([True, True, False])
    predictor = Answering(lambda m, s, r: (m, s if next(calls) else s * NAN, r))
    model = TextPromptedSAM(predictor, Corner(maps=lambda texts: [SimilarityMap(VALUES, text) for text in texts]))
    with pytest.raises(UnsupportedModelError, match="not finite") as caught:
        model.segment_batch([picture(seed) for seed in range(5)], ["cat"], strategy="paper")
    assert len(caught.value.results) == 2
    assert Text2SamError("nothing").results == ()


def test_a_generator_whose_maps_take_no_against() -> None:
    class Short(Corner):
        def maps(self, features, texts):  # type: ignore[no-untyped-def, override]
            return super().maps(features, texts)

    with pytest.raises(UnsupportedModelError, match=r"Short\.maps does not take against=; a MapGenerator takes it"):
        TextPromptedSAM(FakePredictor(), Short()).segment(np.zeros((32, 32, 3), np.uint8), "cat")
