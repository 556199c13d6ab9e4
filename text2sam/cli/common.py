"""The top of the command line, and what commands share: exit codes, plug-ins, arguments, names of files."""

from __future__ import annotations

import functools
import os
import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from text2sam import __version__
from text2sam.cli.output import echo, hints, quiet, warn
from text2sam.errors import (
    InputError,
    Text2SamError,
    UnsupportedModelError,
    WeightsError,
    one_line,
)

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

_ORDER = ("demo", "app", "segment", "annotate", "explain", "calibrate", "warm", "models")
_NAME_BYTES = 80
_WORKER = "text2sam-worker"  # as annotate.engine calls its threads


def exit_code(error: Text2SamError) -> int:
    """The exit code of an error."""
    if isinstance(error, WeightsError):
        return EXIT_WEIGHTS
    if isinstance(error, (InputError, UnsupportedModelError)):
        return EXIT_INPUT
    return EXIT_ERROR


def new_app(**options: Any) -> typer.Typer:
    """A Typer whose help is plain text and whose tracebacks are Python's."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"max_content_width": 120},
        pretty_exceptions_enable=False,
        **options,
    )


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
        with quiet():
            try:
                return super().invoke(ctx)
            except Text2SamError as error:
                hints.release()
                echo(f"text2sam: error: {one_line(str(error))}", to_stderr=True)
                raise typer.Exit(exit_code(error)) from error
            except typer.BadParameter as error:
                error.message = error.message.removeprefix("Value error, ")  # from pydantic, which newer Typers check with
                raise
            except KeyboardInterrupt:
                echo("text2sam: interrupted", to_stderr=True)
                if any(thread.name == _WORKER for thread in threading.enumerate()):
                    os._exit(EXIT_INTERRUPTED)  # a second Ctrl-C left it computing, and Python's end would abort in it
                raise typer.Exit(EXIT_INTERRUPTED) from None


app = new_app(
    cls=_Commands,
    help="From a text to a segmentation mask: CLIP Surgery finds the points, Segment Anything makes the mask.",
    epilog=CODES_HELP,
    no_args_is_help=True,
)


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
    hints.held = value
    return value


Json = Annotated[
    bool, typer.Option("--json", callback=_hold_hints, help="Print one JSON document to standard output and nothing else.")
]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for the files.")]
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")]


def check_address(host: str, port: int) -> tuple[str, str]:
    """Checks that a server can listen, before a model is built; port 0 is any that is free.

    Returns:
        The host for the server, and for an address: there IPv6 is in brackets.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    bare = host.removeprefix("[").removesuffix("]")
    if not bare.strip():  # which would be every address of the machine
        raise InputError(f"--host must be an address, not {host!r}; 0.0.0.0 lets other machines in")
    shown = f"[{bare}]" if ":" in bare else bare

    async def listen() -> None:
        server = await asyncio.start_server(lambda *_: None, bare, port)
        server.close()

    try:
        with ThreadPoolExecutor(1) as thread:  # in this one an event loop may run
            thread.submit(lambda: asyncio.run(listen())).result()
    except (OSError, ValueError) as error:  # ValueError: the host is no name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {shown}:{port}: {reason}; give another --host or --port") from error
    return bare, shown


def split_list(values: Sequence[str] | None) -> list[str]:
    """The values of an option that is repeated or given a comma list, without repeats."""
    parts = [part.strip() for value in values or () for part in value.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


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
