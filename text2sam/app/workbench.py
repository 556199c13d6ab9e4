"""What stands behind the page: pictures that people open, what they ask, and how they correct the answers.

Nothing here knows of a browser. A :class:`Desk` is what one person has before them; every action gives a new one.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from text2sam import plot
from text2sam.decode import short
from text2sam.errors import ImageError, InputError, PromptError, Text2SamWarning, needed
from text2sam.export.annotated import AnnotatedImage
from text2sam.export.exporter import written
from text2sam.export.formats import make_exporter
from text2sam.files import write_png
from text2sam.image import read_image
from text2sam.paint import OBJECT_COLOURS, overlay
from text2sam.pipeline import EncodedImage, TextPromptedSAM
from text2sam.presence import presence_scores
from text2sam.refine import with_candidate, without_object
from text2sam.types import PointPrompts, Segmentation, box_of

MOST_BYTES = 25 * 2**20
"""A larger file is refused."""

MOST_PIXELS = 25_000_000
"""A picture with more pixels is refused."""

VIEW = 1280
"""Longer side, in pixels, of what the page shows."""


class Row(NamedTuple):
    """A line of the list of objects, which is its ``label``.

    ``place`` is (index of the text, index of the object); an absent text has a line of its own.
    """

    place: tuple[int, int]
    label: str


@dataclass(frozen=True, eq=False)
class Desk:
    """One person's picture, and what was found in it.

    Attributes:
        name: of the picture, without an ending.
        encoded: the picture, encoded once.
        results: one per text.
        texts: the texts, as they were typed.
        exclude: what the results leave out.
        edited: the texts whose results were corrected by hand; they stay when the person asks again.
        chosen: (index of the text, index of the object) that clicks go to.
        notes: what the models had to say about the last action.
        before: the desk before the last correction, or None.
    """

    name: str
    encoded: EncodedImage
    results: tuple[Segmentation, ...] = ()
    texts: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    edited: frozenset[str] = frozenset()
    chosen: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    before: Desk | None = None

    @cached_property
    def small(self) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB, the picture with a longer side of at most :data:`VIEW` pixels."""
        from PIL import Image

        picture = Image.fromarray(self.encoded.image)
        picture.thumbnail((VIEW, VIEW))
        return np.asarray(picture)

    @property
    def rows(self) -> list[Row]:
        """All objects, and the texts that are not there."""
        rows: list[Row] = []
        for index, result in enumerate(self.results):
            for k, part in enumerate(result.instances):
                number = f" {k + 1}" if len(result.instances) > 1 else ""
                share = 100 * part.area / part.mask.size
                figures = f"score {part.score:.2f} · presence {result.presence:.2f} · area {share:.1f}\N{NO-BREAK SPACE}%"
                rows.append(Row((index, k), f"{result.text}{number} · {figures}"))
            if not result.instances:
                rows.append(Row((index, 0), f"{result.text} · not here · presence {result.presence:.2f}"))
        return rows

    @property
    def result(self) -> Segmentation | None:
        """The result of the chosen text."""
        return self.results[self.chosen[0]] if self.results else None

    @property
    def object(self) -> Segmentation | None:
        """The chosen object."""
        return None if self.result is None or not self.result.instances else self.result.instances[self.chosen[1]]

    def still(self, texts: Sequence[str], exclude: Sequence[str], threshold: float) -> dict[str, Segmentation]:
        """The answers to texts that need not be looked for again."""
        kept: dict[str, Segmentation] = {}
        for text, result in zip(self.texts, self.results, strict=False):  # a folder's pictures have results only
            before, now = (result.presence >= limit for limit in (result.threshold, threshold))
            # joined texts have a presence each
            same = threshold == result.threshold or (before == now and len(result.looked_for) < 2)
            if result.text in self.edited:
                kept[text] = result
            elif same and self.exclude == tuple(exclude):
                parts = tuple(replace(part, threshold=threshold) for part in result.objects)
                kept[text] = replace(result, threshold=threshold, objects=parts)
        return {text: kept[text] for text in texts if text in kept}

    def choose(self, place: Sequence[int]) -> Desk:
        """The desk with another chosen object; with the nearest that there is."""
        index = min(max(int(place[0]), 0), max(len(self.results) - 1, 0))
        count = len(self.results[index].instances) if self.results else 0
        return replace(self, chosen=(index, min(max(int(place[1]), 0), max(count - 1, 0))), notes=())

    def draw(self, *, masks: bool = True, heat: bool = False, points: bool = True, alpha: float = 0.5) -> NDArray[np.uint8]:
        """The small picture with what is wanted over it. The chosen object is drawn stronger than the others.

        Args:
            masks: the objects, each in its colour.
            heat: the similarity map of the chosen object's text, over the grey picture.
            points: the points of the chosen object.
            alpha: opacity of masks, in [0, 1].

        Returns:
            (h, w, 3) uint8 RGB.
        """
        image = self.small
        if heat and self.result is not None:
            image = _heat(image, self.result)
        colours = {row.place: OBJECT_COLOURS[n % len(OBJECT_COLOURS)] for n, row in enumerate(self.rows)}
        others = [place for place in colours if masks and place != self.chosen and self.results[place[0]].instances]
        shrunk = [_shrunk(self.results[index].instances[k].mask, image.shape) for index, k in others]
        image = overlay(image, shrunk, colours=[colours[place] for place in others] or None, alpha=0.6 * alpha)
        if self.object is None:
            return image
        part = self._shrunk(self.object)
        shown = part.points if points else PointPrompts.empty()
        return overlay(
            image,
            [part.mask] if masks else [],
            points=shown.coords,
            labels=shown.labels,
            colours=[colours[self.chosen]],
            alpha=alpha,
        )

    def candidates(self) -> list[tuple[NDArray[np.uint8], str]]:
        """A small picture, cut out around the masks, and a caption for each mask that SAM offered for the chosen object."""
        part = self.object
        if part is None or part.candidates is None:
            return []
        offered, image = part.candidates, self.small
        masks = [_shrunk(mask, image.shape) for mask in offered.masks]
        box = box_of(np.logical_or.reduce(masks))
        x0, y0, x1, y1 = (0, 0, image.shape[1], image.shape[0]) if box is None else box.astype(int).tolist()
        edge = max(x1 - x0, y1 - y0) // 8 + 4
        cut = slice(max(y0 - edge, 0), y1 + edge), slice(max(x0 - edge, 0), x1 + edge)
        totals = offered.figures.get("total", offered.scores)
        return [
            (overlay(np.ascontiguousarray(image[cut]), [mask[cut]]), f"{'✓ ' if k == offered.chosen else ''}{totals[k]:.2f}")
            for k, mask in enumerate(masks)
        ]

    def explain(self) -> NDArray[np.uint8] | None:
        """(h, w, 3) uint8 RGB: :func:`text2sam.plot.explain` of the chosen object, or of a text that is not there; None before
        a text was asked."""
        shown = self.object or self.result
        return None if shown is None else plot.to_png(plot.explain(self.small, self._shrunk(shown)))

    def save(self, folder: str | os.PathLike[str], format: str) -> Path:
        """Writes the picture with its objects as a dataset of one picture.

        Args:
            folder: for the file.
            format: of :data:`text2sam.export.formats.FORMATS`.

        Returns:
            A ZIP file.

        Raises:
            InputError: there is no result.
            OutputError: the file cannot be written.
        """
        if not self.results:
            raise InputError("there is nothing to save yet: type what to find")
        path = Path(folder, f"{self.name}-{format}.zip")
        with written(path), tempfile.TemporaryDirectory() as home:
            write_png(Path(home, f"{self.name}.png"), self.encoded.image)
            image = AnnotatedImage.from_results(f"{self.name}.png", self.results)
            labels = [result.text for result in self.results]
            with make_exporter(home, format=format, labels=labels, images_root=home) as exporter:
                exporter.add(image)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(Path(home).rglob("*")):
                    if file.is_file():
                        archive.write(file, file.relative_to(home))
        return path

    @property
    def _scale(self) -> NDArray[np.float64]:
        """(2,) pixels (x, y) of the small picture per pixel of the picture."""
        (h, w), (sh, sw) = self.encoded.shape, self.small.shape[:2]
        return np.array([sw / w, sh / h])

    def _shrunk(self, part: Segmentation) -> Segmentation:
        """A single object, or a text that is not there, as one of the small picture."""
        if part.mask.shape == self.small.shape[:2]:
            return part
        offered, mask = part.candidates, _shrunk(part.mask, self.small.shape)
        if offered is not None:
            offered = replace(offered, masks=np.stack([_shrunk(each, self.small.shape) for each in offered.masks]))
        box = box_of(mask)
        coords = ((part.points.coords + 0.5) * self._scale - 0.5).astype(np.float32)
        points = PointPrompts(coords, part.points.labels)
        return replace(part, mask=mask, box=box, points=points, candidates=offered, present=part.present and box is not None)

    def _edited(self, result: Segmentation, number: int) -> Desk:
        """The desk after a correction of the chosen text."""
        index = self.chosen[0]
        results = (*self.results[:index], result, *self.results[index + 1 :])
        changed = replace(self, results=results, edited=self.edited | {result.text}, before=self)
        return changed.choose((index, number))


class Workbench:
    """One model for all people. Calls wait for one another, and answers do not depend on who else is there.

    Args:
        model: what segments.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """

    def __init__(self, model: TextPromptedSAM) -> None:
        self.model = model
        self._lock = threading.RLock()
        needed("matplotlib", "matplotlib", "text2sam app", "app")

    def open(self, file: str | os.PathLike[str]) -> Desk:
        """A desk with a picture, encoded.

        Raises:
            ImageError: it cannot be read, or is too large; the message says nothing of its folder.
        """
        shown = Path(file).name
        with self.talking() as notes:
            try:
                size, most = (count / 2**20 for count in (os.stat(file).st_size, MOST_BYTES))
                if size > most:
                    raise ImageError(f"{shown!r} has {size:.1f} MB; at most {most:.1f} MB are accepted")
                pixels = read_image(file, max_pixels=MOST_PIXELS)
            except (OSError, ImageError) as error:
                raise ImageError(str(error).replace(short(os.fsdecode(file)), repr(shown))) from error
            desk = self.start(pixels, Path(shown).stem)
        return replace(desk, notes=tuple(notes))

    def start(self, pixels: NDArray[np.uint8], name: str) -> Desk:
        """A desk with a picture, (H, W, 3) uint8 RGB, encoded."""
        [encoded] = self.model.encode([pixels], sam=True)
        return Desk(re.sub(r"[^\w-]+", "-", name).strip("-")[:60] or "picture", encoded)

    def ask(self, desk: Desk, texts: str, exclude: str = "", threshold: float | None = None) -> Desk:
        """Looks for texts. What was corrected by hand stays, and so do answers that would be the same.

        A text that the model does not know becomes a note, and so does a text of ``exclude`` that is not in the picture.

        Args:
            desk: with a picture.
            texts: a comma list.
            exclude: a comma list of what masks leave out.
            threshold: the presence score from which a text counts as present; None is the model's.

        Raises:
            PromptError, InputError: none of the texts, or a text of ``exclude`` or the threshold, is usable.
        """
        wanted, avoided = split(texts), split(exclude)
        if not wanted:
            raise InputError("type what to find, such as: cat, dog")
        limit = self.model.presence_threshold if threshold is None else threshold
        known: list[str] = []
        refused: list[PromptError] = []
        with self.talking() as notes:
            for text in wanted:
                try:
                    self.model.check_texts([text], exclude=avoided or None, threshold=limit)
                    known.append(text)
                except PromptError as error:
                    refused.append(error)
            if not known:
                raise refused[0]
            self.model.check_texts(known)  # which of them are one thing
            answers = desk.still(known, avoided, limit)
            fresh = [text for text in known if text not in answers]
            segmented = self.model.segment_many(desk.encoded, fresh, exclude=avoided or None, threshold=limit) if fresh else []
            answers.update(zip(fresh, segmented, strict=True))
            scores = presence_scores(self.model.generator, desk.encoded.features, avoided, None)
        notes += map(str, refused)
        notes += [
            f"{text!r} is not in this picture (presence {score:.2f}), so nothing is left out for it"
            for text, score in zip(avoided, scores, strict=True)
            if score < self.model.presence_threshold
        ]
        results = tuple(answers[text] for text in known)
        edited = desk.edited & {result.text for result in results}
        first = next((k for k, result in enumerate(results) if result.instances), 0)
        return replace(
            desk,
            results=results,
            texts=tuple(known),
            exclude=tuple(avoided),
            edited=edited,
            chosen=(first, 0),
            notes=tuple(notes),
            before=None,
        )

    def click(self, desk: Desk, point: Sequence[float], *, positive: bool = True, new: bool = False) -> Desk:
        """Adds a point to the chosen object, or begins another object of its text.

        Args:
            desk: with a result.
            point: (x, y) in pixels of the small picture.
            positive: whether the point is on the object; the first point of an object always is.
            new: begin another object.

        Raises:
            InputError: there is no result yet.
        """
        result = desk.result
        if result is None:
            raise InputError("type what to find before you click: a click corrects an object of a text")
        number = desk.chosen[1] if result.instances and not new else len(result.instances)
        label = int(positive or number == len(result.instances))
        coords = ((np.array([point]) + 0.5) / desk._scale - 0.5).astype(np.float32)
        with self.talking() as notes:
            changed = self.model.refine(desk.encoded, result, PointPrompts(coords, np.array([label], np.uint8)), number=number)
        if len(changed.instances) < max(len(result.instances), number + 1):  # an object is not lost by a click
            return replace(desk, notes=("SAM finds nothing with this point; click elsewhere",))
        return replace(desk._edited(changed, number), notes=tuple(notes))

    @contextlib.contextmanager
    def talking(self) -> Iterator[list[str]]:
        """Inside, the model is this thread's, and so are Python's warnings; the list fills with advice at the end."""
        notes: list[str] = []
        with self._lock, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", Text2SamWarning)
            yield notes
            notes += dict.fromkeys(str(each.message) for each in caught)


def take(desk: Desk, index: int) -> Desk:
    """The desk with another of SAM's masks for the chosen object."""
    return desk if desk.result is None else desk._edited(with_candidate(desk.result, desk.chosen[1], index), desk.chosen[1])


def remove(desk: Desk) -> Desk:
    """The desk without the chosen object."""
    return desk if desk.result is None else desk._edited(without_object(desk.result, desk.chosen[1]), desk.chosen[1])


def undo(desk: Desk) -> Desk:
    """The desk before the last correction."""
    return desk.before or desk


def split(texts: str) -> list[str]:
    """The texts of a comma list, each once."""
    return list(dict.fromkeys(text for text in (part.strip() for part in re.split(r"[,;\n]", texts)) if text))


def _shrunk(mask: NDArray[np.bool_], shape: Sequence[int]) -> NDArray[np.bool_]:
    """A mask (H, W) at the size of a smaller picture."""
    rows, columns = (np.arange(small) * full // small for small, full in zip(shape[:2], mask.shape, strict=True))
    small: NDArray[np.bool_] = mask[rows][:, columns]
    return small


def _heat(image: NDArray[np.uint8], result: Segmentation) -> NDArray[np.uint8]:
    """A result's similarity map over the grey picture, in the colours of :mod:`text2sam.plot`."""
    import matplotlib

    values = result.similarity.to_image(image.shape[:2])
    coloured = matplotlib.colormaps[plot.HEAT](values)[..., :3] * 255
    grey = image.mean(2, keepdims=True)
    mixed: NDArray[np.uint8] = np.rint(0.65 * coloured + 0.35 * grey).astype(np.uint8)
    return mixed
