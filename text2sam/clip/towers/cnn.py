"""timm's convolutional classifiers with a linear head: every position is a token, their mean the class token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from text2sam.clip.attention import AttentionKind
from text2sam.clip.towers.base import TowerTokens
from text2sam.errors import UnsupportedModelError


class PooledCNN:
    """Adapter of a classifier that averages its last feature map.

    It has what :class:`text2sam.clip.towers.base.ImageTower` asks for but for attention: both paths are the same. Tokens are
    what the average pooling takes the mean of, so the head (:attr:`weight`) may be applied to each of them, and the mean of the
    results is the classifier's answer.

    Args:
        module: a timm model with ``forward_features`` that gives (B, C, gh, gw), average pooling, and a linear head.

    Raises:
        UnsupportedModelError: the model is of another kind.
    """

    def __init__(self, module: Any) -> None:
        head = module.get_classifier() if callable(getattr(module, "get_classifier", None)) else None
        pool = getattr(getattr(module, "global_pool", None), "pool_type", None)
        if not (callable(getattr(module, "forward_features", None)) and isinstance(head, torch.nn.Linear) and pool == "avg"):
            raise UnsupportedModelError(
                f"{type(module).__name__} is no classifier of timm with average pooling and a linear head, such as "
                "timm.create_model('tf_efficientnet_lite2')"
            )
        stride = int(module.feature_info[-1]["reduction"])
        self.module = module
        self.patch: tuple[int, int] = (stride, stride)
        config = module.pretrained_cfg
        self.size: tuple[int, int] = tuple(config["input_size"][1:])
        self.mean: Sequence[float] | None = config["mean"]
        self.std: Sequence[float] | None = config["std"]

    @property
    def weight(self) -> torch.Tensor:
        """(K, C) of the head, for K classes."""
        weight: torch.Tensor = self.module.get_classifier().weight
        return weight

    def tokens(self, pixels: torch.Tensor, depth: int = 0, kinds: Sequence[AttentionKind] = ()) -> TowerTokens:
        """(B, 1 + gh*gw, C): the pooled feature, and what it is the mean of."""
        x: torch.Tensor = self.module.forward_features(pixels)  # (B, C, gh, gw)
        patches = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        return TowerTokens(tokens, tokens, (int(x.shape[2]), int(x.shape[3])))
