"""The demo: pictures that need no download, things to find in each and one that is not there.

With the photo pair the pictures are photos that scikit-image ships, free of rights. With the sticker pair they are scenes in
``text2sam/zoo/sticker/scenes`` with the true mask of each thing; ``scenes.json`` holds the seed and the settings with which
:class:`text2sam.lab.sticker.world.World` draws each. They are made of OpenMoji glyphs, CC BY-SA 4.0 (https://openmoji.org), and
have the same licence.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from text2sam.errors import InputError
from text2sam.files import write_json, write_png
from text2sam.paint import overlay
from text2sam.recipes.choose import mask_iou
from text2sam.types import Segmentation

if TYPE_CHECKING:
    from text2sam.pipeline import TextPromptedSAM

SCENES = Path(__file__).parent / "zoo" / "sticker" / "scenes"
"""The folder of the shipped scenes and of ``scenes.json``."""

CREDIT = "drawn by text2sam from OpenMoji glyphs (https://openmoji.org), CC BY-SA 4.0"

PHOTO_CREDIT = (
    "photos that scikit-image ships, in the public domain: astronaut by NASA; dedicated to it (CC0): chelsea by Stefan van der "
    "Walt, coffee by Rachel Michetti, rocket by SpaceX"
)

_CAPTION = 18  # height in pixels
_CONTACT = 320  # width in pixels of a picture in the contact figure
_PHOTOS = (
    ("chelsea", ("cat",), "banana", ()),
    ("astronaut", ("helmet", "space shuttle"), "dog", ()),
    ("coffee", ("cup",), "bus", ()),
    ("rocket", ("rocket",), "sheep", ("tower",)),
)


@dataclass(frozen=True, eq=False)
class DemoScene:
    """A picture of the demo.

    Attributes:
        name: of the scene.
        image: (H, W, 3) uint8 RGB.
        masks: the visible part of each thing, by name, (H, W) bool; empty for photos, whose true masks nobody drew.
        find: names that are in it.
        absent: a name that is not.
        exclude: names of what is to be left out.
        seed: from which it was drawn; None for photos.
    """

    name: str
    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    find: tuple[str, ...]
    absent: str
    seed: int | None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class DemoRow:
    """A question of the demo and its answer.

    Attributes:
        scene: name of the scene.
        text: the text that was looked for.
        there: whether it is in the scene.
        result: the answer.
        iou: of the mask with the true mask; None where there is no true mask.
        files: paths below the output folder by kind, with forward slashes.
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


def load_scenes() -> tuple[DemoScene, ...]:
    """The scenes that ship with the package.

    Raises:
        InputError: a file is missing or broken.
    """
    try:
        table = json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))
        return tuple(
            DemoScene(
                name=entry["name"],
                image=np.array(_open(SCENES / entry["file"], "RGB")),
                masks={name: np.array(_open(SCENES / file, "1")) for name, file in entry["masks"].items()},
                find=tuple(entry["find"]),
                absent=entry["absent"],
                seed=entry["seed"],
            )
            for entry in table["scenes"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the scenes in {SCENES} cannot be read ({error}); reinstall text2sam") from error


def load_photos() -> tuple[DemoScene, ...]:
    """Four photos that scikit-image ships."""
    import skimage.data

    return tuple(
        DemoScene(name, np.ascontiguousarray(getattr(skimage.data, name)()), {}, find, absent, None, exclude)
        for name, find, absent, exclude in _PHOTOS
    )


def _open(path: Path, mode: str) -> Image.Image:
    with Image.open(path) as picture:
        converted: Image.Image = picture.convert(mode)
    return converted


def run_demo(
    out: str | os.PathLike[str] = "text2sam-demo",
    *,
    model: TextPromptedSAM | None = None,
    preset: str = "photo",
    device: str | None = None,
    scenes: Sequence[str] | None = None,
) -> tuple[list[DemoRow], dict[str, Any]]:
    """Looks for things that are in each picture and one that is not, and writes the results.

    Each picture has a folder with ``image.png`` and, for each text, the mask, the overlay with points (the picture in pale grey
    where the mask is empty) and the figures as JSON. ``contact.png`` shows all answers, ``demo.json`` holds all figures.

    Args:
        out: the folder to write to.
        model: the model; by default the preset's.
        preset: ``"photo"``, for photos that scikit-image ships, or ``"sticker"``, for drawn scenes.
        device: of the preset's models; None takes the best there is.
        scenes: names of pictures; by default all.

    Returns:
        One row per question, and what ``demo.json`` holds.

    Raises:
        InputError: the preset or a picture is unknown.
        WeightsError: the weights are not in the package.
        OutputError: a file cannot be written.
    """
    from text2sam import __version__
    from text2sam.pipeline import TextPromptedSAM

    started = time.perf_counter()
    if preset not in ("photo", "sticker"):
        raise InputError(f"the demo works without a download, so its preset is photo or sticker, not {preset!r}")
    shipped = {scene.name: scene for scene in (load_photos() if preset == "photo" else load_scenes())}
    names = list(shipped) if scenes is None else list(dict.fromkeys(scenes))
    unknown = [name for name in names if name not in shipped]
    if unknown or not names:
        raise InputError(f"a scene is one of {', '.join(shipped)}, not {unknown[0] if unknown else 'none'!r}")
    out = Path(out)
    pair = TextPromptedSAM.from_pretrained(preset, device=device) if model is None else model
    rows: list[DemoRow] = []
    records, strips = [], []
    for name in names:
        answers, strip = _answer(pair, shipped[name], out)
        rows += answers
        strips.append(strip)
        results = [{**row.result.to_json(), "there": row.there, "iou": row.iou, "files": row.files} for row in answers]
        records.append({"scene": name, "seed": shipped[name].seed, "image": f"{name}/image.png", "results": results})
    write_png(out / "contact.png", _stacked(strips))
    record = {
        "text2sam": __version__,
        "preset": preset if model is None else None,
        "seconds": round(time.perf_counter() - started, 2),
        "credit": PHOTO_CREDIT if preset == "photo" else CREDIT,
        "contact": "contact.png",
        "scenes": records,
    }
    write_json(out / "demo.json", record)
    return rows, record


def _answer(model: TextPromptedSAM, scene: DemoScene, out: Path) -> tuple[list[DemoRow], NDArray[np.uint8]]:
    """Looks for the texts of a scene and writes its files; the second value is its row of the contact figure."""
    write_png(out / scene.name / "image.png", scene.image)
    texts = [*scene.find, scene.absent]
    rows, strip = [], [_captioned(scene.image, scene.name)]
    for text, result in zip(texts, model.segment_many(scene.image, texts, exclude=scene.exclude), strict=True):
        stem = f"{scene.name}/{text.replace(' ', '-')}"
        files = {"mask": f"{stem}_mask.png", "overlay": f"{stem}_overlay.png", "figures": f"{stem}.json"}
        result.save(out / files["mask"])
        masks, points = [part.mask for part in result.instances], result.points
        drawn = overlay(scene.image, masks, points=points.coords, labels=points.labels) if masks else _pale(scene.image)
        write_png(out / files["overlay"], drawn)
        write_json(out / files["figures"], result.to_json())
        truth = scene.masks.get(text)
        iou = None if truth is None else round(float(mask_iou(result.mask, truth)), 4)
        rows.append(DemoRow(scene.name, text, text in scene.find, result, iou, files))
        caption = f"{text} without {', '.join(scene.exclude)}" if scene.exclude and text in scene.find else text
        strip.append(_captioned(drawn, f"{caption}: {rows[-1].answer} ({result.presence:.2f})"))
    return rows, np.concatenate(strip, axis=1)


def _stacked(strips: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rows of pictures of different width below one another, on white."""
    width = max(strip.shape[1] for strip in strips)
    padding = [((0, 0), (0, width - strip.shape[1]), (0, 0)) for strip in strips]
    return np.concatenate([np.pad(*pair, constant_values=255) for pair in zip(strips, padding, strict=True)])


def _pale(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the image in pale grey, which no result with a mask looks like."""
    grey = np.asarray(Image.fromarray(image).convert("L")) // 3 + 170  # (H, W)
    return np.repeat(grey[..., None], 3, axis=2)


def _captioned(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """(h + 18, 324, 3) uint8: the image, 320 pixels wide, with a line of text above it and a white edge."""
    small = Image.fromarray(image)
    small = small.resize((_CONTACT, max(1, round(small.height * _CONTACT / small.width))), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (small.width + 4, small.height + _CAPTION), "white")
    ImageDraw.Draw(canvas).text((4, 3), text, fill="black")
    canvas.paste(small, (2, _CAPTION))
    return np.array(canvas)
