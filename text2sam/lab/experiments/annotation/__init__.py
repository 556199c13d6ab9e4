"""``text2sam evaluate annotation``: a trial of the folder job with drawn scenes, hostile files and kills.

``text2sam annotate`` runs in a process of its own; SIGKILL stops it several times, also while it writes the dataset, and each
time it is started again. Then the :data:`CHECKS` are made without code of the job, and the masks are compared with the true
masks by ``text2sam evaluate dataset``.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam import __version__
from text2sam.annotate.journal import STATE
from text2sam.errors import one_line
from text2sam.files import write_text
from text2sam.lab.experiments import dataset
from text2sam.lab.experiments.annotation.folder import SEED, draw_folder
from text2sam.lab.experiments.annotation.kills import run
from text2sam.lab.experiments.hostile import CANARY, saved
from text2sam.tables import aligned

CHECKS: Mapping[str, str] = {
    "killed_as_asked": "killed as often as requested",
    "identical_to_undisturbed": "dataset identical to that of an undisturbed run",
    "pictures_once": "every image in the dataset once, in its upright size",
    "hostile_once": "every hostile file among the failures once, and nothing else",
    "counts_add_up": "done, empty and skipped add up to the number of images",
    "labelme_reads_the_same": "labelme reads the same masks as pycocotools",
    "nothing_was_run": "no payload of a hostile file was executed",
}
"""Name of a check in the JSON -> its text."""


def problems(
    folder: Path,
    pictures: Sequence[str],
    hostile: Sequence[str],
    killed: Mapping[str, Any],
    alone: Mapping[str, Any],
    kills: int,
) -> dict[str, list[str] | None]:
    """Each of :data:`CHECKS` -> the reasons why it fails; None if labelme is not installed.

    Args:
        folder: the folder of :func:`draw_folder`, with the datasets ``dataset`` and ``undisturbed``.
        pictures, hostile: the paths that it returned.
        killed, alone: the results of :func:`run` for both.
        kills: the number that was asked for.
    """
    files, expected = dataset_files(folder / "dataset"), dataset_files(folder / "undisturbed")
    coco, truth = (read_coco(folder / name) for name in ("dataset/coco/annotations.json", "truth.json"))
    sizes, true_sizes = (Counter((i["file_name"], i["height"], i["width"]) for i in c.dataset["images"]) for c in (coco, truth))
    reports, planted = (killed["report"], alone["report"]), Counter(hostile)
    failures = [Counter(failure["path"] for failure in report["failed"]) for report in reports]
    counts = [(sum(report[k] for k in ("done", "empty", "skipped")), report["images"]) for report in reports]
    done = sum(record["end"] != "finished" for record in killed["starts"])
    return {
        "killed_as_asked": [] if done == kills else [f"{done} times"],
        "identical_to_undisturbed": sorted(n for n in files.keys() | expected if files.get(n) != expected.get(n)),
        "pictures_once": sorted(str(entry) for entry in (sizes - true_sizes) + (true_sizes - sizes)),
        "hostile_once": [path for own in failures for path in sorted((own - planted) + (planted - own))],
        "counts_add_up": [f"{c} of {n} images" for c, n in counts if (c, n) != (len(pictures), len(pictures) + len(hostile))],
        "labelme_reads_the_same": labelme_differences(folder / "dataset" / "labelme", folder / "images", coco),
        "nothing_was_run": [str(path) for path in (folder / CANARY, Path(CANARY)) if path.exists()],
    }


def dataset_files(out: Path) -> dict[str, bytes]:
    """File name -> content of every file of a dataset except the job's state."""
    files = {path.relative_to(out): path for path in out.rglob("*") if not path.is_dir()}
    return {name.as_posix(): path.read_bytes() for name, path in files.items() if name.parts[0] != STATE}


def read_coco(path: Path) -> Any:
    """A COCO file as pycocotools reads it."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(os.fspath(path))


def labelme_differences(out: Path, root: Path, coco: Any) -> list[str] | None:
    """Images whose label files in ``out`` do not have the objects of the COCO file; None if labelme is not installed."""
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    left = {record["file_name"]: record["id"] for record in coco.dataset["images"]}
    different = []
    with contextlib.suppress(ImportError), labelme_reader() as (read, paint):
        for path in sorted(out.resolve().rglob("*.json")):
            content = json.loads(path.read_bytes())
            name = Path(os.path.relpath(path.parent / content["imagePath"], root.resolve())).as_posix()
            # a blank image of the same size, since labelme cannot open CMYK and 16-bit grey
            blank = saved(Image.new("L", (content["imageWidth"], content["imageHeight"])), "PNG")
            copy = write_text(
                out.with_name("copy.json"), json.dumps({**content, "imageData": base64.b64encode(blank).decode()})
            )
            shapes = read(os.fspath(copy)).shapes
            copy.unlink()
            entries = coco.loadAnns(sorted(coco.getAnnIds(imgIds=[left.pop(name)]))) if name in left else [None]
            same = [entry and names[entry["category_id"]] for entry in entries] == [shape["label"] for shape in shapes]
            for entry, shape in zip(entries, shapes, strict=True) if same else ():
                mask = coco.annToMask(entry).astype(bool)
                same = same and shape["shape_type"] == "mask" and np.array_equal(paint(shape, mask.shape), mask)
            different += [] if same else [name]
        return different + sorted(left)
    return None


@contextlib.contextmanager
def labelme_reader() -> Iterator[tuple[Callable[[str], Any], Callable[[Any, tuple[int, ...]], NDArray[np.bool_]]]]:
    """labelme, without its changes to the process.

    Yields:
        Two functions: label file -> an object with ``image_data`` and ``shapes``; (shape, (H, W)) -> its mask, bool.

    Raises:
        ImportError: labelme or a system library that it needs is not installed.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        import labelme

        if hasattr(labelme, "LabelFile"):
            read, to_label = labelme.LabelFile, labelme.utils.shapes_to_label
        else:  # labelme 7 has private names and keyword arguments
            from labelme import _label_file, _utils

            read, to_label = (
                lambda path: _label_file.read_label_file(filename=path),
                lambda size, shapes, ids: _utils.shapes_to_label(img_shape=size, shapes=shapes, label_name_to_value=ids),
            )
    finally:
        Image.MAX_IMAGE_PIXELS = limit  # labelme removes the guard against decompression bombs
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            from loguru import logger

            logger.disable("labelme")
            stack.callback(logger.enable, "labelme")
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", ResourceWarning)  # labelme leaves images open
        yield read, lambda shape, size: to_label(size, [shape], {shape["label"]: 1})[1] == 1


def measure(folder: Path, scenes: int, hostile: int, kills: int, *, progress: bool = False) -> dict[str, Any]:
    """Draws a folder, runs the command with and without kills, and checks the dataset.

    Args:
        folder: new or empty; it will hold ``images``, ``labels.yaml``, ``truth.json``, ``dataset`` and ``undisturbed``.
        scenes, hostile, kills: their numbers.
        progress: show a progress bar.

    Returns:
        JSON-ready: ``text2sam`` (version), ``settings``, ``checks`` (None: not checked), ``differences`` (the reasons of failed
        checks), ``killed`` and ``undisturbed`` (see :func:`run`), ``dataset`` (see :func:`dataset.report`).

    Raises:
        Text2SamError: the command failed; and the errors of :func:`draw_folder`.
    """
    pictures, planted = draw_folder(folder, scenes, hostile, progress=progress)
    killed = run(folder, folder / "dataset", kills=kills)
    alone = run(folder, folder / "undisturbed")
    reasons = problems(folder, pictures, planted, killed, alone, kills)
    return {
        "text2sam": __version__,
        "settings": {"scenes": scenes, "hostile": hostile, "kills": kills, "seed": SEED},
        "checks": {name: None if failed is None else not failed for name, failed in reasons.items()},
        "differences": {name: failed[:50] for name, failed in reasons.items() if failed},
        "killed": killed,
        "undisturbed": alone,
        "dataset": dataset.report(folder / "dataset" / "coco" / "annotations.json", folder / "truth.json"),
    }


def table(result: dict[str, Any]) -> str:
    """The result of :func:`measure` as text."""
    checks = [[text, {True: "yes", False: "NO", None: "-"}[result["checks"][name]]] for name, text in CHECKS.items()]
    killed, alone = result["killed"], result["undisturbed"]
    ends = "; ".join(f"{record['end']} at {record['batches']} batches" for record in killed["starts"])
    notes = [
        f"{result['settings']['scenes']} scenes, {result['settings']['hostile']} hostile files. {ends}.",
        f"{killed['seconds']:.1f} s with the kills; {alone['seconds']:.1f} s without, "
        f"{alone['report']['images_per_second']:.2f} images/s.",
        *(f"{name}: {', '.join(map(one_line, reasons[:5]))}" for name, reasons in result["differences"].items()),
        f"$ {one_line(killed['command'])}",
    ]
    return "\n".join([aligned(["check", ""], checks), "", *notes, "", dataset.table(result["dataset"])])
