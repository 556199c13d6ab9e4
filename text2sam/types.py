"""The values that travel through text2sam: frozen, validated, NumPy only.

Frames: arrays are (row, column), point coordinates and boxes are (x, y) in pixels of the image as a
person sees it (EXIF rotation applied), the origin at the top left corner.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from text2sam.checks import check_number, check_shape
from text2sam.errors import InputError
from text2sam.files import write_png
from text2sam.masks import LogitMasks, keeps, kept, pack
from text2sam.paint import overlay

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from text2sam.image import ImageLike, ReadOptions

NOISE = 1e-5
"""A map whose range is below this share of its magnitude is flat: float32 rounding alone leaves such a range."""


def noise_of(dtype: torch.dtype) -> float:
    """The share of a magnitude below which a range of numbers of a dtype is rounding noise."""
    import torch

    return max(NOISE, 2 * torch.finfo(dtype).eps)


def min_max(values: torch.Tensor, dim: int | tuple[int, ...] = (), magnitude: float = 0.0) -> torch.Tensor:
    """Values brought to [0, 1].

    Args:
        values: finite numbers of any shape, not empty.
        dim: the axes that are brought to [0, 1] together; () is all of them.
        magnitude: of the numbers that ``values`` was computed from, where that is above the magnitude of ``values``.

    Returns:
        The same shape and dtype; 0 where the range is below :func:`noise_of` times the magnitude.
    """
    low, high = values.amin(dim, keepdim=True), values.amax(dim, keepdim=True)
    span = high - low
    flat = ~(span > noise_of(values.dtype) * low.abs().maximum(high.abs()).clamp(min=magnitude))
    return ((values - low) / span.masked_fill(flat, 1)).masked_fill(flat, 0)


def bilinear(maps: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(B, C, h, w) -> (B, C, H, W), bilinear with half-pixel centres (``align_corners=False``)."""
    import torch

    return torch.nn.functional.interpolate(maps, tuple(shape), mode="bilinear", align_corners=False)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise InputError(what)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    if dataclasses.is_dataclass(value):  # the repr would print whole arrays
        return type(value).__name__
    return f"{type(value).__name__} {value!r}"


@dataclass(frozen=True, eq=False)
class PointPrompts:
    """Point prompts for SAM.

    Attributes:
        coords: (N, 2) float32, (x, y) in pixels of the image.
        labels: (N,) uint8, 1 on the object, 0 off it.

    Lists and arrays of other number types are converted.

    Raises:
        InputError: shapes or labels are not those above, or a coordinate is not a finite number.
    """

    coords: NDArray[np.float32]
    labels: NDArray[np.uint8]

    if TYPE_CHECKING:

        def __init__(self, coords: ArrayLike, labels: ArrayLike) -> None: ...

    def __post_init__(self) -> None:
        try:
            coords, labels = np.asarray(self.coords), np.asarray(self.labels)
            coords = coords.reshape(0, 2) if coords.shape == (0,) else coords
            numbers = coords.dtype.kind in "fiu" and (labels.dtype.kind in "fiub" or not labels.size)
        except ValueError:
            numbers = False
        _require(
            numbers, f"coords and labels must be arrays of numbers, not {_describe(self.coords)} and {_describe(self.labels)}"
        )
        ok = coords.ndim == 2 and coords.shape[1] == 2
        _require(ok, f"coords must be of shape (N, 2), not {_describe(self.coords)}")
        with np.errstate(over="ignore"):
            coords = coords.astype(np.float32, copy=False)
        _require(bool(np.isfinite(coords).all()), "coords must be finite")
        _require(labels.shape == (len(coords),), f"labels must be of shape ({len(coords)},), not {_describe(self.labels)}")
        wrong = sorted(set(labels.tolist()) - {0, 1})
        _require(not wrong, f"labels are 1 (on the object) or 0 (off it), not {wrong}")
        object.__setattr__(self, "coords", coords)
        object.__setattr__(self, "labels", labels.astype(np.uint8, copy=False))

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def positive(self) -> NDArray[np.float32]:
        """(P, 2) float32, the points on the object."""
        return self.coords[np.flatnonzero(self.labels == 1)]

    @property
    def negative(self) -> NDArray[np.float32]:
        """(Q, 2) float32, the points off it."""
        return self.coords[np.flatnonzero(self.labels == 0)]

    @classmethod
    def empty(cls) -> PointPrompts:
        """No points at all."""
        return cls(np.zeros((0, 2), np.float32), np.zeros(0, np.uint8))

    @classmethod
    def joined(cls, parts: Iterable[PointPrompts]) -> PointPrompts:
        """The points of several prompts, in order."""
        every = [cls.empty(), *parts]
        return cls(np.concatenate([part.coords for part in every]), np.concatenate([part.labels for part in every]))


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityMap:
    """How similar each patch of an image is to a text.

    Attributes:
        values: (gh, gw) float32, one value per patch, before min-max: the scale is kept.
        text: the text it belongs to.
        method: how it was made, see :data:`text2sam.clip.attention.METHODS`.

    Raises:
        InputError: ``values`` is not a finite, non-empty float32 array with two axes.
    """

    values: NDArray[np.float32]
    text: str = ""
    method: str = "surgery"

    def __post_init__(self) -> None:
        v = self.values
        ok = isinstance(v, np.ndarray) and v.ndim == 2 and v.size > 0 and v.dtype == np.float32
        _require(ok, f"SimilarityMap: values must be a non-empty float32 array of shape (gh, gw), not {_describe(v)}")
        _require(bool(np.isfinite(v).all()), "SimilarityMap: values must be finite, not NaN or infinite")

    def __repr__(self) -> str:
        gh, gw = self.values.shape
        span = f"{self.values.min():.3g} to {self.values.max():.3g}"
        return f"<SimilarityMap {self.text!r}: {gw} x {gh} patches, {span}, {self.method}>"

    @property
    def flat(self) -> bool:
        """True when the range of the values is rounding noise (:data:`NOISE`), so that the map points nowhere."""
        return not self.normalized().any()

    def normalized(self) -> NDArray[np.float32]:
        """(gh, gw) float32 in [0, 1] by :func:`min_max`; a flat map is all 0."""
        import torch

        return min_max(torch.from_numpy(self.values.copy())).numpy()

    def to_image(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """The min-max map over the image.

        Args:
            shape: (H, W) in pixels.

        Returns:
            (H, W) float32 in [0, 1]: bilinear, half-pixel centres (``align_corners=False``).
        """
        h, w = check_shape(shape)
        import torch

        image = bilinear(torch.from_numpy(self.normalized())[None, None], (h, w))[0, 0]
        return image.clamp_(0, 1).numpy()  # rounding leaves the range by a bit

    def peak(self, shape: Sequence[int]) -> tuple[float, float]:
        """(x, y) pixel coordinates, in an image of ``shape`` (H, W), of the centre of the hottest patch."""
        h, w = check_shape(shape)
        gh, gw = self.values.shape
        row, column = divmod(int(self.values.argmax()), gw)
        return (column + 0.5) * w / gw, (row + 0.5) * h / gh


@keeps("masks")
@dataclass(frozen=True, eq=False, repr=False)
class Candidates:
    """The masks SAM offered for one object, and which one was taken.

    Attributes:
        masks: (M, H, W) bool; kept as run lengths, or as the logits they are made of, and made anew when they are asked for.
        scores: (M,) float32, SAM's own estimate of each mask's IoU.
        low_res_logits: (M, h, w) float32 as ``SamPredictor.predict`` returns them.
        chosen: index of the mask that was taken.
        reason: why, in words.
        figures: further figures of each mask by name, each (M,) float32.

    Raises:
        InputError: shapes or dtypes are not those above, or ``chosen`` is out of range.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    low_res_logits: NDArray[np.float32]
    chosen: int
    reason: str
    figures: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        m, s, low = kept(self, "masks"), self.scores, self.low_res_logits
        ok = isinstance(m, (np.ndarray, LogitMasks)) and len(m.shape) == 3 and len(m) > 0 and m.dtype == np.bool_
        _require(ok, f"masks must be a bool array of shape (M, H, W), not {_describe(m)}")
        for name, value in {"scores": s, **self.figures}.items():
            ok = isinstance(value, np.ndarray) and value.shape == (len(m),) and value.dtype == np.float32
            _require(ok, f"{name} must be a float32 array of shape ({len(m)},), not {_describe(value)}")
        ok = isinstance(low, np.ndarray) and low.ndim == 3 and len(low) == len(m) and low.dtype == np.float32
        _require(ok, f"low_res_logits must be a float32 array of shape ({len(m)}, h, w), not {_describe(low)}")
        ok = isinstance(self.chosen, (int, np.integer)) and 0 <= self.chosen < len(m)
        _require(ok, f"chosen must be an int in [0, {len(m)}), not {self.chosen!r}")
        pack(self, "masks")

    def __repr__(self) -> str:
        scores = ", ".join(f"{score:.2f}" for score in self.scores)
        return f"<Candidates: {len(self)} masks, scores {scores}, chosen {self.chosen}: {self.reason}>"

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the masks."""
        h, w = kept(self, "masks").shape[-2:]
        return h, w


@keeps("mask")
@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """What ``TextPromptedSAM.segment`` returns.

    Attributes:
        mask: (H, W) bool.
        score: float in [0, 1], the expected quality of the mask, 0 for an empty mask. With ``strategy="paper"`` SAM's own
            estimate of the IoU; with ``"objects"`` the total of the chosen candidate times ``presence``. Of several objects,
            the highest score.
        box: (4,) float32 xyxy in pixels, the mask's bounding box with exclusive right and lower edge;
            None when the mask is empty.
        points: the prompts sent to SAM.
        similarity: the similarity map the points came from.
        candidates: the masks SAM offered; None when it was not asked.
        text: the text, or the name its synonyms go by.
        present: whether the text is in the image at all: ``presence`` reaches ``threshold``, and there is a mask.
        presence: float in [0, 1], the score behind it.
        strategy: name of the recipe that made it.
        threshold: float in [0, 1], what ``presence`` was held against.
        objects: one result per object where ``mask`` is the union of several objects' masks, highest score first; empty for
            a result that is one object itself, and where there is none.
        looked_for: the texts behind ``text``: synonyms, or joined texts; empty when it is ``text`` alone.
        excluded: the texts whose places were to be avoided.
        thumbnail: (h, w, 3) uint8 RGB, a small copy of the image for notebooks, or None.

    Masks of ``objects`` and of ``candidates`` are kept as run lengths and made anew when they are asked for.

    Raises:
        InputError: a field is not of the kind above, ``box`` contradicts ``mask``, ``objects`` are not what the mask
            is made of, or ``present`` contradicts ``presence`` or the mask.
    """

    mask: NDArray[np.bool_]
    score: float
    box: NDArray[np.float32] | None
    points: PointPrompts
    similarity: SimilarityMap
    candidates: Candidates | None
    text: str
    present: bool
    presence: float
    strategy: str = "paper"
    threshold: float = 0.0
    objects: tuple[Segmentation, ...] = ()
    looked_for: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    thumbnail: NDArray[np.uint8] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        m = self.mask
        ok = isinstance(m, np.ndarray) and m.ndim == 2 and m.dtype == np.bool_
        _require(ok, f"mask must be a bool array of shape (H, W), not {_describe(m)}")
        for name in ("score", "presence", "threshold"):
            check_number(name, getattr(self, name), 0, 1)
        box = box_of(m)
        if self.box is None or box is None:
            _require(self.box is None, "box is given although the mask is empty")
            _require(box is None, "box is None although the mask is not empty")
        else:
            ok = isinstance(self.box, np.ndarray) and self.box.shape == (4,) and self.box.dtype == np.float32
            _require(ok, f"box must be a float32 array of shape (4,), not {_describe(self.box)}")
            _require(bool((self.box == box).all()), f"box {self.box.tolist()} is not the mask's, {box.tolist()}")
        _require(isinstance(self.points, PointPrompts), f"points must be PointPrompts, not {_describe(self.points)}")
        _require(
            isinstance(self.similarity, SimilarityMap), f"similarity must be a SimilarityMap, not {_describe(self.similarity)}"
        )
        c = self.candidates
        ok = c is None or (isinstance(c, Candidates) and c.shape == m.shape)
        _require(ok, f"candidates must be Candidates with masks of shape {m.shape} or None, not {type(c).__name__}")
        _require(isinstance(self.text, str) and isinstance(self.strategy, str), "text and strategy must be strings")
        small = self.thumbnail
        ok = small is None or (isinstance(small, np.ndarray) and small.ndim == 3 and small.dtype == np.uint8)
        _require(ok, f"thumbnail must be a uint8 array of shape (h, w, 3) or None, not {_describe(small)}")
        for name, texts in (("looked_for", self.looked_for), ("excluded", self.excluded)):
            ok = isinstance(texts, tuple) and all(isinstance(text, str) for text in texts)
            _require(ok, f"{name} must be a tuple of strings, not {_describe(texts)}")
        ok = not self.present or (self.presence >= self.threshold and box is not None)
        _require(ok, f"present is given although presence {self.presence} is below {self.threshold}, or the mask is empty")
        self._check_objects()

    def _check_objects(self) -> None:
        ok = isinstance(self.objects, tuple) and all(isinstance(o, Segmentation) for o in self.objects)
        _require(ok, "objects must be a tuple of Segmentation")
        if not self.objects:
            return
        union = np.zeros(self.mask.shape, np.bool_)
        for part in self.objects:
            mask = part.mask
            _require(mask.shape == union.shape, "the masks of objects must have the mask's shape")
            union |= mask
            pack(part, "mask")
        _require(bool((union == self.mask).all()), "mask is not the union of the masks of objects")

    def __repr__(self) -> str:
        h, w = self.mask.shape
        state = f"{len(self.instances)} object{'s'[: len(self.instances) != 1]}" if self.present else "not here"
        box = "" if self.box is None else f", score {self.score:.2f}, box {[round(float(v)) for v in self.box]}"
        return f"<Segmentation {self.text!r}: {state}, presence {self.presence:.2f}{box}, image {w} x {h}>"

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return int(self.mask.sum())

    @property
    def instances(self) -> tuple[Segmentation, ...]:
        """One result per object, highest score first: ``objects``, else the result itself; none where the mask is empty."""
        return self.objects or (() if self.box is None else (self,))

    def overlay(self, image: ImageLike, **reading: Unpack[ReadOptions]) -> NDArray[np.uint8]:
        """The objects and the points over the image.

        Args:
            image: the image that was segmented, as :func:`text2sam.image.read_image` accepts it.
            **reading: how it is read: ``channel_order``, ``value_range``, ``page``, ``max_pixels``.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ImageError: the image cannot be read.
            InputError: it is of another size, or an option is not usable.
        """
        from text2sam.image import read_image

        pixels = read_image(image, **reading)
        _require(pixels.shape[:2] == self.mask.shape, f"the image is {pixels.shape[:2]}, the mask {self.mask.shape}")
        masks = [part.mask for part in self.instances]
        return overlay(pixels, masks, points=self.points.coords, labels=self.points.labels)

    def save(self, path: str | os.PathLike[str], image: ImageLike | None = None, **reading: Unpack[ReadOptions]) -> Path:
        """Writes a PNG file, whole or not at all.

        Args:
            path: the file, named ``.png``.
            image: the image that was segmented. The file then is its :meth:`overlay`; without it the file is the mask, 255
                on the object and 0 off it.
            **reading: as for :meth:`overlay`.

        Returns:
            ``path`` as a ``Path``.

        Raises:
            OutputError: the file cannot be written.
            ImageError, InputError: as :meth:`overlay`, or the file is not named ``.png``.
        """
        ok = isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() == ".png"
        _require(ok, f"save writes a PNG file, whose path ends in .png, not {path!r}")
        return write_png(path, self.mask if image is None else self.overlay(image, **reading))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the objects over a small copy of the image; None without that copy."""
        if self.thumbnail is None:
            return None
        from PIL import Image

        (h, w), (th, tw) = self.mask.shape, self.thumbnail.shape[:2]
        rows, columns = ((np.arange(th) * h) // th, (np.arange(tw) * w) // tw)
        masks = [part.mask[rows][:, columns] for part in self.instances]
        points = self.points.coords * np.array([tw / w, th / h], np.float32)
        buffer = io.BytesIO()
        Image.fromarray(overlay(self.thumbnail, masks, points=points, labels=self.points.labels)).save(buffer, "PNG")
        return buffer.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Everything behind the result but the masks, in JSON's types.

        Returns:
            A dictionary of plain numbers, strings, lists and dictionaries. What is not finite is None. Its keys:

            - ``text``, ``looked_for``, ``excluded``, ``strategy``, ``present``, ``presence``, ``threshold``, ``score``,
              ``area`` (pixels), ``box`` (xyxy in pixels, or None) as the attributes; ``shape``: [H, W].
            - ``points``: ``coords`` ([x, y] in pixels), ``labels`` (1 or 0), and ``heat``, the min-max map's value in
              [0, 1] under each point (that of :meth:`SimilarityMap.to_image`).
            - ``map``: ``text``, ``method``, ``grid`` ([gh, gw]), ``lowest``, ``highest`` and ``mean`` before min-max,
              ``peak`` ([x, y] in pixels).
            - ``candidates``: for each mask ``score``, ``area``, ``box``, ``figures`` (by name), ``chosen``; empty when SAM
              was not asked.
            - ``reason``: why that candidate, in words; None without candidates.
            - ``objects``: the same dictionary for each object of a union.

        Raises:
            InputError: the mask has no pixels.
        """
        shape = check_shape(self.mask.shape)
        values, offered = self.similarity.values, self.candidates
        masks = () if offered is None else enumerate(offered.masks)
        return {
            "text": self.text,
            "looked_for": list(self.looked_for),
            "excluded": list(self.excluded),
            "strategy": self.strategy,
            "present": bool(self.present),
            "presence": float(self.presence),
            "threshold": float(self.threshold),
            "score": float(self.score),
            "area": self.area,
            "box": None if self.box is None else self.box.tolist(),
            "shape": list(shape),
            "points": {
                "coords": self.points.coords.tolist(),
                "labels": self.points.labels.tolist(),
                "heat": _bilinear(self.similarity.normalized(), self.points.coords, shape).tolist(),
            },
            "map": {
                "text": self.similarity.text,
                "method": self.similarity.method,
                "grid": list(values.shape),
                "lowest": float(values.min()),
                "highest": float(values.max()),
                "mean": float(values.mean(dtype=np.float64)),
                "peak": list(self.similarity.peak(shape)),
            },
            "candidates": [_candidate(offered, index, mask) for index, mask in masks] if offered else [],
            "reason": None if offered is None else offered.reason,
            "objects": [part.to_json() for part in self.objects],
        }


def _candidate(offered: Candidates, index: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """One mask of ``Segmentation.to_json``."""
    box = box_of(mask)
    return {
        "score": _finite(offered.scores[index]),
        "area": int(mask.sum()),
        "box": None if box is None else box.tolist(),
        "figures": {name: _finite(values[index]) for name, values in offered.figures.items()},
        "chosen": bool(index == offered.chosen),
    }


def _finite(value: Any) -> float | None:
    """A number JSON can hold, or None."""
    return float(value) if np.isfinite(value) else None


def _bilinear(values: NDArray[np.float32], coords: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float64]:
    """(N,): a (gh, gw) grid at (N, 2) pixel coordinates of an image (H, W), as ``SimilarityMap.to_image`` has it there."""
    from scipy.ndimage import map_coordinates

    (h, w), (gh, gw) = shape, values.shape
    x, y = np.clip((coords.astype(np.float64) + 0.5) * (gw / w, gh / h) - 0.5, 0, (gw - 1, gh - 1)).T  # in patches
    heat: NDArray[np.float64] = map_coordinates(values.astype(np.float64), (y, x), order=1)
    return heat


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Bounding box of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        (4,) float32 xyxy in pixels, right and lower edge exclusive (a single pixel at (3, 2) gives
        3, 2, 4, 3); None when the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
