"""The values that travel through text2sam: frozen, validated, NumPy only.

Frames: arrays are (row, column), point coordinates and boxes are (x, y) in pixels of the image as a
person sees it (EXIF rotation applied), the origin at the top left corner.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError


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

    Raises:
        InputError: shapes, dtypes or labels are not those above, or a coordinate is not finite.
    """

    coords: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        c, n = self.coords, self.labels
        ok = isinstance(c, np.ndarray) and c.ndim == 2 and c.shape[1] == 2 and c.dtype == np.float32
        _require(ok, f"coords must be a float32 array of shape (N, 2), not {_describe(c)}")
        _require(bool(np.isfinite(c).all()), "coords must be finite")
        ok = isinstance(n, np.ndarray) and n.shape == (len(c),) and n.dtype == np.uint8
        _require(ok, f"labels must be a uint8 array of shape ({len(c)},), not {_describe(n)}")
        _require(bool((n <= 1).all()), f"labels are 1 (on the object) or 0 (off it), not {sorted(set(n.tolist()))}")

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


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """How similar each patch of an image is to a text.

    Attributes:
        values: (gh, gw) float32, one value per patch, before min-max: the scale is kept.
        text: the text it belongs to.
        method: how it was made, see :data:`text2sam.clip.attention.METHODS` and
            :func:`text2sam.lab.activation.class_activation`.

    Raises:
        InputError: ``values`` is not a finite, non-empty float32 array with two axes.
    """

    values: NDArray[np.float32]
    text: str = ""
    method: str = "surgery"

    def __post_init__(self) -> None:
        v = self.values
        ok = isinstance(v, np.ndarray) and v.ndim == 2 and v.size > 0 and v.dtype == np.float32
        _require(ok, f"values must be a non-empty float32 array of shape (gh, gw), not {_describe(v)}")
        _require(bool(np.isfinite(v).all()), "values must be finite")

    @property
    def flat(self) -> bool:
        """True when every patch has the same value, so that the map points nowhere."""
        return bool(self.values.min() == self.values.max())

    def normalized(self) -> NDArray[np.float32]:
        """(gh, gw) float32 in [0, 1] by min-max; a flat map is all 0."""
        low, high = self.values.min(), self.values.max()
        if low == high:
            return np.zeros_like(self.values)
        scaled: NDArray[np.float32] = ((self.values - low) / (high - low)).astype(np.float32)
        return scaled

    def to_image(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """The min-max map over the image.

        Args:
            shape: (H, W) in pixels.

        Returns:
            (H, W) float32 in [0, 1]: bilinear, half-pixel centres (``align_corners=False``).
        """
        h, w = check_shape(shape)
        import torch

        grid = torch.from_numpy(self.normalized())[None, None]
        image = torch.nn.functional.interpolate(grid, (h, w), mode="bilinear", align_corners=False)[0, 0]
        return image.clamp_(0, 1).numpy()  # rounding leaves the range by a bit

    def peak(self, shape: Sequence[int]) -> tuple[float, float]:
        """(x, y) pixel coordinates, in an image of ``shape`` (H, W), of the centre of the hottest patch."""
        h, w = check_shape(shape)
        gh, gw = self.values.shape
        row, column = divmod(int(self.values.argmax()), gw)
        return (column + 0.5) * w / gw, (row + 0.5) * h / gh


@dataclass(frozen=True, eq=False)
class Candidates:
    """The masks SAM offered for one object, and which one was taken.

    The answers to the prompt come first, then, where there was refinement, the mask of each round.

    Attributes:
        masks: (M, H, W) bool.
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
        m, s, low = self.masks, self.scores, self.low_res_logits
        ok = isinstance(m, np.ndarray) and m.ndim == 3 and len(m) > 0 and m.dtype == np.bool_
        _require(ok, f"masks must be a bool array of shape (M, H, W), not {_describe(m)}")
        for name, value in {"scores": s, **self.figures}.items():
            ok = isinstance(value, np.ndarray) and value.shape == (len(m),) and value.dtype == np.float32
            _require(ok, f"{name} must be a float32 array of shape ({len(m)},), not {_describe(value)}")
        ok = isinstance(low, np.ndarray) and low.ndim == 3 and len(low) == len(m) and low.dtype == np.float32
        _require(ok, f"low_res_logits must be a float32 array of shape ({len(m)}, h, w), not {_describe(low)}")
        ok = isinstance(self.chosen, (int, np.integer)) and 0 <= self.chosen < len(m)
        _require(ok, f"chosen must be an int in [0, {len(m)}), not {self.chosen!r}")

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What ``TextPromptedSAM.segment`` returns.

    Attributes:
        mask: (H, W) bool.
        score: float in [0, 1], how good the mask is thought to be (0 where there is none): by ``strategy="paper"`` SAM's own
            estimate, by ``"objects"`` the candidate's total times ``presence``; of several objects the best one's.
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
        zoomed: (4,) float32 xyxy in pixels of the image, the crop that was looked at more closely; None where none was.
        looked_for: the texts behind ``text``: synonyms, or joined texts; empty when it is ``text`` alone.
        excluded: the texts whose places were to be avoided.

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
    zoomed: NDArray[np.float32] | None = None
    looked_for: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        m = self.mask
        ok = isinstance(m, np.ndarray) and m.ndim == 2 and m.dtype == np.bool_
        _require(ok, f"mask must be a bool array of shape (H, W), not {_describe(m)}")
        for name, value in (("score", self.score), ("presence", self.presence), ("threshold", self.threshold)):
            ok = isinstance(value, (int, float, np.number)) and bool(0.0 <= value <= 1.0)
            _require(ok, f"{name} must be a number in [0, 1], not {value!r}")
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
        ok = c is None or (isinstance(c, Candidates) and c.masks.shape[1:] == m.shape)
        _require(ok, f"candidates must be Candidates with masks of shape {m.shape} or None, not {type(c).__name__}")
        _require(isinstance(self.text, str) and isinstance(self.strategy, str), "text and strategy must be strings")
        z = self.zoomed
        ok = z is None or (isinstance(z, np.ndarray) and z.shape == (4,) and z.dtype == np.float32)
        _require(ok, f"zoomed must be a float32 array of shape (4,) or None, not {_describe(z)}")
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
        _require(all(o.mask.shape == self.mask.shape for o in self.objects), "the masks of objects must have the mask's shape")
        union = np.logical_or.reduce([o.mask for o in self.objects])
        _require(bool((union == self.mask).all()), "mask is not the union of the masks of objects")

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return int(self.mask.sum())

    @property
    def instances(self) -> tuple[Segmentation, ...]:
        """One result per object, highest score first: ``objects``, else the result itself; none where the mask is empty."""
        return self.objects or (() if self.box is None else (self,))

    def explain(self) -> dict[str, Any]:
        """Everything behind the result, in JSON's types; :func:`text2sam.plot.explain` draws it.

        Returns:
            A dictionary of plain numbers, strings, lists and dictionaries. What is not finite is None. Its keys:

            - ``text``, ``looked_for``, ``excluded``, ``strategy``, ``present``, ``presence``, ``threshold``, ``score``,
              ``area`` (pixels), ``box`` and ``zoomed`` (xyxy in pixels, or None) as the attributes; ``shape``: [H, W].
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
            "zoomed": None if self.zoomed is None else [_finite(v) for v in self.zoomed],
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
            "candidates": [] if offered is None else [_candidate(offered, index) for index in range(len(offered))],
            "reason": None if offered is None else offered.reason,
            "objects": [one.explain() for one in self.objects],
        }


def _candidate(offered: Candidates, index: int) -> dict[str, Any]:
    """One mask of ``Segmentation.explain``."""
    mask = offered.masks[index]
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
    (h, w), (gh, gw) = shape, values.shape
    along = np.clip((coords.astype(np.float64) + 0.5) * (gw / w, gh / h) - 0.5, 0, (gw - 1, gh - 1))  # (N, 2), in patches
    x0, y0 = np.floor(along).astype(np.intp).T
    x1, y1 = np.minimum(x0 + 1, gw - 1), np.minimum(y0 + 1, gh - 1)
    x, y = along[:, 0] - x0, along[:, 1] - y0
    above = values[y0, x0] * (1 - x) + values[y0, x1] * x
    below = values[y1, x0] * (1 - x) + values[y1, x1] * x
    heat: NDArray[np.float64] = above * (1 - y) + below * y
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


def check_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(H, W) as two positive ints.

    Raises:
        InputError: it is anything else.
    """
    try:
        h, w = (operator.index(v) for v in shape)
    except (TypeError, ValueError):
        raise InputError(f"shape must be (H, W) in pixels, not {shape!r}") from None
    _require(h > 0 and w > 0, f"shape must be (H, W) with both at least 1, not {shape!r}")
    return h, w
