"""Time and memory of calls, and the lines of the table."""

from __future__ import annotations

import os
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer


def alternate(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    short: str | None = None,
    warm_up: bool = True,
) -> dict[str, dict[str, Any]]:
    """Times several calls in turn; every second round runs in reverse order.

    Args:
        sides: the calls by name.
        rounds: samples of each.
        prepare: what runs before the samples of a side.
        short: the side whose samples are means of 20 calls.
        warm_up: whether two calls precede each sample.

    Returns:
        By name: ``median_s`` and ``samples_s``, seconds of a call; and ``cpu_s``, the median of the processor seconds that this
        process and its finished child processes used for a call, including the calls to warm up.
    """
    timers = {
        name: Timer("call()", setup="prepare()", globals={"call": call, "prepare": (prepare or {}).get(name, tuple)})
        for name, call in sides.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in sides if i % 2 == 0 else reversed(list(sides)):
            before = sum(os.times()[:4])
            if warm_up:
                samples[name].append(timers[name].timeit(20 if name == short else 1).mean)
            else:
                (prepare or {}).get(name, tuple)()
                start = time.perf_counter()
                sides[name]()
                samples[name].append(time.perf_counter() - start)
            cpu[name].append(sum(os.times()[:4]) - before)
    return {
        name: {"median_s": statistics.median(taken), "samples_s": taken, "cpu_s": statistics.median(cpu[name])}
        for name, taken in samples.items()
    }


class _LiveBytes(TorchDispatchMode):
    """Adds the sizes of new tensor storages and subtracts those of freed storages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._add((args, kwargs), new=False)  # the caller made the inputs
        result = func(*args, **(kwargs or {}))
        self._add(result, new=True)
        return result

    def _add(self, tree: Any, *, new: bool) -> None:
        for tensor in tree_leaves(tree):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is None or id(storage) in self._known:
                continue
            size = storage.nbytes() if new else 0
            self._known.add(id(storage))
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, id(storage), size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_tensor_bytes(call: Callable[[], object]) -> int:
    """Largest total size in bytes of the tensors that ``call`` makes and that exist at the same time, including its result.

    The outputs of every operator count, on any device. The temporary memory inside an operator does not.
    """
    # inference_mode would not show the parts of compound operators
    with torch.no_grad(), _LiveBytes() as counter:
        call()
    return int(counter.peak)


def row(
    what: str, ours: float, baseline: float, unit: str, aim: str | None = None, met: bool | None = None, **rounds: float
) -> dict[str, Any]:
    """A line of the table.

    Args:
        what: the comparison.
        ours, baseline: medians, in ``unit``.
        unit: ``"s"``, ``"bytes"``, ``"times"`` or ``"count"``.
        aim, met: the aim in words, and whether it is met; None without an aim.
        **rounds: ``low`` and ``high``, the smallest and the largest ratio of the rounds.

    Returns:
        JSON-ready, with ``ratio``, baseline divided by ours, above 1 if ours is better; ``low`` and ``high`` are None without
        rounds.
    """
    ratios = {"ratio": baseline / ours, "low": None, "high": None} | rounds
    return {"what": what, "ours": ours, "baseline": baseline, "unit": unit, **ratios, "aim": aim, "met": met}


def timed_row(what: str, ours: Mapping[str, Any], baseline: Mapping[str, Any], at_least: float | None = None) -> dict[str, Any]:
    """A line from two results of :func:`alternate`; ``at_least`` is the aim for the ratio."""
    ratios = [b / o for o, b in zip(ours["samples_s"], baseline["samples_s"], strict=True)]
    line = row(what, ours["median_s"], baseline["median_s"], "s", low=min(ratios), high=max(ratios))
    return line if at_least is None else line | {"aim": f">= {at_least:g}", "met": line["ratio"] >= at_least}
