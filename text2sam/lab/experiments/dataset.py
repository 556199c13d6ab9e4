"""An annotated data set against a true one, both in COCO's format: what was found, missed, wrongly found; and the masks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.lab.datasets.coco import read_annotations
from text2sam.lab.datasets.sample import Instance
from text2sam.lab.output import reporting
from text2sam.recipes.choose import mask_iou
from text2sam.tables import aligned


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
    """Compares data sets by the file names of their images; labels of the annotated one count, the last row is all of them.

    Args:
        found: JSON in COCO's format.
        truth: the same; masks are run lengths or polygons.

    Raises:
        InputError: a file is not in COCO's format, a label is not in the true set, or there is no common image.
    """
    names, mine = read_annotations(found)
    others, theirs = read_annotations(truth)
    unknown = [name for name in names if name not in others]
    if unknown:
        raise InputError(f"{str(truth)!r} has no label {unknown[0]!r}; it has {', '.join(others)}")
    at = {name.rpartition("/")[2]: objects for name, objects in theirs.items()}
    common = [(objects, at[name.rpartition("/")[2]]) for name, objects in mine.items() if name.rpartition("/")[2] in at]
    if not common:
        raise InputError(f"{str(found)!r} and {str(truth)!r} have no image of the same file name")
    ious: dict[str, list[float]] = defaultdict(list)
    wrong = dict.fromkeys(names, 0)
    for found_objects, true_objects in common:
        masks, truths = _unions(found_objects()), _unions(true_objects())
        for name in names:
            if name not in truths:
                wrong[name] += name in masks
            else:
                ious[name].append(float(mask_iou(masks[name], truths[name])) if name in masks else -1.0)
    rows = [_row(name, ious[name], wrong[name]) for name in names]
    return [*rows, _row("all", [value for name in names for value in ious[name]], sum(wrong.values()))]


def _row(label: str, ious: list[float], wrong: int) -> Row:
    hits = [value for value in ious if value >= 0]
    mean = float(np.mean(hits)) if hits else None
    return Row(label, len(ious), len(hits), wrong, mean, sum(hits) / len(ious) if ious else None)


def _unions(objects: list[Instance]) -> dict[str, NDArray[np.bool_]]:
    unions: dict[str, NDArray[np.bool_]] = {}
    for each in objects:
        unions[each.label] = unions[each.label] | each.mask if each.label in unions else each.mask
    return unions


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
