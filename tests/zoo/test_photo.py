"""The pairs that ship: damaged files; of the photo pair the record and the words. What it finds: tests/test_demo.py."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from text2sam import TextPromptedSAM
from text2sam.errors import ChecksumError, InputError, OfflineError, PromptError, WeightsError
from text2sam.tasks import recognize
from text2sam.zoo.photo import models
from text2sam.zoo.presets import PRESETS, build, build_clip
from text2sam.zoo.sticker import models as sticker


@pytest.fixture(scope="module")
def model() -> TextPromptedSAM:
    return TextPromptedSAM.from_pretrained("photo", device="cpu")


def test_weights_are_small_and_recorded() -> None:
    record = models.SHIPPED.record()
    files = {path.name: path for path in models.SHIPPED.folder.iterdir() if path.name != "record.json"}
    assert set(files) == set(record["sha256"]) == set(record["sources"]) == set(models.SHIPPED.licences)
    assert sum(path.stat().st_size for path in files.values()) <= 36_000_000
    for name in files:
        models.SHIPPED.file(name)
    folder = Path(models.__file__).parent
    assert "Princeton University" in (folder / "LICENSE-WordNet-3.0.txt").read_text()
    assert all(name in (folder / "NOTICE.md").read_text() for name in files)


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        (models, "clip.safetensors"),
        (models, "words.json"),
        (models, "objectness.safetensors"),
        (sticker, "clip.safetensors"),
        (sticker, "sam.safetensors"),
    ],
)
def test_damaged_and_missing_files(pair: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(pair.SHIPPED.folder, folder)
    monkeypatch.setattr(pair, "SHIPPED", dataclasses.replace(pair.SHIPPED, folder=folder))
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)

    def load() -> None:
        TextPromptedSAM.from_pretrained(pair.SHIPPED.name, device="cpu")

    with pytest.raises(ChecksumError, match=rf"{name} is damaged.*reinstall"):
        load()
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=rf"{name} is not there.*reinstall"):
        load()
    (folder / name).write_bytes(content)
    (folder / "record.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"record\.json"):
        load()


@pytest.mark.parametrize("options", [{"depth": 3}, {"templates": ["a {}"]}, {"clip_model": "RN50"}])
def test_options_of_a_clip_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give its clip_checkpoint="):
        build("photo", **options)


def test_a_clip_of_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither an existing file"):
        build("photo", clip_checkpoint=tmp_path / "missing.pt")
    (tmp_path / "there.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"there\.pt could be of; name that with clip_model="):
        build("photo", clip_checkpoint=tmp_path / "there.pt")


def test_it_has_no_clip(model: TextPromptedSAM) -> None:
    with pytest.raises(InputError, match=r"CLIP.*not a TextPromptedSAM with a WordClassifier"):
        recognize(model, np.zeros((8, 8, 3), np.uint8), ["cat"])
    with pytest.raises(InputError, match="word classifier and no CLIP"):
        build_clip("photo")


def test_weights_that_cannot_be_had_name_the_preset_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT2SAM_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"--preset photo.*text2sam models words"):
        TextPromptedSAM.from_pretrained("mobile", device="cpu")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("people", "a man"),
        ("cows", "cow"),
        ("sofas", "couch"),
        ("TVs", "television"),
        ("a photo of two dogs", "dog"),
        ("armchairs", "chair"),
    ],
)
def test_everyday_words(model: TextPromptedSAM, text: str, same: str) -> None:
    words = model.generator.words
    assert words.meaning(text) == words.meaning(same)


def test_words_that_say_more(model: TextPromptedSAM) -> None:
    words = model.generator.words
    assert words.meaning("crane") != words.meaning("crane bird")
    assert set(words.meaning("crane bird").classes) < set(words.meaning("bird").classes)
    with pytest.raises(PromptError, match="'sky' is not among the 7,"):
        words.meaning("sky")


@pytest.mark.parametrize(
    ("text", "wider"),
    [("tennis rackets", "racket"), ("a woman", "person"), ("puppies", "dog"), ("armchairs", "chair"), ("pigeon", "bird")],
)
def test_words_that_another_is_looked_for_in_place_of(model: TextPromptedSAM, text: str, wider: str) -> None:
    hint = str(model.generator.hint(text))
    assert hint == f"{text!r} is looked for as {wider!r}, which this model cannot distinguish from it"
    assert model.generator.sense(text) == model.generator.sense(wider)
    assert model.generator.hint(wider) is None


def test_it_is_built_as_its_preset_says(model: TextPromptedSAM) -> None:
    assert model.presence_threshold == 0.5
    assert (model.generator.image_size, model.generator.scales) == (PRESETS["photo"].image_size, PRESETS["photo"].scales)
    parameters = [*model.generator.model.parameters(), *model.predictor.model.parameters()]  # type: ignore[attr-defined]
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in parameters)
