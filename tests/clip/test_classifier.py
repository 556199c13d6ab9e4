"""The word classifier on a tiny network of timm."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import LEARNED, SYNSETS, WORDS, FakePredictor, picture, word_network

from text2sam import TextPromptedSAM
from text2sam.clip.classifier import CUTOUT, RIVALRY, WordClassifier
from text2sam.clip.pixels import cutout, normalise
from text2sam.clip.protocol import MapGenerator
from text2sam.clip.towers.cnn import PooledCNN
from text2sam.clip.words import WordTable
from text2sam.errors import ImageError, InputError, PromptError, Text2SamWarning, UnsupportedModelError


def tiny(model: Any = None, *, taught: bool = False, **options: Any) -> WordClassifier:
    model = word_network() if model is None else model
    words = WordTable(SYNSETS, WORDS, LEARNED if taught else ())
    if taught:
        draw = torch.Generator().manual_seed(3)
        vectors = torch.randn(2, model.num_features, generator=draw)
        options |= {"learned": vectors, "offsets": torch.tensor([0.5, -0.25])}
    return WordClassifier(model, words, **({"image_size": 64, "device": "cpu"} | options))


# the tower


def test_places_average_to_the_classifiers_answer() -> None:
    model = word_network()
    tower = PooledCNN(model)
    pixels = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        places = tower.features(pixels)
        assert places.shape[2:] == (96 // tower.patch[0], 64 // tower.patch[1])
        torch.testing.assert_close(model.classifier(places.flatten(2).mT).mean(dim=1), model(pixels))


@pytest.mark.parametrize(
    "model",
    [
        torch.nn.Linear(2, 2),
        timm.create_model("test_vit", pretrained=False),
        timm.create_model("test_efficientnet", pretrained=False, num_classes=0),
        timm.create_model("test_efficientnet", pretrained=False, global_pool="max"),
    ],
)
def test_other_networks_are_refused(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="average pooling and a linear head"):
        tiny(model)


# arguments


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 0},
        {"image_size": 8193},
        {"scales": ()},
        {"presence_slope": -1},
        {"learned": torch.zeros(2, 3)},
        {"offsets": torch.zeros(3)},
    ],
)
def test_arguments_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        tiny(**options)


def test_words_that_the_model_has_no_class_or_vector_for() -> None:
    for classes in ([11], [-1]):
        table = WordTable({"n": {"words": ["cat"], "classes": classes}}, {"cat": ["n"]})
        with pytest.raises(InputError, match="need classes up to"):
            WordClassifier(word_network(), table, device="cpu")
    table = WordTable({}, {}, [{"words": ["person"], "synset": None}])
    with pytest.raises(InputError, match="need learned vectors up to 0 from 0, the model has 0"):
        WordClassifier(word_network(), table, device="cpu")


def test_what_it_cannot_do_is_said() -> None:
    classifier = tiny()
    with pytest.raises(InputError, match="sequence of images"):
        classifier.encode(np.zeros((8, 8, 3), np.uint8))
    [features] = classifier.encode([picture()])
    with pytest.raises(UnsupportedModelError, match="one way to make maps"):
        classifier.encode([picture()], methods=["sclip"])
    with pytest.raises(UnsupportedModelError, match="one way to make maps"):
        classifier.maps(features, ["cat"], method="itsm")
    with pytest.raises(UnsupportedModelError, match="larger scales"):
        classifier.encode([picture()], tiles="auto")
    with pytest.raises(ImageError):
        classifier.encode([np.zeros((2, 2))[:0]])
    for text in ("unicorn", ""):
        with pytest.raises(PromptError):
            classifier.prepare(["cat", text])
        with pytest.raises(PromptError):
            classifier.maps(features, ["cat", text])
        with pytest.raises(PromptError):
            classifier.presence(features, text)
    for against in (["cat"], ["CATS"], ["true cat"], []):
        with pytest.raises(InputError, match="against"):
            classifier.maps(features, ["cat"], against=against)
    assert classifier.maps(features, []) == []
    assert classifier.encode([]) == []


# maps


def by_hand(classifier: WordClassifier, features: Any, classes: list[int], learned: int | None = None) -> Any:
    """The map of classes, by loops over places, at one size."""
    head = classifier.tower.weight.detach().double()
    rows = head - head.mean(dim=0)
    rows = rows / rows.norm(dim=1, keepdim=True)
    [tokens] = features.tokens
    vectors = [rows[c] for c in classes] or [torch.zeros(len(tokens), dtype=torch.float64)]
    shift = 0.0
    if learned is not None:
        vectors = [v + classifier.learned[learned].double() for v in vectors]
        shift = float(classifier.offsets[learned])
    out = np.zeros(tuple(tokens.shape[1:]))
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] = max(float(v @ tokens[:, y, x].double()) for v in vectors) - shift
    return out


def test_maps_are_the_best_row_at_each_place() -> None:
    classifier = tiny(taught=True)
    image = picture(1, 64, 48)
    [features] = classifier.encode([image])
    assert features.grid == (64, 48)
    for text, classes, learned in (("cat", [0], 1), ("bird", [2, 3], None), ("person", [], 0), ("crane bird", [3], None)):
        [found] = classifier.maps(features, [text])
        hand = torch.from_numpy(by_hand(classifier, features, classes, learned))[None, None]
        expected = torch.nn.functional.interpolate(hand, features.grid, mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-5)
        assert found.text == text


def test_texts_do_not_change_one_another_and_words_for_one_thing_are_equal() -> None:
    classifier = tiny(taught=True)
    [features] = classifier.encode([picture()])
    cat, bird, same = classifier.maps(features, ["cat", "bird", "a photo of kitties"])
    np.testing.assert_array_equal(cat.values, same.values)
    np.testing.assert_array_equal(classifier.maps(features, ["bird"])[0].values, bird.values)
    against = classifier.maps(features, ["cat"], against=["bird", "cat", "Birds"])[0].values
    np.testing.assert_allclose(against, cat.values - RIVALRY * np.maximum(bird.values, 0), atol=1e-6)


def test_several_sizes_are_averaged() -> None:
    image = picture(2, 40, 90)
    maps = [one_map(tiny(scales=(scale,)), image) for scale in (1.0, 2.0)]
    np.testing.assert_allclose(one_map(tiny(scales=(1.0, 2.0)), image), (maps[0] + maps[1]) / 2, atol=1e-6)


def one_map(classifier: WordClassifier, image: Any) -> Any:
    [features] = classifier.encode([image])
    return classifier.maps(features, ["bird"])[0].values


def test_presence_follows_the_hottest_place() -> None:
    classifier = tiny(presence_offset=-1.0, presence_slope=0.5)
    [features] = classifier.encode([picture()])
    for text in ("cat", "bird"):
        top = classifier.maps(features, [text])[0].values.max()
        assert classifier.presence(features, text) == pytest.approx(1 / (1 + np.exp(1.0 - 0.5 * top)))
    assert classifier.presence(features, "cat", against=["bird"]) <= classifier.presence(features, "cat")


def test_words_of_many_classes_must_be_hotter() -> None:
    plain, crowd = tiny(presence_slope=0.5), tiny(presence_slope=0.5, presence_crowd=0.4)
    [features] = plain.encode([picture()])

    def logit(classifier: WordClassifier, text: str) -> float:
        p = classifier.presence(features, text)
        return float(np.log(p / (1 - p)))

    assert logit(crowd, "cat") == pytest.approx(logit(plain, "cat")), "one class"
    assert logit(crowd, "animal") == pytest.approx(logit(plain, "animal") - 0.5 * 0.4 * np.log(4)), "four"


def test_vague_words_get_advice() -> None:
    synsets = {"n1": {"words": ["thing"], "classes": [0] * 400}, "n2": {"words": ["cat"], "classes": [0]}}
    words = WordTable(synsets, {"thing": ["n1"], "cat": ["n2"]})
    classifier = WordClassifier(word_network(), words, device="cpu", image_size=64)
    assert "400 kinds" in str(classifier.hint("things"))
    assert classifier.hint("cat") is None


# in the pipeline


def test_in_the_pipeline() -> None:
    classifier = tiny(taught=True, presence_offset=10.0)
    assert isinstance(classifier, MapGenerator)
    model = TextPromptedSAM(FakePredictor(), classifier)
    result = model.segment(picture(), "cat", against=["bird"])
    assert result.present
    assert result.similarity.values.shape == (44, 64)
    assert model.segment(picture(), {"cat": ["cat", "kitty"]}).present
    assert model.segment(picture(), "cat+bird").present
    with pytest.raises(PromptError, match="'unicorn'"):
        model.segment(picture(), "unicorn")
    fitted = model.calibrate([picture(), picture(1)], ["cat", "cat"], [True, False])
    model.use(fitted)
    other = TextPromptedSAM(FakePredictor(), tiny(presence_offset=10.0))
    with pytest.raises(InputError, match="another CLIP"):
        other.use(fitted)


def test_words_that_are_one_thing() -> None:
    model = TextPromptedSAM(FakePredictor(), tiny(taught=True, presence_offset=10.0))
    with pytest.warns(Text2SamWarning, match="'man' and 'women' are one thing to this model"):
        man, women = model.segment_many(picture(), ["man", "women"])
    np.testing.assert_array_equal(man.mask, women.mask)
    with pytest.raises(PromptError, match="'kitty' is excluded, but to this model they are one thing"):
        model.segment(picture(), "cat", exclude=["bird", "kitty"])
    assert len(model.segment_many(picture(), ["cat", "cat+bird"])) == 2


def test_fingerprint_sees_what_changes_presence() -> None:
    made = {
        tiny().fingerprint(),
        tiny(word_network(1)).fingerprint(),
        tiny(taught=True).fingerprint(),
        tiny(scales=(1, 2)).fingerprint(),
        tiny(presence_slope=2.0).fingerprint(),
        tiny(presence_crowd=1.0).fingerprint(),
        tiny(image_size=96).fingerprint(),
    }
    assert len(made) == 7
    assert tiny().fingerprint() in made


def test_features_on_disk() -> None:
    classifier = tiny(scales=(1, 2))
    [features] = classifier.encode([picture()])
    packed = classifier.pack(features)
    again = classifier.unpack(packed, features.shape)
    assert again.shape == features.shape
    assert all(torch.equal(a, b) for a, b in zip(again.tokens, features.tokens, strict=True))
    for broken in ({}, {"0": packed["0"]}, {"0": packed["0"][0], "1": packed["1"]}, packed | {"1": packed["1"].double()}):
        with pytest.raises((KeyError, ValueError)):
            classifier.unpack(broken, features.shape)


# cutouts


def test_a_cutout_is_the_mask_in_the_middle_of_a_blur() -> None:
    image = np.full((40, 60, 3), (0, 0, 200), np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:20, 50:60] = True  # at the border
    image[mask] = (200, 0, 0)
    small = mask[::2, ::2]  # a mask may be of another size
    for each in (mask, small):
        cut = cutout(image, each, 130)
        assert cut.shape == (130, 130, 3)
        assert cut[60, 60].tolist() == [200, 0, 0]
        assert (np.abs(cut[30:100, 30:100].astype(int) - (200, 0, 0)) < 50).all()
        assert cut[2, 2, 2] > 150  # the surroundings
    striped = np.where(mask[..., None], 255, np.uint8(255) * (np.arange(60) % 2)[:, None]) * np.ones(3, np.uint8)
    assert np.ptp(cutout(striped.astype(np.uint8), mask, 130)[2, :80].astype(int)) < 200
    whole = cutout(image, np.ones((40, 60), bool), 30)
    assert whole.shape == (30, 30, 3)
    assert cutout(image, np.eye(1, 2400, 7, dtype=bool).reshape(40, 60), 16).shape == (16, 16, 3)  # a single pixel


@pytest.mark.parametrize("shape", [(301, 1500), (1500, 301), (23, 10000), (1, 1)])
def test_a_cutout_of_a_long_image(shape: tuple[int, int]) -> None:
    """The mask's pixels are not quite square in the image, since its sides are whole numbers."""
    places = tuple(max(1, round(length * min(1, 640 / max(shape)))) for length in shape)
    image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(places, bool)
    mask[-1, -1] = True
    assert cutout(image, mask, 64).shape == (64, 64, 3)
    mask[-9:, -9:] = True
    image[-round(9 * shape[0] / places[0]) :, -round(9 * shape[1] / places[1]) :] = (200, 0, 0)
    assert (cutout(image, mask, 64)[28:36, 28:36, 0] == 200).all()


def test_a_cutout_of_a_strip_takes_little_memory() -> None:
    image = np.zeros((100, 8000, 3), np.uint8)
    image[:, 4000:] = 200
    tracemalloc.start()
    cut = cutout(image, np.ones((8, 640), bool), 224)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert cut[:, 20].max() < 20
    assert cut[:, 200].min() > 180


def test_likeness_is_that_of_the_whole_cutout() -> None:
    classifier = tiny(taught=True)
    image, masks = picture(height=60, width=80), np.zeros((3, 60, 80), bool)
    masks[0, 10:40, 20:50], masks[2] = True, True
    expected = []
    for text in ("cat", "person"):
        vectors, offset = classifier._vectors(classifier.words.meaning(text))
        values = [0.0]
        for mask in masks[[0, 2]]:
            pixels = normalise(cutout(image, mask, CUTOUT), classifier.mean, classifier.std)
            with torch.inference_mode():
                pooled = classifier.model.forward_features(pixels)[0].mean((1, 2))
            values.append(float(torch.sigmoid(((vectors @ pooled).max() - offset - 3) / 2)))
        expected.append([values[1], values[0], values[2]])
    for text, values in zip(("cat", "person"), expected, strict=True):
        np.testing.assert_allclose(classifier.likeness(image, masks, [text]), values, atol=1e-5)
    np.testing.assert_allclose(classifier.likeness(image, masks, ["cat", "person"]), np.max(expected, axis=0), atol=1e-5)
    assert classifier.likeness(image, masks[1:2], ["cat"]).tolist() == [0]
    assert classifier.likeness(image, masks[:0], ["cat"]).shape == (0,)
    with pytest.raises(PromptError):
        classifier.likeness(image, masks, ["cat", "unicorn"])
