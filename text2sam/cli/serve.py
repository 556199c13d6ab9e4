"""``text2sam serve`` and ``text2sam label-studio``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from text2sam.cli.common import CODES_HELP, app, check_address
from text2sam.cli.options import ModelOptions, option, with_options
from text2sam.cli.output import echo
from text2sam.errors import InputError

if TYPE_CHECKING:
    from text2sam.serve.queue import Limits

Port = Annotated[int, option("--port", "N", "Port to listen on.", min=1, max=65535)]


@dataclass(frozen=True)
class ServeOptions:
    """Where to listen, and bounds of what is sent."""

    host: Annotated[str, option("--host", "ADDRESS", "Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1"
    max_megabytes: Annotated[int, option("--max-megabytes", "N", "The largest request.", min=1)] = 20
    max_pixels: Annotated[int, option("--max-pixels", "N", "The most pixels of an image.", min=1)] = 50_000_000
    queue: Annotated[int, option("--queue", "N", "Requests that may wait; others get status 503.", min=0)] = 16

    def limits(self) -> Limits:
        """The bounds; a missing package of the extra ``serve`` is an error before any model is built."""
        from text2sam.serve.queue import Limits, check_installed

        check_installed()
        return Limits(megabytes=self.max_megabytes, pixels=self.max_pixels, waiting=self.queue)


@app.command(epilog=CODES_HELP)
@with_options
def serve(
    models: ModelOptions,
    serving: ServeOptions,
    port: Port = 8000,
) -> None:
    """Serve the model over HTTP: POST an image and texts to /v1/segment; /docs describes the interface."""
    limits = serving.limits()
    models.check()
    place = check_address(serving.host, port)
    from text2sam.serve.service import create_app

    _run(create_app(models.build(), limits, name=models.preset), place, port)


@app.command("label-studio", epilog=CODES_HELP)
@with_options
def label_studio(
    models: ModelOptions,
    serving: ServeOptions,
    images: Annotated[Path | None, option("--images", "FOLDER", "What Label Studio serves as local files.")] = None,
    url: Annotated[str | None, option("--url", "ADDRESS", "Label Studio; its key: LABEL_STUDIO_API_KEY.")] = None,
    port: Port = 9090,
) -> None:
    """Serve the model as a backend of Label Studio: brushes for texts, and for clicks of smart tools."""
    limits = serving.limits()
    models.check()
    place = check_address(serving.host, port)
    if images is not None and not images.is_dir():
        raise InputError(f"--images must be a folder, not {str(images)!r}")
    from text2sam.serve.label_studio import Pictures, create_backend

    pictures = Pictures(images, url, os.environ.get("LABEL_STUDIO_API_KEY"), limits)
    _run(create_backend(models.build(), pictures, name=models.preset), place, port)


def _run(service: Any, place: tuple[str, str], port: int) -> None:
    import uvicorn

    host, shown = place
    echo(f"listening on http://{shown}:{port}", to_stderr=True)
    uvicorn.run(service, host=host, port=port, log_level="warning")
