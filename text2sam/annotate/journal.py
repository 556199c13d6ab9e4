"""What a folder job has finished: an append-only file that a kill at any moment leaves usable.

The unit of work and of commit is a chunk, a few neighbouring images. A chunk is one line, so it is there as a whole or not at
all. Each line carries a checksum: a torn end is cut off, a line damaged elsewhere counts as not there, and both are worked out
again. What is read here may have been written by anyone, so nothing is trusted beyond its own bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from text2sam.annotate.sources import ImageItem
from text2sam.errors import InputError, OutputError, StateError
from text2sam.export.annotated import AnnotatedImage, check_relative
from text2sam.export.exporter import inside, written
from text2sam.files import write_json
from text2sam.lines import CheckedLines, checked_body, lock_file

STATE = ".text2sam"
"""The folder in the output folder that holds a run's state."""

VERSION = 1
"""Raised whenever an older journal can no longer be carried on."""

_RUN, _JOURNAL, _LOCK = "run.json", "journal.jsonl", "lock"
_LONGEST_LINE = 1 << 30
_LARGEST_RUN = 16 << 20
_MOST_TOLD, _LONGEST_TOLD = 6, 80
_HEAD = re.compile(rb"([0-9a-f]{32}) ([0-9]{1,6}) ")


@dataclass(frozen=True)
class Record:
    """What became of one image.

    Attributes:
        path: as :attr:`ImageItem.path`.
        image: what was found; None where the image failed.
        presence: of each label, in [0, 1], whether or not it counted as there; empty where the image failed.
        reason: why it failed; empty where it did not.

    Raises:
        InputError: a field is of another kind, or the image is another one's.
    """

    path: str
    image: AnnotatedImage | None = None
    presence: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        check_relative(self.path)
        if not isinstance(self.reason, str) or bool(self.reason) == (self.image is not None):
            raise InputError(f"a record of {self.path!r} holds either an image or the reason why there is none")
        if self.image is not None and (not isinstance(self.image, AnnotatedImage) or self.image.path != self.path):
            raise InputError(f"the image of the record of {self.path!r} is another one")
        ok = isinstance(self.presence, Mapping)
        for label, value in self.presence.items() if ok else ():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value <= 1.0
            ok = ok and isinstance(label, str) and number
        if not ok:
            raise InputError("presence must be a mapping from labels to numbers in [0, 1]")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` reads it back."""
        if self.image is None:
            return {"path": self.path, "reason": self.reason}
        return {"image": self.image.to_json(), "presence": dict(self.presence)}

    @classmethod
    def from_json(cls, value: Any) -> Record:
        """What :meth:`to_json` wrote.

        Raises:
            InputError: it is anything else.
        """
        if isinstance(value, dict) and sorted(value) == ["path", "reason"]:
            return cls(value["path"], reason=value["reason"])
        if isinstance(value, dict) and sorted(value) == ["image", "presence"]:
            image = AnnotatedImage.from_json(value["image"])
            return cls(image.path, image, value["presence"])
        raise InputError("a record must be an object with the fields path and reason, or image and presence")


@dataclass(frozen=True)
class Chunk:
    """Neighbouring images that are worked on and committed together; CLIP sees them as one batch.

    Attributes:
        items: at least one.
    """

    items: tuple[ImageItem, ...]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits that stand for the images: their paths, sizes and times of change, in order."""
        what = json.dumps([(item.path, item.size_bytes, item.mtime_ns) for item in self.items])
        return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def chunks_of(items: Iterable[ImageItem], size: int) -> list[Chunk]:
    """Cuts images into chunks, the same ones each time.

    What a model returns for an image may depend, in its last bits, on the batch it is in. So that a run that was
    killed, and one over a folder that has since grown, gives what an undisturbed one gives, the batches must not depend on
    where a run begins. Nor should a new file shift all chunks behind it: a chunk ends where the hash of a path says so,
    on average every ``2 * size`` images, or when it is full. One file more or less therefore changes a few chunks around
    it, and the rest of the work is kept.

    Args:
        items: sorted.
        size: most images in a chunk, at least 1.

    Raises:
        InputError: ``size`` is not an int of at least 1.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"batch_size must be an int of at least 1, not {size!r}")
    chunks: list[Chunk] = []
    current: list[ImageItem] = []
    for item in items:
        current.append(item)
        digest = hashlib.blake2b(item.path.encode(), digest_size=8).digest()
        if len(current) == size or int.from_bytes(digest, "big") % (2 * size) == 0:
            chunks.append(Chunk(tuple(current)))
            current = []
    if current:
        chunks.append(Chunk(tuple(current)))
    return chunks


@dataclass(frozen=True)
class _Place:
    """Where a chunk's line lies in the file, and how many of its images failed."""

    offset: int
    length: int
    failed: int


class Journal:
    """The finished chunks of a run, in a file that is only ever appended to.

    Only the place of each chunk is kept in memory. Of two lines for one chunk the later counts.

    Args:
        path: the file; made where it is missing.

    Attributes:
        damaged: how many lines were found that are not what was written.

    Raises:
        OutputError: the file cannot be read or written, or is no ordinary file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.damaged = 0
        self._places: dict[str, _Place] = {}
        self._reading = threading.Lock()
        with _errors(self.path):
            if self.path.exists() and not stat.S_ISREG(self.path.stat().st_mode):
                raise OutputError(f"{os.fspath(self.path)!r} is no ordinary file; move it away")
            # as it is written only here, and at its end, readers need no second handle
            self._lines = CheckedLines(open(self.path, "a+b", buffering=0), sync=True)  # noqa: SIM115  closed by close()
            try:
                self._scan()
            except BaseException:
                self.close()
                raise

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._lines.file.close()

    def failed(self, key: str) -> int:
        """How many images of a finished chunk failed."""
        return self._places[key].failed

    def append(self, chunk: Chunk, records: Sequence[Record]) -> None:
        """Commits a chunk: afterwards it is on the disk.

        Raises:
            InputError: the records are not those of the chunk's images, in order.
            OutputError: the file cannot be written; then it holds what it held before.
        """
        if [record.path for record in records] != [item.path for item in chunk.items]:
            raise InputError("a chunk is committed with one record per image, in order")
        failed = sum(record.image is None for record in records)
        text = json.dumps([record.to_json() for record in records], separators=(",", ":"), allow_nan=False)
        body = b"%s %d %s" % (chunk.key.encode(), failed, text.encode("ascii"))
        with self._reading, _errors(self.path):
            offset, length = self._lines.append(body)
        self._places[chunk.key] = _Place(offset, length, failed)

    def read(self, key: str) -> list[Record]:
        """The records of a finished chunk, in the order of its images.

        Raises:
            StateError: the chunk is not finished.
            InputError: the line was damaged since, or holds something else than records.
        """
        place = self._places.get(key)
        if place is None:
            raise StateError(f"the chunk {key} is not finished")
        with self._reading, _errors(self.path):
            line = self._lines.read(place.offset, place.length)
        where = f"{os.fspath(self.path)!r} at byte {place.offset}"
        body, head = _valid(line)
        if head is None or head[1].decode() != key:
            raise InputError(f"{where} was damaged while it was in use; start again, and the lost images are worked out again")
        try:
            values = json.loads(bytes(body[head.end() :]))
            if not isinstance(values, list):
                raise InputError("a chunk must be a list of records")
            return [Record.from_json(value) for value in values]
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{where} does not hold records of images: {error}; start over with overwrite") from error

    def _scan(self) -> None:
        end = size = 0
        for offset, line in self._lines.scan(_LONGEST_LINE):
            size = offset + len(line)
            _, head = _valid(line)
            if head is None:
                self.damaged += 1
            else:
                self._places[head[1].decode()] = _Place(offset, len(line), int(head[2]))
                end = size
        if end < size:
            self._lines.file.truncate(end)


def _valid(line: bytes) -> tuple[memoryview, re.Match[bytes] | None]:
    """What was committed, and the head of it: key, failed images; None for the head where the line is not as it was written."""
    body = checked_body(line)
    return (memoryview(b""), None) if body is None else (body, _HEAD.match(body))


class RunFolder:
    """The state of a run in its output folder: one run at a time, of one kind of settings.

    Args:
        out: the output folder; made where it is missing.
        settings: what the results depend on, in JSON's types; an earlier run in the folder must have had the same.
        notes: what else to keep about the run, in JSON's types.
        overwrite: throw away what an earlier run has finished, whatever its settings.

    Attributes:
        state: the folder that holds the state.
        journal: what is finished.
        before: ``notes`` of the run that began here; those given where this one does.

    Raises:
        InputError: the folder holds a run with other settings, or one that is not understood; the message names what differs.
        OutputError: the folder cannot be written, or another process works in it.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        settings: Mapping[str, Any],
        *,
        notes: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out)
        name = os.fspath(self.out)
        given = json.loads(json.dumps(dict(settings), allow_nan=False))  # as it will be read back
        with _errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self.state = inside(self.out, STATE)
            self.state.mkdir(exist_ok=True)
            run, journal = (inside(self.out, f"{STATE}/{file}") for file in (_RUN, _JOURNAL))
            self._lock = lock_file(
                inside(self.out, f"{STATE}/{_LOCK}"),
                held=f"another process works in {name!r}; wait for it to end, or give another folder",
                unsupported=f"the file system of {name!r} cannot lock files; give a folder on another one",
            )
        try:
            self.before: Mapping[str, Any] = dict(notes or {})
            with _errors(self.out):
                if overwrite:
                    # in this order: results never meet settings that are not theirs
                    journal.unlink(missing_ok=True)
                elif run.exists() or (journal.exists() and journal.stat().st_size):
                    self.before = _same_run(run, given, name)
            if overwrite or not run.exists():
                write_json(run, {"version": VERSION, "settings": given, "notes": dict(self.before)})
            self.journal = Journal(journal)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal and let others into the folder."""
        self.journal.close()
        self._lock.release()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, a line for each, names of nested ones joined by dots."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{name} was {_told(before, name)}, now is {_told(after, name)}"
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or before[name] != after[name]
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _told(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "not set"
    value = settings[name]
    if isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value):
        # labels; their further fields are told where the names alone would not show what differs
        value = [one["name"] if not any(v for k, v in one.items() if k != "name") else one for one in value]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_TOLD else f"{text[: _LONGEST_TOLD - 3]}..."


def _same_run(path: Path, settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The notes of the run in the folder, when it has these settings."""
    run = _read_run(path, name)
    found = differences(run["settings"], settings)
    if found:
        told = "; ".join(found[:_MOST_TOLD]) + ("; ..." if len(found) > _MOST_TOLD else "")
        raise InputError(
            f"the folder {name!r} holds a run with other settings: {told}. Give another folder, the settings it had, or "
            "overwrite=True (--overwrite) to throw that run away"
        )
    notes = run.get("notes")
    return notes if isinstance(notes, dict) else {}


def _read_run(path: Path, name: str) -> dict[str, Any]:
    advice = "give another folder, or overwrite=True (--overwrite) to throw it away"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{os.fspath(path)!r} is no ordinary file; {advice}")
        with open(path, "rb") as file:
            data = file.read(_LARGEST_RUN + 1)
        if len(data) > _LARGEST_RUN:
            raise ValueError("it is too large")
        run = json.loads(data)
        if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
            raise ValueError("it holds no settings")
        version = run.get("version")
        if version != VERSION:
            raise ValueError(f"its version is {version!r:.40}, not {VERSION}")
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        what = getattr(error, "strerror", None) or error
        raise InputError(
            f"the run in {name!r} cannot be carried on, {os.fspath(path)!r} is unusable: {what}; {advice}"
        ) from error
    return run


def _errors(path: Path) -> contextlib.AbstractContextManager[None]:
    return written(path, ". What was finished is kept: make room, or make it writable, and start again")
