"""Samples and subsets: files are read on demand, and labels that contradict the image are an error."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2sam.errors import InputError
from text2sam.lab.datasets import DATASETS, IGNORE, TASKS, Dataset, Instance, Sample, open_dataset, reader_options, subset
from text2sam.lab.datasets import names as known

CLASSES = ("background", "cat", "dog")


def picture(h: int = 2, w: int = 3) -> Callable[[], Any]:
    return lambda: np.zeros((h, w, 3), np.uint8)


def never(*_: Any) -> Any:
    pytest.fail("read too early")


def mapped(rows: list[list[int]], *, background: bool = True, **more: Any) -> Sample:
    values = np.array(rows, np.uint8)
    return Sample("one", CLASSES, background, picture(*values.shape), read_semantic=lambda: values, **more)


def small(count: int = 10, **more: Any) -> Dataset:
    def make(place: int) -> Sample:
        return Sample(f"s{place}", CLASSES, True, never)

    ids = [f"s{i}" for i in range(count)]
    return Dataset("small", "Small", CLASSES, True, ("recognition",), ids, make, **more)


def test_a_class_map_gives_labels_masks_and_ignored_pixels() -> None:
    sample = mapped([[0, 2, 255], [0, 2, 0]])
    assert sample.semantic.dtype == np.int32
    assert sample.shape == (2, 3)
    assert sample.labels == ("dog",)
    assert list(sample.masks) == ["dog"]
    assert sample.masks["dog"].tolist() == [[False, True, False]] * 2
    assert sample.ignored.tolist() == [[False, False, True], [False] * 3]
    assert mapped([[0, 2, 255]], background=False).labels == ("background", "dog")  # an ordinary class


def test_an_image_of_one_pixel_and_an_ignored_image() -> None:
    assert mapped([[1]]).labels == ("cat",)
    nothing = mapped([[255, 255]])
    assert (nothing.labels, nothing.masks) == ((), {})
    assert nothing.ignored.all()


def test_files_are_read_once_and_on_demand() -> None:
    calls: list[str] = []

    def read() -> Any:
        calls.append("map")
        return np.ones((2, 3), np.int64)

    sample = Sample("one", CLASSES, True, picture(2, 3), read_semantic=read)
    assert not calls
    assert sample.labels == ("cat",)
    assert sample.masks["cat"].all()
    assert calls == ["map"]


def test_a_class_map_of_another_size() -> None:
    sample = Sample("x7", CLASSES, True, picture(4, 5), read_semantic=lambda: np.zeros((5, 4), np.uint8))
    with pytest.raises(InputError, match=r"'x7' is 5 x 4 pixels .* its picture 4 x 5"):
        sample.semantic  # noqa: B018


def test_objects_give_a_class_map_with_the_smallest_on_top() -> None:
    large, tiny, crowd = (np.zeros((2, 3), bool) for _ in range(3))
    large[:, :2] = tiny[0, 0] = crowd[0, :] = True
    objects = [Instance("dog", tiny), Instance("cat", large), Instance("cat", crowd, crowd=True)]
    sample = Sample("one", CLASSES, True, picture(), read_instances=lambda _: objects)
    assert sample.semantic.tolist() == [[2, 1, IGNORE], [1, 1, 0]]
    assert sample.labels == ("cat", "dog")
    assert sample.masks["cat"].tolist() == large.tolist()  # overlaps the dog, and excludes the crowd
    bare = Sample("one", ("cat", "dog"), False, picture(), read_instances=lambda _: objects[:1])
    assert bare.semantic.tolist() == [[1, 255, 255], [255] * 3]


def test_only_a_crowd_is_a_label_without_a_mask() -> None:
    objects = [Instance("cat", np.ones((2, 3), bool), crowd=True)]
    sample = Sample("one", CLASSES, True, picture(), read_instances=lambda _: objects)
    assert sample.labels == ("cat",)
    assert sample.masks == {}
    assert sample.ignored.all()


def test_only_labels() -> None:
    sample = Sample("one", CLASSES, True, never, read_labels=lambda: ["dog", "cat", "dog"])
    assert sample.labels == ("cat", "dog")
    with pytest.raises(InputError, match="no class map"):
        Sample("one", CLASSES, True, picture(), read_labels=list).semantic  # noqa: B018
    with pytest.raises(InputError, match="no objects"):
        sample.instances  # noqa: B018


# data sets


def test_a_dataset_is_a_sequence_that_reads_no_file() -> None:
    data = small(3)
    assert len(data) == 3
    assert [s.id for s in data] == [s.id for s in (data[0], data[np.int64(1)], data[-1])] == ["s0", "s1", "s2"]
    for place in (3, -4):
        with pytest.raises(IndexError, match="3 samples"):
            data[place]
    for wrong in ("s0", slice(0, 2)):
        with pytest.raises(TypeError, match="as an integer"):
            data[wrong]  # type: ignore[index]
    assert data.foreground == ("cat", "dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ()}, "no images"),
        ({"classes": tuple(f"c{i}" for i in range(256))}, "has 256 classes"),
        ({"classes": ("cat", "dog", "cat")}, "'cat' occurs twice"),
    ],
)
def test_bad_datasets(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(small(), **change)


def test_subset() -> None:
    data = small(10)
    assert subset(data) is data
    assert subset(data, 10, seed=3) is data
    assert [s.id for s in subset(data, 3)] == ["s0", "s1", "s2"]
    three, five = (subset(data, n, seed=1) for n in (3, 5))
    assert set(three.ids) < set(five.ids)
    assert [s.id for s in five] == list(five.ids) == [i for i in data.ids if i in five.ids]  # the right samples in order
    assert five.ids != subset(data, 5, seed=3).ids
    assert three.describe()["options"] == {"limit": 3, "subset_seed": 1}
    assert subset(data, 4, seed=0).ids == ("s0", "s3", "s5", "s6")  # the same on every machine
    assert [s.id for s in subset(five, 2)] == list(five.ids[:2])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.one_of(st.none(), st.integers(0, 1 << 70)))
def test_a_subset_keeps_the_order(count: int, limit: int, seed: int | None) -> None:
    data = small(count)
    ids = list(subset(data, limit, seed).ids)
    assert len(ids) == min(limit, count)
    assert ids == [name for name in data.ids if name in ids]


# names, and the registry

SIZES = {"VOC": 20, "CONTEXT": 59, "COCO": 80, "COCO_STUFF": 171, "CITYSCAPES": 19, "ADE": 150, "NUS_WIDE": 81, "CAMVID": 12}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_class_names(name: str, size: int) -> None:
    classes = getattr(known, name)
    assert len(classes) == len(set(classes)) == size
    assert all(label == label.strip() and label for label in classes)


def test_imagenet_names_are_those_of_wordnet() -> None:
    spec = importlib.util.find_spec("timm")  # not imported, since that takes seconds
    if spec is None or spec.origin is None:
        pytest.skip("timm is not there")
    lines = (Path(spec.origin).parent / "data/_info/imagenet_synset_to_lemma.txt").read_text().splitlines()
    words = {wnid: text.split(", ") for wnid, _, text in (line.partition("\t") for line in lines)}
    for wnid, name in known.IMAGENET_S50.items():
        assert name in words[wnid], wnid


def test_registry() -> None:
    assert set(DATASETS) == {
        "voc", "context", "coco", "coco-stuff", "cityscapes", "ade", "imagenet-s50", "nus-wide", "camvid", "cod10k",
        "potsdam", "folder", "sticker",
    }  # fmt: skip
    assert reader_options("voc") == {"background": True, "labels": "SegmentationClass"}
    assert len(TASKS) == 4
    with pytest.raises(InputError, match="no data set 'pascal'; there are voc,"):
        open_dataset("pascal")
    with pytest.raises(InputError, match="no voc option 'size'; there are background, labels, frame"):
        open_dataset("voc", ".", size=3)
    with pytest.raises(InputError, match="needs the folder"):
        open_dataset("voc")
    for name, options, message in (
        ("voc", {"background": "yes"}, "'background' must be true or false, not 'yes'"),
        ("coco", {"annotations": 3}, "'annotations' must be a text, not 3"),
        ("folder", {"label": 3}, "'label' must be a text"),
        ("cod10k", {"label": None}, "'label' must be a text"),
        ("sticker", {"scenes": 2.0}, "'scenes' must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(name, ".", **options)  # type: ignore[arg-type]
