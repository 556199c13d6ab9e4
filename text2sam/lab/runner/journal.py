"""What a run has measured so far: an append-only file that a kill at any moment leaves usable.

One line a picture, behind a checksum. A torn end is cut off, a line damaged elsewhere counts as not there; both are
measured again. Nothing of it is held in memory but where each line lies.
"""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import Self

from text2sam.errors import InputError, OutputError, StateError
from text2sam.lines import CheckedLines, checked_body, lock_file

VERSION = 1
"""Raised whenever an older journal can no longer be carried on."""

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
        self._lines: CheckedLines
        given = json.loads(json.dumps(dict(settings), allow_nan=False))  # as it will be read back
        with self._errors():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists() and not path.is_file():
                    raise OutputError(f"{str(path)!r} is no ordinary file; move it away")
                self._lock = lock_file(
                    path.with_name(f"{path.name}.lock"),
                    held=f"another process works on {str(path)!r}; wait for it to end, or give another --out",
                    unsupported=f"the file system of {str(path)!r} cannot lock files; give an --out on another one",
                )
            try:
                file: Any = tempfile.TemporaryFile(buffering=0) if path is None else open(path, "a+b", buffering=0)  # noqa: SIM115
                # a power cut may cost a line: the checksum tells, and it is measured again
                self._lines = CheckedLines(file, sync=False)
                if overwrite:
                    file.truncate(0)
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
        lines = getattr(self, "_lines", None)
        if lines is not None:
            lines.file.close()
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
            line = self._lines.read(offset, length)
        value = _value(line)
        if value is None or value.get("id") != key:
            raise InputError(f"{self._name} was damaged at byte {offset} while it was in use; start again")
        return value

    @property
    def _name(self) -> str:
        return "the journal" if self.path is None else repr(str(self.path))

    def _begin(self, settings: dict[str, Any]) -> None:
        end = offset = 0
        head: dict[str, Any] | None = None
        whole = False
        for start, line in self._lines.scan():
            value = _value(line)
            if not start:
                head, whole = value, line.endswith(b"\n")
            elif value is None or not isinstance(value.get("id"), str):
                self.damaged += 1
                value = None
            else:
                self._places[value["id"]] = (start, len(line))
            offset = start + len(line)
            if value is not None:
                end = offset
        if not offset or (head is None and not whole):  # nothing, or a head that was never finished
            self._lines.file.truncate(0)
            self._write({"journal": VERSION, "settings": settings})
            return
        self._check(head, settings)
        if end < offset:
            self._lines.file.truncate(end)

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
        with self._errors():
            return self._lines.append(json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii"))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {self._name}: {error.strerror or error}") from error


def _value(line: bytes) -> dict[str, Any] | None:
    """What a line holds, where it is as it was written."""
    body = checked_body(line)
    if body is None:
        return None
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
