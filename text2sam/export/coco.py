"""COCO's JSON: ``annotations.json``."""

from __future__ import annotations

import json
from typing import Any, Literal

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.exporter import Exporter
from text2sam.export.outlines import outlines
from text2sam.files import atomic_path


class CocoExporter(Exporter):
    """One ``annotations.json`` as ``pycocotools.COCO`` loads it.

    Categories are numbered from 1 in the order of the labels, images and annotations from 1 in the order they come.
    ``file_name`` is the image's path relative to the folder of images, ``area`` the number of the mask's pixels, ``bbox`` is
    x, y, width and height, ``score`` a field of ours.

    ``iscrowd`` is always 0. COCO itself writes run lengths only for crowds, and readers leave crowds out of training and
    scoring; our run lengths are single objects, which pycocotools and detectron2 take with ``iscrowd`` 0. Readers that know
    polygons only want ``segmentation="polygon"``.

    Args:
        segmentation: ``"rle"``, compressed run lengths with ``counts`` as text, which loses nothing; or ``"polygon"``, one
            polygon per part along the edges of the pixels, holes joined to it by a slit. pycocotools makes the same mask of
            either; holes are counted, as other readers may paint the slit.
    """

    spools = 2
    format = "coco"

    def _configure(self, *, segmentation: Literal["rle", "polygon"] = "rle") -> None:
        if segmentation not in ("rle", "polygon"):
            raise InputError(f"segmentation must be 'rle' or 'polygon', not {segmentation!r}")
        self.segmentation = segmentation

    def _write(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], name: str, prepared: Any) -> None:
        images, annotations = self._spools
        number = images.count + 1
        images.write({"id": number, "width": image.width, "height": image.height, "file_name": image.path})
        for item in objects:
            annotations.write(
                {
                    "id": annotations.count + 1,
                    "image_id": number,
                    "category_id": self._ids[item.label] + 1,
                    "iscrowd": 0,
                    "area": item.area,
                    "bbox": list(item.bbox),
                    "score": float(item.score),
                    "segmentation": item.rle if self.segmentation == "rle" else self._polygons(item),
                }
            )

    def _polygons(self, item: AnnotatedObject) -> list[list[int]]:
        parts = outlines(item.mask)
        self._counts["holes"] += sum(part.holes for part in parts)
        return [part.line.ravel().tolist() for part in parts]

    def _finish(self) -> None:
        categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(self.labels, 1)]
        head = {"info": {"description": "text2sam"}, "licenses": [], "categories": categories}
        with atomic_path(self._path("annotations.json")) as temporary, open(temporary, "wb") as file:
            file.write(json.dumps(head)[:-1].encode("ascii"))  # pycocotools reads in the locale's encoding
            for name, spool in zip((b"images", b"annotations"), self._spools, strict=True):
                file.write(b', "' + name + b'": ')
                spool.copy_to(file)
            file.write(b"}\n")
