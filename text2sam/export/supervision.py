"""To the ``supervision`` package's detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from text2sam.errors import InputError, needed
from text2sam.export.annotated import AnnotatedImage
from text2sam.export.exporter import check_labels

if TYPE_CHECKING:
    import supervision


def to_supervision(image: AnnotatedImage, labels: Sequence[str] | None = None) -> supervision.Detections:
    """The objects of an image as ``supervision.Detections``.

    Results of the pipeline come this way: ``to_supervision(AnnotatedImage.from_results("a.jpg", results))``.

    Args:
        image: its objects without a pixel are left out.
        labels: names of the classes in order; by default those of the image as they come.

    Returns:
        Detections with ``xyxy`` (n, 4) float32 in pixels, right and lower edge exclusive; ``mask`` (n, H, W) bool;
        ``confidence`` (n,) float32; ``class_id`` (n,) int64, from 0; ``data["class_name"]`` (n,) str. n may be 0.

    Raises:
        InputError: an object's label is not among ``labels``.
        MissingDependencyError: supervision is not installed.
    """
    detections = needed("supervision", "supervision", "to_supervision", "supervision").Detections
    objects = [item for item in image.objects if item.area]
    names = tuple(dict.fromkeys(item.label for item in objects)) if labels is None else check_labels(labels)
    ids = {name: index for index, name in enumerate(names)}
    for item in objects:
        if item.label not in ids:
            raise InputError(f"the label {item.label!r} of an object in {image.path!r} is not among the labels")
    mask = np.zeros((len(objects), image.height, image.width), np.bool_)
    xyxy = np.zeros((len(objects), 4), np.float32)
    for index, item in enumerate(objects):
        x, y, w, h = item.bbox
        mask[index], xyxy[index] = item.mask, (x, y, x + w, y + h)
    return detections(
        xyxy=xyxy,
        mask=mask,
        confidence=np.array([item.score for item in objects], np.float32),
        class_id=np.array([ids[item.label] for item in objects], np.int64),
        data={"class_name": np.array([item.label for item in objects], np.str_)},
    )
