"""Which images a folder job works on: always the same ones in the same order, and a reason for each that it leaves out.

An image's name is its path relative to the folder. Everything that a job writes is named after it, so output never leaves its
folder.
"""

from __future__ import annotations

import codecs
import fnmatch
import functools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from text2sam.decode import readable_suffixes, short
from text2sam.errors import InputError
from text2sam.export.annotated import check_relative
from text2sam.tables import counted

UNKNOWN = -1
"""Size and modification time of a file whose status cannot be read."""

_LONGEST_LINE = 65536
_ADDRESS = re.compile(r"[a-z][a-z0-9+.\-]+://", re.IGNORECASE)


@functools.cache
def suffixes() -> tuple[str, ...]:
    """The endings of image files, in lower case, sorted. Files named in a list may have other endings."""
    return tuple(sorted(readable_suffixes()))


@dataclass(frozen=True, slots=True)
class ImageItem:
    """A file to annotate; whether it holds an image shows when it is read.

    Attributes:
        path: relative to the folder, ``/`` between its parts, valid Unicode; see
            :func:`text2sam.export.annotated.check_relative`.
        file: absolute path.
        size_bytes, mtime_ns: of the file that a link leads to; both :data:`UNKNOWN` when the status cannot be read, because the
            file is gone, a broken link or forbidden.

    Raises:
        InputError: ``path`` is of another kind.
    """

    path: str
    file: Path
    size_bytes: int = UNKNOWN
    mtime_ns: int = UNKNOWN

    def __post_init__(self) -> None:
        try:
            self.path.encode()
        except UnicodeEncodeError:
            raise InputError("its name is not valid Unicode, which no dataset format can hold; rename it") from None
        if "\\" in self.path:
            raise InputError("its name holds a backslash, which other systems take for a folder; rename it")
        check_relative(self.path)


@dataclass(frozen=True)
class Listing:
    """What a job works on. Iterating gives the items.

    Attributes:
        items: sorted by ``path``, by code points, each path once.
        refused: names and reasons of files that look like images, or are in the list, and are left out; sorted. A name may
            hold anything that a file name can.
        others: how many files, of those that match the pattern, were left out because their names do not end like an image's,
            by ending.
    """

    items: tuple[ImageItem, ...]
    refused: tuple[tuple[str, str], ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)

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
) -> Listing:
    """The images of a folder, in an order that does not depend on the system.

    In a folder these are the files whose names end in one of :func:`suffixes`; hidden files and folders (a leading dot) are
    left out. A link to a file is read under its own name, wherever it leads. A link to a folder is not followed: where a walk
    meets one, it is refused with a reason. Pipes and devices are refused.

    A list names files one per line, hidden files and any ending included; blank lines are ignored. Paths are absolute, or
    relative to the folder the list lies in, or, where there is no such file, to ``root``. A file named twice, in whatever
    spelling, counts once. Files outside of ``root`` are refused.

    Args:
        root: the folder.
        recursive: look into its folders as well.
        glob: only images whose name matches, in the case given: ``"a*.png"`` is compared with the file's name, a pattern with a
            ``/`` with the whole relative path, and it looks into folders by itself; ``**`` stands for any number of folders.
        list_file: a text file of paths, instead of all that is in the folder.
        skip: a folder below ``root`` that is left out, such as the output folder.

    Raises:
        InputError: ``root`` or the list cannot be read, the pattern is unusable, or nothing was found, not even a file to
            refuse.
    """
    name = short(os.fsdecode(root))
    try:
        top = os.path.abspath(root)
        folder = stat.S_ISDIR(os.stat(top).st_mode)
        passed = None if skip is None else os.path.realpath(skip)
    except (OSError, ValueError) as error:
        raise InputError(f"the folder {name} cannot be read: {_why(error)}") from error
    if not folder:
        raise InputError(f"{name} is a file; give the folder that holds the images")
    matches = (lambda path: True) if glob is None else _matcher(glob)
    if list_file is not None:
        images = _listed(top, list_file, matches)
        if not images.items and not images.refused:
            what = "paths" if glob is None else f"paths that match {glob!r}"
            raise InputError(f"the list {short(os.fsdecode(list_file))} holds no {what}")
        return images
    deep = recursive or (glob is not None and "/" in glob)
    found, folders, unmatched = _walked(top, deep, matches, passed)
    if not found.items and not found.refused:
        others = sum(found.others.values())
        why = f"there are no images in {name}: "
        why += f"of {counted(others, 'file')} none is named like an image" if others else "it holds no files"
        if unmatched:
            why = f"of {counted(unmatched, 'image')} in {name} none matches {glob!r}"
        below = "" if deep or not folders else f"; to look into its folders ({folders}) as well, say recursive"
        raise InputError(why + below)
    return found


def _walked(top: str, deep: bool, matches: Callable[[str], bool], skip: str | None) -> tuple[Listing, int, int]:
    """What a folder holds, how many folders there are in it, and how many images that do not match."""
    items: list[ImageItem] = []
    refused: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    folders = unmatched = 0

    def unlistable(error: OSError) -> None:
        path = os.path.relpath(error.filename, top)
        if path == ".":
            raise InputError(f"the folder {short(top)} cannot be listed: {_why(error)}") from error
        refused.append((path, f"the folder cannot be listed: {_why(error)}"))

    real = os.path.realpath(top)
    for where, inner, files in os.walk(top, onerror=unlistable):
        relative = os.path.relpath(where, top).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        inner[:] = [name for name in inner if not name.startswith(".")]
        folders += len(inner)
        links = [name for name in inner if os.path.islink(os.path.join(where, name))]
        if not deep:
            inner.clear()
        else:
            reason = "it is a link to a folder, which is not followed; annotate that folder"
            refused += [(prefix + name, reason) for name in links]
            inner[:] = [name for name in inner if name not in links and os.path.join(real, prefix + name) != skip]
        for name in files:
            if name.startswith("."):
                continue
            image = name.lower().endswith(suffixes())
            if not matches(prefix + name):
                unmatched += image
            elif image:
                _add(items, refused, prefix + name, top)
            else:
                others[os.path.splitext(name)[1].lower()] += 1
    return _found(items, refused, dict(sorted(others.items()))), folders, unmatched


def _found(items: list[ImageItem], refused: list[tuple[str, str]], others: Mapping[str, int]) -> Listing:
    return Listing(tuple(sorted(items, key=lambda item: item.path)), tuple(sorted(set(refused))), others)


def _add(items: list[ImageItem], refused: list[tuple[str, str]], path: str, top: str) -> None:
    """Takes a file in, or refuses it."""
    size = mtime = UNKNOWN
    try:
        status = os.stat(os.path.join(top, path))
        if stat.S_ISDIR(status.st_mode):
            refused.append((path, "it is a folder, not an image"))
            return
        if not stat.S_ISREG(status.st_mode):
            refused.append((path, "it is a pipe or device, not a file"))
            return
        size, mtime = status.st_size, status.st_mtime_ns
    except (OSError, ValueError):  # the reason shows when the file is read
        pass
    try:
        items.append(ImageItem(path, Path(top, path), size, mtime))
    except InputError as error:
        refused.append((path, str(error)))


def _listed(top: str, list_file: str | os.PathLike[str], matches: Callable[[str], bool]) -> Listing:
    refused: list[tuple[str, str]] = []
    places: dict[tuple[str, str], str] = {}  # where a file lies: its relative path
    real_folder = functools.cache(os.path.realpath)
    real = os.path.realpath(top)
    base = os.path.dirname(os.path.abspath(list_file))
    for entry in _lines(list_file):
        if "\0" in entry:
            refused.append((entry, "a path cannot hold a NUL; is the list a text file?"))
            continue
        if _ADDRESS.match(entry):
            refused.append((entry, "it is an address; download it first and name the file"))
            continue
        file = os.path.join(base, entry)
        if not os.path.lexists(file) and os.path.lexists(os.path.join(top, entry)):
            file = os.path.join(top, entry)
        folder, name = os.path.split(file)
        if ".." in Path(file).parts:  # what '..' means after a link only the system knows; otherwise the spelling is kept
            file = os.path.realpath(file) if name == ".." else os.path.join(real_folder(folder), name)
        file = os.path.normpath(file)
        folder, name = os.path.split(file)
        place = os.path.join(real_folder(folder), name)
        path = _below(file, top) or _below(place, real)
        if path is None and not os.path.lexists(file):
            where = "" if os.path.isabs(entry) else f", neither beside the list nor in {short(top)}"
            refused.append((entry, f"there is no such file{where}"))
        elif path is None:
            refused.append((file, f"it lies outside of the folder {short(top)}; annotate a folder that holds it"))
        elif path == ".":
            refused.append((path, "it is a folder, not an image"))
        elif matches(path):
            key = os.path.split(place)
            places[key] = min(path, places.get(key, path))  # whatever the order of the list
    items: list[ImageItem] = []
    for path in places.values():
        _add(items, refused, path, top)
    return _found(items, refused, {})


def _lines(list_file: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a list that are not blank; bytes that are not UTF-8 become surrogates."""
    name = f"the list {short(os.fsdecode(list_file))}"
    try:
        with open(list_file, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise InputError(f"{name} is in UTF-16; save it in UTF-8")
                if len(line) == _LONGEST_LINE:
                    raise InputError(f"line {number} of {name} is longer than any path; is it a list of paths?")
                if line.strip():
                    yield os.fsdecode((line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip(b"\r\n"))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} cannot be read: {_why(error)}") from error


def _below(file: str, top: str) -> str | None:
    """The path relative to a folder, with ``/``; ``"."`` for the folder itself, None outside of it."""
    if file == top:
        return "."
    start = top if top.endswith(os.sep) else top + os.sep
    return file[len(start) :].replace(os.sep, "/") if file.startswith(start) else None


def _matcher(glob: str) -> Callable[[str], bool]:
    """Whether a relative path matches a pattern.

    Raises:
        InputError: the pattern is empty, absolute or leaves the folder.
    """
    parts = [part for part in glob.split("/") if part not in ("", ".")]
    if not parts or glob.startswith("/") or glob.endswith("/") or ".." in parts:
        raise InputError(f"glob must be a pattern for paths in the folder, such as '*.png' or 'train/**/*.jpg', not {glob!r}")
    if "/" not in glob:
        return lambda path: fnmatch.fnmatchcase(path.rpartition("/")[2], glob)

    def matches(path: str) -> bool:
        names = path.split("/")

        @functools.cache
        def rest(name: int, part: int) -> bool:
            """Whether the names from one on match the parts from one on."""
            if part == len(parts):
                return name == len(names)
            if parts[part] == "**":
                return rest(name, part + 1) or (name < len(names) and rest(name + 1, part))
            return name < len(names) and fnmatch.fnmatchcase(names[name], parts[part]) and rest(name + 1, part + 1)

        return rest(0, 0)

    return matches


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def count_endings(others: Mapping[str, int]) -> str:
    """``"3 .txt, 1 .xyz"`` from numbers of files by ending, the five most frequent first."""
    first = Counter(dict(sorted(others.items()))).most_common(5)
    rest = sum(others.values()) - sum(count for _, count in first)
    shown = [f"{count} {ending or 'without an ending'}" for ending, count in first]
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])
