"""The adapters in sam/README.md, run."""

from __future__ import annotations

import re
import sys
import types
import warnings
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture, tiny_predictor, tiny_surgery
from segment_anything import SamPredictor

from text2sam.pipeline import TextPromptedSAM

PAGE = files("text2sam.sam").joinpath("README.md").read_text(encoding="utf-8")


def block(tag: str) -> dict[str, Any]:
    """The names that a block of the page defines."""
    [code] = re.findall(rf"^```python {tag}\n(.*?)^```", PAGE, re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_edge_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    class Edge(SamPredictor):
        """EdgeSAM's own signature in front of segment-anything's predictor."""

        def predict(  # type: ignore[override]
            self,
            features: Any = None,
            point_coords: Any = None,
            point_labels: Any = None,
            box: Any = None,
            mask_input: Any = None,
            num_multimask_outputs: int = 3,
            return_logits: bool = False,
            use_stability_score: bool = False,
        ) -> Any:
            assert features is None
            several = {3: True, 1: False}[num_multimask_outputs]
            return super().predict(point_coords, point_labels, box, mask_input, several, return_logits)

    package = types.ModuleType("edge_sam")
    package.SamPredictor = Edge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edge_sam", package)
    made, plain = block("edge")["EdgeSAM"](tiny_predictor().model), tiny_predictor()
    results = [TextPromptedSAM(p, tiny_surgery(), presence_threshold=0.0).segment(picture(), "cat") for p in (made, plain)]
    assert np.array_equal(results[0].mask, results[1].mask)


class Stand:
    """What the adapter reads of ultralytics' predictor."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def set_image(self, image: Any) -> None:
        assert image.flags.c_contiguous
        self.image = image

    def __call__(self, bboxes: Any, masks: Any, multimask_output: bool, points: Any = None, labels: Any = None) -> Any:
        self.seen.append((bboxes, None if masks is None else masks.shape, multimask_output, points, labels))
        count = 3 if multimask_output else 1
        found = torch.zeros(count, *self.image.shape[:2], dtype=torch.bool)
        found[:, 5:15, 5:25] = True
        data, scores = types.SimpleNamespace(data=found), types.SimpleNamespace(conf=torch.linspace(0.3, 0.9, count))
        return [types.SimpleNamespace(masks=data, boxes=scores)]


def test_ultralytics() -> None:
    stand = Stand()
    image = picture()
    model = TextPromptedSAM(block("ultralytics")["Ultralytics"](stand), tiny_surgery(), presence_threshold=0.0)
    result = model.segment(image, "cat")
    assert np.array_equal(stand.image, image[..., ::-1])
    assert result.mask[7, 7]
    assert not result.mask[20, 30]
    _, _, several, points, labels = stand.seen[0]
    assert several
    assert len(points[0]) == len(labels[0]) > 0


def test_ultralytics_itself() -> None:
    """Random weights of its SAM 2; runs where the package is installed."""
    pytest.importorskip("ultralytics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ultralytics.models.sam import SAM2Predictor
        from ultralytics.models.sam.build import build_sam2_t

        torch.manual_seed(0)
        settings = {"conf": 0.0, "task": "segment", "mode": "predict", "imgsz": 256, "save": False, "device": "cpu"}
        predictor = SAM2Predictor(overrides=settings | {"verbose": False})
        predictor.setup_model(build_sam2_t(), verbose=False)
        made = block("ultralytics")["Ultralytics"](predictor)
        result = TextPromptedSAM(made, tiny_surgery(), presence_threshold=0.0).segment(picture(), "cat")
    assert result.mask.shape == (30, 44)
