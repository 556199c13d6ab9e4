"""``text2sam evaluate photos``: a real SAM on real photos, with similarity maps made from the ground truth.

How well a mask is chosen is measured without a CLIP: the map is what a CLIP of a stated quality would give.

Data: CamVid (Brostow et al. 2009), read by :func:`text2sam.lab.datasets.street.open_camvid`.

Protocol:

- *Split*: photos in order of their names; every second one, from the first, is ``tune``, the others are ``report``. Of
  each, ``photos`` evenly spaced ones are taken. CamVid's are frames of two drives, seconds apart, so the two halves show
  the same streets: another half, not another world.
- *Targets*: connected components (8-neighbours) of one class with 0.2 to 40 % of the photo's area. Up to four are of
  the :data:`THINGS`, up to two of the :data:`STUFF`: the largest of each class in their order, then the second largest,
  and so on. Stuff begins with another class on each photo.
- *Map*: the target's mask averaged over a 32 x 32 grid (CLIP Surgery at 512 pixels, patches of 16), blurred, shifted in a
  random direction, other components of the class added where a strength says so, noise added: see :class:`Strength`.
- *Points*: ``"paper"``, :func:`text2sam.recipes.points.points_from_similarity`; ``"peak"``, one positive point in the middle of
  the hottest patch.
- *Figure*: IoU with the target of the mask SAM scores highest, of the mask a rule takes, and of the best of the three.
  ``closed`` is the share of the way from the first to the last. Intervals are bootstrap over photos, 95 %.
"""

from __future__ import annotations

import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from text2sam import __version__
from text2sam.errors import InputError
from text2sam.lab.datasets import Dataset, open_dataset
from text2sam.lab.metrics import bootstrap_weights, interval, weighted_ratio
from text2sam.lab.output import reporting, track
from text2sam.recipes import Objects
from text2sam.recipes.choose import MaskRule, mask_iou
from text2sam.recipes.points import points_from_similarity
from text2sam.sam.build import build_predictor
from text2sam.sam.predictor import MaskPredictor, predict_points
from text2sam.tables import aligned
from text2sam.types import PointPrompts, SimilarityMap

THINGS = ("car", "pedestrian", "bicyclist", "sign", "pole")
STUFF = ("tree", "building", "road", "pavement", "sky", "fence")
SPLITS = ("tune", "report")

Split = Literal["tune", "report"]

_AIM = 0.5
_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Strength:
    """How far a map is from the truth.

    Attributes:
        name: for the table.
        blur: standard deviation of the Gaussian, in patches.
        shift: how far everything moves, in patches, in a random direction; away from the border where it is near.
        noise: standard deviation of the noise, independent from patch to patch, relative to the map's range before it.
        others: heat of the other components of the class, relative to the target's.
    """

    name: str
    blur: float
    shift: float
    noise: float
    others: float = 0.0


STRENGTHS = (
    Strength("mild", 0.5, 0.5, 0.05),
    Strength("medium", 1.0, 1.0, 0.1),
    Strength("strong", 1.5, 1.5, 0.2),
    Strength("crowded", 1.0, 1.0, 0.1, 0.8),
)


@dataclass(frozen=True)
class Settings:
    """What is measured; the defaults are those of ``text2sam evaluate photos``.

    Attributes:
        split: which half of the photos.
        photos: at most so many of it.
        seed: of the maps and the bootstrap.
        strengths: see :class:`Strength`.
        grid: (gh, gw) of the maps.
        things, stuff: at most so many targets of either kind in a photo.
        smallest, largest: area of a target, as a share of the photo's.
        resamples: of the bootstrap.

    Raises:
        InputError: a value is out of range.
    """

    split: Split = "report"
    photos: int = 24
    seed: int = 0
    strengths: tuple[Strength, ...] = STRENGTHS
    grid: tuple[int, int] = (32, 32)
    things: int = 4
    stuff: int = 2
    smallest: float = 0.002
    largest: float = 0.4
    resamples: int = 2000

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")
        for name, value in (("photos", self.photos), ("resamples", self.resamples)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value!r}")
        if not self.strengths or len({s.name for s in self.strengths}) != len(self.strengths):
            raise InputError("strengths must have different names, and there must be at least one")


@dataclass(frozen=True, eq=False)
class Target:
    """A component to be found.

    Attributes:
        name: its class.
        mask: (H, W) bool.
        others: (H, W) bool, all else of the class.
    """

    name: str
    mask: NDArray[np.bool_]
    others: NDArray[np.bool_]


def peak_point(similarity: SimilarityMap, shape: Sequence[int]) -> PointPrompts:
    """One positive point in the middle of the hottest patch; none on a flat map.

    Args:
        similarity: the map.
        shape: (H, W) of the image in pixels.
    """
    if similarity.flat:
        return PointPrompts.empty()
    return PointPrompts(np.array([similarity.peak(shape)], np.float32), np.ones(1, np.uint8))


POINT_RULES: dict[str, Callable[[SimilarityMap, tuple[int, int]], PointPrompts]] = {
    "paper": points_from_similarity,
    "peak": peak_point,
}


def split_photos(dataset: Dataset, split: str, limit: int) -> list[int]:
    """Places of one half of a data set's photos, see the module's protocol; fewer than ``limit`` where there are not so many.

    Raises:
        InputError: the half is empty.
    """
    half = sorted(range(len(dataset)), key=lambda place: f"{dataset.ids[place]}.png")[SPLITS.index(split) :: len(SPLITS)]
    if not half:
        raise InputError(f"{dataset.title} has no photos for the split {split!r} in {dataset.root}")
    count = min(limit, len(half))
    return [half[i * len(half) // count] for i in range(count)]


def targets(labels: NDArray[np.int32], classes: Sequence[str], settings: Settings | None = None, turn: int = 0) -> list[Target]:
    """What is to be found in a photo, see the module's protocol.

    Args:
        labels: (H, W), the class of each pixel.
        classes: their names.
        settings: numbers and areas.
        turn: with which class stuff begins.

    Returns:
        Things first. Empty where nothing has the right size.
    """
    chosen = settings or Settings()
    start = turn % len(STUFF)
    stuff = STUFF[start:] + STUFF[:start]
    kinds = ((THINGS, chosen.things), (stuff, chosen.stuff))
    return [target for names, count in kinds for target in _largest(labels, classes, names, count, chosen)]


def _largest(
    labels: NDArray[np.int32], classes: Sequence[str], names: Sequence[str], count: int, settings: Settings
) -> list[Target]:
    ranked: list[tuple[int, int, Target]] = []
    for order, name in enumerate(names):
        everything = labels == classes.index(name)
        numbered, _ = ndimage.label(everything, _EIGHT)
        sizes = np.bincount(numbered.ravel())
        sizes[0] = 0
        fits = np.flatnonzero((sizes >= settings.smallest * labels.size) & (sizes <= settings.largest * labels.size))
        for rank, number in enumerate(fits[np.argsort(-sizes[fits], kind="stable")]):
            mask = numbered == number
            ranked.append((rank, order, Target(name, mask, everything & ~mask)))
    return [target for _, _, target in sorted(ranked, key=lambda item: item[:2])[:count]]


def patch_means(mask: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Share of each patch that a mask covers.

    Args:
        mask: (H, W) bool.
        grid: (gh, gw); patches need not be whole pixels, a pixel counts in each by the area they share.

    Returns:
        (gh, gw) float64 in [0, 1].
    """
    rows, columns = (_shares(size, cells) for size, cells in zip(mask.shape, grid, strict=True))
    means: NDArray[np.float64] = rows @ mask @ columns.T
    return means


def _shares(size: int, cells: int) -> NDArray[np.float64]:
    """(cells, size): how much of each cell each pixel of an axis makes up."""
    edges = np.linspace(0, size, cells + 1)[:, None]
    pixels = np.arange(size)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    shares: NDArray[np.float64] = shared.clip(0) * (cells / size)
    return shares


def make_map(target: Target, strength: Strength, grid: tuple[int, int], rng: np.random.Generator) -> SimilarityMap:
    """The similarity map a CLIP of a stated quality would give for a target.

    Args:
        target: what the map is of.
        strength: how far from the truth.
        grid: (gh, gw).
        rng: draws the direction, then the noise.
    """
    share = patch_means(target.mask, grid)
    angle = rng.uniform(0, 2 * np.pi)
    shift = strength.shift * np.array([np.sin(angle), np.cos(angle)])
    # not out of the picture
    centre = np.array(ndimage.center_of_mass(share))
    shift = np.where((centre + shift < 0) | (centre + shift > np.array(grid) - 1), -shift, shift)
    if strength.others:
        share = np.maximum(share, strength.others * patch_means(target.others, grid))
    heat = ndimage.shift(ndimage.gaussian_filter(share, strength.blur, mode="nearest"), shift, order=1, mode="nearest")
    noise = rng.standard_normal(grid) * strength.noise * np.ptp(heat)
    return SimilarityMap((heat + noise).astype(np.float32), target.name, "ground truth")


def cases_of(
    predictor: MaskPredictor, dataset: Dataset, place: int, turn: int, settings: Settings, rules: Mapping[str, MaskRule]
) -> Iterator[dict[str, Any]]:
    """SAM's answers to all prompts on one photo, which is encoded once.

    A prompt without points (the map is flat) is left out. A map depends on its photo's name, its target, its strength
    and the seed alone, not on which other photos are measured.

    Args:
        predictor: a SAM.
        dataset: CamVid.
        place: of the photo in it.
        turn: with which class stuff begins.
        settings: see :class:`Settings`.
        rules: mask rules by name.

    Raises:
        InputError, ImageError: a file is not as it should be.
    """
    sample, photo = dataset[place], f"{dataset.ids[place]}.png"
    wanted = targets(sample.semantic, dataset.classes, settings, turn)
    if wanted:
        predictor.set_image(sample.image)
    for number, target in enumerate(wanted):
        for order, strength in enumerate(settings.strengths):
            rng = np.random.default_rng([settings.seed, zlib.crc32(photo.encode()), number, order])
            similarity = make_map(target, strength, settings.grid, rng)
            for points_rule, pick in POINT_RULES.items():
                points = pick(similarity, sample.shape)
                if not len(points):
                    continue
                masks, scores, logits = predict_points(predictor, points, shape=sample.shape)
                yield {
                    "photo": photo,
                    "number": number,
                    "class": target.name,
                    "area": float(target.mask.mean()),
                    "strength": strength.name,
                    "points": points_rule,
                    "ious": [mask_iou(mask, target.mask) for mask in masks],
                    "scores": scores.tolist(),
                    "by_score": int(scores.argmax()),
                    "taken": {name: int(rule(masks, scores, similarity, points, logits).index) for name, rule in rules.items()},
                }


def measure(
    predictor: MaskPredictor,
    folder: Path,
    settings: Settings | None = None,
    rules: Mapping[str, MaskRule] | None = None,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """All figures.

    Args:
        predictor: a SAM.
        folder: CamVid, see :func:`text2sam.lab.datasets.street.open_camvid`.
        settings: see :class:`Settings`.
        rules: mask rules by name; None is that of the recipe ``"objects"``.
        progress: show a bar on standard error.

    Returns:
        JSON-ready: ``rows`` (see :func:`summarize`), ``cases`` (each with photo, class, number, share of the photo,
        strength, points, IoUs, scores and what each rule took), ``settings``, ``photos`` (their names) and ``seconds``.

    Raises:
        InputError, ImageError: the folder's files are not as they should be; also, no photo has a target.
        UnsupportedModelError: the predictor's answer is not as it should be.
    """
    chosen = settings or Settings()
    take = {"objects": Objects().choose} if rules is None else rules
    dataset = open_dataset("camvid", folder)
    start = time.perf_counter()
    places = split_photos(dataset, chosen.split, chosen.photos)
    cases = [
        case
        for turn, place in enumerate(track(places, "photos", progress))
        for case in cases_of(predictor, dataset, place, turn, chosen, take)
    ]
    if not cases:
        raise InputError(
            f"the {chosen.split!r} photos of {folder} have no target: no component of a class covers "
            f"{chosen.smallest:.1%} to {chosen.largest:.0%} of its photo"
        )
    return {
        "folder": str(folder),
        "split": chosen.split,
        "photos": [dataset.ids[place] for place in places],
        "settings": asdict(chosen),
        "rows": summarize(cases, tuple(take), seed=chosen.seed, resamples=chosen.resamples),
        "cases": cases,
        "seconds": time.perf_counter() - start,
    }


def summarize(
    cases: Sequence[Mapping[str, Any]], rules: Sequence[str], *, seed: int = 0, resamples: int = 2000
) -> list[dict[str, Any]]:
    """The table: for every rule, way of pointing and strength, and over all.

    Args:
        cases: as in :func:`measure`.
        rules: keys of each case's ``taken``.
        seed: of the bootstrap; all rows draw the same photos.
        resamples: of the bootstrap.

    Returns:
        Dictionaries with ``rule``, ``points`` and ``strength`` (``"all"`` where pooled), ``cases``, ``photos``, ``score``,
        ``ours`` and ``best`` (mean IoU over cases), ``closed``, each of these four with ``_low`` and ``_high``; ``right``,
        the share of cases where the rule took the best mask, and ``score_right``, where SAM's score did; ``met``, whether
        ``closed`` is at least one half. Where best and score do not differ, ``closed`` and ``met`` are None.
    """
    rows = []
    for rule in rules:
        for points in [*dict.fromkeys(case["points"] for case in cases), "all"]:
            for strength in [*dict.fromkeys(case["strength"] for case in cases), "all"]:
                within = [c for c in cases if points in ("all", c["points"]) and strength in ("all", c["strength"])]
                row = _row(within, rule, seed, resamples)
                rows.append({"rule": rule, "points": points, "strength": strength, **row})
    return rows


def _row(cases: Sequence[Mapping[str, Any]], rule: str, seed: int, resamples: int) -> dict[str, Any]:
    # (cases, 3): what SAM's score takes, what the rule takes, the best
    ious = np.array([[c["ious"][c["by_score"]], c["ious"][c["taken"][rule]], max(c["ious"])] for c in cases])
    photos, where = np.unique([c["photo"] for c in cases], return_inverse=True)
    counts = np.bincount(where)
    weights = bootstrap_weights(len(photos), resamples, seed)
    mean = ious.mean(axis=0)
    drawn = np.stack([weighted_ratio(np.bincount(where, column), counts, weights) for column in ious.T], axis=1)
    row: dict[str, Any] = {"cases": len(cases), "photos": len(photos)}
    for name, value, samples in (
        *zip(("score", "ours", "best"), mean, drawn.T, strict=True),
        ("closed", _closed(mean[None])[0], _closed(drawn)),
    ):
        for key, figure in zip((name, f"{name}_low", f"{name}_high"), (value, *interval(samples)), strict=True):
            row[key] = float(figure) if np.isfinite(figure) else None
    right = (ious[:, :2] >= ious[:, 2:]).mean(axis=0)
    met = None if row["closed"] is None else row["closed"] >= _AIM
    return row | {"score_right": float(right[0]), "right": float(right[1]), "met": met}


def _closed(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) mean IoU of score, rule and best -> (N,), NaN where score and best are the same."""
    score, ours, best = means.T
    gap = best - score
    closed: NDArray[np.float64] = np.where(gap > 1e-12, (ours - score) / np.where(gap > 1e-12, gap, 1.0), np.nan)
    return closed


def table(result: Mapping[str, Any]) -> str:
    """The rows of a result of :func:`measure` as lines of text."""
    head = ("rule", "points", "strength", "cases", "SAM's score", "ours", "best of three", "closed", "aim", "met")
    lines = []
    for row in result["rows"]:
        met = {None: "", True: "yes", False: "NO"}[row["met"]]
        figures = (_interval(row, name) for name in ("score", "ours", "best", "closed"))
        lines.append((row["rule"], row["points"], row["strength"], str(row["cases"]), *figures, f">= {_AIM:g}", met))
    note = (
        f"Mean IoU with the target and bootstrap 95 % intervals over photos; {len(result['photos'])} photos of the "
        f"split {result['split']!r}, seed {result['settings']['seed']}, {result['seconds']:.0f} s."
    )
    return "\n".join([aligned(head, lines), "", note])


def _interval(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"


def main_command(
    folder: Path,
    sam_checkpoint: str,
    settings: Settings | None = None,
    out: Path | None = None,
    json_output: bool = False,
    device: str | None = None,
) -> None:
    """``text2sam evaluate photos``: measures and prints the table.

    Args:
        folder, settings: see :func:`measure`.
        sam_checkpoint: a file, or a name in :data:`text2sam.zoo.table.CHECKPOINTS`.
        out: file for the whole result as JSON, with name and SHA-256 of the checkpoint; opened before anything is measured.
        json_output: print that JSON instead of the table.
        device: None takes cuda, then mps, then cpu.

    Raises:
        InputError, ImageError: the folder's files are not as they should be, or the device is not there.
        WeightsError: the checkpoint cannot be used.
        OutputError: ``out`` cannot be written.
    """
    from text2sam.zoo.download import file_sha256, resolve
    from text2sam.zoo.table import CHECKPOINTS

    open_dataset("camvid", folder)  # what is missing is told before the SAM is built
    with reporting(table, out, json_output) as report:
        path = resolve(sam_checkpoint, "sam")
        known = CHECKPOINTS.get(sam_checkpoint)
        predictor = build_predictor(known.model if known else None, path, device=device)
        result = measure(predictor, folder, settings, progress=sys.stderr.isatty())
        report(
            {
                "sam": {"file": path.name, "sha256": file_sha256(path)},
                "machine": {"text2sam": __version__, "python": platform.python_version(), "numpy": np.__version__},
                **result,
            }
        )
