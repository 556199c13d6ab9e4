"""Published figures with their settings; a table shows them only for the same setting."""

from __future__ import annotations

from dataclasses import dataclass

from text2sam.clip.generator import ClipSurgery
from text2sam.clip.prompts import ensemble_templates
from text2sam.clip.tiles import Tiles
from text2sam.lab.datasets import DATASETS, Dataset, reader_options
from text2sam.lab.runner.models import ModelInfo
from text2sam.lab.runner.settings import PAPER, RunTask, Settings
from text2sam.zoo.presets import Preset

SECOND_HAND = "second-hand"


@dataclass(frozen=True)
class Published:
    """A published figure and its setting, with the names of this package."""

    task: RunTask
    dataset: str
    split: str
    model: str
    pretrained: str
    image_size: int
    method: str
    figure: str  # its name in the result
    value: float  # in percent, or a share, as in the result
    source: str = PAPER
    note: str = ""  # begins with SECOND_HAND if we could not check the source
    background: bool = False  # whether the first class of the data set is the background
    tiles: Tiles = False  # see :class:`~text2sam.lab.runner.settings.Settings`


_VIT, _RN = "ViT-B-16-quickgelu", "RN50-quickgelu"
_UNSAID = "the image size is not given; ours is CLIP's"
_SECOND = f"{_UNSAID}; 40.53 is also published, in an unknown setting"
_BACKGROUND = f"{SECOND_HAND}; the text for the background is not given; ours is 'background'"
_WHAT = f"{SECOND_HAND}; the text is not given; ours is 'camouflaged animal'"
_CUT = f"{SECOND_HAND}; the tiling of large images is not given; ours are blended tiles"

PUBLISHED: tuple[Published, ...] = (
    Published("semantic", "context", "val", _VIT, "openai", 512, "architecture", "miou", 29.3),
    Published("semantic", "coco-stuff", "val2017", _VIT, "openai", 512, "architecture", "miou", 21.9),
    Published("semantic", "cityscapes", "val", _VIT, "openai", 512, "architecture", "miou", 31.4),
    Published(
        "semantic", "context", "val", _VIT, "openai", 512, "architecture", "miou", 30.5, note=_BACKGROUND, background=True
    ),
    Published(
        "semantic", "coco", "val2017", _VIT, "openai", 512, "architecture", "miou", 25.2, note=_BACKGROUND, background=True
    ),
    Published("semantic", "potsdam", "test", _VIT, "openai", 512, "architecture", "miou", 30.2, note=_CUT, tiles="auto"),
    Published("camouflage", "cod10k", "test", _VIT, "openai", 512, "surgery", "s_measure", 0.601, note=_WHAT, background=True),
    Published("recognition", "nus-wide", "test", _RN, "openai", 224, "softmax", "map", 35.58, note=_UNSAID),
    Published("recognition", "nus-wide", "test", _RN, "openai", 224, "surgery", "map", 39.99, note=_SECOND),
    Published("explainability", "context", "val", _VIT, "openai", 512, "itsm", "miou", 15.76, note="second-hand"),
    Published("explainability", "context", "val", _VIT, "openai", 512, "surgery", "miou", 46.28, note="second-hand"),
    Published("explainability", "context", "val", _VIT, "openai", 512, "itsm", "msc", -16.73, note="second-hand"),
    Published("explainability", "context", "val", _VIT, "openai", 512, "surgery", "msc", 34.32, note="second-hand"),
)


def published_for(
    dataset: Dataset, settings: Settings, model: ModelInfo, surgery: ClipSurgery
) -> dict[str, dict[str, Published]]:
    """Method -> figure -> the published figure for this setting.

    The whole split must have been measured, with the papers' templates, depth and CLIP, and with default options.
    """
    usual = reader_options(dataset.name) if dataset.name in DATASETS else {}
    whole = "limit" not in dataset.options
    whole = whole and all(dataset.options.get(name, value) == value for name, value in usual.items() if name != "background")
    default = Settings(settings.task, settings.methods, tiles=settings.tiles, resamples=settings.resamples)
    plain = settings == default and surgery.scales == (1.0,) and tuple(surgery.prompts.templates) == ensemble_templates()
    plain = plain and (surgery.depth == Preset.depth or surgery.tower.blocks is None)
    published: dict[str, dict[str, Published]] = {}
    for figure in PUBLISHED if whole and plain and not model.untrained else ():
        same = (figure.task, figure.dataset, figure.split) == (settings.task, dataset.name, dataset.split)
        same = same and (figure.model, figure.pretrained) == (model.name, model.pretrained)
        same = same and (figure.background, figure.tiles) == (dataset.background, settings.tiles)
        if same and surgery.image_size == (figure.image_size, figure.image_size) and figure.method in settings.methods:
            published.setdefault(figure.method, {})[figure.figure] = figure
    return published
