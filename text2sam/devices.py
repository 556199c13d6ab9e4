"""The device and the number format that a model runs on; no global setting is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from text2sam.errors import InputError

if TYPE_CHECKING:
    import torch

_KINDS = ("cuda", "mps", "cpu")
_DTYPES = ("float32", "float16", "bfloat16")


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device to run on.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` or a ``torch.device`` of these kinds; None takes the first
            available of cuda, mps, cpu.

    Raises:
        InputError: the name is unknown, or this machine has no such device.
    """
    import torch

    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if device is None:
        return torch.device(next(kind for kind in _KINDS if available[kind]()))
    if not isinstance(device, (str, torch.device)):
        raise InputError(f"device must be a name, a torch.device or None, not {type(device).__name__} {device!r}")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in _KINDS:
        raise InputError(f"device {str(device)!r} is not known; give 'cuda', 'cuda:N', 'mps', 'cpu' or None")
    if not available[chosen.type]():
        raise InputError(f"device {str(device)!r} is not on this machine; None takes an available one")
    count = torch.cuda.device_count() if chosen.type == "cuda" else 1
    if chosen.index is not None and chosen.index >= count:
        raise InputError(f"device {str(device)!r} is not on this machine, which has {count} of kind {chosen.type!r}")
    return chosen


def check_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """The number format of a model's weights on ``device``.

    Args:
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or the ``torch.dtype``; None is float32.
        device: the model's device. float16 is for cuda and mps. bfloat16 is fast on CPUs with AMX, and may be slower than
            float32 on others.

    Raises:
        InputError: another format, or float16 on the CPU.
    """
    import torch

    if dtype is None:
        return torch.float32
    name = str(dtype).removeprefix("torch.")
    if not isinstance(dtype, (str, torch.dtype)) or name not in _DTYPES:
        raise InputError(f"dtype must be one of {', '.join(_DTYPES)} or None, not {dtype!r}")
    kind = torch.device(device).type
    if name == "float16" and kind == "cpu":
        raise InputError("dtype float16 is for cuda and mps; on the CPU use float32, or bfloat16 where it has AMX")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports a lack of memory: Python's, a GPU's, or torch's CPU allocator's."""
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message)
