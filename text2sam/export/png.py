"""PNG pictures: a binary one per text, an indexed label map, a map of instances."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.exporter import Exporter, stem_of
from text2sam.files import atomic_path, write_bytes, write_json, write_png
from text2sam.paint import voc_palette

KINDS = ("masks", "labels", "instances")
"""The pictures there are; see :class:`PngExporter`."""

_MOST_LABELS = 255
_MOST_OBJECTS = 65_535
_LONGEST_NAME = 40


class PngExporter(Exporter):
    """Pictures of the size of the images.

    - ``masks/a/b.jpg/002-cat.png``, for each label there is in the image: 255 where one of its objects is, else 0. The
      name has the label's number and what of its letters is safe in a file name.
    - ``labels/a/b.png``: indexed, the number of the label at each pixel, 0 for background; palette as in PASCAL VOC.
    - ``instances/a/b.png``: 16-bit grey, the number of the object at each pixel, 0 for background.
    - ``labels.json``: number (from 1), name and colour of each label.
    - ``index.json``: for each image its path, size, files, and objects with number, label and score.

    Where objects overlap the one with the higher score lies above, of equals the earlier one. Objects that lose pixels to
    another (in ``labels``: to one of another label) are counted, and without ``instances`` those that are merged with one
    of their label.

    Of two images that differ in the suffix only, the later one's maps are named in full (``b.png.png``) and counted.

    Args:
        out, labels, images_root: see :class:`Exporter`.
        kinds: the pictures wanted, of :data:`KINDS`.

    Raises:
        InputError: labels or kinds are not usable, or a label map is wanted of more than 255 labels.
    """

    spools = 1
    format = "png"

    def __init__(
        self,
        out: str | os.PathLike[str],
        labels: Sequence[str],
        images_root: str | os.PathLike[str] | None = None,
        *,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        if isinstance(kinds, str) or not kinds or set(kinds) - set(KINDS):
            raise InputError(f"kinds must be some of {', '.join(KINDS)}, not {kinds!r}")
        if "labels" in kinds and len(labels) > _MOST_LABELS:
            raise InputError(f"a label map holds {_MOST_LABELS} labels, not {len(labels)}; leave 'labels' out of kinds")
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        super().__init__(out, labels, images_root)

    @staticmethod
    def names_of(path: str) -> tuple[str, ...]:
        """``.png`` for the image's suffix, or after it; in the folder of each map."""
        return (f"{stem_of(path)}.png", f"{path}.png")

    def _prepare(self, image: AnnotatedImage) -> Any:
        if "instances" in self.kinds and len(image.objects) > _MOST_OBJECTS:
            raise InputError(f"{image.path!r} has {len(image.objects)} objects, 16 bits hold {_MOST_OBJECTS}")

    def _write(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], name: str, prepared: Any) -> None:
        size = (image.height, image.width)
        entry: dict[str, Any] = {"path": image.path, "height": image.height, "width": image.width}
        if "masks" in self.kinds:
            entry["masks"] = {label: self._union(image, objects, label) for label in sorted({item.label for item in objects})}
        numbers = np.zeros(size, np.uint16)
        classes = np.zeros(size, np.uint8 if len(self.labels) <= _MOST_LABELS else np.uint16)
        shown: dict[int, int] = {}
        for number, item in reversed(_above(objects)):
            mask = item.mask
            numbers[mask], classes[mask] = number, self._ids[item.label] + 1
        for number, item in enumerate(objects, 1):
            mask = item.mask
            own = [numbers == number] if "instances" in self.kinds else []
            own += [classes == self._ids[item.label] + 1] if "labels" in self.kinds else []
            shown[number] = min((int((mask & there).sum()) for there in own), default=item.area)
        if "labels" in self.kinds:
            entry["labels"] = f"labels/{name}"
            write_bytes(self._path(entry["labels"]), _indexed(classes.astype(np.uint8), voc_palette(len(self.labels) + 1)))
        if "instances" in self.kinds:
            entry["instances"] = f"instances/{name}"
            write_png(self._path(entry["instances"]), numbers)
        else:
            self._counts["merged"] += len(objects) - len({item.label for item in objects})
        self._counts["hidden"] += sum(not count for count in shown.values())
        self._counts["overlaps"] += sum(0 < shown[i] < item.area for i, item in enumerate(objects, 1))
        entry["objects"] = [{"id": i, "label": item.label, "score": float(item.score)} for i, item in enumerate(objects, 1)]
        self._spools[0].write(entry)

    def _union(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], label: str) -> str:
        mask = np.zeros((image.height, image.width), np.bool_)
        for item in objects:
            if item.label == label:
                mask |= item.mask
        name = f"masks/{image.path}/{self._ids[label] + 1:03d}-{safe(label)}.png"
        write_png(self._path(name), mask)
        return name

    def _finish(self) -> None:
        colours = voc_palette(len(self.labels) + 1).tolist()
        table = [{"id": i, "name": name, "colour": colours[i]} for i, name in enumerate(self.labels, 1)]
        write_json(self._path("labels.json"), table)
        with atomic_path(self._path("index.json")) as temporary, open(temporary, "wb") as file:
            self._spools[0].copy_to(file)
            file.write(b"\n")


def safe(label: str) -> str:
    """What of a label can stand in a file name on any system: ASCII letters, digits and ``_``, at most 40 characters."""
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_")[:_LONGEST_NAME] or "label"


def _above(objects: tuple[AnnotatedObject, ...]) -> list[tuple[int, AnnotatedObject]]:
    """Objects with their numbers, the one on top first."""
    return sorted(enumerate(objects, 1), key=lambda item: -item[1].score)


def _indexed(classes: NDArray[np.uint8], colours: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(classes)
    picture.putpalette(np.vstack([colours, np.zeros((256 - len(colours), 3), np.uint8)]).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
