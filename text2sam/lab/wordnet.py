"""WordNet's nouns, from the files ``data.noun`` and ``index.noun`` of WordNet 3.0 (Debian: the package wordnet-base)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from text2sam.clip.words import WordTable
from text2sam.lab.datasets.layout import MissingDataError


def read_nouns(folder: Path) -> tuple[dict[str, tuple[list[str], list[str]]], dict[str, list[str]]]:
    """Synsets and senses; the manual page wndb(5) describes the format.

    Returns:
        id (``"n02084071"``) -> its words and the ids of its hyponyms; and word in lower case -> ids, most frequent first.

    Raises:
        MissingDataError: a file is missing.
    """
    synsets = {}
    for line in _lines(folder / "data.noun"):
        fields = line.partition(" | ")[0].split()
        count = int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
        pointers = fields[5 + 2 * count :]
        kinds = [f"n{at}" for sign, at in zip(pointers[::4], pointers[1::4], strict=True) if sign == "~"]
        synsets[f"n{fields[0]}"] = words, kinds
    senses = {}
    for line in _lines(folder / "index.noun"):
        fields = line.split()
        senses[fields[0].replace("_", " ")] = [f"n{at}" for at in fields[-int(fields[2]) :]]
    return synsets, senses


def narrower_words(table: Mapping[str, Any], folder: Path, kinds: Collection[str] = ()) -> dict[str, list[str]]:
    """Hyponyms that the table lacks, for the nearest class or learned name above them: "tennis racket" for "racket".

    The most frequent sense of a hyponym must be below that class. Words that the table understands, also as a plural, are left
    out.

    Args:
        table: ``classes`` (ids), ``synsets`` and ``words`` of ImageNet.
        folder: the folder of WordNet's files.
        kinds: further synsets with hyponyms, such as those of learned names.

    Returns:
        Word of the table -> hyponyms.

    Raises:
        MissingDataError: a file is missing.
    """
    nouns, senses = read_nouns(folder)
    words = WordTable(table["synsets"], table["words"])
    narrower: dict[str, list[str]] = {}
    taken = set[str]()
    classes = {name: table["synsets"][name]["classes"] for name in (*table["classes"], *kinds)}
    for name in sorted(classes, key=lambda name: len(classes[name])):  # the nearest above comes first
        meanings = (words.find(word) for word in table["synsets"][name]["words"])
        wider = next((meaning.name for meaning in meanings if meaning and meaning.classes == tuple(classes[name])), None)
        below = {kind for kind in _below(nouns, name) if kind not in table["synsets"]} - taken
        taken |= below
        new = [word for kind in below for word in nouns[kind][0] if senses.get(word.casefold(), [""])[0] == kind]
        if wider is not None:  # otherwise all its words have another sense in the table
            narrower[wider] = [*narrower.get(wider, ()), *(word for word in new if words.find(word) is None)]
    return {wider: sorted(set(new)) for wider, new in narrower.items() if new}


def _below(nouns: Mapping[str, tuple[Sequence[str], Sequence[str]]], name: str) -> Iterator[str]:
    for kind in nouns[name][1]:
        yield kind
        yield from _below(nouns, kind)


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist: give the folder of WordNet 3.0's files, such as /usr/share/wordnet")
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith("  "))
