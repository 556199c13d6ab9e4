"""A contact sheet of a run: one HTML file that holds its pictures, the least sure ones first."""

from __future__ import annotations

import base64
import hashlib
import heapq
import html
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam.annotate.journal import Record
from text2sam.checks import check_number
from text2sam.errors import ImageError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.files import write_bytes
from text2sam.image import read_image
from text2sam.paint import OBJECT_COLOURS


@dataclass(frozen=True)
class ReviewSummary:
    """What :func:`write_review` wrote.

    Attributes:
        path: of the page.
        images: how many there were.
        shown: how many of them are on the page.
        missing: how many of those have a placeholder, because the picture is gone, broken, or of another size by now.
    """

    path: Path
    images: int
    shown: int
    missing: int


_PALETTE = (
    *OBJECT_COLOURS,
    (148, 68, 212),
    (120, 190, 32),
    (214, 39, 69),
    (120, 94, 60),
    (0, 190, 190),
)
_TINT = 0.45
_LONGEST_TEXT = 200
_CLOSEST = 4  # labels without an object that a card tells of
_JOINERS = "\u200c\u200d"  # letters of Persian and families of emoji need them

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
p { margin: .2rem 0; max-width: 70rem; }
ul { list-style: none; margin: .2rem 0; padding: 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(SIDEpx, 100%), 1fr)); gap: 1rem; margin-top: 1rem; }
article { border: 1px solid #8886; border-radius: 6px; overflow: hidden; overflow-wrap: anywhere; }
article[hidden] { display: none; }
article > div { padding: .5rem .7rem; font-size: .85rem; }
img { display: block; max-width: 100%; height: auto; margin: auto; }
.gone { display: grid; place-items: center; min-height: 8rem; background: #8882; text-align: center; }
.dot { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em; border: 1px solid #8888; }
.file { font-weight: 600; }
.quiet { opacity: .7; }
"""

_SCRIPT = """
(function () {
  var box = document.getElementById("filter"), select = box.querySelector("select");
  var cards = document.querySelectorAll("article");
  box.hidden = false;
  select.addEventListener("change", function () {
    cards.forEach(function (card) {
      card.hidden = select.value !== "" && (" " + card.dataset.labels + " ").indexOf(" " + select.value + " ") < 0;
    });
  });
})();
"""


def write_review(
    records: Callable[[], Iterable[Record]],
    thresholds: Mapping[str, float],
    images_root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    limit: int = 500,
    thumbnail: int = 256,
    title: str = "text2sam review",
) -> ReviewSummary:
    """Writes a page with the images a run was least sure of, :func:`confidence` ascending.

    The page needs no other file and no network, and reads without scripts; with them it filters by label. Its own
    security policy lets nothing else in. The same records and pictures give the same bytes. One picture and one record are in
    memory at a time, besides what the page shows: the records are gone through twice, first for their confidence, then to draw.

    Args:
        records: gives the records of the images that did not fail, the same each time.
        thresholds: of each label, in [0, 1]: from which presence on it counted as there.
        images_root: folder that the records' paths are relative to.
        out: the HTML file, written whole or not at all.
        limit: at most so many images are shown.
        thumbnail: longer side of a picture on the page, in pixels; smaller pictures stay as they are.
        title: heading of the page.

    Raises:
        InputError: ``limit`` or ``thumbnail`` is too small.
        OutputError: the page cannot be written.
    """
    check_number("limit", limit, 1, whole=True)
    check_number("thumbnail", thumbnail, 16, whole=True)
    total = 0
    labels: Counter[str] = Counter()

    def judged() -> Iterator[tuple[float, str]]:
        nonlocal total
        for record in records():
            total += 1
            labels.update(dict.fromkeys(record.presence, 0))
            labels.update(thing.label for thing in _objects(record))
            yield confidence(record, thresholds)[0], record.path

    chosen = [path for _, path in heapq.nsmallest(limit, judged())]
    numbers = {label: number for number, label in enumerate(sorted(labels))}
    wanted, cards = set(chosen), dict[str, tuple[bytes, bool]]()
    for record in records():
        if record.path in wanted:
            cards[record.path] = _card(record, thresholds, Path(images_root), numbers, thumbnail)
    page = [_head(title, total, len(chosen), labels, numbers, thumbnail), *(cards[path][0] for path in chosen), _tail()]
    write_bytes(out, b"".join(page))
    return ReviewSummary(Path(out), total, len(chosen), sum(missing for _, missing in cards.values()))


def _objects(record: Record) -> Sequence[AnnotatedObject]:
    return () if record.image is None else record.image.objects


def confidence(record: Record, thresholds: Mapping[str, float]) -> tuple[float, str]:
    """How far the run was from changing its mind about an image.

    The smallest of, each in [0, 1]:

    - for each label, the distance of its presence p from its threshold t, as a share of the room on its side:
      ``(p - t) / (1 - t)`` where p is at least t, ``(t - p) / t`` where it is below;
    - the score of each object;
    - 0 where a label reached its threshold and has no object.

    Returns:
        The smallest, 1 where there was nothing to decide, and in words what makes it so low.
    """
    doubts = [(1.0, "nothing to decide")]
    found = {thing.label for thing in _objects(record)}
    for label, p in record.presence.items():
        t = thresholds[label]
        if p >= t and label not in found:
            doubts.append((0.0, f"{_shown(label)}: presence {p:.3f} reaches {t:.3f}, but there is no object"))
            continue
        room = 1 - t if p >= t else t
        share = abs(p - t) / room if room > 0 else 0.0
        doubts.append((share, f"{_shown(label)}: presence {p:.3f}, threshold {t:.3f}"))
    doubts += [(float(o.score), f"{_shown(o.label)}: an object scores {o.score:.3f}") for o in _objects(record)]
    # the label settles ties, so that the order of a mapping does not show
    return min(doubts)


def _card(
    record: Record, thresholds: Mapping[str, float], root: Path, numbers: Mapping[str, int], side: int
) -> tuple[bytes, bool]:
    """One image's part of the page, and whether it has a placeholder."""
    image, presence = cast(AnnotatedImage, record.image), record.presence
    name = _escaped(image.path)
    reason = ""
    try:
        pixels = read_image(root / image.path)
        if pixels.shape[:2] != (image.height, image.width):
            reason = f"the picture is {pixels.shape[1]} x {pixels.shape[0]} by now, not {image.width} x {image.height}"
    except ImageError as error:
        reason = str(error)
    if reason:
        picture = f'<div class="gone"><span>No picture: {_escaped(reason)}</span></div>'
    else:
        small = _draw(pixels, image, numbers, side)
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, "JPEG", quality=82, subsampling=0)  # thin coloured lines
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        height, width = small.shape[:2]
        picture = f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" alt="{name}" decoding="async">'

    sure, why = confidence(record, thresholds)
    scores: dict[str, list[float]] = {}
    for thing in image.objects:
        scores.setdefault(thing.label, []).append(float(thing.score))
    lines = []
    for label, values in sorted(scores.items()):
        there = f" <span class=quiet>(presence {presence[label]:.3f})</span>" if label in presence else ""
        listed = ", ".join(f"{v:.3f}" for v in sorted(values, reverse=True)[:8]) + (", ..." if len(values) > 8 else "")
        lines.append(f"<li>{_dot(numbers[label])}{_escaped(label)}: {listed}{there}</li>")
    absent = sorted((abs(p - thresholds[label]), label) for label, p in presence.items() if label not in scores)
    for _, label in absent[:_CLOSEST]:
        p, t = presence[label], thresholds[label]
        lines.append(f"<li class=quiet>{_dot(numbers[label])}{_escaped(label)}: no object (presence {p:.3f} of {t:.3f})</li>")
    marks = " ".join(str(number) for number in sorted(numbers[label] for label in scores))
    text = (
        f'<article data-labels="{marks}">{picture}<div><p class=file>{name}</p>'
        f"<p>confidence {sure:.3f}: {html.escape(why)}</p><ul>{''.join(lines)}</ul></div></article>\n"
    )
    return _bytes(text), bool(reason)


def _draw(pixels: NDArray[np.uint8], image: AnnotatedImage, numbers: Mapping[str, int], side: int) -> NDArray[np.uint8]:
    """(h, w, 3) uint8: the picture made small, its objects tinted and outlined in their labels' colours."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    out = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), np.float32)
    # small objects on top of large ones
    for thing in sorted(image.objects, key=lambda o: (-o.area, o.label, o.counts)):
        if not thing.area:
            continue
        colour = np.array(_colour(numbers[thing.label]), np.float32)
        whole = thing.mask
        mask = np.array(Image.fromarray(whole.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX)) >= 128
        if not mask.any():  # thinner than a pixel of the thumbnail
            y, x = np.nonzero(whole)
            mask[y * size[1] // height, x * size[0] // width] = True
        out[mask] += _TINT * (colour - out[mask])
        inner, outer = _edges(mask)
        out[outer] = 255.0
        out[inner] = colour
    return np.rint(out).clip(0, 255).astype(np.uint8)


def _edges(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two (H, W) bool: a mask's pixels with a neighbour (of four) outside it, and the pixels around it.

    A line in each, coloured and white, shows on any ground.
    """

    def around(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
        wide = np.pad(inside, 1)
        touched: NDArray[np.bool_] = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
        return touched

    return mask & around(~mask), ~mask & around(mask)


def _colour(number: int) -> tuple[int, int, int]:
    return _PALETTE[number % len(_PALETTE)]


def _dot(number: int) -> str:
    return f'<span class="dot c{number % len(_PALETTE)}"></span>'


def _head(title: str, total: int, shown: int, labels: Mapping[str, int], numbers: Mapping[str, int], side: int) -> bytes:
    colours = "".join(f".c{n} {{ background: rgb({r} {g} {b}); }}\n" for n, (r, g, b) in enumerate(_PALETTE))
    style = _STYLE.replace("SIDE", str(side)) + colours
    policy = f"default-src 'none'; img-src data:; style-src {_allowed(style)}; script-src {_allowed(_SCRIPT)}"
    which = f"{shown} of {total} images, the least sure first" if shown < total else f"{total} images, the least sure first"
    legend = "".join(f"<li>{_dot(numbers[label])}{_escaped(label)}: {labels[label]}</li>" for label in numbers)
    options = "".join(f'<option value="{number}">{_escaped(label)}</option>' for label, number in numbers.items())
    return _bytes(
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{_escaped(title)}</h1>
<p>{which}.</p>
<p class="quiet">Confidence, from 0 to 1, is how far the run was from another answer: the smallest of the distances between
presence and threshold (as a share of the room on that side) and of the objects' scores.</p>
<ul class="legend">{legend}</ul>
<p id="filter" hidden><label>Show images with <select><option value="">anything</option>{options}</select></label></p>
<div class="cards">
"""
    )


def _tail() -> bytes:
    return _bytes(f"</div>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n")


def _allowed(text: str) -> str:
    """The source expression by which a security policy lets an inline block in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _shown(text: str) -> str:
    """A text from outside in one readable line: what cannot be seen, or turns the line round, as escapes."""
    if len(text) > _LONGEST_TEXT:
        half = _LONGEST_TEXT // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode("ascii") for c in text)


def _escaped(text: str) -> str:
    return html.escape(_shown(text))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
