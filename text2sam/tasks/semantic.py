"""Open-vocabulary semantic segmentation: one class for every pixel (CLIP Surgery, arXiv 2304.05653, semantic segmentation).

Nothing of the size classes x height x width is held: similarities are kept on patches, and a few classes at a time are enlarged
to pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from text2sam.checks import check_number, check_shape
from text2sam.clip.attention import CORRCLIP, check_method
from text2sam.clip.generator import ClipSurgery, ImageFeatures, Method
from text2sam.errors import InputError, PromptError
from text2sam.image import ImageLike, read_image
from text2sam.paint import voc_palette
from text2sam.pipeline import TextPromptedSAM
from text2sam.tasks._inputs import Labels, check_words, class_features, parse_labels, surgery_of
from text2sam.tasks.corrclip import WHOLE, Box, patch_looks, patch_regions, region_attention
from text2sam.tasks.regions import check_regions, find_regions, majority
from text2sam.types import bilinear

BACKGROUND = "background"
"""Name of the class that background words, or a threshold, make."""

LOGIT_SCALE = 40.0
"""What similarities are multiplied with before the softmax in the protocol of SCLIP (arXiv 2312.01597) and its followers."""

_BUDGET = 64 * 2**20  # bytes of logits enlarged at once


@dataclass(frozen=True, eq=False, repr=False)
class SemanticMap:
    """The class of every pixel of an image.

    Attributes:
        labels: T class names, that of the background among them where there is one.
        classes: (H, W) uint16, index in ``labels``.
        probabilities: (T, gh, gw) float32 in [0, 1] on patches, before upsampling; see :func:`segment_semantic`.
        background: index of the background; None where every pixel has one of the labels asked for.
        method: how the similarities were made.
        threshold: a pixel whose best probability is below it is background; None without.
        refined: whether regions have voted.

    Raises:
        InputError: a probability is not in [0, 1].
    """

    labels: tuple[str, ...]
    classes: NDArray[np.uint16]
    probabilities: NDArray[np.float32]
    background: int | None = None
    method: str = "architecture"
    threshold: float | None = None
    refined: bool = False

    def __post_init__(self) -> None:
        if not ((self.probabilities >= 0) & (self.probabilities <= 1)).all():  # NaN is outside
            raise InputError("probabilities must be in [0, 1]; the model's weights may be damaged")

    def __repr__(self) -> str:
        height, width = self.classes.shape
        return f"<SemanticMap: {width} x {height} pixels, {len(self.labels)} labels; present: {', '.join(self.present)}>"

    @property
    def present(self) -> tuple[str, ...]:
        """The labels that pixels have, the one with most pixels first."""
        areas = np.bincount(self.classes.ravel(), minlength=len(self.labels))
        return tuple(self.labels[i] for i in np.argsort(-areas, kind="stable") if areas[i])

    def mask(self, label: str) -> NDArray[np.bool_]:
        """(H, W) bool: the pixels of a label.

        Raises:
            InputError: there is no such label.
        """
        if label not in self.labels:
            raise InputError(f"there is no label {label!r}; the labels are {', '.join(self.labels[:20])}")
        mask: NDArray[np.bool_] = self.classes == self.labels.index(label)
        return mask

    @property
    def palette(self) -> NDArray[np.uint8]:
        """(T, 3) uint8 RGB: PASCAL VOC's colours, the background black; see :func:`voc_palette`."""
        colours = voc_palette(len(self.labels) + 1)
        if self.background is None:
            return colours[1:]
        order = [*range(1, len(self.labels) + 1)]
        order.insert(self.background, 0)
        return colours[order[: len(self.labels)]]

    def to_image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB: every pixel in its label's colour of ``palette``."""
        picture: NDArray[np.uint8] = self.palette[self.classes]
        return picture


def segment_semantic(
    model: ClipSurgery | TextPromptedSAM,
    image: ImageLike | ImageFeatures,
    labels: Labels,
    *,
    background: Sequence[str] | None = None,
    threshold: float | None = None,
    method: Method = "architecture",
    window: int | None = None,
    stride: int | None = None,
    short_side: int | None = None,
    logit_scale: float = LOGIT_SCALE,
    refine: Literal["regions"] | None = None,
    regions: NDArray[Any] | None = None,
    batch_size: int = 8,
) -> SemanticMap:
    """The class of every pixel: the label whose similarity map is highest there.

    The papers' setting is the default: similarities by architecture surgery alone (no feature surgery; ``method="surgery"``
    has both, with the label set as the redundant feature), the whole image at the model's ``image_size`` (512 in the papers),
    bilinear upsampling of the maps, argmax, no threshold.

    Probabilities are ``softmax(logit_scale * similarity)`` over all texts. A label with several words has one text feature,
    the normalised mean of theirs. Background words stay apart in the softmax, being unlike each other, and the background's
    probability is that of the best of them, as in SCLIP's protocol; where the background has no words it is 0 and a
    threshold alone decides.

    The protocol SCLIP (arXiv 2312.01597) and its followers share is ``short_side=336, window=224, stride=112``, with a
    ClipSurgery of ``image_size=224``: the image is resized, keeping its aspect, windows are encoded one by one, each resized
    to ``image_size``, and upsampled similarities are averaged where windows overlap. Where one window covers the resized
    image, the image is encoded as without windows.

    With ``refine="regions"`` the image is cut into what SAM sees at a grid of points, whatever the labels
    (:func:`text2sam.tasks.regions.find_regions`), and each region takes the class that most of its pixels have. The method
    ``"corrclip"`` (arXiv 2411.10086, :mod:`text2sam.tasks.corrclip`) also keeps patches from attending to other regions; the
    vote is part of it.

    Args:
        model: a ClipSurgery; or a pair, whose surgery is taken. Refinement needs the pair, or ``regions``.
        image: anything :func:`text2sam.image.read_image` accepts; or features from ``ClipSurgery.encode_image``, encoded for
            ``method``, where neither windows nor refinement are wanted.
        labels: names; or a mapping from names to the words for each. Taken literally, at most 65,535.
        background: words for what is none of the labels; they make one class, ``"background"``, of index 0.
        threshold: in [0, 1]: a pixel whose best probability is below it is background. That is the label of that name, or
            else a class of index 0. One label alone is then set against the empty text.
        method: any of :data:`text2sam.clip.attention.METHODS`, or ``"corrclip"``.
        window: side of the sliding window in pixels of the resized image; None encodes the image whole.
        stride: step between windows, at most ``window``; half a window by default.
        short_side: the image's shorter side is resized to this many pixels for the windows; None leaves it.
        logit_scale: above 0. It changes probabilities only, so nothing where there is neither threshold nor refinement.
        refine: ``"regions"`` lets the pixels of each region vote.
        regions: for ``refine="regions"`` and ``"corrclip"``, in place of SAM's: (H, W) whole numbers, the region of each pixel
            from 1, and 0 for none; or (M, H, W) bool masks, of which the smallest has a pixel.
        batch_size: how many windows are encoded at once.

    Returns:
        The map; ``classes`` has the size of the image. ``probabilities`` are on the model's patches, or with windows on as
        many as the resized image has of a window's.

    Raises:
        PromptError: a label is empty, too long or given twice, or there is only one and nothing to tell it from.
        InputError: another argument is out of range, or needs one that is not given.
        ImageError: the image cannot be read.
        UnsupportedModelError: the method is not for this image tower, or the predictor's answer is not SAM's.
    """
    surgery = surgery_of(model)
    scoped = method == CORRCLIP
    if not scoped:
        check_method(method)
    plan = _plan(labels, background, threshold)
    windows = _check_windows(window, stride, short_side)
    check_number("batch_size", batch_size, 1, whole=True)
    logit_scale = check_number("logit_scale", logit_scale, 0, sys.float_info.max, above=True)
    if refine not in (None, "regions"):
        raise InputError(f"refine must be 'regions' or None, not {refine!r}")
    if scoped:  # before SAM is asked for anything
        surgery.encode_mixed([], lambda *_: torch.empty(0))
    voting = scoped or refine is not None
    if regions is not None and not voting:
        raise InputError(f"regions are for refine='regions' and method={CORRCLIP!r}; give one of the two")
    wish = f"method={method!r}" if scoped else f"refine={refine!r}"
    if voting and not hasattr(model, "session") and regions is None:
        raise InputError(f"{wish} needs a TextPromptedSAM: a ClipSurgery has no SAM; or give regions")
    if isinstance(image, ImageFeatures) and (windows or voting):
        raise InputError(f"windows, refine= and method={CORRCLIP!r} need the image itself, not its features")
    texts = class_features(surgery, [words or ("",) for words in plan.words], None)
    seen = image if isinstance(image, ImageFeatures) else read_image(image)
    cut: NDArray[Any] | None = None
    scope: _Scope | None = None
    if voting and isinstance(seen, np.ndarray):
        session: Any = getattr(model, "session", None)
        held: Any = None if session is None else session.image(seen)
        cut = find_regions(session, held) if regions is None else check_regions(regions, check_shape(seen.shape[:2]))
        if scoped:
            scope = cut, None if session is None else session.embedding(held)
    with torch.inference_mode():
        field, grid, shape = _encode(surgery, seen, texts, method, windows, batch_size, scope)
        classes = _classify(field, shape, logit_scale, plan)
        probabilities = _shares(field, grid, logit_scale, plan)
    if cut is not None:
        classes = majority(classes, cut)
    return SemanticMap(plan.labels, classes, probabilities, plan.background, method, plan.threshold, refined=voting)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What the columns of the similarities are: the words of each, and the index in ``labels`` of the class it is of."""

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    owners: NDArray[np.intp]
    background: int | None
    threshold: float | None


def _plan(labels: Labels, background: Sequence[str] | None, threshold: float | None) -> _Plan:
    classes = parse_labels(labels)
    if threshold is not None:
        threshold = check_number("threshold", threshold, 0, 1)
    named = next((i for i, name in enumerate(classes) if name.casefold() == BACKGROUND), None)
    apart: list[tuple[str, ...]] = []
    if background is not None:
        if named is not None:
            raise PromptError(f"{list(classes)[named]!r} is among the labels, and background words make a class of that name")
        apart = [(word,) for word in check_words(background, "background")]
        taken = {word.casefold() for group in classes.values() for word in group}
        both = [word for (word,) in apart if word.casefold() in taken]
        if both:
            raise PromptError(f"{both[0]!r} is both a label and background; take it out of one of the two")
    elif len(classes) == 1:
        [name] = classes
        if threshold is None:
            raise PromptError(
                f"{name!r} alone has nothing to be compared with; name further labels, background words, or a threshold"
            )
        if named is not None:
            raise PromptError("the background needs at least one label beside it; name a label")
        apart = [()]  # the empty text
    added = named is None and (background is not None or threshold is not None)
    names = (BACKGROUND, *classes) if added else tuple(classes)
    if len(names) > 65535:
        raise InputError(f"there can be at most 65535 classes, not {len(names)}")
    owners = np.array([*[0] * len(apart), *range(added, len(names))], np.intp)
    return _Plan(names, (*apart, *classes.values()), owners, 0 if added else named, threshold)


def _check_windows(window: int | None, stride: int | None, short_side: int | None) -> tuple[int, int, int | None] | None:
    """(window, stride, short side), or None for none."""
    if window is None:
        if stride is not None or short_side is not None:
            raise InputError("stride and short_side are for sliding windows; give window, their side in pixels")
        return None
    side = int(check_number("window", window, 1, whole=True))
    step = max(1, side // 2) if stride is None else int(check_number("stride", stride, 1, side, whole=True))
    return side, step, None if short_side is None else int(check_number("short_side", short_side, 1, whole=True))


_Scope: TypeAlias = tuple[NDArray[Any], NDArray[np.float32] | None]
"""What limits attention: (H, W) regions, and SAM's embedding (C, h, w), if there is one."""

Field = Callable[[int, int], torch.Tensor]
"""Similarities made on demand: ``field(start, stop)`` is (stop - start, h, w), columns of the plan on a grid."""


def _encode(
    surgery: ClipSurgery,
    image: NDArray[np.uint8] | ImageFeatures,
    texts: torch.Tensor,
    method: Method,
    windows: tuple[int, int, int | None] | None,
    batch_size: int,
    scope: _Scope | None,
) -> tuple[Field, tuple[int, int], tuple[int, int]]:
    """Similarities of an image (or its features), the grid that probabilities are given on, and (H, W) of the image."""
    empty = surgery.prompts([""]) if len(texts) == 1 else None

    def columns(features: ImageFeatures) -> torch.Tensor:
        own = method if scope is None else "itsm"  # the tokens are made of the regions already
        values = surgery.similarities(features, texts, own, empty)[1:]  # (gh*gw, columns)
        return values.T.reshape(-1, *features.grid)

    def look(images: Sequence[NDArray[np.uint8]], boxes: Sequence[Box]) -> list[torch.Tensor]:
        if scope is None:
            return [columns(features) for features in surgery.encode(images, methods=[method])]
        regions, embedding = scope

        def weights(i: int, grid: tuple[int, int], looks: torch.Tensor) -> torch.Tensor:
            if embedding is not None:
                looks = patch_looks(embedding, grid, boxes[i]).to(looks.device)
            return region_attention(patch_regions(regions, grid, boxes[i]), looks)

        return [columns(features) for features in surgery.encode_mixed(images, weights)]

    if isinstance(image, ImageFeatures):
        shape, values = image.shape, columns(image)
    else:
        shape = check_shape(image.shape[:2])
        if windows is not None:
            side, step, short = windows
            scale = 1.0 if short is None else short / min(shape)
            resized = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
            if max(resized) > side:
                picture = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR)
                field, grid = _slide(np.asarray(picture), look, side, step, batch_size)
                return field, grid, shape
        [values] = look([image], [WHOLE])
    return lambda start, stop: values[start:stop], check_shape(values.shape[1:]), shape


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every ``stride`` pixels, the last one moved back to end with the side.

    Args:
        length: of the side in pixels.
        window: at least 1; where it is longer than the side there is one window, as long as the side.
        stride: at least 1.
    """
    last = max(0, length - window)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def _slide(
    image: NDArray[np.uint8],
    look: Callable[[Sequence[NDArray[np.uint8]], Sequence[Box]], list[torch.Tensor]],
    side: int,
    step: int,
    batch_size: int,
) -> tuple[Field, tuple[int, int]]:
    """Similarities of windows, averaged where they overlap, and the grid of the whole image."""
    height, width = image.shape[:2]
    crop = (min(side, height), min(side, width))
    corners = [(y, x) for y in window_starts(height, side, step) for x in window_starts(width, side, step)]
    grids: list[torch.Tensor] = []  # (columns, gh, gw) each
    for start in range(0, len(corners), batch_size):
        batch = corners[start : start + batch_size]
        cut = [image[y : y + crop[0], x : x + crop[1]] for y, x in batch]
        grids += look(cut, [(y / height, x / width, crop[0] / height, crop[1] / width) for y, x in batch])
    times = torch.zeros(height, width, device=grids[0].device)
    for y, x in corners:
        times[y : y + crop[0], x : x + crop[1]] += 1

    def field(start: int, stop: int) -> torch.Tensor:
        total = torch.zeros(stop - start, height, width, device=times.device)
        for (y, x), grid in zip(corners, grids, strict=True):
            total[:, y : y + crop[0], x : x + crop[1]] += _enlarge(grid[start:stop], crop)
        return total / times

    gh, gw = grids[0].shape[1:]
    return field, (max(1, round(height * gh / crop[0])), max(1, round(width * gw / crop[1])))


def _enlarge(values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """(columns, h, w) -> (columns, H, W), bilinear with half-pixel centres."""
    return bilinear(values[None], shape)[0]


def _classify(field: Field, shape: tuple[int, int], scale: float, plan: _Plan) -> NDArray[np.uint16]:
    """(H, W) classes; a few columns at a time are enlarged to (H, W)."""
    count = len(plan.words)
    step = max(1, _BUDGET // (4 * shape[0] * shape[1]))
    for start in range(0, count, step):
        logits = _enlarge(field(start, min(count, start + step)), shape) * scale
        value, index = logits.max(dim=0)
        partial = logits.logsumexp(dim=0) if plan.threshold is not None else value
        if start == 0:
            best, column, total = value, index, partial
            continue
        column = torch.where(value > best, index + start, column)
        best, total = torch.maximum(best, value), torch.logaddexp(total, partial)
    classes: NDArray[np.uint16] = plan.owners[column.cpu().numpy()].astype(np.uint16)
    if plan.threshold is not None and plan.background is not None:
        classes[((best - total).exp() < plan.threshold).cpu().numpy()] = plan.background
    return classes


def _shares(field: Field, grid: tuple[int, int], scale: float, plan: _Plan) -> NDArray[np.float32]:
    """(T, gh, gw) probabilities; of the words that stay apart in the softmax the best one counts."""
    columns = (_enlarge(field(0, len(plan.words)), grid) * scale).softmax(dim=0).clamp(0, 1).cpu().numpy()
    probabilities = np.zeros((len(plan.labels), *grid), np.float32)
    np.maximum.at(probabilities, plan.owners, columns)
    return probabilities
