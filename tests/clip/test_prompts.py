from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TEMPLATES, TEXT, VIT, condition, count_calls, raising, tiny_clip, tokenizer
from open_clip.model import CustomTextCLIP

from text2sam.clip.prompts import (
    SCENE_TEMPLATES,
    SHORT_TEMPLATES,
    PromptEnsemble,
    ensemble_templates,
)
from text2sam.clip.towers.text import encode_token_features, encode_tokens
from text2sam.errors import PromptError, UnsupportedModelError


def ensemble(model: Any = None, **options: Any) -> PromptEnsemble:
    return PromptEnsemble(tiny_clip() if model is None else model, tokenizer(), **{"templates": TEMPLATES} | options)


# what is not a prompt


@pytest.mark.parametrize("texts", [[], (), "cat", [None], ["cat", 3], [b"cat"]])
def test_no_texts(texts: Any) -> None:
    with pytest.raises(PromptError, match="non-empty sequence of strings"):
        ensemble()(texts)


@pytest.mark.parametrize("templates", [[], [""], ["a photo"], ["{} and {}"], ["a {}.", "b"], [3], "a photo", ["{0}"], 5])
def test_unusable_templates(templates: Any) -> None:
    with pytest.raises(PromptError, match="exactly one"):
        ensemble(templates=templates)


def test_too_long_and_as_long_as_fits() -> None:
    e = ensemble()
    calls = count_calls(e._model.transformer)
    # 77 positions, less start and end token, less the longer template's "there is the ... in the scene."
    words = " ".join(["cat"] * (77 - 2 - 7 - 1))
    for long in (words + " cat cat", "cat " * 500):
        with pytest.raises(PromptError, match=r"'cat cat .* has more than 77 tokens"):
            e(["dog", long])
    assert not calls
    assert e([words]).shape == (1, 16)


def other_tokenizer(start: list[int], end: list[int], padding: int, length: int = 16, cuts_end: bool = False) -> Any:
    """A word is an id made of its letters; what is too long is cut silently."""

    def ids(text: str) -> list[int]:
        row = start + [10 + sum(map(ord, word)) % 400 for word in text.split()] + end
        if len(row) > length:
            row = row[:length] if cuts_end else row[: length - len(end)] + end
        return row + [padding] * (length - len(row))

    return lambda texts: torch.tensor([ids(text) for text in texts])


OTHER_TOKENIZERS = {
    "pads with its end token": other_tokenizer([], [1], 1),
    "pads with 0": other_tokenizer([], [1], 0),
    "start and end": other_tokenizer([2], [3], 0),
    "pads with 1": other_tokenizer([0], [2], 1),
    "cuts the end token too": other_tokenizer([0], [2], 1, cuts_end=True),
    "highest id ends and pads": other_tokenizer([498], [499], 499),
}


@pytest.mark.parametrize("name", OTHER_TOKENIZERS)
def test_other_tokenizers_cut_nothing_silently(name: str) -> None:
    text = {"context_length": 16, "vocab_size": 500, "width": 16, "heads": 2, "layers": 1, "pool_type": "last"}
    vision = {"image_size": 16, "layers": 1, "width": 32, "patch_size": 4, "head_width": 16}
    torch.manual_seed(0)
    e = PromptEnsemble(
        CustomTextCLIP(16, vision, text | {"no_causal_mask": True}).eval(), OTHER_TOKENIZERS[name], templates="a {}."
    )
    for word in ("word", "x"):  # also a word that stays the same when another of the kind follows
        with pytest.raises(PromptError, match="has more than 16 tokens"):
            e(["cat", " ".join([word] * 40)])
        assert e([" ".join([word] * 11)]).shape == (1, 16)


def test_a_tokenizer_that_pads_with_the_end_token_gives_the_same() -> None:
    def padded(texts: list[str]) -> torch.Tensor:
        tokens = tokenizer()(texts)
        return torch.where((tokens == 0).cumsum(1) > 0, 49407, tokens).int()

    found = PromptEnsemble(tiny_clip(), padded, templates=TEMPLATES)(["cat", "black dog"])
    assert torch.equal(found, ensemble()(["cat", "black dog"]))
    with pytest.raises(PromptError, match="has more than 77 tokens"):
        PromptEnsemble(tiny_clip(), padded, templates=TEMPLATES)(["cat " * 80])


@pytest.mark.parametrize(
    ("tokenize", "error", "told"),
    [
        (lambda texts: {"input_ids": tokenizer()(texts)}, UnsupportedModelError, "not into a dict.*input_ids"),
        (lambda texts: tokenizer()(texts).tolist(), UnsupportedModelError, "not into a list"),
        (lambda texts: tokenizer()(texts).float(), UnsupportedModelError, "tensor of token ids"),
        (lambda texts: tokenizer()(texts)[:1], UnsupportedModelError, "P strings"),
        (lambda texts: tokenizer()(texts) + 100, UnsupportedModelError, "knows 49408.*another model"),
        ("ViT-B-16", UnsupportedModelError, r"as open_clip.get_tokenizer\(name\) does, and is not 'ViT-B-16'"),
        (lambda image: image + 1, UnsupportedModelError, "takes no strings"),  # such as open_clip's preprocess
        (lambda texts: raising_tokenizer(), PromptError, "too long for context length 77"),
        # all texts are one to a tower that is pooled at the first token
        (lambda texts: torch.nn.functional.pad(tokenizer()(texts).clamp(max=49000), (1, 0), value=49407), UnsupportedModelError,
         "same features: the tokenizer does not belong"),
        (lambda texts: tokenizer()(["[UNK]"] * len(texts)), PromptError, "same tokens of 'cat' and 'dog'"),
    ],
)  # fmt: skip
def test_wrong_tokenizers(tokenize: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        PromptEnsemble(tiny_clip(), tokenize, templates=["{}"])(["cat", "dog"])


def test_same_tokens_are_seen_across_calls_with_the_same_templates() -> None:
    twins = PromptEnsemble(tiny_clip(), lambda texts: tokenizer()([text.replace("kitten", "cat") for text in texts]))
    twins(["cat"], ["{}"])
    assert twins(["kitten"], ["a {}"]).shape == (1, 16)
    with pytest.raises(PromptError, match="same tokens of 'cat' and 'kitten'"):
        twins(["kitten"], ["{}"])


def raising_tokenizer() -> None:
    raise RuntimeError("Input is too long for context length 77")


def test_equal_texts_are_no_sign_of_a_wrong_tokenizer() -> None:
    found = ensemble()(["cat", "Cat", "CAT "])
    assert torch.equal(found, found[:1].expand(3, -1))
    model = tiny_clip()
    with torch.no_grad():  # a model that knows no word but these
        known = tokenizer()(["a . there is the in scene"])[0]
        model.token_embedding.weight[[i for i in range(49406) if i not in set(known.tolist())]] = 0
    found = ensemble(model)(["zebra", "rhino"])
    assert torch.equal(found[0], found[1])


def test_a_hint_about_other_scripts_than_latin() -> None:
    other = PromptEnsemble(tiny_clip(), OTHER_TOKENIZERS["pads with 0"], templates="{}")
    for text in ("猫", "кот", "a قطة", "γάτα"):
        assert "trained on English texts" in str(ensemble().tower.hint(text))
        assert other.tower.hint(text) is None  # it may well be made for them
    for text in ("cat", "schöne Straße", "c++ 3.5", "5 \u00b5m", "🐱", "łódź"):
        assert ensemble().tower.hint(text) is None


# templates


def test_the_85_templates() -> None:
    templates = ensemble_templates()
    assert len(templates) == len(set(templates)) == 85
    assert all(t.count("{}") == 1 and t.replace("{}", "").count("{") == 0 for t in templates)
    assert templates[80:] == SCENE_TEMPLATES
    assert PromptEnsemble(tiny_clip(), tokenizer()).templates == templates


def test_texts_and_templates_are_taken_literally() -> None:
    seen: list[str] = []

    def spy(prompts: list[str]) -> torch.Tensor:
        seen.extend(prompt for prompt in prompts if prompt != "a")  # asked for to see the padding
        return tokenizer()(prompts)

    PromptEnsemble(tiny_clip(), spy, templates=("a {}.", "{odd} {}"))(["{0} {x}", "100 {}"])
    assert seen == ["a {0} {x}.", "{odd} {0} {x}", "a 100 {}.", "{odd} 100 {}"]


# parity


def test_against_one_prompt_at_a_time() -> None:
    model, texts = tiny_clip(), ["cat", "a very long-haired dog", ""]
    expected = []
    with torch.no_grad():
        for text in texts:
            rows = [model.encode_text(tokenizer()([t.replace("{}", text)]))[0].double().numpy() for t in ensemble_templates()]
            mean = np.mean([row / np.linalg.norm(row) for row in rows], axis=0)
            expected.append(mean / np.linalg.norm(mean))
    found = PromptEnsemble(model, tokenizer())(texts)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(np.diff(expected, axis=0)).max() > 0.01


# options of a text tower, whether it runs on the longest prompt's length alone, and why its tokens have no features
TOWERS: list[tuple[dict[str, Any], bool, str]] = [
    ({}, True, ""),
    ({"proj_bias": True}, True, ""),
    ({"proj_type": "none"}, True, ""),
    ({"ls_init_value": 0.5}, True, ""),
    ({"no_causal_mask": True}, False, ""),
    ({"pool_type": "last"}, False, "it pools at 'last'"),
    ({"pool_type": "first"}, False, "it pools at 'first'"),
    ({"pool_type": "eos", "eos_id": 49407}, False, "it pools at 'eos'"),
    ({"embed_cls": True}, False, "its TextTransformer is of another kind"),
]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("text", "trimmed", "told"), TOWERS)
@torch.no_grad()
def test_trimmed_is_untrimmed_and_tokens_end_in_the_texts_feature(
    text: dict[str, Any], trimmed: bool, told: str, own: bool
) -> None:
    if own:  # a text tower that is a module of its own
        torch.manual_seed(0)
        model = CustomTextCLIP(16, VIT, TEXT | text).eval()
    elif "embed_cls" in text:
        return
    else:
        model = tiny_clip(text=text)
    tokens = tokenizer()(["a cat.", "there is the black cat in the scene.", ""])
    calls = count_calls(model.text.transformer if own else model.transformer)
    found, expected = encode_tokens(model, tokens), model.encode_text(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)
    assert [shape[1] for shape in calls] == [11 if trimmed else 77 + ("embed_cls" in text), 77 + ("embed_cls" in text)]
    if told:
        with pytest.raises(UnsupportedModelError, match=told):
            encode_token_features(model, tokens)
    else:
        features = encode_token_features(model, tokens)
        assert features.shape[:2] == (3, 11 if trimmed else 77)
        torch.testing.assert_close(features[torch.arange(3), tokens.argmax(dim=-1)], expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["cat", "a black dog", "x y z"]
    expected = ensemble()(texts)
    monkeypatch.setattr("text2sam.clip.prompts._BATCH", batch)
    torch.testing.assert_close(ensemble()(texts), expected, rtol=0, atol=1e-6)


# behaviour


def test_order_and_duplicates() -> None:
    e = ensemble()
    calls = count_calls(e._model.transformer)
    rows = e(["dog", "cat", "dog"])
    assert [shape[0] for shape in calls] == [4]  # two texts, two templates
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(e(["cat", "dog"]), rows[[1, 0]])
    assert len(calls) == 1  # the memory knows them
    e(["cat", "bird"])
    assert [shape[0] for shape in calls] == [4, 2]


def test_mode_and_weights_stay() -> None:
    model = tiny_clip(text={"ls_init_value": 0.5}).train()
    model.ln_final.eval()
    before = condition(model)
    ensemble(model)(["cat"])
    assert condition(model) == before
    model.ln_final.register_forward_pre_hook(raising)
    before = condition(model)
    with pytest.raises(ZeroDivisionError):
        ensemble(model)(["cat"])
    assert condition(model) == before


def test_forget(tmp_path: Path) -> None:
    e = ensemble(cache=tmp_path)  # whose entries are those of the weights before
    both = (None, SHORT_TEMPLATES)
    old = [e(["cat"], templates) for templates in both]
    with torch.no_grad():
        e._model.text_projection.mul_(torch.linspace(0.5, 2, 16))
    assert all(torch.equal(e(["cat"], templates), before) for templates, before in zip(both, old, strict=True))
    e.forget()
    for templates, before in zip(both, old, strict=True):
        assert (e(["cat"], templates) - before).abs().max() > 1e-3


@pytest.mark.parametrize("inference", [False, True])
def test_autocast_changes_no_feature(tmp_path: Path, inference: bool) -> None:
    expected = ensemble()(["cat"])
    e = ensemble(cache=tmp_path)
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(e(["cat"]), expected)
    assert torch.equal(ensemble(cache=tmp_path)(["cat"]), expected)
    weight = torch.ones(16, requires_grad=True)
    (e(["cat"]) @ weight).sum().backward()  # what was kept can take part in training
    assert weight.grad is not None


# the cache on disk


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_second_process_runs_no_tower(tmp_path: Path) -> None:
    first = ensemble(cache=tmp_path / "new" / "folder")(["cat", "dog"])
    assert len(entries(tmp_path)) == 2
    model = tiny_clip()
    calls = count_calls(model.transformer)
    e = ensemble(model, cache=tmp_path / "new" / "folder")
    assert torch.equal(e(["dog", "cat"]), first[[1, 0]])
    assert not calls
    e(["dog", "bird"])
    assert [shape[0] for shape in calls] == [2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-4],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: bytes([content[0] ^ 1]) + content[1:],
    ],
)
def test_damaged_entries_are_computed_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    expected = ensemble(cache=tmp_path)(["cat"])
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    entry.write_bytes(damage(content))
    model = tiny_clip()
    calls = count_calls(model.transformer)
    assert torch.equal(ensemble(model, cache=tmp_path)(["cat"]), expected)
    assert len(calls) == 1
    assert entries(tmp_path) == [entry]
    assert entry.read_bytes() == content  # and written anew


@pytest.mark.parametrize("where", ["file", "file/below", "nul\0"])
def test_unwritable_cache_is_harmless(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("no folder")
    assert torch.equal(ensemble(cache=tmp_path / where)(["cat"]), ensemble()(["cat"]))


def one_weight() -> Any:
    changed = tiny_clip()
    with torch.no_grad():
        changed.ln_final.bias[3] += 1e-6
    return changed


OTHER_MODELS: dict[str, Callable[[], Any]] = {
    "one weight": one_weight,
    "activation": lambda: tiny_clip(quick_gelu=True),
    "heads": lambda: tiny_clip(text={"heads": 4}),
    "mask": lambda: tiny_clip(text={"no_causal_mask": True}),
    "epsilon": lambda: tiny_clip(text={"norm_kwargs": {"eps": 1e-3}}),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_another_model_never_meets_the_entry(tmp_path: Path, kind: str) -> None:
    ensemble(cache=tmp_path)(["cat"])
    model = OTHER_MODELS[kind]()
    calls = count_calls(model.transformer)
    found = ensemble(model, cache=tmp_path)(["cat"])
    assert len(calls) == 1
    assert torch.equal(found, ensemble(model)(["cat"]))


def test_entries_are_the_text_towers_alone(tmp_path: Path) -> None:
    model = tiny_clip(init_logit_bias=-10.0)  # as SigLIP has: a tensor without axes
    ensemble(model, cache=tmp_path)(["cat"])
    with torch.no_grad():
        model.visual.proj += 1
        model.logit_scale += 1
    calls = count_calls(model.transformer)
    ensemble(model.train(), cache=tmp_path)(["cat"])
    assert not calls


# features of single tokens


def test_token_features_know_what_came_before_them() -> None:
    model = tiny_clip()
    with torch.no_grad():
        one, two = encode_token_features(model, tokenizer()(["a black cat", "a black dog in the scene"]))
        alone = encode_token_features(model, tokenizer()(["a black"]))[0]
    torch.testing.assert_close(one[:3], two[:3], rtol=0, atol=1e-6)
    torch.testing.assert_close(one[:3], alone[:3], rtol=0, atol=1e-6)
    assert (one[3] - two[3]).abs().max() > 1e-3
    assert (one[0] - one[1]).abs().max() > 1e-3


# the same model with other templates


def test_other_templates_are_kept(tmp_path: Path) -> None:
    e = ensemble(cache=tmp_path)
    own = e(["cat"])
    calls = count_calls(e._model.transformer)
    other = e(["cat"], ["{}"])
    assert torch.equal(other, ensemble(templates=["{}"])(["cat"]))
    assert torch.equal(e(["cat"], ("{}",)), other)
    assert torch.equal(e(["cat"], "{}"), other)
    assert torch.equal(e(["cat"], TEMPLATES), own)
    assert len(calls) == 1
    assert len(entries(tmp_path)) == 2
    assert e(["a cat", "dog"], ["{}"]).shape == e(["cat", "a dog"], ["a {}"]).shape  # "a cat" twice, of different texts
    with pytest.raises(PromptError):
        e(["cat"], [])
