"""A worker in a process of its own: the parent's side (:class:`Process`) and the worker's (:func:`main`).

Its weights are mapped from one file that all workers share, so that a further worker costs no further copy of them. It exits
when the parent process does, even if that is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
import torch

from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.journal import Record
from text2sam.annotate.sources import ImageItem
from text2sam.annotate.worker import Worker, load_batches
from text2sam.errors import Text2SamWarning

# not by multiprocessing, which would run the user's script again; an interrupt is for the process that reads the answers
_START = (
    "import pickle, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from text2sam.annotate.process import main; main()"
)

GIVEN_UP = "every worker that processed it died, most often for lack of memory"
"""The reason of a record."""


class Died(Exception):
    """A worker's process ended before it answered; the message says how."""


class CannotStart(Exception):
    """A worker's process cannot take over the model."""


class Answer(NamedTuple):
    """A process's answer to a batch of images.

    Attributes:
        records: one per image, in order.
        warned: the warnings they caused.
        counts, writable: of the embeddings, see :class:`EmbeddingStore`.
    """

    records: list[Record]
    warned: Sequence[tuple[type[Warning], str]] = ()
    counts: Mapping[str, int] = {}
    writable: bool = True


@contextlib.contextmanager
def packed(worker: Worker) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What further workers like this one need, as a file: its name for them, and the descriptors they must inherit.

    Raises:
        CannotStart: the model or an option cannot be pickled.
        OSError: there is no place for the file.
    """
    store = None if worker.store is None else worker.store.folder.absolute()
    job = (worker.model, worker.labels, worker.options, store, PIL.Image.MAX_IMAGE_PIXELS, torch.get_num_threads())
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):  # vanishes with the last process that holds it
            file: Any = stack.enter_context(open(os.memfd_create("text2sam"), "wb"))
            name, inherited = f"/proc/self/fd/{file.fileno()}", [file.fileno()]
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="text2sam-", ignore_cleanup_errors=True))
            file, inherited = stack.enter_context(open(Path(folder, "job"), "wb")), []
            name = file.name
        try:
            torch.save(job, file)
        except OSError:
            raise
        except Exception as error:  # pickle raises anything
            raise CannotStart(f"the model cannot be sent to other processes: {type(error).__name__}: {error}") from error
        file.flush()
        yield name, tuple(inherited)


class Process:
    """A worker's process. One thread asks it; any thread may kill it.

    Args:
        name, inherited: from :func:`packed`.
    """

    def __init__(self, name: str, inherited: Sequence[int]) -> None:
        command = [sys.executable, "-W", "ignore", "-c", _START]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=tuple(inherited))
        self._name = name

    def start(self) -> None:
        """Waits until the worker is ready.

        Raises:
            Died: the process has exited.
            CannotStart: it cannot make the model.
        """
        self._send(sys.path)
        reason = self._ask(self._name)
        if reason:
            raise CannotStart(f"the model cannot be made in another process: {reason}")

    def work(self, items: Sequence[ImageItem]) -> Answer:
        """Records of a batch of images.

        Raises:
            Died: the process ended over them.
        """
        answer: Answer = self._ask(list(items))
        return answer

    def kill(self) -> None:
        """Ends the process, also while it works."""
        self._process.kill()

    def close(self) -> None:
        """:meth:`kill`, and waits for it."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _ask(self, question: Any) -> Any:
        self._send(question)
        try:
            return pickle.load(self._process.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError, pickle.UnpicklingError):  # half an answer, too
            raise Died(self._end()) from None

    def _send(self, question: Any) -> None:
        try:
            pickle.dump(question, self._process.stdin)  # type: ignore[arg-type]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except OSError:
            raise Died(self._end()) from None

    def _end(self) -> str:
        code = self._process.wait()
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"exit code {code}"


# what runs there


def main() -> None:
    """Answers questions on standard input until it ends."""
    questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints something does not answer

    def listen() -> None:
        while True:
            try:
                questions.put(pickle.load(sys.stdin.buffer))
            except EOFError:
                os._exit(0)  # the job has ended, perhaps in the middle of a batch

    threading.Thread(target=listen, daemon=True).start()
    try:
        worker, store, reading = _load(questions.get())
        answer: Any = ""
    except Exception as error:  # of whatever belongs to the model
        answer = f"{type(error).__name__}: {error}"
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        answer = _work(worker, store, reading, questions.get())


def _load(name: str) -> tuple[Worker, EmbeddingStore | None, Any]:
    model, labels, options, folder, PIL.Image.MAX_IMAGE_PIXELS, threads = torch.load(name, mmap=True, weights_only=False)
    torch.set_num_threads(threads)  # those that encode texts in the job's own process
    store = None if folder is None else EmbeddingStore(folder, model, options)
    worker = Worker(model, labels, options, store)
    torch.set_num_threads(1)
    return worker, store, options.reading


def _work(worker: Worker, store: EmbeddingStore | None, reading: Any, items: Sequence[ImageItem]) -> Answer:
    records: dict[str, Record] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in load_batches(items, reading):
            records.update((record.path, record) for record in worker.run(batch))
    warned = [(warning.category, str(warning.message)) for warning in caught if issubclass(warning.category, Text2SamWarning)]
    counts, writable = ({}, True) if store is None else (dict(store.counts), store.writable)
    if store is not None:
        store.counts.clear()
    return Answer([records[item.path] for item in items], warned, counts, writable)
