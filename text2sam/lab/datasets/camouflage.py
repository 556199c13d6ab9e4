"""COD10K: images of camouflaged animals, with a mask of the animals in each.

Fan et al., Camouflaged Object Detection (CVPR 2020).
"""

from __future__ import annotations

import os

from text2sam.errors import InputError
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets.folder import of_masks
from text2sam.lab.datasets.sample import Dataset

HOME = "https://github.com/DengPingFan/SINet"

_NOTHING_HIDES = "-NonCAM-"


def open_cod10k(
    root: str | os.PathLike[str] | None,
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
    layout = disk.Layout(root, "COD10K", HOME)
    places = (f"{part}/Image", f"{part}Dataset/COD10K/Imgs")
    base = layout.base((".", "COD10K", "COD10K-v3"), places)
    pictures = layout.folder(base, *places)
    labels = layout.folder(base, f"{part}/GT_Object", f"{part}Dataset/COD10K/GT")
    layout.check()
    photos = {s: p for s, p in disk.files_in(pictures, disk.IMAGE_SUFFIXES).items() if _NOTHING_HIDES not in s}
    files = disk.files_in(labels, disk.LABEL_SUFFIXES)
    layout.need(f"masks in {labels}", photos, files)
    layout.check()
    masks = {label.strip(): {name: files[name] for name in photos}}
    return of_masks("cod10k", layout, photos, masks, background=background, split=split, options={"label": label})
