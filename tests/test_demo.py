from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from text2sam import demo
from text2sam.errors import InputError, OutputError
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of


def answer(text: str, mask: NDArray[np.bool_], present: bool = True) -> Segmentation:
    points = PointPrompts(np.array([[3, 4], [1, 2]], np.float32), np.array([1, 0], np.uint8))
    candidates = Candidates(
        np.stack([mask, ~mask]), np.array([0.75, 0.5], np.float32), np.zeros((2, 4, 4), np.float32), 0, "the first"
    )
    similarity = SimilarityMap(np.eye(3, dtype=np.float32), text, "itsm")
    return Segmentation(mask, 0.75, box_of(mask), points, similarity, candidates, text, present, 0.25)


class Oracle:
    """Answers with what ``masks`` holds; a text it does not know gets an empty mask and is absent."""

    def __init__(self, masks: dict[str, NDArray[np.bool_]]) -> None:
        self.masks = masks

    def segment_many(self, image: NDArray[np.uint8], texts: Sequence[str], *, exclude: Sequence[str]) -> list[Segmentation]:
        nothing = np.zeros(image.shape[:2], bool)
        return [answer(t, self.masks.get(t, nothing), t in self.masks) for t in texts]


def test_shipped_scenes_hold_what_they_say() -> None:
    scenes = demo.load_scenes()
    assert [s.name for s in scenes] == ["pets", "desert", "seaside"]
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        assert 3 <= len(scene.masks) <= 5
        assert len(scene.find) == 3
        assert set(scene.find) <= set(scene.masks)
        assert scene.absent not in scene.masks
        for mask in scene.masks.values():
            assert mask.dtype == np.bool_
            assert mask.shape == scene.image.shape[:2]
            assert mask.any()
        assert np.sum(list(scene.masks.values()), axis=0).max() == 1, "one sees one thing at a place"
        assert scene.seed < 1_000_000_000, "training draws from there upwards"


def test_broken_scenes_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scenes"
    shutil.copytree(demo.SCENES, folder)
    monkeypatch.setattr(demo, "SCENES", folder)
    for file, content in (("pets.png", b"no picture"), ("scenes.json", b"[]"), ("scenes.json", b"")):
        (folder / file).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            demo.load_scenes()


def test_demo_writes_pictures_and_a_record(tmp_path: Path) -> None:
    scene = demo.load_scenes()[0]
    half = scene.masks["banana"].copy()
    half[:, : int(np.median(np.nonzero(half)[1]))] = False
    rows, record = demo.run_demo(
        tmp_path, model=Oracle({**scene.masks, "banana": half}), preset="sticker", scenes=["pets", "pets"]
    )

    assert [(r.scene, r.text, r.there) for r in rows] == [
        ("pets", "cat", True),
        ("pets", "banana", True),
        ("pets", "umbrella", True),
        ("pets", "rocket", False),
    ]
    assert rows[0].iou == 1.0
    assert rows[1].iou == pytest.approx(half.sum() / scene.masks["banana"].sum(), abs=1e-4)
    assert rows[3].iou is None
    for row in rows:
        with Image.open(tmp_path / row.files["mask"]) as picture:
            np.testing.assert_array_equal(np.array(picture) == 255, row.result.mask)
        with Image.open(tmp_path / row.files["overlay"]) as picture:
            assert picture.size == (320, 240)
            assert picture.mode == "RGB"
            drawn = np.array(picture)
        assert (drawn != scene.image).any()
        grey = (drawn == drawn[..., :1]).all()
        assert grey == (row.text == "rocket"), "pale grey says that there is nothing, and only that"
        assert row.answer == ("not here" if row.text == "rocket" else "found")
        if grey:
            assert drawn.min() > 150
            assert np.ptp(drawn) > 30
    with Image.open(tmp_path / "pets" / "image.png") as picture:
        np.testing.assert_array_equal(np.array(picture), scene.image)
    with Image.open(tmp_path / "contact.png") as picture:
        assert picture.width > 5 * 320
        assert picture.height > 240

    assert json.loads((tmp_path / "demo.json").read_text()) == json.loads(json.dumps(record))
    first, absent = record["scenes"][0]["results"][0], record["scenes"][0]["results"][3]
    assert first == {**rows[0].result.to_json(), "there": True, "iou": 1.0, "files": rows[0].files}
    assert (absent["present"], absent["there"], absent["iou"], absent["box"]) == (False, False, None, None)
    named = {f for r in record["scenes"][0]["results"] for f in r["files"].values()} | {"pets/image.png"}
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")} == named | {"contact.png", "demo.json"}


@pytest.mark.parametrize("scenes", [["nowhere"], ["pets", "nowhere"], []])
def test_unknown_scene_is_an_error_before_anything_is_written(tmp_path: Path, scenes: list[str]) -> None:
    with pytest.raises(InputError, match="pets, desert, seaside"):
        demo.run_demo(tmp_path, model=Oracle({}), preset="sticker", scenes=scenes)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        demo.run_demo(tmp_path / "file", model=Oracle({}), preset="sticker", scenes=["pets"])


def test_absent_text_with_a_mask_is_drawn_with_it(tmp_path: Path) -> None:
    """As the papers' recipe answers: there is a mask, but the text is said not to be there."""
    scene = demo.load_scenes()[0]

    class Proposes(Oracle):
        def segment_many(self, image: NDArray[np.uint8], texts: Sequence[str], *, exclude: Sequence[str]) -> list[Segmentation]:
            return [answer(t, self.masks["cat"], present=t == "cat") for t in texts]

    rows, _ = demo.run_demo(tmp_path, model=Proposes(scene.masks), preset="sticker", scenes=["pets"])
    assert [row.answer for row in rows] == ["found", "not here", "not here", "not here"]
    pictures = [np.array(Image.open(tmp_path / row.files["overlay"])) for row in rows]
    assert all((picture == pictures[0]).all() for picture in pictures)


def test_demo_with_the_shipped_pair_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    rows, record = demo.run_demo(tmp_path, preset="sticker", scenes=["pets"], device="cpu")
    assert record["preset"] == "sticker"
    assert len(rows) == 4
    for row in rows:
        assert row.result.mask.shape == (240, 320)
        assert row.result.strategy == "objects"
        assert row.result.present == row.result.mask.any() == bool(row.result.objects)
        for part in row.result.objects:
            assert len(part.points.positive)
            assert part.candidates is not None
            assert len(part.candidates) >= 3
    assert rows[3].answer == "not here"


def test_photos_are_there_and_only_those_presets_that_ship(tmp_path: Path) -> None:
    photos = demo.load_photos()
    assert [photo.name for photo in photos] == ["chelsea", "astronaut", "coffee", "rocket"]
    for photo in photos:
        assert photo.image.dtype == np.uint8
        assert photo.image.ndim == 3
        assert photo.find
        assert photo.absent not in photo.find
    with pytest.raises(InputError, match="photo or sticker, not 'mobile'"):
        demo.run_demo(tmp_path, preset="mobile")


def test_demo_finds_things_in_photos_and_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    rows, record = demo.run_demo(tmp_path, device="cpu", scenes=["coffee", "rocket"])
    assert record["preset"] == "photo"
    assert [(row.text, row.answer, row.there) for row in rows] == [
        ("cup", "found", True),
        ("bus", "not here", False),
        ("rocket", "found", True),
        ("sheep", "not here", False),
    ]
    cup, bus, rocket, _ = rows
    assert rocket.result.excluded == ("tower",)
    assert not rocket.result.mask[:, :250].any(), "the towers"
    assert rocket.result.mask[150:300, 315:330].mean() > 0.8
    assert cup.result.mask[80:180, 220:370].mean() > 0.9, "the inside of the cup"
    assert cup.result.mask[:, 500:].mean() < 0.05, "the table"
    assert not bus.result.mask.any()
    assert json.loads((tmp_path / cup.files["figures"]).read_text())["present"] is True


def test_rows_of_different_widths_are_on_white() -> None:
    figure = demo._stacked([np.zeros((2, 3, 3), np.uint8), np.zeros((1, 5, 3), np.uint8)])
    assert figure.shape == (3, 5, 3)
    assert (figure[:2, 3:] == 255).all()
    assert figure.sum() == 255 * 2 * 2 * 3
