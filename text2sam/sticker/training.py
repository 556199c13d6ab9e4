"""What both trainings of the sticker pair share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TRAIN_SEEDS = 1_000_000_000
"""Training draws seeds from here upwards; everything below is never seen in training."""


def save_checkpoint(path: Path, state: Any) -> None:
    """Writes a training checkpoint atomically."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weights with decay; biases, norms and embeddings without."""
    flat = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "embedding" in n)]
    return [{"params": rest, "weight_decay": decay}, {"params": flat, "weight_decay": 0.0}]
