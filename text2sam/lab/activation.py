"""Grad-CAM by the package grad-cam, a baseline for similarity maps.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) weights the channels of a layer by the mean gradient of a score. The score is
CLIP's logit of a text: the scaled cosine of the text and the class token of the original path. The layer is the input of the
last step: the output of the first norm in the last block of a transformer, as grad-cam recommends for ViTs, or the input of a
ResNet's attention pool.

The layers before it run once for all texts. grad-cam hooks an identity module that the layer passes through, so the tower has
no hooks and its parameters get no gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.generator import ClipSurgery
from text2sam.clip.towers.base import ImageTower, evaluating
from text2sam.clip.towers.blocks import TransformerTower, step
from text2sam.clip.towers.resnet import pool_tokens, resnet_features
from text2sam.clip.towers.timm_cnn import TimmCNN
from text2sam.errors import InputError, needed
from text2sam.image import ImageLike
from text2sam.targets import check_text
from text2sam.types import SimilarityMap


def class_activation(surgery: ClipSurgery, image: ImageLike, texts: Sequence[str]) -> list[SimilarityMap]:
    """Grad-CAM's maps of an image, one per text.

    During the call the tower is in evaluation mode and its parameters require no gradients; both are restored afterwards. Not
    thread-safe.

    Args:
        surgery: the CLIP; its ``depth`` has no effect.
        image: see :func:`text2sam.image.read_image`.
        texts: T texts, independent of each other.

    Returns:
        T maps whose ``values`` are (gh, gw) float32 in [0, 1]: negative values set to 0, then min-max (grad-cam's epsilon keeps
        the maximum slightly below 1). The map is flat if no value is positive.

    Raises:
        MissingDependencyError: the package ``grad-cam`` is not installed.
        InputError: ``texts`` is a string.
        PromptError: a text is empty or too long.
        ImageError: the image cannot be read.
    """
    if isinstance(texts, str):
        raise InputError(f"texts must be a sequence of strings; for one text pass [{texts!r}]")
    wanted = [check_text(text) for text in texts]
    if not wanted:
        return []
    pixels = surgery.preprocess(image)
    pytorch_grad_cam = needed("pytorch_grad_cam", "grad-cam", "class_activation", "cam")
    visual: Any = surgery.model.visual
    pixels = pixels.to(surgery.device, next(visual.parameters()).dtype)
    with torch.inference_mode(False), evaluating(visual), _frozen(visual), torch.no_grad():
        features = surgery.encode_texts(wanted).clone()  # the cached tensor may be an inference tensor
        features = features * surgery.logit_scale()
        end = last_step(surgery.tower, pixels)
        last = _Last(end, features)
        canvas = torch.zeros(1, 1, *end.grid, device=surgery.device)
        cam = pytorch_grad_cam.GradCAM(last, [last.tap], reshape_transform=end.layer_map)
        maps = []
        try:
            for index in range(len(wanted)):
                with torch.enable_grad():
                    maps.append(cam(canvas, [itemgetter(index)])[0])
        finally:
            cam.activations_and_grads.release()
    return [SimilarityMap(np.ascontiguousarray(m, np.float32), text, "gradcam") for m, text in zip(maps, wanted, strict=True)]


Tap = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class LastStep:
    """The last step of a tower, which makes the class token."""

    stream: torch.Tensor  # what enters it, in a form of the tower's own
    grid: tuple[int, int]  # (gh, gw)
    # (stream, tap) -> (B, C) class token; ``tap`` is given the layer that the step mixes into it, and returns the layer
    finish: Callable[[torch.Tensor, Tap], torch.Tensor]
    layer_map: Callable[[torch.Tensor], torch.Tensor]  # what ``tap`` is given -> (B, D, gh, gw)


def last_step(tower: ImageTower, pixels: torch.Tensor) -> LastStep:
    """What precedes the last step of a tower's original path, from (B, 3, H, W) normalised pixels."""
    if isinstance(tower, TransformerTower):
        x, grid, (*blocks, last) = tower.stream(pixels)
        for block in blocks:
            x = step(block, x, block.enter(x))
        return LastStep(
            x,
            grid,
            lambda stream, tap: tower.pool(step(last, stream, tap(last.enter(stream)))),
            lambda layer: layer[:, tower.prefix :].transpose(1, 2).unflatten(2, grid),
        )
    if isinstance(tower, TimmCNN):
        x = tower.features(pixels)
        grid = (int(x.shape[1]), int(x.shape[2]))
        return LastStep(x, grid, lambda x, tap: tower.head(tap(x)), lambda layer: layer.permute(0, 3, 1, 2))
    visual: Any = tower.module
    x = resnet_features(visual, pixels)
    grid = (int(x.shape[2]), int(x.shape[3]))
    return LastStep(x, grid, lambda x, tap: pool_tokens(visual, tap(x)).raw[:, 0], lambda layer: layer)


class _Last(nn.Module):
    """The layers after the tapped layer: (1, 1, gh, gw), of which only the size matters -> (1, T) logits.

    grad-cam takes the size of its maps from the input and the device from a parameter, and changes mode and gradients of all
    submodules, so the tower must not be a submodule.
    """

    def __init__(self, end: LastStep, features: torch.Tensor) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.anchor = nn.Parameter(torch.zeros((), device=features.device), requires_grad=False)
        self._beyond = (end, end.stream.detach().requires_grad_(), features)

    def forward(self, canvas: torch.Tensor) -> torch.Tensor:
        end, stream, features = self._beyond
        logits: torch.Tensor = F.normalize(end.finish(stream, self._tapped).float(), dim=-1) @ features.T
        return logits

    def _tapped(self, layer: torch.Tensor) -> torch.Tensor:
        passed: torch.Tensor = self.tap(layer.float()).to(layer.dtype)  # NumPy has no bfloat16
        return passed


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient within the ``with`` block."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
