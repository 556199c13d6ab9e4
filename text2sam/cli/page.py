"""``text2sam app``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from text2sam.cli.common import CODES_HELP, app, check_address, split_list
from text2sam.cli.options import ModelOptions, option, with_options
from text2sam.cli.output import echo
from text2sam.errors import InputError
from text2sam.files import check_folder


@dataclass(frozen=True)
class PageModels(ModelOptions):
    """The models of the page."""

    preset: Annotated[str, option("--preset", "NAME", "The pair of models; text2sam models list shows them.")] = "photo"


@app.command("app", epilog=CODES_HELP)
@with_options
def page(
    models: PageModels,
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Go through these images one by one.")] = None,
    labels: Annotated[str | None, option("--labels", "A,B|FILE", "With a folder: what to look for, as for annotate.")] = None,
    out: Annotated[Path | None, option("--out", "FOLDER", "With a folder: where the dataset goes.")] = None,
    formats: Annotated[
        list[str] | None, option("--format", "NAME", "With a folder: the dataset's format, as for annotate (default: coco).")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False,
    host: Annotated[str, option("--host", "ADDRESS", "Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, option("--port", "N", "Port (default: a free one from 7860 on).", min=1, max=65535)] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
) -> None:
    """Show a web page: type what to find in a picture, correct it by clicks, download it.

    With a folder the page goes through its images: accept, correct or reject each. What is accepted is in OUT at once, and
    text2sam annotate with the same options (on a GPU with --batch-size 1) goes on from there.
    """
    models.check()
    if folder is None and (labels or out or formats or recursive):
        raise InputError("--labels, --out, --format and --recursive are for a folder of images; name it: text2sam app FOLDER")
    if folder is not None and (labels is None or out is None):
        raise InputError("with a folder give --labels and --out as well")
    if out is not None:
        check_folder(out)
    _, shown = check_address(host, port or 0)

    from text2sam.app.page import close, folder_page, picture_page, serve
    from text2sam.app.workbench import Workbench

    with contextlib.ExitStack() as stack:
        if folder is None:
            bench = Workbench(models.build())
            blocks = picture_page(bench, list(_examples(models.preset)))
        else:
            from text2sam.annotate.job import open_run
            from text2sam.annotate.sources import find_images
            from text2sam.app.folder import BATCH_SIZE, FolderJob

            run = stack.enter_context(
                open_run(
                    models.build,
                    folder,
                    find_images(folder, recursive=recursive, skip=out),
                    labels or "",
                    out or "",
                    format=split_list(formats) or ["coco"],
                    batch_size=BATCH_SIZE,
                )
            )
            bench = Workbench(run.model)
            blocks = folder_page(stack.enter_context(contextlib.closing(FolderJob(run, bench))))
        address = serve(blocks, host=shown, port=port, browser=browser)
        stack.callback(close, blocks)
        echo(f"text2sam app at {address}; Ctrl-C ends it")
        threading.Event().wait()


def _examples(preset: str) -> Iterator[tuple[str, Any, str]]:
    """Pictures to begin with, that the models know things in."""
    from text2sam.demo import load_photos, load_scenes

    for scene in load_scenes() if preset == "sticker" else load_photos():
        yield scene.name, scene.image, ", ".join(scene.find)
