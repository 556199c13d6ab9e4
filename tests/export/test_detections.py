"""The supervision package's detections."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from text2sam.errors import InputError, MissingDependencyError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.supervision import to_supervision
from text2sam.types import PointPrompts, Segmentation, SimilarityMap, box_of

supervision = pytest.importorskip("supervision")


def test_nothing_found() -> None:
    found = to_supervision(AnnotatedImage("a.jpg", 4, 6), ["cat"])
    assert len(found) == 0
    assert found.xyxy.shape == (0, 4)
    assert found.mask.shape == (0, 4, 6)
    assert found.mask.dtype == np.bool_
    assert found.confidence.shape == found.class_id.shape == found.data["class_name"].shape == (0,)
    assert len(found[found.confidence > 0.5]) == 0
    assert len(supervision.Detections.merge([found, found])) == 0


def test_there_and_back(images: list[AnnotatedImage], labels: list[str], truth: dict[str, Any]) -> None:
    for image in images:
        found = to_supervision(image, labels)
        assert len(found) == len(image.objects)
        assert [labels[index] for index in found.class_id] == found.data["class_name"].tolist()
        for one, mask, box, score, (label, expected) in zip(
            image.objects, found.mask, found.xyxy, found.confidence, truth[image.path], strict=True
        ):
            assert (mask == expected).all()
            assert (box == box_of(expected)).all()
            assert score == pytest.approx(one.score)
            assert one.label == label
    assert to_supervision(images[0], labels).class_id.tolist() == [0, 1, 0]
    assert to_supervision(images[2]).class_id.tolist() == [0, 1]
    assert to_supervision(images[0], labels).area.tolist() == [one.area for one in images[0].objects]


def test_full_and_empty_ones_merge(images: list[AnnotatedImage], labels: list[str]) -> None:
    nothing = AnnotatedObject.from_mask(labels[0], np.zeros((6, 8), np.bool_))
    found = [to_supervision(AnnotatedImage("b.jpg", 6, 8, (nothing,)), labels), to_supervision(images[0], labels)]
    assert len(found[0]) == 0
    assert len(supervision.Detections.merge(found)) == 3


def test_unknown_labels(images: list[AnnotatedImage]) -> None:
    with pytest.raises(InputError, match="not among the labels"):
        to_supervision(images[0], ["cat"])
    with pytest.raises(InputError, match="sequence"):
        to_supervision(images[0], "cat")


def test_without_the_package(images: list[AnnotatedImage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "text2sam\[supervision\]"'):
        to_supervision(images[0])


def segmentation(text: str, mask: np.ndarray[Any, np.dtype[np.bool_]], present: bool, objects: Any = ()) -> Segmentation:
    flat = SimilarityMap(np.zeros((2, 2), np.float32))
    return Segmentation(mask, 0.5, box_of(mask), PointPrompts.empty(), flat, None, text, present, 0.5, objects=objects)


def test_results_of_the_pipeline() -> None:
    left, right = np.zeros((2, 4, 6), np.bool_)
    left[1:3, :2], right[0, 4:] = True, True
    birds = segmentation("bird", left | right, True, (segmentation("bird", left, True), segmentation("bird", right, True)))
    results = [segmentation("cat", left, False), birds, segmentation("dog", right, True)]
    image = AnnotatedImage.from_results("a.jpg", results)
    assert [item.label for item in image.objects] == ["bird", "bird", "dog"]
    found = to_supervision(image, ["cat", "dog", "bird"])
    assert found.class_id.tolist() == [2, 2, 1]
    assert found.xyxy.tolist() == [[0, 1, 2, 3], [4, 0, 6, 1], [4, 0, 6, 1]]
    with pytest.raises(InputError, match="at least one"):
        AnnotatedImage.from_results("a.jpg", [])
    assert len(to_supervision(AnnotatedImage("a.jpg", 4, 6))) == 0
