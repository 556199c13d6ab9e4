"""Masks that are kept in little memory, and made when they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from text2sam.rle import roll, unroll

if TYPE_CHECKING:
    from torch import Tensor

_T = TypeVar("_T")
_BLOCK = 32
"""Rows of pixels that are upsampled at once."""
SPECKS = 0.01
"""The share of a mask below which an island of it, or a hole in it, is a speck."""


@dataclass(frozen=True, eq=False)
class LogitMasks:
    """SAM's masks of an image, as its low-resolution logits. Indexed, or as an array, they are bool masks of the image's size.

    These are the masks of ``Sam.postprocess_masks`` and a threshold. SAM upsamples its logits to its square input, cuts the
    padding off and resizes to the image, both times bilinearly. Together this is linear, with one matrix for rows and one for
    columns that have few entries other than 0.

    Attributes:
        logits: (..., h, w) float32.
        side: of SAM's square input, in pixels.
        filled: (H, W) in it that the image fills.
        size: (H, W) of the image in pixels.
        threshold: logits above it are on.
    """

    logits: NDArray[np.float32]
    side: int
    filled: tuple[int, int]
    size: tuple[int, int]
    threshold: float = 0.0

    dtype = np.dtype(np.bool_)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., H, W)."""
        return *self.logits.shape[:-2], *self.size

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        return np.asarray(single(self, index))

    @property
    def _matrices(self) -> list[Tensor]:
        sides = zip(self.logits.shape[-2:], self.filled, self.size, strict=True)
        return [_resampling(places, self.side, filled, length) for places, filled, length in sides]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.bool_]:
        import torch

        down, across = self._matrices
        masks = np.empty(self.shape, np.bool_)
        out = torch.from_numpy(masks)
        with torch.autocast("cpu", enabled=False):
            columns = torch.from_numpy(self.logits) @ across.T  # (..., h, W)
            for top in range(0, len(down), _BLOCK):
                some = down[top : top + _BLOCK]
                used = some.any(dim=0).nonzero()
                first, last = int(used[0]), int(used[-1]) + 1
                part = some[:, first:last] @ columns[..., first:last, :]
                torch.gt(part, self.threshold, out=out[..., top : top + _BLOCK, :])
        return masks


@dataclass(frozen=True, eq=False)
class RunMasks:
    """Masks as run lengths (:mod:`text2sam.rle`).

    Attributes:
        shape: (..., H, W).
        runs: of each mask.
    """

    shape: tuple[int, ...]
    runs: tuple[NDArray[np.uint32], ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        h, w = self.shape[-2:]
        return np.stack([unroll(lengths, (h, w)) for lengths in self.runs]).reshape(self.shape)


Masks: TypeAlias = NDArray[np.bool_] | LogitMasks
"""(M, H, W) bool; an index makes one of them."""


def single(masks: Masks, index: int) -> Masks:
    """One mask, (H, W), which need not be made yet."""
    return replace(masks, logits=masks.logits[index]) if isinstance(masks, LogitMasks) else masks[index]


def shrunk(masks: Masks, side: int) -> NDArray[np.bool_]:
    """(..., h, w) bool: masks of the image shrunk to a longer side of so many pixels; an array stays as it is."""
    if not isinstance(masks, LogitMasks):
        return masks
    height, width = (max(1, round(length * side / max(masks.size))) for length in masks.size)
    return np.asarray(replace(masks, size=(height, width)))


def without_specks(mask: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """A mask without islands and without holes that are smaller than a share of it.

    The largest island stays; what touches the border of the image is no hole. Holes are filled first, with the islands in them.

    Args:
        mask: (H, W) bool.
        share: in [0, 1].

    Returns:
        A new mask, or the same where it has no specks.
    """
    from skimage.measure import label

    box = tuple(slice(int(on[0]), int(on[-1]) + 1) for on in map(np.flatnonzero, (mask.any(1), mask.any(0))) if len(on))
    if not box:
        return mask
    inner, least = mask[box], share * mask.sum()

    labels = label(~inner, connectivity=1)
    sizes = np.bincount(labels.ravel())
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        sizes[edge] = mask.size
    sizes[0] = mask.size
    filled = inner | (sizes < least)[labels]  # with the islands in holes

    labels = label(filled, connectivity=2)
    sizes = np.bincount(labels.ravel())
    sizes[0] = mask.size
    filled &= ~(sizes < min(least, sizes[1:].max()))[labels]

    if np.array_equal(filled, inner):
        return mask
    clean = mask.copy()
    clean[box] = filled
    return clean


def values_at(masks: Masks, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.bool_]:
    """(..., N) bool: the masks at N pixels."""
    if not isinstance(masks, LogitMasks):
        return masks[..., rows, columns]
    down, across = masks._matrices
    values = (down[rows].numpy() @ masks.logits * across[columns].numpy()).sum(-1)  # (..., N)
    on: NDArray[np.bool_] = values > masks.threshold
    return on


class _Kept:
    """A field of masks that may be kept as :class:`LogitMasks` or :class:`RunMasks`, and is always given as an array."""

    def __init__(self, name: str, *, once: bool) -> None:
        self._name, self._once = f"_{name}_kept", once

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name]
        if isinstance(value, (LogitMasks, RunMasks)):
            value = np.asarray(value)
            if self._once:
                self.__set__(instance, value)
        return value


def keeps(name: str, *, once: bool = False) -> Callable[[type[_T]], type[_T]]:
    """Makes a field of a dataclass one that may keep bool masks (..., H, W) in less memory; with ``once`` until asked for."""

    def decorate(cls: type[_T]) -> type[_T]:
        setattr(cls, name, _Kept(name, once=once))
        return cls

    return decorate


def kept(instance: object, name: str) -> Any:
    """What a field of :func:`keeps` holds: an array, :class:`LogitMasks` or :class:`RunMasks`."""
    return instance.__dict__[f"_{name}_kept"]


def pack(instance: object, name: str) -> None:
    """Keeps the array in a field of :func:`keeps` as run lengths from here on."""
    value = kept(instance, name)
    if isinstance(value, np.ndarray) and value.size:
        runs = tuple(roll(mask).astype(np.uint32) for mask in value.reshape(-1, *value.shape[-2:]))
        instance.__dict__[f"_{name}_kept"] = RunMasks(value.shape, runs)


@functools.lru_cache(maxsize=32)
def _resampling(places: int, side: int, filled: int, length: int) -> Tensor:
    """(length, places): the share that each pixel takes from each place of the logits."""
    import torch
    from torch.nn.functional import interpolate

    unit = torch.eye(places, dtype=torch.float32, device="cpu")[None]
    large = interpolate(unit, size=side, mode="linear", align_corners=False)[..., :filled]
    return interpolate(large, size=length, mode="linear", align_corners=False)[0].T.contiguous()
