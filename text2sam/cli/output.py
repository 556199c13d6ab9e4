"""What commands print: messages, warnings, JSON, tables, progress."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from text2sam.errors import Text2SamWarning, one_line

if TYPE_CHECKING:
    from text2sam.types import Segmentation


_MOST_HINTS = 20  # printed; a folder may have one for each image


def echo(text: str, *, to_stderr: bool = False) -> None:
    """Prints a line. Characters that the terminal's encoding lacks are printed as escapes."""
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=to_stderr)


def warn(text: str) -> None:
    """Prints a line ``text2sam: warning: ...`` to standard error."""
    echo(f"text2sam: warning: {one_line(text)}", to_stderr=True)


class Hints:
    """The :class:`Text2SamWarning` of a command, each once: lines on standard error, or ``"warnings"`` of its JSON document.

    Attributes:
        texts: the hints so far, in order.
        held: whether they wait for :func:`print_json`.
    """

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}
        self.held = False

    def add(self, text: str) -> None:
        """Prints a hint, or holds it."""
        if text not in self.texts:
            self.texts[text] = None
            if not self.held and len(self.texts) <= _MOST_HINTS:
                warn(text)

    def release(self) -> None:
        """Prints what is left at the end of a command: the number of further hints, or those held for no document."""
        shown = 0 if self.held else min(len(self.texts), _MOST_HINTS)
        for text in list(self.texts)[shown:_MOST_HINTS]:
            warn(text)
        if len(self.texts) > _MOST_HINTS:
            warn(f"{len(self.texts) - _MOST_HINTS} further warnings; --json lists all")
        self.texts, self.held = {}, False


hints = Hints()


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings and log lines of other packages off the terminal; those of text2sam are lines on standard error."""
    root, own = logging.getLogger(), logging.getLogger("text2sam")
    silent, notes = logging.NullHandler(), logging.StreamHandler(sys.stderr)
    notes.setFormatter(logging.Formatter("text2sam: %(message)s"))
    hints.texts, hints.held = {}, False
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_hint(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, Text2SamWarning):
                hints.add(one_line(str(message)))
            else:
                show(message, category, *where, **more)

        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", Text2SamWarning)
            warnings.showwarning = show_hint
        # with a handler on the root, logging.warning() does not set one up that prints
        root.addHandler(silent)
        own.addHandler(notes)
        try:
            yield
        finally:
            hints.release()
            root.removeHandler(silent)
            own.removeHandler(notes)


def print_json(document: Mapping[str, Any]) -> None:
    """Prints a document with the hints as ``"warnings"``; in ASCII, so that any terminal and pipe takes it."""
    typer.echo(json.dumps({**document, "warnings": list(hints.texts)}, indent=2, allow_nan=False))
    hints.texts = {}


def show_progress(as_json: bool) -> bool:
    """Whether a folder job shows how far it is; beside a JSON document only on a terminal."""
    return not as_json or sys.stderr.isatty()


def figures(result: Segmentation) -> list[str]:
    """Presence and score of a result as cells of a table."""
    return [f"{result.presence:.2f}", "-" if result.box is None else f"{result.score:.2f}"]


def corners(values: Iterable[float] | None) -> str:
    """Coordinates of a box or a point as a cell of a table."""
    return "-" if values is None else ",".join(f"{value:.0f}" for value in values)
