"""An annotated data set against a true one, both in COCO's format: what was found, missed, wrongly found; and the masks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from text2sam.errors import InputError
from text2sam.lab.datasets.coco import read_annotations
from text2sam.lab.datasets.sample import Instance, unions
from text2sam.lab.output import reporting
from text2sam.recipes.choose import mask_iou
from text2sam.tables import aligned

_Objects: TypeAlias = Callable[[], list[Instance]]


@dataclass(frozen=True)
class Row:
    """The figures of one label, or of all.

    Attributes:
        label: its name.
        there: images that show it.
        found: of these, images in which it was found.
        wrong: images without it in which it was found all the same.
        iou: mean IoU of its union in the images where it is and was found; None where there is none.
        iou_there: likewise, with 0 where it was not found.
    """

    label: str
    there: int
    found: int
    wrong: int
    iou: float | None
    iou_there: float | None

    @property
    def missed(self) -> int:
        """Images that show it, in which it was not found."""
        return self.there - self.found


def compare(found: Path, truth: Path) -> list[Row]:
    """Compares data sets; labels of the annotated one count, the last row is all of them.

    Images are the same whose ``file_name`` is, or else its last part.

    Args:
        found: JSON in COCO's format.
        truth: the same; masks are run lengths or polygons.

    Raises:
        InputError: a file is not in COCO's format, a label is not in the true set, there is no common image, one could be
            several of the other set's, or differs from it in size.
    """
    names, mine = read_annotations(found)
    others, theirs = read_annotations(truth)
    unknown = [name for name in names if name not in others]
    if unknown:
        raise InputError(f"{str(truth)!r} has no label {unknown[0]!r}; it has {', '.join(others)}")
    common = _same_images(mine, theirs)
    if not common:
        raise InputError(f"{str(found)!r} and {str(truth)!r} have no image of the same file name")
    ious: dict[str, list[float]] = defaultdict(list)
    wrong = dict.fromkeys(names, 0)
    for image, objects, true_objects in common:
        masks, truths = unions(objects()), unions(true_objects())
        if len(shapes := {mask.shape for mask in (*masks.values(), *truths.values())}) > 1:
            raise InputError(f"the masks of {image!r} are of different sizes: {sorted(shapes)} as (height, width)")
        for name in names:
            if name not in truths:
                wrong[name] += name in masks
            else:
                ious[name].append(float(mask_iou(masks[name], truths[name])) if name in masks else -1.0)
    rows = [_row(name, ious[name], wrong[name]) for name in names]
    return [*rows, _row("all", [value for name in names for value in ious[name]], sum(wrong.values()))]


def _same_images(mine: Mapping[str, _Objects], theirs: Mapping[str, _Objects]) -> list[tuple[str, _Objects, _Objects]]:
    """The name of each common image, and what makes its objects in both sets."""
    pairs = {name: name for name in mine if name in theirs}
    rest, others = ([name for name in names if name not in pairs] for names in (mine, theirs))
    counts = [Counter(map(_last, names)) for names in (rest, others)]
    at = {_last(name): name for name in others}
    for name in rest:
        last = _last(name)
        if last in at and (counts[0][last] > 1 or counts[1][last] > 1):
            raise InputError(f"{last!r} is the name of several images; name images with their folders, alike in both sets")
        if last in at:
            pairs[name] = at[last]
    return [(name, mine[name], theirs[pairs[name]]) for name in mine if name in pairs]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _row(label: str, ious: list[float], wrong: int) -> Row:
    hits = [value for value in ious if value >= 0]
    mean = float(np.mean(hits)) if hits else None
    return Row(label, len(ious), len(hits), wrong, mean, sum(hits) / len(ious) if ious else None)


def main_command(found: Path, truth: Path, out: Path | None, json_output: bool) -> None:
    """Compares and reports."""
    with reporting(_table, out, json_output) as report:
        rows = compare(found, truth)
        report({"found": str(found), "truth": str(truth), "labels": [{**asdict(row), "missed": row.missed} for row in rows]})


def _table(result: dict[str, Any]) -> str:
    head = ["label", "there", "found", "missed", "wrong", "IoU where found", "IoU where there"]
    shown = [
        [
            row["label"],
            *(str(row[k]) for k in ("there", "found", "missed", "wrong")),
            _number(row["iou"]),
            _number(row["iou_there"]),
        ]
        for row in result["labels"]
    ]
    return aligned(head, shown)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
