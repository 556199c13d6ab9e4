"""Reads a dataset with pycocotools and labelme, without code of the job."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam.errors import Text2SamError
from text2sam.files import write_text
from text2sam.image import read_image
from text2sam.lab.experiments.hostile import saved


@dataclass(frozen=True, eq=False)
class Item:
    """An object of a dataset: label, mask (H, W) bool, and score in [0, 1] (1 if the file has no score)."""

    label: str
    mask: NDArray[np.bool_]
    score: float = 1.0


class CocoFile:
    """A COCO file as pycocotools reads it; masks are decoded on demand.

    Attributes:
        sizes: ``file_name`` -> (H, W).
        images: number of images, larger than the number of ``sizes`` if an image occurs twice.

    Raises:
        Text2SamError: pycocotools cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        from pycocotools.coco import COCO

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco = COCO(os.fspath(path))
            entries = self._coco.loadImgs(self._coco.getImgIds())
            self.images = len(entries)
            self.sizes = {str(entry["file_name"]): (int(entry["height"]), int(entry["width"])) for entry in entries}
            self._ids = {str(entry["file_name"]): entry["id"] for entry in entries}
            self._names = {entry["id"]: str(entry["name"]) for entry in self._coco.loadCats(self._coco.getCatIds())}
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise Text2SamError(f"pycocotools cannot read {os.fspath(path)!r}: {type(error).__name__}: {error}") from error

    def objects(self, name: str) -> list[Item]:
        """The objects of an image in the order of their ids; empty for an unknown image."""
        if name not in self._ids:
            return []
        entries = self._coco.loadAnns(sorted(self._coco.getAnnIds(imgIds=[self._ids[name]])))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' __array__ predates NumPy 2
            masks = [self._coco.annToMask(entry).astype(bool) for entry in entries]
        return [
            Item(self._names[entry["category_id"]], mask, float(entry.get("score", 1.0)))
            for entry, mask in zip(entries, masks, strict=True)
        ]


@dataclass(frozen=True)
class LabelmeCheck:
    """Comparison of labelme files with a COCO file.

    Attributes:
        note: why nothing was checked, such as a missing package; empty otherwise.
        version: version of labelme.
        files, shapes: number of files and shapes read.
        different: images whose shapes are not the objects of the COCO file, or that occur twice or in one format only.
        foreign: images that labelme cannot open; they were embedded in their label files.
    """

    note: str = ""
    version: str = ""
    files: int = 0
    shapes: int = 0
    different: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


def check_labelme(out: Path, root: Path, coco: CocoFile) -> LabelmeCheck:
    """Compares the masks that labelme paints from the label files in ``out`` (images: ``root``) with those of the COCO file."""
    with contextlib.ExitStack() as stack:
        try:
            labelme = stack.enter_context(labelme_reader())
        except ImportError as error:
            return LabelmeCheck(f"labelme was not run: {error}; install it with: pip install labelme")
        seen: Counter[str] = Counter()
        foreign, different, shapes = [], [], 0
        home, images = Path(os.path.realpath(out)), os.path.realpath(root)
        for path in sorted(home.rglob("*.json")):
            file, embedded = _label_file(labelme, path)
            name = os.path.relpath(os.path.join(path.parent, file.image_path), images).replace(os.sep, "/")
            seen[name] += 1
            shapes += len(file.shapes)
            if embedded:
                foreign.append(name)
            objects, size = coco.objects(name), coco.sizes.get(name)
            same = size is not None and seen[name] == 1 and [o.label for o in objects] == [s["label"] for s in file.shapes]
            for item, shape in zip(objects, file.shapes, strict=False) if same else ():
                painted = labelme.paint(shape, item.mask.shape)
                same = same and shape["shape_type"] == "mask" and np.array_equal(painted, item.mask)
            if not same:
                different.append(name)
        different += [name for name in coco.sizes if name not in seen]
        return LabelmeCheck("", labelme.version, sum(seen.values()), shapes, tuple(different), tuple(sorted(foreign)))


@dataclass(frozen=True)
class LabelmeReader:
    """The functions of labelme, for any of its versions.

    Attributes:
        version: version of labelme.
        read: label file -> an object with ``image_path``, ``image_data`` and ``shapes``.
        paint: (shape, (H, W)) -> mask, bool.
    """

    version: str
    read: Callable[[str], Any]
    paint: Callable[[Any, tuple[int, ...]], NDArray[np.bool_]]


@contextlib.contextmanager
def labelme_reader() -> Iterator[LabelmeReader]:
    """labelme, without its changes to the process.

    Raises:
        ImportError: labelme or a system library that it needs is not installed.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        import labelme

        if hasattr(labelme, "LabelFile"):
            read, to_label = labelme.LabelFile, labelme.utils.shapes_to_label
        else:  # labelme 7 has private names and keyword arguments
            from labelme import _label_file, _utils

            read, to_label = (
                lambda path: _label_file.read_label_file(filename=path),
                lambda size, shapes, ids: _utils.shapes_to_label(img_shape=size, shapes=shapes, label_name_to_value=ids),
            )
    finally:
        Image.MAX_IMAGE_PIXELS = limit  # labelme removes the guard against decompression bombs
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            from loguru import logger

            logger.disable("labelme")
            stack.callback(logger.enable, "labelme")
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", ResourceWarning)  # labelme leaves images open

        def paint(shape: Any, size: tuple[int, ...]) -> NDArray[np.bool_]:
            mask: NDArray[np.bool_] = to_label(size, [shape], {shape["label"]: 1})[1] == 1
            return mask

        yield LabelmeReader(str(labelme.__version__), read, paint)


def _label_file(labelme: LabelmeReader, path: Path) -> tuple[Any, bool]:
    """A label file, and whether its image had to be embedded."""
    try:
        return labelme.read(os.fspath(path)), False
    except Exception:  # any error of opening the image; other errors occur again below
        content = json.loads(path.read_bytes())
        picture = read_image(path.parent / content["imagePath"])
        content["imageData"] = base64.b64encode(saved(Image.fromarray(picture), "PNG")).decode("ascii")
        with tempfile.TemporaryDirectory() as folder:
            copy = write_text(Path(folder, "copy.json"), json.dumps(content))
            return labelme.read(os.fspath(copy)), True
