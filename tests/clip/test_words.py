"""Words: what a text stands for."""

from __future__ import annotations

import pytest
from helpers import LEARNED, SYNSETS, WORDS

from text2sam.clip.words import WordTable
from text2sam.errors import PromptError, WeightsError


@pytest.fixture(scope="module")
def table() -> WordTable:
    return WordTable(SYNSETS, WORDS, LEARNED)


@pytest.mark.parametrize("text", ["", "  ", "?!", None, 3])
def test_no_text(table: WordTable, text: object) -> None:
    with pytest.raises(PromptError, match="text prompt"):
        table.meaning(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "name", "classes"),
    [
        ("cat", "cat", (0,)),
        ("  CATS ", "cat", (0,)),
        ("the cat's", "cat", (0,)),
        ("two cats\u2019", "cat", (0,)),
        ("'cats'", "cat", (0,)),
        ("the cat", "cat", (0,)),
        ("a photo of a cat.", "cat", (0,)),
        ("A close-up photo of the two cats", "cat", (0,)),
        ("there is a cat in the scene.", "cat", (0,)),
        ("mice", "mouse", (1,)),
        ("2 mice", "mouse", (1,)),
        ("a pair of knives", "knife", (7,)),
        ("hot dogs", "hot dog", (5,)),
        ("hotdog", "hot dog", (5,)),
        ("T-shirts", "T-shirt", (6,)),
        ("tshirt", "T-shirt", (6,)),
        ("t shirt", "T-shirt", (6,)),
        ("knives", "knife", (7,)),
        ("sunglasses", "sunglasses", (10,)),
        ("turkey", "turkey", (2,)),
        ("a sunglass", "sunglasses", (10,)),
    ],
)
def test_what_is_understood(table: WordTable, text: str, name: str, classes: tuple[int, ...]) -> None:
    meaning = table.meaning(text)
    assert (meaning.name, meaning.classes) == (name, classes)


def test_senses(table: WordTable) -> None:
    assert table.meaning("crane").classes == (4,), "the first sense"
    assert table.meaning("crane bird").classes == (3,)
    assert table.meaning("cranes (animals)").classes == (3,)
    assert table.meaning("crane machine").classes == (4,)
    assert table.kind(table.meaning("crane bird")) == "bird"
    assert table.kind(table.meaning("bird")) == "animal"
    assert table.kind(table.meaning("animal")) == ""
    with pytest.raises(PromptError, match="'cat crane'"):
        table.meaning("cat crane")


def test_learned_words(table: WordTable) -> None:
    for text in ("person", "People", "men", "women", "a man"):
        assert (table.meaning(text).classes, table.meaning(text).learned) == ((), 0)
    for text in ("cat", "kitties", "kitty"):
        assert (table.meaning(text).classes, table.meaning(text).learned) == ((0,), 1)
    assert table.meaning("true cat").learned == 1, "another word of the learned synset"
    assert table.meaning("bird").learned is None


def test_narrower_words() -> None:
    table = WordTable(SYNSETS, WORDS, LEARNED, {"crane": ["tower crane"], "person": ["nurse", "bird"]})
    crane, nurse = table.meaning("two tower cranes"), table.meaning("nurses")
    assert crane == table.meaning("crane"), "the first sense"
    assert (crane.name, crane.wider, table.kind(crane)) == ("tower crane", "crane", "crane")
    assert nurse == table.meaning("person")
    assert nurse.wider == "person"
    assert table.meaning("bird").wider is None, "a word of the table stays what it is"
    assert "nurse" in table.search("n*")
    with pytest.raises(WeightsError, match="no table of words"):
        WordTable(SYNSETS, WORDS, LEARNED, {"nothing": ["nobody"]})


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("red cat", ["cat"]),
        ("catt", ["cat"]),
        ("hot dog stand", ["hot dog"]),
        ("a spaceship", []),
        ("sunglases", ["sunglasses"]),
    ],
)
def test_unknown_words(table: WordTable, text: str, near: list[str]) -> None:
    with pytest.raises(PromptError) as caught:
        table.meaning(text)
    message = str(caught.value)
    assert repr(text) in message
    assert 'the preset "mobile" takes any text' in message
    listed = message.partition("similar words are ")[2].partition(". ")[0].split(", ") if "similar words" in message else []
    assert listed[: len(near)] == [repr(word) for word in near]
    assert len(listed) <= 5
    assert bool(listed) == bool(near)


def test_search(table: WordTable) -> None:
    assert table.search("CAT") == ["cat", "true cat"]
    assert table.search("c*") == ["cat", "crane"]
    assert table.search("nothing") == []
    assert table.search() == list(table)
    assert len(table) == len(set(table)) == len(WORDS) + 4


@pytest.mark.parametrize(
    ("synsets", "words", "learned"),
    [
        ({"n1": {}}, {"cat": ["n1"]}, []),
        ({"n1": {"classes": ["x"]}}, {"cat": ["n1"]}, []),
        ({}, {"cat": ["n1"]}, []),
        ({}, {}, [{"words": ["cat"], "synset": "n1"}]),
        ({}, {}, [{"words": ["cat"]}]),
    ],
)
def test_broken_tables(synsets: dict, words: dict, learned: list) -> None:  # type: ignore[type-arg]
    with pytest.raises(WeightsError, match="no table of words"):
        WordTable(synsets, words, learned)
