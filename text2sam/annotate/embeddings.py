"""Image embeddings on disk: a second pass over the same pictures, with other labels, skips both image encoders."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.clip.generator import ImageFeatures
from text2sam.clip.tiles import Tiles, check_tiles
from text2sam.devices import is_out_of_memory
from text2sam.errors import InputError, OutputError, Text2SamError
from text2sam.files import write_bytes
from text2sam.image import ImageLike, read_image
from text2sam.pipeline import EncodedImage, TextPromptedSAM
from text2sam.sam.predictor import ImageState, encode_states

StoredType = Literal["float32", "float16"]

# to be raised whenever the same pixels and weights come to give other embeddings, or the files another content
_FORMAT = 1
_SUFFIX = ".safetensors"
_UNSEALED = "0" * 64
_LONGEST_HEADER = 1 << 20
_LARGEST_FILE = 1 << 30
_SAM_STATE = {"features", "is_image_set"}


class EmbeddingStore:
    """Image embeddings of CLIP and SAM in a folder.

    An entry is one safetensors file, named by a SHA-256 over the picture's pixels and all its embeddings depend on:
    weights and make-up of both image encoders, their input sizes and normalisation, depth of surgery, tiles. Labels,
    vocabulary, thresholds and the text encoder are no part of that. Every entry carries a SHA-256 over its own bytes: one
    that is broken, truncated, of another picture, or no entry at all counts as missing and is written anew. The checksum
    tells damage, not malice: whoever may write into the folder could forge an entry.

    Entries are written whole or not at all, so that several processes may share a folder. In float32 what is loaded is
    bitwise what was saved, and results are those of the first pass on the same device. An entry takes the tokens of CLIP,
    twice, and SAM's features: 8 MB a picture for ViT-B/16 at 512 and SAM.

    A folder that cannot be written never fails a run: one warning, and nothing more is written.

    Only whole pictures are kept. With ``zoom="auto"`` crops around small objects, which depend on the label, are
    encoded in every pass.

    Args:
        folder: where the entries lie; made when the first one is written.
        model: whose encoders are meant. Its weights must not change while the store is in use.
        tiles: as the pictures are encoded, see :meth:`TextPromptedSAM.encode`.
        dtype: ``"float16"`` halves the files; what is loaded is then rounded to 11 bits. A store of one kind does not
            read the other's entries.

    Raises:
        InputError: ``folder`` is a file, or another argument is not of the kind above.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: TextPromptedSAM,
        *,
        tiles: Tiles = False,
        dtype: StoredType = "float32",
    ) -> None:
        if not isinstance(model, TextPromptedSAM):
            raise InputError(f"model must be a TextPromptedSAM, not {type(model).__name__}")
        try:
            self.folder = Path(folder)
            usable = self.folder.is_dir() or not self.folder.exists()
        except (TypeError, ValueError, OSError) as error:
            raise InputError(f"folder must be the path of a folder for embeddings, not {folder!r}: {error}") from error
        if not usable:
            raise InputError(f"embeddings are kept in a folder, and {os.fspath(folder)!r} is a file")
        if dtype not in get_args(StoredType):
            raise InputError(f"dtype must be one of {', '.join(get_args(StoredType))}, not {dtype!r}")
        self.model = model
        self.tiles: Tiles = check_tiles(tiles)
        self.dtype: StoredType = dtype
        self._lock = threading.Lock()
        self._weights: tuple[str, str] | None = None
        self._writable = True

    @property
    def keeps_sam(self) -> bool:
        """Whether the predictor's state can be kept: that of ``SamPredictor`` and its relatives can."""
        predictor = self.model.predictor
        return vars(predictor).keys() >= _SAM_STATE and isinstance(getattr(predictor, "model", None), torch.nn.Module)

    def key(self, pixels: NDArray[np.uint8]) -> str:
        """64 hexadecimal digits that stand for a picture and all its embeddings depend on.

        Args:
            pixels: (H, W, 3) uint8 RGB.

        Raises:
            InputError: ``pixels`` is of another kind.
        """
        ok = isinstance(pixels, np.ndarray) and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
        if not ok or not pixels.size:
            raise InputError(f"pixels must be a non-empty uint8 array of shape (H, W, 3), not {type(pixels).__name__}")
        surgery = self.model.generator
        clip, sam = self._fingerprints()
        sizes = (surgery.image_size, surgery.scales)
        settings: tuple[Any, ...] = (sizes, surgery.depth, surgery.mean, surgery.std, self.tiles, clip)
        if self.keeps_sam:
            predictor: Any = self.model.predictor
            length = getattr(getattr(predictor, "transform", None), "target_length", None)
            settings += (_name_of(predictor), length, predictor.model.training, sam)
        digest = hashlib.sha256(repr((_FORMAT, self.dtype, pixels.shape, settings)).encode())
        digest.update(np.ascontiguousarray(pixels).reshape(-1).data)
        return digest.hexdigest()

    def load(self, pixels: NDArray[np.uint8]) -> EncodedImage | None:
        """What was saved for a picture, on the model's device; None where there is nothing usable.

        ``sam`` is None where the entry was saved without it, or the predictor's state cannot be kept.

        Args:
            pixels: (H, W, 3) uint8 RGB.
        """
        return self._load(self.key(pixels), pixels)

    def save(self, encoded: EncodedImage) -> bool:
        """Keeps a picture's embeddings, in place of what was kept of it before.

        Args:
            encoded: made by this model, with this store's ``tiles``. SAM's part is kept if it is there; call this after
                texts were segmented to have it as soon as it was needed.

        Returns:
            Whether the entry was written; the first time it cannot be, there is a warning.
        """
        return self._save(self.key(encoded.image), encoded)

    def encode(self, images: Sequence[NDArray[np.uint8]], *, sam: bool = True) -> list[EncodedImage]:
        """Embeddings of pictures: loaded where they are kept, else computed in one batch and kept.

        Args:
            images: each (H, W, 3) uint8 RGB.
            sam: SAM's part as well, where it can be kept; what an entry lacks of it is added.
        """
        sam = sam and self.keeps_sam
        keys = [self.key(image) for image in images]
        found = [self._load(key, image) for key, image in zip(keys, images, strict=True)]
        missing = [position for position, one in enumerate(found) if one is None]
        if missing:
            made = self.model.encode([images[position] for position in missing], sam=sam, tiles=self.tiles)
            for position, one in zip(missing, made, strict=True):
                found[position] = one
        result = [one for one in found if one is not None]
        partial = [position for position, one in enumerate(result) if sam and one.sam is None]
        if partial:
            states = encode_states(self.model.predictor, [images[position] for position in partial])
            for position, state in zip(partial, states, strict=True):
                result[position].sam = state
        for position in sorted({*missing, *partial}):
            self._save(keys[position], result[position])
        return result

    def entries(self) -> int:
        """How many entries the folder holds, whatever model they are of."""
        return sum(1 for _ in self._files())

    def size(self) -> int:
        """How many bytes the entries take."""
        return sum(self._files())

    def _files(self) -> Iterator[int]:
        """The size in bytes of each entry."""
        for shard in _scan(self.folder):
            if len(shard.name) == 2:
                for file in _scan(shard.path):
                    if len(file.name) == 64 + len(_SUFFIX) and file.name.endswith(_SUFFIX):
                        try:
                            yield file.stat().st_size
                        except OSError:  # gone by now
                            continue

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / (key + _SUFFIX)

    def _fingerprints(self) -> tuple[str, str]:
        """What stands for the weights of CLIP's image encoder and of SAM's; computed once."""
        with self._lock:
            if self._weights is None:
                sam = ""
                if self.keeps_sam:
                    whole: Any = cast(Any, self.model.predictor).model
                    encoder = getattr(whole, "image_encoder", None)
                    sam = module_fingerprint(encoder if isinstance(encoder, torch.nn.Module) else whole)
                    scale = [getattr(whole, name, None) for name in ("pixel_mean", "pixel_std", "image_format")]
                    sam += repr([v.tolist() if isinstance(v, torch.Tensor) else v for v in scale])
                self._weights = module_fingerprint(self.model.generator.model.visual), sam
            return self._weights

    def _load(self, key: str, pixels: NDArray[np.uint8]) -> EncodedImage | None:
        data = _read(self._path(key))
        if data is None:
            return None
        try:
            record, tensors = _open_entry(data, key)
            grid = _two_ints(record["grid"])
            operated, raw = tensors["surgery"], tensors["raw"]
            fits = operated.ndim == 2 and len(operated) == 1 + grid[0] * grid[1] and operated.shape == raw.shape
            if not fits or operated.dtype != torch.float32 or raw.dtype != torch.float32:
                return None
            packed = record["sam"] if self.keeps_sam else None
            values = None if packed is None else _unpack(packed, tensors)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None
        device = self.model.generator.device
        features = ImageFeatures(operated.to(device), raw.to(device), grid, (pixels.shape[0], pixels.shape[1]))
        return EncodedImage(pixels, features, None if values is None else self._state(values))

    def _state(self, values: Any) -> ImageState | None:
        predictor: Any = self.model.predictor
        # methods and properties of the predictor are no state
        if not isinstance(values, dict) or any(hasattr(type(predictor), name) for name in values):
            return None
        if not values.keys() >= _SAM_STATE:
            return None
        weight = next(predictor.model.parameters(), None)
        device = torch.device("cpu") if weight is None else weight.device
        return ImageState(_moved(values, device), None, predictor.model)

    def _save(self, key: str, encoded: EncodedImage) -> bool:
        if not self._writable:
            return False
        try:
            self._write(key, encoded)
        except OutputError as error:
            with self._lock:
                first, self._writable = self._writable, False
            if first:
                warnings.warn(f"embeddings are no longer kept: {error}", stacklevel=3)
            return False
        return True

    def _write(self, key: str, encoded: EncodedImage) -> None:
        features = encoded.features
        tensors = {"surgery": features.surgery, "raw": features.raw}
        record: dict[str, Any] = {"format": _FORMAT, "key": key, "grid": list(features.grid), "sam": None}
        state = encoded.sam
        predictor: Any = self.model.predictor
        if state is not None and state.image is None and self.keeps_sam and state._model is predictor.model:
            more = dict(tensors)
            try:
                record["sam"] = _pack(dict(state.values), more)
                tensors = more
            except TypeError:  # state that is no data; SAM encodes this picture every time
                record["sam"] = None
        kept, widen = {}, []
        for name, tensor in tensors.items():
            # a copy: views of a batch share memory, which safetensors refuses
            kept[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            if self.dtype == "float16" and tensor.dtype == torch.float32:
                half = kept[name].half()
                if bool(half.isfinite().all()):
                    kept[name] = half
                    widen.append(name)
        write_bytes(self._path(key), _close_entry(record | {"widen": widen}, kept))


@dataclass(frozen=True)
class WarmReport:
    """What :func:`warm` did.

    Attributes:
        made: pictures encoded and kept.
        found: pictures whose embeddings were there already.
        failed: (name, reason) of each picture that could not be read or encoded, in order.

    Raises:
        InputError: a field is of another kind.
    """

    made: int
    found: int
    failed: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("made", self.made), ("found", self.found)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"{name} must be a number of pictures, not {value!r}")
        ok = isinstance(self.failed, tuple)
        if not ok or not all(isinstance(f, tuple) and len(f) == 2 and all(isinstance(v, str) for v in f) for f in self.failed):
            raise InputError("failed must be a tuple of (name, reason)")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        failed = [{"path": name, "reason": reason} for name, reason in self.failed]
        return {"made": self.made, "found": self.found, "failed": failed}


def warm(
    model: TextPromptedSAM,
    items: Iterable[ImageLike],
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    tiles: Tiles = False,
    dtype: StoredType = "float32",
    progress: Callable[[int], object] | None = None,
) -> WarmReport:
    """Fills an :class:`EmbeddingStore` ahead of the runs that will use it.

    The next pictures are read while the model works on a batch; no more than that is held. A picture that cannot be read
    costs one line in the report, one that is kept already is only checked. Where the device runs out of memory the batch
    is halved.

    Args:
        model: whose encoders are meant.
        items: pictures, mostly paths; may be a generator.
        folder, tiles, dtype: as for :class:`EmbeddingStore`.
        batch_size: how many pictures are encoded at once.
        progress: called with the number of pictures done so far, after each change of it.

    Raises:
        InputError: an argument is not of the kind above.
        OutputError: the folder cannot be written; what was written before stays.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size must be an int of at least 1, not {batch_size!r}")
    if isinstance(items, (str, os.PathLike)) or not isinstance(items, Iterable):
        raise InputError("items must be pictures; for one picture pass [picture]")
    store = EmbeddingStore(folder, model, tiles=tiles, dtype=dtype)
    sam = store.keeps_sam
    made = found = 0
    failed: list[tuple[int, str, str]] = []
    waiting: list[_Read] = []

    def encode(batch: Sequence[_Read]) -> None:
        nonlocal made
        reason = ""
        try:
            encoded = model.encode([one.pixels for one in batch], sam=sam, tiles=store.tiles)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, Text2SamError) or not is_out_of_memory(error):
                raise
            reason = f"out of memory: {error}"
        # after the except block, which holds on to all that was allocated in it
        if reason and len(batch) > 1:
            encode(batch[: len(batch) // 2])
            encode(batch[len(batch) // 2 :])
        elif reason:
            failed.append((batch[0].position, batch[0].name, reason))
        else:
            for one, result in zip(batch, encoded, strict=True):
                store._write(one.key, result)
            made += len(batch)

    def tell() -> None:
        if progress is not None:
            progress(made + found + len(failed))

    for one in _read_ahead(store, items, batch_size):
        if one.reason:
            failed.append((one.position, one.name, one.reason))
        else:
            kept = store._load(one.key, one.pixels)
            if kept is None or (sam and kept.sam is None):
                waiting.append(one)
                if len(waiting) < batch_size:
                    continue
                encode(waiting)
                waiting = []
            else:
                found += 1
        tell()
    if waiting:
        encode(waiting)
        tell()
    return WarmReport(made, found, tuple((name, reason) for _, name, reason in sorted(failed)))


@dataclass(frozen=True, eq=False)
class _Read:
    """A picture that was read, or the reason why it was not."""

    position: int
    name: str
    pixels: NDArray[np.uint8]
    key: str
    reason: str = ""


def _read_ahead(store: EmbeddingStore, items: Iterable[ImageLike], ahead: int) -> Iterator[_Read]:
    """Pictures in their order, up to ``ahead`` of them read by another thread before they are asked for."""

    def read(position: int, item: ImageLike) -> _Read:
        name = os.fsdecode(item) if isinstance(item, (str, os.PathLike)) else f"picture {position}"
        try:
            pixels = read_image(item)
            return _Read(position, name, pixels, store.key(pixels))
        except Text2SamError as error:
            return _Read(position, name, np.zeros((0, 0, 3), np.uint8), "", str(error) or type(error).__name__)

    numbered = enumerate(items)
    with ThreadPoolExecutor(1) as reader:
        pending = deque(reader.submit(read, *pair) for pair in itertools.islice(numbered, ahead))
        try:
            while pending:
                one = pending.popleft().result()
                pending.extend(reader.submit(read, *pair) for pair in itertools.islice(numbered, 1))
                yield one
        finally:
            for future in pending:
                future.cancel()


def _scan(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _name_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def module_fingerprint(module: torch.nn.Module) -> str:
    """Stands for a module's weights and make-up: classes, and settings such as heads and windows that no weight shows."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        settings = {k: v for k, v in sorted(vars(part).items()) if k[0] != "_" and k != "training" and _is_setting(v)}
        digest.update(repr((name, _name_of(part), settings)).encode())
    # buffers too that are not in the state dict
    for name, tensor in sorted(itertools.chain(module.named_parameters(), module.named_buffers())):
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_setting(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_setting(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A value in JSON's types; tensors go to ``tensors``. Raises TypeError for what is no data."""
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


def _unpack(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_unpack(v, tensors) for v in value)
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in value.items()}
    if kind == "value":
        return value
    raise ValueError(f"{kind!r} is no kind of value")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(v, device) for v in value)
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    return value


def _two_ints(value: Any) -> tuple[int, int]:
    height, width = value
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise ValueError("a grid is two positive numbers")
    return height, width


def _read(path: Path) -> bytes | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever
            return None
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_FILE:
                return None
            return file.read()
    except (OSError, MemoryError):
        return None


def _close_entry(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file whose metadata holds a record and the seal: SHA-256 of the file with zeros in the seal's place."""
    from safetensors.torch import save

    data: bytes = save(dict(tensors), {"record": json.dumps(record), "sha256": _UNSEALED})
    head = 8 + int.from_bytes(data[:8], "little")
    place = data[:head].index(_UNSEALED.encode())
    return data[:place] + hashlib.sha256(data).hexdigest().encode() + data[place + len(_UNSEALED) :]


def _open_entry(data: bytes, key: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Record and tensors of a file that :func:`_close_entry` made for this key.

    Raises:
        ValueError, TypeError, LookupError, AttributeError, RecursionError: it is anything else.
    """
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= min(len(data) - 8, _LONGEST_HEADER):
        raise ValueError("no header")
    header = data[8 : 8 + length]
    metadata = json.loads(header)["__metadata__"]
    seal = metadata["sha256"].encode()
    if len(seal) != len(_UNSEALED) or header.count(seal) != 1:
        raise ValueError("no seal")
    place = 8 + header.index(seal)
    digest = hashlib.sha256(data[:place])
    digest.update(_UNSEALED.encode())
    digest.update(memoryview(data)[place + len(_UNSEALED) :])
    if digest.hexdigest().encode() != seal:
        raise ValueError("the seal is broken")
    record = json.loads(metadata["record"])
    if record["format"] != _FORMAT or record["key"] != key:
        raise ValueError("an entry of another picture or format")
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        loaded = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    # clones: memory aligned as torch aligns it, so that its kernels take the same way as the first time
    return record, {name: t.float() if name in record["widen"] else t.clone() for name, t in loaded.items()}
