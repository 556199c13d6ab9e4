"""Checks of the texts that maps are asked for, and of label sets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from text2sam.clip.attention import METHODS, Method, check_method
from text2sam.errors import InputError
from text2sam.targets import check_text


def check_request(texts: Sequence[str], against: Sequence[str] | None, method: Method) -> tuple[list[str], list[str] | None]:
    """Texts to make maps of, and their label set, both stripped.

    Raises:
        PromptError: a text is empty.
        InputError: ``method`` is unknown, ``texts`` or ``against`` is no sequence, or a text is alone in the label set of a
            method with feature surgery.
    """
    check_method(method)
    if isinstance(texts, str):
        raise InputError(f"texts must be a sequence of strings; for one text pass [{texts!r}]")
    wanted = [check_text(text) for text in texts]
    labels = check_labels(against)
    alone = [text for text in wanted if labels is not None and not without(text, labels)]
    if METHODS[method].removes and alone:
        raise InputError(
            f"against={labels!r} leaves {alone[0]!r} alone in its label set, with nothing to set it against; name at "
            "least one other text or pass against=None"
        )
    return wanted, labels


def without(text: str, others: Sequence[str]) -> list[str]:
    """``others`` without repeats and without the text itself; CLIP's tokenizer knows no case."""
    return [other for other in dict.fromkeys(others) if other.casefold() != text.casefold()]


def check_labels(given: Sequence[str] | None, name: str = "against") -> list[str] | None:
    """Texts, stripped; of texts that differ in case alone the first. None stays None.

    Raises:
        PromptError: a text is empty.
        InputError: it is no sequence of texts.
    """
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InputError(f"{name} must be a sequence of strings, such as ['dog'], not {given!r}")
    distinct: dict[str, str] = {}
    for text in given:
        distinct.setdefault(check_text(text).casefold(), check_text(text))
    return list(distinct.values())
