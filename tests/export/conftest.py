"""Annotated images for the exporters: parts, holes, overlaps, an empty image, odd names."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from text2sam.export.annotated import AnnotatedImage, AnnotatedObject

LABELS = ["cat", "a \"b': #c", "ça/../x\ny"]
Masks = dict[str, list[tuple[str, NDArray[np.bool_]]]]


def picture(text: str) -> NDArray[np.bool_]:
    return np.array([[char == "#" for char in row] for row in text.split()])


RING = picture(".#####.. .#...#.. .#.#.#.. .#...#.. .#####.. ........")
PARTS = picture("##...... ##...... ........ .....### .....#.# .....###")
CORNER = picture("........ ..##.... ..##.... ....##.. ....##.. .......#")
FULL = np.ones((6, 8), np.bool_)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def images() -> list[AnnotatedImage]:
    def objects(*pairs: tuple[str, NDArray[np.bool_], float]) -> tuple[AnnotatedObject, ...]:
        return tuple(AnnotatedObject.from_mask(*pair) for pair in pairs)

    return [
        AnnotatedImage("a.jpg", 6, 8, objects((LABELS[0], RING, 0.9), (LABELS[1], PARTS, 0.5), (LABELS[0], CORNER, 0.25))),
        AnnotatedImage("sub/empty.png", 5, 7),
        AnnotatedImage("sub/ü b.png", 6, 8, objects((LABELS[2], FULL, 1.0), (LABELS[1], RING, 0.75))),
        AnnotatedImage("one.png", 1, 1, objects((LABELS[0], np.ones((1, 1), np.bool_), 0.125))),
    ]


@pytest.fixture
def labels() -> list[str]:
    return list(LABELS)


@pytest.fixture
def root(tmp_path: Path, images: list[AnnotatedImage]) -> Path:
    """The pictures on disk."""
    folder = tmp_path / "photos"
    for image in images:
        path = folder / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((image.height, image.width, 3), 90, np.uint8)).save(path)
    return folder


@pytest.fixture
def truth(images: list[AnnotatedImage]) -> Masks:
    return {image.path: [(item.label, item.mask) for item in image.objects] for image in images}


@pytest.fixture
def quiet() -> Callable[..., Any]:
    """Calls a function and hides what it prints."""

    def call(function: Callable[..., Any], *args: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return function(*args)

    return call


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of the files below a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def content() -> Callable[[Path], dict[str, bytes]]:
    return files
