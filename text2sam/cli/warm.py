"""``text2sam warm``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from text2sam.cli.common import CODES_HELP, EXIT_FAILED, Json, app, check_folder
from text2sam.cli.options import BatchSize, FolderOptions, ModelOptions, Tiles, parse_tiles, with_options
from text2sam.cli.output import echo, print_json, progress_bar, table
from text2sam.errors import one_line


@app.command(epilog=CODES_HELP)
@with_options
def warm(
    images: FolderOptions,
    embeddings: Annotated[
        Path, typer.Option("--embeddings", metavar="FOLDER", help="Folder for the image embeddings.", show_default=False)
    ],
    models: ModelOptions,
    tiles: Tiles = None,
    batch_size: BatchSize = 8,
    as_json: Json = False,
) -> None:
    """Encode a folder of images ahead of annotate --embeddings, which then skips both encoders."""
    from text2sam.annotate.embeddings import warm as run
    from text2sam.annotate.sources import find_images

    models.check()
    side = parse_tiles(tiles)
    listed = find_images(
        images.folder, recursive=images.recursive, glob=images.glob, list_file=images.list_file, skip=embeddings
    )
    check_folder(embeddings)
    model = models.build()
    with progress_bar(len(listed.items)) as advance:
        report = run(
            model, (item.file for item in listed.items), embeddings, batch_size=batch_size, tiles=side, progress=advance
        )
    failed = [*(dict(listed.refused).items()), *report.failed]
    if as_json:
        print_json({**report.to_json(), "failed": [{"path": str(path), "reason": reason} for path, reason in failed]})
    else:
        rows = [["made", str(report.made)], ["found", str(report.found)], ["failed", str(len(failed))]]
        echo(table(["embeddings", "images"], rows))
        for path, reason in failed:
            echo(one_line(f"{path}: {reason}"))
        echo(f"embeddings in {embeddings}", to_stderr=True)
    if failed and not report.made + report.found:
        raise typer.Exit(EXIT_FAILED)
