"""timm's convolutional classifiers with a linear head, for :class:`text2sam.clip.classifier.WordClassifier`."""

from __future__ import annotations

from typing import Any

import torch

from text2sam.errors import UnsupportedModelError


class PooledCNN:
    """Adapter of a classifier that averages its last feature map.

    As the head is linear, it may be applied to each position of the map; the mean of the results is the classifier's answer.

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
        self.module = module
        stride = int(module.feature_info[-1]["reduction"])
        self.patch = (stride, stride)
        self.mean, self.std = module.pretrained_cfg["mean"], module.pretrained_cfg["std"]

    @property
    def weight(self) -> torch.Tensor:
        """(K, C) of the head, for K classes."""
        weight: torch.Tensor = self.module.get_classifier().weight
        return weight

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C, gh, gw), what the average is taken of, from (B, 3, H, W) normalised pixels."""
        features: torch.Tensor = self.module.forward_features(pixels)
        return features
