"""Runs the command of a trial in a process of its own, and kills it at work and while it writes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

import text2sam
from text2sam.annotate.journal import JOURNAL, STATE, chunks_of
from text2sam.annotate.sources import find_images
from text2sam.errors import InputError, Text2SamError, one_line
from text2sam.export.labelme import LabelmeExporter
from text2sam.lab.experiments.annotation.folder import Drawn, Settings

_POLL = 0.02
_LONGEST_DELAY = 2.0
_PATIENCE = 900.0


@dataclass(frozen=True)
class Attempt:
    """One start of the command.

    Attributes:
        end: ``"killed at work"``, ``"killed while writing"`` or ``"finished"``.
        seconds: duration.
        before, after: number of batches in the journal at its start and at its end.
        unsaved: seconds from the last commit, or the start, to the kill; 0 if it finished.
    """

    end: str
    seconds: float
    before: int
    after: int
    unsaved: float


@dataclass(frozen=True)
class Run:
    """The record of :func:`run`.

    Attributes:
        command: the command with its arguments.
        batches: number of batches of the job.
        attempts: the attempts in order, of which the last finished.
        report: the JSON report of the last attempt.
    """

    command: tuple[str, ...]
    batches: int
    attempts: tuple[Attempt, ...]
    report: Mapping[str, Any]

    @property
    def kills(self) -> int:
        """Number of kills."""
        return sum(attempt.end != "finished" for attempt in self.attempts)

    @property
    def seconds(self) -> float:
        """Duration of all attempts."""
        return sum(attempt.seconds for attempt in self.attempts)


def kill_points(kills: int, batches: int) -> list[int | None]:
    """Number of committed batches before each kill; the last of several is None, a kill while the dataset is written."""
    work = kills - (kills > 1)
    return [*(math.ceil((k + 1) * batches / (work + 1)) for k in range(work)), *([None] if kills > 1 else [])]


def run(settings: Settings, drawn: Drawn, out: Path, *, kills: int = 0, progress: bool = False) -> Run:
    """Runs ``text2sam annotate`` on a drawn folder in a process of its own, and kills it ``kills`` times.

    A kill at work is delayed by a random part of a batch's duration, so that any step of a batch can be interrupted.

    Args:
        settings: the settings of the drawn folder.
        drawn: the folder.
        out: new folder for the dataset.
        kills: number of kills.
        progress: report each attempt on standard error.

    Raises:
        InputError: ``out`` exists.
        Text2SamError: the command failed, or made no progress for 15 minutes.
    """
    if out.exists():
        raise InputError(f"{os.fspath(out)!r} exists; give a new folder")
    found = find_images(drawn.root, recursive=True, skip=out)
    batches = len(chunks_of(found.items, settings.batch_size))
    command = [
        "text2sam", "annotate", os.path.abspath(drawn.root), "--recursive", "--labels", os.path.abspath(drawn.labels),
        "--out", os.path.abspath(out), "--format", "coco,labelme", "--preset", "sticker",
        "--batch-size", str(settings.batch_size), *(["--device", settings.device] if settings.device else []), "--json",
    ]  # fmt: skip
    middle = sorted(picture.path for picture in drawn.pictures)[len(drawn.pictures) // 2]
    watch = _Watch(out, out / "labelme" / LabelmeExporter.names_of(middle)[0])
    rng = np.random.default_rng([settings.seed, 3])
    attempts: list[Attempt] = []
    for point in [*kill_points(kills, batches), -1]:
        attempt, output = _attempt(command, drawn.root.parent, watch, point, float(rng.random()))
        attempts.append(attempt)
        if progress:
            line = f"start {len(attempts)}: {attempt.end} after {attempt.seconds:.1f} s, {attempt.after} of {batches} batches"
            print(line, file=sys.stderr, flush=True)
        if attempt.end == "finished":
            break
    return Run(tuple(command), batches, tuple(attempts), json.loads(output))


class _Watch:
    """Observes a job from outside by its journal and by a file that is written when half of the dataset is."""

    def __init__(self, out: Path, written: Path) -> None:
        self._journal = out / STATE / JOURNAL
        self._written = written
        self._commits = 0

    def commits(self) -> int:
        """Number of batches in the journal; the last known number while the journal is locked or missing."""
        if self._journal.exists():
            address = f"{self._journal.absolute().as_uri()}?mode=ro"
            connect = functools.partial(sqlite3.connect, address, uri=True, timeout=1)
            with contextlib.suppress(sqlite3.Error), contextlib.closing(connect()) as database:
                self._commits = int(database.execute("SELECT count(*) FROM results").fetchone()[0])
        return self._commits

    def writing(self) -> bool:
        """Whether half of the dataset is written."""
        return self._written.exists()


def _attempt(command: Sequence[str], folder: Path, watch: _Watch, point: int | None, delay: float) -> tuple[Attempt, bytes]:
    """Starts the command and kills it at ``point`` batches (None: while it writes, negative: never); with its output."""
    home = os.fspath(Path(text2sam.__file__).parents[1])
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    before = commits = watch.commits()
    if point is not None and point >= 0:
        point = max(point, before + 1)
    killed = ""
    started = last = first = time.monotonic()
    begun = before
    with (
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,  # where a payload would write its file
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
        ) as process,
    ):
        try:
            while process.poll() is None:
                now, seen = time.monotonic(), watch.commits()
                if seen > commits:
                    # the time before the first batch is the start of the command
                    first, begun = (now, seen) if commits == before else (first, begun)
                    commits, last = seen, now
                elif now - last > _PATIENCE:
                    raise Text2SamError(f"the command has done nothing for {_PATIENCE:.0f} s and was killed: {_tail(errors)}")
                if point is None and watch.writing():
                    killed = "killed while writing"
                elif point is not None and 0 <= point <= seen:
                    killed = "killed at work"
                    time.sleep(delay * min((last - first) / max(1, seen - begun), _LONGEST_DELAY))
                if killed:
                    break
                time.sleep(_POLL)
        finally:
            process.kill()
            code = process.wait()
        ended = time.monotonic()
        # the process may have ended before the kill
        killed = killed if code < 0 else ""
        if code and not killed:
            raise Text2SamError(f"the command failed with {code}: {_tail(errors)}")
        printed.seek(0)
        output = printed.read()
    unsaved = ended - last if killed else 0.0
    return Attempt(killed or "finished", ended - started, before, watch.commits(), unsaved), output


def _tail(file: IO[bytes]) -> str:
    file.seek(0)
    return one_line(file.read().decode("utf-8", "replace"))[-500:] or "there was no output"


def dataset_files(out: Path) -> dict[str, str]:
    """File name -> SHA-256 of every file of a dataset except the job's state; of a link, the hash of its target."""
    hashes = {}
    for place, folders, files in os.walk(out):
        folders[:] = [name for name in folders if name != STATE or place != os.fspath(out)]
        for name in files:
            path = Path(place, name)
            data = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
            hashes[path.relative_to(out).as_posix()] = hashlib.sha256(data).hexdigest()
    return hashes
