"""How the measuring commands tell what they found: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any


def aligned(lines: Sequence[Sequence[str]], words: int | None = None) -> list[str]:
    """Lines of cells as lines of text, in columns two spaces apart.

    Args:
        lines: each of the same number of cells; the first is mostly the head.
        words: how many columns, from the first, stand at the left edge of theirs; the others at the right. None is all.
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = len(widths) if words is None else words
    return [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def one_line(text: str) -> str:
    """``text`` on one line, with what a terminal would act on as escapes."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


@contextmanager
def telling(
    table: Callable[[dict[str, Any]], str], out: Path | None, json_output: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Tells a result, JSON-ready, that is measured within the ``with`` block: call what it gives with it, once.

    The file is there, whole, before anything is printed.

    Args:
        table: makes the result's table.
        out: file for the whole result as JSON; tried before anything is measured.
        json_output: print that JSON instead of the table.

    Raises:
        OutputError: ``out`` cannot be written.
    """
    from text2sam.files import atomic_path  # brings NumPy along, which aligned needs not and --help should not

    told: list[str] = []
    with nullcontext() if out is None else atomic_path(out) as temporary:

        def tell(result: dict[str, Any]) -> None:
            text = json.dumps(result, indent=2, allow_nan=False)
            if temporary is not None:
                temporary.write_text(f"{text}\n", encoding="utf-8")
            told.append(text if json_output else table(result))

        yield tell
    print(*told, sep="\n")
