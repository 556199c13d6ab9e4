"""The result of a run as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from text2sam.errors import one_line
from text2sam.lab.runner.published import SECOND_HAND
from text2sam.tables import aligned

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "recognition": {"map": "mAP"},
    "semantic": {"miou": "mIoU", "miou_without_background": "mIoU without background", "pixel_accuracy": "pixel accuracy"},
    "explainability": {"miou": "mIoU", "threshold": "threshold", "msc": "mSC"},
    "camouflage": {"s_measure": "S-measure", "e_measure": "E-measure", "weighted_f": "weighted F", "mae": "MAE"},
}
"""Task -> figure -> its column header."""

_COMPARED = {"recognition": ("map",), "semantic": ("miou",), "explainability": ("miou", "msc"), "camouflage": ("s_measure",)}
_MOST_FAILED = 5


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The header and one row per method."""
    task, mark = result["settings"]["task"], " (meaningless)" if result["untrained"] else ""
    figures = {
        name: label
        for name, label in COLUMNS[task].items()
        if any(values[name] is not None for values in result["figures"].values()) or name in _COMPARED[task]
    }
    head = ["method"]
    for name, label in figures.items():
        head += [label + mark, *(["published"] if name in _COMPARED[task] else [])]
    lines = [[*head, "s/image"]]
    for method, values in result["figures"].items():
        cells = [method]
        for name in figures:
            cells.append(_cell(values[name], values["intervals"].get(name), name))
            if name in _COMPARED[task]:
                cells.append(_published(result["published"].get(method, {}).get(name)))
        lines.append([*cells, _median(result["seconds"], method if method in result["seconds"] else "methods")])
    return lines


def notes(result: Mapping[str, Any]) -> list[str]:
    """The notes below the table."""
    data, images, model, seconds = result["dataset"], result["images"], result["model"], result["seconds"]
    split = f", split {data['split']}" if data["split"] else ""
    sentences = []
    weights = f" ({model['pretrained']})" if model["pretrained"] not in (None, model["name"]) else ""
    if result["untrained"]:
        sentences.append("UNTRAINED WEIGHTS: all figures are meaningless, except time and memory.")
    sentences.append(
        f"{data['title']}{split}: {images['measured']} images"
        + (f", {images['failed']} failed" if images["failed"] else "")
        + f". {model['name'] or 'CLIP'}{weights}, "
        f"{model['image_size'][0]} x {model['image_size'][1]} pixels, {model['device']}."
    )
    sentences.append(f"{result['rules']}.")
    if any(values["intervals"] for values in result["figures"].values()):
        rule = ""
        if result["settings"]["task"] == "explainability":
            rule = f" Threshold rule: {result['settings']['threshold_rule']}."
        sentences.append(
            f"95 % intervals: {result['settings']['resamples']} resamples of the images, their mean moved to the figure.{rule}"
        )
    memory = result["memory"]
    peak = ", ".join(
        f"{memory[key] / 2**30:.2f} GiB {place}"
        for key, place in (("process", "of the process"), ("cuda", "on the GPU"))
        if memory[key]
    )
    sentences.append(
        f"Median seconds per image: {seconds['image']['median']:.3f}, of which reading {_median(seconds, 'read')}, "
        f"encoding {_median(seconds, 'encode')}." + (f" Peak memory: {peak}." if peak else "")
    )
    sources: dict[str, None] = {}
    for by_figure in result["published"].values():
        for entry in by_figure.values():
            sources[entry["source"] + (f" ({entry['note']})" if entry["note"] else "")] = None
    sentences += [f"Published: {source}." for source in sources]
    sentences += [f"Failed: {failure['id']}: {failure['reason']}" for failure in result["failed"][:_MOST_FAILED]]
    if len(result["failed"]) > _MOST_FAILED:
        sentences.append(f"... and {len(result['failed']) - _MOST_FAILED} more, see the JSON.")
    return [one_line(note) for note in sentences]


def table(result: Mapping[str, Any]) -> str:
    """The result as text for a terminal."""
    head, *lines = rows(result)
    return "\n".join([aligned(head, lines), "", *notes(result)])


def _cell(value: float | None, ends: list[float] | None, name: str) -> str:
    if value is None:
        return "-"
    if name == "threshold":
        return f"{value:.2f}"
    if name in COLUMNS["camouflage"]:  # shares, not percent
        return f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
    return f"{value:.2f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def _published(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{entry['value']:g}" + (" (second-hand)" if entry["note"].startswith(SECOND_HAND) else "")


def _median(seconds: Mapping[str, Any], part: str) -> str:
    return f"{seconds[part]['median']:.3f}" if part in seconds else "-"
