"""timm's ``VisionTransformer`` and ``Eva``: SigLIP, SigLIP 2, MobileCLIP, ViTamin, EVA, Perception Encoder and their relatives.

The adapter reads the trunk's own blocks, so that the original path is ``trunk.forward_features``. The image feature stands in
the class token's place. Where it is not a class token, a patch's own feature is what the head makes of that patch alone:

- average: the mean of the patches, through the same norm and projection. A norm behind the mean makes the patches' features an
  approximation, as their mean is then not the image feature.
- attention pool: a softmax over one token is 1, so a patch goes through the pool's values, projection and MLP.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from text2sam.clip.towers.base import Grid, join_heads, split_heads
from text2sam.clip.towers.blocks import AFTER_MEAN, Block, TransformerTower
from text2sam.errors import UnsupportedModelError


class TimmViT(TransformerTower):
    """Adapter of a timm trunk of transformer blocks; see :class:`text2sam.clip.towers.base.ImageTower`.

    Args:
        visual: open_clip's ``TimmModel``, or the trunk itself.
    """

    def __init__(self, visual: Any) -> None:
        trunk = getattr(visual, "trunk", visual)
        super().__init__(visual, trunk.patch_embed.feat_ratio(as_scalar=False), trunk.patch_embed.img_size)
        self.trunk: Any = trunk
        self.head: Any = nn.Identity() if trunk is visual else visual.head
        self.blocks = len(trunk.blocks)
        self.prefix = int(trunk.num_prefix_tokens)
        if trunk.attn_pool is None and trunk.global_pool == "avg" and not isinstance(trunk.fc_norm, nn.Identity):
            self.note = AFTER_MEAN

    def stream(self, pixels: torch.Tensor) -> tuple[torch.Tensor, Grid, Sequence[Block]]:
        """What ``trunk.forward_features`` does before its blocks, on any grid."""
        trunk = self.trunk
        x = _patches(trunk.patch_embed, pixels)
        grid = (int(x.shape[1]), int(x.shape[2]))
        x = x.flatten(1, 2)  # (B, N, D)
        before = [token.expand(len(x), -1, -1) for token in (trunk.cls_token, trunk.reg_token) if token is not None]
        positions = _positions(trunk, grid)
        if trunk.no_embed_class and positions is not None:
            x = x + positions
        x = torch.cat([*before, x], dim=1)
        if not trunk.no_embed_class and positions is not None:
            x = x + positions
        rotations = _rotations(trunk, grid)
        blocks = [
            TimmBlock(block, rotations[i] if getattr(trunk, "rope_mixed", False) and rotations is not None else rotations)
            for i, block in enumerate(trunk.blocks)
        ]
        return trunk.norm_pre(x), grid, blocks

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The image feature, as the model itself makes it."""
        pooled: torch.Tensor = self.head(self.trunk.forward_head(self.trunk.norm(x)))
        return pooled

    def project(self, patches: torch.Tensor) -> torch.Tensor:
        """Each patch through the norms, the head and the projection that are meant for the image feature."""
        trunk, x = self.trunk, self.trunk.norm(patches)
        if trunk.attn_pool is not None:
            x = trunk.attn_pool(x.flatten(0, 1)[:, None]).unflatten(0, x.shape[:2])
        projected: torch.Tensor = self.head(trunk.head(trunk.fc_norm(x)))
        return projected


class TimmBlock:
    """A block of timm's ViTs as a :class:`~text2sam.clip.towers.blocks.Block`.

    It may have one matrix for queries, keys and values or three, biases apart, norms of queries and keys, rotary positions, a
    norm and a gate before the output projection, layer scale, and norms after attention and MLP instead of before them.

    Args:
        block: timm's.
        rotation: sines and cosines of the rotary positions, (N, 2 * d), or with heads before them; None without.
    """

    def __init__(self, block: Any, rotation: torch.Tensor | None) -> None:
        self.block, self.attn, self.rotation = block, block.attn, rotation
        self.after = type(block).__name__ in _NORM_AFTER

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """The first norm, unless it comes after the attention."""
        entered: torch.Tensor = x if self.after else self.block.norm1(x)
        return entered

    def queries_keys_values(self, entered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """After their own norms and rotary positions."""
        attn, heads = self.attn, self.attn.num_heads
        if attn.qkv is not None:
            bias = getattr(attn, "q_bias", None)
            qkv = attn.qkv(entered)
            if bias is not None:
                qkv = qkv + torch.cat([bias, attn.k_bias, attn.v_bias])
            q, k, v = (split_heads(part, heads) for part in qkv.chunk(3, dim=-1))
        else:
            groups = getattr(attn, "num_kv_groups", 1)
            q = split_heads(attn.q_proj(entered), heads)
            k, v = (split_heads(linear(entered), heads // groups) for linear in (attn.k_proj, attn.v_proj))
        q, k = attn.q_norm(q), attn.k_norm(k)
        if self.rotation is not None:
            q, k = self._rotated(q).type_as(v), self._rotated(k).type_as(v)
        if k.shape[1] != heads:  # grouped queries share keys and values
            k, v = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (k, v))
        return q, k, v

    def update(self, mixed: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """Norm and gate of the heads, output projection, layer scale or the norm behind it."""
        attn, block = self.attn, self.block
        x = attn.norm(join_heads(mixed))
        if getattr(attn, "gate", None) is not None:
            x = x * attn.gate(entered).sigmoid()
        return self._scaled(attn.proj(x), "ls1", "gamma_1", block.norm1)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """The second half of the block."""
        block = self.block
        return x + self._scaled(block.mlp(x if self.after else block.norm2(x)), "ls2", "gamma_2", block.norm2)

    def _scaled(self, x: torch.Tensor, module: str, factor: str, norm: Any) -> torch.Tensor:
        if self.after:
            x = norm(x)
        x = getattr(self.block, module, nn.Identity())(x)
        gamma = getattr(self.block, factor, None)
        return x if gamma is None else gamma * x

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        from timm.layers import apply_rot_embed_cat

        attn, first = self.attn, self.attn.num_prefix_tokens
        half = {"half": True} if getattr(attn, "rotate_half", False) else {}
        return torch.cat([x[:, :, :first], apply_rot_embed_cat(x[:, :, first:], self.rotation, **half)], dim=2)


_NORM_AFTER = ("EvaBlockPostNorm", "ResPostBlock")
_BLOCKS = ("Block", "EvaBlock", *_NORM_AFTER)
_ATTENTIONS = ("Attention", "AttentionRope", "EvaAttention")
_POOLS = ("token", "avg", "map")


def adapt(visual: nn.Module) -> TimmViT | None:
    """The adapter of a ``TimmModel`` around a ``VisionTransformer`` or ``Eva``, or of such a trunk; None for another tower.

    Raises:
        UnsupportedModelError: its blocks, its attention or its pooling are of a kind that cannot be read.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = getattr(visual, "trunk", visual)
    name = f"timm's {type(trunk).__name__}"
    if type(trunk).__name__ == "VisionTransformerRelPos":
        raise UnsupportedModelError(
            f"{name}, whose positions are a bias on queries times keys, which the other kinds of attention have not"
        )
    if not isinstance(trunk, (VisionTransformer, Eva)):
        return None
    if type(trunk) not in (VisionTransformer, Eva):
        raise UnsupportedModelError(f"{name}, which changes timm's own forward pass")
    for block in trunk.blocks:
        parts = {"blocks": (block, _BLOCKS), "attention": (getattr(block, "attn", None), _ATTENTIONS)}
        for what, (part, known) in parts.items():
            if type(part).__name__ not in known or not type(part).__module__.startswith("timm."):
                raise UnsupportedModelError(f"{name} with {what} of {_name(part)}")
    pool = trunk.attn_pool
    if trunk.global_pool not in _POOLS or (pool is None and trunk.global_pool == "map"):
        raise UnsupportedModelError(f"{name} with the pooling {trunk.global_pool!r}")
    if pool is not None and (type(pool).__name__ != "AttentionPoolLatent" or pool.pos_embed is not None):
        raise UnsupportedModelError(
            f"{name} with {_name(pool)}: a patch alone must make sense to the attention pool, which has positions of its own"
        )
    return TimmViT(visual)


def _name(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _patches(embed: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, gh, gw, D) of a ``PatchEmbed`` or ``HybridEmbed``, without their check of the size."""
    x = pixels
    if hasattr(embed, "backbone"):
        x = embed.backbone(x)
        x = x[-1] if isinstance(x, (list, tuple)) else x
    x = embed.proj(x).permute(0, 2, 3, 1)
    patches: torch.Tensor = embed.norm(x) if hasattr(embed, "norm") else x
    return patches


def _positions(trunk: Any, grid: Grid) -> torch.Tensor | None:
    """(1, L, D) learned positions for a grid, resampled as timm does for ``dynamic_img_size``; None where there are none."""
    from timm.layers import resample_abs_pos_embed

    if trunk.pos_embed is None:
        return None
    prefix = 0 if trunk.no_embed_class else int(trunk.num_prefix_tokens)
    resampled: torch.Tensor = resample_abs_pos_embed(
        trunk.pos_embed,
        new_size=list(grid),
        old_size=list(trunk.patch_embed.grid_size),
        num_prefix_tokens=prefix,
        interpolation=getattr(trunk, "pos_interpolation", "bicubic"),
    )
    return resampled


def _rotations(trunk: Any, grid: Grid) -> torch.Tensor | None:
    """Rotary positions for a grid; None where there are none."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    cached = getattr(rope, "feat_shape", None) is not None
    if cached and list(rope.feat_shape) != list(grid):  # the trunk's own tables stay as they are
        if not hasattr(rope, "update_feat_shape"):
            raise UnsupportedModelError(
                f"this timm makes no rotary positions of {type(trunk).__name__} for a grid of {grid[0]} x {grid[1]}; install "
                f"a newer one, or give image_size={trunk.patch_embed.img_size}"
            )
        rope = copy.deepcopy(rope)
        rope.update_feat_shape(list(grid))
    rotations: torch.Tensor = rope.get_embed() if cached else rope.get_embed(shape=list(grid))
    return rotations
