"""The seam to models: the one place that knows a model's insides.

:class:`ImageTower` and :class:`TextTower` say what surgery needs of a tower; there is one adapter file per family. A new
family is a file with a class and ``adapt(visual)``, named in :data:`FAMILIES`. A tower whose patches are projected one by one,
and whose image feature is their mean, takes these lines::

    class Pooled:
        patch, size, mean, std, blocks, kinds = (32, 32), (224, 224), None, None, None, ("architecture",)

        def __init__(self, visual):
            self.module = visual

        def tokens(self, pixels, depth, kinds):
            x = self.module.project(self.module.trunk(pixels).permute(0, 2, 3, 1))  # (B, gh, gw, C)
            patches = x.flatten(1, 2)
            tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
            return TowerTokens(tokens, tokens, tuple(x.shape[1:3]))

    def adapt(visual):
        return Pooled(visual) if isinstance(visual, MyPooledNetwork) else None

``last_step`` is for class-activation maps alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.attention import KINDS, AttentionKind
from text2sam.clip.towers import resnet, timm_cnn, timm_vit, vit
from text2sam.clip.towers.base import (
    ImageTower,
    LastStep,
    TextTower,
    TowerTokens,
    evaluating,
    exact,
    resize_positions,
    resize_tokens,
)
from text2sam.clip.towers.hf import opened
from text2sam.clip.towers.text import OpenClipText, Tokenizer, encode_token_features, encode_tokens
from text2sam.clip.towers.vit import vit_stream
from text2sam.errors import InputError, UnsupportedModelError

__all__ = [
    "FAMILIES",
    "ImageTower",
    "LastStep",
    "TextTower",
    "Tokenizer",
    "TowerTokens",
    "check_depth",
    "check_kinds",
    "encode_token_features",
    "encode_tokens",
    "evaluating",
    "exact",
    "image_tower",
    "opened",
    "patch_size",
    "resize_positions",
    "resize_tokens",
    "run_tower",
    "surgery_tokens",
    "text_tower",
    "tower_of",
    "vit_stream",
]

FAMILIES = (vit.adapt, resnet.adapt, timm_vit.adapt, timm_cnn.adapt)
"""Each takes an image tower, and gives its adapter, or None for a tower of another family."""

_WORKS = (
    "Surgery works on open_clip's VisionTransformer and ModifiedResNet, and on timm's VisionTransformer, Eva, ConvNeXt, "
    "FastViT, ResNet and Swin: for example ViT-B-16, RN50, ViT-B-16-SigLIP2, MobileCLIP2-B; text2sam models towers lists "
    "them all"
)
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}  # length of the difference of two unit vectors; in half precision 0.05


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
        raise UnsupportedModelError(f"{error}. {_WORKS}") from None
    name, trunk = type(visual).__name__, getattr(visual, "trunk", None)
    what = name if trunk is None else f"{name} around timm's {type(trunk).__name__}"
    raise UnsupportedModelError(f"surgery cannot be applied to the image tower {what}. {_WORKS}")


def text_tower(model: Any, tokenizer: Tokenizer) -> TextTower:
    """The adapter of a model's text tower with its tokenizer.

    Raises:
        UnsupportedModelError: the model encodes no texts, or its text tower is quantised and not one that can be run so.
    """
    if not callable(getattr(model, "encode_text", None)):
        raise UnsupportedModelError(f"{type(model).__name__} has no encode_text; ClipSurgery needs a CLIP built by open_clip")
    return OpenClipText(model, tokenizer)


def check_depth(tower: ImageTower, depth: int) -> int:
    """How many of the last blocks get the second path.

    Raises:
        InputError: it is not between 1 and the number of blocks.
    """
    whole = isinstance(depth, int) and not isinstance(depth, bool)
    if tower.blocks is not None and not (whole and 1 <= depth <= tower.blocks):
        raise InputError(f"depth must be an int from 1 to {tower.blocks}, the number of blocks of this tower, not {depth!r}")
    return depth


def check_kinds(tower: ImageTower, kinds: Collection[str]) -> tuple[AttentionKind, ...]:
    """The kinds of these names but architecture surgery, in the table's order.

    Raises:
        InputError: ``kinds`` is no collection of names in :data:`text2sam.clip.attention.KINDS`.
        UnsupportedModelError: the tower cannot have one of them.
    """
    unknown = [kinds] if isinstance(kinds, str) else [name for name in kinds if name not in KINDS]
    if unknown:
        raise InputError(f"kinds must be a collection of names out of {', '.join(KINDS)}, not {unknown[0]!r}")
    for name in kinds:
        if name not in tower.kinds:
            raise UnsupportedModelError(
                f"attention of the kind {name!r} is defined on a transformer's blocks, which {type(tower.module).__name__} has "
                f"not; it offers {', '.join(tower.kinds)} and the original tokens. A ViT such as ViT-B-16 has all"
            )
    return tuple(kind for name, kind in KINDS.items() if name in kinds and name != "architecture")


def run_tower(tower: ImageTower, pixels: torch.Tensor, *, depth: int, kinds: Collection[str] = ()) -> TowerTokens:
    """Tokens of pixels, computed in evaluation mode.

    Args:
        tower: from :func:`image_tower`.
        pixels: (B, 3, H, W) normalised pixels in the tower's dtype, at least one patch high and wide; a
            remainder smaller than a patch at the right or lower edge is not seen, as in CLIP itself.
        depth: how many of the last blocks get the second path.
        kinds: names in :data:`text2sam.clip.attention.KINDS` of what to compute besides architecture surgery.

    Raises:
        UnsupportedModelError: the tower cannot have one of the kinds.
        InputError: ``pixels`` has another shape or is too small, or ``depth`` or a kind is not one of the above.
    """
    check_depth(tower, depth)
    further = check_kinds(tower, kinds)
    height, width = tower.patch
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] < height or pixels.shape[3] < width or not len(pixels):
        raise InputError(
            f"pixels must be (B, 3, H, W) with B at least 1 and H, W at least {height} and {width}, not {tuple(pixels.shape)}"
        )
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
    away = float((F.normalize(ours.float(), dim=-1) - F.normalize(theirs.float(), dim=-1)).norm())
    if not away <= _CLOSE.get(weight.dtype, 0.05):
        raise UnsupportedModelError(
            f"the class token that surgery computes is not what {type(model).__name__}.encode_image gives: unit vectors differ "
            f"by {away:.2g}. Likely causes: forward hooks, register tokens, adapters on out_proj (call merge_and_unload()), a "
            "forward of your own. check=False takes the model all the same"
        )


def patch_size(visual: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels that one patch token of an image tower stands for."""
    return tower_of(visual).patch


def surgery_tokens(visual: nn.Module, pixels: torch.Tensor, *, depth: int = 6, kinds: Collection[str] = ()) -> TowerTokens:
    """Tokens of an image tower, ``model.visual`` of an open_clip model; see :func:`run_tower`."""
    return run_tower(tower_of(visual), pixels, depth=depth, kinds=kinds)
