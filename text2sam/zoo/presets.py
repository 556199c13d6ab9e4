"""Named pairs of models: what each is made of, and how it is built."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2sam.errors import InputError, WeightsError

if TYPE_CHECKING:
    import torch

    from text2sam.clip.generator import ClipSurgery

Spec = str | os.PathLike[str]


@dataclass(frozen=True)
class PresenceTerms:
    """What the presence score is made of, see :meth:`~text2sam.clip.generator.ClipSurgery.presence`; by default a softmax.

    Attributes:
        offset, peak, rivals: ``presence_offset``, ``presence_peak`` and ``presence_rivals`` there.
    """

    offset: float = 0.0
    peak: float = 0.0
    rivals: float = 1.0


@dataclass(frozen=True)
class Preset:
    """A pair of a CLIP and a SAM.

    Attributes:
        name: what ``from_pretrained`` takes.
        clip_model: open_clip's name of the architecture; ``"sticker"`` for the one that ships.
        clip_checkpoint: name in :data:`text2sam.zoo.table.CHECKPOINTS`; None for the one that ships.
        sam_checkpoint: likewise.
        image_size: side in pixels of what CLIP sees.
        depth: how many of CLIP's last blocks get the second path.
        description: in a few words.
        presence: of the presence score, so that one half is the threshold; measured for the sticker pair, the plain softmax
            for the others. Only goes with the preset's own CLIP.
        scales: shares of ``image_size`` at which CLIP sees an image.
    """

    name: str
    clip_model: str
    clip_checkpoint: str | None
    sam_checkpoint: str | None
    image_size: int
    depth: int
    description: str
    presence: PresenceTerms = PresenceTerms()
    scales: tuple[float, ...] = (1.0,)


STICKER_PRESENCE = PresenceTerms(offset=-0.4, peak=0.3, rivals=0.2)
STICKER_SCALES = (1.0, 0.75, 4 / 3)
# The sticker pair's image size, depth and scales were chosen on scenes of the seeds 1,000 to 1,299, its presence on
# 3,000,000 to 3,000,259, which neither its training nor its evaluations draw.

# OpenAI's weights need the -quickgelu architectures: with plain GELU they load and give wrong features.
PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "sticker",
            "sticker",
            None,
            None,
            192,
            7,
            "ships with the package; knows the things of the sticker world",
            STICKER_PRESENCE,
            STICKER_SCALES,
        ),
        Preset(
            "mobile",
            "ViT-B-16-quickgelu",
            "clip-vit-b-16-openai",
            "mobile-sam",
            512,
            6,
            "the default: small and fast",
        ),
        Preset("base", "ViT-B-16-quickgelu", "clip-vit-b-16-openai", "sam-vit-b", 512, 6, "SAM's smallest own encoder"),
        Preset("huge", "ViT-L-14-336-quickgelu", "clip-vit-l-14-336-openai", "sam-vit-h", 512, 6, "for a GPU"),
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


def build(
    preset: str = "mobile",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    clip_checkpoint: Spec | None = None,
    clip_model: str | None = None,
    sam_checkpoint: Spec | None = None,
    templates: Sequence[str] | None = None,
    depth: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    scales: Sequence[float] | None = None,
    text_cache: bool = True,
    progress: bool = True,
) -> tuple[Any, ClipSurgery]:
    """Builds the models of a preset.

    Args:
        preset: name in :data:`PRESETS`.
        device: None takes cuda, then mps, then cpu.
        dtype: float32 on the CPU; float16 or bfloat16 on a GPU if wanted.
        clip_checkpoint: a local file or a name from ``text2sam models list`` in place of the preset's own.
        clip_model: open_clip's name of the architecture ``clip_checkpoint`` belongs to; by default the table's for a
            name, the preset's for a file (``sticker`` needs it for any file but its own).
        sam_checkpoint: a local file or a name from the table; the architecture is read off the file.
        templates: prompt templates in place of the papers' 85.
        depth: how many of CLIP's last blocks get the second path, in place of the preset's own number.
        image_size: side in pixels, or (height, width), of what CLIP sees.
        scales: shares of ``image_size`` at which CLIP sees an image, in place of the preset's own; ``(1.0,)`` is the papers'
            way, :class:`~text2sam.clip.generator.ClipSurgery` tells what more do.
        text_cache: keep text features in the cache folder.
        progress: show download bars.

    Returns:
        The predictor and the map generator.

    Raises:
        InputError: the preset, the device or the number format is unknown or not available.
        WeightsError: a checkpoint is missing, cannot be downloaded, or does not fit.
    """
    from text2sam.devices import check_dtype

    chosen = get_preset(preset)
    surgery = build_clip(
        preset,
        device=device,
        dtype=dtype,
        clip_checkpoint=clip_checkpoint,
        clip_model=clip_model,
        templates=templates,
        depth=depth,
        image_size=image_size,
        scales=scales,
        text_cache=text_cache,
        progress=progress,
    )
    number = None if dtype is None else check_dtype(dtype, surgery.device)
    predictor = load_predictor(chosen, sam_checkpoint, surgery.device, number, progress=progress)
    return predictor, surgery


def build_clip(
    preset: str = "mobile",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    clip_checkpoint: Spec | None = None,
    clip_model: str | None = None,
    templates: Sequence[str] | None = None,
    depth: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    scales: Sequence[float] | None = None,
    text_cache: bool = True,
    progress: bool = True,
) -> ClipSurgery:
    """Builds the map generator of a preset alone; arguments and errors are those of :func:`build`."""
    chosen = get_preset(preset)
    from text2sam.clip.generator import ClipSurgery
    from text2sam.devices import check_dtype, pick_device
    from text2sam.zoo.download import cache_folder

    where = pick_device(device)
    number = None if dtype is None else check_dtype(dtype, where)
    model, tokenizer = load_clip(chosen, clip_checkpoint, clip_model, progress=progress)
    terms = chosen.presence if clip_checkpoint is None else PresenceTerms()
    return ClipSurgery(
        model,
        tokenizer,
        image_size=chosen.image_size if image_size is None else image_size,
        depth=chosen.depth if depth is None else depth,
        scales=chosen.scales if scales is None else scales,
        device=where,
        dtype=number,
        templates=templates,
        text_cache=cache_folder() / "text" if text_cache else None,
        vocabulary=_vocabulary(chosen) if clip_checkpoint is None else None,
        presence_offset=terms.offset,
        presence_peak=terms.peak,
        presence_rivals=terms.rivals,
    )


def _vocabulary(preset: Preset) -> tuple[str, ...] | None:
    if preset.clip_checkpoint is not None:
        return None
    from text2sam.lab.sticker.world import THINGS

    return tuple(THINGS)


def load_clip(
    preset: Preset, checkpoint: Spec | None = None, architecture: str | None = None, *, progress: bool = True
) -> tuple[Any, Any]:
    """The CLIP of a preset with its weights, on the CPU, and its tokenizer."""
    import open_clip

    if checkpoint is None and preset.clip_checkpoint is None:
        from text2sam.zoo.sticker.models import load_clip as load_sticker_clip

        return load_sticker_clip(), open_clip.get_tokenizer("ViT-B-32")
    from text2sam.zoo.download import resolve
    from text2sam.zoo.state_dicts import load_state_dict
    from text2sam.zoo.table import CHECKPOINTS

    spec = preset.clip_checkpoint if checkpoint is None else checkpoint
    if spec is None:
        raise InputError(f"preset {preset.name!r} has no CLIP checkpoint of its own")
    known = CHECKPOINTS.get(str(spec))
    if architecture is None:
        architecture = _open_clip_name(known.model) if known else preset.clip_model
    if architecture == "sticker":
        from text2sam.zoo.sticker.models import build_clip

        model = build_clip()
    else:
        if architecture not in open_clip.list_models():
            raise InputError(f"clip_model must be one of open_clip.list_models(), not {architecture!r}")
        with _without_random_warning():
            model = open_clip.create_model(architecture, pretrained=None)
    path = resolve(spec, "clip", progress=progress)
    state = load_state_dict(path)
    _fit(model, state, path, architecture)
    model.load_state_dict(state, strict=False)
    return model.eval(), open_clip.get_tokenizer("ViT-B-32" if architecture == "sticker" else architecture)


def load_predictor(
    preset: Preset, checkpoint: Spec | None, device: torch.device, dtype: torch.dtype | None, *, progress: bool = True
) -> Any:
    """The SAM of a preset as a ``SamPredictor``; which architecture a file holds is read off its weights."""
    if checkpoint is None and preset.sam_checkpoint is None:
        from segment_anything import SamPredictor

        from text2sam.zoo.sticker.models import load_sam

        return SamPredictor(load_sam().to(device))
    from text2sam.sam.build import build_predictor
    from text2sam.zoo.download import resolve
    from text2sam.zoo.table import CHECKPOINTS

    spec = preset.sam_checkpoint if checkpoint is None else checkpoint
    if spec is None:
        raise InputError(f"preset {preset.name!r} has no SAM checkpoint of its own")
    path = resolve(spec, "sam", progress=progress)
    known = CHECKPOINTS.get(str(spec))
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


def _open_clip_name(model: str) -> str:
    return model if model.endswith("-quickgelu") else f"{model}-quickgelu"


def _fit(model: Any, state: dict[str, Any], path: Path, architecture: str) -> None:
    expected = model.state_dict()
    # a count of training steps, which inference does not read and old files lack
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k, v in expected.items() if k in state and state[k].shape != v.shape]
    extra = [k for k in state if k not in expected]
    if missing or wrong or extra:
        found = "; ".join(
            f"{len(keys)} {what}, such as {keys[0]}"
            for what, keys in (("weights missing", missing), ("of another shape", wrong), ("unknown", extra))
            if keys
        )
        raise WeightsError(
            f"{path} does not fit the CLIP architecture {architecture!r}: {found}. Name the architecture it belongs to with "
            "clip_model= (--clip-model); open_clip.list_models() lists them"
        )
