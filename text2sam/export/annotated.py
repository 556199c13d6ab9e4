"""One model of an annotated image, which every format is written from.

Masks are kept as COCO's compressed run lengths: a folder of a million objects fits in a file of lines, and an exporter
decodes one mask at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.mask import toBbox

from text2sam.checks import check_number
from text2sam.errors import InputError
from text2sam.rle import pack_counts, parse_counts, roll, unroll
from text2sam.types import Segmentation

MOST_PIXELS = 2**29 - 1
"""pycocotools shifts 5 bits a character in 32-bit integers: run lengths of more than six characters overflow there."""


@dataclass(frozen=True)
class AnnotatedObject:
    """One object of an image.

    Attributes:
        label: the name of its class.
        size: (H, W) of the image in pixels.
        counts: COCO's compressed run lengths of the mask, column by column, as a str.
        score: in [0, 1].

    Raises:
        InputError: a field is not of the kind above, or the run lengths do not fill the size exactly.
    """

    label: str
    size: tuple[int, int]
    counts: str
    score: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) or not self.label:
            raise InputError(f"label must be a non-empty string, not {self.label!r}")
        _check_size(self.size)
        object.__setattr__(self, "score", check_number("score", self.score, 0, 1))
        _runs(self.counts, self.size)

    @classmethod
    def from_mask(cls, label: str, mask: NDArray[np.bool_], score: float = 1.0) -> AnnotatedObject:
        """An object from its mask, (H, W) bool."""
        if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_ or not mask.size:
            raise InputError(f"mask must be a non-empty bool array of shape (H, W), not {type(mask).__name__}")
        return cls(label, (mask.shape[0], mask.shape[1]), pack_counts(roll(mask)), float(score))

    @property
    def rle(self) -> dict[str, Any]:
        """COCO's form: ``{"size": [H, W], "counts": str}``."""
        return {"size": list(self.size), "counts": self.counts}

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, decoded anew each time."""
        return unroll(_runs(self.counts, self.size), self.size)

    @cached_property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return int(_runs(self.counts, self.size)[1::2].sum())

    @cached_property
    def bbox(self) -> tuple[int, int, int, int]:
        """xywh in pixels; 0, 0, 0, 0 for an empty mask."""
        x, y, width, height = toBbox(self.rle).astype(int).tolist()
        return x, y, width, height


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file and the objects in it.

    Attributes:
        path: of the file, relative to the folder of images, with ``/`` between its parts; never leaves that folder.
        height, width: in pixels, of the image as a person sees it (EXIF rotation applied).
        objects: highest score first within a label.

    Raises:
        InputError: a field is not of the kind above, or an object's mask has another size.
    """

    path: str
    height: int
    width: int
    objects: tuple[AnnotatedObject, ...] = ()

    def __post_init__(self) -> None:
        check_relative(self.path)
        _check_size((self.height, self.width))
        if not isinstance(self.objects, tuple) or not all(isinstance(o, AnnotatedObject) for o in self.objects):
            raise InputError("objects must be a tuple of AnnotatedObject")
        for item in self.objects:
            if item.size != (self.height, self.width):
                raise InputError(f"the mask of {item.label!r} has the size {item.size}, the image {(self.height, self.width)}")

    @classmethod
    def from_results(cls, path: str, results: Sequence[Segmentation]) -> AnnotatedImage:
        """What was found in an image, one object per instance; texts that are not there leave nothing.

        Args:
            path: as above.
            results: of one image, as ``TextPromptedSAM.segment_many`` returns them; at least one.
        """
        if not results:
            raise InputError("results must be at least one; AnnotatedImage(path, height, width) is an image without objects")
        height, width = results[0].mask.shape
        objects = [
            AnnotatedObject.from_mask(result.text, instance.mask, instance.score)
            for result in results
            if result.present
            for instance in result.instances
        ]
        return cls(path, height, width, tuple(objects))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` reads it back."""
        objects = [{"label": o.label, "score": o.score, "counts": o.counts} for o in self.objects]
        return {"path": self.path, "height": self.height, "width": self.width, "objects": objects}

    @classmethod
    def from_json(cls, value: Any) -> AnnotatedImage:
        """What :meth:`to_json` wrote.

        Raises:
            InputError: it is anything else.
        """
        entry = _fields(value, "an image", ("path", "height", "width", "objects"))
        size = (entry["height"], entry["width"])
        if not isinstance(entry["objects"], list):
            raise InputError("the objects of an image must be a list")
        objects = []
        for item in entry["objects"]:
            fields = _fields(item, "an object", ("label", "score", "counts"))
            objects.append(AnnotatedObject(fields["label"], size, fields["counts"], fields["score"]))
        return cls(entry["path"], *size, tuple(objects))


def check_relative(path: Any) -> str:
    """A relative path with ``/`` between its parts that stays in its folder, as it is.

    Raises:
        InputError: it is anything else.
    """
    ok = isinstance(path, str) and bool(path) and "\0" not in path and "\\" not in path
    if ok:
        parts = PurePosixPath(path).parts
        ok = bool(parts) and not path.startswith("/") and ".." not in parts and "/".join(parts) == path
        ok = ok and not (len(parts[0]) == 2 and parts[0][1] == ":")  # a drive
    if not ok:
        raise InputError(f"path must be relative, with '/' between its parts and without '..', not {path!r}")
    return str(path)


def _fields(value: Any, what: str, names: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise InputError(f"{what} must be an object with the fields {', '.join(names)}")
    return value


def _check_size(size: Any) -> None:
    ok = isinstance(size, tuple) and len(size) == 2 and all(isinstance(v, int) and not isinstance(v, bool) for v in size)
    if not ok or min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"size must be (H, W) in pixels, both at least 1 and at most {MOST_PIXELS} together, not {size!r}")


def _runs(counts: Any, size: tuple[int, int]) -> NDArray[np.int64]:
    runs = parse_counts(counts, size)
    if not runs[1:].all():  # misleads pycocotools' bounding box
        raise InputError("counts hold a run length of 0 after the first")
    return runs
