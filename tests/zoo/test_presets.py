from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import open_clip
import pytest
import torch
from helpers import TEMPLATES, TEXT, VIT, picture, tiny_clip, tokenizer, weights_hash
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import text2sam.sam.build as build_module
from text2sam.cli import commands, common
from text2sam.clip.generator import ClipSurgery
from text2sam.errors import DownloadError, InputError, OfflineError, Text2SamWarning, UnsupportedModelError, WeightsError
from text2sam.lab.sticker.world import THINGS
from text2sam.pipeline import TextPromptedSAM
from text2sam.zoo import presets
from text2sam.zoo.presets import PRESETS, ModelOptions, build, get_preset, load_clip, load_predictor
from text2sam.zoo.sticker import models
from text2sam.zoo.table import CHECKPOINTS

ARCHITECTURES = {"tiny-vit": {}, "tiny-resnet": {"family": "resnet"}, "tiny-avg": {"vision": {"pool_type": "none"}}}


# names


def terms(surgery: ClipSurgery) -> tuple[float, float, float]:
    return surgery.presence_offset, surgery.presence_peak, surgery.presence_rivals


@pytest.mark.parametrize("name", ["", "Sticker", "large", None])
def test_unknown_presets(name: Any) -> None:
    for call in (get_preset, build, TextPromptedSAM.from_pretrained):
        with pytest.raises(InputError, match="photo, mobile, base, huge, siglip2, sticker"):
            call(name)


def test_from_pretrained_takes_every_option() -> None:
    taken = inspect.signature(TextPromptedSAM.from_pretrained).parameters.values()
    expected = [(f.name, f.default) for f in dataclasses.fields(ModelOptions)]
    assert [(p.name, p.default) for p in taken if p.kind is p.KEYWORD_ONLY] == expected


@pytest.mark.parametrize("options", [{"device": "abacus"}, {"dtype": "float16", "device": "cpu"}])
def test_devices_are_checked_before_anything_is_loaded(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "load_clip", None)
    with pytest.raises(InputError):
        build("mobile", **options)


def test_table() -> None:
    assert list(PRESETS) == ["photo", "mobile", "base", "huge", "siglip2", "sticker"]
    names = open_clip.list_models()
    assert len(set(PRESETS.values())) == len(PRESETS)  # they can be hashed
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.image_size > 0
        assert bool(preset.own) == (name == "sticker")
        if name not in ("photo", "sticker"):
            assert preset.clip_model in names
            clip, sam = CHECKPOINTS[preset.clip_checkpoint or ""], CHECKPOINTS[preset.sam_checkpoint or ""]
            assert (clip.kind, sam.kind) == ("clip", "sam")
            # with plain GELU OpenAI's weights load and give wrong features
            quick = clip.pretrained == "openai"
            assert preset.clip_model == (f"{clip.model}-quickgelu" if quick else clip.model)
            assert open_clip.get_model_config(preset.clip_model).get("quick_gelu", False) == quick
            options = ModelOptions(clip_checkpoint=preset.clip_checkpoint)
            assert presets.clip_architecture(preset, options) == preset.clip_model


def siglip2_folder(folder: Path) -> Path:
    """A SigLIP 2 of transformers with random weights and a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *["a", "photo", "of", "the", "cat", "dog"]])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=12, **special).save_pretrained(folder)
    tower = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.SiglipConfig(
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        text_config=tower | {"vocab_size": 20, "max_position_embeddings": 12, "pad_token_id": 0, "eos_token_id": 1},
    )
    torch.manual_seed(0)
    transformers.SiglipModel(config).save_pretrained(folder)
    return folder


def test_siglip2_takes_files_that_users_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "Client", None)  # nothing is downloaded
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    command = ["segment", str(tmp_path / "photo.png"), "cat", "--preset", "siglip2", "--out", str(tmp_path / "out"), "--json"]
    refused = CliRunner().invoke(commands.app, command)
    assert refused.exit_code == common.EXIT_WEIGHTS
    for part in (
        "siglip2-base-patch16-512 is not downloaded",
        "https://huggingface.co/google/siglip2",
        "--clip-checkpoint",
        "--preset photo",
    ):
        assert part in refused.stderr
    with pytest.raises(DownloadError, match="no SHA-256 of it is published"):
        TextPromptedSAM.from_pretrained("siglip2", device="cpu")
    sam = tmp_path / "sam.safetensors"
    shutil.copy(models.SHIPPED.file("sam.safetensors"), sam)
    monkeypatch.setattr(build_module, "_VIT_SHAPES", {(128, 6): "sticker"})  # the tests have no SAM 2.1 of 156 MB
    monkeypatch.setattr(build_module, "MODEL_TYPES", ("sticker",))
    monkeypatch.setattr(build_module, "_bare_sam", lambda kind: models.build_sam())
    files = ["--clip-checkpoint", str(siglip2_folder(tmp_path / "siglip2")), "--sam-checkpoint", str(sam)]
    done = CliRunner().invoke(
        commands.app, [*command, *files, "--image-size", "32", "--depth", "2", "--threshold", "0", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.stderr
    [result] = json.loads(done.stdout)["results"]
    assert result["map"]["grid"] == [4, 4]
    assert 0 <= result["presence"] <= 1


# CLIP checkpoints from files


def let_open_clip_know(monkeypatch: pytest.MonkeyPatch, architectures: dict[str, dict[str, Any]]) -> None:
    """Makes open_clip build tiny models by these names, with other weights than the files have."""
    monkeypatch.setattr(open_clip, "list_models", lambda: list(architectures))
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: tiny_clip(seed=9, **architectures[name]).train())
    real = tokenizer()
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: real)


@pytest.fixture
def tiny_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    let_open_clip_know(monkeypatch, ARCHITECTURES)


def test_random_weights_that_are_replaced_are_not_warned_of(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with presets._without_random_warning():
        logging.warning("No pretrained weights loaded for model 'x'. Model initialized randomly.")
    assert logging.getLogger().handlers == []
    assert logging.getLogger().filters == []
    assert capsys.readouterr() == ("", "")


def nested(state: dict[str, torch.Tensor]) -> nn.Module:
    """A module with the state dict ``state`` that does nothing."""
    root = nn.Module()
    for key, value in state.items():
        *path, name = key.split(".")
        home = root
        for part in path:
            if part not in dict(home.named_children()):
                home.add_module(part, nn.Module())
            home = home.get_submodule(part)
        home.register_buffer(name, value)
    return root


def load(path: Path, architecture: str | None = None) -> tuple[Any, Any]:
    return load_clip(get_preset("mobile"), ModelOptions(clip_checkpoint=path, clip_model=architecture))


def write(kind: str, model: nn.Module, folder: Path) -> Path:
    state, path = model.state_dict(), folder / f"clip.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "jit":  # as OpenAI's archives: half precision, and three numbers beside the weights
        extras = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; reading its files is what is tested
            half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
            torch.jit.script(nested(half | extras)).save(str(path))  # type: ignore[no-untyped-call]
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if kind == "wrapped" else state, path)
    return path


@pytest.mark.usefixtures("tiny_architectures")
@pytest.mark.parametrize("kind", ["pt", "wrapped", "safetensors", "jit"])
def test_local_clip_files(kind: str, tmp_path: Path) -> None:
    trained = tiny_clip(seed=1)
    model, words = load(write(kind, trained, tmp_path), "tiny-vit")
    if kind == "jit":
        trained.half().float()
    assert weights_hash(model) == weights_hash(trained)
    assert not model.training
    assert words is tokenizer()


@pytest.mark.usefixtures("tiny_architectures")
def test_batch_norm_counters_are_not_missed(tmp_path: Path) -> None:
    trained = tiny_clip("resnet", seed=1)
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(trained.state_dict())
    torch.save(state, tmp_path / "rn.pt")
    model, _ = load(tmp_path / "rn.pt", "tiny-resnet")
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), trained.encode_image(pixels))


@pytest.mark.usefixtures("tiny_architectures")
def test_misfits_name_the_architecture(tmp_path: Path) -> None:
    path = write("pt", tiny_clip(seed=1), tmp_path)
    with pytest.raises(
        WeightsError, match=r"clip\.pt.*'tiny-resnet'.*missing \(visual.*unexpected.*1 of another shape.*clip_model="
    ):
        load(path, "tiny-resnet")
    wider = write("safetensors", tiny_clip(embed_dim=8), tmp_path)
    with pytest.raises(WeightsError, match=r"'tiny-vit': 2 of another shape \(.*proj"):
        load(wider, "tiny-vit")
    with pytest.raises(WeightsError, match=r"'sticker'.*Name its architecture"):
        load_clip(get_preset("sticker"), ModelOptions(clip_checkpoint=path))


@pytest.mark.usefixtures("tiny_architectures")
def test_unknown_architectures(tmp_path: Path) -> None:
    path = write("pt", tiny_clip(), tmp_path)
    with pytest.raises(InputError, match=r"clip_model must be one of open_clip\.list_models"):
        load(path, "ViT-Z-1")
    with pytest.raises(UnsupportedModelError, match="pool_type 'none'"):
        build("sticker", clip_checkpoint=path, clip_model="tiny-avg", device="cpu", depth=1)


@pytest.mark.parametrize(
    ("kind", "architecture", "message"),
    [
        ("safetensors", None, "nothing in the file tells.*clip_model='ViT-B-16'; clip_model='ViT-B-16-quickgelu' confirms"),
        ("wrapped", "ViT-B-16-quickgelu", None),
        ("safetensors", "ViT-B-16", None),
        ("jit", None, None),
        ("jit", "ViT-B-16", "OpenAI's weights.*Give clip_model='ViT-B-16-quickgelu'"),
    ],
)
def test_activations_that_may_be_wrong_are_warned_of(
    kind: str, architecture: str | None, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_open_clip_know(monkeypatch, {"ViT-B-16": {}, "ViT-B-16-quickgelu": {"quick_gelu": True}})  # the preset names the latter
    path = write(kind, tiny_clip(seed=1), tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(path, architecture)
    messages = [str(w.message) for w in caught if issubclass(w.category, Text2SamWarning)]
    assert len(messages) == (message is not None)
    if message is not None:
        assert re.search(message, messages[0])
        assert str(path) in messages[0]


def test_models_in_a_folder(tmp_path: Path) -> None:
    trained = tiny_clip(seed=3)
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}, "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    path = tmp_path / "open_clip_model.safetensors"
    save_file(trained.state_dict(), path)
    model, _ = load(path, f"local-dir:{tmp_path}")
    assert weights_hash(model) == weights_hash(trained)
    assert tuple(model.visual.image_mean) == (0.5, 0.5, 0.5)
    own, _ = load_clip(get_preset("mobile"), ModelOptions(clip_model=f"local-dir:{tmp_path}", device="cpu"))
    assert weights_hash(own) == weights_hash(trained)  # without a checkpoint the folder's own weights are taken
    with pytest.raises(InputError, match="local-dir"):
        load(path, f"local-dir:{tmp_path}/no")


@pytest.mark.parametrize("name", ["hf-hub:timm/no", "ViT-B-16-SigLIP2"])
def test_names_that_need_the_hub_say_so_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(open_clip, "create_model", away)
    monkeypatch.setattr(open_clip, "get_tokenizer", away)
    path = write("pt", tiny_clip(), tmp_path)
    with pytest.raises(DownloadError, match=rf"clip_model '{name}' needs .*Hugging Face hub.*local-dir:FOLDER.*no network"):
        load(path, name)


@pytest.mark.parametrize("name", ["hf-hub:timm/no", "ViT-B-16-SigLIP2"])
def test_offline_asks_no_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    pytest.importorskip("transformers")
    asked: list[str] = []

    def ask(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise OSError("asked")

    monkeypatch.setenv("TEXT2SAM_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", ask)
    with pytest.raises(OfflineError, match=rf"clip_model '{name}' needs .*TEXT2SAM_OFFLINE forbids that.*local-dir:FOLDER"):
        load(write("pt", tiny_clip(), tmp_path), name)
    assert not asked
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("files", "clip_model", "told"),
    [
        ((), None, "has no config.json; give a folder of transformers"),
        (("open_clip_config.json",), None, "give clip_model='local-dir:"),
        (("config.json",), "ViT-B-32", "leave clip_model out"),
        (("config.json", "model.safetensors"), None, "another model of transformers"),
    ],
)
def test_folders_that_are_no_clips(files: tuple[str, ...], clip_model: Any, told: str, tmp_path: Path) -> None:
    for name in files:
        if name.endswith(".json"):
            (tmp_path / name).write_text('{"model_type": "sam"}')
        else:
            save_file({"mask_decoder.weight": torch.ones(1)}, tmp_path / name)
    with pytest.raises(WeightsError, match=told):
        load(tmp_path, clip_model)


def test_the_preset_that_was_asked_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the preset 'photo' has no CLIP whose architecture"):
        build("photo", clip_checkpoint=write("pt", tiny_clip(), tmp_path), device="cpu")


def test_foreign_layouts_say_whose_they_are(tmp_path: Path) -> None:
    keys = ("text_model.embeddings.token_embedding.weight", "vision_model.embeddings.class_embedding", "logit_scale")
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(1) for key in keys}, path)
    with pytest.raises(WeightsError, match=r"Hugging Face.*clip-vit-b-16-openai"):
        load(path)
    with pytest.raises(WeightsError, match=r"no SAM.*holds a CLIP.*Hugging Face"):
        load_predictor(get_preset("base"), ModelOptions(device="cpu", sam_checkpoint=path))


def test_missing_files() -> None:
    for option in ("clip_checkpoint", "sam_checkpoint"):
        with pytest.raises((WeightsError, InputError), match=r"not/there\.pt"):
            build("sticker", **{option: "not/there.pt"}, device="cpu")  # type: ignore[arg-type]


@pytest.mark.usefixtures("tiny_architectures")
def test_options_reach_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("pt", tiny_clip(seed=1), tmp_path)
    monkeypatch.setattr(presets, "load_predictor", lambda preset, options: (preset, options))
    options: dict[str, Any] = {"clip_checkpoint": path, "clip_model": "tiny-vit", "device": "cpu"}
    predictor, surgery = build(
        "mobile", **options, depth=2, image_size=(24, 16), templates=TEMPLATES, sam_checkpoint="sam.pt", progress=False
    )
    assert predictor[0] == PRESETS["mobile"]
    assert (predictor[1].sam_checkpoint, predictor[1].device, predictor[1].progress) == ("sam.pt", torch.device("cpu"), False)
    assert (surgery.depth, surgery.image_size, surgery.prompts.templates) == (2, (24, 16), TEMPLATES)
    assert terms(surgery) == (0.0, 0.0, 1.0)  # a plain softmax
    assert surgery.vocabulary == ()
    surgery.encode_texts(["cat"])
    home = Path(os.environ["TEXT2SAM_HOME"])
    assert len(list(home.rglob("*.text"))) == 1
    _, surgery = build("mobile", **options, depth=1, text_cache=False)
    assert surgery.image_size == (512, 512)
    assert len(surgery.prompts.templates) == 85
    surgery.encode_texts(["dog"])
    assert len(list(home.rglob("*.text"))) == 1


@pytest.mark.usefixtures("tiny_architectures")
def test_vocabulary_goes_with_the_clip_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "load_predictor", lambda *_, **__: None)
    path = write("pt", tiny_clip(seed=1), tmp_path)
    _, surgery = build("sticker", clip_checkpoint=path, clip_model="tiny-vit", device="cpu", depth=1, image_size=16)
    assert (surgery.vocabulary, surgery.fine, terms(surgery)) == ((), False, (0.0, 0.0, 1.0))
    _, surgery = build("sticker", device="cpu")
    assert (len(surgery.vocabulary), surgery.fine, terms(surgery)) == (171, True, (-0.4, 0.3, 0.2))


# SAM checkpoints from files


@pytest.mark.parametrize(("width", "blocks", "kind"), [(768, 12, "vit_b"), (1280, 32, "vit_h")])
def test_sam_type_is_read_off_the_file(width: int, blocks: int, kind: str, tmp_path: Path) -> None:
    state = {f"image_encoder.blocks.{i}.norm1.weight": torch.zeros(1) for i in range(blocks)}
    path = tmp_path / "weights.pt"
    torch.save(state | {"image_encoder.patch_embed.proj.weight": torch.zeros(width, 3, 1, 1)}, path)
    with pytest.raises(WeightsError, match=rf"weights\.pt does not fit model_type '{kind}'.*of another shape"):
        load_predictor(get_preset("base"), ModelOptions(device="cpu", sam_checkpoint=path))


def test_files_that_hold_no_sam(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"weights\.pt holds no SAM.*vit_b, vit_l, vit_h"):
        load_predictor(get_preset("sticker"), ModelOptions(device="cpu", sam_checkpoint=path))


# the pair that ships


def test_sticker_pair_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT2SAM_OFFLINE", "1")
    model = TextPromptedSAM.from_pretrained("sticker", device="cpu", templates=TEMPLATES, progress=False)
    assert model.presence_threshold == 0.5
    assert terms(model.generator) == (-0.4, 0.3, 0.2)
    assert model.generator.image_size == (PRESETS["sticker"].image_size,) * 2
    assert model.generator.device == torch.device("cpu")
    assert model.generator.vocabulary == tuple(THINGS)
    result = model.segment(picture(), "cat", strategy="paper")
    assert result.mask.shape == (30, 44)
    assert result.candidates is not None
    assert len(result.candidates) == 3
    parameters = [*model.generator.model.parameters(), *model.predictor.model.parameters()]  # type: ignore[attr-defined]
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in parameters)
    assert not model.generator.model.training


def test_sticker_weights_are_the_records() -> None:
    weights, record = models.SHIPPED.folder, models.SHIPPED.record()
    assert (
        sorted(record["sha256"])
        == sorted(p.name for p in weights.glob("*.safetensors"))
        == ["clip.safetensors", "sam.safetensors"]
    )
    assert sum(p.stat().st_size for p in weights.glob("*.safetensors")) <= 25e6
    model = models.load_clip()
    assert type(model).__module__ == "open_clip.model"
    assert len(model.visual.transformer.resblocks) >= 7
