"""Data sets of pictures and label files, which is what most of them are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from text2sam.lab.datasets import names
from text2sam.lab.datasets.layout import Colour, picture_shape, read_picture, read_semantic
from text2sam.lab.datasets.sample import Dataset, Sample


def paired(
    name: str,
    title: str,
    homepage: str,
    classes: tuple[str, ...],
    background: bool,
    pairs: Mapping[str, tuple[Path, Path]],
    table: NDArray[np.int32],
    *,
    root: Path,
    split: str = "",
    frame: str = "seen",
    colour: Colour | None = None,
    options: Mapping[str, object] | None = None,
    wording: Mapping[str, str] | None = None,
    synonyms: Mapping[str, tuple[str, ...]] | None = None,
) -> Dataset:
    """A data set of pictures and label files.

    Args:
        name, title, homepage, classes, background, root, split, wording, synonyms: as in
            :class:`~text2sam.lab.datasets.sample.Dataset`.
        pairs: id -> files of picture and labels, in order.
        table: from numbers in label files to indexes of ``classes``.
        frame: what labels lie over where a picture has an EXIF rotation.
        colour: how numbers are in colours; None where they are plain numbers.
        options: of the reader, besides ``background`` and ``frame``.
    """
    ids = tuple(pairs)

    def make(place: int) -> Sample:
        picture, labels = pairs[ids[place]]
        return Sample(
            ids[place],
            classes,
            background,
            read_image=lambda: read_picture(picture, frame),
            read_shape=lambda: picture_shape(picture, frame),
            read_semantic=lambda: read_semantic(labels, table, colour=colour),
            path=picture,
            label_path=labels,
        )

    return Dataset(
        name,
        title,
        classes,
        background,
        ("recognition", "semantic", "explainability"),
        ids,
        make,
        split=split,
        root=root,
        homepage=homepage,
        options={"background": background, "frame": frame, **(options or {})},
        wording=wording or {},
        synonyms=names.synonyms(classes) if synonyms is None else synonyms,
    )


def with_background(classes: tuple[str, ...], background: bool) -> tuple[str, ...]:
    """The classes, after ``"background"`` where that counts as one."""
    return (("background",) if background else ()) + classes
