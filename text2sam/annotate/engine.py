"""What does the chunks of a folder job: the protocol of engines, and the engine of one machine."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch

from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.journal import Chunk, Record
from text2sam.annotate.labels import LabelSet
from text2sam.annotate.process import GIVEN_UP, Answer, CannotStart, Died, Process, packed
from text2sam.annotate.sources import ImageItem
from text2sam.annotate.worker import Loaded, Stopped, Worker, device_of, load_batches
from text2sam.errors import Text2SamError, Text2SamWarning, warn
from text2sam.options import Options
from text2sam.pipeline import TextPromptedSAM

MOST_WORKERS = 8
"""On a CPU the default is one worker per core, but at most this many: each holds a batch of images."""

MOST_DEATHS = 12
"""When this many processes have died with nothing done in between, the next death ends the run."""

PATIENCE = 3.0
"""Seconds before processes are started for at most :data:`FEW` images: starting one takes as many seconds of a core."""

FEW = 16
"""With more images processes are started at once."""

_T = TypeVar("_T")


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


def default_batch(model: TextPromptedSAM) -> int:
    """How many images CLIP encodes at once, 1 on a CPU: more are no faster there, take more memory, and leave workers idle."""
    return 1 if on_cpu(model) else 8


def run_workers(plan: Plan) -> Iterator[Done]:
    """The engine of one machine: on a CPU a process per worker, each on one core; otherwise one worker in this process.

    Processes, because a pair makes thousands of small operations an image, and threads wait for one another's Python in all of
    them. One core each, because small models lose more than they gain from sharing operations, and because the results of one
    core do not depend on how many others there are. Until the first process is ready, this one works itself; it does all
    the work where there is one worker or little to do, and where the model cannot be sent to other processes.

    A process that dies is replaced, with a warning, and its images are done again; the second time one by one. An image over
    which a process dies even then is recorded as failed. Each worker has one batch of images in memory, this process two.

    Raises:
        Text2SamError: processes die and cannot be replaced.
    """
    if not plan.todo:
        return
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        run = _Run(plan)
        stack.callback(torch.set_num_threads, threads)  # what a thread sets is also what new threads begin with
        stack.callback(run.stop)
        run.start(stack)
        parts: dict[int, dict[str, Record]] = {}
        held: list[Done] = []
        left = len(plan.todo)
        while left:
            number, answer = run.answers.get()
            if isinstance(answer, BaseException):
                raise answer
            for category, message in answer.warned:
                warn(message, category)
            if plan.embeddings is not None:
                plan.embeddings.count(writable=answer.writable, **answer.counts)
            chunk, records = plan.todo[number], parts.setdefault(number, {})
            records.update((record.path, record) for record in answer.records)
            if len(records) == len(chunk):
                left -= 1
                done = chunk, [records[item.path] for item in chunk.items]
                del parts[number], records
                if any(record.reason == GIVEN_UP for record in done[1]):
                    held.append(done)
                else:
                    yield done
        yield from held  # when all processes die, the images that were given up until then are not to blame


class _Task(NamedTuple):
    """Images to be done, of the chunk ``number``; ``again`` once a process has died over them."""

    number: int
    items: tuple[ImageItem, ...]
    again: bool = False


class _Run:
    """The threads of the engine: one that works here, and one that speaks to each process.

    Attributes:
        answers: numbers of chunks with answers for some of their images, or with an error that ends the run.
    """

    def __init__(self, plan: Plan) -> None:
        self.answers: queue.SimpleQueue[tuple[int, Answer | BaseException]] = queue.SimpleQueue()
        self._plan = plan
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        for number, chunk in enumerate(plan.todo):
            self._tasks.put(_Task(number, chunk.items))
        self._ended, self._relieved = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._processes: set[Process] = set()
        self._deaths = 0

    def start(self, stack: contextlib.ExitStack) -> None:
        """Starts to work; what the processes share is kept until ``stack`` ends."""
        model, wanted = self._plan.model, self._plan.workers
        worker = Worker(model, self._plan.labels, self._plan.options, self._plan.embeddings)
        count = min(default_workers(device_of(model)) if wanted is None else wanted, len(self._plan.todo))
        try:
            if count > 1 and not on_cpu(model):
                raise CannotStart("only models on a CPU have several")
            job = stack.enter_context(packed(worker)) if count > 1 else None
        except (CannotStart, OSError) as error:
            job = None
            self._warn(f"one worker does all the work: {error}", wanted is not None)
        for _ in range(0 if job is None else count):
            self._begin(self._speak, job)
        self._begin(self._work, worker, job is None)

    def stop(self) -> None:
        """Leaves the work, and waits until everything has ended."""
        self._ended.set()
        for _ in self._threads:
            self._tasks.put(None)
        for process in tuple(self._processes):
            process.kill()
        for thread in self._threads:
            thread.join()

    def _begin(self, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except Stopped:
                pass
            except BaseException as error:  # raised where the answers are awaited
                self.answers.put((0, error))

        self._threads.append(threading.Thread(target=run, name="text2sam-worker", daemon=True))
        self._threads[-1].start()

    def _warn(self, message: str, really: bool = True) -> None:
        if really:
            self.answers.put((0, Answer([], [(Text2SamWarning, message)])))

    # the thread that works

    def _work(self, worker: Worker, alone: bool) -> None:
        if on_cpu(worker.model):
            torch.set_num_threads(1)
        batches = self._batches()
        for number, batch in _ahead(batches) if alone else batches:
            self.answers.put((number, Answer(worker.run(batch, self._ended))))

    def _batches(self) -> Iterator[tuple[int, list[Loaded]]]:
        with contextlib.suppress(queue.Empty):
            while not self._relieved.is_set() and (task := self._tasks.get_nowait()) is not None:
                for batch in load_batches(task.items, self._plan.options.reading):
                    if self._ended.is_set():
                        return
                    yield task.number, batch

    # a thread that speaks to a process

    def _speak(self, job: tuple[str, tuple[int, ...]]) -> None:
        if self._ended.wait(PATIENCE if sum(map(len, self._plan.todo)) <= FEW else 0):
            return
        with contextlib.ExitStack() as stack:
            try:
                process = self._process(job, stack)
            except (CannotStart, Died, OSError) as error:
                self._warn(f"a worker less: {error}", self._plan.workers is not None)
                return
            self._relieved.set()
            while (task := self._tasks.get()) is not None:
                try:
                    self.answers.put((task.number, process.work(task.items)))
                    self._deaths = 0
                except Died as error:
                    if self._ended.is_set():
                        return
                    self._again(task, str(error))
                    stack.close()
                    try:
                        process = self._process(job, stack)
                    except (CannotStart, Died, OSError) as trouble:
                        raise Text2SamError(f"a worker died ({error}) and cannot be replaced: {trouble}") from error

    def _process(self, job: tuple[str, tuple[int, ...]], stack: contextlib.ExitStack) -> Process:
        process = Process(*job)
        stack.callback(process.close)
        stack.callback(self._processes.discard, process)
        self._processes.add(process)
        if self._ended.is_set():  # it may not have been there when the others were killed
            raise Stopped
        process.start()
        return process

    def _again(self, task: _Task, how: str) -> None:
        """Has the images done again over which a process died, or gives up."""
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise Text2SamError(
                f"{self._deaths} workers died with nothing done in between ({how}), most often because memory did not suffice; "
                "take fewer workers, a smaller batch_size, or a smaller model"
            )
        if not task.again:
            self._tasks.put(task._replace(again=True))
        elif len(task.items) > 1:
            for item in task.items:
                self._tasks.put(_Task(task.number, (item,), again=True))
        else:
            self.answers.put((task.number, Answer([Record(task.items[0].path, reason=GIVEN_UP)])))
        self._warn(f"a worker died ({how}) over {len(task.items)} images, from {task.items[0].path!r}, and is replaced")


def _ahead(batches: Iterator[_T]) -> Iterator[_T]:
    """The same, read while the last one is worked on."""
    with ThreadPoolExecutor(1, "text2sam-reader") as reader:
        coming: Future[_T | None] = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def on_cpu(model: TextPromptedSAM) -> bool:
    """Whether both halves of a pair are on a CPU."""
    return {torch.device(getattr(part, "device", "cpu")).type for part in (model.generator, model.predictor)} == {"cpu"}
