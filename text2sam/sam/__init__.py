"""Mask predictors: Segment Anything, MobileSAM, and anything that behaves like ``SamPredictor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from text2sam.sam.build import MODEL_TYPES, build_predictor, build_sam, guess_model_type
from text2sam.sam.predictor import MaskPredictor, check_predictor, predict_points

if TYPE_CHECKING:
    from text2sam.sam.hf import HFPredictor
    from text2sam.sam.mobile import MobileImageEncoder

__all__ = [
    "MODEL_TYPES",
    "HFPredictor",
    "MaskPredictor",
    "MobileImageEncoder",
    "build_predictor",
    "build_sam",
    "check_predictor",
    "guess_model_type",
    "predict_points",
]


def __getattr__(name: str) -> Any:
    # With torch in them: imported on demand, so that this package stays light.
    if name == "MobileImageEncoder":
        from text2sam.sam.mobile import MobileImageEncoder

        return MobileImageEncoder
    if name == "HFPredictor":
        from text2sam.sam.hf import HFPredictor

        return HFPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
