"""The command ``text2sam``.

Results go to standard output, messages to standard error; with ``--json`` standard output holds one JSON document. An error
that text2sam raises on purpose is one line, ``text2sam: error: ...``, with one of the exit codes of
:data:`~text2sam.cli.common.EXIT_CODES`; a traceback means a bug.

Each command is a module, which :mod:`text2sam.cli.commands` imports. Other packages add commands through entry points, see
:data:`~text2sam.cli.common.COMMANDS`. Heavy packages are imported by the commands that need them, so that ``--help`` is quick.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the command ``text2sam``."""
    try:
        from text2sam.cli.commands import app

        app(prog_name="text2sam")
    except KeyboardInterrupt:  # before a command has begun; common handles those of commands
        raise SystemExit(130) from None
