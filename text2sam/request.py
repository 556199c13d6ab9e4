"""What a call looks for: its texts, checked against its options and passed to the map generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from text2sam.errors import PromptError, warn
from text2sam.options import Options
from text2sam.targets import Query, Texts, check_exclude, parse_targets, thresholds_of


@dataclass(frozen=True)
class Request:
    """What a call looks for.

    Attributes:
        queries: the targets, each with the presence score from which it counts as present.
        exclude: the texts whose places are avoided.
        options: the other options of the call.
        presence_threshold: from which an excluded text counts as present.
    """

    queries: tuple[tuple[Query, float], ...]
    exclude: tuple[str, ...]
    options: Options
    presence_threshold: float

    @classmethod
    def of(cls, texts: Texts, options: Options, presence_threshold: float) -> Request:
        """The texts of a call, checked against its options; the threshold is that of texts without one of their own.

        Raises:
            PromptError, InputError: a text or an option is not usable.
        """
        queries = parse_targets(texts)
        limits = thresholds_of(options.threshold, queries, presence_threshold)
        exclude = check_exclude(options.exclude, queries)
        return cls(tuple(zip(queries, limits, strict=True)), exclude, options, presence_threshold)

    @property
    def texts(self) -> list[str]:
        """All texts that are looked for."""
        return [text for query, _ in self.queries for text in query.texts]

    @property
    def against_excluded(self) -> Sequence[str] | None:
        """The label set of excluded texts: also what is looked for, or an excluded text might stand alone in it."""
        against = self.options.against
        return None if against is None else [*against, *self.texts]


def prepare(generator: Any, request: Request) -> None:
    """Encodes texts ahead of an image, so that a bad text fails before anything is computed; warns of ambiguous texts.

    Raises:
        PromptError: a text is not usable, or what is excluded is the same to the generator as what is looked for.
    """
    hint, encode = (getattr(generator, name, None) for name in ("hint", "prepare"))
    if callable(hint):
        for advice in filter(None, map(hint, request.texts)):
            warn(advice)
    _tell_apart(generator, request)
    if callable(encode):
        encode(request.texts, against=request.options.against, method=request.options.method)
        if request.exclude:
            encode(request.exclude, against=request.against_excluded, method=request.options.method)


def _tell_apart(generator: Any, request: Request) -> None:
    """Warns of texts of different targets that are one thing to the generator."""
    sense = getattr(generator, "sense", None)
    if not callable(sense):
        return
    looked_for: dict[Any, tuple[str, str]] = {}
    for query, _ in request.queries:
        for text in query.texts:
            label, first = looked_for.setdefault(sense(text), (query.label, text))
            if label != query.label and text != first:
                warn(f"{first!r} and {text!r} are one thing to this model, so the same is found for both")
    for text in request.exclude:
        if (found := looked_for.get(sense(text))) is not None:
            raise PromptError(f"{found[1]!r} is looked for and {text!r} is excluded, but to this model they are one thing")
