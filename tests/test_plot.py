from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label

from text2sam.errors import InputError
from text2sam.paint import OBJECT_COLOURS
from text2sam.plot import (
    AGAINST_COLOUR,
    CARRIES_COLOUR,
    MASK_COLOUR,
    NEGATIVE_COLOUR,
    POSITIVE_COLOUR,
    explain,
    explain_text,
    heat,
    heat_colours,
    overlay,
    side_by_side,
)
from text2sam.tasks.explanation import Place, TextExplanation, Word
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of

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


# explain


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[float, ...]]]:
    """Every text that is drawn, with its box (x0, y0, x1, y1) on its canvas."""
    from PIL import ImageDraw

    texts: list[tuple[str, tuple[float, ...]]] = []
    draw = ImageDraw.ImageDraw.text

    def spy(self: Any, xy: Any, text: str, *args: Any, **options: Any) -> None:
        texts.append((text, self.textbbox(xy, text, font=options["font"])))
        draw(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return texts


def offered(mask: NDArray[np.bool_], count: int = 3, chosen: int = 1, **figures: object) -> Candidates:
    masks = np.stack([mask if i == chosen else ~mask for i in range(count)])
    scores = ((np.arange(count) + 1) / 16).astype(np.float32)
    known: dict[str, Any] = {"agreement": scores + np.float32(0.5), **figures}
    return Candidates(masks, scores, np.zeros((count, 2, 2), np.float32), chosen, "agreement is highest", known)


def full(area: NDArray[np.bool_], **changed: object) -> Segmentation:
    near = answer(area, [(area.shape[1] // 2, area.shape[0] // 2)], [(0, 0)])
    return dataclasses.replace(near, **{"candidates": offered(area), "threshold": 0.25, **changed})  # type: ignore[arg-type]


def whole(count: int = 3) -> Segmentation:
    parts = []
    for i in range(count):
        mask = np.zeros((60, 90), bool)
        mask[20:50, 90 * i // count + 2 : 90 * (i + 1) // count - 2] = True
        parts.append(full(mask, score=0.9 - i / 100))
    union = np.logical_or.reduce([one.mask for one in parts])
    return full(union, candidates=None, objects=tuple(parts))


def count_frames(figure: NDArray[np.uint8]) -> int:
    from scipy.ndimage import label

    return int(label((figure == POSITIVE_COLOUR).all(2), np.ones((3, 3)))[1])


def texts_of(drawn: list[tuple[str, tuple[float, ...]]]) -> str:
    return "\n".join(text for text, _ in drawn)


@pytest.mark.parametrize("with_image", [True, False])
def test_explain_of_nothing(with_image: bool, drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    nothing = dataclasses.replace(answer(np.zeros((60, 90), bool)), presence=0.125, threshold=0.5, score=0.0)
    figure = explain(nothing, picture() if with_image else None)
    assert figure.dtype == np.uint8
    assert figure.shape[1:] == (1200, 3)
    told = texts_of(drawn)
    for text in (
        '"cat"',
        "not here: presence 0.12 < threshold 0.50",
        "nothing",
        "SAM was not asked",
        "0 px (0.0 %)",
        "90 x 60",
    ):
        assert text in told
    assert "mask 1" not in told
    assert ("not given" in told) != with_image
    assert count_frames(figure) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (2, 4000), (3000, 2), (40, 900), (900, 40), (700, 700)])
@pytest.mark.parametrize("width", [320, 900])
def test_texts_of_explain_lie_inside_and_apart(
    shape: tuple[int, int], width: int, drawn: list[tuple[str, tuple[float, ...]]]
) -> None:
    mask = np.zeros(shape, bool)
    mask[: shape[0] // 2 + 1, : shape[1] // 2 + 1] = True
    odd: dict[str, Any] = {"a figure with a name that is far too long to fit": np.array([np.nan, 1e9, 1e-9], np.float32)}
    result = full(mask, text="w" * 3000, looked_for=("many words " * 400,), candidates=offered(mask, **odd))
    figure = explain(result, picture(*shape), width=width)
    assert figure.shape[1] == width
    assert len(drawn) > 25
    boxes = np.array([box for text, box in drawn if text])
    assert boxes.min() >= 0
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= figure.shape[0]).all()
    for i, a in enumerate(boxes):
        meet = (boxes[i + 1 :, 0] < a[2]) & (a[0] < boxes[i + 1 :, 2]) & (boxes[i + 1 :, 1] < a[3]) & (a[1] < boxes[i + 1 :, 3])
        assert not meet.any(), [drawn[i], [drawn[i + 1 + j] for j in np.flatnonzero(meet)]]


def test_explain_tells_what_is_behind_a_mask(drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    result = full(
        rectangle(),
        looked_for=("cat", "kitten"),
        excluded=("dog",),
        zoomed=np.array([10, 5, 80, 50], np.float32),
        strategy="mine",
    )
    explain(result, picture())
    told = texts_of(drawn)
    for text in (
        '"cat"; looked for "cat", "kitten"; excluded "dog"',
        "present: presence 0.90 >= threshold 0.25",
        "score 0.500, box 20, 10, 70, 40 (x0, y0, x1, y1)",
        "agreement is highest",
        'strategy "mine", map by surgery on 4 x 3 patches; looked closer at 10, 5, 80, 50',
        "map (surgery)",
        "0.000 to 11.000",
        "1 on it, 1 off it",
        "mask 1 of 3\n",
        "mask 2 of 3, taken",
        "mask 3 of 3\n",
        "agreement\n",
        "1500 px (27.8 %)",
    ):
        assert text in told
    values = [text for text, _ in drawn if text in ("0.062", "0.125", "0.188", "0.562", "0.625", "0.688")]
    assert values == ["0.062", "0.562", "0.125", "0.625", "0.188", "0.688"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"presence": 0.5, "threshold": 0.5}, "present: presence 0.50 >= threshold 0.50"),
        ({"presence": 0.49996, "threshold": 0.5, "present": False}, "not here: presence 0.49996 < threshold 0.50000"),
        ({"presence": 0.1, "threshold": 0.5, "present": False}, "proposed, but not here: score"),
        ({"present": False}, "not here: set aside, although presence 0.90 >= threshold 0.25"),
        ({"mask": np.zeros((60, 90), bool), "box": None, "present": False}, "not here: no mask, although presence"),
    ],
)
def test_verdicts(changed: dict[str, Any], told: str, drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    explain(full(rectangle(), **changed))
    assert told in texts_of(drawn)


@pytest.mark.parametrize(("count", "chosen"), [(1, 0), (3, 2), (5, 4), (12, 11)])
def test_the_mask_taken_is_framed_whatever_its_place(
    count: int, chosen: int, drawn: list[tuple[str, tuple[float, ...]]]
) -> None:
    plain = dataclasses.replace(full(rectangle(), candidates=offered(rectangle(), count, chosen)), points=PointPrompts.empty())
    figure = explain(plain, picture())
    assert count_frames(figure) == 1
    titles = [text for text, _ in drawn if text.startswith("mask ")]
    assert len(titles) == min(count, 8)
    assert f"mask {chosen + 1} of {count}, taken" in titles
    assert ("4 more masks are not shown" in texts_of(drawn)) == (count == 12)


def test_panels_show_image_map_points_and_masks() -> None:
    image = np.full((60, 90, 3), 40, np.uint8)
    mask = np.zeros((60, 90), bool)
    mask[:, 45:] = True
    result = full(mask, zoomed=np.array([0, 0, 45, 60], np.float32))
    figure = explain(result, image, width=1200)
    gap, columns = 15, 3
    cell = (1200 - gap) // columns - gap
    high = round(60 * cell / 90)
    first = figure[gap : gap + high, gap : gap + cell]
    assert tuple(first[high // 2, 1]) == tuple(first[1, cell // 4]) == (255, 140, 0)  # the crop's frame
    assert (first[10:-10, cell // 2 + 10 : -10] == 40).all()
    second = figure[gap : gap + high, 2 * gap + cell : 2 * (gap + cell)]
    assert tuple(second[high // 2 + 3, cell // 2 + 2]) == POSITIVE_COLOUR  # pixel (45, 30) is just beyond the middle
    assert tuple(second[2, 2]) == NEGATIVE_COLOUR
    away = heat(np.full((high, cell, 3), 40, np.uint8), MAP)[20:-20, cell // 2 + 30 :]
    np.testing.assert_array_equal(second[20:-20, cell // 2 + 30 :], away)
    third = figure[gap : gap + high, 3 * gap + 2 * cell : 3 * (gap + cell)]  # mask 1 is not the one taken: the left half
    tinted = (np.array(MASK_COLOUR) + 40) / 2
    assert np.abs(third[high // 2, cell // 4] - tinted).max() <= 0.5
    assert np.ptp(third[high // 2, 3 * cell // 4].astype(int)) == 0
    assert third[high // 2, 3 * cell // 4, 0] > 40  # paler outside


def test_objects_have_their_colours_numbers_and_scores(drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    result = whole()
    figure = explain(result, picture())
    told = texts_of(drawn)
    for text in (
        "1: 0.90\n",
        "2: 0.89\n",
        "3: 0.88\n",
        "3 objects: 1: 0.90",
        "object 1: agreement is highest",
        "mask 2 of 3, taken",
    ):
        assert text in told
    for colour in OBJECT_COLOURS[:3]:
        assert (figure == colour).all(2).sum() > 200
    assert not (figure == OBJECT_COLOURS[3]).all(2).any()


@pytest.mark.parametrize("count", [2, 8, 20])
def test_labels_of_objects_do_not_cover_one_another(count: int, drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    result = whole(count)
    explain(result, picture())
    own = [f"{i + 1}: {one.score:.2f}" if count <= 8 else f"{i + 1}" for i, one in enumerate(result.objects)]
    first = dict(reversed(drawn))  # captions, of the same text perhaps, are drawn after the labels
    boxes = [first[text] for text in own]
    for i, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i])


def test_small_masks_stay_visible() -> None:
    mask = np.zeros((3000, 3000), bool)
    mask[1500, 1500] = True
    nothing = dataclasses.replace(full(mask), candidates=None, points=PointPrompts.empty())
    figure = explain(nothing, np.zeros((3000, 3000, 3), np.uint8), width=600)
    # three panels: white stands in the last one only, where the mask is
    assert (figure[60:130, -130:-60] == 255).all(2).any()
    assert not (figure[60:130, 60:130] == 255).all(2).any()


@pytest.mark.parametrize("text", ["", "日本語", "Ж ộ ü", "🐈", "a\nb\x00\u202e", "\udc80", "e\u0301"])
def test_any_text_can_be_explained(text: str, drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    figure = explain(full(rectangle(), text=text))
    assert figure.shape[1] == 1200
    assert all(line.isprintable() for line, _ in drawn)


def test_letters_the_font_lacks_are_replaced(drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    from PIL import ImageFont

    explain(full(rectangle(), text="日本 cột"))
    if isinstance(ImageFont.load_default(), ImageFont.FreeTypeFont):
        assert '"?? cot"' in texts_of(drawn)


def test_explain_changes_nothing_and_repeats_itself() -> None:
    image, result = picture(), whole()
    before = result.mask.copy()
    np.testing.assert_array_equal(explain(result, image), explain(result, image))
    np.testing.assert_array_equal(result.mask, before)
    assert explain(result, image, width=np.int64(640)).shape[1] == 640


def test_explain_refuses_what_does_not_fit() -> None:
    result = full(rectangle())
    for image in (picture(60, 91), picture().astype(np.float32), picture()[..., 0], "cat.png"):
        with pytest.raises(InputError):
            explain(result, image)  # type: ignore[arg-type]
    for width in (0, 319, 8193, 500.0, "500", None, True):
        with pytest.raises(InputError, match="width"):
            explain(result, width=width)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Segmentation"):
        explain(picture())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        explain(dataclasses.replace(result, mask=np.zeros((0, 4), bool), box=None, candidates=None, present=False))


# which words of a text an image bears out


def explained(
    words: Sequence[str] = ("a", "cat"), carries: Sequence[float] = (-0.1, 0.2), shape: tuple[int, int] = (60, 90)
) -> TextExplanation:
    rng = np.random.default_rng(0)
    maps = [SimilarityMap(rng.standard_normal((3, 4)).astype(np.float32), word) for word in words]
    found = tuple(Word(word, (word,), m, c) for word, m, c in zip(words, maps, carries, strict=True))
    places = (
        Place((0, 3), (shape[1] * 0.875, shape[0] / 6), 0.9, ((1 % len(words), 0.5), (0, 0.25))),
        Place((2, 0), (shape[1] * 0.125, shape[0] * 5 / 6), 0.5, ((0, -0.25),)),
    )
    nearest = np.zeros((3, 4, min(3, len(words))), np.intp)
    return TextExplanation(" ".join(words), found, MAP, places, nearest, 0.31, "surgery", shape)


def test_words_are_coloured_by_what_they_carry(drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    figure = explain_text(explained(["a", "cat", "bus"], [-0.1, 0.2, 0.0]), picture())
    assert figure.dtype == np.uint8
    assert figure.shape[1:] == (1200, 3)
    told = texts_of(drawn)
    for line in ("a\n", "cat\n", "bus\n", "cosine 0.310, maps by surgery on 4 x 3 patches", "carries +0.200", "carries -0.100"):
        assert line in told
    assert "1 at 79, 10: cat 0.500, a 0.250" in told
    assert "2 at 11, 50: a -0.250" in told

    def ground(word: str) -> tuple[int, ...]:
        boxes = [box for text, box in drawn if text == word]
        colours = {tuple(figure[int(box[1]) - 1, int(box[0]) - 2].tolist()) for box in boxes}
        assert (len(boxes), len(colours)) == (2, 1)  # in the text and under its map, in the same colour
        return colours.pop()

    assert ground("cat") == CARRIES_COLOUR
    assert ground("a") == tuple(round(255 + 0.5 * (c - 255)) for c in AGAINST_COLOUR)
    assert ground("bus") == (255, 255, 255)


def test_the_whole_texts_map_stands_on_the_left_with_its_places() -> None:
    explanation, image = explained(shape=(200, 300)), picture(200, 300)
    none = explain_text(dataclasses.replace(explanation, places=()), image)
    gap, left = 15, round(0.44 * 1200)
    scale = (left - gap) / 300
    h, w = round(200 * scale), round(300 * scale)
    smaller = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(none[gap : gap + h, gap : gap + w], heat(smaller, MAP))
    numbered = explain_text(explanation, image)[gap : gap + h, gap : gap + w]
    changed = (numbered != none[gap : gap + h, gap : gap + w]).any(2)
    _, count = label(changed, np.ones((3, 3)))
    assert count == 2
    for y, x in ((h / 6, w * 0.875), (h * 5 / 6, w * 0.125)):
        assert changed[int(y) - 6 : int(y) + 6, int(x) - 6 : int(x) + 6].any()


def test_maps_of_words_have_one_scale() -> None:
    loud = SimilarityMap(np.array([[0, 0, 0, 4]], np.float32))
    quiet = SimilarityMap(np.array([[7, 7, 7, 7.4]], np.float32))
    words = tuple(Word(name, (name,), m, 0.1) for name, m in (("loud", loud), ("quiet", quiet)))
    nearest = np.zeros((1, 4, 2), np.intp)
    figure = explain_text(TextExplanation("loud quiet", words, loud, (), nearest, 0.3, "surgery", (50, 200)))
    wide = round(0.44 * 1200) - 15
    rows = figure[-80]  # through both maps
    first, second = rows[15 : 15 + wide], rows[30 + wide : 30 + 2 * wide]
    assert first[2].tolist() == second[2].tolist() == heat_colours(np.zeros(1))[0].tolist()
    assert first[-3].tolist() == heat_colours(np.ones(1))[0].tolist()
    assert np.abs(second[-3].astype(int) - heat_colours(np.full(1, 0.1))[0]).max() <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (60, 90)])
@pytest.mark.parametrize("width", [320, 1200])
@pytest.mark.parametrize("count", [1, 9, 70])
def test_any_explanation_can_be_drawn(shape: tuple[int, int], width: int, count: int) -> None:
    words = ["unbelievablylongword" * (i % 7 == 3) or f"w{i}" for i in range(count)]
    explanation = explained(words, np.linspace(-1, 1, count).tolist(), shape)
    for image in (None, picture(*shape)):
        figure = explain_text(explanation, image, width=width)
        assert figure.shape[1:] == (width, 3)
        assert figure.shape[0] < 6 * width
        assert (figure[-3:] == 255).all()  # nothing runs over the edge
        assert (figure[:, -3:] == 255).all()


def test_an_image_shows_nothing_of_the_text(drawn: list[tuple[str, tuple[float, ...]]]) -> None:
    flat = SimilarityMap(np.zeros((3, 4), np.float32))
    base = explained(["a", "日本"], [0.0, 0.0])
    words = tuple(dataclasses.replace(word, similarity=flat) for word in base.words)
    explain_text(dataclasses.replace(base, words=words, similarity=flat), picture())
    assert "??" in texts_of(drawn)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((None,), {}),
        ((MAP,), {}),
        ((explained(), picture(61, 90)), {}),
        ((explained(), picture()[..., 0]), {}),
        ((explained(),), {"width": 319}),
        ((explained(),), {"width": 8193}),
        ((explained(),), {"width": True}),
        ((explained(),), {"width": 400.0}),
    ],
)
def test_what_explain_text_cannot_draw(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        explain_text(*arguments, **options)
