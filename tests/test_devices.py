from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "cpu:-2", "meta", "xla"])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(InputError, match="device"):
        pick_device(device)


@pytest.mark.parametrize("device", [0, 1.5, b"cpu", ["cpu"]])
def test_devices_of_another_type(device: Any) -> None:
    with pytest.raises(InputError, match=type(device).__name__):
        pick_device(device)


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_device_order(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: int, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick_device() == torch.device(expected)
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    for kind, count in (("cuda", cuda), ("mps", mps)):
        if count:
            assert pick_device(kind) == torch.device(kind)
            assert pick_device(f"{kind}:0") == torch.device(kind, 0)
            with pytest.raises(InputError, match="which has 1"):
                pick_device(f"{kind}:1")
        else:
            with pytest.raises(InputError, match="not on this machine"):
                pick_device(kind)


def test_dtypes() -> None:
    assert check_dtype(None, "cpu") == check_dtype("float32", "cpu") == check_dtype(torch.float32, "cuda") == torch.float32
    assert check_dtype("float16", "cuda:0") == check_dtype(torch.float16, torch.device("mps")) == torch.float16
    assert check_dtype("torch.bfloat16", "cuda") == torch.bfloat16
    assert check_dtype("bfloat16", "cpu") == torch.bfloat16
    for half in ("float16", torch.float16):
        with pytest.raises(InputError, match="float32, or bfloat16"):
            check_dtype(half, "cpu")
    for wrong in ("half", "int8", torch.float64, 16, np.float32):
        with pytest.raises(InputError, match="dtype"):
            check_dtype(wrong, "cuda")  # type: ignore[arg-type]
