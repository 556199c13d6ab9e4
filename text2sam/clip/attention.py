"""The kinds of attention that turn a CLIP into a map, as one table, and the one function that computes any of them.

A kind is a second path beside the original one. It reads the queries, keys and values of the original path (for a head of d
channels, (L, d) each, L tokens with the class token first), and differs in what attends to what, in how many of the last
blocks, and in which other parts of a block it keeps: :data:`KINDS`. :data:`METHODS` says which tokens and text features a
similarity map is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from text2sam.errors import InputError

if TYPE_CHECKING:  # the command line lists METHODS in its help, without torch
    import torch

Product = Literal["qq", "kk", "vv", "qk"]

Method: TypeAlias = str
"""How a similarity map is made: a name in :data:`METHODS`."""


@dataclass(frozen=True)
class AttentionKind:
    """How a second path differs from the original one.

    Attributes:
        name: key in :data:`KINDS`.
        source: the paper, its arXiv number, and where we had to interpret it.
        products: the logits are these, over sqrt(d); each goes through a softmax of its own and weights the values. Without
            any, each token keeps its own value.
        mean: the results of several products are averaged; otherwise added up.
        window: sigma in patches of a Gaussian of height 1 around each patch, added to the logits between patches; None adds
            nothing.
        iterations: None takes ``q``, ``k`` and ``v`` as they are. A number attends this many times from each to itself
            first, L2-normalised before every attention, the one over the values included; the logits are then cosines times
            the mean length of the tokens that enter the attention over sqrt(d).
        blocks: how many of the last blocks have the second path; None: as many as ``depth``.
        rotate: keys are rotated onto the queries first, by the orthogonal Procrustes solution of each head.
        middle: share in [0, 1] of the weights that come from the model's own attention in its middle blocks, their mean
            (:func:`middle_blocks`); the rest is that of ``products``.
        residual: the path starts from the stream that enters its first block, and each block adds to it.
        mlp: each block's MLP follows, with its own residual.
        pool: a ResNet's attention pool can have it too.
    """

    name: str
    source: str
    products: tuple[Product, ...]
    mean: bool = False
    window: float | None = None
    iterations: int | None = None
    blocks: int | None = 1
    rotate: bool = False
    middle: float = 0.0
    residual: bool = False
    mlp: bool = False
    pool: bool = False


@dataclass(frozen=True)
class MapMethod:
    """What a similarity map is made of.

    Attributes:
        tokens: key in :data:`KINDS`, or ``"raw"``, the original path.
        source: the paper and its arXiv number.
        removes: whether feature surgery removes what the texts share.
        reverses: whether the sign is turned.
    """

    tokens: str
    source: str
    removes: bool = False
    reverses: bool = False


_CLIP_SURGERY = "CLIP Surgery, Li et al. 2023, arXiv 2304.05653"

KINDS: Mapping[str, AttentionKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            AttentionKind("architecture", f"{_CLIP_SURGERY}, section 3.2", ("vv",), blocks=None, residual=True, pool=True),
            AttentionKind(
                "maskclip",
                "MaskCLIP, Zhou et al. 2022, arXiv 2112.01071, which describes the attention pool of a ResNet. Our reading, as "
                "in later papers: a ViT's last block likewise gives its values alone (the authors' code keeps residual and "
                "MLP there), and a pool's values have their positions added",
                (),
                pool=True,
            ),
            AttentionKind("sclip", "SCLIP, Wang et al. 2023, arXiv 2312.01597", ("qq", "kk"), residual=True, mlp=True),
            AttentionKind("clearclip", "ClearCLIP, Lan et al. 2024, arXiv 2407.12442", ("qq",)),
            AttentionKind("naclip", "NACLIP, Hajimiri et al. 2024, arXiv 2404.08181", ("kk",), window=5.0),
            AttentionKind(
                "gem",
                "GEM, Bousselham et al. 2023, arXiv 2312.00878; one iteration and the last 6 blocks, as in the authors' code",
                ("qq", "kk", "vv"),
                mean=True,
                iterations=1,
                blocks=None,
                residual=True,
            ),
            AttentionKind(
                "pearl",
                "PEARL, Pei et al. 2026, arXiv 2603.21528, its first step. Our reading: the rotation is fitted to the centred "
                "queries and keys of all tokens, and the last block gives its attention alone, without residual and MLP",
                ("qk",),
                rotate=True,
            ),
            AttentionKind(
                "resclip",
                "ResCLIP, Yang et al. 2024, arXiv 2411.15851, its residual cross-correlation on top of NACLIP; blocks 6 to 9 "
                "of 12 as in the authors' code, and a share of 0.5, where theirs is 0.4 or 0.6 by data set",
                ("kk",),
                window=5.0,
                middle=0.5,
            ),
        )
    }
)
"""Every second path, by name."""

METHODS: Mapping[str, MapMethod] = MappingProxyType(
    {
        "surgery": MapMethod("architecture", f"{_CLIP_SURGERY}, sections 3.2 and 3.3", removes=True),
        "architecture": MapMethod("architecture", KINDS["architecture"].source),
        "features": MapMethod("raw", f"{_CLIP_SURGERY}, section 3.3, without its section 3.2", removes=True),
        "itsm": MapMethod("raw", "ICLIP, Li et al. 2022, arXiv 2209.07046 (image-text similarity map)"),
        "rclip": MapMethod("raw", "RCLIP, Li et al. 2022, arXiv 2209.07046 (the map reversed)", reverses=True),
    }
    | {name: MapMethod(name, kind.source) for name, kind in KINDS.items() if name != "architecture"}
)
"""Every way to make a similarity map, by the name that ``method`` goes by. The one list of methods."""


CORRCLIP = "corrclip"
"""Name of the method of semantic segmentation whose attention SAM's masks limit (:mod:`text2sam.tasks.corrclip`)."""


def check_method(method: Method) -> Method:
    """A name in :data:`METHODS`.

    Raises:
        InputError: it is anything else.
    """
    if method == CORRCLIP:
        raise InputError(
            f"method {CORRCLIP!r} needs SAM's masks of the whole image, and is one of segment_semantic and text2sam evaluate "
            f"semantic alone; here it must be one of {', '.join(METHODS)}"
        )
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    return method


def gaussian_window(grid: tuple[int, int], sigma: float, *, prefix: int = 1) -> torch.Tensor:
    """How near patches are to each other, for NACLIP (arXiv 2404.08181).

    Args:
        grid: (gh, gw) patches.
        sigma: standard deviation in patches, above 0.
        prefix: number of tokens before the patches, such as the class token.

    Returns:
        (prefix + gh*gw, prefix + gh*gw) float32: ``exp(-distance^2 / (2 sigma^2))`` between patches, 1 for a patch and itself;
        0 in the rows and the columns of the tokens before them.
    """
    import torch

    rows, columns = (
        torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))
        for places in (torch.arange(side, dtype=torch.float32, device="cpu") for side in grid)
    )
    return torch.nn.functional.pad(torch.kron(rows, columns), (prefix, 0, prefix, 0))


def attend(
    kind: AttentionKind,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    middle: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention of a kind, before the heads are put together.

    Args:
        kind: which.
        q, k, v: (B, heads, L, d) of the original path.
        bias: (L, L) added to the logits, in the dtype of ``v``; kinds with a ``window`` need it.
        length: (B,) mean length of the tokens that enter the attention, in the dtype of ``v``; kinds with ``iterations`` need
            it.
        middle: (B, heads, L, L) mean attention of the middle blocks, each row adding up to 1; kinds with ``middle`` need it.

    Returns:
        (B, heads, L, d).

    Raises:
        InputError: the kind needs one of these and there is none.
    """
    from torch.nn import functional as F

    if not kind.products:
        return v
    sides = {"q": q, "k": rotated(k, q) if kind.rotate else k, "v": v}
    if kind.iterations is None:
        bias = None if kind.window is None else _needed(kind, bias, "how near its patches are; pass bias (L, L)")
        results = [F.scaled_dot_product_attention(sides[a], sides[b], v, attn_mask=bias) for a, b in kind.products]
    else:
        length = _needed(kind, length, "the mean length of its tokens; pass length (B,)")
        sharpness = length[:, None, None, None] * q.shape[-1] ** -0.5  # the inverse temperature
        results = [_iterated(sides[p[0]], v, sharpness, kind.iterations) for p in kind.products]
    total = reduce(add, results)
    total = total / len(results) if kind.mean else total
    if not kind.middle:
        return total
    middle = _needed(kind, middle, "the attention of all middle blocks; pass middle (B, heads, L, L)")
    return (1 - kind.middle) * total + kind.middle * (middle @ v)


def _needed(kind: AttentionKind, value: torch.Tensor | None, what: str) -> torch.Tensor:
    if value is None:
        raise InputError(f"attention of the kind {kind.name!r} needs {what}")
    return value


def middle_blocks(blocks: int) -> range:
    """Numbers of a tower's middle blocks, from 0: the 6th to the 9th of 12, and the like of any other number of blocks."""
    first = blocks * 5 // 12
    return range(first, max(first + 1, blocks * 9 // 12))


def rotated(keys: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Keys, rotated onto queries: ``keys @ R`` with the orthogonal R that brings centred keys nearest to centred queries.

    R is the orthogonal Procrustes solution ``U V^T`` of ``keys^T queries = U S V^T`` (Schoenemann 1966). Directions in which
    keys and queries have nothing in common (singular values of 0, as with few tokens) are left out, as any R would do for them.

    Args:
        keys, queries: (..., L, d).

    Returns:
        (..., L, d) in the dtype of ``keys``.
    """
    import torch

    a, b = (x.float() - x.float().mean(dim=-2, keepdim=True) for x in (keys, queries))
    u, s, v = torch.linalg.svd(a.transpose(-2, -1) @ b)  # (..., d, d), (..., d), (..., d, d)
    common = s > s[..., :1] * s.shape[-1] * torch.finfo(s.dtype).eps
    turned: torch.Tensor = keys.float() @ ((u * common[..., None, :]) @ v)
    return turned.to(keys)


def _iterated(x: torch.Tensor, v: torch.Tensor, sharpness: torch.Tensor, iterations: int) -> torch.Tensor:
    from torch.nn import functional as F

    for last in (False,) * iterations + (True,):
        x = F.normalize(x, dim=-1)
        x = F.scaled_dot_product_attention(x * sharpness, x, v if last else x, scale=1.0)
    return x
