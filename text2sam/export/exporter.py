"""What all formats share: labels, output names, counts, and an end that comes whole or not at all."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, ClassVar

from typing_extensions import Self

from text2sam.checks import check_known
from text2sam.errors import InputError, OutputError, StateError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.losses import COUNTS, Losses

LONGEST_NAME = 255
"""Bytes of a file name that common file systems take."""


class Exporter(ABC):
    """Writes annotated images, one at a time, in one format.

    The same images, labels and options give the same bytes. Files appear under their names when they are complete; the
    file that names the others (JSON, YAML, index) appears with :meth:`close`. Files of the same names are replaced, other
    files in the folder are left alone, so give a folder of its own. Of earlier images only the names are in memory: what must
    wait is kept in unnamed temporary files.

    As a context manager it is closed at the end of the block, or given up where the block fails.

    The options of a format are documented at its class.

    Args:
        out: the output folder; created where it is missing.
        labels: the names of the classes in order, all that objects may have.
        images_root: the folder that the images' paths are relative to.
        reading: keyword arguments of :func:`text2sam.image.read_image` with which the images were read.
        **options: of the format.

    Attributes:
        files: the names of the files that were written, relative to ``out``.

    Raises:
        InputError: labels or options are not usable.
        OutputError: the folder cannot be made.
    """

    format: ClassVar[str]
    spools: ClassVar[int] = 0
    """How many lists must wait in temporary files."""

    def __init__(
        self,
        out: str | os.PathLike[str],
        labels: Sequence[str],
        images_root: str | os.PathLike[str] | None = None,
        *,
        reading: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.labels = check_labels(labels)
        self.out = Path(out)
        self.images_root = None if images_root is None else Path(images_root)
        self.reading = dict(reading or {})
        check_known(f"{self.format} option", options, list(inspect.signature(self._configure).parameters))
        self._configure(**options)
        self._ids = {label: index for index, label in enumerate(self.labels)}
        self._counts = dict.fromkeys(("images", "objects", *COUNTS), 0)
        self._names = Names()
        self.files: set[str] = set()
        self._losses: Losses | None = None
        self._open = True
        with written(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._spools = [Spool(self.out) for _ in range(self.spools)]

    def _configure(self) -> None:  # noqa: B027
        """Takes the options of the format, each a keyword argument; ``labels`` and ``images_root`` are there."""

    @staticmethod
    def names_of(path: str) -> tuple[str, ...]:
        """Where an image's annotations may go, relative to the output folder, the best name first.

        The image's own path where one file holds all.
        """
        return (path,)

    @abstractmethod
    def _write(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], name: str, prepared: Any) -> None:
        """Write an image's objects, all with pixels, under one of ``names_of``; count what is lost in ``_counts``."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what names the others."""

    def add(self, image: AnnotatedImage) -> None:
        """Write one more image.

        An image that is refused with InputError leaves everything as it was; after any other error nothing can be added.

        Raises:
            InputError: it has an object with an unknown label, came before, or would overwrite an earlier one's file.
            OutputError: a file cannot be written.
            StateError: the exporter is closed.
        """
        self._check_open()
        if not isinstance(image, AnnotatedImage):
            raise InputError(f"image must be an AnnotatedImage, not {type(image).__name__}")
        for item in image.objects:
            if item.label not in self._ids:
                raise InputError(f"the label {item.label!r} of an object in {image.path!r} is not among the labels")
        prepared = self._prepare(image)
        names = tuple(
            name
            for name in self.names_of(image.path)
            if all(len(part) <= LONGEST_NAME for part in os.fsencode(name).split(b"/"))
        )
        if not names:
            raise InputError(
                f"the name of {image.path!r:.80} is too long: what is written for it has over {LONGEST_NAME} bytes"
            )
        name, first = self._names.claim(image.path, names)
        objects = tuple(item for item in image.objects if item.area)
        try:
            with written(self.out):
                self._write(image, objects, name, prepared)
        except BaseException:
            self.abort()
            raise
        self._counts["images"] += 1
        self._counts["objects"] += len(objects)
        self._counts["empty"] += len(image.objects) - len(objects)
        self._counts["renamed"] += not first

    def _prepare(self, image: AnnotatedImage) -> Any:
        """What ``_write`` needs from outside; refuses an image the format cannot hold with InputError, before anything is
        written."""
        return None

    def close(self) -> Losses:
        """Finish the data set.

        Returns:
            What was lost; the same again when called twice.

        Raises:
            OutputError: a file cannot be written.
            StateError: it was given up before.
        """
        if self._losses is None:
            self._check_open()
            try:
                with written(self.out):
                    self._finish()
            finally:
                self.abort()
            self._losses = Losses(self.format, **self._counts)
        return self._losses

    def abort(self) -> None:
        """Give up: complete files stay, the data set is not finished."""
        if self._open:
            self._open = False
            for spool in self._spools:
                spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
        else:
            self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise StateError("the exporter is closed, or was given up after an error; make a new one")

    def _path(self, name: str) -> Path:
        """Where to write a file."""
        self.files.add(name)
        return inside(self.out, name)


class Names:
    """Which image goes where: no image twice, no file twice, no file where a folder is."""

    def __init__(self) -> None:
        self._images: set[str] = set()
        self._files: dict[str, str] = {}  # the image of each
        self._folders: dict[str, str] = {}

    def claim(self, path: str, names: Sequence[str]) -> tuple[str, bool]:
        """The first name that is free, and whether it is the best one.

        Raises:
            InputError: the image came before, or all names are taken; then nothing is changed.
        """
        if path in self._images:
            raise InputError(f"the image {path!r} comes twice")
        for index, name in enumerate(names):
            folders = [str(parent) for parent in PurePosixPath(name).parents[:-1]]
            taken = [self._files.get(name), self._folders.get(name), *map(self._files.get, folders)]
            earlier = next((image for image in taken if image is not None), None)
            if earlier is None:
                self._images.add(path)
                self._files[name] = path
                self._folders |= dict.fromkeys(folders, path)
                return name, index == 0
        raise InputError(
            f"the images {earlier!r} and {path!r} would both be written to {name!r}; rename one of them, or export them apart"
        )


class Spool:
    """A JSON list that grows in a temporary file without a name, in ASCII, an item a line."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.count = 0

    def write(self, item: Any) -> None:
        """One more item."""
        text = json.dumps(item, allow_nan=False)
        self._file.write((",\n" if self.count else "\n").encode("ascii") + text.encode("ascii"))
        self.count += 1

    def copy_to(self, file: IO[bytes]) -> None:
        """The whole list."""
        self._file.seek(0)
        file.write(b"[")
        shutil.copyfileobj(self._file, file)
        file.write(b"\n]")

    def close(self) -> None:
        """Drop the file."""
        with contextlib.suppress(OSError):  # what is buffered still may not fit on the disk
            self._file.close()


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as a tuple.

    Raises:
        InputError: there are none, or one is no string, empty, not valid Unicode, or there twice.
    """
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Sequence) or not labels:
        raise InputError(f"labels must be a sequence of at least one name, not {labels!r}")
    for label in labels:
        if not isinstance(label, str) or not label:
            raise InputError(f"a label must be a non-empty string, not {label!r}")
        if any("\ud800" <= char <= "\udfff" for char in label):
            raise InputError(f"the label {label!r} is not valid Unicode")
    if len(set(labels)) != len(labels):
        raise InputError(f"a label is there twice: {sorted({label for label in labels if list(labels).count(label) > 1})}")
    return tuple(labels)


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder.

    Raises:
        OutputError: it would lie elsewhere, through ``..`` or a symbolic link.
    """
    home, target = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
    if target == home or not target.is_relative_to(home):
        raise OutputError(f"{name!r} would be written to {os.fspath(target)!r}, which is not in the folder {os.fspath(home)!r}")
    return target


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Errors of the operating system as OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write in {os.fspath(path)!r}: {error.strerror or error}") from error
