"""Models of other makes, and models in odd states: taken rightly, or refused by a message that says what to do."""

from __future__ import annotations

import sys
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import condition, picture, surgery_tokens, tiny_clip, tiny_surgery
from torch import nn

from text2sam.clip.attention import METHODS
from text2sam.clip.towers import FAMILIES, tower_of
from text2sam.clip.towers.base import TowerTokens, evaluating
from text2sam.errors import UnsupportedModelError


def wrapped(attention: nn.Module) -> nn.Module:
    """A stand-in for peft's adapter around an attention."""
    adapter = nn.Module()
    adapter.base_layer = attention
    return adapter


def attention_with_adapter(model: Any) -> Any:
    block = model.visual.transformer.resblocks[0]
    block.attn = wrapped(block.attn)
    return model


def compiled_tower(model: Any) -> Any:
    model.visual = torch.compile(model.visual, backend="eager")
    return model


def openais(model: Any) -> Any:
    tower = type("VisionTransformer", (nn.Module,), {"__module__": "clip.model"})()
    tower.input_resolution = 224
    model.visual = tower
    return model


def transformers(model: Any) -> Any:
    return type("CLIPVisionModel", (nn.Module,), {"__module__": "transformers.models.clip.modeling_clip"})()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (attention_with_adapter, r"adapter on its attention.*merge_and_unload\(\)"),
        (compiled_tower, r"torch\.compile.*_orig_mod"),
        (openais, "not those of a CLIP of OpenAI's package clip"),
        (transformers, "models of transformers work when their model_type is one of clip.*not 'CLIPVisionModel'"),
        (lambda model: model.to("meta"), "'meta', without weights"),
    ],
)
def test_what_is_refused(make: Any, told: str) -> None:
    with pytest.raises(UnsupportedModelError, match=told):
        tiny_surgery(make(tiny_clip()))


def hooked(model: Any) -> None:
    model.visual.transformer.resblocks[1].register_forward_hook(lambda module, arguments, output: output * 1.1)


def own_forward(model: Any) -> None:
    forward = model.visual.forward
    model.visual.forward = lambda pixels: forward(pixels.flip(-1))


def other_projection(model: Any) -> None:
    out = model.visual.transformer.resblocks[2].attn.out_proj
    out.forward = lambda x: nn.functional.linear(x, 1.5 * out.weight, out.bias)  # MultiheadAttention never calls it


@pytest.mark.parametrize("change", [hooked, own_forward, other_projection])
def test_the_class_token_is_checked(change: Any) -> None:
    model = tiny_clip()
    change(model)
    with pytest.raises(UnsupportedModelError, match=r"class token.*hooks, register tokens, adapters.*check=False"):
        tiny_surgery(model)
    assert tiny_surgery(model, check=False).encode_image(picture()).grid == (4, 4)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_the_check_leaves_no_trace(family: str) -> None:
    model = tiny_clip(family, vision={"patch_dropout": 0.5, "output_tokens": True} if family == "vit" else None).train()
    before, random = condition(model), torch.get_rng_state()
    tiny_surgery(model)
    assert condition(model) == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_autocast_changes_nothing(family: str) -> None:
    model, texts = tiny_clip(family), ["cat", "pig"]

    def results() -> list[Any]:
        fresh = tiny_surgery(model, image_size=64, vocabulary=["sky", "dog"], presence_peak=0.5)
        [features] = fresh.encode([picture()])
        maps = [m.values for against in (None, ["dog"]) for m in fresh.maps(features, texts, against=against)]
        maps += [m.values for m in fresh.maps(features, texts, vocabulary=True)]
        assert features.surgery.dtype == features.raw.dtype == torch.float32
        assert fresh.encode_pixels(fresh.preprocess(picture())).dtype == torch.float32
        return [features.surgery.numpy(), *maps, fresh.scores(features, texts), fresh.presence(features, "cat")]

    plain = results()
    with torch.autocast("cpu", torch.bfloat16):
        cast = results()
    assert all(np.array_equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.fixture
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_another_default_dtype(doubles: None) -> None:
    surgery = tiny_surgery(tiny_clip(), vocabulary=["sky", "dog"], presence_peak=0.5, scales=(1, 0.5))
    features = surgery.encode_image(picture(0, 60, 70), methods=tuple(METHODS), tiles=16)
    for method in METHODS:
        assert surgery.maps(features, ["cat"], method=method)[0].values.dtype == np.float32
    assert 0 <= surgery.presence(features, "cat") <= 1


def test_quantised_models_work() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(tiny_clip(), {nn.Linear})
    quantised, plain = tiny_surgery(model, check=False), tiny_surgery()
    for text in ("cat", "a black dog"):
        assert float(quantised.encode_texts([text]) @ plain.encode_texts([text]).T) > 0.95
    assert quantised.fingerprint() != plain.fingerprint()
    assert quantised.similarity(picture(), ["cat"])[0].values.shape == (4, 4)


def test_evaluation_mode_of_overlapping_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_clip("resnet").train()
    model.visual.layer2.eval()
    before, interval = condition(model), sys.getswitchinterval()
    pixels = torch.ones(1, 3, 64, 64)
    expected, wrong = surgery_tokens(tiny_clip("resnet").visual, pixels).raw, []

    def work() -> None:
        with torch.no_grad():
            wrong.extend(not torch.equal(surgery_tokens(model.visual, pixels).raw, expected) for _ in range(15))

    threads = [threading.Thread(target=work) for _ in range(3)]
    monkeypatch.setattr(sys, "getswitchinterval", lambda: interval)
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == [False] * 45
    assert condition(model) == before


def test_the_last_one_out_gives_the_mode_back() -> None:
    model = tiny_clip().train()
    first, second = evaluating(model), evaluating(model.visual)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert model.training
    assert model.ln_final.training
    assert not any(m.training for m in model.visual.modules())
    second.__exit__(None, None, None)
    assert all(m.training for m in model.modules())


def test_a_family_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of text2sam.clip.towers, run."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.project = nn.Conv2d(3, 8, 32, 32), nn.Linear(8, 16)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.project(self.trunk(pixels).mean((2, 3)))

    class Pooled:
        patch, size, mean, std, blocks, kinds = (32, 32), (224, 224), None, None, None, ("architecture",)

        def __init__(self, visual: Any) -> None:
            self.module = visual

        def tokens(self, pixels: torch.Tensor, depth: int, kinds: Any) -> TowerTokens:
            x = self.module.project(self.module.trunk(pixels).permute(0, 2, 3, 1))  # (B, gh, gw, C)
            patches = x.flatten(1, 2)
            tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
            return TowerTokens({"raw": tokens, "architecture": tokens}, (x.shape[1], x.shape[2]))

    model = tiny_clip()
    model.visual = Network()
    with pytest.raises(UnsupportedModelError, match="image tower Network"):
        tower_of(model.visual)
    adapt = lambda visual: Pooled(visual) if isinstance(visual, Network) else None  # noqa: E731
    monkeypatch.setattr("text2sam.clip.towers.FAMILIES", (*FAMILIES, adapt))
    surgery = tiny_surgery(model, image_size=(64, 96), depth=6)  # the class token is model.encode_image's
    assert surgery.similarity(picture(), ["cat"])[0].values.shape == (2, 3)
    with pytest.raises(UnsupportedModelError, match="'gem' is defined on a transformer's blocks"):
        surgery.similarity(picture(), ["cat"], method="gem")


def test_stand_ins_are_not_checked() -> None:
    model = tiny_clip()
    stand_in = types.SimpleNamespace(visual=model.visual, encode_text=model.encode_text, logit_scale=model.logit_scale)
    stand_in.parameters, stand_in.to = model.parameters, lambda *_: stand_in
    assert tiny_surgery(stand_in).encode_image(picture()).grid == (4, 4)
