"""What a run keeps of each picture in its journal (:class:`text2sam.annotate.journal.Journal`)."""

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
    """The journal of a run whose figures go to ``out``."""
    return out.with_name(f"{out.name}.journal")


def key_of(name: str) -> str:
    """The journal's key of a picture, whose name may hold bytes that are not Unicode."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


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
