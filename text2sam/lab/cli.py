"""``text2sam bench | evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from text2sam.cli.common import (
    CODES_HELP,
    ClipCheckpoint,
    ClipModel,
    Depth,
    Device,
    Dtype,
    ImageSize,
    Json,
    PresetName,
    Templates,
    WhichTemplates,
    app,
    check_folder,
    scales_of,
    split_list,
)
from text2sam.errors import InputError

if TYPE_CHECKING:
    from text2sam.lab.runner import ModelChoice


@app.command(epilog=CODES_HELP)
def bench(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="What to measure: all, text, surgery, images, recipe or annotate.")
    ] = "all",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    sam_checkpoint: Annotated[
        Path | None, typer.Option("--sam-checkpoint", metavar="FILE", help="Measure this SAM too, such as mobile_sam.pt.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure text2sam against a plain implementation of the reference's way, and its default recipe against the papers'."""
    from text2sam.lab.bench import Settings, main_command

    main_command(suite, out, as_json, Settings(device=device, sam_checkpoint=sam_checkpoint))


MapScales = Annotated[
    str,
    typer.Option(
        "--scales",
        metavar="SHARE,...",
        help="Shares of --image-size at which CLIP sees the image; the papers' way is 1 alone.",
    ),
]

evaluate = typer.Typer(
    help="Measure how well text2sam does.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.add_typer(evaluate, name="evaluate")


class Split(str, Enum):
    """Which scenes are drawn, see :data:`text2sam.lab.experiments.sticker.SPLITS`."""

    report = "report"
    tune = "tune"


@evaluate.command("sticker", epilog=CODES_HELP)
def evaluate_sticker(
    scenes: Annotated[int, typer.Option("--scenes", metavar="N", min=1, help="How many scenes are drawn.")] = 300,
    split: Annotated[
        Split, typer.Option("--split", help="Scenes for reporting, or others for choosing thresholds.")
    ] = Split.report,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            metavar="NAME",
            help="A recipe; repeat it or give a comma list (default: paper,objects). Differences are against the first.",
        ),
    ] = None,
    sam_checkpoint: Annotated[
        str | None, typer.Option("--sam-checkpoint", metavar="FILE|NAME", help="Other SAM weights: a file, or a listed name.")
    ] = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="FOLDER", help="Draw the largest gains and the worst failures into this folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare recipes on drawn scenes whose masks are known: 1 to 6 things, repeated names, absent names."""
    from text2sam.lab.experiments.sticker import Settings, main_command

    if pictures is not None:
        check_folder(pictures)
    options: dict[str, Any] = {"strategies": tuple(split_list(strategies))} if strategies else {}
    settings = Settings(scenes=scenes, split=split.value, sam_checkpoint=sam_checkpoint, device=device, **options)
    main_command(settings, out, as_json, pictures)


@evaluate.command("photos", epilog=CODES_HELP)
def evaluate_photos(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder with images/ and labels/, as CamVid's.", show_default=False),
    ],
    photos: Annotated[int, typer.Option("--photos", metavar="N", min=1, help="At most so many photos of the split.")] = 24,
    split: Annotated[
        Split, typer.Option("--split", help="Photos for reporting, or the others, for choosing a rule.")
    ] = Split.report,
    sam_checkpoint: Annotated[
        str, typer.Option("--sam-checkpoint", metavar="FILE|NAME", help="SAM weights: a file, or a listed name.")
    ] = "mobile-sam",
    device: Device = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """Compare ways to choose among SAM's three masks, on photos, with maps made from the true masks."""
    from text2sam.lab.experiments.photos import Settings
    from text2sam.lab.experiments.photos import evaluate_photos as evaluate_on

    settings = Settings(split=split.value, photos=photos)
    evaluate_on(folder, sam_checkpoint=sam_checkpoint, settings=settings, out=out, json_output=as_json, device=device)


@evaluate.command("annotation", epilog=CODES_HELP)
def evaluate_annotation(
    scenes: Annotated[int, typer.Option("--scenes", metavar="N", min=1, help="How many scenes are drawn.")] = 500,
    hostile: Annotated[int, typer.Option("--hostile", metavar="N", min=0, help="How many hostile files lie between.")] = 30,
    kills: Annotated[int, typer.Option("--kills", metavar="N", min=0, help="How often the run is killed.")] = 5,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="FOLDER", help="Keep images and datasets here; it must be empty.")
    ] = None,
    no_undisturbed: Annotated[
        bool, typer.Option("--no-undisturbed", help="Leave out the run without kills, and the comparison with it.")
    ] = False,
    device: Device = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """Run text2sam annotate over drawn scenes and hostile files, kill it on the way, then check and judge its dataset."""
    from text2sam.lab.experiments.annotation import Settings, main_command

    settings = Settings(scenes=scenes, hostile=hostile, kills=kills, device=device, undisturbed=not no_undisturbed)
    main_command(settings, out, as_json, folder)


class ThresholdRule(str, Enum):
    """For what a threshold is searched, see :data:`text2sam.lab.runner.settings.THRESHOLD_RULES`."""

    dataset = "dataset"
    class_ = "class"
    image = "image"


class Average(str, Enum):
    """Over what means are taken, see :class:`text2sam.lab.metrics.ExplainabilityScore`."""

    samples = "samples"
    classes = "classes"


DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="voc, context, coco, coco-stuff, cityscapes, ade, imagenet-s50, nus-wide, camvid, folder or sticker.",
        show_default=False,
    ),
]
Root = Annotated[Path | None, typer.Option("--root", metavar="DIR", help="The folder the data set lies in.")]
SplitName = Annotated[str | None, typer.Option("--split", metavar="NAME", help="Which part of it; by default the usual one.")]
ReaderOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="A further option of the data set's reader; may be repeated."),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only so many images.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="S", min=0, help="Chooses which, with --limit; else the first.")]
OneMethod = Annotated[str | None, typer.Option("--method", metavar="NAME", help="One method; by default the papers' own.")]
Compared = Annotated[
    list[str] | None,
    typer.Option(
        "--compare", metavar="A,B,C", help="Several methods over one pass of encodings, or all; the help above lists them."
    ),
]
Synonyms = Annotated[bool, typer.Option("--synonyms", help="Average a class's name with the data set's other words for it.")]
Background = Annotated[
    bool | None,
    typer.Option("--background/--no-background", help="Whether what is none of the classes is a class, or ignored."),
]
OutFile = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Also write the result to this JSON file; by a journal beside it a killed run goes on."
    ),
]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the table to this file, in Markdown.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite/--resume", help="Throw away what an earlier run has measured, or go on with it.")
]
Untrained = Annotated[
    bool,
    typer.Option("--untrained", help="Random weights for --clip-model (ViT-B-16): real sizes, figures without meaning."),
]


def reader_options(values: Sequence[str] | None, background: bool | None) -> dict[str, Any]:
    """The values of ``--option``, numbers, lists and true, false, null as in JSON, else as text; and of ``--background``.

    Raises:
        InputError: one is not KEY=VALUE, or given twice.
    """
    found: dict[str, Any] = {} if background is None else {"background": background}
    for value in values or ():
        key, sign, text = (part.strip() for part in value.partition("="))
        if not sign or not key.isidentifier():
            raise InputError(f"--option must be KEY=VALUE, not {value!r}")
        if key in found:
            raise InputError(f"the option {key!r} is given twice")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _methods(task: Any, method: str | None, compared: list[str] | None) -> tuple[str, ...]:
    from text2sam.lab.runner.settings import parse_methods

    if method is not None and compared:
        raise InputError("--method names one method and --compare several; give one of the two")
    return parse_methods(task, [method] if method is not None else split_list(compared))


def _choice(untrained: bool, templates: Templates, **options: Any) -> ModelChoice:
    from text2sam.lab.runner import ModelChoice
    from text2sam.zoo.presets import get_preset

    get_preset(options["preset"])
    options["scales"] = scales_of(options["scales"])
    return ModelChoice(untrained=untrained, short_templates=templates is Templates.short, **options)


def _check_files(out: Path | None, markdown: Path | None) -> None:
    for file in (out, markdown):
        if file is not None:
            check_folder(file.parent)


@evaluate.command("recognition", epilog=CODES_HELP)
def evaluate_recognition(
    dataset: DatasetName,
    root: Root = None,
    split: SplitName = None,
    method: OneMethod = None,
    compare: Compared = None,
    limit: Limit = None,
    seed: Seed = None,
    option: ReaderOption = None,
    synonyms: Synonyms = False,
    out: OutFile = None,
    markdown: MarkdownFile = None,
    overwrite: Overwrite = False,
    preset: PresetName = "mobile",
    clip_checkpoint: ClipCheckpoint = None,
    clip_model: ClipModel = None,
    untrained: Untrained = False,
    image_size: ImageSize = None,
    scales: MapScales = "1",
    depth: Depth = None,
    templates: WhichTemplates = Templates.full,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Measure which classes an image shows: mAP of surgery, cosine, softmax, sigmoid."""
    from text2sam.lab.runner import Settings, main_command

    settings = Settings("recognition", _methods("recognition", method, compare), synonyms=synonyms)
    choice = _choice(
        untrained, templates, preset=preset, clip_checkpoint=clip_checkpoint, clip_model=clip_model,
        image_size=image_size, scales=scales, depth=depth, device=device, dtype=dtype,
    )  # fmt: skip
    options = reader_options(option, None)
    _check_files(out, markdown)
    main_command(
        settings, dataset, choice, root=root, split=split, options=options, limit=limit, seed=seed,
        out=out, markdown_file=markdown, overwrite=overwrite, json_output=as_json,
    )  # fmt: skip


@evaluate.command("semantic", epilog=CODES_HELP)
def evaluate_semantic(
    dataset: DatasetName,
    root: Root = None,
    split: SplitName = None,
    method: OneMethod = None,
    compare: Compared = None,
    limit: Limit = None,
    seed: Seed = None,
    option: ReaderOption = None,
    background: Background = None,
    background_words: Annotated[
        list[str] | None,
        typer.Option("--background-word", metavar="TEXT", help="What the background may be; repeat it or give a comma list."),
    ] = None,
    background_threshold: Annotated[
        float | None,
        typer.Option(
            "--background-threshold",
            metavar="NUMBER",
            min=0,
            max=1,
            help="Pixels whose probability is below it are background.",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", metavar="PIXELS", min=1, help="Side of a sliding window; by default the whole image."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", metavar="PIXELS", min=1, help="Step between windows; by default half a window.")
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option("--short-side", metavar="PIXELS", min=1, help="Resize the shorter side to this for the windows."),
    ] = None,
    synonyms: Synonyms = False,
    out: OutFile = None,
    markdown: MarkdownFile = None,
    overwrite: Overwrite = False,
    preset: PresetName = "mobile",
    clip_checkpoint: ClipCheckpoint = None,
    clip_model: ClipModel = None,
    untrained: Untrained = False,
    image_size: ImageSize = None,
    scales: MapScales = "1",
    depth: Depth = None,
    templates: WhichTemplates = Templates.full,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Measure the class of each pixel: mIoU of architecture, surgery, features, itsm, rclip, maskclip, sclip, clearclip,
    naclip, gem."""
    from text2sam.lab.runner import Settings, main_command

    settings = Settings(
        "semantic", _methods("semantic", method, compare), synonyms=synonyms, window=window, stride=stride,
        short_side=short_side, background_words=tuple(split_list(background_words)),
        background_threshold=background_threshold,
    )  # fmt: skip
    choice = _choice(
        untrained, templates, preset=preset, clip_checkpoint=clip_checkpoint, clip_model=clip_model,
        image_size=image_size, scales=scales, depth=depth, device=device, dtype=dtype,
    )  # fmt: skip
    options = reader_options(option, background)
    _check_files(out, markdown)
    main_command(
        settings, dataset, choice, root=root, split=split, options=options, limit=limit, seed=seed,
        out=out, markdown_file=markdown, overwrite=overwrite, json_output=as_json,
    )  # fmt: skip


@evaluate.command("explainability", epilog=CODES_HELP)
def evaluate_explainability(
    dataset: DatasetName,
    root: Root = None,
    split: SplitName = None,
    method: OneMethod = None,
    compare: Compared = None,
    iclip: Annotated[
        Path | None, typer.Option("--iclip", metavar="FILE", help="Trained projections for the method iclip.")
    ] = None,
    limit: Limit = None,
    seed: Seed = None,
    option: ReaderOption = None,
    background: Background = None,
    threshold_rule: Annotated[
        ThresholdRule, typer.Option("--threshold-rule", help="Which mIoU is shown: one threshold for all, per class or image.")
    ] = ThresholdRule.dataset,
    average: Annotated[
        Average, typer.Option("--average", help="Means over samples, or over the samples of each class, then classes.")
    ] = Average.samples,
    label_set: Annotated[
        bool, typer.Option("--label-set/--empty-text", help="What feature surgery is against: the classes, or the empty text.")
    ] = True,
    synonyms: Synonyms = False,
    out: OutFile = None,
    markdown: MarkdownFile = None,
    overwrite: Overwrite = False,
    preset: PresetName = "mobile",
    clip_checkpoint: ClipCheckpoint = None,
    clip_model: ClipModel = None,
    untrained: Untrained = False,
    image_size: ImageSize = None,
    scales: MapScales = "1",
    depth: Depth = None,
    templates: WhichTemplates = Templates.full,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Measure the map of each class in an image: mIoU and mSC of surgery, architecture, features, itsm, rclip, maskclip, sclip,
    clearclip, naclip, gem, and of gradcam and iclip, which are not in --compare all."""
    from text2sam.lab.runner import Settings, main_command

    settings = Settings(
        "explainability", _methods("explainability", method, compare), synonyms=synonyms, label_set=label_set,
        threshold_rule=threshold_rule.value, average=average.value,
    )  # fmt: skip
    choice = _choice(
        untrained, templates, preset=preset, clip_checkpoint=clip_checkpoint, clip_model=clip_model,
        image_size=image_size, scales=scales, depth=depth, device=device, dtype=dtype,
    )  # fmt: skip
    options = reader_options(option, background)
    _check_files(out, markdown)
    main_command(
        settings, dataset, choice, root=root, split=split, options=options, limit=limit, seed=seed, iclip=iclip,
        out=out, markdown_file=markdown, overwrite=overwrite, json_output=as_json,
    )  # fmt: skip
