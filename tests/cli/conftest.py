"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import picture
from PIL import Image
from standins import Model

from text2sam.pipeline import TextPromptedSAM


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """The model that all commands build."""
    stand_in = Model()
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", stand_in.build)
    return stand_in


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    Image.fromarray(picture()).save(path)
    return path
