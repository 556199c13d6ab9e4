"""The CLIP that is measured, without a SAM beside it; also one with random weights, to try out real sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text2sam.clip.generator import ClipSurgery
from text2sam.errors import InputError

_UNTRAINED = "ViT-B-16"
_CONFIG = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}


@dataclass(frozen=True)
class ModelChoice:
    """Which CLIP, see the options of :func:`text2sam.zoo.presets.build`.

    Attributes:
        preset: name of a preset, whose CLIP is taken.
        clip_checkpoint, clip_model: other weights and their architecture.
        sam_checkpoint: other weights for the preset's SAM, where one is needed.
        untrained: random weights for ``clip_model`` (ViT-B-16 by default), whatever the preset has.
        weights_seed: of those.
        image_size, depth, device, dtype: None takes the preset's and the best.
        scales: shares of the image size at which CLIP sees an image; the papers' one, whatever the preset has.
        short_templates: a few templates for speed in place of the papers' 85.
    """

    preset: str = "mobile"
    clip_checkpoint: str | None = None
    clip_model: str | None = None
    sam_checkpoint: str | None = None
    untrained: bool = False
    weights_seed: int = 0
    image_size: int | None = None
    depth: int | None = None
    device: str | None = None
    dtype: str | None = None
    short_templates: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.untrained and self.clip_checkpoint is not None:
            raise InputError(f"an untrained CLIP has no checkpoint {self.clip_checkpoint!r}; leave out one of the two")


@dataclass(frozen=True)
class ModelInfo:
    """Which CLIP it is, as far as it can be told.

    Attributes:
        name: open_clip's name of the architecture, ``"ViT-B-16-quickgelu"``; ``"sticker"``; empty where it is not known.
        pretrained: ``"openai"``, ``"sticker"``, the name of the weights' file; None where it is untrained or not known.
        sha256: of the weights' file.
        untrained: whether the weights are random: then figures mean nothing.
        weights_seed: of random weights.
    """

    name: str = ""
    pretrained: str | None = None
    sha256: str | None = None
    untrained: bool = False
    weights_seed: int | None = None


def build_surgery(choice: ModelChoice, *, progress: bool = False) -> tuple[ClipSurgery, ModelInfo]:
    """The CLIP of a choice.

    Raises:
        InputError: preset, architecture, device or number format is unknown.
        WeightsError: a checkpoint is missing, cannot be downloaded, or does not fit.
    """
    from text2sam.clip.prompts import SHORT_TEMPLATES
    from text2sam.devices import check_dtype, pick_device
    from text2sam.zoo.presets import build_clip, get_preset

    preset = get_preset(choice.preset)
    templates = SHORT_TEMPLATES if choice.short_templates else None
    if not choice.untrained:
        surgery = build_clip(
            choice.preset,
            device=choice.device,
            dtype=choice.dtype,
            clip_checkpoint=choice.clip_checkpoint,
            clip_model=choice.clip_model,
            templates=templates,
            depth=choice.depth,
            image_size=choice.image_size,
            scales=choice.scales,
            progress=progress,
        )
        return surgery, _info(choice, preset)
    import open_clip

    device = pick_device(choice.device)
    name = choice.clip_model or _UNTRAINED
    surgery = ClipSurgery(
        untrained_clip(name, choice.weights_seed),
        open_clip.get_tokenizer(name),
        image_size=preset.image_size if choice.image_size is None else choice.image_size,
        depth=preset.depth if choice.depth is None else choice.depth,
        scales=choice.scales,
        device=device,
        dtype=None if choice.dtype is None else check_dtype(choice.dtype, device),
        templates=templates,
        text_cache=None,  # features of random weights are not worth a place on the disk
    )
    return surgery, ModelInfo(name, untrained=True, weights_seed=choice.weights_seed)


def build_sam(choice: ModelChoice, *, progress: bool = False) -> Any:
    """The SAM of a choice as a mask predictor; errors are those of :func:`build_surgery`."""
    from text2sam.zoo.presets import ModelOptions, get_preset, load_predictor

    options = ModelOptions(device=choice.device, dtype=choice.dtype, sam_checkpoint=choice.sam_checkpoint, progress=progress)
    return load_predictor(get_preset(choice.preset), options)


def untrained_clip(name: str, seed: int = 0) -> Any:
    """An open_clip ``CLIP`` with random weights on the CPU, always the same ones for a seed.

    Raises:
        InputError: open_clip has no such architecture, or it is made of other packages' towers.
    """
    import open_clip
    import torch
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


def _info(choice: ModelChoice, preset: Any) -> ModelInfo:
    from text2sam.zoo.download import file_sha256, resolve
    from text2sam.zoo.presets import ModelOptions, clip_architecture
    from text2sam.zoo.sticker.models import SHIPPED
    from text2sam.zoo.table import CHECKPOINTS

    spec = choice.clip_checkpoint or preset.clip_checkpoint
    if spec is None:
        return ModelInfo("sticker", "sticker", SHIPPED.sha256("clip.safetensors"))
    known = CHECKPOINTS.get(spec)
    place = Path(spec).expanduser()
    if known is None and place.is_dir():  # of transformers
        weights = place / "model.safetensors"
        return ModelInfo(pretrained=place.name, sha256=file_sha256(weights) if weights.is_file() else None)
    name = clip_architecture(preset, ModelOptions(clip_checkpoint=choice.clip_checkpoint, clip_model=choice.clip_model))
    sha256 = known.sha256 if known else file_sha256(resolve(spec, "clip", progress=False))
    # weights are who they are under any file name
    listed = known or next((checkpoint for checkpoint in CHECKPOINTS.values() if checkpoint.sha256 == sha256), None)
    tag = None if listed is None else listed.pretrained
    return ModelInfo(name, tag or Path(spec).name, sha256)
