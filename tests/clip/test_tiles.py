from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import count_calls, picture, surgery_tokens, tiny_clip, tiny_surgery
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

from text2sam.clip.attention import METHODS
from text2sam.clip.generator import ClipSurgery
from text2sam.clip.tiles import AUTO_FACTOR, MAX_GRID, OVERLAP, TileLayout, blend_tiles, tile_layout, tile_weights
from text2sam.errors import ImageError, InputError

SHAPES = [(1, 2), (2, 1), (16, 16), (40, 4000), (4000, 40), (1, 100_000), (120, 160), (161, 159), (997, 1013), (10_000, 10_000)]
INPUTS = [((16, 16), (4, 4)), ((12, 20), (3, 5)), ((64, 64), (2, 2)), ((32, 32), (1, 1)), ((160, 160), (20, 20))]


@pytest.fixture(scope="module")
def surgery() -> ClipSurgery:
    return tiny_surgery()


def total_weights(layout: TileLayout) -> NDArray[np.float64]:
    """(gh, gw): what the weights of all tiles add up to in each cell."""
    (th, tw), total = layout.tile, np.zeros(layout.grid)
    rows, columns = tile_weights(layout.rows, th, layout.grid[0]), tile_weights(layout.columns, tw, layout.grid[1])
    for (row, column), (y, x) in zip(layout.corners, np.ndindex(len(rows), len(columns)), strict=True):
        total[row : row + th, column : column + tw] += np.outer(rows[y], columns[x])
    return total


# what is refused


@pytest.mark.parametrize("tiles", [0, -1, True, None, "all", "", 8.0, (8, 8), np.False_])
def test_unusable_tiles(surgery: ClipSurgery, tiles: Any) -> None:
    with pytest.raises(InputError, match="tiles must be 'auto', False or"):
        surgery.encode_image(picture(), tiles=tiles)


@pytest.mark.parametrize("tiles", [False, "auto", 8])
def test_other_arguments_out_of_range(surgery: ClipSurgery, tiles: Any) -> None:
    for size in (0, -1, True, 2.0, None):
        with pytest.raises(InputError, match="batch_size must be"):
            surgery.encode_image(picture(), tiles=tiles, batch_size=size)
    with pytest.raises(ImageError):
        surgery.encode_image("not/there.png", tiles=tiles)


# where tiles lie


@pytest.mark.parametrize("tiles", [False, "auto", 1, 7, 16, 10_000])
def test_one_pixel_is_one_tile(tiles: Any) -> None:
    assert tile_layout((1, 1), (16, 16), (4, 4), tiles) == TileLayout((4, 4), (4, 4), (0,), (0,))


@pytest.mark.parametrize("shape", SHAPES)
def test_no_tiles(shape: tuple[int, int]) -> None:
    for image_size, tile in INPUTS:
        one = TileLayout(tile, tile, (0,), (0,))
        assert tile_layout(shape, image_size, tile, False) == one
        # a tile that covers the picture, of an input that may not be square
        needed = max(n / s for n, s in zip(shape, image_size, strict=True)) * max(image_size)
        assert tile_layout(shape, image_size, tile, int(np.ceil(needed))) == one


def test_auto_begins_beyond_its_factor() -> None:
    def tiles(*shape: int) -> int:
        return len(tile_layout(shape, (16, 32), (4, 8), "auto"))

    high, wide = 16 * AUTO_FACTOR, 32 * AUTO_FACTOR
    assert tiles(high, wide) == tiles(high, 1) == tiles(1, wide) == 1
    assert min(tiles(high + 1, wide), tiles(high, wide + 1)) > 1


@pytest.mark.parametrize(("image_size", "tile"), INPUTS)
@pytest.mark.parametrize("tiles", ["auto", 1, 7, 50, 400])
def test_tiles_cover_the_picture(image_size: tuple[int, int], tile: tuple[int, int], tiles: Any) -> None:
    for shape in SHAPES:
        layout = tile_layout(shape, image_size, tile, tiles)
        assert layout.tile == tile
        assert layout.grid[0] * layout.grid[1] <= MAX_GRID * tile[0] * tile[1]
        assert len(layout.corners) == len(layout) <= 49
        for starts, grid, side in zip((layout.rows, layout.columns), layout.grid, tile, strict=True):
            assert starts[0] == 0
            assert starts[-1] + side == grid
            steps = np.diff(starts)
            assert (steps >= 1).all()
            assert (steps <= max(1, side * (1 - OVERLAP))).all()
            weights = tile_weights(starts, side, grid)
            assert weights.dtype == np.float32
            assert weights.min() > 0
        np.testing.assert_allclose(total_weights(layout), 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tiles", ["auto", 50, 90])
@pytest.mark.parametrize("shape", [(600, 601), (397, 820), (3000, 4000), (8000, 1100), (104, 1000)])
@pytest.mark.parametrize("image_size", [(160, 160), (96, 160)])
def test_tiles_keep_their_aspect(shape: tuple[int, int], image_size: tuple[int, int], tiles: Any) -> None:
    cells = (image_size[0] // 8, image_size[1] // 8)
    layout = tile_layout(shape, image_size, cells, tiles)
    cell = [n / g for n, g in zip(shape, layout.grid, strict=True)]
    assert len(layout) > 1
    # half a cell lost on one axis and won on the other
    assert abs(np.log(cell[0] / cell[1])) <= 1 / min(layout.grid)


def test_sides_of_tiles() -> None:
    def sides(shape: tuple[int, int], tiles: Any) -> tuple[float, float]:
        layout = tile_layout(shape, (160, 160), (20, 20), tiles)
        return shape[0] * 20 / layout.grid[0], shape[1] * 20 / layout.grid[1]

    assert sides((600, 500), 200) == pytest.approx((200, 200))
    assert sides((600, 500), "auto") == pytest.approx((160, 160), rel=0.01)  # CLIP's own resolution
    assert sides((100, 700), "auto") == pytest.approx((100, 100), rel=0.01)  # as high as the picture
    assert sides((2000, 2000), "auto") == sides((2000, 2000), 7) == pytest.approx((500, 500))  # no more than 4 x 4
    assert sides((40, 4000), "auto") == pytest.approx((40, 250))  # the same number of cells in one row
    assert len(tile_layout((40, 4000), (160, 160), (20, 20), "auto").rows) == 1


# blending


def test_weights_by_hand() -> None:
    np.testing.assert_allclose(tile_weights([0], 3, 3), [[1, 1, 1]])
    low, high = np.sin(np.pi / 8) ** 2, np.sin(3 * np.pi / 8) ** 2  # of the four cells of a tile: low, high, high, low
    found = tile_weights([0, 2], 4, 6)
    np.testing.assert_allclose(found, [[1, 1, high, low], [low, high, 1, 1]], atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 40), (30, 100), (16, 90), (64, 64)])
@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_blending_is_a_weighted_mean(shape: tuple[int, int], batch: int) -> None:
    layout = tile_layout(shape, (16, 16), (4, 4), 16)
    tiles = torch.from_numpy(np.random.default_rng(0).standard_normal((len(layout), 4, 4, 2, 3)).astype(np.float32))
    found = blend_tiles(tiles.split(batch), layout)
    assert found.dtype == torch.float32
    distance = np.abs(np.arange(4) - 1.5)  # of a cell from the middle of its tile
    for y, x in np.ndindex(*layout.grid):
        weights, values = [], []
        for (row, column), tile in zip(layout.corners, tiles.numpy(), strict=True):
            if row <= y < row + 4 and column <= x < column + 4:
                near = np.cos(np.pi * distance[y - row] / 4) * np.cos(np.pi * distance[x - column] / 4)
                weights.append(near**2)
                values.append(tile[y - row, x - column])
        np.testing.assert_allclose(found[y, x], np.average(values, axis=0, weights=weights), rtol=0, atol=1e-5)


def test_batches_are_not_kept() -> None:
    layout = tile_layout((60, 60), (16, 16), (4, 4), 16)
    before: list[weakref.ref[torch.Tensor]] = []

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(len(layout)):
            # the last one is still bound to the loop that asks for the next
            assert all(reference() is None for reference in before[:-1])
            batch = torch.zeros(1, 4, 4, 8)
            before.append(weakref.ref(batch))
            yield batch
            del batch

    blend_tiles(batches(), layout)
    assert len(before) == len(layout) > 4


# the features of an image


@pytest.mark.parametrize("image_size", [16, (12, 20)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 9), (30, 44), (48, 2), (40, 60)])
def test_one_tile_is_no_tiles(image_size: Any, height: int, width: int) -> None:
    surgery, image = tiny_surgery(image_size=image_size), picture(0, height, width)
    expected = surgery.encode_image(image)
    options: list[Any] = [2 * max(height, width)]
    if max(height / surgery.image_size[0], width / surgery.image_size[1]) <= AUTO_FACTOR:
        options.append("auto")
    if image_size == 16:
        options.append(max(height, width))
    for tiles in options:
        found = surgery.encode_image(image, tiles=tiles, batch_size=1)
        assert torch.equal(found.surgery, expected.surgery)
        assert torch.equal(found.raw, expected.raw)
        assert (found.grid, found.shape) == (expected.grid, expected.shape)


@pytest.mark.parametrize(("family", "image_size", "side", "shape"), [
    ("vit", 16, 20, (50, 70)),
    ("vit", (12, 20), 20, (47, 70)),
    ("vit", 16, 40, (9, 200)),
    ("resnet", 64, 64, (100, 150)),
])  # fmt: skip
def test_features_are_blended_tiles(family: str, image_size: Any, side: int, shape: tuple[int, int]) -> None:
    surgery, image = tiny_surgery(tiny_clip(family), image_size=image_size), picture(3, *shape)
    height, width = surgery.image_size
    methods = tuple(METHODS) if family == "vit" else ("surgery", "maskclip")
    found, whole = surgery.encode_image(image, methods=methods, tiles=side), surgery.encode_image(image, methods=methods)
    layout = tile_layout(shape, surgery.image_size, whole.grid, side)
    gh, gw = found.grid
    assert found.grid == layout.grid
    assert found.shape == shape
    assert len(layout) > 1
    patches: dict[str, list[torch.Tensor]] = {path: [] for path in found.paths}
    for row, column in layout.corners:
        # another way to a tile: cut out of the picture at fractions of a pixel
        top, left = row * shape[0] / gh, column * shape[1] / gw
        box = (left, top, left + whole.grid[1] * shape[1] / gw, top + whole.grid[0] * shape[0] / gh)
        box = (box[0], box[1], min(box[2], shape[1]), min(box[3], shape[0]))
        cut = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box)
        with torch.no_grad():
            tokens = surgery_tokens(surgery.model.visual, surgery.preprocess(cut), depth=2, kinds=patches)
        for path, tiles in patches.items():
            tiles.append(normalize(tokens.paths[path][0, 1:], dim=-1).unflatten(0, whole.grid))
    for path, tiles in patches.items():
        expected = normalize(blend_tiles([torch.stack(tiles)], layout), dim=-1).flatten(0, 1)
        mine = found.paths[path]
        torch.testing.assert_close(mine[1:], expected, rtol=0, atol=1e-3)
        assert (expected - expected.flip(0)).abs().max() > 0.05
        assert torch.equal(mine[0], whole.paths[path][0])  # the class token is the whole picture's
        assert mine.shape == (1 + gh * gw, 16)
        assert mine.dtype == torch.float32
        assert not mine.requires_grad
        torch.testing.assert_close(mine.norm(dim=-1), torch.ones(1 + gh * gw))
    assert (found.surgery - found.raw)[1:].abs().max() > 0.1
    assert np.array_equal(surgery.scores(found, ["cat", "dog"]), surgery.scores(whole, ["cat", "dog"]))
    assert surgery.presence(found, "cat", against=["dog"]) == surgery.presence(whole, "cat", against=["dog"])


def test_tiles_reach_every_way_to_maps(surgery: ClipSurgery) -> None:
    image = picture(4, 61, 50)
    features = surgery.encode_image(image, methods=["gem"], tiles=24)
    for method in ("surgery", "features", "gem"):
        [expected] = surgery.maps(features, ["cat"], method=method)  # type: ignore[arg-type]
        [found] = surgery.similarity(image, ["cat"], method=method, tiles=24)  # type: ignore[arg-type]
        assert np.array_equal(found.values, expected.values)
        [found] = surgery.compare(image, ["cat"], methods=[method], tiles=24)[method]  # type: ignore[list-item]
        assert np.array_equal(found.values, expected.values)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_tiles_are_encoded_in_batches(batch_size: int) -> None:
    surgery, image = tiny_surgery(), picture(5, 60, 70)
    expected = surgery.encode_image(image, tiles="auto")
    count = len(tile_layout((60, 70), (16, 16), (4, 4), "auto"))
    calls = count_calls(surgery.model.visual.conv1)
    found = surgery.encode_image(image, tiles="auto", batch_size=batch_size)
    sizes = [shape[0] for shape in calls]
    assert sizes[0] == 1
    assert sum(sizes[1:]) == count > 20
    assert max(sizes) == min(batch_size, count)
    torch.testing.assert_close(found.surgery, expected.surgery, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.raw, expected.raw, rtol=0, atol=1e-5)
