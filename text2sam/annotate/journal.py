"""What a job has finished: results by key in an SQLite file, of which a kill at any moment loses none.

A folder job commits a chunk, a few neighbouring images, at a time. Whoever can write to the file can put anything into it, so
what is read back is checked like any other input.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from text2sam.annotate.sources import ImageItem
from text2sam.checks import check_number
from text2sam.errors import InputError, OutputError, StateError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, check_relative
from text2sam.export.exporter import inside, written

STATE = ".text2sam"
"""The folder in the output folder that holds a run's state."""

JOURNAL = "journal.sqlite"
"""The journal's file in the folder :data:`STATE`."""

REJECTED = "rejected by a person"
"""The reason in the record of a picture that a person left out of the dataset."""

VERSION = 2
"""Raised whenever an older journal can no longer be continued."""

SYNCHRONOUS = "FULL"
"""SQLite's setting: a result is on the disk when it is committed. Tests that have no use for it switch it off."""

_MOST_SHOWN, _LONGEST_SHOWN = 6, 80
_ADVICE = "give another place for the output, or overwrite=True (--overwrite) to discard it"


@dataclass(frozen=True)
class Record:
    """The result of one image.

    Attributes:
        path: as :attr:`ImageItem.path`.
        image: the objects that were found; None when the image failed or was rejected.
        presence: the presence score of each label, in [0, 1]; empty without an image.
        reason: why there is no image, :data:`REJECTED` where a person said so; empty with one.

    Raises:
        InputError: a field is of another kind, or ``image`` has another path.
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

    @property
    def failed(self) -> bool:
        """Whether the image could not be annotated; a rejected image is a decision."""
        return self.image is None and self.reason != REJECTED

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
    """Neighbouring images that are annotated and committed together; CLIP encodes them as one batch.

    Attributes:
        items: at least one.
    """

    items: tuple[ImageItem, ...]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits, a hash of the images' paths, sizes and modification times, in order."""
        images = json.dumps([(item.path, item.size_bytes, item.mtime_ns) for item in self.items])
        return hashlib.blake2b(images.encode(), digest_size=16).hexdigest()


def chunks_of(items: Iterable[ImageItem], size: int) -> list[Chunk]:
    """Cuts images into chunks, always the same ones.

    The last bits of a model's output may depend on the batch an image is in. A run that was killed must end like an
    undisturbed run, so the batches do not depend on where a run begins. A new file should not shift all chunks after it
    either: a chunk ends when it is full, or where the hash of a path says so, on average every ``2 * size`` images. One file
    more or less changes a few chunks around it, and the other chunks are kept.

    Args:
        items: sorted.
        size: most images in a chunk, at least 1.

    Raises:
        InputError: ``size`` is not an int of at least 1.
    """
    size = int(check_number("batch_size", size, 1, whole=True))
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


class Journal:
    """Results by key, in an SQLite file that one process has open at a time. Its threads take turns.

    Args:
        path: the file; created when it is missing. None keeps the results in a temporary file without a name.
        settings: what the results depend on, in JSON's types. A file that holds results must have been made with the same.
        notes: what else to keep when the file is created, in JSON's types.
        overwrite: discard what the file holds, whatever its settings.

    Attributes:
        notes: the notes of the run that created the file.

    Raises:
        InputError: the file has other settings, or is no journal; the message names what differs.
        OutputError: the file cannot be written, or another process has it open.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        *,
        notes: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self._turn = threading.RLock()
        self.notes: Mapping[str, Any] = dict(notes or {})
        given = json.loads(json.dumps(dict(settings), allow_nan=False))  # as it will be read back
        with contextlib.ExitStack() as stack:
            if path is not None:
                with written(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if path.exists() and not path.is_file():
                        raise OutputError(f"{os.fspath(path)!r} is not a regular file; move it away")
                    stack.callback(_lock(path).release)
            try:
                self._open(given, overwrite)
            except (_NoJournalError, OutputError):  # a damaged header may say that nothing can be written
                if not overwrite or path is None:
                    raise
                with written(path):
                    for file in (path.with_name(f"{path.name}-journal"), path):  # in this order, or one would be taken for the
                        file.unlink(missing_ok=True)  # rollback journal of the next file
                self._open(given, overwrite)
            stack.callback(self._database.close)
            self._keys = {str(key) for (key,) in self._execute("SELECT key FROM results")}
            self._stack = stack.pop_all()

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and lets other processes open it."""
        self._stack.close()

    def append(self, key: str, value: Any) -> None:
        """Commits a result, in JSON's types; it is on the disk when this returns. It replaces an earlier one of the key.

        Raises:
            OutputError: the file cannot be written; it then holds what it held before.
        """
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        self._execute("INSERT OR REPLACE INTO results VALUES (?, ?)", key, text)
        self._keys.add(key)

    def read(self, key: str) -> Any:
        """The result of a key.

        Raises:
            StateError: there is none.
            InputError: the file was damaged.
        """
        if key not in self._keys:
            raise StateError(f"{self._name} has no result of {key!r}")
        rows = self._execute("SELECT value FROM results WHERE key = ?", key)
        try:
            return json.loads(rows[0][0])
        except (IndexError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{self._name} was damaged: the result of {key!r} is unreadable; {_ADVICE}") from error

    @property
    def _name(self) -> str:
        return "the journal" if self.path is None else repr(os.fspath(self.path))

    def _open(self, settings: dict[str, Any], overwrite: bool) -> None:
        with self._errors():
            self._database = sqlite3.connect(
                "" if self.path is None else self.path, isolation_level=None, check_same_thread=False
            )
        try:
            self._execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            self._execute("BEGIN IMMEDIATE")
            self._execute("CREATE TABLE IF NOT EXISTS run (version, settings, notes)")
            self._execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT)")
            rows = [] if overwrite else self._execute("SELECT version, settings, notes FROM run")
            if rows:
                self._continue(rows[0], settings)
            else:
                for table in ("run", "results"):
                    self._execute(f"DELETE FROM {table}")
                self._execute("INSERT INTO run VALUES (?, ?, ?)", VERSION, json.dumps(settings), json.dumps(self.notes))
            self._execute("COMMIT")
        except BaseException:
            self._database.close()
            raise

    def _continue(self, row: Sequence[Any], settings: dict[str, Any]) -> None:
        """Takes over the notes of a run with the same settings."""
        version, *texts = row
        if version != VERSION:
            raise InputError(f"{self._name} was written by another version of text2sam; {_ADVICE}")
        try:
            before, notes = (dict(json.loads(text)) for text in texts)
        except (TypeError, ValueError, RecursionError) as error:
            raise _NoJournalError(f"{self._name} is unusable: its settings cannot be read; {_ADVICE}") from error
        lines = differences(before, settings)
        if lines:
            shown = "; ".join(lines[:_MOST_SHOWN]) + ("; ..." if len(lines) > _MOST_SHOWN else "")
            size = before.get("batch_size")
            how = f" (text2sam annotate --batch-size {size})" if size != settings.get("batch_size") else ""
            raise InputError(f"{self._name} holds a run with other settings: {shown}. Use those settings{how}, or {_ADVICE}")
        self.notes = notes

    def _execute(self, statement: str, *values: Any) -> list[Any]:
        with self._turn, self._errors():
            return self._database.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"cannot write {self._name}: {error}. What was finished is kept: make room or make it writable, and start again"
            ) from error
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise _NoJournalError(f"{self._name} is unusable: {error}; {_ADVICE}") from error


class _NoJournalError(InputError):
    """The file is damaged, or something else than a journal."""


def _lock(path: Path) -> Any:
    """A lock that only one process has; the system releases it when the process ends."""
    import filelock

    lock = filelock.FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        name = os.fspath(path.parent if path.name == JOURNAL else path)
        raise OutputError(f"another process works in {name!r}; wait for it to end, or give another place") from error
    except NotImplementedError as error:
        raise OutputError(f"the file system of {os.fspath(path)!r} cannot lock files; give a place on another one") from error
    return lock


class RunFolder(Journal):
    """The state of a run in its output folder: the journal of its chunks.

    Args:
        out: the output folder; created when it is missing.
        settings, notes, overwrite: as for :class:`Journal`.

    Attributes:
        state: the folder that holds the state.

    Raises:
        InputError, OutputError: as for :class:`Journal`; also when the state would lie outside of ``out``.
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
        with written(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self.state = inside(self.out, STATE)
            self.state.mkdir(exist_ok=True)
            for name in (f"{JOURNAL}.lock", f"{JOURNAL}-journal", JOURNAL):
                inside(self.out, f"{STATE}/{name}")
        super().__init__(self.state / JOURNAL, settings, notes=notes, overwrite=overwrite)

    def commit(self, chunk: Chunk, records: Sequence[Record]) -> None:
        """Commits the records of a chunk's images.

        Raises:
            InputError: the records are not those of the images, in order.
            OutputError: as :meth:`append`.
        """
        if [record.path for record in records] != [item.path for item in chunk.items]:
            raise InputError("a chunk is committed with one record per image, in order")
        self.append(chunk.key, [record.to_json() for record in records])

    def records(self, chunk: Chunk) -> list[Record]:
        """The records of a finished chunk, one per image, in order.

        Raises:
            StateError: the chunk is not finished.
            InputError: the journal was damaged.
        """
        values = self.read(chunk.key)
        try:
            records = [Record.from_json(value) for value in values]
            if [record.path for record in records] != [item.path for item in chunk.items]:
                raise InputError("the records are those of other images")
        except (Text2SamError, TypeError) as error:
            raise InputError(f"{self._name} was damaged: {error}; {_ADVICE}") from error
        return records


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between two settings, a line for each; the names of nested settings are joined by dots."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{name} was {_shown(before, name)}, now is {_shown(after, name)}"
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or before[name] != after[name]
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "not set"
    value = settings[name]
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        # labels: by their names, as far as they have nothing else
        value = [item["name"] if not any(v for k, v in item.items() if k != "name") else item for item in value]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
