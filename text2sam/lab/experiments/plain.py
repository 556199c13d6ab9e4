"""A plain implementation of CLIP Surgery, the baseline of ``text2sam bench`` and a reference for tests.

It follows the formulas of the papers without optimisation: prompts padded to the full context, one text at a time; feature
surgery on the whole (N, T, C) tensor; every image encoded again for every text. It shares no sums with ``text2sam.clip``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.clip.generator import ClipSurgery
from text2sam.clip.similarity import Weighting
from text2sam.clip.towers.base import evaluating
from text2sam.clip.towers.text import Tokenizer
from text2sam.image import ImageLike, read_image
from text2sam.recipes.points import points_from_similarity
from text2sam.sam.predictor import MaskPredictor, predict_points


def prompt_ensemble(model: Any, tokenizer: Tokenizer, texts: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Text features of an open_clip model, averaged over templates: (T, C) float32, L2-normalised."""
    device = next(model.parameters()).device
    rows = []
    with torch.inference_mode(), evaluating(model):
        for text in texts:
            tokens = tokenizer([template.format(text) for template in templates]).to(device)  # (P, L)
            features = model.encode_text(tokens).float()  # (P, C)
            features = features / features.norm(dim=-1, keepdim=True)
            mean = features.mean(dim=0)
            rows.append(mean / mean.norm())
    return torch.stack(rows)


def feature_surgery(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    redundant_features: torch.Tensor | None = None,
    *,
    tau: float = 2.0,
    weighting: Weighting = "code",
) -> torch.Tensor:
    """Feature surgery through the element-wise products of tokens and texts (CLIP Surgery, section 3.3), in O(N*T*C) memory.

    Arguments and result are those of :func:`text2sam.clip.similarity.feature_surgery`.
    """
    if redundant_features is not None:
        return torch.einsum("bnc,tc->bnt", image_features, text_features - redundant_features)
    maps = []
    for tokens in image_features:  # (N, C)
        weights = torch.softmax(tau * (text_features @ tokens[0]), dim=0)  # (T,)
        weights = weights / weights.mean()
        products = tokens[:, None, :] * text_features[None, :, :]  # (N, T, C)
        if weighting == "code":
            products *= weights[None, :, None]
            redundant = products.mean(dim=1, keepdim=True)  # (N, 1, C)
        else:
            redundant = (products * weights[None, :, None]).mean(dim=1, keepdim=True)
        maps.append((products - redundant).sum(dim=-1))
    return torch.stack(maps)


def segment(
    predictor: MaskPredictor, surgery: ClipSurgery, tokenizer: Tokenizer, image: ImageLike, text: str
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Segments a text in an image by the papers' recipe, without any cache; ``tokenizer`` is that of ``surgery``.

    Returns:
        The mask, (H, W) bool, and the similarity map before min-max, (gh, gw) float32.
    """
    pixels = read_image(image)
    predictor.set_image(pixels)
    tokens = surgery.encode_pixels(surgery.preprocess(pixels)).float()  # (1, 1 + N, C)
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    templates = surgery.prompts.templates
    wanted = prompt_ensemble(surgery.model, tokenizer, [text], templates)
    empty = prompt_ensemble(surgery.model, tokenizer, [""], templates)
    similarity = feature_surgery(tokens, wanted, empty)[0, 1:, 0]  # (N,)
    grid = tuple(side // p for side, p in zip(surgery.image_size, surgery.tower.patch, strict=True))
    values = similarity.reshape(grid).cpu().numpy().astype(np.float32)
    shape = (pixels.shape[0], pixels.shape[1])
    points = points_from_similarity(values, shape)
    if not len(points.positive):
        return np.zeros(shape, bool), values
    masks, scores, _ = predict_points(predictor, points, shape=shape)
    return masks[int(scores.argmax())], values
