"""WordNet's nouns, from the files ``data.noun`` and ``index.noun`` of WordNet 3.0 (Debian: the package wordnet-base)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from text2sam.clip.words import WordTable
from text2sam.lab.datasets.layout import MissingDataError


def read_nouns(folder: Path) -> tuple[dict[str, tuple[list[str], list[str]]], dict[str, list[str]]]:
    """Synsets and senses; the files' format is that of WordNet's manual page wndb(5).

    Returns:
        id (``"n02084071"``) -> its words and the ids of the kinds of it; and word in lower case -> ids, most frequent first.

    Raises:
        MissingDataError: a file is not there.
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
    """Words for things that a classifier does not tell from their kind, for each kind: the next class or learned name above.

    A "tennis racket" is a racket, an "armchair" a chair. Of a word's senses the most frequent must be of the kind; a word that
    the table understands already, also as a plural, is left out.

    Args:
        table: ``classes`` (ids), ``synsets`` and ``words`` of ImageNet.
        folder: of WordNet's files.
        kinds: further synsets that words may be looked for as, such as those of learned names.

    Returns:
        A word of the table -> words.

    Raises:
        MissingDataError: a file is not there.
    """
    nouns, senses = read_nouns(folder)
    words = WordTable(table["synsets"], table["words"])
    found: dict[str, list[str]] = {}
    taken = set[str]()
    classes = {name: table["synsets"][name]["classes"] for name in (*table["classes"], *kinds)}
    for name in sorted(classes, key=lambda name: len(classes[name])):  # what is next above comes first
        meanings = (words.find(word) for word in table["synsets"][name]["words"])
        wider = next((meaning.name for meaning in meanings if meaning and meaning.classes == tuple(classes[name])), None)
        below = {kind for kind in _below(nouns, name) if kind not in table["synsets"]} - taken
        taken |= below
        new = [word for kind in below for word in nouns[kind][0] if senses.get(word.casefold(), [""])[0] == kind]
        if wider is not None:  # else all its words stand for another thing first
            found[wider] = [*found.get(wider, ()), *(word for word in new if words.find(word) is None)]
    return {wider: sorted(set(new)) for wider, new in found.items() if new}


def _below(nouns: Mapping[str, tuple[Sequence[str], Sequence[str]]], name: str) -> Iterator[str]:
    for kind in nouns[name][1]:
        yield kind
        yield from _below(nouns, kind)


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise MissingDataError(f"{path} is not there: give the folder of WordNet 3.0's files, such as /usr/share/wordnet")
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith("  "))
