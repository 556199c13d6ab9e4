"""What ``text2sam evaluate TASK`` measures: the task, its methods with their sources, and its rules in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from text2sam.clip.attention import CORRCLIP, METHODS
from text2sam.clip.tiles import Tiles, check_tiles
from text2sam.errors import InputError
from text2sam.lab.datasets.sample import Task
from text2sam.lab.metrics import MAP_THRESHOLDS, Average
from text2sam.tasks.recognition import SCORES

RunTask = Literal["recognition", "semantic", "explainability", "camouflage"]
RUN_TASKS: tuple[RunTask, ...] = get_args(RunTask)

Refinement = Literal["sam", "regions"]
"""Whose masks vote in semantic segmentation."""

ThresholdRule = Literal["dataset", "class", "image"]
THRESHOLD_RULES: tuple[ThresholdRule, ...] = get_args(ThresholdRule)

_PAPER = "CLIP Surgery, Li et al. 2023, arXiv 2304.05653"

SOURCES: Mapping[RunTask, Mapping[str, str]] = {
    "recognition": {
        "surgery": f"{_PAPER}, section 3.3, over the label set",
        "cosine": "CLIP, Radford et al. 2021, arXiv 2103.00020: cosine of class token and text",
        "softmax": "CLIP, Radford et al. 2021, arXiv 2103.00020: softmax of scaled cosines over the label set",
        "sigmoid": "SigLIP, Zhai et al. 2023, arXiv 2303.15343; a CLIP without a bias stands against the empty text",
    },
    "semantic": {name: method.source for name, method in METHODS.items()}
    | {
        CORRCLIP: "CorrCLIP, Zhang et al. 2024, arXiv 2411.10086: attention inside SAM's regions, and their vote; with CLIP's "
        "own looks in place of DINO's, and without the branches that refine features (text2sam.tasks.corrclip)"
    },
    "explainability": {name: method.source for name, method in METHODS.items()}
    | {
        "gradcam": "Grad-CAM, Selvaraju et al. 2017, arXiv 1610.02391, by the package grad-cam",
        "iclip": "ICLIP, Li et al. 2022, arXiv 2209.07046, in our reading (text2sam.tasks.iclip)",
    },
    "camouflage": {name: method.source for name, method in METHODS.items()},
}
"""Task -> method -> where it is from."""

ENCODED = frozenset(METHODS)
"""The methods that are made of the one encoding of a picture."""

PAPER_METHOD: Mapping[RunTask, str] = {
    "recognition": "surgery",
    "semantic": "architecture",
    "explainability": "surgery",
    "camouflage": "surgery",
}
"""What the papers do for each task."""

RULES: Mapping[RunTask, str] = {
    "recognition": (
        "mAP is in percent: the average precision of each class over all images (no interpolation, equal scores are one step), "
        "and its mean over the classes that any image shows; the class token of CLIP's original path is scored"
    ),
    "semantic": (
        "mIoU is in percent, from the data set's one confusion matrix: true positives over the union of true and predicted "
        "pixels of a class, mean over classes in truth or prediction; ignored pixels (255) do not count. Each pixel has the "
        "class of the highest similarity at full resolution, unless SAM's masks vote (refine). "
        "'without background' leaves the class background out of the mean, while its pixels still count as errors of others"
    ),
    "explainability": (
        "A sample is the min-max map over an image of one class that is in it. mIoU is in percent: IoU of map >= threshold with"
        f" the class's pixels, the threshold searched among {len(MAP_THRESHOLDS)} in [0, 1]: one for the data set, one per "
        "class, or one per sample. mSC is in percent: mean of the map on the class minus mean off it. Ignored pixels (255) are "
        "neither on nor off"
    ),
    "camouflage": (
        "A sample is the min-max map over an image of one class that is in it, compared as a soft mask with the class's pixels "
        "by the package pysodmetrics: S-measure, mean E-measure over 256 thresholds, weighted F-measure and mean absolute "
        "error (MAE, lower is better), all in [0, 1], means over samples. Ignored pixels (255) are off"
    ),
}
"""What each figure is."""


def methods_of(task: RunTask) -> tuple[str, ...]:
    """The methods a task can compare.

    Raises:
        InputError: there is no such task.
    """
    if task not in RUN_TASKS:
        raise InputError(f"task must be one of {', '.join(RUN_TASKS)}, not {task!r}")
    return tuple(SOURCES[task])


def parse_methods(task: RunTask, names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Names of methods as given: ``"all"`` stands for those that need nothing but the CLIP, none for the papers' own.

    Raises:
        InputError: there is no such task.
    """
    known = methods_of(task)
    if not names:
        return (PAPER_METHOD[task],)
    every = SCORES if task == "recognition" else tuple(name for name in known if name in ENCODED)
    return tuple(dict.fromkeys(each for name in names for each in (every if name == "all" else (name,))))


@dataclass(frozen=True)
class Settings:
    """How a task is measured.

    Attributes:
        task: one of :data:`RUN_TASKS`.
        methods: names in :data:`SOURCES`, each once.
        synonyms: a class has, besides its name, the data set's other words for it, as one averaged text feature.
        background_words: semantic: words for what is none of the classes, in place of the word "background".
        background_threshold: semantic: pixels whose best probability is below it are background.
        window, stride, short_side: semantic: the sliding window of :func:`text2sam.tasks.segment_semantic`.
        tiles: semantic: of the picture as a whole, see :meth:`text2sam.clip.generator.ClipSurgery.encode_image`.
        refine: semantic: whose masks vote, see :func:`text2sam.tasks.segment_semantic`; ``"corrclip"`` has its own vote.
        label_set: explainability: feature surgery is over the data set's classes; False, against the empty text.
        threshold_rule: explainability: which mIoU the table shows; the result has all three.
        average: explainability: over what the means are taken.
        resamples: of the bootstrap over images; 0 is none.
        bootstrap_seed: of its draws.

    Raises:
        InputError: a value is none of those, or not for this task.
    """

    task: RunTask
    methods: tuple[str, ...]
    synonyms: bool = False
    background_words: tuple[str, ...] = ()
    background_threshold: float | None = None
    window: int | None = None
    stride: int | None = None
    short_side: int | None = None
    tiles: Tiles = False
    refine: Refinement | None = None
    label_set: bool = True
    threshold_rule: ThresholdRule = "dataset"
    average: Average = "samples"
    resamples: int = 1000
    bootstrap_seed: int = 0

    def __post_init__(self) -> None:
        known = methods_of(self.task)
        unknown = [name for name in self.methods if name not in known]
        if unknown:
            raise InputError(f"method must be one of {', '.join(known)} for {self.task}, not {unknown[0]!r}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(f"methods must be at least one name, each once, not {self.methods!r}")
        for name, allowed in (("threshold_rule", THRESHOLD_RULES), ("average", get_args(Average))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.resamples < 0 or self.bootstrap_seed < 0:
            raise InputError(
                f"resamples and bootstrap_seed must be at least 0, not {self.resamples!r} and {self.bootstrap_seed!r}"
            )
        if check_tiles(self.tiles) is not False and (self.window or self.short_side):
            raise InputError("tiles and a sliding window are two ways to see a large picture; give one of the two")
        if self.refine not in (None, *get_args(Refinement)):
            raise InputError(f"refine must be one of {', '.join(get_args(Refinement))}, not {self.refine!r}")
        if check_tiles(self.tiles) is not False and self.needs_sam:
            raise InputError(f"SAM's masks are of the picture itself; leave out tiles, or refine and {CORRCLIP}")
        plain = Settings.__dataclass_fields__
        for task, names in _ONLY_FOR.items():
            foreign = [name for name in names if task != self.task and getattr(self, name) != plain[name].default]
            if foreign:
                raise InputError(f"{foreign[0]} is for {task}, not for {self.task}")

    @property
    def needs_sam(self) -> bool:
        """Whether a SAM is needed beside the CLIP."""
        return self.task == "semantic" and (CORRCLIP in self.methods or self.refine is not None)

    @property
    def truth(self) -> Task:
        """What a data set must hold for this task."""
        return "explainability" if self.task == "camouflage" else self.task

    def measuring(self) -> dict[str, Any]:
        """The settings that what is kept of a picture depends on, JSON-ready; the others only decide how it is summed up."""
        names = ("synonyms", *_ONLY_FOR["semantic"], "label_set")
        values = {name: getattr(self, name) for name in names}
        return {"task": self.task, "methods": list(self.methods), **values, "background_words": list(self.background_words)}

    def to_json(self) -> dict[str, Any]:
        """All of them, JSON-ready."""
        names = ("threshold_rule", "average", "resamples", "bootstrap_seed")
        return self.measuring() | {name: getattr(self, name) for name in names}


_ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "semantic": ("background_words", "background_threshold", "window", "stride", "short_side", "tiles", "refine"),
    "explainability": ("label_set", "threshold_rule", "average"),
}
