"""Label Studio: tasks with brush pre-annotations."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.exporter import Exporter
from text2sam.files import atomic_path, write_text
from text2sam.paint import voc_palette

_SIZES = (3, 4, 8, 16)
_CHANNELS = 4
_BRUSH, _IMAGE = "label", "image"  # names of the tags


class LabelStudioExporter(Exporter):
    """``tasks.json`` to import, and ``label_config.xml`` for the project's labeling interface.

    Each task has one prediction with a brush region per object, overlaps and all. From Label Studio brush labels do not
    export to COCO or YOLO: keep this data set in one of these formats too.

    Args:
        prefix: what the image's address is made of, before its quoted path; by default that of local file serving.

    Raises:
        InputError: labels are not usable, or have characters that XML does not know.
    """

    spools = 1
    format = "label-studio"

    def _configure(self, *, prefix: str = "/data/local-files/?d=") -> None:
        for text in self.labels:
            if re.search("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text):
                raise InputError(f"{text!r} has a character that Label Studio's configuration, which is XML, cannot hold")
        self.prefix = prefix

    def _prepare(self, image: AnnotatedImage) -> Any:
        if image.height * image.width * _CHANNELS >= 2**32:
            raise InputError(f"{image.path!r} has {image.height} x {image.width} pixels; a brush holds fewer than {2**30}")
        try:
            return self.prefix + quote(image.path.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError as error:
            raise InputError(f"the path {image.path!r} cannot be an address: {error}") from error

    def _write(self, image: AnnotatedImage, objects: tuple[AnnotatedObject, ...], name: str, prepared: Any) -> None:
        number = self._spools[0].count + 1
        regions = [
            brush_region(item.mask, item.label, item.score, f"{number}-{index}", _BRUSH, _IMAGE)
            for index, item in enumerate(objects, 1)
        ]
        score = sum(float(item.score) for item in objects) / max(1, len(objects))
        prediction = {"model_version": "text2sam", "score": score, "result": regions}
        self._spools[0].write({"data": {_IMAGE: prepared}, "predictions": [prediction]})

    def _finish(self) -> None:
        colours = voc_palette(len(self.labels) + 1).tolist()
        lines = [f'<View>\n  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true"/>']
        lines.append(f'  <BrushLabels name="{_BRUSH}" toName="{_IMAGE}">')
        for label, (r, g, b) in zip(self.labels, colours[1:], strict=True):
            lines.append(f'    <Label value={quoteattr(label)} background="#{r:02x}{g:02x}{b:02x}"/>')
        lines.append("  </BrushLabels>\n</View>\n")
        write_text(self._path("label_config.xml"), "\n".join(lines))
        with atomic_path(self._path("tasks.json")) as temporary, open(temporary, "wb") as file:
            self._spools[0].copy_to(file)
            file.write(b"\n")


def brush_region(
    mask: NDArray[np.bool_], label: str, score: float, identity: str, from_name: str, to_name: str
) -> dict[str, Any]:
    """A region of a task's ``result``, painted by a brush.

    Args:
        mask: (H, W) bool.
        label, score: of the region.
        identity: different for each region of a task.
        from_name, to_name: names of the ``BrushLabels`` and ``Image`` tags.
    """
    return {
        "id": identity,
        "from_name": from_name,
        "to_name": to_name,
        "type": "brushlabels",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "score": float(score),
        "value": {"format": "rle", "rle": brush_rle(mask), "brushlabels": [label]},
    }


def brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """A mask in Label Studio's brush format.

    The mask is read row by row as four equal channels (0 or 255) per pixel. Bits, the highest first: 32 for the number of
    values, 5 for the bits of a value less 1, four times 4 for the bits of a run's length less 1 in each of four classes;
    then, for each run, a 1, 2 for its class, its length less 1, and its value. Zeros fill the last byte.

    Args:
        mask: (H, W) bool, at least one pixel and fewer than 2**30.

    Returns:
        The bytes as ints.
    """
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [flat.size]])) * _CHANNELS
    values = flat[starts].astype(np.int64) * 255

    longest = 1 << _SIZES[-1]
    pieces = -(-lengths // longest)
    last = np.cumsum(pieces) - 1
    runs = np.full(int(pieces.sum()), longest, np.int64)
    runs[last] = lengths - (pieces - 1) * longest
    values = np.repeat(values, pieces)

    kind = np.searchsorted([1 << size for size in _SIZES], runs)
    size = np.array(_SIZES)[kind]
    bits = 1 + 2 + size + 8
    code = (1 << 2 | kind) << size | (runs - 1)
    code = (code << 8 | values) << (32 - bits)
    grid = np.unpackbits(code.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)  # (R, 32)
    body = grid[np.arange(32) < bits[:, None]]

    head = flat.size * _CHANNELS << 21 | 7 << 16
    for index, each in enumerate(_SIZES):
        head |= each - 1 << 4 * (3 - index)
    header = np.unpackbits(np.frombuffer(head.to_bytes(7, "big"), np.uint8))[-53:]
    encoded: list[int] = np.packbits(np.concatenate([header, body])).tolist()
    return encoded
