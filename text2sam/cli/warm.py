"""``text2sam warm``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from text2sam.cli.common import CODES_HELP, EXIT_FAILED, Json, app
from text2sam.cli.options import (
    BatchSize,
    FolderOptions,
    ImageOptions,
    Method,
    ModelOptions,
    Tiles,
    option,
    parse_tiles,
    with_options,
)
from text2sam.cli.output import echo, print_json, show_progress
from text2sam.errors import one_line
from text2sam.files import check_folder
from text2sam.tables import aligned


@app.command(epilog=CODES_HELP)
@with_options
def warm(
    images: FolderOptions,
    embeddings: Annotated[Path, option("--embeddings", "FOLDER", "Folder for the image embeddings, some 10 MB an image.")],
    models: ModelOptions,
    reading: ImageOptions,
    method: Method = "surgery",
    tiles: Tiles = None,
    batch_size: BatchSize = None,
    as_json: Json = False,
) -> None:
    """Encode a folder of images ahead of annotate --embeddings, which then skips both encoders."""
    from text2sam.annotate.job import warm as run
    from text2sam.annotate.sources import find_images

    models.check()
    side, keywords = parse_tiles(tiles), reading.keywords()
    found = find_images(**vars(images), skip=embeddings)
    check_folder(embeddings)
    shown = show_progress(as_json)
    report = run(
        models.build, found.items, embeddings, method=method, tiles=side, batch_size=batch_size, progress=shown, **keywords
    )
    failed = [*found.refused, *report.failed]
    if as_json:
        failures = [{"path": path, "reason": reason} for path, reason in failed]
        print_json({"made": report.made, "found": report.found, "failed": failures})
    else:
        rows = [["made", str(report.made)], ["found", str(report.found)], ["failed", str(len(failed))]]
        echo(aligned(["embeddings", "images"], rows))
        for path, reason in failed:
            echo(one_line(f"{path}: {reason}"))
        echo(f"embeddings in {embeddings}", to_stderr=True)
    if failed and not report.made + report.found:
        raise typer.Exit(EXIT_FAILED)
