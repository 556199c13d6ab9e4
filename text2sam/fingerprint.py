"""What stands for a model's weights."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import torch


def fingerprint(module: torch.nn.Module) -> str:
    """64 hexadecimal digits, a SHA-256 over a module's weights and make-up: classes, and settings that no weight shows."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        settings = {k: v for k, v in sorted(vars(part).items()) if k[0] != "_" and k != "training" and _is_setting(v)}
        digest.update(repr((name, f"{type(part).__module__}.{type(part).__qualname__}", settings)).encode())
    # buffers too that are not in the state dict
    for name, tensor in sorted(itertools.chain(module.named_parameters(), module.named_buffers())):
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_setting(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_setting(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))
