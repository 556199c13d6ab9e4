"""Data sets and their samples, whose files are read on first access."""

from __future__ import annotations

import dataclasses
import hashlib
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import check_number
from text2sam.errors import InputError

IGNORE = 255
"""Value of ignored pixels in a class map; classes have the indices 0 to 254."""

Task = Literal["recognition", "semantic", "explainability", "instances"]
TASKS: tuple[Task, ...] = get_args(Task)
"""Kinds of ground truth: the classes in an image; the class of each pixel; a mask per class in the image; a mask per object."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One annotated object."""

    label: str
    mask: NDArray[np.bool_]  # (H, W)
    crowd: bool = False  # whether the mask covers many objects (COCO's ``iscrowd``); it is then ignored


def unions(instances: Iterable[Instance]) -> dict[str, NDArray[np.bool_]]:
    """Label -> (H, W) bool, the union of its objects, crowds included."""
    masks: dict[str, NDArray[np.bool_]] = {}
    for instance in instances:
        masks[instance.label] = masks.get(instance.label, np.False_) | instance.mask
    return masks


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its ground truth.

    Each property is read on first access and then kept, so do not keep lists of samples. A file that is missing, broken or does
    not fit the image raises an ImageError or InputError that names it.
    """

    id: str  # unique in its data set, the same on every machine
    classes: tuple[str, ...]  # in the order of the indices in semantic
    background: bool  # whether the first class is the background
    read_image: Callable[[], NDArray[np.uint8]]  # (H, W, 3) RGB
    read_semantic: Callable[[], NDArray[Any]] | None = None  # (H, W) integers, class indices or IGNORE; None without class maps
    read_instances: Callable[[tuple[int, int]], Sequence[Instance]] | None = None  # (H, W) -> objects; None without objects
    read_labels: Callable[[], Iterable[str]] | None = None  # in any order; None derives them from the objects or the class map
    path: Path | None = None  # the image file; None for a drawn image
    label_path: Path | None = None  # for messages

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB.

        Raises:
            ImageError: the file is missing, broken or no image.
        """
        return self.read_image()

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the image in pixels."""
        h, w = self.image.shape[:2]
        return h, w

    @cached_property
    def semantic(self) -> NDArray[np.int32]:
        """(H, W) int32, the index in :attr:`classes` of each pixel, or :data:`IGNORE`.

        Where objects overlap, the smallest is on top; pixels of crowds only are ignored.

        Raises:
            InputError: the data set has no masks, or the map has another size than the image.
            ImageError: a file cannot be read.
        """
        values: NDArray[Any] = self._painted() if self.read_semantic is None else self.read_semantic()
        self._check_size(values.shape, "the class map")
        return values.astype(np.int32, copy=False)

    @cached_property
    def instances(self) -> tuple[Instance, ...]:
        """The objects, in the order of the data set.

        Raises:
            InputError: the data set has no objects, or a mask has another size than the image.
            ImageError: a file cannot be read.
        """
        if self.read_instances is None:
            raise InputError(f"sample {self.id!r} has no objects; its data set has no instance masks")
        instances = tuple(self.read_instances(self.shape))
        for instance in instances:
            self._check_size(instance.mask.shape, f"the mask of a {instance.label!r}")
        return instances

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The classes that the image shows, without the background, in the order of :attr:`classes`; crowds included."""
        if self.read_labels is not None:
            names = set(self.read_labels())
        elif self.read_instances is not None:
            names = {instance.label for instance in self.instances}
        else:
            names = {self.classes[i] for i in np.unique(self.semantic).tolist() if i != IGNORE}
        return tuple(name for name in self.classes[self.background :] if name in names)

    @cached_property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Class -> (H, W) bool, not empty, without the background; unions of objects, without crowds, may overlap."""
        if self.read_instances is None:
            return {name: self.semantic == self.classes.index(name) for name in self.labels}
        masks = unions(i for i in self.instances if not i.crowd and i.mask.any())
        return {name: masks[name] for name in self.labels if name in masks}

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """(H, W) bool, the ignored pixels."""
        ignored: NDArray[np.bool_] = self.semantic == IGNORE
        return ignored

    @property
    def _name(self) -> str:
        return f"sample {self.id!r}" + (f" ({self.label_path})" if self.label_path else "")

    def _check_size(self, shape: Sequence[int], what: str) -> None:
        if tuple(shape) != self.shape:
            h, w = self.shape
            turned = "; if the image has an EXIF rotation that the labels ignore, use frame='stored'"
            raise InputError(
                f"{what} of {self._name} is {shape[0]} x {shape[1]} pixels (height x width), its picture {h} x {w}"
                + (turned if self.path and tuple(shape) == (w, h) else "")
            )

    def _painted(self) -> NDArray[np.int32]:
        if self.read_instances is None:
            raise InputError(f"sample {self.id!r} has no class map; its data set has only labels of images")
        canvas = np.full(self.shape, 0 if self.background else IGNORE, np.int32)
        for instance in sorted(self.instances, key=lambda i: (not i.crowd, -int(i.mask.sum()))):  # stable
            canvas[instance.mask] = IGNORE if instance.crowd else self.classes.index(instance.label)
        return canvas


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with a fixed order of samples.

    Raises:
        InputError: there is no sample, there are too many classes, or a name occurs twice.
    """

    name: str  # that text2sam.lab.datasets.open_dataset takes
    title: str  # the name in tables
    classes: tuple[str, ...]  # as in the benchmark, in the order of the class maps
    background: bool  # whether the first class is the background
    tasks: tuple[Task, ...]  # the kinds of ground truth
    ids: Sequence[str]  # in order
    make: Callable[[int], Sample]  # index -> sample, without reading a file
    split: str = ""
    root: Path | None = None  # None for drawn images
    homepage: str = ""  # where to get it
    options: Mapping[str, Any] = field(default_factory=dict)  # of the reader, JSON-ready
    wording: Mapping[str, str] = field(default_factory=dict)  # class -> text to query instead of its name

    def __post_init__(self) -> None:
        if not self.ids:
            raise InputError(f"{self.title} has no images in {self.root}" + (f" for split {self.split!r}" * bool(self.split)))
        title = self.title if self.root is None else f"{self.title} in {self.root}"
        if not 1 <= len(self.classes) <= IGNORE:
            raise InputError(
                f"{title} has {len(self.classes)} classes; 1 to {IGNORE} are possible, since {IGNORE} stands for ignored pixels"
            )
        for kind, names in (("classes", self.classes), ("samples", self.ids)):
            if len(set(names)) != len(names):
                [(twice, _)] = Counter(names).most_common(1)
                raise InputError(f"the {kind} of {title} must have different names; {twice!r} occurs twice")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: SupportsIndex) -> Sample:
        place = operator.index(position)
        if not -len(self) <= place < len(self):
            raise IndexError(f"{self.title} has {len(self)} samples and no index {place}")
        return self.make(place % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return (self.make(place) for place in range(len(self)))

    @property
    def foreground(self) -> tuple[str, ...]:
        """The classes without the background."""
        return self.classes[self.background :]

    def require(self, task: Task) -> None:
        """Checks that the data set has the ground truth of a task.

        Raises:
            InputError: it does not.
        """
        if task not in self.tasks:
            raise InputError(f"{self.title} cannot be used for {task!r}; it can be used for {', '.join(self.tasks)}")

    def describe(self) -> dict[str, Any]:
        """The attributes, JSON-ready, with ``samples``, their number, and ``ids_sha256``, a hash of the ids in order."""
        return {
            "name": self.name,
            "title": self.title,
            "split": self.split,
            "root": None if self.root is None else str(self.root),
            "homepage": self.homepage,
            "samples": len(self),
            "ids_sha256": hashlib.sha256("\n".join(self.ids).encode("utf-8", "surrogatepass")).hexdigest(),
            "classes": list(self.classes),
            "background": self.background,
            "tasks": list(self.tasks),
            "options": dict(self.options),
        }


def subset(dataset: Dataset, limit: int | None = None, seed: int | None = None) -> Dataset:
    """A subset of a data set, in its order.

    A seed ranks samples by a hash of seed and id. So the choice is the same everywhere, does not depend on the other samples,
    and grows with the limit.

    Args:
        limit: largest number of samples; None takes all.
        seed: seed of the choice; None takes the first samples.

    Raises:
        InputError: ``limit`` is not an integer >= 1, or ``seed`` not an integer >= 0.
    """
    for name, value, least in (("limit", limit, 1), ("seed", seed, 0)):
        if value is not None:
            check_number(name, value, least, whole=True)
    if limit is None or limit >= len(dataset):
        return dataset
    if seed is None:
        chosen = list(range(limit))
    else:
        ranks = [hashlib.sha256(f"{seed}:{sample}".encode("utf-8", "surrogatepass")).digest() for sample in dataset.ids]
        chosen = sorted(sorted(range(len(dataset)), key=ranks.__getitem__)[:limit])
    make = dataset.make
    return dataclasses.replace(
        dataset,
        ids=tuple(dataset.ids[place] for place in chosen),
        make=lambda place: make(chosen[place]),
        options={**dataset.options, "limit": int(limit), "subset_seed": None if seed is None else int(seed)},
    )
