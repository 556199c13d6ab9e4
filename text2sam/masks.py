"""Masks that are kept in little memory, and made when they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, eq=False)
class LogitMasks:
    """SAM's masks of an image, as its low-resolution logits. Indexed, or as an array, they are bool masks of the image's size.

    Attributes:
        logits: (M, h, w) float32.
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
    ndim = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, H, W)."""
        return len(self.logits), *self.size

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        return self._made(self.logits[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._made(self.logits).astype(dtype or np.bool_, copy=False)

    def within(self, side: int) -> NDArray[np.bool_]:
        """(M, h, w) bool: masks of the image shrunk to a longer side of at most so many pixels."""
        share = min(1.0, side / max(self.size))
        height, width = (max(1, round(length * share)) for length in self.size)
        return np.asarray(replace(self, size=(height, width)))

    def _made(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        import torch

        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            made = upsampled(torch.from_numpy(logits), self.side, self.filled, self.size, self.threshold)
        masks: NDArray[np.bool_] = made.numpy()
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

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        return unroll(self.runs[index], (self.shape[-2], self.shape[-1]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.stack([self[k] for k in range(len(self.runs))]).reshape(self.shape).astype(dtype or np.bool_, copy=False)


Masks: TypeAlias = NDArray[np.bool_] | LogitMasks
"""(M, H, W) bool; an index makes one of them."""


def joined(parts: Sequence[Masks]) -> Masks:
    """The masks of several answers about one image."""
    lazy = [part for part in parts if isinstance(part, LogitMasks)]
    if len(lazy) == len(parts):
        return replace(lazy[0], logits=np.concatenate([part.logits for part in lazy]))
    masks: NDArray[np.bool_] = np.concatenate([np.asarray(part) for part in parts])
    return masks


class _Kept:
    """A field of masks that may be kept as :class:`LogitMasks` or :class:`RunMasks`, and is always given as an array."""

    def __init__(self, name: str) -> None:
        self._name = f"_{name}_kept"

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name]
        return np.asarray(value) if isinstance(value, (LogitMasks, RunMasks)) else value


def keeps(name: str) -> Callable[[type[_T]], type[_T]]:
    """Makes a field of a dataclass one in which bool masks (..., H, W) may be kept in less memory."""

    def decorate(cls: type[_T]) -> type[_T]:
        setattr(cls, name, _Kept(name))
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


def upsampled(logits: Tensor, side: int, filled: tuple[int, int], shape: tuple[int, int], threshold: float = 0.0) -> Tensor:
    """Masks in the image's size, as ``Sam.postprocess_masks`` and a threshold make them.

    SAM upsamples its logits to its square input, cuts the padding off and resizes to the image, both times bilinearly. Together
    this is linear, with one matrix for rows and one for columns that have few entries other than 0.

    Args:
        logits: (..., h, w) float32.
        side, filled, shape, threshold: as :class:`LogitMasks` has them; ``shape`` is its ``size``.

    Returns:
        (..., H, W) bool.
    """
    import torch

    (h, w), (height, width) = logits.shape[-2:], shape
    down = _resampling(h, side, filled[0], height)
    across = _resampling(w, side, filled[1], width)
    columns = logits @ across.T  # (..., h, W)
    masks = torch.empty(*logits.shape[:-2], height, width, dtype=torch.bool)
    for top in range(0, height, _BLOCK):
        some = down[top : top + _BLOCK]
        used = some.any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        torch.gt(some[:, first:last] @ columns[..., first:last, :], threshold, out=masks[..., top : top + _BLOCK, :])
    return masks


@functools.lru_cache(maxsize=32)
def _resampling(places: int, side: int, filled: int, length: int) -> Tensor:
    """(length, places): the share that each pixel takes from each place of the logits."""
    import torch
    from torch.nn.functional import interpolate

    unit = torch.eye(places, dtype=torch.float32)[None]
    large = interpolate(unit, size=side, mode="linear", align_corners=False)[..., :filled]
    return interpolate(large, size=length, mode="linear", align_corners=False)[0].T.contiguous()
