"""ISPRS Potsdam: orthophotos of 6000 x 6000 pixels of 5 cm.

Rottensteiner et al., ISPRS 2D Semantic Labeling Contest. Labels are colours: impervious surfaces white, building blue, low
vegetation cyan, tree green, car yellow, clutter red; black, between objects, is ignored.
"""

from __future__ import annotations

import os

from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets import names, pixels
from text2sam.lab.datasets.sample import IGNORE, Dataset

HOME = "https://www.isprs.org/education/benchmarks/UrbanSemLab/ (2_Ortho_RGB.zip and 5_Labels_all_noBoundary.zip)"

_AREAS = {
    "train": [f"{row}_{column}" for row in (2, 3, 4, 5) for column in (10, 11, 12)]
    + [f"{row}_{column}" for row in (6, 7) for column in range(7, 13)],
    "test": ["2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13"],
}
_CORNERS = (7, 4, 6, 2, 3, 1)  # number of the colour of each class of names.POTSDAM: red 1, green 2, blue 4


def open_potsdam(root: str | os.PathLike[str] | None, split: str = "test", *, clutter: bool = True) -> Dataset:
    """ISPRS Potsdam, 6 classes.

    Layout: ``2_Ortho_RGB/top_potsdam_<area>_RGB.tif``, and ``5_Labels_all_noBoundary/top_potsdam_<area>_label_noBoundary.tif``
    or ``5_Labels_all/top_potsdam_<area>_label.tif``, in the folder or its ``Potsdam/``. CLIP needs tiles for images of this
    size: ``text2sam evaluate semantic potsdam --tiles auto``.

    Args:
        split: ``"train"`` (24 areas) or ``"test"`` (14).
        clutter: False ignores the sixth class, all other pixels.
    """
    disk.check_split(split, tuple(_AREAS))
    layout = disk.Layout(root, "ISPRS Potsdam", HOME)
    maps = {"5_Labels_all_noBoundary": "_label_noBoundary", "5_Labels_all": "_label"}
    base = layout.base((".", "Potsdam"), ("2_Ortho_RGB", *maps))
    pictures, labels = layout.folder(base, "2_Ortho_RGB"), layout.folder(base, *maps)
    layout.check()
    photos = disk.files_in(pictures, disk.IMAGE_SUFFIXES, ending="_RGB")
    masks = disk.files_in(labels, disk.LABEL_SUFFIXES, ending=maps[labels.name])
    ids = [f"top_potsdam_{area}" for area in _AREAS[split]]
    classes = names.POTSDAM if clutter else names.POTSDAM[:-1]
    numbers = {0: IGNORE} | {n: i if i < len(classes) else IGNORE for i, n in enumerate(_CORNERS)}
    return layout.paired(
        "potsdam", classes, pixels.translation(numbers), (pictures, photos), (labels, masks), ids=ids, split=split,
        colour="corner", options={"clutter": clutter, "labels": labels.name},
        wording={"impervious surfaces": "road"},
    )  # fmt: skip
