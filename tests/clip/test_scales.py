"""Several sizes of one image: one size is exactly the papers' way, more are the mean of what each says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture, tiny_clip, tiny_surgery
from torch.nn.functional import normalize

from text2sam.clip.pixels import whole_patches
from text2sam.clip.scales import average_scales, check_scales
from text2sam.clip.towers.base import TowerTokens
from text2sam.errors import InputError


def tokens(grid: tuple[int, int], seed: int, kinds: tuple[str, ...] = ()) -> TowerTokens:
    generator = torch.Generator().manual_seed(seed)

    def some() -> torch.Tensor:
        return normalize(torch.randn(2, 1 + grid[0] * grid[1], 5, generator=generator), dim=-1)

    return TowerTokens({path: some() for path in ("raw", "architecture", *kinds)}, grid)


@pytest.mark.parametrize("scales", [(), (0.0,), (-1,), (float("nan"),), (float("inf"),), ("a",), "12", 1.0, None, (9,)])
def test_unusable_scales(scales: Any) -> None:
    for call in (lambda: check_scales(scales), lambda: tiny_surgery(scales=scales)):
        with pytest.raises(InputError, match="scales must be numbers above 0"):
            call()


def test_one_scale_is_left_as_it_is() -> None:
    one = tokens((3, 4), 0)
    assert average_scales([one], (3, 4)) is one


def test_the_mean_is_that_of_loops_over_patches() -> None:
    grid, fine = (2, 3), (4, 6)
    a, b = tokens(grid, 0, ("gem",)), tokens(fine, 1, ("gem",))
    found = average_scales([a, b], grid)
    assert found.grid == grid
    assert found.paths.keys() == a.paths.keys()
    for mean, coarse, finer in ((found.paths[path], a.paths[path], b.paths[path]) for path in found.paths):
        assert mean.shape == coarse.shape
        torch.testing.assert_close(mean[:, 0], normalize(coarse[:, 0] + finer[:, 0], dim=-1))
        patches = finer[:, 1:].reshape(2, *fine, 5)
        for row in range(grid[0]):
            for column in range(grid[1]):
                # at half the size, a patch's centre lies in the middle of four
                four = patches[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
                expected = normalize(coarse[:, 1 + row * grid[1] + column] + four, dim=-1)
                torch.testing.assert_close(mean[:, 1 + row * grid[1] + column], expected)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
@pytest.mark.parametrize("size", [32, (64, 32), (32, 96)])
def test_maps_at_several_scales_are_means_of_maps(tower: str, size: Any) -> None:
    model, image = tiny_clip(tower), picture()

    def encoded(image_size: Any, scales: tuple[float, ...]) -> Any:
        return tiny_surgery(model, image_size=image_size, scales=scales).encode_image(image)

    height, width = size if isinstance(size, tuple) else (size, size)
    one, two = encoded(size, (1.0,)), encoded((2 * height, 2 * width), (1.0,))
    both, again = encoded(size, (1.0, 2.0)), encoded(size, (1.0, 1.0))
    assert both.grid == one.grid
    assert two.grid == (2 * one.grid[0], 2 * one.grid[1])
    torch.testing.assert_close(again.surgery, one.surgery)
    torch.testing.assert_close(both.raw[0], normalize(one.raw[0] + two.raw[0], dim=-1))
    fine = two.surgery[1:].reshape(one.grid[0], 2, one.grid[1], 2, -1).mean((1, 3)).flatten(0, 1)
    torch.testing.assert_close(both.surgery[1:], normalize(one.surgery[1:] + fine, dim=-1))


def test_another_scale_alone_keeps_the_grid_of_the_image_size() -> None:
    surgery = tiny_surgery(scales=(2.0,))
    features = surgery.encode_image(picture())
    plain = tiny_surgery().encode_image(picture())
    assert features.grid == plain.grid
    assert features.surgery.shape == plain.surgery.shape
    assert not torch.allclose(features.surgery, plain.surgery, atol=1e-3)


def test_a_scale_of_less_than_a_patch_is_one_patch() -> None:
    features = tiny_surgery(scales=(1e-6, 1.0)).encode_image(np.zeros((1, 1, 3), np.uint8))
    assert torch.isfinite(features.surgery).all()


def test_sizes_are_whole_pixels_before_they_are_whole_patches() -> None:
    assert whole_patches((100, 10), (32, 4), 5.596) == (576, 56)  # 559.6 is 560, and 17.5 patches are 18


def test_batches_and_tiles_are_encoded_at_every_scale() -> None:
    surgery = tiny_surgery(scales=(1.0, 0.5))
    images = [picture(0, 40, 60), picture(1, 60, 40)]
    for image, features in zip(images, surgery.encode(images), strict=True):
        torch.testing.assert_close(features.surgery, surgery.encode_image(image).surgery)
    large = picture(0, 200, 200)
    assert surgery.encode_image(large, tiles=100).grid != surgery.encode_image(large).grid
    plain, tiled = (one.encode_image(large, tiles=100) for one in (tiny_surgery(), surgery))
    for token in (slice(0, 1), slice(1, None)):  # the class token is the whole image's, the patches are the tiles'
        assert not torch.allclose(tiled.surgery[token], plain.surgery[token], atol=1e-3)
    whole = surgery.encode_image(large, tiles=1000)  # one tile covers it
    torch.testing.assert_close(whole.surgery, surgery.encode_image(large).surgery, rtol=0, atol=0)
