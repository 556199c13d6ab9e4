"""The command ``text2sam``.

Answers go to standard output, everything said to a person to standard error; with ``--json`` standard
output holds one JSON document. Errors that text2sam raises on purpose are one line,
``text2sam: error: ...``, and one of the exit codes below; a traceback means a bug.

Heavy packages are imported by the commands that need them, so that ``--help`` is quick.
"""

from __future__ import annotations

from text2sam.cli import annotate, models, segment
from text2sam.cli.common import EXIT_CODES, app
from text2sam.lab import cli as measure

__all__ = ["EXIT_CODES", "annotate", "app", "main", "measure", "models", "segment"]


def main() -> None:
    """Entry point of the command ``text2sam``."""
    app(prog_name="text2sam")
