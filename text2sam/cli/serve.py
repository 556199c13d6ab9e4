"""``text2sam serve`` and ``text2sam label-studio``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from text2sam.cli.common import CODES_HELP, app
from text2sam.cli.options import ModelOptions, with_options
from text2sam.cli.output import echo
from text2sam.errors import InputError

if TYPE_CHECKING:
    from text2sam.serve.desk import Limits

Host = Annotated[
    str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; others can reach anything but 127.0.0.1.")
]
Port = Annotated[int, typer.Option("--port", metavar="N", help="Port to listen on.", min=1, max=65535)]
Megabytes = Annotated[int, typer.Option("--max-megabytes", metavar="N", help="The largest request.", min=1)]
MaxPixels = Annotated[int, typer.Option("--max-pixels", metavar="N", help="The most pixels of an image.", min=1)]
Queue = Annotated[int, typer.Option("--queue", metavar="N", help="Requests that may wait; others get status 503.", min=0)]


@app.command(epilog=CODES_HELP)
@with_options
def serve(
    models: ModelOptions,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_megabytes: Megabytes = 20,
    max_pixels: MaxPixels = 50_000_000,
    queue: Queue = 16,
) -> None:
    """Serve the model over HTTP: POST an image and texts to /v1/segment; /docs describes the interface."""
    limits = _limits(max_megabytes, max_pixels, queue)
    models.check()
    from text2sam.serve.service import create_app

    _run(create_app(models.build(), limits, name=models.preset), host, port)


@app.command("label-studio", epilog=CODES_HELP)
@with_options
def label_studio(
    models: ModelOptions,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FOLDER", help="What Label Studio serves as local files.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="ADDRESS", help="Label Studio; its key: LABEL_STUDIO_API_KEY.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 9090,
    max_megabytes: Megabytes = 20,
    max_pixels: MaxPixels = 50_000_000,
    queue: Queue = 16,
) -> None:
    """Serve the model as a backend of Label Studio: brushes for texts, and for clicks of smart tools."""
    limits = _limits(max_megabytes, max_pixels, queue)
    models.check()
    if images is not None and not images.is_dir():
        raise InputError(f"--images must be a folder, not {str(images)!r}")
    from text2sam.serve.label_studio import create_backend

    token = os.environ.get("LABEL_STUDIO_API_KEY")
    _run(create_backend(models.build(), folder=images, url=url, token=token, limits=limits, name=models.preset), host, port)


def _limits(megabytes: int, pixels: int, waiting: int) -> Limits:
    from text2sam.serve.desk import Limits, check_installed

    check_installed()
    return Limits(megabytes=megabytes, pixels=pixels, waiting=waiting)


def _run(service: Any, host: str, port: int) -> None:
    import socket

    import uvicorn

    try:
        with socket.create_server((host, port)):  # uvicorn would say it in a log, and exit with a code of its own
            pass
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --host or --port") from error
    echo(f"listening on http://{host}:{port}", to_stderr=True)
    uvicorn.run(service, host=host, port=port, log_level="warning")
