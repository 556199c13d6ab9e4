"""Output of the measuring commands: tables, JSON and progress bars."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from text2sam.cli.output import echo, print_json
from text2sam.files import atomic_path

T = TypeVar("T")


def track(items: Sequence[T], title: str, show: bool) -> Iterable[T]:
    """Iterates over ``items``, with a progress bar on standard error if ``show``."""
    if not show:
        return items
    from rich import progress
    from rich.console import Console

    return progress.track(items, title, console=Console(stderr=True), transient=True)


def cell(figure: Mapping[str, Any], *, sign: bool = False) -> str:
    """Table cell of a figure of :func:`text2sam.lab.metrics.estimate`; ``sign`` is for differences."""
    if figure["value"] is None:
        return "-"
    shape = "+.3f" if sign else ".3f"
    ends = "no interval" if figure["low"] is None else f"{figure['low']:{shape}} to {figure['high']:{shape}}"
    return f"{figure['value']:{shape}} ({ends})"


@contextmanager
def reporting(
    table: Callable[[dict[str, Any]], str], out: Path | None, json_output: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that the ``with`` block calls once with its JSON-ready result, which is then written and printed.

    Args:
        table: result -> its table.
        out: JSON file for the result; it is opened first, so that errors come before measuring.
        json_output: print JSON instead of the table.

    Raises:
        OutputError: ``out`` cannot be written.
    """
    results: list[dict[str, Any]] = []
    with nullcontext() if out is None else atomic_path(out) as temporary:

        def report(result: dict[str, Any]) -> None:
            results.append(result)
            if temporary is not None:
                temporary.write_text(f"{json.dumps(result, indent=2, allow_nan=False)}\n", encoding="utf-8")

        yield report
    for result in results:
        print_json(result) if json_output else echo(table(result))
