"""One worker: files that are no pictures, models that fail, memory that runs out."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import FakePredictor, count_calls, picture, tiny_predictor, tiny_surgery
from jobs import LABELS, draw, model

from text2sam import TextPromptedSAM
from text2sam.annotate import worker as module
from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.journal import Record
from text2sam.annotate.labels import LabelSet, LabelSpec
from text2sam.annotate.sources import ImageItem, find_images
from text2sam.annotate.worker import (
    Loaded,
    Stopped,
    Worker,
    load,
    load_batches,
    model_settings,
    settings_of,
)
from text2sam.options import Options
from text2sam.recipes import Objects
from text2sam.sam.objectness import Objectness

HOW = Options(strategy="paper")


def item(file: Path) -> ImageItem:
    return ImageItem(file.name, file, 1, 1)


def loaded(count: int) -> list[Loaded]:
    return [Loaded(item(Path(f"/images/{k}.png")), picture(k, 20 + k, 30)) for k in range(count)]


def fresh() -> TextPromptedSAM:
    """A model that a test may break."""
    return TextPromptedSAM(tiny_predictor(), tiny_surgery())


def results(records: Sequence[Record]) -> list[Any]:
    return [record.to_json() for record in records]


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    return results(Worker(fresh(), LABELS, HOW).run(loaded(5)))


# reading


def test_files_that_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.png"
    PIL.Image.fromarray(picture(1, 40, 40)).save(whole)
    files = {"empty": b"", "text": b"hello", "torn": whole.read_bytes()[:60], "long" * 60: b"hello"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    for name in [*files, "folder", "gone"]:
        loaded_item = load(item(tmp_path / name))
        assert loaded_item.pixels is None
        assert loaded_item.reason
        assert str(tmp_path) not in loaded_item.reason
    assert load(item(whole)).pixels is not None
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    bomb = load(item(whole))
    assert bomb.pixels is None
    assert "too large" in bomb.reason


def test_no_more_than_so_many_pixels_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = find_images(draw(tmp_path / "images", 6, hostile=True)).items
    assert [len(b) for b in load_batches(items)] == [6]
    monkeypatch.setattr(module, "BATCH_PIXELS", 1300)
    batches = list(load_batches(items))
    assert [[image.item.path for image in b] for b in batches] == [
        ["000.png", "001.png"],
        ["002.png", "003.png"],
        *[["004.png"], ["005.png"]],
    ]
    monkeypatch.setattr(module, "BATCH_PIXELS", 1)
    assert [len(b) for b in load_batches(items)] == [1, 1, 2, 1, 1]  # an image that was not read has no pixels
    assert list(load_batches([])) == []


# labels and options


def test_results_are_those_of_segment_many(undisturbed: list[Any]) -> None:
    for image, record in zip(loaded(5), undisturbed, strict=True):
        assert image.pixels is not None
        cat, dog = fresh().segment_many(image.pixels, ["cat", {"dog": ["dog", "hound"]}], strategy="paper", threshold=0.0)
        assert record["presence"] == pytest.approx({"cat": cat.presence, "dog": dog.presence}, abs=1e-6)
        [found] = record["image"]["objects"]
        assert (found["label"], found["score"]) == ("cat", pytest.approx(cat.score, abs=1e-6))


def test_labels_of_several_calls_keep_their_order() -> None:
    specs = tuple(LabelSpec(name, exclude=("sky",) * (k % 2), threshold=0.0) for k, name in enumerate("abcd"))
    worker = Worker(fresh(), LabelSet(specs), HOW)
    assert len(worker._groups) == 2
    [record] = worker.run(loaded(1))
    assert list(record.presence) == list("abcd")
    assert record.image is not None
    labels = [thing.label for thing in record.image.objects]
    assert labels == sorted(labels)
    assert worker.thresholds == dict.fromkeys("abcd", 0.0)
    assert Worker(model(), LabelSet((LabelSpec("a"),)), HOW).thresholds == {"a": 0.5}


def test_settings_distinguish_rules_of_a_recipe() -> None:
    def own(candidates: Any, similarity: Any) -> int:
        return 0

    recipes = ["paper", "objects", Objects(choose=own), Objects(support=0.4), Objects(margin=float("inf"))]
    recipes += [Objects(choose=torch.nn.Linear(2, 1)) for _ in range(2)]
    documents = [json.dumps(settings_of(LABELS, Options(strategy=recipe))) for recipe in recipes]
    assert len(set(documents)) == len(documents)
    assert documents[1] == json.dumps(settings_of(LABELS, Options(strategy=Objects())))
    other = settings_of(LABELS, Options(value_range=(0, 4095)))
    assert other["value_range"] == (0, 4095)
    assert "value_range" not in settings_of(LABELS, Options())


# what goes wrong


class Limited:
    """A model's ``encode`` that has memory for so many images."""

    def __init__(self, owner: TextPromptedSAM, most: int, error: Exception) -> None:
        self.real, self.most, self.error = owner.encode, most, error
        self.sizes: list[int] = []

    def __call__(self, images: Sequence[Any], **options: Any) -> Any:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error
        return self.real(images, **options)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (3 GB)")],
)
def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any], error: Exception) -> None:
    own = fresh()
    limited = Limited(own, 2, error)
    monkeypatch.setattr(own, "encode", limited)
    assert results(Worker(own, LABELS, HOW).run(loaded(5))) == undisturbed
    assert limited.sizes == [5, 2, 2, 1]
    limited.sizes.clear()
    limited.most = 0
    records = Worker(own, LABELS, HOW).run(loaded(4))
    assert limited.sizes == [4, 2, 1, 1, 2, 1, 1]
    assert all(record.image is None and record.reason.startswith("out of memory, even alone") for record in records)


def test_out_of_memory_for_the_masks_halves_the_batch(monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]) -> None:
    own = fresh()
    limited, real = Limited(own, 99, MemoryError()), own.segment_many
    monkeypatch.setattr(own, "encode", limited)

    def segment(image: Any, *arguments: Any, **options: Any) -> Any:
        if limited.sizes[-1] > 2 and image.image.shape[0] == 21:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(image, *arguments, **options)

    monkeypatch.setattr(own, "segment_many", segment)
    assert results(Worker(own, LABELS, HOW).run(loaded(5))) == undisturbed
    assert limited.sizes == [5, 2, 2]  # the first image was done


def test_a_picture_the_models_choke_on_costs_its_own_record(monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]) -> None:
    for name in ("encode", "segment_many"):
        own = fresh()
        real = getattr(own, name)

        def choke(images: Any, *arguments: Any, _real: Any = real, **options: Any) -> Any:
            shapes = [image.shape[0] for image in images] if isinstance(images, list) else [images.shape[0]]
            if 22 in shapes:
                raise ZeroDivisionError("by\nnought")
            return _real(images, *arguments, **options)

        monkeypatch.setattr(own, name, choke)
        records = Worker(own, LABELS, HOW).run(loaded(5))
        assert [k for k, record in enumerate(records) if record.image is None] == [2]
        assert "ZeroDivisionError: by" in records[2].reason
        assert results(records)[3:] == undisturbed[3:]


def test_work_is_left_when_the_run_ends() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        Worker(model(), LABELS, HOW).run(loaded(2), stop)


# settings and embeddings


def test_settings_of_a_model_show_what_results_depend_on() -> None:
    first = model_settings(fresh())
    assert first == model_settings(fresh())
    other = fresh()
    other.predictor.model.mask_decoder.iou_token.weight.data += 1  # type: ignore[attr-defined]
    deeper = TextPromptedSAM(tiny_predictor(), tiny_surgery(depth=3), presence_threshold=0.3)
    assert [{k for k, v in model_settings(m).items() if v != first[k]} for m in (other, deeper)] == [
        {"sam"},
        {"depth", "presence_threshold"},
    ]


def test_settings_of_a_model_show_what_tells_things() -> None:
    def sam_with(objectness: Any) -> str:
        told.predictor.objectness = objectness  # type: ignore[attr-defined]
        return str(model_settings(told)["sam"])

    told = fresh()
    without, weight = str(model_settings(told)["sam"]), np.linspace(0, 1, 16, dtype=np.float32)
    layers = [torch.nn.Linear(16, 1) for _ in range(2)]
    tellers = [
        Objectness(weight, 0.5), Objectness(weight, 0.25), Objectness(weight + np.float32(1e-6), 0.5),
        Objectness(np.append(weight, np.float32(0)), 0.5), *layers, len, sum,
    ]  # fmt: skip
    seen = [sam_with(each) for each in tellers]
    assert len({without, *seen}) == 1 + len(tellers)
    assert sam_with(None) == without
    with np.printoptions(precision=2, threshold=4):  # as in many a notebook
        assert sam_with(Objectness(weight.copy(), 0.5)) == seen[0]
    assert sam_with(copy.deepcopy(layers[0])) == seen[4]


def test_embeddings_save_both_encoders(tmp_path: Path, undisturbed: list[Any]) -> None:
    own = fresh()
    store = EmbeddingStore(tmp_path / "store", own)
    clip = count_calls(own.generator.model.visual.conv1)
    sam = count_calls(own.predictor.model.image_encoder)  # type: ignore[attr-defined]
    worker = Worker(own, LABELS, HOW, store)
    assert results(worker.run(loaded(5))) == undisturbed
    assert (len(clip), len(sam)) == (1, 5)
    clip.clear(), sam.clear()
    assert results(worker.run(loaded(5))) == undisturbed
    assert (len(clip), len(sam)) == (0, 0)
    # with one entry missing the whole batch is encoded as the first time, and all entries are there again
    next(p for p in (tmp_path / "store").rglob("*") if p.is_file()).unlink()
    assert results(worker.run(loaded(5))) == undisturbed
    assert [shape[0] for shape in clip] == [5]
    assert len(list((tmp_path / "store").rglob("*.safetensors"))) == 5


def test_sam_is_left_alone_where_nothing_is_present(tmp_path: Path) -> None:
    own = TextPromptedSAM(FakePredictor(), tiny_surgery())
    absent = LabelSet((LabelSpec("dog", threshold=1.0),))
    [record] = Worker(own, absent, Options(strategy="objects")).run(loaded(1))
    assert record.image is not None
    assert record.image.objects == ()
    assert own.predictor.images == []  # type: ignore[attr-defined]
    copy.copy(record)
