"""Architecture surgery and its kin: second paths through the last blocks of a CLIP image tower.

CLIP Surgery, section 3.2: the new path starts from the stream that enters the first surgery block;
each block adds its value-value attention ``softmax(v v^T / sqrt(d)) v`` and skips its MLP. Queries,
keys and values are those of the original path, which runs on unchanged beside it, and the class
token is the original one. ResNets have a single attention pool, which gets value-value attention.

Further paths (:data:`text2sam.clip.attention.KINDS`) run beside the same original one where they are asked for.

The tower's own weights are read, never copied or changed; nothing is hooked or patched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from text2sam.clip.attention import KINDS, AttentionKind, attend, gaussian_window
from text2sam.errors import InputError, UnsupportedModelError

_WORKS = (
    "Surgery works on open_clip's VisionTransformer with a class token (pool_type 'tok', no attentional pooling, default "
    "blocks) and on its ModifiedResNet: for example ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336, ViT-H-14, RN50, RN101."
)


@dataclass(frozen=True, eq=False)
class TowerTokens:
    """Tokens of a batch of images, class token first, after the projection, not normalised.

    Attributes:
        surgery: (B, 1 + gh*gw, C) from the new path.
        raw: (B, 1 + gh*gw, C) from the original path; its class token is plain CLIP's image feature.
        grid: (gh, gw), patches run row by row.
        others: (B, 1 + gh*gw, C) each, by kind of attention, for the further kinds that were asked for; the class token is that
            of ``raw``.
    """

    surgery: torch.Tensor
    raw: torch.Tensor
    grid: tuple[int, int]
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)


def check_tower(visual: nn.Module, depth: int) -> None:
    """Raises when surgery cannot be applied.

    Args:
        visual: the image tower, ``model.visual`` of an open_clip model.
        depth: how many of the last blocks get the second path (transformers only).

    Raises:
        UnsupportedModelError: the tower is of another family, or pools in another way.
        InputError: ``depth`` is not between 1 and the number of blocks.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    name = type(visual).__name__
    if isinstance(visual, ModifiedResNet):
        return
    if not isinstance(visual, VisionTransformer):
        trunk = getattr(visual, "trunk", None)
        what = f"{name} around timm's {type(trunk).__name__}" if trunk is not None else name
        raise UnsupportedModelError(f"surgery cannot be applied to the image tower {what}. {_WORKS}")
    if visual.attn_pool is not None:
        raise UnsupportedModelError(f"surgery cannot be applied to a {name} with attentional pooling. {_WORKS}")
    if visual.pool_type != "tok":
        raise UnsupportedModelError(f"surgery cannot be applied to a {name} with pool_type {visual.pool_type!r}. {_WORKS}")
    blocks = visual.transformer.resblocks
    for block in blocks:
        if not isinstance(block.attn, nn.MultiheadAttention):
            raise UnsupportedModelError(
                f"surgery cannot be applied to a {name} whose blocks use {type(block.attn).__name__} attention "
                f"({type(block).__name__}). {_WORKS}"
            )
    if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= len(blocks):
        raise InputError(f"depth must be an int from 1 to {len(blocks)}, the number of blocks of this tower, not {depth!r}")


def patch_size(visual: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels that one patch token stands for."""
    size = getattr(visual, "patch_size", None)
    if size is None:
        return 32, 32  # ModifiedResNet halves its input five times
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def resize_positions(positions: torch.Tensor, native: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Positional embeddings for another grid.

    Args:
        positions: (1 + h*w, D), the class token's first.
        native: (h, w) they were made for.
        grid: (gh, gw) wanted.

    Returns:
        (1 + gh*gw, D), see :func:`resize_tokens`.
    """
    return positions if native == grid else resize_tokens(positions[None], native, grid)[0]


def resize_tokens(tokens: torch.Tensor, native: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Tokens on another grid.

    Args:
        tokens: (B, 1 + h*w, D), class token first.
        native: (h, w) of their patches.
        grid: (gh, gw) wanted.

    Returns:
        (B, 1 + gh*gw, D): the class token as it is, the others resized bilinearly (half-pixel centres).
    """
    if native == grid:
        return tokens
    patches = tokens[:, 1:].transpose(1, 2).unflatten(2, native)  # (B, D, h, w)
    patches = F.interpolate(patches.float(), grid, mode="bilinear", align_corners=False).to(tokens.dtype)
    return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a ``with``; every submodule gets its own mode back after it."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def surgery_tokens(visual: nn.Module, pixels: torch.Tensor, *, depth: int = 6, kinds: Collection[str] = ()) -> TowerTokens:
    """Runs an image tower with its second path, and with others beside it.

    Args:
        visual: open_clip ``VisionTransformer`` or ``ModifiedResNet``.
        pixels: (B, 3, H, W) normalised pixels in the tower's dtype, at least one patch high and wide; a
            remainder smaller than a patch at the right or lower edge is not seen, as in CLIP itself.
        depth: how many of the last blocks get the second path; of no effect on a ResNet.
        kinds: names in :data:`text2sam.clip.attention.KINDS` of what to compute besides architecture surgery; on a ResNet
            those alone that its attention pool can have.

    Raises:
        UnsupportedModelError: the tower cannot be operated on, or not in one of these kinds.
        InputError: ``pixels`` has another shape or is too small, or ``depth`` or a kind is not one of the above.
    """
    check_tower(visual, depth)
    further = check_kinds(visual, kinds)
    height, width = patch_size(visual)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] < height or pixels.shape[3] < width or not len(pixels):
        raise InputError(
            f"pixels must be (B, 3, H, W) with B at least 1 and H, W at least {height} and {width}, not {tuple(pixels.shape)}"
        )
    with evaluating(visual):
        if is_resnet(visual):
            return pool_tokens(visual, resnet_features(visual, pixels), further)
        return _vit_tokens(visual, pixels, depth, further)


def is_resnet(visual: nn.Module) -> bool:
    """Whether a tower that :func:`check_tower` accepts is a ``ModifiedResNet``."""
    return hasattr(visual, "attnpool")


def check_kinds(visual: nn.Module, kinds: Collection[str]) -> tuple[AttentionKind, ...]:
    """The kinds of these names but architecture surgery, in the table's order.

    Raises:
        InputError: ``kinds`` is no collection of names in :data:`text2sam.clip.attention.KINDS`.
        UnsupportedModelError: the tower cannot have one of them.
    """
    unknown = [kinds] if isinstance(kinds, str) else [name for name in kinds if name not in KINDS]
    if unknown:
        raise InputError(f"kinds must be a collection of names out of {', '.join(KINDS)}, not {unknown[0]!r}")
    if is_resnet(visual):
        for name in kinds:
            if not KINDS[name].pool:
                works = ", ".join(kind.name for kind in KINDS.values() if kind.pool)
                raise UnsupportedModelError(
                    f"attention of the kind {name!r} is defined on a transformer's blocks, and {type(visual).__name__} has an "
                    f"attention pool alone; there {works} and the original tokens can be had. A ViT such as ViT-B-16 has all"
                )
    return tuple(kind for name, kind in KINDS.items() if name in kinds and name != "architecture")


def vit_stream(visual: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """What enters the first block of a ``VisionTransformer``: (B, 1 + gh*gw, D), class token first, and (gh, gw)."""
    x = visual.conv1(pixels)  # (B, D, gh, gw)
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    native = (int(visual.grid_size[0]), int(visual.grid_size[1]))
    return visual.ln_pre(x + resize_positions(visual.positional_embedding, native, grid).to(x.dtype)), grid


def resnet_features(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What enters the attention pool of a ``ModifiedResNet``: (B, D, gh, gw)."""
    x: torch.Tensor = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    return x


def project(visual: Any, x: torch.Tensor) -> torch.Tensor:
    """Tokens of a ``VisionTransformer``'s last block, (B, L, D), in the space of the texts: (B, L, C)."""
    x = visual.ln_post(x)
    return x if visual.proj is None else x @ visual.proj


def queries_keys_values(block: Any, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, heads, L, D / heads) each, of a transformer block, from (B, L, D) after its first norm."""
    attn = block.attn
    qkv = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = (_heads(part, attn.num_heads) for part in qkv.chunk(3, dim=-1))
    return q, k, v


def step(block: Any, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A transformer block as trained: what leaves it, (B, L, D), from what enters it and its queries, keys and values."""
    x = x + block.ls_1(block.attn.out_proj(_join(F.scaled_dot_product_attention(q, k, v))))
    return _with_mlp(block, x)


def pool_tokens(visual: Any, x: torch.Tensor, further: Collection[AttentionKind] = ()) -> TowerTokens:
    """The attention pool of a ``ModifiedResNet`` from (B, D, gh, gw); the class token of ``surgery`` is value-value too."""
    grid = (int(x.shape[2]), int(x.shape[3]))
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    pool = visual.attnpool
    side = round((len(pool.positional_embedding) - 1) ** 0.5)
    x = x + resize_positions(pool.positional_embedding, (side, side), grid).to(x.dtype)
    q, k, v = (_heads(linear(x), pool.num_heads) for linear in (pool.q_proj, pool.k_proj, pool.v_proj))
    surgery = pool.c_proj(_join(attend(KINDS["architecture"], q, k, v)))
    raw = pool.c_proj(_join(F.scaled_dot_product_attention(q, k, v)))
    others = {kind.name: _with_class(raw, pool.c_proj(_join(attend(kind, q, k, v)))) for kind in further}
    return TowerTokens(surgery, raw, grid, others)


def _vit_tokens(visual: Any, pixels: torch.Tensor, depth: int, further: Collection[AttentionKind]) -> TowerTokens:
    x, grid = vit_stream(visual, pixels)
    blocks = visual.transformer.resblocks
    kinds = (KINDS["architecture"], *further)
    streams: dict[str, torch.Tensor] = {}
    for i, block in enumerate(blocks):
        normed = block.ln_1(x)
        q, k, v = queries_keys_values(block, normed)
        for kind in kinds:
            if i >= len(blocks) - (kind.blocks or depth):
                streams[kind.name] = _beside(block, kind, streams.get(kind.name, x), q, k, v, normed, grid)
        x = step(block, x, q, k, v)
    tokens = [project(visual, _with_class(x, streams[kind.name])) for kind in kinds]
    others = dict(zip((kind.name for kind in further), tokens[1:], strict=True))
    return TowerTokens(tokens[0], project(visual, x), grid, others)


def _beside(
    block: Any,
    kind: AttentionKind,
    stream: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    normed: torch.Tensor,
    grid: tuple[int, int],
) -> torch.Tensor:
    """What leaves a block on the path of a kind, (B, L, D), from what enters it there and what the original path made."""
    bias = None if kind.window is None else gaussian_window(grid, kind.window).to(v)
    length = None if kind.iterations is None else normed.norm(dim=-1).mean(dim=-1)  # (B,)
    update = block.ls_1(block.attn.out_proj(_join(attend(kind, q, k, v, bias=bias, length=length))))
    stream = stream + update if kind.residual else update
    return _with_mlp(block, stream) if kind.mlp else stream


def _with_mlp(block: Any, x: torch.Tensor) -> torch.Tensor:
    after: torch.Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return after


def _with_class(original: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens with the class token of others."""
    return torch.cat([original[:, :1], tokens[:, 1:]], dim=1)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    split: torch.Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)  # (B, L, D) -> (B, heads, L, D / heads)


def _join(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, heads, L, D / heads) -> (B, L, D)
