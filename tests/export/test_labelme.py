"""labelme's JSON, read back with labelme."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import exported
from PIL import Image
from pycocotools import mask as coco

from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.lab.experiments.annotation import labelme_reader

# pycocotools decodes through an __array__ of before NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# labelme leaves the pictures it reads open
LEAVES_OPEN = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def labelme(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("labelme")
    with labelme_reader() as (read, paint):
        yield SimpleNamespace(read=read, paint=paint)


written = functools.partial(exported, "labelme")


@LEAVES_OPEN
def test_masks_there_and_back(
    images: list[AnnotatedImage],
    labels: list[str],
    truth: dict[str, Any],
    root: Path,
    tmp_path: Path,
    labelme: Any,
) -> None:
    out = tmp_path / "deep" / "out"
    written(images, out, labels, images_root=root)
    for image in images:
        file = labelme.read(str(out / image.path.rpartition(".")[0]) + ".json")
        assert Image.open(io.BytesIO(file.image_data)).size == (image.width, image.height)
        assert [shape["label"] for shape in file.shapes] == [label for label, _ in truth[image.path]]
        for shape, (_, mask), item in zip(file.shapes, truth[image.path], image.objects, strict=True):
            assert shape["shape_type"] == "mask"
            assert shape["other_data"] == {"score": item.score}
            assert (labelme.paint(shape, mask.shape) == mask).all()


@LEAVES_OPEN
def test_polygons_there_and_back(
    images: list[AnnotatedImage], labels: list[str], truth: dict[str, Any], root: Path, tmp_path: Path, labelme: Any
) -> None:
    out = tmp_path / "out"
    written(images, out, labels, images_root=root, shapes="polygon")
    for image in images:
        file = labelme.read(str(out / image.path.rpartition(".")[0]) + ".json")
        shapes = list(file.shapes)
        for label, mask in truth[image.path]:
            first = shapes.pop(0)
            own = [first]
            while first["group_id"] is not None and shapes and shapes[0]["group_id"] == first["group_id"]:
                own.append(shapes.pop(0))
            assert {shape["label"] for shape in own} == {label}
            assert {shape["shape_type"] for shape in own} == {"polygon"}
            h, w = mask.shape
            lines = [np.ravel(shape["points"]).tolist() for shape in own]
            assert (coco.decode(coco.merge(coco.frPyObjects(lines, h, w))) == mask).all()
            by_labelme = np.logical_or.reduce([labelme.paint(shape, mask.shape) for shape in own])
            assert not (mask & ~by_labelme).any()
        assert shapes == []


def test_labelme_widens_polygons_by_a_pixel(tmp_path: Path, labelme: Any) -> None:
    y, x = np.mgrid[:90, :120]
    mask = (x - 60) ** 2 + (y - 45) ** 2 < 35**2
    written([AnnotatedImage("a.png", 90, 120, (AnnotatedObject.from_mask("cat", mask),))], tmp_path, ["cat"], shapes="polygon")
    (shape,) = json.loads((tmp_path / "a.json").read_text())["shapes"]
    wider = labelme.paint(shape, mask.shape)
    assert not (mask & ~wider).any()
    assert 0.93 < mask.sum() / wider.sum() < 1


def test_fields(images: list[AnnotatedImage], labels: list[str], tmp_path: Path) -> None:
    written(images, tmp_path, labels)
    content = json.loads((tmp_path / "sub" / "ü b.json").read_text("utf-8"))
    assert list(content) == ["version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"]
    assert content["imagePath"] == "ü b.png"  # beside it
    assert content["imageData"] is None
    shape = content["shapes"][1]
    assert set(shape) == {"label", "points", "group_id", "description", "shape_type", "flags", "mask", "score"}
    assert shape["points"] == [[1.0, 0.0], [5.0, 4.0]]
    assert shape["group_id"] is None
    assert json.loads((tmp_path / "sub" / "empty.json").read_text())["shapes"] == []


def test_the_way_to_the_picture(tmp_path: Path) -> None:
    (tmp_path / "real" / "photos").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "photos" / "x").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "real" / "photos" / "x" / "a.png")
    written([AnnotatedImage("x/a.png", 2, 3)], tmp_path / "out", ["cat"], images_root=tmp_path / "link" / "photos")
    path = json.loads((tmp_path / "out" / "x" / "a.json").read_text())["imagePath"]
    assert path == "../../real/photos/x/a.png"
    assert (tmp_path / "out" / "x" / path).is_file()
