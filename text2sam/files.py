"""Writing files: whole or not at all.

Every writer fills a temporary file in the target's folder, flushes it to the disk and renames it, so
that a reader, or a run that resumes, never meets half a file; see :func:`atomic_path`. It returns the
path as a ``Path``, and raises OutputError where the file cannot be written.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2sam.errors import InputError, OutputError, Text2SamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LONGEST_SUFFIX = 16


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file that becomes ``path`` when the block ends well.

    Parent folders are created. The temporary file lies in the target's folder, is hidden (its name
    starts with a dot) and keeps the target's suffix, so libraries that go by the suffix can write it.
    Permissions are those a plain ``open(path, "w")`` gives: the umask's for a new file, the old ones
    for a file that is replaced. A symbolic link is followed. An exception in the block removes the
    temporary file and leaves what was at ``path`` as it was.

    Args:
        path: the file to write.

    Yields:
        the temporary file's path; it exists and is empty.

    Raises:
        OutputError: the file cannot be written (an ``OSError`` in the block counts), or ``path`` is a
            folder or a device.
    """
    temporary: Path | None = None
    try:
        target, mode = _resolve(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        suffix = target.suffix if len(target.suffix) <= _LONGEST_SUFFIX else ""
        fresh = target.with_name(f".text2sam-{secrets.token_hex(8)}{suffix}")
        # tempfile's 0600 would outlive the rename, and the umask cannot be read without setting it
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary = fresh
        yield temporary
        if mode is not None:
            os.chmod(temporary, mode)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
    except Text2SamError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _resolve(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """The file that a plain write to ``path`` would reach, and its permissions if it is there."""
    try:
        target = Path(os.path.realpath(path))
        status = target.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return target, None
    except OSError as error:  # a name too long, a link to itself
        raise OutputError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error
    except (TypeError, ValueError) as error:  # no path at all, or a NUL inside
        raise OutputError(f"cannot write {path!r}: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"cannot write {os.fspath(path)!r}: it is a folder; give the name of a file")
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"cannot write {os.fspath(path)!r}: it is a device or pipe; give the name of a file")
    if not os.access(target, os.W_OK):
        raise OutputError(f"cannot write {os.fspath(path)!r}: the file is read-only")
    return target, stat.S_IMODE(status.st_mode)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Checks that a folder can be written to, before the work begins. Creates nothing.

    Raises:
        OutputError: it cannot.
    """
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"cannot write to the folder {os.fspath(folder)!r}: {str(place)!r} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to the folder {os.fspath(folder)!r}: no permission to write in {str(place)!r}")


def check_file(path: str | os.PathLike[str]) -> None:
    """Checks that a file can be written, before the work begins. Creates nothing.

    Raises:
        OutputError: it cannot.
    """
    target, _ = _resolve(path)
    check_folder(target.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write bytes to a file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write text as UTF-8, line ends as they are.

    Raises:
        InputError: the text holds a lone surrogate, which UTF-8 cannot express.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the text for {os.fspath(path)!r} cannot be written as UTF-8: {error}") from error
    return write_bytes(path, data)


def write_json(path: str | os.PathLike[str], obj: Any) -> Path:
    """Write JSON as UTF-8: two spaces of indent, keys in their order, a newline at the end.

    NumPy scalars and arrays are written as numbers and lists. File names that are not valid Unicode
    (lone surrogates) survive as escapes.

    Raises:
        InputError: a value is NaN, infinite or nothing JSON knows.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the value for {os.fspath(path)!r} cannot be written as JSON: {error}") from error
    # surrogates only occur inside strings, where Python's \udcxx is JSON's escape too
    return write_bytes(path, text.encode("utf-8", "backslashreplace") + b"\n")


def _plain(value: Any) -> Any:
    import numpy as np

    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def write_png(path: str | os.PathLike[str], array: NDArray[Any]) -> Path:
    """Write an array as PNG, whatever suffix ``path`` has.

    Args:
        path: the file to write.
        array: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, or bool (written as 0 and 255), or
            uint16 for (H, W) only (16-bit grey).

    Raises:
        InputError: the array is of another kind, or empty.
    """
    import numpy as np
    from PIL import Image

    if not isinstance(array, np.ndarray):
        raise InputError(f"a PNG is written from a NumPy array, not from {type(array).__name__}")
    grey, dtype = array.ndim == 2, array.dtype.newbyteorder("=")
    kind = dtype in (np.bool_, np.uint8) or (grey and dtype == np.uint16)
    if not (grey or (array.ndim == 3 and array.shape[2] in (3, 4))) or not kind or not array.size:
        raise InputError(
            f"a PNG is written from a non-empty array (H, W), (H, W, 3) or (H, W, 4) of uint8 or bool, "
            f"or (H, W) of uint16, not from a {array.dtype} array of shape {array.shape}"
        )
    if dtype == np.bool_:
        array, dtype = array.astype(np.uint8) * np.uint8(255), np.dtype(np.uint8)
    buffer = io.BytesIO()
    # photos compress little and slowly: level 6 takes four times as long for files a seventh smaller
    Image.fromarray(np.ascontiguousarray(array, dtype)).save(buffer, "PNG", compress_level=6 if grey else 2)
    return write_bytes(path, buffer.getvalue())
