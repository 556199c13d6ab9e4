"""``text2sam annotate | warm``: folders of images."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from text2sam.cli.common import (
    CODES_HELP,
    EXIT_FAILED,
    Against,
    CalibrationFile,
    ClipCheckpoint,
    ClipModel,
    Depth,
    Device,
    Dtype,
    How,
    ImageSize,
    Json,
    Method,
    NoZoom,
    PresetName,
    Recipe,
    SamCheckpoint,
    Scales,
    Templates,
    Threshold,
    TileSide,
    WhichTemplates,
    app,
    build_model,
    check_folder,
    echo,
    print_json,
    scales_of,
    split_list,
    table,
    thresholds_of,
    tiles_of,
)
from text2sam.errors import InputError
from text2sam.tables import one_line

if TYPE_CHECKING:
    from text2sam.annotate.labels import LabelSet
    from text2sam.pipeline import TextPromptedSAM


class Engine(str, Enum):
    """Where the work is done."""

    local = "local"
    ray = "ray"


_POLYGONS = {"coco": {"segmentation": "polygon"}, "labelme": {"shapes": "polygon"}}

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of images.", show_default=False)]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into its folders as well.")]
Glob = Annotated[str | None, typer.Option("--glob", metavar="PATTERN", help="Only these, such as '*.png' or 'day-*/**/*.jpg'.")]
ListFile = Annotated[
    Path | None, typer.Option("--list", metavar="FILE", help="Only the images this file names, a path per line.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images that CLIP encodes at once.")]


def label_set(labels: str, against: list[str] | None = None, threshold: list[str] | None = None) -> LabelSet:
    """What ``--labels``, ``--against`` and ``--threshold`` say.

    Args:
        labels: a comma list; or a file in YAML, known by its ending, which may say more (or a ``.txt`` with a name per line).
        against: further texts of the label set for feature surgery.
        threshold: numbers for all labels that have none of their own, ``NAME=NUMBER`` for one.

    Raises:
        PromptError, InputError: a label, text or number is not usable, or the file is not.
    """
    from text2sam.annotate.labels import load_labels, parse_labels

    found = load_labels(labels) if labels.lower().endswith((".yaml", ".yml", ".txt")) else parse_labels(labels)
    limits = thresholds_of(threshold, found.names)
    if isinstance(limits, dict):
        unknown = [name for name in limits if name not in found.names]
        if unknown:
            raise InputError(f"--threshold is given for {unknown[0]!r}, which is no label; they are {list(found.names)}")
    named = {value.rpartition("=")[0].strip() for value in split_list(threshold)} - {""}
    specs = []
    for one in found.labels:
        limit = limits.get(one.name) if isinstance(limits, dict) else limits
        own = one.threshold is not None and one.name not in named
        specs.append(one if limit is None or own else replace(one, threshold=limit))
    extra = [text for text in split_list(against) if text not in found.against]
    return replace(found, labels=tuple(specs), against=(*found.against, *extra))


@app.command(epilog=CODES_HELP)
def annotate(
    folder: Folder,
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            metavar="A,B|FILE",
            help="What to look for: a comma list, or a YAML file with synonyms, excludes and thresholds.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the dataset is written.", show_default=False)],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="coco, yolo, labelme, png or label-studio; repeat it or give a comma list (default: coco).",
            show_default=False,
        ),
    ] = None,
    polygons: Annotated[bool, typer.Option("--polygons", help="Outlines instead of masks, in coco and labelme.")] = False,
    recursive: Recursive = False,
    glob: Glob = None,
    list_file: ListFile = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only so many images.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw away what an earlier run here has finished.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try images that failed once more.")] = False,
    review: Annotated[
        Path | None,
        typer.Option("--review", metavar="FILE", help="Also write an HTML contact sheet, least sure images first."),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option("--embeddings", metavar="FOLDER", help="Keep image embeddings here, for runs with other labels."),
    ] = None,
    engine: Annotated[Engine, typer.Option("--engine", help="This process, or Ray's workers.")] = Engine.local,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Batches at a time (default: one per core; on a GPU 1)."),
    ] = None,
    batch_size: BatchSize = 8,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 6 when an image failed.")] = False,
    preset: PresetName = "mobile",
    clip_checkpoint: ClipCheckpoint = None,
    clip_model: ClipModel = None,
    sam_checkpoint: SamCheckpoint = None,
    device: Device = None,
    dtype: Dtype = None,
    against: Against = None,
    threshold: Threshold = None,
    calibration: CalibrationFile = None,
    method: How = Method.surgery,
    strategy: Recipe = "objects",
    no_zoom: NoZoom = False,
    tiles: TileSide = None,
    templates: WhichTemplates = Templates.full,
    image_size: ImageSize = None,
    scales: Scales = None,
    depth: Depth = None,
    as_json: Json = False,
) -> None:
    """Annotate a folder of images: a folder in, a dataset out.

    Killed at any moment and started again it goes on where it was, and the dataset is the same as without the interruption.
    An image that cannot be read costs a line in the report, which is also in OUT/.text2sam/report.json.
    """
    from text2sam.export.formats import FORMATS
    from text2sam.presence import Calibration
    from text2sam.recipes import get_strategy
    from text2sam.zoo.presets import get_preset

    get_preset(preset)
    wanted = label_set(labels, against, threshold)
    kinds = split_list(formats) or ["coco"]
    unknown = [name for name in kinds if name not in FORMATS]
    if unknown:
        raise InputError(f"--format must be of {', '.join(FORMATS)}, not {unknown[0]!r}")
    get_strategy(strategy)
    side, shares = tiles_of(tiles), scales_of(scales)
    fitted = None if calibration is None else Calibration.load(calibration)
    check_folder(out)
    if review is not None:
        check_folder(review.parent)

    def make() -> TextPromptedSAM:
        model = build_model(
            preset,
            templates,
            device=device,
            dtype=dtype,
            clip_checkpoint=clip_checkpoint,
            clip_model=clip_model,
            sam_checkpoint=sam_checkpoint,
            depth=depth,
            image_size=image_size,
            scales=shares,
        )
        if fitted is not None:
            model.use(fitted)
        return model

    from text2sam.annotate.job import annotate as run

    report = run(
        make,
        folder,
        wanted,
        out,
        format={kind: _POLYGONS.get(kind, {}) if polygons else {} for kind in kinds},
        recursive=recursive,
        glob=glob,
        list_file=list_file,
        limit=limit,
        strategy=strategy,
        method=method.value,
        zoom=False if no_zoom else "auto",
        tiles=side,
        batch_size=batch_size,
        workers=workers,
        embeddings=embeddings,
        overwrite=overwrite,
        retry_failed=retry_failed,
        review=review,
        progress=sys.stderr.isatty(),
        engine=_engine(engine, workers),
    )
    if as_json:
        print_json({**report.to_json(), "formats": kinds, "out": os.fspath(out)})
    else:
        echo(report.table())
        echo(f"dataset in {out}", to_stderr=True)
    if strict and report.failed:
        raise typer.Exit(EXIT_FAILED)


def _engine(engine: Engine, workers: int | None) -> Any:
    if engine is Engine.local:
        return None
    from text2sam.annotate.ray import ray_engine

    return ray_engine(workers=workers)


@app.command(epilog=CODES_HELP)
def warm(
    folder: Folder,
    embeddings: Annotated[
        Path, typer.Option("--embeddings", metavar="FOLDER", help="Where image embeddings are kept.", show_default=False)
    ],
    recursive: Recursive = False,
    glob: Glob = None,
    list_file: ListFile = None,
    batch_size: BatchSize = 8,
    preset: PresetName = "mobile",
    clip_checkpoint: ClipCheckpoint = None,
    clip_model: ClipModel = None,
    sam_checkpoint: SamCheckpoint = None,
    device: Device = None,
    dtype: Dtype = None,
    tiles: TileSide = None,
    image_size: ImageSize = None,
    scales: Scales = None,
    depth: Depth = None,
    as_json: Json = False,
) -> None:
    """Encode a folder of images ahead, for annotate --embeddings: with these both encoders are skipped."""
    from text2sam.annotate.embeddings import warm as run
    from text2sam.annotate.sources import find_images
    from text2sam.zoo.presets import get_preset

    get_preset(preset)
    side = tiles_of(tiles)
    found = find_images(folder, recursive=recursive, glob=glob, list_file=list_file, skip=embeddings)
    check_folder(embeddings)
    model = build_model(
        preset,
        Templates.short,
        device=device,
        dtype=dtype,
        clip_checkpoint=clip_checkpoint,
        clip_model=clip_model,
        sam_checkpoint=sam_checkpoint,
        depth=depth,
        image_size=image_size,
        scales=scales_of(scales),
    )
    from tqdm import tqdm

    with tqdm(total=len(found.items), unit="image", disable=not sys.stderr.isatty()) as bar:
        report = run(
            model,
            (item.file for item in found.items),
            embeddings,
            batch_size=batch_size,
            tiles=side,
            progress=lambda done: bar.update(done - bar.n),
        )
    failed = [*(dict(found.refused).items()), *report.failed]
    if as_json:
        print_json({**report.to_json(), "failed": [{"path": str(p), "reason": r} for p, r in failed]})
        return
    echo(
        table(
            ["embeddings", "images"], [["made", str(report.made)], ["found", str(report.found)], ["failed", str(len(failed))]]
        )
    )
    for path, reason in failed:
        echo(one_line(f"{path}: {reason}"))
    echo(f"embeddings in {embeddings}", to_stderr=True)
