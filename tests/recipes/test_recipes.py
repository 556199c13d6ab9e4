from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from text2sam import recipes as module
from text2sam.errors import InputError
from text2sam.recipes import (
    DEFAULT,
    STRATEGIES,
    Strategy,
    get_strategy,
    joint_map,
    mean_map,
    paper_points,
    peak_points,
)
from text2sam.recipes.choose import Choice, choose_by_agreement, choose_by_score
from text2sam.recipes.points import heat_of, patch_of, points_from_similarity
from text2sam.types import PointPrompts, SimilarityMap

HEAT = SimilarityMap(np.zeros((3, 3), np.float32))
LOGITS = np.zeros((4, 2, 2), np.float32)


def a_map(seed: int, text: str = "cat", scale: float = 1) -> SimilarityMap:
    return SimilarityMap(np.random.default_rng(seed).random((8, 10), np.float32) * np.float32(scale), text, "itsm")


# degenerate


@pytest.mark.parametrize("strategy", ["", "Paper", "best", None, 3, ["paper"]])
def test_unknown_strategies(strategy: Any) -> None:
    with pytest.raises(InputError, match=f"one of .*paper.*not {strategy!r}".replace("[", r"\[").replace("]", r"\]")):
        get_strategy(strategy)


@pytest.mark.parametrize(("masks", "scores"), [(0, 0), (2, 1), (1, 2), (0, 1)])
def test_choice_among_none(masks: int, scores: int) -> None:
    with pytest.raises(InputError, match="one score per mask"):
        choose_by_score(np.zeros((masks, 3, 3), np.bool_), np.zeros(scores, np.float32), HEAT, PointPrompts.empty(), LOGITS)


def test_flat_maps() -> None:
    flat = SimilarityMap(np.full((8, 10), 0.1, np.float32))
    assert len(paper_points([flat], (10, 10))) == 0
    assert len(paper_points([flat, flat], (10, 10))) == 0
    assert joint_map([flat, flat]).flat
    one = a_map(0)
    points = paper_points([flat, one], (30, 50))
    assert points.positive.tolist() == points_from_similarity(one, (30, 50)).positive.tolist()


@pytest.mark.parametrize(
    "numbers",
    [
        {"objects": 0},
        {"objects": -1},
        {"rounds": -1},
        {"support": -0.1},
        {"support": 1.1},
        {"support": float("nan")},
        {"margin": -1.0},
        {"margin": float("nan")},
    ],
)
def test_numbers_out_of_range(numbers: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a Strategy needs objects of at least 1, rounds"):
        Strategy("own", paper_points, choose_by_score, **numbers)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 4)])
def test_flat_maps_have_no_peaks(grid: tuple[int, int]) -> None:
    flat = SimilarityMap(np.full(grid, 0.1, np.float32))
    for maps in ([flat], [flat, flat]):
        assert len(peak_points(maps, (20, 30))) == 0
        assert len(peak_points(maps, (20, 30), [np.zeros((20, 30), bool)])) == 0
    assert mean_map([flat, flat], "car").flat


@pytest.mark.parametrize("taken", [[np.zeros((80, 120), bool)], np.zeros((1, 80, 120), bool), (np.ones((80, 120), bool),)])
def test_the_papers_points_come_once(taken: Any) -> None:
    assert len(paper_points([a_map(0)], (80, 120)))
    for maps in ([a_map(0)], [a_map(0), a_map(1)]):
        assert len(paper_points(maps, (80, 120), taken)) == 0
        assert paper_points(maps, (80, 120), []).coords.tolist() == paper_points(maps, (80, 120)).coords.tolist()


# behaviour


def test_names() -> None:
    assert get_strategy("paper") is STRATEGIES["paper"]
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())
    own = Strategy("own", paper_points, choose_by_score)
    assert get_strategy(own) is own


@pytest.mark.parametrize(("scores", "index"), [([0.1, 0.9, 0.5], 1), ([0.2], 0), ([0.3, 0.7, 0.7], 1), ([0, 0, 0], 0)])
def test_choice_by_score(scores: list[float], index: int) -> None:
    masks = np.zeros((len(scores), 3, 3), np.bool_)
    choice = choose_by_score(masks, np.array(scores, np.float32), HEAT, PointPrompts.empty(), LOGITS)
    assert isinstance(choice, Choice)
    assert choice.index == index
    assert type(choice.index) is int
    assert f"{scores[index]:.3f}" in choice.reason
    assert choice.figures == {}


def test_joint_map_is_the_mean_of_what_is_seen() -> None:
    one, other = a_map(0, "cat"), a_map(1, "dog", scale=1000)
    joint = joint_map([one, other])
    np.testing.assert_allclose(joint.values, (one.normalized() + other.normalized()) / 2, atol=1e-7)
    assert (joint.text, joint.method) == ("cat+dog", "itsm")
    assert joint.values.dtype == np.float32
    assert joint_map([one]) is one


def test_points_of_one_text_are_the_papers() -> None:
    found, expected = paper_points([a_map(0)], (80, 120)), points_from_similarity(a_map(0), (80, 120), 0.8, 2)
    assert found.coords.tolist() == expected.coords.tolist()
    assert found.labels.tolist() == expected.labels.tolist()


def test_points_of_joined_texts() -> None:
    maps, shape = [a_map(0), a_map(1, scale=1000), a_map(2)], (80, 120)
    found = paper_points(maps, shape)
    hot = [xy for m in maps for xy in points_from_similarity(m, shape).positive.tolist()]
    cold = points_from_similarity(np.mean([m.normalized() for m in maps], axis=0), shape).negative.tolist()
    assert found.coords.tolist() == hot + cold
    assert found.labels.tolist() == [1] * len(hot) + [0] * len(cold)
    assert len(hot) >= 3
    assert cold


def test_the_ends_of_the_ranges() -> None:
    for support in (0, 1, 0.0, 1.0):
        assert Strategy("own", paper_points, choose_by_score, objects=1, rounds=0, support=support).support == support


def test_a_bare_strategy_is_one_prompt_and_one_mask() -> None:
    own = Strategy("own", paper_points, choose_by_score)
    assert (own.objects, own.rounds, own.support, own.answers_absent, own.vocabulary) == (1, 0, 0.0, True, False)
    with pytest.raises(FrozenInstanceError):
        own.objects = 2  # type: ignore[misc]


def test_the_papers_recipe() -> None:
    assert STRATEGIES["paper"] == Strategy("paper", paper_points, choose_by_score)


def test_the_default_looks_for_every_object() -> None:
    recipe = get_strategy(DEFAULT)
    assert recipe is STRATEGIES["objects"]
    assert recipe.points is peak_points
    assert recipe.choose is choose_by_agreement
    assert recipe.objects > 1
    assert not recipe.answers_absent
    assert recipe.vocabulary


def blob(row: int, column: int, scale: float = 1) -> SimilarityMap:
    r, c = np.mgrid[:12, :16]
    values = scale * np.exp(-((r - row) ** 2 + (c - column) ** 2) / 4)
    return SimilarityMap(values.astype(np.float32), f"{row} {column}")


def test_peaks_come_from_the_joint_map() -> None:
    maps, shape = [blob(3, 3), blob(8, 12, scale=1000)], (120, 160)
    taken: list[np.ndarray] = []
    seen = set()
    for _ in maps:  # the scale of a text does not matter
        points = peak_points(maps, shape, taken)
        assert points.coords.tolist() == module._peaks(joint_map(maps), shape, taken).coords.tolist()
        seen.add(patch_of(points.positive[0], shape, (12, 16)))
        x, y = points.positive[0]
        taken.append(np.hypot(*(np.indices(shape) - np.array([y, x])[:, None, None])) < 40)
    assert seen == {(3, 3), (8, 12)}
    assert len(peak_points(maps, shape, taken)) == 0


def test_the_peak_of_one_text() -> None:
    points = peak_points([a_map(0)], (80, 100))
    heat = heat_of(a_map(0))
    assert points.labels.tolist()[0] == 1
    assert heat[patch_of(points.coords[0], (80, 100), heat.shape)] == 1


def test_synonyms_are_the_similarity_to_the_mean_embedding() -> None:
    random = np.random.default_rng(0)
    patches, texts = random.normal(size=(6, 5, 16)), random.normal(size=(3, 16))
    maps = [SimilarityMap((patches @ text).astype(np.float32), str(k), "itsm") for k, text in enumerate(texts)]
    joined = mean_map(maps, "car")
    np.testing.assert_allclose(joined.values, patches @ texts.mean(0), atol=1e-5)
    assert (joined.text, joined.method) == ("car", "itsm")
    assert joined.values.dtype == np.float32


def test_a_single_synonym_takes_the_name() -> None:
    one = a_map(0, "automobile")
    assert np.array_equal(mean_map([one], "car").values, one.values)
    assert mean_map([one], "car").text == "car"


def test_synonyms_keep_their_scale() -> None:
    weak, strong = a_map(0), a_map(1, scale=1000)
    values = mean_map([weak, strong], "car").values
    np.testing.assert_allclose(values, (weak.values + strong.values) / 2, rtol=1e-5)
