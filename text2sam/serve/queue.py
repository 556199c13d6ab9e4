"""What both services share: one model, a queue before it, and bounds on what is sent."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from text2sam.checks import check_number
from text2sam.decode import open_picture, pillow_errors
from text2sam.errors import InputError, Text2SamError, needed
from text2sam.image import read_image

if TYPE_CHECKING:
    from text2sam.pipeline import TextPromptedSAM

_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """Bounds of a service.

    Attributes:
        megabytes: the largest request body, in units of 10**6 bytes.
        pixels: the most pixels of an image.
        texts: the most texts of a request, besides the labels of a Label Studio project.
        waiting: how many requests may wait for the model, besides the one it works on.

    Raises:
        InputError: one is not a whole number of at least 1, or ``waiting`` is below 0.
    """

    megabytes: int = 20
    pixels: int = 50_000_000
    texts: int = 32
    waiting: int = 16

    def __post_init__(self) -> None:
        for name in ("megabytes", "pixels", "texts"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("waiting", self.waiting, 0, whole=True)

    @property
    def bytes(self) -> int:
        """The largest request body in bytes."""
        return self.megabytes * 1_000_000


class ModelQueue:
    """One model for many callers: one request is worked on at a time, a few wait, the others are turned away.

    Args:
        model: used by this queue alone.
        limits: how many may wait.
    """

    def __init__(self, model: TextPromptedSAM, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self._turn = anyio.Lock()
        self._waiting = 0

    async def run(self, work: Callable[[TextPromptedSAM], _T]) -> _T:
        """What ``work`` makes of the model, in a thread.

        Raises:
            HTTPException: status 503 where too many wait already, 400 for any Text2SamError.
        """
        from fastapi import HTTPException

        if self._waiting > self.limits.waiting:
            detail = f"{self.limits.waiting} requests wait already; try again in a while"
            raise HTTPException(503, detail, headers={"Retry-After": "5"})
        self._waiting += 1
        try:
            async with self._turn:
                return await anyio.to_thread.run_sync(work, self.model)
        except Text2SamError as error:
            raise HTTPException(400, str(error)) from error
        finally:
            self._waiting -= 1


def decode(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """An image file's bytes as (H, W, 3) uint8 RGB, as a person sees it.

    Raises:
        ImageError: they are no image that Pillow reads, or it has too many pixels.
    """
    with pillow_errors("the file"):
        picture = open_picture(io.BytesIO(data), limits.pixels)
        return read_image(picture, max_pixels=limits.pixels)


def check_texts(texts: Sequence[str], limits: Limits) -> None:
    """Checks how many texts a request looks for; each of ``"a+b"`` counts.

    Raises:
        InputError: there are more than may be.
    """
    count = sum(text.count("+") + 1 for text in texts)
    if count > limits.texts:
        raise InputError(f"at most {limits.texts} texts at once, not {count}")


def check_installed() -> None:
    """Checks that the packages of the services are there.

    Raises:
        MissingDependencyError: one is not.
    """
    for module, package in (("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("python_multipart", "python-multipart")):
        needed(module, package, "serving over HTTP", "serve")
