"""YOLO's text files, read back as ultralytics finds them, with pycocotools and with supervision."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from pycocotools import mask as coco

from text2sam.errors import InputError, OutputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import make_exporter
from text2sam.export.losses import Losses
from text2sam.export.yolo import YoloExporter

# pycocotools decodes through an __array__ of before NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Content = Callable[[Path], dict[str, bytes]]


def written(images: list[AnnotatedImage], out: Path, labels: list[str], **options: Any) -> Losses:
    with make_exporter(out, format="yolo", labels=labels, **options) as exporter:
        for image in images:
            exporter.add(image)
    return exporter.close()


def label_file(image: Path) -> Path:
    """Where ultralytics looks for an image's labels."""
    old, new = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return Path(new.join(str(image).rsplit(old, 1)).rsplit(".", 1)[0] + ".txt")


def masks_of(text: str, h: int, w: int) -> list[tuple[int, NDArray[np.bool_]]]:
    out = []
    for line in text.splitlines():
        number, *values = line.split()
        points = np.array(values, np.float64).reshape(-1, 2) * (w, h)
        assert (points >= 0).all()
        assert len(points) > 3
        rle = coco.merge(coco.frPyObjects([points.ravel().tolist()], h, w))
        out.append((int(number), coco.decode(rle).astype(bool)))
    return out


def test_there_and_back(
    images: list[AnnotatedImage], labels: list[str], truth: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    written(images, out, labels, images_root=root)
    data = yaml.safe_load((out / "data.yaml").read_text("ascii"))
    assert data == {"train": "images", "val": "images", "nc": 3, "names": dict(enumerate(labels))}
    for image in images:
        picture = out / data["train"] / image.path
        assert picture.read_bytes() == (root / image.path).read_bytes()
        found = masks_of(label_file(picture).read_text("ascii"), image.height, image.width)
        assert len(found) == len(truth[image.path])
        for (number, mask), (label, expected) in zip(found, truth[image.path], strict=True):
            assert data["names"][number] == label
            assert (mask == expected).all()


def test_an_empty_image_has_an_empty_file(
    images: list[AnnotatedImage], labels: list[str], tmp_path: Path, content: Content
) -> None:
    written(images, tmp_path, labels)
    files = content(tmp_path)
    assert set(files) == {"data.yaml", "labels/a.txt", "labels/one.txt", "labels/sub/empty.txt", "labels/sub/ü b.txt"}
    assert files["labels/sub/empty.txt"] == b""
    assert files["labels/one.txt"] == b"0 0.000000 0.000000 1.000000 0.000000 1.000000 1.000000 0.000000 1.000000\n"


def test_supervision_reads_it(tmp_path: Path) -> None:
    # OpenCV paints the outline too: a pixel more at the right and lower edge, and holes narrower
    import supervision
    from PIL import Image

    y, x = np.mgrid[:120, :160]
    mask = ((x - 70) ** 2 + (y - 60) ** 2 < 50**2) & ~((x - 70) ** 2 + (y - 60) ** 2 < 20**2)
    objects = (AnnotatedObject.from_mask("dog", mask), AnnotatedObject.from_mask("cat", x > 130))
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((120, 160, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    losses = written(
        [AnnotatedImage("a.png", 120, 160, objects)], tmp_path / "out", ["cat", "dog"], images_root=tmp_path / "photos"
    )
    assert losses.holes == 1
    out = tmp_path / "out"
    read = supervision.DetectionDataset.from_yolo(str(out / "images"), str(out / "labels"), str(out / "data.yaml"))
    (found,) = read.annotations.values()
    assert list(read.classes) == ["cat", "dog"]
    assert found.class_id.tolist() == [1, 0]
    for one, painted in zip(objects, found.mask, strict=True):
        assert not (one.mask & ~painted).any()
        assert one.area / painted.sum() > 0.95


def test_bridges_keep_an_object_in_one_line(images: list[AnnotatedImage], labels: list[str], tmp_path: Path) -> None:
    losses = written(images, tmp_path, labels)
    assert (losses.parts, losses.holes) == (4, 3)
    assert len((tmp_path / "labels/a.txt").read_text().splitlines()) == 3


def test_fine_coordinates_of_long_images(tmp_path: Path) -> None:
    mask = np.zeros((2, 3_000_001), np.bool_)
    mask[0, 2_999_998] = True
    written([AnnotatedImage("a.png", *mask.shape, (AnnotatedObject.from_mask("cat", mask),))], tmp_path, ["cat"])
    ((_, found),) = masks_of((tmp_path / "labels/a.txt").read_text(), *mask.shape)
    assert (found == mask).all()


@pytest.mark.parametrize("path", ["a.jpg", "x/images/a.b.png", "images/a.jpg", "x.y/a.jpg", "labels/images/images/a.jpg"])
def test_labels_lie_where_ultralytics_looks(path: str, tmp_path: Path) -> None:
    assert [str(tmp_path / name) for name in YoloExporter.names_of(path)] == [str(label_file(tmp_path / "images" / path))]


def test_links_to_the_pictures(images: list[AnnotatedImage], labels: list[str], root: Path, tmp_path: Path) -> None:
    for _ in range(2):
        written(images, tmp_path / "out", labels, images_root=root, pictures="link")
    for image in images:
        link = tmp_path / "out" / "images" / image.path
        assert link.is_symlink()
        assert link.resolve() == root / image.path
        assert not os.path.isabs(os.readlink(link))
    with pytest.raises(OutputError, match="not in the folder"):
        written(images, tmp_path / "out", labels, images_root=root)  # would write through the links
    assert (root / "a.jpg").stat().st_size > 0


def test_pictures_that_lie_there_already(images: list[AnnotatedImage], labels: list[str], root: Path, content: Content) -> None:
    out = root.parent / "set"
    out.mkdir()
    root.rename(out / "images")
    before = content(out)
    written(images, out, labels, images_root=out / "images")
    assert before.items() <= content(out).items()


def test_a_picture_that_is_missing(root: Path, tmp_path: Path) -> None:
    with (
        make_exporter(tmp_path / "out", format="yolo", labels=["cat"], images_root=root) as exporter,
        pytest.raises(InputError, match=r"no image 'gone\.jpg'"),
    ):
        exporter.add(AnnotatedImage("gone.jpg", 2, 2))
