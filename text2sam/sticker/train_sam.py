"""Trains the sticker SAM on points, boxes and masks of the sticker world.

As Segment Anything (arXiv 2304.02643, section 3 and appendix A) does: a click is ambiguous, so its target is
sometimes the whole object, sometimes the part of one colour under it, sometimes the group of
objects that touch; of the three candidate masks only the best one learns from it, and the IoU head
learns to tell each candidate's IoU. Several points come with a few wrong ones among them, as a similarity map sends
them. Some prompts get a second round with a corrective click and the first round's logits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from text2sam.sticker.models import SAM_CONFIG, build_sam
from text2sam.sticker.training import TRAIN_SEEDS, parameter_groups, save_checkpoint
from text2sam.sticker.world import Scene, World, inner_point

SIDE: int = SAM_CONFIG["img_size"]
LOW = SIDE // SAM_CONFIG["patch_size"] * 4  # side of the low-resolution logits
SAM_SEEDS = TRAIN_SEEDS + 500_000_000


@dataclass(frozen=True)
class SamSchedule:
    """How the sticker SAM is trained.

    Attributes:
        steps: number of optimizer steps.
        batch: scenes per step.
        prompts: prompts per scene.
        points: largest number of points in one prompt.
        learning_rate: at the top of the schedule.
    """

    steps: int = 2400
    batch: int = 6
    prompts: int = 6
    points: int = 8
    learning_rate: float = 8e-4


def _part(image: NDArray[np.uint8], mask: NDArray[np.bool_], x: int, y: int) -> NDArray[np.bool_] | None:
    """The region of one colour under a click, if it is a proper part of the object."""
    from scipy.ndimage import label, uniform_filter

    smooth = uniform_filter(image.astype(np.float32), (3, 3, 1))
    near = (np.abs(smooth - smooth[y, x]).max(-1) < 28) & mask
    regions, _ = label(near)
    part = regions == regions[y, x]
    share = part.sum() / mask.sum()
    return part if regions[y, x] and 0.12 < share < 0.7 else None


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


class _SamScenes(IterableDataset[tuple[np.ndarray, ...]]):
    """Endless image (3, S, S), points (P, K, 2), labels (P, K), boxes (P, 4), use_boxes, targets (P, L, L), (h, w)."""

    def __init__(self, schedule: SamSchedule, seed: int) -> None:
        self.schedule, self.seed = schedule, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        rng = np.random.default_rng([self.seed, worker])
        number = self.seed + worker
        while True:
            short = int(rng.integers(SIDE // 2, SIDE + 1)) if rng.random() < 0.25 else SIDE
            size = (SIDE, short) if rng.random() < 0.5 else (short, SIDE)
            world = World(size=size, objects=(2, 6), sides=(0.2, 0.65), repeat=0.3)
            scene = world.scene(SAM_SEEDS + number)
            number += workers
            objects = [k for k, o in enumerate(scene.objects) if o.mask.sum() >= 40]
            if objects:
                yield self._prompts(rng, scene, objects)

    def _prompts(self, rng: np.random.Generator, scene: Scene, objects: list[int]) -> tuple[np.ndarray, ...]:
        schedule = self.schedule
        h, w = scene.image.shape[:2]
        use_boxes = rng.random() < 0.12
        points = np.zeros((schedule.prompts, schedule.points, 2), np.float32)
        labels = np.full((schedule.prompts, schedule.points), -1, np.int64)
        boxes = np.zeros((schedule.prompts, 4), np.float32)
        targets = np.zeros((schedule.prompts, h, w), bool)
        several = rng.random() < 0.45
        for p in range(schedule.prompts):
            which = objects[int(rng.integers(len(objects)))]
            mask = scene.objects[which].mask
            inside = np.argwhere(mask)
            y, x = (int(v) for v in inside[int(rng.integers(len(inside)))])
            if rng.random() < 0.3:
                x, y = (int(v) for v in inner_point(mask))
            target: NDArray[np.bool_] | None = mask
            if use_boxes:
                top, left = inside.min(0)
                bottom, right = inside.max(0) + 1
                jitter = rng.normal(0, 0.06, 4) * np.array([right - left, bottom - top] * 2)
                boxes[p] = np.array([left, top, right, bottom]) + jitter
            elif several:
                # a map's hot and cold cells: mostly right, some not
                count = int(rng.integers(1, schedule.points // 2 + 1))
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
                if kind < 0.15:
                    target = _part(scene.image, mask, x, y)
                elif kind < 0.27:
                    target = _group(scene, which)
                points[p, 0], labels[p, 0] = (x, y), 1
            targets[p] = mask if target is None else target
        canvas = np.zeros((3, SIDE, SIDE), np.uint8)
        canvas[:, :h, :w] = scene.image.transpose(2, 0, 1)
        # share of each low-resolution cell that the target covers
        padded = np.zeros((schedule.prompts, SIDE, SIDE), np.float32)
        padded[:, :h, :w] = targets
        cell = SIDE // LOW
        low = padded.reshape(schedule.prompts, LOW, cell, LOW, cell).mean((2, 4))
        if not use_boxes:
            used = max(1, int((labels >= 0).sum(1).max()))
            labels[:, used:] = -1
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


def _decode(sam: Any, embedding: torch.Tensor, points: Any, boxes: Any, masks: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All four masks and their estimated IoU: (P, 4, L, L), (P, 4)."""
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    return sam.mask_decoder.predict_masks(  # type: ignore[no-any-return]
        image_embeddings=embedding, image_pe=sam.prompt_encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )  # fmt: skip


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


def _corrective(logits: torch.Tensor, target: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A click in the error of each mask: (P, 1, 2) pixel coordinates and (P, 1) labels, -1 where there is no error."""
    count = len(logits)
    wrong = ((logits > 0) != (target > 0.5)).flatten(1).float() + 1e-9
    rows, columns = (
        torch.arange(LOW, device=logits.device).repeat_interleave(LOW),
        torch.arange(LOW, device=logits.device).repeat(LOW),
    )
    cell = SIDE // LOW
    wrong = wrong * ((rows * cell < size[0]) & (columns * cell < size[1]))
    at = torch.multinomial(wrong, 1)  # (P, 1)
    label = (target.flatten(1).gather(1, at) > 0.5).long()
    label[wrong.gather(1, at) < 1e-3] = -1
    xy = torch.stack([columns[at], rows[at]], -1).float() * cell + cell / 2
    return xy.reshape(count, 1, 2), label


def train_sam(out: Path, *, schedule: SamSchedule | None = None, device: str = "cpu", workers: int = 1) -> Path:
    """Trains the sticker SAM and returns the path of its last checkpoint.

    Args:
        out: folder for checkpoints and ``sam_log.jsonl``; a checkpoint found there is resumed.
        schedule: how long and with what.
        device: where to train.
        workers: processes that draw scenes.
    """
    schedule = schedule or SamSchedule()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sam = build_sam().to(device).train()
    opt = torch.optim.AdamW(parameter_groups(sam, 0.02), lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)
    step = 0
    checkpoint = out / "sam.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        sam.load_state_dict(state["model"])
        opt.load_state_dict(state["optimizer"])
        step = state["step"]
        torch.manual_seed(step)
    data = _SamScenes(schedule, seed=step * 1000)
    loader = iter(DataLoader(data, batch_size=schedule.batch, num_workers=workers, prefetch_factor=4 if workers else None))
    started, seen = time.time(), 0
    sums = {"loss": 0.0, "click": 0.0, "click_n": 0.0, "points": 0.0, "points_n": 0.0, "score_error": 0.0}
    while step < schedule.steps:
        images, points, labels, boxes, use_boxes, targets, sizes = next(loader)
        lr = (
            schedule.learning_rate
            * min(1.0, (step + 1) / 200)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / schedule.steps)))
        )
        for group in opt.param_groups:
            group["lr"] = lr
        # colours are worth little to a cut-out: shuffling channels and dimming is free augmentation
        images = images[:, torch.randperm(3)] if rng.random() < 0.3 else images
        valid = torch.zeros(len(images), 1, SIDE, SIDE)
        for k, (h, w) in enumerate(sizes.tolist()):
            valid[k, :, :h, :w] = 1
        pixels = ((images.to(device).float() - sam.pixel_mean) / sam.pixel_std) * valid.to(device)
        with torch.autocast(device, torch.bfloat16):
            embeddings = sam.image_encoder(pixels)
        embeddings = embeddings.float()
        total = embeddings.new_zeros(())
        second = rng.random() < 0.3
        for k in range(len(images)):
            target = targets[k][:, None].to(device)
            prompt: Any = None
            box: Any = None
            if use_boxes[k]:
                box = boxes[k].to(device)
            else:
                used = int((labels[k] >= 0).sum(1).max())
                prompt = (points[k][:, :used].to(device) + 0.5, labels[k][:, :used].to(device))
            with torch.autocast(device, torch.bfloat16):
                logits, estimates = _decode(sam, embeddings[k : k + 1], prompt, box, None)
            logits, estimates = logits.float(), estimates.float()
            single = prompt is not None and prompt[0].shape[1] == 1
            loss, iou = _loss(logits, estimates, target, single)
            total = total + loss
            by_score = iou[:, 1:].gather(1, estimates[:, 1:].argmax(1, keepdim=True)).mean().item()
            kind = "click" if single else "points"
            sums[kind] += by_score
            sums[kind + "_n"] += 1
            sums["score_error"] += (estimates[:, 1:] - iou[:, 1:]).abs().mean().item()
            if second and prompt is not None:
                best = estimates[:, 1:].argmax(1) + 1
                previous = logits[torch.arange(len(logits)), best][:, None].detach()
                xy, label = _corrective(previous[:, 0], target[:, 0], sizes[k].to(device))
                more = (torch.cat([prompt[0], xy], 1), torch.cat([prompt[1], label], 1))
                with torch.autocast(device, torch.bfloat16):
                    logits, estimates = _decode(sam, embeddings[k : k + 1], more, None, previous)
                total = total + _loss(logits.float(), estimates.float(), target, False)[0]
        opt.zero_grad(set_to_none=True)
        total = total / len(images)
        total.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        opt.step()
        step += 1
        seen += 1
        sums["loss"] += total.item()
        if step % 50 == 0:
            line = {
                "step": step,
                "loss": round(sums["loss"] / 50, 4),
                "click_iou": round(sums["click"] / max(sums["click_n"], 1), 4),
                "points_iou": round(sums["points"] / max(sums["points_n"], 1), 4),
                "score_error": round(sums["score_error"] / (50 * len(images)), 4),
                "seconds_per_step": round((time.time() - started) / seen, 3),
            }
            sums = dict.fromkeys(sums, 0.0)
            with (out / "sam_log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if step % 100 == 0 or step == schedule.steps:
            save_checkpoint(checkpoint, {"model": sam.state_dict(), "optimizer": opt.state_dict(), "step": step})
    (out / "sam_schedule.json").write_text(json.dumps(asdict(schedule), indent=1))
    return checkpoint
