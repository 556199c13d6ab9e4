"""Image embeddings on disk: a second pass over the same images, with other labels, skips both image encoders."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.clip.attention import METHODS
from text2sam.errors import InputError, OutputError, warn
from text2sam.files import write_bytes
from text2sam.fingerprint import fingerprint
from text2sam.options import Options
from text2sam.pipeline import EncodedImage, TextPromptedSAM

# to be raised when the same pixels and weights give other embeddings, or the files have another content
_FORMAT = 5
_LARGEST_FILE = 1 << 30
_SETTINGS = {"transform"}
"""Attributes of a predictor that are no data and the same for every image."""
_CLIP = "clip."
_NEEDED = ("model", "device", "settings", "pack", "unpack")


class EmbeddingStore:
    """Image embeddings of CLIP and SAM in a folder.

    An entry is a safetensors file, ``KEY-HASH.safetensors``. The key is a hash of the image's pixels and of all that its
    embeddings depend on: weights and settings of both models, kind of attention, tiles. Labels, vocabulary and thresholds are
    no part of it. The hash is that of the file's own bytes: a file that is damaged, truncated or renamed counts as missing and
    is written anew. It shows damage, not malice: whoever can write to the folder can forge an entry.

    Entries are written whole or not at all, so several processes may share a folder. What is loaded is bitwise what was saved,
    and results are those of the first pass on the same device. An entry holds the tokens of CLIP, twice or three times, and
    SAM's features: 8 MB an image for ViT-B/16 at 512 and SAM.

    A folder that cannot be written never fails a run: there is one warning, and nothing more is written.

    Args:
        folder: where the entries lie; made when the first one is written.
        model: its weights must not change while the store is in use.
        options: ``method`` and ``tiles`` say how images are encoded, see :meth:`TextPromptedSAM.encode`.

    Attributes:
        counts: how many images were ``found`` in the store and how many ``made``, in this process.
        writable: whether everything could be written so far.

    Raises:
        InputError: ``folder`` is a file, or the model's generator cannot turn features into tensors and back.
    """

    def __init__(self, folder: str | os.PathLike[str], model: TextPromptedSAM, options: Options | None = None) -> None:
        missing = [name for name in _NEEDED if not hasattr(model.generator, name)]
        if missing:
            raise InputError(
                f"embeddings of a {type(model.generator).__name__} cannot be kept: it has no {missing[0]}; a ClipSurgery has"
            )
        try:
            self.folder = Path(folder)
            usable = self.folder.is_dir() or not self.folder.exists()
        except (TypeError, ValueError, OSError) as error:
            raise InputError(f"folder must be the path of a folder for embeddings, not {folder!r}: {error}") from error
        if not usable:
            raise InputError(f"embeddings are kept in a folder, and {os.fspath(folder)!r} is a file")
        options = options or Options()
        self._model = model
        self._kinds = {METHODS[options.method].tokens} - {"architecture", "raw"}  # which every image has
        self._prefix = repr((_FORMAT, sorted(self._kinds), options.tiles, *_parts(model))).encode()
        self.counts: Counter[str] = Counter()
        self.writable = True
        self._lock = threading.Lock()

    def count(self, *, writable: bool = True, **numbers: int) -> None:
        """Adds to :attr:`counts`; ``writable`` says whether the store of another process on the same folder still is."""
        with self._lock:
            self.counts.update(numbers)
            self.writable &= writable

    def key(self, pixels: NDArray[np.uint8]) -> str:
        """32 hexadecimal digits that stand for an image, (H, W, 3) uint8 RGB, and all its embeddings depend on."""
        digest = hashlib.sha256(self._prefix + repr(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels).reshape(-1).data)
        return digest.hexdigest()[:32]

    def complete(self, encoded: EncodedImage) -> bool:
        """Whether an image has all that can be kept: SAM's part too, unless its predictor keeps no state."""
        return encoded.sam.state is not None or not self._model.session.keeps_state

    def load(self, pixels: NDArray[np.uint8]) -> EncodedImage | None:
        """The embeddings of an image, on the model's device; None when there are none that can be used.

        SAM's part is left to be encoded when the entry was saved without it.
        """
        key = self.key(pixels)
        for file in self._entries(key):
            data = _read(file)
            if data is None or _hash(data) != file.stem.partition("-")[2]:
                continue
            encoded = self._encoded(data, pixels)
            if encoded is not None:
                return encoded
        return None

    def save(self, encoded: EncodedImage) -> bool:
        """Keeps an image's embeddings, in place of earlier ones; SAM's part too if it is encoded by now.

        Returns:
            Whether the entry was written. The first time it cannot be, there is a warning.
        """
        if not self.writable:
            return False
        key = self.key(encoded.image)
        data = self._data(encoded)
        file = self.folder / key[:2] / f"{key}-{_hash(data)}.safetensors"
        try:
            before = [other for other in self._entries(key) if other != file]
            write_bytes(file, data)
        except OutputError as error:
            with self._lock:
                first, self.writable = self.writable, False
            if first:
                warn(f"embeddings are no longer kept: {error}")
            return False
        for other in before:
            try:
                other.unlink()
            except OSError:  # another process was faster
                continue
        return True

    def _entries(self, key: str) -> list[Path]:
        return sorted((self.folder / key[:2]).glob(f"{key}-*.safetensors"))

    def _data(self, encoded: EncodedImage) -> bytes:
        from safetensors.torch import save

        packed = self._model.generator.pack(encoded.features)
        tensors: dict[str, torch.Tensor] = {f"{_CLIP}{name}": tensor for name, tensor in packed.items()}
        state: Any = None
        if encoded.sam.state is not None:
            more = dict(tensors)
            try:
                state = _pack({name: value for name, value in encoded.sam.state.items() if name not in _SETTINGS}, more)
                tensors = more
            except TypeError:  # the state is no data; SAM encodes this image every time
                state = None
        # copies: views of a batch share memory, which safetensors refuses
        kept = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        return bytes(save(kept, {"sam": json.dumps(state)}))

    def _encoded(self, data: bytes, pixels: NDArray[np.uint8]) -> EncodedImage | None:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            # clones: memory aligned as torch aligns it, so that its kernels do the same as the first time
            tensors = {name: tensor.clone() for name, tensor in load(data).items()}
            record = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            packed = json.loads(record["sam"])
            device = self._model.generator.device
            own = {name.removeprefix(_CLIP): t.to(device) for name, t in tensors.items() if name.startswith(_CLIP)}
            features = self._model.generator.unpack(own, (pixels.shape[0], pixels.shape[1]))
            device = getattr(self._model.predictor, "device", device)
            state = None if packed is None else dict(_unpack(packed, tensors, device))
        except (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None
        return EncodedImage(pixels, features, self._model.session.image(pixels, state))


def _parts(model: TextPromptedSAM) -> tuple[Any, ...]:
    """All of a model that embeddings depend on."""
    surgery, predictor = model.generator, model.predictor
    inner = getattr(predictor, "model", None)
    sam = fingerprint(inner) if isinstance(inner, torch.nn.Module) else ""
    length = getattr(getattr(predictor, "transform", None), "target_length", None)
    kind = f"{type(predictor).__module__}.{type(predictor).__qualname__}"
    return (type(surgery).__qualname__, *surgery.settings, fingerprint(surgery.model), kind, length, sam)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_FILE:  # a pipe would wait for ever
            return None
        return path.read_bytes()
    except (OSError, MemoryError):
        return None


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A value in JSON's types, with its tensors in ``tensors``. Raises TypeError for values that are no data."""
    if isinstance(value, torch.Tensor):
        name = f"sam.{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [_pack(v, tensors) for v in value]}
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _pack(v, tensors) for k, v in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise TypeError(f"{type(value).__name__} is no data")


def _unpack(packed: Any, tensors: Mapping[str, torch.Tensor], device: Any) -> Any:
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value].to(device)
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_unpack(v, tensors, device) for v in value)
    if kind == "dict":
        return {k: _unpack(v, tensors, device) for k, v in value.items()}
    if kind == "value":
        return value
    raise ValueError(f"{kind!r} is no kind of value")
