"""The table of checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from text2sam.errors import WeightsError
from text2sam.zoo.download import file_sha256
from text2sam.zoo.state_dicts import load_state_dict
from text2sam.zoo.table import CHECKPOINTS, checkpoint


def test_the_table_is_well_formed() -> None:
    assert {item.model for item in CHECKPOINTS.values() if item.kind == "sam"} == {"vit_t", "vit_b", "vit_l", "vit_h", None}
    for name, item in CHECKPOINTS.items():
        assert name == item.name == name.lower()
        assert item.licence
        assert item.pretrained == ("openai" if name.endswith("-openai") else None)
        if item.sha256 is None:  # nothing to check a download against
            assert not item.urls
            assert "https://" in item.get
            continue
        assert re.fullmatch("[0-9a-f]{64}", item.sha256)
        assert item.urls
        assert all(url.startswith("https://") and url.endswith(f"/{item.filename}") for url in item.urls)
        if item.pretrained:
            assert item.sha256 in item.urls[0]
    assert len({item.filename for item in CHECKPOINTS.values()}) == len(CHECKPOINTS)


def test_the_table_holds_every_openai_model_of_open_clip() -> None:
    from open_clip.pretrained import get_pretrained_url, list_pretrained

    urls = {get_pretrained_url(model, tag) for model, tag in list_pretrained() if tag == "openai"}
    ours = {item.urls[0] for item in CHECKPOINTS.values() if item.pretrained}
    assert ours == urls
    for item in CHECKPOINTS.values():
        if item.pretrained:
            assert get_pretrained_url(str(item.model), item.pretrained) == item.urls[0]


def test_mobile_sam_of_the_table_is_the_real_file(shared_data: Path) -> None:
    real = shared_data / "weights" / "mobile_sam.pt"
    item = checkpoint("mobile-sam")
    assert (real.stat().st_size, file_sha256(real)) == (item.size, item.sha256)
    state = load_state_dict(real)
    assert state["image_encoder.patch_embed.seq.0.c.weight"].shape == (32, 3, 3, 3)
    assert "mask_decoder.iou_token.weight" in state


@pytest.mark.parametrize(
    ("wrong", "meant"), [("mobile_sam", "mobile-sam"), ("sam-vitb", "sam-vit-b"), ("ViT-B-16", "clip-vit-b-16-openai")]
)
def test_an_unknown_name_suggests_close_ones(wrong: str, meant: str) -> None:
    with pytest.raises(WeightsError, match=f"did you mean .*{meant}"):
        checkpoint(wrong)
