"""A folder in, a dataset out: what is left to do, an engine that does it, a journal that keeps it, an export at the end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from text2sam import __version__
from text2sam.annotate.dataset import Export, Results
from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.engine import Engine, Plan, default_batch, run_workers
from text2sam.annotate.journal import Chunk, RunFolder, chunks_of
from text2sam.annotate.labels import Labels, LabelSet, label_set
from text2sam.annotate.progress import Progress, shown
from text2sam.annotate.report import Failure, Report
from text2sam.annotate.review import write_review
from text2sam.annotate.sources import ImageItem, count_endings, find_images
from text2sam.annotate.worker import ModelSource, Worker, model_settings, settings_of
from text2sam.checks import check_number
from text2sam.clip.tiles import Tiles
from text2sam.errors import InputError, OutputError, Text2SamError
from text2sam.export.formats import FORMATS
from text2sam.files import check_file
from text2sam.options import Options
from text2sam.pipeline import TextPromptedSAM
from text2sam.recipes import Recipe

Formats: TypeAlias = "str | Iterable[str] | Mapping[str, Mapping[str, Any]]"
"""A format of :data:`text2sam.export.formats.FORMATS`, several, or several with the options of each."""


def annotate(
    model: ModelSource,
    root: str | os.PathLike[str],
    labels: Labels,
    out: str | os.PathLike[str],
    *,
    format: Formats = "coco",
    recursive: bool = False,
    glob: str | None = None,
    list_file: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    strategy: str | Recipe = "objects",
    method: str = "surgery",
    tiles: Tiles = False,
    max_objects: int = 100,
    value_range: tuple[float, float] | None = None,
    page: int = 0,
    max_pixels: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    embeddings: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    review: str | os.PathLike[str] | None = None,
    progress: Progress = False,
    engine: Engine | None = None,
    **export_options: Any,
) -> Report:
    """Annotates a folder of images and writes the dataset.

    Results are committed to a journal in ``OUT/.text2sam`` every few images. A run that was killed, at any moment, continues
    when it is started again, and ends with the same dataset, byte for byte. After the last image the dataset is written from
    the journal; starting the same run again with another ``format`` writes that one without computing anything anew. Images
    that were added or changed since are annotated, those that are gone leave the dataset, and the other results are kept.

    Running out of memory is no interruption in this sense: batches are then smaller, which on a GPU can show in the last bits.

    Args:
        model: the model, or a function that makes one.
        root, recursive, glob, list_file: which images; see :func:`text2sam.annotate.sources.find_images`.
        labels: what to look for: a comma list, texts, or a file; see :func:`text2sam.annotate.labels.label_set`.
        out: the folder for the dataset; not ``root``. Files in it that the dataset does not replace stay, except those that an
            earlier export of the same format wrote.
        format: see :data:`Formats`. A single format is written to ``out``, several each to a folder of its own, ``out/FORMAT``.
            An image that one of the formats cannot hold is listed among the failed, and is in the others.
        limit: only the first images, at most so many.
        strategy, method, tiles, max_objects: as for ``TextPromptedSAM.segment``.
        value_range, page, max_pixels: as for :func:`text2sam.image.read_image`.
        batch_size: the most images that CLIP encodes at once; None is 1 on a CPU, where more are no faster, and 8 elsewhere.
        workers: how many batches are worked on at a time; the results do not depend on it. On a CPU each worker is a process
            that computes on one core, so that results do not depend on the number of cores either; None is one per core, at
            most :data:`text2sam.annotate.engine.MOST_WORKERS`. A model on a GPU, or that cannot be pickled, has one worker.
        embeddings: a folder that keeps image embeddings; see :class:`text2sam.annotate.embeddings.EmbeddingStore`.
        overwrite: discard what an earlier run in ``out`` has finished.
        retry_failed: annotate batches again in which an image failed, for instance after its permissions were changed.
        review: an HTML file for a contact sheet; see :func:`text2sam.annotate.review.write_review`.
        progress: see :data:`text2sam.annotate.progress.Progress`.
        engine: what does the work; None is :func:`text2sam.annotate.engine.run_workers`.
        **export_options: options of the format, when there is one.

    Returns:
        The report, which is also in ``OUT/.text2sam/report.json``.

    Raises:
        InputError: an argument is not usable, there are no images, or ``out`` holds a run with other settings.
        OutputError: ``out`` or ``review`` cannot be written, or another process works in ``out``. What was finished until
            then is kept.
    """
    started = time.perf_counter()
    workers, limit, labels = _number("workers", workers), _number("limit", limit), label_set(labels)  # before a long walk
    if review is not None:
        check_file(review)
    options = Options(
        strategy=strategy,
        method=method,
        tiles=tiles,
        max_objects=max_objects,
        value_range=value_range,
        page=page,
        max_pixels=max_pixels,
    )
    found = find_images(root, recursive=recursive, glob=glob, list_file=list_file, skip=out)
    with open_run(
        model,
        root,
        found.items[:limit],
        labels,
        out,
        format=format,
        options=options,
        batch_size=batch_size,
        overwrite=overwrite,
        **export_options,
    ) as run:
        folder = run.folder
        todo = tuple(
            chunk
            for chunk in run.chunks
            if chunk.key not in folder or (retry_failed and any(record.failed for record in folder.records(chunk)))
        )
        store = None if embeddings is None else EmbeddingStore(embeddings, run.model, options)
        plan = Plan(run.model, run.make_model, run.labels, options, todo, workers, store)
        worked, seconds = _work(plan, engine or run_workers, folder, sum(map(len, run.chunks)), progress)
        result, lines = export_run(run, {c.key for c in todo})
        if found.others:
            lines.append(f"left out, as not named like images: {count_endings(found.others)}")
        if review is not None:
            images, shown_there = write_review(result.records, run.worker.thresholds, root, review, reading=options.reading)
            lines.append(f"review: {os.fspath(review)}, {shown_there} of {images} images")
        report = Report(
            done=result.done,
            empty=result.empty,
            failed=tuple(Failure(*pair) for pair in {**dict(found.refused), **result.failed}.items()),
            skipped=result.skipped,
            rejected=tuple(result.rejected),
            objects=result.objects,
            seconds=time.perf_counter() - started,
            images_per_second=worked / seconds if worked else 0.0,
            notes=tuple(lines),
        )
        report.save(folder.state / "report.json")
    return report


@dataclass(frozen=True, eq=False)
class Run:
    """A job that is open: what it works on, and the journal of what is finished.

    Attributes:
        model, make_model, labels, options: as in :class:`Plan`.
        root: the folder of the images.
        chunks: the images, in order.
        folder: the journal.
        worker: with the model, the labels and the options.
        exports: the formats to write.
    """

    model: TextPromptedSAM
    make_model: Callable[[], TextPromptedSAM] | None
    labels: LabelSet
    options: Options
    root: Path
    chunks: tuple[Chunk, ...]
    folder: RunFolder
    worker: Worker
    exports: tuple[Export, ...]


@contextlib.contextmanager
def open_run(
    model: ModelSource,
    root: str | os.PathLike[str],
    items: Iterable[ImageItem],
    labels: Labels,
    out: str | os.PathLike[str],
    *,
    format: Formats = "coco",
    options: Options | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    **export_options: Any,
) -> Iterator[Run]:
    """Opens a job or continues it; arguments and errors are those of :func:`annotate`, but for the ``items``, images of
    ``root``, and one value for its ``options``.

    Commit to the run's ``folder`` what is done, and write the dataset with :func:`export_run`, as often as you like.
    """
    batch_size = _number("batch_size", batch_size)  # before a model is made
    options = options or Options()
    wanted = label_set(labels)
    if os.path.realpath(out) == os.path.realpath(root):
        raise InputError(f"{os.fspath(out)!r} is the folder of the images; give another one for the dataset")
    kinds = _formats(format, export_options)
    common = {"labels": wanted.names, "images_root": root, "reading": options.reading}
    exports = tuple(Export(kind, Path(out, kind if len(kinds) > 1 else ""), {**common, **more}) for kind, more in kinds.items())
    for export in exports:
        export.check()
    built, make_model = _built(model)
    size = batch_size or default_batch(built)
    chunks = tuple(chunks_of(items, size))
    worker = Worker(built, wanted, options)  # labels and options that cannot be used are found now
    settings = {**settings_of(wanted, options), "batch_size": size, "model": model_settings(built)}
    notes = {"root": os.path.abspath(root), "text2sam": __version__, "torch": torch.__version__}
    with RunFolder(out, settings, notes=notes, overwrite=overwrite) as folder:
        _check_root(folder, notes["root"], chunks)
        yield Run(built, make_model, wanted, options, Path(root), chunks, folder, worker, exports)


def export_run(run: Run, fresh: Iterable[str] = ()) -> tuple[Results, list[str]]:
    """Writes the dataset of what is finished so far.

    Args:
        run: from :func:`open_run`.
        fresh: the keys of the chunks that were done now, not in an earlier session; only for the counts.

    Returns:
        The counts, and lines about what a format could not hold.
    """
    result = Results(run.labels, [chunk for chunk in run.chunks if chunk.key in run.folder], set(fresh), run.folder)
    return result, result.export(run.root, run.exports)


@dataclass(frozen=True)
class WarmReport:
    """What :func:`warm` did.

    Attributes:
        made: the number of images that were encoded and kept.
        found: the number of images whose embeddings were there already.
        failed: (path, reason) of each image that could not be read or encoded, in order.
    """

    made: int
    found: int
    failed: tuple[tuple[str, str], ...] = ()


def warm(
    model: ModelSource,
    items: Iterable[ImageItem],
    embeddings: str | os.PathLike[str],
    *,
    method: str = "surgery",
    tiles: Tiles = False,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Progress = False,
    **reading: Any,
) -> WarmReport:
    """Fills an :class:`~text2sam.annotate.embeddings.EmbeddingStore` ahead of the runs that will use it.

    Args:
        model: the model, or a function that makes one.
        items: the images; :func:`text2sam.annotate.sources.find_images` gives them.
        embeddings: the folder that keeps the embeddings.
        method, tiles, batch_size, workers, progress: as for :func:`annotate`, and to be the same there.
        **reading: keyword arguments of :func:`text2sam.image.read_image`.

    Raises:
        InputError: an argument is not usable.
        OutputError: the folder cannot be written; what was written before stays.
    """
    workers, batch_size = _number("workers", workers), _number("batch_size", batch_size)
    built, make_model = _built(model)
    options = Options.of({"method": method, "tiles": tiles, **reading})
    store = EmbeddingStore(embeddings, built, options)
    chunks = chunks_of(items, batch_size or default_batch(built))
    plan = Plan(built, make_model, None, options, tuple(chunks), workers, store)
    failed: dict[str, str] = {}
    with shown(progress, 0, sum(map(len, chunks))) as tell:
        for chunk, records in run_workers(plan):
            if not store.writable:
                raise OutputError(f"embeddings cannot be written to {os.fspath(store.folder)!r}")
            failed |= {record.path: record.reason for record in records if record.image is None}
            tell(len(chunk))
    return WarmReport(store.counts["made"], store.counts["found"], tuple(sorted(failed.items())))


def _number(name: str, value: int | None) -> int | None:
    return None if value is None else int(check_number(name, value, 1, whole=True))


def _built(model: ModelSource) -> tuple[TextPromptedSAM, Callable[[], TextPromptedSAM] | None]:
    if isinstance(model, TextPromptedSAM):
        return model, None
    built: Any = model() if callable(model) else model
    if not isinstance(built, TextPromptedSAM):
        what = f"{'whose result is' if callable(model) else 'not'} {type(built).__name__}"
        raise InputError(f"model must be a TextPromptedSAM, or a function that makes one, {what}")
    return built, model


def _formats(format: Formats, options: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The formats, each once, with its options."""
    if isinstance(format, str):
        return {format: options}
    kinds = dict(format) if isinstance(format, Mapping) else {kind: {} for kind in format}
    if not kinds:
        raise InputError(f"format names no format; there are {', '.join(FORMATS)}")
    if options:
        which = f"{sorted(options)[0]!r} belongs to which of {', '.join(kinds)}?"
        raise InputError(f"{which} With several formats say format={{name: {{option: value}}}}")
    for kind, given in kinds.items():
        ours = sorted({"format", "labels", "images_root", "reading"} & set(given)) if isinstance(given, Mapping) else [given]
        if ours:
            raise InputError(f"the options of format {kind!r} must be a mapping of its own options, without {ours[0]!r}")
    return kinds


def _check_root(folder: RunFolder, root: str, chunks: Iterable[Chunk]) -> None:
    """A folder may be moved between two runs; but a folder that has nothing in common with the first is a mistake."""
    before = folder.notes.get("root")
    if before != root and len(folder) and not any(chunk.key in folder for chunk in chunks):
        raise InputError(
            f"the folder {os.fspath(folder.out)!r} holds a run over {before!r:.300}, and {root!r} has no image of it; give "
            "another folder, or overwrite=True (--overwrite) to discard that run"
        )


def _work(plan: Plan, engine: Engine, folder: RunFolder, total: int, progress: Progress) -> tuple[int, float]:
    """The number of images that were worked on, and the seconds it took."""
    left = sum(map(len, plan.todo))
    started = time.perf_counter()
    again = {chunk.key for chunk in plan.todo}
    with shown(progress, total - left, total) as tell, contextlib.ExitStack() as stack:
        results: Any = engine(plan)
        if hasattr(results, "close"):
            stack.enter_context(contextlib.closing(results))
        for chunk, records in results:
            folder.commit(chunk, records)
            again.discard(chunk.key)
            tell(len(chunk))
    if again:
        raise Text2SamError(f"the engine ended before its work was done: {len(again)} of {len(plan.todo)} batches are missing")
    return left, max(time.perf_counter() - started, 1e-9)
