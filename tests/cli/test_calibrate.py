from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from standins import Model, failed, run

from text2sam.presence import Calibration

GOOD = ("my photo.png,cat,1", "my photo.png,rocket,0")


def rows_of(folder: Path, *rows: str, head: str = "image,text,present") -> Path:
    path = folder / "examples.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def test_calibrate(photo: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # paths start at the file
    other = tmp_path / "below" / "other.png"
    other.parent.mkdir()
    other.write_bytes(photo.read_bytes())
    examples: list[Any] = []
    calibrate = model.calibrate

    def spy(images: Any, texts: Any, present: Any, **options: Any) -> Calibration:
        examples.extend(zip(texts, present, strict=True))
        assert images[0] is images[1]  # which encodes an image once
        assert images[1] is not images[2]
        assert options == {"against": ["grass", "sky"], "false_cost": 2.0}
        return calibrate(images, texts, present, **options)

    monkeypatch.setattr(model, "calibrate", spy)
    rows = [
        "cat,,my photo.png,1",
        '"rocket, small",x,below/other.png,yes',
        "",
        " rocket ,,my photo.png,FALSE",
        f"cat,,{other},Yes",
    ]
    path = rows_of(tmp_path, *rows, head="\ufeff Text ,note,IMAGE,present")
    out = tmp_path / "new" / "calibration.json"
    arguments = ["calibrate", path, "--out", out, "--against", "grass,sky", "--false-cost", "2", "--preset", "sticker"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert examples == [("cat", True), ("rocket", False), ("rocket, small", True), ("cat", True)]
    saved = Calibration.load(out)
    assert (saved.n_present, saved.n_absent, saved.auroc) == (3, 1, 1.0)
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "threshold", "examples", "examples", "missed", "falsely", "AUROC",
    ]  # fmt: skip
    document = json.loads(run(*arguments, "--json").stdout)
    told = document.pop("warnings")
    assert told[0].startswith("'rocket, small' is looked for as one text")
    assert told[-1].startswith("the threshold rests on 3 present and 1 absent examples")
    assert document == {**dataclasses.asdict(saved), "file": str(out)}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((*GOOD, "nowhere.png,cat,1"), "line 4: "),
        ((*GOOD, "", "my photo.png,...,1"), "line 5: a text prompt"),
        ((*GOOD, '"my photo.png","cat\n dog",maybe', GOOD[0]), "line 5: present must be 1 or 0"),
        ((*GOOD, ",cat,1"), "line 4: the image is empty"),
        ((*GOOD, "my photo.png,cat"), "line 4: the number of values"),
        ((*GOOD, "my photo.png,cat, small,1"), "line 4: the number of values"),
        ((*GOOD, '"my photo.png"x,cat,1'), "line 4: "),
        ((GOOD[0],), "whose text is not"),
        ((), "whose text is present"),
        ((*GOOD, f"my photo.png,{'long ' * 20},1"), "line 4: too long"),
    ],
)
def test_bad_row_is_named_by_its_line(photo: Path, model: Model, rows: tuple[str, ...], says: str) -> None:
    out = photo.parent / "c.json"
    message = failed(run("calibrate", rows_of(photo.parent, *rows), "--out", out), 2)
    assert says in message
    assert "examples.csv" in message
    assert not out.exists()
    assert bool(model.built) is ("too long" in message)


def test_bad_tables(photo: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    assert "no-such.csv" in failed(run("calibrate", tmp_path / "no-such.csv", "--out", out), 2)
    failed(run("calibrate", tmp_path, "--out", out), 2)
    assert "UTF-8" in failed(run("calibrate", photo, "--out", out), 2)
    for head in ("image;text;present", ""):
        assert "no column image, text, present" in failed(run("calibrate", rows_of(tmp_path, head=head), "--out", out), 2)
    good = rows_of(tmp_path, *GOOD)
    assert "above 0" in failed(run("calibrate", good, "--out", out, "--false-cost", "0"), 2)
    assert "folder" in failed(run("calibrate", good, "--out", tmp_path), 1)
    assert "is a file" in failed(run("calibrate", good, "--out", photo / "c.json"), 1)
    assert "preset" in failed(run("calibrate", good, "--out", out, "--preset", "nonsense"), 2)
    assert not model.built
