"""Measures maps, clicks and the papers' recipe with the sticker pair: ``python -m text2sam.lab.sticker.evaluate``.

The scenes of the seeds 0 to 299, which training does not use, have 1 to 4 things with different names, in four sizes of at
least 224 pixels. Every name in a scene is a case. :mod:`text2sam.lab.experiments.sticker` compares recipes.
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
from text2sam.files import write_json
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
"""Name -> method and label set: raw similarity, architecture surgery, and both surgeries with a single text and with all
names as label set (the papers' explainability protocol)."""
THRESHOLDS = tuple(np.linspace(0.05, 0.95, 19).tolist())


def evaluation_scenes(seeds: Iterable[int]) -> Iterable[Scene]:
    """The evaluation scenes, without empty scenes."""
    for seed in seeds:
        scene = World(size=SIZES[seed % len(SIZES)], objects=(1, 4)).scene(seed)
        if scene.objects:
            yield scene


def measure_maps(surgery: ClipSurgery, scenes: Iterable[Scene], variants: Sequence[str] = tuple(VARIANTS)) -> dict[str, Any]:
    """Explainability figures of the maps of :data:`VARIANTS`, and figures of presence.

    Returns:
        variant -> figures of :class:`MapTally`; and ``presence``: AUROC of the scores of names in a scene against five absent
        names, error rates at a threshold of 0.5, and medians.
    """
    tallies = {v: MapTally() for v in variants}
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
                tallies[variant].add(m, scene.mask(m.text))
    result: dict[str, Any] = {variant: tally.figures() for variant, tally in tallies.items()}
    result["presence"] = {
        "auroc": round(auroc(present, absent), 4),
        "missed_at_half": round(float((np.array(present) < 0.5).mean()), 4),
        "false_at_half": round(float((np.array(absent) >= 0.5).mean()), 4),
        "present_median": round(float(np.median(present)), 4),
        "absent_median": round(float(np.median(absent)), 4),
    }
    return result


class MapTally:
    """Collects the figures of one kind of map."""

    def __init__(self) -> None:
        self.samples: list[MapSample] = []
        self.on: list[bool] = []
        self.touches: list[bool] = []

    def add(self, m: SimilarityMap, mask: NDArray[np.bool_]) -> None:
        """Compares a map with the mask (H, W) bool, not empty, of its text."""
        h, w = mask.shape
        x, y = (int(v) for v in m.peak((h, w)))
        rows, columns = (int(np.ceil(n / g / 2)) for n, g in zip((h, w), m.values.shape, strict=True))
        patch = mask[max(0, y - rows) : y + rows + 1, max(0, x - columns) : x + columns + 1]
        self.samples.append(map_sample(m.text, m.to_image((h, w)), mask, THRESHOLDS))
        self.on.append(bool(mask[y, x]))
        self.touches.append(bool(patch.any()))

    def figures(self) -> dict[str, Any]:
        """``cases``; ``hottest_on_object`` and ``hottest_touches``, the shares of cases whose hottest patch has its centre on
        the object, or overlaps it; ``miou`` and ``threshold``, ``msc``, see :func:`~text2sam.lab.metrics.explainability`."""
        result = explainability(self.samples, THRESHOLDS)
        return {
            "cases": result["samples"],
            "hottest_on_object": round(float(np.mean(self.on)), 4),
            "hottest_touches": round(float(np.mean(self.touches)), 4),
            "miou": round(result["miou_dataset"], 2),
            "threshold": round(result["threshold"], 2),
            "msc": round(result["msc"], 2),
        }


def measure_clicks(predictor: Any, scenes: Iterable[Scene]) -> dict[str, Any]:
    """IoU of SAM's mask with the highest score, and of the best of three, for a click in the middle of each object."""
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
    """A scene at a random position in an image of (H, W) pixels, with background around it."""
    rng = np.random.default_rng(scene.seed)
    image = background(rng, shape).copy()
    h, w = scene.image.shape[:2]
    y, x = (int(rng.integers(whole - part + 1)) for whole, part in zip(shape, (h, w), strict=True))
    image[y : y + h, x : x + w] = scene.image
    around = ((y, shape[0] - y - h), (x, shape[1] - x - w))
    return Scene(image, tuple(replace(o, mask=np.pad(o.mask, around)) for o in scene.objects), scene.seed)


def measure_tiles(surgery: ClipSurgery, scenes: Iterable[Scene]) -> dict[str, Any]:
    """Share of cases whose map peaks on the object, without tiles (``whole``) and with ``tiles="auto"`` (``tiles``)."""
    settings: dict[str, Tiles] = {"whole": False, "tiles": "auto"}
    on: dict[str, list[bool]] = {name: [] for name in settings}
    for scene in scenes:
        for name, tiles in settings.items():
            for m in surgery.similarity(scene.image, scene.names, tiles=tiles):
                x, y = (int(v) for v in m.peak(scene.image.shape[:2]))
                on[name].append(bool(scene.mask(m.text)[y, x]))
    return {"cases": len(on["whole"])} | {name: round(float(np.mean(values)), 4) for name, values in on.items()}


def measure_segment(model: TextPromptedSAM, scenes: Iterable[Scene], against: Sequence[str] | None = None) -> dict[str, Any]:
    """IoU of the papers' recipe over all names of all scenes, and the share of its positive points on the object."""
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
    """All figures of a pair, and those of maps at several scales by ``at_scales``."""
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
    parser.add_argument("--sam-checkpoint", default=None, help="SAM weights other than the shipped, such as mobile_sam.pt")
    parser.add_argument("--device", default=None)
    parser.add_argument("--tiles", action="store_true", help="measure tiles instead, in images of 1600 x 1200 pixels")
    parser.add_argument("--out", type=Path, default=None, help="also write the figures to this JSON file")
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
        write_json(arguments.out, figures)


if __name__ == "__main__":
    main()
