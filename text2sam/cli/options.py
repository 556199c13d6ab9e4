"""Options that commands share, each written once. Values that cannot be used are InputErrors, raised before a model is built.

A command takes the options of a group as one value::

    @app.command()
    @with_options
    def segment(image: ImageFile, models: ModelOptions, how: SegmentOptions) -> None:
        model = models.build()
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from text2sam.cli.common import split_list
from text2sam.clip.attention import METHODS, check_method
from text2sam.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from text2sam.clip.generator import ClipSurgery
    from text2sam.options import Options
    from text2sam.pipeline import TextPromptedSAM
    from text2sam.targets import Target


def option(name: str, metavar: str, text: str, **more: Any) -> Any:
    """An option for Typer with its help text."""
    return typer.Option(name, metavar=metavar, help=text, **more)


def _known_method(value: str) -> str:
    try:
        return check_method(value)
    except InputError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--method") from None


Device = Annotated[str | None, option("--device", "NAME", "cpu, cuda, cuda:N or mps (default: the best).")]
Against = Annotated[
    list[str] | None, option("--against", "TEXT", "What else may be in the image; repeat it or give a comma list.")
]
Tiles = Annotated[
    str | None, option("--tiles", "auto|PIXELS", "For large images: CLIP encodes overlapping tiles with sides of this length.")
]
Method = Annotated[
    str, option("--method", "NAME", f"How similarity maps are made: {', '.join(METHODS)}.", callback=_known_method)
]
BatchSize = Annotated[
    int | None, option("--batch-size", "N", "Images that CLIP encodes at once (default: 1 on a CPU, 8 on a GPU).", min=1)
]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces each parameter annotated with a dataclass by its fields, which are options.

    Typer sees the options; the command is given the dataclasses.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: parameter.annotation for name, parameter in signature.parameters.items() if is_dataclass(parameter.annotation)
    }

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        own = inspect.signature(groups[name]).parameters.values() if name in groups else [parameter]
        hints = get_type_hints(groups[name], include_extras=True) if name in groups else {}
        parameters += [p.replace(kind=p.KEYWORD_ONLY, annotation=hints.get(p.name, p.annotation)) for p in own]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@dataclass(frozen=True)
class ModelOptions:
    """The models of a command."""

    preset: Annotated[str, option("--preset", "NAME", "The pair of models; text2sam models list shows them.")] = "mobile"
    clip_checkpoint: Annotated[
        str | None,
        option("--clip-checkpoint", "FILE|FOLDER|NAME", "Other CLIP weights: a file, a transformers folder, or a listed name."),
    ] = None
    clip_model: Annotated[
        str | None,
        option(
            "--clip-model", "NAME", "hf-hub:NAME or local-dir:FOLDER, or open_clip's name of the CLIP (text2sam models towers)."
        ),
    ] = None
    sam_checkpoint: Annotated[
        str | None,
        option(
            "--sam-checkpoint",
            "FILE|FOLDER|NAME",
            "Other SAM weights: a file (SAM 2 too), a transformers folder, or a listed name.",
        ),
    ] = None
    device: Device = None
    dtype: Annotated[str | None, option("--dtype", "NAME", "float32, bfloat16 (GPUs, CPUs with AMX) or float16 (GPUs).")] = None
    templates: Annotated[
        Literal["full", "short"],
        option("--templates", "full|short", "Prompt templates: the papers' 85, or a few for speed."),
    ] = "full"
    image_size: Annotated[
        int | None, option("--image-size", "PIXELS", "Side of CLIP's input (default: the preset's).", min=1)
    ] = None
    scales: Annotated[
        str | None,
        option("--scales", "SHARE,...", "Shares of --image-size to average over, such as 0.75,1 (default: the preset's)."),
    ] = None
    depth: Annotated[int | None, option("--depth", "N", "Number of CLIP's last blocks that have the surgery path.", min=1)] = (
        None
    )

    def check(self) -> None:
        """Checks the preset and the scales."""
        from text2sam.zoo.presets import get_preset

        get_preset(self.preset)
        self._scales()

    def build(self) -> TextPromptedSAM:
        """The pair of models."""
        from text2sam.pipeline import TextPromptedSAM

        return TextPromptedSAM.from_pretrained(**self.keywords())

    def build_clip(self) -> ClipSurgery:
        """CLIP alone."""
        from text2sam.zoo.presets import build_clip

        return build_clip(**self.keywords())

    def keywords(self) -> dict[str, Any]:
        """The options as the keyword arguments of ``from_pretrained``."""
        from text2sam.clip.prompts import SHORT_TEMPLATES

        return {
            **vars(self),
            "templates": SHORT_TEMPLATES if self.templates == "short" else None,
            "scales": self._scales(),
            "progress": sys.stderr.isatty(),
        }

    def _scales(self) -> tuple[float, ...] | None:
        if self.scales is None:
            return None
        from text2sam.clip.scales import check_scales

        return check_scales(_numbers("--scales", self.scales, "0.75,1"))


@dataclass(frozen=True)
class FolderOptions:
    """The images of a folder job, as :func:`text2sam.annotate.sources.find_images` takes them."""

    root: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of images.")]
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False
    glob: Annotated[str | None, option("--glob", "PATTERN", "Only these, such as '*.png' or 'day-*/**/*.jpg'.")] = None
    list_file: Annotated[
        Path | None,
        option("--list", "FILE", "Only the images that this file names, a path per line, relative to its folder or to FOLDER."),
    ] = None


@dataclass(frozen=True)
class ImageOptions:
    """How image files are read."""

    max_pixels: Annotated[
        int | None, option("--max-pixels", "N", "Accept images of up to N pixels (default: Pillow's limit).", min=1)
    ] = None
    value_range: Annotated[
        str | None, option("--range", "BLACK,WHITE", "Values of black and white, in images of more than 8 bits or of floats.")
    ] = None
    page: Annotated[int, option("--page", "N", "Page of a file that has several, counted from 0.", min=0)] = 0

    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments of :func:`text2sam.image.read_image`."""
        limits = None if self.value_range is None else _numbers("--range", self.value_range, "0,4095")
        if limits is not None and len(limits) != 2:
            raise InputError(f"--range must be two numbers, such as 0,4095, not {self.value_range!r}")
        return {**vars(self), "value_range": limits}

    def read(self, path: Path) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        from text2sam.image import read_image

        return read_image(path, **self.keywords())


@dataclass(frozen=True)
class HowOptions:
    """How texts are segmented."""

    against: Against = None
    threshold: Annotated[
        list[str] | None,
        option(
            "--threshold",
            "[TEXT=]NUMBER",
            "Presence score from which a text counts as present: for all texts, or for one; repeat it or give a comma list.",
        ),
    ] = None
    calibration: Annotated[Path | None, option("--calibration", "FILE", "The presence threshold that calibrate wrote.")] = None
    strategy: Annotated[
        str, option("--strategy", "NAME", "Recipe for points and masks: objects, or paper, the papers' own.")
    ] = "objects"
    smooth: Annotated[
        bool | None,
        typer.Option(
            "--smooth/--no-smooth",
            help="Whether maps are smoothed over SAM's embedding of the image (default: as the recipe does).",
        ),
    ] = None
    method: Method = "surgery"
    tiles: Tiles = None
    max_objects: Annotated[int, option("--max-objects", "N", "Number of objects of a text to look for at most.", min=1)] = 100

    def options(self) -> Options:
        """The options as ``TextPromptedSAM.segment`` has them, without thresholds."""
        from text2sam.options import Options
        from text2sam.recipes import get_recipe

        recipe: Any = get_recipe(self.strategy)
        return Options(
            against=split_list(self.against) or None,
            strategy=self.strategy if self.smooth is None else replace(recipe, smooth=self.smooth),
            method=self.method,
            tiles=parse_tiles(self.tiles),
            max_objects=self.max_objects,
        )

    def thresholds(self) -> tuple[float | None, dict[str, float]]:
        """The threshold for all texts, if there is one, and those of single texts."""
        general: float | None = None
        own: dict[str, float] = {}
        for value in split_list(self.threshold):
            name, sign, number = (part.strip() for part in value.rpartition("="))
            try:
                limit = float(number)
            except ValueError:
                limit = float("nan")
            if not 0 <= limit <= 1:
                raise InputError(f"--threshold must be a number in [0, 1], or TEXT=NUMBER, not {value!r}")
            if name in own or (not sign and general is not None):
                raise InputError(f"--threshold is given twice for {repr(name) if sign else 'all texts'}; give it once")
            if sign:
                own[name] = limit
            else:
                general = limit
        return general, own

    def builder(self, models: ModelOptions) -> Callable[[], TextPromptedSAM]:
        """What builds the models with the calibration, if one is given; its file is read now."""
        from text2sam.presence import Calibration

        calibration = None if self.calibration is None else Calibration.load(self.calibration)

        def build() -> TextPromptedSAM:
            model = models.build()
            if calibration is not None:
                model.use(calibration)
            return model

        return build


@dataclass(frozen=True)
class SegmentOptions(HowOptions):
    """How texts are segmented, and what else is said of them."""

    exclude: Annotated[
        list[str] | None, option("--exclude", "TEXT", "What masks leave out; repeat it or give a comma list.")
    ] = None
    synonym: Annotated[
        list[str] | None,
        option("--synonym", "TEXT=WORD", "Another word for a TEXT: car=automobile, or car=automobile,auto; repeat it."),
    ] = None

    def targets(self, texts: Sequence[str]) -> list[Target]:
        """The texts with their synonyms."""
        from text2sam.targets import parse_targets

        words: dict[str, list[str]] = {}
        for value in self.synonym or ():
            name, _, rest = (part.strip() for part in value.partition("="))
            more = split_list([rest])
            if not name or not more:
                raise InputError(f"--synonym must be TEXT=WORD, such as car=automobile, not {value!r}")
            words.setdefault(name, [name]).extend(more)
        queries = parse_targets(texts)
        labels = [query.label for query in queries]
        for name in words:
            if name not in labels:
                raise InputError(f"--synonym is given for {name!r}, which is not looked for; the texts are {labels}")
            if len(queries[labels.index(name)].texts) > 1:
                raise InputError(f"--synonym is given for {name!r}, which joins several texts; give it for one text")
        return [{label: list(dict.fromkeys(words[label]))} if label in words else label for label in labels]

    def request(self, texts: Sequence[str]) -> tuple[list[Target], dict[str, Any]]:
        """The arguments of ``TextPromptedSAM.segment_many``, checked before a model is built: targets and keywords."""
        from text2sam.request import Request
        from text2sam.targets import parse_targets

        targets = self.targets(texts)
        threshold, own = self.thresholds()
        if own:
            general = {} if threshold is None else {query.label: threshold for query in parse_targets(targets)}
            given: Any = {**general, **own}
        else:
            given = threshold
        options = replace(self.options(), threshold=given, exclude=split_list(self.exclude) or None)
        Request.of(targets, options, 0.0)
        return targets, vars(options)


def parse_tiles(value: str | None) -> Any:
    """The value of ``--tiles`` as :class:`text2sam.options.Options` takes it."""
    from text2sam.clip.tiles import check_tiles

    side: Any = value or False
    if value is not None and value != "auto":
        try:
            side = int(value)
        except ValueError:
            raise InputError(f"--tiles must be auto or the side of a tile in pixels, not {value!r}") from None
    return check_tiles(side)


def _numbers(option: str, value: str, example: str) -> tuple[float, ...]:
    """A comma list of numbers."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise InputError(f"{option} must be a comma list of numbers, such as {example}, not {value!r}") from None
