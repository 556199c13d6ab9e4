"""Towers of timm, at tiny sizes of timm's own definitions, against their own forward pass."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from helpers import condition, draw_weights, noise, surgery_tokens, tiny_clip
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from text2sam.clip.attention import KINDS
from text2sam.clip.towers import tower_of
from text2sam.errors import UnsupportedModelError

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4}
VITS: dict[str, tuple[str, str, str | None, int, dict[str, Any]]] = {  # trunk, pool, proj, size, shape
    "SigLIP": ("vit_base_patch16_siglip_224", "map", "none", 64, SMALL),
    "SigLIP SO400M": ("vit_so400m_patch14_siglip_224", "map", "none", 56, SMALL),
    "SigLIP 2 gopt": ("vit_giantopt_patch16_siglip_256", "map", "none", 64, SMALL),
    "MobileCLIP-B": ("vit_base_mci_224", "token", None, 64, {"depth": 2}),
    "MobileCLIP2-L": ("vit_large_patch14_clip_224", "token", None, 56, SMALL),
    "ViTamin": ("vitamin_small_224", "", "linear", 64, {"depth": 2}),
    "EVA01": ("eva_giant_patch14_224", "token", None, 56, SMALL),
    "EVA02": ("eva02_base_patch16_clip_224", "token", None, 64, SMALL),
    "EVA02-E": ("eva02_enormous_patch14_clip_224", "token", None, 56, SMALL),
    "PE-Core-T": ("vit_pe_core_tiny_patch16_384", "map", None, 64, SMALL),
    "PE-Core-G": ("vit_pe_core_gigantic_patch14_448", "map", None, 56, SMALL),
    "average": ("vit_medium_patch16_gap_256", "", "linear", 64, SMALL),
    "registers": ("vit_base_patch16_reg4_gap_256", "avg", None, 64, SMALL),
    "DINOv3's rotations": ("vit_small_patch16_dinov3", "token", None, 64, SMALL),
    "mixed rotations": ("vit_small_patch16_rope_mixed_224", "token", None, 64, SMALL),
}
VITS = {family: row for family, row in VITS.items() if timm.is_model(row[0])}
CNNS: dict[str, tuple[str, str, str | None, int, dict[str, Any]]] = {
    "ConvNeXt": ("test_convnext", "", "linear", 64, {}),
    "ConvNeXt with MLP": ("test_convnext", "", "mlp", 64, {}),
    "FastViT": ("fastvit_mci0", "avg", None, 64, {}),
    "ResNet": ("test_resnet", "avg", "linear", 64, {}),
    "Swin": (
        "swin_base_patch4_window7_224",
        "",
        "linear",
        224,
        {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2)},
    ),
}


def timm_tower(row: tuple[str, str, str | None, int, dict[str, Any]], **more: Any) -> Any:
    """open_clip's ``TimmModel``, of another depth and width than the name's."""
    name, pool, proj, size, shape = row
    sized = {"img_size": size} if row in VITS.values() else {}
    with mock.patch.object(timm, "create_model", functools.partial(timm.create_model, **sized, **shape, **more)):
        tower = TimmModel(name, 16, size, pool=pool, proj=proj)
    return draw_weights(tower, 0.15)


def same(mine: torch.Tensor, theirs: torch.Tensor, close: float = 1e-5) -> None:
    torch.testing.assert_close(mine, theirs, rtol=close, atol=close * float(theirs.detach().abs().max()))


# ViTs


@pytest.mark.parametrize("family", VITS)
@torch.no_grad()
def test_the_original_path_is_the_trunks(family: str) -> None:
    visual = timm_tower(VITS[family])
    tower, pixels = tower_of(visual), noise(2, 3, VITS[family][3], VITS[family][3])
    x, _, blocks = tower.stream(pixels)
    for block in blocks:
        entered = block.enter(x)
        x = block.mlp(x + block.update(F.scaled_dot_product_attention(*block.queries_keys_values(entered)), entered))
    same(visual.trunk.norm(x), visual.trunk.forward_features(pixels))
    tokens = surgery_tokens(visual, pixels, depth=2, kinds=tuple(KINDS))
    same(tokens.raw[:, 0], visual(pixels))
    assert tokens.raw.shape == (2, 1 + tokens.grid[0] * tokens.grid[1], 16 if family not in siglips() else 32)
    for other in (path for name, path in tokens.paths.items() if name != "raw"):
        assert torch.equal(other[:, 0], tokens.raw[:, 0])
        assert (other - tokens.raw)[:, 1:].abs().max() > 1e-3


def siglips() -> list[str]:
    return [family for family, row in VITS.items() if row[2] == "none"]


@pytest.mark.parametrize("family", VITS)
@torch.no_grad()
def test_queries_keys_and_values_are_what_meets_in_the_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    visual = timm_tower(VITS[family])
    tower, size, met = tower_of(visual), VITS[family][3], []
    attention = F.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        met.append((q, k, v))
        return attention(q, k, v, **options)

    pixels = noise(1, 3, size, size)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    visual.trunk.forward_features(pixels)
    monkeypatch.undo()
    x, _, blocks = tower.stream(pixels)
    assert len(met) == len(blocks) == tower.blocks
    for block, theirs in zip(blocks, met, strict=True):
        entered = block.enter(x)
        mine = block.queries_keys_values(entered)
        for a, b in zip(mine, theirs, strict=True):
            same(a, b)
        x = block.mlp(x + block.update(attention(*mine), entered))


@pytest.mark.parametrize("family", VITS)
@torch.no_grad()
def test_other_sizes_are_timms(family: str) -> None:
    fixed, dynamic = timm_tower(VITS[family]), timm_tower(VITS[family], dynamic_img_size=True)
    dynamic.load_state_dict(fixed.state_dict())
    ph, pw = tower_of(fixed).patch
    before = condition(fixed)
    rope = getattr(fixed.trunk, "rope", None)
    if rope is not None and not hasattr(rope, "update_feat_shape"):
        with pytest.raises(UnsupportedModelError, match="install a newer one"):
            surgery_tokens(fixed, noise(1, 3, 5 * ph, 3 * pw), depth=1)
        return
    for grid in ((5, 3), (2, 7)):
        pixels = noise(1, 3, grid[0] * ph, grid[1] * pw)
        tokens = surgery_tokens(fixed, pixels, depth=1)
        assert tokens.grid == grid
        same(tokens.raw[:, 0], dynamic(pixels))
        remainder = F.pad(pixels, (0, pw - 1, 0, ph - 1), value=7.0)
        same(surgery_tokens(fixed, remainder, depth=1).surgery, tokens.surgery)
    assert condition(fixed) == before


@torch.no_grad()
def test_the_same_weights_in_open_clips_tower() -> None:
    """open_clip's tower is tested against loops; timm's with its weights must agree in every kind of attention."""
    theirs = tiny_clip(vision={"image_size": 16, "layers": 3}).visual
    assert isinstance(theirs, VisionTransformer)
    trunk = timm.models.VisionTransformer(
        16, 4, embed_dim=32, depth=3, num_heads=2, num_classes=16, global_pool="token", pre_norm=True, norm_layer=nn.LayerNorm
    )
    names = {
        "conv1": "patch_embed.proj",
        "ln_pre": "norm_pre",
        "ln_post": "norm",
        "transformer.resblocks": "blocks",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    weights = {"head.weight": theirs.proj.T, "head.bias": torch.zeros(16), "pos_embed": theirs.positional_embedding[None]}
    weights["cls_token"] = theirs.class_embedding[None, None]
    for key, value in theirs.state_dict().items():
        new = key
        for old, name in names.items():
            new = new.replace(old, name)
        if key not in ("proj", "positional_embedding", "class_embedding"):
            weights[new] = value
    trunk.load_state_dict(weights)
    pixels = noise(2, 3, 16, 16)
    one, other = (surgery_tokens(visual, pixels, depth=2, kinds=tuple(KINDS)) for visual in (theirs, trunk.eval()))
    assert one.paths.keys() == other.paths.keys() == {"raw", *KINDS}
    for path in one.paths:
        same(other.paths[path], one.paths[path])


@pytest.mark.parametrize("family", [family for family, row in VITS.items() if row[1] != "token"])
@torch.no_grad()
def test_equal_patches_pool_to_any_of_them(family: str) -> None:
    tower = tower_of(timm_tower(VITS[family]))
    x, _, _ = tower.stream(noise(2, 3, VITS[family][3], VITS[family][3]))
    equal = x[:, -1:].expand(-1, 5 + tower.prefix, -1)
    same(tower.project(equal[:, tower.prefix :])[:, 3], tower.pool(equal))


@torch.no_grad()
def test_averages_are_the_mean_of_the_patches() -> None:
    for family, exact in (("average", True), ("ViTamin", False)):
        visual = timm_tower(VITS[family])
        raw = surgery_tokens(visual, noise(1, 3, 64, 64), depth=1).raw
        assert bool(tower_of(visual).note) != exact
        if exact:
            same(raw[:, 1:].mean(1), raw[:, 0])
        else:
            assert 0.9 < F.cosine_similarity(raw[:, 1:].mean(1), raw[:, 0]).item() < 1 - 1e-7


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("test_vit", {"global_pool": "avgmax"}, "pooling 'avgmax'"),
        ("test_vit", {"global_pool": ""}, "pooling ''"),
        ("test_vit", {"global_pool": "prr"}, "pooling 'prr'"),
        ("test_vit", {"attn_layer": "diff"}, "attention of .*DiffAttention"),
        ("vit_base_patch16_18x2_224", {"depth": 1}, "ParallelThingsBlock"),
        ("vit_relpos_medium_patch16_cls_224", {"depth": 1}, "VisionTransformerRelPos"),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, "VisionTransformerDistilled.*own forward pass"),
    ],
)
def test_timm_vits_that_are_refused(name: str, options: dict[str, Any], told: str) -> None:
    try:
        trunk = timm.create_model(name, **options)
    except (AssertionError, TypeError):
        pytest.skip("this timm has no such option")
    with pytest.raises(UnsupportedModelError, match=told):
        tower_of(trunk)


# pooled networks


@pytest.mark.parametrize("family", CNNS)
@torch.no_grad()
def test_positions_go_through_the_head(family: str) -> None:
    visual = timm_tower(CNNS[family])
    tower, size, before = tower_of(visual), CNNS[family][3], condition(visual)
    tokens = surgery_tokens(visual, noise(2, 3, size, size), depth=1)
    assert tokens.grid == (size // tower.patch[0], size // tower.patch[1])
    assert torch.equal(tokens.surgery, tokens.raw)
    same(tokens.raw[:, 0], visual(noise(2, 3, size, size)))
    mean = tokens.raw[:, 1:].mean(1)
    if tower.note:
        assert family.startswith("ConvNeXt")
        assert F.cosine_similarity(mean, tokens.raw[:, 0]).min() > 0.9
    else:
        same(mean, tokens.raw[:, 0])
    assert condition(visual) == before


@pytest.mark.parametrize("family", CNNS)
@torch.no_grad()
def test_pooled_networks_at_other_sizes(family: str) -> None:
    visual = timm_tower(CNNS[family])
    (ph, pw), before = tower_of(visual).patch, condition(visual)
    for grid in ((9, 7), (14, 8)) if family == "Swin" else ((9, 4), (1, 2)):
        pixels = noise(1, 3, grid[0] * ph, grid[1] * pw)
        tokens = surgery_tokens(visual, pixels, depth=1)
        assert tokens.grid == grid
        if family != "Swin":
            same(tokens.raw[:, 0], visual(pixels))
    assert condition(visual) == before


@torch.no_grad()
def test_swin_at_another_size_is_a_swin_of_that_size() -> None:
    visual, other = timm_tower(CNNS["Swin"]), timm_tower(CNNS["Swin"])
    other.trunk.set_input_size(img_size=(448, 224), window_size=7)
    pixels = noise(1, 3, 448, 224)
    same(surgery_tokens(visual, pixels, depth=1).raw[:, 0], other(pixels))


def test_pooled_networks_that_are_refused() -> None:
    for name, pool, proj, told in (
        ("resnet18", "abs_attn", None, "AttentionPool2d.*pooled by attention"),
        ("test_resnet", "max", "linear", "pooling 'max'"),
    ):
        with pytest.raises(UnsupportedModelError, match=told):
            tower_of(timm_tower((name, pool, proj, 64, {})))


@torch.no_grad()
def test_half_precision() -> None:
    """bfloat16 computes on the CPU too; tokens stay near those in float32."""
    for family in ("EVA02", "PE-Core-T", "SigLIP", "ConvNeXt"):
        if family in VITS or family in CNNS:
            visual, size = timm_tower((VITS | CNNS)[family]), (VITS | CNNS)[family][3]
            kinds = tuple(kind for kind in KINDS if kind in tower_of(visual).kinds)
            pixels = noise(1, 3, size, size)  # old timm makes no rotary positions for other sizes
            whole = surgery_tokens(visual, pixels, depth=2, kinds=kinds)
            half = surgery_tokens(visual.bfloat16(), pixels.bfloat16(), depth=2, kinds=kinds)
            assert half.raw.dtype == torch.bfloat16
            for path in half.paths.keys() - {"gem"}:
                assert F.cosine_similarity(half.paths[path].float(), whole.paths[path], dim=-1).min() > 0.95
