"""Trains the sticker SAM with points, boxes and masks in the sticker world.

Training follows Segment Anything (arXiv 2304.02643, section 3 and appendix A). A click is ambiguous: its target is the whole
object, the single-coloured part under the click, or the group of touching objects. Only the best of the three candidate masks
gets the loss, and the IoU head learns the IoU of each candidate. Prompts of several points contain wrong points, as those from
a similarity map do. Some prompts get a second round with a corrective click and the logits of the first round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from text2sam.clip.towers.base import evaluating
from text2sam.lab.sticker.training import TRAIN_SEEDS, Figures, batches, process, train
from text2sam.lab.sticker.world import THINGS, Scene, World, corners, inner_point
from text2sam.recipes.choose import mask_iou
from text2sam.zoo.sticker.models import SAM_CONFIG, build_sam

SIDE: int = SAM_CONFIG["img_size"]
PATCH: int = SAM_CONFIG["patch_size"]
CELL = PATCH // 4  # pixels per cell of the low-resolution logits
SAM_SEEDS = TRAIN_SEEDS + 500_000_000
PRACTICE_SEEDS = TRAIN_SEEDS + 2_000_000_000


@dataclass(frozen=True)
class SamStage:
    """One stage of SAM's training; for ``fresh`` and ``pool`` see :func:`~text2sam.lab.sticker.training.batches`."""

    steps: int
    # side of the trained part of SAM's input in pixels, a multiple of the window (64): all of it, or a random square, which is
    # cheaper
    side: int = SIDE
    sides: tuple[float, float] = (0.2, 0.65)  # range of object sizes, as a share of ``side``
    objects: tuple[int, int] = (2, 6)  # smallest and largest number
    learning_rate: float = 4e-4  # peak of the schedule, a cosine over all stages
    batch: int = 6  # scenes per step and process
    prompts: int = 6  # per scene
    points: int = 8  # largest number per prompt
    drawn: tuple[float, float] = (1.0, 1.0)  # range of the size at which a scene is drawn, as a share of SAM's input
    ambiguous: float = 0.1  # probability that the target of a click is a part, and the same for a group
    centred: float = 0.3  # share of clicks in the middle of the object; the others are uniform on it
    practice: int = 0  # scenes for :func:`practice` before the stage; 0 draws all things equally often
    # share of scenes without box prompts whose prompts are two points, one on the object and one off it but near, as in the
    # default recipe
    pairs: float = 0.0
    fresh: float = 1.0
    pool: int = 2048


_VARIED: dict[str, Any] = {"drawn": (0.7, 1.7), "ambiguous": 0.06, "centred": 0.5, "practice": 700}

SAM_STAGES: tuple[SamStage, ...] = (
    SamStage(steps=700, side=192, learning_rate=8e-4),
    SamStage(steps=4700, side=128, sides=(0.3, 0.8), objects=(1, 4), batch=8),
    SamStage(steps=7450, side=128, sides=(0.22, 0.8), objects=(1, 4), batch=12, prompts=4, **_VARIED),
    SamStage(steps=6500, side=192, sides=(0.16, 0.65), objects=(1, 5), learning_rate=6e-4, batch=8, prompts=5, **_VARIED),
    SamStage(steps=7269, sides=(0.13, 0.55), objects=(1, 6), learning_rate=1e-3, **_VARIED),
    SamStage(
        steps=10100,
        objects=(1, 6),
        learning_rate=8e-4,
        batch=16,
        prompts=4,
        drawn=(0.65, 1.4),
        ambiguous=0.05,
        centred=0.5,
        practice=700,
        pairs=0.3,
        fresh=0.65,
    ),
)
"""The shipped weights' training, without its restarts, for one process. Its last stage ran on a GPU, with an eighth of the
steps on eight times the scenes; the record in the package lists the stages as they ran."""


def _part(image: NDArray[np.uint8], mask: NDArray[np.bool_], x: int, y: int) -> NDArray[np.bool_] | None:
    """The single-coloured region under a click, if it is a proper part of the object."""
    from scipy.ndimage import label, uniform_filter

    smooth = uniform_filter(image.astype(np.float32), (3, 3, 1))
    near = (np.abs(smooth - smooth[y, x]).max(-1) < 28) & mask
    regions, _ = label(near)
    part = regions == regions[y, x]
    share = part.sum() / mask.sum()
    return part if regions[y, x] and 0.12 < share < 0.7 else None


def _valley(rng: np.random.Generator, mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of a pixel off an object, within a fifth of the image's longer side of its box."""
    reach = max(mask.shape) // 5
    left, top, right, bottom = corners(mask)
    low = max(0, left - reach), max(0, top - reach)
    high = min(mask.shape[1], right + reach), min(mask.shape[0], bottom + reach)
    while True:  # no object fills its surroundings
        x, y = (int(v) for v in rng.integers(low, high))
        if not mask[y, x]:
            return x, y


def _group(scene: Scene, which: int) -> NDArray[np.bool_] | None:
    """Union of the objects connected to an object by touching; None if it touches none."""
    from scipy.ndimage import binary_dilation

    taken = {which}
    group = scene.objects[which].mask
    while True:
        near = binary_dilation(group, iterations=2)
        more = {k for k, o in enumerate(scene.objects) if k not in taken and (near & o.mask).any()}
        if not more:
            return group if len(taken) > 1 else None
        taken |= more
        group = np.logical_or.reduce([scene.objects[k].mask for k in taken])


def _resized(scene: Scene, size: tuple[int, int]) -> Scene:
    """The scene resized to (H, W)."""
    if scene.image.shape[:2] == size:
        return scene
    h, w = size

    def resize(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR))

    objects = tuple(replace(o, mask=resize(o.mask.astype(np.uint8) * 255) >= 128) for o in scene.objects)
    return replace(scene, image=resize(scene.image), objects=objects)


class _SamScenes(IterableDataset[tuple[NDArray[Any], ...]]):
    """Endless image (3, S, S), points (P, K, 2), labels (P, K), boxes (P, 4), use_boxes, targets (P, L, L), (h, w)."""

    def __init__(self, stage: SamStage, seed: int, things: tuple[str, ...] = tuple(THINGS)) -> None:
        self.stage, self.seed, self.things = stage, seed, things
        self.rank, self.processes = process()

    def __iter__(self) -> Iterator[tuple[NDArray[Any], ...]]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        worker, workers = self.rank * workers + worker, workers * self.processes
        rng = np.random.default_rng([self.seed, worker])
        number = self.seed + worker
        while True:
            side = self.stage.side
            # SAM pads the full input, so padding is only trained there
            short = int(rng.integers(side // 2, side + 1)) if side == SIDE and rng.random() < 0.25 else side
            size = (side, short) if rng.random() < 0.5 else (short, side)
            share = float(np.exp(rng.uniform(*np.log(self.stage.drawn))))
            drawn = (round(size[0] * share), round(size[1] * share))
            world = World(drawn, self.stage.objects, self.stage.sides, repeat=0.3, things=self.things)
            scene = _resized(world.scene(SAM_SEEDS + number), size)
            number += workers
            objects = [k for k, o in enumerate(scene.objects) if o.mask.sum() >= 40]
            if objects:
                yield self._prompts(rng, scene, objects)

    def _prompts(self, rng: np.random.Generator, scene: Scene, objects: list[int]) -> tuple[NDArray[Any], ...]:
        stage = self.stage
        h, w = scene.image.shape[:2]
        use_boxes = rng.random() < 0.1
        points = np.zeros((stage.prompts, stage.points, 2), np.float32)
        labels = np.full((stage.prompts, stage.points), -1, np.int64)
        boxes = np.zeros((stage.prompts, 4), np.float32)
        targets = np.zeros((stage.prompts, h, w), bool)
        pair = stage.pairs > 0 and rng.random() < stage.pairs
        several = rng.random() < 0.35
        # one count per scene, since SAM sees padded points, and few different counts, so that many scenes share a decoder call
        count = 2 ** int(rng.integers((stage.points // 2).bit_length()))
        for p in range(stage.prompts):
            which = objects[int(rng.integers(len(objects)))]
            mask = scene.objects[which].mask
            inside = np.argwhere(mask)
            y, x = (int(v) for v in inside[int(rng.integers(len(inside)))])
            if rng.random() < stage.centred:
                x, y = (int(v) for v in inner_point(mask))
            target: NDArray[np.bool_] | None = mask
            if use_boxes:
                left, top, right, bottom = corners(mask)
                jitter = rng.normal(0, 0.06, 4) * np.array([right - left, bottom - top] * 2)
                boxes[p] = np.array([left, top, right, bottom]) + jitter
            elif pair:
                points[p, :2] = (x, y), _valley(rng, mask)
                labels[p, :2] = 1, 0
            elif several:
                # like the hot and cold cells of a map: mostly correct
                on = inside[rng.integers(len(inside), size=count)]
                outside = np.argwhere(~mask)
                off = outside[rng.integers(len(outside), size=count)]
                wrong = rng.random(count) < rng.uniform(0, 0.4)
                if count > 1 and not wrong.all():
                    on[wrong] = outside[rng.integers(len(outside), size=int(wrong.sum()))]
                both = np.concatenate([on, off])[:, ::-1]
                points[p, : 2 * count] = both
                labels[p, : 2 * count] = np.repeat([1, 0], count)
            else:
                kind = rng.random()
                if kind < stage.ambiguous:
                    target = _part(scene.image, mask, x, y)
                elif kind < 2 * stage.ambiguous:
                    target = _group(scene, which)
                points[p, 0], labels[p, 0] = (x, y), 1
            targets[p] = mask if target is None else target
        canvas = np.zeros((3, stage.side, stage.side), np.uint8)
        canvas[:, :h, :w] = scene.image.transpose(2, 0, 1)
        # the share of each low-resolution cell that the target covers
        padded = np.zeros((stage.prompts, stage.side, stage.side), np.float32)
        padded[:, :h, :w] = targets
        cells = stage.side // CELL
        low = padded.reshape(stage.prompts, cells, CELL, cells, CELL).mean((2, 4))
        return canvas, points, labels, boxes, np.array(use_boxes), low, np.array([h, w])


def _mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal (times 20) plus dice loss per mask: logits (P, M, L, L), targets (P, 1, L, L) -> (P, M)."""
    target = target.expand_as(logits)
    probability = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (ce * (probability - target).abs() ** 2).mean((2, 3))
    overlap = (probability * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    return 20 * focal + dice


@torch.no_grad()
def _iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    a, b = logits > 0, (target > 0.5).expand_as(logits)
    return (a & b).sum((2, 3)) / (a | b).sum((2, 3)).clamp(min=1)


def _encode(sam: Any, pixels: torch.Tensor, at: tuple[int, int]) -> torch.Tensor:
    """Image embeddings (B, C, h, w) of a square of SAM's input that starts ``at`` (row, column) in patches."""
    encoder = sam.image_encoder
    x = encoder.patch_embed(pixels)  # (B, h, w, D)
    x = x + encoder.pos_embed[:, at[0] : at[0] + x.shape[1], at[1] : at[1] + x.shape[2]]
    cells = x.shape[1]
    for block in encoder.blocks:
        x = block(x) if block.window_size else _global_block(block, x, cells)
    embeddings: torch.Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return embeddings


def _global_block(block: Any, x: torch.Tensor, cells: int) -> torch.Tensor:
    """A block of global attention on a square of ``cells`` patches, with the relative positions inside the square."""
    attention = block.attn
    whole = len(attention.rel_pos_h)  # 2 * side - 1 relative positions
    near = slice(whole // 2 - cells + 1, whole // 2 + cells)
    hidden = attention.__dict__  # shadows the parameters during the call, since segment-anything would interpolate them
    hidden.update(rel_pos_h=attention.rel_pos_h[near], rel_pos_w=attention.rel_pos_w[near])
    try:
        out: torch.Tensor = block(x)
    finally:
        del hidden["rel_pos_h"], hidden["rel_pos_w"]
    return out


def _decode(
    sam: Any, embeddings: torch.Tensor, at: tuple[int, int], points: Any, boxes: Any, masks: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """All four masks (P, 4, l, l) and their estimated IoU (P, 4) for P / B prompts of each image (B, C, h, w), by image."""
    h, w = embeddings.shape[2:]
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
    dense = dense[:, :, :h, :w] if masks is None else sam.prompt_encoder._embed_masks(masks)
    positions = sam.prompt_encoder.get_dense_pe()[:, :, at[0] : at[0] + h, at[1] : at[1] + w]
    # the decoder takes one image, but adds the dense embeddings to it, which can carry several images
    own = embeddings.repeat_interleave(len(sparse) // len(embeddings), dim=0)
    logits, estimates = sam.mask_decoder.predict_masks(torch.zeros_like(embeddings[:1]), positions, sparse, own + dense)
    return logits, estimates


def _loss(
    logits: torch.Tensor, estimates: torch.Tensor, target: torch.Tensor, single: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of a batch of prompts, and the detached IoU of each mask with the target."""
    losses = _mask_loss(logits, target)
    iou = _iou(logits, target)
    best = losses[:, 1:].min(dim=1).values
    total = best.mean() + (0.3 if single else 1.0) * losses[:, 0].mean() + F.mse_loss(estimates, iou)
    return total + 0.03 * losses[:, 1:].mean(), iou  # a small gradient keeps every candidate alive


def _corrective(logits: torch.Tensor, target: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A click in the error region of each mask: (P, 1, 2) pixel coordinates and (P, 1) labels, -1 without an error.

    ``logits`` and ``target`` are (P, l, l), ``sizes`` (P, 2) the (height, width) of the images in pixels.
    """
    count, cells = len(logits), logits.shape[-1]
    wrong = ((logits > 0) != (target > 0.5)).flatten(1).float() + 1e-9
    rows = torch.arange(cells, device=logits.device).repeat_interleave(cells)
    columns = torch.arange(cells, device=logits.device).repeat(cells)
    wrong = wrong * ((rows * CELL < sizes[:, :1]) & (columns * CELL < sizes[:, 1:]))
    at = torch.multinomial(wrong, 1)  # (P, 1)
    label = (target.flatten(1).gather(1, at) > 0.5).long()
    label = label.masked_fill(wrong.gather(1, at) < 1e-3, -1)
    xy = torch.stack([columns[at], rows[at]], -1).float() * CELL + CELL / 2
    return xy.reshape(count, 1, 2), label


def practice(sam: Any, scenes: int, seed: int) -> tuple[str, ...]:
    """Names for :class:`~text2sam.lab.sticker.world.World` to draw, repeated in proportion to how badly SAM segments them.

    SAM gets one click in the middle of each object of scenes that training does not use. The weight of a thing is 0.95 minus
    its mean IoU, divided by the mean over things and clipped to [0.5, 2.5]; four additional clicks with the overall mean IoU
    smooth it. A name occurs four times its weight, rounded.

    Args:
        sam: a segment-anything ``Sam``; it is in evaluation mode during the call.
        scenes: number of scenes; 0 returns every name once.
        seed: seed of the scenes.
    """
    from segment_anything import SamPredictor

    if not scenes:
        return tuple(THINGS)
    predictor = SamPredictor(sam)
    ious: dict[str, list[float]] = {name: [] for name in THINGS}
    with evaluating(sam):
        for number in range(scenes):
            scene = World((SIDE, SIDE), (2, 5), repeat=0.3).scene(PRACTICE_SEEDS + seed + number)
            predictor.set_image(scene.image)
            for o in scene.objects:
                masks, scores, _ = predictor.predict(np.array([inner_point(o.mask)]), np.array([1]))
                ious[o.name].append(mask_iou(masks[scores.argmax()], o.mask))
    mean = float(np.mean([iou for of_thing in ious.values() for iou in of_thing]))
    lack = {name: max(0.0, 0.95 - (sum(values) + 4 * mean) / (len(values) + 4)) for name, values in ious.items()}
    average = max(float(np.mean(list(lack.values()))), 1e-6)
    return tuple(name for name in THINGS for _ in range(round(4 * min(2.5, max(0.5, lack[name] / average)))))


def train_sam(out: Path, *, stages: tuple[SamStage, ...] = SAM_STAGES, device: str = "cpu", workers: int = 1) -> Path:
    """Trains the sticker SAM and returns the path of its last checkpoint.

    Arguments and files are as for :func:`~text2sam.lab.sticker.train_clip.train_clip`. Under ``torchrun`` every process draws
    its own batch, gradients are averaged, and the first process writes.
    """
    torch.manual_seed(0)
    sam = build_sam().to(device).train()

    def draw(stage: SamStage, which: int, step: int) -> Iterator[Sequence[torch.Tensor]]:
        seed = which * 50_000_000 + step * 1000
        data = _SamScenes(stage, seed, practice(sam, stage.practice, seed))
        large = (True, False, False, False, False, True, False)  # images and targets
        return batches(data, stage, large, device, workers)

    def loss_of(batch: Sequence[torch.Tensor], stage: SamStage, rng: np.random.Generator, figures: Figures) -> torch.Tensor:
        return _step(sam, batch, stage, rng, device, figures)

    return train("sam", out, sam, stages, draw, loss_of, device=device, weight_decay=0.02, warm_up=200)


def _step(
    sam: Any, batch: Sequence[torch.Tensor], stage: SamStage, rng: np.random.Generator, device: str, figures: Figures
) -> torch.Tensor:
    """The loss of one batch."""
    images, points, labels, boxes, use_boxes, targets, sizes = batch
    # masks hardly depend on colour, so shuffled channels are a cheap augmentation
    images = images[:, torch.randperm(3)] if rng.random() < 0.3 else images
    row, column = (int(v) for v in rng.integers((SIDE - stage.side) // PATCH + 1, size=2))
    shift = torch.tensor([column, row], device=device) * PATCH
    inside = torch.arange(stage.side) < sizes[..., None]  # (B, 2, side), the scene's rows and columns
    valid = (inside[:, 0, :, None] & inside[:, 1, None])[:, None].to(device)
    pixels = ((images.to(device).float() - sam.pixel_mean) / sam.pixel_std) * valid
    with torch.autocast(device, torch.bfloat16):
        embeddings = _encode(sam, pixels, (row, column))
    embeddings = embeddings.float()
    total = embeddings.new_zeros(())
    second = rng.random() < 0.3
    # images with equally many points per prompt share a decoder call
    used = torch.where(use_boxes, 0, (labels >= 0).sum(2).amax(1))
    for count in used.unique().tolist():
        of = (used == count).nonzero().flatten()
        target = targets[of.to(targets.device)].flatten(0, 1)[:, None].to(device)  # (P, 1, l, l)
        embedding = embeddings[of.to(device)]
        prompt: Any = None
        box: Any = None
        if count:
            at = points[of, :, :count].flatten(0, 1).to(device) + 0.5 + shift
            prompt = (at, labels[of, :, :count].flatten(0, 1).to(device))
        else:
            box = boxes[of].flatten(0, 1).to(device) + shift.repeat(2)
        with torch.autocast(device, torch.bfloat16):
            logits, estimates = _decode(sam, embedding, (row, column), prompt, box, None)
        logits, estimates = logits.float(), estimates.float()
        loss, iou = _loss(logits, estimates, target, count == 1)
        total = total + loss * len(of)
        by_score = iou[:, 1:].gather(1, estimates[:, 1:].argmax(1, keepdim=True)).mean()
        figures[{1: "click_iou", 2: "pair_iou"}.get(count, "points_iou")].append(by_score)
        figures["score_error"].append((estimates[:, 1:] - iou[:, 1:]).abs().mean().detach())
        if second and prompt is not None:
            best = estimates[:, 1:].argmax(1) + 1
            previous = logits[torch.arange(len(logits), device=device), best][:, None].detach()
            size = sizes[of].repeat_interleave(stage.prompts, 0).to(device)
            xy, label = _corrective(previous[:, 0], target[:, 0], size)
            more = (torch.cat([prompt[0], xy + shift], 1), torch.cat([prompt[1], label], 1))
            with torch.autocast(device, torch.bfloat16):
                logits, estimates = _decode(sam, embedding, (row, column), more, None, previous)
            total = total + _loss(logits.float(), estimates.float(), target, False)[0] * len(of)
    return total / len(images)
