"""The seam to models: the one place that knows a model's insides.

:class:`~text2sam.clip.towers.base.ImageTower` says what surgery needs of an image tower; there is one adapter file per family,
and ``text.py`` for text towers. A new family is a file with a class and ``adapt(visual)``, named in :data:`FAMILIES`. A tower
whose patches are projected one by one, and whose image feature is their mean, takes these lines::

    class Pooled:
        patch, size, mean, std, blocks, kinds = (32, 32), (224, 224), None, None, None, ("architecture",)

        def __init__(self, visual):
            self.module = visual

        def tokens(self, pixels, depth, kinds):
            x = self.module.project(self.module.trunk(pixels).permute(0, 2, 3, 1))  # (B, gh, gw, C)
            patches = x.flatten(1, 2)
            tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
            return TowerTokens({"raw": tokens, "architecture": tokens}, tuple(x.shape[1:3]))

    def adapt(visual):
        return Pooled(visual) if isinstance(visual, MyPooledNetwork) else None
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.attention import KINDS
from text2sam.clip.towers import resnet, timm_cnn, timm_vit, vit
from text2sam.clip.towers.base import ImageTower, TowerTokens, evaluating, exact
from text2sam.errors import InputError, UnsupportedModelError

FAMILIES = (vit.adapt, resnet.adapt, timm_vit.adapt, timm_cnn.adapt)
"""Each takes an image tower, and gives its adapter, or None for a tower of another family. For one of the family that cannot be
read it raises ``UnsupportedModelError``, whose message goes on from "surgery cannot be applied to"."""

_WORKS = (
    "Surgery works on open_clip's VisionTransformer and ModifiedResNet, and on timm's VisionTransformer, Eva, ConvNeXt, "
    "FastViT, ResNet and Swin: for example ViT-B-16, RN50, ViT-B-16-SigLIP2, MobileCLIP2-B; text2sam models towers lists "
    "them all"
)


def image_tower(model: Any) -> ImageTower:
    """The adapter of a model's image tower.

    Raises:
        UnsupportedModelError: the model is not open_clip's, its weights are not there, or its tower is of another family.
    """
    visual = getattr(model, "visual", None)
    if not isinstance(visual, nn.Module):
        raise UnsupportedModelError(f"ClipSurgery needs a CLIP built by open_clip, not {type(model).__name__}")
    if any(p.is_meta for p in getattr(model, "parameters", visual.parameters)()):
        raise UnsupportedModelError("the model is on the device 'meta', without weights: load them before building ClipSurgery")
    return tower_of(visual)


def tower_of(visual: nn.Module) -> ImageTower:
    """The adapter of an image tower.

    Raises:
        UnsupportedModelError: no family takes it; the message says why.
    """
    if hasattr(visual, "_orig_mod"):
        raise UnsupportedModelError(
            "surgery looks into the image tower, and this one was compiled by torch.compile: hand over the model with "
            "model.visual = model.visual._orig_mod"
        )
    try:
        for adapt in FAMILIES:
            tower = adapt(visual)
            if tower is not None:
                return tower
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"surgery cannot be applied to {error}. {_WORKS}") from None
    name, trunk = type(visual).__name__, getattr(visual, "trunk", None)
    what = name if trunk is None else f"{name} around timm's {type(trunk).__name__}"
    raise UnsupportedModelError(f"surgery cannot be applied to the image tower {what}. {_WORKS}")


def check_depth(tower: ImageTower, depth: int) -> int:
    """How many of the last blocks get the second path.

    Raises:
        InputError: it is not between 1 and the number of blocks.
    """
    whole = isinstance(depth, int) and not isinstance(depth, bool)
    if tower.blocks is not None and not (whole and 1 <= depth <= tower.blocks):
        raise InputError(f"depth must be an int from 1 to {tower.blocks}, the number of blocks of this tower, not {depth!r}")
    return depth


def run_tower(tower: ImageTower, pixels: torch.Tensor, *, depth: int, kinds: Collection[str] = ()) -> TowerTokens:
    """Tokens of pixels, computed in evaluation mode.

    Args:
        tower: from :func:`image_tower`.
        pixels: (B, 3, H, W) normalised pixels in the tower's dtype, at least one patch high and wide; a
            remainder smaller than a patch at the right or lower edge is cut off.
        depth: how many of the last blocks get the second path; see :func:`check_depth`.
        kinds: names in the tower's ``kinds`` of what to compute besides architecture surgery.

    Raises:
        InputError: ``pixels`` has another shape or is too small.
    """
    height, width = tower.patch
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] < height or pixels.shape[3] < width or not len(pixels):
        raise InputError(
            f"pixels must be (B, 3, H, W) with B at least 1 and H, W at least {height} and {width}, not {tuple(pixels.shape)}"
        )
    further = [kind for name, kind in KINDS.items() if name in kinds and name != "architecture"]
    pixels = pixels[..., : pixels.shape[2] // height * height, : pixels.shape[3] // width * width]
    with evaluating(tower.module):
        return tower.tokens(pixels, depth, further)


def check_faithful(model: Any, tower: ImageTower) -> None:
    """Compares the class token of one picture of noise with what ``model.encode_image`` gives for it.

    Raises:
        UnsupportedModelError: they differ.
    """
    encode = getattr(model, "encode_image", None)
    if not callable(encode):
        return
    weight = next(tower.module.parameters())
    noise = np.random.RandomState(0).standard_normal((1, 3, *tower.size))
    pixels = torch.from_numpy(noise).to(weight.device, weight.dtype)
    with exact(weight.device), evaluating(model):
        theirs = encode(pixels)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        ours = run_tower(tower, pixels, depth=1).raw[:, 0]
    close = 1e-3 if weight.dtype in (torch.float32, torch.float64) else 0.05
    away = float((F.normalize(ours.float(), dim=-1) - F.normalize(theirs.float(), dim=-1)).norm())
    if not away <= close:
        raise UnsupportedModelError(
            f"the class token that surgery computes is not what {type(model).__name__}.encode_image gives: unit vectors differ "
            f"by {away:.2g}. Likely causes: forward hooks, register tokens, adapters on out_proj (call merge_and_unload()), a "
            "forward of your own. check=False takes the model all the same"
        )
