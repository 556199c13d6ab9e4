"""Building of the photo pair's files, on random tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SYNSETS, WORDS, tiny_predictor, word_network

from text2sam.clip.classifier import PlaceFeatures
from text2sam.lab import photo
from text2sam.lab.datasets.layout import MissingDataError
from text2sam.lab.photo import Taught, classifier_with, fit_presence, hottest, known, learn
from text2sam.lab.wordnet import narrower_words
from text2sam.recipes.points import patch_shares
from text2sam.sam.session import Session

WIDTH, SIZES = 256, ((3, 4), (5, 6))
KIND = {"person": 0, "book": 1, "cat": 2}


@pytest.fixture(autouse=True)
def _three_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"person": (("person", "man"), None), "book": (("book",), None), "cat": (("cat",), "n2")}
    monkeypatch.setattr(photo, "NAMES", names)


def drawn(seed: int, *names: str) -> Taught:
    """A photo in which the tokens of each name point along their own axis."""
    random = np.random.default_rng(seed)
    tokens, covers = [], []
    for size in SIZES:
        values = random.standard_normal((WIDTH, *size)).astype(np.float32) * 0.3
        cover = np.zeros((len(KIND), *size), np.float32)
        for name in names:
            y, x = random.integers(size[0]), random.integers(size[1])
            cover[KIND[name], y, x] = 1
            values[10 + KIND[name], y, x] += 4
        tokens.append(torch.from_numpy(values))
        covers.append(torch.from_numpy(cover).flatten(1).T)
    there = torch.tensor([name in names for name in KIND])
    return Taught(PlaceFeatures(tuple(tokens), (30, 40)), torch.cat(covers), there)


PHOTOS = [drawn(k, *(name for j, name in enumerate(KIND) if (k >> j) & 1)) for k in range(24)]


def test_vectors_point_to_the_tokens_of_the_names() -> None:
    vectors, offsets = learn(PHOTOS)
    assert vectors.shape == (3, WIDTH)
    assert offsets.shape == (3,)
    assert vectors.abs().argmax(dim=1).tolist() == [10, 11, 12]
    fresh = drawn(99, "book")
    scores = fresh.tokens @ vectors.T - offsets
    assert bool(fresh.cover[scores[:, 1].argmax(), 1]), "the hottest place is on the book"
    assert scores[:, 1].max() > 0 > scores[:, 0].max()


def test_a_name_that_no_photo_shows_does_not_affect_the_others() -> None:
    vectors, offsets = learn([drawn(k, "cat") if k % 2 else drawn(k) for k in range(6)])
    assert vectors.isfinite().all()
    assert offsets.isfinite().all()


def test_the_built_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"synsets": SYNSETS, "words": WORDS}
    classifier, entries = classifier_with(word_network(), table, PHOTOS, learn(PHOTOS))
    assert [(entry["words"], entry["synset"]) for entry in entries] == [
        (["person", "man"], None),
        (["book"], None),
        (["cat"], "n2"),
    ]
    assert known(classifier) == list(KIND)
    count = entries[2]["photos"]
    assert classifier.learned[2].norm() == pytest.approx(photo.LENGTH * count / (count + 3), rel=1e-5)
    mean = torch.stack([each.tokens.mean(dim=0) for each in PHOTOS]).mean(dim=0)
    assert classifier.learned[2] @ mean == pytest.approx(float(classifier.offsets[2]), abs=1e-5)
    there = np.array([bool(each.there[0]) for each in PHOTOS])
    found = hottest(classifier, PHOTOS, "person")
    assert found[there].min() > found[~there].max()
    few, entries = classifier_with(word_network(), table, PHOTOS[:5], learn(PHOTOS[:5]))
    assert [entry["words"][0] for entry in entries] == ["cat"], "fewer than three photos teach no new word"
    assert known(few) == ["cat"]


def test_presence_weights_both_answers_equally() -> None:
    pytest.importorskip("sklearn")
    offset, slope = fit_presence(np.array([0.0, 1, 2, 3] + [0.0, 1] * 50), np.array([False, False, True, True] + [False] * 100))
    assert slope > 0
    assert 1 < -offset / slope < 2


NOUNS = """  1 This line is the licence.
00000002 05 n 02 cat 0 true_cat 0 002 @ 00000001 n 0000 ~ 00000021 n 0000 | feline
00000004 06 n 01 crane 0 002 ~ 00000022 n 0000 ~i 00000023 n 0000 | a machine
00000003 05 n 01 bird 0 002 ~ 00000005 n 0000 ~ 00000024 n 0000 | feathered
00000005 05 n 01 crane 1 001 ~ 00000025 n 0000 | a bird
00000006 05 n 01 mouse 0 000 | a rodent
00000012 05 n 01 turkey 0 000 | a large bird
00000021 05 n 02 tabby 0 mouse 3 001 ~ 00000026 n 0000 | a striped cat
00000022 06 n 01 tower_crane 0 000 | a tall crane
00000023 06 n 01 Old_Crane 0 000 | the crane of a town
00000024 05 n 02 pigeon 0 cats 0 000 | a town bird
00000025 05 n 01 whooper 0 000 | a loud crane
00000026 05 n 02 tiger_cat 0 bank 2 000 | a wild tabby
"""
SENSES = """  1 This line is the licence.
tabby n 1 1 ~ 1 0 00000021
tower_crane n 1 0 1 0 00000022
old_crane n 1 0 1 0 00000023
pigeon n 1 1 @ 1 1 00000024
cats n 1 0 1 0 00000024
whooper n 1 0 1 0 00000025
tiger_cat n 1 0 1 0 00000026
bank n 2 0 2 2 00000099 00000026
mouse n 1 0 1 0 00000021
"""


def test_words_below_the_classes(tmp_path: Path) -> None:
    rename = {name: f"n{int(name[1:]):08}" for name in SYNSETS}
    table = {
        "classes": [rename[name] for name in ("n2", "n6", "n12", "n5", "n4")],  # of the classes 0 to 4
        "synsets": {rename[name]: synset for name, synset in SYNSETS.items()},
        "words": {word: [rename[name] for name in names] for word, names in WORDS.items()},
    }
    with pytest.raises(MissingDataError, match=r"data\.noun does not exist"):
        narrower_words(table, tmp_path)
    (tmp_path / "data.noun").write_text(NOUNS, encoding="utf-8")
    (tmp_path / "index.noun").write_text(SENSES, encoding="utf-8")
    found = narrower_words(table, tmp_path, ["n00000003"])
    # without instances, later senses ("bank"), known words ("cats", "mouse"), and hyponyms of the bird
    # crane, since the first sense of "crane" is the machine
    assert found == {"cat": ["tabby", "tiger cat"], "crane": ["tower crane"], "bird": ["pigeon"]}


def test_objectness_is_learned_from_all_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channel 3 shows things but for noise, channel 5 the large one alone, which is most of what is covered."""
    random, photos, embeddings = np.random.default_rng(0), [], {}
    for k in range(6):
        masks = np.zeros((3, 48, 64), bool)
        masks[0, 8:40, 4:36], masks[1, 4 * k : 4 * k + 4, 48:56] = True, True  # the third is in no place
        image = np.full((48, 64, 3), k, np.uint8)
        large, small = patch_shares(masks[:2], (12, 16))
        embeddings[k] = random.normal(0, 0.3, (8, 12, 16)).astype(np.float32)
        embeddings[k][3] += large + small
        embeddings[k][5] += large
        photos.append(SimpleNamespace(image=image, instances=[SimpleNamespace(mask=mask) for mask in masks]))
    photos.append(SimpleNamespace(image=np.full((48, 64, 3), 0, np.uint8), instances=[]))
    monkeypatch.setattr(photo, "open_photos", lambda _: photos)
    monkeypatch.setattr(photo, "photos_of", lambda *_: range(len(photos)))
    monkeypatch.setattr(Session, "embedding", lambda _, image: embeddings[int(image.pixels[0, 0, 0])])
    head = photo.learn_objectness(Path("coco"), tiny_predictor())
    for k, embedding in embeddings.items():
        told = head(embedding)
        on = photos[k].instances[0].mask | photos[k].instances[1].mask
        share = patch_shares(on[None], (12, 16))[0]
        assert told[share > 0.9].mean() > 0.6
        assert told[share < 0.1].mean() < 0.2
        assert told[k : k + 1, 12:14].mean() > 0.4, "the small one counts, too"
    finer = embeddings | {0: np.kron(embeddings[0], np.ones((1, 4, 4), np.float32))}  # the same image in more places
    monkeypatch.setattr(Session, "embedding", lambda _, image: finer[int(image.pixels[0, 0, 0])])
    again = photo.learn_objectness(Path("coco"), tiny_predictor())
    np.testing.assert_allclose(again.weight, head.weight, atol=0.01, err_msg="every photo counts alike")
