"""What both trainings of the sticker pair share."""

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
from torch.utils.data import DataLoader, IterableDataset

TRAIN_SEEDS = 1_000_000_000
"""Training draws seeds from here upwards; everything below is never seen in training."""


Figures: TypeAlias = defaultdict[str, list[torch.Tensor]]
"""What a training's log tells, as means over the steps since the last line."""


def train(
    name: str,
    out: Path,
    model: torch.nn.Module,
    stages: Sequence[Any],
    draw: Callable[[Any, int, int], Iterator[Sequence[torch.Tensor]]],
    loss_of: Callable[[Sequence[torch.Tensor], Any, np.random.Generator, Figures], torch.Tensor],
    *,
    device: str,
    start: Any,
    weight_decay: float,
    warm_up: int,
) -> Path:
    """Trains a model with AdamW through its stages, from the newest checkpoint in a folder on.

    Args:
        name: of the checkpoint, the log and the record of the stages in ``out``.
        out: the folder.
        model: on its device, in training mode.
        stages: have ``steps`` and ``learning_rate``, and what ``draw`` and ``loss_of`` need.
        draw: (stage, its place, step) -> endless batches. It is called for each stage and each resumption, and must draw others
            each time.
        loss_of: (batch, stage, rng, figures) -> a scalar; adds to the figures.
        device: where the model is.
        start: state dict to begin with where there is no checkpoint; None leaves the model as it is.
        weight_decay: see :func:`parameter_groups`.
        warm_up: steps, see :func:`decay`.

    Returns:
        The path of the last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    if start is not None:
        model.load_state_dict(start)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, weight_decay), lr=stages[0].learning_rate, betas=(0.9, 0.98), fused=True
    )
    checkpoint = out / f"{name}.pt"
    step, first = resume(checkpoint, model, optimizer, device), process()[0] == 0
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
                    log_line(out / f"{name}_log.jsonl", line)
            if first and (step % 100 == 0 or step == ends[-1]):
                save_checkpoint(checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
    if first:
        (out / f"{name}_stages.json").write_text(json.dumps([asdict(stage) for stage in stages], indent=1))
    return checkpoint


def save_checkpoint(path: Path, state: Any) -> None:
    """Writes a training checkpoint atomically."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weights with decay; biases, norms and embeddings without."""
    flat = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "embedding" in n)]
    return [{"params": rest, "weight_decay": decay}, {"params": flat, "weight_decay": 0.0}]


def resume(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: str) -> int:
    """Takes up a checkpoint of :func:`save_checkpoint`, where there is one; returns the step it was written at, else 0."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.manual_seed(state["step"])
    return int(state["step"])


def batches(
    data: IterableDataset[Any],
    batch: int,
    *,
    fresh: float,
    pool: int,
    large: Sequence[bool],
    device: str,
    workers: int,
) -> Iterator[Sequence[torch.Tensor]]:
    """Endless batches of samples that worker processes draw.

    Args:
        data: draws samples without end.
        batch: samples per batch.
        fresh: share of a batch that is newly drawn, in (0, 1]; below 1 the batch comes out of a pool (:func:`pooled`).
        pool: samples in it, or ``batch`` if that is more.
        large: for each part of a sample, whether the pool keeps it on ``device`` and not on the CPU.
        device: where to train.
        workers: processes that draw; 0 draws in this one.
    """
    few = max(1, round(fresh * batch))
    loader = DataLoader(
        data, batch_size=few, num_workers=workers, prefetch_factor=4 if workers else None, pin_memory=device == "cuda"
    )
    if few == batch:
        return iter(loader)
    return pooled(loader, batch, max(pool, batch), [device if part else "cpu" for part in large])


def pooled(
    drawn: Iterable[Sequence[torch.Tensor]], batch: int, size: int, devices: Sequence[str | torch.device]
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Endless batches out of a pool of samples, in which older ones give way to those newly drawn.

    Drawing is slow and a GPU is not: with ``n`` samples newly drawn for each batch, a sample is used ``batch / n`` times on
    average, and in between lies in the memory of the device that will use it.

    Args:
        drawn: batches of newly drawn samples, a tensor (n, ...) for each part of a sample; one of them is taken per batch
            given out, more of them before the first.
        batch: samples per batch given out.
        size: of the pool, at least ``batch``; it is used as it fills up.
        devices: for each part of a sample, where it is kept and given out.

    Yields:
        A tensor (batch, ...) for each part; samples are drawn evenly from the pool, with replacement.
    """
    kept: list[torch.Tensor] = []
    filled = taken = 0
    for new in drawn:
        if not kept:
            kept = [torch.empty(size, *x.shape[1:], dtype=x.dtype, device=d) for x, d in zip(new, devices, strict=True)]
        # the oldest give way
        places = torch.arange(taken, taken + len(new[0])) % size
        for pool, x in zip(kept, new, strict=True):
            pool[places.to(pool.device)] = x.to(pool.device, non_blocking=True)
        taken += len(places)
        filled = min(taken, size)
        if filled >= batch:
            chosen = torch.randint(filled, (batch,))
            yield tuple(pool[chosen.to(pool.device)] for pool in kept)


def process() -> tuple[int, int]:
    """This process's number and how many train together; (0, 1) unless ``torchrun`` started several."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def average_gradients(model: torch.nn.Module) -> None:
    """Gives every process the mean of all processes' gradients; a parameter without one counts as zero.

    The processes begin with the same weights and draw other scenes, so that several small batches are one larger
    one. Does nothing in a process that trains alone.
    """
    _, count = process()
    if count == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    for p, mean in zip(parameters, (flat / count).split([p.numel() for p in parameters]), strict=True):
        p.grad = mean.view_as(p)


def decay(step: int, total: int, warm_up: int) -> float:
    """Factor of the learning rate in (0, 1]: linear warm-up, then half a cosine from 1 to 0.02 over all steps."""
    return min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))


def log_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one line of figures to a training's log, and prints it."""
    with path.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(line, flush=True)
