"""The four tasks of ``text2sam evaluate``: measurements of an image, and the figures of a data set.

The measurements are scores, pixel counts and curves, JSON-ready and exact, so that a journal can store them. Figures are
computed over the images in the order of the data set, in whatever order they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.clip.attention import CORRCLIP
from text2sam.clip.generator import ClipSurgery, Method
from text2sam.errors import InputError, needed
from text2sam.lab.datasets import Dataset, Sample
from text2sam.lab.metrics import (
    MAP_THRESHOLDS,
    SOFT_SCORES,
    ConfusionMatrix,
    MapSample,
    bootstrap_weights,
    class_average_precisions,
    explainability,
    explainability_samples,
    finite,
    interval,
    map_sample,
    ratio,
    row_means,
    sod_metrics,
    soft_mask_scores,
)
from text2sam.lab.runner.onepass import Clock, OnePass
from text2sam.lab.runner.settings import ENCODED, Settings
from text2sam.pipeline import TextPromptedSAM
from text2sam.tasks._inputs import class_features, parse_labels
from text2sam.tasks.recognition import recognize
from text2sam.tasks.regions import find_regions
from text2sam.tasks.semantic import segment_semantic
from text2sam.types import SimilarityMap

_MOST_DRAWS = 20_000_000
_MOST_RANKED = 2_000_000_000
_CHUNK = 4_000_000


class Task(Protocol):
    """A task on a data set.

    A run calls ``read`` and ``measure`` for each image, ``add`` for the measurements of each image in order, then ``figures``.
    """

    surgery: OnePass

    def read(self, sample: Sample) -> None:
        """Reads the files that ``measure`` needs.

        Raises:
            ImageError, InputError: a file is missing, broken, or contradicts another.
        """

    def measure(self, sample: Sample, clock: Clock) -> dict[str, Any]:
        """The measurements of an image, JSON-ready."""

    def add(self, kept: Mapping[str, Any]) -> None:
        """Adds the measurements of an image."""

    def figures(self, method: str) -> dict[str, Any]:
        """Figures over all added images, JSON-ready; None without a case. ``intervals`` holds (low, high)."""


def build_task(
    surgery: ClipSurgery, dataset: Dataset, settings: Settings, iclip: Path | None = None, predictor: Any = None
) -> Task:
    """The task of the settings.

    Args:
        surgery: the CLIP.
        dataset: a data set with the task's ground truth.
        settings: see :class:`~text2sam.lab.runner.settings.Settings`.
        iclip: file of :meth:`text2sam.tasks.iclip.ICLIP.save`, for the method ``"iclip"``.
        predictor: the SAM, if the settings need it.

    Raises:
        InputError: the data set lacks the ground truth, the settings do not fit it, or the SAM is missing.
        PromptError: the name of a class cannot be used as a text.
        UnsupportedModelError: the image tower does not support a method.
        MissingDependencyError: ``grad-cam`` or ``pysodmetrics`` is needed and not installed.
        WeightsError: the ICLIP file does not fit.
    """
    dataset.require(settings.truth)
    if ("iclip" in settings.methods) != (iclip is not None):
        raise InputError("the method 'iclip' and its weights (--iclip FILE) go together; one of the two is missing")
    if settings.task == "recognition":
        return Recognition(surgery, dataset, settings)
    if settings.task == "semantic":
        return Semantic(surgery, dataset, settings, predictor)
    if settings.task == "camouflage":
        return Camouflage(surgery, dataset, settings)
    return Explainability(surgery, dataset, settings, iclip)


def class_words(dataset: Dataset, names: Sequence[str]) -> dict[str, tuple[str]]:
    """Class -> the text to query, the data set's wording or the name."""
    return {name: (dataset.wording.get(name, name),) for name in names}


class Recognition:
    """Multi-label recognition: scores of every class in every image."""

    def __init__(self, surgery: ClipSurgery, dataset: Dataset, settings: Settings) -> None:
        self.surgery = OnePass(surgery, ())
        self._settings = settings
        self._names = dataset.foreground
        self._words = class_words(dataset, self._names)
        _encode_texts(self.surgery, self._words)
        self._scores: dict[str, list[NDArray[np.float32]]] = {method: [] for method in settings.methods}
        self._truth: list[NDArray[np.bool_]] = []

    def read(self, sample: Sample) -> None:
        _ = sample.image, sample.labels

    def measure(self, sample: Sample, clock: Clock) -> dict[str, Any]:
        with clock.part("methods"):  # one call computes the scores of all methods
            recognition = recognize(self.surgery, self.surgery.encode_image(sample.image), self._words)
        return {
            "labels": [self._names.index(name) for name in sample.labels],
            "scores": {method: recognition.scores[method].tolist() for method in self._settings.methods},
        }

    def add(self, kept: Mapping[str, Any]) -> None:
        for method, rows in self._scores.items():
            rows.append(np.array(kept["scores"][method], np.float32))
        self._truth.append(np.isin(np.arange(len(self._names)), kept["labels"]))

    def figures(self, method: str) -> dict[str, Any]:
        """``map`` in percent, ``classes`` (number of classes that any image shows), ``ap`` by class, ``intervals``."""
        scores, truth = np.stack(self._scores[method]), np.stack(self._truth)
        precisions = class_average_precisions(scores, truth)
        shown = np.isfinite(precisions)
        cheap = self._settings.resamples * truth.shape[0] * int(shown.sum()) <= _MOST_RANKED
        weights = _weights(len(truth), self._settings) if cheap else None
        drawn = {} if weights is None else {"map": 100 * bootstrap_map(scores[:, shown], truth[:, shown], weights)}
        figures = {"map": _percent(precisions[shown].mean() if shown.any() else math.nan)}
        return {
            **figures,
            "classes": int(shown.sum()),
            "ap": {name: _percent(value) for name, value in zip(self._names, precisions, strict=True)},
            "intervals": _intervals(drawn, figures),
        }


def bootstrap_map(
    scores: NDArray[np.floating[Any]], truth: NDArray[np.bool_], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """:func:`~text2sam.lab.metrics.mean_average_precision` for R weightings (R, N) of the images: (R,); NaN without a class."""
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for column, right in zip(scores.T, truth.T, strict=True):
        order = np.argsort(-column, kind="stable")
        values = column[order]
        steps = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
        for start, stop in _chunks(weights):
            counts = weights[start:stop, order]
            true = np.cumsum(counts * right[order], axis=1)[:, steps]  # (r, S)
            seen = np.cumsum(counts, axis=1)[:, steps]
            precision = np.divide(true, seen, out=np.zeros(true.shape), where=seen > 0)
            gained = (precision * np.diff(true, axis=1, prepend=0)).sum(axis=1)
            positives = true[:, -1]
            total[start:stop] += np.divide(gained, positives, out=np.zeros(len(gained)), where=positives > 0)
            classes[start:stop] += positives > 0
    return ratio(total, classes)


class Semantic:
    """Semantic segmentation: pixels by true and by predicted class."""

    def __init__(self, surgery: ClipSurgery, dataset: Dataset, settings: Settings, predictor: Any = None) -> None:
        self.surgery = OnePass(surgery, [method for method in settings.methods if method in ENCODED])
        if settings.needs_sam and predictor is None:
            raise InputError(f"{CORRCLIP} and refine need a SAM; give a predictor")
        self._pair = TextPromptedSAM(predictor, self.surgery) if settings.needs_sam else None
        self._settings = settings
        self._names = dataset.classes
        self._background = dataset.background
        if (settings.background_words or settings.background_threshold is not None) and not dataset.background:
            raise InputError(
                f"{dataset.title} has no class 'background', which background words and threshold need; open it with "
                "background=True (--background) if its reader has that option"
            )
        first = 1 if settings.background_words else 0
        self._words = class_words(dataset, self._names[first:])
        self._options: dict[str, Any] = {
            "background": settings.background_words or None,
            "threshold": settings.background_threshold,
            "window": settings.window,
            "stride": settings.stride,
            "short_side": settings.short_side,
        }
        _encode_texts(self.surgery, self._words, settings.background_words)
        self._totals = {method: ConfusionMatrix(len(self._names)) for method in settings.methods}
        # per image (3, K): true positives, true pixels and predicted pixels of each class
        self._parts: dict[str, list[NDArray[np.int64]]] = {method: [] for method in settings.methods}

    def read(self, sample: Sample) -> None:
        _ = sample.image, sample.semantic

    def measure(self, sample: Sample, clock: Clock) -> dict[str, Any]:
        tiles, refine = self._settings.tiles, self._settings.refine
        regions: NDArray[np.uint16] | None = None
        if self._pair is not None:
            with clock.part("regions"):
                regions = find_regions(self._pair.session, self._pair.session.image(sample.image))
        counts: dict[str, list[list[int]]] = {}
        for method in self._settings.methods:
            options = dict(self._options)
            if method == CORRCLIP or refine:
                options["regions"] = regions
            if method != CORRCLIP:
                options["refine"] = refine
            with clock.part(method):
                image = self.surgery.encode_image(sample.image, tiles=tiles) if tiles is not False else sample.image
                segmentation = segment_semantic(self._pair or self.surgery, image, self._words, method=method, **options)
                matrix = ConfusionMatrix(len(self._names))
                matrix.add(segmentation.classes.astype(np.int64), sample.semantic)
            flat = matrix.counts.ravel()
            indices = np.flatnonzero(flat)
            counts[method] = [indices.tolist(), flat[indices].tolist()]
        return {"pixels": counts}

    def add(self, kept: Mapping[str, Any]) -> None:
        k = len(self._names)
        for method, total in self._totals.items():
            indices, numbers = kept["pixels"][method]
            square = np.zeros((k, k + 1), np.int64)
            square.flat[indices] = numbers
            total.counts += square
            self._parts[method].append(np.stack([np.diag(square), square.sum(axis=1), square[:, :-1].sum(axis=0)]))

    def figures(self, method: str) -> dict[str, Any]:
        """In percent ``miou``, ``miou_without_background`` (None without a background), ``mean_accuracy``, ``pixel_accuracy``
        and ``iou`` by class; ``pixels`` (their number), ``confusion`` (K, K + 1) and ``intervals``."""
        total = self._totals[method]
        parts = np.stack(self._parts[method])  # (N, 3, K)
        weights = _weights(len(parts), self._settings)
        without = 0 if self._background else None
        drawn: dict[str, NDArray[np.float64]] = {}
        if weights is not None:
            hits, truth, predicted = (weights @ parts[:, i].astype(np.float64) for i in range(3))  # (R, K)
            union = truth + predicted - hits
            ious = ratio(hits, union)
            drawn["miou"] = 100 * row_means(ious)
            if without is not None:
                drawn["miou_without_background"] = 100 * row_means(ious[:, 1:])
        figures = {
            "miou": _percent(total.miou()),
            "miou_without_background": None if without is None else _percent(total.miou(without)),
        }
        return {
            **figures,
            "mean_accuracy": _percent(total.mean_accuracy()),
            "pixel_accuracy": _percent(total.pixel_accuracy()),
            "pixels": int(total.counts.sum()),
            "iou": {name: _percent(value) for name, value in zip(self._names, total.iou(), strict=True)},
            "confusion": total.counts.tolist(),
            "intervals": _intervals(drawn, figures),
        }


Maps = Callable[[Sample, list[int]], list[SimilarityMap]]


class Explainability:
    """Explainability: one map for each class that an image shows."""

    def __init__(self, surgery: ClipSurgery, dataset: Dataset, settings: Settings, iclip: Path | None = None) -> None:
        encoded = [method for method in settings.methods if method in ENCODED]
        self.surgery = OnePass(surgery, encoded)
        self._settings = settings
        self._names = dataset.foreground
        words = class_words(dataset, self._names)
        self._prompts = [text for (text,) in words.values()]
        _encode_texts(self.surgery, words)
        with torch.inference_mode():
            self._texts = class_features(self.surgery, words.values(), None)  # (T, C)
            alone = not settings.label_set or len(words) == 1
            self._redundant = self.surgery.encode_texts([""]) if alone else None
        self._maps: dict[str, Maps] = {method: self._encoded(method) for method in encoded}
        if "gradcam" in settings.methods:
            self._maps["gradcam"] = _gradcam(surgery, self._prompts)
        if iclip is not None:
            self._maps["iclip"] = _iclip(iclip, surgery, self.surgery, self._prompts)
        self._samples: dict[str, list[MapSample]] = {method: [] for method in settings.methods}
        self._images: list[int] = []  # the image of each sample
        self._added = 0

    def read(self, sample: Sample) -> None:
        _ = sample.image, sample.masks, sample.semantic

    def measure(self, sample: Sample, clock: Clock) -> dict[str, Any]:
        counted = ~sample.ignored
        masks = {name: mask[counted] for name, mask in sample.masks.items()}
        shown = [i for i, name in enumerate(self._names) if name in masks and masks[name].any()]
        kept: dict[str, Any] = {}
        for method in self._settings.methods:
            with clock.part(method):
                samples = [  # the order of the pixels does not matter
                    map_sample(self._names[i], map_.to_image(sample.shape)[counted][None], masks[self._names[i]][None])
                    for i, map_ in zip(shown, self._maps[method](sample, shown) if shown else [], strict=True)
                ]
            kept[method] = {
                "ious": [s.ious.tolist() for s in samples],
                "foreground": [s.foreground for s in samples],
                "background": [finite(s.background) for s in samples],
            }
        return {"classes": shown, "maps": kept}

    def add(self, kept: Mapping[str, Any]) -> None:
        names = [self._names[i] for i in kept["classes"]]
        for method, samples in self._samples.items():
            maps = kept["maps"][method]
            ious = np.array(maps["ious"], np.float64).reshape(-1, len(MAP_THRESHOLDS))
            for name, curve, on, off in zip(names, ious, maps["foreground"], maps["background"], strict=True):
                samples.append(MapSample(name, curve, on, math.nan if off is None else off))
        self._images += [self._added] * len(names)
        self._added += 1

    def figures(self, method: str) -> dict[str, Any]:
        """In percent ``miou`` (by the threshold rule of the settings), ``miou_dataset``, ``miou_class``, ``miou_image`` and
        ``msc``; the data set's ``threshold``, ``thresholds`` by class, ``samples``, ``classes``, ``intervals``."""
        samples, settings = self._samples[method], self._settings
        if not samples:
            names = ("miou", "miou_dataset", "miou_class", "miou_image", "msc", "threshold")
            return dict.fromkeys(names) | {"thresholds": {}, "samples": 0, "classes": 0, "intervals": {}}
        figures = explainability(samples)
        figures = {"miou": figures[f"miou_{settings.threshold_rule}"], **figures}
        weights = _weights(self._added, settings)
        drawn: dict[str, NDArray[np.float64]] = {}
        if weights is not None:
            images = np.array(self._images)
            parts = [explainability_samples(samples, weights[a:b, images]) for a, b in _chunks(weights)]
            drawn = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            drawn["miou"] = drawn[f"miou_{settings.threshold_rule}"]
        return {**figures, "intervals": _intervals(drawn, figures)}

    def _encoded(self, method: Method) -> Maps:
        def maps(sample: Sample, shown: list[int]) -> list[SimilarityMap]:
            features = self.surgery.encode_image(sample.image)
            with torch.inference_mode():
                similarity = self.surgery.similarities(features, self._texts, method, self._redundant)[1:, shown]
                grids = similarity.T.unflatten(1, features.grid).float().cpu().numpy()
            return [
                SimilarityMap(np.ascontiguousarray(grid), self._names[i], method) for i, grid in zip(shown, grids, strict=True)
            ]

        return maps


class Camouflage(Explainability):
    """Camouflaged objects: the map of each class that an image shows, as a soft mask."""

    def __init__(self, surgery: ClipSurgery, dataset: Dataset, settings: Settings) -> None:
        sod_metrics()  # fail before the first image if it is missing
        super().__init__(surgery, dataset, settings)
        self._scores: dict[str, list[list[float | None]]] = {method: [] for method in settings.methods}

    def measure(self, sample: Sample, clock: Clock) -> dict[str, Any]:
        shown = [i for i, name in enumerate(self._names) if name in sample.masks]
        kept: dict[str, Any] = {}
        for method in self._settings.methods:
            with clock.part(method):
                scores = [
                    soft_mask_scores(map_.to_image(sample.shape), sample.masks[self._names[i]])
                    for i, map_ in zip(shown, self._maps[method](sample, shown) if shown else [], strict=True)
                ]
            kept[method] = [list(map(finite, row)) for row in scores]
        return {"classes": shown, "scores": kept}

    def add(self, kept: Mapping[str, Any]) -> None:
        for method, scores in self._scores.items():
            scores += kept["scores"][method]
        self._images += [self._added] * len(kept["classes"])
        self._added += 1

    def figures(self, method: str) -> dict[str, Any]:
        """The :data:`~text2sam.lab.metrics.SOFT_SCORES` in [0, 1], ``samples``, ``intervals``."""
        scores = np.array(self._scores[method], np.float64).reshape(-1, len(SOFT_SCORES))  # None becomes NaN
        figures = dict(zip(SOFT_SCORES, map(finite, row_means(scores.T)), strict=True))
        weights = _weights(self._added, self._settings)
        drawn: dict[str, NDArray[np.float64]] = {}
        if weights is not None:
            counts = weights[:, np.array(self._images, np.intp)].astype(np.float64)  # (R, S)
            means = ratio(counts @ np.nan_to_num(scores), counts @ np.isfinite(scores).astype(np.float64))
            drawn = dict(zip(SOFT_SCORES, means.T, strict=True))
        return {**figures, "samples": len(scores), "intervals": _intervals(drawn, figures)}


def _gradcam(surgery: ClipSurgery, prompts: Sequence[str]) -> Maps:
    needed("pytorch_grad_cam", "grad-cam", "the method 'gradcam'", "cam")
    from text2sam.lab.activation import class_activation

    return lambda sample, shown: class_activation(surgery, sample.image, [prompts[i] for i in shown])


def _iclip(file: Path, surgery: ClipSurgery, encoder: OnePass, prompts: Sequence[str]) -> Maps:
    from text2sam.tasks.iclip import ICLIP

    head = ICLIP.load(file, surgery)
    return lambda sample, shown: head.maps(encoder.encode_image(sample.image), [prompts[i] for i in shown])


def _encode_texts(surgery: ClipSurgery, words: Mapping[str, Sequence[str]], more: Sequence[str] = ()) -> None:
    """Encodes all texts before the first image, so that errors come early and a resumed run has the same features."""
    parse_labels(words)
    surgery.encode_texts([*(word for group in words.values() for word in group), *more, ""])


def _weights(images: int, settings: Settings) -> NDArray[np.int64] | None:
    """Weights of the bootstrap over images; None without a bootstrap, or if it would take too long."""
    if not settings.resamples or images < 2 or settings.resamples * images > _MOST_DRAWS:
        return None
    return bootstrap_weights(images, settings.resamples, settings.bootstrap_seed)


def _chunks(weights: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of resamples that fit in memory together."""
    step = max(1, _CHUNK // weights.shape[1])
    return [(start, min(start + step, len(weights))) for start in range(0, len(weights), step)]


def _intervals(drawn: Mapping[str, NDArray[np.float64]], figures: Mapping[str, float | None]) -> dict[str, list[float]]:
    """Figure -> (low, high), percentiles of the bootstrap after its mean is moved to the figure.

    The bootstrap is biased if classes have few images: an image drawn twice gives two hits at one rank, which increases
    average precision, and a class that is predicted but not drawn has an IoU of 0.
    """
    intervals: dict[str, list[float]] = {}
    for name, samples in drawn.items():
        value, known = figures[name], samples[np.isfinite(samples)]
        if value is not None and len(known):
            intervals[name] = list(interval(known - known.mean() + value))
    return intervals


def _percent(share: float) -> float | None:
    return finite(100 * float(share))
