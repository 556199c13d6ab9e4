from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import FakePredictor, picture, tiny_surgery
from numpy.typing import NDArray

from text2sam import TextPromptedSAM
from text2sam.errors import InputError, StateError
from text2sam.recipes.choose import Offer, choose_by_agreement
from text2sam.refine import choose_by_clicks, with_answer, with_candidate, with_objects, without_object
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of

SHAPE = (12, 20)


def disc(x: int, y: int, radius: float = 2) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.asarray(np.hypot(columns - x, rows - y) <= radius)


def single(x: int, score: float = 0.6, presence: float = 0.8) -> Segmentation:
    """One object around (x, 6), of three masks the second."""
    masks = np.stack([disc(x, 6, radius) for radius in (1, 2, 4)])
    totals = {"total": np.array([0.9, 0.75, 0.3], np.float32)}
    offered = Candidates(masks, np.array([0.1, 0.2, 0.9], np.float32), np.zeros((3, 4, 4), np.float32), 1, "why", totals)
    points = PointPrompts([[x, 6]], [1])  # type: ignore[arg-type]
    similarity = SimilarityMap(np.eye(4, dtype=np.float32), "cat")
    return Segmentation(masks[1], score, box_of(masks[1]), points, similarity, offered, "cat", True, presence)


def pair() -> Segmentation:
    return with_objects(single(4), [single(4), single(15, 0.5)])


def nothing(presence: float = 0.2, threshold: float = 0.5) -> Segmentation:
    empty = np.zeros(SHAPE, bool)
    similarity = SimilarityMap(np.eye(4, dtype=np.float32), "cat")
    return Segmentation(empty, 0.0, None, PointPrompts.empty(), similarity, None, "cat", False, presence, threshold=threshold)


@pytest.mark.parametrize("number", [-1, 2, 1.0, True, "0"])
def test_there_is_no_such_object(number: Any) -> None:
    for change in (without_object, lambda result, k: with_candidate(result, k, 0)):
        with pytest.raises(InputError, match="number"):
            change(pair(), number)
        with pytest.raises(InputError, match="there is no object of 'cat'"):
            change(nothing(), number)


def test_objects_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="single objects"):
        with_objects(nothing(), [pair()])
    with pytest.raises(InputError, match="index"):
        with_candidate(pair(), 0, 3)
    asked = replace(single(4), candidates=None)
    with pytest.raises(InputError, match="was not asked"):
        with_candidate(asked, 0, 0)


def test_no_object_is_left() -> None:
    left = without_object(without_object(pair(), 0), 0)
    assert not left.mask.any()
    assert left.box is left.candidates is None
    assert (left.score, left.present, left.objects, len(left.points)) == (0.0, False, (), 0)
    assert left.presence == 0.8
    assert with_objects(pair(), [nothing()]).instances == ()


def test_the_union_follows_its_objects() -> None:
    both = pair()
    assert np.array_equal(both.mask, disc(4, 6) | disc(15, 6))
    assert both.score == 0.6
    assert both.points.coords.tolist() == [[4, 6], [15, 6]]
    left = without_object(both, 0)
    assert np.array_equal(left.mask, disc(15, 6))
    assert left.score == 0.5
    assert left.present
    assert left.points.coords.tolist() == [[15, 6]]
    assert len(both.objects) == 2, "the result before is as it was"


def test_another_candidate() -> None:
    changed = with_candidate(pair(), 1, 2)
    assert np.array_equal(changed.objects[1].mask, disc(15, 6, 4))
    assert np.array_equal(changed.objects[0].mask, disc(4, 6))
    offered = changed.objects[1].candidates
    assert offered is not None
    assert (offered.chosen, offered.reason) == (2, "chosen by hand")
    assert changed.objects[1].score == pytest.approx(0.5 * 0.3 / 0.75)
    again = with_candidate(changed, 1, 1)
    assert again.objects[1].score == pytest.approx(0.5)
    assert np.array_equal(again.mask, pair().mask)


def test_what_was_excluded_stays_out() -> None:
    cut = disc(4, 6) & ~disc(3, 6, 1)
    part = replace(single(4), mask=cut, box=box_of(cut), excluded=("dog",))
    changed = with_candidate(part, 0, 2)
    assert not (changed.mask & disc(4, 6) & disc(3, 6, 1)).any()
    assert changed.mask.sum() == disc(4, 6, 4).sum() - (disc(4, 6) & disc(3, 6, 1)).sum()
    assert np.array_equal(with_candidate(replace(part, excluded=()), 0, 2).mask, disc(4, 6, 4))


def test_a_speck_of_the_mask_before_was_not_excluded() -> None:
    small, large = np.zeros((2, 40, 40), bool)
    small[:20], large[:35] = True, True
    spotted = small.copy()
    spotted[30, 30] = True
    offered = Candidates(np.stack([spotted, large]), np.ones(2, np.float32), np.zeros((2, 4, 4), np.float32), 0, "why")
    part = replace(single(2), mask=small, box=box_of(small), candidates=offered, excluded=("dog",))
    assert np.array_equal(with_candidate(part, 0, 1).mask, large)


def test_what_was_excluded_stays_out_of_filled_holes() -> None:
    before, excluded = np.zeros((2, 40, 40), bool)
    before[:20], excluded[8:12, 8:12] = True, True
    cut = before & ~excluded
    before[10, 10] = False
    offered = Candidates(before[None], np.ones(1, np.float32), np.zeros((1, 4, 4), np.float32), 0, "why")
    part = replace(single(2), mask=cut, box=box_of(cut), candidates=offered, excluded=("dog",))
    assert np.array_equal(with_candidate(part, 0, 0).mask, cut)


def test_specks_are_left_out_unless_a_point_means_one() -> None:
    whole = np.zeros((40, 40), bool)
    whole[:20] = True
    spotted = whole.copy()
    spotted[30, 30], spotted[5, 5] = True, False
    answer = np.stack([spotted]), np.array([0.7], np.float32), np.zeros((1, 4, 4), np.float32)
    empty = replace(nothing(), mask=np.zeros((40, 40), bool))

    def corrected(*points: tuple[int, int, int]) -> Segmentation:
        prompts = PointPrompts([point[:2] for point in points], [point[2] for point in points])
        return with_answer(empty, 0, prompts, answer)

    assert np.array_equal(corrected((2, 2, 1)).mask, whole)
    assert np.array_equal(corrected((2, 2, 1), (30, 30, 1)).mask, spotted)
    assert np.array_equal(corrected((2, 2, 1), (5, 5, 0)).mask, spotted)
    assert np.array_equal(corrected((2, 2, 1), (30, 30, 0), (5, 5, 1)).mask, whole)
    again = with_candidate(corrected((2, 2, 1)), 0, 0)
    assert np.array_equal(again.mask, whole)


def test_clicks_go_before_agreement() -> None:
    masks = np.stack([disc(4, 6, radius) for radius in (1, 2, 4)])
    logits, similarity = np.zeros((3, 4, 4), np.float32), SimilarityMap(np.eye(4, dtype=np.float32))
    scores = np.array([0.9, 0.5, 0.1], np.float32)
    points = PointPrompts([[4, 6], [7, 6]], [1, 1])  # type: ignore[arg-type]
    assert choose_by_agreement(Offer(masks, scores, similarity, points, logits)).index == 0
    assert choose_by_clicks(Offer(masks, scores, similarity, points, logits)).index == 2
    outside = PointPrompts([[4, 6], [7, 6]], [1, 0])  # type: ignore[arg-type]
    miss = Offer(masks, scores, similarity, outside, logits)
    assert choose_by_clicks(miss).index == 0
    assert choose_by_clicks(miss, before=disc(4, 6, 2)).index == 1, "near what was"
    assert choose_by_clicks(miss, before=disc(4, 6, 4)).index == 1, "clicks go first"


def test_a_point_brings_in_what_was_not_there() -> None:
    answer = np.stack([disc(9, 6)]), np.array([0.7], np.float32), np.zeros((1, 4, 4), np.float32)
    points = PointPrompts([[9, 6]], [1])  # type: ignore[arg-type]
    found = with_answer(nothing(), 0, points, answer)
    assert found.present
    assert (found.presence, found.threshold) == (0.2, 0.2)
    assert np.array_equal(found.mask, disc(9, 6))
    assert len(found.objects) == 1
    with pytest.raises(InputError, match="of \\(4, 4\\)"):
        with_answer(nothing(), 0, points, (np.ones((1, 4, 4), bool), *answer[1:]))


# asking SAM again


def model() -> TextPromptedSAM:
    return TextPromptedSAM(FakePredictor(), tiny_surgery(image_size=(24, 32)))


def test_points_go_to_sam_with_the_objects_own() -> None:
    m, image = model(), picture()
    [encoded] = m.encode([image])
    before = m.segment(encoded, "cat", threshold=0.0)
    own = before.instances[0].points
    new = PointPrompts([[20, 15], [1, 1]], [1, 0])  # type: ignore[arg-type]
    after = m.refine(encoded, before, new)
    coords, labels = m.predictor.prompts[-1]  # type: ignore[attr-defined]
    assert np.array_equal(coords, [*own.coords, *new.coords])
    assert np.array_equal(labels, [*own.labels, *new.labels])
    assert np.array_equal(after.instances[0].points.coords, coords)
    assert len(m.predictor.images) == 1, "the image was encoded already"  # type: ignore[attr-defined]
    by_path = m.refine(image, before, new)
    assert np.array_equal(by_path.mask, after.mask)
    more = m.refine(encoded, after, PointPrompts([[40, 3]], [1]), number=len(after.instances))  # type: ignore[arg-type]
    assert len(more.instances) == len(after.instances) + 1
    assert more.mask[3, 40]


def test_the_mask_before_goes_along() -> None:
    m, image = model(), picture()
    [encoded] = m.encode([image])
    before = m.segment(encoded, "cat", threshold=0.0)
    asked = m.predictor.mask_inputs  # type: ignore[attr-defined]
    assert set(map(type, asked)) == {type(None)}
    once = m.refine(encoded, before, PointPrompts([[20, 15]], [1]))  # type: ignore[arg-type]
    assert len(once.instances[0].candidates) == 3  # type: ignore[arg-type]
    twice = m.refine(encoded, once, PointPrompts([[1, 1]], [0]))  # type: ignore[arg-type]
    offered = twice.instances[0].candidates
    assert offered is not None
    assert (len(offered), offered.chosen) == (4, 0), "the single mask and the three"
    assert [mask.shape for mask in asked[-3:]] == [(1, 4, 4)] * 3
    assert twice.instances[0].strategy == "clicks"
    assert before.strategy == twice.strategy == "objects"


def test_points_that_cannot_be_asked_about() -> None:
    m, image = model(), picture()
    absent = m.segment(image, "cat", threshold=1.0)
    assert not absent.present
    point = PointPrompts([[20, 15]], [1])  # type: ignore[arg-type]
    with pytest.raises(StateError, match="no image is set"):
        m.refine(None, absent, point)
    for points in (PointPrompts.empty(), PointPrompts([[3, 3]], [0])):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="at least one new point"):
            m.refine(image, absent, points)
    with pytest.raises(InputError, match="points must be PointPrompts"):
        m.refine(image, absent, [[20, 15]])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="result must be the Segmentation of one text, not list"):
        m.refine(image, [absent], point)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="number"):
        m.refine(image, absent, point, number=1)
    for x, y in ((44, 3), (-1, 3), (3, 30), (3, -0.6)):
        outside = PointPrompts([[20, 15], [x, y]], [1, 0])  # type: ignore[arg-type]
        with pytest.raises(InputError, match=rf"\({x}, {y}\) is outside the image, which is 44 wide and 30 high"):
            m.refine(image, absent, outside)
    corners = PointPrompts([[-0.5, -0.5], [43.5, 29.5]], [1, 1])  # type: ignore[arg-type]
    assert len(m.refine(image, absent, corners).points) == 2
    with pytest.raises(InputError, match="the image is"):
        m.refine(picture(height=9), absent, point)
    m.set_image(image)
    assert m.refine(None, absent, point).present
