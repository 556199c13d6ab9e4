"""COD10K: pictures of animals that are hard to see, with a mask of what hides in each.

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
    frame: disk.Frame = "seen",
) -> Dataset:
    """COD10K, the pictures in which something hides.

    Two layouts, in the folder, its ``COD10K/`` or ``COD10K-v3/``: the authors', ``Test/Image/<id>.jpg`` and
    ``Test/GT_Object/<id>.png``, where pictures with ``NonCAM`` in their name are left out; and that of SINet's test sets,
    ``TestDataset/COD10K/Imgs`` and ``TestDataset/COD10K/GT``. Others of those (CAMO, NC4K) can be read as ``folder``.

    Args:
        split: ``"test"`` (2,026 pictures) or ``"train"``.
        label: what to call that which hides.
        background: False ignores all other pixels in class maps.
    """
    if not label.strip():
        raise InputError("label must say what hides in the pictures, not be an empty text")
    part = disk.check_split(split, ("train", "test")).capitalize()
    layout = disk.Layout(root, "COD10K", HOME)
    places = (f"{part}/Image", f"{part}Dataset/COD10K/Imgs")
    base = layout.base((".", "COD10K", "COD10K-v3"), places)
    pictures = layout.folder(base, *places)
    labels = layout.folder(base, f"{part}/GT_Object", f"{part}Dataset/COD10K/GT")
    layout.check()
    photos = {s: p for s, p in disk.files_in(pictures, disk.IMAGE_SUFFIXES).items() if _NOTHING_HIDES not in s}
    found = disk.files_in(labels, disk.LABEL_SUFFIXES)
    layout.need(f"masks in {labels}", photos, found)
    layout.check()
    masks = {label.strip(): {name: found[name] for name in photos}}
    return of_masks("cod10k", layout, photos, masks, background=background, split=split, frame=frame, options={"label": label})
