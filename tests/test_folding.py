"""Folded networks compute the same."""

from __future__ import annotations

import copy
from collections import Counter
from unittest import mock

import pytest
import timm
import torch
from helpers import draw_weights
from timm.models.tiny_vit import TinyVit
from torch import nn
from torch.profiler import profile

from text2sam import folding
from text2sam.folding import fold_batch_norms, fuse
from text2sam.sam.mobile import hasten


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_outputs_stay(name: str) -> None:
    model = draw_weights(timm.create_model(name, pretrained=False, num_classes=5), 0.1).eval()
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(pixels)
        norms = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
        assert fold_batch_norms(model) is model
        torch.testing.assert_close(model(pixels), before, rtol=1e-4, atol=1e-4)
    left = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert left <= norms // 10, "all but those behind a pooling, as in ResNet's shortcuts"
    assert not any(p.requires_grad for p in model.parameters())


def test_what_stands_alone_stays() -> None:
    lonely = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    without_statistics = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    for model in (lonely, without_statistics):
        pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        before = model(pixels)
        torch.testing.assert_close(fold_batch_norms(model)(pixels), before)
        assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize("kind", [nn.GELU, nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Conv2d(4, 6, 1, bias=False), nn.Linear(8, 5)])
def test_a_layer_with_the_step_after_it(layer: nn.Module, kind: type[nn.Module]) -> None:
    model = copy.deepcopy(nn.Sequential(layer, kind())).eval()
    pixels = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = model(pixels)
    fuse(model, model[0], "1")
    assert isinstance(model[1], nn.Identity)
    with torch.no_grad(), mock.patch.object(torch.nn.functional, kind.__name__.lower(), None):  # one step
        torch.testing.assert_close(model(pixels), expected, rtol=1e-5, atol=1e-6)
    # apart where oneDNN's step has no gradients, or other numbers
    torch.testing.assert_close(model(pixels.requires_grad_()), expected)
    model(pixels).sum().backward()
    assert pixels.grad is not None
    with torch.no_grad():
        assert model.bfloat16()(pixels.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layer", "step"),
    [
        (nn.Conv2d(2, 2, 1, padding="same"), nn.GELU()),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.GELU()),
        (nn.Conv2d(2, 2, 1), nn.GELU("tanh")),
        (nn.Conv2d(2, 2, 1), nn.SiLU()),
        (nn.ConvTranspose2d(2, 2, 1), nn.GELU()),
    ],
)
def test_what_is_not_fused(layer: nn.Module, step: nn.Module) -> None:
    model = nn.Sequential(layer, step)
    fuse(model, layer, "1")
    assert type(model[0]) in (nn.Conv2d, nn.ConvTranspose2d)
    assert model[1] is step


def test_mobile_sams_encoder() -> None:
    """Its parts, at small sizes: the shortcut's activation stays, and attention takes a fast kernel."""
    tiny = TinyVit(
        num_classes=0, embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 2), window_sizes=(7,) * 4
    )
    encoder = draw_weights(nn.Sequential(tiny.patch_embed, tiny.stages), 0.2)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = encoder(pixels)
        assert hasten(encoder) is encoder  # type: ignore[arg-type]
        with profile() as seen:
            torch.testing.assert_close(encoder(pixels), before, rtol=1e-4, atol=1e-4)
    calls = Counter(event.key for event in seen.key_averages() for _ in range(event.count))
    assert calls["aten::gelu"] == 1
    assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == 3
    assert not calls["aten::convolution"]


@pytest.mark.parametrize(
    "operator",
    [mock.Mock(side_effect=TypeError("another signature")), mock.Mock(side_effect=lambda x, *rest: x * 2)],
    ids=["gone", "another"],
)
def test_an_operator_that_is_not_as_expected_is_left_alone(operator: mock.Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    folding._fused_layers_work.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)
    model = nn.Sequential(nn.Linear(8, 5), nn.GELU()).eval()
    state = torch.random.get_rng_state()
    try:
        fuse(model, model[0], "1")
    finally:
        folding._fused_layers_work.cache_clear()
    assert operator.called
    assert type(model[0]) is nn.Linear
    assert isinstance(model[1], nn.GELU)
    assert torch.equal(torch.random.get_rng_state(), state), "no random number is drawn"
