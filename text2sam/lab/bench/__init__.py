"""``text2sam bench``: times and memory of text2sam beside those of the obvious way, measured in one process.

Seven suites; the first three against :mod:`text2sam.lab.experiments.plain` or against a first call:

- ``text``: the prompt ensemble on a text tower of real size (random weights cost what trained ones cost);
- ``surgery``: feature surgery over a label set, its time and its peak memory;
- ``images``: the second text on an image against the first, by the papers' recipe;
- ``recipe``: the default recipe against the papers', in calls of the models and in time;
- ``sam``: MobileSAM's image encoder and prompts as they run on CPUs against the same weights untouched, and in bfloat16;
- ``annotate``: a folder job, dataset included, against a plain loop over ``segment_many`` that keeps nothing;
- ``peers``: the photo pair against transformers' Grounding DINO and SAM 2.1, where transformers is installed.

:mod:`text2sam.lab.bench.gpu` is a script for a GPU.

Times are taken by :class:`torch.utils.benchmark.Timer`. Both sides of a comparison take turns, in changing order, so that what
else the machine does falls on both. A figure is the median of the rounds; the range of the rounds' own ratios says
how reliable it is.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from text2sam import __version__
from text2sam.devices import pick_device
from text2sam.errors import InputError
from text2sam.lab.bench.suites import Settings, measure
from text2sam.lab.bench.timing import Row
from text2sam.lab.output import reporting
from text2sam.tables import aligned

__all__ = ["SUITES", "Settings", "main_command", "run", "table"]

SUITES = ("text", "surgery", "images", "recipe", "sam", "annotate", "peers")


def run(suite: str = "all", settings: Settings | None = None) -> dict[str, Any]:
    """Runs benchmarks.

    Args:
        suite: ``"all"``, or one of :data:`SUITES`.
        settings: sizes and repeats; the defaults take a few minutes on two cores.

    Returns:
        JSON-ready: ``suite``, ``machine`` (versions, processors, threads, load), ``settings``, ``benchmarks`` (every
        figure, by suite) and ``rows``, the table as dictionaries of :class:`Row`. Times in seconds, memory in bytes.

    Raises:
        InputError: the suite is unknown, or the device is not there.
        WeightsError: ``sam_checkpoint`` cannot be used.
    """
    if suite not in ("all", *SUITES):
        raise InputError(f"suite must be one of all, {', '.join(SUITES)}, not {suite!r}")
    chosen = settings or Settings()
    start = time.perf_counter()
    machine = _machine(chosen)
    benchmarks: dict[str, Any] = {}
    rows: list[Row] = []
    for name in SUITES if suite == "all" else (suite,):
        results = list(measure(name, chosen))
        rows += [row for _, lines in results for row in lines]
        details = [detail for detail, _ in results]
        benchmarks[name] = {"pairs": details} if name in ("images", "recipe") else next(iter(details), {})
    return {
        "suite": suite,
        "machine": machine,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(chosen).items()},
        "seconds": time.perf_counter() - start,
        "benchmarks": benchmarks,
        "rows": [asdict(row) for row in rows],
    }


def main_command(
    suite: str = "all", out: Path | None = None, json_output: bool = False, settings: Settings | None = None
) -> None:
    """``text2sam bench``: runs benchmarks and prints the table.

    Args:
        suite, settings: see :func:`run`.
        out: file for the whole result as JSON; opened before anything is measured.
        json_output: print that JSON instead of the table.

    Raises:
        InputError, WeightsError: as :func:`run`.
        OutputError: ``out`` cannot be written.
    """
    with reporting(table, out, json_output) as report:
        if sys.stderr.isatty():
            print("measuring; this takes a few minutes", file=sys.stderr)
        report(run(suite, settings))


def table(result: dict[str, Any]) -> str:
    """The rows of a result of :func:`run` as lines of text."""
    lines = []
    for row in result["rows"]:
        spread = "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
        met = "" if row["met"] is None else ("yes" if row["met"] else "NO")
        ours, baseline = (_quantity(row[side], row["unit"]) for side in ("ours", "baseline"))
        lines.append((row["what"], ours, baseline, f"{row['ratio']:.3g}", spread, row["aim"] or "", met))
    machine = result["machine"]
    load = "" if machine["load_average"] is None else f", load {machine['load_average']:.1f} when it began"
    notes = [
        f"{machine['device']}, {machine['cpus']} processors, {machine['threads']} threads{load}; torch {machine['torch']}; "
        f"{result['seconds']:.0f} s. Ratios above 1 are for ours."
    ]
    folder = result["benchmarks"].get("annotate")
    if folder:
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in folder["shares"].items())
        job, loop = (f"{folder['times'][side]['cpu_s']:.3g}" for side in ("job", "loop"))
        notes.append(f"Shares of the loop's time: {shares}.")
        notes.append(
            f"Seconds of processors per image: {job} in the job, the start of {folder['workers']} workers included; "
            f"{loop} in the loop."
        )
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
