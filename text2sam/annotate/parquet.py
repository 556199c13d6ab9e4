"""Images that lie in an object store or a table: Ray Data reads them and writes Parquet, Ray's workers annotate in between."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from text2sam.annotate.journal import differences
from text2sam.annotate.labels import Labels, label_set
from text2sam.annotate.ray import Hand, Job, first_line, hands, need_ray
from text2sam.annotate.sources import ImageItem, suffixes
from text2sam.annotate.worker import ModelSource, settings_of
from text2sam.checks import check_number
from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.options import Options, SegmentOptions


def annotate_table(
    model: ModelSource,
    source: Any,
    labels: Labels,
    out: str | os.PathLike[str],
    *,
    batch_size: int = 1,
    workers: int | None = None,
    num_gpus: float | None = None,
    **options: Unpack[SegmentOptions],
) -> dict[str, int]:
    """Annotates images wherever they lie on Ray's workers, and writes Parquet with one row per image.

    ``source`` and ``out`` may lie on this machine or in an object store (``s3://``, ``gs://``, ... as ``pyarrow.fs`` knows
    them). Pixels and masks do not pass through this process, and it holds no model. A broken image costs one row.

    A run that was stopped continues with the images that have no row yet, by their names, and tries those again that failed.
    Two runs must not write to one place at a time. Columns:

    - ``path``: the image's name: relative to the folder, or as in the dataset, without scheme and first slash.
    - ``height``, ``width``: int32, pixels, EXIF rotation applied; null when the image failed.
    - ``status``: ``done``, ``empty`` (nothing was found) or ``failed``; ``reason``: why it failed, else empty.
    - ``objects``: a list of structs of ``label``, ``score`` in [0, 1], ``bbox`` (xywh, pixels), ``area`` (pixels) and
      ``segmentation``, COCO's run lengths (``size`` (H, W), ``counts`` a string).
    - ``presence``: a list of structs of ``label`` and ``value`` in [0, 1], one per label.
    - ``model``: a hash of the model; ``settings``: labels and options, in JSON.

    Args:
        model: a function that makes the model on a worker, or a model, which is sent to them.
        source: a folder, with the folders in it, or a ``ray.data.Dataset`` with the columns ``path`` and ``bytes``, an image
            file's content.
        labels: as for :func:`text2sam.annotate.job.annotate`.
        out: the folder for the Parquet files.
        batch_size: the most images that CLIP encodes at once. With more than 1 the last bits of results may depend on which
            images come together.
        workers, num_gpus: as for :func:`text2sam.annotate.ray.ray_engine`; without ``num_gpus`` a worker has a GPU where the
            cluster has any.
        **options: ``strategy``, ``method``, ``tiles`` and ``max_objects`` of ``TextPromptedSAM.segment``.

    Returns:
        How many images of the table have each status.

    Raises:
        InputError: an argument is not usable, or ``out`` holds a run with other labels or settings.
        MissingDependencyError: Ray is not installed.
        Text2SamError: the source cannot be read, workers keep dying or have different models, or Ray failed.
    """
    need_ray()
    wanted, how_to = label_set(labels), Options.of(options)
    check_number("batch_size", batch_size, 1, whole=True)
    settings = json.dumps({**settings_of(wanted, how_to), "batch_size": batch_size})
    origin, root = _place(source) if isinstance(source, (str, os.PathLike)) else (None, "")
    store, place = _place(out)
    finished, before = set(), ""
    for row in _rows(store, place, ("path", "status", "model", "settings")):
        if row["settings"] != settings:
            changed = differences(json.loads(row["settings"] or "{}"), json.loads(settings))
            raise InputError(f"{place!r} holds a run with other settings: {'; '.join(changed[:6])}; give another place")
        finished.update([row["path"]] if row["status"] != "failed" else [])
        before = row["model"]
    job = Job(model, wanted, how_to, model=before, root=root, finished=frozenset(finished), settings=settings)
    with hands(job, workers, num_gpus) as (ray, work):
        if origin is not None:
            kinds = [suffix[1:] for suffix in suffixes()]
            # no core is asked for, as the workers may have taken all of them
            reading: dict[str, Any] = {"include_paths": True, "file_extensions": kinds, "num_cpus": 0}
            source = ray.data.read_binary_files(root, filesystem=origin, **reading)
        work(source, _TableHand, batch_size).write_parquet(place, filesystem=store, ray_remote_args={"num_cpus": 0})
    # of several rows of an image one that did not fail counts
    rows = sorted(_rows(store, place, ("path", "status")), key=lambda row: row["status"] != "failed")
    return dict(Counter({row["path"]: row["status"] for row in rows}.values()))


def read_table(table: str | os.PathLike[str]) -> Iterator[AnnotatedImage]:
    """The annotated images of what :func:`annotate_table` wrote, sorted by path, for :func:`text2sam.export.formats.export`.

    Failed images, and files that a run that was killed did not write to their end, are left out.

    Raises:
        InputError: there is no table, it is damaged, or it holds something else.
        MissingDependencyError: Ray is not installed.
    """
    need_ray()
    rows = {row["path"]: row for row in _rows(*_place(table)) if row["status"] != "failed"}
    if not rows:
        raise InputError(f"there is no table of annotated images in {os.fspath(table)!r}")
    for path in sorted(rows, key=str):
        row = rows[path]
        try:
            size = (row["height"], row["width"])
            things = [(thing["label"], thing["segmentation"]["counts"], thing["score"]) for thing in row["objects"]]
            yield AnnotatedImage(path, *size, tuple(AnnotatedObject(label, size, *rest) for label, *rest in things))
        except (InputError, LookupError, TypeError) as error:
            raise InputError(f"the row of {path!r:.200} is no annotated image: {error}") from error


class _TableHand(Hand):
    """A worker for tables: rows that hold images in, annotated rows out."""

    def _rows(self, rows: Any) -> Any:
        import pyarrow as pa

        out: dict[str, dict[str, Any]] = {}
        items: dict[str, ImageItem] = {}  # a name that comes twice counts once
        paths, contents = (rows.column(name).to_pylist() for name in ("path", "bytes"))
        with tempfile.TemporaryDirectory(prefix="text2sam-", ignore_cleanup_errors=True) as folder:
            for number, (path, content) in enumerate(zip(paths, contents, strict=True)):
                name = str(path).split("://", 1)[-1].removeprefix(self._job.root).removeprefix("./").lstrip("/")
                if name in self._job.finished:
                    continue
                file = Path(folder, str(number))
                file.write_bytes(content or b"")
                try:
                    items[name] = ImageItem(name, file)  # checks the name
                except InputError as error:
                    out[name] = self._row(name, None, str(error), {})
            for record in self._records("\0".join(items), [*items.values()]) if items else ():
                out[record.path] = self._row(record.path, record.image, record.reason, record.presence)
        return pa.Table.from_pylist([*out.values()], _schema())

    def _row(self, path: str, image: AnnotatedImage | None, reason: str, presence: Mapping[str, float]) -> dict[str, Any]:
        objects = [
            {"label": o.label, "score": float(o.score), "bbox": list(o.bbox), "area": o.area, "segmentation": o.rle}
            for o in (() if image is None else image.objects)
        ]
        return {
            "path": path,
            "height": None if image is None else image.height,
            "width": None if image is None else image.width,
            "status": "failed" if image is None else "done" if objects else "empty",
            "reason": reason,
            "objects": objects,
            "presence": [{"label": label, "value": float(value)} for label, value in presence.items()],
            "model": self._model,
            "settings": self._job.settings,
        }


def _schema() -> Any:
    import pyarrow as pa

    number, text, real, numbers = pa.int32(), pa.string(), pa.float64(), pa.list_(pa.int32())
    rle = pa.struct({"size": numbers, "counts": text})
    thing = pa.struct({"label": text, "score": real, "bbox": numbers, "area": pa.int64(), "segmentation": rle})
    presence = pa.struct({"label": text, "value": real})
    plain = {"path": text, "height": number, "width": number, "status": text, "reason": text}
    return pa.schema({**plain, "objects": pa.list_(thing), "presence": pa.list_(presence), "model": text, "settings": text})


def _place(address: str | os.PathLike[str]) -> tuple[Any, str]:
    """The file system and the path in it that an address means."""
    from pyarrow import fs

    text = os.fspath(address)
    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(text if "://" in text else os.path.abspath(text))
    except Exception as error:  # OSError, ValueError and others
        raise InputError(f"{text!r} cannot be reached: {first_line(error)}") from error
    return found


def _rows(store: Any, place: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of all tables in a place; none where there is no place."""
    from pyarrow import dataset

    try:
        tables = dataset.dataset(place, _schema(), "parquet", filesystem=store, exclude_invalid_files=True)
        for batch in tables.to_batches(columns=columns and [*columns], batch_size=1024):
            batch.validate(full=True)  # offsets from outside, which compiled code would trust
            yield from batch.to_pylist()
    except FileNotFoundError:
        return
    except Exception as error:  # pyarrow raises OSError, ValueError and others
        raise InputError(f"{place!r} holds no table of annotated images: {first_line(error)}") from error
