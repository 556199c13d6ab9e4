from __future__ import annotations

import gc
import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import torch
from helpers import condition, draw_weights, picture, raising, tiny_clip, tiny_surgery
from numpy.typing import NDArray
from open_clip.timm_model import TimmModel
from torch.nn.functional import normalize

from text2sam.clip.generator import ClipSurgery
from text2sam.clip.towers import tower_of
from text2sam.errors import InputError, MissingDependencyError, PromptError
from text2sam.lab import activation
from text2sam.lab.activation import class_activation, last_step

with_package = pytest.mark.skipif(importlib.util.find_spec("pytorch_grad_cam") is None, reason="needs grad-cam")
FAMILIES = ("vit", "resnet")


def surgery_of(family: str, **options: Any) -> ClipSurgery:
    # with this seed the layer has positive and negative values
    return tiny_surgery(tiny_clip(family, seed=3), **({"image_size": 16 if family == "vit" else 64} | options))


# arguments


def test_unusable_texts() -> None:
    surgery = surgery_of("vit")
    with pytest.raises(InputError, match="for one text pass"):
        class_activation(surgery, picture(), "cat")
    with pytest.raises(PromptError):
        class_activation(surgery, picture(), ["cat", ""])
    assert class_activation(surgery, picture(), []) == []


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(MissingDependencyError, match=r"class_activation needs the package 'grad-cam'.*text2sam\[cam\]"):
        class_activation(surgery_of("vit"), picture(), ["cat"])


# parity with Grad-CAM written by hand on open_clip's own modules


def by_hand(surgery: ClipSurgery, text: str) -> NDArray[np.float64]:
    """(gh, gw): channels weighted by the mean gradient of the logit, negative values set to 0, min-max."""
    visual, pixels = surgery.model.visual, surgery.preprocess(picture())
    feature = surgery.encode_texts([text])[0].clone()
    if hasattr(visual, "attnpool"):
        with torch.no_grad():
            layer = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
        layer.requires_grad_()
        token = visual.attnpool(layer)[0]
        (gradient,) = torch.autograd.grad(normalize(token, dim=0) @ feature, layer)
        heat = (gradient[0].mean((1, 2))[:, None, None] * layer[0]).sum(0)
    else:
        with torch.no_grad():
            x = visual.conv1(pixels).flatten(2).transpose(1, 2)
            x = visual.ln_pre(torch.cat([visual.class_embedding[None, None], x], 1) + visual.positional_embedding)
            *others, last = visual.transformer.resblocks
            for block in others:
                x = block(x)
            layer = last.ln_1(x)
        layer.requires_grad_()
        x = x + last.attn(layer, layer, layer, need_weights=False)[0]
        x = x + last.mlp(last.ln_2(x))
        token = (visual.ln_post(x) @ visual.proj)[0, 0]
        (gradient,) = torch.autograd.grad(normalize(token, dim=0) @ feature, layer)
        heat = (layer[0, 1:] @ gradient[0, 1:].mean(0)).reshape(4, 4)
    values = heat.detach().double().numpy().clip(0)
    span = values.max() - values.min()
    return (values - values.min()) / (span if span else 1)


@with_package
@pytest.mark.parametrize("family", FAMILIES)
def test_gradcam_by_hand(family: str) -> None:
    surgery = surgery_of(family)
    texts = ["cat", "dog", "tree", "sky"]
    maps = class_activation(surgery, picture(), texts)
    expected = [by_hand(surgery, text) for text in texts]
    for found, values in zip(maps, expected, strict=True):
        np.testing.assert_allclose(found.values, values, rtol=0, atol=2e-3)
    assert any(values.max() > 0 for values in expected)


@with_package
@pytest.mark.parametrize(("family", "size", "grid"), [("vit", (12, 20), (3, 5)), ("resnet", (64, 96), (2, 3))])
def test_maps(family: str, size: tuple[int, int], grid: tuple[int, int]) -> None:
    surgery = surgery_of(family, image_size=size)
    maps = class_activation(surgery, picture(), [" cat ", "dog", "tree", "cat"])
    assert [(m.text, m.method) for m in maps] == [(text, "gradcam") for text in ("cat", "dog", "tree", "cat")]
    for found in maps:
        assert found.values.shape == grid
        assert found.values.dtype == np.float32
        assert found.values.min() >= 0
        assert found.values.max() <= 1
    assert np.array_equal(maps[0].values, maps[3].values)
    (alone,) = class_activation(surgery, picture(), ["dog"])
    np.testing.assert_allclose(alone.values, maps[1].values, rtol=0, atol=1e-4)
    assert not all(found.flat for found in maps)


@with_package
@pytest.mark.parametrize(("family", "size"), [("vit", 4), ("resnet", 32)])
def test_one_patch(family: str, size: int) -> None:
    (found,) = class_activation(surgery_of(family, image_size=size), picture(), ["cat"])
    assert found.values.shape == (1, 1)
    assert found.flat


# side effects


@with_package
@pytest.mark.parametrize(("family", "failing"), [("vit", True), ("resnet", True), ("resnet", False)])
def test_the_model_is_unchanged_afterwards(family: str, failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    surgery = surgery_of(family)
    model = surgery.model.train()
    last = model.visual.ln_post if family == "vit" else model.visual.attnpool
    last.eval()
    frozen, kept = list(last.parameters())[:2]
    frozen.requires_grad_(False)
    kept.grad = torch.ones_like(kept)
    before = condition(model)
    if failing:
        monkeypatch.setattr(activation, "itemgetter", lambda index: raising)
        with pytest.raises(ZeroDivisionError):
            class_activation(surgery, picture(), ["cat"])
    else:
        class_activation(surgery, picture(), ["cat", "dog"])
    gc.collect()
    assert condition(model) == before  # includes hooks, modes and flags
    for parameter in model.parameters():
        assert (parameter.grad is None) == (parameter is not kept)
    assert torch.equal(kept.grad, torch.ones_like(kept))


@with_package
@pytest.mark.parametrize("family", FAMILIES)
def test_the_callers_gradient_mode_does_not_matter(family: str) -> None:
    surgery = surgery_of(family)
    (expected,) = class_activation(surgery, picture(), ["tree"])
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            (found,) = class_activation(surgery, picture(), ["tree"])
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert np.array_equal(found.values, expected.values)


@pytest.mark.parametrize(
    ("name", "pool", "proj"), [("test_vit", "token", None), ("test_vit", "map", None), ("test_convnext", "", "linear")]
)
def test_last_steps_of_timms_towers(name: str, pool: str, proj: str | None) -> None:
    visual, seen = draw_weights(TimmModel(name, 16, 160, pool=pool, proj=proj), 0.15), []
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))

    def tap(layer: torch.Tensor) -> torch.Tensor:
        seen.append(layer.detach().requires_grad_())
        return seen[0]

    with torch.no_grad():
        end = last_step(tower_of(visual), pixels)
    feature = end.finish(end.stream, tap)
    torch.testing.assert_close(feature, visual(pixels), rtol=1e-5, atol=1e-5)
    [gradient] = torch.autograd.grad(feature.sum(), seen)
    assert end.layer_map(gradient).shape == (2, gradient.shape[-1], *end.grid)
    assert gradient.abs().max() > 0
