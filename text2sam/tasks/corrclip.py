"""CorrCLIP: regions limit which patches attend to one another in CLIP's last block (arXiv 2411.10086, ICCV 2025).

What is the paper's, as its authors' code has it: the scope (patches of one region, after regions that look alike are merged; a
patch of no region, and any patch to it, where they look more alike than patches do in the mean), the weights (a softmax over
cosines times 4), the last block's attention alone, without residual and MLP, and the regions' vote on the classes
(:func:`text2sam.tasks.regions.majority`).

What is ours: the looks of patches are those of CLIP's own last block, queries plus keys, where the paper has another model's,
DINO's, likewise queries plus keys; and its two branches that refine features (lower blocks, one class token per region) are
left out, as in its first version. So figures of the paper do not carry over.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

SHARPNESS = 4.0
"""Factor of cosines in the softmax."""

ALIKE = 0.8
"""Cosine from which two regions are one."""


def region_attention(regions: NDArray[np.integer], looks: torch.Tensor) -> torch.Tensor:
    """How much each patch takes of each patch.

    Args:
        regions: (N,) region of each patch, from 1; 0 for none.
        looks: (N, D) float32 of the patches.

    Returns:
        (N, N) float32, rows add up to 1.
    """
    looks = F.normalize(looks, dim=1)
    cosines = looks @ looks.T
    scopes = torch.from_numpy(merged_regions(regions, looks)).to(looks.device)
    free = scopes == 0
    within = (scopes[:, None] == scopes) & ~free
    within |= (free[:, None] | free) & (cosines > cosines.mean())
    within.fill_diagonal_(True)  # where all patches look the same none is above the mean
    return (SHARPNESS * cosines).masked_fill(~within, float("-inf")).softmax(dim=1)


def merged_regions(regions: NDArray[np.integer], looks: torch.Tensor) -> NDArray[np.intp]:
    """Regions whose mean looks are alike, directly or through others, as one.

    Args:
        regions, looks: as for :func:`region_attention`; looks L2-normalised.

    Returns:
        (N,) numbers from 1; 0 for patches of no region.
    """
    from scipy.sparse.csgraph import connected_components

    names, index = np.unique(regions, return_inverse=True)
    means = torch.zeros(len(names), looks.shape[1], device=looks.device)
    means = F.normalize(means.index_add_(0, torch.from_numpy(index).to(looks.device), looks), dim=1)[names > 0]
    _, groups = connected_components((means @ means.T >= ALIKE).cpu().numpy(), directed=False)
    table = np.zeros(len(names), np.intp)
    table[names > 0] = groups + 1
    return table[index]


def patch_regions(
    regions: NDArray[np.integer], grid: tuple[int, int], box: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> NDArray[np.integer]:
    """(gh*gw,) the regions under the middles of patches.

    Args:
        regions: (H, W) of the image.
        grid: (gh, gw).
        box: y, x, height and width of what the patches cover, in shares of the image.
    """
    rows, columns = (
        np.minimum(((box[axis] + (np.arange(count) + 0.5) * box[axis + 2] / count) * length).astype(np.intp), length - 1)
        for axis, count, length in zip((0, 1), grid, regions.shape, strict=True)
    )
    under: NDArray[np.integer] = regions[np.ix_(rows, columns)].ravel()
    return under
