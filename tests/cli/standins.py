"""Models that stand for the real ones, and ways to run commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers import FakePredictor
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from text2sam.cli import commands
from text2sam.errors import PromptError
from text2sam.pipeline import TextPromptedSAM
from text2sam.types import Segmentation, SimilarityMap


def run(*arguments: object) -> Result:
    return CliRunner().invoke(commands.app, [str(argument) for argument in arguments], prog_name="text2sam")


def failed(result: Result, code: int) -> str:
    """The message of a command that ended as it should: one line on standard error, nothing on standard output."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("text2sam: error: ")
    assert isinstance(result.exception, SystemExit)
    return result.stderr


def pixels_of(path: Path | str) -> NDArray[Any]:
    with Image.open(path) as picture:
        return np.array(picture)


class Words:
    """A map generator: every text is in the picture, in its middle, but for those in ``absent``."""

    def __init__(self) -> None:
        self.absent = {"rocket"}

    def encode(self, images: Sequence[NDArray[np.uint8]], *, methods: Any = None, tiles: Any = False) -> list[Any]:
        return [image.shape[:2] for image in images]

    def prepare(self, texts: Sequence[str], **_: Any) -> None:
        if any(len(text) > 50 for text in texts):
            raise PromptError("too long")

    def presence(self, features: Any, text: str, *, against: Sequence[str] | None = None) -> float:
        return 0.25 if text in self.absent else 0.75

    def maps(self, features: Any, texts: Sequence[str], **_: Any) -> list[SimilarityMap]:
        values = np.zeros((3, 4), np.float32)
        values[1, 2] = 1
        return [SimilarityMap(values, text) for text in texts]


class Model(TextPromptedSAM):
    """A pair of stand-ins that remembers how it was built and what it was asked."""

    def __init__(self) -> None:
        super().__init__(FakePredictor(), Words())
        self.built: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.results: list[Segmentation] = []
        self.before: Callable[[], None] = lambda: None

    def build(self, preset: str, **options: Any) -> Model:
        self.built.append({"preset": preset, **options})
        return self

    def segment_many(self, image: Any, texts: Any, **options: Any) -> list[Segmentation]:
        self.before()
        self.calls.append({"texts": list(texts), **options})
        self.results = super().segment_many(image, texts, **options)
        return self.results
