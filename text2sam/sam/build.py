"""Segment Anything and MobileSAM built from checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError, WeightsError
from text2sam.zoo.state_dicts import layout_of, load_state_dict, misfit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODEL_TYPES = ("vit_b", "vit_l", "vit_h", "vit_t")
"""The architectures :func:`build_sam` knows: SAM's three, and MobileSAM's ``vit_t``."""

# (width, blocks) of the image encoder by model type.
_VIT_SHAPES = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)


def build_sam(
    model_type: str | None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Any:
    """A ``segment_anything.modeling.Sam``, ready for inference.

    In half precision the image encoder alone is converted, which holds nearly all weights and work, and returns float32. The
    prompt encoder and the mask decoder stay float32, so the model works with ``SamPredictor`` unchanged. The encoder's keys in
    the state dict then begin with ``image_encoder.encoder.``.

    Args:
        model_type: one of :data:`MODEL_TYPES`; None reads it off the checkpoint.
        checkpoint: a file with the weights, read as tensors only; None leaves them random.
        device: as :func:`text2sam.devices.pick_device`.
        dtype: as :func:`text2sam.devices.check_dtype`.

    Returns:
        The model in evaluation mode, no parameter requiring gradients.

    Raises:
        InputError: the model type, device or dtype is not known or not available.
        WeightsError: the file cannot be read or does not fit; the message names the keys that differ and, when the weights
            are another model's, the ``model_type`` they look like.
    """
    device = pick_device(device)
    return _ready(_sam_of(model_type, checkpoint), device, check_dtype(dtype, device))


def _sam_of(model_type: str | None, checkpoint: str | os.PathLike[str] | None) -> Any:
    if model_type not in MODEL_TYPES and (model_type is not None or checkpoint is None):
        raise InputError(f"model_type must be one of {', '.join(MODEL_TYPES)}, not {model_type!r}")
    if checkpoint is None:
        return _bare_sam(str(model_type))
    return _sam_from(load_state_dict(checkpoint), model_type, os.fspath(checkpoint))


def _ready(sam: Any, device: torch.device, dtype: torch.dtype, *, faster: bool = False) -> Any:
    import torch

    sam = sam.float().eval().requires_grad_(False)
    if faster and device.type == "cpu":
        from text2sam.sam.cpu import hasten_decoder
        from text2sam.sam.mobile import MobileImageEncoder, hasten

        hasten_decoder(sam)
        if isinstance(sam.image_encoder, MobileImageEncoder):
            hasten(sam.image_encoder, dtype)
    if dtype != torch.float32:
        from text2sam.sam._half import HalfPrecisionEncoder

        sam.image_encoder = HalfPrecisionEncoder(sam.image_encoder, dtype, whole=device.type == "cpu")
    return sam if device.type == "cpu" else sam.to(device)


def build_predictor(
    model_type: str | None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Any:
    """A mask predictor: ``segment_anything.SamPredictor`` on :func:`build_sam`'s model, or what fits the checkpoint.

    Arguments and errors are those of :func:`build_sam`. Without a model type the checkpoint may also be one of SAM 2 or SAM
    2.1, which gives the package ``sam2``'s ``SAM2ImagePredictor``, or a folder of a SAM of transformers, which gives a
    :class:`~text2sam.sam.hf.HFPredictor`; both compute in float32, whatever ``dtype`` says. On the CPU MobileSAM's encoder
    and the decoder of all SAMs are made faster (:func:`text2sam.sam.mobile.hasten`, :mod:`text2sam.sam.cpu`).

    Raises:
        MissingDependencyError: the package of such a model is not installed.
    """
    device = pick_device(device)
    dtype = check_dtype(dtype, device)
    if model_type is None and checkpoint is not None:
        if os.path.isdir(checkpoint):
            from text2sam.sam.hf import HFPredictor

            return HFPredictor.from_folder(Path(checkpoint), device)
        from text2sam.sam.sam2 import build_sam2_predictor, sam2_config

        state_dict = load_state_dict(checkpoint)
        if sam2_config(state_dict) is not None:
            return build_sam2_predictor(state_dict, os.fspath(checkpoint), device)
        sam = _sam_from(state_dict, None, os.fspath(checkpoint))
    else:
        sam = _sam_of(model_type, checkpoint)
    sam = _ready(sam, device, dtype, faster=True)
    if device.type == "cpu":
        from text2sam.sam.cpu import CPUPredictor

        return CPUPredictor(sam)
    from segment_anything import SamPredictor

    return SamPredictor(sam)


def guess_model_type(state_dict: Mapping[str, Tensor]) -> str | None:
    """Which of :data:`MODEL_TYPES` a state dict's image encoder belongs to; None when none of them.

    MobileSAM is recognised by its own names and by timm's.
    """
    prefix = "image_encoder.patch_embed."
    if f"{prefix}seq.0.c.weight" in state_dict or f"{prefix}conv1.conv.weight" in state_dict:
        return "vit_t"
    patches = state_dict.get(f"{prefix}proj.weight")
    if patches is None or patches.ndim != 4:
        return None
    blocks = {key.split(".")[2] for key in state_dict if key.startswith("image_encoder.blocks.")}
    return _VIT_SHAPES.get((len(patches), len(blocks)))


def _bare_sam(model_type: str) -> Any:
    import segment_anything

    if model_type != "vit_t":
        return segment_anything.sam_model_registry[model_type](checkpoint=None)
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    from text2sam.sam.mobile import MobileImageEncoder

    encoder, width = MobileImageEncoder(), 256
    side = encoder.img_size // 16
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(side, side),
            input_image_size=(encoder.img_size, encoder.img_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8),
            transformer_dim=width,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=list(_PIXEL_MEAN),
        pixel_std=list(_PIXEL_STD),
    )


def _sam_from(state_dict: Mapping[str, Tensor], model_type: str | None, source: str) -> Any:
    """A Sam on the CPU whose parameters are the state dict's tensors; without a model type, of the type they look like."""
    import torch

    guess = guess_model_type(state_dict)
    if model_type is None and guess is None:
        layout = layout_of(state_dict)
        raise WeightsError(
            f"{source} holds no SAM text2sam can build, which are {', '.join(MODEL_TYPES)} (MobileSAM)"
            + (f": it holds {layout}" if layout else "")
        )
    if model_type is None:
        model_type = str(guess)
    if guess not in (None, model_type):
        raise WeightsError(
            f"{source} does not fit model_type {model_type!r}: its weights look like {guess!r}; give model_type={guess!r}"
        )
    if model_type == "vit_t":
        from text2sam.sam.mobile import rename_keys

        state_dict = rename_keys(state_dict)
        # timm computes its index buffers while it builds, which the meta device cannot.
        sam = _bare_sam(model_type)
    else:
        # Nothing is drawn at random only to be overwritten: 2.5 GB for vit_h.
        with torch.device("meta"):
            sam = _bare_sam(model_type)
        for name, values in (("pixel_mean", _PIXEL_MEAN), ("pixel_std", _PIXEL_STD)):
            sam.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
    difference = misfit(sam.state_dict(), state_dict)
    if difference:
        raise WeightsError(f"{source} does not fit model_type {model_type!r}: {difference}; {_advice(state_dict, guess)}")
    sam.load_state_dict(state_dict, assign=True)
    return sam


def _advice(state_dict: Mapping[str, Tensor], guess: str | None) -> str:
    if guess is None:
        return f"it holds {layout_of(state_dict) or 'the weights of none of ' + ', '.join(MODEL_TYPES)}"
    return "the image encoder is of this type, but the file is incomplete or another model's (HQ-SAM, a fine-tuned head)"
