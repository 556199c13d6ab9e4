"""The commands ``text2sam evaluate`` and ``text2sam bench``, added to the command line by :func:`register`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from text2sam.cli.common import CODES_HELP, Json, new_app, split_list
from text2sam.cli.options import Device, ModelOptions, Tiles, option, parse_tiles, with_options
from text2sam.cli.output import echo
from text2sam.errors import InputError, Text2SamError
from text2sam.files import check_file, check_folder
from text2sam.lab.output import reporting, track

if TYPE_CHECKING:
    from text2sam.lab.runner.settings import RunTask

evaluate = new_app(help="Measure the quality of text2sam.", no_args_is_help=True)


Out = Annotated[Path | None, option("--out", "FILE", "Also write the figures to this JSON file.")]
SamCheckpoint = Annotated[str | None, option("--sam-checkpoint", "FILE|NAME", "Other SAM weights: a file, or a listed name.")]
Strategies = Annotated[
    list[str] | None,
    option(
        "--strategy",
        "NAME",
        "A recipe; repeat it or give a comma list (default: paper,objects). Differences are relative to the first.",
    ),
]
Background = Annotated[
    bool | None, typer.Option("--background/--no-background", help="Treat pixels of no class as a class, or ignore them.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(epilog=CODES_HELP)(bench)
    app.add_typer(evaluate, name="evaluate")


def bench(
    suite: Annotated[
        str,
        typer.Argument(metavar="SUITE", help="What to measure: all, text, surgery, images, recipe, sam, annotate or peers."),
    ] = "all",
    out: Out = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare the speed of text2sam with a plain implementation of the papers, and its default recipe with the papers'."""
    from text2sam.lab.bench import Settings, run, table

    with reporting(table, out, as_json) as report:
        if sys.stderr.isatty():
            echo("measuring; this takes a few minutes", to_stderr=True)
        report(run(suite, Settings(device=device)))


@evaluate.command("sticker", epilog=CODES_HELP)
def evaluate_sticker(
    scenes: Annotated[int, option("--scenes", "N", "Number of scenes.", min=1)] = 300,
    split: Annotated[
        Literal["report", "tune"],
        option("--split", "report|tune", "The scenes for reporting, or those for choosing thresholds."),
    ] = "report",
    strategies: Strategies = None,
    sam_checkpoint: SamCheckpoint = None,
    device: Device = None,
    out: Out = None,
    pictures: Annotated[
        Path | None, option("--pictures", "FOLDER", "Draw the largest gains and the worst failures to this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare recipes on drawn scenes with exact masks: 1 to 6 things, repeated names, absent names."""
    from text2sam.lab.experiments import sticker
    from text2sam.lab.metrics import scikit_learn
    from text2sam.pipeline import TextPromptedSAM

    if pictures is not None:
        check_folder(pictures)
    options: dict[str, Any] = {"strategies": tuple(split_list(strategies))} if strategies else {}
    settings = sticker.Settings(scenes=scenes, split=split, sam_checkpoint=sam_checkpoint, device=device, **options)
    if pictures is not None and len(settings.strategies) < 2:
        raise InputError("--pictures compares two recipes; name a second one with --strategy")
    progress = sys.stderr.isatty()
    with reporting(sticker.table, out, as_json) as report:
        sticker.draw_scene(settings.seeds.start)  # fail before models are built if a package is missing
        scikit_learn()
        model = TextPromptedSAM.from_pretrained("sticker", device=device, sam_checkpoint=sam_checkpoint, progress=progress)
        drawn = (sticker.draw_scene(seed) for seed in track(settings.seeds, "scenes", progress))
        records = sticker.measure(model, drawn, settings.strategies)
        report(sticker.report(records, settings))
    if pictures is not None:
        sticker.write_pictures(pictures, model, records)


@evaluate.command("photos", epilog=CODES_HELP)
@with_options
def evaluate_photos(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="COCO's format: instances.json, and images.", show_default=False)
    ],
    models: ModelOptions,
    half: Annotated[
        Literal["tuning", "reporting", "all"],
        option("--half", "tuning|reporting|all", "Every second photo, for choosing; the others, for reporting; or all."),
    ] = "reporting",
    strategies: Strategies = None,
    photos: Annotated[int | None, option("--photos", "N", "Largest number of photos of the half.", min=1)] = None,
    embeddings: Annotated[Path | None, option("--embeddings", "FOLDER", "Cache encoded photos in this folder.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare recipes on annotated photos: IoU by size of the target, presence, calls of SAM."""
    from text2sam.lab.experiments.photos import Settings, measure, open_photos, photos_of, table

    models.check()
    options: dict[str, Any] = {"strategies": tuple(split_list(strategies))} if strategies else {}
    settings, dataset = Settings(half=half, photos=photos, **options), open_photos(folder)
    photos_of(dataset, settings)  # fail before a model is built
    with reporting(table, out, as_json) as report:
        report(measure(models.build(), dataset, settings, embeddings=embeddings, progress=sys.stderr.isatty()))


@evaluate.command("dataset", epilog=CODES_HELP)
def evaluate_dataset(
    found: Annotated[
        Path, typer.Argument(metavar="FOUND", help="The annotations.json of text2sam annotate.", show_default=False)
    ],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="The true data set in COCO's format.", show_default=False)],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare an annotated data set with the truth: labels found, missed and wrong, and the IoU of their masks."""
    from text2sam.lab.experiments import dataset

    with reporting(dataset.table, out, as_json) as report:
        report(dataset.report(found, truth))


def evaluate_annotation(
    scenes: Annotated[int, option("--scenes", "N", "Number of scenes.", min=1)] = 500,
    hostile: Annotated[int, option("--hostile", "N", "Number of hostile files among them.", min=0)] = 30,
    kills: Annotated[int, option("--kills", "N", "Number of times the run is killed.", min=0)] = 5,
    folder: Annotated[
        Path | None, option("--folder", "FOLDER", "Keep images and datasets in this folder, which must be empty.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Annotate drawn scenes and hostile files with text2sam annotate, kill and restart it, and check the dataset."""
    from text2sam.lab.experiments.annotation import CHECKS, measure, table

    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="text2sam-annotation-")), "trial")
        with reporting(table, out, as_json) as report:
            result = measure(place, scenes, hostile, kills, progress=sys.stderr.isatty())
            report(result)
    broken = [text for name, text in CHECKS.items() if result["checks"][name] is False]
    if broken:
        raise Text2SamError(f"the trial failed: not {'; not '.join(broken)}")


@dataclass(frozen=True)
class ClipOptions(ModelOptions):
    """The CLIP that is measured."""

    sam_checkpoint: Annotated[
        str | None, option("--sam-checkpoint", "FILE", "Other SAM weights; only for semantic with corrclip or --refine.")
    ] = None
    scales: Annotated[
        str | None,
        option("--scales", "SHARE,...", "Shares of --image-size to average over, such as 0.75,1; the papers use only 1."),
    ] = "1"


@dataclass(frozen=True)
class DataOptions:
    """Data set, methods and outputs of ``evaluate recognition``, ``semantic``, ``explainability`` and ``camouflage``."""

    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="voc, context, coco, coco-stuff, cityscapes, ade, imagenet-s50, nus-wide, camvid, cod10k, potsdam, folder or "
            "sticker.",
            show_default=False,
        ),
    ]
    root: Annotated[Path | None, option("--root", "DIR", "The folder of the data set.")] = None
    split: Annotated[str | None, option("--split", "NAME", "A split of the data set (default: the usual split).")] = None
    method: Annotated[str | None, option("--method", "NAME", "A method (default: the papers').")] = None
    compare: Annotated[
        list[str] | None,
        option("--compare", "A,B,C", "Several methods on the same encodings, or all; the help above lists them."),
    ] = None
    limit: Annotated[int | None, option("--limit", "N", "Largest number of images.", min=1)] = None
    seed: Annotated[
        int | None, option("--seed", "S", "With --limit: seed of the choice of images (default: the first).", min=0)
    ] = None
    reader_option: Annotated[
        list[str] | None, option("--option", "KEY=VALUE", "An option of the data set's reader; may be repeated.")
    ] = None
    out: Annotated[
        Path | None,
        option("--out", "FILE", "Also write the result to this JSON file; with a journal beside it, a killed run resumes."),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--resume", help="Delete the measurements of an earlier run, or use them.")
    ] = False
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="Random weights for --clip-model (default ViT-B-16), to measure time and memory."),
    ] = False

    def run(
        self,
        task: RunTask,
        clip: ClipOptions,
        as_json: bool,
        *,
        background: bool | None = None,
        iclip: Path | None = None,
        **settings: Any,
    ) -> None:
        """Measures a task and prints the result; ``settings`` are fields of :class:`text2sam.lab.runner.Settings`."""
        from text2sam.lab import runner
        from text2sam.lab.datasets import open_dataset, subset
        from text2sam.lab.runner.report import table
        from text2sam.lab.runner.settings import parse_methods

        if self.method is not None and self.compare:
            raise InputError("--method names one method and --compare several; give one of the two")
        names = split_list([self.method] if self.method is not None else self.compare)
        chosen = runner.Settings(task, parse_methods(task, names), **settings)
        if clip.sam_checkpoint is not None and not chosen.needs_sam:
            raise InputError(f"no SAM is measured; leave out --sam-checkpoint {clip.sam_checkpoint!r}")
        if self.out is not None:
            check_file(self.out)
        clip.check()
        options = self.reader_options(background)
        data = subset(open_dataset(self.dataset, self.root, split=self.split, **options), self.limit, self.seed)
        data.require(chosen.truth)
        surgery, model = runner.build_surgery(untrained=self.untrained, **clip.keywords())
        predictor = runner.build_sam(**clip.keywords()) if chosen.needs_sam else None
        with reporting(table, None, as_json) as report:
            report(
                runner.measure(
                    surgery,
                    data,
                    chosen,
                    model=model,
                    iclip=iclip,
                    predictor=predictor,
                    out=self.out,
                    overwrite=self.overwrite,
                    progress=sys.stderr.isatty(),
                )
            )

    def reader_options(self, background: bool | None = None) -> dict[str, Any]:
        """The values of ``--option``, parsed as JSON if possible, and of ``--background``.

        Raises:
            InputError: a value is not KEY=VALUE, or a key is given twice.
        """
        options: dict[str, Any] = {} if background is None else {"background": background}
        for value in self.reader_option or ():
            key, sign, text = (part.strip() for part in value.partition("="))
            if not sign or not key.isidentifier():
                raise InputError(f"--option must be KEY=VALUE, not {value!r}")
            if key in ("name", "root", "split"):
                raise InputError(f"--option is for options of the reader, and {key!r} is none")
            if key in options:
                raise InputError(f"the option {key!r} is given twice")
            try:
                options[key] = json.loads(text)
            except ValueError:
                options[key] = text
        return options


if importlib.util.find_spec("text2sam.lab.experiments.annotation"):  # which the wheel does not contain
    evaluate.command("annotation", epilog=CODES_HELP)(evaluate_annotation)


@evaluate.command("recognition", epilog=CODES_HELP)
@with_options
def evaluate_recognition(data: DataOptions, clip: ClipOptions, as_json: Json = False) -> None:
    """Measure multi-label recognition: mAP of surgery, cosine, softmax, sigmoid."""
    data.run("recognition", clip, as_json)


@evaluate.command("semantic", epilog=CODES_HELP)
@with_options
def evaluate_semantic(
    data: DataOptions,
    clip: ClipOptions,
    background: Background = None,
    background_words: Annotated[
        list[str] | None, option("--background-word", "TEXT", "A text for the background; repeat it or give a comma list.")
    ] = None,
    background_threshold: Annotated[
        float | None,
        option("--background-threshold", "NUMBER", "Pixels with a lower probability are background.", min=0, max=1),
    ] = None,
    window: Annotated[
        int | None, option("--window", "PIXELS", "Side of a sliding window (default: the whole image).", min=1)
    ] = None,
    stride: Annotated[int | None, option("--stride", "PIXELS", "Step between windows (default: half a window).", min=1)] = None,
    short_side: Annotated[
        int | None, option("--short-side", "PIXELS", "Resize the shorter side to this for the windows.", min=1)
    ] = None,
    tiles: Tiles = None,
    refine: Annotated[
        str | None,
        option("--refine", "regions", "Each region that SAM sees takes the class of most of its pixels."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure semantic segmentation: mIoU of architecture, surgery, features, itsm, rclip, maskclip, sclip, clearclip,
    naclip, gem, pearl, resclip, and of corrclip, which needs the preset's SAM and is not in --compare all."""
    data.run(
        "semantic",
        clip,
        as_json,
        background=background,
        background_words=tuple(split_list(background_words)),
        background_threshold=background_threshold,
        window=window,
        stride=stride,
        short_side=short_side,
        tiles=parse_tiles(tiles),
        refine=refine,
    )


@evaluate.command("explainability", epilog=CODES_HELP)
@with_options
def evaluate_explainability(
    data: DataOptions,
    clip: ClipOptions,
    background: Background = None,
    iclip: Annotated[Path | None, option("--iclip", "FILE", "Trained projections for the method iclip.")] = None,
    threshold_rule: Annotated[
        Literal["dataset", "class", "image"],
        option("--threshold-rule", "dataset|class|image", "Report mIoU with a threshold per data set, class or image."),
    ] = "dataset",
    label_set: Annotated[
        bool, typer.Option("--label-set/--empty-text", help="Feature surgery over the classes, or with the empty text.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure the map of each class in an image: mIoU and mSC of surgery, architecture, features, itsm, rclip, maskclip, sclip,
    clearclip, naclip, gem, pearl, resclip, and of gradcam and iclip, which are not in --compare all."""
    data.run(
        "explainability",
        clip,
        as_json,
        background=background,
        iclip=iclip,
        label_set=label_set,
        threshold_rule=threshold_rule,
    )


@evaluate.command("camouflage", epilog=CODES_HELP)
@with_options
def evaluate_camouflage(data: DataOptions, clip: ClipOptions, background: Background = None, as_json: Json = False) -> None:
    """Measure the map of each class in an image as a soft mask: S-, E- and weighted F-measure and MAE of surgery, architecture,
    features, itsm, rclip, maskclip, sclip, clearclip, naclip, gem, pearl, resclip."""
    data.run("camouflage", clip, as_json, background=background)
