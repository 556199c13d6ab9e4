"""Any folder of images and masks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from text2sam.errors import InputError
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets import pixels
from text2sam.lab.datasets.sample import IGNORE, Dataset, Instance

HOME = "your own folder: images/, masks/, and classes.txt with a name on each line, or label='...' for masks of one thing"


def open_folder(
    root: str | os.PathLike[str] | None,
    split: str = "",
    *,
    label: str | None = None,
    images: str = "images",
    masks: str = "masks",
    background: bool = True,
) -> Dataset:
    """Images, ``images/<id>.jpg``, and masks in one of three layouts:

    - ``masks/<id>.png`` with class numbers, and ``classes.txt`` with a class per line, from number 0; 255 is ignored. The first
      class may be ``background``. The text after a comma is ignored.
    - ``masks/<class>/<id>.png``, a binary mask for each class in the image. Masks may overlap.
    - ``masks/<id>.png`` with ``label``: binary masks of one class.

    See :func:`~text2sam.lab.datasets.pixels.read_mask` for binary masks.

    Args:
        split: a folder below ``root`` with one of the layouts; empty for ``root`` itself.
        label: the class of the masks in the third layout.
        images, masks: other names of the folders.
        background: for binary masks: whether the other pixels are a class; False ignores them.
    """
    layout = disk.Layout(root, "folder", HOME)
    base = layout.root / split
    pictures, labels = layout.folder(base, images), layout.folder(base, masks)
    layout.check()
    photos = disk.files_in(pictures, disk.IMAGE_SUFFIXES)
    options = {"label": label, "images": images, "masks": masks}
    below = disk.folders_in(labels) if label is None else []
    if label is not None or (below and not (base / "classes.txt").is_file()):
        if label is not None and not label.strip():
            raise InputError("label must be the class of the masks, not an empty text")
        files = {label.strip(): disk.files_in(labels, disk.LABEL_SUFFIXES)} if label is not None else {}
        files |= {folder.name: disk.files_in(folder, disk.LABEL_SUFFIXES) for folder in below}
        for folder in files.values():
            layout.need(f"pictures in {pictures}", folder, photos)
        if label is not None:
            layout.need(f"masks in {labels}", photos, files[label.strip()])
        layout.check()
        return of_masks("folder", layout, photos, files, background=background, split=split, options=options)
    listed = layout.file(base, "classes.txt")
    layout.check()
    classes = _classes(listed)
    return layout.paired(
        "folder", classes, pixels.translation({index: index for index in range(len(classes))}), (pictures, photos),
        (labels, disk.files_in(labels, disk.LABEL_SUFFIXES)), background=classes[0].lower() == "background",
        split=split, options=options,
    )  # fmt: skip


def _classes(path: Path) -> tuple[str, ...]:
    classes = tuple(line.partition(",")[0].strip() for line in disk.read_lines(path))
    if not all(classes):
        raise InputError(f"{path} must have the name of a class on each line")
    if len(classes) > IGNORE:
        raise InputError(
            f"{path} has {len(classes)} classes; at most {IGNORE} are possible, since {IGNORE} stands for ignored pixels"
        )
    return classes


def of_masks(
    name: str,
    layout: disk.Layout,
    photos: Mapping[str, Path],
    files: Mapping[str, Mapping[str, Path]],
    *,
    background: bool,
    **fields: Any,
) -> Dataset:
    """A data set of binary masks, see :func:`open_folder`.

    Args:
        name, background: see :class:`~text2sam.lab.datasets.sample.Dataset`.
        layout: its root and title.
        photos: id -> image file, in order.
        files: class -> id -> mask.
        **fields: see :meth:`text2sam.lab.datasets.layout.Layout.dataset`.
    """
    pictures = list(photos.items())

    def truth(place: int) -> dict[str, Any]:
        masks = {label: paths[pictures[place][0]] for label, paths in files.items() if pictures[place][0] in paths}
        return {
            "read_instances": lambda _: [
                i for i in (Instance(n, pixels.read_mask(p)) for n, p in masks.items()) if i.mask.any()
            ],
            "label_path": next(iter(masks.values())) if len(masks) == 1 else None,
        }

    classes = disk.with_background(tuple(files), background)
    return layout.dataset(name, classes, pictures, truth, background=background, **fields)
