"""The measured CLIP, which may have random weights to measure time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from text2sam.clip.generator import ClipSurgery
from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError
from text2sam.zoo.download import file_sha256, resolve
from text2sam.zoo.presets import ModelOptions, build_clip, clip_architecture, get_preset, load_predictor
from text2sam.zoo.sticker.models import SHIPPED
from text2sam.zoo.table import CHECKPOINTS

_UNTRAINED = "ViT-B-16"
_CONFIG = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}


@dataclass(frozen=True)
class ModelChoice(ModelOptions):
    """A preset and its options; the default scale is the papers'.

    Attributes:
        preset: name of a preset.
        untrained: random weights for ``clip_model`` (default ViT-B-16).
    """

    scales: Sequence[float] | None = (1.0,)
    progress: bool = False
    preset: str = "mobile"
    untrained: bool = False

    def __post_init__(self) -> None:
        if self.untrained and self.clip_checkpoint is not None:
            raise InputError(f"an untrained CLIP has no checkpoint {self.clip_checkpoint!r}; leave out one of the two")


@dataclass(frozen=True)
class ModelInfo:
    """The identity of a CLIP, as far as it is known.

    Attributes:
        name: open_clip's name of the architecture (``"ViT-B-16-quickgelu"``), or ``"sticker"``; empty if unknown.
        pretrained: ``"openai"``, ``"sticker"``, or the name of the weights file; None if untrained or unknown.
        sha256: checksum of the weights file.
        untrained: whether the weights are random, so that figures are meaningless.
        weights_seed: seed of random weights.
    """

    name: str = ""
    pretrained: str | None = None
    sha256: str | None = None
    untrained: bool = False
    weights_seed: int | None = None


def build_surgery(choice: ModelChoice) -> tuple[ClipSurgery, ModelInfo]:
    """The CLIP of a choice; errors are those of :func:`text2sam.zoo.presets.build`."""
    if not choice.untrained:
        return build_clip(choice.preset, choice), _info(choice)
    import open_clip

    preset, device = get_preset(choice.preset), pick_device(choice.device)
    name = choice.clip_model or _UNTRAINED
    surgery = ClipSurgery(
        untrained_clip(name),
        open_clip.get_tokenizer(name),
        image_size=preset.image_size if choice.image_size is None else choice.image_size,
        depth=preset.depth if choice.depth is None else choice.depth,
        scales=choice.scales or (1.0,),
        device=device,
        dtype=None if choice.dtype is None else check_dtype(choice.dtype, device),
        templates=choice.templates,
        text_cache=None,
    )
    return surgery, ModelInfo(name, untrained=True, weights_seed=0)


def build_sam(choice: ModelChoice) -> Any:
    """The SAM of a choice as a mask predictor; errors are those of :func:`text2sam.zoo.presets.build`."""
    return load_predictor(get_preset(choice.preset), choice)


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


def _info(choice: ModelChoice) -> ModelInfo:
    preset = get_preset(choice.preset)
    spec = choice.clip_checkpoint or preset.clip_checkpoint
    if spec is None:
        return ModelInfo("sticker", "sticker", SHIPPED.sha256("clip.safetensors"))
    known = CHECKPOINTS.get(str(spec))
    path = Path(spec).expanduser()
    if known is None and path.is_dir():  # of transformers
        weights = path / "model.safetensors"
        return ModelInfo(pretrained=path.name, sha256=file_sha256(weights) if weights.is_file() else None)
    name = clip_architecture(preset, choice)
    sha256 = known.sha256 if known else file_sha256(resolve(spec, "clip", progress=False))
    # listed weights may have another file name
    listed = known or next((checkpoint for checkpoint in CHECKPOINTS.values() if checkpoint.sha256 == sha256), None)
    tag = None if listed is None else listed.pretrained
    return ModelInfo(name, tag or Path(spec).name, sha256)
