"""The training loop of the sticker CLIP and the sticker SAM, and CLIP's loss."""

from __future__ import annotations

import bisect
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from text2sam.files import atomic_path

_NEVER = -1e4  # far below any logit, whose absolute value is at most 100

TRAIN_SEEDS = 1_000_000_000
"""Smallest seed of a training scene."""


Figures: TypeAlias = defaultdict[str, list[torch.Tensor]]
"""Logged figures: name -> values of the steps since the last log line, which contains their mean."""


def train(
    name: str,
    out: Path,
    model: torch.nn.Module,
    stages: Sequence[Any],
    draw: Callable[[Any, int, int], Iterator[Sequence[torch.Tensor]]],
    loss_of: Callable[[Sequence[torch.Tensor], Any, np.random.Generator, Figures], torch.Tensor],
    *,
    device: str,
    weight_decay: float,
    warm_up: int,
) -> Path:
    """Trains a model with AdamW through its stages, starting from the checkpoint in ``out`` if there is one.

    Args:
        name: prefix of the checkpoint, log and stages files in ``out``.
        out: the folder.
        model: on its device, in training mode.
        stages: objects with ``steps``, ``learning_rate`` and the attributes that ``draw`` and ``loss_of`` use.
        draw: (stage, its index, step) -> endless batches. It is called for each stage and each resumption, and must give
            different batches each time.
        loss_of: (batch, stage, rng, figures) -> a scalar; it may add to the figures.
        device: device of the model.
        weight_decay: of weights; biases, norms and embeddings have none.
        warm_up: see :func:`decay`.

    Returns:
        The path of the last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    flat = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "embedding" in n)]
    groups = [{"params": rest, "weight_decay": weight_decay}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=stages[0].learning_rate, betas=(0.9, 0.98), fused=True)
    checkpoint, step, first = out / f"{name}.pt", 0, process()[0] == 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
        torch.manual_seed(step)
    ends = np.cumsum([stage.steps for stage in stages]).tolist()
    while step < ends[-1]:
        which = bisect.bisect_right(ends, step)
        stage, rng = stages[which], np.random.default_rng(step)
        drawn, figures = draw(stage, which, step), Figures(list)
        started, seen = time.time(), 0
        while step < ends[which]:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * decay(step, ends[-1], warm_up)
            loss = loss_of(next(drawn), stage, rng, figures)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            average_gradients(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            seen += 1
            figures["loss"].append(loss.detach())
            if step % 50 == 0:
                line: dict[str, Any] = {"step": step, "stage": which}
                line |= {key: round(torch.stack(values).mean().item(), 4) for key, values in figures.items()}
                line["seconds_per_step"] = round((time.time() - started) / seen, 3)
                figures.clear()
                if first:
                    with (out / f"{name}_log.jsonl").open("a") as log:
                        log.write(json.dumps(line) + "\n")
                    print(line, flush=True)
            if first and (step % 100 == 0 or step == ends[-1]):
                with atomic_path(checkpoint) as temporary:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    torch.save(state, temporary)
    if first:
        (out / f"{name}_stages.json").write_text(json.dumps([asdict(stage) for stage in stages], indent=1))
    return checkpoint


def batches(
    data: IterableDataset[Any], stage: Any, large: Sequence[bool], device: str, workers: int
) -> Iterator[Sequence[torch.Tensor]]:
    """Endless batches of samples.

    Args:
        data: endless samples.
        stage: has ``batch``, the samples per batch; ``fresh``, the share of a batch that is newly drawn, in (0, 1]; and
            ``pool``, the smallest size of the pool that a batch comes from where ``fresh`` is below 1 (:func:`pooled`).
        large: for each part of a sample, whether the pool keeps it on ``device`` instead of the CPU.
        device: device of the model.
        workers: number of processes that draw samples; 0 draws in this process.
    """
    few = max(1, round(stage.fresh * stage.batch))
    loader = DataLoader(
        data, batch_size=few, num_workers=workers, prefetch_factor=4 if workers else None, pin_memory=device == "cuda"
    )
    if few == stage.batch:
        return iter(loader)
    return pooled(loader, stage.batch, max(stage.pool, stage.batch), [device if part else "cpu" for part in large])


def pooled(
    drawn: Iterable[Sequence[torch.Tensor]], batch: int, size: int, devices: Sequence[str | torch.device]
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Endless batches from a pool of samples, in which new samples replace the oldest.

    Drawing samples is slower than training on a GPU. With ``n`` new samples per batch, a sample is used ``batch / n`` times on
    average.

    Args:
        drawn: batches of new samples, a tensor (n, ...) for each part of a sample; each yielded batch consumes one, the first
            may consume several.
        batch: samples per yielded batch.
        size: capacity of the pool, at least ``batch``; it need not be full to be used.
        devices: device of each part of a sample.

    Yields:
        A tensor (batch, ...) for each part, sampled uniformly from the pool with replacement.
    """
    kept: list[torch.Tensor] = []
    filled = taken = 0
    for new in drawn:
        if not kept:
            kept = [torch.empty(size, *x.shape[1:], dtype=x.dtype, device=d) for x, d in zip(new, devices, strict=True)]
        places = torch.arange(taken, taken + len(new[0])) % size
        for pool, x in zip(kept, new, strict=True):
            pool[places.to(pool.device)] = x.to(pool.device, non_blocking=True)
        taken += len(places)
        filled = min(taken, size)
        if filled >= batch:
            chosen = torch.randint(filled, (batch,))
            yield tuple(pool[chosen.to(pool.device)] for pool in kept)


def process() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without ``torchrun``."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def average_gradients(model: torch.nn.Module) -> None:
    """Averages the gradients over all processes; a missing gradient counts as zero."""
    _, count = process()
    if count == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    for p, mean in zip(parameters, (flat / count).split([p.numel() for p in parameters]), strict=True):
        p.grad = mean.view_as(p)


def decay(step: int, total: int, warm_up: int) -> float:
    """Factor of the learning rate in (0, 1]: linear warm-up times half a cosine from 1 to 0.02 over all steps."""
    return min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))


def contrastive_loss(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """CLIP's loss with any number of positive texts per image.

    The loss of a positive pair is ``-log(e^p / (e^p + sum e^n))`` over the negatives n. It is averaged over the positives of
    an image, then over images with positives; then the same over texts, and over both directions.

    Args:
        logits: (B, M), cosines times the scale.
        fits: (B, M) bool, the positive pairs, at least one.

    Returns:
        A scalar.
    """

    def one_way(z: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        # finite, since the gradient of minus infinity is NaN in rows without negatives
        negatives = z.masked_fill(positive, _NEVER).logsumexp(dim=1, keepdim=True)
        count = positive.sum(dim=1)
        rows = (F.softplus(negatives - z) * positive).sum(dim=1) / count.clamp(min=1)
        return rows[count > 0].mean()

    return 0.5 * (one_way(logits, fits) + one_way(logits.T, fits.T))
