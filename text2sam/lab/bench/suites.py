"""The suites of the benchmark."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.clip.prompts import PromptEnsemble, ensemble_templates
from text2sam.clip.similarity import feature_surgery
from text2sam.devices import pick_device
from text2sam.lab.bench.peers import peer_pipeline
from text2sam.lab.bench.sam import measure_sam
from text2sam.lab.bench.timing import alternate, peak_tensor_bytes, row, timed_row
from text2sam.lab.experiments import plain
from text2sam.pipeline import TextPromptedSAM
from text2sam.recipes.choose import mask_iou

Result = tuple[dict[str, Any], list[dict[str, Any]]]
"""Figures of a suite, JSON-ready, and its lines of the table."""


@dataclass(frozen=True)
class Settings:
    """Sizes and repeats of the benchmarks; the defaults are those of ``text2sam bench``."""

    device: str | None = None  # None takes cuda, then mps, then cpu
    text_model: tuple[int, int, int, int] = (512, 512, 8, 12)  # embed_dim, width, heads, layers: ViT-B-16's text tower
    templates: tuple[str, ...] | None = None  # None takes the papers' 85
    texts: tuple[str, ...] = ("cat",)  # of one call in the text suite
    text_rounds: int = 3
    labels: tuple[int, ...] = (59, 171)  # texts for feature surgery; memory at two widths is measured with the first number
    tokens: int = 1025  # of the image, including the class token
    channels: int = 512
    wide_channels: int = 1024
    surgery_rounds: int = 5
    image_shape: tuple[int, int] = (480, 640)  # of the drawn image
    large_shape: tuple[int, int] = (3000, 4000)  # of a large photo
    image_texts: tuple[str, str] = ("cat", "ship")  # the first and the second text
    image_rounds: int = 7  # of the suites images and recipe
    folder_preset: str = "photo"  # or "sticker"
    folder_images: int = 48
    folder_rounds: int = 5
    sam_rounds: int = 5
    peer_rounds: int = 5


def measure_text(settings: Settings) -> Result:
    """The prompt ensemble without a cache, against the plain implementation."""
    model, tokenizer = _text_model(settings)
    templates = ensemble_templates() if settings.templates is None else settings.templates
    texts = list(settings.texts)
    ensemble = PromptEnsemble(model, tokenizer, templates=templates)

    def plainly() -> torch.Tensor:
        return plain.prompt_ensemble(model, tokenizer, texts, templates)

    sides = {"ours": lambda: ensemble(texts), "plain": plainly}
    times = alternate(sides, settings.text_rounds, prepare={"ours": ensemble.forget})
    tokens = tokenizer([template.format(text) for text in texts for template in templates])
    details = {
        "texts": texts,
        "templates": len(templates),
        "positions_plain": int(tokens.shape[1]),
        "positions_ours": int(tokens.argmax(dim=-1).max()) + 1,
        "times": times,
        "difference": float((ensemble(texts) - plainly()).abs().max()),
    }
    what = f"prompt ensemble of {len(texts)} text{'s' * (len(texts) > 1)}, not cached, against plain"
    return details, [timed_row(what, times["ours"], times["plain"], 4.0)]


def measure_surgery(settings: Settings) -> Result:
    """Time and peak memory of feature surgery over a label set, against the plain implementation."""
    rows, cases = list[dict[str, Any]](), list[dict[str, Any]]()
    for count, channels in [*((n, settings.channels) for n in settings.labels), (settings.labels[0], settings.wide_channels)]:
        generator, device = torch.Generator().manual_seed(0), pick_device(settings.device)
        image, labels = (
            torch.nn.functional.normalize(torch.randn(*shape, channels, generator=generator), dim=-1).to(device)
            for shape in ((1, settings.tokens), (count,))
        )
        calls = {"ours": partial(feature_surgery, image, labels), "plain": partial(plain.feature_surgery, image, labels)}
        peaks = {name: peak_tensor_bytes(call) for name, call in calls.items()}
        case: dict[str, Any] = {"labels": count, "tokens": settings.tokens, "channels": channels, "peak_tensor_bytes": peaks}
        case["difference"] = float((calls["ours"]() - calls["plain"]()).abs().max())
        cases.append(case)
        if channels == settings.channels:
            times = case["times"] = alternate(calls, settings.surgery_rounds, short="ours")
            what = f"feature surgery, {count} texts, {settings.tokens} tokens"
            aim = 100.0 if count == settings.labels[0] else None
            rows.append(timed_row(f"{what}, against plain", times["ours"], times["plain"], aim))
            rows.append(row(f"{what}, peak memory", peaks["ours"], peaks["plain"], "bytes"))
    narrow, wide = (cases[i]["peak_tensor_bytes"] for i in (0, -1))
    growth = {name: wide[name] / narrow[name] for name in wide}
    what = f"feature surgery, growth of peak memory, C from {settings.channels} to {settings.wide_channels}"
    rows.append(row(what, growth["ours"], growth["plain"], "times", "ours <= 1.01", growth["ours"] <= 1.01))
    return {"cases": cases, "growth_of_peak_with_channels": growth}, rows


def measure_images(settings: Settings) -> Result:
    """The second text on an image by the papers' recipe and the sticker pair, against the first text and the plain
    implementation."""
    import open_clip

    image = draw(settings.image_shape)
    first, second = settings.image_texts
    model = build_sticker(settings)
    surgery, tokenizer = model.generator, open_clip.get_tokenizer("ViT-B-32")

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

    # shares the model, but holds its own image
    predictor = copy.copy(model.predictor)

    def plainly() -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        return plain.segment(predictor, surgery, tokenizer, image, second)

    sides = {
        "first_text_known": on_new_image,
        "second_text_known": on_set_image,
        "first_text_new": on_new_image,
        "second_text_new": on_set_image,
        "plain": plainly,
    }
    prepare = {
        "first_text_known": knowing(first, second),
        "second_text_known": knowing(first, second, image_is_set=True),
        "first_text_new": knowing(),
        "second_text_new": knowing(first, image_is_set=True),
    }
    times = alternate(sides, settings.image_rounds, prepare=prepare)
    mask, values = plainly()
    results = model.segment_many(image, (first, second), strategy="paper")
    details = {
        "image": list(settings.image_shape),
        "texts": [first, second],
        "points": {result.text: len(result.points) for result in results},
        "times": times,
        "map_difference": float(np.abs(results[1].similarity.values - values).max()),
        "mask_iou": mask_iou(results[1].mask, mask),
    }
    what = "sticker pair, second text on an image"
    return details, [
        timed_row(f"{what}, against the first", times["second_text_known"], times["first_text_known"], 4.0),
        timed_row(f"{what}, against the first, texts not cached", times["second_text_new"], times["first_text_new"], 4.0),
        timed_row(f"{what}, not cached, against plain", times["second_text_new"], times["plain"]),
    ]


def measure_recipe(settings: Settings) -> Result:
    """Prompts for SAM and time of the default recipe and the sticker pair, against the papers' recipe, on the shipped scenes.

    All prompts count, including those whose mask did not become an object. The papers' recipe makes one mask per text, which is
    its object.
    """
    from text2sam.demo import load_scenes

    scenes, model, recipes = load_scenes(), build_sticker(settings), ("objects", "paper")
    cases = []
    for scene in scenes:
        model.set_image(scene.image)
        for text in (*scene.find, scene.absent):
            case: dict[str, Any] = {"scene": scene.name, "text": text, "calls": {}, "objects": {}}
            for recipe in recipes:
                before = model.session.calls
                case["objects"][recipe] = len(model.segment(text=text, strategy=recipe).instances)
                case["calls"][recipe] = model.session.calls - before
            cases.append(case)
    texts = scenes[0].find
    model.set_image(scenes[0].image)
    sides = {recipe: partial(model.segment_many, None, texts, strategy=recipe) for recipe in recipes}
    times = alternate(sides, settings.image_rounds)
    calls, objects = ({r: sum(case[key][r] for case in cases) for r in recipes} for key in ("calls", "objects"))
    each = {r: calls[r] / max(1, objects[r]) for r in recipes}
    met = each["objects"] <= each["paper"] + 2
    what = "sticker pair, default recipe"
    return {"cases": cases, "times": times}, [
        row(f"{what}: prompts per object, against paper", each["objects"], each["paper"], "count", "ours <= baseline + 2", met),
        timed_row(f"{what}: {len(texts)} texts on an image that is set, against paper", times["objects"], times["paper"]),
    ]


def measure_annotate(settings: Settings) -> Result:
    """A folder job against a plain loop over ``segment_many``, in seconds per image; with the photo pair also in bfloat16.

    The job decodes, segments, keeps its journal and writes a COCO dataset; the loop decodes and segments. Both have the same
    texts and the same model. The images are the shipped photos or scenes, mirrored and with other light.
    """
    from text2sam.annotate.engine import default_workers
    from text2sam.annotate.job import annotate
    from text2sam.demo import load_photos, load_scenes
    from text2sam.files import write_png

    photos = settings.folder_preset == "photo"
    build = partial(TextPromptedSAM.from_pretrained, "photo", device=settings.device)
    models = {"job": build(), "job_bfloat16": build(dtype="bfloat16")} if photos else {"job": build_sticker(settings)}
    scenes = load_photos() if photos else load_scenes()
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
            results = (result for file in files for result in models["job"].segment_many(file, labels))
            objects["loop"] = sum(len(result.instances) for result in results if result.present)

        def job(name: str) -> None:
            objects[name] = sum(annotate(models[name], folder, labels, out, overwrite=True).objects.values())

        sides: dict[str, Callable[[], object]] = {**{name: partial(job, name) for name in models}, "loop": loop}
        times = alternate(sides, settings.folder_rounds, warm_up=False)
        shares = _shares(models["job"], loop)
    per_image = {
        name: {key: (np.array(value) / len(files)).tolist() for key, value in side.items()} for name, side in times.items()
    }
    workers = default_workers(models["job"].generator.device)
    details = {
        "images": len(files),
        "texts": labels,
        "workers": workers,
        "objects": objects,
        "times": per_image,
        "shares": shares,
    }
    what = f"annotate: seconds per image, {len(labels)} texts, against a loop"
    rows = [timed_row(what, per_image["job"], per_image["loop"], 1.6)]
    if photos:
        what = "annotate in bfloat16, against the loop in float32"
        rows.append(timed_row(what, per_image["job_bfloat16"], per_image["loop"], 1.6))
    return details, rows


def _shares(model: TextPromptedSAM, call: Callable[[], object]) -> dict[str, float]:
    """The share of a call's time that each part of the pipeline takes."""
    from text2sam import pipeline

    places: dict[str, tuple[Any, str]] = {
        "reading": (pipeline, "read_image"),
        "CLIP": (model.generator, "encode"),
        "SAM's image encoder": (model.predictor, "set_image"),
        "SAM's prompts": (model.predictor, "predict"),
    }
    spent = dict.fromkeys(places, 0.0)

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[part] += time.perf_counter() - start
            return result

        return wrapped

    with ExitStack() as stack:
        for part, (owner, name) in places.items():
            stack.enter_context(mock.patch.object(owner, name, clocked(part, getattr(owner, name))))
        start = time.perf_counter()
        call()
        whole = time.perf_counter() - start
    spent["maps, points and choice"] = whole - sum(spent.values())
    return {part: seconds / whole for part, seconds in spent.items()}


def measure_peers(settings: Settings) -> Result:
    """The photo pair against Grounding DINO and SAM 2.1; empty if transformers is not installed.

    Measured are the first mask of an image, a second text on it, an image of a folder with four texts, which their detector
    takes at once, and the memory of the tensors.
    """
    image, (first, second, *more) = draw(settings.image_shape), ("cat", "dog", "car", "person")
    theirs = peer_pipeline(settings.image_shape, pick_device(settings.device))
    if theirs is None:
        return {}, []
    model = TextPromptedSAM.from_pretrained("photo", device=settings.device)

    def ask(text: str) -> object:
        return model.segment(text=text, threshold=0.0)  # taken as present, so that SAM is prompted

    def on_new_image() -> object:
        model.set_image(image)
        return ask(first)

    sides: dict[str, Callable[[], object]] = {
        "first_text": on_new_image,
        "second_text": partial(ask, second),
        "four_texts": partial(model.segment_many, image, (first, second, *more), threshold=0.0),
        "peers_first_text": partial(theirs, True),
        "peers_second_text": partial(theirs, False),
    }
    peaks = {"ours": peak_tensor_bytes(on_new_image), "peers": peak_tensor_bytes(partial(theirs, True))}
    times = alternate(sides, settings.peer_rounds, warm_up=False)
    what = "photo pair, against Grounding DINO tiny and SAM 2.1 tiny (transformers, untrained)"
    return {"image": list(settings.image_shape), "times": times, "peak_tensor_bytes": peaks}, [
        timed_row(f"{what}: first mask of an image", times["first_text"], times["peers_first_text"]),
        timed_row(f"{what}: second text", times["second_text"], times["peers_second_text"]),
        timed_row(f"{what}: an image of a folder, four texts", times["four_texts"], times["peers_first_text"]),
        row(f"{what}: peak memory in addition to the weights", peaks["ours"], peaks["peers"], "bytes"),
    ]


SUITES: Mapping[str, Callable[[Settings], Result]] = {
    "text": measure_text,
    "surgery": measure_surgery,
    "images": measure_images,
    "recipe": measure_recipe,
    "sam": measure_sam,
    "annotate": measure_annotate,
    "peers": measure_peers,
}
"""Name of a suite -> the function that measures it."""


def draw(shape: Sequence[int]) -> NDArray[np.uint8]:
    """A drawn image, (H, W, 3) uint8 RGB: a disc and a box on a grey gradient."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([80 + 60 * x / width, 90 + 60 * y / height, np.full_like(x, 120)], axis=-1)
    image[np.hypot(x - 0.3 * width, y - 0.5 * height) < 0.2 * min(height, width)] = (220, 120, 40)
    image[int(0.4 * height) : int(0.8 * height), int(0.65 * width) : int(0.9 * width)] = (40, 60, 200)
    return image.astype(np.uint8)


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


def build_sticker(settings: Settings) -> TextPromptedSAM:
    """The sticker pair at one size, as in the plain implementation, with no cache of texts on disk."""
    return TextPromptedSAM.from_pretrained(
        "sticker", device=settings.device, templates=settings.templates, scales=(1.0,), text_cache=False
    )
