"""The contact sheet: what it shows, in which order, and that nothing from outside gets into it but as text."""

from __future__ import annotations

import base64
import collections
import html
import io
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from text2sam.annotate.journal import Record
from text2sam.annotate.review import confidence, write_review
from text2sam.errors import OutputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "'; DROP TABLE x; --",
    "</style></title></article>",
    "&lt;b&gt; & &amp",
    "bad\udcff name",
    "turned\u202egpj.exe",
    "line\nbreak\x1b[31m",
    "javascript:alert(1)",
    "{title} %s ${x}",
)
SIZE = (20, 30)
HALF: dict[str, float] = collections.defaultdict(lambda: 0.5)


def disc(at: tuple[int, int] = (10, 15), radius: float = 5, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    y, x = np.mgrid[: size[0], : size[1]]
    inside: NDArray[np.bool_] = np.hypot(y - at[0], x - at[1]) <= radius
    return inside


def item(
    path: str = "a.png",
    objects: tuple[AnnotatedObject, ...] = (),
    presence: dict[str, float] | None = None,
    size: tuple[int, int] = SIZE,
) -> Record:
    return Record(path, AnnotatedImage(path, size[0], size[1], objects), presence or {})


def cat(score: float = 0.9, label: str = "cat", **options: Any) -> AnnotatedObject:
    return AnnotatedObject.from_mask(label, disc(**options), score)


def save(folder: Path, path: str, size: tuple[int, int] = SIZE, value: int = 200) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(target, "PNG")


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes, text."""

    def __init__(self, data: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.source = data.decode("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self) -> list[NDArray[np.uint8]]:
        return [decode(attributes["src"] or "") for attributes in self.all("img")]


def decode(source: str) -> NDArray[np.uint8]:
    kind, _, data = source.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        return np.asarray(image.convert("RGB"))


def page_of(items: Any, folder: Path, **options: Any) -> tuple[Page, int, int]:
    images, shown = write_review(lambda: items, HALF, folder, folder / "review.html", **options)
    return Page((folder / "review.html").read_bytes()), images, shown


# degenerate


def test_one_pixel_and_no_object(tmp_path: Path) -> None:
    save(tmp_path, "a.png", (1, 1))
    record = item(size=(1, 1), objects=(AnnotatedObject.from_mask("dot", np.ones((1, 1), bool), 0.5),))
    page, *_ = page_of([record], tmp_path)
    assert "No picture" not in page.text
    assert page.pictures()[0].shape == (1, 1, 3)
    page, *_ = page_of([item(size=(1, 1))], tmp_path)
    assert "nothing to decide" in page.text


# confidence


@pytest.mark.parametrize(
    ("objects", "presence", "thresholds", "expected"),
    [
        ((), {}, {}, 1.0),
        ((), {"cat": 0.0}, {"cat": 0.5}, 1.0),
        ((), {"cat": 0.4}, {"cat": 0.5}, 0.2),
        ((), {"cat": 0.1}, {"cat": 0.4}, 0.75),
        ((), {"cat": 0.5}, {"cat": 0.5}, 0.0),
        ((), {"cat": 1.0}, {"cat": 0.5}, 0.0),  # present without an object
        ((cat(0.9),), {"cat": 0.7}, {"cat": 0.5}, 0.4),
        ((cat(0.3), cat(0.8)), {"cat": 1.0}, {"cat": 0.5}, 0.3),
        ((cat(0.9),), {"cat": 1.0, "dog": 0.45}, {"cat": 0.5, "dog": 0.5}, 0.1),
        ((cat(0.9),), {}, {}, 0.9),
        ((cat(1.0),), {"cat": 1.0}, {"cat": 1.0}, 0.0),
        ((cat(1.0),), {"cat": 0.25}, {"cat": 0.0}, 0.25),
    ],
)
def test_confidence_by_hand(
    objects: tuple[AnnotatedObject, ...], presence: dict[str, float], thresholds: dict[str, float], expected: float
) -> None:
    assert confidence(item("a.png", objects, presence), thresholds)[0] == pytest.approx(expected)


UNIT = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    presence=st.dictionaries(st.sampled_from(["cat", "dog", "bird"]), st.tuples(UNIT, UNIT)),
    scores=st.lists(UNIT, max_size=3),
)
def test_confidence_is_a_share(presence: dict[str, tuple[float, float]], scores: list[float]) -> None:
    objects = tuple(cat(score) for score in scores)
    p, t = ({label: pair[k] for label, pair in presence.items()} for k in (0, 1))
    value = confidence(item("a.png", objects, p), t)
    assert 0.0 <= value[0] <= min([1.0, *scores])
    assert value == confidence(item("a.png", objects[::-1], dict(reversed(p.items()))), t)


# the page


def scored(count: int) -> list[Record]:
    scores = np.random.default_rng(0).permutation(count) / max(count, 1)
    return [item(f"{k:03d}.png", (cat(float(score)),)) for k, score in enumerate(scores)]


def names_of(page: Page) -> list[str]:
    return re.findall(r"<p class=file>(.*?)</p>", page.source)


@pytest.mark.parametrize("limit", [1, 4, 12, 500])
def test_the_least_sure_come_first(tmp_path: Path, limit: int) -> None:
    items = scored(12)
    expected = [least.image.path for least in sorted(items, key=lambda record: confidence(record, HALF))][:limit]
    page, images, shown = page_of(items, tmp_path, limit=limit)
    assert names_of(page) == expected
    assert (images, shown, page.text.count("No picture")) == (12, len(expected), len(expected))
    assert ("of 12 images" in page.text) == (len(expected) < 12)


def test_items_are_gone_through_twice_and_one_at_a_time(tmp_path: Path) -> None:
    alive, passes = 0, 0

    class Held(Record):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def again() -> Iterator[Record]:
        nonlocal alive, passes
        passes += 1
        for record in scored(30):
            alive += 1
            assert alive <= 3
            yield Held(record.path, record.image, record.presence)

    _, shown = write_review(again, HALF, tmp_path, tmp_path / "review.html", limit=20)
    assert (shown, passes) == (20, 2)


def test_objects_are_drawn_in_their_labels_colour(tmp_path: Path) -> None:
    size = (60, 90)
    save(tmp_path, "sub/a.png", size)
    objects = (
        cat(0.9, at=(20, 25), radius=12, size=size),
        cat(0.8, label="dog", at=(35, 65), radius=15, size=size),
    )
    page, *_ = page_of([item("sub/a.png", objects, {"cat": 0.9, "dog": 0.9}, size=size)], tmp_path)
    assert "No picture" not in page.text
    (picture,) = page.pictures()
    assert picture.shape == (*size, 3)
    ground = picture[disc((5, 80), 3, size)].mean(0)
    inside = [picture[disc(at, 5, size)].mean(0) for at in ((20, 25), (35, 65))]
    assert np.abs(ground - 200).max() < 4
    # blue and orange, the palette's first two: tint and ground half and half
    np.testing.assert_allclose(inside[0], 0.55 * 200 + 0.45 * np.array([0, 114, 178]), atol=6)
    np.testing.assert_allclose(inside[1], 0.55 * 200 + 0.45 * np.array([230, 159, 0]), atol=6)
    edge = picture[20, 25 - 12].astype(float)
    assert np.abs(edge - ground).sum() > np.abs(inside[0] - ground).sum()


def test_a_small_object_shows_on_a_small_picture(tmp_path: Path) -> None:
    size = (2560, 2560)
    save(tmp_path, "a.png", size)
    mask = np.zeros(size, bool)
    mask[301, 101] = True  # ten by ten pixels are one of the page
    record = item(
        objects=(AnnotatedObject.from_mask("cat", mask), AnnotatedObject.from_mask("nil", np.zeros(size, bool))), size=size
    )
    picture = page_of([record], tmp_path)[0].pictures()[0].astype(int)
    assert picture.shape == (256, 256, 3)
    there = np.abs(picture - 200).sum(2)
    assert np.unravel_index(there.argmax(), there.shape) == (30, 10)


def test_pictures_that_are_gone_have_a_placeholder(tmp_path: Path) -> None:
    save(tmp_path, "there.png")
    save(tmp_path, "grown.png", (40, 40))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    items = [item(path, (cat(),)) for path in ("there.png", "grown.png", "broken.png", "gone.png")]
    page, _, shown = page_of(items, tmp_path)
    assert (shown, len(page.all("img"))) == (4, 1)
    assert "40 x 40 by now" in page.text
    assert page.text.count("No picture") == 3


def test_the_same_items_give_the_same_bytes(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    save(tmp_path, "b.png")
    presence = {"cat": 0.6, "dog": 0.4, "bird": 0.4}
    items = [item(path, (cat(0.6), cat(0.5)), presence) for path in ("a.png", "b.png")]
    turned = [item(path, (cat(0.6), cat(0.5)), dict(reversed(presence.items()))) for path in ("b.png", "a.png")]
    for name, records in (("1.html", items), ("2.html", turned)):
        write_review(lambda records=records: records, HALF, tmp_path, tmp_path / name)
    first = (tmp_path / "1.html").read_bytes()
    assert (tmp_path / "2.html").read_bytes() == first
    assert names_of(Page(first)) == ["a.png", "b.png"]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_review(lambda: [item()], HALF, tmp_path, tmp_path / "file" / "r.html")
    with pytest.raises(OutputError):
        write_review(lambda: [item()], HALF, tmp_path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# hostile texts


def assert_harmless(page: Page) -> None:
    known = {"html", "head", "meta", "title", "style", "body", "h1", "p", "ul", "li", "span", "div", "article", "img"}
    assert {tag for tag, _ in page.tags} <= known
    assert len(page.all("style")) == len(page.all("title")) == 1
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "action", "srcset", "style") for name in attributes)
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert not re.search(r"@import|url\(", page.source)
    policy = next(a["content"] or "" for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_names_and_labels(tmp_path: Path) -> None:
    items = []
    for k, text in enumerate(HOSTILE):
        path = text.replace("/", "_").replace("\\", "_")
        presence = {text: 0.4, HOSTILE[k - 1]: 0.6, "cat": 0.2}
        items.append(item(path, (cat(0.5, label=text),), presence))
        if os.name == "posix":
            save(tmp_path, path)
    page, _, shown = page_of(items, tmp_path)
    assert_harmless(page)
    assert shown == len(HOSTILE)
    assert "No picture" not in page.text
    for text in HOSTILE[:5]:
        assert text in page.text
        assert html.escape(text) in page.source
    assert "\u202e" not in page.source
    assert "\x1b" not in page.source
    assert "bad\\udcff name" in page.text


def test_very_long_texts_are_cut(tmp_path: Path) -> None:
    page, *_ = page_of([item("n" * 5000, (cat(label="x" * 100_000),))], tmp_path)
    assert len(page.source) < 20_000
    assert "x" * 100 + "..." + "x" * 100 in page.text


TEXTS = st.text(min_size=1, max_size=12, alphabet=st.characters() | st.sampled_from("<>&\"'/\\\0\ud800"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(TEXTS, max_size=3), name=TEXTS)
def test_any_text(tmp_path: Path, labels: list[str], name: str) -> None:
    path = "p" + re.sub(r"[/\\\0]", "_", name)
    objects = tuple(cat(0.5, label=label) for label in labels)
    page, _, shown = page_of([item(path, objects, dict.fromkeys(labels, 0.4))], tmp_path)
    assert shown == 1
    assert_harmless(page)
