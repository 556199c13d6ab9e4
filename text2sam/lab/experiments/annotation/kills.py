"""Runs the command of a trial in a process of its own, and kills it at work and while it writes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import text2sam
from text2sam.annotate.journal import JOURNAL, STATE, chunks_of
from text2sam.annotate.sources import find_images
from text2sam.errors import Text2SamError, one_line
from text2sam.export.labelme import LabelmeExporter

BATCH = 8
_POLL, _LONGEST = 0.02, 4 * 3600.0  # seconds


def kill_points(kills: int, batches: int) -> list[int | None]:
    """Number of committed batches before each kill; the last of several is None, a kill while the dataset is written."""
    work = kills - (kills > 1)
    return [*(math.ceil((k + 1) * batches / (work + 1)) for k in range(work)), *([None] if kills > 1 else [])]


def run(folder: Path, out: Path, *, kills: int = 0) -> dict[str, Any]:
    """Runs ``text2sam annotate`` on a drawn folder, kills it and starts it again.

    A kill at work comes after at least one new batch and a delay of up to a second, so it can interrupt any step of a batch.

    Args:
        folder: the folder of :func:`~text2sam.lab.experiments.annotation.folder.draw_folder`.
        out: new folder for the dataset.
        kills: number of kills. The last of several is while the dataset is written, the others are spread over the work.

    Returns:
        JSON-ready: ``command``; ``starts``, each with ``end`` (``"killed at work"``, ``"killed while writing"`` or
        ``"finished"``), ``batches`` in the journal and ``seconds``; ``seconds`` of all; ``report`` of the last.

    Raises:
        Text2SamError: the command failed, or ran for four hours.
    """
    root = (folder / "images").resolve()
    items = find_images(root, recursive=True).items
    command = [
        "text2sam", "annotate", str(root), "--recursive", "--labels", str(folder.resolve() / "labels.yaml"),
        "--out", str(out.resolve()), "--format", "coco,labelme", "--preset", "sticker", "--batch-size", str(BATCH), "--json",
    ]  # fmt: skip
    # exists when half of the dataset is written
    halfway = out / "labelme" / LabelmeExporter.names_of(sorted(item.path for item in items)[len(items) // 2])[0]
    rng = np.random.default_rng(0)
    starts: list[dict[str, Any]] = []
    done = 0

    def at_work(least: float) -> bool:
        nonlocal done
        done = max(done, committed(out))
        return done >= least

    for point in [*kill_points(kills, len(chunks_of(items, BATCH))), math.inf]:
        reached = halfway.exists if point is None else partial(at_work, max(point, done + 1))
        killed, seconds, output = start(command, folder, reached, 0.0 if point is None else rng.random())
        end = "finished" if not killed else "killed while writing" if point is None else "killed at work"
        done = max(done, committed(out))
        starts.append({"end": end, "batches": done, "seconds": round(seconds, 2)})
        if not killed:
            break
    seconds = round(sum(record["seconds"] for record in starts), 2)
    return {"command": shlex.join(command), "starts": starts, "seconds": seconds, "report": json.loads(output)}


def start(command: Sequence[str], folder: Path, reached: Callable[[], bool], delay: float) -> tuple[bool, float, bytes]:
    """Starts a module with arguments in a folder, where a payload would write its file, and kills it ``delay`` seconds
    after ``reached``.

    Returns:
        Whether it was killed (it may have ended before), its seconds and its output.

    Raises:
        Text2SamError: as :func:`run`.
    """
    home = os.fspath(Path(text2sam.__file__).parents[1])
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    began, kill = time.monotonic(), False
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL, stdout=printed, stderr=errors,
        )  # fmt: skip
        try:
            while process.poll() is None and not kill:
                time.sleep(_POLL)
                kill = reached()
                if time.monotonic() - began > _LONGEST:
                    raise Text2SamError(f"the command ran for {_LONGEST:.0f} s and was killed")
            time.sleep(delay if kill else 0)
        finally:
            process.kill()
            code = process.wait()
        if code > 0 or (code and not kill):
            errors.seek(0)
            said = one_line(errors.read().decode("utf-8", "replace"))[-500:]
            raise Text2SamError(f"the command failed with {code}: {said or 'there was no output'}")
        printed.seek(0)
        return code < 0, time.monotonic() - began, printed.read()


def committed(out: Path) -> int:
    """Number of batches in the journal of a job; 0 if there is no journal, or it is locked or waits for a rollback."""
    address = f"{(out / STATE / JOURNAL).absolute().as_uri()}?mode=ro"
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(address, uri=True, timeout=1)) as database:
        return int(database.execute("SELECT count(*) FROM results").fetchone()[0])
    return 0
