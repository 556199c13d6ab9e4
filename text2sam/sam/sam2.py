"""SAM 2 and SAM 2.1 built from their checkpoints by the package ``sam2``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from text2sam.errors import MissingDependencyError, WeightsError
from text2sam.zoo.state_dicts import misfit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_TRUNK = "image_encoder.trunk."
# (width, blocks) of the image encoder by the letter of its configuration.
_SIZES = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}


def sam2_config(state_dict: Mapping[str, Tensor]) -> str | None:
    """The configuration file of ``sam2`` that a state dict belongs to; None when it holds no SAM 2."""
    patches = state_dict.get(f"{_TRUNK}patch_embed.proj.weight")
    if patches is None:
        return None
    blocks = {key.split(".")[3] for key in state_dict if key.startswith(f"{_TRUNK}blocks.")}
    size = _SIZES.get((len(patches), len(blocks)))
    version = "sam2.1" if "no_obj_embed_spatial" in state_dict else "sam2"
    return None if size is None else f"configs/{version}/{version}_hiera_{size}.yaml"


def build_sam2_predictor(state_dict: Mapping[str, Tensor], source: str, device: torch.device) -> Any:
    """A ``SAM2ImagePredictor`` in float32 with the weights of a checkpoint.

    Args:
        state_dict: for which :func:`sam2_config` knows a configuration.
        source: where it comes from, for error messages.
        device: where it runs.

    Raises:
        MissingDependencyError: the package ``sam2`` is not installed.
        WeightsError: the weights do not fit the configuration.
    """
    config = sam2_config(state_dict)
    try:
        from sam2.build_sam import build_sam2
        from sam2.sam2_image_predictor import SAM2ImagePredictor
    except ImportError:
        raise MissingDependencyError("sam2", f"the SAM 2 in {source}") from None
    model = build_sam2(config, None, device="cpu")
    difference = misfit(model.state_dict(), state_dict)
    if difference:
        raise WeightsError(f"{source} does not fit {config}: {difference}")
    model.load_state_dict(state_dict)
    with warnings.catch_warnings():  # it compiles its transforms in a way that new versions of torch advise against
        warnings.simplefilter("ignore")
        return SAM2ImagePredictor(model.float().eval().requires_grad_(False).to(device))
