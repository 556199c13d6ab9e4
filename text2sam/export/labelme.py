"""labelme's JSON, a file per image."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.exporter import Exporter
from text2sam.export.outlines import outlines
from text2sam.files import write_json

_VERSION = "6.3.1"  # whose LabelFile the tests read with


class LabelmeExporter(Exporter):
    """``a/b.json`` for the image ``a/b.jpg``.

    ``imagePath`` leads from the JSON file to the image; without ``images_root`` the file is taken to lie beside the image.
    Of two images that differ in the suffix only, the later one's file is named in full (``b.png.json``) and counted:
    labelme opens it as any other, but does not find it by itself beside the image.

    Args:
        shapes: ``"mask"``, the object's pixels as a PNG with its first and last corner pixel, which loses nothing; or
            ``"polygon"``, one polygon per part along the edges of the pixels, parts of one object with a ``group_id`` in
            common. Holes are joined to the outline by a slit and counted. labelme paints the outline of a polygon too,
            so its masks are a pixel wider at the right and lower edge, and holes narrower.
    """

    format = "labelme"

    def _configure(self, *, shapes: Literal["mask", "polygon"] = "mask") -> None:
        if shapes not in ("mask", "polygon"):
            raise InputError(f"shapes must be 'mask' or 'polygon', not {shapes!r}")
        self.shapes = shapes

    @staticmethod
    def names_of(path: str) -> tuple[str, ...]:
        """``.json`` for the image's suffix, or after it."""
        return (f"{os.path.splitext(path)[0]}.json", f"{path}.json")

    def _write(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], name: str, prepared: Any) -> None:
        target = self._path(name)
        shapes: list[dict[str, Any]] = []
        groups = 0
        for item in objects:
            if self.shapes == "mask":
                shapes.append(_mask(item))
                continue
            parts = outlines(item.mask)
            self._counts["holes"] += sum(part.holes for part in parts)
            groups += len(parts) > 1
            group = groups if len(parts) > 1 else None
            shapes += [_shape(item, "polygon", part.line.tolist(), group=group) for part in parts]
        content: dict[str, Any] = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": self._image_path(image.path, target),
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        write_json(target, content)

    def _image_path(self, path: str, target: Path) -> str:
        if self.images_root is None:
            return path.rpartition("/")[2]
        return Path(os.path.relpath(os.path.join(os.path.realpath(self.images_root), path), target.parent)).as_posix()

    def _finish(self) -> None:
        pass


def _mask(item: AnnotatedObject) -> dict[str, Any]:
    x, y, w, h = item.bbox
    crop = item.mask[y : y + h, x : x + w]
    buffer = io.BytesIO()
    Image.fromarray(crop.astype(np.uint8)).save(buffer, "PNG")
    mask = base64.b64encode(buffer.getvalue()).decode("ascii")
    return _shape(item, "mask", [[x, y], [x + w - 1, y + h - 1]], mask=mask)


def _shape(
    item: AnnotatedObject, kind: str, points: list[list[int]], *, group: int | None = None, mask: str | None = None
) -> dict[str, Any]:
    return {
        "label": item.label,
        "points": [[float(x), float(y)] for x, y in points],
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": mask,
        "score": float(item.score),
    }
