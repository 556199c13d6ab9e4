"""What is done with a few images: read, encoded as one batch, segmented, and told as records. No image stops the others.

A :class:`Worker` is the part of a folder job that holds a model; the engine of one process and that of Ray both drive it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.annotate.embeddings import EmbeddingStore, module_fingerprint
from text2sam.annotate.journal import Record
from text2sam.annotate.labels import LabelSet
from text2sam.annotate.sources import ImageItem
from text2sam.clip.generator import Method
from text2sam.clip.tiles import Tiles, check_tiles
from text2sam.devices import is_out_of_memory
from text2sam.errors import InputError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.image import read_image
from text2sam.pipeline import EncodedImage, TextPromptedSAM, Zoom
from text2sam.recipes import DEFAULT, Strategy, get_strategy

ModelSource = TextPromptedSAM | Callable[[], TextPromptedSAM]
"""A model, or what makes one."""

BATCH_PIXELS = 1 << 26
"""A batch is closed early when its images hold this many pixels together (200 MB), so that memory stays bounded."""

_STATE = {"features", "is_image_set", "model"}


class Stopped(Exception):
    """Work was left because the run ends."""


@dataclass(frozen=True)
class Options:
    """How images are segmented; each as for ``TextPromptedSAM.segment_many``.

    Raises:
        InputError: the strategy or ``tiles`` is not known.
    """

    strategy: str | Strategy = DEFAULT
    method: Method = "surgery"
    zoom: Zoom = "auto"
    tiles: Tiles = False

    def __post_init__(self) -> None:
        get_strategy(self.strategy)
        check_tiles(self.tiles)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types that stand for all of it: rules of a recipe of one's own go by their names."""
        recipe = get_strategy(self.strategy)
        fields = {one.name: getattr(recipe, one.name) for one in dataclasses.fields(recipe)}
        told = {name: _rule_name(value) if callable(value) else value for name, value in fields.items()}
        told["margin"] = str(told["margin"])  # may be infinite
        return {"strategy": told, "method": self.method, "zoom": self.zoom, "tiles": self.tiles}


def _rule_name(rule: Any) -> str:
    if dataclasses.is_dataclass(rule):
        return repr(rule)  # its fields are its settings
    if isinstance(rule, partial):
        return f"{_rule_name(rule.func)}{rule.args}{sorted(rule.keywords.items())}"
    where = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{where.__module__}.{where.__qualname__}"


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image that was read, (H, W, 3) uint8 RGB, or the reason why it was not."""

    item: ImageItem
    pixels: NDArray[np.uint8] | None
    reason: str = ""


def load(item: ImageItem) -> Loaded:
    """Reads an image; whatever is wrong with the file becomes a reason."""
    try:
        return Loaded(item, read_image(item.file))
    except Exception as error:
        return Loaded(item, None, _reason(error, item))


def load_batches(items: Iterable[ImageItem]) -> Iterator[list[Loaded]]:
    """Reads images in batches of at most :data:`BATCH_PIXELS`, or of one image that has more."""
    batch: list[Loaded] = []
    pixels = 0
    for item in items:
        one = load(item)
        size = 0 if one.pixels is None else one.pixels.shape[0] * one.pixels.shape[1]
        if batch and size and pixels + size > BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
        batch.append(one)
        pixels += size
        del one  # what is handed on is not kept here
    if batch:
        yield batch


class Worker:
    """Annotates images with a model of its own.

    Args:
        model: used by this worker alone; :func:`own_copy` makes one.
        labels: what is looked for.
        options: how.
        store: keeps embeddings, and has those of earlier runs.

    Raises:
        PromptError, InputError: a label or an option cannot be used with this model.
    """

    def __init__(self, model: TextPromptedSAM, labels: LabelSet, options: Options, store: EmbeddingStore | None = None) -> None:
        self.model = model
        self.labels = labels
        self.options = options
        self.store = store
        self._groups = labels.groups()
        self._how: dict[str, Any] = {
            "against": labels.against or None,
            "strategy": options.strategy,
            "method": options.method,
            "zoom": options.zoom,
        }
        # on a GPU SAM's encoder is worth a batch; on a CPU it only runs for images in which a label is present
        self._sam = model.generator.device.type != "cpu"
        for group in self._groups:  # checks everything and encodes the texts, before the first image costs anything
            model.segment_batch(
                [], group.targets, exclude=group.exclude, threshold=group.thresholds, tiles=options.tiles, **self._how
            )

    @property
    def thresholds(self) -> dict[str, float]:
        """From which presence on each label counts as there."""
        default = self.model.presence_threshold
        return {one.name: default if one.threshold is None else one.threshold for one in self.labels.labels}

    def run(self, batch: Sequence[Loaded], stop: threading.Event | None = None) -> list[Record]:
        """Annotates images, which CLIP sees as one batch.

        Where memory does not suffice the batch is halved, down to one image; where anything else goes wrong its images
        are taken one by one. An image that fails by itself costs its own record.

        Args:
            batch: read images; memory is freed as they are done if the caller keeps none.
            stop: when set, the work is left.

        Returns:
            One record per image, in order.

        Raises:
            Stopped: ``stop`` was set.
        """
        stop = stop or threading.Event()
        records = {one.item.path: Record(one.item.path, reason=one.reason) for one in batch if one.pixels is None}
        ready = [one for one in batch if one.pixels is not None]
        for record in self._annotate(ready, stop) if ready else ():
            records[record.path] = record
        return [records[one.item.path] for one in batch]

    def _annotate(self, batch: list[Loaded], stop: threading.Event) -> Iterator[Record]:
        trouble = _Trouble()
        encoded: list[_Ready | None] = []
        with trouble:
            encoded = [*self._encode([one.pixels for one in batch if one.pixels is not None])]
        done = 0
        while not trouble and done < len(batch):
            if stop.is_set():
                raise Stopped
            one, ready = batch[done], encoded[done]
            encoded[done] = record = None
            with trouble:
                record = self._segment(one.item, ready)
            ready = None
            if trouble and not (trouble.memory and len(batch) > 1):
                record = Record(one.item.path, reason=trouble.reason(one.item))
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

    def _encode(self, images: list[NDArray[np.uint8]]) -> list[_Ready]:
        if self.store is not None:
            kept = [one for one in map(self.store.load, images) if one is not None and (one.sam is not None or not self._sam)]
            # all or none: those that are missing would be another batch than that of a run without interruption
            if len(kept) == len(images):
                return [_Ready(one, kept=True) for one in kept]
        return [_Ready(one) for one in self.model.encode(images, sam=self._sam, tiles=self.options.tiles)]

    def _segment(self, item: ImageItem, ready: _Ready | None) -> Record:
        if ready is None:
            raise InputError(f"{item.path!r} was segmented already")
        encoded = ready.encoded
        has_sam = encoded.sam is not None
        objects: list[tuple[AnnotatedObject, ...]] = [()] * len(self.labels.labels)
        presence = dict.fromkeys(self.labels.names, 0.0)
        for group in self._groups:
            results = self.model.segment_many(
                encoded, group.targets, exclude=group.exclude, threshold=group.thresholds, **self._how
            )
            for index, result in zip(group.indexes, results, strict=True):
                # run lengths at once: masks are large
                objects[index] = AnnotatedImage.from_results(item.path, [result]).objects
                presence[self.labels.names[index]] = float(result.presence)
            del results
        if self.store is not None and (not ready.kept or (encoded.sam is not None) != has_sam):
            self.store.save(encoded)
        image = AnnotatedImage(item.path, *encoded.shape, tuple(one for found in objects for one in found))
        return Record(item.path, image, presence)

    def _free(self) -> None:
        self.model.reset_image()
        if self.model.generator.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.model.generator.device.type == "mps":
            torch.mps.empty_cache()


@dataclass(frozen=True, eq=False)
class _Ready:
    """An encoded image, and whether the store has it."""

    encoded: EncodedImage
    kept: bool = False


class _Trouble:
    """Takes an exception in a ``with`` block and keeps what it said, not its traceback, which holds on to all memory."""

    def __init__(self) -> None:
        self.said = ""
        self.memory = False

    def __bool__(self) -> bool:
        return bool(self.said)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception) or isinstance(error, Stopped):
            return False
        self.said = _said(error)
        self.memory = is_out_of_memory(error)
        return True

    def reason(self, item: ImageItem) -> str:
        """The reason for a record."""
        return f"out of memory, even alone: {self.said}" if self.memory else _without_folder(self.said, item)


def _said(error: BaseException) -> str:
    said = str(error)
    return said if said and isinstance(error, Text2SamError) else f"{type(error).__name__}: {said}".removesuffix(": ")


def _without_folder(said: str, item: ImageItem) -> str:
    # a long path is told shortened in the middle
    return said.replace(repr(str(item.file)), repr(item.path)).replace(f"{item.file.parent}{os.sep}", "")


def _reason(error: BaseException, item: ImageItem) -> str:
    return _without_folder(_said(error), item)


def own_copy(model: TextPromptedSAM) -> TextPromptedSAM | None:
    """A model for another thread: the same weights, but an image state of its own.

    Returns:
        None where the predictor is none of ``SamPredictor``'s kind, so that its state cannot be told from the rest, or where
        the model is in training mode, which every call has to switch off and on.
    """
    predictor: Any = model.predictor
    parts = [
        model.generator.model,
        *([predictor.model] if isinstance(getattr(predictor, "model", None), torch.nn.Module) else []),
    ]
    if not vars(predictor).keys() >= _STATE or any(part.training for whole in parts for part in whole.modules()):
        return None
    mine = copy.copy(model)
    mine.predictor = copy.copy(predictor)
    mine.reset_image()
    return mine


def model_settings(model: TextPromptedSAM) -> dict[str, Any]:
    """What the results depend on besides images, labels and options, in JSON's types."""
    surgery, predictor = model.generator, model.predictor
    inner = getattr(predictor, "model", None)
    sam = f"{type(predictor).__module__}.{type(predictor).__qualname__}"
    sam += module_fingerprint(inner) if isinstance(inner, torch.nn.Module) else ""
    return {
        "clip": surgery.fingerprint(),
        "sam": hashlib.sha256(sam.encode()).hexdigest()[:16],
        "templates": hashlib.sha256(repr(tuple(surgery.prompts.templates)).encode()).hexdigest()[:16],
        "image_size": list(surgery.image_size),
        "scales": list(surgery.scales),
        "depth": surgery.depth,
        "tau": surgery.tau,
        "weighting": surgery.weighting,
        "presence_peak": surgery.presence_peak,
        "presence_threshold": model.presence_threshold,
        "device": surgery.device.type,
        "dtype": str(next(surgery.model.parameters()).dtype).removeprefix("torch."),
    }
