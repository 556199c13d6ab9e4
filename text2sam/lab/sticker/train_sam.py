"""Trains the sticker SAM on points, boxes and masks of the sticker world.

As Segment Anything (arXiv 2304.02643, section 3 and appendix A) does: a click is ambiguous, so its target is
sometimes the whole object, sometimes the part of one colour under it, sometimes the group of
objects that touch; of the three candidate masks only the best one learns from it, and the IoU head
learns to tell each candidate's IoU. Several points come with a few wrong ones among them, as a similarity map sends
them. Some prompts get a second round with a corrective click and the first round's logits.
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

from text2sam.clip.towers import evaluating
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
    """One stage of the sticker SAM's training.

    Attributes:
        steps: number of optimizer steps.
        side: side in pixels of the part of SAM's input that is trained on, a multiple of the window (64): the
            full input, or a square somewhere in it, which is cheaper.
        sides: range of object sizes, as a share of ``side``.
        objects: smallest and largest number of objects.
        learning_rate: at the top of the schedule, a cosine over all stages.
        batch: scenes per step, of each process.
        prompts: prompts per scene.
        points: largest number of points in one prompt.
        drawn: range of the size a scene is drawn at, as a share of its size in SAM's input; it is then resized, as SAM
            resizes what it is given.
        ambiguous: chance that a click means the part under it, and again as much that it means the group around it.
        centred: share of clicks in the middle of the object; the others fall anywhere on it.
        practice: number of scenes the SAM is clicked on before the stage, so that things it cuts out badly are drawn more
            often in it (:func:`practice`); 0 draws all things alike.
        pairs: share of the scenes not asked for by boxes whose prompts are two points, one on the object and one in the valley
            by it, as the default recipe sends them.
        fresh, pool: share of a batch that is newly drawn; below 1, scenes in the pool that the batch comes out of
            (:func:`~text2sam.lab.sticker.training.batches`).
    """

    steps: int
    side: int = SIDE
    sides: tuple[float, float] = (0.2, 0.65)
    objects: tuple[int, int] = (2, 6)
    learning_rate: float = 4e-4
    batch: int = 6
    prompts: int = 6
    points: int = 8
    drawn: tuple[float, float] = (1.0, 1.0)
    ambiguous: float = 0.1
    centred: float = 0.3
    practice: int = 0
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
"""What the record's stages, run with restarts over several sessions, come to in one process and in one go; the last ran on a
GPU, an eighth of the steps on eight times the scenes. Only the last three sessions practised, and only the last two put half
of their clicks in the middle."""


def _part(image: NDArray[np.uint8], mask: NDArray[np.bool_], x: int, y: int) -> NDArray[np.bool_] | None:
    """The region of one colour under a click, if it is a proper part of the object."""
    from scipy.ndimage import label, uniform_filter

    smooth = uniform_filter(image.astype(np.float32), (3, 3, 1))
    near = (np.abs(smooth - smooth[y, x]).max(-1) < 28) & mask
    regions, _ = label(near)
    part = regions == regions[y, x]
    share = part.sum() / mask.sum()
    return part if regions[y, x] and 0.12 < share < 0.7 else None


def _valley(rng: np.random.Generator, mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of a pixel off an object, at most a fifth of the picture's longer side away from its box."""
    reach = max(mask.shape) // 5
    left, top, right, bottom = corners(mask)
    low = max(0, left - reach), max(0, top - reach)
    high = min(mask.shape[1], right + reach), min(mask.shape[0], bottom + reach)
    while True:  # no object covers its own box and all around it
        x, y = (int(v) for v in rng.integers(low, high))
        if not mask[y, x]:
            return x, y


def _group(scene: Scene, which: int) -> NDArray[np.bool_] | None:
    """The objects that touch one object, directly or through others, as one mask; None when it stands alone."""
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
    """A scene at another (H, W), enlarged or reduced the way SAM treats its input."""
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
            # SAM pads what is not square, so only the full input knows padding
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
        # the same for all prompts of a scene, since SAM sees the places that fill up a row of fewer; and of few kinds, so
        # that many scenes go through the decoder together
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
                # a map's hot and cold cells: mostly right, some not
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
        # share of each low-resolution cell that the target covers
        padded = np.zeros((stage.prompts, stage.side, stage.side), np.float32)
        padded[:, :h, :w] = targets
        cells = stage.side // CELL
        low = padded.reshape(stage.prompts, cells, CELL, cells, CELL).mean((2, 4))
        return canvas, points, labels, boxes, np.array(use_boxes), low, np.array([h, w])


def _mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal (times 20) plus dice loss per mask: (P, M, L, L) against (P, 1, L, L) -> (P, M)."""
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
    """Image embeddings (B, C, h, w) of a square of SAM's input that begins ``at`` (row, column), in patches."""
    encoder = sam.image_encoder
    x = encoder.patch_embed(pixels)  # (B, h, w, D)
    x = x + encoder.pos_embed[:, at[0] : at[0] + x.shape[1], at[1] : at[1] + x.shape[2]]
    cells = x.shape[1]
    for block in encoder.blocks:
        x = block(x) if block.window_size else _global_block(block, x, cells)
    embeddings: torch.Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return embeddings


def _global_block(block: Any, x: torch.Tensor, cells: int) -> torch.Tensor:
    """A block of global attention on a square of ``cells`` patches, which knows only the relative positions within."""
    attention = block.attn
    whole = len(attention.rel_pos_h)  # 2 * side - 1 relative positions, the middle one is "same place"
    near = slice(whole // 2 - cells + 1, whole // 2 + cells)
    hidden = attention.__dict__  # shadows the parameters during the call; segment-anything would stretch them instead
    hidden.update(rel_pos_h=attention.rel_pos_h[near], rel_pos_w=attention.rel_pos_w[near])
    try:
        out: torch.Tensor = block(x)
    finally:
        del hidden["rel_pos_h"], hidden["rel_pos_w"]
    return out


def _decode(
    sam: Any, embeddings: torch.Tensor, at: tuple[int, int], points: Any, boxes: Any, masks: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """All four masks and their estimated IoU: (P, 4, l, l), (P, 4), for as many prompts of each of the images (B, C, h, w).

    ``P`` counts the prompts of all images, those of the first image first.
    """
    h, w = embeddings.shape[2:]
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
    dense = dense[:, :, :h, :w] if masks is None else sam.prompt_encoder._embed_masks(masks)
    positions = sam.prompt_encoder.get_dense_pe()[:, :, at[0] : at[0] + h, at[1] : at[1] + w]
    # the decoder knows one image and only adds the dense embeddings to it: there several fit in
    own = embeddings.repeat_interleave(len(sparse) // len(embeddings), dim=0)
    logits, estimates = sam.mask_decoder.predict_masks(torch.zeros_like(embeddings[:1]), positions, sparse, own + dense)
    return logits, estimates


def _loss(
    logits: torch.Tensor, estimates: torch.Tensor, target: torch.Tensor, single: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training loss of one prompt batch and the detached IoU of each mask with the target."""
    losses = _mask_loss(logits, target)
    iou = _iou(logits, target)
    best = losses[:, 1:].min(dim=1).values  # of the three candidates, only the best learns
    total = best.mean() + (0.3 if single else 1.0) * losses[:, 0].mean() + F.mse_loss(estimates, iou)
    # a little for the others, so that no candidate is left to die
    return total + 0.03 * losses[:, 1:].mean(), iou


def _corrective(logits: torch.Tensor, target: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A click in the error of each mask: (P, 1, 2) pixel coordinates and (P, 1) labels, -1 where there is no error.

    ``logits`` and ``target`` are (P, l, l), ``sizes`` (P, 2) is (height, width) of each mask's image in pixels.
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
    """Names of things, those that a SAM cuts out badly repeated: what :class:`~text2sam.lab.sticker.world.World` draws from.

    The SAM is clicked once in the middle of each object of that many scenes, none of which training draws. A thing's weight
    is what its mean IoU, drawn to that of all clicks as if by four clicks more, lacks to 0.95, over the mean of that lack;
    between a half and 2.5. A name is there four times its weight, rounded.

    Args:
        sam: a segment-anything ``Sam``; it is in evaluation mode during the call.
        scenes: how many scenes; 0 returns every name once.
        seed: another seed, other scenes.
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
    lack = {name: max(0.0, 0.95 - (sum(found) + 4 * mean) / (len(found) + 4)) for name, found in ious.items()}
    average = max(float(np.mean(list(lack.values()))), 1e-6)
    return tuple(name for name in THINGS for _ in range(round(4 * min(2.5, max(0.5, lack[name] / average)))))


def train_sam(
    out: Path, *, stages: tuple[SamStage, ...] = SAM_STAGES, device: str = "cpu", workers: int = 1, start: Any = None
) -> Path:
    """Trains the sticker SAM and returns the path of its last checkpoint.

    In a process group (``torchrun``) every process draws its own scenes, ``batch`` of them per step, and the gradients are
    averaged; the first process writes.

    Args:
        out: folder for checkpoints and ``sam_log.jsonl``; a checkpoint found there is resumed.
        stages: the curriculum.
        device: where to train.
        workers: processes that draw scenes.
        start: state dict to begin with where there is no checkpoint; None begins at random.
    """
    torch.manual_seed(0)
    sam = build_sam().to(device).train()

    def draw(stage: SamStage, which: int, step: int) -> Iterator[Sequence[torch.Tensor]]:
        seed = which * 50_000_000 + step * 1000
        data = _SamScenes(stage, seed, practice(sam, stage.practice, seed))
        large = (True, False, False, False, False, True, False)  # pictures and targets
        return batches(data, stage.batch, fresh=stage.fresh, pool=stage.pool, large=large, device=device, workers=workers)

    def loss_of(batch: Sequence[torch.Tensor], stage: SamStage, rng: np.random.Generator, figures: Figures) -> torch.Tensor:
        return _step(sam, batch, stage, rng, device, figures)

    return train("sam", out, sam, stages, draw, loss_of, device=device, start=start, weight_decay=0.02, warm_up=200)


def _step(
    sam: Any,
    batch: Sequence[torch.Tensor],
    stage: SamStage,
    rng: np.random.Generator,
    device: str,
    figures: Figures,
) -> torch.Tensor:
    """The loss of one batch."""
    images, points, labels, boxes, use_boxes, targets, sizes = batch
    # colours are worth little to a cut-out: shuffling channels is free augmentation
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
    # images whose prompts have as many points go through the decoder together
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
