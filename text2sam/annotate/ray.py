"""Beyond one process: the chunks of a folder job on Ray's workers, and tables of images too many for one machine.

:func:`ray_engine` does what :func:`text2sam.annotate.job.annotate` plans: images and dataset lie where the driver sees them.
:func:`annotate_table` needs neither: workers read images from wherever they lie and write Parquet themselves.

Both give Ray Data one row per piece of work. An actor per device holds the model. What a dying worker had Ray does again on
the next one, without end; so that a piece which kills every worker does not make it go on forever, deaths are tallied.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from text2sam import errors
from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.annotate.job import MOST_WORKERS, Done, Engine, Plan
from text2sam.annotate.journal import Chunk, Record, chunks_of, differences
from text2sam.annotate.labels import LabelSet, LabelSpec, parse_labels
from text2sam.annotate.report import Failure, Report
from text2sam.annotate.sources import SUFFIXES, UNKNOWN, ImageItem, find_images
from text2sam.annotate.worker import ModelSource, Options, Worker, load_batches, model_settings
from text2sam.clip.generator import Method
from text2sam.clip.tiles import Tiles
from text2sam.errors import InputError, MissingDependencyError, OutputError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.files import write_bytes
from text2sam.pipeline import TextPromptedSAM, Zoom
from text2sam.recipes import DEFAULT, Strategy

TRIES = 3
"""So many workers may die over a batch before its images are taken one by one, and over one of these before it is given up."""

MOST_DEATHS = 20
"""So many deaths of workers, and four per worker more, without anything finished in between end a run."""

MOST_ROWS = 10_000
"""Pieces of work that come back one by one; of more than these several come back together."""

_STORE = 256 << 20
_LARGEST_IMAGE = 1 << 30
_LARGEST_FOOTER = 1 << 28
_GROUPS_KEPT = 16
_VERSION = 1
_SETTINGS, _REPORT = "_text2sam.json", "_report.json"
_PART = re.compile(r"part-[0-9a-f]{32}\.parquet")
_ADDRESS = re.compile(r"([a-z][a-z0-9+.\-]*)://([^/]*)", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{32,}")
_GIVEN_UP = "every worker that took it on died; most often memory did not suffice"
_OURS = "TEXT2SAM_"
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


@dataclass(frozen=True)
class _Cluster:
    """Where workers run and what each takes up."""

    workers: int | None = None
    num_gpus: float | None = None
    num_cpus: float = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and not (_is_number(self.workers, int) and self.workers >= 1):
            raise InputError(f"workers must be an int of at least 1 or None, not {self.workers!r}")
        if self.num_gpus is not None and not (_is_number(self.num_gpus) and 0 <= self.num_gpus < 1024):
            raise InputError(f"num_gpus must be how many GPUs a worker has, such as 1 or 0.5, or None, not {self.num_gpus!r}")
        if not (_is_number(self.num_cpus) and 0 < self.num_cpus < 1024):
            raise InputError(f"num_cpus must be how many cores are set aside for a worker, not {self.num_cpus!r}")
        if self.address is not None and not isinstance(self.address, str):
            raise InputError(
                f"address must be that of a Ray cluster, such as 'auto' or 'HOST:6379', or None, not {self.address!r}"
            )


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def ray_engine(
    *,
    workers: int | None = None,
    num_gpus: float | None = None,
    num_cpus: float = 1,
    address: str | None = None,
) -> Engine:
    """An engine for :func:`text2sam.annotate.job.annotate` that works on Ray: in all cores of a machine, or in a cluster.

    The results are those of one process, bit for bit on the same kind of device: a row of the data set is a chunk, so CLIP's
    batches are the same ones, and on a CPU a worker computes on one core. They come back to this process in the order in
    which they are done and it alone writes; so a driver that is killed goes on where it was. A worker that is killed costs
    the time of what it was doing.

    A batch over which :data:`TRIES` workers die is taken apart, and an image over which so many more die becomes a failed
    record: most often memory did not suffice. :data:`MOST_DEATHS` deaths without anything finished end the run.

    Images, and embeddings where they are kept, must be under the same path on all machines. Workers make the model
    themselves by the function ``annotate`` was given, or get a copy of the model it was given; what they have must
    equal the driver's, device included.

    Ray is started on this machine when it does not run, and stopped at the end. Where it runs (``ray start``, ``RAY_ADDRESS``,
    or ``ray.init`` in this process) it is used and left running.

    Args:
        workers: how many; None is one per GPU (``num_gpus`` of them), or on CPUs one per ``num_cpus`` cores, at most
            :data:`text2sam.annotate.job.MOST_WORKERS` a machine, since each holds a model.
        num_gpus: GPUs a worker has; None is 1 where the driver's model is on CUDA, else 0.
        num_cpus: cores set aside for a worker.
        address: of a cluster, as for ``ray.init``; None takes ``RAY_ADDRESS``, a cluster that runs on this machine, or starts
            one.

    Raises:
        InputError: an argument is not usable. While running: the model cannot be sent to workers or is another one there, the
            images are not to be seen from there, or the cluster cannot be reached or has no GPU.
        MissingDependencyError: Ray is not installed.
        Text2SamError: while running: workers keep dying, or Ray failed.
    """
    cluster = _Cluster(workers, num_gpus, num_cpus, address)
    _ray()

    def run(plan: Plan) -> Iterator[Done]:
        if not plan.todo:
            return
        device = plan.model.generator.device.type
        own = plan.workers if cluster.workers is None else cluster.workers
        own = 1 if own is None and device == "mps" else own
        gpus = float(device == "cuda") if cluster.num_gpus is None else cluster.num_gpus
        wanted = _Cluster(own, gpus, cluster.num_cpus, cluster.address)
        job = _Job(
            plan.make_model or plan.model,
            plan.labels,
            plan.options,
            None if plan.embeddings is None else plan.embeddings.absolute(),
            model_settings(plan.model),
            torch.get_num_threads(),
        )
        tasks = [_task([chunk]) for chunk in plan.todo]
        held: list[Done] = []
        with contextlib.closing(_results(wanted, job, tasks)) as results:
            for number, told in results:
                chunk = plan.todo[number]
                if told["unseen"] and os.path.exists(chunk.items[0].file):
                    raise InputError(
                        f"the machine {told['node']!r} does not see the folder {os.fspath(chunk.items[0].file.parent)!r}; all "
                        "machines of the cluster need it under this path (a shared file system); for images in an object "
                        "store see text2sam.annotate.ray.annotate_table"
                    )
                done = chunk, [Record.from_json(value) for value in told["records"]]
                if any(record.reason == _GIVEN_UP for record in done[1]):
                    held.append(done)
                else:
                    yield done
        yield from held  # where all die, what was given up until then must not count as the images' fault

    return run


# what runs in the workers


@dataclass(frozen=True, eq=False)
class _Job:
    """What every worker needs to know. ``model``: settings it must have; ``threads``: that encode the texts."""

    source: ModelSource
    labels: LabelSet
    options: Options
    embeddings: Path | None
    model: Mapping[str, Any] | None
    threads: int
    reader: _Reader | None = None
    out: _Place | None = None
    most_pixels: int | None = field(default_factory=lambda: PIL.Image.MAX_IMAGE_PIXELS)
    folder: str = field(default_factory=os.getcwd)
    environment: Mapping[str, str] = field(default_factory=lambda: {k: v for k, v in os.environ.items() if k.startswith(_OURS)})


def _task(chunks: Iterable[Chunk], where: Mapping[str, Any] | None = None, key: str = "") -> str:
    """What a worker is to do, as JSON: each image's path and where it lies, by chunk; the key of the part to be written."""
    entries = [[[one.path, os.fspath(one.file) if where is None else where[one.path]] for one in c.items] for c in chunks]
    return json.dumps({"chunks": entries, "key": key})


class _Hand:
    """One worker. Ray Data makes it once per actor and calls it with a row at a time; nothing it does raises."""

    def __init__(self, packed: bytes, tally: Any, most_deaths: int) -> None:
        import ray

        self._ray = ray
        self._tally = tally
        self._wrong: dict[str, str] | None = None
        context = ray.get_runtime_context()
        self._node = str(context.get_node_id())
        deaths = self._ask("born", context.get_actor_id())
        try:
            if deaths > most_deaths:
                raise Text2SamError(
                    f"workers died {deaths} times with nothing done in between, most often because memory did not suffice for "
                    "the model and a batch of images; take fewer workers, a smaller batch_size, or a smaller model"
                )
            self._make(packed)
        except Exception as error:
            self._wrong = _told(error, "a worker cannot begin: ")

    def _make(self, packed: bytes) -> None:
        from ray import cloudpickle

        try:
            job: _Job = cloudpickle.loads(packed)
        except Exception as error:
            raise InputError(
                f"what the driver sent cannot be read here: {type(error).__name__}: {error}; the same versions of Python and "
                "packages, and the module of the function that makes models, are needed on all machines"
            ) from error
        with contextlib.suppress(OSError):  # paths of checkpoints may be relative
            os.chdir(job.folder)
        os.environ.update(job.environment)
        PIL.Image.MAX_IMAGE_PIXELS = job.most_pixels  # the driver's limit, whatever it is
        torch.set_num_threads(job.threads)
        model = job.source if isinstance(job.source, TextPromptedSAM) else job.source()
        if not isinstance(model, TextPromptedSAM):
            raise InputError(f"the function must make a TextPromptedSAM, not {type(model).__name__}")
        mine = model_settings(model)
        differs = differences(job.model, mine) if job.model is not None else []
        if differs:
            raise InputError(
                f"the model made on the machine {self._node!r} is another one than the run's: {'; '.join(differs)}. All need "
                "the same weights and kind of device; name the device, or take a driver on a machine like the workers'"
            )
        store = None if job.embeddings is None else EmbeddingStore(job.embeddings, model, tiles=job.options.tiles)
        self._job, self._model, self._reader = job, mine, job.reader
        self._worker = Worker(model, job.labels, job.options, store)
        self._threads = 1 if model.generator.device.type == "cpu" else job.threads  # as run_threads

    def __call__(self, rows: Any) -> Any:
        import pyarrow as pa

        number = rows.column("number")[0].as_py()
        try:
            told = self._wrong or self._do(number, json.loads(rows.column("task")[0].as_py()))
        except Exception as error:
            told = _told(error)
        return pa.table({"number": [number], "told": [json.dumps(told)]})

    def _do(self, number: int, task: Mapping[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(self._threads)  # each thread has a number of its own
        chunks: list[list[list[Any]]] = task["chunks"]
        records = [one for index, entries in enumerate(chunks) for one in self._work(f"{number}.{index}", entries)]
        if self._job.out is not None:
            return _write_part(self._job.out, task["key"], records, self._model)
        unseen = not any(Path(entry[1]).parent.is_dir() for entries in chunks for entry in entries)
        return {"records": [record.to_json() for record in records], "unseen": unseen, "node": self._node}

    def _work(self, key: str, entries: list[list[Any]]) -> list[Record]:
        """Annotates the images of one batch; after too many deaths one by one, after more not at all."""
        safe = self._ask("begin", key) < TRIES
        if safe:
            records = self._annotate(entries)
        elif len(entries) == 1:
            records = [Record(entries[0][0], reason=_GIVEN_UP)]
        else:
            records = [one for i, entry in enumerate(entries) for one in self._work(f"{key}/{i}", [entry])]
        self._tally.end.remote(key, safe)
        return records

    def _annotate(self, entries: list[list[Any]]) -> list[Record]:
        items, failed = [], list[Record]()
        with contextlib.ExitStack() as stack:
            if self._reader is None:
                items = [ImageItem(path, Path(file), UNKNOWN, UNKNOWN) for path, file in entries]
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="text2sam-", ignore_cleanup_errors=True))
                items, failed = self._reader.fetch(entries, Path(folder))
            found = [one for batch in load_batches(items) for one in self._worker.run(batch)]
        records = {one.path: one for one in [*failed, *found]}
        return [records[entry[0]] for entry in entries]

    def _ask(self, what: str, key: str) -> int:
        try:
            answer: int = self._ray.get(getattr(self._tally, what).remote(key))
        except self._ray.exceptions.RayError:  # its machine is gone: deaths are not counted then
            return 0
        return answer


def _tally(ray: Any) -> Any:
    """An actor that knows what was begun and not finished; it outlives the workers."""

    class Tally:
        """Nested, so that its process need not import this module and torch with it."""

        def __init__(self) -> None:
            self.begun: dict[str, int] = {}
            self.seen: set[str] = set()
            self.deaths = 0

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

    return ray.remote(num_cpus=0, max_restarts=-1)(Tally).remote()


def _told(error: Exception, before: str = "") -> dict[str, str]:
    """An error as plain values: exceptions themselves would have to be unpickled."""
    known = isinstance(error, Text2SamError)
    kind = type(error).__name__ if known and not isinstance(error, MissingDependencyError) else "Text2SamError"
    return {"error": kind, "said": before + (str(error) if known else f"{type(error).__name__}: {error}")}


def _raise(told: Mapping[str, Any]) -> None:
    if "error" in told:
        raise getattr(errors, told["error"], Text2SamError)(told["said"])


# what drives them


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError("ray", "annotating on several workers or machines", "ray") from error
    return ray


@contextlib.contextmanager
def _session(cluster: _Cluster) -> Iterator[Any]:
    """Ray, connected; started only when it does not run, and only then stopped."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    # No reports to Ray's makers, and no GPU for workers that are given none; unless the user has said otherwise there. Until
    # the end, since Ray Data looks at them whenever it begins.
    ours = {key: value for key, value in _ENVIRONMENT.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        _connect(ray, cluster)
        yield ray
    finally:
        ray.shutdown()
        for key in ours:
            os.environ.pop(key, None)


def _connect(ray: Any, cluster: _Cluster) -> None:
    asked = cluster.address or os.environ.get("RAY_ADDRESS")
    how = {"log_to_driver": False, "logging_level": logging.ERROR}
    if asked != "local":
        try:
            ray.init(address=asked or "auto", **how)
            return
        except Exception as error:  # ConnectionError, ValueError, RuntimeError, TimeoutError, ...
            if asked or not isinstance(error, ConnectionError):
                raise InputError(f"no Ray cluster can be reached at {asked or 'auto'!r}: {error}") from error
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(cores, int((cluster.workers or 1) * cluster.num_cpus + 0.999))
    ray.init(address="local", num_cpus=cores, object_store_memory=_STORE, include_dashboard=False, **how)


def _workers(ray: Any, cluster: _Cluster, tasks: int) -> tuple[int, float]:
    """How many workers, and how many GPUs each has."""
    there = ray.cluster_resources().get("GPU", 0)
    gpus = float(there > 0) if cluster.num_gpus is None else cluster.num_gpus
    if cluster.workers is not None:
        count = cluster.workers
    elif gpus:
        count = int(there / gpus)
        if not count:
            raise InputError(
                f"a worker is to have {gpus:g} GPUs and the Ray cluster has {there:g}; start Ray where GPUs are, take the CPU "
                "(--device cpu), or say how many workers to wait for"
            )
    else:
        cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        count = sum(min(int(number / cluster.num_cpus), MOST_WORKERS) for number in cores)
    return max(1, min(count, tasks)), gpus


def _results(cluster: _Cluster, job: _Job, tasks: Sequence[str]) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """What workers tell of each task, with its number, in the order in which they are done."""
    if not tasks:
        return
    packed = _packed(job)
    with _session(cluster) as ray, _silence():
        workers, gpus = _workers(ray, cluster, len(tasks))
        tally = _tally(ray)
        try:
            rows = [{"number": number, "task": task} for number, task in enumerate(tasks)]
            data = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_ROWS))
            data.context.enable_progress_bars = False
            data.context.print_on_execution_start = False
            done = data.map_batches(
                _Hand,
                fn_constructor_args=(packed, tally, MOST_DEATHS + 4 * workers),
                # one more is sent ahead. Ray Data itself has actors restart and their tasks begin again without limit
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=cluster.num_cpus,
                num_gpus=gpus or None,
            )
            # without prefetching: a result would wait for the next one
            batches = iter(done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
            try:
                for batch in batches:
                    for number, text in zip(batch.column("number").to_pylist(), batch.column("told").to_pylist(), strict=True):
                        told = json.loads(text)
                        _raise(told)
                        yield number, told
            finally:
                if hasattr(batches, "close"):
                    batches.close()
                del batches
        except ray.exceptions.RayError as error:
            raise Text2SamError(f"Ray could not go on: {_first_line(error)}. What was finished is kept; start again") from error
        finally:
            with contextlib.suppress(Exception):  # of a cluster that is gone
                ray.kill(tally)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]


def _packed(job: _Job) -> bytes:
    from ray import cloudpickle

    try:
        packed: bytes = cloudpickle.dumps(job)
    except Exception as error:
        what = "model" if isinstance(job.source, TextPromptedSAM) else "function that makes models"
        raise InputError(
            f"the {what} cannot be sent to other processes: {type(error).__name__}: {error}; give a function that makes models "
            "and refers to nothing that belongs to this process alone (locks, open files, threads)"
        ) from error
    return packed


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Ray Data tells its progress at length; errors still come through."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# tables


def annotate_table(
    model: ModelSource,
    source: str | os.PathLike[str],
    labels: LabelSet | str | Iterable[str | LabelSpec],
    out: str | os.PathLike[str],
    *,
    paths: str | None = None,
    content: str | None = None,
    root: str | os.PathLike[str] | None = None,
    recursive: bool = False,
    filesystem: Any = None,
    out_filesystem: Any = None,
    strategy: str | Strategy = DEFAULT,
    method: Method = "surgery",
    zoom: Zoom = "auto",
    tiles: Tiles = False,
    batch_size: int = 8,
    part_size: int = 64,
    embeddings: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    progress: Callable[[int, int], object] | None = None,
    workers: int | None = None,
    num_gpus: float | None = None,
    num_cpus: float = 1,
    address: str | None = None,
) -> Report:
    """Annotates images wherever they lie on Ray's workers, which write Parquet with one row per image.

    The images are those of a folder; or those that a Parquet table names in a column, or holds in one. Folders, tables,
    images and ``out`` may lie on this machine or in an object store (``s3://``, ``gs://``, ``hdfs://``, ... as ``pyarrow.fs``
    knows them). Neither pixels nor masks pass through this process, and it holds no model: it may run where there is no GPU.

    Workers open every image themselves. ``ray.data.read_images``, the entry that offers itself, decodes in tasks of its
    own: one broken file fails its whole task, and with it the job, or has to be dropped unseen; it keeps neither EXIF rotation
    nor 16 bits as :func:`text2sam.image.read_image` does; and its blocks, which would be CLIP's batches, depend on the
    cluster. Here a broken image costs one row, and results depend neither on the number of workers nor on which did what.

    A part of about ``part_size`` images (all rows of a row group, for ``content``) is one file, ``part-KEY.parquet``. A run
    that was stopped goes on with the parts that are missing; a folder's images that changed since are done again, what
    lies behind the paths of a table is not looked at. Parts whose images are no longer in the source are removed at the
    end. Two runs must not write to one place at a time. Columns:

    - ``path``: the image's name, relative, with ``/`` between its parts; for images left out whatever the source called it.
    - ``height``, ``width``: int32, pixels, EXIF rotation applied; null where it failed.
    - ``status``: ``done``, ``empty`` (nothing was found) or ``failed``; ``reason``: why it failed, else empty.
    - ``objects``: a list of structs of ``label``, ``score`` in [0, 1], ``bbox`` (xywh, pixels), ``area`` (pixels) and
      ``segmentation``, COCO's run lengths (``size`` (H, W), ``counts`` a string).
    - ``presence``: a list of structs of ``label`` and ``value`` in [0, 1], each label, there or not.

    :func:`read_table` makes annotated images of it again, for :func:`text2sam.export.formats.export`.

    Args:
        model: a function that makes the model on a worker, or a model, which is sent to them. All must have the same weights
            and kind of device.
        source: a folder; or a Parquet file, or with ``paths`` or ``content`` a folder of them.
        labels: what to look for; see :func:`text2sam.annotate.labels.parse_labels`.
        out: the folder for the parts.
        paths: the column that names the images, as ``path`` does if ``source`` ends in ``.parquet``.
        content: the column that holds the image files themselves, as bytes; ``paths`` then only names them. Row groups
            of some hundred images serve best: one is worked on by one worker.
        root: what the paths of a table are relative to; absolute ones must lie below it. Without it a name is the path
            without its scheme and first slash.
        recursive: look into the folders of a folder as well.
        filesystem: a ``pyarrow.fs.FileSystem`` to read source and images with (credentials, regions, endpoints), all
            paths then being its own; None goes by the scheme.
        out_filesystem: likewise for ``out``.
        strategy, method, zoom, tiles: as for ``TextPromptedSAM.segment_many``.
        batch_size: most images that CLIP encodes at once.
        part_size: about how many images a part holds.
        embeddings: a folder that keeps embeddings, the same on all machines.
        overwrite: throw away what an earlier run wrote to ``out``.
        retry_failed: work again on parts in which an image failed.
        progress: called with the number of images done so far, and of all.
        workers, num_gpus, num_cpus, address: as for :func:`ray_engine`; ``num_gpus`` None is 1 if the cluster has GPUs.

    Returns:
        The report, which is also in ``OUT/_report.json``. Images left out count as failed.

    Raises:
        InputError: an argument is not usable, the source cannot be read or has no images, ``out`` holds a run with
            other settings, or workers make different models.
        OutputError: ``out`` cannot be written.
        MissingDependencyError: Ray or pyarrow is not installed.
        Text2SamError: workers keep dying, or Ray failed.
    """
    started = time.perf_counter()
    cluster = _Cluster(workers, num_gpus, num_cpus, address)
    wanted = labels if isinstance(labels, LabelSet) else parse_labels(labels)
    options = Options(strategy, method, zoom, tiles)
    if not _is_number(part_size, int) or part_size < 1:
        raise InputError(f"part_size must be an int of at least 1, not {part_size!r}")
    if not isinstance(model, TextPromptedSAM) and not callable(model):
        raise InputError(f"model must be a TextPromptedSAM, or a function that makes one, not {type(model).__name__}")
    _ray()
    name = os.fspath(source)
    if paths is not None or content is not None or name.lower().endswith(".parquet"):
        listed = _listed_table(_place(name, filesystem), paths or (None if content else "path"), content, root)
    else:
        listed = _listed_folder(name, filesystem, recursive)
    parts = {part.key: part for part in listed.parts(batch_size, part_size)}
    if not parts and not listed.refused:
        raise InputError(f"there are no images in {name!r}; of a folder those count that end in {', '.join(SUFFIXES)}")
    place = _place(os.fspath(out), out_filesystem)
    settings = {**wanted.to_json(), **options.to_json(), "batch_size": batch_size, "part_size": part_size}
    before = _begin(place, settings, overwrite)
    old = {key: before[key] for key in parts if before.get(key) and not (retry_failed and before[key]["failed"])}
    models: list[Any] = []
    for told in old.values():
        _same_model(models, told["model"])
    todo = [part for key, part in parts.items() if key not in old]
    done, total = (sum(part.images for part in some) for some in ((parts[key] for key in old), parts.values()))
    reader = _Reader(filesystem, content)
    job = _Job(
        model,
        wanted,
        options,
        None if embeddings is None else Path(embeddings).absolute(),
        models[0] if models else None,
        1,  # the number of cores is to show nowhere
        reader if content is not None or filesystem is not None or any(map(_ADDRESS.match, listed.where.values())) else None,
        place,
    )
    new: dict[str, Any] = {}
    working = time.perf_counter()
    tell = progress or (lambda done, total: None)
    tell(done, total)
    with contextlib.closing(_results(cluster, job, [part.task for part in todo])) as results:
        for number, told in results:
            _same_model(models, told["model"])
            new[todo[number].key] = told
            done += todo[number].images
            tell(done, total)
    if len(new) < len(todo):
        raise Text2SamError(f"Ray ended before its work was done: {len(todo) - len(new)} of {len(todo)} parts are missing")
    seconds = max(time.perf_counter() - working, 1e-9)
    keys = {*parts}
    if listed.refused:
        keys.add(key := _key_of(listed.refused))
        _write_part(place, key, [_Refused(*pair) for pair in listed.refused], {})
    for key in before.keys() - keys:
        place.remove(f"part-{key}.parquet")
    objects: Counter[str] = Counter()
    for told in (*old.values(), *new.values()):
        objects.update(told["objects"])
    failed = [Failure(*pair) for told in (*old.values(), *new.values()) for pair in told["failed"]]
    report = Report(
        done=sum(told["done"] for told in new.values()),
        empty=sum(told["empty"] for told in new.values()),
        failed=(*failed, *(Failure(*pair) for pair in listed.refused)),
        skipped=sum(told["done"] + told["empty"] for told in old.values()),
        objects={label: objects[label] for label in wanted.names},
        seconds=time.perf_counter() - started,
        images_per_second=sum(part.images for part in todo) / seconds,
    )
    place.write(_REPORT, json.dumps(report.to_json(), indent=2).encode())
    return report


def read_table(table: str | os.PathLike[str], *, filesystem: Any = None) -> Iterator[AnnotatedImage]:
    """The annotated images of what :func:`annotate_table` wrote, sorted by path, whatever file and row they are in.

    Only the paths are held in memory, and a few groups of rows. Rows of failed images are left out. With
    :func:`text2sam.export.formats.export` they become a data set; ``images_root`` of formats that copy images is then a
    local folder that the names are relative to.

    Args:
        table: the folder of the parts, or one Parquet file with these columns; here or in an object store.
        filesystem: a ``pyarrow.fs.FileSystem`` that ``table`` is a path of; None goes by the scheme.

    Raises:
        InputError: there is no table, it is damaged, or it holds something else.
        MissingDependencyError: pyarrow is not installed.
    """
    place = _place(os.fspath(table), filesystem)
    files = place.tables()
    if not files:
        raise InputError(f"there is no Parquet file in {place.address!r}")
    index: list[tuple[str, int, int, int]] = []
    for number, file in enumerate(files):
        with _parquet(place.filesystem, file) as parquet:
            for group in range(parquet.num_row_groups):
                rows = _group(parquet, group, ["path", "status"])
                for row, (path, status) in enumerate(zip(rows["path"].to_pylist(), rows["status"].to_pylist(), strict=True)):
                    if status not in ("done", "empty", "failed") or not isinstance(path, str):
                        raise InputError(f"{file!r} is no table of annotated images: it has {path!r:.200} as {status!r:.50}")
                    if status != "failed":
                        index.append((path, number, group, row))
    index.sort()
    groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
    for before, (path, number, group, row) in zip([None, *index], index, strict=False):
        if before is not None and before[0] == path:
            raise InputError(f"{place.address!r} holds the image {path!r} twice")
        rows = groups.pop((number, group), None)
        if rows is None:
            with _parquet(place.filesystem, files[number]) as parquet:
                rows = _group(parquet, group, ["path", "height", "width", "objects"])
        groups[number, group] = rows
        while len(groups) > _GROUPS_KEPT:
            groups.popitem(last=False)
        yield _image(rows.slice(row, 1).to_pylist()[0], files[number])


def _image(row: Mapping[str, Any], file: str) -> AnnotatedImage:
    try:
        size = (row["height"], row["width"])
        objects = []
        for one in row["objects"]:
            if tuple(one["segmentation"]["size"]) != size:
                raise InputError(f"a mask has the size {one['segmentation']['size']}, the image {size}")
            objects.append(AnnotatedObject(one["label"], size, one["segmentation"]["counts"], one["score"]))
        return AnnotatedImage(row["path"], *size, tuple(objects))
    except (InputError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{file!r} is no table of annotated images; the row of {row.get('path')!r:.200}: {error}") from error


@dataclass(frozen=True)
class _Refused:
    """An image that no worker is given; its name may be anything."""

    path: str
    reason: str
    image: None = None
    presence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Work:
    """A part to be written: its key, what a worker is told, how many images it has."""

    key: str
    task: str
    images: int


@dataclass(frozen=True, eq=False)
class _Listed:
    """The images of a source. ``where`` each lies, by path; ``groups``: which ones a part must hold together, or None."""

    items: list[ImageItem]
    where: dict[str, Any]
    refused: list[tuple[str, str]]
    groups: list[int] | None = None

    def parts(self, batch_size: int, part_size: int) -> Iterator[_Work]:
        if self.groups is None:
            current: list[Chunk] = []
            images = 0
            for chunk in chunks_of(self.items, batch_size):
                current.append(chunk)
                images += len(chunk)
                # as chunks_of: a part ends where a hash says so, lest one file more shift all behind it
                if images >= part_size or int(chunk.key, 16) % max(1, 2 * part_size // batch_size) == 0:
                    yield self._part(current)
                    current, images = [], 0
            if current:
                yield self._part(current)
        else:
            pairs = zip(self.groups, self.items, strict=True)
            for _, members in itertools.groupby(pairs, key=lambda pair: pair[0]):
                yield self._part(chunks_of((item for _, item in members), batch_size))

    def _part(self, chunks: list[Chunk]) -> _Work:
        items = [item for chunk in chunks for item in chunk.items]
        key = _key_of([[item.path, self.where[item.path], item.size_bytes, item.mtime_ns] for item in items])
        return _Work(key, _task(chunks, self.where, key), len(items))


def _key_of(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _listed_folder(source: str, filesystem: Any, recursive: bool) -> _Listed:
    place = _place(source, filesystem)
    if place.local:
        found = find_images(source, recursive=recursive)
        return _Listed([*found.items], {item.path: os.fspath(item.file) for item in found.items}, [*found.refused])
    items, where, refused = [], {}, []
    for path, size, mtime in sorted(place.files(recursive)):
        name = path.removeprefix(place.path).lstrip("/")
        if name.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in name.split("/")):
            try:
                items.append(ImageItem(name, Path(name), size, mtime))
                where[name] = place.prefix + path
            except InputError as error:
                refused.append((name, str(error)))
    return _Listed(items, where, refused)


def _listed_table(place: _Place, paths: str | None, content: str | None, root: str | os.PathLike[str] | None) -> _Listed:
    local = place.given is None
    top = None if root is None else os.fspath(root).rstrip("/")
    if top is not None and local and not _ADDRESS.match(top):
        top = os.path.abspath(top)
    items: list[ImageItem] = []
    where: dict[str, Any] = {}
    refused: list[tuple[str, str]] = []
    groups: list[int] = []
    numbers = itertools.count()
    files = place.tables()
    if not files:
        raise InputError(f"there is no Parquet file at {place.address!r}")
    if content is not None and paths is None:
        raise InputError("content needs paths beside it: the column that names the images")
    for file in files:
        size, mtime = place.look(file) if content is not None else (UNKNOWN, UNKNOWN)
        with _parquet(place.filesystem, file) as parquet:
            known = parquet.schema_arrow
            for column in (paths, content):
                if column is not None and column not in known.names:
                    raise InputError(f"{file!r} has no column {column!r}; it has {', '.join(map(repr, known.names[:20]))}")
            if content is not None and "binary" not in str(known.field(content).type):
                raise InputError(
                    f"the column {content!r} of {file!r} holds {known.field(content).type}, not image files as bytes"
                )
            for group in range(parquet.num_row_groups):
                number = next(numbers)
                for row, given in enumerate(_group(parquet, group, [paths])[paths].to_pylist()):
                    try:
                        name, at = _named(given, top if content is None else None)
                        if name in where:
                            raise InputError("its name comes twice")
                        items.append(ImageItem(name, Path(name), size, mtime))
                    except InputError as error:
                        refused.append((str(given), str(error)))
                        continue
                    if local and not _ADDRESS.match(at):
                        at = os.path.abspath(at)
                    where[name] = at if content is None else [place.prefix + file, group, row]
                    groups.append(number)
    if content is None:
        items.sort(key=lambda item: item.path)
    return _Listed(items, where, refused, None if content is None else groups)


def _named(given: Any, top: str | None) -> tuple[str, str]:
    """An image's name and address from what a table calls it."""
    if not isinstance(given, str) or not given or "\0" in given:
        raise InputError(f"a path must be a non-empty string, not {given!r:.200}")
    absolute = given.startswith("/") or _ADDRESS.match(given) is not None
    if top is None:
        match = _ADDRESS.match(given)
        name = given[match.end() - len(match[2]) :] if match else given
        return name.removeprefix("./").lstrip("/"), given
    if not absolute:
        name = given.removeprefix("./")
        return name, f"{top}/{name}"
    if not given.startswith(top + "/"):
        raise InputError(f"it does not lie below {top!r}")
    return given[len(top) + 1 :], given


@dataclass(frozen=True, eq=False)
class _Reader:
    """Brings images from elsewhere to a worker, as files: what reads them takes any other thing for what it is."""

    given: Any
    content: str | None
    known: dict[str, Any] = field(default_factory=dict)

    def fetch(self, entries: Sequence[Sequence[Any]], folder: Path) -> tuple[list[ImageItem], list[Record]]:
        """Files of images, and what failed."""
        items, failed = [], []
        for number, (path, at) in enumerate(entries):
            try:
                file = folder / str(number)
                if self.content is not None:
                    file.write_bytes(self._row(*at))
                elif self.given is None and not _ADDRESS.match(at):
                    file = Path(at)
                else:
                    self._copy(at, file)
                items.append(ImageItem(path, file, UNKNOWN, UNKNOWN))
            except Exception as error:
                said = str(error) if isinstance(error, Text2SamError) else _first_line(error)
                failed.append(Record(path, reason=f"it cannot be fetched: {said}"))
        return items, failed

    def _copy(self, address: str, file: Path) -> None:
        filesystem, path = _at(address, self.given, self.known)
        info = filesystem.get_file_info(path)
        if info.type.name != "File":
            raise InputError(f"there is no file {address!r}")
        if (info.size or 0) > _LARGEST_IMAGE:
            raise InputError(f"it has {info.size:,} bytes, more than images have")
        with filesystem.open_input_stream(path) as stream, open(file, "wb") as copy:
            left = _LARGEST_IMAGE
            while left and (data := stream.read(min(left, 1 << 20))):
                copy.write(data)
                left -= len(data)

    def _row(self, file: str, group: int, row: int) -> bytes:
        one = self.known.get("group")
        if one is None or one.name != (file, group) or one.next > row:
            if one is not None:
                one.close()
            self.known["group"] = one = _OpenGroup(*_at(file, self.given, self.known), (file, group), str(self.content))
        value = one.take(row)
        if not isinstance(value, bytes):
            raise InputError("the row holds no image")
        if len(value) > _LARGEST_IMAGE:
            raise InputError(f"it has {len(value):,} bytes, more than images have")
        return value


class _OpenGroup:
    """A row group that is read from its beginning to its end, some rows at a time."""

    def __init__(self, filesystem: Any, path: str, name: tuple[str, int], column: str) -> None:
        self.name = name
        self.next = 0
        self._stack = contextlib.ExitStack()
        parquet = self._stack.enter_context(_parquet(filesystem, path))
        self._batches = parquet.iter_batches(batch_size=8, row_groups=[name[1]], columns=[column], use_threads=False)
        self._rows: list[Any] = []

    def take(self, row: int) -> Any:
        """The content of a row, none of which may lie before one that was taken."""
        while self.next <= row:
            if not self._rows:
                self._rows = next(self._batches).column(0).to_pylist()[::-1]
            taken = self._rows.pop()
            self.next += 1
        return taken

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()


@dataclass(frozen=True, eq=False)
class _Place:
    """A folder or file, here or in an object store. ``prefix`` turns a path of its file system into an address again."""

    address: str
    given: Any
    filesystem: Any
    path: str
    prefix: str
    local: bool

    def files(self, recursive: bool = False) -> list[tuple[str, int, int]]:
        """Path, size and time of change of all files."""
        from pyarrow import fs

        with _read_errors(self.address):
            if self.filesystem.get_file_info(self.path).type.name == "File":
                return [(self.path, *self.look(self.path))]
            selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
            found = [one for one in self.filesystem.get_file_info(selector) if one.type.name == "File"]
        return [(one.path, *_identity(one)) for one in found]

    def tables(self) -> list[str]:
        """The Parquet files, sorted; the one it is, or those in the folder that are not hidden."""
        names = [path for path, _, _ in self.files()]
        if names == [self.path]:
            return names
        shown = [path for path in names if not path.rpartition("/")[2].startswith((".", "_"))]
        return sorted(path for path in shown if path.lower().endswith(".parquet"))

    def look(self, path: str) -> tuple[int, int]:
        """Size and time of change of a file."""
        with _read_errors(path):
            return _identity(self.filesystem.get_file_info(path))

    def read(self, name: str) -> bytes | None:
        """The first 16 MB of a file; None where there is none."""
        with _read_errors(f"{self.address}/{name}"):
            if self.filesystem.get_file_info(f"{self.path}/{name}").type.name != "File":
                return None
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                data: bytes = stream.read(16 << 20)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Writes a file; on this machine whole or not at all, and so do object stores."""
        if self.local:
            write_bytes(f"{self.path}/{name}", data)
            return
        try:
            with self.filesystem.open_output_stream(f"{self.path}/{name}") as stream:
                stream.write(data)
        except Exception as error:
            raise OutputError(f"cannot write {name!r} to {self.address!r}: {_first_line(error)}") from error

    def remove(self, name: str) -> None:
        """Removes a file that is there."""
        try:
            self.filesystem.delete_file(f"{self.path}/{name}")
        except Exception as error:
            raise OutputError(f"cannot remove {name!r} from {self.address!r}: {_first_line(error)}") from error


def _identity(info: Any) -> tuple[int, int]:
    return (UNKNOWN if info.size is None else int(info.size), UNKNOWN if info.mtime_ns is None else int(info.mtime_ns))


def _place(address: str, filesystem: Any) -> _Place:
    known: dict[str, Any] = {}
    found, path = _at(address, filesystem, known)
    prefix = ""
    if known:
        [(prefix, (_, base))] = known.items()
        if base.strip("/"):  # a bucket is part of the path, a host is not
            prefix = prefix[: prefix.index("://") + 3]
    return _Place(address, filesystem, found, path.rstrip("/") or "/", prefix, filesystem is None and not known)


def _at(address: str, filesystem: Any, known: dict[str, Any]) -> tuple[Any, str]:
    """The file system and the path in it that an address means; ``known`` keeps connections."""
    if filesystem is not None:
        return filesystem, address
    try:
        from pyarrow import fs
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "tables of annotated images", "ray") from error
    match = _ADDRESS.match(address)
    if match is None:
        return fs.LocalFileSystem(), os.path.abspath(address)
    if "@" in match[2]:
        raise InputError(
            f"an address is written down and must not hold credentials; give filesystem instead of {match[1]}://...@"
        )
    if match[0] not in known:
        with _read_errors(address):
            known[match[0]] = fs.FileSystem.from_uri(f"{match[0]}/")
    found, base = known[match[0]]
    return found, base.rstrip("/") + address[match.end() :]


@contextlib.contextmanager
def _read_errors(name: str) -> Iterator[None]:
    """What pyarrow raises, OSError, ValueError and others, as InputError."""
    try:
        yield
    except Text2SamError:
        raise
    except Exception as error:
        raise InputError(f"{name!r} cannot be read: {_first_line(error)}") from error


@contextlib.contextmanager
def _parquet(filesystem: Any, path: str) -> Iterator[Any]:
    """A Parquet file, open. Ones with extension types are refused before they are opened: such types run code of
    whoever registered them, Ray among others, and that of some versions unpickles."""
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        with _read_errors(path):
            file = stack.enter_context(filesystem.open_input_file(path))
            size = file.size()
            file.seek(max(0, size - 8))
            tail = file.read(8)
            length = int.from_bytes(tail[:4], "little")
            if tail[4:] != b"PAR1" or length > min(size - 8, _LARGEST_FOOTER):
                raise InputError(f"{path!r} is no Parquet file, or was not written to its end")
            file.seek(size - 8 - length)
            if _has_extensions(file.read(length)):
                raise InputError(f"{path!r} has columns of extension types, which are not read; write it with plain types")
            file.seek(0)
            parquet = stack.enter_context(pq.ParquetFile(file))
        yield parquet


def _has_extensions(footer: bytes) -> bool:
    """Whether the Arrow schema in a Parquet footer, base64 behind bytes that may look like it, names extension types."""
    for run in _BASE64.findall(footer):
        for start in range(4):
            part = run[start:]
            if b"ARROW:extension" in base64.b64decode(part[: len(part) // 4 * 4]):
                return True
    return False


def _group(parquet: Any, group: int, columns: list[Any]) -> Any:
    with _read_errors("the table"):
        rows = parquet.read_row_group(group, columns=columns, use_threads=False)
        missing = sorted(set(columns) - set(rows.column_names))
        if missing:
            raise InputError(f"the table has no column {missing[0]!r}")
        rows.validate(full=True)  # offsets from outside, which compiled code would trust
        return rows


def _begin(place: _Place, settings: Mapping[str, Any], overwrite: bool) -> dict[str, dict[str, Any]]:
    """The parts an earlier run with these settings wrote: what each holds, by key."""
    given = json.loads(json.dumps(settings))
    names = [path.rpartition("/")[2] for path, _, _ in place.files()]
    parts = sorted(name for name in names if _PART.fullmatch(name))
    data = place.read(_SETTINGS)
    if overwrite:
        for name in parts:
            place.remove(name)
        parts, data = [], None
    advice = "give another place, or overwrite=True to throw it away"
    if data is not None:
        try:
            run = json.loads(data)
            ok = isinstance(run, dict) and run["version"] == _VERSION and isinstance(run["settings"], dict)
        except (ValueError, LookupError, RecursionError):
            ok = False
        if not ok:
            raise InputError(f"{place.address!r} holds a run that is not understood; {advice}")
        found = differences(run["settings"], given)
        if found:
            raise InputError(f"{place.address!r} holds a run with other settings: {'; '.join(found[:6])}; {advice}")
    elif parts:
        raise InputError(f"{place.address!r} holds tables of a run whose settings are gone; {advice}")
    else:
        if not place.local:
            with contextlib.suppress(Exception):  # object stores know no folders
                place.filesystem.create_dir(place.path, recursive=True)
        place.write(_SETTINGS, json.dumps({"version": _VERSION, "settings": given}, indent=2).encode())
    with ThreadPoolExecutor(8, "text2sam-parts") as pool:  # each is a round trip to an object store
        told = [*pool.map(lambda name: _read_summary(place, name), parts)]
    return {name[5:-8]: one for name, one in zip(parts, told, strict=True)}


def _same_model(models: list[Any], mine: Mapping[str, Any]) -> None:
    if not models:
        models.append(mine)
    found = differences(models[0], mine)
    if found:
        raise InputError(f"workers made different models: {'; '.join(found)}. All need the same weights and kind of device")


def _read_summary(place: _Place, name: str) -> dict[str, Any]:
    """What a part says it holds; one that is damaged says nothing, and is done again."""
    try:
        with _parquet(place.filesystem, f"{place.path}/{name}") as parquet:
            told: dict[str, Any] = json.loads(parquet.schema_arrow.metadata[b"text2sam"])
            numbers = [told["done"], told["empty"], *told["objects"].values()]
            ok = all(_is_number(number, int) and number >= 0 for number in numbers) and isinstance(told["model"], dict)
            ok = ok and all(isinstance(text, str) for pair in told["failed"] for text in pair)
            ok = (
                ok
                and all(len(pair) == 2 for pair in told["failed"])
                and all(isinstance(label, str) for label in told["objects"])
            )
            if ok and told["done"] + told["empty"] + len(told["failed"]) == parquet.metadata.num_rows:
                return told
    except (Text2SamError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return {}


def _write_part(place: _Place, key: str, records: Sequence[Record | _Refused], model: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a part; what it holds, which its footer says too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    objects = Counter(one.label for record in records if record.image is not None for one in record.image.objects)
    rows = [_row(record) for record in records]
    told = {
        "model": dict(model),
        "done": sum(row["status"] == "done" for row in rows),
        "empty": sum(row["status"] == "empty" for row in rows),
        "failed": [[row["path"], row["reason"]] for row in rows if row["status"] == "failed"],
        "objects": dict(sorted(objects.items())),
    }
    schema = _schema(pa).with_metadata({"text2sam": json.dumps(told)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    place.write(f"part-{key}.parquet", sink.getvalue().to_pybytes())
    return told


def _row(record: Record | _Refused) -> dict[str, Any]:
    image = record.image
    objects = [
        {
            "label": one.label,
            "score": float(one.score),
            "bbox": list(one.bbox),
            "area": one.area,
            "segmentation": one.rle,
        }
        for one in (image.objects if image is not None else ())
    ]
    return {
        "path": record.path.encode("utf-8", "backslashreplace").decode(),
        "height": None if image is None else image.height,
        "width": None if image is None else image.width,
        "status": "failed" if image is None else "done" if objects else "empty",
        "reason": record.reason.encode("utf-8", "backslashreplace").decode(),
        "objects": objects,
        "presence": [{"label": label, "value": float(value)} for label, value in record.presence.items()],
    }


def _schema(pa: Any) -> Any:
    number, text = pa.int32(), pa.string()
    rle = pa.struct([("size", pa.list_(number)), ("counts", text)])
    one = pa.struct(
        [("label", text), ("score", pa.float64()), ("bbox", pa.list_(number)), ("area", pa.int64()), ("segmentation", rle)]
    )
    presence = pa.struct([("label", text), ("value", pa.float64())])
    return pa.schema(
        [
            ("path", text),
            ("height", number),
            ("width", number),
            ("status", text),
            ("reason", text),
            ("objects", pa.list_(one)),
            ("presence", pa.list_(presence)),
        ]
    )
