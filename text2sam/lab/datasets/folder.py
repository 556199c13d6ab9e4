"""Any folder of images and masks, and COD10K (Fan et al., Camouflaged Object Detection, CVPR 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from text2sam.errors import InputError
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets.layout import Root
from text2sam.lab.datasets.pixels import read_mask
from text2sam.lab.datasets.sample import Dataset, Instance

HOME = "your own folder: images/, masks/, and classes.txt with a name on each line, or label='...' for masks of one thing"


def open_folder(
    root: Root,
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
    classes = tuple(line.partition(",")[0].strip() for line in disk.read_lines(listed))
    if not all(classes):
        raise InputError(f"{listed} must have the name of a class on each line")
    background = classes[0].lower() == "background"
    return layout.paired("folder", classes, pictures, labels, background=background, split=split, options=options)


def open_cod10k(
    root: Root,
    split: str = "test",
    *,
    label: str = "camouflaged animal",
    background: bool = True,
) -> Dataset:
    """COD10K, the images with camouflaged animals.

    Two layouts, in the folder, its ``COD10K/`` or ``COD10K-v3/``: the authors', ``Test/Image/<id>.jpg`` and
    ``Test/GT_Object/<id>.png``, without images that have ``NonCAM`` in their name; and SINet's test sets,
    ``TestDataset/COD10K/Imgs`` and ``TestDataset/COD10K/GT``. ``folder`` reads its other test sets (CAMO, NC4K).

    Args:
        split: ``"test"`` (2,026 images) or ``"train"``.
        label: the text for the animals.
        background: False ignores all other pixels in class maps.
    """
    if not label.strip():
        raise InputError("label must be a text for the animals, and not be an empty text")
    part = disk.check_split(split, ("train", "test")).capitalize()
    layout = disk.Layout(root, "COD10K", "https://github.com/DengPingFan/SINet")
    places = (f"{part}/Image", f"{part}Dataset/COD10K/Imgs")
    base = layout.base((".", "COD10K", "COD10K-v3"), places)
    pictures = layout.folder(base, *places)
    labels = layout.folder(base, f"{part}/GT_Object", f"{part}Dataset/COD10K/GT")
    layout.check()
    photos = {s: p for s, p in disk.files_in(pictures, disk.IMAGE_SUFFIXES).items() if "-NonCAM-" not in s}
    files = disk.files_in(labels, disk.LABEL_SUFFIXES)
    layout.need(f"masks in {labels}", photos, files)
    layout.check()
    masks = {label.strip(): {name: files[name] for name in photos}}
    return of_masks("cod10k", layout, photos, masks, background=background, split=split, options={"label": label})


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
            "read_instances": lambda _: [i for i in (Instance(n, read_mask(p)) for n, p in masks.items()) if i.mask.any()],
            "label_path": next(iter(masks.values())) if len(masks) == 1 else None,
        }

    classes = disk.with_background(tuple(files), background)
    return layout.dataset(name, classes, pictures, truth, background=background, **fields)
