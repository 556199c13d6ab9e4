"""Several images, or several prompts of one image, in one run of ``SamPredictor``'s networks, which is faster on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from text2sam.masks import LogitMasks

if TYPE_CHECKING:
    from segment_anything import SamPredictor

    from text2sam.types import PointPrompts

PROMPTS = 32
"""Prompts that SAM's decoder answers in one run at most; each takes some 40 MB of the GPU."""


@torch.no_grad()
def encode_batch(predictor: SamPredictor, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """One run of the image encoder.

    Args:
        predictor: its transform and model are used; the image it holds stays.
        images: (H, W, 3) uint8 RGB, of any sizes.

    Returns:
        For each image the attributes that hold it in a ``SamPredictor``, as ``set_image`` sets them.
    """
    model = predictor.model
    ordered = [pixels if model.image_format == "RGB" else pixels[..., ::-1] for pixels in images]
    resized = [predictor.transform.apply_image(pixels) for pixels in ordered]  # (h, w, 3), the longer side the encoder's
    tensors = [torch.as_tensor(pixels, device=predictor.device).permute(2, 0, 1).contiguous() for pixels in resized]
    features = model.image_encoder(torch.stack([model.preprocess(tensor) for tensor in tensors]))  # (B, C, h', w')
    return [
        {
            "original_size": pixels.shape[:2],
            "input_size": tuple(tensor.shape[-2:]),
            "features": own[None].clone(),  # a view would keep the whole batch alive
            "is_image_set": True,
        }
        for pixels, tensor, own in zip(images, tensors, features, strict=True)
    ]


@torch.no_grad()
def predict_batch(
    predictor: SamPredictor, prompts: Sequence[tuple[PointPrompts, NDArray[np.float32] | None]]
) -> list[tuple[LogitMasks, NDArray[np.float32], NDArray[np.float32]]]:
    """Three masks for each of several prompts on the predictor's image.

    Prompts with as many points, with or without a box, are answered together: SAM's decoder takes no others in one run.

    Args:
        predictor: its image is set.
        prompts: points and box, as for :func:`~text2sam.sam.predictor.predict_points`.

    Returns:
        ``(masks, scores, low_res_logits)`` for each prompt, as ``SamPredictor.predict`` gives them but for the masks, which are
        made when they are asked for.
    """
    size = predictor.original_size
    groups: dict[tuple[int, bool], list[int]] = {}  # of one shape
    for number, (points, box) in enumerate(prompts):
        groups.setdefault((len(points), box is None), []).append(number)
    answers: dict[int, tuple[LogitMasks, NDArray[np.float32], NDArray[np.float32]]] = {}

    def tensor(values: Sequence[NDArray[Any]], kind: type) -> Tensor:
        return torch.as_tensor(np.stack(values).astype(kind), device=predictor.device)

    for (count, boxless), group in groups.items():
        for first in range(0, len(group), PROMPTS):
            batch = group[first : first + PROMPTS]
            coords = [predictor.transform.apply_coords(prompts[k][0].coords, size) for k in batch]
            labels = [prompts[k][0].labels for k in batch]
            boxes = [] if boxless else [predictor.transform.apply_boxes(prompts[k][1], size)[0] for k in batch]
            logits, scores = decode(
                predictor,
                (tensor(coords, np.float32), tensor(labels, np.int32)) if count else None,
                tensor(boxes, np.float32) if boxes else None,
            )
            for k, low, score in zip(batch, logits.float().cpu().numpy(), scores.float().cpu().numpy(), strict=True):
                low = low.copy()  # a view would keep the whole batch alive
                answers[k] = logit_masks(predictor, low), score, low
    return [answers[k] for k in range(len(prompts))]


def decode(
    predictor: SamPredictor,
    points: tuple[Tensor, Tensor | None] | None,
    boxes: Tensor | None,
    mask_input: Tensor | None = None,
    multimask_output: bool = True,
) -> tuple[Tensor, Tensor]:
    """SAM's decoder on the predictor's image.

    Args:
        predictor: its image is set.
        points: coordinates (B, N, 2) in pixels of SAM's input, and labels (B, N).
        boxes: (B, 4) xyxy in pixels of SAM's input.
        mask_input: (B, 1, 256, 256) logits.
        multimask_output: three masks when true, one when false.

    Returns:
        Logits (B, M, 256, 256) and scores (B, M).
    """
    model = predictor.model
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=mask_input)
    logits, scores = model.mask_decoder(
        image_embeddings=predictor.features,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask_output,
    )
    return logits, scores


def logit_masks(predictor: SamPredictor, logits: NDArray[np.float32]) -> LogitMasks:
    """Masks of the predictor's image from logits (..., 256, 256)."""
    side, threshold = predictor.model.image_encoder.img_size, predictor.model.mask_threshold
    return LogitMasks(logits, side, predictor.input_size, predictor.original_size, threshold)
