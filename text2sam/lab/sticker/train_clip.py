"""Trains the sticker CLIP.

It learns from images and captions only: which things a scene shows, not where. Each step compares scenes with one caption per
thing (its name in a random template), captions of two things of a scene, and captions without a name. A caption is a positive
of an image that shows everything the caption names. A caption without a name ("a photo of a .") is a positive of every image
with a thing, so its feature becomes the redundant feature of a single text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from text2sam.clip.pixels import OPENAI_MEAN, OPENAI_STD
from text2sam.clip.prompts import ensemble_templates
from text2sam.clip.towers.base import resize_tokens
from text2sam.clip.towers.text import encode_tokens
from text2sam.lab.sticker.training import TRAIN_SEEDS, Figures, batches, contrastive_loss, train
from text2sam.lab.sticker.world import THINGS, World
from text2sam.zoo.sticker.models import CLIP_CONFIG, build_clip

NAMES = tuple(THINGS)
PATCH: int = CLIP_CONFIG["vision_cfg"]["patch_size"]
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, as in Pillow."""


@dataclass(frozen=True)
class ClipStage:
    """One stage of CLIP's curriculum; for ``fresh`` and ``pool`` see :func:`~text2sam.lab.sticker.training.batches`."""

    steps: int
    size: int  # side of the square scenes in pixels
    objects: tuple[int, int]  # smallest and largest number
    sides: tuple[float, float]  # range of object sizes, as a share of the scene's side
    keep: float  # share of the patch tokens in each step; the others are dropped at random, as in FLIP
    batch: int = 128
    learning_rate: float = 1e-3  # peak of the schedule, a cosine over all stages
    fresh: float = 0.3
    pool: int = 2048
    resized: tuple[float, float] = (1.0, 1.0)  # range of the size of CLIP's input, as a share of the scene's
    aspect: float = 1.0  # largest ratio of the longer to the shorter side of CLIP's input
    grey: float = 0.0  # probability that a scene is made grey


_VARIED: dict[str, Any] = {"fresh": 0.1, "pool": 24576, "resized": (0.6, 1.35), "aspect": 1.3, "grey": 0.12}

CLIP_STAGES: tuple[ClipStage, ...] = (
    ClipStage(steps=1500, size=48, objects=(0, 1), sides=(0.6, 0.95), keep=1.0),
    ClipStage(steps=5800, size=96, objects=(0, 4), sides=(0.25, 0.65), keep=0.5),
    ClipStage(steps=1900, size=160, objects=(0, 5), sides=(0.17, 0.5), keep=0.5, batch=64),
    ClipStage(steps=1640, size=128, objects=(0, 5), sides=(0.18, 0.6), keep=0.5, batch=512, **_VARIED),
    ClipStage(steps=5560, size=192, objects=(0, 6), sides=(0.14, 0.52), keep=0.5, batch=256, **_VARIED),
)
"""The shipped weights' training, without its restarts; its last two stages ran on a GPU, with a quarter of the steps on four
times the scenes."""


class _ClipScenes(IterableDataset[tuple[NDArray[Any], NDArray[Any]]]):
    """Endless images (3, H, W) uint8, and which names they show, (names,) bool."""

    def __init__(self, stage: ClipStage, seed: int) -> None:
        self.stage, self.seed = stage, seed

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        stage = self.stage
        low, high = stage.objects
        worlds = [
            World(size=(stage.size, stage.size), objects=(n, n), sides=stage.sides, repeat=0.15) for n in range(low, high + 1)
        ]
        rng = np.random.default_rng([self.seed, worker])
        number = self.seed + worker
        while True:
            empty = low == 0 and rng.random() < 0.05
            world = worlds[0] if empty else worlds[int(rng.integers(1 if low == 0 else 0, len(worlds)))]
            scene = world.scene(TRAIN_SEEDS + number)
            number += workers
            present = np.isin(np.array(NAMES), np.array(scene.names, dtype=str))
            yield np.ascontiguousarray(scene.image.transpose(2, 0, 1)), present


def _altered(images: torch.Tensor, grey: float) -> torch.Tensor:
    """Augments images (B, 3, H, W) uint8 by mirroring, colour shifts and removing colour: float32 in [0, 255]."""
    count, device = len(images), images.device

    def chance(share: float) -> torch.Tensor:
        return torch.rand(count, 1, 1, 1, device=device) < share

    pixels = images.float()
    pixels = torch.where(chance(0.5), pixels.flip(3), pixels)
    gain, shift = (torch.rand(count, 3, 1, 1, device=device) * 2 - 1 for _ in range(2))
    pixels = torch.where(chance(0.7), pixels * (1 + 0.2 * gain) + 20 * shift, pixels)
    luma = (pixels * torch.tensor(LUMA, device=device).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    return torch.where(chance(grey), luma, pixels).clamp(0, 255)


def _seen(pixels: torch.Tensor, stage: ClipStage, rng: np.random.Generator) -> torch.Tensor:
    """Scenes (B, 3, H, W) resized to a random size and aspect of whole patches."""
    scale, ratio = rng.uniform(*stage.resized), stage.aspect ** rng.uniform(-1, 1)
    size = [max(1, round(scale * stage.size * share / PATCH)) * PATCH for share in (ratio**0.5, ratio**-0.5)]
    if size == list(pixels.shape[2:]):
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)


class Captions:
    """Draws the captions of a batch: every name once, pairs of names from its scenes, and captions without a name."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.templates = ensemble_templates()
        self.tokenizer = tokenizer
        self.rng = np.random.default_rng(seed)
        prompts = [t.format(name) for name in (*NAMES, "") for t in self.templates]
        tokens = tokenizer(prompts + list(NAMES) + [""])
        count = len(prompts)
        self.single = tokens[:count].reshape(len(NAMES) + 1, len(self.templates), -1)  # (names + 1, templates, 77)
        self.bare = tokens[count:]  # (names + 1, 77)
        self.known = torch.unique(torch.cat([tokens, tokenizer([", and a the photo of with next to scene"])]))

    def draw(self, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions for scenes.

        Args:
            present: (B, names) bool, the names that each scene shows.

        Returns:
            Tokens (M, 77), and the names in each caption, (M, names) bool.
        """
        n = len(NAMES)
        choice = torch.from_numpy(self.rng.integers(len(self.templates), size=n))
        singles = self.single[torch.arange(n), choice]
        bare = torch.from_numpy(self.rng.random(n) < 0.1)
        singles = torch.where(bare[:, None], self.bare[:n], singles)
        nothing = self.single[n, torch.from_numpy(self.rng.integers(len(self.templates), size=2))]
        texts, sets = [], []
        rows = present.numpy()
        for row in rows[self.rng.permutation(len(rows))[:40]]:
            shown = np.flatnonzero(row)
            if len(shown) < 2:
                continue
            i, j = (int(k) for k in self.rng.permutation(shown)[:2])
            joint = ("a {} and a {}", "a photo of a {} and a {}.", "{}, {}", "a {} next to a {}.", "{} {}", "a {} with a {}")
            texts.append(joint[int(self.rng.integers(len(joint)))].format(NAMES[i], NAMES[j]))
            sets.append((i, j))
        tokens = [singles, nothing]
        named = torch.zeros(n + 2 + len(texts), n, dtype=torch.bool)
        named[:n] = torch.eye(n, dtype=torch.bool)
        if texts:
            tokens.append(self.tokenizer(texts))
            for k, pair in enumerate(sets):
                named[n + 2 + k, list(pair)] = True
        return torch.cat(tokens), named


def _forward_clip(model: Any, pixels: torch.Tensor, keep: float) -> torch.Tensor:
    """Class-token features (B, C) of pixels of any size, with a random share ``keep`` of the patches."""
    v = model.visual
    patches = v.conv1(pixels)  # (B, D, gh, gw)
    x: torch.Tensor = patches.flatten(2).transpose(1, 2)  # (B, N, D)
    pos = v.positional_embedding
    x = x + resize_tokens(pos[None], v.grid_size, tuple(patches.shape[2:]))[0, 1:]
    if keep < 1:
        kept = torch.rand(x.shape[:2], device=x.device).argsort(1)[:, : int(keep * x.shape[1])]
        x = torch.gather(x, 1, kept[..., None].expand(-1, -1, x.shape[-1]))
    cls = (v.class_embedding + pos[0]).expand(len(x), 1, -1)
    x = v.transformer(v.ln_pre(torch.cat([cls, x.to(cls.dtype)], 1)))
    pooled: torch.Tensor = v.ln_post(x[:, 0]) @ v.proj
    return pooled


def train_clip(out: Path, *, stages: tuple[ClipStage, ...] = CLIP_STAGES, device: str = "cpu", workers: int = 1) -> Path:
    """Trains the sticker CLIP and returns the path of its last checkpoint.

    The folder ``out`` holds the checkpoint, which is resumed if it exists, and ``clip_log.jsonl``; ``workers`` is the number of
    processes that draw scenes.
    """
    import open_clip

    torch.manual_seed(0)
    captions = Captions(open_clip.get_tokenizer("ViT-B-32"), seed=0)
    model = build_clip()
    with torch.no_grad():  # zero the embeddings of tokens that no caption contains
        unknown = torch.ones(model.vocab_size, dtype=torch.bool)
        unknown[captions.known] = False
        model.token_embedding.weight[unknown] = 0
    model.to(device).train()
    mean, std = (torch.tensor(v, device=device).reshape(1, 3, 1, 1) * 255 for v in (OPENAI_MEAN, OPENAI_STD))

    def draw(stage: ClipStage, which: int, step: int) -> Iterator[Sequence[torch.Tensor]]:
        data = _ClipScenes(stage, seed=which * 100_000_000 + step * 1000)
        return batches(data, stage, (True, False), device, workers)

    def loss_of(batch: Sequence[torch.Tensor], stage: ClipStage, rng: np.random.Generator, figures: Figures) -> torch.Tensor:
        images, present = batch
        tokens, named = captions.draw(present)
        contains = (present.float() @ named.float().T) == named.float().sum(1)  # (B, M): every name is shown
        contains &= present.any(1, keepdim=True)  # an empty scene fits no caption, also none without a name
        pixels = (_seen(_altered(images.to(device), stage.grey), stage, rng) - mean) / std
        with torch.autocast(device, torch.bfloat16):
            image = _forward_clip(model, pixels, stage.keep)
            text = encode_tokens(model, tokens.to(device))
        scale = model.logit_scale.clamp(max=math.log(100)).exp()
        cosines = F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T  # (B, M)
        best = cosines.detach()[:, : len(NAMES)].argmax(1).cpu()
        figures["top1"].append(present[torch.arange(len(best)), best][present.any(1)].float().mean())
        figures["scale"].append(scale.detach())
        return contrastive_loss(scale * cosines, contains.to(device))

    return train("clip", out, model, stages, draw, loss_of, device=device, weight_decay=0.05, warm_up=300)
