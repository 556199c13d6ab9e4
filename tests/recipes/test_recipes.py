from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FakePredictor
from numpy.typing import NDArray

from text2sam import TextPromptedSAM
from text2sam.errors import InputError, UnsupportedModelError
from text2sam.recipes import RECIPES, Found, Objects, Query, Recipe, View, get_recipe
from text2sam.recipes.choose import choose_by_agreement
from text2sam.recipes.paper import paper_points
from text2sam.recipes.points import joint_map, mean_map, points_from_similarity
from text2sam.recipes.view import Avoid
from text2sam.sam.session import Session
from text2sam.types import PointPrompts, SimilarityMap


def a_map(seed: int, text: str = "cat", scale: float = 1) -> SimilarityMap:
    return SimilarityMap(np.random.default_rng(seed).random((8, 10), np.float32) * np.float32(scale), text, "itsm")


# degenerate


@pytest.mark.parametrize("strategy", ["", "Paper", "best", None, 3, ["paper"], Objects])
def test_unknown_strategies(strategy: Any) -> None:
    with pytest.raises(InputError, match=f"one of .*paper.*not {re.escape(repr(strategy))}"):
        get_recipe(strategy)


def test_flat_maps() -> None:
    flat = SimilarityMap(np.full((8, 10), 0.1, np.float32))
    assert mean_map([flat, flat], "car").flat
    assert len(paper_points([flat], (10, 10))) == 0
    assert len(paper_points([flat, flat], (10, 10))) == 0
    assert joint_map([flat, flat]).flat
    one = a_map(0)
    points = paper_points([flat, one], (30, 50))
    assert points.positive.tolist() == points_from_similarity(one, (30, 50)).positive.tolist()


@pytest.mark.parametrize(
    "numbers",
    [
        {"support": -0.1},
        {"support": 1.1},
        {"support": "a"},
        {"fine_support": 1.1},
        {"alike": -0.1},
        {"margin": -1.0},
        {"margin": float("nan")},
        {"specks": 1.5},
    ],
)
def test_numbers_out_of_range(numbers: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(numbers))} must be a number"):
        Objects(**numbers)


def test_odds_of_an_empty_mask() -> None:
    class Named:
        vocabulary = ("dog",)

        def region_odds(self, features: Any, text: str, shares: NDArray[np.float32]) -> float:
            assert shares.any()
            return float(len(text))

    predictor = FakePredictor()
    session = Session.of(predictor)
    image = session.image(np.zeros((40, 40, 3), np.uint8))
    view = View((40, 40), Named(), SimpleNamespace(grid=(4, 4)), session, image)
    nothing, everything = np.zeros((40, 40), bool), np.ones((40, 40), bool)
    odds = view.odds(["cat", "kitten"], [nothing, everything])
    assert odds is not None
    assert odds.tolist() == [-np.inf, 6]
    assert view.odds(["cat"], []) is None


# behaviour


def test_names() -> None:
    assert get_recipe("paper") is RECIPES["paper"]
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert next(iter(RECIPES)) == "objects"
    own = Objects(name="own")
    assert get_recipe(own) is own


def test_joint_map_is_the_mean_of_what_is_seen() -> None:
    one, other = a_map(0, "cat"), a_map(1, "dog", scale=1000)
    joint = joint_map([one, other])
    np.testing.assert_allclose(joint.values, (one.normalized() + other.normalized()) / 2, atol=1e-7)
    assert (joint.text, joint.method) == ("cat+dog", "itsm")
    assert joint.values.dtype == np.float32
    assert joint_map([one]) is one


def test_points_of_joined_texts() -> None:
    maps, shape = [a_map(0), a_map(1, scale=1000), a_map(2)], (80, 120)
    found = paper_points(maps, shape)
    hot = [xy for m in maps for xy in points_from_similarity(m, shape).positive.tolist()]
    cold = points_from_similarity(np.mean([m.normalized() for m in maps], axis=0), shape).negative.tolist()
    assert found.coords.tolist() == hot + cold
    assert found.labels.tolist() == [1] * len(hot) + [0] * len(cold)
    assert len(hot) >= 3
    assert cold


def test_synonyms_are_the_similarity_to_the_mean_embedding() -> None:
    random = np.random.default_rng(0)
    patches, texts = random.normal(size=(6, 5, 16)), random.normal(size=(3, 16))
    maps = [SimilarityMap((patches @ text).astype(np.float32), str(k), "itsm") for k, text in enumerate(texts)]
    joined = mean_map(maps, "car")
    np.testing.assert_allclose(joined.values, patches @ texts.mean(0), atol=1e-5)
    assert (joined.text, joined.method) == ("car", "itsm")
    assert joined.values.dtype == np.float32


@pytest.mark.parametrize("fine", [False, True])
def test_the_search_ends_at_the_first_object_that_a_coarse_map_does_not_support(fine: bool) -> None:
    values = np.zeros((32, 32), np.float32)
    values[4:7, 4:7] = 1
    values[18:] = 0.72  # a warm plain, of which two places stand out a little
    values[24, 8], values[24, 24] = 0.78, 0.76

    class Generator:
        def encode(self, images: Sequence[Any]) -> list[None]:
            return [None for _ in images]

        def maps(self, features: None, texts: Sequence[str], *, against: Any = None) -> list[SimilarityMap]:
            return [SimilarityMap(values, text) for text in texts]

    generator, predictor = Generator(), FakePredictor()
    generator.fine = fine  # type: ignore[attr-defined]
    result = TextPromptedSAM(predictor, generator).segment(np.zeros((128, 128, 3), np.uint8), "cat")
    places = {tuple(coords[0].round().tolist()) for coords, _ in predictor.prompts}
    assert len(result.objects) == 1
    assert {(22, 22), (34, 98)} <= places
    assert ((98, 98) in places) == fine
    assert len(places) == 2 or fine


class Looking:
    """Two hot places, left and right; what is cut out on the right looks more like the text by ``gain``."""

    def __init__(self, gain: float) -> None:
        self.gain, self.asked = gain, set[tuple[str, ...]]()

    def encode(self, images: Sequence[Any]) -> list[None]:
        return [None for _ in images]

    def maps(self, features: None, texts: Sequence[str], *, against: Any = None) -> list[SimilarityMap]:
        values = np.zeros((32, 32), np.float32)
        values[14:18, 6:10], values[14:18, 22:26] = 1, 0.8
        return [SimilarityMap(values, text) for text in texts]

    def likeness(self, image: Any, masks: Any, texts: Sequence[str]) -> Any:
        self.asked.add(tuple(texts))
        assert image.shape == (128, 128, 3)
        right = np.array([mask[:, 64:].any() for mask in masks])
        return np.where(right, 0.5 + self.gain / 2, 0.5 - self.gain / 2)


@pytest.mark.parametrize(("gain", "centres"), [(-0.8, [(32, 64)]), (0.0, [(32, 64), (96, 64)]), (0.8, [(96, 64)])])
def test_objects_are_those_whose_cutouts_look_like_the_text(gain: float, centres: list[tuple[int, int]]) -> None:
    generator = Looking(gain)
    result = TextPromptedSAM(FakePredictor(), generator).segment(np.zeros((128, 128, 3), np.uint8), {"cat": ["cat", "kitty"]})
    found = [tuple(np.argwhere(each.mask).mean(0)[::-1].round(-1).tolist()) for each in result.objects]
    assert found == [tuple(round(v, -1) for v in centre) for centre in centres]
    assert generator.asked == {("cat", "kitty")}
    assert result.candidates is not None
    assert "likeness" in result.candidates.reason


def test_the_best_place_may_be_the_second_where_one_object_is_wanted() -> None:
    model = TextPromptedSAM(FakePredictor(), Looking(0.8))
    result = model.segment(np.zeros((128, 128, 3), np.uint8), "cat", max_objects=1)
    assert result.mask[64, 96]
    assert not result.mask[64, 32]
    both = TextPromptedSAM(FakePredictor(), Looking(0.0))
    assert len(both.segment(np.zeros((128, 128, 3), np.uint8), "cat", max_objects=1).objects) == 1


@pytest.mark.parametrize(
    ("target", "words"), [("cat+dog", ("cat", "dog")), ("cat", ("cat",)), ({"pet": ["cat", "dog"]}, ("cat", "dog"))]
)
def test_recipes_of_ones_own_may_join_maps_or_make_them(target: Any, words: tuple[str, ...]) -> None:
    class Joined(Recipe):
        def find(self, view: View, query: Query) -> list[Found]:
            joined = joint_map(view.maps(query))
            peak = PointPrompts([joined.peak(view.shape)], [1])
            maps = (joined, SimilarityMap(joined.values, "a map of my own"))
            return [view.prompt(each, peak, choose_by_agreement) for each in maps]

    generator = Looking(0.0)
    result = TextPromptedSAM(FakePredictor(), generator).segment(
        np.zeros((128, 128, 3), np.uint8), target, strategy=Joined(), threshold=0.0
    )
    assert generator.asked == {words}
    assert sorted("likeness" in part.candidates.figures for part in result.objects if part.candidates) == [False, True]


@pytest.mark.parametrize("looks", [False, True])
def test_an_object_needs_less_contrast_where_likeness_is_told(looks: bool) -> None:
    class Warm(Looking):
        def maps(self, features: None, texts: Sequence[str], *, against: Any = None) -> list[SimilarityMap]:
            [found] = super().maps(features, texts, against=against)
            values = found.values.copy()
            values[:, 16:] = values[:, 16:].clip(0.25)
            return [SimilarityMap(values, found.text)]

    generator = Warm(0.0)
    if not looks:
        generator.likeness = None  # type: ignore[assignment,method-assign]
    result = TextPromptedSAM(FakePredictor(), generator).segment(np.zeros((128, 128, 3), np.uint8), "cat")
    assert len(result.objects) == 1 + looks


@pytest.mark.parametrize("answer", [0.5, [0.5], [2.0, 0.5, 0.5], [float("nan")] * 3, None, "cat", [[1], [1, 2], [3]]])
def test_a_likeness_that_is_none(answer: Any) -> None:
    generator = Looking(0.0)
    generator.likeness = lambda image, masks, texts: answer  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError, match=r"Looking.likeness must return one number in \[0, 1\] per mask"):
        TextPromptedSAM(FakePredictor(), generator).segment(np.zeros((128, 128, 3), np.uint8), "cat")


def test_a_likeness_of_tensors() -> None:
    generator = Looking(0.0)
    generator.likeness = lambda *_: torch.full((3,), 0.5, dtype=torch.bfloat16, requires_grad=True)  # type: ignore
    result = TextPromptedSAM(FakePredictor(), generator).segment(np.zeros((128, 128, 3), np.uint8), "cat")
    assert result.candidates is not None
    assert result.candidates.figures["likeness"].tolist() == [0.5, 0.5, 0.5]


SHEEP, LAMB, KID, STONE, GOAT = (250, 0, 0), (200, 0, 150), (70, 0, 240), (0, 0, 250), (0, 250, 0)


class Meadow(FakePredictor):
    """Things are squares of 16 pixels. The embedding tells goats from all others. Cutouts of sheep and lambs, and of lambs and
    kids, have a cosine of 0.8."""

    def __init__(self, **things: list[tuple[int, int]]) -> None:
        super().__init__()
        self.is_image_set, self.features = False, torch.zeros(0)
        self.image = np.zeros((128, 160, 3), np.uint8)
        for (row, column), colour in ((at, globals()[kind]) for kind, places in things.items() for at in places):
            self.image[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = colour

    def set_image(self, image: Any) -> None:
        super().set_image(image)
        red, green, blue = (torch.from_numpy(image[4::8, 4::8, k] / 250).float() for k in range(3))
        self.features = torch.stack([red + blue, green])[None]
        self.is_image_set = True

    def answer(self, image: Any, point: Any, several: bool) -> Any:
        x, y = point // 16 * 16
        masks = np.zeros((3, *image.shape[:2]), bool)
        masks[:, y : y + 16, x : x + 16] = image[y, x].any()
        return masks, np.array([0.3, 0.9, 0.5], np.float32)


class Shepherd:
    """The map shows the places in ``hot``; cutouts are told by their colour."""

    likeness = cutouts = None

    def __init__(self, *hot: tuple[int, int]) -> None:
        self.hot = hot
        self.cutouts = lambda image, masks: [image[mask].mean(0) for mask in masks]  # type: ignore[assignment]
        self.likeness = lambda image, masks, texts: np.full(len(masks), 0.4)  # type: ignore[assignment]

    def encode(self, images: Sequence[Any]) -> list[None]:
        return [None for _ in images]

    def maps(self, features: None, texts: Sequence[str], *, against: Any = None) -> list[SimilarityMap]:
        values = np.zeros((16, 20), np.float32)
        for row, column in self.hot:
            values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1 if (row, column) == self.hot[0] else 0.9
        return [SimilarityMap(values if text == "sheep" else np.eye(16, 20, dtype=np.float32), text) for text in texts]


def herd(meadow: Meadow, shepherd: Shepherd, text: str = "sheep", **options: Any) -> list[tuple[int, int]]:
    recipe = Objects(smooth=False, places=2, further=options.pop("further", 16))
    result = TextPromptedSAM(meadow, shepherd).segment(meadow.image, text, strategy=recipe, **options)
    return sorted((int(o.box[1]) // 16, int(o.box[0]) // 16) for o in result.objects if o.box is not None)


def test_more_of_what_was_found_several_times() -> None:
    sheep = [(1, 1), (1, 4), (3, 6), (5, 1), (6, 8)]
    meadow = Meadow(SHEEP=sheep, GOAT=[(3, 2), (6, 4)], STONE=[(5, 6)])
    shepherd = Shepherd(*sheep[:2])
    assert herd(meadow, shepherd) == sheep
    assert len(meadow.prompts) == 4 + 3 + 1  # two peaks, the first of them three times; three sheep and the stone
    assert herd(meadow, shepherd, further=0) == sheep[:2]
    assert len(herd(meadow, shepherd, further=1)) <= 3
    assert herd(meadow, Shepherd(sheep[0])) == sheep[:1], "of one thing no more are looked for"
    assert herd(meadow, shepherd, max_objects=2) == sheep[:2]
    with pytest.warns(UserWarning, match="ended at 4 objects"):
        assert len(herd(meadow, shepherd, max_objects=4)) == 4
    for name in ("cutouts", "is_image_set"):  # nothing tells what looks alike
        owner: Any = shepherd if name == "cutouts" else meadow
        delattr(owner, name)
        assert herd(meadow, shepherd) == sheep[:2]


def test_all_that_was_found_loses_its_specks() -> None:
    class Spotted(Meadow):
        def answer(self, image: Any, point: Any, several: bool) -> Any:
            masks, scores = super().answer(image, point, several)
            masks[:, 0, 0] = True
            return masks, scores

    sheep = [(1, 1), (1, 4), (3, 6), (5, 1), (6, 8)]
    model = TextPromptedSAM(meadow := Spotted(SHEEP=sheep), Shepherd(*sheep[:2]))
    for specks, size in ((0.01, 256), (0.001, 257), (0.0, 257)):
        result = model.segment(meadow.image, "sheep", strategy=Objects(smooth=False, places=2, specks=specks))
        assert [int(part.mask.sum()) for part in result.objects] == [size] * len(sheep)


def test_the_search_for_more_ends_where_all_that_is_left_looks_different() -> None:
    stones = [(5, column) for column in range(0, 10, 2)] + [(7, column) for column in range(0, 10, 2)]
    meadow = Meadow(SHEEP=[(1, 1), (1, 4)], STONE=stones)
    assert herd(meadow, Shepherd((1, 1), (1, 4))) == [(1, 1), (1, 4)]
    assert len(meadow.prompts) == 4 + 3


def test_more_is_not_looked_for_where_what_was_found_differs() -> None:
    meadow = Meadow(SHEEP=[(1, 1), (3, 6), (5, 1)], GOAT=[(1, 4)])
    assert herd(meadow, Shepherd((1, 1), (1, 4))) == [(1, 1), (1, 4)]
    assert len(meadow.prompts) == 4
    mixed = Meadow(SHEEP=[(1, 1), (1, 7), (5, 1)], GOAT=[(1, 4), (5, 4)])
    found = herd(mixed, Shepherd((1, 1), (1, 4), (1, 7)), text="sheep")
    assert found == [(1, 1), (1, 4), (1, 7), (5, 1)], "one goat stands for no kind"


def test_more_is_not_looked_for_where_it_is_excluded() -> None:
    sheep = [(1, 1), (1, 4), (3, 6)]
    meadow = Meadow(SHEEP=sheep)
    shepherd = Shepherd(*sheep[:2])
    view = View((128, 160), shepherd, None, Session.of(meadow), Session.of(meadow).image(meadow.image))
    excluded = np.zeros((128, 160), bool)
    excluded[48:64, 96:112] = True
    found = Objects(smooth=False, places=2).find(replace(view, avoid=Avoid(excluded)), Query("sheep", ("sheep",)))
    assert len(found) == 2
    assert not any(excluded[int(y), int(x)] for points, labels in meadow.prompts for x, y in points[labels == 1])
    assert len(Objects(smooth=False, places=2).find(view, Query("sheep", ("sheep",)))) == 3
    meadow = Meadow(SHEEP=[*sheep[:2], (3, 1), (3, 4), (3, 7), (6, 8)])
    view = View((128, 160), shepherd, None, Session.of(meadow), Session.of(meadow).image(meadow.image))
    excluded[48:64] = True
    found = Objects(smooth=False, places=2).find(replace(view, avoid=Avoid(excluded)), Query("sheep", ("sheep",)))
    assert len(found) == 3, "excluded places are no failures"


def test_more_must_look_like_the_text_and_like_what_was_found_last() -> None:
    hot = [(1, 1), (1, 4)]
    meadow, shepherd = Meadow(SHEEP=hot, LAMB=[(3, 6)], KID=[(5, 2)]), Shepherd(*hot)
    assert herd(meadow, shepherd) == [*hot, (3, 6), (5, 2)]
    assert herd(Meadow(SHEEP=hot, KID=[(5, 2)]), shepherd) == hot
    red = lambda image, masks, texts: [0.4 * bool(mask.any() and image[mask][0, 0] == 250) for mask in masks]  # noqa: E731
    shepherd.likeness = red  # type: ignore[assignment]
    assert herd(meadow, shepherd) == hot
    shepherd.likeness = None
    assert herd(meadow, shepherd) == hot


def test_more_does_not_overlap_what_was_found() -> None:
    class Wide(Meadow):
        def answer(self, image: Any, point: Any, several: bool) -> Any:
            masks, scores = super().answer(image, point, several)
            if tuple(image[point[1], point[0]]) == LAMB:
                masks |= np.roll(masks, -8, axis=2)
            return masks, scores

    assert herd(Meadow(SHEEP=[(1, 1), (1, 4)], LAMB=[(1, 6)]), Shepherd((1, 1), (1, 4))) == [(1, 1), (1, 4), (1, 6)]
    assert herd(Wide(SHEEP=[(1, 1), (1, 4)], LAMB=[(1, 5)]), Shepherd((1, 1), (1, 4))) == [(1, 1), (1, 4)]


def test_fine_maps_show_all_there_is() -> None:
    shepherd: Any = Shepherd((1, 1), (1, 4))
    shepherd.fine = True
    assert herd(Meadow(SHEEP=[(1, 1), (1, 4), (3, 6)]), shepherd) == [(1, 1), (1, 4)]


@pytest.mark.parametrize(
    "answer",
    [None, [], [[0, np.nan]], [[3e38, 1]], [[1e300, 1]], [1, 2], [["a"]], [[1], [1]], np.zeros((1, 2, 2)), "of two lengths"],
)
def test_cutouts_must_be_vectors(answer: Any) -> None:
    def cutouts(image: Any, masks: Any) -> Any:
        return [[1, 2][: 1 + int(masks[0][24, 24])]] if isinstance(answer, str) else answer

    meadow, shepherd = Meadow(SHEEP=[(1, 1), (1, 4), (3, 6)]), Shepherd((1, 1), (1, 4))
    shepherd.cutouts = cutouts  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match=r"Shepherd\.cutouts must return a vector .*, all of one length"):
        herd(meadow, shepherd)
