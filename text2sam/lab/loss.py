"""The contrastive loss of CLIP, for any number of texts that fit an image."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_NEVER = -1e4  # far below any logit: a cosine times at most CLIP's highest scale, 100


def contrastive_loss(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """CLIP's loss with any number of fitting texts per image.

    Each fitting pair stands against the pairs that do not fit: ``-log(e^p / (e^p + sum e^n))``. The mean is taken over the
    fitting pairs of an image (of a text), then over the images (texts) that have any, then over both directions.

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
