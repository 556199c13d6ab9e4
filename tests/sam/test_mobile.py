from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from text2sam.errors import InputError, WeightsError
from text2sam.sam import build_predictor, predict_points
from text2sam.sam.mobile import MobileImageEncoder, rename_keys, window_offsets
from text2sam.types import PointPrompts


@pytest.fixture(scope="module")
def encoder() -> MobileImageEncoder:
    return MobileImageEncoder().eval()


@pytest.fixture(scope="module")
def mobile_checkpoint(shared_data: Path) -> Path:
    path = shared_data / "weights/mobile_sam.pt"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


@pytest.fixture(scope="module")
def predictor(mobile_checkpoint: Path) -> Any:
    return build_predictor("vit_t", mobile_checkpoint, device="cpu")


@pytest.mark.parametrize("shape", [(3, 1024, 1024), (1, 3, 1024, 512)])
def test_other_input_sizes_are_refused(encoder: MobileImageEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="1024"):
        encoder(torch.zeros(shape))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("patch_embed.seq.0.c.weight", "patch_embed.conv1.conv.weight"),
        ("layers.0.blocks.1.conv3.c.weight", "stages.0.blocks.1.conv3.conv.weight"),
        ("layers.0.downsample.conv2.bn.bias", "stages.1.downsample.conv2.bn.bias"),
        ("layers.2.blocks.5.attn.attention_biases", "stages.2.blocks.5.attn.attention_biases"),
        ("neck.2.weight", "neck.2.weight"),
    ],
)
def test_rename_keys(old: str, new: str) -> None:
    value = torch.zeros(1)
    given = {f"image_encoder.{old}": value}
    renamed = rename_keys(given)
    assert list(renamed) == [f"image_encoder.{new}"]
    assert renamed[f"image_encoder.{new}"] is value
    assert list(given) == [f"image_encoder.{old}"]
    assert list(rename_keys(renamed)) == list(renamed)


def test_rename_keys_drops_the_classifier_and_keeps_the_rest_of_sam() -> None:
    names = ["image_encoder.norm_head.weight", "image_encoder.head.bias", "image_encoder.layers.1.blocks.0.attn.ab"]
    kept = ["mask_decoder.layers.0.c.weight", "prompt_encoder.head.weight"]
    assert list(rename_keys({k: torch.zeros(1) for k in names + kept})) == kept


def test_rename_keys_that_collide() -> None:
    keys = ["image_encoder.layers.0.blocks.0.conv1.c.weight", "image_encoder.stages.0.blocks.0.conv1.conv.weight"]
    with pytest.raises(WeightsError, match="both mean"):
        rename_keys({k: torch.zeros(1) for k in keys})


def test_index_buffers_are_dropped_when_right_and_refused_when_wrong() -> None:
    key = "image_encoder.layers.1.blocks.0.attn.attention_bias_idxs"
    assert rename_keys({key: window_offsets(7)}) == {}
    for wrong in (window_offsets(7).flip(0), torch.tensor(0), torch.zeros(0, 0), torch.zeros(48, 48)):
        with pytest.raises(WeightsError, match="attention_bias_idxs"):
            rename_keys({key: wrong})


def test_window_offsets_are_timms(encoder: MobileImageEncoder) -> None:
    assert window_offsets(2).tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    for stage, window in ((1, 7), (2, 14), (3, 7)):
        assert torch.equal(encoder.stages[stage].blocks[0].attn.attention_bias_idxs, window_offsets(window))


def test_the_checkpoints_keys_are_the_encoders(encoder: MobileImageEncoder, mobile_checkpoint: Path) -> None:
    renamed = rename_keys(torch.load(mobile_checkpoint, weights_only=True))
    ours = {k.removeprefix("image_encoder."): v.shape for k, v in renamed.items() if k.startswith("image_encoder.")}
    assert ours == {k: v.shape for k, v in encoder.state_dict().items()}


def test_the_encoder_agrees_with_mobile_sam(predictor: Any, mobile_checkpoint: Path) -> None:
    if importlib.util.find_spec("mobile_sam") is None:
        pytest.skip("the package mobile_sam (mobilesam-mirror) is not installed")
    with warnings.catch_warnings():
        # It registers models timm has already, by import paths timm has given up.
        warnings.simplefilter("ignore")
        from mobile_sam import sam_model_registry

        reference = sam_model_registry["vit_t"](checkpoint=None)
    reference.load_state_dict(torch.load(mobile_checkpoint, weights_only=True))
    reference.eval()
    pixels = torch.randn((1, 3, 1024, 1024), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = predictor.model.image_encoder(pixels), reference.image_encoder(pixels)
    assert ours.shape == (1, 256, 64, 64)
    assert theirs.std() > 0.01
    assert (ours - theirs).abs().max() < 1e-4
    for part in ("prompt_encoder", "mask_decoder"):
        state = getattr(predictor.model, part).state_dict()
        assert all(torch.equal(state[k], v) for k, v in getattr(reference, part).state_dict().items())
    assert torch.equal(predictor.model.pixel_mean, reference.pixel_mean)
    assert torch.equal(predictor.model.pixel_std, reference.pixel_std)


def test_a_click_on_the_cat_gives_the_cat(predictor: Any) -> None:
    import skimage.data

    image = skimage.data.chelsea()
    predictor.set_image(image)
    between_the_eyes = PointPrompts(np.array([[225, 130]], np.float32), np.ones(1, np.uint8))
    masks, scores, logits = predict_points(predictor, between_the_eyes, shape=image.shape[:2])
    assert masks.shape == (3, 300, 451)
    assert logits.shape == (3, 256, 256)
    cat = masks[scores.argmax()]
    assert scores.max() > 0.9
    assert 0.6 < cat.mean() < 0.8
    on = [(170, 120), (315, 135), (265, 245), (200, 40), (350, 40), (80, 150), (100, 230)]
    off = [(445, 5), (445, 295), (5, 5), (400, 150), (430, 220)]
    assert [bool(cat[y, x]) for x, y in on] == [True] * len(on)
    assert [bool(cat[y, x]) for x, y in off] == [False] * len(off)
