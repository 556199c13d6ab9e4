"""Checks of arguments that many modules make."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

from text2sam.errors import InputError, Text2SamError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")


def check_number(
    name: str,
    value: Any,
    low: float = float("-inf"),
    high: float = float("inf"),
    *,
    whole: bool = False,
    above: bool = False,
) -> float:
    """A number in a range.

    Args:
        name: of the argument, for the message.
        value: Python or NumPy number; bools are not numbers.
        low, high: the range, both ends included.
        whole: only whole numbers are accepted.
        above: the lower end is excluded.

    Returns:
        The number as a float, or as an int with ``whole``.

    Raises:
        InputError: it is no number or outside the range. NaN is outside every range.
    """
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    with contextlib.suppress(OverflowError):  # an int beyond floats
        if number and low <= float(value) <= high and not (above and float(value) == low):
            return int(value) if whole else float(value)
    kind = "a whole number" if whole else "a number"
    if high == float("inf"):
        span = "" if low == float("-inf") else f" {'above' if above else 'of at least'} {low:.15g}"
    else:
        span = f" in {'(' if above else '['}{low:.15g}, {high:.15g}]"
    raise InputError(f"{name} must be {kind}{span}, not {value!r}")


def check_known(what: str, given: Iterable[object], known: Sequence[str]) -> None:
    """Checks that all given names are known.

    Raises:
        InputError: a name is unknown; ``what`` is the kind of names, such as ``"option"``.
    """
    for name in given:
        if name not in known:
            shown = f"{name!r:.100}" if isinstance(name, (str, int, float, type(None))) else f"of type {type(name).__name__}"
            raise InputError(f"there is no {what} {shown}; there are {', '.join(known) or 'none'}")


def check_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(H, W) as two positive ints.

    Raises:
        InputError: it is anything else.
    """
    try:
        h, w = (operator.index(v) for v in shape)
    except (TypeError, ValueError):
        raise InputError(f"shape must be (H, W) in pixels, not {shape!r}") from None
    if h < 1 or w < 1:
        raise InputError(f"shape must be (H, W) with both at least 1, not {shape!r}")
    return h, w


def check_returned(
    part: str,
    value: object,
    kind: type[_T],
    expected: str,
    *,
    count: int | None = None,
    error: type[Text2SamError] = InputError,
) -> list[_T]:
    """The items that a user's component returned, as a list.

    Args:
        part: name of the component, for the message.
        value: a sequence or an iterator.
        kind: of each item.
        expected: what should have been returned, for the message.
        count: how many items there must be.
        error: the class of the error.

    Raises:
        Text2SamError: of that class; the value is no sequence, or its items are of another kind or number.
    """
    items = list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) else None
    if items is None or not all(isinstance(item, kind) for item in items):
        kinds = "" if items is None else f" of {', '.join(sorted({type(item).__name__ for item in items}))}"
        raise error(f"{part} must return {expected}, not {type(value).__name__}{kinds}")
    if count is not None and len(items) != count:
        raise error(f"{part} must return {expected}: {count}, not {len(items)}")
    return items


def as_array(value: Any) -> Any:
    """An array, a tensor of any device and number format, or nested lists as an array of NumPy."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    return np.asarray(value)


def check_shares(part: str, value: object, shape: tuple[int, ...], expected: str) -> NDArray[np.float32]:
    """The values that a user's component returned, as a float32 array of numbers in [0, 1].

    Args:
        part: name of the component, for the message.
        value: an array, a tensor or lists.
        shape: that it must have.
        expected: what should have been returned, for the message.

    Raises:
        UnsupportedModelError: the value is something else.
    """
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # ragged lists, sparse tensors
        array = as_array(value)
        if array.dtype.kind in "biuf" and array.shape == shape:
            # in float32 what is above 1 by float64's rounding alone is 1
            shares: NDArray[np.float32] = array.astype("float32", copy=False)
            if ((shares >= 0) & (shares <= 1)).all():
                return shares
    raise UnsupportedModelError(f"{part} must return {expected}, not {value!r:.80}")


def name_of(function: object) -> str:
    """What a function or a callable object is called, for messages."""
    return str(getattr(function, "__qualname__", type(function).__name__))


def accepts(function: Callable[..., Any], positional: int, keywords: Iterable[str]) -> bool:
    """Whether a function takes so many arguments by position, and arguments of these names; True where that is unknown."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled functions have no signature; the call shows it
        return True
    try:
        signature.bind_partial(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True
