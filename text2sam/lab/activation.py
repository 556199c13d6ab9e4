"""Class-activation maps by the grad-cam package, a baseline beside the similarity maps.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) and its kin weight the channels of a layer by the gradient of a score with
respect to them. The score here is CLIP's logit of a text, its scale times the cosine of the class token of the original path
and the text. The layer is what the last step mixes into the class token: the tokens after the first norm of a transformer's
last block, as the grad-cam package advises for ViTs, or what enters a ResNet's attention pool.

Everything before that layer is computed once for all texts. The package hooks an empty module of ours that the layer passes
through, so no module of the tower is hooked, and none of its parameters sees a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

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

Activation = Literal["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]
"""Grad-CAM, Grad-CAM++ (arXiv 1710.11063), HiResCAM (arXiv 2011.08891), LayerCAM (IEEE TIP 2021), XGrad-CAM (arXiv
2008.02312)."""

_CLASSES = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "xgradcam": "XGradCAM",
}


def class_activation(
    surgery: ClipSurgery, image: ImageLike, texts: Sequence[str], *, method: Activation = "gradcam"
) -> list[SimilarityMap]:
    """Class-activation maps of one image, one per text.

    For the length of the call the tower is in evaluation mode and its parameters require no gradient; weights, modes, flags
    and gradients are afterwards what they were before. Not for several threads on one model at once.

    Args:
        surgery: the CLIP, its preprocessing and its texts; ``depth`` is of no effect.
        image: anything :func:`text2sam.image.read_image` accepts.
        texts: T texts. Each is taken by itself: which others are asked for in the same call changes nothing.
        method: which of the package's maps.

    Returns:
        T maps whose ``values`` are (gh, gw) float32 in [0, 1], as the package gives them: what is negative is 0, then min-max
        (not quite 1 at the highest, for a term against division by 0). Where nothing speaks for the text the map is flat.

    Raises:
        MissingDependencyError: the package ``grad-cam`` is not installed.
        InputError: ``method`` is unknown, or ``texts`` is a string.
        PromptError: a text is empty or too long.
        ImageError: the image cannot be read.
    """
    if method not in get_args(Activation):
        raise InputError(f"method must be one of {', '.join(get_args(Activation))}, not {method!r}")
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
        features = surgery.encode_texts(wanted).clone()  # not an inference tensor, whatever the ensemble's cache holds
        features = features * surgery.logit_scale()
        step = surgery.tower.last_step(pixels)
        last = _Last(step, features)
        canvas = torch.zeros(1, 1, *step.grid, device=surgery.device)
        cam = getattr(pytorch_grad_cam, _CLASSES[method])(last, [last.tap], reshape_transform=step.layer_map)
        maps = []
        try:
            for index in range(len(wanted)):
                with torch.enable_grad():
                    maps.append(cam(canvas, [_Entry(index)])[0])
        finally:
            cam.activations_and_grads.release()
    return [SimilarityMap(np.ascontiguousarray(m, np.float32), text, method) for m, text in zip(maps, wanted, strict=True)]


class _Last(nn.Module):
    """What follows the layer, as a module of its own: (1, 1, gh, gw), of which only the size counts -> (1, T) logits.

    The package takes the size of its maps from the input and the device from a parameter, and changes the mode and the
    gradients of all submodules: so the tower is none of them.
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
        passed: torch.Tensor = self.tap(layer.float()).to(layer.dtype)  # NumPy, where the package goes, has no bfloat16
        return passed


class _Entry:
    """The package's target: one entry of the logits of an image."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[self.index]


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient for the length of a ``with``; each gets its own flag back after it."""
    asking = [p for p in module.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)
