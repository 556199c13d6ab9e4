"""Trains ICLIP in the sticker world and compares its maps with other methods: ``python -m text2sam.lab.iclip``.

Training follows arXiv 2209.07046 as far as it is described there. *Masked max pooling* takes the maximum of the patch tokens
under a mask; each of the two projections of :class:`text2sam.tasks.iclip.ICLIP` is trained with CLIP's contrastive loss. We
take the maximum per channel, after the projection, and the mask keeps the half of the patches with the highest attention from
the class token in CLIP's last block, averaged over heads. (The first version of the paper uses the attention of a
self-supervised encoder.) Training uses names but no masks.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from text2sam import __version__
from text2sam.checks import check_number
from text2sam.clip.generator import ClipSurgery
from text2sam.clip.towers.base import evaluating
from text2sam.clip.towers.vit import vit_stream
from text2sam.errors import InputError, StateError
from text2sam.files import write_json
from text2sam.fingerprint import fingerprint
from text2sam.image import ImageLike
from text2sam.lab.metrics import mean_average_precision
from text2sam.lab.sticker.evaluate import VARIANTS, MapTally, evaluation_scenes
from text2sam.lab.sticker.training import TRAIN_SEEDS, contrastive_loss
from text2sam.lab.sticker.world import THINGS, Scene, World
from text2sam.targets import check_text
from text2sam.tasks.iclip import ICLIP, TokenPath

FIRST_SEED = TRAIN_SEEDS + 900_000_000
"""Seed of the first training scene, above those of the sticker CLIP's training."""
FIRST_MEASURED = 100
"""Seed of the first held-out scene; the defaults of :class:`Settings` were chosen on the scenes 0 to 19."""
_HIGHEST_SCALE = 100.0


@dataclass(frozen=True)
class Settings:
    """Settings of training and measuring, see also :func:`fit`; the defaults take about three minutes on one core.

    Raises:
        InputError: a value is out of range.
    """

    train_scenes: int = 800
    steps: int = 400
    batch: int = 32
    lr: float = 5e-3
    seed: int = 0
    paths: tuple[TokenPath, ...] = ("raw", "architecture")  # one ICLIP is trained for each
    keep: float = 0.5  # share of an image's patches under the mask
    scenes: int = 100  # held out

    def __post_init__(self) -> None:
        for name in ("train_scenes", "steps", "batch", "scenes"):
            check_number(name, getattr(self, name), 1, whole=True)


class Tokens(NamedTuple):
    """Tokens and masks of S training images: (S, 1 + N, C) floats, L2-normalised, class token first; and (S, N) bool, the
    patches for max pooling."""

    tokens: torch.Tensor
    mask: torch.Tensor


def class_attention(surgery: ClipSurgery, pixels: torch.Tensor) -> torch.Tensor:
    """Attention of the class token to each patch in the last block of a ViT, averaged over heads.

    Args:
        surgery: a CLIP whose image tower is open_clip's ``VisionTransformer``.
        pixels: (B, 3, H, W) normalised.

    Returns:
        (B, gh, gw) in [0, 1].
    """
    visual = surgery.model.visual
    with torch.inference_mode(), evaluating(visual):
        x, grid = vit_stream(visual, pixels.to(next(visual.parameters())))
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            x = block(x)
        normed = last.ln_1(x)
        attention = last.attn(normed, normed, normed, need_weights=True)[1]  # (B, 1 + N, 1 + N)
    rows: torch.Tensor = attention[:, 0, 1:].unflatten(1, grid)
    return rows


def most_attended(attention: torch.Tensor, keep: float) -> torch.Tensor:
    """(B, N) bool mask of the share ``keep`` of patches, at least one, with the highest attention (B, N)."""
    count = max(1, math.ceil(keep * attention.shape[1]))
    order = attention.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(attention, dtype=torch.bool).scatter_(1, order, True)


def masked_max_pooling(patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, C) maximum of each channel over the patches (B, N, C) under a mask (B, N) bool that is not empty."""
    return patches.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


def extract(iclip: ICLIP, images: Iterable[ImageLike], *, keep: float = 0.5) -> Tokens:
    """Tokens and masks of images, on the CPU.

    Args:
        iclip: provides the CLIP and the token path.
        images: at least one image that :func:`text2sam.image.read_image` accepts.
        keep: share of the patches under the mask, in (0, 1].

    Raises:
        InputError: there is no image, or ``keep`` is out of range.
        ImageError: an image cannot be read.
    """
    if not 0 < keep <= 1:
        raise InputError(f"keep must be in (0, 1], not {keep!r}")
    tokens, masks = [], []
    for image in images:
        encoded, _ = iclip.tokens(image)
        tokens.append(encoded.cpu())
        attention = class_attention(iclip.surgery, iclip.surgery.preprocess(image))
        masks.append(most_attended(attention.flatten(1).float().cpu(), keep)[0])
    if not tokens:
        raise InputError("images must be at least one")
    return Tokens(torch.stack(tokens), torch.stack(masks))


def fit(
    iclip: ICLIP,
    tokens: Tokens,
    captions: Sequence[Sequence[str]],
    *,
    steps: int,
    batch: int = 32,
    lr: float = 5e-3,
    seed: int = 0,
    negatives: Sequence[str] = (),
) -> NDArray[np.float64]:
    """Trains both projections with AdamW and a cosine schedule; CLIP is frozen.

    Weight decay pulls a projection towards the identity. The same arguments give the same weights.

    Args:
        iclip: the projections to train, on the device of their CLIP.
        tokens: of S images, from :func:`extract`.
        captions: the texts of each image, at least one; its negatives are the texts of other images in the batch.
        steps: number of optimizer steps.
        batch: images per step; each epoch has a new random order.
        lr: initial learning rate.
        seed: seed of the order.
        negatives: texts added to every batch.

    Returns:
        (steps, 2) losses of recognition and interpretation.

    Raises:
        InputError: an argument is out of range.
        PromptError: a text is empty or too long.
        StateError: the loss is not finite.
    """
    if steps < 1 or batch < 1 or not 0 < lr < math.inf:
        raise InputError(f"steps, batch and lr must be positive, not {steps!r}, {batch!r} and {lr!r}")
    encoded, masks = tokens
    if len(captions) != len(encoded) or any(isinstance(texts, str) or not texts for texts in captions):
        raise InputError(f"captions must be one or more texts for each of {len(encoded)} images")
    sets = [[check_text(text) for text in texts] for texts in captions]
    surgery = iclip.surgery
    scale = min(_HIGHEST_SCALE, float(surgery.logit_scale()))
    generator = torch.Generator().manual_seed(seed)
    losses: list[list[float]] = []
    order: list[torch.Tensor] = []
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = torch.optim.AdamW(iclip.parameters(), lr=lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            order = order or list(torch.randperm(len(encoded), generator=generator).split(batch))
            chosen = order.pop(0)
            names = list(dict.fromkeys([*(text for i in chosen for text in sets[i]), *map(check_text, negatives)]))
            fits = torch.tensor([[name in sets[i] for name in names] for i in chosen], device=surgery.device)
            texts = surgery.encode_texts(names).clone()  # (M, C), made in inference mode
            cls, patches = iclip(encoded[chosen].clone().to(surgery.device, torch.float32))
            mask = masks[chosen].to(surgery.device)
            pooled = masked_max_pooling(patches, mask)
            parts = [contrastive_loss(scale * F.normalize(x, dim=-1) @ texts.T, fits) for x in (cls, pooled)]
            loss = parts[0] + parts[1]
            if not bool(loss.isfinite()):
                raise StateError(f"the loss of step {len(losses) + 1} is {float(loss.detach())}; use an lr below {lr}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimizer.step()
            schedule.step()
            losses.append([float(part.detach()) for part in parts])
        optimizer.zero_grad()
    return np.array(losses)


def training_scenes(count: int, side: int) -> Iterable[Scene]:
    """The first ``count`` training scenes, squares of ``side`` pixels with one to four things, without empty scenes."""
    world = World(size=(side, side), objects=(1, 4), repeat=0.15)
    return (scene for scene in world.scenes(range(FIRST_SEED, FIRST_SEED + count)) if scene.objects)


def train(surgery: ClipSurgery, settings: Settings, *, path: TokenPath = "raw") -> tuple[ICLIP, NDArray[np.float64]]:
    """An ICLIP trained on sticker scenes and their names, and the losses of :func:`fit`."""
    iclip = ICLIP(surgery, path=path)
    scenes = list(training_scenes(settings.train_scenes, max(surgery.image_size)))
    tokens, masks = extract(iclip, (scene.image for scene in scenes), keep=settings.keep)
    losses = fit(
        iclip,
        Tokens(tokens.half(), masks),
        [scene.names for scene in scenes],
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        seed=settings.seed,
        negatives=tuple(THINGS),
    )
    return iclip, losses


def compare(surgery: ClipSurgery, trained: Mapping[str, ICLIP], scenes: Iterable[Scene]) -> dict[str, Any]:
    """Figures of maps and of recognition on scenes that are not empty, for a CLIP and ICLIPs of it.

    Returns:
        ``maps``: method (:data:`~text2sam.lab.sticker.evaluate.VARIANTS` and the trained) -> figures of :class:`MapTally`.
        ``recognition``: ``"clip"`` (cosine of the class token) and the trained -> mAP in percent.

    Raises:
        InputError: there is no scene.
    """
    tallies = {name: MapTally() for name in (*VARIANTS, *trained)}
    names = tuple(THINGS)
    scores: dict[str, list[Any]] = {name: [] for name in ("clip", *trained)}
    truth = []
    for scene in scenes:
        features = surgery.encode_image(scene.image)
        by_method = {
            variant: surgery.maps(features, scene.names, method=method, against=against)
            for variant, (method, against) in VARIANTS.items()
        }
        scores["clip"].append(surgery.scores(features, names))
        for name, iclip in trained.items():
            by_method[name] = iclip.maps(features, scene.names)
            scores[name].append(iclip.scores(features, names))
        for name, maps in by_method.items():
            for m in maps:
                tallies[name].add(m, scene.mask(m.text))
        truth.append(np.isin(names, scene.names))
    if not truth:
        raise InputError("scenes must be at least one")
    return {
        "maps": {name: tally.figures() for name, tally in tallies.items()},
        "recognition": {
            name: round(100 * mean_average_precision(np.stack(rows), np.stack(truth)), 2) for name, rows in scores.items()
        },
    }


def measure(surgery: ClipSurgery, settings: Settings) -> dict[str, Any]:
    """Trains an ICLIP for each path and compares them.

    Returns:
        JSON-ready: the result of :func:`compare`, ``losses`` (by method: recognition and interpretation, each averaged over the
        first and the last tenth of the steps), ``settings``, ``clip`` (its fingerprint), ``version`` and ``seconds``.
    """
    started = time.perf_counter()
    trained, losses = {}, {}
    tenth = max(1, settings.steps // 10)
    for path in settings.paths:
        name = "iclip" if path == "raw" else f"iclip_{path}"
        trained[name], curves = train(surgery, settings, path=path)
        losses[name] = np.stack([curves[:tenth].mean(0), curves[-tenth:].mean(0)], axis=1).round(4).tolist()
    return {
        "version": __version__,
        "clip": fingerprint(surgery.model)[:16],
        "settings": asdict(settings),
        "losses": losses,
        **compare(surgery, trained, evaluation_scenes(range(FIRST_MEASURED, FIRST_MEASURED + settings.scenes))),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    from text2sam.pipeline import TextPromptedSAM

    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train_scenes", "steps", "batch", "scenes", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--keep", type=float, default=default.keep)
    parser.add_argument("--paths", nargs="+", choices=get_args(TokenPath), default=default.paths)
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", type=Path, default=None, help="also write the figures to this JSON file")
    given = vars(parser.parse_args(arguments))
    device, out = given.pop("device"), given.pop("out")
    chosen = Settings(**given | {"paths": tuple(given["paths"])})
    surgery = TextPromptedSAM.from_pretrained("sticker", device=device, scales=(1.0,), progress=False).generator
    figures = measure(surgery, chosen)
    print(json.dumps(figures, indent=1))
    if out is not None:
        write_json(out, figures)


if __name__ == "__main__":
    main()
