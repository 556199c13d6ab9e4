"""Examples for a calibration, from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from text2sam.errors import InputError
from text2sam.targets import parse_target

_PRESENT = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_COLUMNS = ("image", "text", "present")


@dataclass(frozen=True)
class Example:
    """A row of the CSV file, and the line at which it ends."""

    line: int
    image: Path
    text: str
    present: bool


def read_examples(path: Path) -> list[Example]:
    """The rows of a CSV file with the columns image, text and present. Other columns and empty lines are ignored.

    Args:
        path: UTF-8, with commas. A relative image path starts at the file's folder; ``present`` is 1 or 0, true or false, yes
            or no.

    Returns:
        The examples, grouped by image. The images are not opened.

    Raises:
        InputError: the file or a row of it, which is named by its line, is not usable, or the examples are all of one kind.
    """
    examples: list[Example] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            rows.fieldnames = [name.strip().casefold() for name in rows.fieldnames or ()]
            missing = [name for name in _COLUMNS if name not in rows.fieldnames]
            if missing:
                raise InputError(
                    f"{path} has no column {', '.join(missing)}: its first line must have the names {','.join(_COLUMNS)}"
                )
            try:
                for row in rows:
                    if any(row.values()):
                        with in_line(path, rows.line_num):
                            examples.append(_example(path.parent, rows.line_num, row))
            except csv.Error as error:
                raise InputError(f"{path} line {rows.reader.line_num}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except InputError:
        raise
    except (csv.Error, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if {example.present for example in examples} != {True, False}:
        raise InputError(f"{path} must have at least one row whose text is present and one whose text is not")
    first = {example.image: n for n, example in reversed(list(enumerate(examples)))}
    return sorted(examples, key=lambda example: first[example.image])


def _example(folder: Path, line: int, row: dict[str | None, str | None]) -> Example:
    if None in row or None in row.values():
        raise InputError("the number of values is not that of the columns; put text with a comma in quotes")
    image, text, present = ((row[name] or "").strip() for name in _COLUMNS)
    if not image:
        raise InputError("the image is empty")
    parse_target(text)
    if present.casefold() not in _PRESENT:
        raise InputError(f"present must be 1 or 0, true or false, yes or no, not {present!r}")
    return Example(line, folder / image, text, _PRESENT[present.casefold()])


@contextmanager
def in_line(path: Path, line: int) -> Iterator[None]:
    """Adds file and line to errors of inputs."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path} line {line}: {error}") from error
