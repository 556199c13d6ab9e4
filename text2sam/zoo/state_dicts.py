"""State dicts: the tensors of a checkpoint file, whatever layout it was saved in."""

from __future__ import annotations

import os
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2sam.errors import WeightsError

if TYPE_CHECKING:
    import torch

_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
_ACCEPTED = "accepted are state dicts saved by torch.save, safetensors files and OpenAI's TorchScript archives of CLIP"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "model.", "sam.", "clip.")
_LISTED = 4


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint; arguments and errors are those of :func:`load_checkpoint`."""
    return load_checkpoint(path)[0]


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], bool]:
    """Reads a checkpoint of any supported form without running Python code from it.

    The form is recognised by the content, not by the file name: safetensors, a TorchScript archive (as OpenAI publishes
    CLIP; it may hold float16), or the output of ``torch.save``, read with ``weights_only=True``.

    Layouts of training scripts are undone: ``{"state_dict": ...}``, ``{"model_state_dict": ...}`` and ``{"model": ...}`` are
    unwrapped; the prefixes ``module.``, ``model.``, ``sam.`` and ``clip.`` are removed where all keys have them, and the
    ``_orig_mod.`` of ``torch.compile`` everywhere. The three integers that OpenAI stores among the weights
    (``input_resolution``, ``context_length``, ``vocab_size``) are left out.

    Args:
        path: a local file. It is not hashed here; :func:`~text2sam.zoo.download.pull` does that.

    Returns:
        The tensors by key, shapes and dtypes as stored, without gradient; and whether the file has OpenAI's own form of CLIP,
        whose weights were trained with QuickGELU.

    Raises:
        WeightsError: the file is missing, truncated or no checkpoint, or holds pickled objects other than tensors or numbers
            that are not finite.
    """
    file = Path(path).expanduser()
    name = f"checkpoint {str(file)!r}"
    if not os.path.isfile(file):
        raise WeightsError(f"{name} is {'a folder' if file.is_dir() else 'missing'}; {_ACCEPTED}")
    import pickle

    import torch
    from safetensors.torch import load_file

    try:
        with file.open("rb") as stream:
            head = stream.read(9)
        size = file.stat().st_size
        if not size:
            raise WeightsError(f"{name} is empty; {_ACCEPTED}")
        if _looks_like_safetensors(head, size) or file.suffix == ".safetensors":
            content: Any = load_file(file)
        elif not zipfile.is_zipfile(file) and head.startswith(b"PK\x03\x04"):
            raise WeightsError(f"{name} is cut short ({size:,} bytes): its directory is missing; copy it again")
        elif _is_torchscript(file):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r".*torch\.jit\.load.* is deprecated")
                content = torch.jit.load(str(file), map_location="cpu").state_dict()  # type: ignore[no-untyped-call, unused-ignore]
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, OSError) and error.strerror:
            raise WeightsError(f"{name} cannot be read: {error.strerror}") from error
        named = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))  # torch 2.1 has the second form
        if isinstance(error, pickle.UnpicklingError) and named is not None:
            raise WeightsError(
                f"{name} holds a pickled {named[1]}, and unpickling such objects can run code, so it was not loaded; save its "
                f"weights alone, torch.save(model.state_dict(), path); {_ACCEPTED}"
            ) from None
        reason, kind = next(iter(str(error).strip().splitlines()), ""), type(error).__name__
        # torch's own text advises to load such a file unsafely; text2sam does not.
        detail = f"{kind}: {reason}" if reason and "weights_only" not in str(error) else kind
        raise WeightsError(
            f"{name} cannot be read ({detail}): it is cut short, damaged or no checkpoint; {_ACCEPTED}"
        ) from error
    return _only_tensors(content, name)


def misfit(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """How a state dict differs from the one a model expects, for an error message; empty when it fits.

    Counts of training steps (``num_batches_tracked``) may be missing: inference does not use them and old files lack them.
    """
    differences = {
        "missing": [key for key in expected if key not in given and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in given if key not in expected],
        "of another shape": [
            f"{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
            for key, value in expected.items()
            if key in given and given[key].shape != value.shape
        ],
    }
    return ", ".join(f"{len(keys)} {kind} ({_shorten(keys)})" for kind, keys in differences.items() if keys)


def _shorten(keys: list[str]) -> str:
    return ", ".join(keys[:_LISTED]) + (", ..." if len(keys) > _LISTED else "")


_TRANSFORMERS = "with the key names of Hugging Face transformers"
# Patterns that each match a key, and what weights with such keys are.
_LAYOUTS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"\.lora_",), "LoRA adapters; merge them into the model before saving (PEFT: merge_and_unload)"),
    (
        (r"^vision_model\.", r"^text_model\."),
        f"a CLIP {_TRANSFORMERS}; put its config.json beside the file, which says heads and activation, and leave clip_model "
        "out. Or take a name from text2sam models list (openai/clip-vit-base-patch16 is clip-vit-b-16-openai)",
    ),
    (
        (r"^(shared_image_embedding|vision_encoder)\.", r"^mask_decoder\."),
        f"a SAM {_TRANSFORMERS}; give the folder it is in, with its config.json and its processor's file, take the "
        "publisher's own file, or a name from text2sam models list",
    ),
    (
        (r"^image_encoder\.trunk\.",),
        "a SAM 2 of a size that the package sam2 has no configuration of; build it and give its SAM2ImagePredictor to "
        "TextPromptedSAM",
    ),
    ((r"^image_encoder\.", r"^mask_decoder\."), "a SAM"),
    ((r"^visual\.", r"^(text\.)?token_embedding\."), "a CLIP"),
)


def is_transformers_clip(tensors: Mapping[str, Any]) -> bool:
    """Whether a state dict has the key names of a CLIP or SigLIP of Hugging Face transformers."""
    return all(any(key.startswith(prefix) for key in tensors) for prefix in ("vision_model.", "text_model."))


def layout_of(tensors: Mapping[str, Any]) -> str:
    """The kind of model a state dict belongs to, for an error message, with advice where it cannot be loaded; may be empty."""
    for patterns, description in _LAYOUTS:
        if all(any(re.search(pattern, key) for key in tensors) for pattern in patterns):
            return description
    return ""


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    """A little-endian header length that fits into the file, then JSON."""
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8


def _is_torchscript(file: Path) -> bool:
    """A zip with ``constants.pkl`` and ``code/`` beside its data, which torch.save does not write."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        inside = [name.split("/")[1:] for name in archive.namelist()]
    return ["constants.pkl"] in inside or any(parts[:1] == ["code"] for parts in inside)


def _only_tensors(content: Any, name: str) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors with their layout undone, and whether OpenAI's three integers stood among them."""
    import torch

    single, double = torch.float32, torch.float64
    sums = {torch.float16: single, torch.bfloat16: single, single: single, double: double}
    for _ in _WRAPPERS:  # {"state_dict": {"model": ...}} at most; a pickle may nest without end
        inner = [content[key] for key in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
        content = inner[0] if inner else content
    if not isinstance(content, Mapping):
        raise WeightsError(f"{name} holds a {type(content).__name__}, not tensors by name; {_ACCEPTED}")
    tensors = {key: value for key, value in content.items() if key not in _OPENAI_EXTRAS}
    others = [key for key, value in tensors.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if others or not tensors:
        what = f"entries that are no tensors ({', '.join(map(repr, others[:5]))})" if others else "no tensors"
        raise WeightsError(f"{name} holds {what}; {_ACCEPTED}")
    named = {key.replace("_orig_mod.", ""): value.detach() for key, value in tensors.items()}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in named)), ""):
        named = {key.removeprefix(prefix): value for key, value in named.items()}
    for key, value in named.items():
        if value.dtype not in sums or key.endswith("mask"):  # masks of attention hold infinities
            continue
        # a sum costs no memory, but is beyond float32 where the numbers are huge
        if not value.sum(dtype=sums[value.dtype]).isfinite() and not value.isfinite().all():
            raise WeightsError(f"{name} holds numbers that are not finite, in {key}: it is damaged; copy it again")
    return named, len(tensors) < len(content)
