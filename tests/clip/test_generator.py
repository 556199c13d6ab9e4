from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import count_calls, further, picture, surgery_tokens, tiny_clip, tiny_surgery, tokenizer
from PIL import Image
from torch import nn
from torch.nn.functional import normalize
from torchvision import transforms

from text2sam.clip.attention import METHODS
from text2sam.clip.features import ImageFeatures
from text2sam.clip.generator import ClipSurgery
from text2sam.clip.pixels import OPENAI_MEAN, OPENAI_STD
from text2sam.clip.prompts import SHORT_TEMPLATES, PromptEnsemble
from text2sam.clip.similarity import feature_surgery
from text2sam.errors import ImageError, InputError, PromptError, UnsupportedModelError
from text2sam.types import SimilarityMap

FURTHER = ("maskclip", "sclip", "clearclip", "naclip", "gem", "pearl", "resclip")
TINY: dict[str, Any] = {"image_size": 16, "depth": 2, "device": "cpu", "templates": ["a {}."]}


@pytest.fixture(scope="module")
def surgery() -> ClipSurgery:
    return tiny_surgery(image_size=(12, 20))


@pytest.fixture(scope="module")
def features(surgery: ClipSurgery) -> ImageFeatures:
    return surgery.encode_image(picture())


def values(maps: list[SimilarityMap]) -> np.ndarray:
    return np.stack([m.values for m in maps])


# what is refused


@pytest.mark.parametrize("model", [None, "ViT-B-32", object(), nn.Linear(2, 2)])
def test_no_clip(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=f"built by open_clip, not {type(model).__name__}"):
        ClipSurgery(model, tokenizer())


def test_towers_that_cannot_be_operated_on() -> None:
    with pytest.raises(UnsupportedModelError, match="pool_type 'none'"):
        tiny_surgery(tiny_clip(vision={"pool_type": "none"}))
    with pytest.raises(InputError, match="from 1 to 3"):
        tiny_surgery(depth=6)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "abacus"},
        {"dtype": torch.float16},
        {"dtype": "complex"},
        {"image_size": 0},
        {"image_size": 100_000},
        {"image_size": (16,)},
        {"image_size": (16, 16, 16)},
        {"image_size": (15.5, 16)},
        {"image_size": None},
        {"weighting": "both"},
        {"vocabulary": "cat"},
        {"mean": (0.5, 0.5)},
        {"presence_rivals": 1.1},
        {"std": ("a", "b", "c")},
    ],
)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        tiny_surgery(**options)


def test_images_that_cannot_be_read(surgery: ClipSurgery) -> None:
    for call in (surgery.encode_image, surgery.preprocess, lambda x: surgery.similarity(x, ["cat"])):
        with pytest.raises(ImageError):
            call("not/there.png")
    with pytest.raises(ImageError):
        surgery.encode([picture(), None])
    assert surgery.encode([]) == []
    with pytest.raises(InputError, match="sequence of images"):
        surgery.encode(picture())


@pytest.mark.parametrize("method", ["", "Surgery", "paper", None])
def test_unknown_methods(surgery: ClipSurgery, features: ImageFeatures, method: Any) -> None:
    for call in (surgery.maps, lambda f, t, method: surgery.prepare(t, method=method)):
        with pytest.raises(InputError, match="method must be one of surgery, architecture, features, itsm, rclip, maskclip"):
            call(features, ["cat"], method=method)
    for call in (
        lambda: surgery.similarity(picture(), ["cat"], method=method),
        lambda: surgery.compare(picture(), ["cat"], methods=["itsm", method]),
        lambda: surgery.encode_image(picture(), methods=[method]),
        lambda: surgery.encode([], methods=[method]),
    ):
        with pytest.raises(InputError, match="method must be one of surgery, architecture"):
            call()


@pytest.mark.parametrize("methods", ["sclip", 3, (m for m in ["sclip"])])
def test_methods_that_are_no_sequence(surgery: ClipSurgery, methods: Any) -> None:
    for call in (
        lambda: surgery.compare(picture(), ["cat"], methods=methods),
        lambda: surgery.encode_image(picture(), methods=methods),
        lambda: surgery.encode([picture()], methods=methods),
    ):
        with pytest.raises(InputError, match=r"methods must be a sequence of method names, such as \['sclip'\]"):
            call()


def test_methods_an_image_was_not_encoded_for(surgery: ClipSurgery, features: ImageFeatures) -> None:
    with pytest.raises(InputError, match=r"method='gem'; encode it with encode\(\[image\], methods=\['gem'\]\)"):
        surgery.maps(features, ["cat"], method="gem")


def test_methods_of_a_resnet() -> None:
    surgery = tiny_surgery(tiny_clip("resnet"), image_size=64)
    for method in ("sclip", "clearclip", "naclip", "gem", "pearl", "resclip"):
        told = f"'{method}' is defined on .* ModifiedResNet .* architecture, maskclip and .* ViT-B-16"
        with pytest.raises(UnsupportedModelError, match=told):
            surgery.similarity(picture(), ["cat"], method=method)
    defined = ["surgery", "architecture", "features", "itsm", "rclip", "maskclip"]
    found = surgery.compare(picture(), ["cat"], methods=defined)  # type: ignore[arg-type]
    assert list(found) == defined
    assert len({values(maps).tobytes() for maps in found.values()}) == len(defined)


@pytest.mark.parametrize(
    ("texts", "against", "error", "told"),
    [
        ("cat", None, InputError, "for one text pass"),
        ([""], None, PromptError, "names something"),
        (["cat " * 100], None, PromptError, "can hold"),
        (["cat"], "dog", InputError, "against must be a sequence"),
        (["cat"], [""], PromptError, "names something"),
        (["cat"], [], InputError, "'cat' alone"),
        (["cat"], ["Cat", "CAT"], InputError, "'cat' alone"),
        (["dog", "cat"], ["cat"], InputError, "'cat' alone"),
    ],
)
def test_texts_that_cannot_be_used(
    surgery: ClipSurgery, features: ImageFeatures, texts: Any, against: Any, error: Any, told: str
) -> None:
    for method in ("surgery", "features"):
        for call in (surgery.prepare, functools.partial(surgery.maps, features)):
            with pytest.raises(error, match=told):
                call(texts, against=against, method=method)


def test_no_texts(surgery: ClipSurgery, features: ImageFeatures) -> None:
    assert surgery.maps(features, []) == []
    surgery.prepare([])
    with pytest.raises(PromptError):
        surgery.scores(features, [])
    with pytest.raises(PromptError):
        surgery.presence(features, "")
    with pytest.raises(InputError, match="against must be"):
        surgery.presence(features, "cat", against="dog")


# the image


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (16, (16, 16)),
        (17, (16, 16)),
        (19, (20, 20)),
        (1, (4, 4)),
        ((9, 31), (8, 32)),
        ([40, 16], (40, 16)),
        (np.int64(16), (16, 16)),
    ],
)
def test_image_size_is_whole_patches(asked: Any, given: tuple[int, int]) -> None:
    surgery = tiny_surgery(image_size=asked)
    assert surgery.image_size == given
    assert surgery.preprocess(picture()).shape == (1, 3, *given)
    assert surgery.encode_image(picture()).grid == (given[0] // 4, given[1] // 4)


@pytest.mark.parametrize("size", [(16, 16), (40, 12), (60, 88)])
@pytest.mark.parametrize("own", [False, True])
def test_preprocess_is_clips(size: tuple[int, int], own: bool) -> None:
    model = tiny_clip()
    mean, std = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)) if own else (OPENAI_MEAN, OPENAI_STD)
    if own:
        model.visual.image_mean, model.visual.image_std = list(mean), list(std)
    steps = [
        transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    image = picture()
    expected = transforms.Compose(steps)(Image.fromarray(image))[None]
    found = tiny_surgery(model, image_size=size).preprocess(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    given = tiny_surgery(image_size=size, mean=mean, std=np.array(std)).preprocess(Image.fromarray(image))
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


def test_features_of_an_image(surgery: ClipSurgery, features: ImageFeatures) -> None:
    with torch.no_grad():
        tokens = surgery_tokens(surgery.model.visual, surgery.preprocess(picture()), depth=2)
    assert features.grid == tokens.grid == (3, 5)
    assert features.shape == (30, 44)
    torch.testing.assert_close(features.surgery, normalize(tokens.surgery[0], dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(features.raw, normalize(tokens.raw[0], dim=-1), rtol=0, atol=1e-6)
    assert not features.surgery.requires_grad
    pixels = surgery.encode_pixels(surgery.preprocess(picture()))
    torch.testing.assert_close(pixels, tokens.surgery, rtol=0, atol=1e-6)
    assert not pixels.requires_grad


def test_features_on_disk(surgery: ClipSurgery, features: ImageFeatures) -> None:
    packed = surgery.pack(features)
    again = surgery.unpack(packed, features.shape)
    assert (again.grid, again.shape, again.paths.keys()) == (features.grid, features.shape, features.paths.keys())
    assert all(torch.equal(again.paths[path], features.paths[path]) for path in features.paths)
    raw = packed["raw"]
    for broken in (
        {"grid": packed["grid"]},
        packed | {"raw": raw[1:]},
        packed | {"raw": raw.double()},
        packed | {"grid": -packed["grid"]},
    ):
        with pytest.raises((KeyError, ValueError)):
            surgery.unpack(broken, features.shape)


def test_images_are_encoded_as_one_batch() -> None:
    surgery = tiny_surgery()
    calls = count_calls(surgery.model.visual.conv1)
    images = [picture(0), picture(1, 9, 70), picture(2, 50, 8)]
    together = surgery.encode(images)
    assert calls == [(3, 3, 16, 16)]
    for image, features in zip(images, together, strict=True):
        alone = surgery.encode_image(image)
        assert features.shape == alone.shape == image.shape[:2]
        torch.testing.assert_close(features.surgery, alone.surgery, rtol=0, atol=1e-5)
        torch.testing.assert_close(features.raw, alone.raw, rtol=0, atol=1e-5)


def test_half_precision_models_become_float32_on_the_cpu() -> None:
    surgery = tiny_surgery(tiny_clip().half())
    assert {p.dtype for p in surgery.model.parameters()} == {torch.float32}
    assert np.isfinite(values(surgery.similarity(picture(), ["cat"]))).all()


# the maps


def test_maps_are_feature_surgery_of_the_patches(surgery: ClipSurgery, features: ImageFeatures) -> None:
    labels, tokens = ["cat", "dog", "tree"], features.surgery[None]
    single = values(surgery.maps(features, ["cat", "dog"]))
    expected = feature_surgery(tokens, surgery.encode_texts(["cat", "dog"]), surgery.encode_texts([""]))
    np.testing.assert_allclose(single, expected[0, 1:].T.reshape(2, 3, 5), rtol=0, atol=1e-6)
    inside = values(surgery.maps(features, ["dog"], against=labels))
    expected = feature_surgery(tokens, surgery.encode_texts(labels))
    np.testing.assert_allclose(inside[0], expected[0, 1:, 1].reshape(3, 5), rtol=0, atol=1e-6)
    outside = values(surgery.maps(features, ["bird"], against=labels))
    expected = feature_surgery(tokens, surgery.encode_texts([*labels, "bird"]))
    np.testing.assert_allclose(outside[0], expected[0, 1:, 3].reshape(3, 5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["surgery", "features"])
def test_a_label_set_of_equal_texts_gives_a_flat_map(surgery: ClipSurgery, features: ImageFeatures, method: str) -> None:
    same = surgery.encode_texts(["cat"])
    for count in (2, 5):
        found = surgery.similarities(features, same.expand(count, -1), method)
        assert torch.equal(found[1:], found[1:2].expand_as(found[1:]))
    twin = ClipSurgery(tiny_clip(), lambda texts: tokenizer()([text.replace("kitten", "cat") for text in texts]), **TINY)
    with pytest.raises(PromptError, match="same tokens"):
        twin.maps(features, ["cat"], against=["kitten"], method=method)
    both = surgery.maps(features, ["cat"], against=["Cat", "dog"], method=method)
    assert np.array_equal(values(both), values(surgery.maps(features, ["cat"], against=["dog"], method=method)))


def test_maps_are_cosines_of_the_patches(surgery: ClipSurgery, features: ImageFeatures) -> None:
    encoded = surgery.encode_image(picture(), methods=tuple(METHODS))
    tokens = {"architecture": features.surgery, "itsm": features.raw, "rclip": -features.raw, **further(encoded)}
    assert further(encoded).keys() == set(FURTHER)
    for method, found in tokens.items():
        cosines = found[1:] @ surgery.encode_texts(["dog"])[0]
        maps = surgery.maps(encoded, ["dog"], method=method)  # type: ignore[arg-type]
        np.testing.assert_allclose(values(maps)[0], cosines.reshape(3, 5), rtol=0, atol=1e-6)
    raw, reversed_ = (values(surgery.maps(features, ["dog"], method=m)) for m in ("itsm", "rclip"))  # type: ignore[arg-type]
    assert np.array_equal(reversed_, -raw)


@pytest.mark.parametrize("against", [None, ["dog", "tree"]])
@pytest.mark.parametrize("vocabulary", [False, True])
def test_feature_surgery_of_the_original_tokens(features: ImageFeatures, against: Any, vocabulary: bool) -> None:
    surgery = tiny_surgery(image_size=(12, 20), vocabulary=["sky", "pig"])
    swapped = ImageFeatures({"raw": features.surgery, "architecture": features.raw}, features.grid, features.shape)
    found = surgery.maps(features, ["cat", "dog"], against=against, method="features", vocabulary=vocabulary)
    expected = surgery.maps(swapped, ["cat", "dog"], against=against, method="surgery", vocabulary=vocabulary)
    assert np.array_equal(values(found), values(expected))
    other = surgery.maps(features, ["cat", "dog"], against=against, method="surgery", vocabulary=vocabulary)
    assert np.abs(values(found) - values(other)).max() > 1e-4


def test_tokens_of_further_kinds(surgery: ClipSurgery, features: ImageFeatures) -> None:
    assert further(features) == {}
    pixels = torch.cat([surgery.preprocess(picture(seed)) for seed in (0, 1)])
    with torch.no_grad():
        tokens = surgery_tokens(surgery.model.visual, pixels, depth=2, kinds=["gem", "sclip"])
    together = surgery.encode([picture(0), picture(1)], methods=["gem", "itsm", "sclip", "gem"])
    for i, encoded in enumerate(together):
        assert further(encoded).keys() == {"sclip", "gem"}
        for kind, others in further(encoded).items():
            torch.testing.assert_close(others, normalize(tokens.paths[kind][i], dim=-1), rtol=0, atol=1e-6)
            assert torch.equal(others[0], encoded.raw[0])
    alone = surgery.encode_image(picture(0), methods=["gem"])
    assert further(alone).keys() == {"gem"}
    assert torch.equal(alone.surgery, features.surgery)  # what else is computed changes nothing
    assert torch.equal(alone.raw, features.raw)
    surgery.encode_image(picture(1))
    again = surgery.encode_image(picture(0), methods=["gem"])
    assert torch.equal(again.paths["gem"], alone.paths["gem"])


@pytest.mark.parametrize("against", [None, ["dog", "tree"], ["tree", "cat", "sky"]])
def test_other_texts_of_a_call_change_nothing(surgery: ClipSurgery, features: ImageFeatures, against: Any) -> None:
    texts = ["cat", "dog", "bird", "cat"]
    together = values(surgery.maps(features, texts, against=against))
    alone = np.concatenate([values(surgery.maps(features, [text], against=against)) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    assert np.array_equal(together[0], together[3])
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_label_set_has_no_order_and_no_duplicates(surgery: ClipSurgery, features: ImageFeatures) -> None:
    expected = values(surgery.maps(features, ["cat", "dog"], against=["cat", "dog", "tree"]))
    for against in (
        ["tree", "dog", "cat"],
        ["dog", "tree", " dog", "cat", "tree"],
        ("cat", "tree", "dog"),
        {"tree", "cat", "dog"},
    ):
        np.testing.assert_allclose(values(surgery.maps(features, ["cat", "dog"], against=against)), expected, rtol=0, atol=1e-6)
    added = values(surgery.maps(features, ["cat"], against=["dog", "tree"]))
    np.testing.assert_allclose(added, expected[:1], rtol=0, atol=1e-6)
    assert np.abs(values(surgery.maps(features, ["cat"], against=["dog"])) - expected[:1]).max() > 1e-4


def test_methods_are_compared_in_one_encoding() -> None:
    surgery = tiny_surgery()
    calls = count_calls(surgery.model.visual.conv1)
    found = surgery.compare(picture(), ["cat", "dog"], against=["tree"])
    assert len(calls) == 1
    assert list(found) == ["itsm", "architecture", "surgery"]
    for method, maps in found.items():
        expected = surgery.similarity(picture(), ["cat", "dog"], against=["tree"], method=method)  # type: ignore[arg-type]
        assert np.array_equal(values(maps), values(expected))
    assert list(surgery.compare(picture(), ["cat"], methods=["itsm"])) == ["itsm"]
    calls.clear()
    every = surgery.compare(picture(), ["cat"], methods=tuple(METHODS))
    assert len(calls) == 1
    assert list(every) == list(METHODS)
    assert len({values(maps).tobytes() for maps in every.values()}) == len(every)
    assert np.array_equal(values(every["gem"]), values(surgery.similarity(picture(), ["cat"], method="gem")))
    assert np.abs(values(found["itsm"]) - values(found["architecture"])).max() > 1e-3


@pytest.mark.parametrize("vocabulary", [[], ["dog", "pig"]])
def test_preparing_texts_leaves_nothing_to_encode(features: ImageFeatures, vocabulary: list[str]) -> None:
    surgery = tiny_surgery(image_size=(12, 20), vocabulary=vocabulary)
    calls = count_calls(surgery.model.transformer)
    surgery.prepare(["cat", "dog"], against=["tree"])
    # three texts and the empty one, two templates; of all of these and the vocabulary's, the short templates
    assert [shape[0] for shape in calls] == [2 * 4, *([4 * len(SHORT_TEMPLATES)] if vocabulary else [])]
    surgery.prepare(["cat", "dog"])
    surgery.maps(features, ["cat", "dog"], vocabulary=bool(vocabulary))
    surgery.maps(features, ["cat"], against=["tree"])
    surgery.presence(features, "cat", against=["tree"])
    assert len(calls) == 1 + bool(vocabulary)
    with pytest.raises(PromptError, match="can hold"):
        surgery.prepare(["cat " * 100])


# scores


def test_scores_are_plain_clips(surgery: ClipSurgery, features: ImageFeatures) -> None:
    texts = ["cat", "dog", "tree"]
    with torch.no_grad():
        native = tiny_surgery()
        plain = normalize(native.model.encode_image(native.preprocess(picture())), dim=-1)[0]
    found = native.scores(native.encode_image(picture()), texts)
    np.testing.assert_allclose(found, native.encode_texts(texts) @ plain, rtol=0, atol=1e-6)
    assert found.dtype == np.float32
    assert found.shape == (3,)
    assert np.abs(surgery.scores(features, texts)).max() <= 1


# the vocabulary


def short_features(surgery: ClipSurgery, texts: list[str]) -> torch.Tensor:
    return PromptEnsemble(surgery.model, tokenizer(), templates=SHORT_TEMPLATES)(texts)


def presence_among(
    surgery: ClipSurgery, features: ImageFeatures, texts: list[str], offset: float = 0.0, rivals: float = 1.0
) -> float:
    """By hand: the first text against all others, in short templates where there is a vocabulary."""
    encoded = short_features(surgery, texts) if surgery.vocabulary else surgery.encode_texts(texts)
    logits = surgery.model.logit_scale.exp().item() * (encoded @ features.raw[0]).double().numpy()
    return float(1 / (1 + np.exp(rivals * np.log(np.exp(logits[1:]).sum()) - logits[0] - offset)))


@pytest.mark.parametrize(("offset", "rivals"), [(0.0, 1.0), (2.0, 1.0), (-0.3, 0.2), (-0.3, 0.0)])
@pytest.mark.parametrize("words", [(), ("dog", " tree ", "dog", "pig")])
def test_presence_is_a_softmax_with_terms(
    features: ImageFeatures, words: tuple[str, ...], offset: float, rivals: float
) -> None:
    surgery = tiny_surgery(image_size=(12, 20), vocabulary=words, presence_offset=offset, presence_rivals=rivals)
    assert surgery.vocabulary == (("dog", "tree", "pig") if words else ())
    known = ["dog", "tree", "pig"] if words else [""]
    for text, against, others in (
        ("cat", None, known),
        ("cat", ["sky"], [*known, "sky"]),
        # the text itself, duplicates and what is known already add nothing; the tokenizer knows no case
        (" cat", ["sky", "dog", "Cat", "sky"], dict.fromkeys([*known, "sky", "dog"])),
        ("DOG", None, [word for word in known if word != "dog"]),
    ):
        found = surgery.presence(features, text, against=against)
        assert isinstance(found, float)
        assert found == pytest.approx(presence_among(surgery, features, [text, *others], offset, rivals), abs=1e-5)


@pytest.mark.parametrize("text", ["cat", "dog"])
def test_presence_also_asks_the_hottest_place(text: str) -> None:
    words = ["dog", "tree", "pig"]
    surgery = tiny_surgery(image_size=(12, 20), vocabulary=words, presence_offset=0.5, presence_peak=0.7)
    features = surgery.encode_image(picture())
    others = [w for w in words if w != text]
    plain = presence_among(surgery, features, [text, *others], 0.5)
    (found,) = surgery.maps(features, [text], vocabulary=True)
    row, column = np.unravel_index(int(found.values.argmax()), found.values.shape)
    near = [
        features.surgery[1 + r * features.grid[1] + c].double().numpy()
        for r in range(features.grid[0])
        for c in range(features.grid[1])
        if abs(r - row) <= 1 and abs(c - column) <= 1
    ]
    token = np.mean(near, axis=0)
    cosines = short_features(surgery, [text, *others]).double().numpy() @ (token / np.linalg.norm(token))
    logits = surgery.model.logit_scale.exp().item() * cosines
    odds = logits[0] - np.log(np.exp(logits[1:]).sum())
    expected = np.log(plain / (1 - plain)) + 0.7 * odds
    assert surgery.presence(features, text) == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-5)
    assert abs(surgery.presence(features, text) - plain) > 1e-3


@pytest.mark.parametrize("options", [{}, {"vocabulary": ["cat"]}])
def test_the_hottest_place_needs_other_names(options: dict[str, Any], features: ImageFeatures) -> None:
    surgery = tiny_surgery(image_size=(12, 20), **options)
    expected = surgery.presence(features, "Cat")
    assert tiny_surgery(image_size=(12, 20), presence_peak=9.0, **options).presence(features, "Cat") == expected


def test_maps_against_a_vocabulary(features: ImageFeatures) -> None:
    surgery = tiny_surgery(image_size=(12, 20), vocabulary=["dog", "tree", "cat"], tau=3.0, weighting="paper")
    tokens = features.surgery[None]
    found = values(surgery.maps(features, ["bird", "Dog", "bird"], vocabulary=True))
    for k, (text, others) in enumerate((("bird", ["dog", "tree", "cat"]), ("Dog", ["tree", "cat"]))):
        label_set = torch.cat([surgery.encode_texts([text]), short_features(surgery, others)])
        expected = feature_surgery(tokens, label_set, tau=3.0, weighting="paper")[0, 1:, 0].reshape(3, 5)
        np.testing.assert_allclose(found[k], expected, rtol=0, atol=1e-6)
    assert np.array_equal(found[0], found[2])
    plain = values(surgery.maps(features, ["bird", "Dog", "bird"]))
    assert np.abs(found - plain).max() > 1e-4  # it is asked for
    for options in ({"against": ["sky"]}, {"method": "itsm"}, {"method": "architecture"}):
        with_it, without = (values(surgery.maps(features, ["bird"], vocabulary=v, **options)) for v in (True, False))
        assert np.array_equal(with_it, without)


def test_fingerprint_stands_for_what_presence_depends_on() -> None:
    plain = tiny_surgery()
    prints = {"plain": plain.fingerprint()}
    assert len(prints["plain"]) == 16
    assert int(prints["plain"], 16) >= 0
    for name, options in {
        "image size": {"image_size": 24},
        "templates": {"templates": ["a {}."]},
        "offset": {"presence_offset": 0.5},
        "rivals": {"presence_rivals": 0.5},
        "scales": {"scales": (1.0, 0.5)},
        "scales in another order": {"scales": (0.5, 1.0)},
        "mean": {"mean": (0.5, 0.5, 0.5)},
        "std": {"std": (0.5, 0.5, 0.5)},
        "vocabulary": {"vocabulary": ["dog"]},
        "another vocabulary": {"vocabulary": ["dog", "cat"]},
        "model": {"model": tiny_clip(seed=1)},
    }.items():
        prints[name] = tiny_surgery(**options).fingerprint()
    scaled = tiny_clip()
    scaled.logit_scale.data += 1
    prints["logit scale"] = tiny_surgery(scaled).fingerprint()
    for part in ("visual.proj", "visual.class_embedding", "text_projection"):
        changed = tiny_clip()
        changed.get_parameter(part).data.view(-1)[0] += 1e-3
        prints[part] = tiny_surgery(changed).fingerprint()
    assert len(set(prints.values())) == len(prints), prints
    # maps depend on these; presence does not, unless it asks the map's peak
    for options in ({}, {"depth": 1}, {"tau": 5.0}, {"weighting": "paper"}):
        assert tiny_surgery(**options).fingerprint() == prints["plain"]
    peak = {"vocabulary": ["dog"], "presence_peak": 0.5}
    several = ({}, {"depth": 1}, {"tau": 5.0}, {"weighting": "paper"}, {"templates": ["a {}."]}, {"presence_peak": 0.4})
    assert len({tiny_surgery(**peak | options).fingerprint() for options in several} | {prints["vocabulary"]}) == 7
    assert tiny_surgery(presence_peak=0.5).fingerprint() == prints["plain"]  # there is nothing to set the place against
    named = [
        tiny_surgery(vocabulary=words, **options).fingerprint()
        for words, options in (
            (["dog", "cat"], {}),
            (("cat", "dog", "cat "), {}),
            ({"cat", "dog"}, {}),
            (["dog", "cat"], {"templates": ["a {}."]}),
        )
    ]
    assert set(named) == {prints["another vocabulary"]}  # it has no order, and its templates are the short ones


# what is known


def test_region_odds_against_plain_numpy() -> None:
    surgery = tiny_surgery(image_size=(16, 24), vocabulary=["dog", "sky", "Cat"])
    features = surgery.encode_image(picture())
    shares = np.random.default_rng(0).random(features.grid, np.float32)
    texts = surgery._names(["cat", "dog", "sky"]).numpy().astype(np.float64)  # "Cat" is the text itself
    token = (shares.reshape(-1, 1) * features.surgery[1:].numpy()).sum(0)
    token = token / np.linalg.norm(token)
    logits = texts @ token * np.exp(float(surgery.model.logit_scale.detach()))
    expected = logits[0] - np.log(np.exp(logits[1:]).sum())
    assert surgery.region_odds(features, "cat", shares) == pytest.approx(expected, abs=1e-4)
    assert surgery.region_odds(features, "cat", 0.1 * shares) == pytest.approx(expected, abs=1e-4)  # only shares count
    with pytest.raises(InputError, match="of shape"):
        surgery.region_odds(features, "cat", shares[1:])
    with pytest.raises(InputError, match="above 0"):
        surgery.region_odds(features, "cat", np.zeros_like(shares))
    with pytest.raises(PromptError):
        surgery.region_odds(features, "", shares)
    for alone in (tiny_surgery(image_size=(16, 24)), tiny_surgery(image_size=(16, 24), vocabulary=["cat"])):
        with pytest.raises(InputError, match="vocabulary"):
            alone.region_odds(features, "cat", shares)


def test_presence_of_a_model_with_a_bias() -> None:
    model = tiny_clip(init_logit_scale=np.log(10), init_logit_bias=-1.5)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(10))
        model.logit_bias.fill_(-1.5)
    for options in ({}, {"vocabulary": ["sky", "dog"]}, {"presence_rivals": 0.2}):
        surgery = tiny_surgery(model, **options)
        features = surgery.encode_image(picture())
        encode = surgery._names if options.get("vocabulary") else surgery.encode_texts
        expected = torch.sigmoid(10 * encode(["cat"])[0] @ features.raw[0] - 1.5).item()
        for against in (None, ["dog"]):
            assert surgery.presence(features, "cat", against=against) == pytest.approx(expected, abs=1e-6)
