"""The alternative to text2sam: a text detector and a SAM of transformers, of real size, untrained."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

CAT = (101, 4937, 1012, 102)
"""BERT's tokens of "cat."."""

SHORT_SIDE, SAM_SIDE = 800, 1024
"""Length to which the processor of Grounding DINO resizes the shorter side of an image, and that of SAM 2 both sides."""


def peer_pipeline(
    shape: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    detector: Mapping[str, Any] | None = None,
    short_side: int = SHORT_SIDE,
) -> Callable[[bool], torch.Tensor] | None:
    """Grounding DINO tiny finds boxes for a text, and SAM 2.1 tiny (Hiera) makes a mask of the best box, as in lang-sam.

    The weights are random, which does not change the time. Pixels are resized but not normalised.

    Args:
        shape: (H, W) of the image, whose pixels are random.
        device, dtype: of the models.
        detector: settings of ``GroundingDinoConfig``, for tests.
        short_side: shorter side of the detector's input in pixels.

    Returns:
        A function from whether the image is new to the logits of the mask, (1, 1, 1, h, w). For an image that is not new only
        the detector runs, which mixes text and image. None if transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, Sam2Config, Sam2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        finder = GroundingDinoForObjectDetection(GroundingDinoConfig(**(detector or {})))
        sam = Sam2Model(Sam2Config())
        image = torch.rand(1, 3, *shape)
    finder, sam = (model.to(device, dtype).eval().requires_grad_(False) for model in (finder, sam))
    scale = short_side / min(shape)
    sides = [round(side * scale) for side in shape]
    seen, whole = (F.interpolate(image, size, mode="bilinear").to(device, dtype) for size in (sides, (SAM_SIDE, SAM_SIDE)))
    tokens = torch.tensor([CAT], device=device)
    held: dict[str, Any] = {}

    @torch.inference_mode()
    def ask(new: bool) -> torch.Tensor:
        boxes = finder(pixel_values=seen, input_ids=tokens, attention_mask=torch.ones_like(tokens))
        best = boxes.logits[0].amax(dim=-1).argmax()
        x, y, w, h = (boxes.pred_boxes[0, best] * SAM_SIDE).unbind()
        box = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])[None, None]
        if new:
            held["embeddings"] = sam.get_image_embeddings(whole)
        masks: torch.Tensor = sam(image_embeddings=held["embeddings"], input_boxes=box, multimask_output=False).pred_masks
        return masks

    return ask
