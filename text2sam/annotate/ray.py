"""Folder jobs on Ray's workers: :func:`ray_engine` does the chunks of :func:`text2sam.annotate.job.annotate`.

Images and dataset lie where the driver sees them; :mod:`text2sam.annotate.parquet` needs neither.

An actor per device holds the model. Ray gives the work of a worker that died to the next one, without end; deaths are counted
here, so that an image that kills every worker fails alone, and a model that kills every worker ends the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.engine import MOST_WORKERS, Done, Engine, Plan, device_of
from text2sam.annotate.journal import Record
from text2sam.annotate.labels import LabelSet
from text2sam.annotate.process import GIVEN_UP
from text2sam.annotate.sources import ImageItem
from text2sam.annotate.worker import ModelSource, Worker, load_batches, model_settings
from text2sam.checks import check_number
from text2sam.errors import InputError, MissingDependencyError, Text2SamError
from text2sam.options import Options
from text2sam.pipeline import TextPromptedSAM

TRIES = 3
"""After this many deaths over a batch its images are taken one by one; after this many more over one image it is given up."""

MOST_DEATHS = 20
"""This many deaths of workers, and four per worker more, without anything finished in between end a run."""

MOST_ROWS = 10_000
"""The most pieces of work that come back one by one; of more, several come back together."""

_STORE = 256 << 20
ADDRESS = re.compile(r"[a-z][a-z0-9+.\-]*://", re.IGNORECASE)
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""No reports to Ray's makers, and no GPU for workers that are given none; what the user has set stays."""


@dataclass(frozen=True)
class Cluster:
    """Where workers run, and what each takes up.

    Attributes:
        workers: how many; None is one per GPU (``num_gpus`` of them), or on CPUs one per ``num_cpus`` cores, at most
            :data:`text2sam.annotate.engine.MOST_WORKERS` a machine, since each holds a model.
        num_gpus: GPUs of a worker; None is 1 when the driver's model is on CUDA, or for tables when the cluster has GPUs.
        num_cpus: cores set aside for a worker.
        address: of the cluster, as for ``ray.init``. None takes ``RAY_ADDRESS`` or a Ray that runs on this machine; otherwise
            Ray is started here, and stopped at the end.

    Raises:
        InputError: a field is out of range.
    """

    workers: int | None = None
    num_gpus: float | None = None
    num_cpus: float = 1
    address: str | None = None

    def __post_init__(self) -> None:
        check_number("workers", 1 if self.workers is None else self.workers, 1, whole=True)
        check_number("num_gpus", 0 if self.num_gpus is None else self.num_gpus, 0, 1023)
        check_number("num_cpus", self.num_cpus, 0, 1023, above=True)


def ray_engine(
    *, workers: int | None = None, num_gpus: float | None = None, num_cpus: float = 1, address: str | None = None
) -> Engine:
    """An engine for :func:`text2sam.annotate.job.annotate` that works on Ray: on all cores of a machine, or in a cluster.

    The results are those of one process, bit for bit on the same kind of device. Only this process writes, so a driver that was
    killed continues when it is started again. A worker that is killed costs the time of what it was doing. Images and kept
    embeddings must be under the same path on all machines, and the model of every worker must equal the driver's.

    Args:
        workers, num_gpus, num_cpus, address: see :class:`Cluster`.

    Raises:
        InputError: an argument is not usable. While running: the cluster cannot be reached or has no GPU.
        MissingDependencyError: Ray is not installed.
        Text2SamError: while running: workers keep dying, have another model, or do not see the images; or Ray failed.
    """
    cluster = Cluster(workers, num_gpus, num_cpus, address)
    need_ray()

    def run(plan: Plan) -> Iterator[Done]:
        if not plan.todo:
            return
        device = device_of(plan.model).type
        own = plan.workers if cluster.workers is None else cluster.workers
        own = 1 if own is None and device == "mps" else own
        gpus = float(device == "cuda") if cluster.num_gpus is None else cluster.num_gpus
        job = Job(
            plan.make_model or plan.model,
            plan.labels,
            plan.options,
            None if plan.embeddings is None else plan.embeddings.folder.absolute(),
            model_hash(plan.model),
            torch.get_num_threads(),
        )
        tasks = [json.dumps([[item.path, os.fspath(item.file)] for item in chunk.items]) for chunk in plan.todo]
        held: list[Done] = []
        with contextlib.closing(_results(Cluster(own, gpus, num_cpus, address), job, tasks)) as results:
            for number, values in results:
                done = plan.todo[number], [Record.from_json(value) for value in values]
                if any(record.reason == GIVEN_UP for record in done[1]):
                    held.append(done)
                else:
                    yield done
        yield from held  # when all workers die, the images that were given up until then are not to blame

    return run


# what runs in the workers


@dataclass(frozen=True, eq=False)
class Job:
    """What every worker needs to know: ``model``, the hash of the model it must have; ``threads`` that encode the texts; and
    for tables the ``columns`` of paths and of images, what paths are relative to, and the ``finished`` images."""

    source: ModelSource
    labels: LabelSet | None
    options: Options
    embeddings: Path | None
    model: str
    threads: int
    columns: Sequence[str] = ("path",)
    root: str = ""
    finished: frozenset[str] = frozenset()
    most_pixels: int | None = field(default_factory=lambda: PIL.Image.MAX_IMAGE_PIXELS)
    folder: str = field(default_factory=os.getcwd)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {k: v for k, v in os.environ.items() if k.startswith("TEXT2SAM_")}
    )


def model_hash(model: TextPromptedSAM) -> str:
    """A hash of the weights and settings on which results depend."""
    return hashlib.sha256(json.dumps(model_settings(model), sort_keys=True).encode()).hexdigest()[:16]


class Hand:
    """A worker. Ray Data makes it once per actor and calls it with the rows of a batch."""

    def __init__(self, packed: bytes, tally: Any, most_deaths: int) -> None:
        import ray

        self._ray, self._tally = ray, tally
        self._error: Exception | None = None
        deaths = self._ask("born", ray.get_runtime_context().get_actor_id())
        try:
            if deaths > most_deaths:
                raise Text2SamError(
                    f"workers died {deaths} times with nothing done in between, most often because memory did not suffice for "
                    "the model and a batch of images; take fewer workers, a smaller batch_size, or a smaller model"
                )
            self._make(ray.cloudpickle.loads(packed))
        except Exception as error:  # raised in __init__, Ray would make the worker again and again
            self._error = error

    def _make(self, job: Job) -> None:
        with contextlib.suppress(OSError):  # paths of checkpoints may be relative
            os.chdir(job.folder)
        os.environ.update(job.environment)
        PIL.Image.MAX_IMAGE_PIXELS = job.most_pixels  # the driver's limit, whatever it is
        torch.set_num_threads(job.threads)
        model = job.source if isinstance(job.source, TextPromptedSAM) else job.source()
        if not isinstance(model, TextPromptedSAM):
            raise InputError(f"the function must make a TextPromptedSAM, not {type(model).__name__}")
        self._model = model_hash(model)
        if job.model and self._model != job.model:
            raise InputError(
                "the model of a worker is another one than the run's: all need the same weights, settings and kind of device; "
                "name the device, or take a driver on a machine like the workers'"
            )
        store = None if job.embeddings is None else EmbeddingStore(job.embeddings, model, job.options)
        self._job, self._worker = job, Worker(model, job.labels, job.options, store)
        self._threads = 1 if device_of(model).type == "cpu" else job.threads  # as the engine of one machine

    def __call__(self, rows: Any) -> Any:
        try:
            if self._error is not None:
                raise self._error
            torch.set_num_threads(self._threads)  # each thread has a number of its own
            return self._rows(rows)
        except Exception as error:
            reason = str(error) if isinstance(error, Text2SamError) else f"{type(error).__name__}: {error}"
            self._ask("fail", f"a worker cannot go on: {reason}")
            raise

    def _rows(self, rows: Any) -> Any:
        """The records of a chunk of the folder job."""
        import pyarrow as pa

        number, entries = rows.column("number")[0].as_py(), json.loads(rows.column("task")[0].as_py())
        if not any(Path(file).parent.is_dir() for _, file in entries):
            raise InputError(
                f"it does not see the folder {os.fspath(Path(entries[0][1]).parent)!r}; all machines of a cluster need it "
                "under this path (a shared file system), or see text2sam.annotate.parquet.annotate_table"
            )
        records = json.dumps([record.to_json() for record in self._work(str(number), entries)])
        return pa.table({"number": [number], "records": [records]})

    def _work(self, key: str, entries: Sequence[Sequence[Any]]) -> list[Record]:
        """Annotates the images of a batch; after too many deaths one by one, after more not at all."""
        safe = self._ask("begin", key) < TRIES
        if safe:
            records = self._annotate(entries)
        elif len(entries) == 1:
            records = [Record(entries[0][0], reason=GIVEN_UP)]
        else:
            records = [record for i, entry in enumerate(entries) for record in self._work(f"{key}/{i}", [entry])]
        self._tally.end.remote(key, safe)
        return records

    def _annotate(self, entries: Sequence[Sequence[Any]]) -> list[Record]:
        """The records of images, each a name and where it lies: its bytes, an address or a path."""
        items: list[ImageItem] = []
        records: dict[str, Record] = {}
        with tempfile.TemporaryDirectory(prefix="text2sam-", ignore_cleanup_errors=True) as folder:
            for number, (name, place) in enumerate(entries):
                try:
                    items.append(ImageItem(name, _fetch(place, Path(folder, str(number)))))
                except Exception as error:
                    records[name] = Record(name, reason=f"it cannot be fetched: {first_line(error)}")
            for batch in load_batches(items, self._job.options.reading):
                records.update((record.path, record) for record in self._worker.run(batch))
        return [records[name] for name, _ in entries]

    def _ask(self, what: str, argument: str) -> Any:
        try:
            return self._ray.get(getattr(self._tally, what).remote(argument))
        except self._ray.exceptions.RayError:  # the machine of the tally is gone: deaths are not counted then
            return 0


def _fetch(place: Any, file: Path) -> Path:
    """An image as a local file: what reads files recognises anything that is none."""
    if isinstance(place, str) and not ADDRESS.match(place):
        return Path(place)
    if isinstance(place, str):
        filesystem, path = place_of(place, None)
        with filesystem.open_input_stream(path) as stream:
            place = stream.read()
    file.write_bytes(place)
    return file


def _tally(ray: Any) -> Any:
    """An actor that knows what was begun and not finished, and what went wrong; it outlives the workers."""

    class Tally:
        """Nested, so that its process need not import this module and torch with it."""

        def __init__(self) -> None:
            self.begun: dict[str, int] = {}
            self.seen: set[str] = set()
            self.deaths = 0
            self.reason = ""

        def born(self, worker: str) -> int:
            """How many workers died since something was finished."""
            self.deaths += worker in self.seen
            self.seen.add(worker)
            return self.deaths

        def begin(self, key: str) -> int:
            """How many workers died over this."""
            self.begun[key] = self.begun.get(key, 0) + 1
            return self.begun[key] - 1

        def end(self, key: str, worked: bool) -> None:
            """It was finished, or given up."""
            self.begun.pop(key, None)
            if worked:
                self.deaths = 0

        def fail(self, reason: str) -> str:
            """The first reason why a worker could not go on; empty when there is none."""
            self.reason = self.reason or reason
            return self.reason

    return ray.remote(num_cpus=0, max_restarts=-1)(Tally).remote()


# what drives them


def need_ray() -> Any:
    """The package ``ray``.

    Raises:
        MissingDependencyError: it, or a part that folder jobs need, is not installed.
    """
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError("ray", "annotating on several workers or machines", "ray") from error
    return ray


@contextlib.contextmanager
def _session(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected; started only when it does not run, and only then stopped."""
    ray = need_ray()
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(usable, math.ceil((cluster.workers or 1) * cluster.num_cpus))
    own = {"address": "local", "num_cpus": cores, "object_store_memory": _STORE, "include_dashboard": False}
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            for key in _ENVIRONMENT.keys() - os.environ.keys():
                os.environ[key] = _ENVIRONMENT[key]  # until the end: Ray Data reads them whenever it begins
                stack.callback(os.environ.pop, key, None)
            stack.callback(ray.shutdown)
            try:
                ray.init(**(own if address == "local" else {"address": address or "auto"}), **how)
            except Exception as error:  # ConnectionError, ValueError, RuntimeError, TimeoutError, ...
                if address or not isinstance(error, ConnectionError):
                    raise InputError(f"no Ray cluster can be reached at {address or 'auto'!r}: {error}") from error
                ray.init(**own, **how)
        yield ray


def _workers(ray: Any, cluster: Cluster) -> tuple[int, float]:
    """How many workers, and how many GPUs each has."""
    there = ray.cluster_resources().get("GPU", 0)
    gpus = float(there > 0) if cluster.num_gpus is None else cluster.num_gpus
    if cluster.workers is not None:
        return cluster.workers, gpus
    if there < gpus:
        raise InputError(
            f"a worker is to have {gpus:g} GPUs and the Ray cluster has {there:g}; start Ray where GPUs are, take the CPU "
            "(--device cpu), or say how many workers to wait for"
        )
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    on_cpus = sum(min(int(number / cluster.num_cpus), MOST_WORKERS) for number in cores)
    return int(there / gpus) if gpus else max(1, on_cpus), gpus


@contextlib.contextmanager
def hands(cluster: Cluster, job: Job, most: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Ray, and the arguments of ``map_batches`` for at most so many workers; errors in it come out as Text2SamError."""
    with _session(cluster) as ray, contextlib.ExitStack() as stack:
        try:
            packed = ray.cloudpickle.dumps(job)
        except Exception as error:
            raise InputError(
                f"the model, or the function that makes models, cannot be sent to other processes: {type(error).__name__}: "
                f"{error}; give a function that refers to nothing of this process alone (locks, open files, threads)"
            ) from error
        logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)  # Ray Data reports its progress at length; errors still come through
        context.enable_progress_bars = context.print_on_execution_start = False
        workers, gpus = _workers(ray, cluster)
        workers, tally = min(workers, most), _tally(ray)
        how = {
            "fn_constructor_args": (packed, tally, MOST_DEATHS + 4 * workers),
            # another task is sent ahead. Ray Data itself makes actors and their tasks start again without limit
            "compute": ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            "batch_format": "pyarrow",
            "num_cpus": cluster.num_cpus,
            "num_gpus": gpus or None,
        }
        try:
            yield ray, how
        except Text2SamError:
            raise
        except Exception as error:
            reason = ""
            with contextlib.suppress(ray.exceptions.RayError):
                reason = ray.get(tally.fail.remote(""))
            raise Text2SamError(reason or f"Ray could not go on: {first_line(error)}. What was finished is kept") from error
        finally:
            with contextlib.suppress(Exception):  # of a cluster that is gone
                ray.kill(tally)


def _results(cluster: Cluster, job: Job, tasks: Sequence[str]) -> Generator[tuple[int, list[Any]], None, None]:
    """The records of each task in JSON's types, with its number, in the order in which they are done."""
    with hands(cluster, job, len(tasks)) as (ray, how):
        rows = [{"number": number, "task": task} for number, task in enumerate(tasks)]
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_ROWS))
        done = data.map_batches(Hand, batch_size=1, **how)
        # without prefetching: a result would wait for the next one
        batches = iter(done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            for batch in batches:
                for row in batch.to_pylist():
                    yield row["number"], json.loads(row["records"])
        finally:
            if hasattr(batches, "close"):
                batches.close()
            del batches


def first_line(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]


def place_of(address: str, filesystem: Any) -> tuple[Any, str]:
    """The file system and the path in it that an address means."""
    from pyarrow import fs

    if filesystem is not None:
        return filesystem, address
    if not ADDRESS.match(address):
        return fs.LocalFileSystem(), os.path.abspath(address)
    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(address)
    except Exception as error:  # OSError, ValueError and others
        raise InputError(f"{address!r} cannot be reached: {first_line(error)}") from error
    return found
