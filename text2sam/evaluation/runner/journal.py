"""What a run has measured so far: an append-only file that a kill at any moment leaves usable.

One line a picture, behind a checksum. A torn end is cut off, a line damaged elsewhere counts as not there; both are
measured again. Nothing of it is held in memory but where each line lies.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import Self

from text2sam.errors import InputError, OutputError, StateError

VERSION = 1
"""Raised whenever an older journal can no longer be carried on."""

_DIGITS = 16
_MOST_TOLD = 6


def journal_path(out: Path) -> Path:
    """Where the journal of a run lies whose figures go to ``out``."""
    return out.with_name(f"{out.name}.journal")


def pack(values: NDArray[Any]) -> str:
    """An array's bytes as text, little endian; :func:`unpack` gives the same values, bit by bit."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(data).decode("ascii")


def unpack(text: str, dtype: DTypeLike, columns: int) -> NDArray[Any]:
    """(n, columns) values of :func:`pack`.

    Raises:
        InputError: it is no such text.
    """
    try:
        flat = np.frombuffer(base64.b64decode(text, validate=True), np.dtype(dtype).newbyteorder("<"))
        return flat.astype(dtype).reshape(-1, columns)
    except (ValueError, TypeError) as error:
        raise InputError(f"the journal holds no array of {np.dtype(dtype)} with {columns} columns: {error}") from error


class Journal:
    """The measured pictures of a run of one kind of settings.

    Args:
        path: the file; None keeps a nameless temporary one, gone with the process.
        settings: what the measurements depend on, in JSON's types; an earlier run in the file must have had the same.
        overwrite: throw away what is there, whatever its settings.

    Attributes:
        damaged: how many lines were found that are not what was written.

    Raises:
        InputError: the file holds a run with other settings, or is no journal; the message names what differs.
        OutputError: the file cannot be written, or another process works on it.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.damaged = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._lock: Any = None
        self._file: IO[bytes]
        given = json.loads(json.dumps(dict(settings), allow_nan=False))  # as it will be read back
        with self._errors():
            if path is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed by close()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists() and not path.is_file():
                    raise OutputError(f"{str(path)!r} is no ordinary file; move it away")
                self._lock = _locked(path)
            try:
                if path is not None:
                    self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by close()
                if overwrite:
                    self._file.truncate(0)
                self._begin(given)
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
        """Close the file and let others at it."""
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()
        if self._lock is not None:
            self._lock.release()

    def append(self, key: str, value: Mapping[str, Any]) -> None:
        """Adds what was measured on a picture; of two lines for one picture the later counts.

        Raises:
            OutputError: the file cannot be written; then it holds what it held before.
        """
        self._places[key] = self._write({"id": key, **value})

    def read(self, key: str) -> dict[str, Any]:
        """What was measured on a picture.

        Raises:
            StateError: it was not.
            InputError: the line was damaged since.
        """
        if key not in self._places:
            raise StateError(f"the picture {key!r} has not been measured")
        offset, length = self._places[key]
        with self._errors():
            self._file.seek(offset)
            line = b""
            while len(line) < length and (more := self._file.read(length - len(line))):
                line += more
        value = _value(line)
        if value is None or value.get("id") != key:
            raise InputError(f"{self._name} was damaged at byte {offset} while it was in use; start again")
        return value

    @property
    def _name(self) -> str:
        return "the journal" if self.path is None else repr(str(self.path))

    def _begin(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        end = offset = 0
        head: dict[str, Any] | None = None
        whole = False
        # closefd: the buffer is for reading lines alone
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                value = _value(line)
                if not offset:
                    head, whole = value, line.endswith(b"\n")
                elif value is None or not isinstance(value.get("id"), str):
                    self.damaged += 1
                    value = None
                else:
                    self._places[value["id"]] = (offset, len(line))
                offset += len(line)
                if value is not None:
                    end = offset
        if not offset or (head is None and not whole):  # nothing, or a head that was never finished
            self._file.truncate(0)
            self._write({"journal": VERSION, "settings": settings})
            return
        self._check(head, settings)
        if end < offset:
            self._file.truncate(end)

    def _check(self, head: dict[str, Any] | None, settings: dict[str, Any]) -> None:
        from text2sam.annotate.journal import differences

        advice = "give another --out, or overwrite (--overwrite) to throw it away"
        if head is None or head.get("journal") != VERSION or not isinstance(head.get("settings"), dict):
            raise InputError(f"{self._name} is no journal of this version of text2sam; {advice}")
        found = differences(head["settings"], settings)
        if found:
            told = "; ".join(found[:_MOST_TOLD]) + ("; ..." if len(found) > _MOST_TOLD else "")
            raise InputError(f"{self._name} holds a run with other settings: {told}. Use those again, {advice}")

    def _write(self, value: Mapping[str, Any]) -> tuple[int, int]:
        body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
        line = b"%s %s\n" % (_checksum(body), body)
        with self._errors():
            offset = self._file.seek(0, os.SEEK_END)
            try:
                left = memoryview(line)
                while left:
                    left = left[self._file.write(left) or 0 :]
            except BaseException:  # a full disk, or an interrupt: half a line must not stand in the way of the next one
                with contextlib.suppress(OSError):
                    self._file.truncate(offset)
                raise
        # no fsync: a killed process loses nothing, and after a power cut the checksums tell what is there
        return offset, len(line)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {self._name}: {error.strerror or error}") from error


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGITS // 2).hexdigest().encode()


def _value(line: bytes) -> dict[str, Any] | None:
    """What a line holds, where it is as it was written."""
    body = memoryview(line)[_DIGITS + 1 : -1]
    if not line.endswith(b"\n") or line[_DIGITS : _DIGITS + 1] != b" " or line[:_DIGITS] != _checksum(body):
        return None
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _locked(path: Path) -> Any:
    import filelock

    lock = filelock.FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise OutputError(f"another process works on {str(path)!r}; wait for it to end, or give another --out") from error
    except NotImplementedError as error:
        raise OutputError(f"the file system of {str(path)!r} cannot lock files; give an --out on another one") from error
    return lock
