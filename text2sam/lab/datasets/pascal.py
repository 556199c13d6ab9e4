"""PASCAL VOC 2012 and PASCAL Context.

- Everingham et al., The PASCAL Visual Object Classes Challenge (IJCV 2015). Label files are palettes: 0 is the background, 1
  to 20 are the classes, 255 is the border of objects, which is ignored.
- Mottaghi et al., The Role of Context (CVPR 2014), on the images of VOC 2010: 59 classes, and 0 for all others.
"""

from __future__ import annotations

import os
from pathlib import Path

from text2sam.errors import InputError
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets import names, pixels
from text2sam.lab.datasets.sample import IGNORE, Dataset

VOC_HOME = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
CONTEXT_HOME = "https://cs.stanford.edu/~roozbeh/pascal-context/"

_CONTEXT_SPELLINGS = {"bedcloth": "bedclothes", "clothes": "cloth", "diningtable": "table"}


def open_voc(
    root: str | os.PathLike[str] | None,
    split: str = "val",
    *,
    background: bool = True,
    labels: str = "SegmentationClass",
) -> Dataset:
    """PASCAL VOC 2012, segmentation: 20 classes and background.

    Layout: ``JPEGImages/<id>.jpg``, ``SegmentationClass/<id>.png`` and ``ImageSets/Segmentation/<split>.txt`` in the folder,
    its ``VOC2012/`` or ``VOCdevkit/VOC2012/``.

    Args:
        split: name of a list; ``"val"`` has 1,449 images.
        background: False ignores background pixels ("VOC20").
        labels: folder of the label files; ``"SegmentationClassAug"`` is its usual name with SBD's labels.
    """
    disk.check_split(split)
    disk.check_split(labels)
    layout = disk.Layout(root, "PASCAL VOC 2012", VOC_HOME)
    base = layout.base(("VOCdevkit/VOC2012", "VOC2012", "."), ("JPEGImages", labels, "ImageSets"))
    pictures, masks = layout.folder(base, "JPEGImages"), layout.folder(base, labels)
    listed = layout.file(base, f"ImageSets/Segmentation/{split}.txt")
    layout.check()
    photos, labelled = disk.files_in(pictures, disk.IMAGE_SUFFIXES), disk.files_in(masks, disk.LABEL_SUFFIXES)
    classes = disk.with_background(names.VOC, background)
    table = pixels.translation(pixels.counted(len(names.VOC), background))
    return layout.paired(
        "voc", classes, table, (pictures, photos), (masks, labelled), ids=disk.read_ids(listed), background=background,
        split=split, options={"labels": labels},
    )  # fmt: skip


def open_context(root: str | os.PathLike[str] | None, split: str = "val", *, background: bool = False) -> Dataset:
    """PASCAL Context, 59 classes.

    Two layouts, in the folder, its ``VOC2010/`` or ``VOCdevkit/VOC2010/``, both with ``JPEGImages/<id>.jpg``:

    - MMSegmentation's: ``SegmentationClassContext/<id>.png`` with the classes in alphabetical order, and
      ``ImageSets/SegmentationContext/<split>.txt``;
    - the authors': ``59_context_labels/<id>.png`` in the order of ``59_labels.txt`` (lines ``number: name``); the list may also
      be that of VOC 2010, ``ImageSets/Main/<split>.txt``.

    In both, 0 stands for all other classes. The classes of the data set are in alphabetical order.

    Args:
        split: name of a list; ``"val"`` has 5,105 images (5,104 in some lists).
        background: True makes all other pixels a class ("Context 60").
    """
    disk.check_split(split)
    layout = disk.Layout(root, "PASCAL Context", CONTEXT_HOME)
    marks = ("JPEGImages", "SegmentationClassContext", "59_context_labels", "ImageSets")
    base = layout.base(("VOCdevkit/VOC2010", "VOC2010", "."), marks)
    pictures = layout.folder(base, "JPEGImages")
    masks = layout.folder(base, "SegmentationClassContext", "59_context_labels")
    own = masks.name == "59_context_labels"  # the authors' layout
    listed = layout.file(base, f"ImageSets/SegmentationContext/{split}.txt", *([f"ImageSets/Main/{split}.txt"] if own else []))
    legend = layout.file(base, "59_labels.txt", "59_context_labels/59_labels.txt") if own else None
    layout.check()
    photos, labelled = disk.files_in(pictures, disk.IMAGE_SUFFIXES), disk.files_in(masks, disk.LABEL_SUFFIXES)
    numbers = pixels.counted(len(names.CONTEXT), background)
    if legend is not None:
        order = _legend(legend)
        numbers = {0: numbers[0]} | {number: numbers[1 + names.CONTEXT.index(name)] for number, name in order.items()}
    classes, table = disk.with_background(names.CONTEXT, background), pixels.translation(numbers)
    return layout.paired(
        "context", classes, table, (pictures, photos), (masks, labelled), ids=disk.read_ids(listed), background=background,
        split=split, options={"labels": masks.name},
    )  # fmt: skip


def _legend(path: Path) -> dict[int, str]:
    """Number -> class, from lines ``number: name``."""
    known = {name.replace(" ", ""): name for name in names.CONTEXT}
    classes: dict[int, str] = {}
    for line in disk.read_lines(path):
        number, colon, name = line.partition(":")
        plain = name.replace(" ", "").lower()
        plain = _CONTEXT_SPELLINGS.get(plain, plain)
        if not colon or not number.strip().isascii() or not number.strip().isdigit():
            raise InputError(f"{path} must have lines such as '1: aeroplane', not {line[:80]!r}")
        if int(number) == 0:
            continue
        if plain not in known or not 1 <= int(number) < IGNORE or int(number) in classes:
            raise InputError(f"{path} has the line {line[:80]!r}; each of the 59 classes must occur once, with its number")
        classes[int(number)] = known[plain]
    if sorted(classes.values()) != sorted(names.CONTEXT):
        raise InputError(f"{path} has {len(set(classes.values()))} of the 59 classes; each must occur once, with its number")
    return classes
