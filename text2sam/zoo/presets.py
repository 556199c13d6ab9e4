"""Presets: named pairs of a CLIP and a SAM, the options they are built with, and how."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2sam.checks import check_known
from text2sam.errors import DownloadError, InputError, OfflineError, WeightsError, warn
from text2sam.zoo.sticker.names import NAMES

if TYPE_CHECKING:
    import torch

    from text2sam.clip.classifier import WordClassifier
    from text2sam.clip.generator import ClipSurgery

Spec = str | os.PathLike[str]

LOCAL, HUB = "local-dir:", "hf-hub:"
"""Prefixes of open_clip's names for a model in a folder and for one on the Hugging Face hub."""

PHOTO, STICKER = "photo", "sticker"
"""Names of the presets whose models ship with the package, and of their architectures."""


@dataclass(frozen=True)
class Preset:
    """A pair of a CLIP and a SAM.

    Attributes:
        name: the name that ``from_pretrained`` takes.
        clip_model: open_clip's name of the architecture; ``"sticker"`` and ``"photo"`` for what ships with the package.
        clip_checkpoint: name in :data:`text2sam.zoo.table.CHECKPOINTS`; None for the weights that ship with the package.
        sam_checkpoint: likewise.
        description: a few words for people.
        image_size: side in pixels of CLIP's input; for ``"photo"`` the longer side.
        depth: number of CLIP's last blocks that get the second path; 0 for a model without blocks.
        scales: shares of ``image_size`` at which CLIP sees an image.
        own: further arguments of ``ClipSurgery``, for the preset's own CLIP only.
    """

    name: str
    clip_model: str
    clip_checkpoint: str | None
    sam_checkpoint: str | None
    description: str
    image_size: int = 512
    depth: int = 6
    scales: tuple[float, ...] = (1.0,)
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)


# OpenAI's weights need the -quickgelu architectures: with plain GELU they load and give wrong features.
PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "photo",
            "photo",
            None,
            None,
            "ships with the package; knows some 7,000 words for things in photos",
            image_size=704,
            depth=0,
            scales=(8 / 11, 1.0, 15 / 11),
        ),
        Preset("mobile", "ViT-B-16-quickgelu", "clip-vit-b-16-openai", "mobile-sam", "the default: small and fast"),
        Preset("base", "ViT-B-16-quickgelu", "clip-vit-b-16-openai", "sam-vit-b", "SAM's smallest own encoder"),
        Preset("huge", "ViT-L-14-336-quickgelu", "clip-vit-l-14-336-openai", "sam-vit-h", "for a GPU"),
        Preset(
            "siglip2",
            "ViT-B-16-SigLIP2-512",
            "siglip2-base-patch16-512",
            "sam2.1-hiera-tiny",
            "of 2025: many languages; its SigLIP 2 is given with --clip-checkpoint",
        ),
        # Image size, depth and scales were chosen on scenes of the seeds 1,000 to 1,299, the presence, for a threshold of 0.5,
        # on 3,000,000 to 3,000,259, which neither its training nor its evaluations draw.
        Preset(
            "sticker",
            "sticker",
            None,
            None,
            "ships with the package; knows the things of the sticker world",
            image_size=192,
            depth=7,
            scales=(1.0, 0.75, 4 / 3),
            own={
                "vocabulary": NAMES,
                "presence_offset": -0.4,
                "presence_peak": 0.3,
                "presence_rivals": 0.2,
                "fine": True,
            },
        ),
    )
}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}")
    return PRESETS[name]


@dataclass(frozen=True)
class ModelOptions:
    """Options with which the models of a preset are built.

    Attributes:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; None takes the first available of cuda, mps, cpu.
        dtype: float32; bfloat16, about twice as fast also on a CPU with AMX; float16 on a GPU.
        clip_checkpoint: a local file, or a name from ``text2sam models list``; or a folder of transformers' CLIP or SigLIP, or
            the file in it, with its ``config.json``. None takes the preset's.
        clip_model: open_clip's name of the architecture of ``clip_checkpoint``; or ``"local-dir:FOLDER"`` for a folder with an
            ``open_clip_config.json``, or ``"hf-hub:OWNER/NAME"``, whose own weights are taken where ``clip_checkpoint`` is
            None. None takes the table's for a name and the preset's for a file; with the presets ``photo`` and
            ``sticker`` any other file needs it. Not for files of transformers, whose ``config.json`` names it.
        sam_checkpoint: a local file or a name; its architecture is read off the weights. Files of SAM 2 and SAM 2.1 need the
            package ``sam2``; a folder is one of transformers' SAMs with its processor.
        templates: prompt templates; None takes the papers' 85.
        depth: number of CLIP's last blocks that get the second path; None takes the preset's.
        image_size: side in pixels, or (height, width), of CLIP's input; None takes the preset's.
        scales: shares of ``image_size`` at which CLIP sees an image; None takes the preset's, ``(1.0,)`` is the papers' way.
        text_cache: keep text features in the cache folder.
        progress: show download bars.
    """

    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    clip_checkpoint: Spec | None = None
    clip_model: str | None = None
    sam_checkpoint: Spec | None = None
    templates: Sequence[str] | None = None
    depth: int | None = None
    image_size: int | tuple[int, int] | None = None
    scales: Sequence[float] | None = None
    text_cache: bool = True
    progress: bool = True

    @classmethod
    def of(cls, options: ModelOptions | None, keywords: dict[str, Any]) -> ModelOptions:
        """``options`` with the fields in ``keywords`` replaced.

        Raises:
            InputError: a keyword is not a field.
        """
        check_known("option", keywords, [field.name for field in dataclasses.fields(cls)])
        return replace(options or cls(), **keywords)


def build(preset: str = "mobile", **options: Any) -> tuple[Any, ClipSurgery | WordClassifier]:
    """Builds the models of a preset.

    Args:
        preset: name in :data:`PRESETS`.
        **options: fields of :class:`ModelOptions`.

    Returns:
        The predictor and the map generator.

    Raises:
        InputError: the preset, the device or the number format is unknown or not available.
        WeightsError: a checkpoint is missing, cannot be downloaded, or does not fit.
    """
    chosen, given = get_preset(preset), ModelOptions.of(None, options)
    words = chosen.clip_model == PHOTO and not _own_clip(given)
    generator = _word_classifier(chosen, given) if words else build_clip(preset, given)
    return load_predictor(chosen, replace(given, device=generator.device)), generator


def build_clip(preset: str = "mobile", options: ModelOptions | None = None, **keywords: Any) -> ClipSurgery:
    """Builds the CLIP of a preset alone, for what only a CLIP can do.

    Args:
        preset: name in :data:`PRESETS`.
        options: how to build it.
        **keywords: fields of :class:`ModelOptions`, which replace those of ``options``.

    Raises:
        InputError, WeightsError: as :func:`build`; or the preset has a word classifier in its place.
    """
    chosen, options = get_preset(preset), ModelOptions.of(options, keywords)
    if chosen.clip_model == PHOTO:
        if not _own_clip(options):
            raise InputError(f"the preset {preset!r} has a word classifier and no CLIP, which this needs; give another preset")
        # sizes that a CLIP is used with
        chosen = replace(PRESETS["mobile"], name=preset, clip_model=PHOTO, clip_checkpoint=None)
    from text2sam.clip.generator import ClipSurgery
    from text2sam.zoo.download import cache_folder

    common = _common(chosen, options)
    model, tokenizer = load_clip(chosen, options)
    return ClipSurgery(
        model,
        tokenizer,
        depth=chosen.depth if options.depth is None else options.depth,
        templates=options.templates,
        text_cache=cache_folder() / "text" if options.text_cache else None,
        **common,
        **({} if _own_clip(options) else chosen.own),
    )


def _common(preset: Preset, options: ModelOptions) -> dict[str, Any]:
    """The arguments that all map generators have; device and number format are checked before anything is loaded."""
    from text2sam.devices import check_dtype, pick_device

    device = pick_device(options.device)
    return {
        "device": device,
        "dtype": None if options.dtype is None else check_dtype(options.dtype, device),
        "image_size": preset.image_size if options.image_size is None else options.image_size,
        "scales": preset.scales if options.scales is None else options.scales,
    }


def _own_clip(options: ModelOptions) -> bool:
    """Whether the options name a CLIP with its weights."""
    return options.clip_checkpoint is not None or str(options.clip_model or "").startswith((LOCAL, HUB))


def _word_classifier(preset: Preset, options: ModelOptions) -> WordClassifier:
    from text2sam.zoo.photo.models import load_clip as load_classifier

    for name in ("clip_model", "templates", "depth"):
        if getattr(options, name) is not None:
            raise InputError(f"the preset {preset.name!r} has no {name}, which is for a CLIP; give its clip_checkpoint= too")
    return load_classifier(**_common(preset, options))


def clip_architecture(preset: Preset, options: ModelOptions) -> str:
    """The name of the CLIP architecture that the options stand for."""
    from text2sam.zoo.table import CHECKPOINTS

    known = CHECKPOINTS.get(str(options.clip_checkpoint))
    if options.clip_model is not None:
        return options.clip_model
    if known is None:
        return preset.clip_model
    return f"{known.model}-quickgelu" if known.pretrained == "openai" else str(known.model)


def load_clip(preset: Preset, options: ModelOptions) -> tuple[Any, Any]:
    """The CLIP of a preset with its weights, on the CPU, and its tokenizer.

    Warns:
        Text2SamWarning: the activation of a checkpoint's architecture is a guess, or not the one it was trained with.
    """
    import open_clip

    architecture = clip_architecture(preset, options)
    spec = preset.clip_checkpoint if options.clip_checkpoint is None else options.clip_checkpoint
    if spec is None and architecture == STICKER:
        from text2sam.zoo.sticker.models import load_clip as load_sticker_clip

        return load_sticker_clip(), open_clip.get_tokenizer("ViT-B-32")
    if options.clip_checkpoint is None and architecture.startswith((LOCAL, HUB)):
        model, tokenizer = _bare_clip(architecture, weights=True)
        return model.eval(), tokenizer
    if spec is None:
        raise InputError(f"preset {preset.name!r} has no CLIP checkpoint for {architecture!r}; give clip_checkpoint=")
    from text2sam.zoo.download import resolve
    from text2sam.zoo.state_dicts import layout_of, load_checkpoint, misfit
    from text2sam.zoo.table import CHECKPOINTS

    if options.clip_model is None and (found := _transformers_clip(spec)) is not None:
        return found
    if isinstance(spec, (str, os.PathLike)) and spec not in CHECKPOINTS and os.path.isdir(place := Path(spec).expanduser()):
        raise WeightsError(_refused(place, options.clip_model))
    path = resolve(spec, "clip", progress=options.progress)
    if architecture == PHOTO:
        raise InputError(
            f"the preset {preset.name!r} has no CLIP whose architecture {path} could be of; name that with clip_model= "
            "(--clip-model)"
        )
    model, tokenizer = _bare_clip(architecture)
    tensors, openai = load_checkpoint(path)
    difference = misfit(model.state_dict(), tensors)
    if difference:
        layout = layout_of(tensors)
        if layout not in ("", "a CLIP"):
            raise WeightsError(f"{path} holds {layout}")
        raise WeightsError(
            f"{path} does not fit the CLIP architecture {architecture!r}: {difference}. Name its architecture with clip_model= "
            "(--clip-model); open_clip.list_models() lists them"
        )
    _check_activation(architecture, path, openai=openai, named=options.clip_model is not None)
    model.load_state_dict(tensors, strict=False)
    return model.eval(), tokenizer


def _transformers_clip(spec: Spec) -> tuple[Any, Any] | None:
    """The CLIP of a folder or a file of transformers' with its ``config.json``, and its tokenizer; None for anything else."""
    place = Path(spec).expanduser()
    folder = place if place.is_dir() else place.parent
    if not (place.is_dir() or place.is_file()) or not (folder / "config.json").is_file():
        return None
    from text2sam.clip.towers.hf import folder_tokenizer, open_clip_model, read_folder
    from text2sam.zoo.state_dicts import is_transformers_clip

    tensors, config, pixels = read_folder(folder, place if place.is_file() else None)
    if not is_transformers_clip(tensors):
        return None
    model = open_clip_model(tensors, config, mean=pixels.get("image_mean"), std=pixels.get("image_std"))
    return model, folder_tokenizer(folder, model)


def _refused(folder: Path, clip_model: str | None) -> str:
    """Why a folder is no CLIP's, and what to do."""
    name = repr(str(folder))
    if (folder / "open_clip_config.json").is_file():
        return f"{name} is a folder of open_clip: give clip_model='{LOCAL}{folder}' (--clip-model), and no clip_checkpoint"
    if not (folder / "config.json").is_file():
        return (
            f"{name} has no config.json; give a folder of transformers' CLIP or SigLIP (config.json, model.safetensors, the "
            "tokenizer's files), a file of weights, or a name from text2sam models list"
        )
    if clip_model is not None:
        return f"{name} is a folder of transformers, whose config.json names the architecture: leave clip_model out"
    return f"{name} holds another model of transformers than a CLIP or SigLIP; its config.json says which"


def _bare_clip(architecture: str, *, weights: bool = False) -> tuple[Any, Any]:
    """A CLIP with random weights, or those of its folder or repository, and its tokenizer."""
    import open_clip

    if architecture == STICKER:
        from text2sam.zoo.sticker.models import build_clip as build_sticker_clip

        return build_sticker_clip(), open_clip.get_tokenizer("ViT-B-32")
    known = architecture in open_clip.list_models()
    if not known and not architecture.startswith((LOCAL, HUB)):
        raise InputError(
            f"clip_model must be one of open_clip.list_models(), {LOCAL}FOLDER or {HUB}OWNER/NAME, not {architecture!r}"
        )
    from text2sam.zoo.download import obeying_offline, offline

    try:
        with _without_random_warning(), obeying_offline():
            tokenizer = open_clip.get_tokenizer(architecture)  # first, as it may be out of reach
            chosen: dict[str, Any] = {"pretrained": None} if known else {"load_weights": weights}
            return open_clip.create_model(architecture, **chosen), tokenizer
    except Exception as error:  # the hub's client has errors of its own, with and without network
        from text2sam.clip.towers.table import from_hub

        needed = "configuration and tokenizer" if architecture.startswith(HUB) else from_hub(architecture) if known else ""
        if needed:
            where = "TEXT2SAM_OFFLINE forbids that:" if offline() else "Where there is no network,"
            raise (OfflineError if offline() else DownloadError)(
                f"clip_model {architecture!r} needs the {needed} from the Hugging Face hub. {where} put the files of its "
                f"repository into a folder and give clip_model='{LOCAL}FOLDER'. The hub's client says: {error}"
            ) from error
        if not isinstance(error, (RuntimeError, ValueError, TypeError, OSError, KeyError)):
            raise
        raise InputError(f"open_clip cannot build clip_model {architecture!r}: {error}") from error


def _check_activation(architecture: str, path: Path, *, openai: bool, named: bool) -> None:
    """Warns of weights whose activation (GELU or its approximation QuickGELU) may not be the architecture's."""
    import open_clip

    plain = architecture.removesuffix("-quickgelu")
    quick = f"{plain}-quickgelu"
    if openai and architecture == plain and quick in open_clip.list_models():
        warn(
            f"{path} holds OpenAI's weights, which were trained with QuickGELU; {plain!r} computes GELU and makes wrong maps. "
            f"Give clip_model={quick!r}"
        )
    elif architecture == quick and not openai and not named:
        warn(
            f"{path} was loaded as {quick!r}, with QuickGELU as in OpenAI's weights, and nothing in the file tells its "
            f"activation. If it was trained with GELU, as most of open_clip's weights, give clip_model={plain!r}; "
            f"clip_model={quick!r} confirms QuickGELU"
        )


def load_predictor(preset: Preset, options: ModelOptions) -> Any:
    """The SAM of a preset as a mask predictor; the architecture of a checkpoint is read off its weights."""
    from text2sam.devices import check_dtype, pick_device
    from text2sam.sam.build import build_predictor

    device = pick_device(options.device)
    dtype = check_dtype(options.dtype, device)
    spec = preset.sam_checkpoint if options.sam_checkpoint is None else options.sam_checkpoint
    if spec is None:
        if preset.clip_model == PHOTO:
            from text2sam.zoo.photo.models import SHIPPED, load_objectness

            predictor = build_predictor("vit_t", SHIPPED.file("sam.safetensors"), device=device, dtype=dtype)
            predictor.objectness = load_objectness()
            return predictor
        from segment_anything import SamPredictor

        from text2sam.zoo.sticker.models import load_sam

        return SamPredictor(load_sam().to(device))
    from text2sam.zoo.download import resolve
    from text2sam.zoo.table import CHECKPOINTS

    known, folder = CHECKPOINTS.get(str(spec)), Path(spec).expanduser()
    path = folder if known is None and folder.is_dir() else resolve(spec, "sam", progress=options.progress)
    return build_predictor(known.model if known else None, path, device=device, dtype=dtype)


@contextlib.contextmanager
def _without_random_warning() -> Iterator[None]:
    """Keeps open_clip from warning, on the root logger, of random weights that are about to be replaced."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded")

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # with no handler at all, logging.warning would set one up for good
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)
        root.removeHandler(handler)
