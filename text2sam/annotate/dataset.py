"""From the journal of a folder job to its dataset: one export per format, and the files that an earlier one left."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text2sam.annotate.journal import STATE, Chunk, Record, RunFolder
from text2sam.annotate.labels import LabelSet
from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, check_relative
from text2sam.export.formats import make_exporter
from text2sam.export.losses import Losses
from text2sam.files import write_json

_EXPORTED = "exported.json"
_LARGEST_LIST = 1 << 28
_TEMPORARY = re.compile(r"\.text2sam-[0-9a-f]{16}(\.\S{0,15})?")


@dataclass(frozen=True)
class Export:
    """A format to write, the folder for it, and its options."""

    format: str
    out: Path
    options: Mapping[str, Any]

    def check(self) -> None:
        """Finds errors of the options now, not after hours."""
        make_exporter(self.out, format=self.format, **self.options).abort()


class Results:
    """What the journal holds of a run's images, read a chunk at a time."""

    def __init__(self, labels: LabelSet, chunks: Iterable[Chunk], fresh: set[str], folder: RunFolder) -> None:
        self.labels, self.chunks, self.fresh, self.folder = labels, tuple(chunks), fresh, folder
        self.done = self.empty = self.skipped = 0
        self.failed: dict[str, str] = {}
        self.rejected: set[str] = set()
        self._objects: Counter[str] = Counter()

    @property
    def objects(self) -> dict[str, int]:
        """How many objects of each label are in the dataset."""
        return {name: self._objects[name] for name in self.labels.names}

    def export(self, root: Path, exports: Sequence[Export]) -> list[str]:
        """Writes the dataset in every format, and counts; lines about what a format could not hold."""
        _sweep(self.folder.out)
        losses = [self._write(export, root, first=number == 0) for number, export in enumerate(exports)]
        return [str(loss) for loss in losses if loss.total]

    def _write(self, export: Export, root: Path, *, first: bool) -> Losses:
        with make_exporter(export.out, format=export.format, **export.options) as exporter:
            for chunk in self.chunks:
                for record in self.folder.records(chunk):
                    if record.failed:
                        self.failed[record.path] = record.reason
                    elif record.image is None:
                        self.rejected.add(record.path)
                    if record.image is None:
                        continue
                    if first:
                        self._count(chunk, record.image, 1)
                    try:
                        exporter.add(record.image)
                    except InputError as error:  # two images of one name, an image file that is gone by now
                        if record.path not in self.failed:
                            self.failed[record.path] = f"not in the {export.format} dataset: {error}"
                            self._count(chunk, record.image, -1)
            losses = exporter.close()
        place = os.path.relpath(export.out, self.folder.out)
        written = {os.path.normpath(os.path.join(place, name)) for name in exporter.files}
        _forget(self.folder.out, self.folder.state / _EXPORTED, root, export.format, written)
        return losses

    def _count(self, chunk: Chunk, image: AnnotatedImage, by: int) -> None:
        for thing in image.objects:
            self._objects[thing.label] += by
        if chunk.key not in self.fresh:
            self.skipped += by
        elif image.objects:
            self.done += by
        else:
            self.empty += by

    def records(self) -> Iterator[Record]:
        """What the journal holds of each image that did not fail."""
        for chunk in self.chunks:
            yield from (record for record in self.folder.records(chunk) if record.image is not None)


def _sweep(out: Path) -> None:
    """Removes the unfinished files of an export that was killed, but not in folders below that hold a run of their own."""
    for top in (out, out / STATE):
        for where, inner, names in os.walk(top):
            inner[:] = [name for name in inner if name != STATE and not os.path.isdir(os.path.join(where, name, STATE))]
            for file in (Path(where, name) for name in names if _TEMPORARY.fullmatch(name)):
                with contextlib.suppress(OSError):
                    if file.is_file() and not file.is_symlink():
                        file.unlink()


def _forget(out: Path, record: Path, root: Path, format: str, written: set[str]) -> None:
    """Removes what an earlier export of this format wrote and this one did not, and keeps what this one wrote."""
    lists = _lists(record)
    others = {name for kind, names in lists.items() if kind != format for name in names}
    home, images = os.path.realpath(out), os.path.realpath(root)
    for name in sorted(set(lists.get(format, ())) - written - others):
        folder = os.path.realpath(os.path.join(home, os.path.dirname(name)))
        ours = folder == home or folder.startswith(home + os.sep)
        theirs = folder == images or folder.startswith(images + os.sep)
        if ours and not theirs and STATE not in Path(name).parts:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, os.path.basename(name)))
    write_json(record, lists | {format: sorted(name.replace(os.sep, "/") for name in written)})


def _lists(record: Path) -> dict[str, list[str]]:
    """The files that earlier exports wrote, by format; an unreadable record counts as empty."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if not record.is_file() or record.stat().st_size > _LARGEST_LIST:
            return found
        lists = json.loads(record.read_bytes())
        for kind, names in lists.items() if isinstance(lists, dict) else ():
            found[str(kind)] = [check_relative(name) for name in names] if isinstance(names, list) else []
    return found
