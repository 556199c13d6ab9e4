"""``text2sam evaluate TASK DATASET``: measures several methods on the same encodings of each image.

    document = measure(surgery, open_dataset("voc", root), Settings("semantic", ("architecture", "sclip")), out=Path("r.json"))

A journal beside ``out`` stores the measurements of each image, so a killed run resumes and gives the same figures. Images that
cannot be read are listed in the report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from text2sam import __version__
from text2sam.annotate.journal import Journal
from text2sam.clip.generator import ClipSurgery
from text2sam.errors import ImageError, InputError, OutputError, Text2SamError, one_line
from text2sam.files import write_json
from text2sam.fingerprint import fingerprint
from text2sam.lab.datasets import Dataset
from text2sam.lab.output import track
from text2sam.lab.runner.models import ModelInfo, build_sam, build_surgery
from text2sam.lab.runner.published import published_for
from text2sam.lab.runner.settings import BOOTSTRAP_SEED, RULES, SOURCES, Settings
from text2sam.lab.runner.tasks import TASKS, Task
from text2sam.zoo.download import file_sha256

__all__ = ["ModelInfo", "Settings", "build_sam", "build_surgery", "measure"]


def measure(
    surgery: ClipSurgery,
    dataset: Dataset,
    settings: Settings,
    *,
    model: ModelInfo | None = None,
    iclip: Path | None = None,
    predictor: Any = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures a task on a data set.

    Args:
        surgery, dataset, settings: what is measured.
        model: identity of the CLIP; published figures are shown only for a known model.
        iclip: file of trained projections, for the method ``"iclip"``.
        predictor: the SAM, if the settings need it.
        out: JSON file for the result; the journal beside it lets a killed run resume.
        overwrite: delete the journal first.
        progress: show a progress bar.

    Returns:
        JSON-ready: ``figures`` by method (see :mod:`text2sam.lab.runner.tasks`), ``published`` figures for the same setting,
        ``images`` (``measured``, ``failed``), ``failed`` (id and reason), ``seconds`` per image by part (``mean``, ``median``),
        ``memory`` (peaks in bytes, None if unknown), ``untrained``, ``rules`` (definitions of the figures), and all that the
        figures depend on: ``dataset``, ``model``, ``sam``, ``iclip``, ``settings``, ``methods`` with their sources, ``seeds``,
        ``versions``, ``machine``.

    Raises:
        InputError: settings, data set and journal do not fit together, or no image can be read.
        OutputError: ``out`` or the journal cannot be written.
        PromptError, UnsupportedModelError, MissingDependencyError, WeightsError: as
            :class:`~text2sam.lab.runner.tasks.Task`.
    """
    if out is not None and out.is_dir():
        raise OutputError(f"cannot write {str(out)!r}: it is a folder; give the name of a file")
    info = model or ModelInfo()
    dataset.require(settings.truth)
    if ("iclip" in settings.methods) != (iclip is not None):
        raise InputError("the method 'iclip' and its weights (--iclip FILE) go together; one of the two is missing")
    task = TASKS[settings.task](surgery, dataset, settings, iclip, predictor)
    described = _describe(surgery, info)
    kind, module = type(predictor), getattr(predictor, "model", None)
    weights = fingerprint(module) if isinstance(module, torch.nn.Module) else None
    sam = None if predictor is None else {"predictor": f"{kind.__module__}.{kind.__qualname__}", "fingerprint": weights}
    key = {
        "measuring": settings.measuring(),
        "dataset": {k: v for k, v in dataset.describe().items() if k not in ("title", "root", "homepage", "tasks")},
        "model": described,
        "iclip": None if iclip is None else file_sha256(iclip),
        "sam": sam,
        "versions": {"text2sam": __version__, "torch": _versions()["torch"]},
    }
    with Journal(None if out is None else journal_path(out), key, overwrite=overwrite) as journal:
        _measure(task, dataset, journal, progress)
        with _reading(journal):
            done, failed, seconds = _collect(dataset, journal)
            figures = {}
            for method in settings.methods if done else ():
                figures[method] = task.figures(method, (journal.read(key)["kept"] for key in done))
    if not done:
        raise InputError(f"no image of {dataset.title} can be read; the first error: {failed[0]['reason']}")
    published = published_for(dataset, settings, info, surgery)
    result = {
        "untrained": info.untrained,
        "figures": figures,
        "published": {m: {name: dataclasses.asdict(figure) for name, figure in by.items()} for m, by in published.items()},
        "images": {"measured": len(dataset) - len(failed), "failed": len(failed)},
        "failed": failed,
        "seconds": seconds,
        "memory": _memory(surgery),
        "rules": RULES[settings.task],
        "methods": {method: {"source": SOURCES[settings.task][method]} for method in settings.methods},
        "settings": settings.to_json(),
        "seeds": {
            "subset": dataset.options.get("subset_seed"),
            "bootstrap": BOOTSTRAP_SEED,
            "weights": info.weights_seed,
        },
        "dataset": dataset.describe(),
        "model": described,
        "sam": sam,
        "iclip": None if iclip is None else {"file": iclip.name, "sha256": key["iclip"]},
        "versions": _versions(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "gpu": torch.cuda.get_device_name(surgery.device) if surgery.device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
        },
    }
    if out is not None:
        write_json(out, result)
    return result


def journal_path(out: Path) -> Path:
    """The journal of a run with the result file ``out``."""
    return out.with_name(f"{out.name}.journal")


def key_of(name: str) -> str:
    """The key of an image in the journal; its name may have bytes that are not Unicode."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _measure(task: Task, dataset: Dataset, journal: Journal, progress: bool) -> None:
    """Measures the images that are not in the journal, and those that failed."""
    keys = [key_of(name) for name in dataset.ids]
    with _reading(journal):
        left = [place for place, key in enumerate(keys) if key not in journal or "failed" in journal.read(key)]
    for place in track(left, dataset.title, progress):
        sample, surgery = dataset[place], task.surgery
        surgery.forget()
        started = time.perf_counter()
        try:
            with surgery.part("read"):
                task.read(sample)
        except (ImageError, InputError) as error:
            journal.append(key_of(sample.id), {"failed": one_line(str(error))})
            continue
        kept = task.measure(sample)
        seconds = {**surgery.seconds, "image": time.perf_counter() - started}
        journal.append(key_of(sample.id), {"kept": kept, "seconds": {name: round(s, 6) for name, s in seconds.items()}})
    task.surgery.forget()


@contextlib.contextmanager
def _reading(journal: Journal) -> Iterator[None]:
    """Says so if the journal holds something else than the measurements of this version."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if journal.path is None or isinstance(error, Text2SamError):
            raise
        raise InputError(
            f"{os.fspath(journal.path)!r} was damaged, or written by another version of text2sam; give another place for the "
            "output, or overwrite=True (--overwrite) to discard it"
        ) from error


def _collect(dataset: Dataset, journal: Journal) -> tuple[list[str], list[dict[str, str]], dict[str, dict[str, float]]]:
    """Keys of the measured images in the order of the data set, the failures, and the seconds by part."""
    done: list[str] = []
    failed: list[dict[str, str]] = []
    seconds: dict[str, list[float]] = {}
    for name in dataset.ids:
        value = journal.read(key_of(name))
        if "failed" in value:
            failed.append({"id": name, "reason": value["failed"]})
            continue
        done.append(key_of(name))
        for part, spent in value["seconds"].items():
            seconds.setdefault(part, []).append(spent)
    return (
        done,
        failed,
        {
            part: {"mean": round(statistics.fmean(spent), 6), "median": round(statistics.median(spent), 6)}
            for part, spent in seconds.items()
        },
    )


def _describe(surgery: ClipSurgery, info: ModelInfo) -> dict[str, Any]:
    templates = list(surgery.prompts.templates)
    weight = next(surgery.model.visual.parameters())
    return {
        **dataclasses.asdict(info),
        "fingerprint": surgery.fingerprint(),
        "image_size": list(surgery.image_size),
        "scales": list(surgery.scales),
        "depth": surgery.depth,
        "tau": surgery.tau,
        "weighting": surgery.weighting,
        "templates": len(templates),
        "templates_sha256": hashlib.sha256(json.dumps(templates).encode()).hexdigest(),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": surgery.device.type,
    }


def _versions() -> dict[str, str]:
    import open_clip

    return {
        "text2sam": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "open_clip": str(open_clip.__version__),
        "numpy": np.__version__,
    }


def _memory(surgery: ClipSurgery) -> dict[str, int | None]:
    process = None
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        process = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
    cuda = surgery.device.type == "cuda"
    return {"process": process, "cuda": int(torch.cuda.max_memory_allocated(surgery.device)) if cuda else None}
