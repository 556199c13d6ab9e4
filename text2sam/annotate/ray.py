"""Folder jobs on Ray's workers: :func:`ray_engine` does the chunks of :func:`text2sam.annotate.job.annotate`.

An actor per device holds the model. Ray gives the work of a worker that died to the next one, without end; deaths are counted
here, so that an image that kills every worker fails alone, and a model that kills every worker ends the run.

Images and dataset lie where the driver sees them; :mod:`text2sam.annotate.parquet` needs neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.engine import MOST_WORKERS, Done, Engine, Plan
from text2sam.annotate.journal import Record
from text2sam.annotate.labels import LabelSet
from text2sam.annotate.process import GIVEN_UP
from text2sam.annotate.sources import ImageItem
from text2sam.annotate.worker import ModelSource, Worker, device_of, load_batches, model_settings
from text2sam.checks import check_number
from text2sam.errors import InputError, MissingDependencyError, Text2SamError
from text2sam.options import Options
from text2sam.pipeline import TextPromptedSAM

TRIES = 3
"""After this many deaths over a batch its images are taken one by one; after this many more over one image it is given up."""

MOST_STARTS = 20
"""This many starts of workers, and five per worker more, without anything finished in between end a run."""

_MOST_ROWS = 10_000  # pieces of work that come back one by one; of more, several come back together


def ray_engine(*, workers: int | None = None, num_gpus: float | None = None) -> Engine:
    """An engine for :func:`text2sam.annotate.job.annotate` that works on Ray: on all cores of a machine, or in a cluster.

    The results are those of one process, bit for bit on the same kind of device. Only this process writes, so a driver that was
    killed continues when it is started again. A worker that is killed costs the time of what it was doing. Images and kept
    embeddings must be under the same path on all machines, and the model of every worker must equal the driver's.

    Ray is used where it is connected already, or at ``RAY_ADDRESS``, or where it runs on this machine; otherwise it is started
    here, and stopped at the end.

    Args:
        workers: how many; None is one per GPU (``num_gpus`` of them), or on CPUs one per core, at most
            :data:`text2sam.annotate.engine.MOST_WORKERS` a machine, since each holds a model.
        num_gpus: GPUs of a worker; None is 1 when the driver's model is on CUDA.

    Raises:
        InputError: an argument is not usable. While running: the cluster cannot be reached or has no GPU.
        MissingDependencyError: Ray is not installed.
        Text2SamError: while running: workers keep dying, have another model, or do not see the images; or Ray failed.
    """
    need_ray()

    def run(plan: Plan) -> Iterator[Done]:
        if not plan.todo:
            return
        device = device_of(plan.model).type
        store = None if plan.embeddings is None else plan.embeddings.folder.absolute()
        source, threads = plan.make_model or plan.model, torch.get_num_threads()
        job = Job(source, plan.labels, plan.options, threads, store, model_hash(plan.model))
        tasks = [json.dumps([[item.path, os.fspath(item.file)] for item in chunk.items]) for chunk in plan.todo]
        rows = [{"number": number, "task": task} for number, task in enumerate(tasks)]
        count = plan.workers if workers is None else workers
        held: list[Done] = []
        with hands(job, count, float(device == "cuda") if num_gpus is None else num_gpus, len(rows)) as (ray, work):
            results = work(ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_ROWS)), Hand, 1)
            # without prefetching: a result would wait for the next one
            for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in batch.to_pylist():
                    done = plan.todo[row["number"]], [Record.from_json(record) for record in json.loads(row["records"])]
                    if any(record.reason == GIVEN_UP for record in done[1]):
                        held.append(done)
                    else:
                        yield done
        yield from held  # when all workers die, the images that were given up until then are not to blame

    return run


# what runs in the workers


@dataclass(frozen=True, eq=False)
class Job:
    """What every worker needs to know.

    Attributes:
        source, labels, options: as in :class:`~text2sam.annotate.engine.Plan`.
        threads: those that encode the texts.
        embeddings: the folder of kept embeddings.
        model: the hash of the model that all must have; empty for any.
        root, finished, settings: of tables: what paths are relative to, the images that have a row, the settings in JSON.
    """

    source: ModelSource
    labels: LabelSet | None
    options: Options
    threads: int = 1
    embeddings: Path | None = None
    model: str = ""
    root: str = ""
    finished: frozenset[str] = frozenset()
    settings: str = ""


def model_hash(model: TextPromptedSAM) -> str:
    """A hash of the weights and settings on which results depend."""
    return hashlib.sha256(json.dumps(model_settings(model), sort_keys=True).encode()).hexdigest()[:16]


class Hand:
    """A worker. Ray Data makes it once per actor and calls it with the rows of a batch."""

    _worker: Worker

    def __init__(self, packed: bytes, tally: Any, most_starts: int) -> None:
        self._packed, self._tally, self._most_starts = packed, tally, most_starts

    def __call__(self, rows: Any) -> Any:
        if not hasattr(self, "_worker"):  # made here, as Ray handles errors of __init__ otherwise
            self._make()
        torch.set_num_threads(self._threads)  # each thread has a number of its own
        return self._rows(rows)

    def _make(self) -> None:
        import ray

        starts = ray.get(self._tally.begin.remote(""))
        if starts > self._most_starts:
            raise Text2SamError(
                f"workers died and were started {starts} times with nothing done in between, most often because memory did not "
                "suffice for the model and a batch of images; take fewer workers, a smaller batch_size, or a smaller model"
            )
        job, folder, environment, PIL.Image.MAX_IMAGE_PIXELS = ray.cloudpickle.loads(self._packed)
        with contextlib.suppress(OSError):  # paths of checkpoints may be relative
            os.chdir(folder)
        os.environ.update(environment)
        torch.set_num_threads(job.threads)
        model = job.source if isinstance(job.source, TextPromptedSAM) else job.source()
        if not isinstance(model, TextPromptedSAM):
            raise InputError(f"the function must make a TextPromptedSAM, not {type(model).__name__}")
        self._job, self._model = job, model_hash(model)
        if job.model not in ("", self._model):
            raise InputError(
                "its model is another than that of the run: all need the same weights, settings and kind of device; name the "
                "device, or take a driver on a machine like the workers'"
            )
        self._threads = 1 if device_of(model).type == "cpu" else job.threads  # as the engine of one machine
        store = None if job.embeddings is None else EmbeddingStore(job.embeddings, model, job.options)
        self._worker = Worker(model, job.labels, job.options, store)

    def _rows(self, rows: Any) -> Any:
        """The records of a chunk of the folder job."""
        import pyarrow as pa

        number = rows.column("number")[0].as_py()
        items = [ImageItem(path, Path(file)) for path, file in json.loads(rows.column("task")[0].as_py())]
        if not any(item.file.parent.is_dir() for item in items):
            raise InputError(
                f"it does not see the folder {os.fspath(items[0].file.parent)!r}; all machines of a cluster need it under this "
                "path (a shared file system), or see text2sam.annotate.parquet.annotate_table"
            )
        records = json.dumps([record.to_json() for record in self._records(str(number), items)])
        return pa.table({"number": [number], "records": [records]})

    def _records(self, key: str, items: Sequence[ImageItem]) -> list[Record]:
        """Annotates the images of a batch; after too many deaths one by one, after more not at all."""
        import ray

        if ray.get(self._tally.begin.remote(key)) < TRIES:
            batches = load_batches(items, self._job.options.reading)
            records = {record.path: record for batch in batches for record in self._worker.run(batch)}
            self._tally.end.remote(key)
            return [records[item.path] for item in items]
        if len(items) == 1:
            return [Record(items[0].path, reason=GIVEN_UP)]
        return [record for item in items for record in self._records(f"{key}/{item.path}", [item])]


def _tally(ray: Any) -> Any:
    """An actor that counts what was begun and not finished; it outlives the workers."""

    class Tally:
        """Nested, so that its process need not import this module and torch with it."""

        def __init__(self) -> None:
            self.begun: dict[str, int] = {}

        def begin(self, key: str) -> int:
            """How often this was begun before and not finished; the empty key stands for starting a worker."""
            self.begun[key] = self.begun.get(key, 0) + 1
            return self.begun[key] - 1

        def end(self, key: str) -> None:
            """It was finished."""
            for name in (key, ""):
                self.begun.pop(name, None)

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()


# what drives them


def need_ray() -> Any:
    """The package ``ray``, where it and what it needs for folder jobs are installed."""
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError("ray", "annotating on several workers or machines", "ray") from error
    return ray


def _workers(ray: Any, workers: int | None, gpus: float | None) -> tuple[int, float]:
    """How many workers, and how many GPUs each has."""
    there = ray.cluster_resources().get("GPU", 0)
    gpus = float(there > 0) if gpus is None else gpus
    if workers is not None:
        return workers, gpus
    if there < gpus:
        raise InputError(
            f"a worker is to have {gpus:g} GPUs and the Ray cluster has {there:g}; start Ray where GPUs are, take the CPU "
            "(--device cpu), or say how many workers to wait for"
        )
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return int(there / gpus) if gpus else max(1, sum(min(number, MOST_WORKERS) for number in cores)), gpus


@contextlib.contextmanager
def hands(job: Job, workers: int | None, num_gpus: float | None, most: int = _MOST_ROWS) -> Iterator[tuple[Any, Any]]:
    """Ray, and what puts batches of a data set through at most ``most`` workers; errors come out as Text2SamError.

    Raises:
        InputError: ``workers`` or ``num_gpus`` is out of range, there is no cluster or no GPU, or the model cannot be pickled.
    """
    check_number("workers", 1 if workers is None else workers, 1, whole=True)
    check_number("num_gpus", 0 if num_gpus is None else num_gpus, 0, 1023)
    ray = need_ray()
    with contextlib.ExitStack() as stack:
        environment = {key: value for key, value in os.environ.items() if key.startswith("TEXT2SAM_")}
        try:
            packed = ray.cloudpickle.dumps((job, os.getcwd(), environment, PIL.Image.MAX_IMAGE_PIXELS))
        except Exception as error:
            raise InputError(
                f"the model, or the function that makes models, cannot be sent to other processes: {type(error).__name__}: "
                f"{error}; give a function that refers to nothing of this process alone (locks, open files, threads)"
            ) from error
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to Ray's makers
            stack.callback(ray.shutdown)
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # ConnectionError, ValueError, RuntimeError, TimeoutError, ...
                raise InputError(f"no Ray can be reached (see RAY_ADDRESS) or started: {first_line(error)}") from error
        logger = logging.getLogger("ray.data")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)  # Ray Data reports its progress at length; errors still come through
        count, gpus = _workers(ray, workers, num_gpus)
        count, tally = min(count, most), _tally(ray)

        def work(data: Any, hand: type[Hand], batch_size: int) -> Any:
            data.context.enable_progress_bars = data.context.print_on_execution_start = False
            data.context.raise_original_map_exception = True
            # another task is sent ahead. Ray Data itself makes actors and their tasks start again without limit
            actors = ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2)
            how = {"batch_size": batch_size, "batch_format": "pyarrow", "num_cpus": 1, "num_gpus": gpus or None}
            return data.map_batches(hand, fn_constructor_args=(packed, tally, MOST_STARTS + 5 * count), compute=actors, **how)

        try:
            yield ray, work
        except ray.exceptions.RayTaskError as error:
            reason = error.cause if isinstance(error.cause, Text2SamError) else first_line(error.cause)
            raise Text2SamError(f"a worker cannot go on: {reason}") from error
        except Exception as error:
            if isinstance(error, Text2SamError):
                raise
            raise Text2SamError(f"Ray could not go on: {first_line(error)}. What was finished is kept") from error
        finally:
            with contextlib.suppress(Exception):  # of a cluster that is gone
                ray.kill(tally)


def first_line(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
