"""Tables of images too many for one machine: Ray's workers read and annotate them, and Ray Data writes Parquet."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from text2sam.annotate.journal import differences
from text2sam.annotate.labels import Labels, label_set
from text2sam.annotate.ray import ADDRESS, MOST_ROWS, Cluster, Hand, Job, first_line, hands, need_ray, place_of
from text2sam.annotate.report import Failure, Report
from text2sam.annotate.sources import ImageItem, suffixes
from text2sam.annotate.worker import ModelSource, settings_of
from text2sam.checks import check_number
from text2sam.errors import InputError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.options import Options, SegmentOptions

_SETTINGS, _REPORT = "_text2sam.json", "_report.json"
_OUTCOME = ("path", "status", "reason", "model", "objects.list.element.label")
"""What a report is made from: columns without masks."""
_EXTENSION = tuple(
    base64.b64encode(b"\0" * k + b"ARROW:extension")[start:end] for k, start, end in ((0, 0, 20), (1, 2, 21), (2, 3, 22))
)
"""The key of extension types in base64, at each of the three places it can have in a group."""
_LARGEST_FOOTER = 1 << 28


class TableHand(Hand):
    """A worker for tables: rows that name or hold images in, annotated rows out."""

    def _rows(self, rows: Any) -> Any:
        import pyarrow as pa

        columns = [rows.column(name).to_pylist() for name in self._job.columns]
        out: dict[str, dict[str, Any]] = {}
        entries: dict[str, Any] = {}  # a name that comes twice counts once
        for path, place in zip(columns[0], columns[-1], strict=True):
            name = ADDRESS.sub("", str(path)).removeprefix(self._job.root).removeprefix("./").lstrip("/")
            if name in self._job.finished:
                continue
            try:
                if not isinstance(place, (bytes, str)):
                    raise InputError("the row holds no image")
                ImageItem(name, Path())  # checks the name
                entries[name] = place
            except InputError as error:
                out[name] = _row(name, None, str(error), {}, self._model)
        if entries:
            key = hashlib.sha256("\0".join(entries).encode()).hexdigest()
            for record in self._work(key, [*entries.items()]):
                out[record.path] = _row(record.path, record.image, record.reason, record.presence, self._model)
        return pa.Table.from_pylist([*out.values()], _schema())


def annotate_table(
    model: ModelSource,
    source: str | os.PathLike[str],
    labels: Labels,
    out: str | os.PathLike[str],
    *,
    paths: str = "path",
    content: str | None = None,
    filesystem: Any = None,
    batch_size: int = 1,
    embeddings: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    cluster: Cluster | None = None,
    **options: Unpack[SegmentOptions],
) -> Report:
    """Annotates images wherever they lie on Ray's workers, and writes Parquet with one row per image.

    The images are those of a folder and the folders in it, or those that a Parquet table names in a column, or holds in one.
    They and ``out`` may lie on this machine or in an object store (``s3://``, ``gs://``, ... as ``pyarrow.fs`` knows them).
    Neither pixels nor masks pass through this process, and it holds no model. A broken image costs one row.

    A run that was stopped continues with the images that have no row yet, by their names; files that changed are not noticed.
    Two runs must not write to one place at a time. Columns:

    - ``path``: the image's name: relative to the folder, or as in the table, without scheme and first slash.
    - ``height``, ``width``: int32, pixels, EXIF rotation applied; null when the image failed.
    - ``status``: ``done``, ``empty`` (nothing was found) or ``failed``; ``reason``: why it failed, else empty.
    - ``objects``: a list of structs of ``label``, ``score`` in [0, 1], ``bbox`` (xywh, pixels), ``area`` (pixels) and
      ``segmentation``, COCO's run lengths (``size`` (H, W), ``counts`` a string).
    - ``presence``: a list of structs of ``label`` and ``value`` in [0, 1], one per label; ``model``: a hash of the model.

    Args:
        model: a function that makes the model on a worker, or a model, which is sent to them.
        source: a folder, or a Parquet file that ends in ``.parquet``.
        labels, embeddings, overwrite, retry_failed: as for :func:`text2sam.annotate.job.annotate`.
        out: the folder for the Parquet files.
        paths: the column of a table that names the images.
        content: the column of a table that holds the image files themselves, as bytes.
        filesystem: a ``pyarrow.fs.FileSystem`` that ``source`` and ``out`` belong to; None goes by their schemes.
        batch_size: the most images that CLIP encodes at once. With more than 1 the last bits of results may depend on which
            images come together.
        cluster: where workers run.
        **options: ``strategy``, ``method``, ``tiles`` and ``max_objects`` of ``TextPromptedSAM.segment``.

    Returns:
        The report, which is also in ``OUT/_report.json``.

    Raises:
        InputError: an argument is not usable, there are no images, or ``out`` holds a run with other settings.
        MissingDependencyError: Ray is not installed.
        Text2SamError: the source cannot be read, workers keep dying or have different models, or Ray failed.
    """
    started = time.perf_counter()
    wanted, how_to = label_set(labels), Options.of(options)
    check_number("batch_size", batch_size, 1, whole=True)
    need_ray()
    (origin, start), (store, place) = (place_of(os.fspath(path), filesystem) for path in (source, out))
    table = start.lower().endswith(".parquet")
    columns = [paths, *([content] if content else [])] if table else ["path", "bytes"]
    _check_source(origin, start, columns if table else ())
    _begin(store, place, {**settings_of(wanted, how_to), "batch_size": batch_size}, overwrite)
    before = _rows(store, place, _OUTCOME)
    finished = frozenset(path for path, row in before.items() if not (retry_failed and row["status"] == "failed"))
    job = Job(
        source=model,
        labels=wanted,
        options=how_to,
        embeddings=None if embeddings is None else Path(embeddings).absolute(),
        model=next((row["model"] for row in before.values()), ""),
        threads=1,  # the number of cores must not show in the results
        columns=columns,
        root="" if table else start,
        finished=finished,
    )
    with hands(cluster or Cluster(), job, MOST_ROWS) as (ray, how):
        if table:
            data = ray.data.read_parquet(start, filesystem=origin, **_free(ray.data.read_parquet))
            data = data.select_columns(columns, **_free(data.select_columns))
        else:
            kinds = [suffix[1:] for suffix in suffixes()]
            how_to_read = {"include_paths": True, "file_extensions": kinds, **_free(ray.data.read_binary_files)}
            data = ray.data.read_binary_files(start, filesystem=origin, **how_to_read)
        done = data.map_batches(TableHand, batch_size=batch_size, **how)
        done.write_parquet(place, filesystem=store, **_free(done.write_parquet))
    after, seconds = _rows(store, place, _OUTCOME), time.perf_counter() - started
    if len({row["model"] for row in after.values()}) > 1:
        raise Text2SamError("workers had different models; all need the same weights, settings and kind of device")
    fresh = Counter(row["status"] for path, row in after.items() if path not in finished)
    objects = Counter(thing["label"] for row in after.values() for thing in row["objects"])
    report = Report(
        done=fresh["done"],
        empty=fresh["empty"],
        failed=tuple(Failure(path, row["reason"]) for path, row in after.items() if row["status"] == "failed"),
        skipped=sum(after[path]["status"] != "failed" for path in finished),
        objects={label: objects[label] for label in wanted.names},
        seconds=seconds,
        images_per_second=sum(fresh.values()) / seconds,
    )
    with store.open_output_stream(f"{place}/{_REPORT}") as stream:
        stream.write(json.dumps(report.to_json(), indent=2).encode())
    return report


def _check_source(origin: Any, start: str, columns: Sequence[str]) -> None:
    """Raises InputError when there is no such folder, or no table with these columns."""
    try:
        if origin.get_file_info(start).type.name == "NotFound":
            raise InputError(f"there is no {'table' if columns else 'folder'} {start!r}")
        if columns:
            with _parquet(origin, start) as table:
                known = table.schema_arrow.names
    except InputError:
        raise
    except Exception as error:  # pyarrow raises OSError, ValueError and others
        raise InputError(f"{start!r} cannot be read: {first_line(error)}") from error
    for column in columns:
        if column not in known:
            raise InputError(f"{start!r} has no column {column!r}; it has {', '.join(known)}")


@contextlib.contextmanager
def _parquet(filesystem: Any, path: str) -> Iterator[Any]:
    """A Parquet file, open.

    Files with extension types are refused before they are opened: such types run code of whoever registered them, Ray among
    others, whose code unpickles.
    """
    import pyarrow.parquet as pq

    with filesystem.open_input_file(path) as file:
        size = file.size()
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > min(size - 8, _LARGEST_FOOTER):
            raise InputError(f"{path!r} is no Parquet file, or was not written to its end")
        file.seek(size - 8 - length)
        footer = file.read(length)
        if any(key in footer for key in _EXTENSION):
            raise InputError(f"{path!r} has columns of extension types, which are not read; write it with plain types")
        file.seek(0)
        with pq.ParquetFile(file) as parquet:
            yield parquet


def _free(function: Any) -> dict[str, Any]:
    """The argument by which a task of Ray Data waits for no core: the workers may have taken all."""
    named = "num_cpus" in inspect.signature(function).parameters
    return {"num_cpus": 0} if named else {"ray_remote_args": {"num_cpus": 0}}


def read_table(table: str | os.PathLike[str], *, filesystem: Any = None) -> Iterator[AnnotatedImage]:
    """The annotated images of what :func:`annotate_table` wrote, sorted by path, for :func:`text2sam.export.formats.export`.

    Rows of failed images are left out.

    Raises:
        InputError: there is no table, it is damaged, or it holds something else.
        MissingDependencyError: Ray is not installed.
    """
    need_ray()
    rows = _rows(*place_of(os.fspath(table), filesystem))
    if not rows:
        raise InputError(f"there is no table of annotated images in {os.fspath(table)!r}")
    for path, row in sorted(rows.items()):
        try:
            size = (row["height"], row["width"])
            things = [(o["label"], o["segmentation"]["counts"], o["score"]) for o in row["objects"]]
            if row["status"] != "failed":
                objects = tuple(AnnotatedObject(label, size, counts, score) for label, counts, score in things)
                yield AnnotatedImage(path, *size, objects)
        except (InputError, LookupError, TypeError) as error:
            raise InputError(f"the row of {path!r:.200} is no annotated image: {error}") from error


def _tables(store: Any, place: str) -> list[str]:
    from pyarrow import fs

    if place.lower().endswith(".parquet"):
        return [place]
    files = store.get_file_info(fs.FileSelector(place, allow_not_found=True))
    return sorted(file.path for file in files if file.path.endswith(".parquet"))


def _begin(store: Any, place: str, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Takes a place for a run with these settings; removes tables that are to be overwritten, or not written to their end."""
    store.create_dir(place, recursive=True)
    given = json.loads(json.dumps(settings))
    before: dict[str, Any] = {}
    try:
        with store.open_input_stream(f"{place}/{_SETTINGS}") as stream:
            before = json.loads(stream.read())
    except (OSError, ValueError):
        before = {} if _tables(store, place) else given
    changed = [] if overwrite else differences(before, given)
    if changed:
        raise InputError(
            f"{place!r} holds a run with other settings: {'; '.join(changed[:6])}; give another place, or overwrite=True to "
            "discard it"
        )
    for file in _tables(store, place):
        try:
            with _parquet(store, file) as table:
                whole = not overwrite and bool(table.metadata)
        except Exception:  # pyarrow raises OSError, ValueError and others
            whole = False
        if not whole:
            store.delete_file(file)
    with store.open_output_stream(f"{place}/{_SETTINGS}") as stream:
        stream.write(json.dumps(given, indent=2).encode())


def _rows(store: Any, place: str, columns: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """The rows of all tables by path, all columns or some; of several rows of an image the one that did not fail."""
    rows: dict[str, dict[str, Any]] = {}
    for file in _tables(store, place):
        try:
            with _parquet(store, file) as parquet:
                table = parquet.read(columns=columns or _schema().names)
            table.validate(full=True)  # offsets from outside, which compiled code would trust
            found = {row["path"]: row for row in table.to_pylist()}
        except InputError:
            raise
        except Exception as error:  # pyarrow raises OSError, ValueError and others
            raise InputError(f"{file!r} is no table of annotated images: {first_line(error)}") from error
        rows |= {path: row for path, row in found.items() if path not in rows or rows[path]["status"] == "failed"}
    return rows


def _row(path: str, image: AnnotatedImage | None, reason: str, presence: Mapping[str, float], model: str) -> dict[str, Any]:
    objects = [
        {"label": o.label, "score": float(o.score), "bbox": list(o.bbox), "area": o.area, "segmentation": o.rle}
        for o in (image.objects if image is not None else ())
    ]
    return {
        "path": path.encode("utf-8", "backslashreplace").decode(),
        "height": None if image is None else image.height,
        "width": None if image is None else image.width,
        "status": "failed" if image is None else "done" if objects else "empty",
        "reason": reason.encode("utf-8", "backslashreplace").decode(),
        "objects": objects,
        "presence": [{"label": label, "value": float(value)} for label, value in presence.items()],
        "model": model,
    }


def _schema() -> Any:
    import pyarrow as pa

    number, text = pa.int32(), pa.string()
    rle = pa.struct([("size", pa.list_(number)), ("counts", text)])
    bbox, area = ("bbox", pa.list_(number)), ("area", pa.int64())
    thing = pa.struct([("label", text), ("score", pa.float64()), bbox, area, ("segmentation", rle)])
    presence = pa.struct([("label", text), ("value", pa.float64())])
    plain = [("path", text), ("height", number), ("width", number), ("status", text), ("reason", text)]
    return pa.schema([*plain, ("objects", pa.list_(thing)), ("presence", pa.list_(presence)), ("model", text)])
