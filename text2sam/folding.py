"""Networks made faster on CPUs, for inference: fewer steps, and each by oneDNN."""

from __future__ import annotations

import functools
import itertools
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_M = TypeVar("_M", bound=nn.Module)

_STEPS: dict[type[nn.Module], tuple[str, list[float], str]] = {
    nn.Identity: ("none", [], ""),
    nn.GELU: ("gelu", [], "none"),
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
}
"""What oneDNN can do to the outputs of a layer, by the module that says so: attribute, scalars and algorithm."""


class _Fused(nn.Module):
    """A layer and the activation after it, which oneDNN computes as one; elsewhere, and for gradients, one after the other."""

    after: nn.Module
    weight: torch.Tensor
    bias: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer, then ``after``."""
        if self._apart(x):
            return self.after(super().forward(x))  # type: ignore[no-any-return]
        return self.together(x)

    def together(self, x: torch.Tensor) -> torch.Tensor:
        """The same by oneDNN, for inference on a CPU."""
        raise NotImplementedError

    def _apart(self, x: torch.Tensor) -> bool:
        grad = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return grad or x.device.type != "cpu" or x.dtype != self.weight.dtype or not _fused_layers_work(x.dtype)


class FusedConv2d(_Fused, nn.Conv2d):
    """A convolution. On one thread PyTorch itself leaves oneDNN aside for a single image and kernels of 1, and is slower."""

    def _apart(self, x: torch.Tensor) -> bool:
        return super()._apart(x) or x.ndim != 4

    def together(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) by oneDNN."""
        settings = (self.padding, self.stride, self.dilation, self.groups, *_STEPS[type(self.after)])
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *settings)  # type: ignore[no-any-return]


class FusedLinear(_Fused, nn.Linear):
    """A linear layer."""

    def together(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) by oneDNN."""
        step = _STEPS[type(self.after)]
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *step)  # type: ignore[no-any-return]


@functools.cache
def _fused_layers_work(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this PyTorch computes what is expected: the operators are those of its compiler, and not for everyone."""
    with torch.random.fork_rng(devices=[]):
        x, conv, linear = torch.ones(1, 2, 4, 4, dtype=dtype), nn.Conv2d(2, 3, 3, dtype=dtype), nn.Linear(4, 2, dtype=dtype)
    try:
        layer: Any
        for layer, kind in ((conv, FusedConv2d), (linear, FusedLinear)):
            with torch.no_grad():
                layer.weight.copy_(torch.linspace(-1, 1, layer.weight.numel()).view_as(layer.weight))
                expected = nn.functional.gelu(layer(x))
                layer.__class__, layer.after = kind, nn.GELU()
                if not torch.allclose(layer.together(x), expected, atol=1e-5 if dtype == torch.float32 else 0.05):
                    return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def fuse(parent: nn.Module, layer: nn.Module, after: str | None = None) -> None:
    """Makes a layer of ``parent`` do the step after it too, where oneDNN can.

    Args:
        parent: holds the module that follows the layer, which becomes an ``nn.Identity``.
        layer: an ``nn.Conv2d`` or ``nn.Linear``; others stay as they are.
        after: name in ``parent`` of the module that is always the next step; None for nothing.
    """
    kinds: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: FusedConv2d, nn.Linear: FusedLinear}
    step = nn.Identity() if after is None else getattr(parent, after)
    known = type(step) in _STEPS and getattr(step, "approximate", "none") == "none"
    if not (known and type(layer) in {*kinds, *kinds.values()} and _fused_layers_work()):
        return
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return
    layer.__class__ = kinds.get(type(layer), type(layer))
    layer.after = step
    if after is not None:
        setattr(parent, after, nn.Identity())


def fold_batch_norms(module: _M) -> _M:
    """The module itself, faster on CPUs: its outputs change in the last bits.

    Each convolution takes over the batch norm that is its parent's next child, as it must be the next step, with its activation
    where the batch norm has one, as timm's; activations lie in memory channels last.

    Args:
        module: in evaluation mode. Its weights are changed, so its state dict is no checkpoint any more.
    """
    for parent in list(module.modules()):
        for (_, conv), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            mean, variance = norm.running_mean, norm.running_var
            if mean is not None and variance is not None:
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
                )
                setattr(parent, name, getattr(norm, "act", nn.Identity()))
                fuse(parent, conv, name)
    for parent in list(module.modules()):
        for child in list(parent.children()):
            if type(child) is nn.Conv2d:
                fuse(parent, child)
    module.requires_grad_(False)
    return module.to(memory_format=torch.channels_last)
