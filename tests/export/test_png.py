"""PNG pictures, read back with Pillow."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import exported
from PIL import Image

from text2sam.errors import InputError
from text2sam.export import png
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.losses import Losses

Content = Callable[[Path], dict[str, bytes]]


written = functools.partial(exported, "png")


def test_masks_there_and_back(images: list[AnnotatedImage], labels: list[str], truth: dict[str, Any], tmp_path: Path) -> None:
    written(images, tmp_path, labels)
    index = json.loads((tmp_path / "index.json").read_text())
    assert [entry["path"] for entry in index] == [image.path for image in images]
    for entry in index:
        pairs = truth[entry["path"]]
        assert set(entry["masks"]) == {label for label, _ in pairs}
        for label, name in entry["masks"].items():
            picture = np.array(Image.open(tmp_path / name))
            assert picture.dtype == np.uint8
            union = np.logical_or.reduce([mask for one, mask in pairs if one == label])
            assert (picture == np.where(union, 255, 0)).all()


def test_maps_where_nothing_overlaps(tmp_path: Path) -> None:
    a, b, c = np.zeros((3, 4, 5), np.bool_)
    a[0], b[2, :2], c[3, 3:] = True, True, True
    objects = tuple(AnnotatedObject.from_mask(*pair) for pair in (("dog", a, 0.5), ("cat", b, 0.9), ("dog", c, 0.7)))
    losses = written([AnnotatedImage("x/a.jpg", 4, 5, objects)], tmp_path, ["cat", "dog"])
    assert losses.total == 0
    classes = Image.open(tmp_path / "labels" / "x" / "a.png")
    assert classes.mode == "P"
    assert (np.array(classes) == 2 * a + b + 2 * c).all()
    table = json.loads((tmp_path / "labels.json").read_text())
    assert [(one["id"], one["name"]) for one in table] == [(1, "cat"), (2, "dog")]
    assert (np.array(classes.convert("RGB"))[0, 0] == table[1]["colour"]).all()
    assert classes.convert("RGB").getpixel((0, 1)) == (0, 0, 0)
    instances = np.array(Image.open(tmp_path / "instances" / "x" / "a.png"))
    assert instances.dtype in (np.uint16, np.int32)
    assert (instances == 1 * a + 2 * b + 3 * c).all()
    (entry,) = json.loads((tmp_path / "index.json").read_text())
    assert entry["objects"] == [
        {"id": 1, "label": "dog", "score": 0.5},
        {"id": 2, "label": "cat", "score": 0.9},
        {"id": 3, "label": "dog", "score": 0.7},
    ]


@pytest.mark.parametrize("scores", [(0.5, 0.9), (0.9, 0.5), (0.5, 0.5)])
def test_the_higher_score_lies_above(scores: tuple[float, float], tmp_path: Path) -> None:
    masks = np.zeros((2, 1, 6), np.bool_)
    masks[0, 0, :4], masks[1, 0, 2:] = True, True
    objects = tuple(AnnotatedObject.from_mask(name, mask, s) for name, mask, s in zip("ab", masks, scores, strict=True))
    losses = written([AnnotatedImage("a.jpg", 1, 6, objects)], tmp_path, ["a", "b"])
    expected = [1, 1, 2, 2, 2, 2] if scores[1] > scores[0] else [1, 1, 1, 1, 2, 2]
    for kind in ("labels", "instances"):
        assert np.array(Image.open(tmp_path / kind / "a.png")).tolist() == [expected]
    assert (losses.overlaps, losses.hidden) == (1, 0)


def test_objects_of_one_label_hide_one_another(tmp_path: Path) -> None:
    masks = np.zeros((3, 1, 6), np.bool_)
    masks[0, 0, :4], masks[1, 0, 2:], masks[2, 0, :2] = True, True, True
    objects = tuple(AnnotatedObject.from_mask("cat", mask, s) for mask, s in zip(masks, (0.9, 0.8, 0.7), strict=True))
    images = [AnnotatedImage("a.jpg", 1, 6, objects)]
    assert written(images, tmp_path / "a", ["cat"]) == Losses("png", 1, 3, overlaps=1, hidden=1)


def test_more_than_a_byte_of_objects(tmp_path: Path) -> None:
    pixels = np.eye(300, dtype=np.bool_).reshape(300, 15, 20)
    objects = tuple(AnnotatedObject.from_mask("cat", mask) for mask in pixels)
    written([AnnotatedImage("a.jpg", 15, 20, objects)], tmp_path, ["cat"])
    assert np.array(Image.open(tmp_path / "instances" / "a.png")).ravel().tolist() == list(range(1, 301))


def test_an_empty_image_is_black(images: list[AnnotatedImage], labels: list[str], tmp_path: Path) -> None:
    written(images, tmp_path, labels)
    for kind in ("labels", "instances"):
        picture = np.array(Image.open(tmp_path / kind / "sub" / "empty.png"))
        assert picture.shape == (5, 7)
        assert not picture.any()


def test_odd_labels_are_safe_names(images: list[AnnotatedImage], labels: list[str], tmp_path: Path, content: Content) -> None:
    written(images, tmp_path / "out", labels)
    names = {name for name in content(tmp_path / "out") if name.startswith("masks/")}
    assert names == {
        "masks/a.jpg/001-cat.png",
        "masks/a.jpg/002-a_b_c.png",
        "masks/one.png/001-cat.png",
        "masks/sub/ü b.png/002-a_b_c.png",
        "masks/sub/ü b.png/003-a_x_y.png",
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("count", [255, 256])
def test_label_maps_have_a_palette_up_to_255_labels(count: int, tmp_path: Path) -> None:
    labels = [str(number) for number in range(count)]
    item = AnnotatedObject.from_mask(labels[-1], np.ones((1, 2), np.bool_))
    assert written([AnnotatedImage("a.jpg", 1, 2, (item,))], tmp_path, labels).total == 0
    picture = Image.open(tmp_path / "labels" / "a.png")
    assert (picture.mode == "P") == (count == 255)
    assert np.array(picture).tolist() == [[count, count]]


@pytest.mark.parametrize(("objects", "labels"), [(2, 3), (3, 2)])
def test_more_than_a_picture_can_number(objects: int, labels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_MOST", 2)
    items = (AnnotatedObject.from_mask("0", np.ones((1, 2), np.bool_)),) * objects
    with pytest.raises(InputError, match=f"has {objects} objects of {labels} labels"):
        written([AnnotatedImage("a.jpg", 1, 2, items)], tmp_path, [str(number) for number in range(labels)])
