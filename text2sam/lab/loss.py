"""CLIP's contrastive loss with several texts per image."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_NEVER = -1e4  # far below any logit, whose absolute value is at most 100


def contrastive_loss(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """CLIP's loss with any number of positive texts per image.

    The loss of a positive pair is ``-log(e^p / (e^p + sum e^n))`` over the negatives n. It is averaged over the positives of
    an image, then over images with positives; then the same over texts, and over both directions.

    Args:
        logits: (B, M), cosines times the scale.
        fits: (B, M) bool, the positive pairs, at least one.

    Returns:
        A scalar.
    """

    def one_way(z: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        # finite, since the gradient of minus infinity is NaN in rows without negatives
        negatives = z.masked_fill(positive, _NEVER).logsumexp(dim=1, keepdim=True)
        count = positive.sum(dim=1)
        rows = (F.softplus(negatives - z) * positive).sum(dim=1) / count.clamp(min=1)
        return rows[count > 0].mean()

    return 0.5 * (one_way(logits, fits) + one_way(logits.T, fits.T))
