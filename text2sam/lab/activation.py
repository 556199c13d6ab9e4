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
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.generator import ClipSurgery
from text2sam.clip.prompts import check_text
from text2sam.clip.towers import LastStep, evaluating
from text2sam.errors import InputError, MissingDependencyError
from text2sam.image import ImageLike
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
    try:
        import pytorch_grad_cam
    except ImportError as e:
        raise MissingDependencyError("grad-cam", "class_activation", "cam") from e
    visual: Any = surgery.model.visual
    pixels = pixels.to(surgery.device, next(visual.parameters()).dtype)
    with torch.inference_mode(False), evaluating(visual), _frozen(visual), torch.no_grad():
        features = surgery.encode_texts(wanted).clone()  # the cached tensor may be an inference tensor
        features = features * surgery.logit_scale()
        step = surgery.tower.last_step(pixels)
        last = _Last(step, features)
        canvas = torch.zeros(1, 1, *step.grid, device=surgery.device)
        cam = pytorch_grad_cam.GradCAM(last, [last.tap], reshape_transform=step.layer_map)
        maps = []
        try:
            for index in range(len(wanted)):
                with torch.enable_grad():
                    maps.append(cam(canvas, [_Entry(index)])[0])
        finally:
            cam.activations_and_grads.release()
    return [SimilarityMap(np.ascontiguousarray(m, np.float32), text, "gradcam") for m, text in zip(maps, wanted, strict=True)]


class _Last(nn.Module):
    """The layers after the tapped layer: (1, 1, gh, gw), of which only the size matters -> (1, T) logits.

    grad-cam takes the size of its maps from the input and the device from a parameter, and changes mode and gradients of all
    submodules, so the tower must not be a submodule.
    """

    def __init__(self, step: LastStep, features: torch.Tensor) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.anchor = nn.Parameter(torch.zeros((), device=features.device), requires_grad=False)
        self._beyond = (step, step.stream.detach().requires_grad_(), features)

    def forward(self, canvas: torch.Tensor) -> torch.Tensor:
        step, stream, features = self._beyond
        logits: torch.Tensor = F.normalize(step.finish(stream, self._tapped).float(), dim=-1) @ features.T
        return logits

    def _tapped(self, layer: torch.Tensor) -> torch.Tensor:
        passed: torch.Tensor = self.tap(layer.float()).to(layer.dtype)  # NumPy has no bfloat16
        return passed


class _Entry:
    """A target of grad-cam: one of the logits."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[self.index]


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
