"""YOLO segmentation: ``labels/*.txt`` and ``data.yaml``, as ultralytics reads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.exporter import Exporter, stem_of
from text2sam.export.outlines import one_polygon, outlines
from text2sam.files import atomic_path, write_text

_DIGITS = 6


class YoloExporter(Exporter):
    """A text file per image, a line per object: the class from 0, then x and y of each corner, divided by width and height.

    ``data.yaml`` names the classes and the folders; it has no ``path``, which ultralytics takes for the folder it lies in, so
    the data set can be moved. ``train`` and ``val`` are both ``images``: split them as you like. An image without objects
    has an empty file.

    A line is one closed polygon. The parts of an object are strung together by bridges of no width between their nearest
    corners, and holes are cut in by slits of no width; pycocotools makes the same mask of it, readers that paint outlines too
    (ultralytics, by OpenCV) also paint the bridges. Both are counted. The score has no place in the format.

    Labels are found by the image's path without its suffix, so two images that differ in nothing else are refused.

    Args:
        out, labels, images_root: see :class:`Exporter`.
        pictures: ``"copy"`` puts the images into ``out/images``, where ultralytics looks for them, ``"link"`` symbolic links
            to them, ``"none"`` nothing; by default they are copied where ``images_root`` is given.

    Raises:
        InputError: labels or options are not usable.
    """

    format = "yolo"

    def __init__(
        self,
        out: str | os.PathLike[str],
        labels: Sequence[str],
        images_root: str | os.PathLike[str] | None = None,
        *,
        pictures: Literal["copy", "link", "none"] | None = None,
    ) -> None:
        self.pictures = pictures or ("none" if images_root is None else "copy")
        if self.pictures not in ("copy", "link", "none"):
            raise InputError(f"pictures must be 'copy', 'link' or 'none', not {pictures!r}")
        if self.pictures != "none" and images_root is None:
            raise InputError(f"pictures={self.pictures!r} needs images_root, the folder they are in")
        super().__init__(out, labels, images_root)

    @staticmethod
    def names_of(path: str) -> tuple[str, ...]:
        """Where ultralytics looks: the last ``/images/`` of the path is ``/labels/``, the suffix ``.txt``."""
        return ("/labels/".join(f"/images/{stem_of(path)}".rsplit("/images/", 1))[1:] + ".txt",)

    def _check(self, image: AnnotatedImage) -> None:
        if self.images_root is not None and self.pictures != "none" and not (self.images_root / image.path).is_file():
            raise InputError(f"there is no image {image.path!r} in {os.fspath(self.images_root)!r}")

    def _write(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], name: str) -> None:
        target = self._path(name)
        lines = [f"{self._ids[one.label]} {_normalised(self._polygon(one), image)}\n" for one in objects]
        self._place(image.path)
        write_text(target, "".join(lines))

    def _polygon(self, one: AnnotatedObject) -> NDArray[np.int64]:
        parts = outlines(one.mask)
        self._counts["holes"] += sum(len(part.holes) for part in parts)
        self._counts["parts"] += len(parts) - 1
        return one_polygon([part.joined for part in parts])

    def _place(self, path: str) -> None:
        if self.images_root is None or self.pictures == "none":
            return
        source, name = self.images_root / path, f"images/{path}"
        if self.pictures == "copy":
            target = self._path(name)
            if target != source.resolve():  # the images may lie there already
                with atomic_path(target) as temporary:
                    shutil.copyfile(source, temporary)
            return
        folder, _, file = name.rpartition("/")
        link = self._path(folder) / file
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(os.path.relpath(source.resolve(), link.parent))

    def _finish(self) -> None:
        import yaml

        self._path("images").mkdir(exist_ok=True)
        data = {"train": "images", "val": "images", "nc": len(self.labels), "names": dict(enumerate(self.labels))}
        write_text(self._path("data.yaml"), yaml.safe_dump(data, sort_keys=False))


def _normalised(points: NDArray[np.int64], image: AnnotatedImage) -> str:
    digits = max(_DIGITS, len(str(max(image.width, image.height))) + 2)
    return " ".join(f"{value:.{digits}f}" for value in (points / (image.width, image.height)).ravel().tolist())
