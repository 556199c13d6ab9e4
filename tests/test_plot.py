from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.plot import MASK_COLOUR, NEGATIVE_COLOUR, POSITIVE_COLOUR, heat, heat_colours, overlay, side_by_side
from text2sam.types import PointPrompts, Segmentation, SimilarityMap, box_of

MAP = SimilarityMap(np.arange(12, dtype=np.float32).reshape(3, 4))


def picture(h: int = 60, w: int = 90) -> NDArray[np.uint8]:
    image = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    image.setflags(write=False)
    return image


def answer(mask: NDArray[np.bool_], positive: object = (), negative: object = ()) -> Segmentation:
    coords = np.array([*positive, *negative], np.float32).reshape(-1, 2)  # type: ignore[misc]
    labels = np.array([1] * len(positive) + [0] * len(negative), np.uint8)  # type: ignore[arg-type]
    return Segmentation(mask, 0.5, box_of(mask), PointPrompts(coords, labels), MAP, None, "cat", bool(mask.any()), 0.9)


def rectangle(h: int = 60, w: int = 90) -> NDArray[np.bool_]:
    mask = np.zeros((h, w), bool)
    mask[10:40, 20:70] = True
    return mask


def test_overlay_of_nothing_is_the_image_in_a_new_array() -> None:
    image = picture()
    out = overlay(image, answer(np.zeros((60, 90), bool)), draw_box=True)
    np.testing.assert_array_equal(out, image)
    assert not np.shares_memory(out, image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3)])
def test_overlay_of_everything_in_a_tiny_image(shape: tuple[int, int]) -> None:
    out = overlay(picture(*shape), answer(np.ones(shape, bool), [(0, 0)], [(shape[1] - 1, 0)]), draw_box=True)
    assert out.shape == (*shape, 3)
    assert out.dtype == np.uint8


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_mask_is_tinted_outlined_and_nothing_else_touched(alpha: float) -> None:
    image, mask = picture(), rectangle()
    out = overlay(image, answer(mask), colour=(200, 10, 100), alpha=alpha)
    np.testing.assert_array_equal(out[~mask], image[~mask])
    inner, core = np.zeros_like(mask), np.zeros_like(mask)
    core[11:39, 21:69] = True  # a white line and a coloured one, each a pixel wide at this size
    inner[12:38, 22:68] = True
    mixed = (1 - alpha) * image[inner].astype(float) + alpha * np.array([200, 10, 100])
    assert np.abs(out[inner].astype(float) - mixed).max() <= 0.5 + 1e-3
    assert (out[core & ~inner] == (200, 10, 100)).all()
    assert (out[mask & ~core] == 255).all()


@pytest.mark.parametrize(("size", "width"), [(60, 1), (400, 2), (900, 4)])
def test_outline_is_the_mask_less_its_erosion(size: int, width: int) -> None:
    from scipy.ndimage import binary_erosion

    ys, xs = np.mgrid[:size, :size]
    mask = (np.hypot(ys - size / 3, xs - size / 2) < size / 2.2) & ((xs // 7 + ys // 5) % 11 > 0)  # cut by the border, holes
    out = overlay(np.zeros((size, size, 3), np.uint8), answer(mask), colour=(1, 2, 3), alpha=0.0)
    core = binary_erosion(mask, iterations=width)
    np.testing.assert_array_equal(out[..., 0] == 255, mask & ~core)
    np.testing.assert_array_equal(out[..., 0] == 1, core & ~binary_erosion(mask, iterations=2 * width))


def test_points_are_x_y_green_and_red_with_a_white_edge() -> None:
    image = np.full((140, 280, 3), 90, np.uint8)
    out = overlay(image, answer(np.zeros((140, 280), bool), [(200, 30)], [(40, 100)]))
    assert tuple(out[30, 200]) == POSITIVE_COLOUR
    assert tuple(out[100, 40]) == NEGATIVE_COLOUR
    for x, y in ((200, 30), (40, 100)):
        assert (out[y, x : x + 5] == 255).all(1).any()
        assert (out[y - 4 : y + 1, x] == 255).all(1).any()
    far = np.ones((140, 280), bool)
    far[24:37, 194:207] = far[94:107, 34:47] = False
    assert (out[far] == 90).all()
    np.testing.assert_array_equal(overlay(image, answer(np.zeros((140, 280), bool), [(200, 30)]), draw_points=False), image)


def test_disc_is_round_and_diamond_is_not() -> None:
    image = np.zeros((700, 700, 3), np.uint8)
    out = overlay(image, answer(np.zeros((700, 700), bool), [(200, 200)], [(500, 500)]))
    disc = (out[180:221, 180:221] == POSITIVE_COLOUR).all(2)
    np.testing.assert_array_equal(disc, disc.T)
    np.testing.assert_array_equal(disc, disc[::-1])
    assert disc.sum() == pytest.approx(np.pi * 9.5**2, rel=0.05)  # the radius is 700 / 70, the rim is mixed
    diamond = (out[480:521, 480:521] == NEGATIVE_COLOUR).all(2)
    ys, xs = np.nonzero(diamond)
    assert (np.abs(ys - 20) + np.abs(xs - 20)).max() == np.abs(ys - 20).max()


def test_points_grow_with_the_image() -> None:
    green = []
    for side in (140, 1400):
        out = overlay(np.zeros((side, side, 3), np.uint8), answer(np.zeros((side, side), bool), [(side // 2, side // 2)]))
        green.append((out == POSITIVE_COLOUR).all(2).sum() / side**2)
    assert green[0] == pytest.approx(green[1], rel=0.5)


def test_positive_points_lie_on_top_and_points_beyond_the_border_do_no_harm() -> None:
    mask = np.zeros((60, 90), bool)
    out = overlay(np.zeros((60, 90, 3), np.uint8), answer(mask, [(30, 30)], [(30, 30), (-50, 5), (500, 1000), (89.6, 59.6)]))
    assert tuple(out[30, 30]) == POSITIVE_COLOUR
    assert tuple(out[59, 89]) == NEGATIVE_COLOUR


def test_box_is_a_frame_inside_its_exclusive_edges() -> None:
    image, mask = np.zeros((60, 90, 3), np.uint8), np.zeros((60, 90), bool)
    mask[20, 30] = mask[39, 59] = True
    out = overlay(image, answer(mask), draw_box=True)
    drawn = (out == MASK_COLOUR).all(2)
    frame = np.zeros((60, 90), bool)
    frame[20:40, 30:60] = True
    frame[21:39, 31:59] = False
    np.testing.assert_array_equal(drawn, frame)


def test_overlay_refuses_what_does_not_fit() -> None:
    result = answer(rectangle())
    for image in (picture(60, 91), picture().astype(np.float32), picture()[..., 0], np.zeros((0, 0, 3), np.uint8), None):
        with pytest.raises(InputError):
            overlay(image, result)  # type: ignore[arg-type]
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="alpha"):
            overlay(picture(), result, alpha=alpha)
    for colour in ((0, 0), (0, 0, 256), (0.5, 0, 0), "red"):
        with pytest.raises(InputError, match="colour"):
            overlay(picture(), result, colour=colour)  # type: ignore[arg-type]


def test_heat_of_a_flat_map_is_the_cold_colour_everywhere() -> None:
    out = heat(np.zeros((6, 8, 3), np.uint8), SimilarityMap(np.ones((2, 2), np.float32)), alpha=1.0)
    assert (out == heat_colours(np.zeros(1))).all()


def test_heat_mixes_the_map_with_the_grey_image() -> None:
    image = picture(30, 40)
    np.testing.assert_array_equal(heat(image, MAP, alpha=1.0), heat_colours(MAP.to_image((30, 40))))
    from PIL import Image

    grey = np.asarray(Image.fromarray(image).convert("L"), int)
    cold = heat(image, MAP, alpha=0.0).astype(int)
    assert np.ptp(cold, axis=2).max() == 0
    assert np.abs(cold[..., 0] - grey).max() <= 1
    mean = (grey[..., None] + heat_colours(MAP.to_image((30, 40))).astype(int)) / 2
    assert np.abs(heat(image, MAP, alpha=0.5) - mean).max() <= 1.5
    with pytest.raises(InputError, match="alpha"):
        heat(image, MAP, alpha=2)
    with pytest.raises(InputError):
        heat(image[..., 0], MAP)


def test_heat_colours_take_every_value_and_shape() -> None:
    table = heat_colours(np.linspace(0, 1, 256))
    assert len({tuple(c) for c in table.tolist()}) > 250
    assert heat_colours(np.zeros((2, 3, 4), np.float32)).shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(heat_colours(np.array([-5.0, 7.0])), table[[0, -1]])
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError):
            heat_colours(np.array([bad]))


def test_heat_colours_grow_lighter_evenly() -> None:
    from skimage.color import rgb2lab

    lightness = rgb2lab(heat_colours(np.linspace(0, 1, 256))[None])[0, :, 0]  # CIE L*, not the space the table is made in
    assert (np.diff(lightness) > -0.4).all()  # eight bits
    straight = np.linspace(lightness[0], lightness[-1], 256)
    assert np.abs(lightness - straight).max() < 7
    assert lightness[0] < 15
    assert lightness[-1] > 90


def test_strip_keeps_every_pixel_in_its_place() -> None:
    a, b, c = picture(10, 20), picture(14, 6)[..., 0], rectangle()[5:15, 15:25]
    out = side_by_side([a, b, c], gap=3)
    assert out.shape == (14 + 6, 20 + 6 + 10 + 12, 3)
    np.testing.assert_array_equal(out[3:13, 3:23], a)
    np.testing.assert_array_equal(out[3:17, 26:32], np.stack([b] * 3, axis=2))
    np.testing.assert_array_equal(out[3:13, 35:45, 0] == 255, c)
    assert (out[13:17, 3:23] == 255).all()
    assert (out[:, 23:26] == 255).all()
    assert (side_by_side([a], gap=1, background=(1, 2, 3))[0, 0] == (1, 2, 3)).all()


def test_captions_stand_under_their_panels() -> None:
    panels = [np.zeros((20, 80, 3), np.uint8), np.zeros((20, 80, 3), np.uint8)]
    plain = side_by_side(panels)
    out = side_by_side(panels, ["cat", "a very long caption that cannot possibly fit, ever"])
    assert out.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(out[:28], plain[:28])
    ink = np.asarray((out[28:] < 128).any((0, 2)))
    assert ink[8:40].any()
    assert ink[96:170].any()
    assert not ink[:8].any()
    assert not ink[88:96].any()
    assert not ink[176:].any()
    assert (side_by_side(panels, ["x", "y"], background=(0, 0, 0))[28:] > 128).any()


@pytest.mark.parametrize("caption", ["", "日本語 ü é", "a\nb\x00", "🐈"])
def test_any_caption_can_be_drawn(caption: str) -> None:
    assert side_by_side([picture(9, 30)], [caption]).shape[1] == 46


def test_strip_refuses_what_does_not_fit() -> None:
    for panels in ([], [np.zeros((4, 4), np.float32)], [np.zeros((4, 4, 4), np.uint8)], [None]):
        with pytest.raises(InputError):
            side_by_side(panels)  # type: ignore[arg-type]
    for captions in (["a"], "ab", ["a", "b", "c"]):
        with pytest.raises(InputError, match="caption"):
            side_by_side([picture(), picture()], captions)
    with pytest.raises(InputError, match="gap"):
        side_by_side([picture()], gap=-1)
