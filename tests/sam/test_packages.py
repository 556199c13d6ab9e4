"""Predictors of other packages behind a session: each image is encoded once, whoever asks in which order."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture, tiny_surgery

from text2sam.errors import MissingDependencyError, WeightsError
from text2sam.pipeline import TextPromptedSAM
from text2sam.sam import build_predictor
from text2sam.sam.sam2 import sam2_config

SIZES = {"t": (96, 12), "s": (96, 16), "b+": (112, 24), "l": (144, 48)}


def hq() -> tuple[Any, Any]:
    package = pytest.importorskip("segment_anything_hq")
    modeling = package.modeling
    sam = modeling.Sam(
        modeling.ImageEncoderViT(
            img_size=64,
            patch_size=16,
            embed_dim=768,
            depth=1,
            num_heads=2,
            out_chans=256,
            window_size=2,
            global_attn_indexes=(0,),
        ),
        modeling.PromptEncoder(embed_dim=256, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
        modeling.MaskDecoderHQ(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(depth=1, embedding_dim=256, num_heads=2, mlp_dim=16),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=16,
            vit_dim=768,
        ),
    ).eval()
    return package.SamPredictor(sam), sam.image_encoder


def efficientvit() -> tuple[Any, Any]:
    pytest.importorskip("efficientsam")
    from efficientsam.models.efficientvit.sam import EfficientViTSamPredictor
    from efficientsam.sam_model_zoo import create_efficientvit_sam_model

    sam = create_efficientvit_sam_model("efficientvit-sam-l0", pretrained=False).eval()
    return EfficientViTSamPredictor(sam), sam.image_encoder


def mobile() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("mobile_sam")
        sam = package.sam_model_registry["vit_t"](checkpoint=None).eval()
    return package.SamPredictor(sam), sam.image_encoder


def sam2() -> tuple[Any, Any]:
    pytest.importorskip("sam2")
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SAM2ImagePredictor(model), model.image_encoder


@pytest.mark.parametrize("make", [hq, efficientvit, mobile, sam2])
def test_two_images_asked_in_turn_are_encoded_twice(make: Callable[[], tuple[Any, Any]]) -> None:
    torch.manual_seed(0)
    predictor, encoder = make()
    runs: list[int] = []
    encoder.register_forward_pre_hook(lambda *_: runs.append(1))
    model = TextPromptedSAM(predictor, tiny_surgery(), presence_threshold=0.0)
    images = [picture(1), picture(2, 60, 50)]
    encoded = model.encode(images, sam=True)
    results = [model.segment(encoded[i], "cat") for i in (0, 1, 0, 1)]
    assert len(runs) == 2
    for i, result in enumerate(results):
        assert result.mask.shape == images[i % 2].shape[:2]
        assert np.array_equal(result.mask, results[i % 2].mask)
    assert results[0].candidates is not None
    model.set_image(images[0])
    model.reset_image()
    kept = getattr(predictor, "features", None) if make is not sam2 else predictor._features
    assert kept is None


def trunk(size: str, version: str = "sam2.1") -> dict[str, torch.Tensor]:
    """The keys by which a size of SAM 2 is known, and no more."""
    width, blocks = SIZES[size]
    keys = {f"image_encoder.trunk.blocks.{i}.norm1.weight": torch.zeros(1) for i in range(blocks)}
    newer = {"no_obj_embed_spatial": torch.zeros(1, 64)} if version == "sam2.1" else {}
    return {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(width, 3, 7, 7), **keys, **newer}


@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
@pytest.mark.parametrize("size", SIZES)
def test_the_configuration_is_read_off_the_weights(size: str, version: str) -> None:
    assert sam2_config(trunk(size, version)) == f"configs/{version}/{version}_hiera_{size}.yaml"
    assert sam2_config({}) is None
    other = trunk(size, version)
    del other["image_encoder.trunk.blocks.0.norm1.weight"]
    assert sam2_config(other) is None


def test_files_of_sam_2(tmp_path: Path) -> None:
    predictor, _ = sam2()
    path = tmp_path / "weights.pt"
    torch.save({"model": predictor.model.state_dict()}, path)  # as Meta publishes it
    found = build_predictor(None, path, device="cpu")
    assert type(found) is type(predictor)
    state = found.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in predictor.model.state_dict().items())
    assert not any(p.requires_grad for p in found.model.parameters())
    torch.save(trunk("t"), path)
    with pytest.raises(WeightsError, match=r"weights\.pt does not fit configs/sam2\.1/sam2\.1_hiera_t\.yaml: \d+ missing"):
        build_predictor(None, path, device="cpu")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    torch.save(trunk("s"), path)
    monkeypatch.setitem(sys.modules, "sam2.build_sam", None)
    with pytest.raises(MissingDependencyError, match=r"the SAM 2 in .*weights\.pt needs the package 'sam2'"):
        build_predictor(None, path, device="cpu")
