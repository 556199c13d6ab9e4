"""Writes the weights that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from text2sam.files import write_bytes, write_json
from text2sam.zoo.download import file_sha256
from text2sam.zoo.shipped import Shipped


def write_shipped(pair: Shipped, filename: str, content: bytes | Mapping[str, torch.Tensor], **more: Any) -> Path:
    """Writes a file of a pair and enters its SHA-256, and ``more``, in the record.

    Args:
        pair, filename: whose file it is, and its name.
        content: bytes; or tensors, which are written in half precision.
        **more: further entries of the record.

    Raises:
        ValueError: a tensor is not finite in half precision.
    """
    if not isinstance(content, bytes):
        halved = {name: t.half() if t.is_floating_point() else t for name, t in content.items()}
        for name, tensor in halved.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} does not fit half precision")
        content = bytes(save({name: t.contiguous() for name, t in halved.items()}))
    path = pair.folder / filename
    write_bytes(path, content)
    record_path = pair.folder / "record.json"
    record = pair.record() if record_path.exists() else {"sha256": {}}
    record["sha256"][filename] = file_sha256(path)
    write_json(record_path, record | more)
    return path
