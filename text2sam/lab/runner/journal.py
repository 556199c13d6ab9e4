"""The journal of a run (:class:`text2sam.annotate.journal.Journal`): its place, keys and arrays."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from text2sam.annotate.journal import Journal
from text2sam.errors import InputError

__all__ = ["Journal", "journal_path", "key_of", "pack", "unpack"]


def journal_path(out: Path) -> Path:
    """The journal of a run with the result file ``out``."""
    return out.with_name(f"{out.name}.journal")


def key_of(name: str) -> str:
    """The key of an image in the journal; its name may have bytes that are not Unicode."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def pack(values: NDArray[Any]) -> str:
    """An array as text, in little endian; :func:`unpack` returns exactly the same values."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(data).decode("ascii")


def unpack(text: str, dtype: DTypeLike, columns: int) -> NDArray[Any]:
    """The array (n, columns) of :func:`pack`.

    Raises:
        InputError: the text does not hold such an array.
    """
    try:
        flat = np.frombuffer(base64.b64decode(text, validate=True), np.dtype(dtype).newbyteorder("<"))
        return flat.astype(dtype).reshape(-1, columns)
    except (ValueError, TypeError) as error:
        raise InputError(f"the journal has no array of {np.dtype(dtype)} with {columns} columns: {error}") from error
