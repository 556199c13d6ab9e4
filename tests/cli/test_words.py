from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture, tiny_surgery
from PIL import Image
from typer.testing import CliRunner

from text2sam import cli
from text2sam.cli import common
from text2sam.clip.generator import ClipSurgery
from text2sam.plot import explain_text as draw
from text2sam.tasks import explain_text
from text2sam.zoo import presets


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ClipSurgery:
    surgery = tiny_surgery()
    monkeypatch.setattr(presets, "build_clip", lambda *_, **__: surgery)
    monkeypatch.setattr(presets, "build", lambda *_, **__: pytest.fail("no SAM is asked"))
    return surgery


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], prog_name="text2sam")


@pytest.mark.parametrize("method", ["surgery", "itsm", "sclip"])
def test_words_of_a_sentence(tmp_path: Path, model: ClipSurgery, method: str) -> None:
    image, text = tmp_path / "a.png", "a photo of a cat"
    Image.fromarray(picture()).save(image)
    arguments = ["explain", image, text, "--words", "--method", method, "--out", tmp_path / "out", "--width", 640]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    expected = explain_text(model, picture(), text, method=method)
    drawn = tmp_path / "out" / "a_a-photo-of-a-cat_words.png"
    np.testing.assert_array_equal(np.array(Image.open(drawn)), draw(expected, picture(), width=640))
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["word", "carries"]
    assert rows[1:] == [[word, f"{value:+.4f}"] for word, value in expected.ranked()]
    assert json.loads(run(*arguments, "--json").stdout) == {**expected.to_json(), "image": str(image), "picture": str(drawn)}


def test_words_need_no_sam(tmp_path: Path, model: ClipSurgery) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(picture()).save(image)
    for option in (
        ["--against", "dog"],
        ["--exclude", "dog"],
        ["--threshold", "0.2"],
        ["--no-zoom"],
        ["--tiles", "auto"],
        ["--sam-checkpoint", "x.pt"],
    ):
        result = run("explain", image, "cat", "--words", *option, "--out", tmp_path)
        assert result.exit_code == common.EXIT_INPUT
        assert "--words" in result.stderr
