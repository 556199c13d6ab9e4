"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence


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
