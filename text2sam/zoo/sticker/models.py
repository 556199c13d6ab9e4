"""The two small architectures of the sticker pair: an ordinary open_clip CLIP and an ordinary Sam."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from text2sam.errors import ChecksumError, WeightsError
from text2sam.files import write_json

WEIGHTS = Path(__file__).parent / "weights"
RECORD = WEIGHTS / "record.json"
"""Checksums of the shipped weights, their training and its results."""

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
    return _with_weights(build_clip(), "clip")


def load_sam() -> Any:
    """The sticker SAM with its shipped weights, in float32 on the CPU, in evaluation mode.

    Raises:
        WeightsError: the weights are not in the package, or differ from the record.
    """
    return _with_weights(build_sam(), "sam")


def ship(model: Any, name: str, folder: Path = WEIGHTS) -> Path:
    """Writes a trained model's weights in half precision, with their checksum in the record.

    Args:
        model: the trained model.
        name: ``"clip"`` or ``"sam"``.
        folder: the folder of ``NAME.safetensors`` and ``record.json``.
    """
    from safetensors.torch import save

    from text2sam.files import write_bytes
    from text2sam.zoo.download import file_sha256

    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    path = folder / f"{name}.safetensors"
    write_bytes(path, save(state))
    record = json.loads((folder / "record.json").read_text()) if (folder / "record.json").exists() else {}
    record.setdefault("sha256", {})[path.name] = file_sha256(path)
    write_json(folder / "record.json", record)
    return path


def recorded_sha256(filename: str) -> str:
    """SHA-256 of a shipped file in the record.

    Raises:
        WeightsError: the record is missing or does not have the file.
    """
    try:
        return str(json.loads(RECORD.read_text(encoding="utf-8"))["sha256"][filename])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{RECORD} has no SHA-256 of {filename}; reinstall text2sam") from error


def _with_weights(model: Any, name: str) -> Any:
    from text2sam.zoo.download import file_sha256
    from text2sam.zoo.state_dicts import load_state_dict

    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        raise WeightsError(f"{path} is not there: this installation of text2sam lacks the sticker weights; reinstall it")
    expected = recorded_sha256(path.name)
    actual = file_sha256(path)
    if actual != expected:
        raise ChecksumError(f"{path} is damaged: its SHA-256 is {actual}, not {expected}; reinstall text2sam")
    model.load_state_dict(load_state_dict(path))
    return model.float().eval().requires_grad_(False)
