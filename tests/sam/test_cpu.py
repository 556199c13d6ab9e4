"""SAM's prompts on CPUs: parity with segment-anything's own modules."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from helpers import draw_weights, picture, tiny_predictor
from segment_anything import SamPredictor
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

from text2sam.masks import LogitMasks
from text2sam.sam import build_predictor, predict_points
from text2sam.sam.cpu import CPUPredictor, hasten_decoder
from text2sam.types import Candidates, PointPrompts


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Segment-anything's own predictor with drawn weights, and ours."""
    sam = draw_weights(tiny_predictor().model, 0.3)
    plain, ours = SamPredictor(sam), CPUPredictor(copy.deepcopy(sam))
    hasten_decoder(ours.model)
    for predictor in (plain, ours):
        predictor.set_image(picture(4))
    return plain, ours


@pytest.mark.parametrize(
    "prompts",
    [
        {"point_coords": np.array([[9.0, 9.0], [40.0, 20.0]]), "point_labels": np.array([1, 0])},
        {"box": np.array([3.0, 4.0, 30.0, 25.0])},
        {"mask_input": np.linspace(-9, 9, 16 * 16, dtype=np.float32).reshape(1, 16, 16), "multimask_output": False},
    ],
    ids=["points", "box", "mask"],
)
@pytest.mark.parametrize("logits", [False, True])
def test_answers_are_those_of_segment_anything(pair: tuple[Any, Any], prompts: dict[str, Any], logits: bool) -> None:
    plain, ours = (predictor.predict(**prompts, return_logits=logits) for predictor in pair)
    near = np.abs(pair[0].predict(**prompts, return_logits=True)[0]) < 1e-3
    assert ours[0].dtype == plain[0].dtype
    if logits:
        np.testing.assert_allclose(ours[0], plain[0], atol=1e-3)
    else:
        assert plain[0].any()
        assert not plain[0].all()
        assert not ((ours[0] != plain[0]) & ~near).any()
    np.testing.assert_allclose(ours[1], plain[1], atol=1e-4)
    np.testing.assert_allclose(ours[2], plain[2], atol=1e-3)


def test_several_prompts_at_once(pair: tuple[Any, Any]) -> None:
    points, labels = torch.tensor([[[20.0, 30.0]], [[60.0, 10.0]], [[5.0, 5.0]]]), torch.ones(3, 1)
    (_, scores, logits), (_, ours, own) = (predictor.predict_torch(points, labels) for predictor in pair)
    assert own.shape == (3, 3, 16, 16)
    torch.testing.assert_close(own, logits, rtol=0, atol=1e-3)
    torch.testing.assert_close(ours, scores, rtol=0, atol=1e-4)


def test_no_image() -> None:
    with pytest.raises(RuntimeError, match="set_image"):
        CPUPredictor(tiny_predictor().model).predict_torch(None, None)


@pytest.mark.parametrize("shape", [(30, 44), (700, 500), (1, 90)])
def test_masks_made_later_are_the_same(shape: tuple[int, int]) -> None:
    predictor = CPUPredictor(draw_weights(tiny_predictor().model, 0.3))
    predictor.set_image(np.resize(picture(4), (*shape, 3)))
    points = PointPrompts([[shape[1] // 2, shape[0] // 2], [3, 0]], [1, 0])
    later, *others = predict_points(predictor, points, lazy=True)
    assert isinstance(later, LogitMasks)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            made = [np.asarray(later), np.stack([later[k] for k in range(3)])]
    finally:
        torch.set_default_dtype(torch.float32)
    masks, scores, logits = predict_points(predictor, points)
    assert isinstance(masks, np.ndarray)
    assert all(np.array_equal(each, masks) for each in made)
    assert all(np.array_equal(a, b) for a, b in zip(others, (scores, logits), strict=True))
    assert len(later) == 3
    assert later.shape == masks.shape
    assert np.array_equal(pickle.loads(pickle.dumps(later)), masks)
    offered = Candidates(later, scores, logits, 1, "")  # type: ignore[arg-type]
    assert np.array_equal(pickle.loads(pickle.dumps(offered)).masks, masks)
    assert offered.shape == shape


def test_who_changes_the_masks_is_asked_for_them() -> None:
    class Inverse(CPUPredictor):
        def predict(self, *prompts: Any, **options: Any) -> Any:
            masks, *others = super().predict(*prompts, **options)
            return ~masks, *others

    found = []
    for kind in (CPUPredictor, Inverse):
        predictor = kind(tiny_predictor().model)
        predictor.set_image(picture(4))
        found.append(predict_points(predictor, PointPrompts([[9, 9]], [1]), lazy=True)[0])
    assert np.array_equal(~np.asarray(found[0]), found[1])


def test_projections_of_an_image_are_kept_until_something_changes() -> None:
    model = draw_weights(tiny_predictor().model, 0.3)
    predictor = CPUPredictor(hastened := copy.deepcopy(model))
    hasten_decoder(hastened)
    prompts = [
        {"point_coords": np.array([[9.0, 9.0]]), "point_labels": np.array([1])},
        {"mask_input": np.linspace(-9, 9, 16 * 16, dtype=np.float32).reshape(1, 16, 16)},
        {"box": np.array([3.0, 4.0, 30.0, 25.0])},
    ]

    def compare(*images: Any) -> None:
        for image, prompt in itertools.product(images, prompts):
            fresh = CPUPredictor(copy.deepcopy(hastened))
            for each in (predictor, fresh):
                each.set_image(image)
            for one, other in zip(predictor.predict(**prompt), fresh.predict(**prompt), strict=True):
                assert np.array_equal(one, other)

    compare(picture(4), picture(5), picture(4))
    layer = hastened.mask_decoder.transformer.layers[0].cross_attn_token_to_image.k_proj
    assert "_held" in vars(layer)
    assert "_held" not in vars(copy.deepcopy(layer))
    with torch.no_grad():
        layer.weight.mul_(-1)
    compare(picture(4))
    layer.bias.data = layer.bias + 1
    compare(picture(4))
    predictor.set_image(picture(6))
    with torch.autocast("cpu", torch.bfloat16), contextlib.suppress(TypeError):  # NumPy has no bfloat16
        predictor.predict(**prompts[0])
    compare(picture(6))


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (31, 7), (480, 640), (1024, 1024), (1500, 2001)])
def test_masks_are_those_of_two_interpolations(shape: tuple[int, int]) -> None:
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    side = 256
    filled = (max(1, round(side * shape[0] / max(shape))), max(1, round(side * shape[1] / max(shape))))
    sam = Sam.__new__(Sam)
    nn.Module.__init__(sam)
    sam.image_encoder = nn.Identity()
    sam.image_encoder.img_size = side
    expected = sam.postprocess_masks(logits, filled, shape)
    for threshold in (0.0, 0.7):
        masks = np.asarray(LogitMasks(logits.numpy(), side, filled, shape, threshold))
        assert masks.shape == (2, 3, *shape)
        assert not ((torch.from_numpy(masks) != (expected > threshold)) & ((expected - threshold).abs() > 1e-5)).any()


def test_what_is_not_segment_anythings_own_stays() -> None:
    class Mine(LayerNorm2d):  # type: ignore[misc]
        pass

    model = nn.ModuleList([Mine(4), nn.ConvTranspose2d(4, 2, 3, stride=2), nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)])
    kinds = [type(module) for module in model]
    hasten_decoder(model)
    assert [type(module) for module in model] == kinds


@pytest.mark.parametrize("bias", [True, False])
def test_a_doubling_convolution(bias: bool) -> None:
    layer = nn.ConvTranspose2d(5, 3, 2, stride=2, bias=bias)
    x = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    hasten_decoder(nn.Sequential(layer))
    assert "Doubling" in type(layer).__name__
    torch.testing.assert_close(layer(x), expected)


def test_position_tables_are_made_once_and_again_for_other_weights(pair: tuple[Any, Any]) -> None:
    encoder = copy.deepcopy(pair[1].model.prompt_encoder)
    table = encoder.get_dense_pe()
    assert encoder.get_dense_pe() is table
    encoder.pe_layer.positional_encoding_gaussian_matrix = 2 * encoder.pe_layer.positional_encoding_gaussian_matrix
    assert not torch.equal(encoder.get_dense_pe(), table)


def test_the_builder_takes_them() -> None:
    predictor = build_predictor("vit_t", device="cpu")
    assert isinstance(predictor, CPUPredictor)
    assert type(predictor.model.mask_decoder) is not MaskDecoder
    assert isinstance(predictor.model.mask_decoder, MaskDecoder)
    predictor.set_image(picture(4))
    masks, scores, logits = predictor.predict(np.array([[9.0, 9.0]]), np.array([1]))
    assert (masks.dtype, masks.shape, scores.shape, logits.shape) == (np.bool_, (3, 30, 44), (3,), (3, 256, 256))
