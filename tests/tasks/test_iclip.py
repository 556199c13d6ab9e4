"""ICLIP's model: what it is before training, and its file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture, tiny_clip, tiny_surgery

from text2sam.errors import InputError, OutputError, PromptError, WeightsError
from text2sam.tasks.iclip import ICLIP

TEXTS = ["tree", "red apple", "seven blue balloons in the rain"]


@pytest.fixture(scope="module")
def surgery() -> Any:
    return tiny_surgery()


def changed(surgery: Any, **options: Any) -> ICLIP:
    iclip = ICLIP(surgery, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in iclip.parameters():
            parameter.normal_(generator=generator)
    return iclip


@pytest.mark.parametrize(("path", "method"), [("raw", "itsm"), ("architecture", "architecture")])
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_untrained_it_is_clip(family: str, path: Any, method: Any) -> None:
    surgery = tiny_surgery(tiny_clip(family), image_size=64)
    iclip, image = ICLIP(surgery, path=path), picture()
    features = surgery.encode_image(image)
    expected = surgery.maps(features, TEXTS, method=method)
    for given in (image, features):
        for ours, clips in zip(iclip.maps(given, TEXTS), expected, strict=True):
            assert (ours.text, ours.method) == (clips.text, "iclip")
            np.testing.assert_allclose(ours.values, clips.values, atol=1e-6)
    np.testing.assert_allclose(iclip.scores(features, TEXTS), surgery.scores(features, TEXTS), atol=1e-6)
    assert iclip.maps(image, []) == []


def test_maps_and_scores_by_hand(surgery: Any) -> None:
    iclip, features = changed(surgery, path="architecture"), surgery.encode_image(picture())
    texts = surgery.encode_texts(TEXTS).double().numpy()
    token, patches = features.raw[0].double().numpy(), features.surgery[1:].double().numpy()
    d = {name: value.double().numpy() for name, value in iclip.state_dict().items()}

    def unit(x: Any) -> Any:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    expected = texts @ unit(patches + patches @ d["interpretation"].T).T
    found = np.stack([m.values.ravel() for m in iclip.maps(features, TEXTS)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(iclip.scores(features, TEXTS), texts @ unit(token + d["recognition"] @ token), atol=1e-5)


def test_refused(surgery: Any) -> None:
    with pytest.raises(InputError, match="ClipSurgery or a TextPromptedSAM with one, not object"):
        ICLIP(object())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="path must be one of raw, architecture, not 'value'"):
        ICLIP(surgery, path="value")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"pass \['cat'\]"):
        ICLIP(surgery).maps(picture(), "cat")
    for call in (lambda: ICLIP(surgery).maps(picture(), ["cat", " "]), lambda: ICLIP(surgery).scores(picture(), [])):
        with pytest.raises(PromptError):
            call()


def test_a_file_brings_everything_back(surgery: Any, tmp_path: Path) -> None:
    iclip = changed(surgery, path="architecture")
    path = iclip.save(tmp_path / "deep" / "iclip.safetensors")
    read = ICLIP.load(path, tiny_surgery(image_size=32))  # the same CLIP at another size
    assert read.path == "architecture"
    for name, value in iclip.state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
        assert value.abs().max() > 0
    again = ICLIP.load(path, surgery).maps(picture(), ["cat"])[0]
    np.testing.assert_array_equal(again.values, iclip.maps(picture(), ["cat"])[0].values)


def test_unusable_files(surgery: Any, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    good = changed(surgery).save(tmp_path / "good.safetensors")
    with safe_open(good, "pt") as opened:
        stored = opened.metadata()
    state = load_file(good)

    def written(change: dict[str, Any], metadata: dict[str, str] | None) -> Path:
        path = tmp_path / "changed.safetensors"
        save_file({k: v for k, v in (state | change).items() if v is not None}, path, metadata)
        return path

    assert ICLIP.load(written({}, stored | {"pooling": "channel", "keep": "0.5"}), surgery)  # as earlier versions wrote them
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-10])
    for call, says in (
        (lambda: tmp_path / "missing", "not a file"),
        (lambda: tmp_path, "not a file"),
        (lambda: cut, "cannot be read"),
        (lambda: written({}, None), "does not hold ICLIP weights"),
        (lambda: written({}, stored | {"path": "value"}), "does not hold ICLIP weights"),
        (lambda: written({}, stored | {"clip": "0" * 16}), "another CLIP"),
        (lambda: written({"recognition": None}, stored), "must hold finite tensors"),
        (lambda: written({"recognition": torch.zeros(16, 15)}, stored), "must hold finite tensors"),
        (lambda: written({"recognition": torch.zeros(16, 16).half()}, stored), "must hold finite tensors"),
        (lambda: written({"recognition": torch.full((16, 16), math.nan)}, stored), "must hold finite tensors"),
        (lambda: written({"other": torch.zeros(1)}, stored), "must hold finite tensors"),
    ):
        with pytest.raises(WeightsError, match=says):
            ICLIP.load(call(), surgery)
    for other in (tiny_clip(seed=1), tiny_clip(quick_gelu=True)):
        with pytest.raises(WeightsError, match="another CLIP"):
            ICLIP.load(good, tiny_surgery(other))
    with pytest.raises(OutputError):
        ICLIP(surgery).save(tmp_path)
