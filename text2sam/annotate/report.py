"""The outcome of a folder job: how many images, what was found in them, which failed and why."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text2sam.errors import one_line
from text2sam.files import write_json
from text2sam.tables import aligned

LONGEST_REASON = 500
"""Characters of a reason that are kept."""

_LONGEST_PATH = 100
_EXAMPLES = 3  # names of failed files that a reason is shown with
_MOST = 20  # reasons, and names of failed files in all
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True)
class Failure:
    """An image that could not be annotated.

    Attributes:
        path: its name, as it is.
        reason: why, on one line, what a terminal would act on as escapes; what is longer than :data:`LONGEST_REASON` is cut.
    """

    path: str
    reason: str

    def __post_init__(self) -> None:
        reason = one_line(self.reason) or "no reason was given"  # some exceptions say nothing
        object.__setattr__(self, "reason", _shorten(reason, LONGEST_REASON))

    @property
    def kind(self) -> str:
        """The reason without what only this file has: its name and numbers."""
        name = repr(os.path.basename(self.path))[1:-1][-20:]
        text = _QUOTED.sub(lambda quoted: "the file" if name and quoted[0][1:-1].endswith(name) else quoted[0], self.reason)
        return _NUMBER.sub("N", text.replace("no file the file", "no such file"))


@dataclass(frozen=True)
class Report:
    """The outcome of a folder job. Each image is in exactly one of done, empty, failed, skipped and rejected.

    Attributes:
        done: images in which something was found.
        empty: images in which nothing was found.
        failed: images that could not be annotated, in the order of their paths.
        skipped: images that an earlier run had finished.
        objects: the number of objects of each label in the whole dataset, skipped images included; in the labels' order.
        seconds: the duration of this run, loading the models and writing the dataset included.
        images_per_second: of this run while it annotated; skipped images do not count.
        notes: further lines, such as what a format could not hold, or which files are not named like images.
        rejected: images that a person left out of the dataset in ``text2sam app``, in the order of their paths.
    """

    done: int
    empty: int
    failed: tuple[Failure, ...]
    skipped: int
    objects: Mapping[str, int]
    seconds: float
    images_per_second: float
    notes: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "failed", tuple(sorted(self.failed, key=lambda failure: (failure.path, failure.reason))))
        object.__setattr__(self, "objects", dict(self.objects))
        object.__setattr__(self, "rejected", tuple(sorted(self.rejected)))
        object.__setattr__(self, "notes", tuple(one_line(note) for note in self.notes))

    @property
    def images(self) -> int:
        """The number of images of the job."""
        return self.done + self.empty + len(self.failed) + self.skipped + len(self.rejected)

    def table(self) -> str:
        """The report for people: plain text, no line break at the end.

        Failures come grouped by reason, the most frequent first. The JSON has them all.
        """
        counts = [
            ["done", str(self.done), "something was found"],
            ["empty", str(self.empty), "nothing was found"],
            ["failed", str(len(self.failed)), ""],
            ["skipped", str(self.skipped), "finished in an earlier run"],
        ]
        if self.rejected:
            counts.append(["rejected", str(len(self.rejected)), "left out by a person"])
        lines = [aligned(["images", str(self.images), ""], counts)]
        if self.objects:
            objects = [[_shorten(one_line(label), _LONGEST_PATH), str(n)] for label, n in self.objects.items()]
            lines.append(aligned(["objects", str(sum(self.objects.values()))], objects))
        lines.append(f"{self.seconds:.1f} s in all, {self.images_per_second:.2f} images/s while annotating")
        lines += self.notes
        return "\n".join(lines + _failures(self.failed))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, every failure included."""
        return {
            "images": self.images,
            "done": self.done,
            "empty": self.empty,
            "failed": [{"path": failure.path, "reason": failure.reason} for failure in self.failed],
            "skipped": self.skipped,
            "rejected": list(self.rejected),
            "objects": dict(self.objects),
            "seconds": float(self.seconds),
            "images_per_second": float(self.images_per_second),
            "notes": list(self.notes),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes :meth:`to_json` to a file, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_json(path, self.to_json())


def _failures(failed: Iterable[Failure]) -> list[str]:
    groups: dict[str, list[Failure]] = {}
    for failure in failed:
        groups.setdefault(failure.kind, []).append(failure)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    lines, left = [], _MOST
    for kind, members in ordered[:_MOST]:
        lines.append(f"failed, {len(members)}: {members[0].reason if len(members) == 1 else kind}")
        shown = members[: min(left, _EXAMPLES)]
        left -= len(shown)
        lines += [f"  {_shorten(one_line(failure.path), _LONGEST_PATH)}" for failure in shown]
        if len(shown) < len(members):
            lines.append(f"  {'and ' if shown else ''}{len(members) - len(shown)} more")
    rest = sum(len(members) for _, members in ordered[_MOST:])
    if rest:
        lines.append(f"failed, {rest}: for {len(ordered) - _MOST} more reasons")
    return lines


def _shorten(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = longest // 4
    return f"{text[: longest - tail - 3]}...{text[-tail:]}"
