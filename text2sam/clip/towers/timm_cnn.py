"""timm's pooled networks: ConvNeXt, FastViT (MobileCLIP-S, MobileCLIP2-S), ResNet, Swin.

Their image feature is the mean of the last feature map, projected by a head. Here every position goes through that head alone,
and the image feature stands in the class token's place. Where the head is linear the mean of the positions is the image
feature; where it normalises after the mean (ConvNeXt), or has an MLP, positions are an approximation.

There is no attention whose queries and keys could be replaced: the second path is the original one, so that method ``surgery``
is ``features`` and ``architecture`` is ``itsm``, and the other kinds of attention are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from text2sam.clip.attention import AttentionKind
from text2sam.clip.towers.base import Adapter, TowerTokens
from text2sam.errors import UnsupportedModelError

_FAMILIES = ("ConvNeXt", "FastVit", "ResNet", "SwinTransformer")


class TimmCNN(Adapter):
    """Adapter of a ``TimmModel`` around a pooled network; see :class:`text2sam.clip.towers.base.ImageTower`."""

    def __init__(self, visual: Any) -> None:
        super().__init__(visual, patch=int(visual.trunk.feature_info[-1]["reduction"]), size=visual.image_size)
        self._channels_last = getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC"
        heads = (getattr(visual.trunk, "head", nn.Identity()), visual.head)
        made = {type(part).__name__ for head in heads for part in head.modules() if not next(part.children(), None)}
        curved = sorted(name for name in made if "Norm" in name or name.endswith(("GELU", "GELUTanh")))
        if curved:
            self.note = f"positions go one by one through {', '.join(curved)}, the image feature after its mean"

    def tokens(self, pixels: torch.Tensor, depth: int, kinds: Sequence[AttentionKind]) -> TowerTokens:
        """One path; ``depth`` has no effect."""
        x = self.features(pixels)  # (B, gh, gw, D)
        alone = self.head(x.flatten(0, 2)[:, None, None]).unflatten(0, x.shape[:3])
        tokens = torch.cat([self.head(x)[:, None], alone.flatten(1, 2)], dim=1)
        return TowerTokens({"raw": tokens, "architecture": tokens}, (int(x.shape[1]), int(x.shape[2])))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, gh, gw, D) last feature map."""
        trunk = self.module.trunk
        if hasattr(trunk, "set_input_size"):
            trunk = _for_size(trunk, (int(pixels.shape[2]), int(pixels.shape[3])))
        x: torch.Tensor = trunk.forward_features(pixels)
        return x if self._channels_last else x.permute(0, 2, 3, 1)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C) image features from (B, h, w, D)."""
        visual = self.module
        features: torch.Tensor = visual.head(visual.trunk.forward_head(x if self._channels_last else x.permute(0, 3, 1, 2)))
        return features


def adapt(visual: nn.Module) -> TimmCNN | None:
    """The adapter of a ``TimmModel`` around one of these networks; None for another tower.

    Raises:
        UnsupportedModelError: it does not pool by the mean.
    """
    trunk: Any = getattr(visual, "trunk", None)
    if type(trunk).__name__ not in _FAMILIES or not type(trunk).__module__.startswith("timm."):
        return None
    if hasattr(visual.head, "pool"):
        raise UnsupportedModelError(
            f"timm's {type(trunk).__name__} with {type(visual.head.pool).__name__}: its positions are pooled by attention"
        )
    pool = getattr(getattr(trunk, "head", trunk), "global_pool", None)
    if getattr(pool, "pool_type", None) != "avg":
        raise UnsupportedModelError(f"timm's {type(trunk).__name__} with the pooling {getattr(pool, 'pool_type', pool)!r}")
    return TimmCNN(visual)


def _for_size(trunk: Any, size: tuple[int, int]) -> Any:
    """A trunk of windows for images of a size: itself, or a copy with the same weights and windows."""
    if tuple(trunk.patch_embed.img_size) == size:
        return trunk
    twin = copy.deepcopy(trunk, {id(parameter): parameter for parameter in trunk.parameters()})
    twin.set_input_size(img_size=size, window_size=trunk.layers[0].blocks[0].window_size)
    return twin
