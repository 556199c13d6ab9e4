"""Measures the sticker pair on scenes never drawn in training: ``python -m text2sam.lab.sticker.evaluate``.

Maps, clicks and the papers' recipe, on the scenes of the seeds 0 to 299 (training draws from 1,000,000,000 upwards): 1 to 4
things of different names, four sizes of at least 224 pixels. Every name in a scene is one case. Recipes are compared by
:mod:`text2sam.lab.experiments.sticker`, whose way of judging an answer is used here too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.clip.generator import ClipSurgery, Method
from text2sam.clip.tiles import Tiles
from text2sam.lab.experiments.sticker import Answer, judge
from text2sam.lab.metrics import MapSample, auroc, explainability, map_sample
from text2sam.lab.sticker.world import SIZES, THINGS, Scene, World, background, inner_point
from text2sam.pipeline import TextPromptedSAM
from text2sam.recipes.choose import mask_iou
from text2sam.types import SimilarityMap
from text2sam.zoo.presets import build_clip

VARIANTS: dict[str, tuple[Method, tuple[str, ...] | None]] = {
    "itsm": ("itsm", None),
    "architecture": ("architecture", None),
    "surgery": ("surgery", None),
    "surgery_labels": ("surgery", tuple(THINGS)),
}
"""What is compared: raw similarity, architecture surgery, and both surgeries against the empty text (a single
text) and against the label set of all names (the papers' explainability protocol)."""
THRESHOLDS = tuple(np.linspace(0.05, 0.95, 19).tolist())


def evaluation_scenes(seeds: Iterable[int]) -> Iterable[Scene]:
    """The scenes of the evaluation, one at a time; scenes in which no thing found a place are left out."""
    for seed in seeds:
        scene = World(size=SIZES[seed % len(SIZES)], objects=(1, 4)).scene(seed)
        if scene.objects:
            yield scene


def measure_maps(surgery: ClipSurgery, scenes: Iterable[Scene], variants: Sequence[str] = tuple(VARIANTS)) -> dict[str, Any]:
    """Explainability figures of similarity maps.

    Args:
        surgery: makes the maps.
        scenes: where to look for every name that is in them.
        variants: keys of :data:`VARIANTS`.

    Returns:
        variant -> ``hottest_on_object``, the share of cases whose hottest patch has its centre on the object;
        ``hottest_touches``, whose hottest patch covers some of the object; ``miou``, mean IoU in percent of the min-max map
        with the mask at the one threshold that is best for all cases, and that ``threshold``; ``msc``, mean of the
        map on the object minus mean off it, in percent. And ``presence``: how well the score separates the names in a scene
        from five that are not, as area under the ROC curve, error rates at a threshold of one half, and medians.
    """
    found = {v: MapTally() for v in variants}
    present: list[float] = []
    absent: list[float] = []
    rng = np.random.default_rng(0)
    for scene in scenes:
        features = surgery.encode_image(scene.image)
        missing = [n for n in THINGS if n not in scene.names]
        absent += [surgery.presence(features, missing[int(i)]) for i in rng.integers(len(missing), size=5)]
        present += [surgery.presence(features, n) for n in scene.names]
        for variant in variants:
            method, against = VARIANTS[variant]
            for m in surgery.maps(features, scene.names, method=method, against=against):
                found[variant].add(m, scene.mask(m.text))
    result: dict[str, Any] = {variant: tally.figures() for variant, tally in found.items()}
    result["presence"] = _presence_figures(np.array(present), np.array(absent))
    return result


class MapTally:
    """Figures of one way of making maps, case by case; see :func:`measure_maps` for what they are."""

    def __init__(self) -> None:
        self.samples: list[MapSample] = []
        self.on: list[bool] = []
        self.touches: list[bool] = []

    def add(self, m: SimilarityMap, mask: NDArray[np.bool_]) -> None:
        """Holds a map against the mask (H, W) bool of what its text names; not empty."""
        h, w = mask.shape
        x, y = (int(v) for v in m.peak((h, w)))
        rows, columns = (int(np.ceil(n / g / 2)) for n, g in zip((h, w), m.values.shape, strict=True))
        patch = mask[max(0, y - rows) : y + rows + 1, max(0, x - columns) : x + columns + 1]
        self.samples.append(map_sample(m.text, m.to_image((h, w)), mask, THRESHOLDS))
        self.on.append(bool(mask[y, x]))
        self.touches.append(bool(patch.any()))

    def figures(self) -> dict[str, Any]:
        """JSON-ready."""
        found = explainability(self.samples, thresholds=THRESHOLDS)
        return {
            "cases": found.samples,
            "hottest_on_object": round(float(np.mean(self.on)), 4),
            "hottest_touches": round(float(np.mean(self.touches)), 4),
            "miou": round(found.miou, 2),
            "threshold": round(found.threshold, 2),
            "msc": round(found.msc, 2),
        }


def _presence_figures(present: NDArray[np.float64], absent: NDArray[np.float64]) -> dict[str, float]:
    return {
        "auroc": round(auroc(present, absent), 4),
        "missed_at_half": round(float((present < 0.5).mean()), 4),
        "false_at_half": round(float((absent >= 0.5).mean()), 4),
        "present_median": round(float(np.median(present)), 4),
        "absent_median": round(float(np.median(absent)), 4),
    }


def measure_clicks(predictor: Any, scenes: Iterable[Scene]) -> dict[str, Any]:
    """IoU of SAM clicked once in the middle of each object: the mask it scores highest, and the best of three."""
    by_score, best, error = [], [], []
    for scene in scenes:
        predictor.set_image(scene.image)
        for o in scene.objects:
            masks, scores, _ = predictor.predict(np.array([inner_point(o.mask)]), np.array([1]), multimask_output=True)
            ious = [mask_iou(m, o.mask) for m in masks]
            by_score.append(ious[int(np.argmax(scores))])
            best.append(max(ious))
            error.append(abs(float(np.max(scores)) - by_score[-1]))
    return {
        "clicks": len(best),
        "iou_by_score": round(float(np.mean(by_score)), 4),
        "iou_best_of_three": round(float(np.mean(best)), 4),
        "score_error": round(float(np.mean(error)), 4),
    }


def large_picture(scene: Scene, shape: tuple[int, int] = (1200, 1600)) -> Scene:
    """A scene somewhere in a picture of (H, W) pixels that is otherwise background; the same for the same scene."""
    rng = np.random.default_rng(scene.seed)
    image = background(rng, shape).copy()
    h, w = scene.image.shape[:2]
    y, x = (int(rng.integers(whole - part + 1)) for whole, part in zip(shape, (h, w), strict=True))
    image[y : y + h, x : x + w] = scene.image
    around = ((y, shape[0] - y - h), (x, shape[1] - x - w))
    return Scene(image, tuple(replace(o, mask=np.pad(o.mask, around)) for o in scene.objects), scene.seed)


_WAYS: dict[str, Tiles] = {"whole": False, "tiles": "auto"}


def measure_tiles(surgery: ClipSurgery, scenes: Iterable[Scene]) -> dict[str, Any]:
    """How often the hottest place of the map lies on the object in pictures far larger than CLIP's input.

    Returns:
        ``cases``, and the share of them without tiles (``whole``) and with ``tiles="auto"`` (``tiles``).
    """
    on: dict[str, list[bool]] = {way: [] for way in _WAYS}
    for scene in scenes:
        for way, tiles in _WAYS.items():
            for m in surgery.similarity(scene.image, scene.names, tiles=tiles):
                x, y = (int(v) for v in m.peak(scene.image.shape[:2]))
                on[way].append(bool(scene.mask(m.text)[y, x]))
    return {"cases": len(on["whole"])} | {way: round(float(np.mean(found)), 4) for way, found in on.items()}


def measure_segment(model: TextPromptedSAM, scenes: Iterable[Scene], against: Sequence[str] | None = None) -> dict[str, Any]:
    """IoU of the papers' recipe over all names of all scenes, and the share of positive points on the object."""
    answers: list[Answer] = []
    for scene in scenes:
        results = model.segment_many(scene.image, scene.names, strategy="paper", against=against)
        answers += [judge(scene, result.text, result) for result in results]
    return {
        "cases": len(answers),
        "iou": round(float(np.mean([answer.iou for answer in answers])), 4),
        "iou_best_of_three": round(float(np.mean([answer.best for answer in answers])), 4),
        "positive_points_on_object": round(sum(a.points_on for a in answers) / max(1, sum(a.points for a in answers)), 4),
    }


def measure(model: TextPromptedSAM, at_scales: ClipSurgery, count: int = 300) -> dict[str, Any]:
    """All figures of a pair on the evaluation scenes, and those of the maps of its CLIP at several scales."""
    scenes = list(evaluation_scenes(range(count)))
    started = time.time()
    return {
        "scenes": len(scenes),
        "maps": measure_maps(model.generator, scenes),
        "maps_at_scales": {
            "scales": at_scales.scales,
            **measure_maps(at_scales, scenes, ["architecture", "surgery", "surgery_labels"]),
        },
        "clicks": measure_clicks(model.predictor, scenes),
        "segment_paper": measure_segment(model, scenes),
        "segment_paper_labels": measure_segment(model, scenes, against=tuple(THINGS)),
        "seconds": round(time.time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--sam-checkpoint", default=None, help="another SAM, such as mobile_sam.pt")
    parser.add_argument("--device", default=None)
    parser.add_argument("--tiles", action="store_true", help="instead: the same scenes in pictures of 1600 x 1200 pixels")
    parser.add_argument("--out", type=Path, default=None, help="write the figures to this JSON file too")
    arguments = parser.parse_args()
    model = TextPromptedSAM.from_pretrained(
        "sticker", sam_checkpoint=arguments.sam_checkpoint, device=arguments.device, scales=(1.0,)
    )
    if arguments.tiles:
        scenes = map(large_picture, evaluation_scenes(range(arguments.scenes)))
        figures = {"tiles": measure_tiles(model.generator, scenes)}
    else:
        figures = measure(model, build_clip("sticker", device=arguments.device), arguments.scenes)
    print(json.dumps(figures, indent=1))
    if arguments.out:
        from text2sam.files import write_json

        write_json(arguments.out, figures)


if __name__ == "__main__":
    main()
