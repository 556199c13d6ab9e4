"""The fingerprint sees what changes a model's results, and nothing else."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_clip
from torch import nn

from text2sam.fingerprint import fingerprint


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("dropped", torch.ones(2), persistent=False)
        self.scaling = {"default": 2.0}
        self.act = torch.relu
        self.norm = functools.partial(nn.LayerNorm, eps=1e-5)
        self._disabled = False
        self.heads = (1, 2)


def layer() -> Layer:
    torch.manual_seed(0)
    return Layer()


CHANGES: dict[str, Callable[[Any], object]] = {
    "weight": lambda m: m.linear.weight.data.view(-1)[0].add_(1e-6),
    "buffer": lambda m: m.kept.add_(1),
    "buffer outside the state dict": lambda m: m.dropped.add_(1),
    "dtype": lambda m: m.half(),
    "scaling of an adapter": lambda m: m.scaling.update(default=4.0),
    "a second adapter": lambda m: m.scaling.update(other=2.0),
    "activation": lambda m: setattr(m, "act", torch.sigmoid),
    "partial": lambda m: setattr(m, "norm", functools.partial(nn.LayerNorm, eps=1e-6)),
    "private setting": lambda m: setattr(m, "_disabled", True),
    "setting": lambda m: setattr(m, "heads", (2, 1)),
    "class of a module": lambda m: setattr(m, "linear", type("Other", (nn.Linear,), {})(3, 2)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changes_results(kind: str) -> None:
    model = layer()
    CHANGES[kind](model)
    assert fingerprint(model) != fingerprint(layer())


def test_what_does_not() -> None:
    model = layer()
    model.eval()
    model.requires_grad_(False)
    model.linear.register_forward_hook(print)
    model.scaling = dict(model.scaling)
    model.cache = {}  # as of timm's TinyViT, before and after its first image
    assert fingerprint(model) == fingerprint(layer())
    model.cache["mask"] = torch.ones(2)
    assert fingerprint(model) == fingerprint(layer())
    assert fingerprint(torch.compile(model, backend="eager")) == fingerprint(layer())
    assert len(fingerprint(model)) == 64


@pytest.mark.parametrize("wrapped", [False, True])
def test_parts_may_be_left_out(wrapped: bool) -> None:
    def of(change: Any = None) -> str:
        model = tiny_clip()
        if change:
            with torch.no_grad():
                change(model)
        return fingerprint(nn.DataParallel(model) if wrapped else model, skip=("visual", "logit_scale"))

    assert of() == of(lambda m: m.visual.proj.add_(1)) == of(lambda m: m.logit_scale.add_(1))
    assert of() != of(lambda m: m.text_projection.add_(1))


def test_packed_weights_of_quantised_layers() -> None:
    def quantised(change: float = 0.0, factor: float = 1.0) -> Any:
        model = layer()
        model.linear.weight.data[0, 0] += change
        model.linear.weight.data *= factor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})

    assert fingerprint(quantised()) == fingerprint(quantised()) != fingerprint(quantised(1.0))
    assert fingerprint(quantised()) != fingerprint(layer())
    assert fingerprint(quantised()) != fingerprint(quantised(factor=2.0))  # the same whole numbers


def test_is_the_same_in_another_process_and_loads_no_torch_by_itself() -> None:
    code = (
        "import sys, text2sam.fingerprint; assert 'torch' not in sys.modules\n"
        "from helpers import tiny_clip; print(text2sam.fingerprint.fingerprint(tiny_clip()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert run.stdout.strip() == fingerprint(tiny_clip())
