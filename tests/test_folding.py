"""Folded networks compute the same."""

from __future__ import annotations

import pytest
import timm
import torch
from helpers import draw_weights
from torch import nn

from text2sam.folding import fold_batch_norms


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
