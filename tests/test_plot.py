from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from text2sam import plot
from text2sam.errors import InputError
from text2sam.paint import OBJECT_COLOURS
from text2sam.tasks.explanation import Place, TextExplanation, Word
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of

H, W = 24, 36
IMAGE = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
MAP = SimilarityMap(np.arange(12, dtype=np.float32).reshape(3, 4) / 10, "cat")
POINTS = PointPrompts(np.array([[5, 6], [30, 20], [7, 8]], np.float32), np.array([1, 0, 1], np.uint8))


@pytest.fixture(autouse=True)
def global_state_stays() -> Any:
    """No function touches pyplot's figures or matplotlib's settings."""
    settings = dict(matplotlib.rcParams)
    yield
    assert not plt.get_fignums()
    assert dict(matplotlib.rcParams) == settings


def rectangle(x0: int = 5, x1: int = 20) -> NDArray[np.bool_]:
    mask = np.zeros((H, W), bool)
    mask[4:12, x0:x1] = True
    return mask


def answer(mask: NDArray[np.bool_], **changes: Any) -> Segmentation:
    return dataclasses.replace(
        Segmentation(mask, 0.5, box_of(mask), POINTS, MAP, None, "cat", bool(mask.any()), 0.9), **changes
    )


def candidates(count: int, chosen: int) -> Candidates:
    masks = np.stack([rectangle(0, 3 + i) for i in range(count)])
    scores = np.linspace(0.1, 0.9, count, dtype=np.float32)
    return Candidates(masks, scores, np.zeros((count, 4, 4), np.float32), chosen, "it has the highest total", {"total": scores})


def union(*, candidates: Candidates | None = None) -> Segmentation:
    parts = [rectangle(2, 9), rectangle(8, 30)]
    found = tuple(answer(p, score=s, candidates=candidates) for p, s in zip(parts, (0.75, 0.5), strict=True))
    return answer(parts[0] | parts[1], objects=found)


def pixels(ax: Axes, index: int) -> NDArray[Any]:
    return np.asarray(ax.images[index].get_array())


def titles(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes]


# one picture


def test_a_figure_of_its_own_has_the_images_size() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (210, 301, 3), dtype=np.uint8)
    for ax in (plot.overlay(picture, answer(np.ones((210, 301), bool))), plot.heat(picture, MAP), plot.points(picture, POINTS)):
        assert plot.to_png(ax.figure).shape == (210, 301, 3)
    large = plot.points(np.zeros((1201, 1603, 3), np.uint8), POINTS)
    assert plot.to_png(large.figure).shape == (1201, 1603, 3)
    plain = plot.points(picture, PointPrompts.empty())
    np.testing.assert_allclose(plot.to_png(plain.figure).astype(int), picture, atol=1)


@pytest.mark.parametrize("kind", ["path", "pil", "float", "grey"])
def test_images_are_read_as_segment_reads_them(kind: str, tmp_path: Any) -> None:
    given: Any = {"pil": Image.fromarray(IMAGE), "float": IMAGE / 255, "grey": IMAGE[..., 0]}.get(kind, tmp_path / "a.png")
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    expected = IMAGE[..., :1].repeat(3, 2) if kind == "grey" else IMAGE
    np.testing.assert_array_equal(pixels(plot.points(given, POINTS), 0), expected)
    np.testing.assert_array_equal(pixels(plot.overlay(given, answer(rectangle())), 0), expected)


def test_axes_are_drawn_on_and_returned() -> None:
    figure = Figure()
    first, second, third, fourth = figure.subplots(2, 2).ravel()
    assert plot.overlay(IMAGE, answer(rectangle()), first) is first
    assert plot.heat(IMAGE, MAP, second) is second
    assert plot.points(IMAGE, POINTS, third) is third
    assert plot.objects(IMAGE, union(), fourth) is fourth
    for ax in figure.axes:
        assert ax.get_xlim() == (-0.5, W - 0.5)
        assert ax.get_ylim() == (H - 0.5, -0.5)  # neither points nor outlines move the borders


def test_a_large_image_on_small_axes_is_thinned_in_place() -> None:
    mask = np.zeros((2400, 3600), bool)
    mask[400:1200, 1000:2000] = True
    ax = plot.overlay(np.zeros((2400, 3600, 3), np.uint8), answer(mask, points=PointPrompts.empty()), Figure((2, 2)).subplots())
    assert pixels(ax, 0).shape[1] == pixels(ax, 1).shape[1] == 1200
    assert ax.get_xlim() == (-0.5, 3599.5)
    assert ax.get_ylim() == (2399.5, -0.5)
    corners = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [(1000, 400), (2000, 1200)], atol=8)
    assert pixels(plot.heat(mask, MAP, Figure((2, 2)).subplots()), 1).shape == pixels(ax, 0).shape[:2]


def test_overlay_is_mask_outline_and_points() -> None:
    mask = rectangle()
    ax = plot.overlay(IMAGE, answer(mask), colour=(10, 20, 30), alpha=0.4)
    layer = pixels(ax, 1)
    np.testing.assert_array_equal(layer[..., 3], np.where(mask, 102, 0))
    assert (layer[..., :3] == (10, 20, 30)).all()
    (outline,) = (c for c in ax.collections if hasattr(c, "levels"))
    corners = np.concatenate([path.vertices for path in outline.get_paths()])
    assert corners.min(0).tolist() == [4.5, 3.5]
    assert corners.max(0).tolist() == [19.5, 11.5]
    off, on = (c for c in ax.collections if not hasattr(c, "levels"))
    np.testing.assert_array_equal(on.get_offsets(), POINTS.positive)
    np.testing.assert_array_equal(off.get_offsets(), POINTS.negative)
    assert not plot.overlay(IMAGE, answer(~mask & mask, points=PointPrompts.empty())).collections


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (40, 1)])
def test_full_and_empty_masks_of_tiny_images(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    for mask in (np.ones(shape, bool), np.zeros(shape, bool)):
        result = answer(mask, points=PointPrompts.empty())
        for ax in (plot.overlay(image, result), plot.objects(image, result), plot.heat(image, MAP)):
            assert plot.to_png(ax.figure).shape == (*(side * (400 // max(shape)) for side in shape), 3)
        assert len(plot.overlay(image, result).collections) == mask.any()


def test_heat_is_the_map_over_grey() -> None:
    ax = plot.heat(IMAGE, MAP, alpha=0.6)
    grey = pixels(ax, 0)
    assert (grey == grey[..., :1]).all()
    np.testing.assert_allclose(pixels(ax, 1), 1.1 * MAP.to_image((H, W)), atol=1e-6)
    drawn = ax.images[1]
    assert drawn.get_alpha() == 0.6
    assert drawn.get_clim() == (0, pytest.approx(1.1))
    luma = matplotlib.colormaps[plot.HEAT](np.linspace(0, 1, 32))[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luma) > 0).all()


def test_a_flat_map_has_the_lowest_colour() -> None:
    ax = plot.heat(IMAGE, SimilarityMap(np.full((3, 4), 0.25, np.float32)), alpha=1.0)
    lowest = np.array(matplotlib.colormaps[plot.HEAT](0.0)[:3]) * 255
    assert np.abs(plot.to_png(ax.figure).astype(float) - lowest).max() <= 1


def test_objects_have_colours_numbers_and_scores() -> None:
    ax = plot.objects(IMAGE, union())
    assert [text.get_text() for text in ax.texts] == ["1: 0.75", "2: 0.50"]
    second, first = pixels(ax, 1), pixels(ax, 2)  # the first object is drawn last
    for layer, colour, mask in ((first, 0, rectangle(2, 9)), (second, 1, rectangle(8, 30))):
        assert tuple(layer[0, 0, :3]) == OBJECT_COLOURS[colour]
        np.testing.assert_array_equal(layer[..., 3] > 0, mask)
    assert [t.get_text() for t in plot.objects(IMAGE, answer(rectangle())).texts] == ["1: 0.50"]
    assert not plot.objects(IMAGE, answer(np.zeros((H, W), bool))).texts


def crowd(count: int, seed: int = 0) -> Segmentation:
    """Objects at random places of an image of 120 x 160."""
    rng, found = np.random.default_rng(seed), []
    for score in np.linspace(0.9, 0.1, count):
        mask = np.zeros((120, 160), bool)
        y, x = rng.integers(0, (112, 152))
        mask[y : y + 8, x : x + 8] = True
        found.append(answer(mask, score=float(score), points=PointPrompts.empty()))
    mask = np.any([each.mask for each in found], axis=0)
    return answer(mask, score=0.9, points=PointPrompts.empty(), objects=tuple(found))


@pytest.mark.parametrize(("count", "inches"), [(12, 4.0), (40, 4.0), (12, 1.0), (40, 1.0)])
def test_labels_overlap_neither_each_other_nor_the_border(count: int, inches: float) -> None:
    ax = Figure(figsize=(inches, inches)).subplots()
    plot.objects(np.zeros((120, 160, 3), np.uint8), crowd(count), ax)
    ax.figure.set_size_inches(2 * inches, inches)  # what counts is the size when it is drawn
    plot.to_png(ax.figure)
    frame = ax.get_window_extent()
    shown = [text for text in ax.texts if text.get_visible()]
    boxes = np.array([text.get_bbox_patch().get_window_extent().extents for text in shown])
    assert (boxes[:, :2] >= (frame.x0 - 0.5, frame.y0 - 0.5)).all()
    assert (boxes[:, 2:] <= (frame.x1 + 0.5, frame.y1 + 0.5)).all()
    apart = (boxes[:, None, :2] >= boxes[None, :, 2:] - 0.1).any(-1)
    assert (apart | apart.T | np.eye(len(shown), dtype=bool)).all()
    full = [f"{i}: {each.score:.2f}" for i, each in enumerate(crowd(count).objects, 1)]
    assert [text.get_text() in (long, long.partition(":")[0]) for text, long in zip(ax.texts, full, strict=True)] == [
        True
    ] * count
    assert len(shown) >= (count if inches == 4 else 8)
    assert (count, inches) != (12, 4.0) or [text.get_text() for text in shown] == full


def test_labels_can_be_read_on_every_colour() -> None:
    plot.to_png((ax := plot.objects(np.zeros((120, 160, 3), np.uint8), crowd(len(OBJECT_COLOURS)))).figure)
    for text, colour in zip(ax.texts, OBJECT_COLOURS, strict=True):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
        luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
        contrast = (luminance + 0.05) / 0.05 if text.get_color() == "black" else 1.05 / (luminance + 0.05)
        assert contrast >= 4.5  # WCAG, level AA


@pytest.mark.parametrize("columns", [7, 4])
def test_captions_fit_narrow_columns(columns: int) -> None:
    figure = plot.compare(IMAGE, [MAP] * 6, ["word " * 60] * 3 + ["unbroken" * 40] * 3, columns=columns)
    plot.to_png(figure)
    spans = [ax.title.get_window_extent() for ax in figure.axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(spans[:columns]))
    assert all(span.y1 <= figure.bbox.y1 for span in spans)
    assert all(title.endswith("...") for title in titles(figure)[1:])


def test_no_points_and_no_image() -> None:
    assert not plot.points(IMAGE, PointPrompts.empty()).collections
    ax = Figure().subplots()
    plot.points(None, POINTS, plot.heat(IMAGE, MAP, ax))
    assert len(ax.images) == 2
    assert len(ax.collections) == 2
    only_mask = plot.overlay(None, answer(rectangle()), Figure().subplots())
    assert len(only_mask.images) == 1
    assert only_mask.get_ylim() == (H - 0.5, -0.5)


# several pictures


def test_compare_draws_masks_and_maps() -> None:
    figure = plot.compare(IMAGE, [answer(rectangle()), MAP, MAP], ["mask", "a $map$ 猫", "c"], columns=2)
    assert titles(figure) == ["image", "mask", "a $map$ ?", "c"]
    assert [len(ax.images) for ax in figure.axes] == [1, 2, 2, 2]
    assert first_row(figure) == 2
    assert plot.to_png(figure).shape[1] == 1200
    absent = answer(np.zeros((H, W), bool))
    own = plot.compare(IMAGE, [MAP, answer(rectangle()), absent, MAP])
    assert titles(own) == ["image", "map of cat, 0 to 1.1", "cat", "cat: not in the image", "map of cat, 0 to 1.1"]
    assert first_row(own) == 3
    assert titles(plot.compare(IMAGE, [])) == ["image"]


def first_row(figure: Figure) -> int:
    return figure.axes[0].get_gridspec().ncols


@pytest.mark.parametrize("count", [1, 3, 12])
def test_explain_shows_map_candidates_and_result(count: int) -> None:
    figure = plot.explain(IMAGE, answer(rectangle(), candidates=candidates(count, count - 1)))
    assert first_row(figure) == {1: 3, 3: 5, 12: 5}[count]
    first, *offered, last = figure.axes
    assert len(offered) == min(count, 8)
    assert first.get_title() == "map of cat, 3 points"
    np.testing.assert_allclose(pixels(first, 1).max(), 1.1, atol=1e-6)
    chosen = offered[-1]
    assert chosen.get_title() == f"mask {count} of {count}, chosen"
    assert chosen.get_xlabel() == f"score {0.9 if count > 1 else 0.1}\ntotal {0.9 if count > 1 else 0.1}"
    np.testing.assert_array_equal(pixels(chosen, 1)[..., 3] > 0, rectangle(0, 2 + count))
    assert [ax.spines["left"].get_linewidth() == 3 for ax in offered] == [ax is chosen for ax in offered]
    assert last.get_title() == "result"
    told = figure.get_supxlabel()
    assert "present: presence 0.9 >= threshold 0, text 'cat'" in told
    assert "chosen: it has the highest total" in told
    assert plot.to_png(figure, 700).shape[1] == 700


def test_explain_of_several_objects_and_of_nothing() -> None:
    figure = plot.explain(IMAGE, union(candidates=candidates(2, 0)))
    assert len(figure.axes) == 4
    assert len(figure.axes[-1].texts) == 2
    nothing = answer(np.zeros((H, W), bool), points=PointPrompts.empty(), threshold=0.95, present=False, text="x " * 900)
    figure = plot.explain(IMAGE, nothing)
    assert titles(figure)[-1] == "result: not in the image"
    assert "presence 0.9 < threshold 0.95" in figure.get_supxlabel()
    assert "SAM was not asked" in figure.get_supxlabel()
    assert plot.to_png(figure, 600).shape[1] == 600


def explanation(*carries: float) -> TextExplanation:
    words = tuple(
        Word(f"word{i}", (f"word{i}",), SimilarityMap(MAP.values + i, f"word{i}"), value) for i, value in enumerate(carries)
    )
    nearest = np.zeros((3, 4, min(3, len(words))), np.intp)
    places = (Place((1, 2), (22.5, 12.0), 0.5, ((0, 0.1),)),)
    return TextExplanation("word0 $ 猫", words, MAP, places, nearest, 0.25, "surgery", (H, W))


def test_words_are_bars_and_maps_on_one_scale() -> None:
    carries = [0.01 * (-1) ** i * i for i in range(30)]
    figure = plot.words(IMAGE, explanation(*carries))
    *maps, whole, bars = figure.axes
    assert [ax.get_title() for ax in maps] == [f"word{i}: {carries[i]:+.3f}" for i in range(22, 30)]
    assert whole.get_title() == "word0 $ ?"
    assert [text.get_position() for text in whole.texts] == [(22.0, 11.5)]
    assert [patch.get_width() for patch in bars.patches] == pytest.approx(carries[6:])
    assert bars.get_yticklabels()[0].get_text() == "word6"
    assert [ax.images[-1].get_clim() for ax in maps] == [pytest.approx((-0.55, 0.55), abs=1e-4)] * 8
    np.testing.assert_allclose(pixels(maps[0], 1), pixels(maps[7], 1), atol=1e-4)  # less their medians they are equal
    assert plot.to_png(figure, 640).shape[1] == 640


def test_one_word_that_carries_nothing() -> None:
    figure = plot.words(IMAGE, explanation(0.0))
    assert len(figure.axes) == 3
    assert plot.to_png(figure).shape[1] == 1200


# errors


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plot.points(None, POINTS), "give an image, or axes"),
        (lambda: plot.points(IMAGE, POINTS, object()), "ax must be matplotlib axes, not object"),  # type: ignore[arg-type]
        (lambda: plot.overlay(IMAGE[:5], answer(rectangle())), r"of an image \(24, 36\), this one is \(5, 36\)"),
        (lambda: plot.compare(IMAGE, [MAP], ["a", "b"]), "one for each of 1 results, not 2"),
        (lambda: plot.compare(IMAGE, ["cat"], ["a"]), "not str"),  # type: ignore[list-item]
        (lambda: plot.to_png(Figure(), 0), "width must be a whole number"),
    ],
)
def test_refused(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
