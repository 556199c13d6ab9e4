from __future__ import annotations

import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FakePredictor, picture, tiny_surgery
from PIL import Image

from text2sam import TextPromptedSAM
from text2sam.app import workbench
from text2sam.app.workbench import VIEW, Desk, Workbench, remove, split, take, undo
from text2sam.errors import ImageError, InputError, PromptError


def draw(folder: Path, seed: int = 0, height: int = 30, width: int = 44) -> Path:
    file = folder / f"my photo {seed}.png"
    Image.fromarray(picture(seed, height, width)).save(file)
    return file


def faked() -> tuple[Workbench, FakePredictor]:
    predictor = FakePredictor()
    return Workbench(TextPromptedSAM(predictor, tiny_surgery(image_size=(24, 32)), presence_threshold=0.0)), predictor


def found(bench: Workbench, folder: Path, texts: str = "cat, dog") -> Desk:
    return bench.ask(bench.open(draw(folder)), texts)


# what is refused


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0"])
def test_files_that_are_no_pictures(bench: Workbench, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.png"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=r"'mine\.png'") as error:
        bench.open(file)
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(ImageError):
        bench.open(tmp_path / "missing.png")


def test_uploads_are_bounded(bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = draw(tmp_path)
    size = file.stat().st_size
    monkeypatch.setattr(workbench, "MOST_BYTES", size)
    monkeypatch.setattr(workbench, "MOST_PIXELS", 30 * 44)
    bench.open(file)
    monkeypatch.setattr(workbench, "MOST_PIXELS", 30 * 44 - 1)
    with pytest.raises(ImageError, match="1320 pixels, more than 1319"):
        bench.open(file)
    monkeypatch.setattr(workbench, "MOST_BYTES", size - 1)
    with pytest.raises(ImageError, match="at most"):
        bench.open(file)


def test_what_cannot_be_asked(bench: Workbench, tmp_path: Path) -> None:
    desk = bench.open(draw(tmp_path))
    for texts in ("", " , ;"):
        with pytest.raises(InputError, match="type what to find"):
            bench.ask(desk, texts)
    with pytest.raises(PromptError):
        bench.ask(desk, "cat", "cat")
    with pytest.raises(InputError, match="threshold"):
        bench.ask(desk, "cat", "", 1.5)
    with pytest.raises(InputError, match="before you click"):
        bench.click(desk, (3, 3))
    with pytest.raises(InputError, match="nothing to save"):
        desk.save(tmp_path, "coco")
    assert desk.rows == desk.candidates() == []
    assert desk.explain() is None
    assert take(desk, 0) is remove(desk) is undo(desk) is desk
    assert np.array_equal(desk.draw(heat=True), desk.small)


def test_one_text_that_cannot_be_asked_spoils_no_other(bench: Workbench, tmp_path: Path) -> None:
    desk = bench.open(draw(tmp_path))
    some = bench.ask(desk, "cat, dog", exclude="dog")
    assert [result.text for result in some.results] == ["cat"]
    assert any("dog" in note for note in some.notes)
    assert np.array_equal(some.results[0].mask, bench.ask(desk, "cat", exclude="dog").results[0].mask)


def test_texts_are_split() -> None:
    assert split("cat, dog;bird\ncat,,") == ["cat", "dog", "bird"]
    assert split("person+bench") == ["person+bench"]


# what a person does


def test_a_picture_is_encoded_once(tmp_path: Path) -> None:
    bench, predictor = faked()
    desk = found(bench, tmp_path)
    desk = bench.click(bench.ask(desk, "bird"), (5, 5))
    desk.draw(heat=True)
    assert len(predictor.images) == 1
    assert [result.text for result in desk.results] == ["bird"]


def test_what_is_left_out_is_looked_for_once(tmp_path: Path) -> None:
    bench, predictor = faked()
    desk = bench.open(draw(tmp_path))
    bench.model.segment_many(desk.encoded, ["cat", "dog"], exclude=["bird"])
    questions = len(predictor.prompts)
    bench.ask(desk, "cat, dog", exclude="bird")
    assert len(predictor.prompts) == 2 * questions


def test_only_what_is_new_is_looked_for(tmp_path: Path) -> None:
    bench, predictor = faked()
    desk = found(bench, tmp_path, "cat, dog+bird")
    asked = len(predictor.prompts)
    more = bench.ask(desk, "dog+bird, cat", threshold=0.0)
    assert len(predictor.prompts) == asked
    assert [result.text for result in more.results] == ["dog+bird", "cat"]
    presence = desk.results[0].presence
    stricter = bench.ask(desk, "cat", threshold=presence / 2)
    assert len(predictor.prompts) == asked
    assert {part.threshold for part in (stricter.results[0], *stricter.results[0].instances)} == {presence / 2}
    assert not bench.ask(stricter, "cat", threshold=(1 + presence) / 2).results[0].present
    alone = bench.model.segment(desk.encoded, "cat", exclude=["dog"])
    assert np.array_equal(bench.ask(desk, "cat", exclude="dog").results[0].mask, alone.mask), "other answers where less is left"
    assert len(predictor.prompts) > asked


def test_what_is_left_out_but_not_there_is_said(bench: Workbench, tmp_path: Path) -> None:
    desk = bench.open(draw(tmp_path))
    assert bench.ask(desk, "cat", exclude="dog").notes == ()
    bench.model.presence_threshold = 1.0
    assert ["'dog' is not in this picture" in note for note in bench.ask(desk, "cat", exclude="dog").notes] == [True]


def test_an_answer_is_what_the_model_gives(bench: Workbench, tmp_path: Path) -> None:
    desk = found(bench, tmp_path)
    alone = bench.model.segment_many(draw(tmp_path), ["cat", "dog"])
    for mine, other in zip(desk.results, alone, strict=True):
        assert np.array_equal(mine.mask, other.mask)
    texts = [row.label.split(" · ")[0].rstrip(" 0123456789") for row in desk.rows]
    assert texts == [result.text for result in desk.results for _ in result.instances]
    absent = bench.ask(desk, "cat", threshold=1.0)
    assert [(row.place, "not here" in row.label) for row in absent.rows] == [((0, 0), True)]


def test_clicks_are_in_pixels_of_the_small_picture(bench: Workbench, tmp_path: Path) -> None:
    desk = bench.ask(bench.open(draw(tmp_path, 0, 900, 2 * VIEW)), "cat")
    assert desk.small.shape == (450, VIEW, 3)
    assert desk.draw().shape == desk.small.shape
    assert desk.object is not None
    before = len(desk.object.points)
    clicked = bench.click(desk, (100, 200), positive=False)
    assert clicked.object is not None
    assert clicked.object.points.coords[before].tolist() == [200.5, 400.5]
    assert clicked.object.points.labels[before] == 0
    assert clicked.edited == {"cat"}
    why = clicked.explain()
    assert why is not None
    assert why.shape[1] == 1200


def test_corrections_and_the_way_back(bench: Workbench, tmp_path: Path) -> None:
    desk = found(bench, tmp_path, "cat")
    count = len(desk.rows)
    more = bench.click(desk, (40, 2), positive=False, new=True)
    assert len(more.rows) == count + 1
    assert more.chosen == (0, count)
    assert more.object is not None
    assert more.object.points.labels.tolist() == [1], "the first point of an object is on it"
    other = next(k for k in range(3) if k != more.object.candidates.chosen)  # type: ignore[union-attr]
    taken = take(more, other)
    assert len(taken.candidates()) == 3
    assert [caption.startswith("✓") for _, caption in taken.candidates()].index(True) == other
    assert undo(taken) is more
    assert undo(undo(taken)) is desk
    assert len(remove(more).rows) == count
    nothing = desk
    for _ in range(count):
        nothing = remove(nothing)
    assert "not here" in nothing.rows[0].label
    assert bench.click(nothing, (20, 10)).object is not None


def test_a_click_that_finds_nothing_takes_nothing_away(tmp_path: Path) -> None:
    bench, predictor = faked()
    desk = found(bench, tmp_path, "cat")
    answer = predictor.answer
    predictor.answer = lambda *given: (answer(*given)[0] & False, answer(*given)[1])  # type: ignore[method-assign]
    for new in (False, True):
        clicked = bench.click(desk, (3, 3), new=new)
        assert clicked.results == desk.results
        assert "finds nothing" in clicked.notes[0]


def test_what_was_corrected_stays(bench: Workbench, tmp_path: Path) -> None:
    desk = remove(found(bench, tmp_path, "cat, dog"))
    corrected = desk.results[0]
    again = bench.ask(desk, "dog, cat", threshold=0.1)
    assert again.results[1] is corrected
    assert again.results[0] is not desk.results[1]
    assert bench.ask(bench.ask(desk, "dog"), "cat").results[0] is not corrected


def test_choosing_stays_in_range(bench: Workbench, tmp_path: Path) -> None:
    desk = found(bench, tmp_path)
    for place in ((0, 0), (-3, 9), (99, 99), ("1", "0")):
        assert desk.choose(place).chosen in [row.place for row in desk.rows]
    assert Desk("x", desk.encoded).choose((4, 4)).chosen == (0, 0)


def test_layers(bench: Workbench, tmp_path: Path) -> None:
    desk = found(bench, tmp_path)
    plain = desk.draw(masks=False, points=False)
    assert np.array_equal(plain, desk.small)
    off = {"masks": False, "points": False}
    drawn = [desk.draw(**{**off, name: True}) for name in ("masks", "heat", "points")]
    assert all((each != plain).any() for each in drawn)
    assert (desk.draw(alpha=1.0) != desk.draw(alpha=0.1)).any()


@pytest.mark.parametrize(
    ("format", "file"), [("png", "index.json"), ("coco", "annotations.json"), ("labelme", "my-photo-0.json")]
)
def test_downloads(bench: Workbench, tmp_path: Path, format: str, file: str) -> None:
    desk = found(bench, tmp_path)
    path = desk.save(tmp_path, format)
    assert path.name == f"my-photo-0-{format}.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert file in names, names
        with Image.open(archive.open("my-photo-0.png")) as saved:
            assert np.array_equal(np.array(saved), desk.encoded.image)
        if format == "coco":
            document = json.loads(archive.read(file))
            assert len(document["annotations"]) == sum(len(result.instances) for result in desk.results)


def test_two_people_at_once(bench: Workbench, tmp_path: Path) -> None:
    files = [draw(tmp_path, seed, 20 + seed) for seed in range(4)]
    alone = [bench.model.segment(file, "cat") for file in files]
    desks: dict[int, Any] = {}

    def person(k: int) -> None:
        desk = bench.ask(bench.open(files[k]), "dog")
        desks[k] = bench.ask(desk, "cat")

    threads = [threading.Thread(target=person, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, result in enumerate(alone):
        assert np.array_equal(desks[k].results[0].mask, result.mask)


def test_advice_of_the_model_reaches_the_person(bench: Workbench, tmp_path: Path) -> None:
    assert found(bench, tmp_path, "cat").notes == ()
    desk = found(bench, tmp_path, "кошка")
    assert len(desk.notes) == 1
    assert "кошка" in desk.notes[0]
