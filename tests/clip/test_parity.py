"""Every array of the reference implementation's outputs, reproduced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import draw_weights, tokenizer
from open_clip.model import CLIP

from text2sam.clip.generator import ClipSurgery
from text2sam.clip.prompts import ensemble_templates
from text2sam.clip.similarity import feature_surgery, similarity_map
from text2sam.recipes.points import points_from_similarity
from text2sam.types import SimilarityMap

SIZES = {"vit": (32, 48, 80), "resnet": (64, 128, 160)}
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 8, "width": 128, "patch_size": 8, "head_width": 64},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> Mapping[str, Any]:
    path = shared_data / "parity" / "clip_surgery_reference.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def surgeries(reference: Mapping[str, Any]) -> dict[str, ClipSurgery]:
    return {
        name: ClipSurgery(draw_weights(CLIP(32, vision, TEXT, quick_gelu=True)), tokenizer(), device="cpu")
        for name, vision in VISION.items()
    }


def test_no_array_is_forgotten(reference: Mapping[str, Any]) -> None:
    tokens = {f"{name}_tokens_{size}" for name, sizes in SIZES.items() for size in sizes}
    points = {f"{kind}_t{t}_{i}" for kind in ("points", "labels") for t in (8, 6) for i in range(3)}
    others = "texts text_features tokens fs_image fs_text fs_empty fs_labels fs_single map_120x200"
    big = "points_big_map points_big labels_big"
    assert set(reference) == {*tokens, *points, *others.split(), *big.split()}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_tokens(reference: Mapping[str, Any], surgeries: dict[str, ClipSurgery], name: str, size: int) -> None:
    pixels = torch.from_numpy(np.random.RandomState(size).standard_normal((2, 3, size, size)).astype(np.float32))
    tokens = surgeries[name].encode_pixels(pixels).numpy()
    np.testing.assert_allclose(tokens, reference[f"{name}_tokens_{size}"], rtol=0, atol=1e-5)


def test_text_features(reference: Mapping[str, Any], surgeries: dict[str, ClipSurgery]) -> None:
    assert len(ensemble_templates()) == 85
    features = surgeries["vit"].encode_texts([str(text) for text in reference["texts"]])
    np.testing.assert_allclose(features.numpy(), reference["text_features"], rtol=0, atol=1e-5)


def test_token_ids(reference: Mapping[str, Any]) -> None:
    # which strings the rows belong to is not written beside them: the tokenizer reads them back
    rows = reference["tokens"]
    strings = [tokenizer().decode([int(i) for i in row if 0 < i < 49406]).strip() for row in rows]
    np.testing.assert_array_equal(tokenizer()(strings).numpy(), rows)


def test_feature_surgery(reference: Mapping[str, Any]) -> None:
    image, text, empty = (torch.from_numpy(reference[key]) for key in ("fs_image", "fs_text", "fs_empty"))
    np.testing.assert_allclose(feature_surgery(image, text), reference["fs_labels"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(feature_surgery(image, text, empty), reference["fs_single"], rtol=0, atol=1e-6)


def test_maps(reference: Mapping[str, Any]) -> None:
    patches = torch.from_numpy(reference["fs_labels"])[:, 1:]
    expected = reference["map_120x200"]
    np.testing.assert_allclose(similarity_map(patches, (7, 7), (120, 200)), expected, rtol=0, atol=1e-5)
    for i in range(patches.shape[-1]):
        one = SimilarityMap(patches[0, :, i].reshape(7, 7).numpy().copy())
        np.testing.assert_allclose(one.to_image((120, 200)), expected[0, ..., i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("tenths", [8, 6])
def test_points(reference: Mapping[str, Any], tenths: int, index: int) -> None:
    values = reference["fs_labels"][0, 1:, index].reshape(7, 7)
    points = points_from_similarity(values, (120, 200), threshold=tenths / 10)
    np.testing.assert_array_equal(points.coords, reference[f"points_t{tenths}_{index}"])
    np.testing.assert_array_equal(points.labels, reference[f"labels_t{tenths}_{index}"])


def test_points_of_a_big_map(reference: Mapping[str, Any]) -> None:
    points = points_from_similarity(reference["points_big_map"].reshape(32, 32), (333, 500))
    np.testing.assert_array_equal(points.coords, reference["points_big"])
    np.testing.assert_array_equal(points.labels, reference["labels_big"])
