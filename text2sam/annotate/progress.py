"""How far a job is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

Progress: TypeAlias = "bool | Callable[[int, int], object]"
"""True shows a bar on standard error or, where that is no terminal, a line every :data:`PAUSE` seconds; a function is called
with the number of images done so far, and of all."""

PAUSE = 30.0
"""Seconds between two lines, and before the first."""


@contextlib.contextmanager
def shown(progress: Progress, done: int, total: int) -> Iterator[Callable[[int], None]]:
    """What to call with the number of further images that are done."""
    if callable(progress):

        def tell(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        progress(done, total)
        yield tell
    elif progress:
        from rich.console import Console

        console = Console(stderr=True)
        if not (sys.stderr.isatty() or console.is_jupyter):
            yield _lines(done, total)
            return
        from rich.progress import MofNCompleteColumn
        from rich.progress import Progress as Bar

        with Bar(*Bar.get_default_columns(), MofNCompleteColumn(), console=console) as bar:
            task = bar.add_task("images", total=total, completed=done)
            yield lambda more: bar.advance(task, more)
    else:
        yield lambda more: None


def _lines(before: int, total: int) -> Callable[[int], None]:
    started = last = time.monotonic()
    done = before

    def tell(more: int) -> None:
        nonlocal done, last
        done += more
        now = time.monotonic()
        if now - last >= PAUSE and before < done < total:
            last, rate = now, (done - before) / (now - started)
            left = _duration((total - done) / rate)
            sys.stderr.write(f"{done}/{total} images, {rate:.2f} images/s, about {left} left\n")

    return tell


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
