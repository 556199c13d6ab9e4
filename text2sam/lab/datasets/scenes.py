"""ADE20K-150 and ImageNet-S50.

- Zhou et al., Scene Parsing through ADE20K (CVPR 2017): the 150 classes of the scene parsing challenge. 0 in a label file
  stands for all other classes and is ignored.
- Gao et al., Large-scale Unsupervised Semantic Segmentation (TPAMI 2022), arXiv 2106.03149: the number of a class is red +
  256 * green. 0 stands for all other classes, 1000 is ignored, and class k is the k-th folder by name.
"""

from __future__ import annotations

import os

from text2sam.errors import InputError
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets import names, pixels
from text2sam.lab.datasets.sample import Dataset

ADE_HOME = "http://sceneparsing.csail.mit.edu/ (ADEChallengeData2016.zip)"
IMAGENET_S_HOME = "https://github.com/LUSSeg/ImageNet-S"

_IGNORED_THERE = 1000


def open_ade(root: str | os.PathLike[str] | None, split: str = "validation") -> Dataset:
    """ADE20K, the 150 classes of the scene parsing challenge.

    Layout: ``images/<split>/<id>.jpg`` and ``annotations/<split>/<id>.png`` in the folder or its ``ADEChallengeData2016/``.

    Args:
        split: ``"training"`` or ``"validation"`` (2,000 images).
    """
    disk.check_split(split, ("training", "validation"))
    layout = disk.Layout(root, "ADE20K-150", ADE_HOME)
    base = layout.base(("ADEChallengeData2016", "."), (f"images/{split}", f"annotations/{split}"))
    pictures, labels = layout.folder(base, f"images/{split}"), layout.folder(base, f"annotations/{split}")
    layout.check()
    photos, masks = disk.files_in(pictures, disk.IMAGE_SUFFIXES), disk.files_in(labels, disk.LABEL_SUFFIXES)
    table = pixels.translation(pixels.counted(len(names.ADE), False))
    return layout.paired("ade", names.ADE, table, (pictures, photos), (labels, masks), split=split)


def open_imagenet_s(root: str | os.PathLike[str] | None, split: str = "validation", *, background: bool = True) -> Dataset:
    """ImageNet-S50: 50 classes and a background.

    Layout: ``<split>/<wnid>/<id>.JPEG`` and ``<split>-segmentation/<wnid>/<id>.png`` in the folder or its ``ImageNetS50/``.

    Args:
        split: ``"validation"`` (752 images) or ``"train-semi"``; the test labels are not public.
        background: False ignores pixels of other classes.

    Raises:
        InputError: there are folders of other classes, as in ImageNet-S300.
    """
    disk.check_split(split, ("validation", "train-semi"))
    layout = disk.Layout(root, "ImageNet-S50", IMAGENET_S_HOME)
    base = layout.base(("ImageNetS50", "."), (split, f"{split}-segmentation"))
    pictures, labels = layout.folder(base, split), layout.folder(base, f"{split}-segmentation")
    layout.check()
    folders, marked = ({f.name: f for f in disk.folders_in(folder)} for folder in (pictures, labels))
    strange = sorted((folders.keys() | marked.keys()) - names.IMAGENET_S50.keys())
    if strange:
        raise InputError(
            f"{base} has the folder {strange[0]!r}, which is none of ImageNet-S50's 50 classes; ImageNet-S300 and ImageNet-S, "
            "whose classes have other numbers, are not supported"
        )
    layout.need(f"folders in {pictures}", names.IMAGENET_S50, folders)
    layout.need(f"folders in {labels}", names.IMAGENET_S50, marked)
    layout.check()
    photos = {
        f"{wnid}/{s}": p for wnid in sorted(folders) for s, p in disk.files_in(folders[wnid], disk.IMAGE_SUFFIXES).items()
    }
    masks = {f"{wnid}/{s}": p for wnid in sorted(marked) for s, p in disk.files_in(marked[wnid], (".png",)).items()}
    numbers = pixels.counted(len(names.IMAGENET_S50), background)
    table = pixels.translation(numbers, _IGNORED_THERE + 1, ignored=_IGNORED_THERE)
    classes = disk.with_background(tuple(names.IMAGENET_S50.values()), background)
    return layout.paired(
        "imagenet-s50", classes, table, (pictures, photos), (labels, masks), background=background, split=split,
        colour="number",
    )  # fmt: skip
