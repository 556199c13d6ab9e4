"""Files that are only ever appended to, a line at a time, and that a kill at any moment leaves usable.

Each line stands behind a checksum of its own, so that a torn end, or a line damaged since, is known for what it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from text2sam.errors import OutputError

_DIGITS = 16


def checked_body(line: bytes) -> memoryview | None:
    """What was appended, where a line is as it was written; else None."""
    body = memoryview(line)[_DIGITS + 1 : -1]
    whole = line.endswith(b"\n") and line[_DIGITS : _DIGITS + 1] == b" " and line[:_DIGITS] == _checksum(body)
    return body if whole else None


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGITS // 2).hexdigest().encode()


class CheckedLines:
    """The lines of a file; errors of the operating system come out as they are.

    Args:
        file: open for reading and for writing at its end, unbuffered; the caller closes it.
        sync: whether a line is on the disk when :meth:`append` returns. Without, a killed process loses nothing either, but a
            power cut may.
    """

    def __init__(self, file: IO[bytes], *, sync: bool) -> None:
        self.file = file
        self.sync = sync

    def append(self, body: bytes) -> tuple[int, int]:
        """Adds a line for ``body``, which holds no line break; where it lies: offset and length in bytes.

        After an error the file holds what it held before.
        """
        line = b"%s %s\n" % (_checksum(body), body)
        offset = self.file.seek(0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:
                left = left[self.file.write(left) or 0 :]
            if self.sync:
                os.fsync(self.file.fileno())
        except BaseException:  # a full disk, or an interrupt: half a line must not stand in the way of the next one
            with contextlib.suppress(OSError):
                self.file.truncate(offset)
            raise
        return offset, len(line)

    def read(self, offset: int, length: int) -> bytes:
        """The line that lies there; shorter where the file was cut since."""
        self.file.seek(offset)
        line = b""
        while len(line) < length and (more := self.file.read(length - len(line))):
            line += more
        return line

    def scan(self, longest: int = -1) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of every line from the first on, those that are damaged included.

        Args:
            longest: bytes; what is longer comes in parts.
        """
        self.file.seek(0)
        offset = 0
        # closefd: the buffer is for reading lines alone
        with open(self.file.fileno(), "rb", closefd=False) as lines:
            while line := lines.readline(longest):
                yield offset, line
                offset += len(line)


def lock_file(path: Path, *, held: str, unsupported: str) -> Any:
    """A lock on a file, to be given back by ``release()``; a process that ends gives it back by itself.

    Args:
        path: the file, made where it is missing.
        held: what to say where another process holds it.
        unsupported: what to say where the file system knows no locks.

    Raises:
        OutputError: the lock cannot be had.
    """
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise OutputError(held) from error
    except NotImplementedError as error:
        raise OutputError(unsupported) from error
    return lock
