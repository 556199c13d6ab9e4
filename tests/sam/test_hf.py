"""transformers' SAMs as mask predictors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture, tiny_predictor, tiny_surgery

from text2sam.errors import MissingDependencyError, StateError, UnsupportedModelError, WeightsError
from text2sam.pipeline import TextPromptedSAM
from text2sam.sam import HFPredictor, build_predictor, predict_points
from text2sam.sam.session import Session
from text2sam.types import PointPrompts
from text2sam.zoo.presets import ModelOptions, get_preset, load_predictor

transformers = pytest.importorskip("transformers")

CLICKS = PointPrompts([[9, 9], [30, 20]], [1, 0])
RENAMED = {
    "image_encoder.": "vision_encoder.",
    "patch_embed.proj": "patch_embed.projection",
    ".blocks.": ".layers.",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "mask_downscaling.0": "mask_embed.conv1",
    "mask_downscaling.1": "mask_embed.layer_norm1",
    "mask_downscaling.3": "mask_embed.conv2",
    "mask_downscaling.4": "mask_embed.layer_norm2",
    "mask_downscaling.6": "mask_embed.conv3",
    "point_embeddings": "point_embed",
    "pe_layer.positional_encoding_gaussian_matrix": "shared_embedding.positional_embedding",
    "output_upscaling.0": "upscale_conv1",
    "output_upscaling.1": "upscale_layer_norm",
    "output_upscaling.3": "upscale_conv2",
    ".norm": ".layer_norm",
}


def vision(**more: Any) -> dict[str, Any]:
    """The sizes of the tests' own tiny ``Sam``."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_channels": 16, "mlp_dim": 64}
    sizes |= {"image_size": 64, "window_size": 0, "global_attn_indexes": [], "num_pos_feats": 8, "use_rel_pos": False}
    return sizes | more


PROMPTS = {"hidden_size": 16, "image_size": 64, "mask_input_channels": 4}
DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 16}


def sam_processor(kind: str = "SamImageProcessor") -> Any:
    side = {"height": 64, "width": 64}
    return getattr(transformers, kind)(size={"longest_edge": 64}, pad_size=side, mask_pad_size=side)


def square_processor(kind: str) -> Any:
    return getattr(transformers, f"{kind}ImageProcessor")(size={"height": 64, "width": 64})


def renamed(sam: Any) -> dict[str, torch.Tensor]:
    """segment-anything's weights under the names of transformers."""
    tensors = {}
    for key, value in sam.state_dict().items():
        new = key
        for old, name in RENAMED.items():
            new = new.replace(old, name)
        if "iou_prediction_head" in new or "output_hypernetworks_mlps" in new:
            for old, name in (("layers.0", "proj_in"), ("layers.1", "layers.0"), ("layers.2", "proj_out")):
                if old in new:
                    new = new.replace(old, name)
                    break
        tensors[new] = value
    positions = "prompt_encoder.shared_embedding.positional_embedding"
    tensors["shared_image_embedding.positional_embedding"] = tensors[positions]
    return tensors


def tiny_sam_model(sam: Any = None) -> Any:
    torch.manual_seed(0)
    config = transformers.SamConfig(vision_config=vision(), prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    model = transformers.SamModel(config).eval()
    if sam is not None:
        model.load_state_dict(renamed(sam))
    return model


def iou(a: Any, b: Any) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


@pytest.mark.parametrize("shape", [(30, 44), (44, 30), (64, 64), (7, 90)])
def test_segment_anythings_weights_give_its_masks(shape: tuple[int, int]) -> None:
    theirs = tiny_predictor()
    with torch.no_grad():  # masks that are neither empty nor full
        theirs.model.mask_decoder.output_upscaling[3].weight.mul_(20)
    mine, image = HFPredictor(tiny_sam_model(theirs.model), sam_processor("SamImageProcessorPil")), picture(1, *shape)
    theirs.set_image(image)
    mine.set_image(image)
    points = PointPrompts([[shape[1] // 3, shape[0] // 2], [1, 1]], [1, 0])
    low = None
    for options in ({}, {"box": np.array([1, 1, shape[1] - 2, shape[0] - 1], np.float32)}, {"multimask_output": False}):
        expected, found = (predict_points(p, points, shape=shape, **options) for p in (theirs, mine))  # type: ignore[arg-type]
        assert [a.shape for a in found] == [a.shape for a in expected]
        assert 0 < expected[0].mean() < 1
        np.testing.assert_allclose(found[1], expected[1], atol=0.02)
        assert iou(found[0], expected[0]) > 0.99
        low = expected[2][:1]
    again = [predict_points(p, points, mask_input=low, multimask_output=False) for p in (theirs, mine)]
    np.testing.assert_allclose(again[0][2], again[1][2], atol=0.05)  # too few pixels for their share to tell
    box = {"box": np.array([2, 2, 20, 6], np.float32)}
    alone = [predict_points(p, PointPrompts(np.zeros((0, 2)), []), **box) for p in (theirs, mine)]  # type: ignore[arg-type]
    assert iou(alone[0][0], alone[1][0]) > 0.99


@pytest.mark.parametrize("shape", [(30, 44), (44, 30), (64, 64)])
def test_segment_anythings_weights_give_its_embedding(shape: tuple[int, int]) -> None:
    theirs = tiny_predictor()
    mine = HFPredictor(tiny_sam_model(theirs.model), sam_processor("SamImageProcessorPil"))
    expected, found = (s.embedding(s.image(picture(1, *shape))) for s in (Session.of(theirs), Session.of(mine)))
    assert expected is not None
    assert found is not None
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0.1)  # rounding of resized pixels


def tiny(kind: str) -> tuple[Any, Any]:
    """A model of a kind with random weights, and its processor."""
    torch.manual_seed(0)
    if kind == "Sam":
        return tiny_sam_model(), sam_processor()
    if kind == "SamHQ":
        seen = vision(num_hidden_layers=4, global_attn_indexes=[0, 1, 2, 3])
        decoder = DECODER | {"vit_dim": 16}
        config = transformers.SamHQConfig(vision_config=seen, prompt_encoder_config=PROMPTS, mask_decoder_config=decoder)
        return transformers.SamHQModel(config).eval(), sam_processor()
    prompts = {"hidden_size": 32, "image_size": 64, "mask_input_channels": 16}
    decoder = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 16}
    if kind == "Sam3Tracker":
        vit = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}
        vit |= {"model_type": "sam3_vit_model", "patch_size": 16, "window_size": 2, "global_attn_indexes": [1]}
        seen = {"backbone_config": vit | {"pretrain_image_size": 32}, "fpn_hidden_size": 32}
        seen |= {"model_type": "sam3_vision_model", "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
        config = transformers.Sam3TrackerConfig(
            vision_config=seen, prompt_encoder_config=prompts | {"patch_size": 16}, mask_decoder_config=decoder
        )
        return transformers.Sam3TrackerModel(config).eval(), square_processor("Sam3")
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        patch_kernel_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    seen = transformers.Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    config = transformers.Sam2Config(vision_config=seen, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    return transformers.Sam2Model(config).eval(), square_processor("Sam2")


@pytest.mark.parametrize("kind", ["Sam", "SamHQ", "Sam2", "Sam3Tracker"])
def test_kinds_of_models(kind: str) -> None:
    model, processor = tiny(kind)
    predictor, image = HFPredictor(model, processor), picture(2)
    with pytest.raises(StateError, match="call set_image"):
        predictor.predict(np.zeros((1, 2)), np.ones(1))
    with pytest.raises(StateError, match="no image is set"):
        predict_points(predictor, CLICKS)
    predictor.set_image(image)
    for several in (True, False):
        masks, scores, low = predict_points(predictor, CLICKS, multimask_output=several, shape=(30, 44))
        assert masks.shape == (len(scores), 30, 44)
        assert len(scores) == (3 if several else 1)
        logits = predictor.predict(CLICKS.coords, CLICKS.labels, multimask_output=several, return_logits=True)[0]
        assert np.array_equal(logits > 0, masks)
        predict_points(predictor, CLICKS, mask_input=low[:1], multimask_output=False)
    moved = predict_points(predictor, PointPrompts([[40, 2]], [1]))[2]
    assert not np.allclose(moved, predict_points(predictor, PointPrompts([[9, 9]], [1]))[2])


def test_images_that_are_not_padded_fill_the_input() -> None:
    model, processor = tiny("Sam2")

    def as_in_transformers_4(**given: Any) -> Any:
        return {**processor(**given), "reshaped_input_sizes": torch.tensor([[30, 44]])}

    one, other = HFPredictor(model, processor), HFPredictor(model, as_in_transformers_4)
    for predictor in (one, other):
        predictor.set_image(picture(2))
    assert other.input_size == (64, 64)
    for a, b in zip(predict_points(one, CLICKS), predict_points(other, CLICKS), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", ["Sam", "SamHQ", "Sam2", "Sam3Tracker"])
def test_images_take_turns(kind: str) -> None:
    model, processor = tiny(kind)
    predictor = HFPredictor(model, processor)
    runs: list[int] = []
    model.vision_encoder.register_forward_pre_hook(lambda *_: runs.append(1))
    session = Session.of(predictor)
    assert session.keeps_state
    images = [session.image(picture(seed, *shape)) for seed, shape in ((1, (30, 44)), (2, (50, 20)))]
    first = [session.ask(image, CLICKS) for image in images]
    second = [session.ask(image, CLICKS) for image in images]
    assert len(runs) == 2
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one[0], two[0])
    embedding = session.embedding(images[0])
    assert embedding is not None
    assert embedding.shape[1:] == ((3, 4) if kind in ("Sam", "SamHQ") else (4, 4))
    session.reset()
    assert predictor.features is None


def test_what_is_no_model_of_transformers() -> None:
    model, processor = tiny("Sam")
    with pytest.raises(UnsupportedModelError, match=r"takes SamModel, SamHQModel.*not Sam"):
        HFPredictor(tiny_predictor().model, processor)
    with pytest.raises(UnsupportedModelError, match="the model's processor, not NoneType"):
        HFPredictor(model, None)


@pytest.mark.parametrize("kind", ["Sam", "Sam2"])
def test_folders(kind: str, tmp_path: Path) -> None:
    model, processor = tiny(kind)
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="no SAM of transformers with its processor"):
        build_predictor(None, tmp_path, device="cpu")
    processor.save_pretrained(tmp_path)
    found, direct = build_predictor(None, tmp_path, device="cpu"), HFPredictor(model, processor)
    assert type(found) is HFPredictor
    for predictor in (found, direct):
        predictor.set_image(picture(2))
    np.testing.assert_allclose(predict_points(found, CLICKS)[2], predict_points(direct, CLICKS)[2], rtol=1e-3, atol=1e-6)
    assert type(load_predictor(get_preset("mobile"), ModelOptions(device="cpu", sam_checkpoint=tmp_path))) is HFPredictor
    result = TextPromptedSAM(found, tiny_surgery(), presence_threshold=0.0).segment(picture(2), "cat")
    assert result.mask.shape == (30, 44)


def test_folders_of_other_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="no SAM of transformers"):
        build_predictor(None, tmp_path, device="cpu")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(WeightsError, match="model_type is 'clip', not one of sam, sam_hq"):
        build_predictor(None, tmp_path, device="cpu")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install transformers"):
        build_predictor(None, tmp_path, device="cpu")
