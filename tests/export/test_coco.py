"""COCO's JSON, read back with pycocotools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import exported
from pycocotools.coco import COCO

from text2sam.export.annotated import AnnotatedImage
from text2sam.export.coco import CocoExporter

# pycocotools decodes through an __array__ of before NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Quiet = Callable[..., Any]


def written(images: list[AnnotatedImage], out: Path, labels: list[str], **options: Any) -> Path:
    exported("coco", images, out, labels, **options)
    return out / "annotations.json"


@pytest.mark.parametrize("segmentation", ["rle", "polygon"])
def test_there_and_back(
    segmentation: str, images: list[AnnotatedImage], labels: list[str], truth: dict[str, Any], tmp_path: Path, quiet: Quiet
) -> None:
    coco = quiet(COCO, str(written(images, tmp_path, labels, segmentation=segmentation)))
    assert {coco.imgs[i]["file_name"]: (coco.imgs[i]["height"], coco.imgs[i]["width"]) for i in coco.getImgIds()} == {
        image.path: (image.height, image.width) for image in images
    }
    names = {i: coco.cats[i]["name"] for i in coco.getCatIds()}
    assert names == dict(enumerate(labels, 1))
    for i, image in coco.imgs.items():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[i]))
        assert [names[annotation["category_id"]] for annotation in annotations] == [
            label for label, _ in truth[image["file_name"]]
        ]
        for annotation, (_, mask) in zip(annotations, truth[image["file_name"]], strict=True):
            assert (coco.annToMask(annotation).astype(bool) == mask).all()
            assert annotation["area"] == mask.sum()


def test_fields(images: list[AnnotatedImage], labels: list[str], tmp_path: Path) -> None:
    data = json.loads(written(images, tmp_path, labels).read_text("ascii"))
    assert set(data) == {"info", "licenses", "categories", "images", "annotations"}
    assert [image["id"] for image in data["images"]] == [1, 2, 3, 4]
    assert [annotation["id"] for annotation in data["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [annotation["image_id"] for annotation in data["annotations"]] == [1, 1, 1, 3, 3, 4]
    first = data["annotations"][0]
    assert first["bbox"] == [1, 0, 5, 5]
    assert first["iscrowd"] == 0
    assert first["score"] == 0.9
    assert first["segmentation"]["size"] == [6, 8]
    assert type(first["segmentation"]["counts"]) is str


def test_polygons_hold_every_part(images: list[AnnotatedImage], labels: list[str], tmp_path: Path) -> None:
    data = json.loads(written(images, tmp_path, labels, segmentation="polygon").read_text("ascii"))
    parts = [len(annotation["segmentation"]) for annotation in data["annotations"]]
    assert parts == [2, 2, 2, 1, 2, 1]  # the ring has a dot in its hole
    assert all(len(line) >= 8 for annotation in data["annotations"] for line in annotation["segmentation"])
    assert all(annotation["iscrowd"] == 0 for annotation in data["annotations"])


@pytest.mark.parametrize("segmentation", ["rle", "polygon"])
def test_pycocotools_scores_it(
    segmentation: str, images: list[AnnotatedImage], labels: list[str], tmp_path: Path, quiet: Quiet
) -> None:
    from pycocotools.cocoeval import COCOeval

    path = written(images, tmp_path, labels, segmentation=segmentation)
    coco = quiet(COCO, str(path))
    found = quiet(coco.loadRes, json.loads(path.read_text("ascii"))["annotations"])
    judge = COCOeval(coco, found, "segm")
    for step in (judge.evaluate, judge.accumulate, judge.summarize):
        quiet(step)
    assert judge.stats[0] == pytest.approx(1.0)


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path = written([AnnotatedImage("\udcff.jpg", 1, 1)], tmp_path, ["cat"])
    assert json.loads(path.read_text("ascii"))["images"][0]["file_name"] == "\udcff.jpg"
    assert CocoExporter.names_of("a/b.jpg") == ("a/b.jpg",)
