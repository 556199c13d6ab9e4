from __future__ import annotations

from importlib.resources import files

import open_clip
import pytest

from text2sam.clip.attention import METHODS
from text2sam.clip.towers.table import markdown, methods, tower_rows
from text2sam.errors import InputError

SAMPLE = (
    "coca_ViT-B-32",
    "convnext_tiny",
    "EVA01-g-14",
    "EVA02-B-16",
    "MobileCLIP-B",
    "MobileCLIP2-S3",
    "PE-Core-T-16-384",
    "RN50",
    "swin_base_patch4_window7_224",
    "ViT-B-16-quickgelu",
    "ViT-B-16-SigLIP2",
    "ViT-H-14-CLIPA",
    "ViT-H-14-worldwide",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
    "ViTamin-S",
    "xlm-roberta-base-ViT-B-32",
)
PAGE = files("text2sam.clip.towers").joinpath("README.md").read_text(encoding="utf-8")


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match=r"no model 'ViT-B-17'.*list_models"):
        tower_rows(["RN50", "ViT-B-17"])
    assert tower_rows([]) == []


def test_the_page_is_what_the_models_say() -> None:
    rows = tower_rows([name for name in SAMPLE if name in open_clip.list_models()])
    built = [row for row in rows if "this timm cannot build it" not in row.note]
    assert len(built) > 12
    for line in markdown(built).splitlines():
        assert line in PAGE.splitlines()


def test_the_page_names_nearly_all() -> None:
    table = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in PAGE.splitlines() if " | " in line}
    names = set(open_clip.list_models()) & table.keys()
    assert sum(table[name] != "refused" for name in names) >= 135
    assert [name for name in names if table[name] == "refused"] == ["vit_relpos_medium_patch16_cls_224"]


def test_rows() -> None:
    resnet, vit, refused, cnn = tower_rows(["RN50", "ViT-B-16", "vit_relpos_medium_patch16_cls_224", "convnext_tiny"])
    assert (resnet.adapter, resnet.patch, "maskclip" in resnet.methods, "gem" in resnet.methods) == (
        "ResNet",
        (32, 32),
        True,
        False,
    )
    assert (vit.methods, methods(vit), vit.size) == (tuple(METHODS), "all", (224, 224))
    assert (refused.adapter, refused.methods) == ("", ())
    assert "a bias on queries times keys" in refused.note
    assert set(cnn.methods) == {"surgery", "architecture", "features", "itsm", "rclip"}
    assert "LayerNorm2d" in cnn.note
