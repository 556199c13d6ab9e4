"""How measuring commands print their results: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from text2sam.cli.output import echo, print_json
from text2sam.files import atomic_path

T = TypeVar("T")


def track(items: Sequence[T], title: str, show: bool) -> Iterator[T]:
    """The items, with a bar on standard error that shows how many are done.

    Args:
        items: to go through.
        title: beside the bar.
        show: whether there is a bar.
    """
    if not show:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, title, console=Console(stderr=True), transient=True)


def cell(figure: Mapping[str, Any], *, sign: bool = False) -> str:
    """A figure of :func:`text2sam.lab.metrics.estimate` with its interval, for a table; ``sign`` is for differences."""
    if figure["value"] is None:
        return "-"
    shape = "+.3f" if sign else ".3f"
    ends = "no interval" if figure["low"] is None else f"{figure['low']:{shape}} to {figure['high']:{shape}}"
    return f"{figure['value']:{shape}} ({ends})"


@contextmanager
def reporting(
    table: Callable[[dict[str, Any]], str], out: Path | None, json_output: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Reports a JSON-ready result that is measured within the ``with`` block: call what it yields with the result, once.

    The file is complete before anything is printed.

    Args:
        table: makes the table of a result.
        out: JSON file for the whole result; opened before anything is measured.
        json_output: print the JSON instead of the table.

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
