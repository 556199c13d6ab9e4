"""``text2sam evaluate dataset``: compares an annotated data set with the truth, both in COCO's format."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from text2sam.errors import InputError
from text2sam.lab.datasets.coco import read_annotations
from text2sam.lab.datasets.sample import Instance, unions
from text2sam.recipes.choose import mask_iou
from text2sam.tables import aligned

_Objects: TypeAlias = Callable[[], list[Instance]]


def compare(found: Path, truth: Path) -> list[dict[str, Any]]:
    """The figures of each label of the annotated data set, and a last row for all of them.

    Both files are JSON in COCO's format. Images are matched by ``file_name``, or else by its last part.

    Returns:
        JSON-ready rows with ``label``; ``there``, the number of images that show it; ``found`` and ``missed``, the numbers of
        these in which it was found and not found; ``wrong``, the number of other images in which it was found; ``iou``, the
        mean IoU of the unions of its masks over the images in ``found``; ``iou_there``, the same over the images in ``there``,
        with 0 where it was not found. Both are None without an image.

    Raises:
        InputError: a file is not in COCO's format, the truth lacks a label, no image is in both, or an image matches several
            or has another size.
    """
    names, images = read_annotations(found)
    true_names, true_images = read_annotations(truth)
    unknown = [name for name in names if name not in true_names]
    if unknown:
        raise InputError(f"{str(truth)!r} has no label {unknown[0]!r}; it has {', '.join(true_names)}")
    common = _same_images(images, true_images)
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
    """The name of each common image, and the functions that return its objects in both data sets."""
    pairs = {name: name for name in mine if name in theirs}
    rest, others = ([name for name in names if name not in pairs] for names in (mine, theirs))
    counts = [Counter(map(_last, names)) for names in (rest, others)]
    at = {_last(name): name for name in others}
    for name in rest:
        last = _last(name)
        if last in at and (counts[0][last] > 1 or counts[1][last] > 1):
            raise InputError(f"{last!r} is the name of several images; use the same names with folders in both data sets")
        if last in at:
            pairs[name] = at[last]
    return [(name, mine[name], theirs[pairs[name]]) for name in mine if name in pairs]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _row(label: str, ious: list[float], wrong: int) -> dict[str, Any]:
    hits = [value for value in ious if value >= 0]
    counts = {"there": len(ious), "found": len(hits), "missed": len(ious) - len(hits), "wrong": wrong}
    means = {"iou": float(np.mean(hits)) if hits else None, "iou_there": sum(hits) / len(ious) if ious else None}
    return {"label": label, **counts, **means}


def report(found: Path, truth: Path) -> dict[str, Any]:
    """``found``, ``truth`` and ``labels``, the rows of :func:`compare`; JSON-ready."""
    return {"found": str(found), "truth": str(truth), "labels": compare(found, truth)}


def table(result: dict[str, Any]) -> str:
    """The result of :func:`report` as text."""
    head = ["label", "there", "found", "missed", "wrong", "IoU where found", "IoU where there"]
    counts, ious = ("there", "found", "missed", "wrong"), ("iou", "iou_there")
    return aligned(
        head,
        [
            [row["label"], *(str(row[k]) for k in counts), *("-" if row[k] is None else f"{row[k]:.3f}" for k in ious)]
            for row in result["labels"]
        ],
    )
