"""What every data set gives: samples that decode nothing before they are asked, and the set around them."""

from __future__ import annotations

import dataclasses
import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.types import box_of

IGNORE = 255
"""Value in a class map of pixels that count for nothing; classes have the indexes 0 to 254."""

Task = Literal["recognition", "semantic", "explainability", "instances"]
TASKS: tuple[Task, ...] = get_args(Task)
"""What a data set can be used for: which classes are in the picture; the class of each pixel; a mask for each class that
is in the picture; a mask for each object."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One annotated object.

    Attributes:
        label: its class.
        mask: (H, W) bool.
        crowd: whether it is many objects under one mask (COCO's ``iscrowd``), which counts neither for nor against.
    """

    label: str
    mask: NDArray[np.bool_]
    crowd: bool = False

    @property
    def box(self) -> NDArray[np.float32] | None:
        """(4,) float32 xyxy in pixels, right and lower edge exclusive; None where the mask is empty."""
        return box_of(self.mask)


def unions(instances: Iterable[Instance]) -> dict[str, NDArray[np.bool_]]:
    """Label -> (H, W) bool, the objects of that name together, crowds included."""
    found: dict[str, NDArray[np.bool_]] = {}
    for each in instances:
        found[each.label] = found[each.label] | each.mask if each.label in found else each.mask
    return found


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture and what is known of it.

    Nothing is read before an attribute is asked for; then it is kept as long as the sample. So keep no list of samples.
    Whatever an attribute reads, a file that is missing, broken or contradicts the picture raises an error that names it.

    Attributes:
        id: unique in its data set, the same on every machine.
        classes: names, in the order of the indexes in :attr:`semantic`.
        background: whether the first of the classes is "none of the others".
        path: the picture's file; None where it is drawn.
        label_path: the file with its labels, for messages.
        read_image: gives (H, W, 3) uint8 RGB.
        read_shape: gives (H, W) without decoding; None where only the picture itself can tell.
        read_semantic: gives (H, W) integers, indexes of classes or :data:`IGNORE`; None where there is no class map.
        read_instances: the same for objects, from (H, W).
        read_labels: the same for names of classes, in any order; None where they follow from the others.
    """

    id: str
    classes: tuple[str, ...]
    background: bool
    read_image: Callable[[], NDArray[np.uint8]] = field(repr=False)
    read_shape: Callable[[], tuple[int, int]] | None = field(default=None, repr=False)
    read_semantic: Callable[[], NDArray[Any]] | None = field(default=None, repr=False)
    read_instances: Callable[[tuple[int, int]], Sequence[Instance]] | None = field(default=None, repr=False)
    read_labels: Callable[[], Iterable[str]] | None = field(default=None, repr=False)
    path: Path | None = None
    label_path: Path | None = None

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB.

        Raises:
            ImageError: the file is missing, broken or no image.
        """
        return self.read_image()

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the picture in pixels; mostly from the file's head alone.

        Raises:
            ImageError: as :attr:`image`.
        """
        if self.read_shape is not None and "image" not in self.__dict__:
            return self.read_shape()
        h, w = self.image.shape[:2]
        return h, w

    @cached_property
    def semantic(self) -> NDArray[np.int32]:
        """(H, W) int32, the index in :attr:`classes` of each pixel, or :data:`IGNORE`.

        Of objects that overlap the smallest is what one sees, and where there is only a crowd the pixel is ignored.

        Raises:
            InputError: the data set has no masks; the map has another size than the picture, or other values.
            ImageError: a file cannot be read.
        """
        if self.read_semantic is None:
            values: NDArray[Any] = self._painted()
        else:
            values = self.read_semantic()
        if values.ndim != 2 or values.dtype.kind not in "iu":
            raise InputError(f"the class map of {self._name} must be (H, W) integers, not {values.dtype} {values.shape}")
        self._check_size(values.shape, "the class map")
        wrong = np.unique(values[((values < 0) | (values >= len(self.classes))) & (values != IGNORE)])
        if wrong.size:
            shown = ", ".join(map(str, wrong[:5].tolist()))
            raise InputError(
                f"the class map of {self._name} holds {shown}; there are {len(self.classes)} classes, so 0 to "
                f"{len(self.classes) - 1} and {IGNORE} (ignored) are expected"
            )
        return values.astype(np.int32, copy=False)

    @cached_property
    def instances(self) -> tuple[Instance, ...]:
        """The objects, in the order of the data set.

        Raises:
            InputError: the data set knows no objects; a mask has another size than the picture, or an unknown class.
            ImageError: a file cannot be read.
        """
        if self.read_instances is None:
            raise InputError(f"sample {self.id!r} has no objects; its data set does not tell one object from the other")
        found = tuple(self.read_instances(self.shape))
        for instance in found:
            if instance.label not in self.classes:
                raise InputError(
                    f"{self._name} has an object of the class {instance.label!r}, which the data set does not have"
                )
            self._check_size(instance.mask.shape, f"the mask of a {instance.label!r}")
        return found

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes that are in the picture, background apart, in the order of :attr:`classes`.

        A crowd is there, too; it has a label here, and no mask in :attr:`masks`.

        Raises:
            InputError, ImageError: as :attr:`semantic`, :attr:`instances`; or a name is none of the classes.
        """
        if self.read_labels is not None:
            names = set(self.read_labels())
        elif self.read_instances is not None:
            names = {instance.label for instance in self.instances}
        else:
            names = {self.classes[i] for i in np.unique(self.semantic).tolist() if i != IGNORE}
        unknown = sorted(names - set(self.classes))
        if unknown:
            raise InputError(f"{self._name} has the label {unknown[0]!r}, which is none of the data set's classes")
        return tuple(name for name in self.classes[self.background :] if name in names)

    @cached_property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Name -> (H, W) bool, every pixel of that class, background apart; only classes that have a pixel.

        Where objects are known, these are unions of theirs, crowds apart, and can overlap.

        Raises:
            InputError, ImageError: as :attr:`semantic`, :attr:`instances`.
        """
        if self.read_instances is not None:
            found = unions(i for i in self.instances if not i.crowd and i.mask.any())
            return {name: found[name] for name in self.classes[self.background :] if name in found}
        values = self.semantic
        present = set(np.unique(values).tolist()) - {IGNORE}
        first = int(self.background)
        return {name: values == i for i, name in enumerate(self.classes) if i >= first and i in present}

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """(H, W) bool, pixels that count for nothing.

        Raises:
            InputError, ImageError: as :attr:`semantic`.
        """
        ignored: NDArray[np.bool_] = self.semantic == IGNORE
        return ignored

    @property
    def _name(self) -> str:
        return f"sample {self.id!r}" + (f" ({self.label_path})" if self.label_path else "")

    def _check_size(self, shape: Sequence[int], what: str) -> None:
        if tuple(shape) != self.shape:
            h, w = self.shape
            turned = "; the picture may carry an EXIF rotation its labels do not know of: try frame='stored'"
            raise InputError(
                f"{what} of {self._name} is {shape[0]} x {shape[1]} pixels (height x width), its picture {h} x {w}"
                + (turned if self.path and tuple(shape) == (w, h) else "")
            )

    def _painted(self) -> NDArray[np.int32]:
        if self.read_instances is None:
            raise InputError(f"sample {self.id!r} has no class map; its data set knows only which labels are in a picture")
        canvas = np.full(self.shape, 0 if self.background else IGNORE, np.int32)
        for instance in sorted(self.instances, key=lambda i: (not i.crowd, -int(i.mask.sum()))):  # stable
            canvas[instance.mask] = IGNORE if instance.crowd else self.classes.index(instance.label)
        return canvas


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: a fixed order of samples, and what its figures depend on.

    Attributes:
        name: as :func:`text2sam.lab.datasets.open_dataset` takes it.
        title: as people write it.
        classes: names as the benchmarks have them; their order is that of the class maps.
        background: whether the first class is "none of the others".
        tasks: what it can be used for, of :data:`TASKS`.
        ids: of the samples, in order.
        make: position -> sample; reads nothing.
        split: which part of it; empty where there are none.
        root: where it lies; None where it is drawn.
        homepage: where it can be had.
        options: everything else the reader was told, JSON-ready.
        wording: class -> the words to ask for it with, where its name reads badly.
        synonyms: class -> other words for it.

    Raises:
        InputError: there are no samples, too many classes, or names are given twice.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    background: bool
    tasks: tuple[Task, ...]
    ids: Sequence[str] = field(repr=False)
    make: Callable[[int], Sample] = field(repr=False)
    split: str = ""
    root: Path | None = None
    homepage: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    wording: Mapping[str, str] = field(default_factory=dict, repr=False)
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.ids:
            raise InputError(f"{self.title} has no pictures in {self.root}" + (f" for split {self.split!r}" * bool(self.split)))
        if not 1 <= len(self.classes) <= IGNORE:
            raise InputError(
                f"{self.title} has {len(self.classes)} classes; 1 to {IGNORE} are possible, as {IGNORE} in a class map is "
                "for ignored pixels"
            )
        for what, names in (("classes", self.classes), ("samples", self.ids)):
            if len(set(names)) != len(names):
                seen: set[str] = set()
                twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
                raise InputError(f"the {what} of {self.title} must have different names; {twice!r} is there twice")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: SupportsIndex) -> Sample:
        place = operator.index(position)
        if not -len(self) <= place < len(self):
            raise IndexError(f"{self.title} has {len(self)} samples; there is no number {place}")
        return self.make(place % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return (self.make(place) for place in range(len(self)))

    @property
    def foreground(self) -> tuple[str, ...]:
        """The classes without the background."""
        return self.classes[self.background :]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The words to ask for each class with, in the order of :attr:`classes`: its name, or :attr:`wording`'s."""
        return tuple(self.wording.get(name, name) for name in self.classes)

    def require(self, task: Task) -> None:
        """Passes where the data set can be used for a task.

        Raises:
            InputError: it cannot; the message says what it is good for.
        """
        if task not in self.tasks:
            raise InputError(f"{self.title} cannot be used for {task!r}; it is good for {', '.join(self.tasks)}")

    def describe(self) -> dict[str, Any]:
        """What its figures depend on, JSON-ready.

        Returns:
            ``name``, ``title``, ``split``, ``root``, ``homepage``, ``samples`` (their number), ``ids_sha256`` (of the ids,
            one a line: two runs with the same one saw the same samples in the same order), ``classes``, ``background``,
            ``tasks`` and ``options``.
        """
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
    """A part of a data set, in its order.

    A seed ranks samples by a hash of seed and id, so that the choice is the same on every machine and version, a larger
    limit takes all a smaller one does, and it does not depend on what else is in the set.

    Args:
        dataset: the whole.
        limit: at most so many; None takes all.
        seed: chooses which; None takes the first ones.

    Raises:
        InputError: ``limit`` is not a whole number of at least 1, or ``seed`` none of at least 0.
    """
    for name, value, least in (("limit", limit, 1), ("seed", seed, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least):
            raise InputError(f"{name} must be a whole number of at least {least}, or None, not {value!r}")
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
