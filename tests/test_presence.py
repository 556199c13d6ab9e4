from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from text2sam.errors import InputError, OutputError
from text2sam.presence import Calibration, fit_threshold

GOOD = Calibration(0.1 + 0.2, 3, 5, 1 / 3, 0.2, 13 / 15, "ab12")


def rates(scores: np.ndarray, there: np.ndarray, threshold: float) -> tuple[float, float]:
    found = np.array([score >= threshold for score in scores])
    return float((~found[there]).mean()), float(found[~there].mean())


# degenerate


@pytest.mark.parametrize(
    ("presence", "present", "told"),
    [
        ([], [], "add at least one"),
        ([0.5], [True], "is not in its image"),
        ([0.5, 0.1], [True], "one number and one bool per example"),
        ([[0.5, 0.1]], [[True, False]], "one number and one bool per example"),
        ([0.5, 0.1], [1, 0], "present bools"),
        (["a", "b"], [True, False], "presence must hold numbers"),
        ([0.5, 1.1], [True, False], r"\[0, 1\], not .*1\.1"),
        ([0.5, math.nan], [True, False], r"\[0, 1\]"),
    ],
)
def test_unusable_examples(presence: Any, present: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        fit_threshold(presence, present)


@pytest.mark.parametrize("cost", [0, -1, math.nan, math.inf, "1", None])
def test_unusable_costs(cost: Any) -> None:
    with pytest.raises(InputError, match="false_cost"):
        fit_threshold([0.9, 0.1], [True, False], false_cost=cost)


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
def test_one_score_for_all_finds_everything(score: float) -> None:
    found = fit_threshold([score] * 3, [True, False, False])
    assert found == Calibration(0.0, 1, 2, 0.0, 1.0, 0.5)


def test_a_dear_false_find_finds_nothing() -> None:
    scores, there = [0.2, 0.9, 0.3], [True, False, True]
    assert fit_threshold(scores, there, false_cost=100) == Calibration(1.0, 2, 1, 1.0, 0.0, 0.0)
    assert fit_threshold(scores, there, false_cost=0.01) == Calibration(0.0, 2, 1, 0.0, 1.0, 0.0)
    # no threshold in [0, 1] is above a score of 1: nothing is won by missing what is there
    assert fit_threshold([0.2, 1.0, 0.3], there, false_cost=100).threshold == 0


# parity


def brute_cost(scores: np.ndarray, there: np.ndarray, false_cost: float) -> float:
    every = np.unique([0.0, 1.0, *scores, *np.nextafter(scores, 2).clip(0, 1)])
    costs = [missed + false_cost * false for missed, false in (rates(scores, there, float(t)) for t in every)]
    return min(costs)


@pytest.mark.parametrize("seed", range(18))
def test_fit_against_every_threshold(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 25))
    there = random.permutation(np.arange(count) < random.integers(1, count))
    levels = [3, 8, 10**6][seed % 3]  # few levels make ties within and between the classes
    scores = np.clip(random.integers(0, levels + 1, count) / levels + 0.3 * there - 0.15, 0, 1)
    if seed % 2:
        scores = scores**9  # crowded at 0
    false_cost = [1.0, 0.25, 3][seed % 3]
    found = fit_threshold(scores, there, false_cost=false_cost)
    missed, false = rates(scores, there, found.threshold)
    assert (found.missed_rate, found.false_rate) == pytest.approx((missed, false), abs=1e-12)
    assert missed + false_cost * false == pytest.approx(brute_cost(scores, there, false_cost), abs=1e-12)
    pairs = [float(a > b) + 0.5 * float(a == b) for a in scores[there] for b in scores[~there]]
    assert found.auroc == pytest.approx(np.mean(pairs), abs=1e-12)
    assert (found.n_present, found.n_absent) == (there.sum(), (~there).sum())
    order = random.permutation(count)
    assert fit_threshold(scores[order].tolist(), there[order].tolist(), false_cost=false_cost) == found


# behaviour


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_middle_of_a_gap_is_on_the_logit_scale() -> None:
    found = fit_threshold([sigmoid(3), sigmoid(5), sigmoid(-1), sigmoid(-4)], [True, True, False, False])
    assert found.threshold == pytest.approx(sigmoid(1), abs=1e-12)
    assert (found.missed_rate, found.false_rate, found.auroc) == (0, 0, 1)
    assert fit_threshold([0.75, 0.25], [True, False]).threshold == pytest.approx(0.5)
    assert fit_threshold([1.0, 0.0], [True, False]).threshold == pytest.approx(0.5)


def test_the_widest_of_equal_gaps() -> None:
    logits = [5.0, 2.0, 1.0, -4.0]
    there = [True, False, True, False]  # gaps 2..5 and -4..1 both cost 1/2
    assert fit_threshold([sigmoid(v) for v in logits], there).threshold == pytest.approx(sigmoid(-1.5))
    logits = [9.0, 2.0, 1.0, -4.0]
    assert fit_threshold([sigmoid(v) for v in logits], there).threshold == pytest.approx(sigmoid(5.5))


def test_the_lower_of_gaps_as_wide() -> None:
    scores = [1.0, 1 - 2.0**-12, 2.0**-12, 0.0]  # the same distance at both ends
    assert fit_threshold(scores, [True, False, True, False]).threshold < 0.5
    # as probabilities the other gap is the wider: 0.02 to 0.73 against 0.88 to 0.9999
    logits = [6.0, 3.0, 2.0, -1.0]  # rounding makes the upper gap wider by 5e-14
    assert fit_threshold([sigmoid(v) for v in logits], [True, False, True, False]).threshold == pytest.approx(sigmoid(0.5))


def test_a_gap_between_scores_goes_before_the_ends() -> None:
    found = fit_threshold([0.3, 0.4, 0.5], [True, False, True], false_cost=0.5)  # everything present costs 0.5 too
    assert 0.4 < found.threshold <= 0.5
    assert (found.missed_rate, found.false_rate) == (0.5, 0)
    near = [1e-12, 2e-12, 3e-12]  # the gaps have no width on the logit scale
    assert fit_threshold(near, [True, False, True], false_cost=0.5).threshold > 2e-12
    # everything absent costs 1 too
    found = fit_threshold([0.4, 0.5, 0.6, 0.6], [False, True, False, False], false_cost=1.5)
    assert found.missed_rate + 1.5 * found.false_rate == pytest.approx(1.0)
    assert 0.4 < found.threshold <= 0.5
    assert found.false_rate == pytest.approx(2 / 3)


def test_how_many_of_a_class_moves_nothing() -> None:
    present, absent = [0.9, 0.6, 0.3], [0.5, 0.2, 0.1]
    once = fit_threshold(present + absent, [True] * 3 + [False] * 3)
    often = fit_threshold(present + absent * 50, [True] * 3 + [False] * 150)
    assert (once.threshold, once.missed_rate, once.false_rate) == (often.threshold, often.missed_rate, often.false_rate)
    assert once.auroc == often.auroc


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 1.0),
        (0.0, 1e-12),
        (1e-300, 1e-12),
        (0.0, 5e-324),
        (1 - 2.0**-24, 1.0),
        (1 - 2.0**-53, 1.0),
        (0.5, math.nextafter(0.5, 1)),
        (2.0**-25, 0.9),
    ],
)
def test_neighbours_are_told_apart_however_near(low: float, high: float) -> None:
    found = fit_threshold([low, high], [False, True])
    assert low < found.threshold <= high
    assert (found.missed_rate, found.false_rate) == (0, 0)


def test_single_precision_scores_are_compared_as_they_are() -> None:
    scores = np.array([0.1, np.nextafter(np.float32(0.1), np.float32(1))], np.float32)
    found = fit_threshold(scores, np.array([False, True]))
    assert float(scores[0]) < found.threshold <= float(scores[1])


def test_ties_are_decided_in_whole_numbers() -> None:
    assert 0.1 + 0.2 > 0.3  # in floats the narrow gap would cost less than the wide one
    below = [(-9.0, True), *((-8 + 0.1 * i, False) for i in range(8))]
    between = [(3.0, True), (3.1, True), (3.2, False), (3.3, False)]
    above = [(4 + 0.1 * i, True) for i in range(7)]
    logits, there = zip(*below, *between, *above, strict=True)
    found = fit_threshold([sigmoid(v) for v in logits], there)
    assert (found.missed_rate, found.false_rate) == (0.1, 0.2)
    assert found.threshold == pytest.approx(sigmoid((-7.3 + 3.0) / 2))


def test_unusable_fields() -> None:
    for name in ("threshold", "missed_rate", "false_rate", "auroc"):
        wrong: tuple[Any, ...] = (-0.1, 1.1, math.nan, "0.5", None, True)
        for value in wrong:
            with pytest.raises(InputError, match=name):
                dataclasses.replace(GOOD, **{name: value})
        right: tuple[Any, ...] = (0, 1, 0.5)
        for value in right:
            assert getattr(dataclasses.replace(GOOD, **{name: value}), name) == value
    for name in ("n_present", "n_absent"):
        for value in (0, -1, 1.0, True, None):
            with pytest.raises(InputError, match=name):
                dataclasses.replace(GOOD, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="model"):
        dataclasses.replace(GOOD, model=None)  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.threshold = 0.5  # type: ignore[misc]


# the file


def test_saved_and_loaded_bit_by_bit(tmp_path: Path) -> None:
    path = GOOD.save(tmp_path / "sub" / "calibration.json")
    assert Calibration.load(path) == Calibration.load(str(path)) == GOOD
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record == {"format": "text2sam calibration", "version": 1, **dataclasses.asdict(GOOD)}
    fitted = fit_threshold(np.array([0.1, 0.7], np.float32), np.array([False, True]))
    assert Calibration.load(fitted.save(path)) == fitted
    assert [p.name for p in path.parent.iterdir()] == ["calibration.json"]
    with pytest.raises(OutputError):
        GOOD.save(tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"format": "coco"}, "lacks .*text2sam calibration"),
        ({"version": 2}, "another text2sam"),
        ({"version": True}, "another text2sam"),
        ({"threshold": 1.5}, "threshold must be"),
        ({"threshold": math.nan}, "threshold must be"),
        ({"model": 3}, "model must be"),
        ({"n_absent": 10**400}, "n_absent must be"),
    ],
)
def test_unusable_files(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    path = GOOD.save(tmp_path / "c.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(InputError, match=told) as raised:
        Calibration.load(path)
    assert str(path) in str(raised.value)


def test_files_that_lack_a_value(tmp_path: Path) -> None:
    path = GOOD.save(tmp_path / "c.json")
    whole = json.loads(path.read_text())
    for name in dataclasses.asdict(GOOD):
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
        with pytest.raises(InputError, match=f"lacks a value .*'{name}'"):
            Calibration.load(path)


@pytest.mark.parametrize(
    ("data", "told"),
    [(data, "cannot be read") for data in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"nonsense")]
    + [(data, r"lacks .*text2sam calibration") for data in (b"[]", b"3", b"null", b"{}")],
)
def test_files_that_are_no_calibration(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=told):
        Calibration.load(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path, "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            Calibration.load(path)
