"""The two small architectures of the sticker pair: an ordinary open_clip CLIP and an ordinary Sam."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from text2sam.zoo.shipped import Shipped

LICENCE = "CC-BY-SA-4.0"
SHIPPED = Shipped("sticker", Path(__file__).parent / "weights", {f"{part}.safetensors": LICENCE for part in ("clip", "sam")})
"""The weights; the record has their training and its results."""

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "layers": 8, "width": 128, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
"""An open_clip model configuration; the tokenizer is CLIP's own."""


def build_clip() -> Any:
    """An untrained open_clip ``CLIP`` of the sticker pair's shape, on the CPU in float32."""
    from open_clip.model import CLIP

    return CLIP(**CLIP_CONFIG)


SAM_CONFIG: dict[str, Any] = {
    "img_size": 256,
    "patch_size": 8,
    "width": 128,
    "depth": 6,
    "heads": 4,
    "window_size": 8,
    "global_attn_indexes": (2, 5),
    "prompt_dim": 128,
    "decoder_mlp": 512,
}
"""Dimensions of the sticker SAM, named as in segment-anything's modules."""


def build_sam() -> Any:
    """An untrained segment-anything ``Sam`` of the sticker pair's shape, on the CPU in float32."""
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    c = SAM_CONFIG
    side = c["img_size"] // c["patch_size"]
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=c["img_size"],
            patch_size=c["patch_size"],
            embed_dim=c["width"],
            depth=c["depth"],
            num_heads=c["heads"],
            mlp_ratio=4,
            out_chans=c["prompt_dim"],
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            qkv_bias=True,
            use_rel_pos=True,
            window_size=c["window_size"],
            global_attn_indexes=c["global_attn_indexes"],
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=c["prompt_dim"],
            image_embedding_size=(side, side),
            input_image_size=(c["img_size"], c["img_size"]),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=c["prompt_dim"], mlp_dim=c["decoder_mlp"], num_heads=8),
            transformer_dim=c["prompt_dim"],
            iou_head_depth=3,
            iou_head_hidden_dim=c["prompt_dim"],
        ),
    )


def load_clip() -> Any:
    """The sticker CLIP with its shipped weights, in float32 on the CPU, in evaluation mode.

    Raises:
        WeightsError: the weights are not in the package, or differ from the record.
    """
    return _with_weights(build_clip(), "clip.safetensors")


def load_sam() -> Any:
    """The sticker SAM with its shipped weights, in float32 on the CPU, in evaluation mode.

    Raises:
        WeightsError: the weights are not in the package, or differ from the record.
    """
    return _with_weights(build_sam(), "sam.safetensors")


def _with_weights(model: Any, filename: str) -> Any:
    model.load_state_dict(SHIPPED.state_dict(filename))
    return model.float().eval().requires_grad_(False)
