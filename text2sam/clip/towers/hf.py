"""CLIP and SigLIP of Hugging Face's transformers, and OpenAI's own ``clip``, as open_clip's models.

Their weights are open_clip's (CLIP) and timm's (SigLIP) under other names. Sizes are read off the tensors, and from the
configuration only what tensors do not tell: heads, activation, the norms' epsilon, the end token. Nothing of transformers is
needed for that; its tokenizer is only for vocabularies other than CLIP's own.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from text2sam.clip.towers.text import Tokenizer
from text2sam.errors import UnsupportedModelError, WeightsError, needed

_CLIP, _SIGLIP = ("clip", "metaclip_2"), ("siglip", "siglip2")
_HALF = (0.5, 0.5, 0.5)
_CLIPS_WORDS = 49408  # size of the vocabulary of CLIP's own tokenizer
_RENAMED = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers": "transformer.resblocks",
    "text_model.final_layer_norm": "ln_final",
    "text_model.head": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.": ".attn.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_TIMM = {  # from the names above, in the image tower of SigLIP
    "visual.conv1": "visual.patch_embed.proj",
    "visual.positional_embedding": "visual.pos_embed",
    "visual.ln_post": "visual.norm",
    "visual.transformer.resblocks": "visual.blocks",
    "vision_model.head.probe": "visual.attn_pool.latent",
    "vision_model.head.attention.in_proj_": "visual.attn_pool.kv.",
    "vision_model.head.attention.out_proj": "visual.attn_pool.proj",
    "vision_model.head.layernorm": "visual.attn_pool.norm",
    "vision_model.head": "visual.attn_pool",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
}


class SigLIP(nn.Module):
    """timm's image tower and open_clip's text tower under the names of open_clip's ``CustomTextCLIP``."""

    def __init__(self, visual: nn.Module, text: Any) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C) image features of (B, 3, H, W)."""
        features: torch.Tensor = self.visual(pixels)
        return features

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """(P, C) text features of (P, L)."""
        features: torch.Tensor = self.text(tokens)
        return features


def opened(model: Any, tokenizer: Any) -> tuple[Any, Tokenizer]:
    """A model of transformers or OpenAI's ``clip`` as open_clip's, any other as it is; and its tokenizer.

    A tokenizer or processor of transformers becomes a function of strings, whatever the model.
    """
    config: Any = getattr(model, "config", None)
    if type(model).__module__.startswith("transformers.") or (hasattr(model, "vision_model") and hasattr(config, "to_dict")):
        processor = getattr(tokenizer, "image_processor", None)
        mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
        settings = config.to_dict() if hasattr(config, "to_dict") else {"model_type": type(model).__name__}
        model = open_clip_model(model.state_dict(), settings, mean=mean, std=std)
    elif _is_openais(model):
        model = openai_model(model.state_dict())
    if any(base.__module__.startswith("transformers.") for base in type(tokenizer).__mro__):
        inner = getattr(tokenizer, "tokenizer", tokenizer)
        tokenizer = padded_tokenizer(inner, model)
    return model, tokenizer


def open_clip_model(
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Any:
    """A model of transformers as open_clip's ``CLIP``, or as :class:`SigLIP`.

    Args:
        tensors: its state dict. The new model shares them where nothing has to be put together.
        config: its ``config.json``.
        mean, std: normalisation of pixels, RGB; CLIP's own or SigLIP's by default.

    Returns:
        The model in evaluation mode.

    Raises:
        UnsupportedModelError: it is a model of another kind, or with settings that open_clip does not have.
        WeightsError: the tensors are not those of such a model.
    """
    kind = str(config.get("model_type"))
    if kind not in (*_CLIP, *_SIGLIP):
        raise UnsupportedModelError(
            f"models of transformers work when their model_type is one of {', '.join((*_CLIP, *_SIGLIP))}, not {kind!r}"
        )
    if any("lora_" in key or ".base_layer." in key for key in tensors):
        raise UnsupportedModelError(
            "the model carries LoRA adapters: call its merge_and_unload() first, which adds them to the weights"
        )
    try:
        renamed = _renamed(tensors)
        build = _clip if kind in _CLIP else _siglip
        model, renamed = build(renamed, config)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"the tensors are not those of a {kind!r} of transformers: {type(error).__name__}: {error}"
        ) from None
    from text2sam.zoo.state_dicts import misfit

    difference = misfit(model.state_dict(), renamed)
    if difference:
        raise WeightsError(f"the tensors are not those of a {kind!r} of transformers: {difference}")
    model.load_state_dict(renamed, assign=True)
    default = (None, None) if kind in _CLIP else (_HALF, _HALF)
    model.visual.image_mean, model.visual.image_std = (given or own for given, own in zip((mean, std), default, strict=True))
    return model.eval()


def openai_model(tensors: Mapping[str, torch.Tensor]) -> Any:
    """A model of OpenAI's own package ``clip``, whole or in half precision, as open_clip's ``CLIP`` in float32.

    Raises:
        UnsupportedModelError: the tensors are not those of such a model.
    """
    from open_clip.model import build_model_from_openai_state_dict

    weights = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    try:
        model = build_model_from_openai_state_dict(dict(weights), cast_dtype=torch.float32).float()
    except (KeyError, IndexError, RuntimeError, AssertionError) as error:
        raise UnsupportedModelError(
            f"the weights are not those of a CLIP of OpenAI's package clip: {type(error).__name__}: {str(error)[:200]}; a LoRA "
            "adapter must be merged into the model first"
        ) from None
    # the function above stores weights in half precision first
    model.load_state_dict({key: value for key, value in weights.items() if key in model.state_dict()})
    return model.eval()


def read_folder(folder: Path, weights: Path | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """The state dict, ``config.json`` and ``preprocessor_config.json`` (empty where it is missing) of a folder.

    Args:
        folder: as ``save_pretrained`` writes it.
        weights: the file of the weights; None takes ``model.safetensors`` or ``pytorch_model.bin``, or the pieces they are in.

    Raises:
        WeightsError: there is no ``config.json``, or no weights; or a file cannot be read.
    """
    from text2sam.zoo.state_dicts import load_state_dict

    config, pixels = _json(folder / "config.json"), _json(folder / "preprocessor_config.json")
    if not config:
        raise WeightsError(f"{str(folder)!r} is no folder of a transformers model: it has no config.json")
    if weights is not None:
        return load_state_dict(weights), config, pixels
    index = _json(folder / "model.safetensors.index.json") or _json(folder / "pytorch_model.bin.index.json")
    names = (
        sorted(set(index.get("weight_map", {}).values()))
        or [name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()][:1]
    )
    if not names:
        raise WeightsError(f"{str(folder)!r} has neither model.safetensors nor pytorch_model.bin")
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensors.update(load_state_dict(folder / name))
    return tensors, config, pixels


def folder_tokenizer(folder: Path, model: Any) -> Tokenizer:
    """The tokenizer of a folder's model: CLIP's own where the vocabulary is CLIP's, else the files in the folder.

    Raises:
        MissingDependencyError: the files need transformers, which is not installed.
        WeightsError: the folder has no tokenizer's files.
    """
    import open_clip

    if getattr(getattr(model, "text", model), "vocab_size", 0) == _CLIPS_WORDS:
        tokenizer: Tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=_context_length(model))
        return tokenizer
    transformers = needed("transformers", "transformers", f"the tokenizer in {str(folder)!r}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{str(folder)!r} has no tokenizer that transformers can read (tokenizer.json, or spiece.model): "
            f"{next(iter(str(error).splitlines()), '')}"
        ) from error
    return padded_tokenizer(tokenizer, model)


def padded_tokenizer(tokenizer: Any, model: Any) -> Tokenizer:
    """A tokenizer of transformers as a function of strings, for a model of open_clip.

    Texts are padded with 0, as open_clip does, for a causal tower whose feature is read at the end token: it never sees what
    stands behind that. Others were trained with the tokenizer's own padding.
    """
    length = _context_length(model)
    zeros = getattr(model, "text_pool_type", "") in ("argmax", "eos") and getattr(model, "attn_mask", None) is not None

    def tokens(texts: Sequence[str]) -> torch.Tensor:
        made = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: torch.Tensor = made["input_ids"]
        return ids * made["attention_mask"] if zeros and "attention_mask" in made else ids

    return tokens


def _is_openais(model: Any) -> bool:
    """Whether a model is one of ``clip.load``, compiled or not."""
    if isinstance(model, torch.jit.ScriptModule):
        return hasattr(model, "visual")
    visual = getattr(model, "visual", None)
    return hasattr(visual, "input_resolution") and not type(visual).__module__.startswith("open_clip")


def _renamed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's names, one matrix for queries, keys and values, and projections turned as open_clip multiplies them."""
    renamed: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        if key.endswith("position_ids"):
            continue
        new = _replaced(key, _RENAMED)
        part = re.fullmatch(r"(.*\.attn\.)([qkv])_proj\.(weight|bias)", new)
        if part is None:
            renamed[new] = value
        elif part[2] == "q":
            three = [tensors[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            renamed[f"{part[1]}in_proj_{part[3]}"] = torch.cat(three)
    for key, new in (("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection")):
        if key in tensors:
            renamed[new] = renamed.pop(key).T.contiguous()
    return renamed


def _replaced(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(old, new)
    return key


def _clip(tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    from open_clip.model import CLIP

    vision, text = _part(config, "vision_config"), _part(config, "text_config")
    quick = {part.get("hidden_act", "quick_gelu") == "quick_gelu" for part in (vision, text)}
    if len(quick) > 1:
        raise UnsupportedModelError(
            "the image tower and the text tower have different activations, which open_clip's CLIP has not"
        )
    words, embedding = len(tensors["token_embedding.weight"]), tensors["visual.conv1.weight"]
    end = text.get("eos_token_id", _CLIPS_WORDS - 1)
    # 2 is a mistake in old files, which mean the highest
    highest = config.get("model_type") == "clip" and end in (2, words - 1)
    # mlp_ratio is made an int by open_clip, which a half keeps from being one too low
    vision_cfg = {
        "image_size": _side(len(tensors["visual.positional_embedding"]) - 1) * embedding.shape[-1],
        "patch_size": embedding.shape[-1],
        "width": len(embedding),
        "layers": _layers(tensors, "visual.transformer.resblocks."),
        "head_width": len(embedding) // int(vision.get("num_attention_heads", 12)),
        "mlp_ratio": (len(tensors["visual.transformer.resblocks.0.mlp.c_fc.bias"]) + 0.5) / len(embedding),
        "norm_kwargs": {"eps": float(vision.get("layer_norm_eps", 1e-5))},
        "act_kwargs": _gelu(vision, "quick_gelu"),
    }
    text_cfg = _text(tensors, "", int(text.get("num_attention_heads", 8))) | {
        "pool_type": "argmax" if highest else "eos",
        "eos_id": end,
        "norm_kwargs": {"eps": float(text.get("layer_norm_eps", 1e-5))},
        "act_kwargs": _gelu(text, "quick_gelu"),
    }
    return CLIP(tensors["visual.proj"].shape[1], vision_cfg, text_cfg, quick_gelu=quick.pop()), tensors


def _siglip(tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    from open_clip.transformer import TextTransformer
    from timm.models.vision_transformer import VisionTransformer

    vision, text = _part(config, "vision_config"), _part(config, "text_config")
    tower, image = {}, {}
    for key, value in tensors.items():
        if key.startswith(("visual.", "vision_model.")):
            image[_replaced(key, _TIMM)] = value
        else:
            tower[key if key.startswith("logit_") else f"text.{key}"] = value
    embedding = image["visual.patch_embed.proj.weight"]
    if embedding.ndim == 2:  # SigLIP 2 takes patches of any picture, their channels last
        patch = _side(embedding.shape[1] // 3)
        image["visual.patch_embed.proj.weight"] = embedding.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2).contiguous()
    else:
        patch = embedding.shape[-1]
    for part in ("weight", "bias"):
        q, k, v = image[f"visual.attn_pool.kv.{part}"].chunk(3)
        image[f"visual.attn_pool.q.{part}"], image[f"visual.attn_pool.kv.{part}"] = q, torch.cat([k, v])
    image["visual.pos_embed"] = image["visual.pos_embed"][None]
    width = len(embedding)
    side = _side(image["visual.pos_embed"].shape[1]) * patch
    visual = VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=width,
        depth=_layers(image, "visual.blocks."),
        num_heads=int(vision.get("num_attention_heads", 12)),
        mlp_ratio=(len(image["visual.blocks.0.mlp.fc1.bias"]) + 0.5) / width,
        class_token=False,
        global_pool="map",
        num_classes=0,
        norm_layer=functools.partial(nn.LayerNorm, eps=float(vision.get("layer_norm_eps", 1e-6))),
    )
    for module in visual.modules():
        if hasattr(module, "fc1") and hasattr(module, "act"):
            module.act = _layer(vision)()
    if embedding.ndim == 2:
        visual.pos_interpolation = "bilinear"
    options = _text(tower, "text.", int(text.get("num_attention_heads", 12)))
    weights = tower["text.text_projection.weight"]
    encoder = TextTransformer(
        **options,
        output_dim=len(weights),
        proj_bias=True,
        no_causal_mask=True,
        pool_type="last",
        act_layer=_layer(text),
        norm_layer=functools.partial(nn.LayerNorm, eps=float(text.get("layer_norm_eps", 1e-6))),
    )
    return SigLIP(visual, encoder), image | tower


def _text(tensors: Mapping[str, torch.Tensor], prefix: str, heads: int) -> dict[str, Any]:
    """The sizes of a text tower."""
    words, width = tensors[f"{prefix}token_embedding.weight"].shape
    return {
        "context_length": len(tensors[f"{prefix}positional_embedding"]),
        "vocab_size": words,
        "width": width,
        "heads": heads,
        "layers": _layers(tensors, f"{prefix}transformer.resblocks."),
        "mlp_ratio": (len(tensors[f"{prefix}transformer.resblocks.0.mlp.c_fc.bias"]) + 0.5) / width,
    }


def _gelu(config: Mapping[str, Any], default: str) -> dict[str, Any] | None:
    """The arguments of ``nn.GELU`` that make a tower's activation; None for QuickGELU.

    Raises:
        UnsupportedModelError: open_clip's towers have no such activation.
    """
    known: dict[str, Any] = {"quick_gelu": None, "gelu": {}, "gelu_pytorch_tanh": {"approximate": "tanh"}}
    name = str(config.get("hidden_act", default))
    if name not in known:
        raise UnsupportedModelError(f"hidden_act must be one of {', '.join(known)}, not {name!r}")
    arguments: dict[str, Any] | None = known[name]
    return arguments


def _layer(config: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """A constructor of the activation of one of SigLIP's towers."""
    from open_clip.transformer import QuickGELU

    arguments = _gelu(config, "gelu_pytorch_tanh")
    return QuickGELU if arguments is None else functools.partial(nn.GELU, **arguments)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A tower's part of a configuration; old files have it under two names."""
    return {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}


def _layers(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in tensors if key.startswith(prefix))


def _side(count: int) -> int:
    side = round(math.sqrt(count))
    if side * side != count:
        raise ValueError(f"{count} is no square number of patches")
    return side


def _context_length(model: Any) -> int:
    return int(getattr(getattr(model, "text", model), "context_length", 77))


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty when it is not there.

    Raises:
        WeightsError: it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{str(path)!r} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
