"""Embeddings on disk: bitwise what was saved, or nothing."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FakePredictor, picture, tiny_predictor, tiny_surgery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from segment_anything import SamPredictor

from text2sam import TextPromptedSAM
from text2sam.annotate import embeddings
from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.errors import InputError
from text2sam.options import Options
from text2sam.pipeline import EncodedImage


def tiny_model(predictor: Any = None, **options: Any) -> TextPromptedSAM:
    return TextPromptedSAM(predictor or tiny_predictor(), tiny_surgery(**options))


def encoded_of(model: TextPromptedSAM, image: NDArray[np.uint8], **options: Any) -> EncodedImage:
    return model.encode([image], **({"sam": True} | options))[0]


def assert_same(one: EncodedImage, other: EncodedImage) -> None:
    assert one.features.grid == other.features.grid
    assert one.features.paths.keys() == other.features.paths.keys()
    assert all(torch.equal(tokens, other.features.paths[name]) for name, tokens in one.features.paths.items())
    assert np.array_equal(one.image, other.image)
    mine, theirs = one.sam.state, other.sam.state
    assert (mine is None) == (theirs is None)
    for name, value in (mine or {}).items():
        if name != "transform":
            assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]


@pytest.fixture
def kept(tmp_path: Path) -> tuple[EmbeddingStore, EncodedImage, Path]:
    """A store with an entry."""
    model = tiny_model()
    store, encoded = EmbeddingStore(tmp_path, model), encoded_of(model, picture())
    assert store.save(encoded)
    [file] = tmp_path.rglob("*.safetensors")
    return store, encoded, file


@pytest.mark.parametrize("shape", [(30, 44), (1, 1), (64, 7)])
@pytest.mark.parametrize("sam", [True, False])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, shape: tuple[int, int], sam: bool) -> None:
    model, image = tiny_model(), picture(3, *shape)
    encoded = encoded_of(model, image, sam=sam)
    assert EmbeddingStore(tmp_path, model).load(image) is None
    assert EmbeddingStore(tmp_path, model).save(encoded)
    store = EmbeddingStore(tmp_path, tiny_model())  # the same weights elsewhere
    loaded = store.load(image)
    assert loaded is not None
    assert_same(loaded, encoded)
    assert store.complete(loaded) == sam
    first = model.segment_many(encoded, ["cat", "dog"], strategy="paper")
    second = store._model.segment_many(loaded, ["cat", "dog"], strategy="paper")
    for a, b in zip(first, second, strict=True):
        assert a.score == b.score
        assert np.array_equal(a.mask, b.mask)


def test_a_later_save_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    model = tiny_model()
    store, encoded = EmbeddingStore(tmp_path, model), encoded_of(model, picture(), sam=False)
    assert store.save(encoded)
    model.session.encode([encoded.sam])
    assert store.save(encoded)
    assert store.save(encoded)
    assert len(list(store.folder.glob("??/*.safetensors"))) == 1
    loaded = store.load(picture())
    assert loaded is not None
    assert loaded.sam.state is not None


def test_the_key_stands_for_all_that_embeddings_depend_on(tmp_path: Path) -> None:
    def bump(parameter: Any) -> None:
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3

    base, image = tiny_model(), picture()
    key = EmbeddingStore(tmp_path, base).key(image)
    clip, sam = tiny_model(), tiny_model()
    bump(clip.generator.model.visual.conv1.weight)
    bump(sam.predictor.model.image_encoder.pos_embed)  # type: ignore[attr-defined]
    others = [
        clip,
        sam,
        tiny_model(depth=1),
        tiny_model(image_size=32),
        tiny_model(scales=(1.0, 0.5)),
        tiny_model(mean=(0, 0, 0)),
    ]
    keys = [EmbeddingStore(tmp_path, model).key(image) for model in others]
    keys += [EmbeddingStore(tmp_path, base, Options(**more)).key(image) for more in ({"tiles": "auto"}, {"method": "sclip"})]
    changed = image.copy()
    changed[0, 0, 0] ^= 1
    keys += [EmbeddingStore(tmp_path, base).key(changed), EmbeddingStore(tmp_path, base).key(image.reshape(44, 30, 3))]
    assert len({key, *keys}) == 1 + len(keys)


def test_the_key_does_not_depend_on_labels(tmp_path: Path) -> None:
    base, image = tiny_model(), picture()
    model = tiny_model(vocabulary=["dog", "tree"], templates=("the {}.",), presence_offset=1.0, tau=3.0)
    model.presence_threshold = 0.9
    model.segment_many(picture(2), ["cat"])
    assert EmbeddingStore(tmp_path, model).key(image) == EmbeddingStore(tmp_path, base).key(image)
    itsm = EmbeddingStore(tmp_path, base, Options(method="itsm", strategy="paper", max_objects=3))
    assert itsm.key(image) == EmbeddingStore(tmp_path, base).key(image)  # their tokens are in every entry


def test_tokens_of_a_method_come_back(tmp_path: Path) -> None:
    model = tiny_model()
    store, encoded = EmbeddingStore(tmp_path, model, Options(method="sclip")), encoded_of(model, picture(), methods=["sclip"])
    assert store.save(encoded)
    loaded = store.load(picture())
    assert loaded is not None
    assert_same(loaded, encoded)
    assert set(loaded.features.paths) == {"raw", "architecture", "sclip"}
    assert EmbeddingStore(tmp_path, model).load(picture()) is None


# predictors


class Relative(SamPredictor):  # type: ignore[misc]
    """Keeps more than SamPredictor, as HQ-SAM does."""

    extra: Any = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.more: Any = None

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        super().set_image(image, image_format)
        self.more = [
            self.features * 2,
            (self.features.sum(), {"a": [1, 2.5, None, "x", True]}),
            *([self.extra] if self.extra else []),
        ]


def test_all_that_a_relative_keeps_comes_back(tmp_path: Path) -> None:
    model = tiny_model(Relative(tiny_predictor().model))
    store, encoded = EmbeddingStore(tmp_path, model), encoded_of(model, picture())
    store.save(encoded)
    loaded = store.load(picture())
    assert loaded is not None
    assert loaded.sam.state is not None
    features = encoded.sam.state["features"]  # type: ignore[index]
    doubled, (total, rest) = loaded.sam.state["more"]
    assert torch.equal(doubled, features * 2)
    assert torch.equal(total, features.sum())
    assert rest == {"a": [1, 2.5, None, "x", True]}


@pytest.mark.parametrize("predictor", ["fake", "strange"])
def test_state_that_cannot_be_kept(tmp_path: Path, predictor: str) -> None:
    strange = Relative(tiny_predictor().model)
    strange.extra = object()
    model = tiny_model(FakePredictor() if predictor == "fake" else strange)
    store, encoded = EmbeddingStore(tmp_path, model), encoded_of(model, picture())
    assert store.save(encoded)
    loaded = store.load(picture())
    assert loaded is not None
    assert loaded.sam.state is None
    results = [model.segment(each, "cat", strategy="paper").mask for each in (encoded, loaded)]
    assert np.array_equal(*results)


# entries that are damaged


def assert_missing(store: EmbeddingStore, file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert store.load(picture()) is None


def test_truncated_and_changed_entries_are_missing(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, file = kept
    whole = file.read_bytes()
    for end in {*range(12), *range(0, len(whole), len(whole) // 40), len(whole) - 1}:
        assert_missing(store, file, whole[:end])
    for place in {*range(20), *range(0, len(whole), len(whole) // 60), len(whole) - 1}:
        assert_missing(store, file, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert_missing(store, file, whole + b"\0")
    assert store.save(encoded)  # made anew, beside or in place of the damaged one
    assert store.load(picture()) is not None
    assert len(list(store.folder.glob("??/*.safetensors"))) == 1


def test_an_entry_under_another_name_is_missing(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, _, file = kept
    other = picture(7, 9, 14)
    key = store.key(other)
    target = store.folder / key[:2] / f"{key}-{file.stem.partition('-')[2]}.safetensors"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(file.read_bytes())
    loaded = store.load(other)
    assert loaded is None or loaded.features.shape == (9, 14)
    os.remove(file)
    os.mkfifo(file)
    assert store.load(picture()) is None  # does not wait for a writer
    os.remove(file)
    file.mkdir()
    assert store.load(picture()) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    grid=st.sampled_from(["[1, 1]", "[4, 4]", "[-1, 1]", "[1]", "x", "[" * 10_000, '["a", "b"]', "[0, 0]", "null"]),
    sam=st.sampled_from(
        ["null", "3", "{}", '{"tensor": "no"}', '{"value": 3}', '{"dict": {"features": {"tensor": "raw"}}}', "[]"]
    ),
    shape=st.lists(st.integers(0, 4), max_size=3),
)
def test_forged_entries(kept: tuple[EmbeddingStore, EncodedImage, Path], grid: str, sam: str, shape: list[int]) -> None:
    from safetensors.torch import save

    store, _, file = kept
    for other in file.parent.iterdir():
        other.unlink()
    data = save({name: torch.zeros(shape) for name in ("surgery", "raw")}, {"grid": grid, "sam": sam})
    key = store.key(picture())
    (file.parent / f"{key}-{embeddings._hash(data)}.safetensors").write_bytes(data)
    loaded = store.load(picture())
    assert loaded is None or len(loaded.features.surgery) == 1 + np.prod(loaded.features.grid)


# folders


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = tiny_model()
    store, encoded = EmbeddingStore(tmp_path / "file" / "store", model), encoded_of(model, picture())
    with pytest.warns(UserWarning, match="no longer kept.*cannot write") as caught:
        assert not store.save(encoded)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not store.save(encoded)
    assert not store.writable


def test_a_store_that_another_process_cannot_write(tmp_path: Path) -> None:
    model = tiny_model()
    store, encoded = EmbeddingStore(tmp_path, model), encoded_of(model, picture())
    store.count(writable=False, made=1)
    store.count(found=1)
    assert not store.writable
    assert store.counts == {"made": 1, "found": 1}
    assert not store.save(encoded)


def test_what_a_store_cannot_be_made_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", 3, None):
        with pytest.raises(InputError, match="folder"):
            EmbeddingStore(folder, tiny_model())  # type: ignore[arg-type]

    class Corner:
        def encode(self, images: Any) -> Any: ...

        def maps(self, features: Any, texts: Any, *, against: Any = None) -> Any: ...

    with pytest.raises(InputError, match="ClipSurgery"):
        EmbeddingStore(tmp_path, TextPromptedSAM(FakePredictor(), Corner()))


def test_files_of_others_are_left_alone(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, file = kept
    mine = [file.with_name(".text2sam-0123456789abcdef.safetensors"), store.folder / "notes" / file.name]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    store.save(encoded)
    assert all(path.exists() for path in mine)
