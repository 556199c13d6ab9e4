"""Folders and files of data sets: finds them, reports what is missing, and builds the data set.

Functions that read a file or a folder raise an InputError that names it if it cannot be read or has other content.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from text2sam.checks import check_known
from text2sam.errors import InputError
from text2sam.image import read_image
from text2sam.lab.datasets.pixels import Colour, read_semantic
from text2sam.lab.datasets.sample import IGNORE, Dataset, Sample, Task

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

_MOST_TEXT = 1 << 28
_MOST_JSON = 1 << 31
_SHOWN = 5
Root: TypeAlias = str | os.PathLike[str] | None
"""The folder of a data set."""

_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class MissingDataError(InputError):
    """A file or folder of a data set is missing."""


class Layout:
    """Finds the files of a data set, reports all that are missing in one error, and builds the data set.

    Raises:
        InputError: ``root`` is missing.
        MissingDataError: ``root`` is not a folder.
    """

    def __init__(self, root: Root, title: str, homepage: str) -> None:
        self.title, self.homepage = title, homepage
        self._missing: list[str] = []
        if root is None or not os.fspath(root):
            raise InputError(f"{title} needs the folder of its files (--root); get it from {homepage}")
        self.root = Path(root)
        if not self.root.is_dir():
            raise MissingDataError(f"there is no folder {self.root} for {title}; get it from {homepage}")

    def base(self, candidates: Sequence[str], marks: Sequence[str]) -> Path:
        """The folder among ``candidates`` that has most of the files and folders ``marks``, the first of equals."""
        folders = [self.root / name for name in candidates]
        return max(folders, key=lambda folder: sum((folder / mark).exists() for mark in marks))

    def folder(self, base: Path, *names: str) -> Path:
        """The first of the folders that exists; if none does, notes that and returns the first."""
        return self._first(base, names, "folder", Path.is_dir)

    def file(self, base: Path, *names: str) -> Path:
        """As :meth:`folder`, for files."""
        return self._first(base, names, "file", Path.is_file)

    def _first(self, base: Path, names: Sequence[str], kind: str, there: Any) -> Path:
        for name in names:
            if there(base / name):
                return base / name
        self._missing.append(f"{kind} " + " or ".join(str(base / name) for name in names))
        return base / names[0]

    def need(self, what: str, ids: Iterable[str], there: Mapping[str, Any]) -> None:
        """Notes the ids that are not in ``there``."""
        missing = [name for name in ids if name not in there]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            self._missing.append(f"{what} of {', '.join(missing[:_SHOWN])}{more}")

    def check(self) -> None:
        """Raises a :class:`MissingDataError` if files or folders were noted as missing."""
        if self._missing:
            pieces = "\n".join(f"  {piece}" for piece in self._missing)
            raise MissingDataError(
                f"{self.title} is not complete under {self.root}; missing:\n{pieces}\nGet it from {self.homepage}"
            )

    def paired(
        self,
        name: str,
        classes: tuple[str, ...],
        pictures: Path,
        labels: Path,
        numbers: Mapping[int, int] | None = None,
        *,
        ignored: int = IGNORE,
        photos: Mapping[str, Path] | None = None,
        masks: Mapping[str, Path] | None = None,
        ids: Path | Iterable[str] | None = None,
        background: bool = False,
        colour: Colour | None = None,
        **fields: Any,
    ) -> Dataset:
        """A data set with one label file per image.

        Args:
            name, classes, background: see :class:`~text2sam.lab.datasets.sample.Dataset`.
            pictures, labels: folders of the images and of the label files.
            numbers: number in a label file -> index of its class, or :data:`IGNORE`; None if the numbers are the indices.
            ignored: a further number, of ignored pixels.
            photos, masks: files by id; None takes those in ``pictures`` and ``labels``.
            ids: in order, or a file that lists them; None takes those of the images.
            colour: encoding of the numbers as colours; None for plain numbers.
            **fields: see :meth:`dataset`.

        Raises:
            InputError: the list of ids cannot be read.
            MissingDataError: a file is missing.
        """
        self.check()
        photos = files_in(pictures, IMAGE_SUFFIXES) if photos is None else photos
        masks = files_in(labels, LABEL_SUFFIXES) if masks is None else masks
        wanted = read_ids(ids) if isinstance(ids, Path) else list(photos if ids is None else ids)
        self.need(f"pictures in {pictures}", wanted, photos)
        self.need(f"label files in {labels}", wanted, masks)
        self.check()
        numbers = {index: index for index in range(len(classes))} if numbers is None else numbers
        table = np.full(max(*numbers, ignored) + 1, -1, np.int32)
        for number, index in {**numbers, ignored: IGNORE}.items():
            table[number] = index

        def truth(place: int) -> dict[str, Any]:
            path = masks[wanted[place]]
            return {"read_semantic": lambda: read_semantic(path, table, colour=colour), "label_path": path}

        files = [(key, photos[key]) for key in wanted]
        return self.dataset(name, classes, files, truth, background=background, **fields)

    def dataset(
        self,
        name: str,
        classes: tuple[str, ...],
        pictures: Sequence[tuple[str, Path]],
        truth: Callable[[int], Mapping[str, Any]],
        *,
        background: bool = False,
        tasks: tuple[Task, ...] = ("recognition", "semantic", "explainability"),
        options: Mapping[str, object] | None = None,
        **fields: Any,
    ) -> Dataset:
        """A data set of image files.

        Args:
            name, classes, background, tasks, **fields: see :class:`~text2sam.lab.datasets.sample.Dataset`.
            pictures: ids and files, in order.
            truth: index of an image -> arguments of :class:`~text2sam.lab.datasets.sample.Sample` for its ground truth.
            options: options of the reader, besides ``background``.

        Raises:
            InputError: there is no image.
        """

        def make(place: int) -> Sample:
            key, path = pictures[place]
            return Sample(key, classes, background, lambda: read_image(path), path=path, **truth(place))

        fields |= {"root": self.root, "homepage": self.homepage, "options": {"background": background, **(options or {})}}
        return Dataset(name, self.title, classes, background, tasks, tuple(key for key, _ in pictures), make, **fields)


def check_split(split: str, known: Sequence[str] = ()) -> str:
    """Returns ``split`` if it is one of ``known``; without ``known``, if it is a plain name.

    Raises:
        InputError: it is not.
    """
    if known:
        check_known("split", [split], known)
    elif not isinstance(split, str) or not _SPLIT.fullmatch(split):
        raise InputError(f"split must be a plain name such as 'val', not {split!r}")
    return split


def with_background(classes: tuple[str, ...], background: bool) -> tuple[str, ...]:
    """The classes, preceded by ``"background"`` if it is a class."""
    return (("background",) if background else ()) + classes


def counted(classes: int, background: bool) -> dict[int, int]:
    """Numbers of label files in which 0 is the background or ignored, and 1 to ``classes`` are classes -> indices."""
    zero = {0: 0 if background else IGNORE}
    return zero | {number: number if background else number - 1 for number in range(1, classes + 1)}


def files_in(folder: Path, suffixes: Sequence[str], *, ending: str = "") -> dict[str, Path]:
    """The files in a folder by stem, in the order of their names, without hidden files and subfolders.

    Args:
        suffixes: in lower case; the case of a file's suffix does not matter.
        ending: required ending of the stem, which is removed.

    Raises:
        InputError: two files differ only in their suffix, or the folder cannot be read.
    """
    found: dict[str, Path] = {}
    for path in _listed(folder, os.DirEntry.is_file):
        stem, suffix = os.path.splitext(path.name)
        if suffix.lower() not in suffixes or not stem.endswith(ending):
            continue
        stem = stem[: len(stem) - len(ending)]
        if stem in found:
            raise InputError(f"{folder} has both {found[stem].name} and {path.name}; remove one of them")
        found[stem] = path
    return found


def folders_in(folder: Path) -> list[Path]:
    """The subfolders of a folder in the order of their names, without hidden folders."""
    return _listed(folder, os.DirEntry.is_dir)


def _listed(folder: Path, kind: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    try:  # macOS adds "._name.png" to archives
        return sorted(Path(e.path) for e in os.scandir(folder) if kind(e) and not e.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror or error}") from error


def read_text(path: Path, most: int = _MOST_TEXT) -> str:
    """A text file in UTF-8 of at most ``most`` bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > most:
        raise InputError(f"{path} has more than {most} bytes; it is not the expected file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8: {error.reason} at byte {error.start}") from error


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped; an InputError if there are none."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    kept = [line for line in lines if line]
    if not kept:
        raise InputError(f"{path} is empty; expected is a name on each line")
    return kept


def read_ids(path: Path) -> list[str]:
    """The ids in a list file; an InputError if a line is not a file name without suffix, or occurs twice."""
    ids = read_lines(path)
    for number, name in enumerate(ids, 1):
        if not _SPLIT.fullmatch(name):
            raise InputError(f"line {number} of {path} must be the name of an image without its suffix, not {name[:80]!r}")
    if len(set(ids)) != len(ids):
        twice = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise InputError(f"{path} names {twice!r} more than once")
    return ids


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    text = read_text(path, _MOST_JSON)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
