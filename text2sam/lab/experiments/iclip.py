"""ICLIP on the sticker world: ``python -m text2sam.lab.experiments.iclip`` trains it and sets its maps beside the others'.

Training sees names, never masks: scenes of seeds no other training draws, each with the names that are in it, encoded once by
the frozen sticker CLIP. The figures are those of :func:`text2sam.lab.sticker.evaluate.measure_maps`,
on the same held-out scenes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from text2sam import __version__
from text2sam.clip.generator import ClipSurgery
from text2sam.errors import InputError
from text2sam.lab.metrics import mean_average_precision
from text2sam.lab.sticker.evaluate import VARIANTS, MapTally, evaluation_scenes
from text2sam.lab.sticker.training import TRAIN_SEEDS
from text2sam.lab.sticker.world import THINGS, Scene, World
from text2sam.tables import aligned, telling
from text2sam.tasks.iclip import ICLIP, FitReport, FrozenTokens, Pooling, TokenBatches, TokenPath, clip_fingerprint

FIRST_SEED = TRAIN_SEEDS + 900_000_000
"""Seed of the first training scene; the training of the sticker CLIP stays below it."""
FIRST_MEASURED = 100


@dataclass(frozen=True)
class Settings:
    """What is trained and measured; the defaults take about three minutes of one core.

    Attributes:
        train_scenes: how many scenes are drawn for training.
        steps, batch, lr, seed: of the training, see :meth:`text2sam.tasks.iclip.ICLIP.fit`.
        paths: whose patch tokens an ICLIP is trained on, one for each: ``"raw"``, the papers', or ``"architecture"``.
        pooling, keep: see :class:`text2sam.tasks.iclip.ICLIP`.
        scenes: how many held-out scenes are measured, seeds 100 upwards (0 to 19 were looked at for the defaults here).

    Raises:
        InputError: a value is none of those.
    """

    train_scenes: int = 800
    steps: int = 400
    batch: int = 32
    lr: float = 5e-3
    seed: int = 0
    paths: tuple[TokenPath, ...] = ("raw", "architecture")
    pooling: Pooling = "channel"
    keep: float = 0.5
    scenes: int = 100

    def __post_init__(self) -> None:
        for name in ("train_scenes", "steps", "batch", "scenes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if not self.paths or len(set(self.paths)) < len(self.paths) or not set(self.paths) <= set(get_args(TokenPath)):
            raise InputError(f"paths must be {', '.join(get_args(TokenPath))} or both, each once, not {self.paths!r}")


def training_scenes(count: int, side: int) -> Iterable[Scene]:
    """The first ``count`` training scenes, squares of ``side`` pixels with one to four things; empty ones are left out."""
    world = World(size=(side, side), objects=(1, 4), repeat=0.15)
    return (scene for scene in world.scenes(range(FIRST_SEED, FIRST_SEED + count)) if scene.objects)


def fit_on_stickers(
    surgery: ClipSurgery, settings: Settings | None = None, *, path: TokenPath = "raw", progress: bool = False
) -> tuple[ICLIP, FitReport]:
    """An ICLIP trained on sticker scenes and their names.

    Args:
        surgery: of the sticker CLIP; stays as it is.
        settings: see :class:`Settings`.
        path: whose patch tokens it takes.
        progress: show bars on standard error.

    Returns:
        The trained projections and how it went.
    """
    from tqdm import tqdm

    chosen = settings or Settings()
    iclip = ICLIP(surgery, path=path, pooling=chosen.pooling, keep=chosen.keep)
    parts: list[FrozenTokens] = []
    names: list[tuple[str, ...]] = []
    scenes = training_scenes(chosen.train_scenes, max(surgery.image_size))
    for scene in tqdm(scenes, total=chosen.train_scenes, desc="encoding", unit="scene", disable=not progress, leave=False):
        found = iclip.extract([scene.image])
        parts.append(FrozenTokens(found.tokens.cpu().half(), found.mask.cpu()))
        names.append(scene.names)
    batches = TokenBatches(FrozenTokens.join(parts), names, chosen.batch)
    report = iclip.fit(batches, steps=chosen.steps, lr=chosen.lr, seed=chosen.seed, negatives=tuple(THINGS), progress=progress)
    return iclip, report


def compare(surgery: ClipSurgery, trained: Mapping[str, ICLIP], scenes: Iterable[Scene]) -> dict[str, Any]:
    """Figures of maps and of recognition, by method.

    Args:
        surgery: of the CLIP.
        trained: ICLIPs on the same CLIP, by name.
        scenes: held-out scenes, each with something in it.

    Returns:
        ``maps``: method -> figures as of :func:`text2sam.lab.sticker.evaluate.measure_maps`, for its variants and the trained.
        ``recognition``: ``"clip"`` (cosine of the class token) and the trained ones -> mAP in percent over the names of the
        world that any scene shows.

    Raises:
        InputError: there is no scene.
    """
    tallies = {name: MapTally() for name in (*VARIANTS, *trained)}
    names = tuple(THINGS)
    scores: dict[str, list[Any]] = {name: [] for name in ("clip", *trained)}
    truth = []
    for scene in scenes:
        features = surgery.encode_image(scene.image)
        found = {
            variant: surgery.maps(features, scene.names, method=method, against=against)
            for variant, (method, against) in VARIANTS.items()
        }
        scores["clip"].append(surgery.scores(features, names))
        for name, iclip in trained.items():
            found[name] = iclip.maps(features, scene.names)
            scores[name].append(iclip.scores(features, names))
        for name, maps in found.items():
            for m in maps:
                tallies[name].add(m, scene.mask(m.text))
        truth.append(np.isin(names, scene.names))
    if not truth:
        raise InputError("there is no scene to measure on")
    return {
        "maps": {name: tally.figures() for name, tally in tallies.items()},
        "recognition": {
            name: round(100 * mean_average_precision(np.stack(rows), np.stack(truth)), 2) for name, rows in scores.items()
        },
    }


def measure(surgery: ClipSurgery, settings: Settings | None = None, *, progress: bool = False) -> dict[str, Any]:
    """Trains an ICLIP for each path and compares.

    Returns:
        JSON-ready: what :func:`compare` returns, ``training`` (losses over the first and the last tenth of the steps, and
        seconds, by method), ``settings``, ``clip`` (its fingerprint), ``version`` and ``seconds``.
    """
    chosen, started = settings or Settings(), time.perf_counter()
    trained, training = {}, {}
    for path in chosen.paths:
        name = "iclip" if path == "raw" else f"iclip_{path}"
        trained[name], report = fit_on_stickers(surgery, chosen, path=path, progress=progress)
        tenth = max(1, chosen.steps // 10)
        training[name] = {
            "images": report.images,
            "seconds": round(report.seconds, 1),
            **{
                f"{loss}_loss": [round(float(np.mean(part)), 4) for part in (curve[:tenth], curve[-tenth:])]
                for loss, curve in (("recognition", report.recognition), ("interpretation", report.interpretation))
            },
        }
    return {
        "version": __version__,
        "clip": clip_fingerprint(surgery.model),
        "settings": asdict(chosen),
        "training": training,
        **compare(surgery, trained, evaluation_scenes(range(FIRST_MEASURED, FIRST_MEASURED + chosen.scenes))),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(result: Mapping[str, Any]) -> str:
    """A result of :func:`measure` as lines of text."""
    lines = [("maps", "cases", "hottest on object", "mIoU", "threshold", "mSC", "mAP")]
    for name, figures in result["maps"].items():
        recognised = result["recognition"].get("clip" if name == "itsm" else name)
        lines.append(
            (
                name,
                str(figures["cases"]),
                f"{100 * figures['hottest_on_object']:.1f} %",
                f"{figures['miou']:.1f}",
                f"{figures['threshold']:.2f}",
                f"{figures['msc']:.1f}",
                "" if recognised is None else f"{recognised:.1f}",
            )
        )
    chosen = result["settings"]
    note = (
        f"{chosen['scenes']} held-out scenes; trained on {chosen['train_scenes']} scenes and their names, {chosen['steps']} "
        f"steps of {chosen['batch']}, seed {chosen['seed']}; mAP is of the class token; {result['seconds']:.0f} s."
    )
    return "\n".join([*aligned(lines, words=1), "", note])


def main() -> None:
    """The command."""
    from text2sam.pipeline import TextPromptedSAM

    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train_scenes", "steps", "batch", "scenes", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--keep", type=float, default=default.keep)
    parser.add_argument("--pooling", choices=get_args(Pooling), default=default.pooling)
    parser.add_argument("--paths", nargs="+", choices=get_args(TokenPath), default=default.paths)
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, default=None, help="write the figures to this JSON file too")
    given = vars(parser.parse_args())
    device, json_output, out = given.pop("device"), given.pop("json"), given.pop("out")
    chosen = Settings(**given | {"paths": tuple(given["paths"])})
    with telling(table, out, json_output) as tell:
        surgery = TextPromptedSAM.from_pretrained("sticker", device=device, scales=(1.0,)).generator
        tell(measure(surgery, chosen, progress=sys.stderr.isatty()))


if __name__ == "__main__":
    main()
