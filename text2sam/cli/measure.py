"""``text2sam bench | evaluate``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from text2sam.cli.common import (
    CODES_HELP,
    Device,
    Json,
    app,
    check_folder,
    split_list,
)

if TYPE_CHECKING:
    pass


@app.command(epilog=CODES_HELP)
def bench(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="What to measure: all, text, surgery, images or recipe.")
    ] = "all",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    sam_checkpoint: Annotated[
        Path | None, typer.Option("--sam-checkpoint", metavar="FILE", help="Measure this SAM too, such as mobile_sam.pt.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure text2sam against a plain implementation of the reference's way, and its default recipe against the papers'."""
    from text2sam.evaluation.bench import Settings, main_command

    main_command(suite, out, as_json, Settings(device=device, sam_checkpoint=sam_checkpoint))


evaluate = typer.Typer(
    help="Measure how well text2sam does.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.add_typer(evaluate, name="evaluate")


class Split(str, Enum):
    """Which scenes are drawn, see :data:`text2sam.evaluation.sticker.SPLITS`."""

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
    from text2sam.evaluation.sticker import Settings, main_command

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
    from text2sam.evaluation.photos import Settings
    from text2sam.evaluation.photos import evaluate_photos as evaluate_on

    settings = Settings(split=split.value, photos=photos)
    evaluate_on(folder, sam_checkpoint=sam_checkpoint, settings=settings, out=out, json_output=as_json, device=device)
