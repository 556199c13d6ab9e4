"""Feature surgery and similarity maps: pure tensor functions.

CLIP Surgery, section 3.3. With ``s`` the (N, T) matrix of cosines between tokens and texts, the
redundant feature (what all texts share) is a mean over texts, so its removal needs no (N, T, C)
tensor: everything below works on ``s``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from text2sam.errors import InputError
from text2sam.types import bilinear, min_max, noise_of

Weighting = Literal["code", "paper"]
"""Which form of feature surgery, see :func:`feature_surgery`."""


def feature_surgery(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    redundant_features: torch.Tensor | None = None,
    *,
    tau: float = 2.0,
    weighting: Weighting = "code",
) -> torch.Tensor:
    """Similarity of tokens and texts without what the texts share.

    With a label set, ``w = p / mean(p)`` where ``p = softmax(tau * cls . text)`` over the texts, and

    - ``weighting="code"`` (the reference code): ``w*s - mean_t(w*s)``,
    - ``weighting="paper"`` (equation of section 3.3): ``s - mean_t(w*s)``.

    A label set of one text gives 0 everywhere in the code's form. With ``redundant_features`` it is
    ``s - image_features . redundant``, which is how a single text is treated: the redundant feature is
    then the prompt ensemble of the empty text.

    Args:
        image_features: (B, 1 + N, C) L2-normalised, class token first.
        text_features: (T, C) L2-normalised.
        redundant_features: (1, C) or (T, C), or None for the label set's own.
        tau: factor inside the softmax over the class token's similarities.
        weighting: which form, see above; of no effect with ``redundant_features``.

    Returns:
        (B, 1 + N, T), the class token's row included. Memory is O(N*T).

    Raises:
        InputError: shapes do not fit, there is no text, or ``weighting`` is unknown.
    """
    if image_features.ndim != 3 or text_features.ndim != 2 or image_features.shape[-1] != text_features.shape[-1]:
        raise InputError(
            "feature_surgery needs image_features (B, 1 + N, C) and text_features (T, C) with the same C, not "
            f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    if not len(text_features):
        raise InputError("feature_surgery needs at least one text")
    similarity = image_features @ text_features.T  # (B, 1 + N, T)
    if redundant_features is not None:
        count, channels = (*redundant_features.shape, 0, 0)[:2]
        if redundant_features.ndim != 2 or channels != text_features.shape[1] or count not in (1, len(text_features)):
            raise InputError(
                f"redundant_features must be (1, C) or (T, C) = {tuple(text_features.shape)}, "
                f"not {tuple(redundant_features.shape)}"
            )
        return similarity - image_features @ redundant_features.T
    if weighting not in ("code", "paper"):
        raise InputError(f"weighting must be 'code' or 'paper', not {weighting!r}")
    p = (tau * similarity[:, :1]).softmax(dim=-1)  # (B, 1, T)
    weighted = similarity * (p / p.mean(dim=-1, keepdim=True))
    kept = weighted if weighting == "code" else similarity
    return kept - weighted.mean(dim=-1, keepdim=True)


def level_noise(similarity: torch.Tensor, magnitude: torch.Tensor | float, dim: int = 1) -> torch.Tensor:
    """Similarities, where those of a text vary by rounding noise alone set to their mean.

    Feature surgery of texts with equal features leaves rounding differences, which min-max would stretch to a map.

    Args:
        similarity: of any shape.
        magnitude: of the numbers that were subtracted from one another, of a shape that goes with ``similarity``.
        dim: the axis of the patches.
    """
    span = similarity.amax(dim, keepdim=True) - similarity.amin(dim, keepdim=True)
    return torch.where(span <= noise_of(similarity.dtype) * magnitude, similarity.mean(dim, keepdim=True), similarity)


def similarity_map(similarity: torch.Tensor, grid: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Similarities of patches as maps over the image.

    Args:
        similarity: (B, N, T) of the N = gh*gw patches, row by row, without the class token.
        grid: (gh, gw).
        shape: (H, W) of the image in pixels.

    Returns:
        (B, H, W, T) in [0, 1]: min-max per image and text, then bilinear (half-pixel centres).

    Raises:
        InputError: N is not gh*gw, or a size is not positive.
    """
    if similarity.ndim != 3 or len(grid) != 2 or len(shape) != 2 or min(*grid, *shape) < 1:
        raise InputError(
            "similarity_map needs (B, N, T), grid (gh, gw) and shape (H, W), not "
            f"{tuple(similarity.shape)}, {tuple(grid)} and {tuple(shape)}"
        )
    gh, gw = grid
    if similarity.shape[1] != gh * gw:
        raise InputError(
            f"similarity has {similarity.shape[1]} patches, a {gh} x {gw} grid has {gh * gw}"
            + ("; drop the class token first" if similarity.shape[1] == gh * gw + 1 else "")
        )
    maps = min_max(similarity, 1).transpose(1, 2).unflatten(-1, (gh, gw))  # (B, T, gh, gw)
    return bilinear(maps, shape).permute(0, 2, 3, 1)  # (B, H, W, T)
