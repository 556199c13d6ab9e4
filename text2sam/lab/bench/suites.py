"""The suites of the benchmark: what is measured, and against what."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.clip.prompts import PromptEnsemble, Tokenizer, ensemble_templates
from text2sam.clip.similarity import feature_surgery
from text2sam.devices import pick_device
from text2sam.lab.bench.peers import peer_pipeline
from text2sam.lab.bench.sam import measure_sam
from text2sam.lab.bench.timing import Row, Side, alternate, peak_tensor_bytes, row, timed_row
from text2sam.lab.experiments import plain
from text2sam.pipeline import TextPromptedSAM
from text2sam.recipes.choose import mask_iou

if TYPE_CHECKING:
    from text2sam.demo import DemoScene

Result = tuple[dict[str, Any], list[Row]]
"""Figures of a suite, JSON-ready, and its lines of the table."""

_RECIPES = ("objects", "paper")


@dataclass(frozen=True)
class Settings:
    """Sizes and repeats of the benchmarks; the defaults are those of ``text2sam bench``.

    Attributes:
        device: None takes cuda, then mps, then cpu.
        sam_checkpoint: a further SAM for the images and recipe suites; None takes ``weights/mobile_sam.pt`` in the folder
            ``TEXT2SAM_TEST_DATA``, if it is there.
        text_model: embed_dim, width, heads and layers of the text suite's CLIP; by default those of ViT-B-16's text tower.
        templates: prompt templates; None is the papers' 85.
        texts: texts of one call in the text suite.
        text_rounds, surgery_rounds, image_rounds, checkpoint_rounds: timed rounds, the last for the further SAM.
        labels: numbers of texts for feature surgery; the first also serves for memory at two widths.
        tokens: tokens of the image, the class token included.
        channels, wide_channels: the two widths C.
        image_shape, large_shape: (H, W) of the drawn image in pixels, and of a large photo.
        image_texts: the first and the second text.
        folder_preset: the pair of the annotate suite, "photo" or "sticker".
        folder_images: images of the annotate suite's folder.
        folder_rounds, sam_rounds, peer_rounds: timed rounds of the suites of these names.
    """

    device: str | None = None
    sam_checkpoint: Path | None = None
    text_model: tuple[int, int, int, int] = (512, 512, 8, 12)
    templates: tuple[str, ...] | None = None
    texts: tuple[str, ...] = ("cat",)
    text_rounds: int = 3
    labels: tuple[int, ...] = (59, 171)
    tokens: int = 1025
    channels: int = 512
    wide_channels: int = 1024
    surgery_rounds: int = 5
    image_shape: tuple[int, int] = (480, 640)
    large_shape: tuple[int, int] = (3000, 4000)
    image_texts: tuple[str, str] = ("cat", "ship")
    image_rounds: int = 7
    checkpoint_rounds: int = 2
    folder_preset: str = "photo"
    folder_images: int = 32
    folder_rounds: int = 2
    sam_rounds: int = 5
    peer_rounds: int = 1


def measure_text(settings: Settings) -> Result:
    """The prompt ensemble: never seen before against plain, then from memory and from disk."""
    model, tokenizer = _text_model(settings)
    templates = ensemble_templates() if settings.templates is None else settings.templates
    texts = list(settings.texts)
    ensemble = PromptEnsemble(model, tokenizer, templates=templates)
    with tempfile.TemporaryDirectory() as folder:
        PromptEnsemble(model, tokenizer, templates=templates, cache=folder)([*texts, ""])
        disk: list[PromptEnsemble] = []

        def new_process() -> None:
            disk[:] = [PromptEnsemble(model, tokenizer, templates=templates, cache=folder)]

        def running_process() -> None:
            new_process()
            disk[0]([""])  # reads the weights' fingerprint

        times = alternate(
            {
                "ours": Side(lambda: ensemble(texts), ensemble.forget),
                "plain": Side(lambda: plain.prompt_ensemble(model, tokenizer, texts, templates)),
                "memory": Side(lambda: ensemble(texts), short=True),
                "disk": Side(lambda: disk[0](texts), running_process),
                "disk_with_fingerprint": Side(lambda: disk[0](texts), new_process),
            },
            settings.text_rounds,
        )
    difference = (ensemble(texts) - plain.prompt_ensemble(model, tokenizer, texts, templates)).abs().max()
    tokens = tokenizer([template.format(text) for text in texts for template in templates])
    details = {
        "texts": texts,
        "templates": len(templates),
        "positions_plain": int(tokens.shape[1]),
        "positions_ours": int(tokens.argmax(dim=-1).max()) + 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "times": times,
        "difference": float(difference),
    }
    name = f"prompt ensemble of {len(texts)} text{'s' * (len(texts) > 1)}"
    return details, [
        timed_row(f"{name}, not cached, against plain", times["ours"], times["plain"], 4.0),
        timed_row(f"{name}, again, from memory, against not cached", times["memory"], times["ours"]),
        timed_row(f"{name}, again, from disk, against not cached", times["disk"], times["ours"]),
        timed_row(f"{name}, from disk in a new process (hashes the weights)", times["disk_with_fingerprint"], times["ours"]),
    ]


def measure_surgery(settings: Settings) -> Result:
    """Feature surgery over a label set: time and peak memory against plain."""
    rows: list[Row] = []
    cases: list[dict[str, Any]] = []
    for count, channels in [*((n, settings.channels) for n in settings.labels), (settings.labels[0], settings.wide_channels)]:
        image, labels = _random_features(settings.tokens, count, channels, pick_device(settings.device))
        calls: dict[str, Callable[[], torch.Tensor]] = {
            "ours": lambda image=image, labels=labels: feature_surgery(image, labels),  # type: ignore[misc]
            "plain": lambda image=image, labels=labels: plain.feature_surgery(image, labels),  # type: ignore[misc]
        }
        peaks = {name: peak_tensor_bytes(call) for name, call in calls.items()}
        case: dict[str, Any] = {"labels": count, "tokens": settings.tokens, "channels": channels, "peak_tensor_bytes": peaks}
        case["difference"] = float((calls["ours"]() - calls["plain"]()).abs().max())
        cases.append(case)
        if channels == settings.channels:
            sides = {name: Side(call, short=name == "ours") for name, call in calls.items()}
            times = case["times"] = alternate(sides, settings.surgery_rounds)
            what = f"feature surgery, {count} texts, {settings.tokens} tokens"
            aim = 100.0 if count == settings.labels[0] else None
            rows.append(timed_row(f"{what}, against plain", times["ours"], times["plain"], aim))
            rows.append(row(f"{what}, peak memory", peaks["ours"], peaks["plain"], "bytes"))
    narrow, wide = (cases[i]["peak_tensor_bytes"] for i in (0, -1))
    growth = {name: wide[name] / narrow[name] for name in wide}
    what = f"feature surgery, growth of peak memory, C from {settings.channels} to {settings.wide_channels}"
    rows.append(row(what, growth["ours"], growth["plain"], "times", "ours <= 1.01", growth["ours"] <= 1.01))
    return {"cases": cases, "growth_of_peak_with_channels": growth}, rows


def measure_images(name: str, model: TextPromptedSAM, tokenizer: Tokenizer, settings: Settings, rounds: int) -> Result:
    """The second text on an image against the first, and against encoding everything anew.

    Args:
        name: of the pair, for the table.
        model: the pair; its text features must not be cached on disk.
        tokenizer: that of its CLIP.
        settings: image and texts.
        rounds: timed rounds.
    """
    image = draw(settings.image_shape)
    first, second = settings.image_texts
    surgery = model.generator

    def knowing(*texts: str, image_is_set: bool = False) -> Callable[[], None]:
        def prepare() -> None:
            if image_is_set:
                model.set_image(image)
            surgery.prompts.forget()
            if texts:
                surgery.encode_texts(["", *texts])

        return prepare

    def on_new_image() -> object:
        model.set_image(image)
        return model.segment(text=first, strategy="paper")

    def on_set_image() -> object:
        return model.segment(text=second, strategy="paper")

    # shares the model, but holds an image of its own
    predictor = copy.copy(model.predictor)

    def plainly() -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        return plain.segment(predictor, surgery, tokenizer, image, second)

    times = alternate(
        {
            "first_text_known": Side(on_new_image, knowing(first, second)),
            "second_text_known": Side(on_set_image, knowing(first, second, image_is_set=True)),
            "first_text_new": Side(on_new_image, knowing()),
            "second_text_new": Side(on_set_image, knowing(first, image_is_set=True)),
            "plain": Side(plainly),
        },
        rounds,
    )
    mask, values = plainly()
    model.set_image(image)
    results = {text: model.segment(text=text, strategy="paper") for text in (first, second)}
    model.reset_image()
    details = {
        "pair": name,
        "image": list(settings.image_shape),
        "texts": [first, second],
        "points": {text: len(result.points) for text, result in results.items()},
        "times": times,
        "map_difference": float(np.abs(results[second].similarity.values - values).max()),
        "mask_iou": mask_iou(results[second].mask, mask),
    }
    what = f"{name}: second text on one image"
    return details, [
        timed_row(f"{what}, against the first", times["second_text_known"], times["first_text_known"], 4.0),
        timed_row(f"{what}, against the first, texts never seen", times["second_text_new"], times["first_text_new"], 4.0),
        timed_row(f"{what}, never seen, against plain", times["second_text_new"], times["plain"]),
    ]


@contextmanager
def counted(model: TextPromptedSAM) -> Iterator[dict[str, int]]:
    """Counts the prompts SAM decodes, the images SAM encodes and the images CLIP encodes, by hooks that are gone afterwards.

    Args:
        model: its predictor must hold a segment-anything ``Sam`` as ``model``.
    """
    calls = {"decoder": 0, "sam": 0, "clip": 0}
    sam: Any = getattr(model.predictor, "model", None)
    places = {"decoder": sam.mask_decoder, "sam": sam.image_encoder, "clip": model.generator.model.visual.conv1}

    def counter(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            calls[name] += len(inputs[0]) if inputs else 1

        return count

    hooks = [module.register_forward_pre_hook(counter(name)) for name, module in places.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def measure_recipe(name: str, model: TextPromptedSAM, rounds: int) -> Result:
    """The default recipe against the papers' on the scenes that ship with text2sam.

    Decoder calls are all prompts SAM decoded, also those whose answer did not become an object; the papers' recipe makes one
    mask per text, which is its object. Image encodings are those of two texts on a picture that is set once, against those on a
    picture given anew with each text.

    Args:
        name: of the pair, for the table.
        model: the pair.
        rounds: timed rounds.
    """
    from text2sam.demo import load_scenes

    scenes = load_scenes()
    cases = [case for scene in scenes for case in _decoder_calls(model, scene)]
    encodings = [_encodings(model, scene) for scene in scenes]
    texts = scenes[0].find
    model.set_image(scenes[0].image)
    sides = {r: Side(lambda r=r: model.segment_many(None, texts, strategy=r)) for r in _RECIPES}  # type: ignore[misc]
    times = alternate(sides, rounds)
    model.reset_image()
    calls, objects = ({r: sum(case[key][r] for case in cases) for r in _RECIPES} for key in ("calls", "objects"))
    each = {r: calls[r] / max(1, objects[r]) for r in _RECIPES}
    met = each["objects"] <= each["paper"] + 2
    what = f"{name}, default recipe"
    per_object, per_text = "SAM decoder calls per object", "SAM decoder calls per text, 1 of 4 absent"
    rows = [
        row(f"{what}: {per_object}, against paper", each["objects"], each["paper"], "count", "ours <= baseline + 2", met),
        row(f"{what}: {per_text}, against paper", calls["objects"] / len(cases), calls["paper"] / len(cases), "count"),
    ]
    for kind in ("clip", "sam"):
        once, anew = (statistics.mean(case[side][kind] for case in encodings) for side in ("set_once", "given_anew"))
        encoded = f"{what}: {kind.upper()} encodings, 2 texts on one picture, against anew"
        rows.append(row(encoded, once, anew, "count", "ours = 1", once == 1))
    rows.append(timed_row(f"{what}: {len(texts)} texts on a picture set, against paper", times["objects"], times["paper"]))
    return {"pair": name, "cases": cases, "encodings": encodings, "times": times}, rows


def _decoder_calls(model: TextPromptedSAM, scene: DemoScene) -> list[dict[str, Any]]:
    """For each text of a scene: decoder calls and objects found, by recipe."""
    model.set_image(scene.image)
    cases = []
    for text in (*scene.find, scene.absent):
        case: dict[str, Any] = {"scene": scene.name, "text": text, "calls": {}, "objects": {}}
        for recipe in _RECIPES:
            with counted(model) as calls:
                result = model.segment(text=text, strategy=recipe)
            case["calls"][recipe] = calls["decoder"]
            case["objects"][recipe] = len(result.instances)
        cases.append(case)
    return cases


def _encodings(model: TextPromptedSAM, scene: DemoScene) -> dict[str, Any]:
    """How many images each model encodes for two texts on a picture."""
    texts = scene.find[:2]
    with counted(model) as once:
        model.set_image(scene.image)
        for text in texts:
            model.segment(text=text)
    with counted(model) as anew:
        for text in texts:
            model.segment(scene.image, text)
    return {"scene": scene.name, "texts": list(texts), "set_once": once, "given_anew": anew}


def measure_annotate(model: TextPromptedSAM, settings: Settings, half: TextPromptedSAM | None = None) -> Result:
    """A folder job against a plain loop over ``segment_many``, in seconds per image.

    The job decodes, segments, keeps its journal and writes a COCO dataset; the loop decodes and segments. Both are given the
    same texts and the same model, which has seen them before.

    Args:
        model: the pair.
        settings: ``folder_images`` pictures are written: photos of scikit-image, or the scenes that ship with text2sam, as the
            pair knows them, mirrored and lit differently.
        half: the pair in bfloat16, whose job is measured too, where it is given.
    """
    from text2sam.annotate.engine import default_workers
    from text2sam.annotate.job import annotate
    from text2sam.demo import load_photos, load_scenes
    from text2sam.files import write_png

    scenes = load_photos() if settings.folder_preset == "photo" else load_scenes()
    labels = list(dict.fromkeys(text for scene in scenes for text in (*scene.find, scene.absent)))[:4]
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary, "images"), Path(temporary, "dataset")
        for number in range(settings.folder_images):
            image = scenes[number % len(scenes)].image
            image = image[:, ::-1] if number // len(scenes) % 2 else image
            light = 1 - 0.02 * (number // len(scenes))
            write_png(folder / f"{number:04}.png", np.ascontiguousarray(image * light, np.uint8))
        files = sorted(folder.iterdir())
        objects: dict[str, int] = {}

        def loop() -> None:
            objects["loop"] = sum(len(r.instances) for file in files for r in model.segment_many(file, labels) if r.present)

        def job(name: str, chosen: TextPromptedSAM) -> None:
            objects[name] = sum(annotate(chosen, folder, labels, out, overwrite=True).objects.values())

        sides = {"job": Side(partial(job, "job", model), long=True), "loop": Side(loop, long=True)}
        if half is not None:
            sides["job_bfloat16"] = Side(partial(job, "job_bfloat16", half), long=True)
        times = alternate(sides, settings.folder_rounds)
        shares = _shares(model, loop)
    per_image = {
        name: {key: (np.array(value) / len(files)).tolist() for key, value in side.items()} for name, side in times.items()
    }
    details = {
        "images": len(files),
        "texts": labels,
        "workers": default_workers(model.generator.device),
        "objects": objects,
        "times": per_image,
        "shares": shares,
    }
    what = f"annotate: seconds per image, {len(labels)} texts, against a loop"
    lines = [timed_row(what, per_image["job"], per_image["loop"], 1.6)]
    if half is not None:
        lines.append(
            timed_row("the same in bfloat16, against the loop in float32", per_image["job_bfloat16"], per_image["loop"])
        )
    return details, lines


def measure_peers(settings: Settings) -> Iterator[Result]:
    """The photo pair against what people take instead; nothing where transformers is not installed.

    Both are asked for the first mask of a picture, for a second text on it, for a picture of a folder with four texts, which
    their detector takes in one go, and how much memory their tensors take.
    """
    image, texts = draw(settings.image_shape), ("cat", "dog", "car", "person")
    first, second = texts[:2]
    theirs = peer_pipeline(settings.image_shape, pick_device(settings.device))
    if theirs is None:
        return
    model = TextPromptedSAM.from_pretrained("photo", device=settings.device)

    def ask(text: str) -> object:
        return model.segment(text=text, threshold=0.0)  # as if it were there: then SAM is asked

    def on_new_image() -> object:
        model.set_image(image)
        return ask(first)

    sides = {
        "first_text": Side(on_new_image, long=True),
        "second_text": Side(lambda: ask(second), long=True),
        "four_texts": Side(lambda: model.segment_many(image, texts, threshold=0.0), long=True),
        "peers_first_text": Side(lambda: theirs(True), long=True),
        "peers_second_text": Side(lambda: theirs(False), long=True),
    }
    peaks = {"ours": peak_tensor_bytes(on_new_image), "peers": peak_tensor_bytes(lambda: theirs(True))}
    times = alternate(sides, settings.peer_rounds)
    what = "photo pair, against Grounding DINO tiny and SAM 2.1 tiny (transformers, untrained)"
    yield (
        {"image": list(settings.image_shape), "times": times, "peak_tensor_bytes": peaks},
        [
            timed_row(f"{what}: first mask of a picture", times["first_text"], times["peers_first_text"]),
            timed_row(f"{what}: second text", times["second_text"], times["peers_second_text"]),
            timed_row(f"{what}: a picture of a folder, four texts, all found", times["four_texts"], times["peers_first_text"]),
            row(f"{what}: peak memory beside the weights", peaks["ours"], peaks["peers"], "bytes"),
        ],
    )


def _shares(model: TextPromptedSAM, call: Callable[[], object]) -> dict[str, float]:
    """The share of a call's time that each part of the pipeline takes."""
    from text2sam import pipeline

    spent = dict.fromkeys(("reading", "CLIP", "SAM's image encoder", "SAM's prompts"), 0.0)
    cuda = model.generator.device.type == "cuda"

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                if cuda:
                    torch.cuda.synchronize()
                spent[part] += time.perf_counter() - start

        return wrapped

    places = {
        "reading": (pipeline, "read_image"),
        "CLIP": (model.generator, "encode"),
        "SAM's image encoder": (model.predictor, "set_image"),
        "SAM's prompts": (model.predictor, "predict"),
    }
    with ExitStack() as stack:
        for part, (owner, name) in places.items():
            stack.enter_context(mock.patch.object(owner, name, clocked(part, getattr(owner, name))))
        start = time.perf_counter()
        call()
        whole = time.perf_counter() - start
    spent["maps, points and choice"] = whole - sum(spent.values())
    return {part: seconds / whole for part, seconds in spent.items()}


def measure(name: str, settings: Settings) -> Iterator[Result]:
    """The results of a suite, one per pair of models where it takes several."""
    if name in ("text", "surgery"):
        yield (measure_text if name == "text" else measure_surgery)(settings)
    elif name == "annotate":
        if settings.folder_preset == "photo":
            build = partial(TextPromptedSAM.from_pretrained, "photo", device=settings.device)
            yield measure_annotate(build(), settings, build(dtype="bfloat16"))
        else:
            yield measure_annotate(build_pair(None, settings)[0], settings)
    elif name == "sam":
        yield measure_sam(settings)
    elif name == "peers":
        yield from measure_peers(settings)
    else:
        for pair, checkpoint, rounds in pairs(settings):
            model, tokenizer = build_pair(checkpoint, settings)
            if name == "images":
                yield measure_images(pair, model, tokenizer, settings, rounds)
            else:
                yield measure_recipe(pair, model, rounds)


def draw(shape: Sequence[int]) -> NDArray[np.uint8]:
    """An image to measure with: (H, W, 3) uint8 RGB, a slope of grey with a disc and a box on it."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([80 + 60 * x / width, 90 + 60 * y / height, np.full_like(x, 120)], axis=-1)
    image[np.hypot(x - 0.3 * width, y - 0.5 * height) < 0.2 * min(height, width)] = (220, 120, 40)
    image[int(0.4 * height) : int(0.8 * height), int(0.65 * width) : int(0.9 * width)] = (40, 60, 200)
    return image.astype(np.uint8)


def _random_features(tokens: int, labels: int, channels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, tokens, channels, generator=generator)
    text = torch.randn(labels, channels, generator=generator)
    return tuple(torch.nn.functional.normalize(t, dim=-1).to(device) for t in (image, text))  # type: ignore[return-value]


def _text_model(settings: Settings) -> tuple[Any, Any]:
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
    return model.to(pick_device(settings.device)).eval().requires_grad_(False), open_clip.get_tokenizer("ViT-B-16")


def pairs(settings: Settings) -> list[tuple[str, Path | None, int]]:
    """The pairs of models of the images and recipe suites: name, SAM checkpoint, timed rounds."""
    checkpoint = settings.sam_checkpoint
    if checkpoint is None:
        lent = Path(os.environ.get("TEXT2SAM_TEST_DATA", "/nowhere")) / "weights" / "mobile_sam.pt"
        checkpoint = lent if lent.is_file() else None
    found: list[tuple[str, Path | None, int]] = [("sticker", None, settings.image_rounds)]
    if checkpoint is not None:
        found.append((f"sticker CLIP and {Path(checkpoint).name}", checkpoint, settings.checkpoint_rounds))
    return found


def build_pair(checkpoint: Path | None, settings: Settings) -> tuple[TextPromptedSAM, Tokenizer]:
    """The sticker pair, or its CLIP with another SAM, and the CLIP's tokenizer."""
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
