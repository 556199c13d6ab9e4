"""What a run has measured so far, in an SQLite file: a run that is killed at any moment goes on from there."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import Self

from text2sam.errors import InputError, OutputError, StateError

VERSION = 2
"""Raised whenever journals of earlier versions can no longer be used."""

_APPLICATION = 0x74327331  # "t2s1"
_SHOWN = 6
_LONGEST = 80


def journal_path(out: Path) -> Path:
    """The journal of a run whose figures go to ``out``."""
    return out.with_name(f"{out.name}.journal")


def pack(values: NDArray[Any]) -> str:
    """An array's bytes as text, little endian; :func:`unpack` gives the same values, bit by bit."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(data).decode("ascii")


def unpack(text: str, dtype: DTypeLike, columns: int) -> NDArray[Any]:
    """(n, columns) values of :func:`pack`.

    Raises:
        InputError: the text is of another kind.
    """
    try:
        flat = np.frombuffer(base64.b64decode(text, validate=True), np.dtype(dtype).newbyteorder("<"))
        return flat.astype(dtype).reshape(-1, columns)
    except (ValueError, TypeError) as error:
        raise InputError(f"the journal holds no array of {np.dtype(dtype)} with {columns} columns: {error}") from error


class Journal:
    """The measured pictures of a run.

    Every :meth:`append` is a transaction that is on the disk when it returns. One process at a time has the file open.

    Args:
        path: the file; None keeps the journal in memory.
        settings: what the measurements depend on, in JSON's types; an earlier run in the file must have had the same.
        overwrite: throw away the run in the file, whatever its settings.

    Raises:
        InputError: the file holds a run with other settings, or is no journal; the message names what differs.
        OutputError: the file cannot be written, or another process works on it.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self._name = "the journal" if path is None else repr(str(path))
        given = json.loads(json.dumps(dict(settings), allow_nan=False))  # as it is read back
        with self._errors():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists() and not path.is_file():
                    raise OutputError(f"{self._name} is no ordinary file; move it away")
                if overwrite and not _is_database(path):
                    path.unlink(missing_ok=True)
            self._database = sqlite3.connect(path or ":memory:", timeout=0, isolation_level=None)
        try:
            with self._errors():
                self._begin(given, overwrite)
        except BaseException:
            self.close()
            raise

    def __contains__(self, key: object) -> bool:
        return self._value(key) is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._errors():
            return int(self._database.execute("SELECT count(*) FROM pictures").fetchone()[0])

    def close(self) -> None:
        """Closes the file, so that other processes can open it."""
        self._database.close()

    def append(self, key: str, value: Mapping[str, Any]) -> None:
        """Adds the measurements of a picture, in place of earlier ones.

        Raises:
            OutputError: the file cannot be written.
        """
        with self._errors():
            text = json.dumps(dict(value), separators=(",", ":"), allow_nan=False)
            self._database.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?)", (_key(key), text))

    def read(self, key: str) -> dict[str, Any]:
        """The measurements of a picture.

        Raises:
            StateError: it was not measured.
            InputError: the file is damaged.
        """
        text = self._value(key)
        if text is None:
            raise StateError(f"the picture {key!r} has not been measured")
        try:
            value = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{self._name} is damaged; give another --out, or overwrite it (--overwrite)") from error
        if not isinstance(value, dict):
            raise InputError(f"{self._name} is damaged; give another --out, or overwrite it (--overwrite)")
        return value

    def _value(self, key: object) -> Any:
        with self._errors():
            row = self._database.execute("SELECT value FROM pictures WHERE id = ?", (_key(str(key)),)).fetchone()
        return None if row is None else row[0]

    def _begin(self, settings: dict[str, Any], overwrite: bool) -> None:
        run = self._database.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA synchronous = FULL")
        run("BEGIN EXCLUSIVE")
        try:
            tables = [row[0] for row in run("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if overwrite:
                for name in tables:
                    run(f'DROP TABLE "{name}"')
            if overwrite or not tables:
                run(f"PRAGMA application_id = {_APPLICATION}")
                run(f"PRAGMA user_version = {VERSION}")
                run("CREATE TABLE run (settings TEXT)")
                run("CREATE TABLE pictures (id BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
                run("INSERT INTO run VALUES (?)", (json.dumps(settings),))
            self._check(settings)
        except BaseException:
            run("ROLLBACK")
            raise
        run("COMMIT")

    def _check(self, settings: dict[str, Any]) -> None:
        advice = "give another --out, or overwrite it (--overwrite)"
        marks = [self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if marks != [_APPLICATION, VERSION]:
            raise InputError(f"{self._name} is no journal of this version of text2sam; {advice}")
        before = json.loads(self._database.execute("SELECT settings FROM run").fetchone()[0])
        old, new = _flat(before), _flat(settings)
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if names:
            changes = [f"{name} was {_shown(old, name)}, now is {_shown(new, name)}" for name in names[:_SHOWN]]
            more = "; ..." if len(names) > _SHOWN else ""
            raise InputError(
                f"{self._name} holds a run with other settings: {'; '.join(changes)}{more}. Use those, or {advice}"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise OutputError(
                    f"another process works on {self._name}; wait for it to end, or give another --out"
                ) from error
            raise OutputError(f"cannot write {self._name}: {error}") from error
        except (sqlite3.Error, json.JSONDecodeError) as error:
            raise InputError(
                f"{self._name} is no journal ({error}); give another --out, or overwrite it (--overwrite)"
            ) from error
        except OSError as error:
            raise OutputError(f"cannot write {self._name}: {error.strerror or error}") from error


def _key(key: str) -> bytes:
    """File names may hold bytes that are no Unicode."""
    return key.encode("utf-8", "surrogatepass")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings with the names of nested ones joined by dots, values as JSON."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False)
    return flat


def _shown(settings: Mapping[str, str], name: str) -> str:
    text = settings.get(name, "not set")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _is_database(path: Path) -> bool:
    """Whether a file is one of SQLite's, or there is none."""
    if not path.exists():
        return True
    with open(path, "rb") as file:
        return file.read(16) in (b"", b"SQLite format 3\0")
