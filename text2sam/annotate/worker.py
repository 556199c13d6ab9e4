"""What is done with a few images: read, encoded as one batch, segmented, recorded. No image stops the others.

A :class:`Worker` is the part of a folder job that holds a model; the engine of one machine and that of Ray both use it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.annotate.journal import Record
from text2sam.annotate.labels import LabelSet
from text2sam.annotate.sources import ImageItem
from text2sam.devices import is_out_of_memory
from text2sam.errors import Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.fingerprint import fingerprint
from text2sam.image import read_image
from text2sam.options import Options
from text2sam.pipeline import EncodedImage, TextPromptedSAM
from text2sam.types import Segmentation

if TYPE_CHECKING:
    from text2sam.annotate.embeddings import EmbeddingStore

ModelSource: TypeAlias = "TextPromptedSAM | Callable[[], TextPromptedSAM]"
"""A model, or a function that makes one."""

BATCH_PIXELS = 1 << 26
"""A batch ends early when its images hold this many pixels together (200 MB), so that memory stays bounded."""


class Stopped(Exception):
    """Work was left because the run ends."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image that was read, (H, W, 3) uint8 RGB, or the reason why it was not."""

    item: ImageItem
    pixels: NDArray[np.uint8] | None
    reason: str = ""


def load(item: ImageItem, reading: Mapping[str, Any] | None = None) -> Loaded:
    """Reads an image; any error becomes a reason. ``reading`` are keyword arguments of :func:`read_image`."""
    try:
        return Loaded(item, read_image(item.file, **(reading or {})))
    except Exception as error:
        return Loaded(item, None, _without_folder(_message(error), item))


def load_batches(items: Iterable[ImageItem], reading: Mapping[str, Any] | None = None) -> Iterator[list[Loaded]]:
    """Reads images in batches of at most :data:`BATCH_PIXELS`, or of one image that has more."""
    batch: list[Loaded] = []
    pixels = 0
    for item in items:
        image = load(item, reading)
        size = 0 if image.pixels is None else image.pixels.shape[0] * image.pixels.shape[1]
        if batch and size and pixels + size > BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
        batch.append(image)
        pixels += size
        del image  # a consumer may free what it was given
    if batch:
        yield batch


class Worker:
    """Annotates images with a model of its own.

    Args:
        model: used by this worker alone.
        labels: what to look for; None only encodes the images, for the store.
        options: strategy, method, maximum number of objects and tiles; the other options come from the labels.
        store: keeps embeddings, and has those of earlier runs.

    Raises:
        PromptError, InputError: a label or an option cannot be used with this model.
    """

    def __init__(
        self, model: TextPromptedSAM, labels: LabelSet | None, options: Options, store: EmbeddingStore | None = None
    ) -> None:
        self.model = model
        self.labels = labels
        self.options = options
        self.store = store
        self._groups = () if labels is None else labels.groups()
        self._names = () if labels is None else labels.names
        self._how: dict[str, Any] = {
            "against": (labels.against if labels is not None else None) or None,
            "strategy": options.strategy,
            "method": options.method,
            "max_objects": options.max_objects,
        }
        # on a GPU SAM's encoder gains from a batch; on a CPU it only runs for images in which a label is present
        self._sam = labels is None or device_of(model).type != "cpu"
        for group in self._groups:  # checks everything and encodes the texts, before the first image costs anything
            model.segment_batch(
                [], group.targets, exclude=group.exclude, threshold=group.thresholds, tiles=options.tiles, **self._how
            )

    @property
    def thresholds(self) -> dict[str, float]:
        """The presence score from which each label counts as present."""
        default = self.model.presence_threshold
        labels = () if self.labels is None else self.labels.labels
        return {label.name: default if label.threshold is None else label.threshold for label in labels}

    def results(self, encoded: EncodedImage) -> Iterator[tuple[str, Segmentation]]:
        """The name of each label, in any order, and what is found for it in an image."""
        for group in self._groups:
            answers = self.model.segment_many(
                encoded, group.targets, exclude=group.exclude, threshold=group.thresholds, **self._how
            )
            yield from zip((label.name for label in group.labels), answers, strict=True)
            del answers

    def run(self, batch: Sequence[Loaded], stop: threading.Event | None = None) -> list[Record]:
        """Annotates images, which CLIP encodes as one batch.

        When memory does not suffice the batch is halved, down to one image; after any other error its images are taken one by
        one. An image that fails by itself costs its own record.

        Args:
            batch: images that were read. Their memory is freed as they are done, if the caller keeps none of it.
            stop: when set, the work is left.

        Returns:
            One record per image, in order.

        Raises:
            Stopped: ``stop`` was set.
        """
        stop = stop or threading.Event()
        records = {image.item.path: Record(image.item.path, reason=image.reason) for image in batch if image.pixels is None}
        ready = [image for image in batch if image.pixels is not None]
        for record in self._annotate(ready, stop) if ready else ():
            records[record.path] = record
        return [records[image.item.path] for image in batch]

    def _annotate(self, batch: list[Loaded], stop: threading.Event) -> Iterator[Record]:
        trouble = _Trouble()
        encoded: list[EncodedImage | None] = []
        fresh = True
        with trouble:
            images, fresh = self._encode([image.pixels for image in batch if image.pixels is not None])
            encoded = [*images]
            del images
        done = 0
        while not trouble and done < len(batch):
            if stop.is_set():
                raise Stopped
            item, image = batch[done].item, encoded[done]
            encoded[done] = record = None
            with trouble:
                record = self._segment(item, cast(EncodedImage, image), fresh)
            image = None
            if trouble and not (trouble.memory and len(batch) > 1):
                record = Record(item.path, reason=trouble.reason(item))
                trouble = _Trouble()
            if record is not None:
                yield record
                done += 1
        del encoded
        if not trouble:
            return
        # the models failed on the batch as a whole, or its encodings leave too little memory for the masks of one image
        if trouble.memory:
            self._free()
        if len(batch) == 1:
            yield Record(batch[0].item.path, reason=trouble.reason(batch[0].item))
            return
        step = len(batch) // 2 if trouble.memory else 1
        for start in range(done, len(batch), step):
            yield from self._annotate(batch[start : start + step], stop)

    def _encode(self, images: list[NDArray[np.uint8]]) -> tuple[list[EncodedImage], bool]:
        """The encoded images, and whether they were encoded just now."""
        if self.store is not None:
            kept = [image for image in map(self.store.load, images) if image is not None]
            # all or none: the missing ones would be another batch than that of a run without interruption
            if len(kept) == len(images) and (not self._sam or all(self.store.complete(image) for image in kept)):
                self.store.count(found=len(kept))
                return kept, False
            del kept
        # "surgery" needs nothing beyond what every encoding has, and a generator of the user's own knows no methods
        methods = None if self.options.method == "surgery" else [self.options.method]
        return self.model.encode(images, sam=self._sam, methods=methods, tiles=self.options.tiles), True

    def _segment(self, item: ImageItem, encoded: EncodedImage, fresh: bool) -> Record:
        had_sam = encoded.sam.state is not None
        objects: dict[str, tuple[AnnotatedObject, ...]] = dict.fromkeys(self._names, ())
        presence = dict.fromkeys(self._names, 0.0)
        for name, result in self.results(encoded):
            objects[name] = AnnotatedImage.from_results(item.path, [result]).objects  # run lengths at once: masks are large
            presence[name] = float(result.presence)
        if self.store is not None and (fresh or (encoded.sam.state is not None) != had_sam):
            self.store.save(encoded)
            self.store.count(made=int(fresh))
        image = AnnotatedImage(item.path, *encoded.shape, tuple(each for drawn in objects.values() for each in drawn))
        return Record(item.path, image, presence)

    def _free(self) -> None:
        self.model.reset_image()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()


class _Trouble:
    """Takes an exception in a ``with`` block and keeps its message, not its traceback, which holds on to all memory."""

    def __init__(self) -> None:
        self.message = ""
        self.memory = False

    def __bool__(self) -> bool:
        return bool(self.message)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception) or isinstance(error, Stopped):
            return False
        self.message = _message(error)
        self.memory = is_out_of_memory(error)
        return True

    def reason(self, item: ImageItem) -> str:
        """The reason for a record."""
        return f"out of memory, even alone: {self.message}" if self.memory else _without_folder(self.message, item)


def _message(error: BaseException) -> str:
    text = str(error)
    return text if text and isinstance(error, Text2SamError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _without_folder(message: str, item: ImageItem) -> str:
    # messages shorten a long path in the middle
    return message.replace(repr(str(item.file)), repr(item.path)).replace(f"{item.file.parent}{os.sep}", "")


def device_of(model: TextPromptedSAM) -> torch.device:
    """Where a model's maps are computed."""
    return torch.device(getattr(model.generator, "device", "cpu"))


def settings_of(labels: LabelSet, options: Options) -> dict[str, Any]:
    """What the results depend on besides images and model, in JSON's types; rules of a user's own recipe go by their names."""
    recipe = options.recipe
    fields: tuple[Any, ...] = dataclasses.fields(recipe) if dataclasses.is_dataclass(recipe) else ()
    shown = {"name": recipe.name, "class": _rule_name(type(recipe))}
    shown |= {field.name: _rule_name(getattr(recipe, field.name)) for field in fields}
    return {
        **labels.to_json(),
        "strategy": shown,
        "method": options.method,
        "max_objects": options.max_objects,
        "tiles": options.tiles,
        **{name: value for name, value in options.reading.items() if value != getattr(Options(), name)},
    }


def _rule_name(rule: Any) -> Any:
    if rule is None or isinstance(rule, (str, int, float, bool)):
        return str(rule) if isinstance(rule, float) else rule  # may be infinite
    if isinstance(rule, torch.nn.Module):
        return fingerprint(rule)
    if callable(made := getattr(rule, "fingerprint", None)) and not isinstance(rule, type):
        return str(made())
    if dataclasses.is_dataclass(rule) and not isinstance(rule, type):
        return repr(rule)  # its fields are its settings
    if isinstance(rule, partial):
        return f"{_rule_name(rule.func)}{rule.args}{sorted(rule.keywords.items())}"
    where = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{where.__module__}.{where.__qualname__}"


def model_settings(model: TextPromptedSAM) -> dict[str, Any]:
    """What the results depend on besides images, labels and options, in JSON's types."""
    generator, inner = model.generator, getattr(model.predictor, "model", None)
    sam = f"{type(model.predictor).__module__}.{type(model.predictor).__qualname__}"
    sam += fingerprint(inner) if isinstance(inner, torch.nn.Module) else ""
    objectness = getattr(model.predictor, "objectness", None)
    sam += "" if objectness is None else str(_rule_name(objectness))
    made = getattr(generator, "fingerprint", None)
    templates = getattr(getattr(generator, "prompts", None), "templates", ())
    named = {name: getattr(generator, name, None) for name in ("image_size", "scales", "depth", "tau", "weighting")}
    clip = getattr(generator, "model", None)
    weight = next(clip.parameters(), None) if isinstance(clip, torch.nn.Module) else None
    return {
        "clip": str(made()) if callable(made) else f"{type(generator).__module__}.{type(generator).__qualname__}",
        "sam": hashlib.sha256(sam.encode()).hexdigest()[:16],
        "templates": hashlib.sha256(repr(tuple(templates)).encode()).hexdigest()[:16],
        **{name: list(value) if isinstance(value, tuple) else value for name, value in named.items()},
        "presence_peak": getattr(generator, "presence_peak", None),
        "presence_threshold": model.presence_threshold,
        "device": device_of(model).type,
        "dtype": None if weight is None else str(weight.dtype).removeprefix("torch."),
    }
