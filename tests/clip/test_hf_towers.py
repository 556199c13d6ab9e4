"""Models of transformers and of OpenAI's clip: as objects and as files, equal to their own forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers import TEMPLATES, draw_weights, noise, picture, surgery_tokens, tiny_clip, tokenizer
from torch.nn import functional as F

from text2sam.clip.attention import METHODS
from text2sam.clip.generator import ClipSurgery
from text2sam.clip.towers.hf import open_clip_model, openai_model, opened, read_folder
from text2sam.errors import PromptError, UnsupportedModelError, WeightsError
from text2sam.zoo.presets import ModelOptions, build_clip, get_preset, load_clip

transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 61}
CLOSE = 1e-6


def tiny_hf(kind: str = "CLIP", *, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    """A model of transformers of a few thousand weights."""
    sizes = {"image_size": 16, "patch_size": 4} | ({"num_patches": 16} if kind == "Siglip2" else {})
    words = {"vocab_size": 300, "bos_token_id": 298, "eos_token_id": 299, "pad_token_id": 1, "max_position_embeddings": 12}
    more = {"projection_dim": 24} if kind in ("CLIP", "MetaClip2") else {}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=TOWER | sizes | (vision or {}), text_config=TOWER | words | (text or {}), **more
    )
    return draw_weights(getattr(transformers, f"{kind}Model")(config).float(), 0.15)


def own_image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    if type(model).__name__ != "Siglip2Model":
        return model.get_image_features(pixels).pooler_output
    patch = model.config.vision_config.patch_size
    rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
    patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, patch, patch)
    patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([[rows, columns]] * len(pixels))
    seen = torch.ones(patches.shape[:2], dtype=torch.long)
    return model.get_image_features(patches, pixel_attention_mask=seen, spatial_shapes=shapes).pooler_output


def ids(length: int = 12, end: int = 299) -> torch.Tensor:
    """Token ids of three texts of different lengths, padded with 0 behind the end token."""
    rows = torch.randint(3, 290, (3, length), generator=torch.Generator().manual_seed(0))
    for row, last in enumerate((4, 7, length - 1)):
        rows[row, last] = end
        rows[row, last + 1 :] = 0
    return rows


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("CLIP", "quick_gelu"),
        ("CLIP", "gelu"),
        ("MetaClip2", "gelu"),
        ("Siglip", "gelu_pytorch_tanh"),
        ("Siglip2", "gelu"),
        ("Siglip2", "gelu_pytorch_tanh"),
    ],
)
@torch.no_grad()
def test_features_are_transformers_own(kind: str, act: str) -> None:
    theirs = tiny_hf(kind, vision={"hidden_act": act}, text={"hidden_act": act})
    mine, _ = opened(theirs, None)
    pixels = noise(2, 3, 16, 16)
    own = own_image_features(theirs, pixels)
    assert own.abs().max() > 0.1
    torch.testing.assert_close(mine.encode_image(pixels), own, rtol=CLOSE, atol=CLOSE * float(own.abs().max()) * 4)
    tokens = surgery_tokens(mine.visual, pixels, depth=2)
    torch.testing.assert_close(tokens.raw[:, 0], own, rtol=0, atol=1e-5 * float(own.abs().max()))
    texts = theirs.get_text_features(ids()).pooler_output
    torch.testing.assert_close(mine.encode_text(ids()), texts, rtol=CLOSE, atol=CLOSE * float(texts.abs().max()) * 4)
    torch.testing.assert_close(mine.logit_scale.exp().squeeze(), theirs.logit_scale.exp().squeeze())
    assert (getattr(mine, "logit_bias", None) is None) == (kind in ("CLIP", "MetaClip2"))
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu", "gelu_pytorch_tanh": "quick_gelu"}[act]
    config = theirs.config.to_dict()
    for part in ("vision_config", "text_config"):
        config[part]["hidden_act"] = other
    wrong = open_clip_model(theirs.state_dict(), config).encode_image(pixels)
    assert (wrong - own).abs().max() > 1e-3  # a mix-up of activations would be seen


@torch.no_grad()
def test_siglip_2_takes_other_grids_as_its_own_model_does() -> None:
    theirs = tiny_hf("Siglip2")
    mine, _ = opened(theirs, None)
    for grid in ((5, 3), (2, 7)):
        pixels = noise(1, 3, grid[0] * 4, grid[1] * 4)
        own = own_image_features(theirs, pixels)
        found = surgery_tokens(mine.visual, pixels, depth=1).raw[:, 0]
        torch.testing.assert_close(found, own, rtol=0, atol=1e-5 * float(own.abs().max()))


@torch.no_grad()
def test_siglips_at_real_width() -> None:
    """SO400M's MLP of 4,304 is 3.736 times its width, which a ratio must not lose a channel of."""
    shape = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 1}
    theirs = tiny_hf("Siglip", vision=shape, text=shape)
    mine, _ = opened(theirs, None)
    pixels = noise(1, 3, 16, 16)
    own = own_image_features(theirs, pixels)
    torch.testing.assert_close(mine.encode_image(pixels), own, rtol=0, atol=1e-5 * float(own.abs().max()))


@pytest.mark.parametrize("end", [299, 2, 17])
@torch.no_grad()
def test_end_tokens(end: int) -> None:
    """The highest id, the 2 of old files that means it, and any other."""
    theirs = tiny_hf(text={"eos_token_id": end})
    tokens = ids(end=299 if end == 2 else end)
    own = theirs.get_text_features(tokens).pooler_output
    mine, _ = opened(theirs, None)
    torch.testing.assert_close(mine.encode_text(tokens), own, rtol=0, atol=1e-5 * float(own.abs().max()))


def clip_tokenizer(folder: Path) -> Any:
    """transformers' CLIPTokenizer with CLIP's own words, as it pads: with the end token."""
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {names.get(word, word): number for word, number in tokenizer().encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(words))
    merges = "\n".join(" ".join(pair) for pair in tokenizer().bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    return transformers.CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


WORDS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": 77}


@pytest.mark.parametrize("processor", [False, True])
def test_an_object_with_its_tokenizer_makes_maps(processor: bool, tmp_path: Path) -> None:
    theirs = tiny_hf(text=WORDS)
    own = clip_tokenizer(tmp_path)
    if processor:
        pixels = transformers.CLIPImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3)
        own = transformers.CLIPProcessor(image_processor=pixels, tokenizer=own)
    options: dict[str, Any] = {"image_size": 16, "depth": 2, "device": "cpu", "templates": TEMPLATES}
    surgery = ClipSurgery(theirs, own, **options)
    assert surgery.std == ((0.25, 0.25, 0.25) if processor else pytest.approx((0.26862954, 0.26130258, 0.27577711)))
    plain = ClipSurgery(theirs, tokenizer(), **options)
    torch.testing.assert_close(surgery.encode_texts(["cat", "a black dog"]), plain.encode_texts(["cat", "a black dog"]))
    by_hand = theirs.get_text_features(tokenizer()([t.replace("{}", "cat") for t in TEMPLATES])).pooler_output
    expected = F.normalize(F.normalize(by_hand, dim=-1).mean(0), dim=-1)
    torch.testing.assert_close(surgery.encode_texts(["cat"])[0], expected, rtol=0, atol=1e-6)
    for method, maps in surgery.compare(picture(), ["cat"], methods=tuple(METHODS)).items():
        assert maps[0].method == method
        assert maps[0].values.shape == (4, 4)
    with pytest.raises(PromptError, match="more than the text tower can hold"):
        surgery.encode_texts(["word " * 90])


@pytest.mark.parametrize("saved", ["safetensors", "bin", "pieces", "file"])
def test_folders_and_files(saved: str, tmp_path: Path) -> None:
    theirs = tiny_hf(text=WORDS)
    theirs.save_pretrained(tmp_path, **({"max_shard_size": "100kB"} if saved == "pieces" else {}))
    if saved == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (saved == "pieces")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}))
    spec = tmp_path / "model.safetensors" if saved == "file" else tmp_path
    options: dict[str, Any] = {"clip_checkpoint": spec, "device": "cpu", "templates": TEMPLATES, "text_cache": False}
    surgery = build_clip("mobile", **options, image_size=16, depth=2)
    assert (surgery.mean, surgery.image_size) == ((0.1, 0.2, 0.3), (16, 16))
    direct = ClipSurgery(theirs, tokenizer(), 16, 2, device="cpu", templates=TEMPLATES, mean=(0.1, 0.2, 0.3), std=[0.5] * 3)
    assert np.array_equal(surgery.similarity(picture(), ["cat"])[0].values, direct.similarity(picture(), ["cat"])[0].values)


def test_files_that_miss_something(tmp_path: Path) -> None:
    theirs = tiny_hf("Siglip")
    theirs.save_pretrained(tmp_path)
    options = ModelOptions(clip_checkpoint=tmp_path, device="cpu")
    with pytest.raises(WeightsError, match=r"no tokenizer that transformers can read"):
        load_clip(get_preset("mobile"), options)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor"):
        load_clip(get_preset("mobile"), options)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json' cannot be read"):
        load_clip(get_preset("mobile"), options)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        read_folder(tmp_path)
    alone = ModelOptions(clip_checkpoint=tmp_path / "other.safetensors", device="cpu")
    with pytest.raises(WeightsError, match=r"Hugging Face transformers; put its config\.json beside"):
        load_clip(get_preset("mobile"), alone)


def test_models_that_are_refused() -> None:
    theirs = tiny_hf()
    config, tensors = theirs.config.to_dict(), theirs.state_dict()
    with pytest.raises(UnsupportedModelError, match=r"model_type is one of clip, .*not 'blip'"):
        open_clip_model(tensors, config | {"model_type": "blip"})
    with pytest.raises(UnsupportedModelError, match=r"merge_and_unload\(\)"):
        open_clip_model(tensors | {"text_model.lora_A.weight": torch.zeros(1)}, config)
    with pytest.raises(UnsupportedModelError, match=r"hidden_act must be one of.*not 'relu'"):
        open_clip_model(tensors, config | {"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}})
    with pytest.raises(UnsupportedModelError, match="different activations"):
        open_clip_model(tensors, config | {"vision_config": {"hidden_act": "gelu"}})
    for lost in ("visual_projection.weight", "vision_model.encoder.layers.1.mlp.fc2.bias"):
        with pytest.raises(WeightsError, match="not those of a 'clip'"):
            open_clip_model({key: value for key, value in tensors.items() if key != lost}, config)
    with pytest.raises(WeightsError, match="not those of a 'siglip'"):
        open_clip_model(tensors, config | {"model_type": "siglip"})


# OpenAI's clip


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("half", [False, True])
@torch.no_grad()
def test_openais_weights(family: str, half: bool) -> None:
    sizes = {"vit": {"width": 64, "head_width": 64, "patch_size": 4}, "resnet": {}}[family]
    model = tiny_clip(family, quick_gelu=True, vision=sizes, text={"width": 64, "heads": 1})
    tensors = {key: value.half() if half else value for key, value in model.state_dict().items()}
    extra = {name: torch.tensor(16) for name in ("input_resolution", "context_length", "vocab_size")}
    mine = openai_model(tensors | extra)
    model.load_state_dict(tensors)
    pixels = noise(1, 3, 64, 64) if family == "resnet" else noise(1, 3, 16, 16)
    torch.testing.assert_close(mine.encode_image(pixels), model.encode_image(pixels), rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.encode_text(tokenizer()(["cat"])), model.encode_text(tokenizer()(["cat"])))
    assert all(p.dtype == torch.float32 for p in mine.parameters())
    with pytest.raises(UnsupportedModelError, match=r"not those of a CLIP of OpenAI's.*LoRA"):
        openai_model({})


def test_what_is_open_already_is_given_back() -> None:
    model = tiny_clip()
    assert opened(model, tokenizer()) == (model, tokenizer())
    wrapped = open_clip.get_tokenizer("ViT-B-16")
    assert opened(model, wrapped)[1] is wrapped
