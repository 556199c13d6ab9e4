"""``text2sam bench``: what text2sam saves against the obvious way, measured in one process.

Five suites; the first three against :mod:`text2sam.lab.experiments.plain` or against a first call:

- ``text``: the prompt ensemble on a text tower of real size (random weights cost what trained ones cost);
- ``surgery``: feature surgery over a label set, its time and its peak memory;
- ``images``: the second text on an image against the first, whole pipeline by the papers' recipe;
- ``recipe``: what the default recipe costs against the papers', in calls of the models and in time;
- ``annotate``: a folder job, dataset written and all, against a plain loop over ``segment_many`` that keeps nothing.

Both sides of a comparison take turns, round by round in changing order, so that what else the machine
does falls on both alike. A figure is the median of the rounds; the range of the rounds' own ratios tells
how far to trust it.
"""

from __future__ import annotations

import copy
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from text2sam import __version__
from text2sam.clip.prompts import PromptEnsemble, Tokenizer, ensemble_templates
from text2sam.clip.similarity import feature_surgery
from text2sam.devices import pick_device
from text2sam.errors import InputError
from text2sam.lab.experiments import plain
from text2sam.pipeline import TextPromptedSAM, Zoom
from text2sam.recipes import DEFAULT
from text2sam.recipes.choose import mask_iou
from text2sam.tables import aligned, telling

if TYPE_CHECKING:
    from text2sam.demo import DemoScene

SUITES = ("text", "surgery", "images", "recipe", "annotate")
_SAMPLE_SECONDS = 0.02
_MOST_CALLS = 200


@dataclass(frozen=True)
class Settings:
    """Sizes and repeats of the benchmarks; the defaults are those of ``text2sam bench``.

    Attributes:
        device: None takes cuda, then mps, then cpu.
        sam_checkpoint: a further SAM for the images and recipe suites; None takes ``weights/mobile_sam.pt`` of the folder
            ``TEXT2SAM_TEST_DATA`` names, where that is there.
        text_model: shape of the CLIP for the text suite, in open_clip's words. The default text tower is that of
            ViT-B-16; the image tower is not used.
        templates: prompt templates; None is the papers' 85.
        texts: texts of one call in the text suite.
        text_rounds, surgery_rounds, image_rounds, checkpoint_rounds: timed rounds, the last for the further SAM.
        labels: numbers of texts for feature surgery; the first also serves for memory at two widths.
        tokens: tokens of the image, the class token included.
        channels, wide_channels: the two widths C.
        image_shape: (H, W) of the drawn image in pixels.
        image_texts: the first and the second text.
        folder_images: images of the annotate suite's folder.
        folder_rounds: timed rounds of that suite.
    """

    device: str | None = None
    sam_checkpoint: Path | None = None
    text_model: tuple[int, int, int, int] = (512, 512, 8, 12)
    """embed_dim, width, heads, layers."""
    templates: tuple[str, ...] | None = None
    texts: tuple[str, ...] = ("cat",)
    text_rounds: int = 3
    labels: tuple[int, ...] = (59, 171)
    tokens: int = 1025
    channels: int = 512
    wide_channels: int = 1024
    surgery_rounds: int = 5
    image_shape: tuple[int, int] = (480, 640)
    image_texts: tuple[str, str] = ("cat", "ship")
    image_rounds: int = 9
    checkpoint_rounds: int = 2
    folder_images: int = 32
    folder_rounds: int = 3


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what is compared.
        ours, baseline: medians, in ``unit``.
        unit: ``"s"``, ``"bytes"``, ``"times"`` or ``"count"``.
        ratio: baseline over ours, above 1 where ours is better.
        low, high: smallest and largest ratio among the rounds, None where nothing was timed.
        cpu_ratio: ratio of the processor time the process took, which a busy machine disturbs less; None likewise.
        aim: what should be reached, in words; None where there is no aim.
        met: whether it is, None where there is no aim.
    """

    what: str
    ours: float
    baseline: float
    unit: str
    ratio: float
    low: float | None
    high: float | None
    cpu_ratio: float | None
    aim: str | None
    met: bool | None


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        call: what is timed.
        prepare: runs before every sample, untimed.
        warm_up: runs once before the first round; None is ``prepare`` and ``call``.
        calls: calls in one sample, whose time is divided by it; 0 finds a number that makes a sample long enough
            for the clock, which needs a ``call`` that may be repeated without ``prepare``.
    """

    call: Callable[[], object]
    prepare: Callable[[], object] | None = None
    warm_up: Callable[[], object] | None = None
    calls: int = 1


def alternate(sides: dict[str, Side], rounds: int, *, synchronize: Callable[[], object] | None = None) -> dict[str, Any]:
    """Times several sides in turns.

    Args:
        sides: what to time, by name.
        rounds: samples of each side; every second round runs in reverse order.
        synchronize: waits for the device, before and after each sample.

    Returns:
        By name: ``median_s``, ``min_s``, ``max_s`` and ``samples_s``, seconds of one call by the clock;
        ``cpu_median_s``, seconds of processor time of the whole process; ``calls``, how many each sample averages.

    Raises:
        InputError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, not {rounds!r}")
    wait = synchronize or (lambda: None)

    def sample(side: Side, calls: int) -> tuple[float, float]:
        if side.prepare:
            side.prepare()
        wait()
        cpu, start = time.process_time(), time.perf_counter()
        for _ in range(calls):
            side.call()
        wait()
        return (time.perf_counter() - start) / calls, (time.process_time() - cpu) / calls

    calls = {}
    for name, side in sides.items():
        if side.warm_up:
            side.warm_up()
        else:
            sample(side, 1)
        once = min(sample(side, 1)[0] for _ in range(3)) if side.calls == 0 else 0.0
        calls[name] = side.calls or min(_MOST_CALLS, math.ceil(_SAMPLE_SECONDS / max(once, 1e-9)))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides) if i % 2 == 0 else reversed(list(sides)):
            samples[name].append(sample(sides[name], calls[name]))
    result = {}
    for name, taken in samples.items():
        wall, cpu = ([float(pair[k]) for pair in taken] for k in (0, 1))
        result[name] = {
            "median_s": statistics.median(wall),
            "min_s": min(wall),
            "max_s": max(wall),
            "cpu_median_s": statistics.median(cpu),
            "samples_s": wall,
            "calls": calls[name],
        }
    return result


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages of tensors made inside, and takes off what is freed again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # what comes in from outside was there before
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor.untyped_storage(), new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor.untyped_storage(), new=True)
        return result

    def _meet(self, storage: torch.UntypedStorage, *, new: bool) -> None:
        key = id(storage)
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if new else 0
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def peak_tensor_bytes(call: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once that were made inside ``call``, the result included.

    Counts every operator's outputs on any device, exactly and repeatably. Scratch space that a kernel takes
    and gives back within one operator is not seen; :func:`peak_process_bytes` sees that too.
    """
    # under inference_mode compound operators would reach the counter whole
    with torch.no_grad(), _LiveBytes() as counter:
        call()
    return int(counter.peak)


def peak_process_bytes(call: Callable[[], object]) -> int | None:
    """By how much the process's resident memory grew at most during ``call``, as the operating system tells.

    Grows by whole pages and not at all where memory freed earlier is used again, so small amounts come out
    too small. None where the system does not tell (it takes Linux).
    """
    try:
        before = _status_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        call()
        return max(0, _status_bytes("VmHWM") - before)
    except (OSError, LookupError):
        return None


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure_text(settings: Settings) -> tuple[dict[str, Any], list[Row]]:
    """The prompt ensemble: never seen before against plain, then from memory and from disk."""
    device = pick_device(settings.device)
    model, tokenizer = _text_model(settings, device)
    templates = ensemble_templates() if settings.templates is None else settings.templates
    texts = list(settings.texts)
    ensemble = PromptEnsemble(model, tokenizer, templates=templates)
    few = PromptEnsemble(model, tokenizer, templates=templates[:2])
    answers: list[torch.Tensor] = []
    times = alternate(
        {
            "ours": Side(lambda: ensemble(texts), ensemble.forget, lambda: few(texts)),
            "plain": Side(
                lambda: answers.append(plain.prompt_ensemble(model, tokenizer, texts, templates)),
                warm_up=lambda: plain.prompt_ensemble(model, tokenizer, texts, templates[:2]),
            ),
        },
        settings.text_rounds,
        synchronize=_waiter(device),
    )
    difference = float((ensemble(texts) - answers[-1]).abs().max())
    with tempfile.TemporaryDirectory() as folder:
        PromptEnsemble(model, tokenizer, templates=templates, cache=folder)([*texts, ""])
        held: dict[str, PromptEnsemble] = {}

        def new_process() -> None:
            held["new"] = PromptEnsemble(model, tokenizer, templates=templates, cache=folder)

        def running() -> None:
            held["running"] = PromptEnsemble(model, tokenizer, templates=templates, cache=folder)
            held["running"]([""])  # reads the weights' fingerprint

        cached = alternate(
            {
                "memory": Side(lambda: ensemble(texts), calls=0),
                "disk": Side(lambda: held["running"](texts), running),
                "disk_with_fingerprint": Side(lambda: held["new"](texts), new_process),
            },
            settings.text_rounds,
            synchronize=_waiter(device),
        )
    tokens = tokenizer([template.format(text) for text in texts for template in templates])
    details = {
        "texts": texts,
        "templates": len(templates),
        "positions_plain": int(tokens.shape[1]),
        "positions_ours": int(tokens.argmax(dim=-1).max()) + 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "times": {**times, **cached},
        "difference": difference,
    }
    name = f"prompt ensemble of {len(texts)} text{'s' * (len(texts) > 1)}"
    rows = [
        _timed_row(f"{name}, not cached, against plain", times["ours"], times["plain"], 4.0),
        _timed_row(f"{name}, again, from memory, against not cached", cached["memory"], times["ours"]),
        _timed_row(f"{name}, again, from disk, against not cached", cached["disk"], times["ours"]),
        _timed_row(f"{name}, from disk in a new process (hashes the weights)", cached["disk_with_fingerprint"], times["ours"]),
    ]
    return details, rows


def measure_surgery(settings: Settings) -> tuple[dict[str, Any], list[Row]]:
    """Feature surgery over a label set: time and peak memory against plain."""
    device = pick_device(settings.device)
    rows: list[Row] = []
    cases = []
    for count, channels in [*((n, settings.channels) for n in settings.labels), (settings.labels[0], settings.wide_channels)]:
        image, labels = _random_features(settings.tokens, count, channels, device)
        sides = {"ours": _Surgery(feature_surgery, image, labels), "plain": _Surgery(plain.feature_surgery, image, labels)}
        case: dict[str, Any] = {"labels": count, "tokens": settings.tokens, "channels": channels}
        # ours first: what plain frees would hide ours from the operating system's count
        case["peak_tensor_bytes"] = {name: peak_tensor_bytes(side) for name, side in sides.items()}
        case["peak_process_bytes"] = {name: peak_process_bytes(side) for name, side in sides.items()}
        case["difference"] = float((sides["ours"]() - sides["plain"]()).abs().max())
        if channels == settings.channels:
            case["times"] = alternate(
                {name: Side(side, calls=0 if name == "ours" else 1) for name, side in sides.items()},
                settings.surgery_rounds,
                synchronize=_waiter(device),
            )
            first = count == settings.labels[0]
            where = f"{count} texts, {settings.tokens} tokens"
            times, peaks = case["times"], case["peak_tensor_bytes"]
            rows.append(
                _timed_row(f"feature surgery, {where}, against plain", times["ours"], times["plain"], 100.0 if first else None)
            )
            rows.append(_row(f"feature surgery, {where}, peak memory", peaks["ours"], peaks["plain"], "bytes"))
        cases.append(case)
    narrow, wide = cases[0], cases[-1]
    growth = {name: wide["peak_tensor_bytes"][name] / narrow["peak_tensor_bytes"][name] for name in wide["peak_tensor_bytes"]}
    widths = f"C from {settings.channels} to {settings.wide_channels}"
    met = growth["ours"] <= 1.01
    rows.append(
        _row(f"feature surgery, growth of peak memory, {widths}", growth["ours"], growth["plain"], "times", "ours <= 1.01", met)
    )
    return {"cases": cases, "growth_of_peak_with_channels": growth}, rows


def measure_images(
    name: str, model: TextPromptedSAM, tokenizer: Tokenizer, settings: Settings, rounds: int
) -> tuple[dict[str, Any], list[Row]]:
    """The second text on an image against the first, and against encoding everything anew.

    Args:
        name: of the pair, for the table.
        model: the pair; its text features must not be cached on disk.
        tokenizer: its CLIP's.
        settings: image and texts.
        rounds: timed rounds.
    """
    image = draw(settings.image_shape)
    first, second = settings.image_texts
    surgery = model.generator

    def known(*texts: str) -> Callable[[], None]:
        def prepare() -> None:
            surgery.prompts.forget()
            surgery.encode_texts(["", *texts])

        return prepare

    def on_new_image(text: str) -> Callable[[], object]:
        def call() -> object:
            model.set_image(image)
            return model.segment(text=text, strategy="paper")

        return call

    def on_set_image(text: str) -> Callable[[], object]:
        return lambda: model.segment(text=text, strategy="paper")

    model.set_image(image)
    found = {text: model.segment(text=text, strategy="paper") for text in (first, second)}
    # shares the model but has a state of its own: setting its image leaves the pipeline's where it is
    predictor = copy.copy(model.predictor)
    answers: list[tuple[NDArray[np.bool_], NDArray[np.float32]]] = []
    times = alternate(
        {
            "first_text_known": Side(on_new_image(first), known(first, second)),
            "second_text_known": Side(on_set_image(second), known(first, second)),
            "first_text_new": Side(on_new_image(first), surgery.prompts.forget),
            "second_text_new": Side(on_set_image(second), known(first)),
            "plain": Side(
                lambda: answers.append(plain.segment(predictor, surgery, tokenizer, image, second)), warm_up=lambda: None
            ),
        },
        rounds,
        synchronize=_waiter(surgery.device),
    )
    mask, values = answers[-1]
    details = {
        "pair": name,
        "image": list(settings.image_shape),
        "texts": [first, second],
        "points": {text: len(result.points) for text, result in found.items()},
        "times": times,
        "map_difference": float(np.abs(found[second].similarity.values - values).max()),
        "mask_iou": mask_iou(found[second].mask, mask),
    }
    model.reset_image()
    second_text = f"{name}: second text on one image"
    rows = [
        _timed_row(f"{second_text}, against the first", times["second_text_known"], times["first_text_known"], 4.0),
        _timed_row(
            f"{second_text}, against the first, texts never seen", times["second_text_new"], times["first_text_new"], 4.0
        ),
        _timed_row(f"{second_text}, never seen, against plain", times["second_text_new"], times["plain"]),
    ]
    return details, rows


@dataclass
class Calls:
    """What the models were asked for: prompts SAM decoded, images SAM encoded, images CLIP encoded."""

    decoder: int = 0
    sam: int = 0
    clip: int = 0


@contextmanager
def counted(model: TextPromptedSAM) -> Iterator[Calls]:
    """Counts what a pipeline asks of its models; the hooks that do so are gone afterwards.

    Args:
        model: its predictor must hold a segment-anything ``Sam`` as ``model``.
    """
    calls = Calls()
    sam: Any = getattr(model.predictor, "model", None)

    def counter(name: str, batched: bool) -> Callable[[Any, tuple[Any, ...]], None]:
        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            setattr(calls, name, getattr(calls, name) + (len(inputs[0]) if batched else 1))

        return count

    hooks = [
        sam.mask_decoder.register_forward_pre_hook(counter("decoder", False)),
        sam.image_encoder.register_forward_pre_hook(counter("sam", True)),
        # the surgery walks through the blocks itself; the first layer sees every image once
        model.generator.model.visual.conv1.register_forward_pre_hook(counter("clip", True)),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def measure_recipe(name: str, model: TextPromptedSAM, rounds: int) -> tuple[dict[str, Any], list[Row]]:
    """The default recipe against the papers' on the scenes that ship with text2sam.

    Decoder calls are all prompts SAM decoded: also those whose answer did not become an object, and those in the crops of
    zoom. "Per object" divides them by the objects found; the papers' recipe makes one mask per text, which is its object.

    Image encodings are those of two texts on one picture that is set once, against those on a picture given anew with each
    text. A crop that zoom looks at is one more image to CLIP, and to SAM where SAM is asked about it: the rows "no zoom"
    count the picture alone, the rows "zoom" its crops too.

    Args:
        name: of the pair, for the table.
        model: the pair.
        rounds: timed rounds.
    """
    from text2sam.demo import load_scenes

    scenes = load_scenes()
    cases = [case for scene in scenes for case in _decoder_calls(model, scene)]
    encodings = [_encodings(model, scene, zoom) for zoom in _ZOOMS for scene in scenes]
    first = scenes[0]
    model.set_image(first.image)

    def by(recipe: str) -> Side:
        return Side(lambda: model.segment_many(None, first.find, strategy=recipe))

    times = alternate({DEFAULT: by(DEFAULT), "paper": by("paper")}, rounds, synchronize=_waiter(model.generator.device))
    model.reset_image()
    calls, objects = ({r: sum(case[key][r] for case in cases) for r in (DEFAULT, "paper")} for key in ("calls", "objects"))
    each = {r: calls[r] / max(1, objects[r]) for r in calls}
    met = each[DEFAULT] <= each["paper"] + 2
    what = f"{name}, default recipe"
    rows = [
        _row(
            f"{what}: SAM decoder calls per object, against paper",
            each[DEFAULT],
            each["paper"],
            "count",
            "ours <= baseline + 2",
            met,
        ),
        _row(
            f"{what}: SAM decoder calls per text, 1 of 4 absent, against paper",
            calls[DEFAULT] / len(cases),
            calls["paper"] / len(cases),
            "count",
        ),
    ]
    for zoom, word in _ZOOMS.items():
        counted_here = [case for case in encodings if case["zoom"] == word]
        for kind in ("clip", "sam"):
            once, anew = (statistics.mean(case[side][kind] for case in counted_here) for side in ("set_once", "given_anew"))
            row = f"{what}: {kind.upper()} encodings, 2 texts on one picture, {word}, against anew"
            rows.append(_row(row, once, anew, "count", *(() if zoom else ("ours = 1", once == 1))))
    rows.append(_timed_row(f"{what}: {len(first.find)} texts on a picture set, against paper", times[DEFAULT], times["paper"]))
    return {"pair": name, "asked": cases, "encodings": encodings, "times": times}, rows


_ZOOMS: dict[Zoom, str] = {False: "no zoom", "auto": "zoom"}


def _decoder_calls(model: TextPromptedSAM, scene: DemoScene) -> list[dict[str, Any]]:
    """For each text of a scene: decoder calls and objects found, by recipe."""
    model.set_image(scene.image)
    cases = []
    for text in (*scene.find, scene.absent):
        case: dict[str, Any] = {"scene": scene.name, "text": text, "calls": {}, "objects": {}}
        for recipe in (DEFAULT, "paper"):
            with counted(model) as calls:
                result = model.segment(text=text, strategy=recipe)
            case["calls"][recipe] = calls.decoder
            case["objects"][recipe] = len(result.objects) or int(result.box is not None)
        cases.append(case)
    return cases


def _encodings(model: TextPromptedSAM, scene: DemoScene, zoom: Zoom) -> dict[str, Any]:
    """How many images each model encodes for two texts on one picture."""
    texts = scene.find[:2]
    with counted(model) as once:
        model.set_image(scene.image)
        for text in texts:
            model.segment(text=text, zoom=zoom)
    with counted(model) as anew:
        for text in texts:
            model.segment(scene.image, text, zoom=zoom)
    sides = {"set_once": once, "given_anew": anew}
    return {
        "scene": scene.name,
        "texts": list(texts),
        "zoom": _ZOOMS[zoom],
        **{side: {"clip": calls.clip, "sam": calls.sam} for side, calls in sides.items()},
    }


def measure_annotate(model: TextPromptedSAM, settings: Settings) -> tuple[dict[str, Any], list[Row]]:
    """A folder job against a plain loop over ``segment_many``, in seconds per image.

    The job decodes, segments, keeps its journal and writes a COCO dataset; the loop decodes and segments, and throws the
    results away. Both are asked for the same texts with the same model, which has seen them before. Where the loop's time
    goes is taken from a run of its own, with a clock around the parts.

    Args:
        model: the pair.
        settings: ``folder_images`` pictures are written: those that ship with text2sam, mirrored and lit differently.
    """
    from text2sam.annotate.job import annotate, default_workers
    from text2sam.demo import load_scenes
    from text2sam.files import write_png

    scenes = load_scenes()
    labels = list(dict.fromkeys(text for scene in scenes for text in (*scene.find, scene.absent)))[:4]
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary, "images"), Path(temporary, "dataset")
        for number in range(settings.folder_images):
            image = scenes[number % len(scenes)].image
            image = image[:, ::-1] if number // len(scenes) % 2 else image
            light = 1 - 0.02 * (number // len(scenes))
            write_png(folder / f"{number:04}.png", np.ascontiguousarray(image * light, np.uint8))
        files = sorted(folder.iterdir())
        found: dict[str, int] = {}

        def loop() -> None:
            found["loop"] = sum(len(r.instances) for file in files for r in model.segment_many(file, labels) if r.present)

        def job() -> None:
            report = annotate(model, folder, labels, out, overwrite=True)
            found["job"] = sum(report.objects.values())

        sides = {"job": Side(job, warm_up=lambda: None), "loop": Side(loop)}
        times = alternate(sides, settings.folder_rounds, synchronize=_waiter(model.generator.device))
        parts = _parts(model, loop)
    for side in times.values():
        for key in ("median_s", "cpu_median_s"):
            side[key] = side[key] / len(files) if side[key] else side[key]
        side["samples_s"] = [sample / len(files) for sample in side["samples_s"]]
    workers = default_workers(model.generator.device)
    row = _timed_row(f"annotate: seconds per image, {len(labels)} texts, against a loop", times["job"], times["loop"], 1.3)
    return {"images": len(files), "texts": labels, "workers": workers, "objects": found, "times": times, "shares": parts}, [row]


def _parts(model: TextPromptedSAM, call: Callable[[], object]) -> dict[str, float]:
    """Which share of a call's time each part of the pipeline takes."""
    from text2sam import pipeline

    spent = dict.fromkeys(("reading", "CLIP", "SAM's image encoder", "SAM's prompts"), 0.0)
    wait = _waiter(model.generator.device) or (lambda: None)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            wait()
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                wait()
                spent[part] += time.perf_counter() - start

        return wrapped

    places = [
        (pipeline, "read_image", "reading"),
        (model.generator, "encode_image", "CLIP"),
        (model.predictor, "set_image", "SAM's image encoder"),
        (model.predictor, "predict", "SAM's prompts"),
    ]
    kept = [(owner, name, vars(owner).get(name)) for owner, name, _ in places]
    start = time.perf_counter()
    try:
        for owner, name, part in places:
            setattr(owner, name, timed(part, getattr(owner, name)))
        call()
    finally:
        for owner, name, value in kept:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
    whole = time.perf_counter() - start
    spent["maps, points and choice"] = whole - sum(spent.values())
    return {part: seconds / whole for part, seconds in spent.items()}


def run(suite: str = "all", settings: Settings | None = None) -> dict[str, Any]:
    """Runs benchmarks.

    Args:
        suite: ``"all"``, ``"text"``, ``"surgery"``, ``"images"``, ``"recipe"`` or ``"annotate"``.
        settings: sizes and repeats; the defaults take about two minutes on two cores.

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
    pick_device(chosen.device)
    start = time.perf_counter()
    machine = _machine(chosen)
    benchmarks: dict[str, Any] = {}
    rows: list[Row] = []
    for name in SUITES if suite == "all" else (suite,):
        if name in ("images", "recipe"):
            pairs = []
            for pair, checkpoint, rounds in _pairs(chosen):
                model, tokenizer = _build_pair(checkpoint, chosen)
                if name == "images":
                    details, lines = measure_images(pair, model, tokenizer, chosen, rounds)
                else:
                    details, lines = measure_recipe(pair, model, rounds)
                pairs.append(details)
                rows += lines
            benchmarks[name] = {"pairs": pairs}
        elif name == "annotate":
            benchmarks[name], lines = measure_annotate(_build_pair(None, chosen)[0], chosen)
            rows += lines
        else:
            benchmarks[name], lines = (measure_text if name == "text" else measure_surgery)(chosen)
            rows += lines
    return {
        "suite": suite,
        "machine": machine | {"load_average_end": _load()},
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
        suite: ``"all"``, ``"text"``, ``"surgery"``, ``"images"``, ``"recipe"`` or ``"annotate"``.
        out: file for the whole result as JSON; tried before anything is measured.
        json_output: print that JSON instead of the table.
        settings: see :class:`Settings`.

    Raises:
        InputError, WeightsError: as :func:`run`.
        OutputError: ``out`` cannot be written.
    """
    with telling(table, out, json_output) as tell:
        if sys.stderr.isatty():
            print("measuring; this takes a minute or two", file=sys.stderr)
        tell(run(suite, settings))


def table(result: dict[str, Any]) -> str:
    """The rows of a result of :func:`run` as lines of text, widest 120 characters or so."""
    head = ("what", "ours", "baseline", "ratio", "rounds", "cpu ratio", "aim", "met")
    lines = [head]
    for row in result["rows"]:
        spread = "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
        cpu = "" if row["cpu_ratio"] is None else f"{row['cpu_ratio']:.3g}"
        met = "" if row["met"] is None else ("yes" if row["met"] else "NO")
        ours, baseline = (_quantity(row[side], row["unit"]) for side in ("ours", "baseline"))
        lines.append((row["what"], ours, baseline, f"{row['ratio']:.3g}", spread, cpu, row["aim"] or "", met))
    machine = result["machine"]
    load = "" if machine["load_average"] is None else f", load {machine['load_average']:.1f} when it began"
    note = (
        f"{machine['device']}, {machine['cpus']} processors, {machine['threads']} threads{load}; torch {machine['torch']}; "
        f"{result['seconds']:.0f} s. Ratios above 1 are for ours."
    )
    parts = result["benchmarks"].get("annotate", {}).get("shares", {})
    told = [f"Where the loop's time goes: {', '.join(f'{part} {100 * share:.0f} %' for part, share in parts.items())}."]
    return "\n".join([*aligned(lines, words=1), "", *(told if parts else []), note])


def draw(shape: Sequence[int]) -> NDArray[np.uint8]:
    """An image to measure with: (H, W, 3) uint8 RGB, a slope of grey with a disc and a box on it."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([80 + 60 * x / width, 90 + 60 * y / height, np.full_like(x, 120)], axis=-1)
    image[np.hypot(x - 0.3 * width, y - 0.5 * height) < 0.2 * min(height, width)] = (220, 120, 40)
    image[int(0.4 * height) : int(0.8 * height), int(0.65 * width) : int(0.9 * width)] = (40, 60, 200)
    return image.astype(np.uint8)


@dataclass(frozen=True)
class _Surgery:
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    image: torch.Tensor
    labels: torch.Tensor

    def __call__(self) -> torch.Tensor:
        return self.function(self.image, self.labels)


def _random_features(tokens: int, labels: int, channels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, tokens, channels, generator=generator)
    text = torch.randn(labels, channels, generator=generator)
    return tuple(torch.nn.functional.normalize(t, dim=-1).to(device) for t in (image, text))  # type: ignore[return-value]


def _text_model(settings: Settings, device: torch.device) -> tuple[Any, Any]:
    import open_clip
    from open_clip.model import CLIP

    embed_dim, width, heads, layers = settings.text_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(
            embed_dim=embed_dim,
            vision_cfg={"image_size": 16, "patch_size": 16, "width": 64, "head_width": 64, "layers": 1},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers},
        )
    return model.to(device).eval().requires_grad_(False), open_clip.get_tokenizer("ViT-B-16")


def _pairs(settings: Settings) -> list[tuple[str, Path | None, int]]:
    pairs: list[tuple[str, Path | None, int]] = [("sticker", None, settings.image_rounds)]
    checkpoint = settings.sam_checkpoint
    if checkpoint is None:
        lent = Path(os.environ.get("TEXT2SAM_TEST_DATA", "/nowhere")) / "weights" / "mobile_sam.pt"
        checkpoint = lent if lent.is_file() else None
    if checkpoint is not None:
        pairs.append((f"sticker CLIP and {Path(checkpoint).name}", checkpoint, settings.checkpoint_rounds))
    return pairs


def _build_pair(checkpoint: Path | None, settings: Settings) -> tuple[TextPromptedSAM, Tokenizer]:
    import open_clip

    model = TextPromptedSAM.from_pretrained(
        "sticker",
        device=settings.device,
        sam_checkpoint=checkpoint,
        templates=settings.templates,
        scales=(1.0,),  # the plain implementation knows no more
        text_cache=False,
    )
    return model, open_clip.get_tokenizer("ViT-B-32")


def _row(what: str, ours: float, baseline: float, unit: str, aim: str | None = None, met: bool | None = None) -> Row:
    return Row(what, ours, baseline, unit, baseline / ours, None, None, None, aim, met)


def _timed_row(what: str, ours: dict[str, Any], baseline: dict[str, Any], at_least: float | None = None) -> Row:
    ratios = [b / o for o, b in zip(ours["samples_s"], baseline["samples_s"], strict=True)]
    ratio = baseline["median_s"] / ours["median_s"]
    cpu = baseline["cpu_median_s"] / ours["cpu_median_s"] if ours["cpu_median_s"] else None
    aim, met = (None, None) if at_least is None else (f">= {at_least:g}", ratio >= at_least)
    return Row(what, ours["median_s"], baseline["median_s"], "s", ratio, min(ratios), max(ratios), cpu, aim, met)


def _waiter(device: torch.device) -> Callable[[], object] | None:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else None


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


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
        "load_average": _load(),
    }


def _quantity(value: float, unit: str) -> str:
    if unit == "times":
        return f"{value:.2f} x"
    if unit == "count":
        return f"{value:.3g}"
    scales = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if unit == "s" else (("MB", 1e6), ("kB", 1e3))
    name, scale = next((pair for pair in scales if value >= pair[1]), scales[-1])
    return f"{value / scale:.3g} {name}"
