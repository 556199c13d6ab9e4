"""Any folder of pictures and masks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from text2sam.errors import InputError
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets import names
from text2sam.lab.datasets.pairs import paired, with_background
from text2sam.lab.datasets.sample import IGNORE, Dataset, Instance, Sample

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
        root: the folder.
        split: a folder below ``root`` with all this; empty for ``root`` itself.
        label: the class of masks of one thing.
        images, masks: other names of the folders.
        background: whether what lies outside binary masks is a class; False ignores it. It does not matter for
            ``classes.txt``, which tells it.
        frame: what masks lie over where a picture has an EXIF rotation.

    Raises:
        MissingDataError: a piece is missing.
        InputError: an option or a list is not as it should be.
    """
    title = "folder"
    disk.check_frame(frame)
    layout = disk.Layout(root, title, HOME)
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
        return _binary(layout, split, photos, files, background, frame, options)
    listed = layout.file(base, "classes.txt")
    layout.check()
    classes, others = _classes(listed)
    found = disk.files_in(labels, disk.LABEL_SUFFIXES)
    layout.need(f"masks in {labels}", photos, found)
    layout.check()
    first = classes[0].lower() == "background"
    return paired(
        "folder", title, "", classes, first, {name: (photos[name], found[name]) for name in photos},
        disk.translation({index: index for index in range(len(classes))}), root=layout.root, split=split, frame=frame,
        options=options, synonyms=others,
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


def _binary(
    layout: disk.Layout,
    split: str,
    photos: Mapping[str, Path],
    files: Mapping[str, Mapping[str, Path]],
    background: bool,
    frame: str,
    options: Mapping[str, object],
) -> Dataset:
    ids = tuple(photos)
    things = tuple(files)
    classes = with_background(things, background)

    def make(place: int) -> Sample:
        photo = ids[place]
        masks = {name: files[name][photo] for name in things if photo in files[name]}
        return Sample(
            photo,
            classes,
            background,
            read_image=lambda: disk.read_picture(photos[photo], frame),
            read_shape=lambda: disk.picture_shape(photos[photo], frame),
            read_instances=lambda _: [i for i in (Instance(n, disk.read_mask(p)) for n, p in masks.items()) if i.mask.any()],
            path=photos[photo],
            label_path=next(iter(masks.values())) if len(masks) == 1 else None,
        )

    return Dataset(
        "folder", layout.title, classes, background, ("recognition", "semantic", "explainability"), ids, make,
        split=split, root=layout.root, options={"background": background, "frame": frame, **options},
        synonyms=names.synonyms(classes),
    )  # fmt: skip
