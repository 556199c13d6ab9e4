"""A contact sheet of a run: one HTML file that holds its pictures, the least sure ones first."""

from __future__ import annotations

import base64
import functools
import heapq
import html
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, cast

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

_SIDE = 256  # longer side of a picture on the page, in pixels
_LONGEST_TEXT = 200
_CLOSEST = 4  # labels without an object that a card tells of
_JOINERS = "\u200c\u200d"  # letters of Persian and families of emoji need them


def write_review(
    records: Callable[[], Iterable[Record]],
    thresholds: Mapping[str, float],
    images_root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    limit: int = 500,
    reading: Mapping[str, Any] | None = None,
) -> tuple[int, int]:
    """Writes a page with the images a run was least sure of, :func:`confidence` ascending.

    The page needs no script, no other file and no network, and its own security policy lets none in. The same records and
    pictures give the same bytes. One picture and one record are in memory at a time, besides what the page shows: the records
    are gone through twice, first for their confidence, then to draw.

    Args:
        records: gives the records of the images that did not fail, the same each time.
        thresholds: of each label, in [0, 1]: from which presence on it counted as there.
        images_root: folder that the records' paths are relative to.
        out: the HTML file, written whole or not at all.
        limit: at most so many images are shown.
        reading: keyword arguments of :func:`text2sam.image.read_image`, as for the run.

    Returns:
        How many images there were, and how many of them are on the page.

    Raises:
        InputError: ``limit`` is below 1.
        OutputError: the page cannot be written.
    """
    check_number("limit", limit, 1, whole=True)
    read = functools.partial(read_image, **(reading or {}))
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
    wanted, cards = set(chosen), dict[str, str]()
    for record in records():
        if record.path in wanted:
            cards[record.path] = _card(record, thresholds, Path(images_root), numbers, read)
    page = Template(Path(__file__).with_name("review.html").read_text(encoding="utf-8")).substitute(
        colours="\n".join(f".c{n} {{ background: rgb{colour}; }}" for n, colour in enumerate(OBJECT_COLOURS)),
        which=f"{len(chosen)} of {total} images" if len(chosen) < total else f"{total} images",
        legend="".join(f"<li>{_dot(number)}{_escaped(label)}: {labels[label]}</li>" for label, number in numbers.items()),
        cards="".join(cards[path] for path in chosen),
    )
    write_bytes(out, page.encode("utf-8", "backslashreplace"))
    return total, len(chosen)


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
    drawn = {thing.label for thing in _objects(record)}
    for label, p in record.presence.items():
        t = thresholds[label]
        if p >= t and label not in drawn:
            doubts.append((0.0, f"{_shown(label)}: presence {p:.3f} reaches {t:.3f}, but there is no object"))
            continue
        room = 1 - t if p >= t else t
        share = abs(p - t) / room if room > 0 else 0.0
        doubts.append((share, f"{_shown(label)}: presence {p:.3f}, threshold {t:.3f}"))
    doubts += [(float(o.score), f"{_shown(o.label)}: an object scores {o.score:.3f}") for o in _objects(record)]
    # the label settles ties, so that the order of a mapping does not show
    return min(doubts)


def _card(
    record: Record,
    thresholds: Mapping[str, float],
    root: Path,
    numbers: Mapping[str, int],
    read: Callable[[Path], NDArray[np.uint8]],
) -> str:
    """One image's part of the page, with a placeholder where the picture is gone, broken, or of another size by now."""
    image, presence = cast(AnnotatedImage, record.image), record.presence
    name = _escaped(image.path)
    reason = ""
    try:
        pixels = read(root / image.path)
        if pixels.shape[:2] != (image.height, image.width):
            reason = f"the picture is {pixels.shape[1]} x {pixels.shape[0]} by now, not {image.width} x {image.height}"
    except ImageError as error:
        reason = str(error)
    if reason:
        picture = f'<div class="gone">No picture: {_escaped(reason)}</div>'
    else:
        buffer = io.BytesIO()
        Image.fromarray(_draw(pixels, image, numbers)).save(buffer, "JPEG", quality=82, subsampling=0)  # thin coloured lines
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{name}">'

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
    return (
        f"<article>{picture}<div><p class=file>{name}</p>"
        f"<p>confidence {sure:.3f}: {html.escape(why)}</p><ul>{''.join(lines)}</ul></div></article>\n"
    )


def _draw(pixels: NDArray[np.uint8], image: AnnotatedImage, numbers: Mapping[str, int]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8: the picture made small, its objects in their labels' colours, small objects on top of large ones."""
    from skimage.segmentation import find_boundaries

    height, width = pixels.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    out = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), np.float32)
    for thing in sorted(image.objects, key=lambda o: (-o.area, o.label, o.counts)):
        colour = np.array(OBJECT_COLOURS[numbers[thing.label] % len(OBJECT_COLOURS)], np.float32)
        whole = thing.mask
        mask = np.array(Image.fromarray(whole.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX)) >= 128
        if not mask.any():  # thinner than a pixel of the small picture
            y, x = np.nonzero(whole)
            mask[y * size[1] // height, x * size[0] // width] = True
        out[mask] += 0.45 * (colour - out[mask])
        out[find_boundaries(mask, mode="outer")] = 255.0  # two lines show on any ground
        out[find_boundaries(mask, mode="inner")] = colour
    return np.rint(out).clip(0, 255).astype(np.uint8)


def _dot(number: int) -> str:
    return f'<span class="dot c{number % len(OBJECT_COLOURS)}"></span>'


def _shown(text: str) -> str:
    """A text from outside in one readable line: what cannot be seen, or turns the line round, as escapes."""
    if len(text) > _LONGEST_TEXT:
        half = _LONGEST_TEXT // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode("ascii") for c in text)


def _escaped(text: str) -> str:
    return html.escape(_shown(text))
