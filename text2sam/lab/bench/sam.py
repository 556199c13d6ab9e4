"""The suite ``sam``: MobileSAM's image encoder and prompts on a CPU, against the same weights in segment-anything."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from text2sam.lab.bench.timing import alternate, timed_row


def measure_sam(settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Times of encoder and prompts with random weights, by the settings of the suites."""
    from segment_anything import SamPredictor

    from text2sam.sam.build import build_predictor, build_sam

    def drawn(build: Any, dtype: str = "float32") -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build("vit_t", device="cpu", dtype=dtype)

    plain, ours, half = SamPredictor(drawn(build_sam)), drawn(build_predictor), drawn(build_predictor, "bfloat16")
    side = plain.model.image_encoder.img_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    predictors = {"plain": plain, "ours": ours, "bfloat16": half}
    encoders = {name: predictor.model.image_encoder for name, predictor in predictors.items()}
    with torch.inference_mode():
        features = {name: encoder(pixels) for name, encoder in encoders.items()}
        sides = {name: partial(encoder, pixels) for name, encoder in encoders.items()}
        times = alternate(sides, settings.sam_rounds, warm_up=False)
    rows = [
        timed_row("MobileSAM's image encoder, against plain", times["ours"], times["plain"], 1.5),
        timed_row("MobileSAM's image encoder in bfloat16, against float32", times["bfloat16"], times["ours"]),
    ]
    details: dict[str, Any] = {
        "difference": float((features["ours"] - features["plain"]).abs().max()),
        "difference_bfloat16": float((features["bfloat16"] - features["plain"]).abs().max()),
        "times": times,
    }
    for height, width in (settings.image_shape, settings.large_shape):
        for predictor in (plain, ours):
            predictor.original_size, predictor.is_image_set = (height, width), True
            predictor.input_size = predictor.transform.get_preprocess_shape(height, width, side)
            predictor.features = features["plain"]
        points, labels = np.array([[0.4 * width, 0.5 * height], [0.1 * width, 0.1 * height]]), np.array([1, 0])
        prompts = {
            "ours": partial(ours.predict, points, labels),
            "one": partial(_one_mask, ours, points, labels),
            "plain": partial(plain.predict, points, labels),
        }
        ours.predict(points, labels)  # of an image's first prompt something is kept
        prompted = alternate(prompts, settings.sam_rounds, warm_up=False)
        details[f"prompt_{height}x{width}"] = prompted
        for name, masks in (("ours", "all masks"), ("one", "one mask")):
            what = f"a further prompt on {width} x {height} pixels, {masks}, against SamPredictor's all"
            rows.append(timed_row(what, prompted[name], prompted["plain"]))
    return details, rows


def _one_mask(predictor: Any, *prompts: Any) -> Any:
    return predictor.predict(*prompts, lazy=True)[0][0]
