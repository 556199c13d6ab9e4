"""Settings of ``text2sam evaluate TASK``: task, methods with their sources, and definitions of the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from text2sam.checks import check_known
from text2sam.clip.attention import CORRCLIP, METHODS
from text2sam.clip.tiles import Tiles, check_tiles
from text2sam.errors import InputError
from text2sam.lab.datasets.sample import Task
from text2sam.lab.metrics import MAP_THRESHOLDS
from text2sam.tasks.recognition import SCORES

RunTask = Literal["recognition", "semantic", "explainability", "camouflage"]
RUN_TASKS: tuple[RunTask, ...] = get_args(RunTask)

Refinement = Literal["regions"]
"""Masks that vote in semantic segmentation, see :func:`text2sam.tasks.segment_semantic`."""

ThresholdRule = Literal["dataset", "class", "image"]

BOOTSTRAP_SEED = 0

PAPER = "CLIP Surgery, Li et al. 2023, arXiv 2304.05653"

SOURCES: Mapping[RunTask, Mapping[str, str]] = {
    "recognition": {
        "surgery": f"{PAPER}, section 3.3, over the label set",
        "cosine": "CLIP, Radford et al. 2021, arXiv 2103.00020: cosine of class token and text",
        "softmax": "CLIP, Radford et al. 2021, arXiv 2103.00020: softmax of scaled cosines over the label set",
        "sigmoid": "SigLIP, Zhai et al. 2023, arXiv 2303.15343; relative to the empty text for a CLIP without a bias",
    },
    "semantic": {name: method.source for name, method in METHODS.items()}
    | {
        CORRCLIP: "CorrCLIP, Zhang et al. 2024, arXiv 2411.10086: attention inside SAM's regions, and their vote; with CLIP's "
        "features in place of DINO's, and without the branches that refine features (text2sam.tasks.corrclip)"
    },
    "explainability": {name: method.source for name, method in METHODS.items()}
    | {
        "gradcam": "Grad-CAM, Selvaraju et al. 2017, arXiv 1610.02391, by the package grad-cam",
        "iclip": "ICLIP, Li et al. 2022, arXiv 2209.07046, in our reading (text2sam.tasks.iclip)",
    },
    "camouflage": {name: method.source for name, method in METHODS.items()},
}
"""Task -> method -> source."""

RULES: Mapping[RunTask, str] = {
    "recognition": (
        "mAP in percent: average precision of each class over all images, without interpolation and with equal scores as one "
        "step, averaged over the classes that any image shows; scores are those of the class token of CLIP's original path"
    ),
    "semantic": (
        "mIoU in percent, from one confusion matrix of the data set: true positives over the union of true and predicted "
        "pixels of a class, averaged over classes in truth or prediction, without ignored pixels (255). Each pixel has the "
        "class of the highest similarity at full resolution, unless SAM's masks vote (refine). 'without background' leaves the "
        "class background out of the mean, while its pixels still count as errors of other classes"
    ),
    "explainability": (
        "A sample is the min-max map of an image for a class that it shows. mIoU in percent: IoU of map >= threshold with the "
        f"pixels of the class, with the best of {len(MAP_THRESHOLDS)} thresholds in [0, 1] for the data set, for each class, "
        "or for each sample. mSC in percent: mean of the map on the class minus its mean off the class. Ignored pixels (255) "
        "are left out"
    ),
    "camouflage": (
        "A sample is the min-max map of an image for a class that it shows, compared as a soft mask with the pixels of the "
        "class by the package pysodmetrics: S-measure, mean E-measure over 256 thresholds, weighted F-measure and mean "
        "absolute error (MAE, lower is better), all in [0, 1], averaged over samples. Ignored pixels (255) are off the class"
    ),
}
"""Task -> definition of its figures."""


def parse_methods(task: RunTask, names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Expands ``"all"`` to the methods that need only the CLIP, and no name to the papers' method."""
    if not names:
        return ("architecture" if task == "semantic" else "surgery",)
    every = SCORES if task == "recognition" else tuple(METHODS)
    return tuple(dict.fromkeys(method for name in names for method in (every if name == "all" else (name,))))


@dataclass(frozen=True)
class Settings:
    """Settings of a task.

    Raises:
        InputError: a value is invalid, or contradicts another.
    """

    task: RunTask
    methods: tuple[str, ...]  # distinct names in SOURCES
    # for semantic, see text2sam.tasks.segment_semantic and, for tiles, ClipSurgery.encode_image
    background_words: tuple[str, ...] = ()  # texts for the background instead of "background"
    background_threshold: float | None = None  # pixels whose highest probability is lower are background
    window: int | None = None
    stride: int | None = None
    short_side: int | None = None
    tiles: Tiles = False
    refine: Refinement | None = None  # "corrclip" has its own vote
    # for explainability
    label_set: bool = True  # feature surgery over the classes; False: with the empty text
    threshold_rule: ThresholdRule = "dataset"  # the rule of the mIoU in the table; the result has all three
    resamples: int = 1000  # of the bootstrap over images; 0 makes no intervals

    def __post_init__(self) -> None:
        check_known("task", [self.task], RUN_TASKS)
        check_known(f"{self.task} method", self.methods, tuple(SOURCES[self.task]))
        check_known("threshold rule", [self.threshold_rule], get_args(ThresholdRule))
        check_known("refinement", filter(None, [self.refine]), get_args(Refinement))
        if check_tiles(self.tiles) is not False and (self.window or self.short_side):
            raise InputError("tiles and a sliding window exclude each other; give one of the two")
        if check_tiles(self.tiles) is not False and self.needs_sam:
            raise InputError(f"SAM's masks cannot be used with tiles; leave out tiles, or refine and {CORRCLIP}")

    @property
    def needs_sam(self) -> bool:
        """Whether a SAM is needed."""
        return self.task == "semantic" and (CORRCLIP in self.methods or self.refine is not None)

    @property
    def truth(self) -> Task:
        """The kind of ground truth that the task needs."""
        return "explainability" if self.task == "camouflage" else self.task

    def measuring(self) -> dict[str, Any]:
        """The settings that the measurements of an image depend on, JSON-ready."""
        values = {name: value for name, value in vars(self).items() if name not in ("threshold_rule", "resamples")}
        return values | {"methods": list(self.methods), "background_words": list(self.background_words)}

    def to_json(self) -> dict[str, Any]:
        """All settings, JSON-ready."""
        return self.measuring() | {
            "threshold_rule": self.threshold_rule,
            "resamples": self.resamples,
            "bootstrap_seed": BOOTSTRAP_SEED,
        }
