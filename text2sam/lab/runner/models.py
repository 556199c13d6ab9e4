"""The measured CLIP, which may have random weights to measure time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from text2sam.clip.generator import ClipSurgery
from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError
from text2sam.zoo.download import file_sha256, resolve
from text2sam.zoo.presets import ModelOptions, Preset, build_clip, clip_architecture, get_preset, load_predictor
from text2sam.zoo.sticker.models import SHIPPED
from text2sam.zoo.table import CHECKPOINTS

_CONFIG = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}


@dataclass(frozen=True)
class ModelInfo:
    """The identity of a CLIP, as far as it is known."""

    name: str = ""  # open_clip's name of the architecture ("ViT-B-16-quickgelu"), or "sticker"; empty if unknown
    pretrained: str | None = None  # "openai", "sticker", or the name of the weights file; None if untrained or unknown
    sha256: str | None = None  # of the weights file
    untrained: bool = False  # whether the weights are random, so that figures are meaningless
    weights_seed: int | None = None  # of random weights


def build_surgery(preset: str = "mobile", *, untrained: bool = False, **options: Any) -> tuple[ClipSurgery, ModelInfo]:
    """The CLIP of a preset, by default at one scale, as in the papers.

    Args:
        preset: name of a preset.
        untrained: random weights for ``clip_model`` (default ViT-B-16).
        **options: as for :func:`text2sam.zoo.presets.build`, whose errors this raises.
    """
    chosen, given = get_preset(preset), ModelOptions.of(None, {"scales": (1.0,), "progress": False} | options)
    if not untrained:
        return build_clip(preset, given), _info(chosen, given)
    if given.clip_checkpoint is not None:
        raise InputError(f"an untrained CLIP has no checkpoint {given.clip_checkpoint!r}; leave out one of the two")
    import open_clip

    device, name = pick_device(given.device), given.clip_model or "ViT-B-16"
    surgery = ClipSurgery(
        untrained_clip(name),
        open_clip.get_tokenizer(name),
        image_size=chosen.image_size if given.image_size is None else given.image_size,
        depth=chosen.depth if given.depth is None else given.depth,
        scales=given.scales or (1.0,),
        device=device,
        dtype=None if given.dtype is None else check_dtype(given.dtype, device),
        templates=given.templates,
        text_cache=None,
    )
    return surgery, ModelInfo(name, untrained=True, weights_seed=0)


def build_sam(preset: str = "mobile", **options: Any) -> Any:
    """The SAM of a preset as a mask predictor; arguments and errors are those of :func:`text2sam.zoo.presets.build`."""
    return load_predictor(get_preset(preset), ModelOptions.of(None, options))


def untrained_clip(name: str, seed: int = 0) -> Any:
    """An open_clip ``CLIP`` on the CPU with random weights, which the seed determines.

    Raises:
        InputError: the architecture is unknown, or has towers of other packages.
    """
    import open_clip
    from open_clip.model import CLIP

    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise InputError(f"clip_model must be one of open_clip.list_models(), not {name!r}")
    foreign = {"timm_model_name", "hf_model_name"} & {*config["vision_cfg"], *config["text_cfg"]}
    if not set(config) <= _CONFIG or foreign:
        raise InputError(f"an untrained {name!r} cannot be built; take a plain CLIP such as ViT-B-16 or RN50")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CLIP(**config).eval().requires_grad_(False)


def _info(preset: Preset, options: ModelOptions) -> ModelInfo:
    spec = options.clip_checkpoint or preset.clip_checkpoint
    if spec is None:
        return ModelInfo("sticker", "sticker", SHIPPED.sha256("clip.safetensors"))
    known = CHECKPOINTS.get(str(spec))
    path = Path(spec).expanduser()
    if known is None and path.is_dir():  # of transformers
        weights = path / "model.safetensors"
        return ModelInfo(pretrained=path.name, sha256=file_sha256(weights) if weights.is_file() else None)
    name = clip_architecture(preset, options)
    sha256 = known.sha256 if known else file_sha256(resolve(spec, "clip", progress=False))
    # listed weights may have another file name
    listed = known or next((checkpoint for checkpoint in CHECKPOINTS.values() if checkpoint.sha256 == sha256), None)
    tag = None if listed is None else listed.pretrained
    return ModelInfo(name, tag or Path(spec).name, sha256)
