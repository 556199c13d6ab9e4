from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError, StateError, UnsupportedModelError, WeightsError
from text2sam.sam import MaskPredictor, build_sam, check_predictor, guess_model_type, predict_points
from text2sam.sam import predictor as module
from text2sam.sam._half import HalfPrecisionEncoder
from text2sam.types import PointPrompts

H, W = 40, 56


def tiny_sam(seed: int = 0) -> Sam:
    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(
            img_size=64,
            patch_size=16,
            embed_dim=16,
            depth=2,
            num_heads=2,
            out_chans=16,
            use_rel_pos=True,
            window_size=2,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
        MaskDecoder(
            transformer_dim=16,
            transformer=TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=16),
            iou_head_hidden_dim=16,
        ),
    )
    return sam.eval().requires_grad_(False)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def click(*xy: tuple[float, float]) -> PointPrompts:
    return PointPrompts(np.array(xy, np.float32).reshape(-1, 2), np.ones(len(xy), np.uint8))


class Fake:
    """A foreign predictor: answers what it is told and remembers what it was asked."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.images: list[np.ndarray] = []
        self.asked: dict[str, Any] = {}

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def predict(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Any:
        self.asked = {"coords": point_coords, "labels": point_labels, "box": box, "mask": mask_input, "multi": multimask_output}
        return self.answer


def an_answer(m: int = 3, **changed: Any) -> tuple[Any, Any, Any]:
    parts = {
        "masks": np.arange(m * H * W).reshape(m, H, W) % 2 == 0,
        "scores": np.linspace(0.1, 0.9, m, dtype=np.float32),
        "logits": np.zeros((m, 8, 8), np.float32),
    }
    parts.update(changed)
    return parts["masks"], parts["scores"], parts["logits"]


# devices


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "cpu:-2", "meta", "xla"])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(InputError, match="device"):
        pick_device(device)


@pytest.mark.parametrize("device", [0, 1.5, b"cpu", ["cpu"]])
def test_devices_of_another_type(device: Any) -> None:
    with pytest.raises(InputError, match=type(device).__name__):
        pick_device(device)


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_device_order(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: int, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick_device() == torch.device(expected)
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    for kind, count in (("cuda", cuda), ("mps", mps)):
        if count:
            assert pick_device(kind) == torch.device(kind)
            assert pick_device(f"{kind}:0") == torch.device(kind, 0)
            with pytest.raises(InputError, match="which has 1"):
                pick_device(f"{kind}:1")
        else:
            with pytest.raises(InputError, match="not on this machine"):
                pick_device(kind)


def test_dtypes() -> None:
    assert check_dtype(None, "cpu") == check_dtype("float32", "cpu") == check_dtype(torch.float32, "cuda") == torch.float32
    assert check_dtype("float16", "cuda:0") == check_dtype(torch.float16, torch.device("mps")) == torch.float16
    assert check_dtype("torch.bfloat16", "cuda") == torch.bfloat16
    for half in ("float16", torch.bfloat16):
        with pytest.raises(InputError, match="float32"):
            check_dtype(half, "cpu")
    for wrong in ("half", "int8", torch.float64, 16, np.float32):
        with pytest.raises(InputError, match="dtype"):
            check_dtype(wrong, "cuda")  # type: ignore[arg-type]


# the protocol


def test_import_stays_light() -> None:
    code = "import sys, text2sam.sam; print([m for m in ('torch', 'timm', 'segment_anything') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_predictors_that_fit() -> None:
    for predictor in (SamPredictor(tiny_sam()), Fake()):
        assert check_predictor(predictor) is predictor
        assert isinstance(predictor, MaskPredictor)

    class Starred:
        def set_image(self, *args: Any) -> None: ...

        def predict(self, **kwargs: Any) -> None: ...

    assert check_predictor(Starred())


def test_predictors_that_do_not_fit() -> None:
    class NoKeywords(Fake):
        def predict(self, point_coords: Any, point_labels: Any, box: Any = None, multimask_output: bool = True) -> None: ...

    class NoArgument(Fake):
        def set_image(self) -> None: ...

    cases = [
        (None, "NoneType.*set_image.*predict"),
        (SimpleNamespace(set_image=print), "no method predict$"),
        (SimpleNamespace(predict=print, set_image=3), "no method set_image$"),
        (tiny_sam(), r"SamPredictor\(sam\)"),
        (SamPredictor, "class SamPredictor"),
        (NoKeywords(), "keyword arguments mask_input, return_logits of"),
        (NoArgument(), r"NoArgument.set_image"),
    ]
    for predictor, message in cases:
        with pytest.raises(UnsupportedModelError, match=message):
            check_predictor(predictor)


# predict_points


def test_nothing_to_ask_for() -> None:
    with pytest.raises(InputError, match="at least one point"):
        predict_points(Fake(an_answer()), PointPrompts.empty())


def test_no_image_set() -> None:
    with pytest.raises(StateError, match="set_image"):
        predict_points(SamPredictor(tiny_sam()), click((1, 1)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "NoneType"),
        (np.zeros((3, H, W)), "ndarray"),
        (an_answer()[:2], "tuple of 2"),
        (an_answer(masks=np.zeros((1, 3, H, W), bool)), r"\(1, 3, 40, 56\)"),
        (an_answer(masks=np.zeros((2, H, W), bool)), r"\(2, 40, 56\), \(3,\)"),
        (an_answer(scores=np.zeros((1, 3))), r"\(1, 3\)"),
        (an_answer(scores=np.float32(1)), r"\(\)"),
        (an_answer(logits=np.zeros((8, 8))), r"\(8, 8\)"),
        (an_answer(0), r"\(0, 40, 56\)"),
        (an_answer(masks=np.zeros((3, 0, 0), bool)), r"\(3, 0, 0\)"),
        (an_answer(masks=np.zeros((3, W, H), bool)), r"\(56, 40\) for an image of \(40, 56\)"),
        (an_answer(scores=np.array([0.1, np.nan, 0.2])), "not finite"),
        (an_answer(scores=np.array(["a", "b", "c"])), "numbers"),
    ],
)
def test_answers_that_do_not_fit(answer: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        predict_points(Fake(answer), click((1, 1)), shape=(H, W))
    assert "Fake.predict" in str(caught.value)


def test_prompts_that_do_not_fit() -> None:
    fake = Fake(an_answer())
    for box in ([1, 2, 3], [[1, 2, 3, 4]], [1, 2, 3, np.inf]):
        with pytest.raises(InputError, match="box"):
            predict_points(fake, click((1, 1)), box=np.array(box))
    for shape in ((8, 8), (3, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(InputError, match="mask_input"):
            predict_points(fake, click((1, 1)), mask_input=np.zeros(shape, np.float32))


def test_points_are_passed_on_unshifted_and_unshared() -> None:
    fake, points = Fake(an_answer()), PointPrompts(np.array([[3, 4], [0, 39]], np.float32), np.array([1, 0], np.uint8))
    predict_points(fake, points, multimask_output=False, box=np.array([1, 2, 3, 4]), mask_input=np.ones((1, 8, 8)))
    np.testing.assert_array_equal(fake.asked["coords"], points.coords)
    np.testing.assert_array_equal(fake.asked["labels"], [1, 0])
    np.testing.assert_array_equal(fake.asked["box"], [1, 2, 3, 4])
    assert fake.asked["mask"].shape == (1, 8, 8)
    assert fake.asked["multi"] is False
    fake.asked["coords"] += 1
    np.testing.assert_array_equal(points.coords, [[3, 4], [0, 39]])


def test_a_box_alone() -> None:
    fake = Fake(an_answer())
    predict_points(fake, PointPrompts.empty(), box=np.array([1, 2, 3, 4], np.float32))
    assert fake.asked["coords"] is None
    assert fake.asked["labels"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_become_arrays(dtype: torch.dtype) -> None:
    masks, _, logits = an_answer()
    # SAM 2 answers its masks as 0.0 and 1.0, and a regression may leave [0, 1].
    answer = [
        torch.from_numpy(masks).to(dtype),
        torch.tensor([-0.25, 0.5, 1.25], dtype=dtype),
        torch.from_numpy(logits).to(dtype),
    ]
    answer[1].requires_grad_()
    got = predict_points(Fake(answer), click((1, 1)))
    np.testing.assert_array_equal(got[0], masks)
    np.testing.assert_array_equal(got[1], [0, 0.5, 1])
    assert [a.dtype for a in got] == [np.bool_, np.float32, np.float32]


def test_masks_as_logits_are_cut_at_zero() -> None:
    masks = np.resize(np.array([-3.0, 0.0, 0.25, 3.0], np.float32), (3, H, W))
    got = predict_points(Fake(an_answer(masks=masks)), click((1, 1)))[0]
    assert got[0, 0, :4].tolist() == [False, False, True, True]


@pytest.mark.parametrize("multimask", [True, False])
def test_a_real_predictor(multimask: bool) -> None:
    predictor = SamPredictor(tiny_sam())
    predictor.set_image(picture(0))
    points = click((10, 20), (30, 5))
    expected = predictor.predict(points.coords, points.labels, multimask_output=multimask)
    masks, scores, logits = predict_points(predictor, points, multimask_output=multimask, shape=(H, W))
    assert masks.shape == (3 if multimask else 1, H, W)
    np.testing.assert_array_equal(masks, expected[0])
    np.testing.assert_array_equal(scores, expected[1].clip(0, 1))
    np.testing.assert_array_equal(logits, expected[2])
    refined = predict_points(predictor, points, mask_input=logits[:1])
    assert not np.array_equal(refined[2][0], logits[0])


# builders and checkpoints


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
    monkeypatch.setitem(module._VIT_SHAPES, (16, 2), "vit_b")


def save(state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["", "vit_x", "VIT_B", "default", None])
def test_unknown_model_types(name: Any) -> None:
    with pytest.raises(InputError, match="vit_b, vit_l, vit_h, vit_t"):
        build_sam(name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        build_sam("vit_b", tmp_path / "absent.pth", device="cpu")


def test_half_precision_is_not_for_the_cpu() -> None:
    with pytest.raises(InputError, match="float32"):
        build_sam("vit_b", device="cpu", dtype="float16")


@pytest.mark.parametrize("model_type", module.MODEL_TYPES)
def test_guess_model_type(model_type: str) -> None:
    state = stub(model_type)
    assert guess_model_type(state) == model_type
    for key in list(state):
        assert guess_model_type({k: v for k, v in state.items() if k != key}) is None
    assert guess_model_type({}) is None
    assert guess_model_type({"image_encoder.patch_embed.proj.weight": torch.zeros(3)}) is None


@pytest.mark.parametrize(("asked", "given"), [("vit_b", "vit_h"), ("vit_h", "vit_t"), ("vit_t", "vit_b"), ("vit_l", "vit_b")])
def test_another_models_weights_are_recognised(tmp_path: Path, asked: str, given: str) -> None:
    path = save(stub(given), tmp_path)
    with pytest.raises(WeightsError, match=f"'{asked}'.*model_type='{given}'") as caught:
        build_sam(asked, path, device="cpu")
    assert str(path) in str(caught.value)


def test_foreign_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"vit_t.* missing .*1 unexpected \(visual.proj\).*none of vit_b"):
        build_sam("vit_t", save({"visual.proj": torch.zeros(2)}, tmp_path), device="cpu")


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
        assert np.array_equal(predict_points(ours, click((9, 9)))[2], predict_points(plain, click((9, 9)))[2])


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
    assert isinstance(sam, Sam)
    assert not sam.training
    assert not any(p.requires_grad for p in sam.parameters())
    again = build_sam("vit_t", save(sam.state_dict(), tmp_path), device="cpu")
    for key, value in sam.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    biases = [(a, b) for (a, b) in zip(sam.buffers(), again.buffers(), strict=True) if a.dtype == torch.int64]
    assert all(torch.equal(a, b) for a, b in biases)


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
    got, expected = (predict_points(p, click((9, 9)))[2] for p in (half, plain))
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max() + 0.05


def test_half_precision_answers_in_float32_whatever_comes_last() -> None:
    last = torch.nn.Conv2d(3, 4, 16, 16)
    last.img_size = 64
    with torch.no_grad():
        assert HalfPrecisionEncoder(last, torch.bfloat16)(torch.ones(1, 3, 64, 64)).dtype == torch.float32


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
        predict_points(predictor, click((9, 9)), shape=(H, W))
    assert features[0].dtype == torch.float32
    assert (features[0] - features[1]).abs().max() < 0.1 * features[1].abs().max()
