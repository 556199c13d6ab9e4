"""Any folder of pictures and masks."""

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
    frame: disk.Frame = "seen",
) -> Dataset:
    """A folder of pictures, ``images/<id>.jpg``, and masks, in one of three layouts:

    - ``masks/<id>.png`` and ``classes.txt``, a class a line: the first line is the class of pixels of the number 0, and so
      on; 255 is ignored. A first line ``background`` is the background. Further words after commas are synonyms.
    - ``masks/<class>/<id>.png``, a binary mask for each class that is in the picture. They may overlap.
    - ``masks/<id>.png`` with ``label`` given: binary masks of one class.

    A binary mask holds 0 and 1, or 0 to 255, of which 128 and more is on; of a palette every index but 0 is on.

    Args:
        split: a folder below ``root`` with all this; empty for ``root`` itself.
        label: the class of masks of one thing.
        images, masks: other names of the folders.
        background: whether what lies outside binary masks is a class; False ignores it. It does not matter for
            ``classes.txt``, which tells it.
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
            raise InputError("label must be the name of what the masks show, not an empty text")
        files = {label.strip(): disk.files_in(labels, disk.LABEL_SUFFIXES)} if label is not None else {}
        files |= {folder.name: disk.files_in(folder, disk.LABEL_SUFFIXES) for folder in below}
        for folder in files.values():
            layout.need(f"pictures in {pictures}", folder, photos)
        if label is not None:
            layout.need(f"masks in {labels}", photos, files[label.strip()])
        layout.check()
        return of_masks("folder", layout, photos, files, background=background, split=split, frame=frame, options=options)
    listed = layout.file(base, "classes.txt")
    layout.check()
    classes, others = _classes(listed)
    found = disk.files_in(labels, disk.LABEL_SUFFIXES)
    return layout.paired(
        "folder", classes, layout.pairs(photos, pictures, photos, labels, found),
        pixels.translation({index: index for index in range(len(classes))}), background=classes[0].lower() == "background",
        split=split, frame=frame, options=options, synonyms=others,
    )  # fmt: skip


def _classes(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    lines = [[word.strip() for word in line.split(",") if word.strip()] for line in disk.read_lines(path)]
    if not all(lines):
        raise InputError(f"{path} must have the name of a class on each line")
    if len(lines) > IGNORE:
        raise InputError(
            f"{path} has {len(lines)} classes; at most {IGNORE} are possible, as {IGNORE} stands for ignored pixels"
        )
    return tuple(line[0] for line in lines), {line[0]: tuple(line[1:]) for line in lines if len(line) > 1}


def of_masks(
    name: str,
    layout: disk.Layout,
    photos: Mapping[str, Path],
    files: Mapping[str, Mapping[str, Path]],
    *,
    background: bool,
    **fields: Any,
) -> Dataset:
    """A data set of binary masks, as :func:`open_folder` describes it.

    Args:
        name, background: of the data set.
        layout: has its root and title.
        photos: id -> picture, in order.
        files: class -> id -> mask.
        **fields: see :meth:`text2sam.lab.datasets.layout.Layout.dataset`.
    """
    pictures = list(photos.items())

    def truth(place: int) -> dict[str, Any]:
        masks = {thing: found[pictures[place][0]] for thing, found in files.items() if pictures[place][0] in found}
        return {
            "read_instances": lambda _: [
                i for i in (Instance(n, pixels.read_mask(p)) for n, p in masks.items()) if i.mask.any()
            ],
            "label_path": next(iter(masks.values())) if len(masks) == 1 else None,
        }

    classes = disk.with_background(tuple(files), background)
    return layout.dataset(name, classes, pictures, truth, background=background, **fields)
