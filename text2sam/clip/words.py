"""Words of a word classifier: what a text stands for in WordNet, in terms of a classifier's classes."""

from __future__ import annotations

import difflib
import fnmatch
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from text2sam.errors import PromptError, WeightsError
from text2sam.targets import check_text

_NEAR = 5
_FRAMES = re.compile(
    r"^(?:(?:an? |the )?(?:close-?up |bad |good |cropped |blurry |large |small )*"
    r"(?:photos?|photographs?|pictures?|images?|close-?ups?|views?) of |"
    r"(?:there (?:is|are) |this is |these are )|"
    r"(?:a|an|the|some|any|all|one|two|three|four|several|many|my|your|his|her|our|their|this|that|these|those|\d+) |"
    r"pairs? of )"
)
_EDGE = re.compile(r"(?<!\w)['\u2019]+|['\u2019]+(?!\w)")
_SCENE = re.compile(r" in the (?:scene|photo|picture|image)$")
_IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "teeth": "tooth",
    "feet": "foot",
    "oxen": "ox",
    "dice": "die",
    "lice": "louse",
    "cacti": "cactus",
    "fungi": "fungus",
    "octopi": "octopus",
}


@dataclass(frozen=True)
class Meaning:
    """What a text stands for.

    Attributes:
        name: the table's word that the text was understood as; words for one thing are equal all the same.
        classes: indices of the classifier's classes that are kinds of it; empty for a learned word that no class is of.
        learned: index of its learned vector; None where it has none.
        wider: the more general word that is looked for instead; None where it is looked for itself.
    """

    name: str = field(compare=False)
    classes: tuple[int, ...]
    learned: int | None = None
    wider: str | None = field(default=None, compare=False)


class WordTable:
    """Words and their meanings.

    Args:
        synsets: id -> ``{"words": [...], "classes": [...]}``, a WordNet synset with the classes below it.
        words: word -> ids of its synsets, the most frequent sense first.
        learned: entries ``{"words": [...], "synset": id or None}``, in the order of the learned vectors. Without a synset the
            words stand for the learned vector alone, also where ``words`` has them; with one they are further words for it.
        narrower: word -> words for kinds of it that the classifier cannot distinguish from it; those that are in the table
            already stay what they are.

    Raises:
        WeightsError: the table is not of this form.
    """

    def __init__(
        self,
        synsets: Mapping[str, Mapping[str, Sequence[Any]]],
        words: Mapping[str, Sequence[str]],
        learned: Sequence[Mapping[str, Any]] = (),
        narrower: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        try:
            vectors = {entry["synset"]: k for k, entry in enumerate(learned) if entry["synset"] is not None}
            self._classes = {name: tuple(int(i) for i in synset["classes"]) for name, synset in synsets.items()}
            self._synsets = [(self._classes[name], str(synset["words"][0])) for name, synset in synsets.items()]
            self._meanings: dict[str, tuple[Meaning, ...]] = {
                word: tuple(Meaning(word, self._classes[name], vectors.get(name)) for name in names)
                for word, names in words.items()
            }
            for k, entry in enumerate(learned):
                below = () if entry["synset"] is None else self._classes[entry["synset"]]
                others = {word: self._meanings.get(word, ()) for word in entry["words"]}
                self._meanings |= {
                    word: (Meaning(word, below, k), *(m for m in senses if m.classes != below))
                    for word, senses in others.items()
                }
            for wider, kinds in narrower.items():
                first = self._meanings[wider][0]
                new = {word: (replace(first, name=word, wider=wider),) for word in kinds if word not in self._meanings}
                self._meanings |= new
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"this is no table of words: {error!r}; reinstall text2sam") from error
        self._keys: dict[str, str] = {}
        for word in sorted(self._meanings):  # upper case first: "Turkey" gives way to "turkey"
            self._keys[_key(word)] = word

    def __len__(self) -> int:
        return len(self._meanings)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._meanings, key=str.casefold))

    def senses(self, word: str) -> tuple[Meaning, ...]:
        """The meanings of a word of the table, the one that is taken first."""
        return self._meanings[word]

    def search(self, pattern: str = "*") -> list[str]:
        """Words that a shell pattern matches, without regard to case; a pattern without ``*?[`` matches anywhere in a word."""
        pattern = pattern.casefold() if any(c in pattern for c in "*?[") else f"*{pattern.casefold()}*"
        return [word for word in self if fnmatch.fnmatchcase(word.casefold(), pattern)]

    def kind(self, meaning: Meaning) -> str:
        """The next more general name that the table has for a meaning; "" where there is none."""
        if meaning.wider is not None:
            return meaning.wider
        own = set(meaning.classes)
        wider = [(len(classes), word) for classes, word in self._synsets if own and own < set(classes)]
        return min(wider, key=lambda pair: pair[0], default=(0, ""))[1]

    def meaning(self, text: str) -> Meaning:
        """What a text stands for: case, plural, articles and frames such as "a photo of" do not matter.

        Of several senses the first, unless another word follows that only a later one is a kind of: "crane bird".

        Raises:
            PromptError: the text is empty, or the table does not have it; the message lists near words.
        """
        meaning = self.find(text)
        if meaning is not None:
            return meaning
        near = self._near(_plain(text))
        raise PromptError(
            f"{text!r} is not among the {len(self):,} words this model knows"
            + (f"; similar words are {', '.join(repr(word) for word in near)}" if near else "")
            + '. "text2sam models words --preset photo" lists them; the preset "mobile" takes any text'
        )

    def find(self, text: str) -> Meaning | None:
        """As :meth:`meaning`, but None where the table does not have it."""
        plain = _plain(check_text(text))
        word = self._find(plain)
        if word is not None:
            return self._meanings[word][0]
        parts = plain.split()
        for cut in range(len(parts) - 1, 0, -1):
            word, kind = self._find(" ".join(parts[:cut])), self._find(" ".join(parts[cut:]))
            if word is None or kind is None:
                continue
            for meaning in self._meanings[word]:
                if meaning.classes and any(set(meaning.classes) <= set(m.classes) for m in self._meanings[kind]):
                    return meaning
        return None

    def _find(self, text: str) -> str | None:
        return next((self._keys[key] for key in map(_key, _forms(text)) if key in self._keys), None)

    def _near(self, text: str) -> list[str]:
        """At most five words: those inside the text, the longest first, then those spelt alike."""
        parts = text.split()
        count = len(parts)
        spans = [parts[i : i + size] for size in range(count - 1, 0, -1) for i in range(count - size, -1, -1)]
        inside = [word for span in spans if (word := self._find(" ".join(span))) is not None]
        alike = [self._keys[key] for key in difflib.get_close_matches(_key(text), list(self._keys), n=_NEAR, cutoff=0.7)]
        return list(dict.fromkeys([*inside, *alike]))[:_NEAR]


def _plain(text: str) -> str:
    """A text in lower case, without punctuation, frames and articles."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _EDGE.sub(" ", re.sub(r"[^\w\s'\u2019-]", " ", text))  # apostrophes stay inside words
    text = " ".join(text.replace("_", " ").split())
    text = _SCENE.sub("", text)
    while True:
        shorter = _FRAMES.sub("", text)
        if not shorter or shorter == text:
            return text
        text = shorter


def _key(text: str) -> str:
    """A word without regard to case, accents, spaces and hyphens: "T-shirt" and "tshirt" are one."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in letters if c.isalnum())


def _forms(text: str) -> list[str]:
    """A text, then its singulars, then its plurals."""
    head, _, last = text.rpartition(" ")
    forms = [last, _IRREGULAR.get(last, last)]
    if last.endswith("ies"):
        forms.append(last[:-3] + "y")
    if last.endswith("ves"):
        forms += [last[:-3] + "f", last[:-3] + "fe"]
    if last.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        forms.append(last[:-2])
    if last.endswith("men"):
        forms.append(last[:-3] + "man")
    if last.endswith("s") and not last.endswith("ss") and len(last) > 2:
        forms.append(last[:-1])
    forms += [last + "s", last + "es"]
    return [f"{head} {form}".strip() for form in dict.fromkeys(forms)]
