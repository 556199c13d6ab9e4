"""The formats by name, and one function that writes any of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from text2sam.errors import InputError, warn
from text2sam.export.annotated import AnnotatedImage
from text2sam.export.coco import CocoExporter
from text2sam.export.exporter import Exporter
from text2sam.export.label_studio import LabelStudioExporter
from text2sam.export.labelme import LabelmeExporter
from text2sam.export.losses import Losses, LossWarning
from text2sam.export.png import PngExporter
from text2sam.export.yolo import YoloExporter

_ALL: tuple[type[Exporter], ...] = (CocoExporter, YoloExporter, LabelmeExporter, PngExporter, LabelStudioExporter)

FORMATS: Mapping[str, type[Exporter]] = MappingProxyType({kind.format: kind for kind in _ALL})
"""The exporter of each format."""


def make_exporter(
    out: str | os.PathLike[str],
    *,
    format: str,
    labels: Sequence[str],
    images_root: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Exporter:
    """The exporter of a format; see its class for the options.

    Raises:
        InputError: the format or an option is unknown, or a value is not usable.
        OutputError: the folder cannot be made.
    """
    if not isinstance(format, str) or format not in FORMATS:
        raise InputError(f"unknown format {format!r}; there are {', '.join(FORMATS)}")
    return FORMATS[format](out, labels, images_root, **options)


def export(
    images: Iterable[AnnotatedImage],
    out: str | os.PathLike[str],
    *,
    format: str,
    labels: Sequence[str],
    images_root: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Losses:
    """Write annotated images as a data set.

    What the format cannot hold is written as well as it can and counted in one :class:`LossWarning`.

    Args:
        images: taken one at a time.
        format: one of :data:`FORMATS`.
        out, labels, images_root, options: see :class:`Exporter`, and the exporter of the format for its own options.

    Returns:
        What was lost.

    Raises:
        InputError: an argument or an image is not usable.
        OutputError: a file cannot be written.
    """
    with make_exporter(out, format=format, labels=labels, images_root=images_root, **options) as exporter:
        for image in images:
            exporter.add(image)
        losses = exporter.close()
    if losses.total:
        warn(str(losses), LossWarning)
    return losses
