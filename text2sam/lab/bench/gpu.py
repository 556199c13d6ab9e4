"""Images per second on a GPU, within ten minutes: ``python -m text2sam.lab.bench.gpu --out FILE``.

The script compares ``annotate`` with ViT-B/16 at 512 px and two SAMs, in float32 and half precision, with transformers'
Grounding DINO tiny and SAM 2.1 tiny; and ten texts whose prompts go through SAM's decoder together with the same one by one.
All weights are random, and all labels are taken as present. ``busy`` is the share of the time in which the GPU computes;
otherwise it waits for the processor, the disk or Python.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from text2sam.annotate.job import annotate
from text2sam.annotate.labels import LabelSet, LabelSpec
from text2sam.clip.generator import ClipSurgery
from text2sam.devices import check_dtype, pick_device
from text2sam.files import write_json, write_png
from text2sam.lab.bench.peers import peer_pipeline
from text2sam.lab.bench.suites import draw
from text2sam.pipeline import TextPromptedSAM
from text2sam.sam.build import build_predictor
from text2sam.sam.session import Session

TEXTS = ("cat", "dog", "bird", "horse", "car", "bus", "tree", "cup", "chair", "person")
ROUNDS = 5
LABELS = LabelSet(tuple(LabelSpec(name, threshold=0.0) for name in ("cat", "dog")))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures the cases, and prints each when it is done.

    Returns:
        A dictionary per case: ``what``, ``dtype``, ``images_per_second``, ``busy`` (None on a CPU), ``peak_bytes`` of the GPU.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default=None)
    parser.add_argument("--sams", default="vit_t,vit_b")
    parser.add_argument("--dtypes", default="float32,float16")
    parser.add_argument("--clip", default="ViT-B-16-quickgelu", help="open_clip's name")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--peer-images", type=int, default=16, help="0 skips the peers")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    device, results = pick_device(chosen.device), list[dict[str, Any]]()

    def add(what: str, dtype: str, images: int, work: Callable[[], object]) -> None:
        results.append({"what": what, "dtype": dtype, **_measured(work, images, device)})
        print(json.dumps(results[-1]), flush=True)
        if chosen.out is not None:
            write_json(chosen.out, results)

    with tempfile.TemporaryDirectory() as temporary:
        for number in range(chosen.images):
            write_png(Path(temporary, "images", f"{number:04}.png"), draw((480, 640 - number % 32)))
        for dtype in chosen.dtypes.split(","):
            for kind in chosen.sams.split(","):
                model = _pair(chosen.clip, kind, chosen.image_size, device, dtype)

                def job(model: TextPromptedSAM = model) -> object:
                    out = Path(temporary, "out")
                    return annotate(model, Path(temporary, "images"), LABELS, out, batch_size=chosen.batch_size, overwrite=True)

                if device.type == "cuda":
                    job()  # warm-up
                add(f"annotate, {chosen.clip} and SAM {kind}", dtype, chosen.images, job)
                model.set_image(draw((480, 640)))
                texts = partial(_ask_ten, model)
                texts()
                add(f"an image that is set, ten texts, SAM {kind}, prompts together", dtype, ROUNDS, texts)
                with mock.patch.object(Session, "batches", False):
                    add("the same, prompts one by one", dtype, ROUNDS, texts)
                del model, job, texts
            peers = peer_pipeline((480, 640), device, check_dtype(dtype, device)) if chosen.peer_images else None
            if peers is not None:
                peers(True)
                add(
                    "Grounding DINO tiny and SAM 2.1 tiny", dtype, chosen.peer_images, partial(_each, peers, chosen.peer_images)
                )
    return results


def _pair(clip: str, sam: str, size: int, device: torch.device, dtype: str) -> TextPromptedSAM:
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower, tokenizer = open_clip.create_model(clip, pretrained=None), open_clip.get_tokenizer(clip)
        predictor = build_predictor(sam, device=device, dtype=dtype)
    return TextPromptedSAM(
        predictor, ClipSurgery(tower.eval(), tokenizer, size, device=device, dtype=check_dtype(dtype, device))
    )


def _ask_ten(model: TextPromptedSAM) -> None:
    for _ in range(ROUNDS):
        model.segment_many(None, TEXTS, threshold=0.0)


def _each(ask: Callable[[bool], object], images: int) -> None:
    for _ in range(images):
        for number in range(len(LABELS.names)):
            ask(number == 0)  # for the second label the image is not new


def _measured(work: Callable[[], object], images: int, device: torch.device) -> dict[str, Any]:
    """Images per second of a call, and the share of a second call in which the GPU was busy."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    figures: dict[str, Any] = {"images_per_second": images / seconds, "busy": None, "peak_bytes": None}
    if on_gpu:
        figures["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            start = time.perf_counter()
            work()
            torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
        figures["busy"] = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / seconds
    return figures


if __name__ == "__main__":
    main()
