"""The top of the command line, and what commands share: exit codes, messages, tables, JSON, names of files."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from text2sam import __version__
from text2sam.errors import (
    InputError,
    MissingDependencyError,
    OutputError,
    Text2SamError,
    Text2SamWarning,
    UnsupportedModelError,
    WeightsError,
)
from text2sam.tables import one_line

if TYPE_CHECKING:
    from text2sam.types import Segmentation

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_INPUT = 2
EXIT_WEIGHTS = 3
EXIT_CORRUPT = 4
EXIT_ABSENT = 5
EXIT_FAILED = 6
EXIT_INTERRUPTED = 130

EXIT_CODES: dict[int, str] = {
    EXIT_OK: "done",
    EXIT_ERROR: "a file could not be written, a package is missing, or an unexpected error",
    EXIT_INPUT: "wrong usage or unusable input",
    EXIT_WEIGHTS: "weights are missing, cannot be downloaded or do not fit",
    EXIT_CORRUPT: "models verify: a file is corrupt or missing",
    EXIT_ABSENT: "segment --require-present: a text is not in the image",
    EXIT_FAILED: "annotate, warm: every image failed; annotate --strict: at least one failed",
    EXIT_INTERRUPTED: "interrupted",
}
"""Exit codes and what they mean. Scripts may rely on them."""

CODES_HELP = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())

COMMANDS = "text2sam.commands"
"""Group of entry points that add commands. Each names a function ``register(app)`` that is given a ``typer.Typer``."""

_ORDER = ("demo", "segment", "annotate", "explain", "calibrate", "warm", "models")
_NAME_BYTES = 80


def exit_code(error: Text2SamError) -> int:
    """The exit code of an error."""
    if isinstance(error, WeightsError):
        return EXIT_WEIGHTS
    if isinstance(error, (InputError, UnsupportedModelError)):
        return EXIT_INPUT
    return EXIT_ERROR


def new_app(**options: Any) -> typer.Typer:
    """A Typer whose help is plain text and whose tracebacks are Python's."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **options)


class _Commands(TyperGroup):
    """All commands: those of this package, and those of entry points, which are loaded when ``--help`` or a name asks for them.

    Errors of text2sam end in one line and an exit code.
    """

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The names in the order of ``--help``."""
        own = sorted(self.commands, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
        return [*own, *self._added]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """The command of a name, or None."""
        return self.commands.get(cmd_name) or self._added.get(cmd_name)

    @functools.cached_property
    def _added(self) -> dict[str, Any]:
        from importlib.metadata import entry_points

        added: dict[str, Any] = {}
        for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name):
            extension = new_app()
            try:
                entry.load()(extension)
                commands = typer.main.get_group(extension).commands
            except Exception as error:  # whatever is installed, text2sam's own commands must work
                warn(f"the commands of {entry.name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}")
                continue
            taken = [name for name in commands if name in self.commands or name in added]
            if taken:
                warn(f"{entry.name!r} ({entry.value}) adds the command {taken[0]!r}, which there is already")
            added.update({name: command for name, command in commands.items() if name not in taken})
        return added

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Runs a command."""
        with _quiet():
            try:
                return super().invoke(ctx)
            except Text2SamError as error:
                _hints.flush()
                echo(f"text2sam: error: {one_line(str(error))}", to_stderr=True)
                raise typer.Exit(exit_code(error)) from error
            except KeyboardInterrupt:
                echo("text2sam: interrupted", to_stderr=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None


app = new_app(
    cls=_Commands,
    help="From a text to a segmentation mask: CLIP Surgery finds the points, Segment Anything makes the mask.",
    epilog=CODES_HELP,
    no_args_is_help=True,
)


class _Hints:
    """The :class:`Text2SamWarning` of a command, each once: lines on standard error, or ``"warnings"`` of a JSON document."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.held = False

    def show(self, text: str) -> None:
        """Prints a hint, or keeps it for :func:`print_json`."""
        if text not in self.texts:
            self.texts.append(text)
            if not self.held:
                warn(text)

    def clear(self) -> None:
        """Forgets the hints of an earlier command of this process."""
        self.texts.clear()
        self.held = False

    def flush(self) -> None:
        """Prints what was kept for a document that was not printed."""
        if self.held:
            self.held = False
            for text in self.texts:
                warn(text)


_hints = _Hints()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings and log lines of other packages off the terminal; those of text2sam are lines on standard error."""
    root, own = logging.getLogger(), logging.getLogger("text2sam")
    silent, notes = logging.NullHandler(), logging.StreamHandler(sys.stderr)
    notes.setFormatter(logging.Formatter("text2sam: %(message)s"))
    _hints.clear()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_hint(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, Text2SamWarning):
                _hints.show(one_line(str(message)))
            else:
                show(message, category, filename, lineno, file, line)

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
            _hints.flush()
            root.removeHandler(silent)
            own.removeHandler(notes)


def echo(text: str, *, to_stderr: bool = False) -> None:
    """Prints a line. Characters that the terminal's encoding lacks are printed as escapes."""
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=to_stderr)


def warn(text: str) -> None:
    """Prints a line ``text2sam: warning: ...`` to standard error."""
    echo(f"text2sam: warning: {one_line(text)}", to_stderr=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Prints a document with the warnings so far as ``"warnings"``; in ASCII, so that any terminal and pipe takes it."""
    typer.echo(json.dumps({**document, "warnings": list(_hints.texts)}, indent=2, allow_nan=False))
    _hints.held = False


def table(headers: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns. On a terminal long cells are wrapped; in pipes and files each row is one line of plain text.

    Args:
        headers: of the columns; None for a table without them.
        rows: of cells.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=headers is not None)
    for header in headers or rows[0]:
        grid.add_column(Text(one_line(header)) if headers else "", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(one_line(cell)) for cell in row))
    terminal = sys.stdout.isatty()
    width = None if terminal else 1_000_000
    console = Console(width=width, force_terminal=terminal, color_system="auto" if terminal else None)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the block runs, if that is a terminal: call what it gives with the number done so far."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("images", total=total)
        yield lambda done: bar.update(task, completed=done)


def _print_version(value: bool) -> None:
    if value:
        echo(f"text2sam {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _hold_hints(value: bool) -> bool:
    _hints.held = value
    return value


Json = Annotated[
    bool,
    typer.Option("--json", callback=_hold_hints, help="Print one JSON document to standard output and nothing else."),
]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for the files.")]
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.", show_default=False)]


def split_list(values: Sequence[str] | None) -> list[str]:
    """The values of an option that is repeated or given a comma list, without repeats."""
    parts = [part.strip() for value in values or () for part in value.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def one_of(option: str, names: Sequence[str]) -> Callable[[str], str]:
    """A callback for Typer that accepts only the given names."""

    def check(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}.", param_hint=option)
        return value

    return check


def slug(text: str) -> str:
    """``text`` as part of a file name, safe on every file system.

    Letters, digits, marks, ``_`` and ``+`` stay; every run of other characters becomes one ``-``. At most 80 bytes of UTF-8
    and never empty.
    """
    kept = [
        c if c.isalnum() or c in "_+" or unicodedata.category(c).startswith("M") else " "
        for c in unicodedata.normalize("NFKC", text)
    ]
    name = "-".join("".join(kept).split()).encode()[:_NAME_BYTES].decode(errors="ignore").strip("-_+")
    return name or "text"


def file_stems(image: Path, texts: Sequence[str]) -> list[str]:
    """A stem of file names ``IMAGE_TEXT`` for each text. All differ, also where case does not count."""
    taken: set[str] = set()
    stems = []
    for text in texts:
        base, number = slug(text), 1
        name = base
        while unicodedata.normalize("NFC", name).casefold() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(unicodedata.normalize("NFC", name).casefold())
        stems.append(f"{slug(image.stem)}_{name}")
    return stems


def check_folder(out: Path) -> None:
    """Checks that a folder can be written to, before the work begins. Creates nothing.

    Raises:
        OutputError: it cannot.
    """
    place = Path(os.path.abspath(out))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"cannot write to the folder {str(out)!r}: {str(place)!r} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to the folder {str(out)!r}: no permission to write in {str(place)!r}")


def check_matplotlib() -> None:
    """Checks that figures can be drawn, before the work begins.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "drawing figures", "plot")


def figures(result: Segmentation) -> list[str]:
    """Presence and score of a result as cells of a table."""
    return [f"{result.presence:.2f}", "-" if result.box is None else f"{result.score:.2f}"]


def corners(values: Iterable[float] | None) -> str:
    """Coordinates of a box or a point as a cell of a table."""
    return "-" if values is None else ",".join(f"{value:.0f}" for value in values)


def shorten(text: str, longest: int = 40) -> str:
    """``text`` on one line, cut to a length."""
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
