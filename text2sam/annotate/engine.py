"""What does the chunks of a folder job: the protocol of engines, and the engine of one process."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch

from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.journal import Chunk, Record
from text2sam.annotate.labels import LabelSet
from text2sam.annotate.worker import Loaded, Worker, load_batches, own_copy
from text2sam.errors import InputError
from text2sam.options import Options
from text2sam.pipeline import TextPromptedSAM

MOST_WORKERS = 8
"""On a CPU the default is one worker per core, but at most this many: each holds a batch of images."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What an engine has to do.

    Attributes:
        model: ready to use.
        make_model: makes another model like it; None when only the model itself was given.
        labels: what to look for; None only encodes the images, for ``embeddings``.
        options: how images are read and segmented.
        todo: the chunks that are not finished, in order.
        workers: how many batches to work on at a time; None leaves it to the engine.
        embeddings: keeps embeddings, or None.
    """

    model: TextPromptedSAM
    make_model: Callable[[], TextPromptedSAM] | None
    labels: LabelSet | None
    options: Options
    todo: tuple[Chunk, ...]
    workers: int | None = None
    embeddings: EmbeddingStore | None = None


Done: TypeAlias = tuple[Chunk, list[Record]]
Engine: TypeAlias = "Callable[[Plan], Iterator[Done]]"
"""Does a plan's chunks in any order and gives each with its records, one per image in order, as soon as it is done.

The records must not depend on the order, on the number of workers or on what was finished before. When the iterator is closed
before its end, the engine stops what it started."""


def default_workers(device: torch.device) -> int:
    """How many batches are worked on at a time: on a CPU one per core, at most :data:`MOST_WORKERS`; otherwise 1."""
    if device.type != "cpu":
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)


def run_threads(plan: Plan) -> Iterator[Done]:
    """The engine of one process: a reader ahead of a few workers, each a thread with an image state of its own.

    On a CPU each worker computes on one core: sharing every operation between cores costs small models more time than it
    saves, and the results of one core do not depend on how many others there are.

    At most one batch of images per worker and two more are in memory at a time.
    """
    if not plan.todo:
        return
    workers = _workers(plan)
    threads = torch.get_num_threads()
    on_cpu = device_of(plan.model).type == "cpu"
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

    batches = _batches(plan, stop)
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
            for future in [future for future in running if future in finished]:
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


def _batches(plan: Plan, stop: threading.Event) -> Iterator[tuple[int, list[Loaded]]]:
    for number, chunk in enumerate(plan.todo):
        for batch in load_batches(chunk.items, plan.options.reading):
            if stop.is_set():
                return
            yield number, batch


def _workers(plan: Plan) -> list[Worker]:
    wanted = default_workers(device_of(plan.model)) if plan.workers is None else plan.workers
    wanted = min(wanted, len(plan.todo))
    workers = [Worker(plan.model, plan.labels, plan.options, plan.embeddings)]
    while len(workers) < wanted:
        model = own_copy(plan.model)
        if model is None and plan.make_model is not None:
            model = plan.make_model()
        if model is None:
            if plan.workers is None:
                break
            raise InputError(
                f"a predictor of type {type(plan.model.predictor).__name__}, or a model in training mode, cannot be shared by "
                f"{wanted} workers; give a function that makes models, or workers=1"
            )
        store = None if plan.embeddings is None else plan.embeddings.of(model)
        workers.append(Worker(model, plan.labels, plan.options, store))
    return workers


def device_of(model: TextPromptedSAM) -> torch.device:
    """Where a model's maps are computed."""
    return torch.device(getattr(model.generator, "device", "cpu"))
