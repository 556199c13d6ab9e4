"""Comparison of an annotated data set with the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from text2sam.cli.commands import app
from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedObject
from text2sam.lab.experiments.dataset import compare

SIZE = (20, 30)


def square(x: int, side: int = 10) -> dict[str, Any]:
    mask = np.zeros(SIZE, bool)
    mask[:side, x : x + side] = True
    return AnnotatedObject.from_mask("a", mask).rle


def dataset(path: Path, images: dict[str, dict[str, list[Any]]], labels: list[str]) -> Path:
    """Writes a data set: file name -> label -> masks."""
    items, records = [], []
    for k, (name, objects) in enumerate(images.items()):
        records.append({"id": k, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for label, masks in objects.items():
            for mask in masks:
                number = len(items) + 1
                items.append(
                    {"id": number, "image_id": k, "category_id": labels.index(label) + 7, "segmentation": mask, "iscrowd": 0}
                )
    categories = [{"id": k + 7, "name": name} for k, name in enumerate(labels)]
    path.write_text(json.dumps({"images": records, "annotations": items, "categories": categories}))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    polygon = [[0, 0, 10, 0, 10, 10, 0, 10]]
    truth = {
        "a.jpg": {"cat": [polygon, square(15)]},
        "b.jpg": {"cat": [square(0)]},
        "c.jpg": {"dog": [square(0)]},
        "d.jpg": {},
    }
    found = {
        "x/a.jpg": {"cat": [square(0)]},
        "x/b.jpg": {},
        "x/c.jpg": {"cat": [square(0)]},
        "x/other.jpg": {"dog": [square(0)]},
    }
    return dataset(tmp_path / "found.json", found, ["dog", "cat"]), dataset(
        tmp_path / "true.json", truth, ["bird", "cat", "dog"]
    )


def test_figures_by_hand(files: tuple[Path, Path]) -> None:
    dog, cat, every = compare(*files)
    assert dog == {"label": "dog", "there": 1, "found": 0, "missed": 1, "wrong": 0, "iou": None, "iou_there": 0.0}
    counts = {"there": 2, "found": 1, "missed": 1, "wrong": 1}
    assert cat == {"label": "cat", **counts, "iou": pytest.approx(0.5), "iou_there": pytest.approx(0.25)}
    counts = {"there": 3, "found": 1, "missed": 2, "wrong": 1}
    assert every == {"label": "all", **counts, "iou": pytest.approx(0.5), "iou_there": pytest.approx(0.5 / 3)}


def test_images_of_one_name_in_several_folders(tmp_path: Path) -> None:
    labels, there, nothing = ["cat"], {"cat": [square(0)]}, dict[str, list[Any]]()
    truth = dataset(tmp_path / "true.json", {"1/a.jpg": there, "2/a.jpg": nothing, "b.jpg": there}, labels)
    rows = compare(dataset(tmp_path / "found.json", {"1/a.jpg": there, "2/a.jpg": nothing, "3/b.jpg": there}, labels), truth)
    assert [rows[0][key] for key in ("there", "found", "wrong", "iou")] == [2, 2, 0, 1.0]
    for names in (["a.jpg"], ["4/a.jpg"], ["1/a.jpg", "3/b.jpg", "4/b.jpg"]):
        found = dataset(tmp_path / "found.json", dict.fromkeys(names, there), labels)
        with pytest.raises(InputError, match="name of several images"):
            compare(found, truth)


def test_the_command(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "dataset", *map(str, files), "--out", str(tmp_path / "figures.json")])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].split() == ["all", "3", "1", "2", "1", "0.500", "0.167"]
    assert json.loads((tmp_path / "figures.json").read_text())["labels"][1]["missed"] == 1


def test_files_that_cannot_be_compared(files: tuple[Path, Path], tmp_path: Path) -> None:
    found, truth = files
    (tmp_path / "none.json").write_text("[]")
    for broken in (tmp_path / "none.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError):
            compare(broken, truth)
    with pytest.raises(InputError, match="no label 'bird'"):
        compare(truth, found)
    content = json.loads(found.read_text())
    content["images"][0] |= {"height": 4, "width": 4}
    content["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4]]
    (tmp_path / "small.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"'x/a\.jpg' are of different sizes: \[\(4, 4\), \(20, 30\)\]"):
        compare(tmp_path / "small.json", truth)
    with pytest.raises(InputError, match="same file name"):
        compare(found, dataset(tmp_path / "far.json", {"far.jpg": {}}, ["dog", "cat"]))
