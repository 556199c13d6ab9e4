"""A folder in, a dataset out: what is left to do, an engine that does it, a journal that keeps it, an export that ends it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from text2sam import __version__
from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.journal import STATE, Chunk, Journal, Record, RunFolder, chunks_of
from text2sam.annotate.labels import LabelSet, LabelSpec, parse_labels
from text2sam.annotate.report import Failure, Report
from text2sam.annotate.review import ReviewItem, write_review
from text2sam.annotate.sources import find_images
from text2sam.annotate.worker import (
    Loaded,
    ModelSource,
    Options,
    Worker,
    load_batches,
    model_settings,
    own_copy,
)
from text2sam.clip.generator import Method
from text2sam.clip.tiles import Tiles
from text2sam.errors import InputError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, check_relative
from text2sam.export.formats import FORMATS, make_exporter
from text2sam.export.losses import Losses
from text2sam.files import write_json
from text2sam.pipeline import TextPromptedSAM, Zoom
from text2sam.recipes import DEFAULT, Strategy

Progress = bool | Callable[[int, int], object]
"""True shows a bar on standard error; a function is called with the number of images done so far, and of all."""

Formats: TypeAlias = "str | Iterable[str] | Mapping[str, Mapping[str, Any]]"
"""A format of :data:`text2sam.export.formats.FORMATS`, several, or several with the options of each."""

MOST_WORKERS = 8
"""On a CPU there are by default as many workers as cores, but not more than this: each holds a batch of images."""

_EXPORTED = "exported.json"
_LARGEST_LIST = 1 << 28
_TEMPORARY = re.compile(r"\.text2sam-[0-9a-f]{16}(\.\S{0,15})?")


@dataclass(frozen=True, eq=False)
class Plan:
    """What an engine has to do.

    Attributes:
        model: ready to use.
        make_model: makes another one like it; None where only the model itself was given.
        labels, options: what is looked for, and how.
        todo: the chunks that are not finished, in order.
        workers: how many of them to work on at a time; None leaves it to the engine.
        embeddings: the folder that keeps embeddings, or None.
    """

    model: TextPromptedSAM
    make_model: Callable[[], TextPromptedSAM] | None
    labels: LabelSet
    options: Options
    todo: tuple[Chunk, ...]
    workers: int | None = None
    embeddings: Path | None = None


Done: TypeAlias = tuple[Chunk, list[Record]]
Engine: TypeAlias = "Callable[[Plan], Iterator[Done]]"
"""Does a plan's chunks in any order and gives each with its records, one per image in order, as soon as it is done.

What it gives must not depend on the order, on the number of workers or on what was finished before. When it is closed before
its end it stops what it started."""


def annotate(
    model: ModelSource,
    root: str | os.PathLike[str],
    labels: LabelSet | str | Iterable[str | LabelSpec],
    out: str | os.PathLike[str],
    *,
    format: Formats = "coco",
    recursive: bool = False,
    glob: str | None = None,
    list_file: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    strategy: str | Strategy = DEFAULT,
    method: Method = "surgery",
    zoom: Zoom = "auto",
    tiles: Tiles = False,
    batch_size: int = 8,
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

    Every few images what was found is committed to a journal in ``OUT/.text2sam``. A run that was killed, at any moment, goes
    on from there when it is started again, and the dataset is the same, byte for byte, as without the interruption. After
    the last image the dataset is written from the journal, in one ``format`` or several; in another one later too, without
    working anything out again, when the same run is started once more with that. Images that were added or changed since are
    worked on, those that are gone leave the dataset, and of the rest what is finished is kept.

    Running out of memory is no interruption in this sense: batches are then smaller, which on a GPU can show in the last bits.

    Args:
        model: the model, or a function that makes one.
        root, recursive, glob, list_file: which images; see :func:`text2sam.annotate.sources.find_images`.
        labels: what to look for; see :func:`text2sam.annotate.labels.parse_labels`.
        out: the folder for the dataset; not ``root``. Files in it that the dataset does not replace stay, but for
            those that an earlier export of the same format wrote.
        format: see :data:`Formats`. An image that one of several formats cannot hold is told among the failed, and is
            in the other ones.
        limit: only so many images, the first ones.
        strategy, method, zoom, tiles: as for ``TextPromptedSAM.segment_many``.
        batch_size: most images that CLIP encodes at once.
        workers: how many batches are worked on at a time; the results do not depend on it. On a CPU each worker computes on
            one core, so that the number of cores shows nowhere either; None is one per core, up to :data:`MOST_WORKERS`.
            On a GPU None is 1. Where the model cannot be shared (a predictor not of ``SamPredictor``'s kind) a function that
            makes models is needed for more than one.
        embeddings: a folder that keeps image embeddings; see :class:`text2sam.annotate.embeddings.EmbeddingStore`.
        overwrite: throw away what an earlier run in ``out`` has finished.
        retry_failed: work again on batches in which an image failed, such as after its permissions were changed.
        review: an HTML file for a contact sheet; see :func:`text2sam.annotate.review.write_review`.
        progress: see :data:`Progress`.
        engine: what does the work; None is :func:`run_threads`.
        **export_options: of the format, where it is one.

    Returns:
        The report, which is also in ``OUT/.text2sam/report.json``.

    Raises:
        InputError: an argument is not usable, there are no images, or ``out`` holds a run with other settings.
        OutputError: ``out`` cannot be written, or another process works in it. What was finished until then is kept.
    """
    started = time.perf_counter()
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise InputError(f"workers must be an int of at least 1 or None, not {workers!r}")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InputError(f"limit must be an int of at least 1 or None, not {limit!r}")
    wanted = labels if isinstance(labels, LabelSet) else parse_labels(labels)
    options = Options(strategy, method, zoom, tiles)
    if os.path.realpath(out) == os.path.realpath(root):
        raise InputError(f"{os.fspath(out)!r} is the folder of the images; give another one for the dataset")
    found = find_images(root, recursive=recursive, glob=glob, list_file=list_file, skip=out)
    chunks = chunks_of(found.items[:limit], batch_size)
    exports = [
        {"format": kind, "labels": wanted.names, "images_root": root, **of_it}
        for kind, of_it in _formats(format, export_options).items()
    ]
    for export in exports:
        make_exporter(out, **export).abort()  # what is wrong with a format shows now, not after hours
    built, make_model = _built(model)
    checked = Worker(built, wanted, options)
    settings = {
        **wanted.to_json(),
        **options.to_json(),
        "batch_size": batch_size,
        "model": model_settings(built),
    }
    notes = {"root": os.path.abspath(root), "text2sam": __version__, "torch": torch.__version__}
    with RunFolder(out, settings, notes=notes, overwrite=overwrite) as folder:
        journal = folder.journal
        _check_root(folder, notes["root"], chunks)
        todo = tuple(c for c in chunks if c.key not in journal or (retry_failed and journal.failed(c.key)))
        plan = Plan(built, make_model, wanted, options, todo, workers, None if embeddings is None else Path(embeddings))
        worked, seconds = _work(plan, engine or run_threads, journal, sum(map(len, chunks)), progress)
        result = _Result(wanted, chunks, {c.key for c in todo}, journal)
        told = result.export(Path(out), folder.state, Path(root), exports)
        if review is not None:
            summary = write_review(lambda: result.review(checked.thresholds), root, review)
            told.append(f"review: {summary.path}, {summary.shown} of {summary.images} images")
        if journal.damaged:
            told.append(f"journal: {journal.damaged} damaged or unfinished lines were worked out again")
        report = Report(
            done=result.done,
            empty=result.empty,
            failed=tuple(Failure(*pair) for pair in {**dict(found.refused), **result.failed}.items()),
            skipped=result.skipped,
            objects=result.objects,
            seconds=time.perf_counter() - started,
            images_per_second=worked / seconds if worked else 0.0,
            notes=tuple(told),
        )
        report.save(folder.state / "report.json")
    return report


def default_workers(device: torch.device) -> int:
    """How many batches are worked on at a time: on a CPU as many as there are cores, at most :data:`MOST_WORKERS`; else 1."""
    if device.type != "cpu":
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)


def run_threads(plan: Plan) -> Iterator[Done]:
    """The engine of one process: a reader ahead of a few workers, each a thread with a model state of its own.

    On a CPU each worker computes on one core. Small models lose most of two cores to waiting when they share
    every operation between them, and what a core computes alone does not depend on how many others there are.

    At most one batch of images per worker and two more are in memory at a time.
    """
    if not plan.todo:
        return
    workers = _workers(plan)
    threads = torch.get_num_threads()
    on_cpu = plan.model.generator.device.type == "cpu"
    stop = threading.Event()
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def work(batch: list[Loaded]) -> list[Record]:
        worker = idle.get()
        try:
            return worker.run(batch, stop)
        finally:
            idle.put(worker)

    batches = _batches(plan.todo, stop)
    reader = ThreadPoolExecutor(1, "text2sam-reader")
    pool = ThreadPoolExecutor(len(workers), "text2sam-worker", partial(torch.set_num_threads, 1 if on_cpu else threads))
    running: dict[Future[list[Record]], int] = {}
    parts: dict[int, dict[str, Record]] = {}
    try:
        reading: Future[tuple[int, list[Loaded]] | None] | None = reader.submit(next, batches, None)
        while running or reading is not None:
            waiting: list[Future[Any]] = [*running]
            if reading is not None and len(running) <= len(workers):
                waiting.append(reading)
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            if reading is not None and reading in finished:
                read = reading.result()
                reading = None
                if read is not None:
                    running[pool.submit(work, read[1])] = read[0]
                    reading = reader.submit(next, batches, None)
                del read
            for future in [one for one in running if one in finished]:
                number = running.pop(future)
                records = parts.setdefault(number, {})
                records.update((record.path, record) for record in future.result())
                chunk = plan.todo[number]
                if len(records) == len(chunk):
                    del parts[number]
                    yield chunk, [records[item.path] for item in chunk.items]
    finally:
        stop.set()
        for executor in (reader, pool):
            executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # what the workers set is also what new threads begin with


def _batches(chunks: Iterable[Chunk], stop: threading.Event) -> Iterator[tuple[int, list[Loaded]]]:
    for number, chunk in enumerate(chunks):
        for batch in load_batches(chunk.items):
            if stop.is_set():
                return
            yield number, batch


def _workers(plan: Plan) -> list[Worker]:
    wanted = default_workers(plan.model.generator.device) if plan.workers is None else plan.workers
    wanted = min(wanted, len(plan.todo))
    store = None
    if plan.embeddings is not None:
        store = EmbeddingStore(plan.embeddings, plan.model, tiles=plan.options.tiles)
    workers = [Worker(plan.model, plan.labels, plan.options, store)]
    while len(workers) < wanted:
        model = own_copy(plan.model)
        if model is None and plan.make_model is not None:
            model = plan.make_model()
            if plan.embeddings is not None:
                store = EmbeddingStore(plan.embeddings, model, tiles=plan.options.tiles)
        if model is None:
            if plan.workers is None:
                break
            raise InputError(
                f"a predictor of type {type(plan.model.predictor).__name__}, or a model in training mode, cannot be shared by "
                f"{wanted} workers; give a function that makes models, or workers=1"
            )
        workers.append(Worker(model, plan.labels, plan.options, store))
    return workers


def _built(model: ModelSource) -> tuple[TextPromptedSAM, Callable[[], TextPromptedSAM] | None]:
    make = None if isinstance(model, TextPromptedSAM) else model
    built = model if isinstance(model, TextPromptedSAM) else make() if callable(make) else None
    if not isinstance(built, TextPromptedSAM):
        what = (
            f"not {type(model).__name__}" if make is None or not callable(make) else f"whose result is {type(built).__name__}"
        )
        raise InputError(f"model must be a TextPromptedSAM, or a function that makes one, {what}")
    return built, make


def _formats(format: Formats, options: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Each format that is asked for, once, with its options."""
    if isinstance(format, str):
        return {format: options}
    kinds = dict(format) if isinstance(format, Mapping) else {kind: {} for kind in format}
    if not kinds:
        raise InputError(f"format names no format; there are {', '.join(FORMATS)}")
    if options:
        which = f"{sorted(options)[0]!r} belongs to which of {', '.join(kinds)}?"
        raise InputError(f"{which} With several formats say format={{name: {{option: value}}}}")
    for kind, of_it in kinds.items():
        ours = sorted({"format", "labels", "images_root"} & set(of_it)) if isinstance(of_it, Mapping) else [of_it]
        if ours:
            raise InputError(f"the options of format {kind!r} must be a mapping of its own options, without {ours[0]!r}")
    return kinds


def _check_root(folder: RunFolder, root: str, chunks: Iterable[Chunk]) -> None:
    """A folder may be moved between two runs; but one that has nothing in common with the first is a mistake."""
    before = folder.before.get("root")
    if before != root and len(folder.journal) and not any(chunk.key in folder.journal for chunk in chunks):
        raise InputError(
            f"the folder {os.fspath(folder.out)!r} holds a run over {before!r:.300}, and {root!r} has no image of it; give "
            "another folder, or overwrite=True (--overwrite) to throw that run away"
        )


def _work(plan: Plan, engine: Engine, journal: Journal, total: int, progress: Progress) -> tuple[int, float]:
    """How many images were worked on, and for how long."""
    left = sum(map(len, plan.todo))
    started = time.perf_counter()
    with _telling(progress, total - left, total) as tell, contextlib.closing(_generator(engine(plan))) as results:
        for chunk, records in results:
            journal.append(chunk, records)
            tell(len(chunk))
    missing = [chunk for chunk in plan.todo if chunk.key not in journal]
    if missing:
        raise Text2SamError(
            f"the engine ended before its work was done: {len(missing)} of {len(plan.todo)} batches are missing"
        )
    return left, max(time.perf_counter() - started, 1e-9)


def _generator(results: Iterator[Done]) -> Any:
    return results if hasattr(results, "close") else (one for one in results)


@contextlib.contextmanager
def _telling(progress: Progress, done: int, total: int) -> Iterator[Callable[[int], None]]:
    if callable(progress):
        told = done

        def tell(more: int) -> None:
            nonlocal told
            told += more
            progress(told, total)

        progress(done, total)
        yield tell
    elif progress:
        from tqdm import tqdm

        with tqdm(total=total, initial=done, unit="image", smoothing=0.1) as bar:
            yield lambda more: bar.update(more)
    else:
        yield lambda more: None


class _Result:
    """What the journal holds of a run's images, read a chunk at a time."""

    def __init__(self, labels: LabelSet, chunks: Iterable[Chunk], fresh: set[str], journal: Journal) -> None:
        self.labels, self.chunks, self.fresh, self.journal = labels, tuple(chunks), fresh, journal
        self.done = self.empty = self.skipped = 0
        self.failed: dict[str, str] = {}
        self._objects: Counter[str] = Counter()

    @property
    def objects(self) -> dict[str, int]:
        return {name: self._objects[name] for name in self.labels.names}

    def export(self, out: Path, state: Path, root: Path, formats: Sequence[Mapping[str, Any]]) -> list[str]:
        """Writes the dataset in every format, counting; what is to be told about it."""
        _sweep(out)
        told = []
        for number, options in enumerate(formats):
            losses = self._write(out, state, root, options, first=number == 0)
            told += [str(losses)] if losses.total else []
        return told

    def _write(self, out: Path, state: Path, root: Path, options: Mapping[str, Any], *, first: bool) -> Losses:
        before = _listing(out)
        with make_exporter(out, **options) as exporter:
            for chunk in self.chunks:
                for record in self.journal.read(chunk.key):
                    if record.image is None:
                        self.failed[record.path] = record.reason
                        continue
                    if first:
                        self._count(chunk, record.image, 1)
                    try:
                        exporter.add(record.image)
                    except InputError as error:  # two images of one name, a picture that is gone by now
                        if record.path not in self.failed:
                            self.failed[record.path] = f"not in the {options['format']} dataset: {error}"
                            self._count(chunk, record.image, -1)
            losses = exporter.close()
        after = _listing(out)
        _forget(out, state / _EXPORTED, root, str(options["format"]), {n for n, what in after.items() if before.get(n) != what})
        return losses

    def _count(self, chunk: Chunk, image: AnnotatedImage, by: int) -> None:
        for one in image.objects:
            self._objects[one.label] += by
        if chunk.key not in self.fresh:
            self.skipped += by
        elif image.objects:
            self.done += by
        else:
            self.empty += by

    def review(self, thresholds: Mapping[str, float]) -> Iterator[ReviewItem]:
        for chunk in self.chunks:
            for record in self.journal.read(chunk.key):
                if record.image is not None:
                    yield ReviewItem(record.image, record.presence, thresholds)


def _files(out: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in an output folder, links included, but for runs of their own below it."""
    pending = [os.fspath(out)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry
                elif entry.name != STATE and not os.path.isdir(os.path.join(entry.path, STATE)):
                    pending.append(entry.path)


def _listing(out: Path) -> dict[str, tuple[int, int, int]]:
    """What would be another file if it were written anew, by its name."""
    found = {}
    for entry in _files(out):
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            found[os.path.relpath(entry.path, out)] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def _sweep(out: Path) -> None:
    """Removes the unfinished files of an export that was killed."""
    for folder in (out, out / STATE):
        for entry in _files(folder):
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                        os.unlink(entry.path)


def _forget(out: Path, record: Path, root: Path, format: str, written: set[str]) -> None:
    """Removes what an earlier export of this format wrote and this one did not, and keeps what this one wrote."""
    lists = _lists(record)
    others = {name for kind, names in lists.items() if kind != format for name in names}
    home, images = os.path.realpath(out), os.path.realpath(root)
    for name in sorted(set(lists.get(format, ())) - written - others):
        folder = os.path.realpath(os.path.join(home, os.path.dirname(name)))
        ours = folder == home or folder.startswith(home + os.sep)
        theirs = folder == images or folder.startswith(images + os.sep)
        if ours and not theirs and STATE not in Path(name).parts:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, os.path.basename(name)))
    write_json(record, lists | {format: sorted(name.replace(os.sep, "/") for name in written)})


def _lists(record: Path) -> dict[str, list[str]]:
    """What earlier exports wrote, by format; what is not understood counts as nothing."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if not record.is_file() or record.stat().st_size > _LARGEST_LIST:
            return found
        lists = json.loads(record.read_bytes())
        for kind, names in lists.items() if isinstance(lists, dict) else ():
            found[str(kind)] = [check_relative(name) for name in names] if isinstance(names, list) else []
    return found
