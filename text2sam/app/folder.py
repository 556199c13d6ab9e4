"""A folder picture by picture: what a person accepts goes into the journal of an annotate job at once.

``text2sam annotate`` with the same models and labels (on a GPU with ``--batch-size 1``) continues such a job, and the page
continues that of ``annotate``.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from text2sam.annotate.job import Run, export_run
from text2sam.annotate.journal import REJECTED, Record
from text2sam.app.workbench import Desk, Workbench
from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.image import read_image
from text2sam.refine import with_objects
from text2sam.types import PointPrompts, Segmentation, box_of

BATCH_SIZE = 1
"""A job's batch size here: pictures are finished one at a time."""


class FolderJob:
    """The pictures of a run, of which people go through one at a time.

    Args:
        run: from :func:`text2sam.annotate.job.open_run`, with :data:`BATCH_SIZE`.
        bench: with the run's model.

    Attributes:
        states: of each picture: ``"accepted"``, ``"rejected"``, ``"failed"``, or ``""`` while it is not finished.

    Raises:
        InputError: the run has larger batches.
    """

    def __init__(self, run: Run, bench: Workbench) -> None:
        if any(len(chunk) != 1 for chunk in run.chunks):
            raise InputError(f"a run for the page must have batch_size={BATCH_SIZE}")
        self.run, self.bench = run, bench
        self.states = [self._state(k) for k in range(len(run.chunks))]
        self._writer = ThreadPoolExecutor(1, "text2sam-export")
        self._written: Future[Any] | None = None

    def __len__(self) -> int:
        return len(self.run.chunks)

    def name(self, index: int) -> str:
        """The path of a picture in the folder."""
        return self.run.chunks[index].items[0].path

    def after(self, index: int) -> int:
        """The next picture that is not finished, from ``index`` on and around; ``index`` when all are."""
        order = [*range(index, len(self)), *range(index)]
        return next((k for k in order if not self.states[k]), min(index, len(self) - 1))

    def open(self, index: int) -> Desk:
        """A picture with what was found in it, or with what was accepted.

        Raises:
            ImageError: it cannot be read.
        """
        item = self.run.chunks[index].items[0]
        with self.bench.talking() as notes:
            desk = self.bench.start(read_image(item.file, **self.run.options.reading), item.path)
            by_name = dict(self.run.worker.results(desk.encoded))
        results = [by_name[name] for name in self.run.labels.names]
        record = self._record(index)
        if record is not None and record.image is not None:
            results = [_accepted(result, record.image) for result in results]
        first = next((k for k, result in enumerate(results) if result.instances), 0)
        return replace(desk, results=tuple(results), chosen=(first, 0), notes=tuple(notes))

    def accept(self, index: int, desk: Desk) -> None:
        """Commits a picture with its objects, and has the dataset written.

        Raises:
            OutputError: the journal cannot be written, or the dataset could not be the last time.
        """
        image = AnnotatedImage.from_results(self.name(index), desk.results)
        self._commit(index, Record(image.path, image, {result.text: float(result.presence) for result in desk.results}))

    def reject(self, index: int) -> None:
        """Commits that a picture is to be left out of the dataset; errors are those of :meth:`accept`."""
        self._commit(index, Record(self.name(index), reason=REJECTED))

    def close(self) -> None:
        """Waits until the dataset is written."""
        self._writer.shutdown(wait=True)

    def _commit(self, index: int, record: Record) -> None:
        self.run.folder.commit(self.run.chunks[index], [record])
        self.states[index] = self._state(index)
        last = self._written
        if last is None or last.running() or last.done():  # one that waits will write this picture as well
            self._written = self._writer.submit(export_run, self.run)
        if last is not None and last.done():
            last.result()

    def _state(self, index: int) -> str:
        record = self._record(index)
        if record is None:
            return ""
        return "accepted" if record.image is not None else "failed" if record.failed else "rejected"

    def _record(self, index: int) -> Record | None:
        chunk = self.run.chunks[index]
        return self.run.folder.records(chunk)[0] if chunk.key in self.run.folder else None


def _accepted(result: Segmentation, image: AnnotatedImage) -> Segmentation:
    """A result with the objects that were accepted for its text."""
    things = [each for each in image.objects if each.label == result.text and each.size == result.mask.shape]
    counted = replace(result, threshold=min(result.threshold, result.presence)) if things else result
    return with_objects(counted, [_object(result, each) for each in things])


def _object(result: Segmentation, thing: AnnotatedObject) -> Segmentation:
    """An accepted object as the model found it, or, where a person made it, with a point in its middle for further clicks."""
    mask = thing.mask
    for part in result.instances:
        if np.array_equal(part.mask, mask):
            return part
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    return replace(
        result,
        mask=mask,
        box=box_of(mask),
        score=float(thing.score),
        points=PointPrompts(np.array([[x, y]], np.float32), np.array([1], np.uint8)),
        candidates=None,
        present=False,
        objects=(),
    )
