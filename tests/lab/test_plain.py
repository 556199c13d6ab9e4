"""The plain implementation gives the same numbers as text2sam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP
from segment_anything import SamPredictor
from torch.nn import functional as F

from text2sam import TextPromptedSAM
from text2sam.clip.generator import ClipSurgery
from text2sam.clip.prompts import PromptEnsemble
from text2sam.clip.similarity import feature_surgery
from text2sam.lab.bench.suites import draw
from text2sam.lab.experiments import plain
from text2sam.zoo.sticker.models import build_sam

TEMPLATES = ("a photo of a {}.", "{}", "a black and white photo of the {} in a video game.")


def _features(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return CLIP(16, vision, text).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_clip.get_tokenizer("ViT-B-32")


def test_a_label_set_of_one_text_gives_zeros() -> None:
    result = plain.feature_surgery(_features(2, 5, 8), _features(1, 8))
    assert result.shape == (2, 5, 1)
    assert result.abs().max() < 1e-6


@pytest.mark.parametrize("weighting", ["code", "paper"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("tokens", "texts", "channels"), [(2, 1, 1), (5, 2, 8), (17, 7, 32), (50, 59, 64)])
def test_label_sets_agree(batch: int, tokens: int, texts: int, channels: int, weighting: Any) -> None:
    image, text = _features(batch, tokens, channels), _features(texts, channels)
    for tau in (2.0, 20.0):
        theirs = plain.feature_surgery(image, text, tau=tau, weighting=weighting)
        ours = feature_surgery(image, text, tau=tau, weighting=weighting)
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("redundant", [1, 4])
def test_redundant_features_agree(redundant: int) -> None:
    image, text, shared = _features(2, 9, 16), _features(4, 16), _features(redundant, 16)
    theirs = plain.feature_surgery(image, text, shared)
    torch.testing.assert_close(feature_surgery(image, text, shared), theirs, atol=1e-6, rtol=0)


def test_ensembles_agree(clip: Any, tokenizer: Any) -> None:
    texts = ["cat", "", "a very long name of a thing with many words", "cat"]
    theirs = plain.prompt_ensemble(clip, tokenizer, texts, TEMPLATES)
    ours = PromptEnsemble(clip, tokenizer, templates=TEMPLATES)(texts)
    assert theirs.shape == (4, 16)
    assert (theirs[0] - theirs[1]).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_masks_and_maps_agree(clip: Any, tokenizer: Any) -> None:
    torch.manual_seed(1)
    predictor = SamPredictor(build_sam().eval())
    surgery = ClipSurgery(clip, tokenizer, image_size=(48, 64), depth=2, device="cpu", templates=TEMPLATES)
    image = draw((60, 90))
    with torch.inference_mode():
        mask, values = plain.segment(predictor, surgery, tokenizer, image, "cat")
    ours = TextPromptedSAM(predictor, surgery).segment(image, "cat", strategy="paper")
    assert values.shape == (6, 8)
    np.testing.assert_allclose(ours.similarity.values, values, atol=1e-5, rtol=0)
    assert 0 < mask.sum() < mask.size
    assert (mask == ours.mask).mean() > 0.99


def test_plain_agrees_with_the_reference(shared_data: Path) -> None:
    arrays = np.load(shared_data / "parity" / "clip_surgery_reference.npz")
    image, text, empty = (torch.from_numpy(arrays[name]) for name in ("fs_image", "fs_text", "fs_empty"))
    labels = plain.feature_surgery(image, text).numpy()
    single = plain.feature_surgery(image, text, empty).numpy()
    np.testing.assert_allclose(labels, arrays["fs_labels"], atol=1e-6)
    np.testing.assert_allclose(single, arrays["fs_single"], atol=1e-6)
