"""CorrCLIP: regions limit which patches attend to one another in CLIP's last block (arXiv 2411.10086, ICCV 2025).

What is the paper's, as its authors' code has it: the scope (patches of one region; a patch of no region, and any patch to it,
where they look more alike than patches do in the mean), the weights (softmax over cosines times 4), the last block's attention
alone, without residual and MLP, and the regions' vote on the classes (:func:`text2sam.tasks.regions.majority`).

What is ours: patches look as in SAM's embedding of the image, centred, and without one as CLIP's own queries plus keys in the
last block; the paper takes those of another model, DINO. Such looks do not tell kinds of things, so regions that look alike are
not merged as there. The paper's two branches that refine features (lower blocks, one class token per region) are left out, as
in its first version. So its figures do not carry over.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

SHARPNESS = 4.0
"""Factor of cosines in the softmax."""

Box = tuple[float, float, float, float]
"""y, x, height and width of a part of an image, in shares of it."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def region_attention(regions: NDArray[np.integer], looks: torch.Tensor) -> torch.Tensor:
    """How much each patch takes of each patch.

    Args:
        regions: (N,) region of each patch, from 1; 0 for none.
        looks: (N, D) float32 of the patches; their mean is subtracted, without which all patches look alike.

    Returns:
        (N, N) float32, rows add up to 1.
    """
    looks = F.normalize(looks - looks.mean(dim=0), dim=1)
    cosines = looks @ looks.T
    names = torch.from_numpy(regions.astype(np.int64)).to(looks.device)
    free = names == 0
    within = (names[:, None] == names) & ~free
    within |= (free[:, None] | free) & (cosines > cosines.mean())
    within.fill_diagonal_(True)  # where all patches look the same none is above the mean
    return (SHARPNESS * cosines).masked_fill(~within, float("-inf")).softmax(dim=1)


def patch_regions(regions: NDArray[np.integer], grid: tuple[int, int], box: Box = WHOLE) -> NDArray[np.integer]:
    """(gh*gw,) the regions under the middles of patches.

    Args:
        regions: (H, W) of the image.
        grid: (gh, gw) of the patches.
        box: what the patches cover.
    """
    rows, columns = (
        np.minimum((places * length).astype(np.intp), length - 1)
        for places, length in zip(_middles(grid, box), regions.shape, strict=True)
    )
    under: NDArray[np.integer] = regions[np.ix_(rows, columns)].ravel()
    return under


def patch_looks(embedding: NDArray[np.float32], grid: tuple[int, int], box: Box = WHOLE) -> torch.Tensor:
    """(gh*gw, C) float32, an embedding of the image (C, h, w) at the middles of patches, bilinear."""
    at = [torch.from_numpy(2 * places - 1).float() for places in _middles(grid, box)]
    points = torch.stack(torch.meshgrid(*at, indexing="ij")[::-1], dim=-1)[None]  # (1, gh, gw, 2), (x, y) from -1 to 1
    looks = F.grid_sample(torch.from_numpy(embedding)[None], points, padding_mode="border", align_corners=False)
    return looks[0].flatten(1).T


def _middles(grid: tuple[int, int], box: Box) -> list[NDArray[np.float64]]:
    return [box[axis] + (np.arange(count) + 0.5) * box[axis + 2] / count for axis, count in enumerate(grid)]
