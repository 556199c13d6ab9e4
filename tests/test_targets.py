from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from text2sam.errors import InputError, PromptError
from text2sam.targets import Query, check_exclude, check_text, parse_target, parse_targets, split_target, thresholds_of

# what is refused


@pytest.mark.parametrize(
    "target", ["", " ", "...", None, 3, b"cat", [], (), ["cat", ""], [None], [["cat"]], "c++", "+", "cat+", "+cat", {"cat"}]
)
def test_unusable_texts(target: Any) -> None:
    for parse in (split_target, parse_target):
        with pytest.raises(PromptError):
            parse(target)


def test_texts_are_stripped() -> None:
    for given, text in ((" a black cat\n", "a black cat"), ("猫", "猫"), ("🐱", "🐱")):
        assert check_text(given) == text
    with pytest.raises(PromptError, match="names something"):
        check_text("\t\n")


@pytest.mark.parametrize("target", ["cat+cat", "cat + cat", ["cat", " cat "]])
def test_texts_joined_twice(target: Any) -> None:
    with pytest.raises(PromptError, match="joined twice"):
        parse_target(target)


def test_literal_plus_is_told() -> None:
    with pytest.raises(PromptError, match=r"to look for a literal '\+' pass a list: \['c\+\+'\]"):
        split_target("c++")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({}, "one name, not 0"),
        ({"car": ["car"], "cat": ["cat"]}, "one name, not 2.*segment_many"),
        ({"": ["car"]}, "name of synonyms"),
        ({"car": "automobile"}, "non-empty sequence of texts, not 'automobile'"),
        ({"car": []}, "non-empty sequence"),
        ({"car": ["car", ""]}, "names something"),
        ({"car": ["auto", " auto"]}, "synonym of 'car' is given twice"),
    ],
)
def test_unusable_synonyms(target: Any, told: str) -> None:
    with pytest.raises(PromptError, match=told):
        parse_target(target)


@pytest.mark.parametrize(
    ("targets", "error"), [("cat", InputError), (None, InputError), (3, InputError), (b"cat", PromptError)]
)
def test_unusable_targets(targets: Any, error: Any) -> None:
    with pytest.raises(error):
        parse_targets(targets)


@pytest.mark.parametrize("exclude", ["dog", b"", 3, {"dog"}, {"dog": 1}, (t for t in ["dog"])])
def test_exclusions_that_are_no_sequence(exclude: Any) -> None:
    if exclude == b"":  # an empty sequence of nothing
        assert check_exclude(exclude, []) == ()
        return
    with pytest.raises(InputError, match="exclude must be a sequence of strings"):
        check_exclude(exclude, [])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf"), True, False, "0.5", [0.5], np.array([0.5])])
def test_unusable_thresholds(threshold: Any) -> None:
    queries = parse_targets(["cat", "dog"])
    for given in (threshold, {"cat": 0.5, "dog": threshold}):
        with pytest.raises(InputError, match="threshold must be a number in"):
            thresholds_of(given, queries, 0.5)


@pytest.mark.parametrize("label", ["bird", "Cat", "auto", 3])
def test_thresholds_of_what_is_not_looked_for(label: Any) -> None:
    with pytest.raises(InputError, match=r"is not looked for; the texts are \['cat', 'car'\]"):
        thresholds_of({"cat": 0.2, label: 0.5}, parse_targets(["cat", {"car": ["auto"]}]), 0.5)


# what is understood


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
def test_joined_texts(target: Any, texts: tuple[str, ...]) -> None:
    assert split_target(target) == texts
    query = parse_target(target)
    assert query == Query("+".join(texts), texts)
    assert query.plain == (len(texts) == 1)


@pytest.mark.parametrize(
    ("target", "query", "plain"),
    [
        ({"car": ["car", "automobile"]}, Query("car", ("car", "automobile"), True), False),
        ({"car": (" automobile ",)}, Query("car", ("automobile",), False), False),
        ({"car": ["car"]}, Query("car", ("car",), False), True),
        (MappingProxyType({"a+b": ["c++ book", "book"]}), Query("a+b", ("c++ book", "book"), True), False),
    ],
)
def test_synonyms(target: Any, query: Query, plain: bool) -> None:
    assert parse_target(target) == query
    assert query.plain == plain


def test_several_targets_keep_their_order() -> None:
    assert parse_targets([]) == []
    assert parse_targets({}) == []
    expected = [Query("dog", ("dog",)), Query("a+b", ("a", "b")), Query("car", ("car", "auto"), True), Query("dog", ("dog",))]
    assert parse_targets(["dog", ["a", "b"], {"car": ["car", "auto"]}, "dog"]) == expected
    assert parse_targets(iter(["dog"])) == expected[:1]  # type: ignore[arg-type]
    named = parse_targets({"car": ["car", "auto"], "animal": ["dog"]})
    assert named == [Query("car", ("car", "auto"), True), Query("animal", ("dog",))]


def test_exclusions() -> None:
    queries = parse_targets(["cat", "person+bench", {"car": ["auto", "van"]}])
    assert check_exclude(None, queries) == ()
    assert check_exclude([], queries) == ()
    assert check_exclude(["dog", " dog", "sky"], queries) == ("dog", "sky")
    assert check_exclude(("a car", "person on a bench"), queries) == ("a car", "person on a bench")


@pytest.mark.parametrize("text", ["cat", " CAT ", "person", "bench", "person+bench", "car", "auto", "Van"])
def test_nothing_is_both_looked_for_and_excluded(text: str) -> None:
    with pytest.raises(PromptError, match=f"'{text.strip()}' is both looked for and excluded".replace("+", r"\+")):
        check_exclude(["dog", text], parse_targets(["cat", "person+bench", {"car": ["auto", "van"]}]))


def test_thresholds() -> None:
    queries = parse_targets(["cat", "a+b", {"car": ["auto"]}, "cat"])
    assert thresholds_of(None, queries, 0.4) == [0.4] * 4
    assert thresholds_of(0.7, queries, 0.4) == [0.7] * 4
    assert thresholds_of(0, queries, 0.4) == [0.0] * 4
    assert thresholds_of({}, queries, 0.4) == [0.4] * 4
    assert thresholds_of({"cat": 0.1, "car": 1}, queries, 0.4) == [0.1, 0.4, 1.0, 0.1]
    assert thresholds_of({"a+b": 0.0}, queries, 0.4) == [0.4, 0.0, 0.4, 0.4]
    assert thresholds_of(0.5, [], 0.4) == []
    for number in (np.float32(0.25), np.float64(0.25), np.int64(1)):
        values = thresholds_of(number, queries[:1], 0.4)  # type: ignore[arg-type]
        assert values == [float(number)]
        assert type(values[0]) is float
