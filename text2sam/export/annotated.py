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

from text2sam.errors import InputError
from text2sam.types import Segmentation

MOST_PIXELS = 2**31 - 1
"""pycocotools counts in 32 bits."""


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
        _check_score(self.score)
        _check_counts(self.counts, self.size)

    @classmethod
    def from_mask(cls, label: str, mask: NDArray[np.bool_], score: float = 1.0) -> AnnotatedObject:
        """An object from its mask, (H, W) bool."""
        if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_ or not mask.size:
            raise InputError(f"mask must be a non-empty bool array of shape (H, W), not {type(mask).__name__}")
        from pycocotools import mask as coco

        rle = coco.encode(np.asfortranarray(mask, np.uint8))
        return cls(label, (mask.shape[0], mask.shape[1]), rle["counts"].decode("ascii"), float(score))

    @property
    def rle(self) -> dict[str, Any]:
        """COCO's form: ``{"size": [H, W], "counts": str}``."""
        return {"size": list(self.size), "counts": self.counts}

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, decoded anew each time."""
        from pycocotools import mask as coco

        decoded: NDArray[np.bool_] = coco.decode(self._bytes).astype(bool)
        return decoded

    @cached_property
    def area(self) -> int:
        """Number of pixels of the mask."""
        from pycocotools import mask as coco

        return int(coco.area(self._bytes))

    @cached_property
    def bbox(self) -> tuple[int, int, int, int]:
        """xywh in pixels; 0, 0, 0, 0 for an empty mask."""
        from pycocotools import mask as coco

        x, y, w, h = (int(v) for v in coco.toBbox(self._bytes))
        return (x, y, w, h) if self.area else (0, 0, 0, 0)

    @property
    def _bytes(self) -> dict[str, Any]:
        return {"size": list(self.size), "counts": self.counts.encode("ascii")}


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
        for one in self.objects:
            if one.size != (self.height, self.width):
                raise InputError(f"the mask of {one.label!r} has the size {one.size}, the image {(self.height, self.width)}")

    @classmethod
    def from_results(cls, path: str, results: Sequence[Segmentation], *, size: tuple[int, int] | None = None) -> AnnotatedImage:
        """What was found in an image, one object per instance; texts that are not there leave nothing.

        Args:
            path: as above.
            results: of one image, as ``TextPromptedSAM.segment_many`` returns them.
            size: (H, W) in pixels; needed where there are no results.
        """
        if size is None:
            if not results:
                raise InputError("without results the size of the image must be given")
            size = results[0].mask.shape[0], results[0].mask.shape[1]
        objects = [
            AnnotatedObject.from_mask(result.text, one.mask, one.score)
            for result in results
            if result.present
            for one in result.instances
        ]
        return cls(path, size[0], size[1], tuple(objects))

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
            one = _fields(item, "an object", ("label", "score", "counts"))
            objects.append(AnnotatedObject(one["label"], size, one["counts"], one["score"]))
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
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise InputError(f"{what} must be an object with the fields {', '.join(names)}")
    return value


def _check_size(size: Any) -> None:
    ok = isinstance(size, tuple) and len(size) == 2 and all(isinstance(v, int) and not isinstance(v, bool) for v in size)
    if not ok or min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"size must be (H, W) in pixels, both at least 1 and at most {MOST_PIXELS} together, not {size!r}")


def _check_score(score: Any) -> None:
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0.0 <= score <= 1.0:
        raise InputError(f"score must be a number in [0, 1], not {score!r}")


def _check_counts(counts: Any, size: tuple[int, int]) -> None:
    """Run lengths from outside go to compiled code that trusts them, so they are checked here first."""
    if not isinstance(counts, str):
        raise InputError(f"counts must be a string of compressed run lengths, not {type(counts).__name__}")
    runs: list[int] = []
    total, value, shift = 0, 0, 0
    for char in counts:
        code = ord(char) - 48
        if not 0 <= code < 64 or shift > 30:
            raise InputError("counts are not COCO's compressed run lengths")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]  # from the third run on, differences to the run before the last are written
        if value < 0:
            raise InputError("counts hold a negative run length")
        runs.append(value)
        total += value
        value, shift = 0, 0
    if shift or total != size[0] * size[1]:
        raise InputError(f"counts cover {total} pixels, the image has {size[0]} x {size[1]}")
