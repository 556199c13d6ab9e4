"""Label Studio's tasks, read back with its SDK."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import exported
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage
from text2sam.export.label_studio import brush_rle

brush = pytest.importorskip("label_studio_sdk.converter.brush")


def written(images: list[AnnotatedImage], out: Path, labels: list[str], **options: Any) -> list[Any]:
    exported("label-studio", images, out, labels, **options)
    tasks: list[Any] = json.loads((out / "tasks.json").read_text("ascii"))
    return tasks


def decoded(rle: list[int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    channels = brush.decode_rle(rle).reshape(*shape, 4)
    assert set(np.unique(channels)) <= {0, 255}
    assert (channels == channels[..., :1]).all()
    mask: NDArray[np.bool_] = channels[..., 3] > 0
    return mask


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 5)])
def test_brushes_there_and_back(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        mask = rng.random(shape) < share
        assert (decoded(brush_rle(mask), shape) == mask).all()
        assert all(type(value) is int and 0 <= value < 256 for value in brush_rle(mask))


@pytest.mark.parametrize("length", [1, 2, 5, 63, 65, 66, 16384, 32768, 32769])
def test_runs_of_any_length(length: int) -> None:
    mask = np.ones((1, length + 1), np.bool_)
    mask[0, -1] = False
    assert (decoded(brush_rle(mask), (1, length + 1)) == mask).all()


def test_the_sdk_writes_the_same() -> None:
    mask = np.random.default_rng(1).random((6, 7)) < 0.5
    theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
    ours = brush_rle(mask)
    assert ours == theirs[: len(ours)]
    assert not any(theirs[len(ours) :])


def test_there_and_back(images: list[AnnotatedImage], labels: list[str], truth: dict[str, Any], tmp_path: Path) -> None:
    tasks = written(images, tmp_path, labels)
    assert [unquote(task["data"]["image"]) for task in tasks] == [f"/data/local-files/?d={image.path}" for image in images]
    assert tasks[2]["data"]["image"].isascii()
    for task, image in zip(tasks, images, strict=True):
        (prediction,) = task["predictions"]
        assert len({region["id"] for region in prediction["result"]}) == len(image.objects)
        for region, (label, mask), item in zip(prediction["result"], truth[image.path], image.objects, strict=True):
            assert region["type"] == "brushlabels"
            assert (region["original_height"], region["original_width"]) == mask.shape
            assert region["value"]["format"] == "rle"
            assert region["value"]["brushlabels"] == [label]
            assert region["score"] == item.score
            assert (decoded(region["value"]["rle"], mask.shape) == mask).all()
    assert tasks[0]["predictions"][0]["score"] == pytest.approx((0.9 + 0.5 + 0.25) / 3)
    assert tasks[1]["predictions"] == [{"model_version": "text2sam", "score": 0.0, "result": []}]


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
def test_the_sdk_checks_the_tasks(images: list[AnnotatedImage], labels: list[str], tmp_path: Path) -> None:
    from label_studio_sdk.label_interface import LabelInterface

    tasks = written(images, tmp_path, labels, prefix="s3://bucket/")
    interface = LabelInterface((tmp_path / "label_config.xml").read_text("utf-8"))
    assert tasks[0]["data"] == {"image": "s3://bucket/a.jpg"}
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})  # with predictions it calls itself wrongly
        assert all(interface.validate_prediction(prediction) for prediction in task["predictions"])
    tasks[0]["predictions"][0]["result"][0]["value"]["brushlabels"] = ["no such"]
    assert not interface.validate_prediction(tasks[0]["predictions"][0])


def test_the_configuration_holds_odd_labels(tmp_path: Path) -> None:
    labels = ["a \"b\" <c> & 'd'", "line\nbreak\ttab", "ü/..", "</View>"]
    written([], tmp_path, labels)
    tree = ElementTree.parse(tmp_path / "label_config.xml")
    assert [label.get("value") for label in tree.iter("Label")] == labels
    with pytest.raises(InputError, match="XML"):
        written([], tmp_path / "b", ["a\0b"])


def test_paths_that_are_no_unicode(tmp_path: Path) -> None:
    (task,) = written([AnnotatedImage("\udcff.jpg", 1, 1)], tmp_path, ["cat"])
    assert task["data"]["image"].endswith("%FF.jpg")
    with pytest.raises(InputError, match="address"):
        written([AnnotatedImage("\ud800.jpg", 1, 1)], tmp_path, ["cat"])
