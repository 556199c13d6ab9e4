"""PNG pictures: a binary one per text, an indexed label map, a map of instances."""

from __future__ import annotations

import io
import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.exporter import Exporter
from text2sam.files import atomic_path, write_bytes, write_json, write_png
from text2sam.paint import voc_palette

_MOST = 65_535  # labels, and objects of an image, that 16 bits hold
_LONGEST_NAME = 40


class PngExporter(Exporter):
    """Pictures of the size of the images.

    - ``masks/a/b.jpg/002-cat.png``, for each label there is in the image: 255 where one of its objects is, else 0. The
      name has the label's number and what of its letters is safe in a file name.
    - ``labels/a/b.png``: indexed, the number of the label at each pixel, 0 for background; palette as in PASCAL VOC. With
      more than 255 labels it is 16-bit grey.
    - ``instances/a/b.png``: 16-bit grey, the number of the object at each pixel, 0 for background.
    - ``labels.json``: number (from 1), name and colour of each label.
    - ``index.json``: for each image its path, size, files, and objects with number, label and score.

    Where objects overlap the one with the higher score lies above, of equals the earlier one. Objects that lose pixels to
    another are counted.

    Of two images that differ in the suffix only, the later one's maps are named in full (``b.png.png``) and counted.
    """

    spools = 1
    format = "png"

    @staticmethod
    def names_of(path: str) -> tuple[str, ...]:
        """``.png`` for the image's suffix, or after it; in the folder of each map."""
        return (f"{os.path.splitext(path)[0]}.png", f"{path}.png")

    def _prepare(self, image: AnnotatedImage) -> Any:
        if max(len(image.objects), len(self.labels)) > _MOST:
            raise InputError(
                f"{image.path!r} has {len(image.objects)} objects of {len(self.labels)} labels, 16 bits hold {_MOST}"
            )

    def _write(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], name: str, prepared: Any) -> None:
        entry: dict[str, Any] = {
            "path": image.path,
            "height": image.height,
            "width": image.width,
            "masks": {label: self._union(image, objects, label) for label in sorted({item.label for item in objects})},
            "labels": f"labels/{name}",
            "instances": f"instances/{name}",
        }
        numbers, classes = np.zeros((2, image.height, image.width), np.uint16)
        for number, item in sorted(enumerate(objects, 1), key=lambda pair: (pair[1].score, -pair[0])):  # the highest last
            mask = item.mask
            numbers[mask], classes[mask] = number, self._ids[item.label] + 1
        if len(self.labels) < 256:
            write_bytes(self._path(entry["labels"]), _indexed(classes.astype(np.uint8), voc_palette(len(self.labels) + 1)))
        else:
            write_png(self._path(entry["labels"]), classes)
        write_png(self._path(entry["instances"]), numbers)
        shown = np.bincount(numbers.ravel(), minlength=len(objects) + 1)[1:].tolist()
        self._counts["hidden"] += shown.count(0)
        self._counts["overlaps"] += sum(0 < count < item.area for count, item in zip(shown, objects, strict=True))
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


def _indexed(classes: NDArray[np.uint8], colours: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(classes)
    picture.putpalette(np.vstack([colours, np.zeros((256 - len(colours), 3), np.uint8)]).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
