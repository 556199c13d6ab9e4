"""The demo: scenes that ship with the package, three things to find in each and one that is not there.

The scenes lie in ``text2sam/zoo/sticker/scenes`` with the true mask of every thing; ``text2sam.lab.sticker.scenes`` draws
them. The pictures are made of OpenMoji glyphs (https://openmoji.org) and are CC BY-SA 4.0 like them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from text2sam.errors import InputError
from text2sam.files import write_json, write_png
from text2sam.paint import overlay
from text2sam.types import Segmentation

SCENES = Path(__file__).parent / "zoo" / "sticker" / "scenes"
"""Folder of the shipped scenes and of ``scenes.json``."""

CREDIT = "drawn by text2sam from OpenMoji glyphs (https://openmoji.org), CC BY-SA 4.0"


@dataclass(frozen=True, eq=False)
class DemoScene:
    """A scene that ships with the package.

    Attributes:
        name: of the scene.
        image: (H, W, 3) uint8 RGB.
        masks: name of each thing in it -> (H, W) bool, where it is seen.
        find: three names that are in it.
        absent: a name that is not.
        seed: it was drawn from.
    """

    name: str
    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    find: tuple[str, ...]
    absent: str
    seed: int


@dataclass(frozen=True, eq=False)
class DemoRow:
    """One question of the demo and its answer.

    Attributes:
        scene: name of the scene.
        text: the question.
        there: whether it is in the scene.
        result: the answer.
        iou: of the mask with the true mask; None for a text that is not in the scene.
        files: kind -> path below the output folder, with forward slashes.
    """

    scene: str
    text: str
    there: bool
    result: Segmentation
    iou: float | None
    files: dict[str, str]

    @property
    def answer(self) -> str:
        """``"found"`` or ``"not here"``."""
        return "found" if self.result.present else "not here"


class SegmentsMany(Protocol):
    """The part of a :class:`text2sam.TextPromptedSAM` that the demo uses."""

    def segment_many(self, image: NDArray[np.uint8], texts: Sequence[str]) -> list[Segmentation]:
        """One result per text."""
        ...


def load_scenes(folder: str | os.PathLike[str] = SCENES) -> tuple[DemoScene, ...]:
    """The scenes of a folder; by default those that ship with the package.

    Raises:
        InputError: a file is missing or broken.
    """
    folder = Path(folder)
    try:
        table = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
        return tuple(
            DemoScene(
                name=entry["name"],
                image=np.array(_open(folder / entry["file"], "RGB")),
                masks={name: np.array(_open(folder / file, "1")) for name, file in entry["masks"].items()},
                find=tuple(entry["find"]),
                absent=entry["absent"],
                seed=entry["seed"],
            )
            for entry in table["scenes"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the scenes in {folder} cannot be read ({error}); reinstall text2sam or draw them anew") from error


def _open(path: Path, mode: str) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert(mode)


def run_demo(
    out: str | os.PathLike[str] = "text2sam-demo",
    *,
    model: SegmentsMany | None = None,
    device: str | None = None,
    scenes: Sequence[str] | None = None,
) -> tuple[list[DemoRow], dict[str, Any]]:
    """Asks for three things that are in each shipped scene and for one that is not, and writes the answers.

    Each scene gets a folder with ``image.png``, a strip of all answers (``strip.png``), and for each text the mask and the
    overlay with points; an empty mask leaves the scene in pale grey. ``demo.json`` holds the figures.

    Args:
        out: the folder to write to.
        model: the model to ask; None takes the sticker pair.
        device: of the sticker pair; None takes the best device of this machine.
        scenes: names of scenes; None takes all.

    Returns:
        One row per question, and the content of ``demo.json``.

    Raises:
        InputError: a scene is unknown.
        WeightsError: the sticker weights are not in the package.
        OutputError: a file cannot be written.
    """
    from text2sam import TextPromptedSAM, __version__

    started = time.perf_counter()
    shipped = {scene.name: scene for scene in load_scenes()}
    names = list(shipped) if scenes is None else list(dict.fromkeys(scenes))
    unknown = [name for name in names if name not in shipped]
    if unknown or not names:
        raise InputError(f"a scene is one of {', '.join(shipped)}, not {unknown[0] if unknown else 'none'!r}")
    asked: SegmentsMany = TextPromptedSAM.from_pretrained("sticker", device=device) if model is None else model
    answers = {name: _ask(asked, shipped[name], Path(out)) for name in names}
    record = {
        "text2sam": __version__,
        "preset": "sticker" if model is None else None,
        "seconds": round(time.perf_counter() - started, 2),
        "credit": CREDIT,
        "scenes": [
            {
                "scene": name,
                "seed": shipped[name].seed,
                "image": f"{name}/image.png",
                "strip": f"{name}/strip.png",
                "results": [{**row.result.to_json(), "there": row.there, "iou": row.iou, "files": row.files} for row in rows],
            }
            for name, rows in answers.items()
        ],
    }
    write_json(Path(out) / "demo.json", record)
    return [row for rows in answers.values() for row in rows], record


def _ask(model: SegmentsMany, scene: DemoScene, out: Path) -> list[DemoRow]:
    write_png(out / scene.name / "image.png", scene.image)
    texts = [*scene.find, scene.absent]
    rows, panels = [], [(scene.image, scene.name)]
    for text, result in zip(texts, model.segment_many(scene.image, texts), strict=True):
        if result.box is None:
            drawn = scene.image.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8) // 3 + 170
        else:
            masks = [instance.mask for instance in result.instances]
            drawn = overlay(scene.image, masks, points=result.points.coords, labels=result.points.labels)
        files = {kind: f"{scene.name}/{text.replace(' ', '-')}_{kind}.png" for kind in ("mask", "overlay")}
        write_png(out / files["mask"], result.mask)
        write_png(out / files["overlay"], drawn)
        truth, mask = scene.masks.get(text), result.mask
        iou = None if truth is None else round(float((mask & truth).sum() / (mask | truth).sum()), 4)
        rows.append(DemoRow(scene.name, text, truth is not None, result, iou, files))
        panels.append((drawn, f"{text}: {rows[-1].answer} ({result.presence:.2f})"))
    write_png(out / scene.name / "strip.png", _strip(panels))
    return rows


def _strip(panels: Sequence[tuple[NDArray[np.uint8], str]]) -> NDArray[np.uint8]:
    """Pictures of one size side by side, each with a caption below it."""
    gap, (height, width) = 8, panels[0][0].shape[:2]
    strip = Image.new("RGB", (gap + len(panels) * (width + gap), height + 3 * gap + 12), "white")
    draw = ImageDraw.Draw(strip)
    for index, (picture, caption) in enumerate(panels):
        left = gap + index * (width + gap)
        strip.paste(Image.fromarray(picture), (left, gap))
        draw.text((left, height + 2 * gap), caption, fill="black")
    return np.asarray(strip)
