"""Which images a folder job works on: always the same ones in the same order, and a reason for each that it leaves out.

An image's name is its path relative to the folder. Everything a job writes is named after that, so it never leaves the folder.
"""

from __future__ import annotations

import codecs
import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from text2sam.errors import InputError
from text2sam.export.annotated import check_relative

SUFFIXES = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
"""What names of images in a folder end in, in any case. A list of files may name others."""

UNKNOWN = -1
"""Size and time of a file that cannot be looked at."""

_LONGEST_LINE = 65536
_ADDRESS = re.compile(r"[a-z][a-z0-9+.\-]+://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageItem:
    """A file to be annotated; whether it holds an image shows when it is read.

    Attributes:
        path: relative to the folder, ``/`` between its parts, valid Unicode; see
            :func:`text2sam.export.annotated.check_relative`.
        file: absolute path.
        size_bytes, mtime_ns: of the file a link leads to; both :data:`UNKNOWN` where it cannot be looked at, since it is gone,
            a broken link or forbidden.

    Raises:
        InputError: ``path`` is of another kind.
    """

    path: str
    file: Path
    size_bytes: int
    mtime_ns: int

    def __post_init__(self) -> None:
        try:
            self.path.encode()
        except UnicodeEncodeError:
            raise InputError("its name is not valid Unicode, which no dataset format can hold; rename it") from None
        if "\\" in self.path:
            raise InputError("its name holds a backslash, which other systems take for a folder; rename it")
        check_relative(self.path)


@dataclass(frozen=True)
class Found:
    """What a job works on. Iterating gives the items.

    Attributes:
        items: sorted by ``path``, by code points, each path once.
        refused: names and reasons of what looks like an image, or was asked for, and is left out; sorted. Names may hold
            anything a file name can.
    """

    items: tuple[ImageItem, ...]
    refused: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ImageItem]:
        return iter(self.items)


def find_images(
    root: str | os.PathLike[str],
    *,
    recursive: bool = False,
    glob: str | None = None,
    list_file: str | os.PathLike[str] | None = None,
    skip: str | os.PathLike[str] | None = None,
) -> Found:
    """The images of a folder, whatever the order in which the system lists them.

    From a folder come files that end in one of :data:`SUFFIXES`; hidden files and folders (a leading dot) are left out. A link
    to a file is read under its own name, wherever it leads. A link to a folder is not followed, so loops end and nothing
    outside of the folder is walked: where a walk meets one it is refused with a reason. Pipes and devices are refused.

    A list names files one per line, absolute or relative to the folder the list lies in, hidden ones and any suffix included;
    blank lines are left out. A file named twice, however it is spelled, counts once. Files outside of ``root`` are refused.

    Args:
        root: the folder.
        recursive: look into its folders as well.
        glob: only images whose name matches, case counting: ``"a*.png"`` is held against the file's name, a pattern with a
            ``/`` against the whole relative path and goes into folders by itself; ``**`` stands for any number of folders.
        list_file: a text file of paths, instead of all that is in the folder.
        skip: a folder below ``root`` that is not walked, such as the one written to.

    Raises:
        InputError: ``root`` or the list cannot be read, the pattern is unusable, or nothing at all was found, not even
            something to refuse.
    """
    name = _short(os.fsdecode(root))
    try:
        top = os.path.abspath(root)
        folder = stat.S_ISDIR(os.stat(top).st_mode)
        passed = None if skip is None else os.path.realpath(skip)
    except (OSError, ValueError) as error:
        raise InputError(f"the folder {name} cannot be read: {_why(error)}") from error
    if not folder:
        raise InputError(f"{name} is a file; give the folder that holds the images")
    matches = _matcher(glob) if glob is not None else None
    if list_file is not None:
        items, refused = _listed(top, list_file, matches)
        if not items and not refused:
            what = "paths" if glob is None else f"paths that match {glob!r}"
            raise InputError(f"the list {_short(os.fsdecode(list_file))} holds no {what}")
    else:
        deep = recursive or (glob is not None and "/" in glob)
        items, refused, others, folders = _walked(top, deep, matches, passed)
        if not items and not refused:
            wanted = f"none that ends in {', '.join(SUFFIXES)}" + ("" if glob is None else f" and matches {glob!r}")
            below = "" if deep or not folders else f"; to look into its folders ({folders}) as well, say recursive"
            raise InputError(f"there are no images in {name}: of {others} files {wanted}{below}")
    return Found(tuple(sorted(items, key=lambda item: item.path)), tuple(sorted(set(refused))))


_Refused = list[tuple[str, str]]


def _walked(
    top: str, deep: bool, matches: Callable[[str], bool] | None, skip: str | None
) -> tuple[list[ImageItem], _Refused, int, int]:
    """Items, refused, and how many other files and folders there were."""
    items: list[ImageItem] = []
    refused: _Refused = []
    others = folders = 0
    real = os.path.realpath(top)
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(top, folder)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    kind = _kind(entry)
                    if kind == "folder":
                        folders += 1
                        if deep and os.path.join(real, path) != skip:
                            pending.append(path)
                    elif kind == "link to a folder":
                        if deep:
                            refused.append((path, "it is a link to a folder, which is not followed; annotate that folder"))
                    elif not entry.name.lower().endswith(SUFFIXES) or not (matches is None or matches(path)):
                        others += 1
                    else:
                        _add(items, refused, path, path, top, entry.stat)
        except OSError as error:
            if not folder:
                raise InputError(f"the folder {_short(top)} cannot be listed: {_why(error)}") from error
            refused.append((folder, f"the folder cannot be listed: {_why(error)}"))
    return items, refused, others, folders


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "link to a folder" if entry.is_symlink() and entry.is_dir() else "file"
    except OSError:  # a loop of links, or gone
        return "file"


def _add(items: list[ImageItem], refused: _Refused, name: str, path: str, top: str, look: Callable[[], os.stat_result]) -> None:
    """Takes a file in, or refuses it under ``name``."""
    size = mtime = UNKNOWN
    try:
        status = look()
        if stat.S_ISDIR(status.st_mode):
            refused.append((name, "it is a folder, not an image"))
            return
        if not stat.S_ISREG(status.st_mode):
            refused.append((name, "it is a pipe or device, not a file"))
            return
        size, mtime = status.st_size, status.st_mtime_ns
    except (OSError, ValueError):  # told when it is read
        pass
    try:
        items.append(ImageItem(path, Path(top, path), size, mtime))
    except InputError as error:
        refused.append((name, str(error)))


def _listed(
    top: str, list_file: str | os.PathLike[str], matches: Callable[[str], bool] | None
) -> tuple[list[ImageItem], _Refused]:
    refused: _Refused = []
    places: dict[tuple[str, str], str] = {}  # where a file lies -> its relative path
    resolved: dict[str, str] = {}
    real = os.path.realpath(top)
    base = ""
    for entry in _lines(list_file):
        base = base or os.path.dirname(os.path.abspath(list_file))
        if "\0" in entry:
            refused.append((entry, "a path cannot hold a NUL; is the list a text file?"))
            continue
        if _ADDRESS.match(entry):
            refused.append((entry, "it is an address; download it first and name the file"))
            continue
        file = os.path.join(base, entry)
        # what '..' means after a link only the system knows; without it the spelling given is kept
        if ".." in entry and ".." in Path(file).parts:
            file = os.path.realpath(file) if os.path.basename(file) == ".." else _resolved(file, resolved)
        file = os.path.normpath(file)
        place = _resolved(file, resolved)
        path = _below(file, top)
        if path is None:
            path = _below(place, real)
        if path is None:
            refused.append((file, f"it lies outside of the folder {_short(top)}; annotate a folder that holds it"))
        elif path == ".":
            refused.append((path, "it is a folder, not an image"))
        elif matches is None or matches(path):
            key = os.path.split(place)
            places[key] = min(path, places.get(key, path))  # whatever the order of the list

    items: list[ImageItem] = []
    for path in places.values():
        file = os.path.join(top, path)
        _add(items, refused, path, path, top, lambda file=file: os.stat(file))  # type: ignore[misc]
    return items, refused


def _lines(list_file: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a list that are not blank; bytes that are not UTF-8 become surrogates."""
    name = f"the list {_short(os.fsdecode(list_file))}"
    try:
        with open(list_file, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise InputError(f"{name} is in UTF-16; save it in UTF-8")
                if len(line) == _LONGEST_LINE:
                    raise InputError(f"line {number} of {name} is longer than any path; is it a list of paths?")
                if line.strip():
                    yield os.fsdecode((line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip(b"\r\n"))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {_why(error)}") from error


def _resolved(file: str, known: dict[str, str]) -> str:
    """A file's path without links in its folders; the file itself may be one."""
    folder, name = os.path.split(file)
    if folder not in known:
        known[folder] = os.path.realpath(folder)
    return os.path.join(known[folder], name)


def _below(file: str, top: str) -> str | None:
    """The path relative to a folder, with ``/``; ``"."`` for the folder itself, None outside of it."""
    if file == top:
        return "."
    start = top if top.endswith(os.sep) else top + os.sep
    return file[len(start) :].replace(os.sep, "/") if file.startswith(start) else None


def _matcher(glob: str) -> Callable[[str], bool]:
    """Whether a relative path matches a pattern.

    Raises:
        InputError: the pattern is empty, absolute, leaves the folder or is no pattern.
    """
    parts = [part for part in glob.split("/") if part not in ("", ".")]
    if not parts or glob.startswith("/") or glob.endswith("/") or ".." in parts:
        raise InputError(f"glob must be a pattern for paths in the folder, such as '*.png' or 'train/**/*.jpg', not {glob!r}")
    try:
        rules = [None if part == "**" else re.compile(fnmatch.translate(part)).match for part in parts]
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"glob {glob!r} is no pattern: {error}") from error
    if "/" not in glob:
        rules = [None, *rules]

    def matches(path: str) -> bool:
        names = path.split("/")
        places = {0}  # how many rules may be used up so far; a "**" that takes nothing is passed at once
        for name in names:
            after = set()
            for place in _passed(places):
                if place < len(rules):
                    rule = rules[place]
                    if rule is None:
                        after.add(place)
                    elif rule(name):
                        after.add(place + 1)
            places = after
        return len(rules) in _passed(places)

    def _passed(places: set[int]) -> set[int]:
        out = set()
        for place in places:
            out.add(place)
            while place < len(rules) and rules[place] is None:
                place += 1
                out.add(place)
        return out

    return matches


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 200 else f"{shown[:120]}...{shown[-40:]}"
