"""A hash of a model's architecture and weights."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("_orig_mod.", "base_model.model.", "module.")  # torch.compile's, peft's, DataParallel's


def fingerprint(module: torch.nn.Module, *, skip: Collection[str] = ()) -> str:
    """A SHA-256 over everything in a model that changes what it computes.

    That is: the classes of its modules and their plain settings (numbers, strings, activations, and containers of these, such
    as the scaling of LoRA adapters), parameters, buffers, and packed weights of quantised layers. Training mode, hooks and
    ``requires_grad`` do not count. A compiled model has the fingerprint of the model it was made from.

    Args:
        module: the model.
        skip: names of submodules and parameters to leave out, such as ``"visual"``.

    Returns:
        64 hexadecimal digits.
    """
    import torch

    module = getattr(module, "_orig_mod", module)
    internals = {*vars(torch.nn.Module()), "training", "_is_torch_compile"}
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        if not _skipped(name, skip):
            # an empty mapping says nothing yet: timm's TinyViT fills one with tensors when it first runs
            settings = {
                k: repr(_setting(v)) for k, v in vars(part).items() if k not in internals and _is_setting(v) and v != {}
            }
            digest.update(repr((name, _name_of(type(part)), sorted(settings.items()))).encode())
    # buffers that are not in the state dict count too
    values = {**module.state_dict(), **dict(module.named_buffers(remove_duplicate=False))}
    for name in sorted(values):
        if not _skipped(name, skip):
            digest.update(name.encode())
            for piece in _bytes_of(values[name]):
                digest.update(piece)
    return digest.hexdigest()


def _skipped(name: str, skip: Collection[str]) -> bool:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return any(f"{name}.".startswith(f"{part}.") for part in skip)


def _name_of(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_setting(value: Any) -> bool:
    import torch

    if isinstance(value, (tuple, list, set, frozenset)):
        return all(_is_setting(v) for v in value)
    if isinstance(value, Mapping):
        return all(_is_setting(v) for pair in value.items() for v in pair)
    plain = (bool, int, float, complex, str, bytes, torch.dtype, torch.Size, functools.partial)
    return value is None or isinstance(value, (*plain, type, types.FunctionType, types.BuiltinFunctionType))


def _setting(value: Any) -> Any:
    """A setting in a form whose ``repr`` is the same in every process."""
    if isinstance(value, (tuple, list)):
        return [_setting(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(_setting(v)) for v in value)
    if isinstance(value, Mapping):
        return sorted((repr(_setting(k)), repr(_setting(v))) for k, v in value.items())
    if isinstance(value, functools.partial):
        return "partial", _setting(value.func), repr(_setting(value.args)), _setting(value.keywords)
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return _name_of(value)
    return value


def _bytes_of(value: Any) -> Iterator[bytes]:
    """The content of an entry of a state dict: a tensor, or what quantised layers and extra states keep there."""
    import torch

    if isinstance(value, torch.Tensor):
        yield repr((tuple(value.shape), value.dtype, value.is_meta)).encode()
        if value.is_meta:
            return
        value = value.detach().cpu()
        if value.is_quantized:
            value = value.dequantize()
        yield value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        yield from _bytes_of([part for key in sorted(value, key=repr) for part in (repr(key), value[key])])
    elif isinstance(value, (tuple, list)):
        yield str(len(value)).encode()
        for part in value:
            yield from _bytes_of(part)
    else:
        yield repr(_setting(value) if _is_setting(value) else type(value)).encode()
