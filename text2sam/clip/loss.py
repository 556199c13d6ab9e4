"""The contrastive loss that CLIP, and what is put on top of it, is trained with."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_NEVER = -1e4  # far below any logit: a cosine times at most CLIP's highest scale, 100


def contrastive_loss(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """CLIP's loss with any number of texts that fit an image.

    Every fitting pair stands alone against those that do not fit, ``-log(e^p / (e^p + sum e^n))``; mean over an image's
    (a text's) fitting pairs, then over images (texts) that have any, then over both directions.

    Args:
        logits: (B, M), cosines times the scale.
        fits: (B, M) bool, at least one True.

    Returns:
        A scalar.
    """

    def one_way(z: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        # not minus infinity: where everything fits, its gradient would be NaN
        negatives = z.masked_fill(positive, _NEVER).logsumexp(dim=1, keepdim=True)
        count = positive.sum(dim=1)
        rows = (F.softplus(negatives - z) * positive).sum(dim=1) / count.clamp(min=1)
        return rows[count > 0].mean()

    return 0.5 * (one_way(logits, fits) + one_way(logits.T, fits.T))
