"""What is looked for: a text, joined texts, or a name with its synonyms; and what is to be avoided."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from text2sam.checks import check_number
from text2sam.errors import InputError, PromptError, warn

Target = str | Sequence[str] | Mapping[str, Sequence[str]]
"""A text; ``"person+bench"`` and ``["person", "bench"]`` are one target, any of two joined texts;
``{"car": ["car", "automobile"]}`` is one target with two words for it, called by its key."""

Texts = Sequence[Target] | Mapping[str, Sequence[str]]
"""Several targets; a mapping holds one target per key, each with its synonyms."""

_LONGEST = 1000
_LIST = re.compile(r"\w\s*[,;]\s*\w|\w\s+(\.|and|or)\s+\w")


def check_text(text: str) -> str:
    """A text prompt, stripped.

    Raises:
        PromptError: it is not a string, has no letter, digit or emoji in it, or is far too long.
    """
    if not isinstance(text, str):
        raise PromptError(f"a text prompt is a string, not {type(text).__name__}: {text!r}")
    if not any(c.isalnum() or unicodedata.category(c) == "So" for c in text):  # So: emoji
        raise PromptError(f"a text prompt names something to look for; {text!r} does not")
    if len(text) > _LONGEST:  # tokenizers take minutes for what no text tower can hold
        raise PromptError(f"a text prompt has at most {_LONGEST:,} characters, not {len(text):,}: {text[:40]!r}...")
    return text.strip()


def text_key(text: str) -> str:
    """A key that is equal for texts that differ only in case or Unicode form. CLIP's tokenizer ignores case."""
    return unicodedata.normalize("NFC", text).casefold()


def check_different(texts: Iterable[str], what: str) -> None:
    """Checks that no text comes twice.

    Raises:
        PromptError: a text comes twice; ``what`` describes a text, such as ``"a label"``.
    """
    seen: dict[str, str] = {}
    for text in texts:
        if text_key(text) in seen:
            raise PromptError(f"{what} is given twice (case does not count): {seen[text_key(text)]!r} and {text!r}")
        seen[text_key(text)] = text


@dataclass(frozen=True)
class Query:
    """A target, taken apart.

    Attributes:
        label: what results are called.
        texts: what is looked for, without repeats.
        synonyms: the texts are words for one thing; otherwise they are things joined in one target.
    """

    label: str
    texts: tuple[str, ...]
    synonyms: bool = False

    @property
    def plain(self) -> bool:
        """Whether the label itself is all that is looked for."""
        return self.texts == (self.label,)


def split_target(text: str | Sequence[str]) -> tuple[str, ...]:
    """The texts joined in one target.

    ``"person+bench"`` gives two; a sequence gives its texts as they are, so ``["c++ book"]`` keeps its signs.

    Raises:
        PromptError: a text is empty or not a string, or a text is joined twice.
    """
    if isinstance(text, str):
        parts = text.split("+")
        if len(parts) > 1 and not all(part.strip() for part in parts):
            raise PromptError(f"{text!r} joins an empty text; to look for a literal '+' pass a list: [{text!r}]")
    elif isinstance(text, Sequence) and text:
        parts = list(text)
    else:
        raise PromptError(f"a target is a text or a non-empty sequence of joined texts, not {text!r}")
    texts = tuple(check_text(part) for part in parts)
    if len(set(texts)) < len(texts):
        raise PromptError(f"a text is joined twice in {text!r}")
    if isinstance(text, str) and len(texts) == 1 and _LIST.search(text):
        warn(
            f"{text!r} is looked for as one text; to look for several things give several texts, or join them with '+' for "
            "one mask of any of them"
        )
    return texts


def parse_target(target: Target) -> Query:
    """A target as a query.

    Raises:
        PromptError: a text is empty or not a string, a text occurs twice, or a mapping has not exactly one key.
    """
    if not isinstance(target, Mapping):
        texts = split_target(target)
        return Query("+".join(texts), texts)
    if len(target) != 1:
        raise PromptError(f"one target has one name, not {len(target)}: {list(target)!r}; for several call segment_many")
    [(label, words)] = target.items()
    if not isinstance(label, str) or not label.strip():
        raise PromptError(f"the name of synonyms must be a text, not {label!r}")
    if isinstance(words, str) or not isinstance(words, Sequence) or not words:
        raise PromptError(f"the synonyms of {label!r} must be a non-empty sequence of texts, not {words!r}")
    texts = tuple(check_text(word) for word in words)
    if len(set(texts)) < len(texts):
        raise PromptError(f"a synonym of {label!r} is given twice in {list(words)!r}")
    return Query(label, texts, synonyms=len(texts) > 1)


def parse_targets(targets: Texts) -> list[Query]:
    """Several targets as queries, in order.

    Raises:
        InputError: one text is given in place of several.
        PromptError: as :func:`parse_target`.
    """
    if isinstance(targets, str):
        raise InputError(f"texts must be a sequence of texts; for one text call segment(image, {targets!r})")
    if isinstance(targets, Mapping):
        return [parse_target({label: words}) for label, words in targets.items()]
    if not isinstance(targets, Iterable):
        raise InputError(f"texts must be a sequence of texts, not {targets!r}")
    return [parse_target(target) for target in targets]


def check_exclude(exclude: Sequence[str] | None, queries: Iterable[Query]) -> tuple[str, ...]:
    """The texts to be avoided, without repeats.

    Raises:
        PromptError: a text is empty, or is itself looked for.
        InputError: it is not a sequence of texts.
    """
    if exclude is None:
        return ()
    if isinstance(exclude, str) or not isinstance(exclude, Sequence):
        raise InputError(f"exclude must be a sequence of strings, such as ['dog'], not {exclude!r}")
    texts = tuple(dict.fromkeys(check_text(text) for text in exclude))
    for query in queries:
        both = [text for text in texts if text.casefold() in {wanted.casefold() for wanted in (query.label, *query.texts)}]
        if both:
            raise PromptError(f"{both[0]!r} is both looked for and excluded; take it out of one of the two")
    return texts


def thresholds_of(threshold: float | Mapping[str, float] | None, queries: Sequence[Query], default: float) -> list[float]:
    """The presence threshold of each query.

    Args:
        threshold: one for all, or one by label (the others get the default); None is the default for all.
        queries: what is looked for.
        default: in [0, 1].

    Raises:
        InputError: a threshold is not in [0, 1], or belongs to no query.
    """
    if not isinstance(threshold, Mapping):
        return [default if threshold is None else check_number("threshold", threshold, 0, 1)] * len(queries)
    labels = [query.label for query in queries]
    unknown = [label for label in threshold if label not in labels]
    if unknown:
        raise InputError(f"threshold is given for {unknown[0]!r}, which is not looked for; the texts are {labels}")
    values = {label: check_number("threshold", value, 0, 1) for label, value in threshold.items()}
    return [values.get(label, default) for label in labels]
