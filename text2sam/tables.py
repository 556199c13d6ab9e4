"""Tables, for terminals and for pipes, and numbers with their nouns."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from text2sam.errors import one_line


def aligned(headers: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns. On a terminal long cells are wrapped; in pipes and files each row is one line of plain text.

    Args:
        headers: of the columns; None for a table without them.
        rows: of cells.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=headers is not None)
    for header in headers or [""] * len(rows[0]):
        grid.add_column(Text(one_line(header)), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(one_line(cell)) for cell in row))
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 1_000_000, force_terminal=terminal, color_system="auto" if terminal else None)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def counted(count: int, noun: str) -> str:
    """``"1 image"``, ``"3,000 images"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
