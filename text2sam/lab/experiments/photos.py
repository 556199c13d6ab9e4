"""``text2sam evaluate photos``: compares recipes on annotated photos.

Data: a folder in COCO's format (Lin et al. 2014): ``instances.json``, and the images in ``images/`` or beside it.

The README of the lab describes halves, targets and figures. The names are the categories that
:meth:`~text2sam.clip.protocol.MapGenerator.prepare` of the pair accepts; crowds belong to a target; the bootstrap over photos
draws the same resamples for all recipes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam import __version__
from text2sam.annotate.embeddings import EmbeddingStore
from text2sam.errors import InputError, PromptError
from text2sam.lab.datasets import Dataset
from text2sam.lab.datasets.coco import open_coco
from text2sam.lab.datasets.sample import Sample, unions
from text2sam.lab.metrics import auroc, bootstrap_weights, estimate, finite, weighted_ratio
from text2sam.lab.output import cell, track
from text2sam.pipeline import TextPromptedSAM
from text2sam.presence import presence_scores
from text2sam.recipes import Recipe, get_recipe
from text2sam.recipes.choose import mask_iou
from text2sam.recipes.points import pixels_under
from text2sam.tables import aligned

HALVES = {"tuning": slice(0, None, 2), "reporting": slice(1, None, 2), "all": slice(None)}
SIZES = {"> 5 %": (0.05, 1.01), "1 to 5 %": (0.01, 0.05), "< 1 %": (0.0, 0.01), "> 1 %": (0.01, 1.01)}
"""Name of a range of target sizes -> [low, high) as shares of the image."""

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Presence thresholds whose errors are reported."""


@dataclass(frozen=True)
class Settings:
    """Settings of ``text2sam evaluate photos``.

    Raises:
        InputError: a recipe is unknown or has the name of another.
    """

    half: str = "reporting"  # a key of HALVES
    strategies: tuple[str | Recipe, ...] = ("paper", "objects")  # differences are relative to the first
    photos: int | None = None  # largest number, evenly spaced; None takes all of the half
    resamples: int = 2000
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if not self.strategies or len(self.recipes) < len(self.strategies):
            raise InputError(f"strategies must be at least one recipe, each name once, not {self.strategies!r}")

    @property
    def recipes(self) -> dict[str, Recipe]:
        """The recipes by name."""
        return {recipe.name: recipe for recipe in map(get_recipe, self.strategies)}


def open_photos(folder: Path) -> Dataset:
    """Opens a folder in COCO's format, see :func:`~text2sam.lab.datasets.coco.open_coco`."""
    images = "images" if (folder / "images").is_dir() else "."
    return open_coco(folder, annotations="instances.json", images=images, background=False)


def photos_of(dataset: Dataset, settings: Settings) -> list[int]:
    """Indices of the photos of a half in a data set.

    Raises:
        InputError: there is no photo.
    """
    half = sorted(range(len(dataset)), key=lambda place: dataset.ids[place])[HALVES[settings.half]]
    if not half:
        raise InputError(f"{dataset.root} has no photos for the half {settings.half!r}")
    count = len(half) if settings.photos is None else min(settings.photos, len(half))
    return [half[i * len(half) // count] for i in range(count)]


def known_names(model: TextPromptedSAM, names: Sequence[str]) -> tuple[str, ...]:
    """The names that a pair's map generator accepts."""
    prepare = getattr(model.generator, "prepare", None)
    known = []
    for name in names:
        with contextlib.suppress(PromptError):
            if callable(prepare):
                prepare([name])
            known.append(name)
    return tuple(known)


def measure_photo(
    model: TextPromptedSAM, sample: Sample, names: Sequence[str], settings: Settings, store: EmbeddingStore | None = None
) -> dict[str, Any]:
    """Measures all recipes on one photo, which is encoded once.

    Returns:
        JSON-ready: ``photo``; ``targets``, each with ``name``, ``size``, ``presence``, ``present`` (predicted), ``peak``
        (whether the map's peak is on it) and ``answers``, recipe -> ``iou`` (taken as present), ``answered`` (IoU of the
        result), ``calls`` of SAM and ``seconds``; ``absent``, the presence scores of absent names.
    """
    encoded = store.load(sample.image) if store else None
    if encoded is None:
        [encoded] = model.encode([sample.image], sam=True)
        if store:
            store.save(encoded)
    scores = {name: presence_scores(model.generator, encoded.features, [name], None)[0] for name in names}
    truths = unions(sample.instances)
    targets = []
    for name in names:
        if name not in truths or not truths[name].any():
            continue
        present, answers, maps = scores[name] >= model.presence_threshold, {}, []
        for strategy, recipe in settings.recipes.items():
            calls, start = model.session.calls, time.perf_counter()
            result = model.segment(encoded, name, strategy=recipe, threshold=0.0)
            maps.append(result.similarity)
            iou = mask_iou(result.mask, truths[name])
            answers[strategy] = {
                "iou": iou,
                "answered": iou if present or recipe.answers_absent else 0.0,
                "calls": model.session.calls - calls,
                "seconds": time.perf_counter() - start,
            }
        at = np.array([maps[0].peak(encoded.shape)], np.float32)
        target = {"name": name, "size": float(truths[name].mean()), "presence": scores[name], "present": present}
        targets.append({**target, "peak": bool(truths[name][pixels_under(at, encoded.shape)][0]), "answers": answers})
    absent = {name: score for name, score in scores.items() if name not in truths}
    return {"photo": sample.id, "targets": targets, "absent": absent}


def measure(
    model: TextPromptedSAM,
    dataset: Dataset,
    settings: Settings,
    *,
    embeddings: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures all photos of a half; encoded photos are cached in the folder ``embeddings``.

    Returns:
        JSON-ready: ``text2sam`` (version), the figures of :func:`summarize`, ``photos`` (see :func:`measure_photo`), ``names``,
        ``unknown``, ``settings``, ``threshold`` and ``seconds``.

    Raises:
        InputError, ImageError: a file of the folder is invalid, or the pair knows none of the names.
    """
    start = time.perf_counter()
    names = known_names(model, dataset.foreground)
    if not names:
        raise InputError(f"the pair knows none of the names in {dataset.root}: {', '.join(dataset.foreground)}")
    places = photos_of(dataset, settings)
    store = None if embeddings is None else EmbeddingStore(embeddings, model)
    photos = [measure_photo(model, dataset[place], names, settings, store) for place in track(places, "photos", progress)]
    return {
        "text2sam": __version__,
        "settings": {"half": settings.half, "strategies": list(settings.recipes), "seed": settings.seed},
        "names": list(names),
        "unknown": [name for name in dataset.foreground if name not in names],
        "threshold": model.presence_threshold,
        **summarize(photos, settings, model.presence_threshold),
        "photos": photos,
        "seconds": time.perf_counter() - start,
    }


def summarize(photos: Sequence[Mapping[str, Any]], settings: Settings, threshold: float) -> dict[str, Any]:
    """Computes the figures of measured photos, see :func:`measure_photo`.

    Returns:
        - ``rows``: dictionaries with ``figure``, ``recipe`` (``"a - b"`` for a difference, ``""`` for figures of the map) and
          ``sizes``: for each of :data:`SIZES` the mean ``value``, the interval ``low`` to ``high`` (None without a target), and
          the ``count`` of targets.
        - ``auroc``: AUROC of presence for each of the sizes and for ``"all"``.
        - ``false``: share of absent names that are predicted present; ``absent``: number of absent names.
        - ``thresholds``: for each of :data:`THRESHOLDS` the same share as ``false``, and that of targets over 1 % as ``found``.
    """
    units = max(1, len(photos))
    weights = bootstrap_weights(units, settings.resamples, settings.seed)
    weights = np.concatenate([np.ones((1, units), np.int64), weights])
    targets = [target for photo in photos for target in photo["targets"]]
    unit = np.repeat(np.arange(len(photos)), [len(photo["targets"]) for photo in photos])
    size, presence, present, peak = (
        np.array([target[name] for target in targets], np.float64) for name in ("size", "presence", "present", "peak")
    )
    within = {name: (size >= low) & (size < high) for name, (low, high) in SIZES.items()}
    rows: list[dict[str, Any]] = []

    def add(figure: str, recipe: str, values: NDArray[np.float64]) -> None:
        sizes = {}
        for name, of in within.items():
            means = weighted_ratio(np.bincount(unit[of], values[of], units), np.bincount(unit[of], minlength=units), weights)
            sizes[name] = estimate(means[0], means[1:]) | {"count": int(of.sum())}
        rows.append({"figure": figure, "recipe": recipe, "sizes": sizes})

    def of_recipe(recipe: str, key: str) -> NDArray[np.float64]:
        return np.array([target["answers"][recipe][key] for target in targets], np.float64)

    first, *others = settings.recipes
    for figure, key in (("IoU, absent = 0", "answered"), ("IoU, taken as present", "iou")):
        for recipe in settings.recipes:
            add(figure, recipe, of_recipe(recipe, key))
        for recipe in others:
            add(figure, f"{recipe} - {first}", of_recipe(recipe, key) - of_recipe(first, key))
    for recipe in settings.recipes:
        add("calls of SAM", recipe, of_recipe(recipe, "calls"))
    add("peak on the target", "", peak)
    add("predicted present", "", present)
    absent = np.array([score for photo in photos for score in photo["absent"].values()], np.float64)

    def share(scores: NDArray[np.float64], limit: float) -> float | None:
        return float(np.mean(scores >= limit)) if len(scores) else None

    return {
        "rows": rows,
        "auroc": {name: finite(auroc(presence[of], absent)) for name, of in (within | {"all": size >= 0}).items()},
        "false": share(absent, threshold),
        "absent": len(absent),
        "thresholds": [
            {"threshold": limit, "found": share(presence[within["> 1 %"]], limit), "false": share(absent, limit)}
            for limit in THRESHOLDS
        ],
    }


def table(result: Mapping[str, Any]) -> str:
    """The result of :func:`measure` as text."""
    counts = {name: figure["count"] for name, figure in result["rows"][-1]["sizes"].items()}
    head = ("figure", "recipe", *(f"{name} ({count})" for name, count in counts.items()))
    lines = [
        (row["figure"], row["recipe"], *(cell(figure, sign=" - " in row["recipe"]) for figure in row["sizes"].values()))
        for row in result["rows"]
    ]
    scores = {name: "-" if value is None else f"{value:.3f}" for name, value in result["auroc"].items()}
    lines.append(("presence AUROC", "", *(scores[name] for name in counts)))
    note = (
        f"{len(result['photos'])} photos of the half {result['settings']['half']!r}. In brackets: number of targets, and 95 % "
        f"bootstrap intervals over photos. Presence AUROC over all sizes {scores['all']}; {result['false'] or 0:.1%} of "
        f"{result['absent']} absent names predicted present. {len(result['names'])} names; unknown: "
        f"{', '.join(result['unknown']) or 'none'}. {result['seconds']:.0f} s."
    )
    shares = [
        (f"{row['threshold']:.1f}", *("-" if row[key] is None else f"{row[key]:.1%}" for key in ("found", "false")))
        for row in result["thresholds"]
    ]
    errors = aligned(("presence threshold", "targets over 1 % predicted present", "absent names predicted present"), shares)
    return "\n".join([aligned(head, lines), "", errors, "", note])
