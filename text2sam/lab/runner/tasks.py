"""The four tasks of ``text2sam evaluate``: measurements of an image, and the figures of a data set.

The measurements are scores, pixel counts and curves, JSON-ready and exact, so that a journal can store them. Figures are
computed over the images in the order of the data set, in whatever order they were measured.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.clip.attention import CORRCLIP, METHODS
from text2sam.clip.generator import ClipSurgery, Method
from text2sam.errors import InputError, needed
from text2sam.lab import metrics
from text2sam.lab.datasets import Dataset, Sample
from text2sam.lab.runner.onepass import OnePass
from text2sam.lab.runner.settings import BOOTSTRAP_SEED, Settings
from text2sam.pipeline import TextPromptedSAM
from text2sam.tasks._inputs import class_features, parse_labels
from text2sam.tasks.recognition import recognize
from text2sam.tasks.regions import find_regions
from text2sam.tasks.semantic import segment_semantic
from text2sam.types import SimilarityMap

_MOST_DRAWS = 20_000_000
_MOST_RANKED = 2_000_000_000
_CHUNK = 4_000_000


class Task(ABC):
    """A task on a data set.

    A run calls ``read`` and ``measure`` for each image, then ``figures``.

    Args:
        surgery, dataset, settings: what is measured; the data set has the task's ground truth.
        iclip: file of :meth:`text2sam.tasks.iclip.ICLIP.save`, for the method ``"iclip"``.
        predictor: the SAM, if the settings need it.

    Raises:
        InputError: the settings do not fit the data set, or the SAM is missing.
        PromptError: the name of a class cannot be used as a text.
        UnsupportedModelError: the image tower does not support a method.
        MissingDependencyError: ``grad-cam`` or ``pysodmetrics`` is needed and not installed.
        WeightsError: the ICLIP file does not fit.
    """

    needs: tuple[str, ...]  # attributes of a sample

    def __init__(
        self, surgery: ClipSurgery, dataset: Dataset, settings: Settings, iclip: Path | None = None, predictor: Any = None
    ) -> None:
        if (settings.background_words or settings.background_threshold is not None) and not dataset.background:
            raise InputError(
                f"{dataset.title} has no class 'background', which background words and threshold need; open it with "
                "background=True (--background) if its reader has that option"
            )
        self.surgery = OnePass(surgery, [method for method in settings.methods if method in METHODS])
        self._settings = settings
        self._background = dataset.background
        self._names = dataset.classes if settings.task == "semantic" else dataset.foreground
        queried = self._names[bool(settings.background_words) :]
        self._words = {name: (dataset.wording.get(name, name),) for name in queried}
        parse_labels(self._words)
        # before the first image, so that errors come early and a resumed run has the same features
        self.surgery.encode_texts([*(text for (text,) in self._words.values()), *settings.background_words, ""])

    def read(self, sample: Sample) -> None:
        """Reads the files that ``measure`` needs.

        Raises:
            ImageError, InputError: a file is missing, broken, or contradicts another.
        """
        for name in self.needs:
            getattr(sample, name)

    @abstractmethod
    def measure(self, sample: Sample) -> dict[str, Any]:
        """The measurements of an image, JSON-ready."""

    @abstractmethod
    def figures(self, method: str, measured: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Figures over the measurements of at least one image in the order of the data set, JSON-ready.

        A figure is None without a case. ``intervals`` holds (low, high).
        """


class Recognition(Task):
    """Multi-label recognition: scores of every class in every image."""

    needs = ("image", "labels")

    def measure(self, sample: Sample) -> dict[str, Any]:
        with self.surgery.part("methods"):  # one call computes the scores of all methods
            recognition = recognize(self.surgery, self.surgery.encode_image(sample.image), self._words)
        return {
            "labels": [self._names.index(name) for name in sample.labels],
            "scores": {method: recognition.scores[method].tolist() for method in self._settings.methods},
        }

    def figures(self, method: str, measured: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """``map`` in percent, ``classes`` (number of classes that any image shows), ``ap`` by class, ``intervals``."""
        classes = np.arange(len(self._names))
        rows = [(np.array(kept["scores"][method], np.float32), np.isin(classes, kept["labels"])) for kept in measured]
        scores, truth = (np.stack(part) for part in zip(*rows, strict=True))
        precisions = metrics.class_average_precisions(scores, truth)
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
    return metrics.ratio(total, classes)


class Semantic(Task):
    """Semantic segmentation: pixels by true and by predicted class."""

    needs = ("image", "semantic")

    def __init__(
        self, surgery: ClipSurgery, dataset: Dataset, settings: Settings, iclip: Path | None = None, predictor: Any = None
    ) -> None:
        if settings.needs_sam and predictor is None:
            raise InputError(f"{CORRCLIP} and refine need a SAM; give a predictor")
        super().__init__(surgery, dataset, settings)
        self._pair = TextPromptedSAM(predictor, self.surgery) if settings.needs_sam else None
        self._options: dict[str, Any] = {
            "background": settings.background_words or None,
            "threshold": settings.background_threshold,
            "window": settings.window,
            "stride": settings.stride,
            "short_side": settings.short_side,
        }

    def measure(self, sample: Sample) -> dict[str, Any]:
        tiles, refine = self._settings.tiles, self._settings.refine
        regions: NDArray[np.uint16] | None = None
        if self._pair is not None:
            with self.surgery.part("regions"):
                regions = find_regions(self._pair.session, self._pair.session.image(sample.image))
        counts: dict[str, list[list[int]]] = {}
        for method in self._settings.methods:
            options = dict(self._options)
            if method == CORRCLIP or refine:
                options["regions"] = regions
            if method != CORRCLIP:
                options["refine"] = refine
            with self.surgery.part(method):
                image = self.surgery.encode_image(sample.image, tiles=tiles) if tiles is not False else sample.image
                segmentation = segment_semantic(self._pair or self.surgery, image, self._words, method=method, **options)
                matrix = metrics.ConfusionMatrix(len(self._names))
                matrix.add(segmentation.classes.astype(np.int64), sample.semantic)
            flat = matrix.counts.ravel()
            indices = np.flatnonzero(flat)
            counts[method] = [indices.tolist(), flat[indices].tolist()]
        return {"pixels": counts}

    def figures(self, method: str, measured: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """In percent ``miou``, ``miou_without_background`` (None without a background), ``mean_accuracy``, ``pixel_accuracy``
        and ``iou`` by class; ``pixels`` (their number), ``confusion`` (K, K + 1) and ``intervals``."""
        total, rows = metrics.ConfusionMatrix(len(self._names)), []
        for kept in measured:
            indices, numbers = kept["pixels"][method]
            square = np.zeros_like(total.counts)
            square.flat[indices] = numbers
            total.counts += square
            rows.append(np.stack([np.diag(square), square.sum(axis=1), square[:, :-1].sum(axis=0)]))
        parts = np.stack(rows)  # (N, 3, K): true positives, true pixels and predicted pixels of each class
        weights = _weights(len(parts), self._settings)
        without = 0 if self._background else None
        drawn: dict[str, NDArray[np.float64]] = {}
        if weights is not None:
            hits, truth, predicted = (weights @ parts[:, i].astype(np.float64) for i in range(3))  # (R, K)
            union = truth + predicted - hits
            ious = metrics.ratio(hits, union)
            drawn["miou"] = 100 * metrics.row_means(ious)
            if without is not None:
                drawn["miou_without_background"] = 100 * metrics.row_means(ious[:, 1:])
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


class Explainability(Task):
    """Explainability: one map for each class that an image shows."""

    needs = ("image", "masks", "semantic")

    def __init__(
        self, surgery: ClipSurgery, dataset: Dataset, settings: Settings, iclip: Path | None = None, predictor: Any = None
    ) -> None:
        super().__init__(surgery, dataset, settings)
        prompts = [text for (text,) in self._words.values()]
        with torch.inference_mode():
            self._texts = class_features(self.surgery, self._words.values(), None)  # (T, C)
            alone = not settings.label_set or len(prompts) == 1
            self._redundant = self.surgery.encode_texts([""]) if alone else None
        self._maps: dict[str, Maps] = {method: self._encoded(method) for method in settings.methods if method in METHODS}
        if "gradcam" in settings.methods:
            needed("pytorch_grad_cam", "grad-cam", "the method 'gradcam'", "cam")
            from text2sam.lab.activation import class_activation

            self._maps["gradcam"] = lambda sample, shown: class_activation(surgery, sample.image, [prompts[i] for i in shown])
        if iclip is not None:
            from text2sam.tasks.iclip import ICLIP

            head, encode = ICLIP.load(iclip, surgery), self.surgery.encode_image
            self._maps["iclip"] = lambda sample, shown: head.maps(encode(sample.image), [prompts[i] for i in shown])

    def measure(self, sample: Sample) -> dict[str, Any]:
        shown = [i for i, name in enumerate(self._names) if name in sample.masks]
        kept: dict[str, Any] = {}
        for method in self._settings.methods:
            with self.surgery.part(method):
                maps = self._maps[method](sample, shown) if shown else []
                kept[method] = [self._compared(sample, self._names[i], m) for i, m in zip(shown, maps, strict=True)]
        return {"classes": shown, "maps": kept}

    def _compared(self, sample: Sample, name: str, similarity: SimilarityMap) -> list[Any]:
        """What is kept of a map: here the attributes of a :class:`~text2sam.lab.metrics.MapSample`."""
        counted = ~sample.ignored  # the order of the pixels does not matter
        kept = metrics.map_sample(name, similarity.to_image(sample.shape)[counted][None], sample.masks[name][counted][None])
        return [kept.ious.tolist(), kept.foreground, metrics.finite(kept.background)]

    def figures(self, method: str, measured: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """In percent ``miou`` (by the threshold rule of the settings), ``miou_dataset``, ``miou_class``, ``miou_image`` and
        ``msc``; the data set's ``threshold``, ``thresholds`` by class, ``samples``, ``classes``, ``intervals``."""
        samples, of_image, settings, count = list[metrics.MapSample](), list[int](), self._settings, 0
        for count, kept in enumerate(measured, 1):
            for i, (curve, on, off) in zip(kept["classes"], kept["maps"][method], strict=True):
                samples.append(metrics.MapSample(self._names[i], np.array(curve), on, math.nan if off is None else off))
                of_image.append(count - 1)
        if not samples:
            names = ("miou", "miou_dataset", "miou_class", "miou_image", "msc", "threshold")
            return dict.fromkeys(names) | {"thresholds": {}, "samples": 0, "classes": 0, "intervals": {}}
        figures = metrics.explainability(samples)
        figures = {"miou": figures[f"miou_{settings.threshold_rule}"], **figures}
        weights = _weights(count, settings)
        drawn: dict[str, NDArray[np.float64]] = {}
        if weights is not None:
            parts = [metrics.explainability_samples(samples, weights[a:b, of_image]) for a, b in _chunks(weights)]
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

    def __init__(self, *given: Any) -> None:
        metrics.sod_metrics()  # fail before the first image if it is missing
        super().__init__(*given)

    def _compared(self, sample: Sample, name: str, similarity: SimilarityMap) -> list[Any]:
        """The values of :func:`~text2sam.lab.metrics.soft_mask_scores`."""
        return list(map(metrics.finite, metrics.soft_mask_scores(similarity.to_image(sample.shape), sample.masks[name])))

    def figures(self, method: str, measured: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The :data:`~text2sam.lab.metrics.SOFT_SCORES` in [0, 1], ``samples``, ``intervals``."""
        rows = [kept["maps"][method] for kept in measured]
        scores = np.array([row for image in rows for row in image], np.float64)  # None becomes NaN
        scores = scores.reshape(-1, len(metrics.SOFT_SCORES))
        figures = dict(zip(metrics.SOFT_SCORES, map(metrics.finite, metrics.row_means(scores.T)), strict=True))
        weights = _weights(len(rows), self._settings)
        drawn: dict[str, NDArray[np.float64]] = {}
        if weights is not None:
            counts = np.repeat(weights, list(map(len, rows)), axis=1).astype(np.float64)  # (R, S)
            means = metrics.ratio(counts @ np.nan_to_num(scores), counts @ np.isfinite(scores).astype(np.float64))
            drawn = dict(zip(metrics.SOFT_SCORES, means.T, strict=True))
        return {**figures, "samples": len(scores), "intervals": _intervals(drawn, figures)}


TASKS: Mapping[str, type[Task]] = {
    "recognition": Recognition,
    "semantic": Semantic,
    "explainability": Explainability,
    "camouflage": Camouflage,
}


def _weights(images: int, settings: Settings) -> NDArray[np.int64] | None:
    """Weights of the bootstrap over images; None without a bootstrap, or if it would take too long."""
    if not settings.resamples or images < 2 or settings.resamples * images > _MOST_DRAWS:
        return None
    return metrics.bootstrap_weights(images, settings.resamples, BOOTSTRAP_SEED)


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
            intervals[name] = list(metrics.interval(known - known.mean() + value))
    return intervals


def _percent(share: float) -> float | None:
    return metrics.finite(100 * float(share))
