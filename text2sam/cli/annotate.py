"""``text2sam annotate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from text2sam.cli.common import CODES_HELP, EXIT_FAILED, Json, app, split_list
from text2sam.cli.options import BatchSize, FolderOptions, HowOptions, ImageOptions, ModelOptions, option, with_options
from text2sam.cli.output import echo, print_json, show_progress
from text2sam.errors import InputError
from text2sam.files import check_folder

_POLYGONS = {"coco": {"segmentation": "polygon"}, "labelme": {"shapes": "polygon"}}


@app.command(epilog=CODES_HELP)
@with_options
def annotate(
    images: FolderOptions,
    labels: Annotated[
        str,
        option(
            "--labels",
            "A,B|FILE",
            "What to look for: a comma list; a .txt or .names file with a name per line; or a YAML or JSON file with synonyms, "
            "excludes and thresholds.",
        ),
    ],
    out: Annotated[Path, option("--out", "FOLDER", "Folder for the dataset.")],
    models: ModelOptions,
    how: HowOptions,
    reading: ImageOptions,
    formats: Annotated[
        list[str] | None,
        option("--format", "NAME", "coco, yolo, labelme, png or label-studio; repeat it or give a comma list (default: coco)."),
    ] = None,
    polygons: Annotated[bool, typer.Option("--polygons", help="Outlines instead of masks, in coco and labelme.")] = False,
    limit: Annotated[int | None, option("--limit", "N", "Only the first N images.", min=1)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard what an earlier run has finished.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again the images that failed earlier.")] = False,
    review: Annotated[
        Path | None, option("--review", "FILE", "Also write an HTML contact sheet, least certain images first.")
    ] = None,
    embeddings: Annotated[
        Path | None,
        option("--embeddings", "FOLDER", "Keep image embeddings here, some 10 MB an image, for runs with other labels."),
    ] = None,
    engine: Annotated[Literal["local", "ray"], option("--engine", "local|ray", "This process, or Ray.")] = "local",
    workers: Annotated[
        int | None, option("--workers", "N", "Batches at a time (default: one per core; on a GPU 1).", min=1)
    ] = None,
    batch_size: BatchSize = None,
    strict: Annotated[bool, typer.Option("--strict", help=f"Exit with code {EXIT_FAILED} when any image failed.")] = False,
    as_json: Json = False,
) -> None:
    """Annotate a folder of images: a folder in, a dataset out.

    A run that was killed continues when it is started again, and ends with the same dataset. Images that cannot be read are
    listed in the report, which is also in OUT/.text2sam/report.json.
    """
    from text2sam.annotate.labels import label_set
    from text2sam.export.formats import FORMATS

    models.check()
    general, own = how.thresholds()
    wanted = label_set(labels, split_list(how.against), general).with_options(threshold=own)
    kinds = split_list(formats) or ["coco"]
    unknown = [name for name in kinds if name not in FORMATS]
    if unknown:
        raise InputError(f"--format must be of {', '.join(FORMATS)}, not {unknown[0]!r}")
    options = how.options()
    build = how.builder(models)
    check_folder(out)

    from text2sam.annotate.job import annotate as run

    runner = None
    if engine == "ray":
        from text2sam.annotate.ray import ray_engine

        runner = ray_engine(workers=workers)
    report = run(
        build,
        labels=wanted,
        out=out,
        **vars(images),
        format={kind: _POLYGONS.get(kind, {}) if polygons else {} for kind in kinds},
        limit=limit,
        strategy=options.strategy,
        method=options.method,
        tiles=options.tiles,
        max_objects=options.max_objects,
        **reading.keywords(),
        batch_size=batch_size,
        workers=workers,
        embeddings=embeddings,
        overwrite=overwrite,
        retry_failed=retry_failed,
        review=review,
        progress=show_progress(as_json),
        engine=runner,
    )
    if as_json:
        print_json({**report.to_json(), "formats": kinds, "out": os.fspath(out)})
    else:
        echo(report.table())
        echo(f"dataset in {out}", to_stderr=True)
    if report.failed and (strict or len(report.failed) == report.images):
        raise typer.Exit(EXIT_FAILED)
