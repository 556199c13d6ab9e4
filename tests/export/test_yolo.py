"""YOLO's text files, read back as ultralytics finds them, with pycocotools and with supervision."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from helpers import exported
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import make_exporter
from text2sam.export.yolo import YoloExporter

# pycocotools decodes through an __array__ of before NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Content = Callable[[Path], dict[str, bytes]]


written = functools.partial(exported, "yolo")


def label_file(image: Path) -> Path:
    """Where ultralytics looks for an image's labels."""
    old, new = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return Path(new.join(str(image).rsplit(old, 1)).rsplit(".", 1)[0] + ".txt")


def masks_of(text: str, h: int, w: int) -> list[tuple[int, NDArray[np.bool_]]]:
    """Read as ultralytics reads: float32, corners cut to int32, filled with the outline painted."""
    cv2 = pytest.importorskip("cv2")
    out = []
    for line in text.splitlines():
        number, *values = line.split()
        assert len(values) >= 6  # fewer are a box
        points = np.array(values, np.float32).reshape(-1, 2)
        assert ((points >= 0) & (points <= 1)).all()
        mask = np.zeros((h, w), np.uint8)
        cv2.fillPoly(mask, [(points * np.array([w, h], np.float32)).astype(np.int32)], 1)
        out.append((int(number), mask.astype(bool)))
    return out


def by_pycocotools(line: str, h: int, w: int) -> NDArray[np.bool_]:
    points = np.array(line.split()[1:], np.float64).reshape(-1, 2) * (w, h)
    mask: NDArray[np.bool_] = coco.decode(coco.merge(coco.frPyObjects([points.ravel().tolist()], h, w))).astype(bool)
    return mask


def test_there_and_back(
    images: list[AnnotatedImage], labels: list[str], truth: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    losses = written(images, out, labels, images_root=root)
    assert (losses.parts, losses.holes) == (4, 3)
    data = yaml.safe_load((out / "data.yaml").read_text("ascii"))
    assert data == {"train": "images", "val": "images", "nc": 3, "names": dict(enumerate(labels))}
    for image in images:
        picture = out / data["train"] / image.path
        assert picture.read_bytes() == (root / image.path).read_bytes()
        text = label_file(picture).read_text("ascii")
        size = image.height, image.width
        for line, (number, painted), (label, mask) in zip(
            text.splitlines(), masks_of(text, *size), truth[image.path], strict=True
        ):
            assert data["names"][number] == label
            assert (by_pycocotools(line, *size) == mask).all()
            parts = ndimage.label(mask, np.ones((3, 3)))[1]
            assert not (mask & ~painted).any()
            assert parts > 1 or (painted == mask).all()  # bridges between parts are painted


@pytest.mark.parametrize("size", [(480, 640), (37, 53)])
@pytest.mark.parametrize("kind", ["ellipse", "box", "turned box", "ring"])
def test_small_objects_come_back_as_ultralytics_reads_them(size: tuple[int, int], kind: str, tmp_path: Path) -> None:
    h, w = size
    rng = np.random.default_rng(0)
    masks = []
    for x, y, turn in zip(rng.uniform(6, w - 6, 20), rng.uniform(6, h - 6, 20), rng.uniform(0, 3, 20), strict=True):
        y0, x0 = int(y) - 6, int(x) - 6
        dy, dx = np.mgrid[y0 : y0 + 12, x0 : x0 + 12] + 0.5 - np.array([y, x])[:, None, None]
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        distance = np.hypot(u / 4, v / 3.2)
        inside = {
            "ellipse": distance <= 1,
            "box": (abs(dx) < 4) & (abs(dy) < 3),
            "turned box": (abs(u) < 4) & (abs(v) < 3),
            "ring": (distance <= 1) & (distance > 0.4),
        }
        masks.append(np.zeros(size, np.bool_))
        masks[-1][y0 : y0 + 12, x0 : x0 + 12] = inside[kind]
    objects = tuple(AnnotatedObject.from_mask("bee", mask) for mask in masks)
    written([AnnotatedImage("a.png", h, w, objects)], tmp_path, ["bee"])
    read = [mask for _, mask in masks_of((tmp_path / "labels" / "a.txt").read_text(), h, w)]
    assert len(read) == len(masks)
    ratios = [painted.sum() / mask.sum() for painted, mask in zip(read, masks, strict=True)]
    ious = [(painted & mask).sum() / (painted | mask).sum() for painted, mask in zip(read, masks, strict=True)]
    assert np.mean(ious) > 0.99
    assert 0.99 < np.mean(ratios) < 1.01


def test_an_empty_image_has_an_empty_file(
    images: list[AnnotatedImage], labels: list[str], tmp_path: Path, content: Content
) -> None:
    written(images, tmp_path, labels)
    files = content(tmp_path)
    assert set(files) == {"data.yaml", "labels/a.txt", "labels/one.txt", "labels/sub/empty.txt", "labels/sub/ü b.txt"}
    assert files["labels/sub/empty.txt"] == b""
    assert files["labels/one.txt"] == b"0 0.100000 0.100000 0.900000 0.100000 0.900000 0.900000 0.100000 0.900000\n"


def test_supervision_reads_it(tmp_path: Path) -> None:
    # it rounds to the nearest pixel: a pixel more at the right and lower edge, and holes narrower
    import supervision

    y, x = np.mgrid[:120, :160]
    mask = ((x - 70) ** 2 + (y - 60) ** 2 < 50**2) & ~((x - 70) ** 2 + (y - 60) ** 2 < 20**2)
    objects = (AnnotatedObject.from_mask("dog", mask), AnnotatedObject.from_mask("cat", x > 130))
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((120, 160, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    out = tmp_path / "out"
    written([AnnotatedImage("a.png", 120, 160, objects)], out, ["cat", "dog"], images_root=tmp_path / "photos")
    read = supervision.DetectionDataset.from_yolo(str(out / "images"), str(out / "labels"), str(out / "data.yaml"))
    (found,) = read.annotations.values()
    assert list(read.classes) == ["cat", "dog"]
    assert found.class_id.tolist() == [1, 0]
    for item, painted in zip(objects, found.mask, strict=True):
        assert not (item.mask & ~painted).any()
        assert item.area / painted.sum() > 0.95


def test_long_images(tmp_path: Path) -> None:
    mask = np.zeros((2, 300_001), np.bool_)
    mask[0, [0, 299_998]] = True
    objects = tuple(AnnotatedObject.from_mask("cat", mask & (np.arange(300_001) // 9 == k)) for k in (0, 299_998 // 9))
    written([AnnotatedImage("a.png", *mask.shape, objects)], tmp_path, ["cat"])
    text = (tmp_path / "labels/a.txt").read_text()
    for (_, painted), item, line in zip(masks_of(text, *mask.shape), objects, text.splitlines(), strict=True):
        assert (painted == item.mask).all()
        assert (by_pycocotools(line, *mask.shape) == item.mask).all()


@pytest.mark.parametrize("pictures", ["copy", "none"])
def test_pictures_that_ultralytics_does_not_open(pictures: str, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "x").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    kinds = {
        "a.tga": "TGA",
        "b.gif": "GIF",
        "c.png": "PPM",
        "d.JPG": "PNG",
        "x/e.ppm": "PPM",
        "f.tif": "TIFF",
        "g.webp": "WEBP",
    }
    for name, kind in kinds.items():
        Image.fromarray(pixels).save(photos / name, kind, **({"lossless": True} if kind == "WEBP" else {}))
    tifffile.imwrite(photos / "h.tif", pixels / np.float32(255), photometric="rgb")
    images = [AnnotatedImage(name, 3, 5) for name in [*kinds, "h.tif"]]
    losses = written(images, out, ["cat"], images_root=photos, pictures=pictures)
    expected = {"a.png", "b.png", "c.png", "d.JPG", "x/e.png", "f.tif", "g.webp", "h.png"}
    names = {path.relative_to(out / "images").as_posix() for path in (out / "images").rglob("*") if not path.is_dir()}
    if pictures == "none":
        assert (losses.converted, names) == (0, set())
        return
    assert losses.converted == 5
    assert "5 images converted to PNG" in str(losses)
    assert names == expected
    for name in expected - {"b.png"}:  # a GIF has a palette
        with Image.open(out / "images" / name) as image:
            assert image.format in ("PNG", "TIFF", "WEBP")
            assert (np.asarray(image.convert("RGB")) == pixels).all()
        assert label_file(out / "images" / name).is_file()


def test_a_picture_above_the_limit_is_converted_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.tga"):
        Image.new("RGB", (9, 5)).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    written([AnnotatedImage(name, 5, 9) for name in ("a.png", "b.tga")], tmp_path / "out", ["cat"], images_root=tmp_path)
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"a.png", "b.png"}


def test_pictures_are_put_there_as_they_were_read(tmp_path: Path) -> None:
    Image.new("RGB", (9, 5), (30, 30, 30)).save(tmp_path / "a.png")
    written([AnnotatedImage("a.png", 5, 9)], tmp_path, ["cat"], images_root=tmp_path, reading={"value_range": (0, 60)})
    assert Image.open(tmp_path / "images" / "a.png").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("reading", [{"page": 1}, {"value_range": (0, 60)}])
def test_a_png_does_not_replace_the_picture_it_is_made_of(tmp_path: Path, reading: dict[str, Any]) -> None:
    (tmp_path / "images").mkdir()
    first, second = Image.new("RGB", (9, 5)), Image.new("RGB", (9, 5), (9, 9, 9))
    first.save(tmp_path / "images" / "a.png", save_all=True, append_images=[second])
    before = (tmp_path / "images" / "a.png").read_bytes()
    with (
        make_exporter(tmp_path, format="yolo", labels=["cat"], images_root=tmp_path / "images", reading=reading) as exporter,
        pytest.raises(InputError, match="own place"),
    ):
        exporter.add(AnnotatedImage("a.png", 5, 9))
    assert (tmp_path / "images" / "a.png").read_bytes() == before


@pytest.mark.parametrize("path", ["a.jpg", "x/images/a.b.png", "images/a.jpg", "x.y/a.jpg", "labels/images/images/a.jpg"])
def test_labels_lie_where_ultralytics_looks(path: str, tmp_path: Path) -> None:
    assert [str(tmp_path / name) for name in YoloExporter.names_of(path)] == [str(label_file(tmp_path / "images" / path))]


def test_pictures_that_lie_there_already(images: list[AnnotatedImage], labels: list[str], root: Path, content: Content) -> None:
    out = root.parent / "set"
    out.mkdir()
    root.rename(out / "images")
    before = content(out)
    with make_exporter(out, format="yolo", labels=labels, images_root=out / "images") as exporter:
        for image in images:
            exporter.add(image)
    assert before.items() <= content(out).items()
    assert not before.keys() & exporter.files, "they are not the exporter's to remove later"


def test_copies_are_among_the_files_written(
    images: list[AnnotatedImage], labels: list[str], root: Path, tmp_path: Path, content: Content
) -> None:
    with make_exporter(tmp_path / "out", format="yolo", labels=labels, images_root=root) as exporter:
        for image in images:
            exporter.add(image)
    assert exporter.files == content(tmp_path / "out").keys()


def test_a_picture_that_is_missing(root: Path, tmp_path: Path) -> None:
    with (
        make_exporter(tmp_path / "out", format="yolo", labels=["cat"], images_root=root) as exporter,
        pytest.raises(InputError, match=r"no image 'gone\.jpg'"),
    ):
        exporter.add(AnnotatedImage("gone.jpg", 2, 2))
