"""The command ``text2sam``.

Results go to standard output, messages to standard error; with ``--json`` standard output holds one JSON document. An error
that text2sam raises on purpose is one line, ``text2sam: error: ...``, with one of the exit codes of
:data:`~text2sam.cli.common.EXIT_CODES`; a traceback means a bug.

Each command is a module. Other packages add commands through entry points, see
:data:`~text2sam.cli.common.COMMANDS`. Heavy packages are imported by the commands that need them, so that ``--help`` is quick.
"""

from __future__ import annotations

from text2sam.cli import annotate, calibrate, demo, explain, models, page, segment, serve, warm  # noqa: F401, they register
from text2sam.cli.common import EXIT_CODES as EXIT_CODES
from text2sam.cli.common import app as app


def main() -> None:
    """Entry point of the command ``text2sam``."""
    app(prog_name="text2sam")
