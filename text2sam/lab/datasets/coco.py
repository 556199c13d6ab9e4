"""COCO 2017.

Lin et al., Microsoft COCO (ECCV 2014). Objects are polygons, and run lengths where ``iscrowd`` is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.export.annotated import check_relative
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets.layout import Root
from text2sam.lab.datasets.sample import TASKS, Dataset, Instance
from text2sam.rle import check_runs, parse_counts, unroll


@dataclass(frozen=True, eq=False)
class _Picture:
    file: str
    shape: tuple[int, int]
    objects: list[tuple[str, bool, Any]]  # class, crowd, segmentation as in the file


def open_coco(
    root: Root,
    split: str = "val2017",
    *,
    background: bool = True,
    annotations: str | None = None,
    images: str | None = None,
) -> Dataset:
    """COCO objects, 80 classes; or any data set in that format.

    Layout: ``annotations/instances_<split>.json``, and images in ``<split>/`` or ``images/<split>/``.

    Crowds are labels of an image, but not in its masks, and ignored in its class map outside of other objects. In a class map
    the smallest of overlapping objects is on top.

    Args:
        split: ``"val2017"`` (5,000 images) or ``"train2017"``.
        background: False ignores pixels without an object in class maps.
        annotations, images: other paths of the JSON file and of the folder of images, relative to ``root``.
    """
    disk.check_split(split)
    layout = disk.Layout(root, "COCO", "https://cocodataset.org/#download (val2017.zip and annotations_trainval2017.zip)")
    base = layout.base((".", "coco", "COCO"), (f"annotations/instances_{split}.json", split, f"images/{split}"))
    listed = layout.file(base, annotations or f"annotations/instances_{split}.json")
    folder = layout.folder(base, *([images] if images else [split, f"images/{split}"]))
    layout.check()
    categories, pictures = _index(disk.read_json(listed), listed)
    layout.need(f"pictures in {folder}", (p.file for p in pictures if not (folder / p.file).is_file()), {})
    layout.check()

    def truth(place: int) -> dict[str, Any]:
        picture = pictures[place]
        where = f"the annotations of {picture.file} in {listed}"
        return {
            "read_instances": lambda shape: _instances(picture, shape, where),
            "read_labels": lambda: (name for name, _, _ in picture.objects),  # without decoding a mask
            "label_path": listed,
        }

    files = [(p.file.rpartition(".")[0] or p.file, folder / p.file) for p in pictures]
    options = {"annotations": annotations, "images": images}
    return layout.dataset(
        "coco", disk.with_background(categories, background), files, truth,
        background=background, tasks=TASKS, split=split, options=options,
    )  # fmt: skip


def read_annotations(path: Path) -> tuple[tuple[str, ...], dict[str, Callable[[], list[Instance]]]]:
    """The categories of a file in COCO's format, and image name -> function that decodes its objects.

    Raises:
        InputError: the file is missing or not in COCO's format.
    """
    categories, pictures = _index(disk.read_json(path), path)
    return categories, {p.file: partial(_instances, p, p.shape, f"the annotations of {p.file} in {path}") for p in pictures}


def _index(content: Any, path: Path) -> tuple[tuple[str, ...], list[_Picture]]:
    """Names of the categories and the images, in the order of their ids; everything but segmentations is checked."""
    parts = []
    for key in ("categories", "images", "annotations"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{path} is not in COCO's format: it needs a list {key!r} of objects")
        parts.append(entries)
    categories: dict[int, str] = {}
    for entry in parts[0]:
        number, name = _whole(entry, "id", "a category", path), entry.get("name")
        if not isinstance(name, str) or not name.strip() or number in categories:
            raise InputError(f"category {number} of {path} must have a name and occur once; its name is {name!r}")
        categories[number] = name.strip()
    images: dict[int, _Picture] = {}
    for entry in parts[1]:
        number = _whole(entry, "id", "an image", path)
        h, w = (_whole(entry, side, f"image {number}", path) for side in ("height", "width"))
        if number in images or min(h, w) < 1:
            raise InputError(f"image {number} of {path} must occur once and have pixels; its size is {h} x {w}")
        try:
            file = check_relative(entry.get("file_name"))
        except InputError as error:
            raise InputError(f"file_name of image {number} in {path}: {error}") from error
        images[number] = _Picture(file, (h, w), [])
    for entry in parts[2]:
        image, category = (_whole(entry, key, "an annotation", path) for key in ("image_id", "category_id"))
        crowd = entry.get("iscrowd", 0)
        if image not in images or category not in categories or crowd not in (0, 1):
            raise InputError(
                f"annotation {entry.get('id')!r} of {path} must have the image_id and category_id of an image and a category "
                f"in the file, and iscrowd 0 or 1, not {image}, {category} and {crowd!r}"
            )
        images[image].objects.append((categories[category], bool(crowd), entry.get("segmentation")))
    return tuple(categories[number] for number in sorted(categories)), [images[number] for number in sorted(images)]


def _whole(entry: dict[str, Any], key: str, what: str, path: Path) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise InputError(f"{key} of {what} in {path} must be a whole number of at least 0, not {str(value)[:80]}")
    return value


def _instances(picture: _Picture, shape: tuple[int, int], where: str) -> list[Instance]:
    if picture.shape != shape:
        raise InputError(
            f"{where} are for {picture.shape[0]} x {picture.shape[1]} pixels (height x width), the picture has {shape[0]} x "
            f"{shape[1]}" + ("; try frame='stored'" if picture.shape == shape[::-1] else "")
        )
    return [Instance(name, _decode(segments, shape, name, where), crowd) for name, crowd, segments in picture.objects]


def _decode(segmentation: Any, shape: tuple[int, int], name: str, where: str) -> NDArray[np.bool_]:
    """(H, W) bool from polygons or run lengths."""
    if isinstance(segmentation, list) and segmentation:
        return _fill(segmentation, shape, name, where)
    if not isinstance(segmentation, dict) or segmentation.get("size") != list(shape):
        given = f"of size {segmentation.get('size')}" if isinstance(segmentation, dict) else str(segmentation)
        raise InputError(
            f"{where}: the segmentation of a {name!r} must be polygons, or run lengths of size {list(shape)}, not {given[:80]}"
        )
    counts: Any = segmentation.get("counts")
    try:
        return unroll(parse_counts(counts, shape) if isinstance(counts, str) else check_runs(counts, shape), shape)
    except InputError as error:
        raise InputError(f"{where}: the run lengths of a {name!r}: {error}") from error


def _fill(polygons: Sequence[Any], shape: tuple[int, int], name: str, where: str) -> NDArray[np.bool_]:
    h, w = shape
    for polygon in polygons:
        ok = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        ok = ok and all(type(v) in (int, float) for v in polygon)
        # pycocotools traces every edge, so distant points need unlimited memory; NaN fails this too
        ok = ok and all(-w <= x <= 2 * w for x in polygon[::2]) and all(-h <= y <= 2 * h for y in polygon[1::2])
        if not ok:
            raise InputError(
                f"{where}: a polygon of a {name!r} must be x, y, x, y, ... of at least three points near the image of "
                f"{h} x {w} pixels, not {str(polygon)[:80]}"
            )
    from pycocotools import mask as coco

    merged = coco.merge(coco.frPyObjects(polygons, h, w))
    return unroll(parse_counts(merged["counts"].decode("ascii"), shape), shape)
