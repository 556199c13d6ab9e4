from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture, tiny_predictor
from segment_anything import SamPredictor
from torch.profiler import profile

from text2sam.errors import InputError, WeightsError
from text2sam.sam import MODEL_TYPES, build, build_predictor, build_sam, guess_model_type, predict_points
from text2sam.sam._half import HalfPrecisionEncoder
from text2sam.types import PointPrompts

CLICK = PointPrompts([[9, 9]], [1])


def tiny_sam(seed: int = 0) -> Any:
    return tiny_predictor(seed).model


def predictions(sam: Any) -> tuple[Any, ...]:
    predictor = SamPredictor(sam)
    predictor.set_image(picture(3))
    return predict_points(predictor, CLICK)


def stub(model_type: str) -> dict[str, torch.Tensor]:
    """The keys by which a model type is known, and no more."""
    if model_type == "vit_t":
        return {"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(32, 3, 3, 3)}
    width, depth = {"vit_b": (768, 12), "vit_l": (1024, 24), "vit_h": (1280, 32)}[model_type]
    blocks = {f"image_encoder.blocks.{i}.norm1.weight": torch.zeros(width) for i in range(depth)}
    return {"image_encoder.patch_embed.proj.weight": torch.zeros(width, 3, 16, 16), **blocks}


@pytest.fixture
def small_vit_b(monkeypatch: pytest.MonkeyPatch) -> None:
    """``vit_b`` builds the tiny model, with the builder's way of calling it."""
    import segment_anything

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda checkpoint: tiny_sam())
    monkeypatch.setitem(build._VIT_SHAPES, (16, 1), "vit_b")


def save(state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["", "vit_x", "VIT_B", "default", None])
def test_unknown_model_types(name: Any) -> None:
    with pytest.raises(InputError, match="vit_b, vit_l, vit_h, vit_t"):
        build_sam(name)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_guess_model_type(model_type: str) -> None:
    state = stub(model_type)
    assert guess_model_type(state) == model_type
    for key in list(state):
        assert guess_model_type({k: v for k, v in state.items() if k != key}) is None
    assert guess_model_type({}) is None
    assert guess_model_type({"image_encoder.patch_embed.proj.weight": torch.zeros(3)}) is None


@pytest.mark.parametrize(("asked", "given"), [("vit_h", "vit_t"), ("vit_t", "vit_b")])
def test_another_models_weights_are_recognised(tmp_path: Path, asked: str, given: str) -> None:
    path = save(stub(given), tmp_path)
    with pytest.raises(WeightsError, match=f"'{asked}'.*model_type='{given}'") as caught:
        build_sam(asked, path, device="cpu")
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("small_vit_b")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("mask_decoder.iou_token.weight"),
            r"1 missing \(mask_decoder.iou_token.weight\); the image encoder is",
        ),
        (lambda s: s.update({f"hq.{i}": torch.zeros(1) for i in range(5)}), r"5 unexpected \(hq.0, hq.1, hq.2, hq.3, ...\)"),
        (lambda s: s.update({"mask_decoder.iou_token.weight": torch.zeros(1, 7)}), r"weight is \(1, 7\), not \(1, 16\)"),
    ],
)
def test_misfits_are_named(tmp_path: Path, change: Any, message: str) -> None:
    state = dict(tiny_sam().state_dict())
    change(state)
    path = save(state, tmp_path)
    with pytest.raises(WeightsError, match=message) as caught:
        build_sam("vit_b", path, device="cpu")
    assert str(path) in str(caught.value)
    assert "looks like" not in str(caught.value)


@pytest.mark.usefixtures("small_vit_b")
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_weights_come_from_the_file_and_the_rest_is_right(tmp_path: Path, stored: torch.dtype) -> None:
    state = {k: v.to(stored) for k, v in tiny_sam(seed=7).state_dict().items()}
    sam = build_sam("vit_b", save(state, tmp_path), device="cpu")
    assert not sam.training
    assert not any(p.requires_grad for p in sam.parameters())
    assert not any(t.is_meta for t in [*sam.parameters(), *sam.buffers()])
    assert {t.dtype for t in [*sam.parameters(), *sam.buffers()]} == {torch.float32}
    assert sam.state_dict().keys() == state.keys()
    for key, value in sam.state_dict().items():
        assert torch.equal(value, state[key].float()), key
    np.testing.assert_allclose(sam.pixel_mean.flatten(), [123.675, 116.28, 103.53])
    np.testing.assert_allclose(sam.pixel_std.flatten(), [58.395, 57.12, 57.375])
    if stored == torch.float32:
        ours, plain = SamPredictor(sam), SamPredictor(tiny_sam(seed=7))
        for predictor in (ours, plain):
            predictor.set_image(picture(3))
        assert np.array_equal(predict_points(ours, CLICK)[2], predict_points(plain, CLICK)[2])


def test_the_real_vit_b_loads_its_own_keys(tmp_path: Path) -> None:
    import segment_anything

    with torch.device("meta"):
        shapes = segment_anything.sam_model_registry["vit_b"]().state_dict()
    # One stored zero per tensor: 375 MB need not be written.
    state = {k: torch.zeros(1).expand(v.shape) for k, v in shapes.items()}
    sam = build_sam("vit_b", save(state, tmp_path), device="cpu")
    assert sam.image_encoder.img_size == 1024
    assert not any(t.is_meta for t in [*sam.parameters(), *sam.buffers()])
    np.testing.assert_allclose(sam.pixel_mean.flatten(), [123.675, 116.28, 103.53])


def test_vit_t_without_weights_and_back_from_its_own_file(tmp_path: Path) -> None:
    sam = build_sam("vit_t", device="cpu")
    assert not sam.training
    assert not any(p.requires_grad for p in sam.parameters())
    again = build_sam("vit_t", save(sam.state_dict(), tmp_path), device="cpu")
    for key, value in sam.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    biases = [(a, b) for (a, b) in zip(sam.buffers(), again.buffers(), strict=True) if a.dtype == torch.int64]
    assert all(torch.equal(a, b) for a, b in biases)


@pytest.mark.usefixtures("small_vit_b")
def test_building_under_another_default_dtype(tmp_path: Path) -> None:
    path = save(tiny_sam(seed=7).state_dict(), tmp_path)
    expected = predictions(build_sam("vit_b", path, device="cpu"))
    torch.set_default_dtype(torch.float64)
    try:
        sam = build_sam("vit_b", path, device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in [*sam.parameters(), *sam.buffers()]} == {torch.float32}
    for value, right in zip(predictions(sam), expected, strict=True):
        np.testing.assert_array_equal(value, right)


# half precision


def test_half_precision_stays_in_the_encoder() -> None:
    plain, half = SamPredictor(tiny_sam()), SamPredictor(tiny_sam())
    half.model.image_encoder = HalfPrecisionEncoder(half.model.image_encoder, torch.bfloat16)
    dtypes = {p.ndim > 1: p.dtype for p in half.model.image_encoder.parameters()}
    assert dtypes == {True: torch.bfloat16, False: torch.float32}
    for predictor in (plain, half):
        predictor.set_image(picture(4))
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert half.features.dtype == torch.float32
    error = (half.features - plain.features).abs().max() / plain.features.abs().max()
    assert 0 < error < 0.05
    got, expected = (predict_points(p, CLICK)[2] for p in (half, plain))
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max() + 0.05


def test_mobile_sam_in_bfloat16_on_the_cpu() -> None:
    """Near float32, and by the kernels that make it fast."""
    torch.manual_seed(0)
    plain = build_predictor("vit_t", device="cpu")
    torch.manual_seed(0)
    half = build_predictor("vit_t", device="cpu", dtype="bfloat16")
    pixels = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    assert {p.dtype for p in half.model.image_encoder.parameters()} == {torch.bfloat16}
    with torch.inference_mode(), profile() as seen:
        features = half.model.image_encoder(pixels)
    with torch.inference_mode():
        expected = plain.model.image_encoder(pixels)
    assert features.dtype == torch.float32
    assert 0 < (features - expected).abs().max() < 0.05 * expected.abs().max()
    calls = {event.key for event in seen.key_averages()}
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        pytest.skip("this PyTorch has no fast attention on CPUs")
    assert {"mkldnn::_convolution_pointwise", "aten::_scaled_dot_product_flash_attention_for_cpu"} <= calls
    assert "aten::_softmax" not in calls


def test_half_precision_leaves_no_autocast_behind_an_error() -> None:
    encoder = HalfPrecisionEncoder(tiny_sam().image_encoder, torch.bfloat16)
    with pytest.raises(RuntimeError):
        encoder(torch.zeros(1, 3, 7, 7))
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_a_gpu(dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.manual_seed(0)
    half = build_sam("vit_t", device="cuda", dtype=dtype)
    torch.manual_seed(0)
    plain = build_sam("vit_t", device="cuda")
    features = []
    for sam in (half, plain):
        predictor = SamPredictor(sam)
        predictor.set_image(picture(4))
        features.append(predictor.features)
        predict_points(predictor, CLICK, shape=(30, 44))
    assert features[0].dtype == torch.float32
    assert (features[0] - features[1]).abs().max() < 0.1 * features[1].abs().max()
