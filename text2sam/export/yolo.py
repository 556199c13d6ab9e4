"""YOLO segmentation: ``labels/*.txt`` and ``data.yaml``, as ultralytics reads them."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from text2sam.decode import open_picture, pillow_errors
from text2sam.errors import ImageError, InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.exporter import Exporter, inside
from text2sam.export.outlines import inset, one_polygon, outlines
from text2sam.files import atomic_path, write_png, write_text
from text2sam.image import read_image

_DIGITS = 6
_FORMATS = ("bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
"""What every version of ultralytics opens, of suffixes and of Pillow's names of formats."""


class YoloExporter(Exporter):
    """A text file per image, a line per object: the class from 0, then x and y of each corner, divided by width and height.

    ``data.yaml`` names the classes and the folders; it has no ``path``, which ultralytics takes for the folder it lies in, so
    the data set can be moved. ``train`` and ``val`` are both ``images``: split them as you like. An image without objects
    has an empty file.

    A line is one closed polygon, whose corners lie a tenth of a pixel inside the object's edge. ultralytics, which rounds
    them down and paints the outline too, makes the same mask of it, and so does pycocotools. Holes are cut in by slits of no
    width. The parts of an object are strung together by bridges of no width between their nearest corners, which readers
    that paint outlines paint too. Both are counted. The score has no place in the format.

    Labels are found by the image's path without its suffix, so two images that differ in nothing else are refused.

    Args:
        pictures: ``"copy"`` puts the images into ``out/images``, where ultralytics looks for them, ``"none"`` leaves them; by
            default they are copied where ``images_root`` is given. Pictures in formats that ultralytics does not open, of
            another page than the first, or read with values of black and white are put there as PNG instead, and counted.
    """

    format = "yolo"

    def _configure(self, *, pictures: Literal["copy", "none"] | None = None) -> None:
        self.pictures = pictures or ("none" if self.images_root is None else "copy")
        if self.pictures not in ("copy", "none"):
            raise InputError(f"pictures must be 'copy' or 'none', not {pictures!r}")
        if self.pictures == "copy" and self.images_root is None:
            raise InputError("pictures='copy' needs images_root, the folder they are in")

    @staticmethod
    def names_of(path: str) -> tuple[str, ...]:
        """Where ultralytics looks: the last ``/images/`` of the path is ``/labels/``, the suffix ``.txt``."""
        return ("/labels/".join(f"/images/{os.path.splitext(path)[0]}".rsplit("/images/", 1))[1:] + ".txt",)

    def _prepare(self, image: AnnotatedImage) -> Any:
        """The picture, for a PNG, where ultralytics would not open it or see something else."""
        if self.images_root is None or self.pictures == "none":
            return None
        source = self.images_root / image.path
        if not source.is_file():
            raise InputError(f"there is no image {image.path!r} in {os.fspath(self.images_root)!r}")
        pixels = image.height * image.width
        as_it_is = not self.reading.get("page") and self.reading.get("value_range") is None
        if as_it_is and _opened(source, pixels):
            return None
        if inside(self.out, _png(image.path)) == source.resolve():
            raise InputError(f"a PNG of {image.path!r} would take the picture's own place; give another output folder")
        return read_image(source, **{**self.reading, "max_pixels": pixels})

    def _write(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], name: str, prepared: Any) -> None:
        target = self._path(name)
        lines = [f"{self._ids[item.label]} {_normalised(self._polygon(item), image)}\n" for item in objects]
        if prepared is not None:
            write_png(self._path(_png(image.path)), prepared)
            self._counts["converted"] += 1
        elif self.images_root is not None and self.pictures != "none":
            source, copy = self.images_root / image.path, f"images/{image.path}"
            if inside(self.out, copy) != source.resolve():  # the images may lie there already
                with atomic_path(self._path(copy)) as temporary:
                    shutil.copyfile(source, temporary)
        write_text(target, "".join(lines))

    def _polygon(self, item: AnnotatedObject) -> NDArray[np.float64]:
        mask = item.mask
        parts = outlines(mask)
        self._counts["holes"] += sum(part.holes for part in parts)
        self._counts["parts"] += len(parts) - 1
        return one_polygon([inset(part.line, mask) for part in parts])

    def _finish(self) -> None:
        import yaml

        inside(self.out, "images").mkdir(exist_ok=True)
        data = {"train": "images", "val": "images", "nc": len(self.labels), "names": dict(enumerate(self.labels))}
        write_text(self._path("data.yaml"), yaml.safe_dump(data, sort_keys=False))


def _png(path: str) -> str:
    return f"images/{os.path.splitext(path)[0]}.png"


def _opened(path: Path, max_pixels: int) -> bool:
    """Whether ultralytics opens a picture: it looks at the suffix, and then at what Pillow calls the content."""
    if path.suffix[1:].lower() in _FORMATS:
        with contextlib.suppress(ImageError), pillow_errors(""), open_picture(path, max_pixels) as picture:
            return str(picture.format).lower() in _FORMATS
    return False


def _normalised(points: NDArray[np.float64], image: AnnotatedImage) -> str:
    digits = max(_DIGITS, len(str(max(image.width, image.height))) + 2)
    return " ".join(f"{value:.{digits}f}" for value in (points / (image.width, image.height)).ravel().tolist())
