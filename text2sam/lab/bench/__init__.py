"""``text2sam bench``: time and memory of text2sam and of a baseline, measured in one process.

Every suite is a function of :data:`SUITES`; :mod:`text2sam.lab.bench.gpu` is a script for a GPU.

:class:`torch.utils.benchmark.Timer` takes the times. Both sides of a comparison are measured in turn and in changing order, so
that other load affects both. A figure is the median of the rounds; the range of the ratios of the rounds shows how reliable it
is.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from text2sam import __version__
from text2sam.checks import check_known
from text2sam.devices import pick_device
from text2sam.lab.bench.suites import SUITES, Settings
from text2sam.tables import aligned

__all__ = ["SUITES", "Settings", "run", "table"]


def run(suite: str, settings: Settings) -> dict[str, Any]:
    """Runs one of :data:`SUITES` or ``"all"``; with the default settings all take a few minutes on two cores.

    Returns:
        JSON-ready: ``suite``, ``machine`` (versions, processors, threads, load), ``settings``, ``seconds``, ``benchmarks`` (all
        figures, by suite) and ``rows``, the lines of the table, see :func:`~text2sam.lab.bench.timing.row`.

    Raises:
        InputError: the suite is unknown, or the device is not available.
    """
    check_known("suite", [suite], ("all", *SUITES))
    start = time.perf_counter()
    machine = _machine(settings)
    results = {name: SUITES[name](settings) for name in (SUITES if suite == "all" else (suite,))}
    return {
        "suite": suite,
        "machine": machine,
        "settings": asdict(settings),
        "seconds": time.perf_counter() - start,
        "benchmarks": {name: details for name, (details, _) in results.items()},
        "rows": [row for _, rows in results.values() for row in rows],
    }


def table(result: dict[str, Any]) -> str:
    """The result of :func:`run` as text."""
    lines = []
    for row in result["rows"]:
        spread = "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
        met = "" if row["met"] is None else ("yes" if row["met"] else "NO")
        ours, baseline = (_quantity(row[side], row["unit"]) for side in ("ours", "baseline"))
        lines.append((row["what"], ours, baseline, f"{row['ratio']:.3g}", spread, row["aim"] or "", met))
    machine = result["machine"]
    load = "" if machine["load_average"] is None else f", load {machine['load_average']:.1f} at the start"
    notes = [
        f"{machine['device']}, {machine['cpus']} processors, {machine['threads']} threads{load}; torch {machine['torch']}; "
        f"{result['seconds']:.0f} s. A ratio above 1 means that ours is better."
    ]
    folder = result["benchmarks"].get("annotate")
    if folder:
        job, loop = (f"{folder['times'][side]['cpu_s']:.3g}" for side in ("job", "loop"))
        notes.append(
            f"Processor seconds per image: {job} in the job, including the start of {folder['workers']} workers; {loop} in the "
            "loop."
        )
        shares = ", ".join(f"{part} {share:.0%}" for part, share in folder["shares"].items())
        notes.append(f"Shares of the loop's time: {shares}.")
    return "\n".join([aligned(("what", "ours", "baseline", "ratio", "rounds", "aim", "met"), lines), "", *notes])


def _machine(settings: Settings) -> dict[str, Any]:
    versions = {}
    for package in ("torch", "open_clip_torch", "segment-anything", "timm", "numpy"):
        try:
            versions[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            versions[package.replace("-", "_")] = "unknown"
    return {
        "text2sam": __version__,
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(pick_device(settings.device)),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _quantity(value: float, unit: str) -> str:
    if unit == "times":
        return f"{value:.2f} x"
    if unit == "count":
        return f"{value:.3g}"
    scales = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if unit == "s" else (("MB", 1e6), ("kB", 1e3))
    name, scale = next((pair for pair in scales if value >= pair[1]), scales[-1])
    return f"{value / scale:.3g} {name}"
